//! NF-RegNets (Brock, De and Smith 2021, arXiv:2101.08692, §5 and appendix), and timm's reading of them.

use crate::images::{
    activation::Activation,
    config::{Attention, AttentionPlace, HeadInit, ImageConfig, ImageFamily, Stage},
    layers::rounded,
    lineage::{deepmind, timm},
};

/// Channels of a group.
const GROUP_WIDTH: u32 = 8;

/// Channels between blocks before all are taken to three quarters, blocks of each stage, and the share
/// of the head's inputs that is dropped.
const LEVELS: [([u32; 4], [u32; 4], f64); 6] = [
    ([48, 104, 208, 440], [1, 3, 6, 6], 0.2),
    ([48, 104, 208, 440], [2, 4, 7, 7], 0.2),
    ([56, 112, 232, 488], [2, 4, 8, 8], 0.3),
    ([56, 128, 248, 528], [2, 5, 9, 9], 0.3),
    ([64, 144, 288, 616], [2, 6, 11, 11], 0.4),
    ([80, 168, 336, 704], [3, 7, 14, 14], 0.4),
];

/// NF-RegNet-B`level`.
pub(crate) fn nf_regnet(level: u32) -> ImageConfig {
    let (channels, depths, dropout) = LEVELS[level as usize];
    let three_quarters = |it: u32| it * 3 / 4;
    let middle = |inputs: u32| inputs * 9 / 4 / GROUP_WIDTH * GROUP_WIDTH;
    let widths = channels.map(three_quarters);
    let first = widths[0] / GROUP_WIDTH * GROUP_WIDTH;
    ImageConfig {
        activation: Activation::Silu,
        stem_width: widths[0],
        head_width: Some(1280 * widths[3] / 440),
        head_init: HeadInit::Zeros,
        attention: squeeze_excite(1),
        dropout,
        stages: stages(widths, depths, first, middle),
        ..deepmind(ImageFamily::NfRegnet)
    }
}

/// timm's `nf_regnet_b<level>`: channels rounded to multiples of 8.
pub(crate) fn timm_nf_regnet(level: u32) -> ImageConfig {
    let (channels, depths, _) = LEVELS[level as usize];
    let divisible = |extent: f64| {
        let nearest = rounded(extent, 8);
        // Not below nine tenths of what was asked for.
        if f64::from(nearest) < 0.9 * extent { nearest + 8 } else { nearest }
    };
    let widths = channels.map(|it| divisible(f64::from(it) * 0.75));
    let middle = |inputs: u32| divisible(f64::from(inputs) * 2.25);
    let features = 1280 * channels[3] / 440;
    ImageConfig {
        stem_width: widths[0],
        head_width: Some(divisible(0.75 * f64::from(features))),
        head_init: HeadInit::Normal,
        attention: squeeze_excite(8),
        stages: stages(widths, depths, divisible(f64::from(widths[0])), middle),
        ..timm(nf_regnet(level))
    }
}

fn squeeze_excite(multiple: u32) -> Attention {
    Attention::SqueezeExcite { place: AttentionPlace::Middle, ratio: 0.5, multiple }
}

/// Blocks expand from what they take; the very first one has `first` channels within.
fn stages(
    widths: [u32; 4],
    depths: [u32; 4],
    first: u32,
    middle: impl Fn(u32) -> u32,
) -> Vec<Stage> {
    let stage = |index: usize| Stage {
        depth: depths[index],
        width: widths[index],
        stride: 2,
        first_middle: if index == 0 { first } else { middle(widths[index - 1]) },
        middle: middle(widths[index]),
        group_width: GROUP_WIDTH,
    };
    (0..4).map(stage).collect()
}
