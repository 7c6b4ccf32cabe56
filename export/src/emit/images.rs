//! Bundles of classifiers.

use std::{fs, path::Path};

use aerie_models::{
    ImageConfig, Manifest, Pictures, Precision, Provenance, bundle::Kind, images::presets,
};

use crate::{
    checkpoint::{LABELS_FILE, RunDir},
    emit::{Content, EmitError, Options, Output, Staging, io_error, name, say, seal, tool},
    onnx::{
        Target, Weights, images,
        weights::{Checkpoint, Random},
    },
    progress::Counted,
};

/// A classifier that can be emitted.
#[derive(Debug)]
pub struct ImageSource {
    pub config: ImageConfig,
    pub weights: Box<dyn Weights>,
    pub pictures: Pictures,
    pub provenance: Provenance,
}

impl ImageSource {
    /// The classifier of the training in `dir`, at `step` or at its newest checkpoint.
    ///
    /// # Errors
    /// If the run or its checkpoint cannot be read, or its parts do not fit each other.
    pub fn run(dir: &Path, step: Option<u64>, data: Option<&str>) -> Result<Self, EmitError> {
        let run = RunDir::new(dir);
        let options = run.run()?;
        let expected = Kind::ImageClassifier;
        let other = || EmitError::OtherKind { path: dir.to_owned(), expected };
        let (config, trained_on) = options.images().ok_or_else(other)?;
        let step = match step {
            Some(step) => run.step(step),
            None => {
                run.latest()?.ok_or_else(|| EmitError::NoCheckpoint { path: dir.to_owned() })?
            }
        };
        let progress = step.progress()?;
        // Not the whole path: a bundle says nothing of the machine that made it.
        let from = trained_on.images.file_name().map(|it| it.to_string_lossy().into_owned());
        Ok(Self {
            weights: Box::new(Checkpoint::open(&step.model_path(), config)?),
            pictures: Pictures {
                input: trained_on.preprocessing.clone(),
                labels: labels(&dir.join(LABELS_FILE), config.classes)?,
            },
            config: config.clone(),
            provenance: Provenance {
                tool: tool(),
                data: data.map_or_else(|| from.unwrap_or_default(), str::to_owned),
                steps: Some(progress.step),
                images: Some(progress.seen),
                ..Provenance::default()
            },
        })
    }

    /// The preset called `name` with the weights that training would begin with; none if no classifier is
    /// called so.
    pub fn random(name: &str, seed: u64) -> Option<Self> {
        let config = presets::preset(name)?;
        Some(Self {
            pictures: Pictures { input: presets::input(name)?, labels: numbers(config.classes) },
            config,
            weights: Box::new(Random { seed }),
            provenance: Provenance {
                tool: tool(),
                data: format!("none: preset {name} with random weights of seed {seed}"),
                steps: Some(0),
                images: Some(0),
                ..Provenance::default()
            },
        })
    }
}

/// Names of classes that have none.
pub(crate) fn numbers(classes: u32) -> Vec<String> {
    (0..classes).map(|it| it.to_string()).collect()
}

/// Names of classes, one in each line of the file at `path`.
///
/// # Errors
/// If it cannot be read, or has not as many lines as there are classes.
pub(crate) fn labels(path: &Path, classes: u32) -> Result<Vec<String>, EmitError> {
    let text = fs::read_to_string(path).map_err(io_error(path))?;
    let labels: Vec<String> = text.lines().map(str::to_owned).collect();
    if labels.len() != classes as usize {
        let (path, found) = (path.to_owned(), labels.len());
        return Err(EmitError::Labels { path, found, expected: classes });
    }
    Ok(labels)
}

impl Output {
    /// Writes `source` as this bundle, and says so on standard error.
    ///
    /// # Errors
    /// See [`EmitError`].
    pub(crate) fn write_images(&self, source: ImageSource) -> Result<(), EmitError> {
        let options = Options {
            name: name(self.name.as_deref(), &self.out)?,
            target: Target::Portable,
            precision: self.precision,
            force: self.force,
        };
        let weights = Box::new(Counted::new(source.weights, &source.config));
        let manifest = emit(&ImageSource { weights, ..source }, &options, &self.out)?;
        say(&self.out, &manifest);
        Ok(())
    }
}

/// Writes `source` as a bundle at `out`: all of it, or nothing.
///
/// # Errors
/// See [`EmitError`].
pub fn emit(
    source: &ImageSource,
    options: &Options,
    out: &Path,
) -> Result<Manifest<ImageConfig>, EmitError> {
    if !matches!(options.precision, Precision::F32 | Precision::F16) {
        return Err(EmitError::ImagePrecision { found: options.precision.name() });
    }
    let staging: Staging = options.stage(out)?;
    let ImageSource { config, weights, pictures, provenance } = source;
    let graph = images::emit(config, options.precision, weights.as_ref())?;
    let content = Content { model: config.clone(), interface: pictures.clone(), extra: &[] };
    seal(graph, weights.as_ref(), content, provenance, options, staging)
}
