//! AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101) with clipping by the norm of all gradients.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use aerie_models::Path;
use tch::{Kind, Tensor, no_grad};

use crate::{
    checkpoint::{Tensors, Values},
    torch::parameters::{Parameters, ParametersError, values},
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
        no_grad(|| {
            let squares: Vec<Tensor> = parameters
                .iter()
                .map(|(_, it)| it.tensor.grad().square().sum(Kind::Double))
                .collect();
            let norm = Tensor::stack(&squares, 0).sum(Kind::Double).sqrt().double_value(&[]);
            let scale = (self.config.clip / norm).min(1.0);
            for (path, parameter) in parameters.iter() {
                let moments = self.moments.get_mut(path).expect("both walk the same model");
                let decay = if parameter.decay { self.config.decay } else { 0.0 };
                let mut tensor = parameter.tensor.shallow_clone();
                let gradient = tensor.grad() * scale;
                let update = update(self.config, moments, &gradient, step);
                if decay != 0.0 {
                    let _ = tensor.g_mul_scalar_(1.0 - learning_rate * decay);
                }
                let _ = tensor.g_sub_(&(update * learning_rate));
                tensor.zero_grad();
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

/// Moves the moments and returns what to subtract, to be scaled by the learning rate.
fn update(config: Config, [m, v]: &mut [Tensor; 2], gradient: &Tensor, step: u64) -> Tensor {
    let Config { beta1, beta2, .. } = config;
    let _ = m.g_mul_scalar_(beta1).g_add_(&(gradient * (1.0 - beta1)));
    let _ = v.g_mul_scalar_(beta2).g_add_(&(gradient.square() * (1.0 - beta2)));
    let exponent = step as f64;
    let unbiased_m = &*m * (1.0 - beta1.powf(exponent)).recip();
    let unbiased_v = &*v * (1.0 - beta2.powf(exponent)).recip();
    unbiased_m / (unbiased_v.sqrt() + EPSILON)
}
