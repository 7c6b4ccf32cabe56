//! A model that SentencePiece trained, beside what SentencePiece makes of the same texts.

use aerie_fuzz::{Format, Fuzz};
use serde::Deserialize;

use super::*;

const MODEL: &[u8] = include_bytes!("../../../tests/fixtures/gemma.model");
const EXPECTED: &str = include_str!("../../../tests/fixtures/gemma.json");

#[derive(Deserialize)]
struct Case {
    text: String,
    ids: Vec<u32>,
}

#[test]
fn tokens_are_those_of_sentencepiece() {
    let mut tokenizer = Tokenizer::from_bytes(to_json(MODEL).unwrap()).unwrap();
    // As the server does: what looks like a control token in a text is text.
    tokenizer.set_encode_special_tokens(true);
    let cases: Vec<Case> = serde_json::from_str(EXPECTED).unwrap();
    assert_eq!(cases.len(), 11);
    for Case { text, ids } in cases {
        let found = tokenizer.encode(text.as_str(), false).unwrap();
        assert_eq!(found.get_ids(), ids, "{text:?}");
        let back = tokenizer.decode(&ids, false).unwrap();
        // SentencePiece too gives a space for U+2581.
        assert_eq!(back, text.replace(SPACE, " "));
    }
}

#[test]
fn texts_begin_with_the_control_token() {
    let tokenizer = Tokenizer::from_bytes(to_json(MODEL).unwrap()).unwrap();
    let tokens = tokenizer.encode("the", true).unwrap();
    assert_eq!(tokens.get_tokens()[0], "<bos>");
    assert_eq!(tokenizer.token_to_id("<eos>"), Some(1));

    let json = changed(|it| it.trainer.get_or_insert_default().bos_id = Some(-1)).unwrap();
    let tokenizer = Tokenizer::from_bytes(json).unwrap();
    let tokens = tokenizer.encode("the", true).unwrap();
    assert_ne!(tokens.get_tokens()[0], "<bos>");
}

#[test]
fn other_kinds_of_models_are_refused() {
    fn trainer(it: &mut Model) -> &mut Trainer {
        it.trainer.get_or_insert_default()
    }
    fn normalizer(it: &mut Model) -> &mut Normalizer {
        it.normalizer.get_or_insert_default()
    }
    check(|it| trainer(it).model_type = Some(1), "model_type is 1; 2 (byte pairs) is expected");
    check(|it| trainer(it).model_type = None, "model_type is 1");
    check(|it| trainer(it).treat_whitespace_as_suffix = Some(true), "treat_whitespace_as_suffix");
    check(|it| normalizer(it).add_dummy_prefix = None, "add_dummy_prefix is true; false");
    check(|it| normalizer(it).remove_extra_whitespaces = Some(true), "remove_extra_whitespaces");
    check(|it| normalizer(it).escape_whitespaces = Some(false), "escape_whitespaces is false");
    check(|it| normalizer(it).precompiled_charsmap = Some(vec![0; 9]), "a table of 9 bytes; none");
    check(|it| it.pieces[300].kind = Some(5), "is of a kind that Gemma's");
    check(|it| it.pieces[300].piece = Some(String::new()), "piece 300 (\"\") is empty");
    check(|it| it.pieces[300].piece = Some("x".repeat(2000)), "is too long");
    check(|it| it.pieces[300].score = Some(f32::NAN), "has a score that is no number");
    check(|it| it.pieces[300] = it.pieces[301].clone(), "is there twice");
    check(|it| it.pieces[20].piece = Some("<0xG0>".to_owned()), "is not spelt <0xNN>");
    let error = to_json(b"{\"not\": 1}").unwrap_err().to_string();
    assert!(error.contains("not a SentencePiece model"), "{error}");
}

#[test]
fn fuzzed_models_are_converted_or_refused() {
    let words: &[&[u8]] = &[b"<0x0A>", b"<bos>", b"\xe2\x96\x81", b" ", b"$A", b":1", b"a"];
    let fuzz = Fuzz {
        name: "sentencepiece",
        format: Format::Protobuf,
        seeds: vec![model(|it| it.pieces.truncate(290)), MODEL.to_vec()],
        words,
    };
    fuzz.run(|model| {
        let Ok(json) = to_json(model) else { return false };
        // What is written is read again, here and by the server.
        Tokenizer::from_bytes(json).unwrap().encode("the cat", true).is_ok()
    });
}

#[track_caller]
fn check(change: impl FnOnce(&mut Model), message: &str) {
    let error = changed(change).unwrap_err().to_string();
    assert!(error.contains(message), "{error}");
}

fn changed(change: impl FnOnce(&mut Model)) -> Result<Vec<u8>, SentencePieceError> {
    to_json(&model(change))
}

fn model(change: impl FnOnce(&mut Model)) -> Vec<u8> {
    let mut model = Model::decode(MODEL).unwrap();
    change(&mut model);
    model.encode_to_vec()
}
