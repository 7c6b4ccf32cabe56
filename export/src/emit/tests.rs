//! Bundles: whole or not at all, and the same from the same.

use std::{collections::BTreeMap, fs, path::Path};

use aerie_fuzz::{Format, Fuzz, overwrite};
use aerie_models::{
    AInit, Family, Manifest, Model, ParameterSpec, Precision,
    bundle::{MODEL_FILE, TOKENIZER_FILE},
};

use super::*;
use crate::{
    checkpoint::{Checkpoint as Tensors, Progress, Values},
    onnx::Weights,
    run::{Data, Run, tests::text_run},
};

#[test]
fn bundle_opens_and_says_what_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("tiny");
    let written = emit(&tiny(), &options(), &out).unwrap();
    let version = |op: &str| aerie_ops::schema::schema(op).map(|it| it.version);
    let manifest: Manifest = Manifest::open(&out, version).unwrap();
    assert_eq!(manifest, written);
    assert_eq!(
        manifest.ops.keys().collect::<Vec<_>>(),
        ["BlockDiagonal", "CausalConv1d", "LocalAttention", "RgLru", "RmsNorm"]
    );
    assert_eq!(manifest.provenance.data, "none: preset tiny with random weights of seed 7");
}

#[test]
fn same_model_gives_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let emit = |name: &str| {
        let out = dir.path().join(name);
        emit(&tiny(), &options(), &out).unwrap();
        fs::read_dir(out)
            .unwrap()
            .map(|it| it.unwrap())
            .map(|it| (it.file_name(), fs::read(it.path()).unwrap()))
            .collect::<BTreeMap<_, _>>()
    };
    assert!(emit("a") == emit("b"));
}

#[test]
fn failure_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("tiny");
    let source = Source { weights: Box::new(Huge), ..tiny() };
    let options = Options { precision: Precision::F16, ..options() };
    let error = emit(&source, &options, &out).unwrap_err().to_string();
    assert_eq!(
        error,
        "tensor embed_tokens.weight: 70000 at element 0 is beyond f16, which ends at 65504"
    );
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn what_is_there_is_replaced_only_by_force_and_only_if_it_is_a_bundle() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("tiny");
    emit(&tiny(), &options(), &out).unwrap();
    let error = emit(&tiny(), &options(), &out).unwrap_err();
    assert!(matches!(error, EmitError::Exists { .. }), "{error}");

    let force = Options { force: true, name: "other".to_owned(), ..options() };
    emit(&tiny(), &force, &out).unwrap();
    let text = fs::read_to_string(out.join(MANIFEST_FILE)).unwrap();
    assert_eq!(Manifest::<ModelConfig>::parse(&text).unwrap().name, "other");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "the old one is gone");

    let home = dir.path().join("home");
    fs::create_dir(&home).unwrap();
    fs::write(home.join("letters.txt"), "dear").unwrap();
    let error = emit(&tiny(), &force, &home).unwrap_err();
    assert!(matches!(error, EmitError::NotABundle { .. }), "{error}");
    assert!(home.join("letters.txt").exists());
}

#[test]
fn second_export_to_a_place_is_refused_while_the_first_is_at_it() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("tiny");
    let first = Staging::new(&out, false).unwrap();
    first.write("model.onnx", b"half").unwrap();
    let error = emit(&tiny(), &options(), &out).unwrap_err();
    assert!(matches!(error, EmitError::Claimed { .. }), "{error}");
    assert!(first.path().join("model.onnx").exists());

    drop(first);
    emit(&tiny(), &options(), &out).unwrap();
}

