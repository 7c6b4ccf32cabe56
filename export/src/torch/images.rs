//! The reading of a classifier's equations that computes them with libtorch, gradients included.

pub mod accuracy;
#[cfg(test)]
mod tests;

use std::{cell::RefCell, fmt};

use aerie_models::{
    ImageConfig, ParameterSpec, Path,
    images::{
        ChannelWeights, Conv, ImageBackend, Observed, WeighedConv,
        activation::Activation,
        channel_logits,
        config::{Padding, Standardise},
        network, weighed_conv_in_parts,
    },
};
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use tch::{Device, Kind, Tensor};

use crate::{
    chance,
    torch::{backend::Handle, parameters::Parameters},
};

/// What keeps a norm finite where there is no variance.
const NORM_EPSILON: f64 = 1e-5;
/// How much of a new mean or variance goes into its running average.
const NORM_MOMENTUM: f64 = 0.1;

/// A batch run through a classifier with `parameters`. Maps are of the pixels' kind, and what meets them
/// is turned into it: with bfloat16 pixels and f32 parameters, maps are bfloat16, while weights are
/// standardised, and means over maps, gates and logits computed, in f32.
pub struct ImageReading<'a> {
    parameters: &'a Parameters,
    mode: Mode,
    /// What is left out by chance comes from here.
    noise: RefCell<ChaCha8Rng>,
    /// Is shown what the network shows.
    observer: Option<RefCell<Observer<'a>>>,
}

/// What takes an interest in the activations of a network.
type Observer<'a> = Box<dyn FnMut(Observed, &Tensor) + 'a>;

/// Whether a network is learning.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Mode {
    /// Leaves out what is to be left out, as `seed` has it, and normalises over the batch.
    Training {
        seed: u64,
    },
    Evaluation,
}

/// Logits `[B, K]` of pixels `[B, 3, H, W]`.
pub(in crate::torch) fn logits(
    model: &ImageConfig,
    parameters: &Parameters,
    mode: Mode,
    pixels: &Tensor,
) -> Tensor {
    // The layout in which libtorch's convolutions are fastest here.
    let pixels = pixels.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2]);
    network::logits(model, &ImageReading::new(parameters, mode), &Scaled::of(pixels)).tensor()
}

impl<'a> ImageReading<'a> {
    pub fn new(parameters: &'a Parameters, mode: Mode) -> Self {
        let seed = match mode {
            Mode::Training { seed } => seed,
            Mode::Evaluation => 0,
        };
        let noise = RefCell::new(chance::source(seed, "what is left out", 0));
        Self { parameters, mode, noise, observer: None }
    }

    /// Shows `observer` what the network shows.
    pub fn observed(self, observer: impl FnMut(Observed, &Tensor) + 'a) -> Self {
        Self { observer: Some(RefCell::new(Box::new(observer))), ..self }
    }
}

impl fmt::Debug for ImageReading<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ImageReading").field("mode", &self.mode).finish_non_exhaustive()
    }
}

/// `factor` times a tensor. Factors of maps go into the weights that are multiplied with them, which are
/// small: a training spends most of its time on going over maps.
#[derive(Clone, Debug)]
pub struct Scaled {
    tensor: Handle,
    factor: f64,
}

impl Scaled {
    pub fn of(tensor: Tensor) -> Self {
        Self { tensor: Handle(tensor), factor: 1.0 }
    }

    /// The tensor with its factor in it.
    pub fn tensor(&self) -> Tensor {
        times(&self.tensor, self.factor)
    }

    /// The same factor of another tensor.
    fn with(&self, tensor: Tensor) -> Self {
        Self { tensor: Handle(tensor), factor: self.factor }
    }
}

#[expect(clippy::float_cmp, reason = "a factor of 1 is no factor")]
fn times(tensor: &Tensor, factor: f64) -> Tensor {
    if factor == 1.0 { tensor.shallow_clone() } else { tensor * factor }
}

/// The kind in which sums over maps of `kind` are kept.
fn precise(kind: Kind) -> Kind {
    if kind == Kind::BFloat16 { Kind::Float } else { kind }
}

/// A map times what weighs its channels or images.
fn weighed(map: &Tensor, weights: &Tensor) -> Tensor {
    map * weights.to_kind(map.kind())
}

