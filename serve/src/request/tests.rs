use aerie_fuzz::{Format, Fuzz};
use aerie_proto::frame;
use expect_test::{Expect, expect};

use super::*;

const CONFIG: Config = Config {
    prompt_bytes_max: 16,
    prompt_tokens_max: 8,
    tokens_max: 100,
    tokens_default: 20,
    stops_max: 2,
    stop_bytes_max: 4,
    request_id_bytes_max: 6,
    penalty_tokens_max: 9,
    penalty_tokens_default: 5,
};

#[test]
fn what_is_left_out_gets_the_default() {
    let request = parse(text("hello")).unwrap();
    assert_eq!(request.tokens_max, 20);
    assert_eq!(request.sampling, Sampling::GREEDY);
    assert_eq!(request.digest, None, "it has no id to be known by");
    assert!(!request.prompt.is_empty());
}

#[test]
fn every_limit_is_named_by_its_refusal() {
    check(text("a prompt of 17 by"), expect!["prompt has 17 bytes; at most 16 are allowed"]);
    check(tokens(&[1; 9]), expect!["prompt has 9 tokens; at most 8 are allowed"]);
    check(tokens(&[63, 64]), expect!["prompt has token 64, but the vocabulary ends at 63"]);
    check(tokens(&[]), expect!["prompt has no token, and the session is new"]);
    check(
        v1::Start { max_tokens: 101, ..text("a") },
        expect!["max_tokens has 101 tokens; at most 100 are allowed"],
    );
    check(
        v1::Start { stop: vec!["a".to_owned(); 3], ..text("a") },
        expect!["stop has 3 strings; at most 2 are allowed"],
    );
    check(
        v1::Start { stop: vec!["abcde".to_owned()], ..text("a") },
        expect!["stop has 5 bytes in one string; at most 4 are allowed"],
    );
    check(
        v1::Start { stop: vec![String::new()], ..text("a") },
        expect!["stop has an empty string"],
    );
    check(
        v1::Start { request_id: "1234567".to_owned(), ..text("a") },
        expect!["request_id has 7 bytes; at most 6 are allowed"],
    );
}

#[test]
fn sampling_must_be_a_distribution() {
    let with = |temperature, top_p| v1::Start {
        sampling: Some(v1::Sampling { temperature, top_p, ..Default::default() }),
        ..text("a")
    };
    check(with(-1.0, 1.0), expect!["sampling.temperature is -1; it must be finite and at least 0"]);
    check(
        with(f32::NAN, 1.0),
        expect!["sampling.temperature is NaN; it must be finite and at least 0"],
    );
    check(with(1.0, 1.5), expect!["sampling.top_p is 1.5; it must be from 0 to 1"]);
    check(with(1.0, f32::NAN), expect!["sampling.top_p is NaN; it must be from 0 to 1"]);
    assert_eq!(parse(with(0.5, 0.0)).unwrap().sampling.top_p.to_bits(), 1.0f32.to_bits());
}

#[test]
fn penalties_are_numbers_over_a_window() {
    let with = |sampling| v1::Start { sampling: Some(sampling), ..text("a") };
    let penalties = parse(with(v1::Sampling::default())).unwrap().sampling.penalties;
    assert_eq!(penalties, Penalties::NONE);
    let sampling = v1::Sampling { presence_penalty: 0.5, ..Default::default() };
    assert_eq!(parse(with(sampling)).unwrap().sampling.penalties.window, 5);
    let repetition_penalty = -1.0;
    check(
        with(v1::Sampling { repetition_penalty, ..Default::default() }),
        expect!["sampling.repetition_penalty is -1; it must be finite and above 0"],
    );
    check(
        with(v1::Sampling { frequency_penalty: f32::INFINITY, ..Default::default() }),
        expect!["sampling.frequency_penalty is inf; it must be finite"],
    );
    check(
        with(v1::Sampling { penalty_tokens: 10, ..Default::default() }),
        expect!["sampling.penalty_tokens has 10 tokens; at most 9 are allowed"],
    );
}

#[test]
fn a_session_may_go_on_without_a_prompt() {
    assert!(parse_as(Origin::Session, tokens(&[])).unwrap().prompt.is_empty());
    let of = SessionId(7);
    let fork = |position| parse_as(Origin::Fork { of, position }, tokens(&[]));
    assert!(fork(None).is_ok() && fork(Some(3)).is_ok());
    assert!(fork(Some(0)).is_err(), "there is nothing to go on with");
    let made = v1::Start { expected_position: Some(0), ..tokens(&[]) };
    assert!(parse_as(Origin::Session, made).is_err(), "it would be made by this");
}

