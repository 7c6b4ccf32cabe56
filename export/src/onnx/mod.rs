//! The reading that draws: a model as an ONNX graph, with our operators or with the standard's alone.

pub(crate) mod edit;
pub mod emitter;
pub(crate) mod fold;
pub mod graph;
pub mod images;
pub(crate) mod packed;
mod portable;
pub mod proto;
pub(crate) mod tensors;
pub mod weights;
pub mod write;

#[cfg(test)]
pub(crate) mod tests;

pub use edit::EditError;
pub use emitter::{Target, emit};
pub use graph::Graph;
pub use weights::{Weights, WeightsError};
pub use write::{Limits, WriteError, write};
