//! The paper's baseline, a transformer with multi-query attention (De et al. 2024, §3.1).
//!
//! Global attention over a context of `W + 1` tokens: the ring that holds a local window holds all
//! of it. Beyond the context it degrades to local attention instead of growing without bound.

use crate::config::BlockKind;

/// Every block is attention.
pub fn block_kind(_layer: u32) -> BlockKind {
    BlockKind::Attention
}
