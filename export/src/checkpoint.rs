//! The run directory of a training: what `train` writes and `emit`, `eval` and `sample` read. Knows
//! no tensor library: tensors are shapes and f32 values.
//!
//! ```text
//! <run>/run.toml             everything that fixes the run: see [`crate::run`]
//! <run>/tokenizer.json       Hugging Face tokenizers format; of runs on text
//! <run>/labels.txt           names of the classes; of runs on images
//! <run>/log.csv              one line each time the loss was looked at
//! <run>/loss.svg             the same as a picture
//! <run>/step-<n>/            a checkpoint
//!       model.safetensors        parameters, f32, by path
//!       average.safetensors      the same averaged over steps, where the run asks for it
//!       optimizer.safetensors    what the optimiser remembers, by `<path>.<letter>`
//!       progress.toml            where the run stands
//! <run>/latest               name of the newest complete checkpoint
//! ```
//!
//! `latest` is replaced by a rename after everything it names has been written, so a run that is
//! killed at any moment has a checkpoint to go on from.

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, HashMap},
    fs::{self, File, TryLockError},
    io::{self, Write},
    path::{Path, PathBuf},
};

use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use thiserror::Error;

use crate::run::Run;

/// Model and training options of a run.
pub const RUN_FILE: &str = "run.toml";
/// The run's tokenizer.
pub const TOKENIZER_FILE: &str = "tokenizer.json";
/// Names of the classes that a classifier is trained on, one a line.
pub const LABELS_FILE: &str = "labels.txt";
/// The run's log.
pub const LOG_FILE: &str = "log.csv";
/// The log as a picture.
pub const PLOT_FILE: &str = "loss.svg";
/// Name of the newest complete checkpoint.
const LATEST_FILE: &str = "latest";
/// Parameters of a checkpoint.
const MODEL_FILE: &str = "model.safetensors";
/// Averaged parameters of a checkpoint.
const AVERAGE_FILE: &str = "average.safetensors";
/// What the optimiser remembers at a checkpoint.
const OPTIMIZER_FILE: &str = "optimizer.safetensors";
/// Where the run stood at a checkpoint.
const PROGRESS_FILE: &str = "progress.toml";

/// Where a run stands.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Progress {
    /// Optimiser steps taken.
    pub step: u64,
    /// Tokens or images seen.
    pub seen: u64,
    /// Time spent training, in seconds.
    pub seconds: f64,
    /// Passes over the data begun, from 0.
    pub epoch: u64,
    /// Rows or images of this epoch already used. Their order is a function of the seed and the epoch,
    /// so this is all there is to the state of the shuffle.
    pub row: u64,
    /// Lowest validation loss so far, in nats per token or image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub valid_loss_best: Option<f64>,
}

/// Tensors by name, as a checkpoint holds them.
pub type Tensors = BTreeMap<String, Values>;

/// One tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Values {
    pub shape: Vec<usize>,
    pub values: Vec<f32>,
}

/// The tensors of a checkpoint.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Checkpoint {
    /// Parameters, by path.
    pub model: Tensors,
    /// Their averages over steps, where the run keeps them.
    pub average: Option<Tensors>,
    /// What the optimiser remembers, by `<path>.<letter>`.
    pub optimizer: Tensors,
}

/// Why a run directory cannot be read or written.
#[derive(Debug, Error)]
pub enum CheckpointError {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{}: {source}", path.display())]
    Toml { path: PathBuf, source: Box<toml::de::Error> },
    #[error("{}: {source}", path.display())]
    Tensors { path: PathBuf, source: safetensors::SafeTensorError },
    #[error("{}: tensor {name} is {found:?}; f32 is expected", path.display())]
    Dtype { path: PathBuf, name: String, found: Dtype },
    #[error("{}: the name {found:?} is not that of a checkpoint", path.display())]
    Latest { path: PathBuf, found: String },
    #[error("{}: another training is at this run; it has to end first", path.display())]
    Claimed { path: PathBuf },
}

/// A run directory.
#[derive(Clone, Debug)]
pub struct RunDir {
    path: PathBuf,
}

