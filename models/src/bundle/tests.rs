use std::{collections::BTreeMap, fs};

use aerie_fuzz::{Format, Fuzz};

use super::{BundleError, FORMAT, Kind, Manifest, Precision, Provenance, hash_file};
use crate::{carry::Carry, census, presets::preset};

#[test]
fn manifest_survives_a_round_trip() {
    let manifest = manifest();
    assert_eq!(Manifest::parse(&manifest.to_toml()).unwrap(), manifest);
}

/// Sessions are kept under the fingerprint of their model, which is taken of the manifest's text: what
/// was written before imports left `steps` and `tokens` out must read and write as it did.
#[test]
fn steps_and_tokens_are_written_only_where_known() {
    let mut manifest = manifest();
    let counts = "\nsteps = 0\ntokens = 640\n";
    manifest.provenance = Provenance { steps: Some(0), tokens: Some(640), ..Provenance::default() };
    let text = manifest.to_toml();
    assert!(text.contains(&format!("[provenance]\ntool = \"\"\ndata = \"\"{counts}")), "{text}");
    assert_eq!(Manifest::parse(&text).unwrap(), manifest);

    let unknown = Manifest::parse(&text.replace(counts, "\n")).unwrap();
    assert_eq!((unknown.provenance.steps, unknown.provenance.tokens), (None, None));
    assert_eq!(unknown.to_toml(), text.replace(counts, "\n"));
}

#[test]
fn fingerprint_changes_with_any_field() {
    let manifest = manifest();
    let mut other = manifest.clone();
    other.files.insert("model.onnx".to_owned(), "1".repeat(64));
    assert_ne!(manifest.fingerprint(), other.fingerprint());
}

#[test]
fn refusals_name_the_field() {
    check(|m| m.format = 99, "`format` is 99");
    // A server makes a folder of it.
    check(|m| m.name = "../../evil".to_owned(), "`name` is \"../../evil\"; 1 to 64 letters");
    check(|m| m.name = String::new(), "`name` is \"\"");
    check(
        |m| m.carry[3].shape[0] += 1,
        "`carry` differs from what `model` implies at layers.1.rg_lru",
    );
    check(|m| m.carry.truncate(2), "`carry` differs from what `model` implies at layers.1.conv");
    check(|m| drop(m.files.remove("model.onnx")), "`files` lacks model.onnx");
    check(|m| drop(m.files.insert("../evil".to_owned(), String::new())), "plain file names");
}

#[test]
fn bundle_with_a_changed_file_or_op_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut manifest = manifest();
    for file in ["model.onnx", "tokenizer.json"] {
        fs::write(dir.path().join(file), file).unwrap();
        manifest.files.insert(file.to_owned(), hash_file(&dir.path().join(file)).unwrap());
    }
    fs::write(dir.path().join("manifest.toml"), manifest.to_toml()).unwrap();

    assert_eq!(Manifest::open(dir.path(), |_| Some(1)).unwrap(), manifest);
    let error = Manifest::open(dir.path(), |_| Some(2)).unwrap_err();
    assert!(matches!(error, BundleError::OpVersion { found: 1, expected: 2, .. }), "{error}");
    let error = Manifest::open(dir.path(), |_| None).unwrap_err();
    assert!(matches!(error, BundleError::UnknownOp { .. }), "{error}");

    fs::write(dir.path().join("model.onnx"), "other").unwrap();
    let error = Manifest::open(dir.path(), |_| Some(1)).unwrap_err();
    assert!(matches!(&error, BundleError::Hash { file, .. } if file == "model.onnx"), "{error}");
}

/// What is accepted can be laid out, counted and written, whatever its numbers are.
#[test]
fn fuzzed_manifests_are_sound_or_refused() {
    let portable = Manifest { ops: BTreeMap::new(), ..manifest() };
    let fuzz = Fuzz {
        name: "manifest",
        format: Format::Text,
        seeds: [manifest(), portable].map(|it| it.to_toml().into_bytes()).to_vec(),
        words: &[
            b"griffin",
            b"hawk",
            b"mqa",
            b"q4",
            b"bf16",
            b"f32",
            b"..",
            b"/etc",
            b"model.onnx",
        ],
    };
    fuzz.run(|bytes| {
        let Ok(text) = std::str::from_utf8(bytes) else { return false };
        let Ok(manifest) = Manifest::parse(text) else { return false };
        assert_eq!(Manifest::parse(&manifest.to_toml()).unwrap(), manifest);
        let ranges = manifest.layout().byte_ranges();
        assert_eq!(ranges.fields().last().unwrap().end, manifest.layout().bytes());
        assert!(0 < census::parameter_total(&manifest.model));
        true
    });
}

#[track_caller]
fn check(spoil: impl Fn(&mut Manifest), expected: &str) {
    let mut manifest = manifest();
    spoil(&mut manifest);
    let error = Manifest::parse(&manifest.to_toml()).unwrap_err().to_string();
    assert!(error.contains(expected), "{error:?} lacks {expected:?}");
}

fn manifest() -> Manifest {
    let model = preset("tiny").unwrap();
    let hash = |_| "0".repeat(64);
    Manifest {
        format: FORMAT,
        name: "tiny".to_owned(),
        kind: Kind::LanguageModel,
        precision: Precision::F16,
        ops: BTreeMap::from([("RgLru".to_owned(), 1)]),
        files: ["model.onnx", "tokenizer.json"].map(|it| (it.to_owned(), hash(it))).into(),
        carry: Carry::layout(&model).fields().cloned().collect(),
        model,
        provenance: Provenance::default(),
    }
}
