//! Best learning rates, and how they go with epochs and size.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::scaling::{
    Lack, Outcome,
    fit::{self, Bootstrap, Estimate, Linear},
    trials::Trial,
};

/// Learning rates of one size and number of epochs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Rates {
    pub(super) model: String,
    pub(super) parameters: f64,
    pub(super) epochs: f64,
    /// Different learning rates.
    pub(super) tried: usize,
    pub(super) diverged: usize,
    /// The training with the lowest loss; none if all diverged.
    pub(super) best: Option<Best>,
    /// Where a parabola in the logarithm of the learning rate is lowest.
    pub(super) parabola: Outcome<f64>,
}

/// A training that is the best of its kind.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Best {
    pub(super) learning_rate: f64,
    pub(super) loss: f64,
    pub(super) flops: f64,
    pub(super) edge: Edge,
}

/// Where the best of what was tried lies in it.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Edge {
    /// There is a lower and a higher one.
    Inside,
    Lowest,
    Highest,
    /// There is no other.
    Only,
}

impl Edge {
    /// Of place `at` among `count`.
    pub(super) fn of(at: usize, count: usize) -> Self {
        match (at, count) {
            (_, 0 | 1) => Self::Only,
            (0, _) => Self::Lowest,
            _ if at + 1 == count => Self::Highest,
            _ => Self::Inside,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Inside => "inside",
            Self::Lowest => "lowest",
            Self::Highest => "highest",
            Self::Only => "only",
        }
    }
}

/// Epochs that are the same to three digits are the same: runs of whole steps do not end exactly on one.
pub(super) fn kind(model: &str, epochs: f64) -> (String, String) {
    (model.to_owned(), format!("{epochs:.2e}"))
}

/// Learning rates by size and epochs, in the order of `trials`.
pub(super) fn rates(trials: &[Trial]) -> Vec<Rates> {
    let mut kinds: Vec<((String, String), Vec<&Trial>)> = Vec::new();
    let mut places: BTreeMap<(String, String), usize> = BTreeMap::new();
    for trial in trials {
        let place = *places.entry(kind(&trial.model, trial.epochs)).or_insert(kinds.len());
        if place == kinds.len() {
            kinds.push((kind(&trial.model, trial.epochs), Vec::new()));
        }
        kinds[place].1.push(trial);
    }
    kinds.iter().map(|it| of_kind(&it.1)).collect()
}

fn of_kind(trials: &[&Trial]) -> Rates {
    // The best of each learning rate; none where it only diverged.
    let mut tried: Vec<(f64, Option<&Trial>)> = Vec::new();
    let mut sorted = trials.to_vec();
    let loss = |it: &Trial| it.loss.unwrap_or(f64::INFINITY);
    sorted.sort_by(|a, b| {
        a.learning_rate.total_cmp(&b.learning_rate).then(loss(a).total_cmp(&loss(b)))
    });
    for trial in sorted {
        if tried.last().is_none_or(|it| it.0 != trial.learning_rate) {
            tried.push((trial.learning_rate, trial.loss.map(|_| trial)));
        }
    }
    let finite = || tried.iter().enumerate().filter_map(|(at, it)| Some((at, it.1?)));
    let best = finite().min_by(|a, b| loss(a.1).total_cmp(&loss(b.1)));
    let points: Vec<(f64, f64)> =
        finite().filter_map(|(_, it)| Some((it.learning_rate.ln(), it.loss?))).collect();
    let lack = |of, needs, has| Outcome::Lacking(Lack { of, needs, has });
    let parabola = match fit::lowest(&points) {
        _ if points.len() < 3 => lack("learning rates", 3, points.len()),
        Some(it) => Outcome::Found(it.exp()),
        None => lack("sides with higher losses", 2, 1),
    };
    Rates {
        model: trials[0].model.clone(),
        parameters: trials[0].parameters,
        epochs: trials[0].epochs,
        tried: tried.len(),
        diverged: trials.iter().filter(|it| it.loss.is_none()).count(),
        best: best.and_then(|(at, it)| {
            let edge = Edge::of(at, tried.len());
            let Trial { learning_rate, flops, .. } = *it;
            Some(Best { learning_rate, loss: it.loss?, flops, edge })
        }),
        parabola,
    }
}

/// `learning rate ~ epochs^e · parameters^n`, among those that are not at an edge.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Trend {
    /// Pairs of size and epochs that it was fitted to.
    pub(super) pairs: usize,
    /// `e`; none if all were trained for as long.
    pub(super) epochs: Option<Estimate>,
    /// `n`; none if there is one size.
    pub(super) parameters: Option<Estimate>,
}

/// How the best learning rate goes with epochs and parameters.
pub(super) fn trend(rates: &[Rates], bootstrap: Bootstrap) -> Outcome<Trend> {
    let inside = |it: &&Rates| it.best.is_some_and(|it| it.edge == Edge::Inside);
    let inside: Vec<&Rates> = rates.iter().filter(inside).collect();
    let logs = |number: fn(&Rates) -> f64| -> Vec<f64> {
        inside.iter().map(|it| number(it).ln()).collect()
    };
    let varies = |it: &[f64]| it.iter().any(|value| (value - it[0]).abs() > 1e-3);
    let axes = [logs(|it| it.epochs), logs(|it| it.parameters)];
    let used = axes.each_ref().map(|it| varies(it));
    let columns: Vec<Vec<f64>> =
        axes.into_iter().zip(used).filter(|it| it.1).map(|it| it.0).collect();
    let y: Vec<f64> = inside.iter().filter_map(|it| Some(rate(it)?.ln())).collect();
    let coefficients = columns.len() + 1;
    let of = "pairs of size and epochs whose best rate is not at an edge";
    let lack = Lack { of, needs: coefficients.max(2) + 1, has: inside.len() };
    if lack.has < lack.needs {
        return Outcome::Lacking(lack);
    }
    let Some(plane) = Linear::fit(&columns, &y).filter(|_| !columns.is_empty()) else {
        let of = "sizes that were trained for as long as each other";
        return Outcome::Lacking(Lack { of, needs: 2, has: 1 });
    };
    let fitted = plane.along(&columns, y.len());
    let residuals: Vec<f64> = y.iter().zip(&fitted).map(|(y, at)| y - at).collect();
    let residuals = fit::dealt(&residuals, coefficients);
    let refit = |drawn: &[usize]| {
        let y: Vec<f64> = fitted.iter().zip(drawn).map(|(y, &it)| y + residuals[it]).collect();
        Linear::fit(&columns, &y).map(|it| it.factors)
    };
    let mut estimates = bootstrap.estimates(y.len(), &plane.factors, refit).into_iter();
    let [epochs, parameters] = used.map(|it| if it { estimates.next() } else { None });
    Outcome::Found(Trend { pairs: y.len(), epochs, parameters })
}

/// The parabola's learning rate, or the best that was tried.
pub(super) fn rate(rates: &Rates) -> Option<f64> {
    rates.parabola.found().copied().or_else(|| Some(rates.best?.learning_rate))
}