#[test]
fn the_same_request_has_the_same_digest_and_any_other_another() {
    let start = || v1::Start { request_id: "r1".to_owned(), max_tokens: 5, ..text("ab") };
    let digest = |start| parse(start).unwrap().digest.unwrap();
    let first = digest(start());
    assert_eq!(digest(start()), first);
    let others = [
        v1::Start { request_id: "r2".to_owned(), ..start() },
        v1::Start { max_tokens: 6, ..start() },
        v1::Start { expected_position: Some(0), ..start() },
        v1::Start { prompt: text("ac").prompt, ..start() },
    ];
    others.into_iter().for_each(|other| assert_ne!(digest(other), first));
}

fn text(text: &str) -> v1::Start {
    let prompt = Some(v1::start::Prompt::Text(text.to_owned()));
    v1::Start { prompt, ..Default::default() }
}

fn tokens(ids: &[u32]) -> v1::Start {
    let prompt = Some(v1::start::Prompt::Tokens(v1::TokenIds { ids: ids.to_vec() }));
    v1::Start { prompt, ..Default::default() }
}

fn parse(start: v1::Start) -> Result<Request, Reject> {
    parse_as(Origin::New, start)
}

fn parse_as(origin: Origin, start: v1::Start) -> Result<Request, Reject> {
    let tokenizer = Tokenizer::parse(crate::testing::TOKENIZER_JSON.as_bytes()).unwrap();
    Request::parse(Principal::ANONYMOUS, start, origin, &CONFIG, &tokenizer, 64)
}

#[track_caller]
fn check(start: v1::Start, expected: Expect) {
    expected.assert_eq(&parse(start).unwrap_err().to_string());
}

/// Method: calls as they come over QUIC, spoilt as messages and as frames; what is a start is parsed.
#[test]
fn fuzzed_calls_are_sound_or_refused() {
    let sampling = Some(v1::Sampling { temperature: 0.5, top_k: 3, ..v1::Sampling::default() });
    let calls = [
        v1::Start { sampling, stop: vec!["b".to_owned()], max_tokens: 7, ..text("ab") },
        v1::Start { session_id: "x".to_owned(), expected_position: Some(0), ..tokens(&[1, 2]) },
    ]
    .map(|start| {
        let message = Some(v1::generate_request::Message::Start(start));
        let call = Some(v1::call::Call::Generate(v1::GenerateRequest { message }));
        v1::Call { call, token: "0123456789abcdef".to_owned() }
    });
    let tokenizer = Tokenizer::parse(crate::testing::TOKENIZER_JSON.as_bytes()).unwrap();
    let messages = calls.iter().map(Message::encode_to_vec).collect();
    let fuzz =
        Fuzz { name: "calls", format: Format::Protobuf, seeds: messages, words: &[b"\xff", b"a"] };
    fuzz.run(|bytes| {
        let mut frame = u32::try_from(bytes.len()).unwrap().to_be_bytes().to_vec();
        frame.extend_from_slice(bytes);
        is_sound_call(&frame, &tokenizer)
    });
    let frames = calls.iter().map(|call| frame::encode(call).unwrap().to_vec()).collect();
    let fuzz = Fuzz { name: "frames", format: Format::Binary, seeds: frames, words: &[] };
    fuzz.run(|bytes| is_sound_call(bytes, &tokenizer));
}

/// Whether `bytes` begin with a frame of a call that is a generation; it must be one that can run.
fn is_sound_call(bytes: &[u8], tokenizer: &Tokenizer) -> bool {
    let mut decoder = frame::Decoder::default();
    decoder.push(bytes);
    let Ok(Some(v1::Call { call: Some(call), .. })) = decoder.message() else { return false };
    let v1::call::Call::Generate(request) = call else { return false };
    let Some(v1::generate_request::Message::Start(start)) = request.message else { return false };
    let parsed = Request::parse(Principal::ANONYMOUS, start, Origin::New, &CONFIG, tokenizer, 64);
    let Ok(request) = parsed else { return false };
    assert!(!request.prompt.is_empty() && request.prompt.iter().all(|token| *token < 64));
    assert!(1 <= request.tokens_max && request.stop.iter().all(|it| !it.is_empty()));
    assert!(0.0 <= request.sampling.temperature && request.sampling.temperature.is_finite());
    true
}
