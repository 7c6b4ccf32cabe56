//! Options as they are written, and which are refused.

use super::*;
use crate::data::images::augment::Fill;

#[test]
fn options_survive_a_round_trip() {
    for options in [BatchOptions::plain(7), everything()] {
        let text = toml::to_string(&options).unwrap();
        assert_eq!(toml::from_str::<BatchOptions>(&text).unwrap(), options, "{text}");
    }
}

#[test]
fn what_is_left_out_is_not_done() {
    assert_eq!(toml::from_str::<BatchOptions>("batch = 7").unwrap(), BatchOptions::plain(7));
    let resized: BatchOptions = toml::from_str("batch = 7\ncrop.kind = \"resized\"").unwrap();
    assert_eq!(resized.crop, Some(Crop::resized()));
}

#[test]
fn multiplicity_divides_or_multiplies() {
    let fixed = BatchOptions { batch: 12, multiplicity: 4, ..BatchOptions::plain(1) };
    assert_eq!((fixed.rows(), fixed.shape().pictures), (12, 3));
    let growing = BatchOptions { multiplicity_mode: Multiplicity::Growing, ..fixed };
    assert_eq!((growing.rows(), growing.shape().pictures), (48, 12));
}

#[test]
fn unsound_options_are_refused_by_field() {
    check("batch = 0", "batch is 0; 1 to 65536 is supported");
    check("batch = 4\nmultiplicity = 0", "multiplicity is 0; 1 to 1024");
    check("batch = 4\nmultiplicity = 3", "batch is 4, which multiplicity 3 does not divide");
    check(
        "batch = 65536\nmultiplicity = 1024\nmultiplicity_mode = \"growing\"",
        "batch · multiplicity is 67108864; 1 to 65536",
    );
    check("batch = 4\nlabel_smoothing = 1.0", "label_smoothing is 1; 0 to 0.999");
    check("batch = 4\nmixup_alpha = nan", "mixup_alpha is NaN; 0.01 to 4");
    check("batch = 4\nmultiplicity = 4\ncutmix = true", "a batch has one picture only");
    check(
        "batch = 4\ncrop = {kind = \"padded\", padding = 0, fill = \"zero\"}",
        "crop.padding is 0",
    );
    check("batch = 4\ncrop = {kind = \"resized\", area = [0.0, 1.0]}", "crop.area is 0");
    check("batch = 4\ncrop = {kind = \"resized\", area = [0.5, 0.1]}", "crop.area begins with 0.5");
    check("batch = 4\nrand_augment = {layers = 0, magnitude = 5}", "rand_augment.layers is 0");
    check("batch = 4\nrand_augment = {layers = 2, magnitude = 99}", "rand_augment.magnitude is 99");
    check("batch = 4\nflop = true", "unknown field `flop`");
    check("batch = 4\ncrop = {kind = \"resized\", padding = 4}", "unknown field `padding`");
    check("batch = 4\nrand_augment = {layers = 2, magnitude = 9, p = 1}", "unknown field `p`");
}

fn everything() -> BatchOptions {
    BatchOptions {
        batch: 64,
        multiplicity: 4,
        multiplicity_mode: Multiplicity::Growing,
        crop: Some(Crop::Padded { padding: 4, fill: Fill::Reflect }),
        flip: true,
        mixup_alpha: Some(0.2),
        cutmix: true,
        rand_augment: Some(RandAugment::for_side(2, 10.0, 32)),
        label_smoothing: 0.1,
    }
}

#[track_caller]
fn check(text: &str, message: &str) {
    let error = toml::from_str::<BatchOptions>(text).unwrap_err().to_string();
    assert!(error.contains(message), "{error}");
}
