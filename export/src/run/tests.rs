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
        Flatness::GradientNorm { lambda: 0.01, form: GradientNormForm::Difference };
    flat.train.average = Some(0.999);
    let mut sharp = image_run();
    sharp.train.flatness = Flatness::Sam { radius: 0.1, share: 0.2, after: 7 };
    for run in [text_run(), image_run(), flat, sharp] {
        let text = toml::to_string(&run).unwrap();
        assert_eq!(toml::from_str::<Run>(&text).unwrap(), run, "{text}");
    }
}
