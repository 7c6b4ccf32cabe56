//! Writes a bundle: the graph of a trained or of a random model, its tokenizer and its manifest.

pub mod images;
pub(crate) mod scratch;
pub(crate) mod staging;
mod tokenizer;

#[cfg(test)]
pub(crate) mod tests;

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use aerie_models::{
    BundleError, Bundled, Manifest, ModelConfig, Precision, Provenance,
    bundle::{self, FORMAT, Kind, MANIFEST_FILE, MODEL_FILE, NAME_BYTES_MAX, TOKENIZER_FILE},
    images::presets as classifiers,
    presets,
};
#[cfg(test)]
pub(crate) use tokenizer::bytes as tokenizer_bytes;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use thiserror::Error;

use crate::{
    checkpoint::{CheckpointError, RunDir},
    data,
    emit::images::ImageSource,
    emit::staging::Staging,
    onnx::{
        self, Graph, Limits, Target, Weights, WeightsError, WriteError,
        weights::{Checkpoint, Drawn, Random},
    },
    progress::Counted,
};

/// Writes a bundle that can be served
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  aerie-export emit --run runs/tales --out models/bundles/tales --precision f16
  aerie-export emit --run runs/tales --step 2000 --out /tmp/tales-2000
  aerie-export emit --random griffin-100m --seed 7 --out /tmp/griffin-100m
  aerie-export emit --random tiny --portable --out /tmp/tiny-portable
  aerie-export emit --random nfnet-f0 --out /tmp/nfnet-f0")]
pub struct Args {
    /// Run directory of a training
    #[arg(long, value_name = "RUN", required_unless_present = "random")]
    run: Option<PathBuf>,
    /// Checkpoint of the run to take [default: the latest]
    #[arg(long, value_name = "N", requires = "run")]
    step: Option<u64>,
    /// Preset to draw with random weights instead, for tests and benchmarks
    #[arg(long, value_name = "PRESET", conflicts_with = "run")]
    random: Option<String>,
    /// Seed of the random weights
    #[arg(long, value_name = "N", default_value_t = 0, requires = "random")]
    seed: u64,
    /// What the weights were trained on, in words [default: the name of the run's text]
    #[arg(long, value_name = "WORDS")]
    data: Option<String>,
    #[command(flatten)]
    output: Output,
}

/// The bundle to write, as command lines ask for it.
#[derive(Debug, clap::Args)]
pub struct Output {
    /// Folder to write; it must not exist yet
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// What clients call the model [default: the folder's name]
    #[arg(long)]
    name: Option<String>,
    /// How matrices are stored; with q8 and q4, inputs of products are rounded to 8 bits
    #[arg(long, value_name = "TYPE", default_value = "f32", value_parser = precision_parser(Precision::ALL))]
    precision: Precision,
    /// Use standard ONNX operators only: one token per run, state in and out by value
    #[arg(long)]
    portable: bool,
    /// Replace the folder if it exists
    #[arg(long)]
    force: bool,
}

impl Output {
    /// Writes `source` as this bundle, and says so on standard error.
    ///
    /// # Errors
    /// See [`EmitError`].
    pub(crate) fn write(&self, source: Source) -> Result<(), EmitError> {
        let target = if self.portable { Target::Portable } else { Target::Ragged };
        let name = name(self.name.as_deref(), &self.out)?;
        let options = Options { name, target, precision: self.precision, force: self.force };
        let staging = options.stage(&self.out)?;
        write(source, &options, staging)
    }
}

/// What clients are to call a model: `name`, or what its folder is called.
pub(crate) fn name(name: Option<&str>, out: &Path) -> Result<String, EmitError> {
    let name = name.or_else(|| out.file_name().and_then(|it| it.to_str()));
    Ok(name.ok_or_else(|| EmitError::Name { found: String::new() })?.to_owned())
}

