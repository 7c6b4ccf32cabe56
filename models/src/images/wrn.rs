//! Wide residual networks (Zagoruyko and Komodakis 2016, arXiv:1605.07146) for pictures of 32 pixels.

use crate::images::{
    activation::{Activation, Gains},
    config::{
        Attention, Beta, BlockForm, BranchEnd, GainPlace, HeadInit, ImageConfig, ImageFamily, Norm,
        Padding, Shortcut, Stage, Standardise, Stem, StochasticDepth,
    },
};

/// WRN-`depth`-`factor` with `depth = 6n + 4`, or of `n = 1` block a stage and no normalisation at all
/// where nothing is said of `norm`.
pub(crate) fn wrn(depth: u32, factor: u32, norm: Norm) -> ImageConfig {
    let stage = |(index, width): (usize, u32)| Stage {
        depth: (depth - 4) / 6,
        width: width * factor,
        stride: if index == 0 { 1 } else { 2 },
        first_middle: width * factor,
        middle: width * factor,
        group_width: 0,
    };
    ImageConfig {
        family: ImageFamily::Wrn,
        classes: 10,
        activation: Activation::Relu,
        gains: Gains::One,
        gain_place: GainPlace::Activation,
        standardise: Standardise::Off,
        norm,
        padding: Padding::Symmetric,
        beta: Beta::One,
        alpha: 1.0,
        branch_end: BranchEnd::Plain,
        block: BlockForm::Basic,
        shortcut: Shortcut::Strided,
        stem: Stem::Small,
        stem_width: 16,
        head_width: None,
        head_init: HeadInit::Normal,
        attention: Attention::Off,
        dropout: 0.0,
        stochastic_depth: StochasticDepth { rate: 0.0, rescale: false },
        stages: [16, 32, 64].into_iter().enumerate().map(stage).collect(),
    }
}

/// The same blocks without normalisation: standardised weights, `α = 0.2`, SkipInit.
pub(crate) fn nf_wrn(depth: u32, factor: u32) -> ImageConfig {
    ImageConfig {
        gains: Gains::Exact,
        standardise: Standardise::Max,
        beta: Beta::Predicted,
        alpha: 0.2,
        branch_end: BranchEnd::SkipInit,
        ..wrn(depth, factor, Norm::Off)
    }
}
