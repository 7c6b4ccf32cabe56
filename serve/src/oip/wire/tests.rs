//! Requests that are no larger than they look, and those that would be.

use std::collections::HashMap;

use aerie_fuzz::{Format, Fuzz};
use aerie_proto::inference::{
    InferParameter, InferTensorContents,
    infer_parameter::ParameterChoice,
    model_infer_request::{InferInputTensor, InferRequestedOutputTensor},
};
use bytes::Bytes;

use super::*;
use crate::oip::tensor::take_inputs;

const LIMITS: Limits = Limits { tensors_max: 4, elements_max: 64 };

/// Goal: 16 MiB on the wire, which would take gigabytes in memory, are refused for what they hold.
/// Method: a field of two bytes over and over, for each list that a message has.
#[test]
fn messages_that_grow_in_memory_are_refused() {
    let times = |n: usize, field: &[u8]| field.repeat(n / field.len());
    for (field, words) in [
        (&[0x22, 0][..], "parameters are more than 4"),
        (&[0x2a, 0], "inputs are more than 4"),
        (&[0x32, 0], "outputs are more than 4"),
        (&[0x3a, 0], "raw_input_contents are more than 4"),
    ] {
        check(&times(16 << 20, field), words);
    }
    let packed = |number: u8| [&[number << 3 | 2][..], &length(1 << 20), &[0; 1 << 20]].concat();
    for number in 2..=5 {
        check(&input(5, &packed(number)), "elements are more than 64");
    }
    check(&input(5, &times(1 << 20, &[0x42, 0])), "elements are more than 64");
    check(&input(5, &times(1 << 20, &[0x18, 0])), "elements are more than 64");
    check(&input(3, &[0; 1 << 20]), "elements are more than 64");
    check(&times(100, &input(3, &[1; 4])), "inputs are more than 4");
    check(&input(4, &[]).repeat(5), "inputs are more than 4");
    let parameters = [0x22, 0].repeat(5);
    check(&[&[0x2a][..], &length(parameters.len()), &parameters].concat(), "parameters are more");
    let parameters = [0x12, 0].repeat(5);
    check(&[&[0x32][..], &length(parameters.len()), &parameters].concat(), "parameters are more");
}

#[test]
fn bytes_that_are_no_request_are_refused() {
    check(&[0x2a, 1], "ends amid a field");
    check(&[0x80], "ends amid a field");
    check(&[0xff; 16], "ends amid a field");
    check(&[0x2b], "type 3");
    check(&[0x0a, 1, 0xff], "UTF-8");
}

#[test]
fn floats_and_raw_contents_may_be_many() {
    let mut request = request();
    let floats = InferTensorContents { fp32_contents: vec![0.5; 1000], ..<_>::default() };
    request.inputs[0].contents = Some(floats);
    request.raw_input_contents = vec![Bytes::from(vec![7; 1000])];
    assert_eq!(decode(&request.encode_to_vec(), &LIMITS).unwrap(), request);
}

/// Whatever comes, it is refused or is a request that takes little and can be looked at.
#[test]
fn fuzzed_requests_are_taken_or_refused() {
    let raw = ModelInferRequest {
        raw_input_contents: vec![Bytes::from(vec![0; 8])],
        inputs: vec![InferInputTensor { contents: None, ..request().inputs.remove(0) }],
        ..request()
    };
    let seeds = [request(), raw].map(|it| it.encode_to_vec()).to_vec();
    let words: [&[u8]; 6] = [b"\x2a\0", b"\x32\0", b"\x3a\0", b"\x42\0", b"INT64", b"BYTES"];
    let fuzz = Fuzz { name: "oip_request", format: Format::Protobuf, seeds, words: &words };
    fuzz.run(|bytes| {
        let decoded = decode(bytes, &LIMITS);
        let Ok(mut request) = decoded else { return false };
        let inputs = take_inputs(&mut request, LIMITS.tensors_max);
        inputs.is_ok_and(|it| it.into_iter().all(|it| it.integers().is_ok()))
    });
}

#[track_caller]
fn check(bytes: &[u8], words: &str) {
    let error = decode(bytes, &LIMITS).unwrap_err().to_string();
    assert!(error.contains(words), "{error}");
}

/// A request with one tensor that has one field.
fn input(number: u8, value: &[u8]) -> Vec<u8> {
    let field = [&[number << 3 | 2][..], &length(value.len()), value].concat();
    [&[0x2a][..], &length(field.len()), &field].concat()
}

fn length(mut n: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while 0x80 <= n {
        bytes.push(n.to_le_bytes()[0] | 0x80);
        n >>= 7;
    }
    bytes.push(n.to_le_bytes()[0]);
    bytes
}

fn request() -> ModelInferRequest {
    let number = InferParameter { parameter_choice: Some(ParameterChoice::Int64Param(7)) };
    let input = InferInputTensor {
        name: "tokens".to_owned(),
        datatype: "INT64".to_owned(),
        shape: vec![1],
        contents: Some(InferTensorContents { int64_contents: vec![300], ..<_>::default() }),
        ..InferInputTensor::default()
    };
    ModelInferRequest {
        model_name: "m".to_owned(),
        id: "a".to_owned(),
        parameters: HashMap::from([("n".to_owned(), number)]),
        inputs: vec![input],
        outputs: vec![InferRequestedOutputTensor { name: "tokens".to_owned(), ..<_>::default() }],
        ..ModelInferRequest::default()
    }
}
