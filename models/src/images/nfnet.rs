//! NFNets (Brock, De, Smith and Simonyan 2021, arXiv:2102.06171): F0 to F7, their wider `+` variants,
//! timm's readings of them, and a small one for pictures of 32 pixels.

use crate::images::{
    activation::{Activation, Gains},
    config::{
        Attention, AttentionPlace, BlockForm, BranchEnd, ImageConfig, ImageFamily, Stage,
        Standardise, Stem, StochasticDepth,
    },
    lineage::{deepmind, timm},
};

/// Blocks of each stage of F0; the others have a multiple of them.
const DEPTHS: [u32; 4] = [1, 2, 6, 3];
const WIDTHS: [u32; 4] = [256, 512, 1536, 1536];
const WIDTHS_PLUS: [u32; 4] = [384, 768, 2048, 2048];
/// Shares of the head's inputs that are dropped, for F0 to F7.
const DROPOUTS: [f64; 8] = [0.2, 0.3, 0.4, 0.4, 0.5, 0.5, 0.5, 0.5];

/// How the channels within a block follow from those between blocks.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Middle {
    /// A half of them, as the paper's parameter counts say.
    Half,
    /// A half of them, less what 128 does not divide, as the released code has it.
    Released,
}

/// NFNet-F`level`.
pub(crate) fn nfnet(level: u32) -> ImageConfig {
    family(level, WIDTHS, Middle::Released)
}

/// NFNet-F`level`+.
pub(crate) fn nfnet_plus(level: u32, middle: Middle) -> ImageConfig {
    family(level, WIDTHS_PLUS, middle)
}

fn family(level: u32, widths: [u32; 4], middle: Middle) -> ImageConfig {
    ImageConfig {
        stem_width: widths[0] / 2,
        head_width: Some(2 * widths[3]),
        stages: stages(level, widths, middle),
        ..base(level)
    }
}

fn stages(level: u32, widths: [u32; 4], middle: Middle) -> Vec<Stage> {
    const GROUP_WIDTH: u32 = 128;
    let stage = |index: usize| {
        let width = widths[index];
        let groups = width / 2 / GROUP_WIDTH;
        let middle = match middle {
            Middle::Half => width / 2,
            Middle::Released => groups * GROUP_WIDTH,
        };
        let stride = if index == 0 { 1 } else { 2 };
        let depth = DEPTHS[index] * (level + 1);
        Stage { depth, width, stride, first_middle: middle, middle, group_width: middle / groups }
    };
    (0..4).map(stage).collect()
}

/// What all have in common in Google DeepMind's code, without stages.
fn base(level: u32) -> ImageConfig {
    ImageConfig {
        activation: Activation::GeluTanh,
        block: BlockForm::LongBottleneck,
        stem: Stem::Quad,
        attention: squeeze_excite(0.5, 1),
        dropout: DROPOUTS[level as usize],
        stochastic_depth: StochasticDepth { rate: 0.25, rescale: false },
        ..deepmind(ImageFamily::Nfnet)
    }
}

fn squeeze_excite(ratio: f64, multiple: u32) -> Attention {
    Attention::SqueezeExcite { place: AttentionPlace::Last, ratio, multiple }
}

/// timm's `dm_nfnet_f<level>`: Google DeepMind's weights under timm's arithmetic; nothing is dropped unless
/// asked for.
pub(crate) fn timm_dm_nfnet(level: u32) -> ImageConfig {
    ImageConfig {
        activation: Activation::Gelu,
        standardise: Standardise::Add,
        attention: squeeze_excite(0.5, 8),
        dropout: 0.0,
        stochastic_depth: StochasticDepth { rate: 0.0, rescale: true },
        ..nfnet(level)
    }
}

/// timm's `nfnet_f<level>`.
pub(crate) fn timm_nfnet(level: u32) -> ImageConfig {
    timm(timm_dm_nfnet(level))
}

/// timm's light variants: `nfnet_l<level>` and, with channel attention, `eca_nfnet_l<level>`.
pub(crate) fn timm_nfnet_light(level: u32, is_eca: bool) -> ImageConfig {
    let stage = |mut stage: Stage| {
        stage.middle = stage.width / 4;
        Stage { first_middle: stage.middle, group_width: 64, ..stage }
    };
    let eca = Attention::Eca { place: AttentionPlace::Last };
    let head_width = if level == 0 { WIDTHS[3] / 2 * 3 } else { WIDTHS[3] * 2 };
    let base = timm_nfnet(level);
    ImageConfig {
        activation: Activation::Silu,
        attention: if is_eca { eca } else { squeeze_excite(0.25, 8) },
        head_width: Some(head_width),
        stages: base.stages.iter().copied().map(stage).collect(),
        ..base
    }
}

/// timm's `test_nfnet`, made for tests.
pub(crate) fn timm_test_nfnet() -> ImageConfig {
    let stage = |(index, width): (usize, u32)| Stage {
        depth: 1,
        width,
        stride: if index == 0 { 1 } else { 2 },
        first_middle: width / 4,
        middle: width / 4,
        group_width: 8,
    };
    ImageConfig {
        head_width: Some(192),
        stages: [32, 64, 96, 128].into_iter().enumerate().map(stage).collect(),
        ..timm_nfnet_light(0, false)
    }
}

/// A small one for pictures of 32 pixels, of blocks with two 3×3 convolutions. It is shallow enough for residual
/// branches that are there from the first step on; with SkipInit and `α = 0.2` it learns far more slowly.
pub(crate) fn nfnet_small() -> ImageConfig {
    let stage = |(index, (depth, width)): (usize, (u32, u32))| Stage {
        depth,
        width,
        stride: if index == 0 { 1 } else { 2 },
        first_middle: width,
        middle: width,
        group_width: 0,
    };
    let stages = [(2, 48), (2, 96), (2, 192)];
    ImageConfig {
        classes: 10,
        activation: Activation::Relu,
        gains: Gains::Exact,
        alpha: 0.5,
        branch_end: BranchEnd::Plain,
        block: BlockForm::Basic,
        stem: Stem::Small,
        stem_width: 48,
        head_width: Some(512),
        attention: squeeze_excite(0.25, 8),
        dropout: 0.0,
        stochastic_depth: StochasticDepth { rate: 0.0, rescale: false },
        stages: stages.into_iter().enumerate().map(stage).collect(),
        ..base(0)
    }
}
