use aerie_models::{images, presets};

use super::*;

/// A short training of the tiny language model, for tests to change.
pub(crate) fn text_run() -> Run {
    Run {
        model: Model::Language(presets::preset("tiny").unwrap()),
        data: Data::Text(TextData {
            text: "text.txt".into(),
            valid: None,
            holdout: Some(0.1),
            documents: Documents::Files,
            rows: 3,
            time: 24,
        }),
        train: TrainConfig {
            accumulate: 2,
            steps: 10,
            learning_rate: 1e-2,
            final_share: 0.1,
            warmup: 2,
            seed: 3,
            matmul: Matmul::F32,
            flatness: Flatness::Off,
            average: None,
            checkpoint_every: 100,
            valid_every: 10,
            log_every: 1,
        },
        optimizer: Optimizer::Adamw(AdamwConfig { beta1: 0.9, beta2: 0.95, decay: 0.1, clip: 1.0 }),
    }
}

/// A short training of a small classifier.
pub(crate) fn image_run() -> Run {
    let toml = "images = \"train.parquet\"\n\
                [preprocessing]\nheight = 32\nwidth = 32\nresize = \"none\"\ncrop_share = 1.0\n\
                interpolation = \"bicubic\"\nmean = [0.5, 0.5, 0.5]\nstd = [0.25, 0.25, 0.25]\n\
                [batch]\nbatch = 8\n";
    let sgd = SgdConfig { momentum: 0.9, nesterov: true, decay: 1e-4, clip: Some(0.02) };
    Run {
        model: Model::Images(images::presets::preset("nf-wrn-10-1").unwrap()),
        data: Data::Images(toml::from_str(toml).unwrap()),
        optimizer: Optimizer::Sgd(sgd),
        ..text_run()
    }
}

#[test]
fn a_run_survives_a_round_trip() {
    let mut flat = image_run();
    flat.train.flatness =
        Flatness::GradientNorm { lambda: 0.01, form: GradientNormForm::Difference { radius: 0.1 } };
    flat.train.average = Some(0.999);
    let mut sharp = image_run();
    sharp.train.flatness = Flatness::Sam { radius: 0.1, share: 0.2, after: 7 };
    for run in [text_run(), image_run(), flat, sharp] {
        let text = toml::to_string(&run).unwrap();
        assert_eq!(toml::from_str::<Run>(&text).unwrap(), run, "{text}");
    }
}

/// What somebody wrote into `run.toml` by hand is held to what options are held to.
#[test]
fn what_cannot_be_trained_with_is_refused_by_name() {
    let text = |run: Run| toml::to_string(&run).unwrap();
    let check = |text: &str, old: &str, new: &str, expected: &str| {
        assert!(text.contains(old), "{old} is in {text}");
        let error = toml::from_str::<Run>(&text.replace(old, new)).unwrap_err().to_string();
        assert!(error.contains(expected), "{old} to {new}: {error}");
    };
    let language = text(text_run());
    for (old, new, expected) in [
        ("accumulate = 2", "accumulate = 0", "accumulate is 0; it must be 1 or more"),
        ("steps = 10", "steps = 0", "steps is 0; it must be 1 or more"),
        ("steps = 10", "steps = 2", "warmup is 2, which leaves nothing of 2 steps"),
        ("learning_rate = 0.01", "learning_rate = -1.0", "learning_rate is -1; it must be above 0"),
        ("learning_rate = 0.01", "learning_rate = nan", "learning_rate is NaN"),
        ("learning_rate = 0.01", "learning_rate = inf", "learning_rate is inf"),
        ("valid_every = 10", "valid_every = 0", "valid_every is 0"),
        ("beta2 = 0.95", "beta2 = 1.0", "beta2 is 1; it must be in 0..1"),
        ("rows = 3", "rows = 0", "rows is 0"),
        ("holdout = 0.1", "holdout = 1.0", "holdout is 1; it must be above 0 and below 1"),
    ] {
        check(&language, old, new, expected);
    }
    let mut sharp = image_run();
    sharp.train.flatness = Flatness::Sam { radius: 0.1, share: 0.2, after: 7 };
    let classifier = text(sharp);
    for (old, new, expected) in [
        ("radius = 0.1", "radius = 0.0", "sam radius is 0; it must be above 0"),
        ("share = 0.2", "share = 1.5", "sam share is 1.5; it must be above 0, at most 1"),
        ("after = 7", "after = 10", "sam after is 10, which leaves nothing of 10 steps"),
        ("clip = 0.02", "clip = 0.0", "clip is 0; it must be above 0"),
    ] {
        check(&classifier, old, new, expected);
    }
    let mut apart = text_run();
    let form = GradientNormForm::Difference { radius: 0.1 };
    apart.train.flatness = Flatness::GradientNorm { lambda: 0.01, form };
    let none = "gradient-norm radius is 0; it must be above 0";
    check(&text(apart), "radius = 0.1", "radius = 0.0", none);
    let mut flat = text_run();
    flat.train.flatness = Flatness::GradientNorm { lambda: 0.01, form: GradientNormForm::Exact };
    let error = toml::from_str::<Run>(&text(flat)).unwrap_err().to_string();
    assert!(error.contains("needs a radius (--gradient-norm-radius)"), "{error}");
}
