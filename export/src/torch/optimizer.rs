//! Whatever turns gradients into steps, and the average of where they lead.

#[cfg(test)]
mod tests;

use aerie_models::{Parametric, Role};
use tch::{Device, Kind, Tensor, no_grad};

use crate::{
    checkpoint::Tensors,
    run,
    torch::{
        adamw::AdamW,
        parameters::{Parameters, ParametersError},
        sgd::Sgd,
    },
};

/// An optimiser of either kind.
#[derive(Debug)]
pub enum Optimizer {
    AdamW(AdamW),
    Sgd(Sgd),
}

/// What a step did.
#[derive(Clone, Copy, Debug)]
pub struct Update {
    /// Of all gradients together, before clipping.
    pub gradient_norm: f64,
    /// Share of the units whose gradients were clipped; none if none ever is.
    pub clipped: Option<f64>,
}

impl Optimizer {
    /// An optimiser that has not seen a gradient.
    pub fn new(config: run::Optimizer, parameters: &Parameters) -> Self {
        match config {
            run::Optimizer::Adamw(config) => Self::AdamW(AdamW::new(config, parameters)),
            run::Optimizer::Sgd(config) => Self::Sgd(Sgd::new(config, parameters)),
        }
    }

    /// An optimiser that goes on from a checkpoint.
    ///
    /// # Errors
    /// If what it remembers is missing or has another shape than its parameter.
    pub fn load(
        config: run::Optimizer,
        parameters: &Parameters,
        tensors: &Tensors,
    ) -> Result<Self, ParametersError> {
        Ok(match config {
            run::Optimizer::Adamw(it) => Self::AdamW(AdamW::load(it, parameters, tensors)?),
            run::Optimizer::Sgd(it) => Self::Sgd(Sgd::load(it, parameters, tensors)?),
        })
    }

    /// Takes step number `step`, the first being 1, with the gradients that have gathered in
    /// `parameters`, and clears them.
    pub fn step(&mut self, parameters: &Parameters, step: u64, learning_rate: f64) -> Update {
        match self {
            Self::AdamW(it) => it.step(parameters, step, learning_rate),
            Self::Sgd(it) => it.step(parameters, learning_rate),
        }
    }

    /// What it remembers, as a checkpoint holds it.
    pub fn values(&self) -> Tensors {
        match self {
            Self::AdamW(it) => it.values(),
            Self::Sgd(it) => it.values(),
        }
    }
}

/// Norm of all gradients together.
pub(crate) fn gradient_norm(parameters: &Parameters) -> f64 {
    let squares: Vec<Tensor> =
        parameters.learnt().map(|(_, it)| it.grad().square().sum(Kind::Double)).collect();
    Tensor::stack(&squares, 0).sum(Kind::Double).sqrt().double_value(&[])
}

/// Sets `tensor` to what a checkpoint calls `name`.
pub(crate) fn restore(
    tensor: &mut Tensor,
    tensors: &Tensors,
    name: String,
) -> Result<(), ParametersError> {
    let Some(found) = tensors.get(&name) else { return Err(ParametersError::Missing(name)) };
    let shape: Vec<i64> = found.shape.iter().map(|&it| it as i64).collect();
    if shape != tensor.size() {
        let expected = tensor.size().iter().map(|&it| it as u64).collect();
        let found = found.shape.clone();
        return Err(ParametersError::Shape { name, found, expected });
    }
    let values = Tensor::from_slice(&found.values).reshape(shape);
    *tensor = values.to_kind(tensor.kind()).to_device(tensor.device());
    Ok(())
}

/// The average of parameters over steps (Polyak and Juditsky 1992).
#[derive(Debug)]
pub struct Average {
    decay_max: f64,
    parameters: Parameters,
}

impl Average {
    /// An average on `device` that begins at `model`'s `parameters`.
    ///
    /// # Errors
    /// If they are not those of `model`.
    pub fn new(
        decay_max: f64,
        model: &impl Parametric,
        parameters: &Tensors,
        device: Device,
    ) -> Result<Self, ParametersError> {
        let parameters = Parameters::load(model, parameters, Kind::Float)?.to_device(device);
        Ok(Self { decay_max, parameters })
    }

    /// Takes in the parameters after `step`, the first being 1. It forgets by
    /// `min(decay_max, (1 + t) / (10 + t))`, so that its beginning does not weigh on it.
    pub fn add(&mut self, parameters: &Parameters, step: u64) {
        let decay = average_decay(self.decay_max, step);
        no_grad(|| {
            for ((_, average), (_, new)) in self.parameters.iter().zip(parameters.iter()) {
                let mut average_tensor = average.tensor.shallow_clone();
                if average.role == Role::Average {
                    average_tensor.copy_(&new.tensor);
                } else {
                    let _ = average_tensor.lerp_(&new.tensor, 1.0 - decay);
                }
            }
        });
    }

    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }
}

fn average_decay(decay_max: f64, step: u64) -> f64 {
    let t = step as f64;
    decay_max.min((1.0 + t) / (10.0 + t))
}
