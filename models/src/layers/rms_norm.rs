//! Root-mean-square normalisation (Zhang and Sennrich 2019, arXiv:1910.07467).

use crate::{
    backend::{Backend, Normed},
    config::ModelConfig,
    layers::linear::vector,
    path::Path,
};

/// What the reference adds to the mean square.
const EPSILON: f32 = 1e-6;

/// `x / √(mean(x²) + 1e-6) ⊙ (1 + w)`, with `w` beginning at zero.
pub fn rms_norm<B: Backend>(
    config: &ModelConfig,
    backend: &B,
    path: &Path,
    x: &B::Tensor,
) -> Normed<B::Tensor> {
    let weight = backend.parameter(&path.child("weight"), vector(config.width));
    Normed { x: x.clone(), weight, epsilon: EPSILON }
}
