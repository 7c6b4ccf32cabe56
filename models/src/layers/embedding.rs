//! The token table, read on the way in and on the way out.

use crate::{
    backend::{Backend, Init, ParameterSpec, Role, Then},
    config::ModelConfig,
    layers::linear::fan_in_std,
    path::Path,
};

/// Rows of the table, scaled by `√D` rounded to bfloat16 where the configuration says so.
pub fn embed<B: Backend>(
    config: &ModelConfig,
    backend: &B,
    path: &Path,
    tokens: &B::Tensor,
) -> B::Tensor {
    let x = backend.gather(&table(config, backend, path), tokens);
    if config.scale_embedding {
        backend.scale(&x, round_to_bf16((config.width as f32).sqrt()))
    } else {
        x
    }
}

/// Logits through the same table, softly capped: `c · tanh(x·Embᵀ / c)`.
pub fn unembed<B: Backend>(
    config: &ModelConfig,
    backend: &B,
    path: &Path,
    x: &B::Tensor,
) -> B::Tensor {
    let table = table(config, backend, path);
    match config.logits_soft_cap {
        Some(cap) => backend.linear_then(x, &table, None, Then::SoftCap(cap)),
        None => backend.linear(x, &table, None),
    }
}

fn table<B: Backend>(config: &ModelConfig, backend: &B, path: &Path) -> B::Tensor {
    backend.parameter(
        &path.child("embed_tokens").child("weight"),
        ParameterSpec {
            shape: vec![u64::from(config.vocab), u64::from(config.width)],
            init: Init::Normal { std: fan_in_std(config.width) },
            role: Role::Matrix,
        },
    )
}

/// Rounds to the nearest bfloat16, ties to even: 50.5964 (`√2560`) becomes 50.5, as in the reference.
fn round_to_bf16(x: f32) -> f32 {
    let bits = x.to_bits();
    let rounding = 0x7FFF + ((bits >> 16) & 1);
    f32::from_bits((bits + rounding) & 0xFFFF_0000)
}
