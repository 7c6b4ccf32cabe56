//! AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101) with clipping by the norm of all gradients.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use aerie_models::{Path, Role};
use tch::{Tensor, no_grad};

use crate::{
    checkpoint::{Tensors, Values},
    run::AdamwConfig,
    torch::{
        optimizer::{Update, gradient_norm, restore},
        parameters::{Parameters, ParametersError, values},
        shim::{self, Rates},
    },
};

/// What keeps the update finite where a second moment is zero.
const EPSILON: f64 = 1e-8;

/// The optimiser's state: two moments of each parameter.
#[derive(Debug)]
pub struct AdamW {
    config: AdamwConfig,
    moments: BTreeMap<Path, [Tensor; 2]>,
}

impl AdamW {
    /// An optimiser that has not seen a gradient.
    pub fn new(config: AdamwConfig, parameters: &Parameters) -> Self {
        let moments = parameters
            .learnt()
            .map(|(path, it)| (path.clone(), [(); 2].map(|()| it.detach().zeros_like())));
        Self { config, moments: moments.collect() }
    }

    /// An optimiser that goes on from a checkpoint.
    ///
    /// # Errors
    /// If a moment is missing or has another shape than its parameter.
    pub fn load(
        config: AdamwConfig,
        parameters: &Parameters,
        tensors: &Tensors,
    ) -> Result<Self, ParametersError> {
        let mut optimizer = Self::new(config, parameters);
        for (path, moments) in &mut optimizer.moments {
            for (moment, suffix) in moments.iter_mut().zip(["m", "v"]) {
                restore(moment, tensors, path.child(suffix).to_string())?;
            }
        }
        Ok(optimizer)
    }

    /// Takes step number `step`, the first being 1, with the gradients that have gathered in
    /// `parameters`, and clears them.
    pub fn step(&mut self, parameters: &Parameters, step: u64, learning_rate: f64) -> Update {
        let AdamwConfig { beta1, beta2, clip, .. } = self.config;
        no_grad(|| {
            let norm = gradient_norm(parameters);
            let exponent = step as f64;
            for (path, parameter) in parameters.iter() {
                let Some(moments) = self.moments.get_mut(path) else { continue };
                let decay = if parameter.role == Role::Matrix { self.config.decay } else { 0.0 };
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
            Update { gradient_norm: norm, clipped: None }
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
