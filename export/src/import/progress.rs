//! Shows how far an import is: a bar over the bytes of its parameters, where somebody looks.

use std::io::{self, IsTerminal};

use aerie_models::{ModelConfig, ParameterSpec, census};
use indicatif::{ProgressBar, ProgressStyle};

use crate::onnx::{Weights, WeightsError};

/// Parameters that are counted as they are loaded.
#[derive(Debug)]
pub(super) struct Counted {
    weights: Box<dyn Weights>,
    bar: ProgressBar,
}

impl Counted {
    /// Counts up to the parameters of `config`.
    pub(super) fn new(weights: Box<dyn Weights>, config: &ModelConfig) -> Self {
        let style =
            ProgressStyle::with_template("{bar:30} {bytes}/{total_bytes}, {eta} left {msg}")
                .expect("the template is well-formed");
        let bytes = census::parameter_total(config) * size_of::<f32>() as u64;
        let is_seen = io::stderr().is_terminal();
        let bar = if is_seen { ProgressBar::new(bytes) } else { ProgressBar::hidden() };
        Self { weights, bar: bar.with_style(style) }
    }
}

impl Weights for Counted {
    fn load(&self, name: &str, spec: &ParameterSpec) -> Result<Vec<f32>, WeightsError> {
        self.bar.set_message(name.to_owned());
        let values = self.weights.load(name, spec)?;
        self.bar.inc(size_of_val(&*values) as u64);
        Ok(values)
    }
}
