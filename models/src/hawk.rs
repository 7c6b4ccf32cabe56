//! Hawk: recurrence only (De et al. 2024, §2.1).

use crate::config::BlockKind;

/// Every block is recurrent.
pub fn block_kind(_layer: u32) -> BlockKind {
    BlockKind::Recurrent
}
