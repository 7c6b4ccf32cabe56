//! A classifier's graph.

use std::path::Path;

use ort::{session::Session, value::Tensor};

use crate::{
    onnx::Target,
    runtime::{Outputs, Runtime, RuntimeError},
};

/// A graph from pixels to logits.
#[derive(Debug)]
pub(crate) struct Classifier {
    session: Session,
}

impl Classifier {
    /// Opens the classifier in `file`.
    ///
    /// # Errors
    /// If the runtime refuses it.
    pub(crate) fn open(runtime: &Runtime, file: &Path) -> Result<Self, RuntimeError> {
        Ok(Self { session: runtime.builder(Target::Portable)?.commit_from_file(file)? })
    }

    /// Logits `[B, K]` of `pixels` of shape `[B, 3, H, W]`.
    ///
    /// # Errors
    /// If the runtime refuses them.
    pub(crate) fn logits(
        &mut self,
        shape: [usize; 4],
        pixels: Vec<f32>,
    ) -> Result<Vec<f32>, RuntimeError> {
        let pixels = Tensor::from_array((shape, pixels))?;
        let outputs = Outputs(self.session.run(ort::inputs!["pixels" => pixels])?);
        Ok(outputs.floats("logits")?.to_vec())
    }
}