/// Fills `staging` with `source` before somebody's eyes, and says what there is now.
pub(crate) fn write(source: Source, options: &Options, staging: Staging) -> Result<(), EmitError> {
    let out = staging.out().to_owned();
    let weights = Box::new(Counted::new(source.weights, &source.config));
    let manifest = fill(&Source { weights, ..source }, options, staging)?;
    say(&out, &manifest);
    Ok(())
}

/// Says on standard error what there is now.
fn say<M: Bundled>(out: &Path, manifest: &Manifest<M>) {
    eprintln!(
        "{}: {} files, fingerprint {}",
        out.display(),
        manifest.files.len() + 1,
        &blake3::Hash::from_bytes(manifest.fingerprint()).to_hex()[..16]
    );
}

/// Runs the command.
///
/// # Errors
/// See [`EmitError`].
pub fn run(args: &Args) -> anyhow::Result<()> {
    let data = args.data.as_deref();
    match (&args.run, &args.random) {
        (Some(run), _) if RunDir::new(run).run()?.images().is_some() => {
            args.output.write_images(ImageSource::run(run, args.step, data)?)?;
        }
        (Some(run), _) => args.output.write(Source::run(run, args.step, data)?)?,
        (None, Some(name)) => match ImageSource::random(name, args.seed) {
            Some(source) => args.output.write_images(source)?,
            None => args.output.write(Source::random(name, args.seed)?)?,
        },
        (None, None) => unreachable!("clap asks for one of the two"),
    }
    Ok(())
}

/// A model that can be emitted.
#[derive(Debug)]
pub struct Source {
    pub config: ModelConfig,
    pub weights: Box<dyn Weights>,
    /// The tokenizer's file.
    pub tokenizer: Vec<u8>,
    pub provenance: Provenance,
}

/// How a model is to be emitted.
#[derive(Clone, Debug)]
pub struct Options {
    /// What clients call the model.
    pub name: String,
    pub target: Target,
    pub precision: Precision,
    /// Whether a bundle that is there already is replaced.
    pub force: bool,
}

/// Why there is no bundle.
#[derive(Debug, Error)]
pub enum EmitError {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{} exists; --force replaces it", path.display())]
    Exists { path: PathBuf },
    #[error(
        "{} exists and is not a bundle (it has no manifest): refusing to replace it", path.display()
    )]
    NotABundle { path: PathBuf },
    #[error("{}: another bundle is just being written there; wait for its end", path.display())]
    Claimed { path: PathBuf },
    #[error("name {found:?}: 1 to {NAME_BYTES_MAX} letters, digits, '-', '_' and '.' are expected")]
    Name { found: String },
    #[error("there is no preset {found:?}; the presets are {known}")]
    Preset { found: String, known: String },
    #[error("--precision {found}: a classifier is stored in f32 or f16")]
    ImagePrecision { found: &'static str },
    #[error("{}: {found} labels, but the model has {expected} classes", path.display())]
    Labels { path: PathBuf, found: usize, expected: u32 },
    #[error("--portable with --precision {found}: standard operators take f32 and f16 here")]
    PortablePrecision { found: &'static str },
    #[error(
        "{}: manifest field `precision` is {found}; f32, f16 or bf16 is expected: what was rounded \
         once is not to be rounded again", path.display()
    )]
    Quantised { path: PathBuf, found: &'static str },
    #[error(
        "{}: manifest field `ops` is empty: this bundle is portable, but one with the operators of \
         the domain `aerie` is expected", path.display()
    )]
    Portable { path: PathBuf },
    #[error("{}: the run is not of a {expected}", path.display())]
    OtherKind { path: PathBuf, expected: Kind },
    #[error("{}: the run has no checkpoint yet", path.display())]
    NoCheckpoint { path: PathBuf },
    #[error("{}: {message}", path.display())]
    Tokenizer { path: PathBuf, message: String },
    #[error("{}: the tokenizer has {found} tokens, but the model's vocab is {expected}", path.display())]
    TokenizerVocab { path: PathBuf, found: usize, expected: u32 },
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error(transparent)]
    Weights(#[from] WeightsError),
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error(transparent)]
    Bundle(#[from] BundleError),
}

