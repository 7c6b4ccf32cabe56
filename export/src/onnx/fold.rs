//! A weight with everything that is multiplied into it once and for all.

#[cfg(test)]
mod tests;

use aerie_models::{ParameterSpec, images::config::Standardise};

use crate::onnx::{Weights, WeightsError};

/// `factor · gain ⊙ standardised(weight)`, or `factor · weight`.
#[derive(Clone, Debug)]
pub(crate) struct Fold {
    /// The weight's path.
    pub(crate) name: String,
    pub(crate) spec: ParameterSpec,
    /// How it is standardised, with the path and the shape of its gains.
    pub(crate) standardised: Option<(Standardise, String, ParameterSpec)>,
    pub(crate) factor: f64,
}

impl Fold {
    pub(crate) fn new(name: String, spec: ParameterSpec) -> Self {
        Self { name, spec, standardised: None, factor: 1.0 }
    }

    /// The same times `factor`.
    pub(crate) fn times(&self, factor: f64) -> Self {
        Self { factor: self.factor * factor, ..self.clone() }
    }

    /// Computes the elements, in f64.
    ///
    /// # Errors
    /// If parameters cannot be read.
    #[expect(clippy::cast_possible_truncation, reason = "computed in f64, kept in f32")]
    pub(crate) fn load(&self, weights: &dyn Weights) -> Result<Vec<f32>, WeightsError> {
        let mut values = weights.load(&self.name, &self.spec)?;
        let Some((how, gains, gain_spec)) = &self.standardised else {
            for value in &mut values {
                *value = (f64::from(*value) * self.factor) as f32;
            }
            return Ok(values);
        };
        let gains = weights.load(gains, gain_spec)?;
        let inputs = values.len() / gains.len();
        for (unit, gain) in values.chunks_exact_mut(inputs).zip(gains) {
            let inputs = unit.len() as f64;
            let mean = unit.iter().map(|&it| f64::from(it)).sum::<f64>() / inputs;
            let square = |&it: &f32| (f64::from(it) - mean).powi(2);
            // Of a population, since the weights are all there are.
            let variance = unit.iter().map(square).sum::<f64>() / inputs;
            let scale = match how {
                Standardise::Off => unreachable!("such weights have no gains"),
                Standardise::Max => (inputs * variance).max(1e-4).sqrt().recip(),
                Standardise::Add => (inputs * (variance + 1e-5)).sqrt().recip(),
            };
            let scale = scale * f64::from(gain) * self.factor;
            for value in unit {
                *value = ((f64::from(*value) - mean) * scale) as f32;
            }
        }
        Ok(values)
    }
}
