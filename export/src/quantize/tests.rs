//! Calibration finds the inputs of every product, and makes the errors smaller that matter; what
//! cannot be quantised is refused before anything is written. Where ONNX Runtime is missing, tests
//! that read say so and skip.

use std::{collections::BTreeMap, fs, path::Path};

use aerie_models::{Manifest, ModelConfig, bundle::MODEL_FILE, census};
use clap::Parser;

use super::*;
use crate::{
    data::sessions::Session,
    emit::{emit, tests::write_run},
    onnx::{
        Weights,
        tests::Jittered,
        weights::{Drawn, Random},
    },
    runtime::shared,
};

/// Goal: the squares are of the inputs that the named matrix really has.
/// Method: the first block's inputs are known without running anything: normalised embeddings.
#[test]
fn squares_are_of_the_inputs_of_the_product() {
    let Some(runtime) = shared() else { return };
    let dir = tempfile::tempdir().unwrap();
    for precision in [Precision::F32, Precision::F16, Precision::Bf16] {
        let out = bundle(dir.path(), precision, Target::Ragged);
        let source = Source::bundle(&out).unwrap();
        let sessions = [session(700, 3), session(41, 5)];
        let mut collector = Collector::open(runtime, &out, &source.config).unwrap();
        let found = collector.importance(&sessions).unwrap();
        let expected = normalised_embeddings(&source, &sessions);
        let found = &found["layers.0.temporal_block.linear_x.weight"];
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(expected) {
            // Sums of some hundred squares in f32.
            assert!(
                (found - expected).abs() < 1e-4 * expected,
                "{found}, {expected}: {precision:?}"
            );
        }
    }
}

/// Goal: what calibration minimises is smaller with it than without, in every matrix.
/// Method: pack each matrix of a model both ways and weigh the errors by what calibration saw.
#[test]
fn errors_that_matter_are_smaller_with_calibration() {
    let Some(runtime) = shared() else { return };
    let dir = tempfile::tempdir().unwrap();
    let out = bundle(dir.path(), Precision::F32, Target::Ragged);
    let source = Source::bundle(&out).unwrap();
    let mut collector = Collector::open(runtime, &out, &source.config).unwrap();
    let importance = collector.importance(&[session(900, 3)]).unwrap();
    let plain = weighted_errors(&source.config, source.weights.as_ref(), &importance);
    let calibrated = Calibrated { weights: source.weights, importance: importance.clone() };
    let calibrated = weighted_errors(&source.config, &calibrated, &importance);
    let [mut sum_plain, mut sum_calibrated] = [0.0, 0.0];
    for (name, plain) in &plain {
        let calibrated = calibrated[name];
        // Equal where no other scale is better; what is chosen, is by sums in f32.
        assert!(calibrated <= plain * (1.0 + 1e-5), "{name}: {calibrated} with, {plain} without");
        sum_plain += plain;
        sum_calibrated += calibrated;
    }
    assert!(sum_calibrated < 0.99 * sum_plain, "{sum_calibrated} with, {sum_plain} without");
}

#[test]
fn quantised_bundle_says_where_it_comes_from() {
    let dir = tempfile::tempdir().unwrap();
    let from = bundle(dir.path(), Precision::F16, Target::Ragged);
    let out = dir.path().join("small");
    let args = args(&[from.to_str().unwrap(), "--precision", "q8", "--out", out.to_str().unwrap()]);
    quantize(&args, || panic!("nothing is read")).unwrap();
    let [found, from] = [&out, &from].map(|it| open(it));
    assert_eq!((found.precision, found.name.as_str()), (Precision::Q8, "small"));
    assert_eq!(found.provenance, from.provenance);
    assert_eq!(found.files[TOKENIZER_FILE], from.files[TOKENIZER_FILE]);
}

#[test]
fn training_is_quantised_too() {
    let Some(runtime) = shared() else { return };
    let dir = tempfile::tempdir().unwrap();
    let run = write_run(dir.path(), |_| {});
    let out = dir.path().join("small");
    let text = text(dir.path(), 4000);
    let mut line = vec!["--run", run.path().to_str().unwrap(), "--precision", "q4"];
    line.extend(["--out", out.to_str().unwrap(), "--calibrate", text.to_str().unwrap()]);
    quantize(&args(&line), || Ok(runtime.clone())).unwrap();
    let Provenance { steps, calibration, .. } = open(&out).provenance;
    assert_eq!(steps, Some(20));
    assert_eq!(calibration.as_deref(), Some("4001 tokens of 4000.txt"));
    let names =
        fs::read_dir(&out).unwrap().map(|it| it.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.collect();
    names.sort();
    assert_eq!(names, ["manifest.toml", MODEL_FILE, TOKENIZER_FILE]);
}

#[test]
fn what_cannot_be_quantised_is_refused_before_anything_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let good = bundle(dir.path(), Precision::F32, Target::Ragged);
    let q8 = bundle(dir.path(), Precision::Q8, Target::Ragged);
    let portable = bundle(dir.path(), Precision::F16, Target::Portable);
    let short = text(dir.path(), 100);
    let texts = ["--calibrate", short.to_str().unwrap()];
    let before = fs::read_dir(dir.path()).unwrap().count();
    let check = |from: &Path, rest: &[&str], expected: &str| {
        let out = dir.path().join("out");
        let line = [from.to_str().unwrap(), "--out", out.to_str().unwrap()];
        let load = || shared().cloned().ok_or_else(|| RuntimeError::Load("none".to_owned()));
        let error = quantize(&args(&[&line, rest].concat()), load).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), before, "{error}");
    };
    check(&q8, &["--precision", "q4"], "manifest field `precision` is q8; f32, f16 or bf16");
    check(&portable, &["--precision", "q4"], "manifest field `ops` is empty");
    let bf16 = [&texts[..], &["--precision", "bf16"]].concat();
    check(&good, &bf16, "--calibrate with --precision bf16: only q4 has scales to choose");
    check(&dir.path().join("nothing"), &["--precision", "q4"], "manifest.toml");
    if shared().is_some() {
        let q4 = [&texts[..], &["--precision", "q4"]].concat();
        check(&good, &q4, "101 tokens; at least 512 are needed");
        let few = [&q4[..], &["--tokens", "100"]].concat();
        check(&good, &few, "--tokens is 100; 512 to 16777216");
        let many = [&q4[..], &["--tokens", "9000"]].concat();
        check(&good, &many, "101 tokens; at least 512");
    }
}

