//! Every number that fixes an image classifier, and every point in which published codes differ,
//! parsed into one value: an [`ImageConfig`] that exists is sound.

#[cfg(test)]
mod tests;

use std::iter;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};
use thiserror::Error;

use crate::images::activation::{Activation, Gains};

/// A residual network with pre-activation that classifies images of three channels.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct ImageConfig {
    pub family: ImageFamily,
    /// `K`.
    pub classes: u32,
    pub activation: Activation,
    pub gains: Gains,
    pub gain_place: GainPlace,
    pub standardise: Standardise,
    pub norm: Norm,
    pub padding: Padding,
    pub beta: Beta,
    /// `α`: what a residual branch is multiplied by.
    pub alpha: f64,
    pub branch_end: BranchEnd,
    pub block: BlockForm,
    pub shortcut: Shortcut,
    pub stem: Stem,
    /// Channels after the stem.
    pub stem_width: u32,
    /// Channels of the 1×1 convolution before the head; none if there is no such convolution.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head_width: Option<u32>,
    pub head_init: HeadInit,
    pub attention: Attention,
    /// Share of the head's inputs that training drops.
    pub dropout: f64,
    pub stochastic_depth: StochasticDepth,
    pub stages: Vec<Stage>,
}

/// Which paper a network comes from; says nothing that the other fields do not.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ImageFamily {
    /// Brock, De, Smith and Simonyan 2021, arXiv:2102.06171.
    Nfnet,
    /// Brock, De and Smith 2021, arXiv:2101.08692.
    NfResnet,
    /// The same, §5.
    NfRegnet,
    /// Zagoruyko and Komodakis 2016, arXiv:1605.07146.
    Wrn,
}

/// Where the gain of an activation is multiplied in.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum GainPlace {
    /// After each activation.
    Activation,
    /// Into each standardised weight, those that follow no activation included.
    Weight,
}

/// How weights of convolutions are standardised: over the `N` inputs of each output, with the variance
/// of a population.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Standardise {
    /// Not at all.
    Off,
    /// `(w - μ) / √max(N·σ², 1e-4)`, as Google DeepMind's code does.
    Max,
    /// `(w - μ) / √(N·(σ² + 1e-5))`, as timm does.
    Add,
}

/// What normalises activations.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Norm {
    /// Nothing.
    Off,
    /// Each channel over the batch (Ioffe and Szegedy 2015, arXiv:1502.03167).
    Batch,
    /// Sixteen groups of channels of each image (Wu and He 2018, arXiv:1803.08494).
    Group,
}

/// Channels of a group norm come in this many groups.
pub const NORM_GROUPS: u32 = 16;

/// What is around a map where a kernel reaches over its edge.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Padding {
    /// As much as makes `⌈extent / stride⌉` outputs, the odd one at the bottom and on the right.
    Same,
    /// Half of the kernel on each side.
    Symmetric,
    /// Half of the kernel on each side, with what is on the other side of the map: has no edges, so
    /// that what theory says of variances holds everywhere.
    Circular,
}

/// What a block's input is divided by.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Beta {
    /// The standard deviation that it has at the beginning.
    Predicted,
    One,
}

/// What is learnt at the end of a residual branch, so that it may begin at nothing.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum BranchEnd {
    /// One number that begins at 0 (SkipInit; De and Smith 2020, arXiv:2002.10444).
    SkipInit,
    /// The last convolution's gains, which begin at 0.
    ZeroGain,
    /// Nothing.
    Plain,
}

/// Convolutions of a residual branch.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum BlockForm {
    /// 3×3 with the stride, 3×3.
    Basic,
    /// 1×1, 3×3 with the stride, 1×1.
    Bottleneck,
    /// 1×1, 3×3 with the stride, 3×3, 1×1.
    LongBottleneck,
}

/// What goes beside a residual branch that changes the shape.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Shortcut {
    /// A 1×1 convolution with the stride.
    Strided,
    /// The mean of 2×2, where there is a stride, and a 1×1 convolution.
    Averaged,
}

/// What meets the pixels.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stem {
    /// One 3×3, stride 1: for pictures of 32 pixels.
    #[serde(rename = "3x3-stride-1")]
    Small,
    /// One 3×3, stride 2.
    #[serde(rename = "3x3")]
    Three,
    /// One 7×7, stride 2, and the maximum of 3×3, stride 2.
    #[serde(rename = "7x7-pool")]
    SevenPool,
    /// Four 3×3 of 16, 32, 64 and all of the channels, strides 2, 1, 1, 2.
    #[serde(rename = "3x3-quad")]
    Quad,
}

