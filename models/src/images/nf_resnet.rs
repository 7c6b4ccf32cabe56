//! NF-ResNets (Brock, De and Smith 2021, arXiv:2101.08692), what they are compared with, and timm's
//! reading of them.

use crate::images::{
    activation::Gains,
    config::{Beta, BranchEnd, ImageConfig, ImageFamily, Norm, Shortcut, Stage, Standardise, Stem},
    lineage::{deepmind, timm},
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
        shortcut: Shortcut::Strided,
        stem: Stem::SevenPool,
        dropout: 0.25,
        stages: depths.into_iter().enumerate().map(stage).collect(),
        ..deepmind(ImageFamily::NfResnet)
    }
}

/// timm's `nf_resnet<depth>`: with averaged shortcuts.
pub(crate) fn timm_nf_resnet(depths: [u32; 4]) -> ImageConfig {
    ImageConfig { shortcut: Shortcut::Averaged, ..timm(nf_resnet(depths)) }
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
