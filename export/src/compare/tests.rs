//! Bundles of small models beside each other; where ONNX Runtime is missing, tests that read say so
//! and skip.

use clap::Parser;

use super::{tally::Figures, *};
use crate::{
    emit::{Options, Source, emit, tokenizer_bytes},
    onnx::{Target, tests::Jittered, weights::Random},
    runtime::shared,
};

#[test]
fn model_does_not_differ_from_itself_and_fewer_bits_differ_more() {
    let Some(runtime) = shared() else { return };
    let dir = tempfile::tempdir().unwrap();
    let precisions = [Precision::F32, Precision::F32, Precision::F16, Precision::Q8, Precision::Q4];
    let bundles = precisions.map(|it| bundle(dir.path(), "tiny", it, 11));
    let report = compare(&args(dir.path(), &bundles, &["--f32-activations"]), runtime).unwrap();
    let names: Vec<(Precision, u32)> =
        report.bundles.iter().map(|it| (it.precision, it.activation_bits)).collect();
    let (f32, f16) = (Precision::F32, Precision::F16);
    let (q8, q4) = (Precision::Q8, Precision::Q4);
    assert_eq!(names, [(f32, 32), (f32, 32), (f16, 32), (q8, 8), (q8, 32), (q4, 8), (q4, 32)]);

    let figures: Vec<&Figures> = report.bundles.iter().map(|it| &it.figures).collect();
    assert_eq!(figures[0], figures[1]);
    assert_eq!(
        [figures[1].kl_nats_mean, figures[1].kl_nats_p99, figures[1].other_choice],
        [0.0; 3]
    );
    let kl: Vec<f64> = figures[1..].iter().map(|it| it.kl_nats_mean).collect();
    let [_, f16, q8, q8_weights, q4, q4_weights] = *kl else { panic!("{kl:?}") };
    assert!(0.0 < f16 && f16 < q8_weights, "{report}");
    assert!(q8_weights < q8 && q8 < q4, "{report}");
    assert!(q8_weights < q4_weights, "{report}");
    let bits: Vec<f64> = report.bundles.iter().map(|it| it.weight_bits).collect();
    assert_eq!(bits[0], 32.0);
    assert!(bits[5] < bits[3] && bits[3] < bits[0], "{bits:?}");
}

/// Goal: cross entropy is that of the model, whatever the chunks are, with the state carried on.
/// Method: the portable graph reads the same sessions token by token.
#[test]
fn cross_entropy_is_that_of_the_portable_graph() {
    let Some(runtime) = shared() else { return };
    let dir = tempfile::tempdir().unwrap();
    let bundle = bundle(dir.path(), "tiny", Precision::F32, 11);
    let args = args(dir.path(), &[bundle.clone(), bundle.clone()], &[]);
    let report = compare(&args, runtime).unwrap();

    let source = Source::bundle(&bundle).unwrap();
    let portable = dir.path().join("portable");
    let options = Options { target: Target::Portable, ..options(Precision::F32) };
    emit(&source, &options, &portable).unwrap();
    let mut graph =
        runtime.open(&portable.join(MODEL_FILE), &source.config, Target::Portable).unwrap();
    let tokenizer = parse_tokenizer(&source.tokenizer, &portable).unwrap();
    let encoder = Encoder { tokenizer: &tokenizer, vocab: source.config.vocab };
    let amount = Amount { asked: None, default: TOKENS_MAX, min: 2 };
    let text = Text::read(&args.text, Documents::Files).unwrap();
    let (mut nats, mut count) = (0.0, 0);
    for session in text.in_order(encoder, amount).unwrap() {
        graph.reset(1).unwrap();
        for (position, pair) in session.ids.windows(2).enumerate() {
            let outputs = graph.step(&[Segment { lane: 0, position, tokens: &pair[..1] }]).unwrap();
            let logits = outputs.floats("logits").unwrap();
            let sum: f64 = logits.iter().map(|&it| f64::from(it).exp()).sum();
            nats += sum.ln() - f64::from(logits[pair[1] as usize]);
            count += 1;
        }
    }
    let found = report.bundles[0].figures.nats_per_token;
    let expected = nats / f64::from(count);
    // Logits of a few units in f32, a hundred operations deep.
    assert!((found - expected).abs() < 1e-5, "{found} instead of {expected}");
}

#[test]
fn bundles_that_do_not_belong_together_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let tiny = bundle(dir.path(), "tiny", Precision::F32, 11);
    let other = bundle(dir.path(), "shakespeare", Precision::F32, 11);
    let retold = bundle(dir.path(), "tiny", Precision::F16, 11);
    let portable = dir.path().join("portable");
    let source = Source::random("tiny", 11).unwrap();
    let options = Options { target: Target::Portable, ..options(Precision::F32) };
    emit(&source, &options, &portable).unwrap();
    let words = Source { tokenizer: tokenizer_bytes(63), ..source };
    let renamed = dir.path().join("renamed");
    emit(&words, &self::options(Precision::F32), &renamed).unwrap();
    let check = |bundle: &PathBuf, expected: &str| {
        let reference = Bundle::open(&tiny).unwrap();
        let result = Bundle::open(bundle).and_then(|it| it.of_model(&reference));
        match result {
            Ok(_) => assert_eq!(expected, ""),
            Err(error) => assert!(error.to_string().contains(expected), "{error}"),
        }
    };
    check(&retold, "");
    check(&other, "manifest field `model.");
    check(&portable, "manifest field `ops` is empty: this bundle is portable");
    check(&renamed, "tokenizer.json differs from the reference's");
}

#[test]
fn text_that_is_too_short_and_too_many_bundles_are_refused() {
    let Some(runtime) = shared() else { return };
    let dir = tempfile::tempdir().unwrap();
    let tiny = bundle(dir.path(), "tiny", Precision::F32, 11);
    let check = |bundles: &[PathBuf], rest: &[&str], expected: &str| {
        let error = compare(&args(dir.path(), bundles, rest), runtime).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    };
    let two = [tiny.clone(), tiny.clone()];
    check(&two, &["--tokens", "9000"], "tokens; --tokens asks for 9000");
    check(&two, &["--tokens", "1"], "--tokens is 1; 2 to 16777216");
    check(&vec![tiny; 17], &[], "17 bundles; at most 16 are compared");
}

fn bundle(dir: &Path, preset: &str, precision: Precision, seed: u64) -> PathBuf {
    let out = dir.join(format!("{preset}-{}", precision.name()));
    if !out.exists() {
        let weights = Box::new(Jittered(Random { seed }));
        let source = Source { weights, ..Source::random(preset, seed).unwrap() };
        emit(&source, &options(precision), &out).unwrap();
    }
    out
}

fn options(precision: Precision) -> Options {
    Options { name: "model".to_owned(), target: Target::Ragged, precision, force: false }
}

/// Two documents past the window of `tiny`, the first longer than a chunk.
fn args(dir: &Path, bundles: &[PathBuf], rest: &[&str]) -> Args {
    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }
    let text = dir.join("text.txt");
    let letters = "the wolf looked at the door and said, 'who is there?'\n";
    fs::write(&text, format!("{}<|endoftext|>{letters}", letters.repeat(20))).unwrap();
    let mut line = vec!["compare"];
    line.extend(bundles.iter().map(|it| it.to_str().unwrap()));
    line.extend(["--text", text.to_str().unwrap()]);
    line.extend(rest);
    Line::try_parse_from(line).unwrap().args
}
