//! Runs at their ends, over an option in which they differ.

#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    fmt::{self, Display, Formatter},
    path::{Path, PathBuf},
};

use anyhow::{Context, bail, ensure};

use crate::{
    checkpoint::RunDir,
    plot::{Axis, curve, curves::Curve, read_log},
    run::{Data, Flatness, Run},
};

/// An option in which runs differ.
#[derive(Clone, Copy, Debug, Eq, PartialEq, clap::ValueEnum)]
pub(super) enum Over {
    /// The highest of the schedule
    LearningRate,
    /// Rows or images of an optimiser step
    Batch,
    /// Augmentations of an image within a batch
    Multiplicity,
    /// Coefficient of the gradient's norm in the loss; runs without one are left out
    GradientNorm,
}

impl Over {
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::LearningRate => "learning rate",
            Self::Batch => "batch",
            Self::Multiplicity => "augmentations of an image in a batch",
            Self::GradientNorm => "coefficient of the gradient's norm",
        }
    }

    /// What `run` has of it.
    fn of(self, run: &Run) -> Option<f64> {
        match (self, &run.data) {
            (Self::LearningRate, _) => Some(run.train.learning_rate),
            (Self::Batch, data) => {
                let rows = match data {
                    Data::Text(data) => data.rows,
                    Data::Images(data) => data.batch.rows(),
                };
                Some(f64::from(rows) * f64::from(run.train.accumulate))
            }
            (Self::Multiplicity, Data::Images(data)) => Some(data.batch.multiplicity.into()),
            (Self::Multiplicity, Data::Text(_)) => None,
            (Self::GradientNorm, _) => match run.train.flatness {
                Flatness::GradientNorm { lambda, .. } => Some(lambda),
                Flatness::Off | Flatness::Sam { .. } => None,
            },
        }
    }
}

/// Runs that are alike but for their seeds.
#[derive(Clone, Debug, PartialEq)]
struct Point {
    curve: String,
    x: f64,
    learning_rate: f64,
    /// One for each run.
    values: Vec<f64>,
}

impl Point {
    fn mean(&self) -> f64 {
        self.values.iter().sum::<f64>() / self.values.len() as f64
    }

    /// Of one run, as far as several tell; none if there is one.
    fn spread(&self) -> Option<f64> {
        let others = self.values.len().checked_sub(1).filter(|it| 0 < *it)?;
        let squares: f64 = self.values.iter().map(|it| (it - self.mean()).powi(2)).sum();
        Some((squares / others as f64).sqrt())
    }
}

/// The ends of runs, as a table and as curves.
#[derive(Debug)]
pub(super) struct Sweep {
    axis: Axis,
    over: Over,
    points: Vec<Point>,
    left_out: Vec<(PathBuf, String)>,
}

impl Sweep {
    /// Reads the ends of `runs`. Those within one directory are of one curve, which has its name.
    ///
    /// # Errors
    /// If a run cannot be read, none is at its end, or two of one point are unlike.
    pub(super) fn read(runs: &[PathBuf], axis: Axis, over: Over) -> anyhow::Result<Self> {
        let mut found: BTreeMap<(String, u64, u64), Point> = BTreeMap::new();
        let mut alike: BTreeMap<(String, u64), (&Path, Run)> = BTreeMap::new();
        let mut left_out = Vec::new();
        for path in runs {
            let run = RunDir::new(path).run()?;
            let (x, value) = match (over.of(&run), end(path, &run, axis)?) {
                (None, _) => {
                    left_out.push((path.clone(), format!("it has no {}", over.label())));
                    continue;
                }
                (_, Err(why)) => {
                    left_out.push((path.clone(), why));
                    continue;
                }
                (Some(x), Ok(value)) => (x, value),
            };
            let curve = path.parent().and_then(Path::file_name).unwrap_or_default();
            let curve = curve.to_string_lossy().into_owned();
            let learning_rate = run.train.learning_rate;
            let place = (curve.clone(), x.to_bits());
            let (other, expected) = alike.entry(place).or_insert_with(|| (path, bare(run.clone())));
            if *expected != bare(run) {
                let [path, other] = [path, *other].map(|it| it.display());
                bail!(
                    "{path} and {other} are of one curve and one {}, but differ in more than seeds and \
                     learning rates: each curve has a directory of its own",
                    over.label()
                );
            }
            // Bits of numbers that are not negative are in the numbers' order.
            let key = (curve.clone(), x.to_bits(), learning_rate.to_bits());
            let new = || Point { curve, x, learning_rate, values: Vec::new() };
            found.entry(key).or_insert_with(new).values.push(value);
        }
        let why = left_out.first().map_or_else(String::new, |(path, why): &(PathBuf, String)| {
            format!(": {} is left out, since {why}", path.display())
        });
        ensure!(!found.is_empty(), "no run has anything to draw yet{why}");
        Ok(Self { axis, over, points: found.into_values().collect(), left_out })
    }

    /// Of runs that differ in their learning rates only, the best are drawn.
    pub(super) fn curves(&self) -> Vec<Curve> {
        let mut curves: Vec<Curve> = Vec::new();
        for point in &self.points {
            if curves.last().is_none_or(|it| it.name != point.curve) {
                curves.push(Curve { name: point.curve.clone(), points: Vec::new() });
            }
            let points = &mut curves.last_mut().expect("there is one by now").points;
            match points.last_mut() {
                Some((x, y)) if x.to_bits() == point.x.to_bits() => {
                    *y = self.axis.better(*y, point.mean());
                }
                _ => points.push((point.x, point.mean())),
            }
        }
        curves
    }
}

impl Display for Sweep {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let over = self.over.label();
        let wide = self.points.iter().map(|it| it.curve.len()).max().unwrap_or(0).max(5);
        write!(f, "{:wide$}  ", "curve")?;
        if self.over != Over::LearningRate {
            write!(f, "{over:>13}  ")?;
        }
        writeln!(f, "learning rate  runs  {}", self.axis.label())?;
        for it in &self.points {
            write!(f, "{:wide$}  ", it.curve)?;
            if self.over != Over::LearningRate {
                write!(f, "{:>1$}  ", it.x, over.len().max(13))?;
            }
            write!(f, "{:>13}  {:>4}  {:.4}", it.learning_rate, it.values.len(), it.mean())?;
            match it.spread() {
                Some(spread) => writeln!(f, " ± {spread:.4}")?,
                None => writeln!(f)?,
            }
        }
        for (path, why) in &self.left_out {
            writeln!(f, "{} is left out: {why}", path.display())?;
        }
        Ok(())
    }
}

/// A run without what runs of one point may differ in, and what makes no difference.
fn bare(mut run: Run) -> Run {
    let it = &mut run.train;
    (it.seed, it.learning_rate) = (0, 0.0);
    (it.checkpoint_every, it.valid_every, it.log_every) = (0, 0, 0);
    run
}

/// What the log of a run ends with, or why that says nothing yet.
fn end(path: &Path, run: &Run, axis: Axis) -> anyhow::Result<Result<f64, String>> {
    let log = read_log(path).with_context(|| "a run without a log")?;
    let last = |column| curve(&log, column, String::new()).points.last().copied();
    let step = log.lines().last().and_then(|it| it.split(',').next()?.parse::<u64>().ok());
    let steps = run.train.steps;
    Ok(match (step, last("train_loss"), last(axis.column())) {
        (Some(step), ..) if step < steps => Err(format!("it stands at step {step} of {steps}")),
        (Some(_), Some((seen, _)), Some((at, value))) if at == seen => Ok(value),
        _ => Err("its last step was not validated".to_owned()),
    })
}