impl RunDir {
    /// The run directory at `path`, which need not exist yet.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether a run has begun here.
    pub fn exists(&self) -> bool {
        self.path.join(RUN_FILE).exists()
    }

    /// Begins a run: makes the directory and writes what fixes the run.
    ///
    /// # Errors
    /// [`CheckpointError::Io`] if the directory cannot be written.
    pub fn create(&self, run: &Run) -> Result<(), CheckpointError> {
        fs::create_dir_all(&self.path).map_err(io_error(&self.path))?;
        let text = toml::to_string(run).expect("every field has a TOML form");
        write_atomically(&self.path.join(RUN_FILE), text.as_bytes())
    }

    /// Keeps other trainings out of the run, in this process and in others, for as long as the result lives.
    ///
    /// # Errors
    /// [`CheckpointError::Claimed`] if one is at it.
    pub fn claim(&self) -> Result<File, CheckpointError> {
        let dir = File::open(&self.path).map_err(io_error(&self.path))?;
        match dir.try_lock() {
            Ok(()) => Ok(dir),
            Err(TryLockError::WouldBlock) => {
                Err(CheckpointError::Claimed { path: self.path.clone() })
            }
            Err(TryLockError::Error(source)) => {
                Err(CheckpointError::Io { path: self.path.clone(), source })
            }
        }
    }

    /// Takes back a run that never began: what fixes it is removed, or all of a directory that was made for it.
    ///
    /// # Errors
    /// [`CheckpointError::Io`] if it cannot be removed.
    pub fn withdraw(&self, is_new_dir: bool) -> Result<(), CheckpointError> {
        if is_new_dir {
            return fs::remove_dir_all(&self.path).map_err(io_error(&self.path));
        }
        let file = self.path.join(RUN_FILE);
        fs::remove_file(&file).map_err(io_error(&file))
    }

    /// Reads what fixes the run.
    ///
    /// # Errors
    /// If `run.toml` cannot be read or says something that this build does not know.
    pub fn run(&self) -> Result<Run, CheckpointError> {
        read_toml(&self.path.join(RUN_FILE))
    }

    /// The newest complete checkpoint; none if there is none yet.
    ///
    /// # Errors
    /// If `latest` cannot be read or does not hold the name of a checkpoint.
    pub fn latest(&self) -> Result<Option<StepDir>, CheckpointError> {
        let path = self.path.join(LATEST_FILE);
        let name = match fs::read_to_string(&path) {
            Ok(name) => name,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(CheckpointError::Io { path, source }),
        };
        let number = name.trim().strip_prefix("step-").and_then(|it| it.parse::<u64>().ok());
        match number {
            Some(step) => Ok(Some(self.step(step))),
            None => Err(CheckpointError::Latest { path, found: name }),
        }
    }

    /// The checkpoint after `step` optimiser steps, which need not exist.
    pub fn step(&self, step: u64) -> StepDir {
        StepDir { path: self.path.join(format!("step-{step}")) }
    }

    /// Writes a checkpoint, makes it the latest, and removes the one that was.
    ///
    /// # Errors
    /// [`CheckpointError`] if something cannot be written; the checkpoint that was the latest is
    /// still whole then.
    pub fn save(
        &self,
        progress: &Progress,
        tensors: &Checkpoint,
    ) -> Result<StepDir, CheckpointError> {
        let before = self.latest()?;
        let step = self.step(progress.step);
        fs::create_dir_all(&step.path).map_err(io_error(&step.path))?;
        write_tensors(&step.path.join(MODEL_FILE), &tensors.model)?;
        if let Some(average) = &tensors.average {
            write_tensors(&step.path.join(AVERAGE_FILE), average)?;
        }
        write_tensors(&step.path.join(OPTIMIZER_FILE), &tensors.optimizer)?;
        let text = toml::to_string(progress).expect("every field has a TOML form");
        write_atomically(&step.path.join(PROGRESS_FILE), text.as_bytes())?;
        let name = format!("step-{}\n", progress.step);
        write_atomically(&self.path.join(LATEST_FILE), name.as_bytes())?;
        if let Some(before) = before.filter(|it| it.path != step.path && it.path.exists()) {
            fs::remove_dir_all(&before.path).map_err(io_error(&before.path))?;
        }
        Ok(step)
    }
}

