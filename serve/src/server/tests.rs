use std::{fs, path::Path};

use aerie_models::bundle::{MANIFEST_FILE, MODEL_FILE, TOKENIZER_FILE, hash_file};

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
    let error = Drafts::default().open(dir.path(), 1).unwrap_err();
    assert!(matches!(&error, StartError::Portable { name, .. } if name == "tiny"), "{error}");
}

/// Goal: whatever else fails with it, a bundle is refused for what is wrong with it first, and until it is known
/// to be what it says, nothing is written.
/// Method: a graph that ONNX Runtime cannot load either, with a hash that differs or a tokenizer that
/// is none.
#[tokio::test]
async fn the_hash_is_told_before_what_follows_from_it() {
    let data = tempfile::tempdir().unwrap();
    let start = |spoil, tokenizer| start(data.path(), spoil, tokenizer);
    let is_written = || 0 < fs::read_dir(data.path()).unwrap().count();
    let error = start(|dir| fs::write(dir.join(MODEL_FILE), "changed").unwrap(), "{}").await;
    let StartError::Bundle { source: BundleError::Hash { file, .. }, .. } = &error else {
        panic!("{error}");
    };
    assert_eq!(file, MODEL_FILE);
    assert!(!is_written());
    let error = start(|_| (), "{}").await;
    assert!(matches!(&error, StartError::Tokenizer { .. }), "{error}");
    assert!(!is_written());
    let error = start(|_| (), TOKENIZER_JSON).await;
    assert!(matches!(&error, StartError::Load { .. } | StartError::Runtime(_)), "{error}");
}

/// Starts a server of a bundle with a graph that is none; `spoil` comes after the hashes.
async fn start(data: &Path, spoil: fn(&Path), tokenizer: &str) -> StartError {
    let dir = tempfile::tempdir().unwrap();
    let mut manifest = hosted().manifest;
    for (file, content) in [(MODEL_FILE, "no graph"), (TOKENIZER_FILE, tokenizer)] {
        let path = dir.path().join(file);
        fs::write(&path, content).unwrap();
        manifest.files.insert(file.to_owned(), hash_file(&path).unwrap());
    }
    let version = aerie_ops::schema::schema("RgLru").unwrap().version;
    manifest.ops.insert("RgLru".to_owned(), version);
    fs::write(dir.path().join(MANIFEST_FILE), manifest.to_toml()).unwrap();
    spoil(dir.path());
    let mut config = Config { models: vec![dir.path().to_owned()], ..Config::default() };
    config.data_dir = data.to_owned();
    config.devices = vec![DeviceSpec::default()];
    config.sessions.sessions_max = 4;
    Server::start(config).await.unwrap_err()
}
