//! Classifiers: the bundle's graph beside libtorch in f64 on the checkpoint that it was made of, whose
//! weights are not in the bundle any more as they were.

use std::{fmt, path::Path};

use aerie_models::{ImageConfig, Manifest, ParameterSpec, Parametric, bundle::MODEL_FILE};
use rand::Rng;
use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};

use crate::{
    checkpoint::{RunDir, Tensors, Values},
    onnx::{Weights, weights::Checkpoint},
    runtime::{Runtime, classifier::Classifier},
    torch::reference,
    verify::VerifyError,
};

/// Logits differ by this share of the largest at most, in f32.
const TOLERANCE: f64 = 1e-4;
/// The same of a bundle whose weights have 16 bits.
const TOLERANCE_F16: f64 = 2e-2;

/// How far the graph is from libtorch.
#[derive(Debug)]
pub(super) struct ImageReport {
    limit: f64,
    rows: Vec<Row>,
}

#[derive(Debug)]
struct Row {
    /// `B`, `H` and `W`.
    extent: [usize; 3],
    /// Largest logit of libtorch.
    scale: f64,
    /// Largest difference, as a share of `scale`.
    worst: f64,
}

impl ImageReport {
    pub(super) fn passes(&self) -> bool {
        self.rows.iter().all(|it| it.worst <= self.limit)
    }
}

impl fmt::Display for ImageReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "reference: libtorch in f64")?;
        writeln!(f, "tolerance: {:.0e} of the largest logit\n", self.limit)?;
        writeln!(f, "{:<24} {:>14} {:>12}", "images", "largest logit", "difference")?;
        for Row { extent: [images, height, width], scale, worst } in &self.rows {
            let verdict = if *worst <= self.limit { "ok" } else { "BEYOND" };
            let images = format!("{images} of {height} by {width}");
            writeln!(f, "{images:<24} {scale:>14.3} {worst:>12.1e}  {verdict}")?;
        }
        Ok(())
    }
}

/// Runs noise of several extents through both.
pub(super) fn verify(
    runtime: &Runtime,
    dir: &Path,
    manifest: &Manifest<ImageConfig>,
    checkpoint: &Path,
    seed: u64,
    tolerance: Option<f64>,
) -> Result<ImageReport, VerifyError> {
    let tensors = read(checkpoint, &manifest.model)?;
    let mut graph = Classifier::open(runtime, &dir.join(MODEL_FILE))?;
    let input = &manifest.interface.input;
    let [height, width] = [input.height, input.width].map(|it| it as usize);
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut rows = Vec::new();
    // As it is used; several at once; odd and unequal.
    for extent in [[1, height, width], [3, height, width], [1, height + 1, width + 15]] {
        let [images, height, width] = extent;
        let elements = images * 3 * height * width;
        let pixels: Vec<f32> = (0..elements).map(|_| rng.random_range(-2.0..2.0)).collect();
        let shape = [images, 3, height, width];
        let expected = reference::classify(&manifest.model, &tensors, shape, &pixels)?;
        let found = graph.logits(shape, pixels)?;
        let scale = expected.iter().fold(0.0, |it: f64, x| it.max(x.abs()));
        let difference = |(a, b): (&f32, &f64)| (f64::from(*a) - b).abs();
        // What is not a number is as far away as can be.
        let far = |it: f64| if it.is_nan() { f64::INFINITY } else { it };
        let differences = found.iter().zip(&expected).map(difference).map(far);
        let worst = differences.fold(0.0, f64::max) / scale;
        rows.push(Row { extent, scale, worst });
    }
    let default = match manifest.precision {
        aerie_models::Precision::F32 => TOLERANCE,
        _ => TOLERANCE_F16,
    };
    Ok(ImageReport { limit: tolerance.unwrap_or(default), rows })
}

/// The parameters of a run directory or of a safetensors file.
fn read(path: &Path, model: &ImageConfig) -> Result<Tensors, VerifyError> {
    if path.is_dir() {
        let error = || VerifyError::NoCheckpoint { path: path.to_owned() };
        return Ok(RunDir::new(path).latest()?.ok_or_else(error)?.model()?);
    }
    let checkpoint = Checkpoint::open(path, model)?;
    let load = |(path, spec): (aerie_models::Path, ParameterSpec)| {
        let values = checkpoint.load(path.as_str(), &spec)?;
        let extent = |&it: &u64| usize::try_from(it).expect("the tensor is in memory");
        let shape = spec.shape.iter().map(extent).collect();
        Ok((path.to_string(), Values { shape, values }))
    };
    model.parameters().into_iter().map(load).collect()
}
