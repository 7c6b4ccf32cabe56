//! The step graph on ONNX Runtime.