#[test]
fn what_a_killed_export_left_is_cleared() {
    let dir = tempfile::tempdir().unwrap();
    let partial = dir.path().join(".tiny.partial");
    fs::create_dir_all(partial.join("calibration")).unwrap();
    fs::write(partial.join("left.bin"), "half").unwrap();
    let out = dir.path().join("tiny");
    emit(&tiny(), &options(), &out).unwrap();
    assert!(!out.join("left.bin").exists() && !out.join("calibration").exists());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn names_that_cannot_be_labels_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["", "a b", "../up", &"x".repeat(65)] {
        let options = Options { name: name.to_owned(), ..options() };
        let error = emit(&tiny(), &options, &dir.path().join("out")).unwrap_err();
        assert!(matches!(error, EmitError::Name { .. }), "{error}");
    }
}

#[test]
fn packed_weights_need_our_operators() {
    let dir = tempfile::tempdir().unwrap();
    let packed = Options { target: Target::Portable, precision: Precision::Q4, ..options() };
    let error = emit(&tiny(), &packed, &dir.path().join("out")).unwrap_err().to_string();
    assert!(error.starts_with("--portable with --precision q4"), "{error}");
}

#[test]
fn unknown_preset_is_answered_with_the_known_ones() {
    let error = Source::random("tinny", 0).unwrap_err().to_string();
    assert!(error.starts_with("there is no preset \"tinny\"; the presets are tiny, "), "{error}");
}

#[test]
fn run_becomes_a_bundle_of_its_weights() {
    let dir = tempfile::tempdir().unwrap();
    let run = write_run(dir.path(), |_| {});
    let source = Source::run(run.path(), None, None).unwrap();
    assert_eq!(source.provenance.steps, Some(20));
    assert_eq!(source.provenance.data, "tales.txt", "no path of the machine");
    let out = dir.path().join("bundle");
    emit(&source, &options(), &out).unwrap();
    let written = fs::read(out.join(TOKENIZER_FILE)).unwrap();
    assert_eq!(written, fs::read(run.path().join(TOKENIZER_FILE)).unwrap());
    let drawn = onnx::weights::Drawn::open(&out.join(MODEL_FILE), &source.config).unwrap();
    for (path, spec) in aerie_models::census::parameters(&source.config) {
        let [found, expected] = [&drawn as &dyn Weights, source.weights.as_ref()]
            .map(|it| it.load(path.as_str(), &spec));
        assert_eq!(found.unwrap(), expected.unwrap(), "{path}");
    }
}

#[test]
fn run_whose_parts_do_not_fit_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let run = write_run(dir.path(), |model| model.vocab = 65);
    let error = Source::run(run.path(), None, None).unwrap_err().to_string();
    let expected = "tensor embed_tokens.weight has shape [64, 32]; [65, 32] is expected";
    assert!(error.ends_with(expected), "{error}");

    let run = write_run(dir.path(), |_| {});
    fs::write(run.path().join(TOKENIZER_FILE), tokenizer::bytes(63)).unwrap();
    let error = Source::run(run.path(), None, None).unwrap_err().to_string();
    assert!(error.ends_with("the tokenizer has 63 tokens, but the model's vocab is 64"), "{error}");

    let error = Source::run(run.path(), Some(19), None).unwrap_err().to_string();
    assert!(error.contains("step-19"), "{error}");
    let empty = dir.path().join("empty");
    assert!(Source::run(&empty, None, None).is_err());
}

