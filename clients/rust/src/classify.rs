//! Having pictures classified: the one call that goes over the Open Inference Protocol.

use std::collections::HashMap;

use aerie_proto::inference::{
    InferParameter, InferTensorContents, ModelInferRequest, ModelInferResponse,
    infer_parameter::ParameterChoice,
    model_infer_request::{InferInputTensor, InferRequestedOutputTensor},
};

use crate::Error;

/// A class that a picture may be of.
#[derive(Clone, Debug, PartialEq)]
pub struct Class {
    /// As the model was trained with.
    pub label: String,
    /// From 0 to 1; those of all classes together are 1.
    pub probability: f32,
    /// Number of the class.
    pub index: u32,
}

/// The output that tells classes by name.
const LABELS: &str = "labels";
/// Before each text of a tensor.
const LENGTH_BYTES: usize = 4;

/// The request for the `n` most probable classes of each of `pictures`, files of JPEG or PNG.
pub(crate) fn request(model: &str, pictures: &[Vec<u8>], n: u32) -> ModelInferRequest {
    let files = pictures.iter().map(|it| it.clone().into()).collect();
    let image = InferInputTensor {
        name: "image".to_owned(),
        datatype: "BYTES".to_owned(),
        shape: vec![i64::try_from(pictures.len()).expect("memory holds them")],
        contents: Some(InferTensorContents { bytes_contents: files, ..<_>::default() }),
        ..InferInputTensor::default()
    };
    let n = InferParameter { parameter_choice: Some(ParameterChoice::Int64Param(n.into())) };
    let labels = InferRequestedOutputTensor {
        name: LABELS.to_owned(),
        parameters: HashMap::from([("classification".to_owned(), n)]),
    };
    ModelInferRequest {
        model_name: model.to_owned(),
        inputs: vec![image],
        outputs: vec![labels],
        ..ModelInferRequest::default()
    }
}

/// What the answer to [`request`] tells of each picture.
pub(crate) fn classes(response: &ModelInferResponse) -> Result<Vec<Vec<Class>>, Error> {
    let ([output], [raw]) = (&response.outputs[..], &response.raw_output_contents[..]) else {
        return Err(Error::Answer);
    };
    let &[_, n] = &output.shape[..] else { return Err(Error::Answer) };
    let n = usize::try_from(n).ok().filter(|&it| 0 < it).ok_or(Error::Answer)?;
    let (mut classes, mut rest) = (Vec::new(), &raw[..]);
    while let Some((length, after)) = rest.split_first_chunk::<LENGTH_BYTES>() {
        let length = u32::from_le_bytes(*length) as usize;
        let (text, after) = after.split_at_checked(length).ok_or(Error::Answer)?;
        classes.push(class(text).ok_or(Error::Answer)?);
        rest = after;
    }
    Ok(classes.chunks(n).map(<[Class]>::to_vec).collect())
}

/// Reads `probability:index:label`; a label may have colons.
fn class(text: &[u8]) -> Option<Class> {
    let mut parts = str::from_utf8(text).ok()?.splitn(3, ':');
    let (probability, index) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    Some(Class { label: parts.next()?.to_owned(), probability, index })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_and_garbage_is_refused() {
        let found = class(b"0.750000:3:a:b").unwrap();
        assert_eq!(found, Class { label: "a:b".to_owned(), probability: 0.75, index: 3 });
        for text in ["", "1", "1:2", "x:2:a", "1:-2:a"] {
            assert_eq!(class(text.as_bytes()), None, "{text}");
        }
        classes(&ModelInferResponse::default()).unwrap_err();
    }
}
