//! The operations that an image classifier is made of, as [`crate::backend`] has those of a decoder.

use crate::{
    backend::ParameterSpec,
    images::{
        activation::Activation,
        config::{Padding, Standardise},
    },
    path::Path,
};

/// A reading of the equations of a classifier.
///
/// Maps are `[B, C, H, W]`; no operation tells an extent of `B`, `H` or `W`, so one graph takes images
/// of any size.
///
/// # Panics
/// Every operation may panic on operands whose shapes do not fit: shapes are settled by the
/// configuration, so a mismatch is a bug.
pub trait ImageBackend {
    /// Cheap to clone: a handle, an edge of a graph, an extent.
    type Tensor: Clone;

    /// The parameter at `path`, made according to `spec` where it does not exist yet.
    fn parameter(&self, path: &Path, spec: ParameterSpec) -> Self::Tensor;

    /// `factor · gain ⊙ (weight - μ) / s` for `weight` `[O, I, h, w]` and `gain` `[O, 1, 1, 1]`, `μ` and
    /// `s` as [`Standardise`] says.
    fn standardise(
        &self,
        weight: &Self::Tensor,
        gain: &Self::Tensor,
        how: Standardise,
        factor: f64,
    ) -> Self::Tensor;

    /// The cross-correlation of `x` with `weight` `[O, I/groups, h, w]`, plus `bias` `[O]`.
    fn conv2d(
        &self,
        x: &Self::Tensor,
        weight: &Self::Tensor,
        bias: Option<&Self::Tensor>,
        conv: Conv,
    ) -> Self::Tensor;

    /// Mean of each 2×2, stride 2; of what there is of it at the bottom and on the right.
    fn mean_pool(&self, x: &Self::Tensor) -> Self::Tensor;

    /// Maximum of each 3×3, stride 2.
    fn max_pool(&self, x: &Self::Tensor, padding: Padding) -> Self::Tensor;

    /// Mean over each map: `[B, C, 1, 1]`.
    fn global_mean(&self, x: &Self::Tensor) -> Self::Tensor;

    fn activate(&self, x: &Self::Tensor, activation: Activation) -> Self::Tensor;

    fn sigmoid(&self, x: &Self::Tensor) -> Self::Tensor;

    /// `factor · x`.
    fn scale(&self, x: &Self::Tensor, factor: f64) -> Self::Tensor;

    /// `a + b` of one shape.
    fn add(&self, a: &Self::Tensor, b: &Self::Tensor) -> Self::Tensor;

    /// `gate ⊙ x` for `gate` `[B, C, 1, 1]` or a number `[]`.
    fn gate(&self, x: &Self::Tensor, gate: &Self::Tensor) -> Self::Tensor;

    /// Along the channels of `x` `[B, C, 1, 1]`: the cross-correlation with `weight` `[1, 1, n]`, zeros
    /// around.
    fn conv_channels(&self, x: &Self::Tensor, weight: &Self::Tensor) -> Self::Tensor;

    /// `x · weightᵀ + bias` for `x` `[B, C, 1, 1]`, `weight` `[K, C]`, `bias` `[K]`: `[B, K]`.
    fn classify(
        &self,
        x: &Self::Tensor,
        weight: &Self::Tensor,
        bias: &Self::Tensor,
    ) -> Self::Tensor;

    /// `(x - μ) / √(σ² + 1e-5) ⊙ weight + bias`, with the mean and the variance of each channel over the
    /// batch in training, and with their running averages otherwise; all `[C]`.
    fn batch_norm(&self, x: &Self::Tensor, parameters: [&Self::Tensor; 4]) -> Self::Tensor;

    /// The same with mean and variance of `groups` groups of channels of each image.
    fn group_norm(
        &self,
        x: &Self::Tensor,
        parameters: [&Self::Tensor; 2],
        groups: u32,
    ) -> Self::Tensor;

    /// In training, a share of the elements of `x` set to 0 and the others divided by the rest.
    fn dropout(&self, x: &Self::Tensor, _share: f64) -> Self::Tensor {
        x.clone()
    }

    /// In training, a share of the images of `x` set to 0; with `rescale`, the others grow.
    fn drop_branch(&self, x: &Self::Tensor, _share: f64, _rescale: bool) -> Self::Tensor {
        x.clone()
    }