impl Source {
    /// The model of the training in `dir`, at `step` or at its newest checkpoint.
    ///
    /// # Errors
    /// If the run or its checkpoint cannot be read, or its parts do not fit each other.
    pub fn run(dir: &Path, step: Option<u64>, data: Option<&str>) -> Result<Self, EmitError> {
        let run = RunDir::new(dir);
        let options = run.run()?;
        let Some((model, text)) = options.language() else {
            return Err(EmitError::OtherKind {
                path: dir.to_owned(),
                expected: Kind::LanguageModel,
            });
        };
        let step = match step {
            Some(step) => run.step(step),
            None => {
                run.latest()?.ok_or_else(|| EmitError::NoCheckpoint { path: dir.to_owned() })?
            }
        };
        let progress = step.progress()?;
        let weights = Checkpoint::open(&step.model_path(), model)?;
        let path = dir.join(TOKENIZER_FILE);
        let tokenizer = fs::read(&path).map_err(io_error(&path))?;
        let found = parse_tokenizer(&tokenizer, &path)?.get_vocab_size(true);
        let expected = model.vocab;
        if expected as usize != found {
            return Err(EmitError::TokenizerVocab { path, found, expected });
        }
        // Not the whole path: a bundle says nothing of the machine that made it.
        let text = text.text.file_name().map(|it| it.to_string_lossy().into_owned());
        Ok(Self {
            config: model.clone(),
            weights: Box::new(weights),
            tokenizer,
            provenance: Provenance {
                tool: tool(),
                data: data.map_or_else(|| text.unwrap_or_default(), str::to_owned),
                steps: Some(progress.step),
                tokens: Some(progress.seen),
                ..Provenance::default()
            },
        })
    }

    /// The model of the bundle in `dir`, whose weights nobody has rounded to fewer than 16 bits.
    ///
    /// # Errors
    /// If the bundle cannot be read, or is not one of those.
    pub fn bundle(dir: &Path) -> Result<Self, EmitError> {
        let manifest =
            Manifest::open(dir, |op| aerie_ops::schema::schema(op).map(|it| it.version))?;
        let path = dir.to_owned();
        if matches!(manifest.precision, Precision::Q8 | Precision::Q4) {
            return Err(EmitError::Quantised { path, found: manifest.precision.name() });
        }
        if manifest.ops.is_empty() {
            return Err(EmitError::Portable { path });
        }
        let path = dir.join(TOKENIZER_FILE);
        let tokenizer = fs::read(&path).map_err(io_error(&path))?;
        Ok(Self {
            weights: Box::new(Drawn::open(&dir.join(MODEL_FILE), &manifest.model)?),
            config: manifest.model,
            tokenizer,
            provenance: Provenance { tool: tool(), ..manifest.provenance },
        })
    }

    /// The model called `preset` with the weights that training would begin with.
    ///
    /// # Errors
    /// [`EmitError::Preset`] if there is no such preset.
    pub fn random(preset: &str, seed: u64) -> Result<Self, EmitError> {
        let config = self::preset(preset)?;
        Ok(Self {
            tokenizer: tokenizer::bytes(config.vocab),
            config,
            weights: Box::new(Random { seed }),
            provenance: Provenance {
                tool: tool(),
                data: format!("none: preset {preset} with random weights of seed {seed}"),
                steps: Some(0),
                tokens: Some(0),
                ..Provenance::default()
            },
        })
    }
}

/// The configuration of the preset called `name`.
///
/// # Errors
/// [`EmitError::Preset`] if there is no such preset.
pub(crate) fn preset(name: &str) -> Result<ModelConfig, EmitError> {
    presets::preset(name).ok_or_else(|| EmitError::Preset {
        found: name.to_owned(),
        known: presets::names().chain(classifiers::names()).collect::<Vec<_>>().join(", "),
    })
}

