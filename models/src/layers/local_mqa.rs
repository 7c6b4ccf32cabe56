//! Multi-query attention over a sliding window (Griffin §2.3; Shazeer 2019, arXiv:1911.02150).

use crate::{
    backend::{Backend, Normed},
    carry::BlockCarry,
    config::ModelConfig,
    layers::{
        linear::{Linear, fan_in_std},
        recurrent::residual_std,
    },
    path::Path,
};

/// `x + W_o attention(W_q z, W_k z, W_v z) + b_o` for the norm `z` of `x` `[N, D]`; the state is
/// `[keys, values]`.
pub fn local_mqa<B: Backend>(
    config: &ModelConfig,
    backend: &B,
    path: &Path,
    z: &Normed<B::Tensor>,
    [keys, values]: [&B::Tensor; 2],
) -> (B::Tensor, BlockCarry<B::Tensor>) {
    let width = config.width;
    let projections = [("q_proj", width), ("k_proj", config.head_dim), ("v_proj", config.head_dim)];
    let weights = projections.map(|(name, outputs)| {
        Linear { inputs: width, outputs, std: fan_in_std(width) }.weight(backend, &path.child(name))
    });
    let qkv = backend.qkv(z, weights.each_ref());
    let (y, [keys, values]) =
        backend.local_attention(config.attention_dims(), qkv.each_ref(), keys, values);
    let outward = Linear { inputs: width, outputs: width, std: residual_std(config, width) };
    let out = outward.onto(backend, &path.child("o_proj"), &z.x, &y);
    (out, BlockCarry::Attention { keys, values })
}
