use std::fs;

use aerie_models::bundle::{MANIFEST_FILE, MODEL_FILE, hash_file};

use super::*;
use crate::testing::{TOKENIZER_JSON, hosted};

/// Without this, a portable graph is refused at the first input that it lacks, which tells nobody
/// what to do.
#[test]
fn a_portable_bundle_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let mut manifest = hosted().manifest;
    for (file, content) in [(MODEL_FILE, ""), (TOKENIZER_FILE, TOKENIZER_JSON)] {
        let path = dir.path().join(file);
        fs::write(&path, content).unwrap();
        manifest.files.insert(file.to_owned(), hash_file(&path).unwrap());
    }
    assert!(manifest.ops.is_empty());
    fs::write(dir.path().join(MANIFEST_FILE), manifest.to_toml()).unwrap();
    let error = open_bundle(dir.path()).unwrap_err();
    assert!(matches!(&error, StartError::Portable { name, .. } if name == "tiny"), "{error}");
}
