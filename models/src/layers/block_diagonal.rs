//! The gates' projection: one dense matrix for each block of channels.

use crate::{
    backend::{Backend, Init, ParameterSpec, Role},
    config::ModelConfig,
    layers::linear::{fan_in_std, vector},
    path::Path,
};

/// The weight and the bias of a gate.
///
/// `gate` is `input_gate` or `recurrent_gate`; its parameters are `<gate>_weight` `[K, R/K, R/K]`,
/// in before out, and `<gate>_bias` `[K, R/K]`, kept flat as `[R]`.
///
/// The weight begins with standard deviation `1/√R`, as Google's JAX code does; its torch twin uses
/// `1/√(R/K)`.
pub fn block_diagonal<B: Backend>(
    config: &ModelConfig,
    backend: &B,
    [path, gate]: [&Path; 2],
) -> [B::Tensor; 2] {
    let block = u64::from(config.recurrence_width / config.gate_blocks);
    let weight = backend.parameter(
        &path.child(format_args!("{gate}_weight")),
        ParameterSpec {
            shape: vec![u64::from(config.gate_blocks), block, block],
            init: Init::Normal { std: fan_in_std(config.recurrence_width) },
            role: Role::Steering,
        },
    );
    let bias = backend
        .parameter(&path.child(format_args!("{gate}_bias")), vector(config.recurrence_width));
    [weight, bias]
}
