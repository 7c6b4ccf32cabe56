use std::fs;

use aerie_models::bundle::{MODEL_FILE, TOKENIZER_FILE, hash_file};

use super::*;
use crate::testing::hosted;

#[test]
fn a_byte_that_differs_anywhere_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let mut manifest = hosted().manifest;
    // More than a chunk of the hash, so that it is cut over threads.
    let content: Vec<u8> = (0..=250).cycle().take(3_000_000).collect();
    for file in [MODEL_FILE, TOKENIZER_FILE, "model.onnx.data"] {
        let path = dir.path().join(file);
        fs::write(&path, &content).unwrap();
        manifest.files.insert(file.to_owned(), hash_file(&path).unwrap());
    }
    BundleFiles::open(dir.path(), &manifest).unwrap().verify(&manifest).unwrap();

    for (file, at) in [("model.onnx.data", 2_999_999), ("model.onnx.data", 0), (MODEL_FILE, 1024)] {
        let mut other = content.clone();
        other[at] ^= 1;
        fs::write(dir.path().join(file), other).unwrap();
        let error =
            BundleFiles::open(dir.path(), &manifest).unwrap().verify(&manifest).unwrap_err();
        fs::write(dir.path().join(file), &content).unwrap();
        let named = matches!(&error, BundleError::Hash { file: found, .. } if found == file);
        assert!(named, "byte {at} of {file}: {error}");
    }
}

#[test]
fn a_file_that_is_cut_or_missing_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut manifest = hosted().manifest;
    let path = dir.path().join(MODEL_FILE);
    fs::write(&path, "a graph").unwrap();
    manifest.files.insert(MODEL_FILE.to_owned(), hash_file(&path).unwrap());
    fs::write(&path, "").unwrap();
    let error = BundleFiles::open(dir.path(), &manifest).unwrap().verify(&manifest).unwrap_err();
    assert!(matches!(error, BundleError::Hash { .. }), "{error}");
    fs::remove_file(&path).unwrap();
    let error = BundleFiles::open(dir.path(), &manifest).unwrap_err();
    assert!(matches!(error, BundleError::Io { .. }), "{error}");
}
