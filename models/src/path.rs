//! Where a parameter sits in the walk over a model. Checkpoint keys and ONNX initializers are both
//! made from it, so that they cannot differ.

use std::fmt;

/// A dotted place in the walk, as in `layers.3.mlp_block.gate_proj.weight`.
///
/// Names are those of Hugging Face's RecurrentGemma checkpoints without the leading `model.`.
#[derive(Clone, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Path(String);

impl Path {
    /// The top of the walk.
    pub fn root() -> Self {
        Self::default()
    }

    /// The place called `name` below this one.
    pub fn child(&self, name: impl fmt::Display) -> Self {
        if self.0.is_empty() { Self(name.to_string()) } else { Self(format!("{}.{name}", self.0)) }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
