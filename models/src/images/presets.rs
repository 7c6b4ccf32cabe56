//! The classifiers that have a name.

#[cfg(test)]
mod tests;

use crate::images::{
    config::{ImageConfig, Norm},
    nf_regnet::{nf_regnet, timm_nf_regnet},
    nf_resnet::{bare, nf_resnet, normalised, timm_nf_resnet},
    nfnet::{
        Middle, nfnet, nfnet_plus, timm_dm_nfnet, timm_nfnet, timm_nfnet_light, timm_test_nfnet,
    },
    wrn::{nf_wrn, wrn},
};

/// What makes a preset.
type Make = fn() -> ImageConfig;

/// Every preset, in the order in which `--help` lists them; those of timm have timm's names.
const PRESETS: &[(&str, Make)] = &[
    ("nfnet-f0", || nfnet(0)),
    ("nfnet-f1", || nfnet(1)),
    ("nfnet-f2", || nfnet(2)),
    ("nfnet-f3", || nfnet(3)),
    ("nfnet-f4", || nfnet(4)),
    ("nfnet-f5", || nfnet(5)),
    ("nfnet-f6", || nfnet(6)),
    ("nfnet-f7", || nfnet(7)),
    ("nfnet-f3+", || nfnet_plus(3, Middle::Half)),
    ("nfnet-f4+", || nfnet_plus(4, Middle::Half)),
    ("nfnet-f7+", || nfnet_plus(7, Middle::Half)),
    ("nfnet-f3+-released", || nfnet_plus(3, Middle::Released)),
    ("nfnet-f4+-released", || nfnet_plus(4, Middle::Released)),
    ("nfnet-f7+-released", || nfnet_plus(7, Middle::Released)),
    ("nf-resnet-50", || nf_resnet([3, 4, 6, 3])),
    ("nf-resnet-101", || nf_resnet([3, 4, 23, 3])),
    ("nf-resnet-152", || nf_resnet([3, 8, 36, 3])),
    ("nf-resnet-200", || nf_resnet([3, 24, 36, 3])),
    ("nf-resnet-288", || nf_resnet([24, 24, 24, 24])),
    ("bn-resnet-50", || normalised(nf_resnet([3, 4, 6, 3]))),
    ("bare-resnet-50", || bare(nf_resnet([3, 4, 6, 3]))),
    ("nf-regnet-b0", || nf_regnet(0)),
    ("nf-regnet-b1", || nf_regnet(1)),
    ("nf-regnet-b2", || nf_regnet(2)),
    ("nf-regnet-b3", || nf_regnet(3)),
    ("nf-regnet-b4", || nf_regnet(4)),
    ("nf-regnet-b5", || nf_regnet(5)),
    ("wrn-16-4", || wrn(16, 4, Norm::Batch)),
    ("wrn-16-4-group", || wrn(16, 4, Norm::Group)),
    ("wrn-10-1-bare", || wrn(10, 1, Norm::Off)),
    ("nf-wrn-10-1", || nf_wrn(10, 1)),
    ("nf-wrn-16-4", || nf_wrn(16, 4)),
    ("timm/dm_nfnet_f0", || timm_dm_nfnet(0)),
    ("timm/dm_nfnet_f1", || timm_dm_nfnet(1)),
    ("timm/dm_nfnet_f2", || timm_dm_nfnet(2)),
    ("timm/dm_nfnet_f3", || timm_dm_nfnet(3)),
    ("timm/dm_nfnet_f4", || timm_dm_nfnet(4)),
    ("timm/dm_nfnet_f5", || timm_dm_nfnet(5)),
    ("timm/dm_nfnet_f6", || timm_dm_nfnet(6)),
    ("timm/nfnet_f0", || timm_nfnet(0)),
    ("timm/nfnet_f1", || timm_nfnet(1)),
    ("timm/nfnet_f2", || timm_nfnet(2)),
    ("timm/nfnet_f3", || timm_nfnet(3)),
    ("timm/nfnet_f4", || timm_nfnet(4)),
    ("timm/nfnet_f5", || timm_nfnet(5)),
    ("timm/nfnet_f6", || timm_nfnet(6)),
    ("timm/nfnet_f7", || timm_nfnet(7)),
    ("timm/nfnet_l0", || timm_nfnet_light(0, false)),
    ("timm/eca_nfnet_l0", || timm_nfnet_light(0, true)),
    ("timm/eca_nfnet_l1", || timm_nfnet_light(1, true)),
    ("timm/eca_nfnet_l2", || timm_nfnet_light(2, true)),
    ("timm/eca_nfnet_l3", || timm_nfnet_light(3, true)),
    ("timm/nf_resnet26", || timm_nf_resnet([2, 2, 2, 2])),
    ("timm/nf_resnet50", || timm_nf_resnet([3, 4, 6, 3])),
    ("timm/nf_resnet101", || timm_nf_resnet([3, 4, 23, 3])),
    ("timm/nf_regnet_b0", || timm_nf_regnet(0)),
    ("timm/nf_regnet_b1", || timm_nf_regnet(1)),
    ("timm/nf_regnet_b2", || timm_nf_regnet(2)),
    ("timm/nf_regnet_b3", || timm_nf_regnet(3)),
    ("timm/nf_regnet_b4", || timm_nf_regnet(4)),
    ("timm/nf_regnet_b5", || timm_nf_regnet(5)),
    ("timm/test_nfnet", timm_test_nfnet),
];

/// Names of all presets.
pub fn names() -> impl Iterator<Item = &'static str> {
    PRESETS.iter().map(|(name, _)| *name)
}

/// The configuration called `name`; none if there is no such preset.
pub fn preset(name: &str) -> Option<ImageConfig> {
    PRESETS.iter().find(|(it, _)| *it == name).map(|(_, make)| make())
}
