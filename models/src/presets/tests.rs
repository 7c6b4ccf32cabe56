use super::{names, preset};
use crate::{
    carry::Carry,
    census,
    config::{Family, ModelConfig},
};

#[test]
fn every_preset_parses() {
    for name in names() {
        assert!(preset(name).is_some(), "{name}");
    }
    assert_eq!(preset("griffin-2t"), None);
}

#[test]
fn recurrentgemma_has_the_published_number_of_parameters() {
    // Totals of the released checkpoints, with the tied embedding counted once.
    check_total("recurrentgemma-2b", 2_682_862_080);
    check_total("recurrentgemma-9b", 8_579_977_216);
}

/// Table 2 of the Griffin paper fixes the extents; it prints no totals. These are non-embedding
/// parameters in millions, for 16 gate blocks, as Griffin, Hawk and MQA twins.
#[test]
fn paper_sizes_have_the_totals_of_their_extents() {
    for (name, millions) in [
        ("griffin-100m", [89, 94, 80]),
        ("griffin-200m", [163, 174, 142]),
        ("griffin-400m", [355, 375, 316]),
        ("griffin-1.3b", [1243, 1304, 1120]),
        ("griffin-3b", [2835, 2996, 2511]),
        ("griffin-7b", [6790, 7180, 5940]),
        ("griffin-14b", [13_800, 14_800, 11_600]),
    ] {
        let griffin = preset(name).unwrap();
        let families = [Family::Griffin, Family::Hawk, Family::Mqa];
        for (family, expected) in families.into_iter().zip(millions) {
            let config = ModelConfig { family, ..griffin.clone() };
            let embedding = u64::from(config.vocab) * u64::from(config.width);
            let found = (census::parameter_total(&config) - embedding) as f64 / 1e6;
            // The reference prints three digits.
            let digits = 10f64.powf(f64::from(expected).log10().floor() - 2.0).max(1.0);
            let difference = (found - f64::from(expected)).abs();
            assert!(difference <= digits / 2.0 * 1.001, "{name} {family:?}: {found} ≠ {expected}");
        }
    }
}

/// Throughputs of the three are compared, so none may have more to read than another.
#[test]
fn small_twins_have_the_same_total() {
    let total = |name| census::parameter_total(&preset(name).unwrap()) as f64;
    for twin in ["hawk-small-512", "mqa-small-512"] {
        let ratio = total(twin) / total("griffin-small-512");
        // Widths of the MLP are multiples of eight, which are 0.35 % of the total.
        assert!((ratio - 1.0).abs() < 0.002, "{twin}: {ratio}");
    }
}

/// The closed formula of the block sizes, written independently of the walk.
#[test]
fn walk_and_formula_agree_on_every_preset() {
    for name in names() {
        let c = preset(name).unwrap();
        let [v, d, r, e] = [c.vocab, c.width, c.recurrence_width, c.mlp_width].map(u64::from);
        let (k, head) = (u64::from(c.gate_blocks), u64::from(c.head_dim));
        let recurrent = 2 * (d * r + r) + (r * d + d) + 5 * r + r + 2 * (r * r / k + r);
        let attention = 2 * d * d + 2 * d * head + d;
        let mlp = 2 * (d * e + e) + e * d + d;
        let n = u64::from(c.layers);
        let n_attention = match c.family {
            Family::Griffin => n / 3,
            Family::Hawk => 0,
            Family::Mqa => n,
        };
        let expected =
            v * d + d + n * (2 * d + mlp) + n_attention * attention + (n - n_attention) * recurrent;
        assert_eq!(census::parameter_total(&c), expected, "{name}");
    }
}

#[test]
fn recurrentgemma_2b_session_has_the_published_bytes() {
    let layout = Carry::layout(&preset("recurrentgemma-2b").unwrap());
    // 18 recurrent blocks and 8 rings of W + 1 keys and values, all in f32.
    let h = 18 * 2560 * 4;
    let conv = 18 * 3 * 2560 * 4;
    let rings = 8 * 2 * 2049 * 256 * 4;
    assert_eq!(layout.bytes(), h + conv + rings);
}

#[track_caller]
fn check_total(name: &str, expected: u64) {
    assert_eq!(census::parameter_total(&preset(name).unwrap()), expected, "{name}");
}
