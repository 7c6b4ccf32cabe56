//! What unit tests share.

use std::sync::Arc;

use aerie_models::{Manifest, Precision, Provenance, bundle::FORMAT, presets::preset};

use crate::{service::Hosted, text::Tokenizer};

/// A byte-level tokenizer: `<|endoftext|>`, then the letters and a few signs; 60 of 64 ids are used.
pub(crate) const TOKENIZER_JSON: &str = include_str!("testing/tokenizer.json");

/// The preset `tiny` under its own name, with the tokenizer above and no files.
pub(crate) fn hosted() -> Hosted {
    let model = preset("tiny").unwrap();
    let tokenizer = Tokenizer::parse(TOKENIZER_JSON.as_bytes()).unwrap();
    let vocabulary = Arc::new(tokenizer.vocabulary(model.vocab).unwrap());
    let manifest = Manifest {
        format: FORMAT,
        name: "tiny".to_owned(),
        precision: Precision::F32,
        ops: Default::default(),
        files: Default::default(),
        model,
        provenance: Provenance::default(),
        interface: (),
    };
    let (name, fingerprint) = (manifest.name.clone(), manifest.fingerprint());
    Hosted { name, manifest, fingerprint, parameters: 0, tokenizer, vocabulary }
}
