//! Shows how far a long command is, where somebody looks.

use std::io::{self, IsTerminal};

use aerie_models::{ParameterSpec, Parametric};
use indicatif::{ProgressBar, ProgressStyle};

use crate::onnx::{Weights, WeightsError};

/// A bar over `total` steps; hidden where standard error is no terminal.
pub(crate) fn bar(template: &str, total: u64) -> ProgressBar {
    let style = ProgressStyle::with_template(template).expect("the template is well-formed");
    let is_seen = io::stderr().is_terminal();
    let bar = if is_seen { ProgressBar::new(total) } else { ProgressBar::hidden() };
    bar.with_style(style)
}

/// Parameters that are counted as they are loaded: a bar over their bytes.
#[derive(Debug)]
pub(crate) struct Counted {
    weights: Box<dyn Weights>,
    bar: ProgressBar,
}

impl Counted {
    /// Counts up to the parameters of `config`.
    pub(crate) fn new(weights: Box<dyn Weights>, config: &impl Parametric) -> Self {
        let bytes = config.elements() * size_of::<f32>() as u64;
        let bar = bar("{bar:30} {bytes}/{total_bytes}, {eta} left {msg}", bytes);
        Self { weights, bar }
    }
}

impl Weights for Counted {
    fn load(&self, name: &str, spec: &ParameterSpec) -> Result<Vec<f32>, WeightsError> {
        self.bar.set_message(name.to_owned());
        let values = self.weights.load(name, spec)?;
        self.bar.inc(size_of_val(&*values) as u64);
        Ok(values)
    }

    fn importance(&self, name: &str) -> Option<&[f32]> {
        self.weights.importance(name)
    }
}
