//! Tensors that are what they say, and those that are not.

use aerie_proto::inference::model_infer_request::InferInputTensor;

use super::*;

#[test]
fn raw_and_typed_contents_are_the_same_tensor() {
    let typed = InferTensorContents {
        int64_contents: vec![1, -2],
        int_contents: vec![1, -2],
        fp32_contents: vec![0.5, -2.0],
        bytes_contents: vec![Bytes::from("a"), Bytes::from("")],
        ..InferTensorContents::default()
    };
    let raw = |raw: &[u8]| Bytes::copy_from_slice(raw);
    let long = [1_i64, -2].map(i64::to_le_bytes).concat();
    let short = [1_i32, -2].map(i32::to_le_bytes).concat();
    for (datatype, bytes) in [("INT64", raw(&long)), ("INT32", raw(&short))] {
        for contents in [Contents::Raw(bytes), Contents::Typed(typed.clone())] {
            assert_eq!(input(datatype, contents).integers().unwrap(), [1, -2]);
        }
    }
    let floats = raw(&[0.5_f32, -2.0].map(f32::to_le_bytes).concat());
    let strings = encode_strings([&b"a"[..], b""]);
    assert_eq!(decode_strings(&strings).collect::<Vec<_>>(), [&b"a"[..], b""]);
    for contents in [Contents::Raw(floats), Contents::Typed(typed.clone())] {
        assert_eq!(input("FP32", contents).floats().unwrap(), [0.5, -2.0]);
    }
    for contents in [Contents::Raw(strings), Contents::Typed(typed)] {
        assert_eq!(input("BYTES", contents).strings().unwrap(), [&b"a"[..], b""]);
    }
}

#[test]
fn tensors_that_are_not_what_they_say_are_refused() {
    let raw = |bytes: &'static [u8]| Contents::Raw(Bytes::from_static(bytes));
    let refused = |result: Result<Vec<i64>, Reject>, words: &str| {
        let error = result.unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    };
    refused(input("INT64", raw(&[0; 15])).integers(), "15 bytes; 16 are expected");
    refused(input("FP32", raw(&[0; 8])).integers(), "INT64 or INT32");
    refused(input("INT64", Contents::Typed(<_>::default())).integers(), "0 elements; 2 are");
    for bytes in [&b"\x02\0\0\0a"[..], b"\x01\0\0", b"\xff\xff\xff\xff", b"\0\0\0\0\0"] {
        let error = input("BYTES", raw(bytes)).strings().unwrap_err().to_string();
        assert!(error.contains("amid an element"), "{error}");
    }
    let error = input("BYTES", raw(&[0; 12])).strings().unwrap_err().to_string();
    assert!(error.contains("3 elements; 2 are expected"), "{error}");
}

#[test]
fn inputs_of_a_request_are_held_to_its_shape() {
    check(vec![tensor("a", &[2]), tensor("a", &[2])], 0, "\"a\" is there twice");
    check(vec![tensor("a", &[-1])], 0, "shape of 1 extents");
    check(vec![tensor("a", &[1; 9])], 0, "shape of 9 extents");
    check(vec![tensor("a", &[i64::MAX, i64::MAX])], 0, "shape of 2 extents");
    check(vec![tensor("a", &[1]), tensor("b", &[1])], 1, "are 1, but there are 2");
    check(vec![tensor("a", &[1]), tensor("b", &[1]), tensor("c", &[1])], 0, "are 3; at most 2");
    let mut shared = tensor("a", &[1]);
    shared.parameters.insert("shared_memory_region".to_owned(), InferParameter::default());
    check(vec![shared], 0, "shared_memory_region");
    let mut both = tensor("a", &[1]);
    both.contents = Some(InferTensorContents::default());
    check(vec![both], 1, "raw contents and typed");
}

#[test]
fn outputs_come_in_the_order_in_which_they_are_asked_for() {
    let known = ["x", "y"].map(|name| Signature::new(name, Datatype::Int64, &[-1]));
    let outputs = || vec![Output::integers("x", vec![1], [1]), Output::integers("y", vec![1], [2])];
    let names = |asked: &[&str]| {
        let outputs_asked = asked.iter().map(|name| InferRequestedOutputTensor {
            name: (*name).to_owned(),
            ..InferRequestedOutputTensor::default()
        });
        let outputs_asked = outputs_asked.collect();
        let mut request =
            ModelInferRequest { outputs: outputs_asked, ..ModelInferRequest::default() };
        let response = Wanted::take(&mut request, &known)?.respond(outputs());
        assert_eq!(response.outputs.len(), response.raw_output_contents.len());
        Ok::<_, Reject>(response.outputs.iter().map(|it| it.name.clone()).collect::<Vec<_>>())
    };
    assert_eq!(names(&[]).unwrap(), ["x", "y"]);
    assert_eq!(names(&["y", "x"]).unwrap(), ["y", "x"]);
    assert_eq!(names(&["y"]).unwrap(), ["y"]);
    assert!(names(&["y", "y"]).unwrap_err().to_string().contains("x, y, once each"));
    assert!(names(&["z"]).unwrap_err().to_string().contains("\"z\""));
}

/// Takes inputs with `n_raw` raw contents, of which at most two may be, and expects a refusal.
#[track_caller]
fn check(inputs: Vec<InferInputTensor>, n_raw: usize, words: &str) {
    let raw_input_contents = vec![Bytes::new(); n_raw];
    let mut request =
        ModelInferRequest { inputs, raw_input_contents, ..ModelInferRequest::default() };
    let error = take_inputs(&mut request, 2).unwrap_err().to_string();
    assert!(error.contains(words), "{error}");
}

fn tensor(name: &str, shape: &[i64]) -> InferInputTensor {
    let (name, shape) = (name.to_owned(), shape.to_vec());
    InferInputTensor { name, shape, ..InferInputTensor::default() }
}

fn input(datatype: &str, contents: Contents) -> Input {
    let (name, datatype) = ("t".to_owned(), datatype.to_owned());
    Input { name, shape: vec![2], datatype, n_elements: 2, contents }
}
