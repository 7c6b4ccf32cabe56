//! What a session carries from one step to the next: one structure, several readings.
//!
//! Of [`TensorSpec`] a [`Carry`] is the layout of a session record, of a graph's edges its state
//! inputs and outputs, of byte ranges the way to cut a record open.

#[cfg(test)]
mod tests;

use std::{iter, ops::Range};

use serde::{Deserialize, Serialize};

use crate::{
    config::{BlockKind, ModelConfig},
    layers::conv1d::CONV_WIDTH,
    path::Path,
};

/// The state of every block of a decoder, in the order of the blocks.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Carry<T> {
    pub blocks: Vec<BlockCarry<T>>,
}

/// The state of one residual block.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum BlockCarry<T> {
    Recurrent { conv: T, rg_lru: T },
    Attention { keys: T, values: T },
}

/// One tensor of a session's state, without the lane axis.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct TensorSpec {
    /// Place in the walk; the graph calls it `state.<path>`.
    pub path: String,
    pub dtype: Dtype,
    pub shape: Vec<u64>,
}

/// Type of the elements of a state tensor.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    F32,
}

impl<T> Carry<T> {
    /// The fields in their one order: block after block, `conv` before `rg_lru`, `keys` before
    /// `values`.
    pub fn fields(&self) -> impl Iterator<Item = &T> {
        self.blocks.iter().flat_map(BlockCarry::fields)
    }

    /// The same structure with every field replaced.
    pub fn map<U>(&self, mut f: impl FnMut(&T) -> U) -> Carry<U> {
        Carry { blocks: self.blocks.iter().map(|block| block.map(&mut f)).collect() }
    }
}

impl<T> BlockCarry<T> {
    /// The two fields in their order.
    pub fn fields(&self) -> [&T; 2] {
        match self {
            Self::Recurrent { conv, rg_lru } => [conv, rg_lru],
            Self::Attention { keys, values } => [keys, values],
        }
    }

    /// The same structure with both fields replaced, in their order.
    pub fn map<U>(&self, f: &mut impl FnMut(&T) -> U) -> BlockCarry<U> {
        match self {
            Self::Recurrent { conv, rg_lru } => {
                BlockCarry::Recurrent { conv: f(conv), rg_lru: f(rg_lru) }
            }
            Self::Attention { keys, values } => {
                BlockCarry::Attention { keys: f(keys), values: f(values) }
            }
        }
    }
}

impl Carry<TensorSpec> {
    /// The layout of a session of `config`.
    pub fn layout(config: &ModelConfig) -> Self {
        let spec = |path: &Path, name: &str, shape: &[u32]| TensorSpec {
            path: path.child(name).to_string(),
            dtype: Dtype::F32,
            shape: shape.iter().copied().map(u64::from).collect(),
        };
        let blocks = iter::zip(0u32.., config.block_kinds()).map(|(layer, kind)| {
            let path = Path::root().child("layers").child(layer);
            match kind {
                BlockKind::Recurrent => BlockCarry::Recurrent {
                    conv: spec(&path, "conv", &[CONV_WIDTH - 1, config.recurrence_width]),
                    rg_lru: spec(&path, "rg_lru", &[config.recurrence_width]),
                },
                BlockKind::Attention => {
                    let ring = [config.window + 1, config.head_dim];
                    BlockCarry::Attention {
                        keys: spec(&path, "keys", &ring),
                        values: spec(&path, "values", &ring),
                    }
                }
            }
        });
        Self { blocks: blocks.collect() }
    }

    /// Where each field lies in a contiguous session record.
    pub fn byte_ranges(&self) -> Carry<Range<u64>> {
        let mut end = 0;
        self.map(|spec| {
            let start = end;
            end += spec.bytes();
            start..end
        })
    }

    /// Bytes of one session's record.
    pub fn bytes(&self) -> u64 {
        self.fields().map(TensorSpec::bytes).sum()
    }
}

impl TensorSpec {
    /// Elements of one session's row.
    pub fn elements(&self) -> u64 {
        self.shape.iter().product()
    }

    /// Bytes of one session's row.
    pub fn bytes(&self) -> u64 {
        self.elements() * self.dtype.bytes()
    }
}

impl Dtype {
    /// Bytes of one element.
    pub fn bytes(self) -> u64 {
        match self {
            Self::F32 => 4,
        }
    }
}