/// How the head begins.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum HeadInit {
    /// Zero-mean normal with a standard deviation of 0.01.
    Normal,
    Zeros,
}

/// What weighs the channels of a residual branch.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Attention {
    Off,
    /// Squeeze and excite (Hu et al. 2018, arXiv:1709.01507), doubled.
    SqueezeExcite {
        place: AttentionPlace,
        /// Hidden channels as a share of the channels that are weighed.
        ratio: f64,
        /// Hidden channels are rounded to a multiple of this.
        multiple: u32,
    },
    /// Efficient channel attention (Wang et al. 2020, arXiv:1910.03151), doubled.
    Eca {
        place: AttentionPlace,
    },
}

/// Where channels are weighed.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum AttentionPlace {
    /// Before the last convolution's activation.
    Middle,
    /// After the last convolution.
    Last,
}

/// Residual branches that training leaves out, image by image (Huang et al. 2016, arXiv:1603.09382).
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct StochasticDepth {
    /// Share of the last block, which the others approach in a line from 0.
    pub rate: f64,
    /// Whether the last block has all of `rate` and branches that stay grow by `1 / (1 - rate)`, as in
    /// timm; in Google DeepMind's code block `l` of `L` has `rate · l / L`, and nothing grows.
    pub rescale: bool,
}

/// Blocks of one resolution.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Stage {
    /// Blocks.
    pub depth: u32,
    /// Channels between blocks.
    pub width: u32,
    /// Of the first block.
    pub stride: u32,
    /// Channels within the first block.
    pub first_middle: u32,
    /// Channels within the other blocks.
    pub middle: u32,
    /// Channels of a group of the inner 3×3 convolutions; 0 if they are dense.
    pub group_width: u32,
}

