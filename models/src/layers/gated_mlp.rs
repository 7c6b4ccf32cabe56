//! The gated MLP of every residual block (Griffin §2.2).

use crate::{
    backend::{Backend, Normed},
    config::ModelConfig,
    layers::{linear::Linear, recurrent::residual_std},
    path::Path,
};

/// `x + W_d (gelu(W_0 z + b_0) ⊙ (W_1 z + b_1)) + b_d` for the norm `z` of `x` `[N, D]`.
///
/// The two inner projections begin with standard deviation `1/√(2D)`, as Google's JAX code does
/// (its fan-in counts both); its torch twin uses `1/√D`.
pub fn gated_mlp<B: Backend>(
    config: &ModelConfig,
    backend: &B,
    path: &Path,
    z: &Normed<B::Tensor>,
) -> B::Tensor {
    let (width, mlp_width) = (config.width, config.mlp_width);
    let inward =
        Linear { inputs: width, outputs: mlp_width, std: (2.0 * f64::from(width)).sqrt().recip() };
    let [gate, up] = ["gate_proj", "up_proj"].map(|name| {
        let path = path.child(name);
        [inward.weight(backend, &path), inward.bias(backend, &path)]
    });
    let inner = backend.gated_linear(z, gate.each_ref(), up.each_ref());
    let outward =
        Linear { inputs: mlp_width, outputs: width, std: residual_std(config, mlp_width) };
    outward.onto(backend, &path.child("down_proj"), &z.x, &inner)
}
