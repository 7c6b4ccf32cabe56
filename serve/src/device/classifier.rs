//! A classifier's graph on ONNX Runtime: pixels in, logits out, nothing kept.

use std::{fmt, sync::Arc};

use ort::{
    session::Session,
    value::{TensorElementType, TensorRef, ValueType},
};

use super::{
    DeviceError, DeviceSpec,
    files::BundleFiles,
    ort::{Lent, LoadError, Runtime, missing, open},
};
use crate::{batcher::Extent, classifier::Device};

/// A classifier on some cores.
pub struct OrtClassifier {
    // Fields are dropped in this order: first who reads, then what is read.
    session: Session,
    _weights: Vec<Lent>,
    _files: Arc<BundleFiles>,
    classes: u32,
    logits: Vec<f32>,
}

/// Input of the graph: f32 `[B, 3, H, W]`.
const PIXELS: &str = "pixels";
/// Output of the graph: f32 `[B, K]`.
const LOGITS: &str = "logits";

impl OrtClassifier {
    /// Loads the bundle that `files` are of, whose graph tells `classes` apart. The weights are read where they are
    /// mapped, so that devices share them.
    ///
    /// # Errors
    /// See [`LoadError`].
    pub fn load(
        runtime: &Runtime,
        files: &Arc<BundleFiles>,
        spec: &DeviceSpec,
        classes: u32,
    ) -> Result<Self, LoadError> {
        let (session, weights) = open(runtime, files, spec)?;
        let input = session.inputs().iter().find(|it| it.name() == PIXELS);
        let input = input.ok_or_else(|| missing("input", PIXELS))?;
        if session.inputs().len() != 1 || rank(input.dtype()) != Some(4) {
            let problem = format!("does not take {PIXELS} of FP32 and [B, 3, H, W] alone");
            return Err(LoadError::Classifier { problem });
        }
        let output = session.outputs().iter().find(|it| it.name() == LOGITS);
        let output = output.ok_or_else(|| missing("output", LOGITS))?;
        if rank(output.dtype()) != Some(2) {
            let problem = format!("does not give {LOGITS} of FP32 and [B, {classes}]");
            return Err(LoadError::Classifier { problem });
        }
        let files = Arc::clone(files);
        Ok(Self { session, _weights: weights, _files: files, classes, logits: Vec::new() })
    }

    fn run(&mut self, pixels: &[f32], rows: u32, extent: Extent) -> Result<(), ort::Error> {
        let shape = [rows, 3, extent.height, extent.width].map(i64::from);
        let input = TensorRef::from_array_view((shape, pixels))?;
        let outputs = self.session.run(ort::inputs![PIXELS => input])?;
        let (shape, values) = outputs[LOGITS].try_extract_tensor::<f32>()?;
        if **shape != [i64::from(rows), i64::from(self.classes)] {
            let [rows, classes] = [rows, self.classes];
            let problem = format!("logits are {shape:?}, but [{rows}, {classes}] was expected");
            return Err(ort::Error::new(problem));
        }
        self.logits.clear();
        self.logits.extend_from_slice(values);
        Ok(())
    }
}

impl Device for OrtClassifier {
    fn classes(&self) -> u32 {
        self.classes
    }

    fn classify(
        &mut self,
        pixels: &[f32],
        rows: u32,
        extent: Extent,
    ) -> Result<&[f32], DeviceError> {
        let ran = self.run(pixels, rows, extent);
        ran.map_err(|error| DeviceError(error.to_string()))?;
        Ok(&self.logits)
    }
}

/// Axes of a tensor of f32; none of anything else.
fn rank(value: &ValueType) -> Option<usize> {
    match value {
        ValueType::Tensor { ty: TensorElementType::Float32, shape, .. } => Some(shape.len()),
        _ => None,
    }
}

impl fmt::Debug for OrtClassifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OrtClassifier").field("classes", &self.classes).finish_non_exhaustive()
    }
}