/// Why a configuration is refused.
#[derive(Debug, Error, PartialEq)]
pub enum ImageConfigError {
    #[error("{field} is {found}; {min} to {max} is supported")]
    Range { field: String, found: u32, min: u32, max: u32 },
    #[error("{field} is {found}; it must be in 0..1")]
    Share { field: &'static str, found: f64 },
    #[error("alpha is {found}; it must be finite and above 0")]
    Alpha { found: f64 },
    #[error("stages[{stage}].group_width is {found}, which does not divide {field} {width}")]
    Groups { stage: usize, found: u32, field: &'static str, width: u32 },
    #[error("{field} is {found}, which the {groups} groups of norm = \"group\" do not divide")]
    NormGroups { field: String, found: u32, groups: u32 },
    #[error("{field} is {found}, but {expected} is what blocks of block = \"basic\" have")]
    Basic { field: String, found: u32, expected: u32 },
    #[error("{field} asks for gains in the weights, but standardise is \"off\": there are none")]
    NoGain { field: &'static str },
}

impl ImageConfig {
    /// The same configuration if it is sound, for those who put one together field by field.
    ///
    /// # Errors
    /// [`ImageConfigError`], naming the field.
    pub fn checked(self) -> Result<Self, ImageConfigError> {
        within("classes", self.classes, EXTENT_MAX)?;
        within("stem_width", self.stem_width, EXTENT_MAX)?;
        if let Some(width) = self.head_width {
            within("head_width", width, EXTENT_MAX)?;
        }
        let shares =
            [("dropout", self.dropout), ("stochastic_depth.rate", self.stochastic_depth.rate)];
        if let Some(&(field, found)) = shares.iter().find(|(_, it)| !(0.0..1.0).contains(it)) {
            return Err(ImageConfigError::Share { field, found });
        }
        if !(self.alpha.is_finite() && 0.0 < self.alpha) {
            return Err(ImageConfigError::Alpha { found: self.alpha });
        }
        if let Attention::SqueezeExcite { ratio, multiple, .. } = self.attention {
            within("attention.multiple", multiple, EXTENT_MAX)?;
            if !(0.0 < ratio && ratio <= 1.0) {
                return Err(ImageConfigError::Share { field: "attention.ratio", found: ratio });
            }
        }
        if self.standardise == Standardise::Off {
            if self.branch_end == BranchEnd::ZeroGain {
                return Err(ImageConfigError::NoGain { field: "branch_end = \"zero-gain\"" });
            }
            if self.gain_place == GainPlace::Weight && self.gains != Gains::One {
                return Err(ImageConfigError::NoGain { field: "gain_place = \"weight\"" });
            }
        }
        self.check_norm("stem_width", self.stem_width)?;
        if let Some(width) = self.head_width {
            self.check_norm("head_width", width)?;
        }
        within("stages", u32::try_from(self.stages.len()).unwrap_or(u32::MAX), STAGES_MAX)?;
        for (index, stage) in self.stages.iter().enumerate() {
            self.check_stage(index, stage)?;
        }
        Ok(self)
    }

    fn check_stage(&self, index: usize, stage: &Stage) -> Result<(), ImageConfigError> {
        let name = |field: &str| format!("stages[{index}].{field}");
        within(&name("depth"), stage.depth, DEPTH_MAX)?;
        within(&name("stride"), stage.stride, 2)?;
        let widths = [
            ("width", stage.width),
            ("first_middle", stage.first_middle),
            ("middle", stage.middle),
        ];
        for (field, width) in widths {
            within(&name(field), width, EXTENT_MAX)?;
            if field != "width" && 0 < stage.group_width && !width.is_multiple_of(stage.group_width)
            {
                let found = stage.group_width;
                return Err(ImageConfigError::Groups { stage: index, found, field, width });
            }
            self.check_norm(&name(field), width)?;
        }
        let given = [
            ("first_middle", stage.first_middle, stage.width),
            ("middle", stage.middle, stage.width),
            ("group_width", stage.group_width, 0),
        ];
        match given.into_iter().find(|(_, found, expected)| found != expected) {
            Some((field, found, expected)) if self.block == BlockForm::Basic => {
                Err(ImageConfigError::Basic { field: name(field), found, expected })
            }
            _ => Ok(()),
        }
    }

    fn check_norm(&self, field: &str, width: u32) -> Result<(), ImageConfigError> {
        if self.norm == Norm::Group && !width.is_multiple_of(NORM_GROUPS) {
            let (field, groups) = (field.to_owned(), NORM_GROUPS);
            return Err(ImageConfigError::NormGroups { field, found: width, groups });
        }
        Ok(())
    }

    /// `γ` of every activation.
    pub fn gain(&self) -> f64 {
        self.activation.gain(self.gains)
    }

    /// Blocks of all stages.
    pub fn blocks(&self) -> u32 {
        self.stages.iter().map(|it| it.depth).sum()
    }

    /// `β` of every block, in order: the standard deviation that its input has at the beginning.
    ///
    /// The variance grows by `α²` with each block, and a transition begins anew at 1 (Brock, De and
    /// Smith 2021, arXiv:2101.08692, §3): its own `β` still is that of what came before.
    pub fn betas(&self) -> Vec<f64> {
        let inputs = iter::once(1.0).chain(self.predicted_variances());
        let beta = |variance: f64| if self.beta == Beta::One { 1.0 } else { variance.sqrt() };
        inputs.take(self.blocks() as usize).map(beta).collect()
    }

    /// Variance that each block's output has at the beginning, in order.
    pub fn predicted_variances(&self) -> Vec<f64> {
        let mut variances = Vec::new();
        let (mut variance, mut width) = (1.0, self.stem_width);
        for stage in &self.stages {
            if stage.width != width || stage.stride != 1 {
                variance = 1.0;
            }
            width = stage.width;
            for _ in 0..stage.depth {
                variance += self.alpha.powi(2);
                variances.push(variance);
            }
        }
        variances
    }

    /// Share of images for which each block's branch is left out in training, in order.
    pub fn drop_rates(&self) -> Vec<f64> {
        let StochasticDepth { rate, rescale } = self.stochastic_depth;
        let blocks = self.blocks();
        let last = if rescale { blocks.saturating_sub(1).max(1) } else { blocks };
        (0..blocks).map(|block| rate * f64::from(block) / f64::from(last)).collect()
    }
}

/// Largest number of channels, of classes, of blocks.
const EXTENT_MAX: u32 = 1 << 16;
/// Most blocks of a stage.
const DEPTH_MAX: u32 = 1 << 10;
/// Most stages.
const STAGES_MAX: u32 = 16;

/// Holds a number to 1 and `max`.
fn within(field: &str, found: u32, max: u32) -> Result<(), ImageConfigError> {
    if (1..=max).contains(&found) {
        return Ok(());
    }
    Err(ImageConfigError::Range { field: field.to_owned(), found, min: 1, max })
}

impl<'de> Deserialize<'de> for ImageConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::deserialize(deserializer)?.checked().map_err(D::Error::custom)
    }
}

impl Serialize for ImageConfig {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Self::serialize(self, serializer)
    }
}
