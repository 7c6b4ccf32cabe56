//! Operators of the step graph: their schemas, their kernels, their registration with ONNX Runtime.

pub mod schema;
