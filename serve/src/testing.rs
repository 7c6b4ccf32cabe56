//! What unit tests share.

/// A byte-level tokenizer: `<|endoftext|>`, then the letters and a few signs; 60 of 64 ids are used.
pub(crate) const TOKENIZER_JSON: &str = include_str!("testing/tokenizer.json");
