//! The lowest loss for each amount of compute.

use serde::Serialize;

use crate::scaling::trials::Trial;

/// A training that none with as little compute is better than.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Corner {
    pub(super) flops: f64,
    pub(super) loss: f64,
    pub(super) model: String,
    pub(super) epochs: f64,
    pub(super) learning_rate: f64,
}

/// Corners of the envelope, compute rising and loss falling.
pub(super) fn envelope(trials: &[Trial]) -> Vec<Corner> {
    let mut finite: Vec<(f64, &Trial)> =
        trials.iter().filter_map(|it| Some((it.loss?, it))).collect();
    finite.sort_by(|a, b| a.1.flops.total_cmp(&b.1.flops).then(a.0.total_cmp(&b.0)));
    let mut corners: Vec<Corner> = Vec::new();
    for (loss, trial) in finite {
        if corners.last().is_none_or(|it| loss < it.loss) {
            corners.push(Corner {
                flops: trial.flops,
                loss,
                model: trial.model.clone(),
                epochs: trial.epochs,
                learning_rate: trial.learning_rate,
            });
        }
    }
    corners
}

/// `(C, L)` of the corners.
pub(super) fn points(corners: &[Corner]) -> Vec<(f64, f64)> {
    corners.iter().map(|it| (it.flops, it.loss)).collect()
}