#[test]
fn what_is_in_the_way_is_told_before_the_text_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let good = bundle(dir.path(), Precision::F32, Target::Ragged);
    let good = good.to_str().unwrap();
    let line = [good, "--out", good, "--precision", "q4", "--calibrate", "nowhere.txt"];
    let error = quantize(&args(&line), || panic!("nothing is read")).unwrap_err();
    assert!(error.to_string().ends_with("exists; --force replaces it"), "{error}");
}

/// Sums over the errors of 4-bit weights, each weighed by `importance`, by matrix.
fn weighted_errors(
    config: &ModelConfig,
    weights: &dyn Weights,
    importance: &BTreeMap<String, Vec<f32>>,
) -> BTreeMap<String, f64> {
    let dir = tempfile::tempdir().unwrap();
    let graph = onnx::emit(config, Target::Ragged, Precision::Q4);
    onnx::write(graph, "packed", weights, Limits::default(), dir.path()).unwrap();
    let packed = Drawn::open(&dir.path().join(MODEL_FILE), config).unwrap();
    let mut errors = BTreeMap::new();
    for (path, spec) in census::parameters(config) {
        let Some(importance) = importance.get(path.as_str()) else { continue };
        let [exact, rounded] = [weights, &packed].map(|it| it.load(path.as_str(), &spec).unwrap());
        let [.., rows, columns] = *spec.shape else { panic!("{path} is a matrix") };
        let input = |at: usize| {
            let [rows, columns] = [rows, columns].map(|it| usize::try_from(it).unwrap());
            // `[out, in]` or `[groups, in, out]`
            if spec.shape.len() == 2 {
                at % columns
            } else {
                at / (rows * columns) * rows + at / columns % rows
            }
        };
        let error = |at: usize| {
            f64::from(exact[at] - rounded[at]).powi(2) * f64::from(importance[input(at)])
        };
        errors.insert(path.to_string(), (0..exact.len()).map(error).sum());
    }
    errors
}

/// Mean squares of `embed · scale / rms ⊙ (1 + weight)` over all tokens, damped.
#[expect(clippy::cast_possible_truncation, reason = "a mean is kept as f32")]
fn normalised_embeddings(source: &Source, sessions: &[Session]) -> Vec<f32> {
    let parameters = census::parameters(&source.config);
    let load = |name: &str| {
        let (path, spec) = parameters.iter().find(|(path, _)| path.as_str() == name).unwrap();
        source.weights.load(path.as_str(), spec).unwrap()
    };
    let table = load("embed_tokens.weight");
    let gain = load("layers.0.temporal_pre_norm.weight");
    let width = source.config.width as usize;
    let mut sums = vec![0.0f64; width];
    let mut count = 0;
    for &id in sessions.iter().flat_map(|it| &it.ids) {
        let row = &table[id as usize * width..][..width];
        let square = |it: &f32| f64::from(*it).powi(2);
        // Whatever the embedding is scaled by goes with the norm.
        let mean = row.iter().map(square).sum::<f64>() / width as f64;
        for (sum, (x, gain)) in sums.iter_mut().zip(row.iter().zip(&gain)) {
            *sum += square(x) / mean * (1.0 + f64::from(*gain)).powi(2);
        }
        count += 1;
    }
    let all = sums.iter().sum::<f64>() / width as f64;
    sums.iter().map(|it| ((it + 0.01 * all) / f64::from(count)) as f32).collect()
}

/// `count` tokens of the vocabulary of `tiny`, some far more often than others.
fn session(count: u32, step: u32) -> Session {
    let ids = (0..count).map(|it| it * step % 64 * (it % 3) / 2).collect();
    Session { ids, text_bytes: 0 }
}

fn bundle(dir: &Path, precision: Precision, target: Target) -> std::path::PathBuf {
    let out = dir.join(format!("{}-{target:?}", precision.name()));
    let weights = Box::new(Jittered(Random { seed: 11 }));
    let source = Source { weights, ..Source::random("tiny", 11).unwrap() };
    let options = Options { name: "tiny".to_owned(), target, precision, force: false };
    emit(&source, &options, &out).unwrap();
    out
}

/// A text of `bytes` bytes, each a token.
fn text(dir: &Path, bytes: usize) -> std::path::PathBuf {
    let path = dir.join(format!("{bytes}.txt"));
    let text: String = ".,;:!?'\"-0123456789\n".chars().cycle().take(bytes).collect();
    fs::write(&path, text).unwrap();
    path
}

fn open(bundle: &Path) -> Manifest {
    Manifest::open(bundle, |op| aerie_ops::schema::schema(op).map(|it| it.version)).unwrap()
}

fn args(line: &[&str]) -> Args {
    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }
    Line::try_parse_from([&["quantize"], line].concat()).unwrap().args
}
