//! Griffin: two recurrent blocks, then one of local attention (De et al. 2024, §2.1).

use crate::config::BlockKind;

/// R, R, A from the first block on; the list may end in mid-pattern, as RecurrentGemma's do.
pub fn block_kind(layer: u32) -> BlockKind {
    if layer % 3 == 2 { BlockKind::Attention } else { BlockKind::Recurrent }
}