/// A checkpoint within a run directory.
#[derive(Clone, Debug)]
pub struct StepDir {
    path: PathBuf,
}

impl StepDir {
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the run stood.
    ///
    /// # Errors
    /// If the file cannot be read or parsed.
    pub fn progress(&self) -> Result<Progress, CheckpointError> {
        read_toml(&self.path.join(PROGRESS_FILE))
    }

    /// The file with the parameters to be used: averages, where there are some.
    pub fn model_path(&self) -> PathBuf {
        let average = self.path.join(AVERAGE_FILE);
        if average.exists() { average } else { self.path.join(MODEL_FILE) }
    }

    /// The parameters to be used, by path.
    ///
    /// # Errors
    /// If the file cannot be read or parsed, or holds something other than f32.
    pub fn model(&self) -> Result<Tensors, CheckpointError> {
        read_tensors(&self.model_path())
    }

    /// Everything that training goes on from.
    ///
    /// # Errors
    /// As [`StepDir::model`].
    pub fn tensors(&self) -> Result<Checkpoint, CheckpointError> {
        let average = self.path.join(AVERAGE_FILE);
        Ok(Checkpoint {
            model: read_tensors(&self.path.join(MODEL_FILE))?,
            average: average.exists().then(|| read_tensors(&average)).transpose()?,
            optimizer: read_tensors(&self.path.join(OPTIMIZER_FILE))?,
        })
    }
}

/// Replaces the file at `path` in one step: readers see the old bytes or the new ones.
///
/// # Errors
/// [`CheckpointError::Io`] if the file or its neighbour cannot be written.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<(), CheckpointError> {
    let mut name = path.file_name().expect("the path names a file").to_owned();
    name.push(".new");
    let new = path.with_file_name(name);
    let write = || {
        let mut file = File::create(&new)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&new, path)
    };
    write().map_err(io_error(path))
}

fn write_tensors(path: &Path, tensors: &Tensors) -> Result<(), CheckpointError> {
    let bytes: BTreeMap<&str, Vec<u8>> = tensors
        .iter()
        .map(|(name, it)| (&**name, it.values.iter().flat_map(|it| it.to_le_bytes()).collect()))
        .collect();
    let views = bytes.iter().map(|(name, bytes)| {
        let view = TensorView::new(Dtype::F32, tensors[*name].shape.clone(), bytes)
            .expect("the values fill the shape");
        (*name, view)
    });
    let file = safetensors::serialize(views, None::<HashMap<String, String>>)
        .map_err(|source| CheckpointError::Tensors { path: path.to_owned(), source })?;
    write_atomically(path, &file)
}

fn read_tensors(path: &Path) -> Result<Tensors, CheckpointError> {
    let bytes = fs::read(path).map_err(io_error(path))?;
    let file = SafeTensors::deserialize(&bytes)
        .map_err(|source| CheckpointError::Tensors { path: path.to_owned(), source })?;
    file.iter()
        .map(|(name, view)| {
            if view.dtype() != Dtype::F32 {
                let (path, name, found) = (path.to_owned(), name.to_owned(), view.dtype());
                return Err(CheckpointError::Dtype { path, name, found });
            }
            let (chunks, _) = view.data().as_chunks::<4>();
            let values = chunks.iter().copied().map(f32::from_le_bytes).collect();
            Ok((name.to_owned(), Values { shape: view.shape().to_vec(), values }))
        })
        .collect()
}

fn read_toml<T: DeserializeOwned>(path: &Path) -> Result<T, CheckpointError> {
    let text = fs::read_to_string(path).map_err(io_error(path))?;
    toml::from_str(&text)
        .map_err(|source| CheckpointError::Toml { path: path.to_owned(), source: Box::new(source) })
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> CheckpointError {
    |source| CheckpointError::Io { path: path.to_owned(), source }
}
