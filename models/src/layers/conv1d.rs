//! The short depthwise convolution before the recurrence.

use crate::{
    backend::{Backend, Init, ParameterSpec, Role},
    config::ModelConfig,
    layers::linear::vector,
    path::Path,
};

/// `C`: taps, the current token among them (Griffin §2.3).
pub const CONV_WIDTH: u32 = 4;

/// Convolves `x` `[N, R]` causally; returns the result and the next state.
pub fn conv1d<B: Backend>(
    config: &ModelConfig,
    backend: &B,
    path: &Path,
    x: &B::Tensor,
    state: &B::Tensor,
) -> (B::Tensor, B::Tensor) {
    let weight = backend.parameter(
        &path.child("weight"),
        ParameterSpec {
            shape: vec![u64::from(CONV_WIDTH), u64::from(config.recurrence_width)],
            init: Init::Normal { std: (0.01 / f64::from(CONV_WIDTH)).sqrt() },
            role: Role::Matrix,
        },
    );
    let bias = backend.parameter(&path.child("bias"), vector(config.recurrence_width));
    backend.causal_conv1d(x, &weight, &bias, state)
}
