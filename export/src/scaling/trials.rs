//! Trainings as the fits see them, from run directories and from tables.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use aerie_models::{Family, Model, ModelConfig, census, images, presets};
use serde::Serialize;
use thiserror::Error;

use crate::{
    checkpoint::{CheckpointError, LOG_FILE, RunDir},
    run::{Data, Run},
    scaling::sheet::{Sheet, SheetError},
};

/// Columns that a table of trainings has.
pub(super) const COLUMNS: [&str; 6] =
    ["model", "parameters", "epochs", "learning_rate", "flops", "loss"];
/// Columns that this command adds when it writes a table; they are not read.
pub(super) const ADDED: [&str; 3] = ["best", "edge", "envelope"];
/// What stands for a loss that is none.
pub(super) const DIVERGED: &str = "diverged";
/// Most trainings.
const TRIALS_MAX: usize = 1 << 18;

/// A training that went to its end or diverged.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Trial {
    pub(super) model: String,
    pub(super) parameters: f64,
    /// Passes over the data.
    pub(super) epochs: f64,
    /// The highest of the schedule.
    pub(super) learning_rate: f64,
    pub(super) flops: f64,
    /// On data that was not trained on; none if the training diverged.
    pub(super) loss: Option<f64>,
}

/// A training that says nothing yet.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LeftOut {
    pub(super) run: PathBuf,
    pub(super) why: String,
}

/// Trainings in an order that does not depend on the order in which they were given.
#[derive(Debug)]
pub(super) struct Trials {
    pub(super) all: Vec<Trial>,
    pub(super) left_out: Vec<LeftOut>,
}

