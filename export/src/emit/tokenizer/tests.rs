//! Vocabularies of every size.

use tokenizers::Tokenizer;

use super::bytes;

#[test]
fn every_id_decodes_whatever_the_size() {
    for vocab in [1, 2, 64, 256, 257, 300, 4096] {
        let tokenizer = Tokenizer::from_bytes(bytes(vocab)).unwrap();
        assert_eq!(tokenizer.get_vocab_size(true), vocab as usize);
        for id in 1..vocab {
            let text = tokenizer.decode(&[id], true).unwrap();
            assert!(!text.is_empty(), "token {id} of {vocab}");
        }
        assert_eq!(tokenizer.token_to_id("<|endoftext|>"), Some(0));
    }
}

#[test]
fn text_comes_back() {
    for vocab in [257, 4096] {
        let tokenizer = Tokenizer::from_bytes(bytes(vocab)).unwrap();
        let text = "Once upon a time, in 1843:\n\ta \"Zwölf-Ender\" 🦌 said nothing.";
        let encoding = tokenizer.encode_fast(text, false).unwrap();
        assert_eq!(tokenizer.decode(encoding.get_ids(), true).unwrap(), text, "vocab {vocab}");
    }
}

#[test]
fn small_vocabulary_still_takes_plain_english() {
    let tokenizer = Tokenizer::from_bytes(bytes(64)).unwrap();
    let encoding = tokenizer.encode_fast("once upon a time", false).unwrap();
    assert!(encoding.get_ids().iter().all(|&id| 0 < id && id < 64));
}
