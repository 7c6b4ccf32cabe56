//! AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101) with clipping by the norm of all gradients.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use aerie_models::Path;
use tch::{Kind, Tensor, no_grad};

use crate::{
    checkpoint::{Tensors, Values},
    torch::{
        parameters::{Parameters, ParametersError, values},
        shim::{self, Rates},
    },
};

/// What keeps the update finite where a second moment is zero.
const EPSILON: f64 = 1e-8;

/// Options that stay the same over a run.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    pub beta1: f64,
    pub beta2: f64,
    /// Decoupled decay, of parameters that decay at all.
    pub decay: f64,
    /// Largest norm of all gradients together; larger ones are scaled down to it.
    pub clip: f64,
}

/// The optimiser's state: two moments of each parameter.
#[derive(Debug)]
pub struct AdamW {
    config: Config,
    moments: BTreeMap<Path, [Tensor; 2]>,
}

impl AdamW {
    /// An optimiser that has not seen a gradient.
    pub fn new(config: Config, parameters: &Parameters) -> Self {
        let moments = parameters
            .iter()
            .map(|(path, it)| (path.clone(), [(); 2].map(|()| it.tensor.detach().zeros_like())));
        Self { config, moments: moments.collect() }
    }

    /// An optimiser that goes on from a checkpoint.
    ///
    /// # Errors
    /// If a moment is missing or has another shape than its parameter.
    pub fn load(
        config: Config,
        parameters: &Parameters,
        tensors: &Tensors,
    ) -> Result<Self, ParametersError> {
        let mut optimizer = Self::new(config, parameters);
        for (path, moments) in &mut optimizer.moments {
            for (moment, suffix) in moments.iter_mut().zip(["m", "v"]) {
                let name = path.child(suffix).to_string();
                let found =
                    tensors.get(&name).ok_or_else(|| ParametersError::Missing(name.clone()))?;
                let shape: Vec<i64> = found.shape.iter().map(|&it| it as i64).collect();
                if shape != moment.size() {
                    let expected = moment.size().iter().map(|&it| it as u64).collect();
                    let found = found.shape.clone();
                    return Err(ParametersError::Shape { name, found, expected });
                }
                *moment = Tensor::from_slice(&found.values).reshape(shape).to_kind(moment.kind());
            }
        }
        Ok(optimizer)
    }

    /// Takes step number `step`, the first being 1, with the gradients that have gathered in
    /// `parameters`, and clears them. Returns the norm of all gradients before clipping.
    pub fn step(&mut self, parameters: &Parameters, step: u64, learning_rate: f64) -> f64 {
        let Config { beta1, beta2, clip, .. } = self.config;
        no_grad(|| {
            let squares: Vec<Tensor> = parameters
                .iter()
                .map(|(_, it)| it.tensor.grad().square().sum(Kind::Double))
                .collect();
            let norm = Tensor::stack(&squares, 0).sum(Kind::Double).sqrt().double_value(&[]);
            let exponent = step as f64;
            for (path, parameter) in parameters.iter() {
                let moments = self.moments.get_mut(path).expect("both walk the same model");
                let decay = if parameter.decay { self.config.decay } else { 0.0 };
                let rates = Rates {
                    beta1,
                    beta2,
                    epsilon: EPSILON,
                    step_size: learning_rate / (1.0 - beta1.powf(exponent)),
                    bias2: 1.0 - beta2.powf(exponent),
                    keep: 1.0 - learning_rate * decay,
                    gradient_scale: (clip / norm).min(1.0),
                };
                let [m, v] = moments;
                shim::adamw(&parameter.tensor, &parameter.tensor.grad(), [m, v], rates);
                parameter.tensor.shallow_clone().zero_grad();
            }
            norm
        })
    }

    /// The moments as a checkpoint holds them.
    pub fn values(&self) -> Tensors {
        let named = |(path, [m, v]): (&Path, &[Tensor; 2])| {
            [("m", m), ("v", v)].map(|(suffix, it)| -> (String, Values) {
                (path.child(suffix).to_string(), values(it))
            })
        };
        self.moments.iter().flat_map(named).collect()
    }
}
