//! All readings of small models agree; where ONNX Runtime is missing, the tests say so and skip.

use aerie_models::Precision;

use super::*;
use crate::{
    emit::{Options, Source, emit},
    onnx::{
        tests::Jittered,
        weights::{Random, read_model},
    },
    runtime::shared,
};

#[test]
fn every_reading_of_a_griffin_agrees() {
    check("tiny", Target::Ragged, Precision::F32);
    check("tiny", Target::Ragged, Precision::F16);
}

/// The bundle's graph multiplies what it has packed; the others what unpacking gives.
#[test]
fn packed_weights_are_what_unpacking_gives() {
    check("tiny", Target::Ragged, Precision::Bf16);
    check("tiny", Target::Ragged, Precision::Q8);
    check("tiny", Target::Ragged, Precision::Q4);
}

#[test]
fn portable_bundle_is_verified_too() {
    check("tiny", Target::Portable, Precision::F32);
}

#[test]
fn tolerance_that_nothing_meets_fails() {
    let none = Some(0.0);
    let Some(report) = report("tiny", Target::Ragged, Precision::F32, none) else { return };
    assert!(!report.passes(), "{report}");
}

#[test]
fn more_logits_than_fit_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let bundle = bundle(dir.path(), "tiny", Target::Ragged, Precision::F32);
    let model = Model::open(&bundle).unwrap();
    let error = model.tokens(&Args { tokens: Some(1 << 22), ..args(&bundle, None) }).unwrap_err();
    let expected = "4194304 tokens of vocab 64 make 268435456 logits; at most 134217728";
    assert!(error.to_string().starts_with(expected), "{error}");
    let none = model.tokens(&Args { tokens: Some(0), ..args(&bundle, None) }).unwrap_err();
    assert!(matches!(none, VerifyError::NoTokens { .. }), "{none}");
}

/// A manifest proves that weights are what somebody wrote, not that they are any good.
#[test]
fn packed_weights_with_a_scale_that_is_no_number_are_refused() {
    let Some(runtime) = shared() else { return };
    let dir = tempfile::tempdir().unwrap();
    let bundle = bundle(dir.path(), "tiny", Target::Ragged, Precision::Q4);
    let config = Model::open(&bundle).unwrap().config().clone();
    let mut graph = read_model(&bundle.join(MODEL_FILE)).unwrap();
    assert!(runtime.open_edited(&graph, &bundle, &config).is_ok());

    let weights = &mut graph.graph.as_mut().unwrap().initializer;
    let gate = weights.iter_mut().find(|it| it.name.ends_with("1.mlp_block.up_proj.weight"));
    let packed = gate.unwrap().raw_data.as_mut().unwrap();
    packed[4..8].copy_from_slice(&f32::NAN.to_le_bytes());
    let error = runtime.open_edited(&graph, &bundle, &config).unwrap_err().to_string();
    assert!(error.contains("up: the scale of output 1 is NaN"), "{error}");
}

#[track_caller]
fn check(preset: &str, target: Target, precision: Precision) {
    let Some(report) = report(preset, target, precision, None) else { return };
    assert!(report.passes(), "{preset}, {target:?}, {precision:?}\n{report}");
}

fn report(
    preset: &str,
    target: Target,
    precision: Precision,
    tolerance: Option<f64>,
) -> Option<Report> {
    let runtime = shared()?;
    let dir = tempfile::tempdir().unwrap();
    let bundle = bundle(dir.path(), preset, target, precision);
    let args = args(&bundle, tolerance);
    let model = Model::open(&bundle).unwrap();
    let tokens = model.tokens(&args).unwrap();
    Some(verify(runtime, &model, &tokens, &args).unwrap())
}

fn bundle(dir: &Path, preset: &str, target: Target, precision: Precision) -> PathBuf {
    let out = dir.join(preset);
    let weights = Box::new(Jittered(Random { seed: 11 }));
    let source = Source { weights, ..Source::random(preset, 11).unwrap() };
    let options = Options { name: preset.to_owned(), target, precision, force: false };
    emit(&source, &options, &out).unwrap();
    out
}

fn args(bundle: &Path, tolerance: Option<f64>) -> Args {
    Args {
        bundle: bundle.to_owned(),
        checkpoint: None,
        text: None,
        tokens: None,
        seed: 3,
        tolerance,
        onnxruntime: None,
    }
}
