use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use serde_json::{Value, json};
use tokenizers::{Model as _, ModelWrapper};

use super::*;

/// Characters of vocabularies and texts; texts have the last ones, which vocabularies lack, too.
const ALPHABET: [&str; 9] = ["a", "b", "c", "\u{2581}", "é", "\"", "⊙", "🦊", "z"];
const KNOWN: usize = 6;

/// Goal: whatever a vocabulary is like, the tokens are those that the library gives.
/// Method: vocabularies, merges, options and texts by seed, read by both.
#[test]
fn tokens_are_those_of_the_library() {
    for seed in 0..300 {
        let mut rng = StdRng::seed_from_u64(seed);
        let json = model(&mut rng).to_string();
        let ours = Bpe::parse(&json).unwrap_or_else(|| panic!("seed {seed}: not read: {json}"));
        let library: ModelWrapper = serde_json::from_str(&json).unwrap();
        assert_eq!(ours.len(), library.get_vocab_size(), "seed {seed}");
        for (text, id) in library.get_vocab() {
            assert_eq!(ours.id(&text), Some(id), "seed {seed}: {text:?}");
            assert_eq!(ours.text(id), Some(text.as_str()), "seed {seed}: {id}");
        }
        for _ in 0..30 {
            let text = text(&mut rng);
            let expected = library.tokenize(&text).unwrap();
            assert_eq!(ours.tokenize(&text), expected, "seed {seed}: {text:?} by {json}");
        }
    }
}

#[test]
fn the_way_merges_are_written_does_not_matter() {
    let vocab = json!({"a": 0, "b": 1, "ab": 2, "aba": 3});
    let read = |merges: Value| {
        let json = json!({"type": "BPE", "vocab": vocab, "merges": merges}).to_string();
        let tokens = Bpe::parse(&json).unwrap().tokenize("ababa");
        tokens.iter().map(|token| token.id).collect::<Vec<_>>()
    };
    assert_eq!(read(json!([["a", "b"], ["ab", "a"]])), [2, 3]);
    assert_eq!(read(json!(["#version: 0.2", "a b", "ab a"])), [2, 3]);
    // Here `merges` comes before `vocab`, as names are sorted; files have them the other way round.
    let file = r#"{"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]}"#;
    assert_eq!(Bpe::parse(file).unwrap().tokenize("ab").len(), 1);
}

/// What this model does not cover, and what is no model at all, is the library's to read or refuse.
#[test]
fn what_is_not_covered_is_left_to_the_library() {
    let model = json!({"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]});
    assert!(Bpe::parse(&model.to_string()).is_some());
    for (member, value) in [
        ("type", json!("Unigram")),
        ("dropout", json!(0.1)),
        ("continuing_subword_prefix", json!("##")),
        ("end_of_word_suffix", json!("</w>")),
        ("unk_token", json!("<unk>")),
        ("vocab", json!({"a": 0, "b": 0, "ab": 2})),
        ("vocab", json!({"a": 0, "b": 4_000_000_000_u32, "ab": 2})),
        ("merges", json!([["a", "c"]])),
        ("merges", json!([["a", "b"], "a b"])),
        ("merges", json!([["a", "b", "a"]])),
        ("merges", json!(["a b a"])),
        ("merges", json!("a b")),
        ("novelty", json!(1)),
    ] {
        let mut model = model.clone();
        model[member] = value;
        assert!(Bpe::parse(&model.to_string()).is_none(), "{model}");
    }
    assert!(Bpe::parse("{\"type\": \"BPE\"}").is_none());
    assert!(Bpe::parse("[]").is_none());
}

/// A model with merges of tokens that it has.
fn model(rng: &mut StdRng) -> Value {
    let mut tokens: Vec<String> = ALPHABET[..KNOWN].iter().map(|&it| it.to_owned()).collect();
    let mut merges = Vec::new();
    for _ in 0..rng.random_range(0..25) {
        let pair = [0, 1].map(|_| tokens.choose(rng).unwrap().clone());
        // A token may come of several merges, and a merge may come twice.
        let joined = pair.concat();
        if !tokens.contains(&joined) {
            tokens.push(joined);
        }
        merges.push(pair);
    }
    let has_unknown = rng.random_bool(0.7);
    if has_unknown {
        tokens.push("<unk>".to_owned());
    }
    // Of the fox all bytes, of the dot in its circle all but one.
    for byte in [0xF0, 0x9F, 0xA6, 0x8A, 0xE2, 0x8A, 0x99].iter().take(rng.random_range(0..7)) {
        let token = format!("<0x{byte:02X}>");
        if !tokens.contains(&token) {
            tokens.push(token);
        }
    }
    // Ids with gaps, not in the order of the file.
    let first = rng.random_range(0..3);
    let vocab: serde_json::Map<String, Value> =
        tokens.into_iter().rev().zip((first..).step_by(2)).map(|(t, id)| (t, id.into())).collect();
    json!({
        "type": "BPE",
        "dropout": null,
        "unk_token": has_unknown.then_some("<unk>"),
        "continuing_subword_prefix": null,
        "end_of_word_suffix": null,
        "fuse_unk": rng.random_bool(0.5),
        "byte_fallback": rng.random_bool(0.5),
        "ignore_merges": rng.random_bool(0.3),
        "vocab": vocab,
        "merges": merges,
    })
}

fn text(rng: &mut StdRng) -> String {
    let length = rng.random_range(0..40);
    let known = rng.random_bool(0.5);
    let alphabet = if known { &ALPHABET[..3] } else { &ALPHABET[..] };
    (0..length).map(|_| *alphabet.choose(rng).unwrap()).collect()
}
