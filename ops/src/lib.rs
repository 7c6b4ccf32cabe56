//! Operators of the step graph: their schemas, their kernels, their registration with ONNX Runtime.
//!
//! The kernels work on plain slices and know no runtime. All share two promises, which the rest of
//! the project builds on:
//!
//! - **The cut does not matter.** Every element of a result is made by one fixed sequence of
//!   operations, whatever the chunking, the batch, the lane or the number of threads, so results are
//!   equal bit for bit. Multiply-adds are fused everywhere and vectors only ever hold independent
//!   elements or a fixed number of partial sums, so that also the machine does not matter.
//! - **Only named lanes are touched**, and a step that does not hold together is refused before
//!   anything is written; see [`segments`].

pub mod block_diagonal;
pub mod causal_conv1d;
pub mod limits;
pub mod local_attention;
pub mod matmul;
pub mod rg_lru;
pub mod rms_norm;
pub mod rope;
pub mod schema;
pub mod segments;
pub mod shape;
pub mod softmax;

mod isa;
mod math;
#[cfg(feature = "onnx")]
pub mod ort;
mod simd;

pub use simd::{Parallel, Serial};
