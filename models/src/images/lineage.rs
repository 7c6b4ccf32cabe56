//! What networks without normalisation have in common in the codes that published them.

use crate::images::{
    activation::{Activation, Gains},
    config::{
        Attention, Beta, BlockForm, BranchEnd, GainPlace, HeadInit, ImageConfig, ImageFamily, Norm,
        Padding, Shortcut, Standardise, Stem, StochasticDepth,
    },
};

/// Classes of ImageNet's challenge.
const IMAGENET_CLASSES: u32 = 1000;

/// A network of `family` as Google DeepMind's code has them, without stages; the simplest of each part.
pub(crate) fn deepmind(family: ImageFamily) -> ImageConfig {
    ImageConfig {
        family,
        classes: IMAGENET_CLASSES,
        activation: Activation::Relu,
        gains: Gains::Deepmind,
        gain_place: GainPlace::Activation,
        standardise: Standardise::Max,
        norm: Norm::Off,
        padding: Padding::Same,
        beta: Beta::Predicted,
        alpha: 0.2,
        branch_end: BranchEnd::SkipInit,
        block: BlockForm::Bottleneck,
        shortcut: Shortcut::Averaged,
        stem: Stem::Three,
        stem_width: 64,
        head_width: None,
        head_init: HeadInit::Normal,
        attention: Attention::Off,
        dropout: 0.0,
        stochastic_depth: StochasticDepth { rate: 0.1, rescale: false },
        stages: Vec::new(),
    }
}

/// The network as timm has those that are not Google DeepMind's: gains in the weights, symmetric padding, no
/// SkipInit, nothing dropped unless asked for.
pub(crate) fn timm(config: ImageConfig) -> ImageConfig {
    ImageConfig {
        gain_place: GainPlace::Weight,
        standardise: Standardise::Add,
        padding: Padding::Symmetric,
        branch_end: BranchEnd::ZeroGain,
        dropout: 0.0,
        stochastic_depth: StochasticDepth { rate: 0.0, rescale: true },
        ..config
    }
}
