//! Which tokenizer is taken, and which the model has no room for.

use super::*;
use crate::emit::tokenizer_bytes;

const MODEL: &[u8] = include_bytes!("../../../tests/fixtures/gemma.model");

#[test]
fn tokenizer_beside_the_checkpoint_is_taken_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = dir.path().join("model.safetensors");
    let error = read(&checkpoint, None, 64).unwrap_err().to_string();
    assert!(error.contains("no tokenizer.json or tokenizer.model here"), "{error}");

    fs::write(dir.path().join(SENTENCEPIECE_FILE), MODEL).unwrap();
    let (converted, warning) = read(&checkpoint, None, 350).unwrap();
    assert_eq!((&*converted, warning), (&*sentencepiece::to_json(MODEL).unwrap(), None));
    // Hugging Face's own form goes first, and what is named before both.
    let json = tokenizer_bytes(64);
    fs::write(dir.path().join(TOKENIZER_FILE), &json).unwrap();
    assert_eq!(read(&checkpoint, None, 64).unwrap(), (json, None));
    let given = dir.path().join(SENTENCEPIECE_FILE);
    assert_eq!(read(&checkpoint, Some(&given), 350).unwrap().0, converted);
}

#[test]
fn model_may_have_tokens_to_spare_but_not_too_few() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(TOKENIZER_FILE);
    fs::write(&path, tokenizer_bytes(64)).unwrap();
    assert!(read(&path, None, 64).is_ok());
    assert!(read(&path, None, 1000).is_ok());
    let error = read(&path, None, 63).unwrap_err().to_string();
    assert!(error.ends_with("the tokenizer has 64 tokens, but the model's vocab is 63"), "{error}");
}

#[test]
fn tokenizer_without_an_end_is_told_of() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(TOKENIZER_FILE);
    let json = String::from_utf8(tokenizer_bytes(64)).unwrap();
    fs::write(&path, json.replace("<|endoftext|>", "<|other|>")).unwrap();
    let (_, warning) = read(&path, None, 64).unwrap();
    let warning = warning.unwrap();
    assert!(warning.ends_with("no <|endoftext|> or <eos>: only limits end a text"), "{warning}");
}

#[test]
fn what_is_no_tokenizer_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(TOKENIZER_FILE);
    for bytes in ["", "{}", "hello"] {
        fs::write(&path, bytes).unwrap();
        assert!(read(&path, None, 64).is_err(), "{bytes:?}");
    }
    // The library panicked on what is cut within a decoder.
    let json = String::from_utf8(tokenizer_bytes(64)).unwrap();
    let decoder = json.find("\"decoder\"").unwrap();
    fs::write(&path, &json[..decoder + 20]).unwrap();
    let error = read(&path, None, 64).unwrap_err().to_string();
    assert!(error.contains("not the JSON of a tokenizer"), "{error}");
}