/// Goal: a bundle that somebody made becomes a whole one of fewer bits, or nothing at all; with hashes
/// that are right, since who lies about the rest can take those as well.
#[test]
fn fuzzed_bundles_become_whole_ones_or_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (from, out) = (dir.path().join("from"), dir.path().join("out"));
    let small = || Source {
        config: crate::import::tests::config(Family::Griffin),
        tokenizer: tokenizer::bytes(16),
        ..tiny()
    };
    let mut manifest = None;
    let seeds = [Precision::F32, Precision::F16, Precision::Bf16].map(|precision| {
        let options = Options { precision, force: true, ..options() };
        manifest = Some(emit(&small(), &options, &from).unwrap());
        fs::read(from.join(MODEL_FILE)).unwrap()
    });
    let mut manifest = manifest.unwrap();
    let version = |op: &str| aerie_ops::schema::schema(op).map(|it| it.version);
    let options = Options { precision: Precision::Q4, ..options() };
    let fuzz = Fuzz {
        name: "bundle",
        format: Format::Protobuf,
        seeds: seeds.to_vec(),
        words: &[b"constant.", b"location", b"offset", b"length"],
    };
    fuzz.run(|bytes| {
        overwrite(&from.join(MODEL_FILE), bytes);
        let hash = blake3::hash(bytes).to_hex().to_string();
        manifest.files.insert(MODEL_FILE.to_owned(), hash);
        overwrite(&from.join(MANIFEST_FILE), manifest.to_toml().as_bytes());
        let written = Source::bundle(&from).and_then(|it| emit(&it, &options, &out));
        if written.is_ok() {
            Manifest::<ModelConfig>::open(&out, version).unwrap();
            fs::remove_dir_all(&out).unwrap();
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "something is left");
        written.is_ok()
    });
}

/// What a training left: its parameters, read to be emitted and to be trained on.
#[test]
fn fuzzed_runs_are_emitted_or_refused() {
    let dir = tempfile::tempdir().unwrap();
    let run = write_run(dir.path(), |_| {});
    let step = run.latest().unwrap().unwrap();
    let file = step.model_path();
    let fuzz = Fuzz {
        name: "run",
        format: Format::Headed,
        seeds: vec![fs::read(&file).unwrap()],
        words: &[b"dtype", b"shape", b"F32", b"BF16", b"final_norm.weight", b"__metadata__"],
    };
    fuzz.run(|bytes| {
        overwrite(&file, bytes);
        drop(step.model());
        let Ok(source) = Source::run(run.path(), None, None) else { return false };
        aerie_models::census::parameters(&source.config).into_iter().all(|(name, spec)| {
            let values = source.weights.load(name.as_str(), &spec);
            values.is_ok_and(|it| {
                assert!(it.iter().all(|it| it.is_finite()), "{name}");
                true
            })
        })
    });
}

/// Weights that no f16 can hold.
#[derive(Debug)]
struct Huge;

impl Weights for Huge {
    fn load(&self, _name: &str, spec: &ParameterSpec) -> Result<Vec<f32>, WeightsError> {
        Ok(vec![70_000.0; usize::try_from(spec.shape.iter().product::<u64>()).unwrap()])
    }
}

fn tiny() -> Source {
    Source::random("tiny", 7).unwrap()
}

fn options() -> Options {
    Options {
        name: "tiny".to_owned(),
        target: Target::Ragged,
        precision: Precision::F32,
        force: false,
    }
}

/// A run with one checkpoint of `tiny`, which says that it is what `change` makes of that.
pub(crate) fn write_run(dir: &Path, change: impl FnOnce(&mut ModelConfig)) -> RunDir {
    let source = tiny();
    let mut model = source.config.clone();
    assert_eq!(model.a_init, AInit::Paper);
    let tensors = aerie_models::census::parameters(&model)
        .into_iter()
        .map(|(path, spec)| {
            let shape = spec.shape.iter().map(|&it| usize::try_from(it).unwrap()).collect();
            let values = source.weights.load(path.as_str(), &spec).unwrap();
            (path.to_string(), Values { shape, values })
        })
        .collect();
    change(&mut model);
    let run = RunDir::new(dir.join("run"));
    let mut options = Run { model: Model::Language(model), ..text_run() };
    let Data::Text(data) = &mut options.data else { panic!("it is a run on text") };
    data.text = "/somewhere/tales.txt".into();
    run.create(&options).unwrap();
    fs::write(run.path().join(TOKENIZER_FILE), &source.tokenizer).unwrap();
    let progress = Progress { step: 20, seen: 640, ..Progress::default() };
    run.save(&progress, &Tensors { model: tensors, ..Tensors::default() }).unwrap();
    run
}
