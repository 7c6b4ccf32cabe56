//! Wide residual networks (Zagoruyko and Komodakis 2016, arXiv:1605.07146) for pictures of 32 pixels.

use crate::images::{
    activation::Gains,
    config::{
        Beta, BlockForm, BranchEnd, ImageConfig, ImageFamily, Norm, Padding, Shortcut, Stage,
        Standardise, Stem, StochasticDepth,
    },
    lineage::deepmind,
    nf_resnet::bare,
};

/// WRN-`depth`-`factor`, of `(depth - 4) / 6` blocks a stage, normalised by `norm`.
pub(crate) fn wrn(depth: u32, factor: u32, norm: Norm) -> ImageConfig {
    let stage = |(index, width): (usize, u32)| Stage {
        depth: (depth - 4) / 6,
        width: width * factor,
        stride: if index == 0 { 1 } else { 2 },
        first_middle: width * factor,
        middle: width * factor,
        group_width: 0,
    };
    let config = ImageConfig {
        classes: 10,
        norm,
        padding: Padding::Symmetric,
        block: BlockForm::Basic,
        shortcut: Shortcut::Strided,
        stem: Stem::Small,
        stem_width: 16,
        stochastic_depth: StochasticDepth { rate: 0.0, rescale: false },
        stages: [16, 32, 64].into_iter().enumerate().map(stage).collect(),
        ..deepmind(ImageFamily::Wrn)
    };
    bare(config)
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
