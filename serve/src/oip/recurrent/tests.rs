//! Requests for tokens in the protocol's words, and in ours.

use std::collections::HashMap;

use aerie_proto::inference::{InferParameter, model_infer_request::InferInputTensor};
use bytes::Bytes;

use super::*;
use crate::oip::tensor::encode_strings;

#[test]
fn parameters_are_those_of_a_start() {
    use ParameterChoice::{BoolParam, DoubleParam, Int64Param, StringParam};

    let text = |it: &str| StringParam(it.to_owned());
    let request = request([
        ("max_tokens", Int64Param(9)),
        ("temperature", DoubleParam(0.5)),
        ("top_p", Int64Param(1)),
        ("seed", Int64Param(7)),
        ("stop", text("a")),
        ("stops", text(r#"["b", "c"]"#)),
        ("prompt_only", BoolParam(true)),
        ("triton_enable_empty_final_response", BoolParam(true)),
    ]);
    let generation = parse(request).unwrap();
    let start = &generation.start;
    let sampling = start.sampling.unwrap();
    assert_eq!((start.max_tokens, &*start.request_id, start.keep), (9, "", false));
    assert_eq!((sampling.temperature, sampling.top_p, sampling.seed), (0.5, 1.0, Some(7)));
    assert_eq!(start.stop, ["b", "c", "a"]);
    assert!(start.prompt_only && generation.tells_end && start.session_id.is_empty());
    assert_eq!(start.prompt, Some(v1::start::Prompt::Text("hi".to_owned())));
}

#[test]
fn a_sequence_is_a_session_that_is_kept() {
    use ParameterChoice::{BoolParam, Int64Param};

    let sequence = ("sequence_id", Int64Param(3));
    let (key, config, limits) = (SequenceKey::default(), Config::default(), <_>::default());
    let parse = |it| Generation::parse(it, TenantId::ANONYMOUS, &key, &config, &limits).unwrap();
    let starts = parse(request([sequence.clone(), ("sequence_start", BoolParam(true))]));
    let goes_on = parse(request([sequence]));
    assert_eq!(starts.start.session_id, goes_on.start.session_id);
    assert!(starts.start.keep && goes_on.start.keep);
    assert_eq!((&*starts.start.request_id, &*goes_on.start.request_id), ("id", "id"));
    assert_eq!((starts.start.expected_position, goes_on.start.expected_position), (Some(0), None));
}

#[test]
fn mistakes_are_named() {
    use ParameterChoice::{Int64Param, StringParam};

    let text = |it: &str| StringParam(it.to_owned());
    for (name, value, words) in [
        ("max_tokens", Int64Param(-1), "max_tokens is not a whole number"),
        ("seed", text("x"), "seed is not a whole number"),
        ("temperature", text("x"), "temperature is not a number"),
        ("stops", text("b"), "stops is not a list"),
        ("stop", Int64Param(1), "stop is not a string"),
        ("prompt_only", Int64Param(1), "prompt_only is not true or false"),
        ("colour", Int64Param(1), "\"colour\", which means nothing"),
    ] {
        let error = parse(request([(name, value)])).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
    let mut two = request([]);
    two.inputs.push(InferInputTensor { name: TOKENS.to_owned(), ..<_>::default() });
    two.raw_input_contents.push(Bytes::new());
    assert!(parse(two).unwrap_err().to_string().contains("one of them"));
    let mut garbled = request([]);
    garbled.raw_input_contents = vec![encode_strings([&b"\xff"[..]])];
    assert!(parse(garbled).unwrap_err().to_string().contains("UTF-8"));
}

/// An id of more than 64 bytes was refused where it means nothing, and under another name.
#[test]
fn ids_and_prompts_are_held_to_their_limits() {
    use ParameterChoice::Int64Param;

    let long = |n: usize, parameters| ModelInferRequest { id: "x".repeat(n), ..parameters };
    assert_eq!(parse(long(1024, request([]))).unwrap().id.len(), 1024);
    let error = parse(long(1025, request([]))).unwrap_err().to_string();
    assert_eq!(error, "id has 1025 bytes; at most 1024 are allowed");
    let sequence = || request([("sequence_id", Int64Param(3))]);
    assert_eq!(parse(long(64, sequence())).unwrap().start.request_id.len(), 64);
    let error = parse(long(65, sequence())).unwrap_err().to_string();
    assert_eq!(error, "id has 65 bytes; at most 64 are allowed");

    let mut text = request([]);
    text.raw_input_contents = vec![encode_strings([&*vec![b'a'; (1 << 20) + 1]])];
    let error = parse(text).unwrap_err().to_string();
    assert_eq!(error, "text_input has 1048577 bytes; at most 1048576 are allowed");
    let mut tokens = request([]);
    let n = (1 << 17) + 1;
    let tensor = InferInputTensor { name: TOKENS.to_owned(), shape: vec![n], ..<_>::default() };
    (tokens.inputs, tokens.raw_input_contents) = (vec![tensor], vec![Bytes::new()]);
    let error = parse(tokens).unwrap_err().to_string();
    assert_eq!(error, "tokens has 131073 tokens; at most 131072 are allowed");
    let mut many = request([]);
    (many.inputs[0].shape, many.raw_input_contents) = (vec![3], vec![vec![0; 12].into()]);
    assert!(parse(many).unwrap_err().to_string().contains("3 elements; 1 is expected"));
}

#[test]
fn responses_tell_how_it_ended() {
    let generation = parse(request([])).unwrap();
    let reason = v1::FinishReason::EndOfText.into();
    let finished = v1::Finished { reason, position: 5, ..v1::Finished::default() };
    let said = Said { text: "é".to_owned(), tokens: vec![1, 2] };
    let whole = generation.whole("m", &said, &finished);
    let told = |response: &ModelInferResponse, name: &str| {
        response.parameters.get(name).and_then(|it| it.parameter_choice.clone())
    };
    assert_eq!((&*whole.id, &*whole.model_name, &*whole.model_version), ("id", "m", "1"));
    let reason = told(&whole, "finish_reason");
    assert_eq!(reason, Some(ParameterChoice::StringParam("end_of_text".to_owned())));
    assert_eq!(told(&whole, FINAL), None);
    assert_eq!(whole.outputs[1].shape, [2]);
    let part = generation.part("m", &said);
    assert_eq!(told(&part, FINAL), Some(ParameterChoice::BoolParam(false)));
    let end = generation.end("m", &finished);
    assert_eq!(told(&end, FINAL), Some(ParameterChoice::BoolParam(true)));
    assert!(end.outputs.is_empty() && end.id == "id");
}

fn parse(request: ModelInferRequest) -> Result<Generation, Reject> {
    let (key, config, limits) = (SequenceKey::default(), Config::default(), <_>::default());
    Generation::parse(request, TenantId::ANONYMOUS, &key, &config, &limits)
}

/// A request with the prompt `hi`.
fn request<const N: usize>(parameters: [(&str, ParameterChoice); N]) -> ModelInferRequest {
    let parameters = parameters
        .map(|(name, value)| (name.to_owned(), InferParameter { parameter_choice: Some(value) }));
    let text = InferInputTensor {
        name: TEXT_INPUT.to_owned(),
        datatype: "BYTES".to_owned(),
        shape: vec![1],
        ..InferInputTensor::default()
    };
    ModelInferRequest {
        model_name: "m".to_owned(),
        id: "id".to_owned(),
        inputs: vec![text],
        raw_input_contents: vec![encode_strings([&b"hi"[..]])],
        parameters: HashMap::from(parameters),
        ..ModelInferRequest::default()
    }
}
