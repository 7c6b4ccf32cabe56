//! A dense projection.

use crate::{
    backend::{Backend, Init, ParameterSpec, Role},
    path::Path,
};

/// Extents and beginning of a projection.
#[derive(Clone, Copy, Debug)]
pub struct Linear {
    pub inputs: u32,
    pub outputs: u32,
    /// Standard deviation of the weight at the beginning; biases begin at zero.
    pub std: f64,
}

impl Linear {
    /// `residual + (x · Wᵀ + b)`, with `weight` `[out, in]` and `bias` `[out]` below `path`.
    pub fn onto<B: Backend>(
        self,
        backend: &B,
        path: &Path,
        residual: &B::Tensor,
        x: &B::Tensor,
    ) -> B::Tensor {
        let [weight, bias] = [self.weight(backend, path), self.bias(backend, path)];
        backend.linear_plus(residual, x, [&weight, &bias])
    }

    pub(crate) fn weight<B: Backend>(self, backend: &B, path: &Path) -> B::Tensor {
        let spec = ParameterSpec {
            shape: vec![u64::from(self.outputs), u64::from(self.inputs)],
            init: Init::Normal { std: self.std },
            role: Role::Matrix,
        };
        backend.parameter(&path.child("weight"), spec)
    }

    pub(crate) fn bias<B: Backend>(self, backend: &B, path: &Path) -> B::Tensor {
        backend.parameter(&path.child("bias"), vector(self.outputs))
    }
}

/// A vector that begins at zero and does not decay: a bias or a norm's weight.
pub(crate) fn vector(extent: u32) -> ParameterSpec {
    ParameterSpec { shape: vec![u64::from(extent)], init: Init::Zeros, role: Role::Steering }
}

/// `1/√fan_in`.
pub(crate) fn fan_in_std(fan_in: u32) -> f64 {
    f64::from(fan_in).sqrt().recip()
}
