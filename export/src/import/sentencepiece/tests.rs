//! A model that SentencePiece trained, beside what SentencePiece makes of the same texts.

use rand::Rng;
use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};
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
fn spoilt_models_never_panic() {
    for seed in 0..300 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut model = MODEL.to_vec();
        for _ in 0..rng.random_range(1..5) {
            let at = rng.random_range(0..model.len());
            model[at] = rng.random();
        }
        eprintln!("seed {seed}");
        drop(to_json(&model));
    }
}

#[track_caller]
fn check(change: impl FnOnce(&mut Model), message: &str) {
    let error = changed(change).unwrap_err().to_string();
    assert!(error.contains(message), "{error}");
}

fn changed(change: impl FnOnce(&mut Model)) -> Result<Vec<u8>, SentencePieceError> {
    let mut model = Model::decode(MODEL).unwrap();
    change(&mut model);
    to_json(&model.encode_to_vec())
}
