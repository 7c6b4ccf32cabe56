//! `aerie-export scaling`: what a sweep of trainings says of larger ones. The best learning rates, the
//! lowest loss for each amount of compute, laws of it, and how size and epochs are best chosen.
//!
//! After Smith, Brock, Berrada and De 2023, "ConvNets Match Vision Transformers at Scale"
//! (arXiv:2310.16764), who read such laws off by eye.

mod envelope;
mod fit;
mod optimum;
mod plot;
mod rates;
mod report;
mod sheet;
#[cfg(test)]
mod tests;
mod trials;

use std::{
    fs,
    io::{self, Write},
    ops::RangeInclusive,
    path::PathBuf,
};

use serde::Serialize;
use thiserror::Error;

use crate::{
    checkpoint::{CheckpointError, write_atomically},
    scaling::{
        fit::Bootstrap,
        report::Report,
        sheet::SheetError,
        trials::{Trials, TrialsError},
    },
};

/// Finds scaling laws in a sweep of trainings: best learning rates, loss over compute, best sizes
#[derive(Debug, clap::Args)]
#[command(after_help = "\
A sweep is a few sizes of one model, each trained for a few numbers of epochs, each of these with
a few learning rates. Give the run directories, or a CSV file with these columns in any order:

  model          a name; one name has one number of parameters
  parameters     numbers that the model learns
  epochs         passes over the data
  learning_rate  the highest of the schedule
  flops          compute of the training: 6 for each weight's multiplication of each example
  loss           on data that was not trained on, at the end; `diverged` if there was none

Compute of a run directory is 3 · 2 · MACs · images, or 6 · parameters · tokens; what flatness and
validation cost is not counted. Runs that are not at their end are left out, and the table says so.

What is found, each with 95 % intervals where it is a fit:
  1. the best learning rate of every size and number of epochs, flagged if it is the lowest or the
     highest tried; of at least three, also where a parabola in its logarithm is lowest
  2. the envelope: trainings that none with as little compute is better than
  3. log L = a - b log(C/C0) and L = floor + a (C/C0)^-b through the envelope
  4. the best number of parameters and of epochs over compute, as powers, and the ratio of the two
  5. how the best learning rate goes with epochs and parameters
  6. what a fit to at most a quarter of the largest compute says of the largest

Examples:
  aerie-export scaling runs/sweep/*
  aerie-export scaling --csv sweep.csv --out laws
  aerie-export scaling runs/a runs/b --csv earlier.csv --epoch-size 50000")]
pub struct Args {
    /// Run directories
    #[arg(value_name = "RUN", required_unless_present = "csv")]
    runs: Vec<PathBuf>,
    /// Trainings from a table; may be given several times
    #[arg(long, value_name = "FILE")]
    csv: Vec<PathBuf>,
    /// Images or tokens of one epoch, for runs without a checkpoint from a second one
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    epoch_size: Option<u64>,
    /// Trainings whose compute differs by at most about this factor are one budget
    #[arg(long, value_name = "FACTOR", default_value_t = 2.0)]
    budget: f64,
    /// Draws of the bootstrap that gives the intervals
    #[arg(long, value_name = "N", default_value_t = 1000)]
    draws: u32,
    /// Seed of the bootstrap
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Where to write: PREFIX.svg, PREFIX.csv and PREFIX.json
    #[arg(long, value_name = "PREFIX", default_value = "scaling")]
    out: PathBuf,
}

/// Least and most draws of the bootstrap.
const DRAWS: RangeInclusive<u32> = 100..=100_000;
/// Narrowest and widest budgets.
const BUDGET: RangeInclusive<f64> = 1.01..=100.0;

/// Why there is nothing to say of trainings.
#[derive(Debug, Error)]
pub enum ScalingError {
    #[error("--draws is {found}; it must be from {} to {}", DRAWS.start(), DRAWS.end())]
    Draws { found: u32 },
    #[error("--budget is {found}; it must be from {} to {}", BUDGET.start(), BUDGET.end())]
    Budget { found: f64 },
    #[error(transparent)]
    Trials(#[from] TrialsError),
    #[error(transparent)]
    Sheet(#[from] SheetError),
    #[error("the picture cannot be drawn: {what}")]
    Plot { what: String },
    #[error(transparent)]
    Write(#[from] CheckpointError),
    #[error("standard output: {0}")]
    Print(#[from] io::Error),
}

/// Something found, or what there is too little of to find it.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Outcome<T> {
    Found(T),
    Lacking(Lack),
}

/// Too little data for a step.
#[derive(Clone, Debug, Error, PartialEq, Serialize)]
#[error("needs {needs} {of}, has {has}")]
struct Lack {
    of: &'static str,
    needs: usize,
    has: usize,
}

impl<T> Outcome<T> {
    fn found(&self) -> Option<&T> {
        match self {
            Self::Found(it) => Some(it),
            Self::Lacking(_) => None,
        }
    }
}

/// Runs the command.
///
/// # Errors
/// See [`ScalingError`].
pub fn run(args: &Args) -> anyhow::Result<()> {
    let report = scaling(args)?;
    io::stdout().write_all(report.to_string().as_bytes())?;
    Ok(())
}

/// Reads trainings, and writes what they say beside returning it.
fn scaling(args: &Args) -> Result<Report, ScalingError> {
    if !DRAWS.contains(&args.draws) {
        return Err(ScalingError::Draws { found: args.draws });
    }
    if !BUDGET.contains(&args.budget) {
        return Err(ScalingError::Budget { found: args.budget });
    }
    let trials = Trials::read(&args.runs, &args.csv, args.epoch_size)?;
    let bootstrap = Bootstrap { draws: args.draws, seed: args.seed };
    let report = Report::new(trials, args.budget, bootstrap);
    let picture = plot::draw(&report).map_err(|it| ScalingError::Plot { what: it.to_string() })?;
    if let Some(folder) = args.out.parent().filter(|it| !it.as_os_str().is_empty()) {
        fs::create_dir_all(folder)?;
    }
    for (ending, text) in [("svg", picture), ("csv", report.to_csv()), ("json", report.to_json())] {
        let mut path = args.out.clone().into_os_string();
        path.push(format!(".{ending}"));
        write_atomically(PathBuf::from(path).as_path(), text.as_bytes())?;
    }
    Ok(report)
}
