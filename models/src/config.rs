//! Every number that fixes a model, parsed into one value: a [`ModelConfig`] that exists is sound.

#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{backend::AttentionDims, griffin, hawk, mqa};

/// A language model of the Griffin family.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(try_from = "Fields", into = "Fields")]
pub struct ModelConfig {
    pub family: Family,
    /// `V`.
    pub vocab: u32,
    /// `D`.
    pub width: u32,
    /// `R`.
    pub recurrence_width: u32,
    /// `E`.
    pub mlp_width: u32,
    /// Residual blocks.
    pub layers: u32,
    /// `H`, with `H · d = D`.
    pub heads: u32,
    /// `d`; a quarter of it is a whole number, since RoPE turns pairs in half of each head.
    pub head_dim: u32,
    /// `K`: blocks of the gates' block-diagonal weights; divides `R`.
    pub gate_blocks: u32,
    /// `W`. The MQA baseline's context: attention is global up to it.
    pub window: u32,
    /// Whether embeddings are scaled by `√D` rounded to bfloat16, as RecurrentGemma does.
    pub scale_embedding: bool,
    /// `c` in `c · tanh(logits / c)`; none leaves logits as they are.
    pub logits_soft_cap: Option<f32>,
    pub a_init: AInit,
}

/// Which block goes where.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    Griffin,
    Hawk,
    Mqa,
}

/// Temporal mixing of a residual block.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum BlockKind {
    Recurrent,
    Attention,
}

/// How the recurrence begins; the paper and Google's code differ by a factor 8 in the exponent.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum AInit {
    Code,
    Paper,
}

/// Why a configuration is refused.
#[derive(Debug, Error, PartialEq)]
pub enum ConfigError {
    #[error("{field} is 0; it must be at least 1")]
    Zero { field: &'static str },
    #[error("{field} is {found}; at most {max} is supported")]
    TooLarge { field: &'static str, found: u32, max: u32 },
    #[error("heads · head_dim is {heads} · {head_dim}, but width is {width}")]
    Heads { heads: u32, head_dim: u32, width: u32 },
    #[error(
        "head_dim is {head_dim}; it must be a multiple of 4, because RoPE turns pairs in half of it"
    )]
    HeadDim { head_dim: u32 },
    #[error(
        "gate_blocks is {gate_blocks}, which does not divide recurrence_width {recurrence_width}"
    )]
    GateBlocks { gate_blocks: u32, recurrence_width: u32 },
    #[error("logits_soft_cap is {0}; it must be finite and above 0 (leave it out to disable)")]
    SoftCap(f32),
}

impl ModelConfig {
    /// The same configuration if it is sound, for those who put one together field by field.
    ///
    /// # Errors
    /// [`ConfigError`], naming the field.
    pub fn checked(self) -> Result<Self, ConfigError> {
        Fields::from(self).try_into()
    }

    /// The kind of every residual block, in order.
    pub fn block_kinds(&self) -> impl Iterator<Item = BlockKind> + '_ {
        (0..self.layers).map(|layer| match self.family {
            Family::Griffin => griffin::block_kind(layer),
            Family::Hawk => hawk::block_kind(layer),
            Family::Mqa => mqa::block_kind(layer),
        })
    }

    /// Extents of the attention blocks; half of each head is rotated.
    pub fn attention_dims(&self) -> AttentionDims {
        AttentionDims {
            heads: self.heads,
            head_dim: self.head_dim,
            window: self.window,
            rotary_dims: self.head_dim / 2,
        }
    }
}

/// Largest extent of any axis: keeps every product of two in 64 bits and every index in 32.
const EXTENT_MAX: u32 = 1 << 24;
/// Most residual blocks.
const LAYERS_MAX: u32 = 1024;

/// A configuration as written, not yet known to be sound.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Fields {
    family: Family,
    vocab: u32,
    width: u32,
    recurrence_width: u32,
    mlp_width: u32,
    layers: u32,
    heads: u32,
    head_dim: u32,
    gate_blocks: u32,
    window: u32,
    #[serde(default)]
    scale_embedding: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    logits_soft_cap: Option<f32>,
    a_init: AInit,
}

impl TryFrom<Fields> for ModelConfig {
    type Error = ConfigError;

    fn try_from(f: Fields) -> Result<Self, ConfigError> {
        let extents = [
            ("vocab", f.vocab, EXTENT_MAX),
            ("width", f.width, EXTENT_MAX),
            ("recurrence_width", f.recurrence_width, EXTENT_MAX),
            ("mlp_width", f.mlp_width, EXTENT_MAX),
            ("layers", f.layers, LAYERS_MAX),
            ("heads", f.heads, EXTENT_MAX),
            ("head_dim", f.head_dim, EXTENT_MAX),
            ("gate_blocks", f.gate_blocks, EXTENT_MAX),
            ("window", f.window, EXTENT_MAX),
        ];
        for (field, found, max) in extents {
            if found == 0 {
                return Err(ConfigError::Zero { field });
            }
            if max < found {
                return Err(ConfigError::TooLarge { field, found, max });
            }
        }
        if f.heads.checked_mul(f.head_dim) != Some(f.width) {
            let Fields { heads, head_dim, width, .. } = f;
            return Err(ConfigError::Heads { heads, head_dim, width });
        }
        if !f.head_dim.is_multiple_of(4) {
            return Err(ConfigError::HeadDim { head_dim: f.head_dim });
        }
        if !f.recurrence_width.is_multiple_of(f.gate_blocks) {
            let Fields { gate_blocks, recurrence_width, .. } = f;
            return Err(ConfigError::GateBlocks { gate_blocks, recurrence_width });
        }
        if let Some(cap) = f.logits_soft_cap
            && !(cap.is_finite() && 0.0 < cap)
        {
            return Err(ConfigError::SoftCap(cap));
        }
        Ok(Self {
            family: f.family,
            vocab: f.vocab,
            width: f.width,
            recurrence_width: f.recurrence_width,
            mlp_width: f.mlp_width,
            layers: f.layers,
            heads: f.heads,
            head_dim: f.head_dim,
            gate_blocks: f.gate_blocks,
            window: f.window,
            scale_embedding: f.scale_embedding,
            logits_soft_cap: f.logits_soft_cap,
            a_init: f.a_init,
        })
    }
}

impl From<ModelConfig> for Fields {
    fn from(c: ModelConfig) -> Self {
        Self {
            family: c.family,
            vocab: c.vocab,
            width: c.width,
            recurrence_width: c.recurrence_width,
            mlp_width: c.mlp_width,
            layers: c.layers,
            heads: c.heads,
            head_dim: c.head_dim,
            gate_blocks: c.gate_blocks,
            window: c.window,
            scale_embedding: c.scale_embedding,
            logits_soft_cap: c.logits_soft_cap,
            a_init: c.a_init,
        }
    }
}
