use super::{Attention, ImageConfig, Norm, Standardise};
use crate::images::presets::preset;

fn f0() -> ImageConfig {
    preset("nfnet-f0").expect("a preset")
}

/// `1/β` of F0 (Brock et al. 2021, arXiv:2102.06171): a transition keeps the variance that grew before
/// it.
#[test]
fn betas_grow_and_begin_anew_after_transitions() {
    let variances: [f64; 12] =
        [1.0, 1.04, 1.04, 1.08, 1.04, 1.08, 1.12, 1.16, 1.2, 1.24, 1.04, 1.08];
    // Stages of F0 have 1, 2, 6 and 3 blocks.
    for (beta, variance) in f0().betas().into_iter().zip(variances) {
        assert!((beta - variance.sqrt()).abs() < 1e-12, "{beta} is not √{variance}");
    }
}

/// Where the shortcut is the block's own input, nothing begins anew.
#[test]
fn variance_goes_on_through_a_stage_of_the_same_shape() {
    let mut config = preset("nf-wrn-10-1").expect("a preset");
    let first = config.stages[0];
    config.stages.insert(1, first);
    let variances = config.predicted_variances();
    assert_eq!(variances.len(), 4);
    for (found, expected) in variances.iter().zip([1.04, 1.08, 1.04, 1.04]) {
        assert!((found - expected).abs() < 1e-12, "{variances:?}");
    }
}

#[test]
fn drop_rates_rise_as_each_code_has_it() {
    let rates = f0().drop_rates();
    assert_eq!((rates[0], rates[6]), (0.0, 0.125));
    assert!(rates[11] < 0.25);
    let mut timm = f0();
    timm.stochastic_depth.rescale = true;
    assert_eq!(timm.drop_rates()[11], 0.25);
}

#[test]
fn a_configuration_comes_back_from_toml() {
    for name in crate::images::presets::names() {
        let config = preset(name).expect("a preset");
        let text = toml::to_string(&config).expect("every field has a TOML form");
        assert_eq!(toml::from_str::<ImageConfig>(&text).expect(name), config);
    }
}

#[track_caller]
fn refused(change: impl FnOnce(&mut ImageConfig), expected: &str) {
    let mut config = f0();
    change(&mut config);
    let text = toml::to_string(&config).expect("every field has a TOML form");
    let error = toml::from_str::<ImageConfig>(&text).expect_err("it is not sound").to_string();
    assert!(error.contains(expected), "{error}");
}

#[test]
fn unsound_configurations_are_refused_by_field() {
    refused(|it| it.classes = 0, "classes is 0; 1 to 65536 is supported");
    refused(|it| it.stages[1].stride = 3, "stages[1].stride is 3; 1 to 2 is supported");
    refused(|it| it.stages.clear(), "stages is 0; 1 to 16");
    refused(
        |it| it.stages[2].group_width = 100,
        "stages[2].group_width is 100, which does not divide",
    );
    refused(|it| it.dropout = 1.0, "dropout is 1; it must be in 0..1");
    refused(|it| it.alpha = 0.0, "alpha is 0");
    refused(|it| it.stem_width = 0, "stem_width is 0");
    let group = |it: &mut ImageConfig| {
        it.norm = Norm::Group;
        it.stages[0].width = 250;
    };
    refused(group, "stages[0].width is 250, which the 16 groups");
    let zero_gain = |it: &mut ImageConfig| {
        it.branch_end = super::BranchEnd::ZeroGain;
        it.standardise = Standardise::Off;
    };
    refused(zero_gain, "branch_end = \"zero-gain\" asks for gains in the weights, but");
    let in_weights = |it: &mut ImageConfig| {
        it.gain_place = super::GainPlace::Weight;
        it.standardise = Standardise::Off;
    };
    refused(in_weights, "gain_place = \"weight\" asks for gains in the weights, but");
    let stem = |it: &mut ImageConfig| {
        it.norm = Norm::Group;
        it.stem_width = 24;
    };
    refused(stem, "stem_width is 24, which the 16 groups");
    let basic = |it: &mut ImageConfig| it.block = super::BlockForm::Basic;
    refused(
        basic,
        "stages[0].first_middle is 128, but 256 is what blocks of block = \"basic\" have",
    );
    let share = |it: &mut ImageConfig| {
        let Attention::SqueezeExcite { ratio, .. } = &mut it.attention else { panic!("F0 has it") };
        *ratio = 0.0;
    };
    refused(share, "attention.ratio is 0");
}
