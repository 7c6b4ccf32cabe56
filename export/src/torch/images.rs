//! The reading of a classifier's equations that computes them with libtorch, gradients included.

#[cfg(test)]
mod tests;

use std::{cell::RefCell, fmt};

use aerie_models::{
    ParameterSpec, Path,
    images::{
        Conv, ImageBackend, Observed,
        activation::Activation,
        config::{Padding, Standardise},
    },
};
use tch::Tensor;

use crate::torch::{backend::Handle, parameters::Parameters};

/// What keeps a norm finite where there is no variance.
const NORM_EPSILON: f64 = 1e-5;
/// How much of a new mean or variance goes into its running average.
const NORM_MOMENTUM: f64 = 0.1;

/// A batch run through a classifier with `parameters`.
pub struct ImageReading<'a> {
    parameters: &'a Parameters,
    mode: Mode,
    /// Is shown what the network shows.
    observer: Option<RefCell<Observer<'a>>>,
}

/// What takes an interest in the activations of a network.
type Observer<'a> = Box<dyn FnMut(Observed, &Tensor) + 'a>;

/// Whether a network is learning.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Mode {
    /// Drops what is to be dropped, by libtorch's generator, and normalises over the batch.
    Training,
    Evaluation,
}

impl<'a> ImageReading<'a> {
    pub fn new(parameters: &'a Parameters, mode: Mode) -> Self {
        Self { parameters, mode, observer: None }
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

impl ImageBackend for ImageReading<'_> {
    type Tensor = Handle;

    fn parameter(&self, path: &Path, _spec: ParameterSpec) -> Handle {
        Handle::of(&self.parameters.at(path).tensor)
    }

    fn standardise(&self, weight: &Handle, gain: &Handle, how: Standardise, factor: f64) -> Handle {
        const UNITS: [i64; 3] = [1, 2, 3];
        let kind = weight.kind();
        let inputs: i64 = weight.size()[1..].iter().product();
        let mean = weight.mean_dim(&UNITS[..], true, kind);
        let centred = &weight.0 - mean;
        // Of a population, since the weights are all there are.
        let variance = centred.square().mean_dim(&UNITS[..], true, kind);
        let scale = match how {
            Standardise::Off => return weight.clone(),
            Standardise::Max => (variance * inputs as f64).clamp_min(1e-4).rsqrt(),
            Standardise::Add => (variance + 1e-5).rsqrt() * (inputs as f64).sqrt().recip(),
        };
        Handle(centred * (scale * &gain.0 * factor))
    }

    fn conv2d(&self, x: &Handle, weight: &Handle, bias: Option<&Handle>, conv: Conv) -> Handle {
        let (x, padding) = padded(x, conv, 0.0);
        let [stride, groups] = [conv.stride, conv.groups].map(i64::from);
        let bias = bias.map(|it| &it.0);
        Handle(x.conv2d(&weight.0, bias, [stride; 2], [padding; 2], [1, 1], groups))
    }

    fn mean_pool(&self, x: &Handle) -> Handle {
        Handle(x.avg_pool2d([2, 2], [2, 2], [0, 0], true, false, None::<i64>))
    }

    fn max_pool(&self, x: &Handle, padding: Padding) -> Handle {
        let conv = Conv { kernel: 3, stride: 2, padding, groups: 1 };
        let (x, padding) = padded(x, conv, f64::NEG_INFINITY);
        Handle(x.max_pool2d([3, 3], [2, 2], [padding; 2], [1, 1], false))
    }

    fn global_mean(&self, x: &Handle) -> Handle {
        Handle(x.mean_dim(&[2i64, 3][..], true, x.kind()))
    }

    fn activate(&self, x: &Handle, activation: Activation) -> Handle {
        Handle(match activation {
            Activation::Relu => x.relu(),
            Activation::Silu => x.silu(),
            Activation::Gelu => x.gelu("none"),
            Activation::GeluTanh => x.gelu("tanh"),
        })
    }

    fn sigmoid(&self, x: &Handle) -> Handle {
        Handle(x.0.sigmoid())
    }

    #[expect(clippy::float_cmp, reason = "a factor of 1 is one that a configuration does not have")]
    fn scale(&self, x: &Handle, factor: f64) -> Handle {
        if factor == 1.0 { x.clone() } else { Handle(&x.0 * factor) }
    }

    fn add(&self, a: &Handle, b: &Handle) -> Handle {
        Handle(&a.0 + &b.0)
    }

    fn gate(&self, x: &Handle, gate: &Handle) -> Handle {
        Handle(&x.0 * &gate.0)
    }

    fn conv_channels(&self, x: &Handle, weight: &Handle) -> Handle {
        let padding = weight.size()[2] / 2;
        let channels = x.0.squeeze_dim(3).transpose(1, 2);
        let y = channels.conv1d(&weight.0, None::<&Tensor>, [1], [padding], [1], 1);
        Handle(y.transpose(1, 2).unsqueeze(3))
    }

    fn classify(&self, x: &Handle, weight: &Handle, bias: &Handle) -> Handle {
        Handle(x.0.flatten(1, -1).linear(&weight.0, Some(&bias.0)))
    }

    fn batch_norm(&self, x: &Handle, [weight, bias, mean, variance]: [&Handle; 4]) -> Handle {
        let is_training = self.mode == Mode::Training;
        let [weight, bias] = [weight, bias].map(|it| Some(&it.0));
        let averages = [mean, variance].map(|it| Some(&it.0));
        let [mean, variance] = averages;
        let (momentum, epsilon) = (NORM_MOMENTUM, NORM_EPSILON);
        Handle(x.batch_norm(weight, bias, mean, variance, is_training, momentum, epsilon, false))
    }

    fn group_norm(&self, x: &Handle, [weight, bias]: [&Handle; 2], groups: u32) -> Handle {
        let [weight, bias] = [weight, bias].map(|it| Some(&it.0));
        Handle(x.group_norm(groups.into(), weight, bias, NORM_EPSILON, false))
    }

    fn dropout(&self, x: &Handle, share: f64) -> Handle {
        Handle(x.0.dropout(share, self.mode == Mode::Training))
    }

    fn drop_branch(&self, x: &Handle, share: f64, rescale: bool) -> Handle {
        if self.mode == Mode::Evaluation {
            return x.clone();
        }
        let drawn = Tensor::rand([x.size()[0], 1, 1, 1], (x.kind(), x.device()));
        let kept = drawn.ge(share).to_kind(x.kind());
        let kept = if rescale { kept / (1.0 - share) } else { kept };
        Handle(&x.0 * kept)
    }

    fn observe(&self, at: Observed, x: &Handle) {
        if let Some(observer) = &self.observer {
            (observer.borrow_mut())(at, x);
        }
    }
}

/// `x` with around it what the operation that follows does not put there, and the zeros on each side
/// that it does.
fn padded(x: &Handle, conv: Conv, value: f64) -> (Tensor, i64) {
    let [kernel, stride] = [conv.kernel, conv.stride].map(i64::from);
    let half = kernel / 2;
    match conv.padding {
        Padding::Symmetric => (x.0.shallow_clone(), half),
        Padding::Circular => {
            let pad = [half; 4];
            (if half == 0 { x.0.shallow_clone() } else { x.0.pad(pad, "circular", None) }, 0)
        }
        Padding::Same => {
            let size = x.size();
            let missing = |extent: i64| {
                let outputs = (extent + stride - 1) / stride;
                ((outputs - 1) * stride + kernel - extent).max(0)
            };
            let [bottom, right] = [missing(size[2]), missing(size[3])];
            if bottom == right && bottom % 2 == 0 && (value == 0.0 || bottom == 0) {
                return (x.0.shallow_clone(), bottom / 2);
            }
            let pad = [right / 2, right - right / 2, bottom / 2, bottom - bottom / 2];
            (x.0.pad(pad, "constant", value), 0)
        }
    }
}
