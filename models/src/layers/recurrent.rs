//! The recurrent block: convolution and RG-LRU on one branch, GELU on the other (Griffin §2.3).

use crate::{
    backend::{Backend, Normed},
    carry::BlockCarry,
    config::ModelConfig,
    layers::{
        conv1d::conv1d,
        linear::{Linear, fan_in_std},
        rg_lru::rg_lru,
    },
    path::Path,
};

/// `x + W_o (RG-LRU(conv(W_x z)) ⊙ gelu(W_y z))` for the norm `z` of `x` `[N, D]`; the state is
/// `[conv, rg_lru]`.
pub fn recurrent_block<B: Backend>(
    config: &ModelConfig,
    backend: &B,
    path: &Path,
    z: &Normed<B::Tensor>,
    [conv, lru]: [&B::Tensor; 2],
) -> (B::Tensor, BlockCarry<B::Tensor>) {
    let (width, recurrence_width) = (config.width, config.recurrence_width);
    let inward = Linear { inputs: width, outputs: recurrence_width, std: fan_in_std(width) };
    let [y, x] = ["linear_y", "linear_x"].map(|name| {
        let path = path.child(name);
        [inward.weight(backend, &path), inward.bias(backend, &path)]
    });
    let [y, u] = backend.linear_pair(z, y.each_ref(), x.each_ref());
    let (c, conv) = conv1d(config, backend, &path.child("conv_1d"), &u, conv);
    let (h, lru) = rg_lru(config, backend, &path.child("rg_lru"), &c, &y, lru);
    let outward = Linear {
        inputs: recurrence_width,
        outputs: width,
        std: residual_std(config, recurrence_width),
    };
    let out = outward.onto(backend, &path.child("linear_out"), &z.x, &h);
    (out, BlockCarry::Recurrent { conv, rg_lru: lru })
}

/// `√(2 / (layers · fan_in))`, for projections that write into the residual stream.
pub(crate) fn residual_std(config: &ModelConfig, fan_in: u32) -> f64 {
    (2.0 / (f64::from(config.layers) * f64::from(fan_in))).sqrt()
}
