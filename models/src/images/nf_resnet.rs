//! NF-ResNets (Brock, De and Smith 2021, arXiv:2101.08692), what they are compared with, and timm's
//! reading of them.

use crate::images::{
    activation::{Activation, Gains},
    config::{
        Attention, Beta, BlockForm, BranchEnd, GainPlace, HeadInit, ImageConfig, ImageFamily, Norm,
        Padding, Shortcut, Stage, Standardise, Stem, StochasticDepth,
    },
    nfnet::IMAGENET_CLASSES,
};

const WIDTHS: [u32; 4] = [256, 512, 1024, 2048];

/// The network with this many blocks in each stage.
pub(crate) fn nf_resnet(depths: [u32; 4]) -> ImageConfig {
    let stage = |(index, depth)| Stage {
        depth,
        width: WIDTHS[index],
        stride: if index == 0 { 1 } else { 2 },
        first_middle: WIDTHS[index] / 4,
        middle: WIDTHS[index] / 4,
        group_width: 0,
    };
    ImageConfig {
        family: ImageFamily::NfResnet,
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
        shortcut: Shortcut::Strided,
        stem: Stem::SevenPool,
        stem_width: 64,
        head_width: None,
        head_init: HeadInit::Normal,
        attention: Attention::Off,
        dropout: 0.25,
        stochastic_depth: StochasticDepth { rate: 0.1, rescale: false },
        stages: depths.into_iter().enumerate().map(stage).collect(),
    }
}

/// timm's `nf_resnet<depth>`: gains in the weights, symmetric padding, averaged shortcuts, no SkipInit.
pub(crate) fn timm_nf_resnet(depths: [u32; 4]) -> ImageConfig {
    ImageConfig {
        gain_place: GainPlace::Weight,
        standardise: Standardise::Add,
        padding: Padding::Symmetric,
        branch_end: BranchEnd::ZeroGain,
        shortcut: Shortcut::Averaged,
        dropout: 0.0,
        stochastic_depth: StochasticDepth { rate: 0.0, rescale: true },
        ..nf_resnet(depths)
    }
}

/// The same network without standardised weights: its means grow with depth.
pub fn unstandardised(config: ImageConfig) -> ImageConfig {
    ImageConfig { standardise: Standardise::Off, ..config }
}

/// The same network with batch normalisation in the place of all that makes it do without.
pub fn normalised(config: ImageConfig) -> ImageConfig {
    ImageConfig { norm: Norm::Batch, ..bare(config) }
}

/// The same network with neither.
pub fn bare(config: ImageConfig) -> ImageConfig {
    ImageConfig {
        gains: Gains::One,
        standardise: Standardise::Off,
        beta: Beta::One,
        alpha: 1.0,
        branch_end: BranchEnd::Plain,
        ..config
    }
}
