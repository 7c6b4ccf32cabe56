//! The gradient of a batch: of its loss, or of what makes training prefer flat places.

#[cfg(test)]
mod tests;

use tch::{Kind, Tensor, no_grad};

use crate::{
    run::{Flatness, GradientNormForm},
    torch::{parameters::Parameters, train::task::Task},
};

/// Adds `weight` times the gradient of a batch to what `parameters` have gathered; returns the loss of
/// the batch. What a network draws by chance is drawn from `seed`.
pub(super) fn gather<T: Task>(
    task: &T,
    parameters: &Parameters,
    batch: &T::Batch,
    how: (Flatness, f64),
    seed: u64,
) -> f64 {
    let (flatness, weight) = how;
    let loss = |batch: &T::Batch| task.loss(parameters, batch, seed);
    match flatness {
        Flatness::Off => {
            let found = loss(batch);
            (&found * weight).backward();
            found.double_value(&[])
        }
        Flatness::Sam { radius, share, .. } => {
            let ascent = gradients(&loss(&task.part(batch, share)), parameters, false);
            let before = climb(parameters, &ascent, radius / norm(&ascent));
            let found = loss(batch);
            (&found * weight).backward();
            put(parameters, &before);
            found.double_value(&[])
        }
        Flatness::GradientNorm { lambda, form: GradientNormForm::Exact } => {
            let found = loss(batch);
            let slopes = gradients(&found, parameters, true);
            let squares: Vec<Tensor> = slopes.iter().map(|it| it.square().sum(it.kind())).collect();
            let square = Tensor::stack(&squares, 0).sum(found.kind());
            ((&found + square * (lambda / 4.0)) * weight).backward();
            found.double_value(&[])
        }
        Flatness::GradientNorm { lambda, form: GradientNormForm::Difference { radius } } => {
            let found = loss(batch);
            let here = gradients(&found, parameters, false);
            // ∇(λ/4 ‖g‖²) = λ/2 · H g, and H g ≈ (∇C(w + r g/‖g‖) - g) · ‖g‖/r.
            let step = radius / norm(&here);
            let before = climb(parameters, &here, step);
            let there = gradients(&loss(batch), parameters, false);
            put(parameters, &before);
            let share = lambda / 2.0 / step;
            for (((_, it), here), there) in parameters.learnt().zip(&here).zip(&there) {
                add_gradient(it, &((here + (there - here) * share) * weight));
            }
            found.double_value(&[])
        }
    }
}

/// Gradients of `loss`, in the order of the parameters.
fn gradients(loss: &Tensor, parameters: &Parameters, twice: bool) -> Vec<Tensor> {
    let leaves: Vec<Tensor> = parameters.learnt().map(|(_, it)| it.shallow_clone()).collect();
    Tensor::run_backward(&[loss], &leaves, twice, twice)
}

/// Norm of all of them together.
fn norm(gradients: &[Tensor]) -> f64 {
    let squares: Vec<Tensor> = gradients.iter().map(|it| it.square().sum(Kind::Double)).collect();
    Tensor::stack(&squares, 0).sum(Kind::Double).sqrt().double_value(&[]).max(f64::MIN_POSITIVE)
}

/// Moves the learnt parameters by `step` times `gradients`; returns where all were.
fn climb(parameters: &Parameters, gradients: &[Tensor], step: f64) -> Vec<Tensor> {
    no_grad(|| {
        let before = parameters.iter().map(|(_, it)| it.tensor.detach().copy()).collect();
        for ((_, it), gradient) in parameters.learnt().zip(gradients) {
            let _ = it.shallow_clone().g_add_(&(gradient * step));
        }
        before
    })
}

/// Puts all parameters where they were, bit for bit: averages over batches, too, which are to be of what is
/// learnt and not of places beside it.
fn put(parameters: &Parameters, before: &[Tensor]) {
    no_grad(|| {
        for ((_, it), before) in parameters.iter().zip(before) {
            it.tensor.shallow_clone().copy_(before);
        }
    });
}

/// Adds to the gradient that a leaf has gathered.
fn add_gradient(leaf: &Tensor, gradient: &Tensor) {
    (leaf * gradient.detach()).sum(leaf.kind()).backward();
}