/// Writes `source` as a bundle at `out`: all of it, or nothing.
///
/// # Errors
/// See [`EmitError`].
pub fn emit(source: &Source, options: &Options, out: &Path) -> Result<Manifest, EmitError> {
    fill(source, options, options.stage(out)?)
}

impl Options {
    /// Makes the folder that is to become the bundle at `out`.
    ///
    /// # Errors
    /// If there can be no such bundle, or no such folder.
    pub(crate) fn stage(&self, out: &Path) -> Result<Staging, EmitError> {
        if !bundle::is_name(&self.name) {
            return Err(EmitError::Name { found: self.name.clone() });
        }
        if !self.target.has(self.precision) {
            return Err(EmitError::PortablePrecision { found: self.precision.name() });
        }
        Staging::new(out, self.force)
    }
}

/// Fills the folder that was made for the bundle, and puts it in its place.
fn fill(source: &Source, options: &Options, staging: Staging) -> Result<Manifest, EmitError> {
    let Source { config, weights, tokenizer, provenance } = source;
    let graph = onnx::emit(config, options.target, options.precision);
    staging.write(TOKENIZER_FILE, tokenizer)?;
    let content = Content { model: config.clone(), interface: (), extra: &[TOKENIZER_FILE] };
    seal(graph, weights.as_ref(), content, provenance, options, staging)
}

/// What a bundle is to hold besides its graph.
struct Content<M: Bundled> {
    model: M,
    interface: M::Interface,
    /// Files that are there already.
    extra: &'static [&'static str],
}

/// Writes graph and manifest, and puts the folder in its place.
fn seal<M: Bundled>(
    graph: Graph,
    weights: &dyn Weights,
    content: Content<M>,
    provenance: &Provenance,
    options: &Options,
    staging: Staging,
) -> Result<Manifest<M>, EmitError> {
    let Content { model, interface, extra } = content;
    let name = options.name.clone();
    let ops = graph.ops().iter().map(|(&op, &version)| (op.to_owned(), version)).collect();
    let mut written = onnx::write(graph, &name, weights, Limits::default(), staging.path())?;
    written.extend(extra);
    let mut files = BTreeMap::new();
    for file in written {
        files.insert(file.to_owned(), bundle::hash_file(&staging.path().join(file))?);
    }
    let (precision, provenance) = (options.precision, provenance.clone());
    let manifest =
        Manifest { format: FORMAT, name, precision, ops, files, model, provenance, interface };
    staging.write(MANIFEST_FILE, manifest.to_toml().as_bytes())?;
    staging.commit()?;
    Ok(manifest)
}

/// Parses a tokenizer's file, which lies at `path`.
pub(crate) fn parse_tokenizer(
    bytes: &[u8],
    path: &Path,
) -> Result<tokenizers::Tokenizer, EmitError> {
    data::tokenizer::parse(bytes)
        .map_err(|message| EmitError::Tokenizer { path: path.to_owned(), message })
}

/// What the manifest says of the program that wrote it.
pub(crate) fn tool() -> String {
    concat!(env!("CARGO_PKG_NAME"), " ", env!("CARGO_PKG_VERSION")).to_owned()
}

/// Takes the name of a precision, one of `known`.
pub(crate) fn precision_parser<const N: usize>(
    known: [Precision; N],
) -> impl TypedValueParser<Value = Precision> {
    PossibleValuesParser::new(known.map(Precision::name)).map(|name| {
        let named = Precision::ALL.into_iter().find(|it| it.name() == name);
        named.expect("one of the possible values")
    })
}

pub(crate) fn io_error(path: &Path) -> impl Fn(io::Error) -> EmitError {
    |source| EmitError::Io { path: path.to_owned(), source }
}
