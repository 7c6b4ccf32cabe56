//! Multi-query attention over a sliding window (Griffin §2.3; Shazeer 2019, arXiv:1911.02150).

use crate::{
    backend::Backend,
    carry::BlockCarry,
    config::ModelConfig,
    layers::{
        linear::{Linear, fan_in_std},
        recurrent::residual_std,
    },
    path::Path,
};

/// `W_o attention(W_q x, W_k x, W_v x) + b_o` for `x` `[N, D]`; the state is `[keys, values]`.
pub fn local_mqa<B: Backend>(
    config: &ModelConfig,
    backend: &B,
    path: &Path,
    x: &B::Tensor,
    [keys, values]: [&B::Tensor; 2],
) -> (B::Tensor, BlockCarry<B::Tensor>) {
    let width = config.width;
    let project = |name, outputs| {
        Linear { inputs: width, outputs, bias: false, std: fan_in_std(width) }.apply(
            backend,
            &path.child(name),
            x,
        )
    };
    let q = project("q_proj", width);
    let k = project("k_proj", config.head_dim);
    let v = project("v_proj", config.head_dim);
    let (y, [keys, values]) =
        backend.local_attention(config.attention_dims(), [&q, &k, &v], keys, values);
    let outward =
        Linear { inputs: width, outputs: width, bias: true, std: residual_std(config, width) };
    (outward.apply(backend, &path.child("o_proj"), &y), BlockCarry::Attention { keys, values })
}
