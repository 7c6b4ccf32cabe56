//! The classifiers that have a name.

#[cfg(test)]
mod tests;

use crate::images::{
    config::{ImageConfig, Norm},
    nf_regnet::{nf_regnet, timm_nf_regnet},
    nf_resnet::{bare, nf_resnet, normalised, timm_nf_resnet, unstandardised},
    nfnet::{
        Middle, nfnet, nfnet_plus, nfnet_small, timm_dm_nfnet, timm_nfnet, timm_nfnet_light,
        timm_test_nfnet,
    },
    preprocessing::{Interpolation, Preprocessing, Resize},
    wrn::{nf_wrn, wrn},
};

/// What makes a preset.
type Make = fn() -> ImageConfig;

/// Every preset, in the order in which they are listed to who asks for one that there is not; those of timm
/// have timm's names.
const PRESETS: &[(&str, Make, Shown)] = &[
    ("nfnet-f0", || nfnet(0), margin(256)),
    ("nfnet-f1", || nfnet(1), margin(320)),
    ("nfnet-f2", || nfnet(2), margin(352)),
    ("nfnet-f3", || nfnet(3), margin(416)),
    ("nfnet-f4", || nfnet(4), margin(512)),
    ("nfnet-f5", || nfnet(5), margin(544)),
    ("nfnet-f6", || nfnet(6), margin(576)),
    ("nfnet-f7", || nfnet(7), margin(608)),
    ("nfnet-f3+", || nfnet_plus(3, Middle::Half), margin(416)),
    ("nfnet-f4+", || nfnet_plus(4, Middle::Half), margin(512)),
    ("nfnet-f7+", || nfnet_plus(7, Middle::Half), margin(608)),
    ("nfnet-f3+-released", || nfnet_plus(3, Middle::Released), margin(416)),
    ("nfnet-f4+-released", || nfnet_plus(4, Middle::Released), margin(512)),
    ("nfnet-f7+-released", || nfnet_plus(7, Middle::Released), margin(608)),
    ("nfnet-small", nfnet_small, SMALL),
    ("nf-resnet-50", || nf_resnet([3, 4, 6, 3]), margin(224)),
    ("nf-resnet-101", || nf_resnet([3, 4, 23, 3]), margin(224)),
    ("nf-resnet-152", || nf_resnet([3, 8, 36, 3]), margin(224)),
    ("nf-resnet-200", || nf_resnet([3, 24, 36, 3]), margin(224)),
    ("nf-resnet-288", || nf_resnet([24, 24, 24, 24]), margin(224)),
    ("nf-resnet-50-unstandardised", || unstandardised(nf_resnet([3, 4, 6, 3])), margin(224)),
    ("bn-resnet-50", || normalised(nf_resnet([3, 4, 6, 3])), margin(224)),
    ("bare-resnet-50", || bare(nf_resnet([3, 4, 6, 3])), margin(224)),
    ("nf-regnet-b0", || nf_regnet(0), margin(224)),
    ("nf-regnet-b1", || nf_regnet(1), margin(256)),
    ("nf-regnet-b2", || nf_regnet(2), margin(272)),
    ("nf-regnet-b3", || nf_regnet(3), margin(320)),
    ("nf-regnet-b4", || nf_regnet(4), margin(384)),
    ("nf-regnet-b5", || nf_regnet(5), margin(456)),
    ("wrn-16-4", || wrn(16, 4, Norm::Batch), SMALL),
    ("wrn-16-4-group", || wrn(16, 4, Norm::Group), SMALL),
    ("wrn-16-1", || wrn(16, 1, Norm::Batch), SMALL),
    ("wrn-16-1-bare", || wrn(16, 1, Norm::Off), SMALL),
    ("nf-wrn-16-1", || nf_wrn(16, 1), SMALL),
    ("wrn-10-1-bare", || wrn(10, 1, Norm::Off), SMALL),
    ("nf-wrn-10-1", || nf_wrn(10, 1), SMALL),
    ("nf-wrn-16-4", || nf_wrn(16, 4), SMALL),
    ("timm/dm_nfnet_f0", || timm_dm_nfnet(0), squash(256, 0.9)),
    ("timm/dm_nfnet_f1", || timm_dm_nfnet(1), squash(320, 0.91)),
    ("timm/dm_nfnet_f2", || timm_dm_nfnet(2), squash(352, 0.92)),
    ("timm/dm_nfnet_f3", || timm_dm_nfnet(3), squash(416, 0.94)),
    ("timm/dm_nfnet_f4", || timm_dm_nfnet(4), squash(512, 0.951)),
    ("timm/dm_nfnet_f5", || timm_dm_nfnet(5), squash(544, 0.954)),
    ("timm/dm_nfnet_f6", || timm_dm_nfnet(6), squash(576, 0.956)),
    ("timm/nfnet_f0", || timm_nfnet(0), crop(256, 0.9)),
    ("timm/nfnet_f1", || timm_nfnet(1), crop(320, 0.9)),
    ("timm/nfnet_f2", || timm_nfnet(2), crop(352, 0.9)),
    ("timm/nfnet_f3", || timm_nfnet(3), crop(416, 0.9)),
    ("timm/nfnet_f4", || timm_nfnet(4), crop(512, 0.9)),
    ("timm/nfnet_f5", || timm_nfnet(5), crop(544, 0.9)),
    ("timm/nfnet_f6", || timm_nfnet(6), crop(576, 0.9)),
    ("timm/nfnet_f7", || timm_nfnet(7), crop(608, 0.9)),
    ("timm/nfnet_l0", || timm_nfnet_light(0, false), crop(288, 1.0)),
    ("timm/eca_nfnet_l0", || timm_nfnet_light(0, true), crop(288, 1.0)),
    ("timm/eca_nfnet_l1", || timm_nfnet_light(1, true), crop(320, 1.0)),
    ("timm/eca_nfnet_l2", || timm_nfnet_light(2, true), crop(384, 1.0)),
    ("timm/eca_nfnet_l3", || timm_nfnet_light(3, true), crop(448, 0.9)),
    ("timm/nf_resnet26", || timm_nf_resnet([2, 2, 2, 2]), crop(224, 0.9)),
    ("timm/nf_resnet50", || timm_nf_resnet([3, 4, 6, 3]), crop(288, 0.94)),
    ("timm/nf_resnet101", || timm_nf_resnet([3, 4, 23, 3]), crop(224, 0.9)),
    ("timm/nf_regnet_b0", || timm_nf_regnet(0), crop(256, 0.9)),
    ("timm/nf_regnet_b1", || timm_nf_regnet(1), crop(288, 0.9)),
    ("timm/nf_regnet_b2", || timm_nf_regnet(2), crop(272, 0.9)),
    ("timm/nf_regnet_b3", || timm_nf_regnet(3), crop(320, 0.9)),
    ("timm/nf_regnet_b4", || timm_nf_regnet(4), crop(384, 0.9)),
    ("timm/nf_regnet_b5", || timm_nf_regnet(5), crop(456, 0.9)),
    ("timm/test_nfnet", timm_test_nfnet, HALF),
];

