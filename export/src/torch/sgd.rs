//! Stochastic gradient descent with momentum, and clipping of each unit's gradient by its weights.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use aerie_models::{Path, Role, images::network::is_head_weight};
use tch::{Kind, Tensor, no_grad};

use crate::{
    checkpoint::Tensors,
    run::SgdConfig,
    torch::{
        optimizer::{Update, gradient_norm, restore},
        parameters::{Parameters, ParametersError, values},
    },
};

/// Norm of weights below which clipping takes them to have this one, so that zeros can leave zero.
const WEIGHT_NORM_MIN: f64 = 1e-3;
/// Norm of gradients below which clipping takes them to have this one.
const GRADIENT_NORM_MIN: f64 = 1e-6;

/// The optimiser's state: the momentum of each parameter.
#[derive(Debug)]
pub struct Sgd {
    config: SgdConfig,
    momenta: BTreeMap<Path, Tensor>,
}

impl Sgd {
    /// An optimiser that has not seen a gradient.
    pub fn new(config: SgdConfig, parameters: &Parameters) -> Self {
        let momentum =
            |(path, tensor): (&Path, &Tensor)| (path.clone(), tensor.detach().zeros_like());
        Self { config, momenta: parameters.learnt().map(momentum).collect() }
    }

    /// An optimiser that goes on from a checkpoint.
    ///
    /// # Errors
    /// If a momentum is missing or has another shape than its parameter.
    pub fn load(
        config: SgdConfig,
        parameters: &Parameters,
        tensors: &Tensors,
    ) -> Result<Self, ParametersError> {
        let mut optimizer = Self::new(config, parameters);
        for (path, momentum) in &mut optimizer.momenta {
            restore(momentum, tensors, path.child("m").to_string())?;
        }
        Ok(optimizer)
    }

    /// Takes a step with the gradients that have gathered in `parameters`, and clears them.
    ///
    /// Clipping comes first, then decay, then momentum `v ← μ v + g`; the step is `g + μ v` where it
    /// looks ahead and `v` where it does not (Brock et al. 2021, arXiv:2102.06171, appendix).
    pub fn step(&mut self, parameters: &Parameters, learning_rate: f64) -> Update {
        let SgdConfig { momentum, nesterov, decay, clip } = self.config;
        no_grad(|| {
            let norm = gradient_norm(parameters);
            let (mut units, mut clipped) = (0.0, Vec::new());
            for (path, parameter) in parameters.iter() {
                let Some(v) = self.momenta.get_mut(path) else { continue };
                let weights = &parameter.tensor;
                let mut gradient = weights.grad();
                if let Some(share) = clip.filter(|_| !is_head_weight(path)) {
                    let scale = unit_scale(weights, &gradient, share);
                    units += scale.numel() as f64;
                    clipped.push(scale.lt(1.0).sum(Kind::Double));
                    gradient *= scale;
                }
                if parameter.role == Role::Matrix && 0.0 < decay {
                    gradient += weights * decay;
                }
                let _ = v.g_mul_scalar_(momentum).g_add_(&gradient);
                let step = if nesterov { gradient + &*v * momentum } else { v.shallow_clone() };
                let _ = weights.shallow_clone().g_sub_(&(step * learning_rate));
                weights.shallow_clone().zero_grad();
            }
            // One number is asked for at the end: each asked for makes a GPU and its driver wait.
            let clipped = clip
                .map(|_| Tensor::stack(&clipped, 0).sum(Kind::Double).double_value(&[]) / units);
            Update { gradient_norm: norm, clipped }
        })
    }

    /// The momenta as a checkpoint holds them.
    pub fn values(&self) -> Tensors {
        let named = |(path, it): (&Path, &Tensor)| (path.child("m").to_string(), values(it));
        self.momenta.iter().map(named).collect()
    }
}

/// What each unit's gradient is multiplied by, at most 1, so that its norm is at most `share` of its
/// weights' norm: adaptive gradient clipping (Brock et al. 2021, arXiv:2102.06171, eq. 3).
///
/// The units of a matrix or a kernel are its outputs; a vector or a number is one unit.
pub fn unit_scale(weights: &Tensor, gradient: &Tensor, share: f64) -> Tensor {
    let weight_norm = unit_norm(weights).clamp_min(WEIGHT_NORM_MIN);
    let gradient_norm = unit_norm(gradient).clamp_min(GRADIENT_NORM_MIN);
    (weight_norm * share / gradient_norm).clamp_max(1.0)
}

/// Norm of each unit, in a shape that multiplies the tensor.
fn unit_norm(tensor: &Tensor) -> Tensor {
    let size = tensor.size();
    if size.iter().filter(|&&it| it != 1).count() <= 1 {
        return tensor.square().sum(tensor.kind()).sqrt();
    }
    let axes: Vec<i64> = (1..size.len() as i64).collect();
    tensor.square().sum_dim_intlist(axes, true, tensor.kind()).sqrt()
}
