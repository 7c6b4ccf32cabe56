//! The stack that the whole family shares: embedding, residual blocks, norm, tied head.

use std::iter;

use crate::{
    backend::Backend,
    carry::{BlockCarry, Carry},
    config::ModelConfig,
    layers::{embedding, gated_mlp, local_mqa, recurrent, rms_norm},
    path::Path,
};

/// Runs a ragged step up to the logits of each segment's last token.
///
/// # Shapes
/// - `tokens`: `[N]`; fields of `carry`: `[lanes, …]` as in [`Carry::layout`]; logits: `[B, V]`
pub fn step<B: Backend>(
    config: &ModelConfig,
    backend: &B,
    tokens: &B::Tensor,
    carry: &Carry<B::Tensor>,
) -> (B::Tensor, Carry<B::Tensor>) {
    let (x, carry) = hidden(config, backend, tokens, carry);
    (logits(config, backend, &backend.last_rows(&x)), carry)
}

/// Runs the residual stack: the normalised output of the last block for every token, `[N, D]`.
pub fn hidden<B: Backend>(
    config: &ModelConfig,
    backend: &B,
    tokens: &B::Tensor,
    carry: &Carry<B::Tensor>,
) -> (B::Tensor, Carry<B::Tensor>) {
    let root = Path::root();
    let mut x = embedding::embed(config, backend, &root, tokens);
    let mut blocks = Vec::with_capacity(carry.blocks.len());
    for (layer, block) in iter::zip(0u32.., &carry.blocks) {
        let (y, block) = residual(config, backend, &root.child("layers").child(layer), &x, block);
        x = y;
        blocks.push(block);
    }
    let normed = rms_norm::rms_norm(config, backend, &root.child("final_norm"), &x);
    (normed.tensor(backend), Carry { blocks })
}

/// Logits of rows of [`hidden`]: `[·, D]` to `[·, V]`, through the embedding's own table.
pub fn logits<B: Backend>(config: &ModelConfig, backend: &B, x: &B::Tensor) -> B::Tensor {
    embedding::unembed(config, backend, &Path::root(), x)
}

/// One residual block: `z = x + temporal(norm(x))`, then `z + mlp(norm(z))`.
fn residual<B: Backend>(
    config: &ModelConfig,
    backend: &B,
    path: &Path,
    x: &B::Tensor,
    carry: &BlockCarry<B::Tensor>,
) -> (B::Tensor, BlockCarry<B::Tensor>) {
    let normed = rms_norm::rms_norm(config, backend, &path.child("temporal_pre_norm"), x);
    let temporal = path.child("temporal_block");
    let (z, carry) = match carry {
        BlockCarry::Recurrent { conv, rg_lru } => {
            recurrent::recurrent_block(config, backend, &temporal, &normed, [conv, rg_lru])
        }
        BlockCarry::Attention { keys, values } => {
            local_mqa::local_mqa(config, backend, &temporal, &normed, [keys, values])
        }
    };
    let normed = rms_norm::rms_norm(config, backend, &path.child("channel_pre_norm"), &z);
    (gated_mlp::gated_mlp(config, backend, &path.child("mlp_block"), &normed), carry)
}
