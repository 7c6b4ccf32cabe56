//! The recurrent block: convolution and RG-LRU on one branch, GELU on the other (Griffin §2.3).

use crate::{
    backend::{Backend, Then},
    carry::BlockCarry,
    config::ModelConfig,
    layers::{
        conv1d::conv1d,
        linear::{Linear, fan_in_std},
        rg_lru::rg_lru,
    },
    path::Path,
};

/// `W_o (RG-LRU(conv(W_x x)) ⊙ gelu(W_y x))` for `x` `[N, D]`; the state is `[conv, rg_lru]`.
pub fn recurrent_block<B: Backend>(
    config: &ModelConfig,
    backend: &B,
    path: &Path,
    x: &B::Tensor,
    [conv, lru]: [&B::Tensor; 2],
) -> (B::Tensor, BlockCarry<B::Tensor>) {
    let (width, recurrence_width) = (config.width, config.recurrence_width);
    let inward =
        Linear { inputs: width, outputs: recurrence_width, bias: true, std: fan_in_std(width) };
    let linear_y = path.child("linear_y");
    let (weight, bias) = (inward.weight(backend, &linear_y), inward.bias(backend, &linear_y));
    let y = backend.linear_then(x, &weight, Some(&bias), Then::Gelu);
    let u = inward.apply(backend, &path.child("linear_x"), x);
    let (c, conv) = conv1d(config, backend, &path.child("conv_1d"), &u, conv);
    let (h, lru) = rg_lru(config, backend, &path.child("rg_lru"), &c, lru);
    let outward = Linear {
        inputs: recurrence_width,
        outputs: width,
        bias: true,
        std: residual_std(config, recurrence_width),
    };
    let out = outward.apply(backend, &path.child("linear_out"), &backend.mul(&h, &y));
    (out, BlockCarry::Recurrent { conv, rg_lru: lru })
}

/// `√(2 / (layers · fan_in))`, for projections that write into the residual stream.
pub(crate) fn residual_std(config: &ModelConfig, fan_in: u32) -> f64 {
    (2.0 / (f64::from(config.layers) * f64::from(fan_in))).sqrt()
}