impl ImageReading<'_> {
    /// A branch without gates, without the images that are left out.
    fn dropped(&self, y: Scaled, it: &WeighedConv<'_, Scaled>) -> Scaled {
        match &it.end {
            Some(end) => self.drop_branch(&y, end.drop_share, end.rescale),
            None => y,
        }
    }

    /// 1 for each image whose branch stays, 0 for the others, `[B, 1, 1, 1]`; none if all stay.
    fn kept(&self, x: &Tensor, share: f64, rescale: bool) -> Option<Tensor> {
        self.mask(x, [x.size()[0], 1, 1, 1], share, rescale)
    }

    /// 0 for a `share` of what has `shape`, for the rest 1, or what makes up for it; none if all stays.
    fn mask(&self, x: &Tensor, shape: [i64; 4], share: f64, rescale: bool) -> Option<Tensor> {
        if self.mode == Mode::Evaluation || share <= 0.0 {
            return None;
        }
        let stays = if rescale { 1.0 / (1.0 - share) } else { 1.0 };
        let mut noise = self.noise.borrow_mut();
        let mut draw = |_| if noise.random::<f64>() < share { 0.0 } else { stays };
        let drawn: Vec<f64> = (0..shape.iter().product::<i64>()).map(&mut draw).collect();
        Some(
            Tensor::from_slice(&drawn).view(shape).to_kind(precise(x.kind())).to_device(x.device()),
        )
    }

    /// `σ(…)` of the means of `x`, `[B, C, 1, 1]`; none if nothing weighs the channels.
    fn gates(&self, x: &Scaled, weights: &ChannelWeights<'_, Scaled>) -> Option<Tensor> {
        channel_logits(self, x, weights).map(|it| it.tensor().sigmoid())
    }
}