/// Names of all presets.
pub fn names() -> impl Iterator<Item = &'static str> {
    PRESETS.iter().map(|(name, ..)| *name)
}

/// The configuration called `name`; none if there is no such preset.
pub fn preset(name: &str) -> Option<ImageConfig> {
    PRESETS.iter().find(|(it, ..)| *it == name).map(|(_, make, _)| make())
}

/// What the classifier called `name` is tested with, or what its like are; none if there is no such
/// preset.
pub fn input(name: &str) -> Option<Preprocessing> {
    PRESETS.iter().find(|(it, ..)| *it == name).map(|(.., shown)| shown.preprocessing())
}

/// What small classifiers are tested with: 32 pixels of each side, all of the picture.
pub fn small_input() -> Preprocessing {
    SMALL.preprocessing()
}

/// What a network is shown of a picture.
struct Shown {
    /// Pixels of each side.
    size: u32,
    crop_share: f64,
    resize: Resize,
    mean: [f32; 3],
    std: [f32; 3],
}

impl Shown {
    fn preprocessing(&self) -> Preprocessing {
        Preprocessing {
            height: self.size,
            width: self.size,
            resize: self.resize,
            crop_share: self.crop_share,
            interpolation: Interpolation::Bicubic,
            mean: self.mean,
            std: self.std,
        }
    }
}

const fn crop(size: u32, crop_share: f64) -> Shown {
    // Mean and spread of ImageNet's pictures.
    let (mean, std) = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]);
    Shown { size, crop_share, resize: Resize::Crop, mean, std }
}

const fn squash(size: u32, crop_share: f64) -> Shown {
    Shown { resize: Resize::Squash, ..crop(size, crop_share) }
}

/// As Google DeepMind's code does it: squashed to 32 pixels more than are shown.
const fn margin(size: u32) -> Shown {
    squash(size, size as f64 / (size + 32) as f64)
}

/// Whole pictures of 32 pixels.
const SMALL: Shown = squash(32, 1.0);

/// What timm's model for tests is shown.
const HALF: Shown = Shown { mean: [0.5; 3], std: [0.5; 3], ..crop(160, 0.95) };
