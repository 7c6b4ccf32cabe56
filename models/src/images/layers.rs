//! Convolutions with standardised weights, norms, and what weighs channels.

use crate::{
    backend::{Init, ParameterSpec, Role},
    images::{
        activation::Gains,
        backend::{ChannelWeights, Conv, ImageBackend},
        config::{Attention, GainPlace, ImageConfig, NORM_GROUPS, Norm, Standardise},
    },
    path::Path,
};

/// Extents of a convolution and how it is laid over a map.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ConvLayer {
    pub inputs: u32,
    pub outputs: u32,
    pub conv: Conv,
    /// What its gains begin with.
    pub gain: f64,
}

impl ConvLayer {
    /// Weight, standardised if the network's are, and bias, if nothing normalises the outputs.
    pub(crate) fn parameters<B: ImageBackend>(
        self,
        config: &ImageConfig,
        backend: &B,
        path: &Path,
    ) -> (B::Tensor, Option<B::Tensor>) {
        let Conv { kernel, groups, .. } = self.conv;
        let fan_in = self.inputs / groups * kernel * kernel;
        let shape = [self.outputs, self.inputs / groups, kernel, kernel];
        // As He et al. 2015 (arXiv:1502.01852) have it where no gain makes up for what ReLU takes.
        let variance = if config.gains == Gains::One { 2.0 } else { 1.0 };
        let std = (variance / f64::from(fan_in)).sqrt();
        let weight = backend.parameter(
            &path.child("weight"),
            ParameterSpec {
                shape: shape.map(u64::from).to_vec(),
                init: Init::Normal { std },
                role: Role::Matrix,
            },
        );
        let bias = (config.norm == Norm::Off)
            .then(|| backend.parameter(&path.child("bias"), vector(self.outputs, 0.0)));
        if config.standardise == Standardise::Off {
            return (weight, bias);
        }
        let gain = ParameterSpec {
            shape: vec![self.outputs.into(), 1, 1, 1],
            init: Init::Constant(self.gain),
            role: Role::Steering,
        };
        let gain = backend.parameter(&path.child("gain"), gain);
        let factor = if config.gain_place == GainPlace::Weight { config.gain() } else { 1.0 };
        (backend.standardise(&weight, &gain, config.standardise, factor), bias)
    }

    pub(crate) fn apply<B: ImageBackend>(
        self,
        config: &ImageConfig,
        backend: &B,
        path: &Path,
        x: &B::Tensor,
    ) -> B::Tensor {
        let (weight, bias) = self.parameters(config, backend, path);
        backend.conv2d(x, &weight, bias.as_ref(), self.conv)
    }
}

/// `γ · g(x)`, `γ` where it is not in the weights, of what the network's norm makes of `x`, if it has one.
pub(crate) fn activation<B: ImageBackend>(
    config: &ImageConfig,
    backend: &B,
    norm: &Path,
    x: &B::Tensor,
    width: u32,
) -> B::Tensor {
    let normed = normed(config, backend, norm, x, width);
    let y = backend.activate(&normed, config.activation);
    match config.gain_place {
        GainPlace::Activation => backend.scale(&y, config.gain()),
        GainPlace::Weight => y,
    }
}

fn normed<B: ImageBackend>(
    config: &ImageConfig,
    backend: &B,
    path: &Path,
    x: &B::Tensor,
    width: u32,
) -> B::Tensor {
    let of = |name: &str, start| backend.parameter(&path.child(name), vector(width, start));
    let average = |name: &str, start| {
        let spec = ParameterSpec { role: Role::Average, ..vector(width, start) };
        backend.parameter(&path.child(name), spec)
    };
    match config.norm {
        Norm::Off => x.clone(),
        Norm::Batch => {
            let [weight, bias] = [of("weight", 1.0), of("bias", 0.0)];
            let [mean, variance] = [average("running_mean", 0.0), average("running_var", 1.0)];
            backend.batch_norm(x, [&weight, &bias, &mean, &variance])
        }
        Norm::Group => {
            let [weight, bias] = [of("weight", 1.0), of("bias", 0.0)];
            backend.group_norm(x, [&weight, &bias], NORM_GROUPS)
        }
    }
}

/// Parameters of what weighs `width` channels.
#[derive(Debug)]
pub(crate) enum AttentionLayer<T> {
    Off,
    SqueezeExcite([[T; 2]; 2]),
    Eca(T),
}

impl<T> AttentionLayer<T> {
    /// Those below `path`.
    pub(crate) fn new<B: ImageBackend<Tensor = T>>(
        attention: Attention,
        backend: &B,
        path: &Path,
        width: u32,
    ) -> Self {
        match attention {
            Attention::Off => Self::Off,
            Attention::SqueezeExcite { ratio, multiple, .. } => {
                let hidden = rounded(f64::from(width) * ratio, multiple);
                let layer = |name: &str, inputs: u32, outputs: u32| {
                    let path = path.child(name);
                    let std = f64::from(inputs).sqrt().recip();
                    let shape = [outputs, inputs, 1, 1].map(u64::from).to_vec();
                    let spec =
                        ParameterSpec { shape, init: Init::Normal { std }, role: Role::Matrix };
                    let weight = backend.parameter(&path.child("weight"), spec);
                    [weight, backend.parameter(&path.child("bias"), vector(outputs, 0.0))]
                };
                Self::SqueezeExcite([layer("fc1", width, hidden), layer("fc2", hidden, width)])
            }
            Attention::Eca { .. } => {
                let kernel = eca_kernel(width);
                let std = f64::from(kernel).sqrt().recip();
                let shape = vec![1, 1, u64::from(kernel)];
                let spec = ParameterSpec { shape, init: Init::Normal { std }, role: Role::Matrix };
                Self::Eca(backend.parameter(&path.child("conv").child("weight"), spec))
            }
        }
    }

    pub(crate) fn weights(&self) -> ChannelWeights<'_, T> {
        match self {
            Self::Off => ChannelWeights::Off,
            Self::SqueezeExcite([reduce, expand]) => ChannelWeights::SqueezeExcite {
                reduce: reduce.each_ref(),
                expand: expand.each_ref(),
            },
            Self::Eca(weight) => ChannelWeights::Eca(weight),
        }
    }
}

/// The multiple of `multiple` next to `extent`, at least one.
pub(crate) fn rounded(extent: f64, multiple: u32) -> u32 {
    let multiples = (extent / f64::from(multiple) + 0.5).floor().max(1.0);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "extents of a layer"
    )]
    let multiples = multiples as u32;
    multiples * multiple
}

/// `|log₂ C / 2 + 1/2|`, made odd by 1 if it is even: Wang et al. 2020, eq. 12.
fn eca_kernel(width: u32) -> u32 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "half a logarithm")]
    let kernel = (f64::from(width).log2() / 2.0 + 0.5).abs() as u32;
    (kernel | 1).max(3)
}

/// A vector that begins at `start` and does not decay.
fn vector(extent: u32, start: f64) -> ParameterSpec {
    ParameterSpec { shape: vec![extent.into()], init: Init::Constant(start), role: Role::Steering }
}
