use std::{collections::BTreeMap, fs};

use aerie_fuzz::{Format, Fuzz};

use super::{
    AnyManifest, BundleError, FORMAT, Manifest, Pictures, Precision, Provenance, hash_file,
};
use crate::{
    census,
    config::ModelConfig,
    images::{
        self, ImageConfig,
        preprocessing::{Interpolation, Preprocessing, Resize},
    },
    presets::preset,
};

#[test]
fn manifest_survives_a_round_trip() {
    let manifest = manifest();
    assert_eq!(Manifest::<ModelConfig>::parse(&manifest.to_toml()).unwrap(), manifest);
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
    assert_eq!(Manifest::<ModelConfig>::parse(&text).unwrap(), manifest);

    let unknown = Manifest::<ModelConfig>::parse(&text.replace(counts, "\n")).unwrap();
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
    check_text(
        |text| {
            text.replacen(
                "path = \"layers.1.rg_lru\"\ndtype = \"f32\"\nshape = [",
                "path = \"layers.1.rg_lru\"\ndtype = \"f32\"\nshape = [9, ",
                1,
            )
        },
        "`carry` differs from what `model` implies at layers.1.rg_lru",
    );
    let two = |text: &str| {
        let third = text.match_indices("[[carry]]").nth(2).unwrap().0;
        text[..third].to_owned()
    };
    check_text(two, "`carry` differs from what `model` implies at layers.1.conv");
    let none = |text: &str| text[..text.find("[[carry]]").unwrap()].to_owned();
    check_text(none, "`carry` is missing; a bundle of kind language-model has it");
    let labels = |text: &str| text.replacen("[ops]", "labels = [\"cat\"]\n[ops]", 1);
    check_text(labels, "`labels` is none of a bundle of kind language-model");
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
    let error = Manifest::<ModelConfig>::open(dir.path(), |_| Some(2)).unwrap_err();
    assert!(matches!(error, BundleError::OpVersion { found: 1, expected: 2, .. }), "{error}");
    let error = Manifest::<ModelConfig>::open(dir.path(), |_| None).unwrap_err();
    assert!(matches!(error, BundleError::UnknownOp { .. }), "{error}");

    fs::write(dir.path().join("model.onnx"), "other").unwrap();
    let error = Manifest::<ModelConfig>::open(dir.path(), |_| Some(1)).unwrap_err();
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
        let Ok(manifest) = Manifest::<ModelConfig>::parse(text) else { return false };
        assert_eq!(Manifest::<ModelConfig>::parse(&manifest.to_toml()).unwrap(), manifest);
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
    let error = Manifest::<ModelConfig>::parse(&manifest.to_toml()).unwrap_err().to_string();
    assert!(error.contains(expected), "{error:?} lacks {expected:?}");
}

#[track_caller]
fn check_text(spoil: impl Fn(&str) -> String, expected: &str) {
    let text = manifest().to_toml();
    let spoilt = spoil(&text);
    assert_ne!(text, spoilt);
    let error = Manifest::<ModelConfig>::parse(&spoilt).unwrap_err().to_string();
    assert!(error.contains(expected), "{error:?} lacks {expected:?}");
}

/// A bundle of one kind is told from one of another before anything else is made of it.
#[test]
fn classifiers_have_a_manifest_of_their_own() {
    let classifier = classifier();
    let text = classifier.to_toml();
    assert_eq!(Manifest::<ImageConfig>::parse(&text).unwrap(), classifier);
    let error = Manifest::<ModelConfig>::parse(&text).unwrap_err().to_string();
    assert_eq!(error, "manifest field `kind` is image-classifier; language-model is expected");
    let mut fewer = classifier;
    fewer.interface.labels.pop();
    let error = Manifest::<ImageConfig>::parse(&fewer.to_toml()).unwrap_err().to_string();
    assert!(error.contains("`labels` has 9 names, but the model has 10 classes"), "{error}");

    let dir = tempfile::tempdir().unwrap();
    for (text, is_language) in [(text, false), (manifest().to_toml(), true)] {
        fs::write(dir.path().join("manifest.toml"), text).unwrap();
        let any = AnyManifest::read(dir.path(), |_| Some(1)).unwrap();
        assert_eq!(matches!(any, AnyManifest::Language(_)), is_language);
    }
}

fn classifier() -> Manifest<ImageConfig> {
    let input = Preprocessing {
        height: 32,
        width: 32,
        resize: Resize::Squash,
        crop_share: 1.0,
        interpolation: Interpolation::Bicubic,
        mean: [0.5; 3],
        std: [0.25; 3],
    };
    Manifest {
        format: FORMAT,
        name: "pictures".to_owned(),
        precision: Precision::F32,
        ops: BTreeMap::new(),
        files: BTreeMap::from([("model.onnx".to_owned(), "0".repeat(64))]),
        model: images::presets::preset("nf-wrn-10-1").unwrap(),
        provenance: Provenance::default(),
        interface: Pictures { input, labels: (0..10).map(|it| format!("class {it}")).collect() },
    }
}

fn manifest() -> Manifest {
    let model = preset("tiny").unwrap();
    let hash = |_| "0".repeat(64);
    Manifest {
        format: FORMAT,
        name: "tiny".to_owned(),
        precision: Precision::F16,
        ops: BTreeMap::from([("RgLru".to_owned(), 1)]),
        files: ["model.onnx", "tokenizer.json"].map(|it| (it.to_owned(), hash(it))).into(),
        model,
        provenance: Provenance::default(),
        interface: (),
    }
}
