use super::*;
use crate::data::tokenizer::{train_bytes, train_characters};

fn documents() -> Vec<String> {
    ["ab abab ab", "ba ab\n", "a"].map(str::to_owned).to_vec()
}

#[test]
fn every_document_begins_and_ends_at_the_boundary() {
    let tokenizer = train_bytes(&documents(), 258).unwrap();
    let tokens = Tokens::encode(&tokenizer, &documents(), None).unwrap();
    assert_eq!(tokens.boundary, Some(0));
    assert_eq!(tokens.text_bytes, 17);
    assert_eq!(tokens.ids.iter().filter(|it| **it == 0).count(), 4);
    assert_eq!([tokens.ids[0], tokens.ids[tokens.ids.len() - 1]], [0, 0]);
}

#[test]
fn every_token_but_the_first_is_a_target_once() {
    let tokenizer = train_characters(&documents()).unwrap();
    let tokens = Tokens::encode(&tokenizer, &documents(), None).unwrap();
    for time in [1, 3, 16, 17] {
        let targets: Vec<i64> = tokens.in_order(2, time).flat_map(|it| it.targets).collect();
        let expected: Vec<i64> = tokens.ids[1..].iter().copied().map(i64::from).collect();
        assert_eq!(targets, expected, "rows of {time}");
    }
}

#[test]
fn cache_gives_the_same_tokens_and_knows_its_text() {
    let dir = tempfile::tempdir().unwrap();
    let tokenizer = train_bytes(&documents(), 258).unwrap();
    let encode =
        |documents: &[String]| Tokens::encode(&tokenizer, documents, Some(dir.path())).unwrap();
    let made = encode(&documents());
    assert_eq!(encode(&documents()), made);
    assert_ne!(encode(&documents()[..2]), made);
    // A file that was cut short is made again.
    for entry in fs::read_dir(dir.path()).unwrap() {
        fs::write(entry.unwrap().path(), [1, 2, 3]).unwrap();
    }
    assert_eq!(encode(&documents()), made);
}

#[test]
fn character_outside_the_vocabulary_is_refused() {
    let tokenizer = train_characters(&documents()).unwrap();
    assert!(Tokens::encode(&tokenizer, &["xyz".to_owned()], None).is_err());
}
