//! What the inputs of a model's products are on a text.
//!
//! Rounding weights `w` of an output to `ŵ` changes it by `Σ_i x_i (w_i - ŵ_i)`. The mean square of
//! that over tokens is a quadratic form in the errors, whose matrix `E[x xᵀ]` is, up to a factor, what
//! Optimal Brain Quantization and GPTQ take for the Hessian (Frantar et al. 2022, arXiv:2210.17323,
//! eq. 1). Of it we keep the diagonal, as Optimal Brain Damage does of the Hessian of the loss (LeCun et
//! al. 1990): an error counts by `E[x_i²]`. So scales can be chosen one block at a time, and no
//! weight has to make up for another's error.

use std::{collections::BTreeMap, path::Path};

use aerie_models::{ModelConfig, ParameterSpec, bundle::MODEL_FILE};

use crate::{
    data::sessions::Session,
    onnx::{Weights, WeightsError, edit::collect_squares, weights::read_model},
    progress,
    quantize::QuantizeError,
    runtime::{Runtime, Segment, StepGraph},
};

/// Tokens of a step: enough that weights are read seldom.
const CHUNK_TOKENS: usize = 512;
/// Share of the mean over all inputs that is added to each: an input that never was anything on this
/// text may be something on another. GPTQ adds as much to its Hessian's diagonal.
const DAMPING: f64 = 0.01;

/// Mean squares of the inputs of each matrix, by its path: `[groups · inputs]`.
pub(crate) type Importance = BTreeMap<String, Vec<f32>>;

/// Parameters, with what their products are multiplied by.
#[derive(Debug)]
pub(crate) struct Calibrated {
    pub(crate) weights: Box<dyn Weights>,
    pub(crate) importance: Importance,
}

impl Weights for Calibrated {
    fn load(&self, name: &str, spec: &ParameterSpec) -> Result<Vec<f32>, WeightsError> {
        self.weights.load(name, spec)
    }

    fn importance(&self, name: &str) -> Option<&[f32]> {
        self.importance.get(name).map(Vec::as_slice)
    }
}

/// A graph that tells the inputs of its products.
#[derive(Debug)]
pub(crate) struct Collector {
    graph: StepGraph,
    /// Names of the outputs, by the weight's.
    outputs: BTreeMap<String, String>,
}

impl Collector {
    /// Opens the ragged graph in `dir` for what it tells besides logits.
    pub(crate) fn open(
        runtime: &Runtime,
        dir: &Path,
        config: &ModelConfig,
    ) -> Result<Self, QuantizeError> {
        let mut model = read_model(&dir.join(MODEL_FILE))?;
        let outputs = collect_squares(model.graph.get_or_insert_default())?;
        Ok(Self { graph: runtime.open_edited(&model, dir, config)?, outputs })
    }

    /// Reads `sessions` one after the other.
    ///
    /// # Errors
    /// If the runtime fails, or an input is not finite.
    pub(crate) fn importance(&mut self, sessions: &[Session]) -> Result<Importance, QuantizeError> {
        let tokens: usize = sessions.iter().map(|it| it.ids.len()).sum();
        let bar =
            progress::bar("calibrating {bar:30} {pos}/{len} tokens, {eta} left", tokens as u64);
        let mut sums: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
        self.graph.reset(1)?;
        for session in sessions {
            let mut position = 0;
            for tokens in session.ids.chunks(CHUNK_TOKENS) {
                let outputs = self.graph.step(&[Segment { lane: 0, position, tokens }])?;
                for (weight, output) in &self.outputs {
                    let squares = outputs.floats(output)?;
                    let sums = sums.entry(weight).or_default();
                    sums.resize(squares.len(), 0.0);
                    sums.iter_mut().zip(squares).for_each(|(sum, &it)| *sum += f64::from(it));
                }
                position += tokens.len();
                bar.inc(tokens.len() as u64);
            }
        }
        bar.finish_and_clear();
        let mut importance = Importance::new();
        for (weight, sums) in sums {
            let means = damped(&sums, tokens);
            if means.iter().any(|it| !it.is_finite()) {
                return Err(QuantizeError::NotFinite { weight: weight.to_owned() });
            }
            importance.insert(weight.to_owned(), means);
        }
        Ok(importance)
    }
}

/// Means of `count` squares each, none of them nothing.
#[expect(clippy::cast_possible_truncation, reason = "summed in f64, kept in f32")]
fn damped(sums: &[f64], count: usize) -> Vec<f32> {
    let all = sums.iter().sum::<f64>() / sums.len() as f64;
    sums.iter().map(|sum| ((sum + DAMPING * all) / count as f64) as f32).collect()
}
