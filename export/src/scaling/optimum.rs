//! How compute is best spent: on size or on epochs.

use serde::Serialize;

use crate::scaling::{
    Lack, Outcome,
    fit::{self, Bootstrap, Estimate, Linear},
    rates::Edge,
    trials::Trial,
};

/// Trainings with about the same compute.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Budget {
    /// The middle of their compute, by its logarithm.
    pub(super) flops: f64,
    /// Different sizes.
    pub(super) sizes: usize,
    /// The best number of parameters: a parabola's in its logarithm, or else the best that was tried.
    pub(super) parameters: f64,
    /// Epochs that go with it.
    pub(super) epochs: f64,
    pub(super) edge: Edge,
}

/// The best number of parameters and of epochs as powers of the compute.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Growth {
    pub(super) budgets: usize,
    /// The compute at which the factors hold.
    pub(super) reference_flops: f64,
    /// Parameters at the reference.
    pub(super) parameters: Estimate,
    pub(super) parameters_exponent: Estimate,
    /// Epochs at the reference.
    pub(super) epochs: Estimate,
    pub(super) epochs_exponent: Estimate,
    /// Of the exponents: above 1, size grows faster than epochs.
    pub(super) ratio: Estimate,
}

/// Budgets, each a `factor` apart. `exponent` is how the loss falls with compute, by which trainings of one
/// budget are made comparable: without it the one that had the most compute would look best.
pub(super) fn budgets(trials: &[Trial], factor: f64, exponent: f64) -> Vec<Budget> {
    let least = trials.iter().map(|it| it.flops).fold(f64::INFINITY, f64::min);
    // The least lies in the middle of the first, so that a sweep in steps of the factor is not cut in two.
    let place = |it: &Trial| ((it.flops / least).ln() / factor.ln()).round();
    let mut sorted: Vec<&Trial> = trials.iter().filter(|it| it.loss.is_some()).collect();
    sorted.sort_by(|a, b| a.flops.total_cmp(&b.flops));
    sorted.chunk_by(|a, b| place(a) == place(b)).map(|it| budget(it, exponent)).collect()
}

/// What one size came to.
#[derive(Clone, Copy, Debug)]
struct Size {
    parameters: f64,
    epochs: f64,
    loss: f64,
}

fn budget(trials: &[&Trial], exponent: f64) -> Budget {
    let logs: f64 = trials.iter().map(|it| it.flops.ln()).sum();
    let flops = (logs / trials.len() as f64).exp();
    let mut all: Vec<Size> = trials
        .iter()
        .filter_map(|it| {
            let loss = it.loss? * (it.flops / flops).powf(exponent);
            Some(Size { parameters: it.parameters, epochs: it.epochs, loss })
        })
        .collect();
    all.sort_by(|a, b| a.parameters.total_cmp(&b.parameters).then(a.loss.total_cmp(&b.loss)));
    all.dedup_by(|later, kept| later.parameters == kept.parameters);
    let best = (0..all.len()).min_by(|&a, &b| all[a].loss.total_cmp(&all[b].loss));
    let best = best.expect("a budget has a training");
    let points: Vec<(f64, f64)> = all.iter().map(|it| (it.parameters.ln(), it.loss)).collect();
    // Epochs of a size in between lie on the line of its neighbours' logarithms.
    let near = &all[best.saturating_sub(2)..all.len().min(best + 3)];
    let x = near.iter().map(|it| it.parameters.ln()).collect();
    let y: Vec<f64> = near.iter().map(|it| it.epochs.ln()).collect();
    let line = Linear::fit(&[x], &y);
    let (parameters, epochs) = match (fit::lowest(&points), line) {
        (Some(lowest), Some(line)) => (lowest.exp(), line.at(&[lowest]).exp()),
        _ => (all[best].parameters, all[best].epochs),
    };
    let edge = Edge::of(best, all.len());
    Budget { flops, sizes: all.len(), parameters, epochs, edge }
}

/// Powers through the budgets whose best size is not at an edge: one that is might be any size beyond.
pub(super) fn growth(budgets: &[Budget], bootstrap: Bootstrap) -> Outcome<Growth> {
    let inside: Vec<&Budget> = budgets.iter().filter(|it| it.edge == Edge::Inside).collect();
    let of = "budgets whose best size is not at an edge";
    let lack = Lack { of, needs: 3, has: inside.len() };
    if lack.has < lack.needs {
        return Outcome::Lacking(lack);
    }
    let points: Vec<(f64, f64)> = inside.iter().map(|it| (it.flops, it.parameters)).collect();
    let reference_flops = fit::reference(&points);
    let x = [inside.iter().map(|it| (it.flops / reference_flops).ln()).collect::<Vec<_>>()];
    let logs = |number: fn(&Budget) -> f64| -> Vec<f64> {
        inside.iter().map(|it| number(it).ln()).collect()
    };
    let sets = [logs(|it| it.parameters), logs(|it| it.epochs)];
    let lines = sets.each_ref().map(|y| Linear::fit(&x, y));
    let [Some(size), Some(length)] = lines else { return Outcome::Lacking(lack) };
    let told = |[size, length]: [&Linear; 2]| {
        let [n, e] = [size.factors[0], length.factors[0]];
        vec![size.constant.exp(), n, length.constant.exp(), e, n / e]
    };
    let best = told([&size, &length]);
    let fitted = [&size, &length].map(|it| it.along(&x, inside.len()));
    let residuals = [0, 1].map(|it: usize| {
        let residuals: Vec<f64> = sets[it].iter().zip(&fitted[it]).map(|(y, at)| y - at).collect();
        fit::dealt(&residuals, 2)
    });
    // Both are dealt the residuals of the same budgets: more size is fewer epochs.
    let refit = |drawn: &[usize]| {
        let [size, length] = [0, 1].map(|it: usize| {
            let y = fitted[it].iter().zip(drawn).map(|(y, &from)| y + residuals[it][from]);
            Linear::fit(&x, &y.collect::<Vec<_>>())
        });
        Some(told([&size?, &length?]))
    };
    let estimates = bootstrap.estimates(inside.len(), &best, refit);
    let [parameters, parameters_exponent, epochs, epochs_exponent, ratio] =
        estimates.try_into().expect("an estimate for each number");
    Outcome::Found(Growth {
        budgets: inside.len(),
        reference_flops,
        parameters,
        parameters_exponent,
        epochs,
        epochs_exponent,
        ratio,
    })
}
