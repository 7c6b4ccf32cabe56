use super::{macs, parameter_total, parameters};
use crate::{backend::Role, images::presets::preset};

/// Parameters, exactly, and billions of multiplications at the sizes for testing and training.
#[track_caller]
fn check(name: &str, expected_parameters: u64, sizes: &[(u32, &str)]) {
    let config = preset(name).expect("a preset");
    assert_eq!(parameter_total(&config), expected_parameters, "{name}");
    for &(size, expected) in sizes {
        let found = format!("{:.2}", macs(&config, size, size) as f64 / 1e9);
        assert_eq!(found, expected, "{name} at {size}");
    }
}

/// Parameters to two decimals of a million.
#[track_caller]
fn check_millions(name: &str, expected: &str, sizes: &[(u32, &str)]) {
    let total = parameter_total(&preset(name).expect("a preset"));
    assert_eq!(format!("{:.2}", total as f64 / 1e6), expected, "{name}");
    check(name, total, sizes);
}

/// Brock et al. 2021 (arXiv:2102.06171), table 1: their "FLOPs" are ours at the size for testing.
#[test]
fn nfnets_have_the_papers_sizes() {
    check("nfnet-f0", 71_489_284, &[(192, "6.98"), (256, "12.38")]);
    check("nfnet-f1", 132_634_256, &[(224, "17.44"), (320, "35.54")]);
    check("nfnet-f2", 193_779_228, &[(256, "33.14"), (352, "62.59")]);
    check("nfnet-f3", 254_924_200, &[(320, "67.94"), (416, "114.76")]);
    check("nfnet-f4", 316_069_172, &[(384, "121.12"), (512, "215.24")]);
    check("nfnet-f5", 377_214_144, &[(416, "169.50"), (544, "289.76")]);
    check("nfnet-f6", 438_359_116, &[(448, "228.29"), (576, "377.28")]);
    check("nfnet-f7", 499_504_088, &[(480, "298.48"), (608, "478.78")]);
    // Without a number at the end of each branch.
    check("timm/nfnet_f0", 71_489_272, &[]);
    check("timm/nfnet_f7", 499_503_992, &[]);
}

/// The paper's 527 M and 367 B need inner widths of a half; the released code rounds them down.
#[test]
fn wider_nfnets_have_the_papers_sizes() {
    check_millions("nfnet-f4+", "527.03", &[(512, "367.41")]);
    check_millions("nfnet-f4+-released", "524.95", &[(512, "333.39")]);
    check_millions("nfnet-f7+", "832.89", &[(608, "817.10")]);
    check_millions("nfnet-f7+-released", "829.55", &[]);
    check_millions("nfnet-f3+", "425.08", &[]);
    check_millions("nfnet-f3+-released", "423.42", &[]);
}

#[test]
fn nf_resnets_have_their_sizes() {
    check_millions("nf-resnet-50", "25.56", &[(224, "4.09")]);
    check_millions("nf-resnet-101", "44.55", &[(224, "7.80")]);
    check_millions("nf-resnet-152", "60.19", &[(224, "11.51")]);
    check_millions("nf-resnet-200", "64.67", &[(224, "15.01")]);
    check_millions("nf-resnet-288", "146.46", &[(224, "21.56")]);
}

/// At 272 and 456 pixels the last maps are 9 and 15 wide: padding like TensorFlow's rounds up.
#[test]
fn nf_regnets_have_their_sizes() {
    check_millions("nf-regnet-b0", "8.60", &[(224, "0.44")]);
    check_millions("nf-regnet-b1", "10.02", &[(256, "0.73")]);
    check_millions("nf-regnet-b2", "13.79", &[(272, "1.15"), (256, "0.97")]);
    check_millions("nf-regnet-b3", "18.14", &[(320, "2.00")]);
    check_millions("nf-regnet-b4", "29.32", &[(384, "4.47")]);
    check_millions("nf-regnet-b5", "48.71", &[(456, "11.10")]);
    check_millions("timm/nf_regnet_b0", "8.76", &[]);
    check_millions("timm/nf_regnet_b5", "49.74", &[]);
}

/// Zagoruyko and Komodakis 2016 (arXiv:1605.07146): WRN-16-4 has 2.7 M parameters.
#[test]
fn wide_networks_have_their_sizes() {
    check_millions("wrn-16-4", "2.75", &[]);
    check("timm/test_nfnet", 383_080, &[]);
}

/// What decays is what multiplies maps: no gain, no bias, no number at the end of a branch.
#[test]
fn only_weights_decay() {
    for name in ["nfnet-f0", "nf-regnet-b0", "wrn-16-4", "timm/eca_nfnet_l0"] {
        for (path, spec) in parameters(&preset(name).expect("a preset")) {
            let is_matrix = path.as_str().ends_with(".weight") && 1 < spec.shape.len();
            assert_eq!(spec.role == Role::Matrix, is_matrix, "{path}");
        }
    }
}