/// Why trainings cannot be used together.
#[derive(Debug, Error)]
pub enum TrialsError {
    #[error(transparent)]
    Sheet(#[from] SheetError),
    #[error(transparent)]
    Run(#[from] CheckpointError),
    #[error("{}: there is no run.toml, so this is no run directory", path.display())]
    NoRun { path: PathBuf },
    #[error("{}: the run's model is not made for its data", path.display())]
    Model { path: PathBuf },
    #[error("{}: the log is not of {unit}, but run.toml is", path.display())]
    Unit { path: PathBuf, unit: &'static str },
    #[error(
        "{}: there is no checkpoint from a second epoch, so nothing tells how long one is: give \
         --epoch-size", path.display()
    )]
    Epoch { path: PathBuf },
    #[error("{place}: column parameters: {model} has {found}, but {expected} at {other}")]
    Parameters { place: String, model: String, found: f64, expected: f64, other: String },
    #[error("{}: trained on {found}, but others on {expected}", path.display())]
    Kinds { path: PathBuf, found: &'static str, expected: &'static str },
    #[error("{found} trainings; at most {TRIALS_MAX} are compared")]
    Many { found: usize },
    #[error("there is no training at its end{}", first(left_out))]
    Empty { left_out: Vec<LeftOut> },
}

impl Trials {
    /// Reads run directories and tables.
    ///
    /// # Errors
    /// See [`TrialsError`].
    pub(super) fn read(
        runs: &[PathBuf],
        tables: &[PathBuf],
        epoch_size: Option<u64>,
    ) -> Result<Self, TrialsError> {
        let mut placed = Vec::new();
        for path in tables {
            for (line, trial) in parse(Sheet::read(path)?)? {
                placed.push((format!("{}: line {line}", path.display()), trial));
            }
        }
        let mut left_out = Vec::new();
        let mut kind = None;
        for path in runs {
            let (unit, trial) = read_run(path, epoch_size)?;
            let expected = *kind.get_or_insert(unit);
            if unit != expected {
                return Err(TrialsError::Kinds { path: path.clone(), found: unit, expected });
            }
            match trial {
                Ok(trial) => placed.push((path.display().to_string(), trial)),
                Err(why) => left_out.push(LeftOut { run: path.clone(), why }),
            }
        }
        left_out.sort_by(|a, b| a.run.cmp(&b.run));
        let all = sorted(placed)?;
        if all.iter().all(|it| it.loss.is_none()) {
            return Err(TrialsError::Empty { left_out });
        }
        Ok(Self { all, left_out })
    }
}

/// Of runs that are all left out, why the first is.
fn first(left_out: &[LeftOut]) -> String {
    left_out.first().map_or_else(String::new, |LeftOut { run, why }| {
        format!("; {} is left out: {why}", run.display())
    })
}

/// Trials of a table, with their lines.
pub(super) fn parse(sheet: Sheet) -> Result<Vec<(usize, Trial)>, SheetError> {
    let known: Vec<&str> = COLUMNS.iter().chain(&ADDED).copied().collect();
    let sheet = sheet.only(&known)?.with(&COLUMNS)?;
    let trial = |row| {
        let model = sheet.cell(row, "model")?;
        if model.is_empty() || model.contains('"') {
            return Err(sheet.wrong(row, "model", "a name without quotes"));
        }
        let loss = match sheet.cell(row, "loss")?.to_ascii_lowercase().as_str() {
            DIVERGED | "nan" | "inf" => None,
            _ => Some(sheet.positive(row, "loss")?),
        };
        let trial = Trial {
            model: model.to_owned(),
            parameters: sheet.positive(row, "parameters")?,
            epochs: sheet.positive(row, "epochs")?,
            learning_rate: sheet.positive(row, "learning_rate")?,
            flops: sheet.positive(row, "flops")?,
            loss,
        };
        Ok((row.line, trial))
    };
    sheet.rows().iter().map(trial).collect()
}

fn sorted(placed: Vec<(String, Trial)>) -> Result<Vec<Trial>, TrialsError> {
    if TRIALS_MAX < placed.len() {
        return Err(TrialsError::Many { found: placed.len() });
    }
    let mut sizes: BTreeMap<&str, (&str, f64)> = BTreeMap::new();
    for (place, trial) in &placed {
        let (other, expected) = *sizes.entry(&trial.model).or_insert((place, trial.parameters));
        if trial.parameters != expected {
            return Err(TrialsError::Parameters {
                place: place.clone(),
                model: trial.model.clone(),
                found: trial.parameters,
                expected,
                other: other.to_owned(),
            });
        }
    }
    let mut all: Vec<Trial> = placed.into_iter().map(|it| it.1).collect();
    all.sort_by(|a, b| {
        let numbers = |it: &Trial| {
            let loss = it.loss.unwrap_or(f64::INFINITY);
            [it.parameters, it.epochs, it.learning_rate, it.flops, loss]
        };
        let [x, y] = [a, b].map(numbers);
        let differs = x.iter().zip(&y).map(|(x, y)| x.total_cmp(y)).find(|it| it.is_ne());
        differs.unwrap_or_else(|| a.model.cmp(&b.model))
    });
    Ok(all)
}

/// A run: what it was on, and the training or why it says nothing yet.
type Read = (&'static str, Result<Trial, String>);

fn read_run(path: &Path, epoch_size: Option<u64>) -> Result<Read, TrialsError> {
    let dir = RunDir::new(path);
    if !dir.exists() {
        return Err(TrialsError::NoRun { path: path.to_owned() });
    }
    let run = dir.run()?;
    let unit = match &run.data {
        Data::Text(_) => "tokens",
        Data::Images(_) => "images",
    };
    let log = path.join(LOG_FILE);
    if !log.exists() {
        return Ok((unit, Err("it has no log".to_owned())));
    }
    let sheet = Sheet::read(&log)?;
    if !sheet.has(unit) {
        return Err(TrialsError::Unit { path: log, unit });
    }
    let mut last = (0, 0, None);
    for row in sheet.rows() {
        let loss = match sheet.cell(row, "valid_loss")? {
            "" => None,
            _ => Some(sheet.positive(row, "valid_loss")?),
        };
        last = (sheet.count(row, "step")?, sheet.count(row, unit)?, loss);
    }
    let (step, seen, loss) = last;
    let steps = run.train.steps;
    let trial = match loss {
        _ if step < steps => Err(format!("it stands at step {step} of {steps}")),
        None => Err("its last step was not validated".to_owned()),
        Some(loss) => {
            let epochs = epochs(&dir, &run, seen, epoch_size)?
                .ok_or_else(|| TrialsError::Epoch { path: path.to_owned() })?;
            let trial = trial(&run, seen, epochs, loss);
            Ok(trial.ok_or_else(|| TrialsError::Model { path: path.to_owned() })?)
        }
    };
    Ok((unit, trial))
}

/// None if the run's model is not made for its data.
fn trial(run: &Run, seen: u64, epochs: f64, loss: f64) -> Option<Trial> {
    let seen = seen as f64;
    let (model, parameters, flops) = match (&run.model, &run.data) {
        (Model::Images(config), Data::Images(data)) => {
            let parameters = images::census::parameter_total(config) as f64;
            let shown = &data.preprocessing;
            let macs = images::census::macs(config, shown.height, shown.width) as f64;
            // Backward is two products for each of forward; each is a multiplication and an addition.
            (image_name(config, parameters), parameters, 3.0 * 2.0 * macs * seen)
        }
        (Model::Language(config), Data::Text(_)) => {
            let parameters = census::parameter_total(config) as f64;
            (language_name(config, parameters), parameters, 6.0 * parameters * seen)
        }
        _ => return None,
    };
    let learning_rate = run.train.learning_rate;
    Some(Trial { model, parameters, epochs, learning_rate, flops, loss: Some(loss) })
}

/// Passes over the data after `seen` images or tokens; none if nothing tells how long one is.
fn epochs(
    dir: &RunDir,
    run: &Run,
    seen: u64,
    epoch_size: Option<u64>,
) -> Result<Option<f64>, CheckpointError> {
    // A row of the shuffle is a picture however often it is drawn, or a row of tokens.
    let (row_draws, row_size) = match &run.data {
        Data::Images(data) => (f64::from(data.batch.multiplicity), 1.0),
        Data::Text(data) => (f64::from(data.time), f64::from(data.time)),
    };
    let rows = |seen: u64| seen as f64 / row_draws;
    if let Some(size) = epoch_size {
        return Ok(Some(rows(seen) * row_size / size as f64));
    }
    let Some(checkpoint) = dir.latest()? else { return Ok(None) };
    let at = checkpoint.progress()?;
    let length = (rows(at.seen) - at.row as f64) / at.epoch as f64;
    Ok((0 < at.epoch && 0.0 < length).then(|| rows(seen) / length))
}

fn image_name(config: &images::ImageConfig, parameters: f64) -> String {
    let classes = config.classes;
    let is_like = |name: &&str| {
        images::presets::preset(name)
            .is_some_and(|it| images::ImageConfig { classes, ..it } == *config)
    };
    let family = || format!("{:?}", config.family).to_ascii_lowercase();
    let name = images::presets::names().find(is_like);
    name.map_or_else(|| format!("{}-{parameters}", family()), str::to_owned)
}

fn language_name(config: &ModelConfig, parameters: f64) -> String {
    let vocab = config.vocab;
    let is_like = |name: &&str| {
        presets::preset(name).is_some_and(|it| ModelConfig { vocab, ..it } == *config)
    };
    let family = match config.family {
        Family::Griffin => "griffin",
        Family::Hawk => "hawk",
        Family::Mqa => "mqa",
    };
    let name = presets::names().find(is_like);
    name.map_or_else(|| format!("{family}-{parameters}"), str::to_owned)
}
