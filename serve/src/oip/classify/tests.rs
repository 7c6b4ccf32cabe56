//! Requests for classes, and what is told of them.

use aerie_models::images::preprocessing::{Interpolation, Resize};
use aerie_proto::inference::{
    InferParameter,
    model_infer_request::{InferInputTensor, InferRequestedOutputTensor},
};

use super::*;
use crate::oip::tensor::{decode_strings, encode_strings};

const TAKES: Takes = Takes { classes: 3, rows_max: 2, usual: Extent { height: 32, width: 32 } };

#[test]
fn pixels_and_pictures_are_held_to_their_limits() {
    let floats = |n: usize| Bytes::from(vec![0; 4 * n]);
    let given = |shape: &[i64], raw| parse(request(PIXELS, "FP32", shape, raw));
    let Ok(Classification { given: Given::Pixels(pixels), priority: Priority::High, .. }) =
        given(&[2, 3, 1, 2], floats(12))
    else {
        panic!("two rows are taken");
    };
    assert_eq!((pixels.rows, pixels.extent), (2, Extent { height: 1, width: 2 }));
    for (shape, n, words) in [
        (&[3, 3, 1, 1][..], 9, "1 to 2 are taken"),
        (&[0, 3, 1, 1], 0, "1 to 2 are taken"),
        (&[1, 1, 1, 1], 1, "[n, 3, H, W]"),
        (&[3, 1, 1], 3, "[n, 3, H, W]"),
        (&[1, 3, 0, 4], 0, "pixels are taken"),
        (&[1, 3, 64, 33], 0, "as many pixels are taken as 2 of 32 by 32 have"),
        (&[2, 3, 33, 32], 0, "2 rows of 33 by 32; 1 to 1 are taken"),
        (&[1, 3, 1 << 31, 1 << 31], 0, "cannot be"),
        (&[1, 3, 2, 2], 11, "44 bytes; 48 are expected"),
    ] {
        let error = given(shape, floats(n)).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
    let large = given(&[1, 3, 64, 32], floats(3 * 64 * 32)).unwrap().given;
    assert_eq!(large.weight(), 2);
    let pictures = |shape: &[i64], n| {
        let raw = encode_strings(vec![&b"x"[..]; n]);
        parse(request(IMAGE, "BYTES", shape, raw))
    };
    let found = pictures(&[2, 1], 2).unwrap().given;
    assert!(matches!(found, Given::Pictures(files) if files.len() == 2));
    pictures(&[3], 3).unwrap_err();
    pictures(&[2], 1).unwrap_err();
}

#[test]
fn a_picture_that_cannot_be_decoded_is_named() {
    let input = Preprocessing {
        height: 2,
        width: 2,
        resize: Resize::None,
        crop_share: 1.0,
        interpolation: Interpolation::Bilinear,
        mean: [0.0; 3],
        std: [1.0; 3],
    };
    let files = [Bytes::from_static(b"GIF89a")];
    let error = prepare(&files, &input, &Config::default(), || Ok(())).unwrap_err().to_string();
    assert!(error.contains("\"image\" [0]: the bytes are neither JPEG nor PNG"), "{error}");
    let gone = Reject::Internal { what: "its client has gone" };
    let ended = prepare(&files, &input, &Config::default(), || Err(gone.clone()));
    assert_eq!(ended, Err(gone), "nothing is decoded that nobody wants");
}

#[test]
fn answers_tell_numbers_or_the_best_classes() {
    let labels = ["a", "b:c", "d"].map(str::to_owned);
    let logits = [0.0, 2.0, 1.0, 5.0, 5.0, -1.0];
    let mut asked = request(PIXELS, "FP32", &[2, 3, 1, 1], Bytes::from(vec![0; 24]));
    asked.outputs =
        vec![output(LABELS, None), output(LOGITS, Some(2)), output(PROBABILITIES, None)];
    let response = parse(asked).unwrap().reply.respond("m", &logits, &labels);
    let [names, best, probabilities] = &response.raw_output_contents[..] else {
        panic!("{response:?}");
    };
    let texts = |raw| decode_strings(raw).map(|it| str::from_utf8(it).unwrap()).collect::<Vec<_>>();
    assert_eq!(texts(names), ["b:c", "a"]);
    assert_eq!(
        texts(best),
        ["2.000000:1:b:c", "1.000000:2:d", "5.000000:0:a", "5.000000:1:b:c"],
        "of equal ones, the first is first"
    );
    assert_eq!(response.outputs[1].shape, [2, 2]);
    let values: Vec<f32> =
        probabilities.as_chunks().0.iter().map(|it| f32::from_le_bytes(*it)).collect();
    for row in values.chunks_exact(3) {
        // f32, three additions.
        assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-6, "{row:?}");
    }
}

#[test]
fn largest_logits_do_not_overflow() {
    assert_eq!(softmax(&[1e30, -1e30]), [1.0, 0.0]);
    assert_eq!(softmax(&[3.0]), [1.0]);
}

fn parse(request: ModelInferRequest) -> Result<Classification, Reject> {
    Classification::parse(request, &TAKES, &crate::oip::Config::default())
}

fn output(name: &str, classes: Option<i64>) -> InferRequestedOutputTensor {
    let parameter = |n| {
        let choice = Some(ParameterChoice::Int64Param(n));
        ("classification".to_owned(), InferParameter { parameter_choice: choice })
    };
    let parameters = classes.map(parameter).into_iter().collect();
    InferRequestedOutputTensor { name: name.to_owned(), parameters }
}

fn request(name: &str, datatype: &str, shape: &[i64], raw: Bytes) -> ModelInferRequest {
    let input = InferInputTensor {
        name: name.to_owned(),
        datatype: datatype.to_owned(),
        shape: shape.to_vec(),
        ..InferInputTensor::default()
    };
    ModelInferRequest {
        inputs: vec![input],
        raw_input_contents: vec![raw],
        ..ModelInferRequest::default()
    }
}