    /// A convolution with its channels weighed and, at the end of a branch, all that scales it there.
    ///
    /// An operation of its own because all of its factors can be had for nothing in a graph.
    fn weighed_conv(&self, x: &Self::Tensor, it: &WeighedConv<'_, Self::Tensor>) -> Self::Tensor {
        weighed_conv_in_parts(self, x, it)
    }

    /// Is shown what some readings look at.
    fn observe(&self, _at: Observed, _x: &Self::Tensor) {}
}

/// What a convolution is, besides its weight.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Conv {
    /// Extent of the kernel, which is a square.
    pub kernel: u32,
    pub stride: u32,
    pub padding: Padding,
    pub groups: u32,
}

/// A convolution and what follows it.
#[derive(Debug)]
pub struct WeighedConv<'a, T> {
    pub weight: &'a T,
    pub bias: Option<&'a T>,
    pub conv: Conv,
    pub attention: ChannelWeights<'a, T>,
    /// What comes next where a branch ends; none where it goes on.
    pub end: Option<BranchScale<'a, T>>,
}

/// What scales a residual branch on its way to the sum.
#[derive(Debug)]
pub struct BranchScale<'a, T> {
    /// The number that is learnt, if there is one.
    pub skip: Option<&'a T>,
    /// `α`.
    pub factor: f64,
    /// Share of images without this branch in training.
    pub drop_share: f64,
    /// Whether the others grow.
    pub rescale: bool,
}

/// How channels are weighed.
#[derive(Debug)]
pub enum ChannelWeights<'a, T> {
    Off,
    /// Weights `[h, C, 1, 1]`, `[C, h, 1, 1]` with their biases.
    SqueezeExcite {
        reduce: [&'a T; 2],
        expand: [&'a T; 2],
    },
    /// Weight `[1, 1, n]`.
    Eca(&'a T),
}

/// [`ImageBackend::weighed_conv`] in other operations.
pub fn weighed_conv_in_parts<B: ImageBackend + ?Sized>(
    backend: &B,
    x: &B::Tensor,
    it: &WeighedConv<'_, B::Tensor>,
) -> B::Tensor {
    let x = backend.conv2d(x, it.weight, it.bias, it.conv);
    let mut x = weigh_channels(backend, &x, &it.attention);
    let Some(end) = &it.end else { return x };
    backend.observe(Observed::Branch, &x);
    if 0.0 < end.drop_share {
        x = backend.drop_branch(&x, end.drop_share, end.rescale);
    }
    if let Some(skip) = end.skip {
        x = backend.gate(&x, skip);
    }
    backend.scale(&x, end.factor)
}

/// `2σ(…)` of each channel's mean, times the channel: at the beginning, twice a half.
fn weigh_channels<B: ImageBackend + ?Sized>(
    backend: &B,
    x: &B::Tensor,
    weights: &ChannelWeights<'_, B::Tensor>,
) -> B::Tensor {
    match channel_logits(backend, x, weights) {
        Some(logits) => backend.scale(&backend.gate(x, &backend.sigmoid(&logits)), 2.0),
        None => x.clone(),
    }
}

/// What channels are weighed by before the sigmoid, `[B, C, 1, 1]`; none if nothing weighs them.
pub fn channel_logits<B: ImageBackend + ?Sized>(
    backend: &B,
    x: &B::Tensor,
    weights: &ChannelWeights<'_, B::Tensor>,
) -> Option<B::Tensor> {
    let mean = |x| backend.global_mean(x);
    Some(match *weights {
        ChannelWeights::Off => return None,
        ChannelWeights::SqueezeExcite { reduce: [w0, b0], expand: [w1, b1] } => {
            let hidden = backend.conv2d(&mean(x), w0, Some(b0), POINTWISE);
            // The paper on NFNets writes GELU here; its code, and all published weights, have ReLU.
            let hidden = backend.activate(&hidden, Activation::Relu);
            backend.conv2d(&hidden, w1, Some(b1), POINTWISE)
        }
        ChannelWeights::Eca(weight) => backend.conv_channels(&mean(x), weight),
    })
}

/// A convolution that looks at one place.
pub const POINTWISE: Conv = Conv { kernel: 1, stride: 1, padding: Padding::Symmetric, groups: 1 };

/// A place that a reading may look at.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Observed {
    /// A residual branch with its channels weighed, before anything that scales it.
    Branch,
    /// What a block gives.
    Block,
}