impl ImageBackend for ImageReading<'_> {
    type Tensor = Scaled;

    fn parameter(&self, path: &Path, _spec: ParameterSpec) -> Scaled {
        Scaled::of(self.parameters.at(path).tensor.shallow_clone())
    }

    fn standardise(&self, weight: &Scaled, gain: &Scaled, how: Standardise, factor: f64) -> Scaled {
        const UNITS: [i64; 3] = [1, 2, 3];
        let weight = weight.tensor();
        let kind = weight.kind();
        let inputs: i64 = weight.size()[1..].iter().product();
        let mean = weight.mean_dim(&UNITS[..], true, kind);
        let centred = weight - mean;
        // Of a population, since the weights are all there are.
        let variance = centred.square().mean_dim(&UNITS[..], true, kind);
        let scale = match how {
            Standardise::Off => unreachable!("such weights have no gains"),
            Standardise::Max => (variance * inputs as f64).clamp_min(1e-4).rsqrt(),
            Standardise::Add => (variance + 1e-5).rsqrt() * (inputs as f64).sqrt().recip(),
        };
        Scaled::of(centred * (scale * gain.tensor() * factor))
    }

    fn conv2d(&self, x: &Scaled, weight: &Scaled, bias: Option<&Scaled>, conv: Conv) -> Scaled {
        let weight = times(&weight.tensor, weight.factor * x.factor).to_kind(x.tensor.kind());
        let (x, padding) = padded(&x.tensor, conv, 0.0);
        let [stride, groups] = [conv.stride, conv.groups].map(i64::from);
        let bias = bias.map(|it| it.tensor().to_kind(x.kind()));
        Scaled::of(x.conv2d(&weight, bias, [stride; 2], [padding; 2], [1, 1], groups))
    }

    fn mean_pool(&self, x: &Scaled) -> Scaled {
        x.with(x.tensor.avg_pool2d([2, 2], [2, 2], [0, 0], true, false, None::<i64>))
    }

    fn max_pool(&self, x: &Scaled, padding: Padding) -> Scaled {
        let conv = Conv { kernel: 3, stride: 2, padding, groups: 1 };
        let (x, padding) = padded(&x.tensor(), conv, f64::NEG_INFINITY);
        Scaled::of(x.max_pool2d([3, 3], [2, 2], [padding; 2], [1, 1], false))
    }

    fn global_mean(&self, x: &Scaled) -> Scaled {
        x.with(x.tensor.mean_dim(&[2i64, 3][..], true, precise(x.tensor.kind())))
    }

    fn activate(&self, x: &Scaled, activation: Activation) -> Scaled {
        let x = x.tensor();
        Scaled::of(match activation {
            Activation::Relu => x.relu(),
            Activation::Silu => x.silu(),
            Activation::Gelu => x.gelu("none"),
            Activation::GeluTanh => x.gelu("tanh"),
        })
    }

    fn sigmoid(&self, x: &Scaled) -> Scaled {
        Scaled::of(x.tensor().sigmoid())
    }

    fn scale(&self, x: &Scaled, factor: f64) -> Scaled {
        Scaled { tensor: x.tensor.clone(), factor: x.factor * factor }
    }

    fn add(&self, a: &Scaled, b: &Scaled) -> Scaled {
        Scaled::of(a.tensor() + b.tensor())
    }

    fn gate(&self, x: &Scaled, gate: &Scaled) -> Scaled {
        x.with(weighed(&x.tensor, &gate.tensor()))
    }

    fn conv_channels(&self, x: &Scaled, weight: &Scaled) -> Scaled {
        let weight = times(&weight.tensor, weight.factor * x.factor);
        let padding = weight.size()[2] / 2;
        let channels = x.tensor.squeeze_dim(3).transpose(1, 2);
        let y = channels.conv1d(&weight, None::<&Tensor>, [1], [padding], [1], 1);
        Scaled::of(y.transpose(1, 2).unsqueeze(3))
    }

    fn classify(&self, x: &Scaled, weight: &Scaled, bias: &Scaled) -> Scaled {
        let weight = times(&weight.tensor, weight.factor * x.factor);
        Scaled::of(x.tensor.flatten(1, -1).linear(&weight, Some(&bias.tensor())))
    }

    fn batch_norm(&self, x: &Scaled, [weight, bias, mean, variance]: [&Scaled; 4]) -> Scaled {
        let is_training = matches!(self.mode, Mode::Training { .. });
        let [weight, bias, mean, variance] =
            [weight, bias, mean, variance].map(|it| Some(&it.tensor.0));
        let (momentum, epsilon) = (NORM_MOMENTUM, NORM_EPSILON);
        let x = x.tensor();
        Scaled::of(x.batch_norm(
            weight,
            bias,
            mean,
            variance,
            is_training,
            momentum,
            epsilon,
            false,
        ))
    }

    fn group_norm(&self, x: &Scaled, [weight, bias]: [&Scaled; 2], groups: u32) -> Scaled {
        let [weight, bias] = [weight, bias].map(|it| Some(&it.tensor.0));
        let (x, kind) = (x.tensor(), x.tensor.kind());
        // On a GPU the weights of a group norm must be of the maps' kind.
        let x = if x.device() == Device::Cpu { x } else { x.to_kind(precise(kind)) };
        let y = x.group_norm(groups.into(), weight, bias, NORM_EPSILON, false);
        Scaled::of(y.to_kind(kind))
    }

    fn dropout(&self, x: &Scaled, share: f64) -> Scaled {
        let size = x.tensor.size();
        match self.mask(&x.tensor, [size[0], size[1], 1, 1], share, true) {
            Some(kept) => x.with(weighed(&x.tensor, &kept)),
            None => x.clone(),
        }
    }

    fn drop_branch(&self, x: &Scaled, share: f64, rescale: bool) -> Scaled {
        match self.kept(&x.tensor, share, rescale) {
            Some(kept) => x.with(weighed(&x.tensor, &kept)),
            None => x.clone(),
        }
    }

    /// All that scales the branch is multiplied with what is smallest: the gates of its channels, or its
    /// weights where it has none.
    fn weighed_conv(&self, x: &Scaled, it: &WeighedConv<'_, Scaled>) -> Scaled {
        // Whoever looks at branches sees them before they are scaled.
        if self.observer.is_some() {
            return weighed_conv_in_parts(self, x, it);
        }
        let skip = it.end.as_ref().and_then(|end| end.skip).map(Scaled::tensor);
        let factor = it.end.as_ref().map_or(1.0, |end| end.factor);
        let scaled = |tensor: Tensor, factor: f64| {
            let tensor = times(&tensor, factor);
            skip.as_ref().map_or_else(|| tensor.shallow_clone(), |skip| &tensor * skip)
        };
        let y = match &it.attention {
            ChannelWeights::Off => {
                let weight = Scaled::of(scaled(it.weight.tensor(), factor));
                let bias = it.bias.map(|it| Scaled::of(scaled(it.tensor(), factor)));
                return self.dropped(self.conv2d(x, &weight, bias.as_ref(), it.conv), it);
            }
            _ => self.conv2d(x, it.weight, it.bias, it.conv),
        };
        let gates = self.gates(&y, &it.attention).expect("something weighs the channels");
        let mut gates = scaled(gates, 2.0 * factor);
        if let Some(end) = &it.end
            && let Some(kept) = self.kept(&y.tensor, end.drop_share, end.rescale)
        {
            // Not in place: where nothing scales them, they are what the sigmoid gave, which its gradient needs.
            gates = &gates * kept;
        }
        Scaled::of(weighed(&y.tensor, &gates))
    }

    fn observe(&self, at: Observed, x: &Scaled) {
        if let Some(observer) = &self.observer {
            (observer.borrow_mut())(at, &x.tensor());
        }
    }
}

/// `x` with around it what the operation that follows does not put there, and the zeros on each side
/// that it does.
fn padded(x: &Tensor, conv: Conv, value: f64) -> (Tensor, i64) {
    let [kernel, stride] = [conv.kernel, conv.stride].map(i64::from);
    let half = kernel / 2;
    match conv.padding {
        Padding::Symmetric => (x.shallow_clone(), half),
        Padding::Circular => {
            let pad = [half; 4];
            (if half == 0 { x.shallow_clone() } else { x.pad(pad, "circular", None) }, 0)
        }
        Padding::Same => {
            let size = x.size();
            let missing = |extent: i64| {
                let outputs = (extent + stride - 1) / stride;
                ((outputs - 1) * stride + kernel - extent).max(0)
            };
            let [bottom, right] = [missing(size[2]), missing(size[3])];
            if bottom == right && bottom % 2 == 0 && (value == 0.0 || bottom == 0) {
                return (x.shallow_clone(), bottom / 2);
            }
            let pad = [right / 2, right - right / 2, bottom / 2, bottom - bottom / 2];
            (x.pad(pad, "constant", value), 0)
        }
    }
}
