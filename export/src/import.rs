//! Imports RecurrentGemma, and classifiers of timm's: reads a checkpoint in one of the layouts in which it
//! is published, and writes it as a bundle.
//!
//! Elements go from file to file one tensor at a time. What a checkpoint says is held against what
//! the model needs before anything is written.

mod google;
mod hugging_face;
pub mod images;
mod pickle;
mod sentencepiece;
mod tensors;
mod tokenizer;
mod torch_file;

#[cfg(test)]
pub(crate) mod tests;

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use aerie_models::{
    BlockKind, ConfigError, Family, Provenance,
    images::{ImageConfigError, preprocessing::PreprocessingError},
};
use thiserror::Error;

pub use google::Given;
pub use pickle::PickleError;
pub use sentencepiece::SentencePieceError;

use crate::{
    emit::{self, EmitError, Source},
    import::{hugging_face::CONFIG_FILE, images::ImageRequest, tensors::Tensors},
    onnx::WeightsError,
};

/// Imports a RecurrentGemma checkpoint, or a classifier of timm's, as a bundle that can be served
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Reads Hugging Face's folders (config.json with model.safetensors or its shards) and what Google
released: PyTorch's .pt files, and safetensors files with the names of Google's PyTorch or JAX code.
Only the latter lack a configuration; what their shapes do not tell is given by --heads, --window,
--soft-cap and --no-embedding-scale, which default to RecurrentGemma's.

Classifiers are NFNets, NF-ResNets and NF-RegNets as timm publishes them: model.safetensors with its
config.json, or any safetensors file with the name of the model in --preset.

Examples:
  aerie-export import --from recurrentgemma-2b --out models/bundles/recurrentgemma-2b
  aerie-export import --from 2b-it/2b-it.pt --tokenizer tokenizer.model --out /tmp/2b-it
  aerie-export import --from griffin.safetensors --window 1024 --soft-cap 0 --no-embedding-scale \\
      --tokenizer tokenizer.json --out /tmp/griffin --precision f16
  aerie-export import --from dm_nfnet_f0.dm_in1k --labels imagenet.txt --out /tmp/nfnet-f0
  aerie-export import --from weights.safetensors --preset timm/nf_resnet50 --out /tmp/nf-resnet50")]
pub struct Args {
    /// Folder of the checkpoint, or its file where there are several
    #[arg(long, value_name = "PATH")]
    from: PathBuf,
    /// tokenizer.json, or SentencePiece's tokenizer.model [default: the one beside the checkpoint]
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,
    /// Attention heads, of a checkpoint of Google's without attention [default: the gates' blocks]
    #[arg(long, value_name = "N")]
    heads: Option<u32>,
    /// Tokens before its own that a token attends to, of a checkpoint of Google's [default: 2048]
    #[arg(long, value_name = "N")]
    window: Option<u32>,
    /// Bound of the logits, of a checkpoint of Google's; 0 for none [default: 30]
    #[arg(long, value_name = "X")]
    soft_cap: Option<f32>,
    /// Take embeddings as they are, of a checkpoint of Google's
    #[arg(long)]
    no_embedding_scale: bool,
    /// Classifier that the checkpoint is of, by its name [default: as its config.json says]
    #[arg(long, value_name = "NAME")]
    preset: Option<String>,
    /// Classifier that the checkpoint is of, by a file in the presets' format
    #[arg(long, value_name = "FILE")]
    model: Option<PathBuf>,
    /// Names of a classifier's classes, one a line [default: as its config.json says, or numbers]
    #[arg(long, value_name = "FILE")]
    labels: Option<PathBuf>,
    /// What the weights were trained on, in words [default: the name of the checkpoint]
    #[arg(long, value_name = "WORDS")]
    data: Option<String>,
    #[command(flatten)]
    output: emit::Output,
}

/// Runs the command.
///
/// # Errors
/// See [`ImportError`].
pub fn run(args: &Args) -> anyhow::Result<()> {
    let classifier = images::import(&ImageRequest {
        from: &args.from,
        preset: args.preset.as_deref(),
        model: args.model.as_deref(),
        labels: args.labels.as_deref(),
        data: args.data.as_deref(),
    })?;
    if let Some(source) = classifier {
        return Ok(args.output.write_images(source)?);
    }
    let imported = import(&Request {
        from: &args.from,
        tokenizer: args.tokenizer.as_deref(),
        given: args.given(),
        data: args.data.as_deref(),
    })?;
    for warning in &imported.warnings {
        eprintln!("warning: {warning}");
    }
    Ok(args.output.write(imported.source)?)
}

impl Args {
    /// What was said of a checkpoint without a configuration; none if nothing was.
    fn given(&self) -> Option<Given> {
        let is_silent = self.heads.is_none()
            && self.window.is_none()
            && self.soft_cap.is_none()
            && !self.no_embedding_scale;
        let default = Given::default();
        (!is_silent).then(|| Given {
            heads: self.heads,
            window: self.window.unwrap_or(default.window),
            scale_embedding: !self.no_embedding_scale,
            logits_soft_cap: match self.soft_cap {
                None => default.logits_soft_cap,
                Some(cap) => (cap != 0.0).then_some(cap),
            },
        })
    }
}

/// What is to be imported.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Folder or file.
    pub from: &'a Path,
    /// The tokenizer's file; none for the one beside the checkpoint.
    pub tokenizer: Option<&'a Path>,
    /// What the checkpoint does not say itself; none if nothing is given.
    pub given: Option<Given>,
    /// What the weights were trained on, in words.
    pub data: Option<&'a str>,
}

/// A checkpoint that was read as far as its elements.
#[derive(Debug)]
pub struct Imported {
    pub source: Source,
    /// What is odd, but no reason to refuse.
    pub warnings: Vec<String>,
}

/// Why a checkpoint is not imported.
#[derive(Debug, Error)]
pub enum ImportError {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{}: no checkpoint in this folder (*.safetensors, its index, or *.pt)", path.display())]
    NoCheckpoint { path: PathBuf },
    #[error("{}: several checkpoints: {}; --from FILE takes one", path.display(), found.join(", "))]
    Ambiguous { path: PathBuf, found: Vec<String> },
    #[error("{}: not a .safetensors, .safetensors.index.json or .pt file", path.display())]
    Kind { path: PathBuf },
    #[error("{}: {message}", path.display())]
    Index { path: PathBuf, message: String },
    #[error("{}: {message}", path.display())]
    Archive { path: PathBuf, message: String },
    #[error("{}: {source}", path.display())]
    Pickle { path: PathBuf, source: PickleError },
    #[error("{}: {source}", path.display())]
    Json { path: PathBuf, source: serde_json::Error },
    #[error("{}: {found_bytes} bytes; at most {max_bytes} are read", path.display())]
    TooLarge { path: PathBuf, found_bytes: u64, max_bytes: u64 },
    #[error("{}: {field} is {found}; {expected} is expected", path.display())]
    Field { path: PathBuf, field: &'static str, found: String, expected: String },
    #[error("{}: {source}", path.display())]
    Config { path: PathBuf, source: ConfigError },
    #[error(
        "{}: the blocks are {found:?}; R, R, A in turn is expected, or one of them throughout",
        path.display()
    )]
    Pattern { path: PathBuf, found: String },
    #[error("{}: tensor {name} has shape {found:?}; {expected} is expected", path.display())]
    Axes { path: PathBuf, name: String, found: Vec<u64>, expected: &'static str },
    #[error("{}: tensors {name} and {other} have the same meaning", path.display())]
    SameName { path: PathBuf, name: String, other: String },
    #[error(
        "{}: says what --heads, --window, --soft-cap and --no-embedding-scale would say",
        path.display()
    )]
    Given { path: PathBuf },
    #[error("{}: no tokenizer.json or tokenizer.model here; --tokenizer names one", path.display())]
    NoTokenizer { path: PathBuf },
    #[error("{}: {source}", path.display())]
    SentencePiece { path: PathBuf, source: SentencePieceError },
    #[error("{}: {found} is none of the classifiers; --preset names one", path.display())]
    Architecture { path: PathBuf, found: String },
    #[error("{}: {source}", path.display())]
    ImageConfig { path: PathBuf, source: ImageConfigError },
    #[error("{}: {source}", path.display())]
    Model { path: PathBuf, source: Box<toml::de::Error> },
    #[error("{}: pretrained_cfg: {source}", path.display())]
    Input { path: PathBuf, source: PreprocessingError },
    #[error("{}: nothing says how pictures are prepared; --preset names a model that does", path.display())]
    NoInput { path: PathBuf },
    #[error(transparent)]
    Weights(#[from] WeightsError),
    #[error(transparent)]
    Emit(#[from] EmitError),
}

/// Reads a checkpoint as far as its elements.
///
/// # Errors
/// See [`ImportError`]; nothing was written then.
pub fn import(request: &Request<'_>) -> Result<Imported, ImportError> {
    let path = find(request.from)?;
    let tensors = Tensors::open(&path)?;
    let (config, weights, warning) = if google::is_layout(&tensors) {
        let (config, weights) = google::model(tensors, request.given.unwrap_or_default())?;
        (config, weights, None)
    } else {
        let config = path.with_file_name(CONFIG_FILE);
        if request.given.is_some() {
            return Err(ImportError::Given { path: config });
        }
        hugging_face::model(tensors, &config)?
    };
    let mut warnings: Vec<String> = warning.into_iter().collect();
    let (tokenizer, warning) = tokenizer::read(&path, request.tokenizer, config.vocab)?;
    warnings.extend(warning);
    // Not the whole path: a bundle says nothing of the machine that made it.
    let from = fs::canonicalize(request.from).map_err(io_error(request.from))?;
    let from = from.file_name().map(|it| it.to_string_lossy()).unwrap_or_default();
    let data = request.data.map_or_else(|| format!("unknown: imported {from}"), str::to_owned);
    let provenance = Provenance { tool: emit::tool(), data, ..Provenance::default() };
    let source = Source { config, weights: Box::new(weights), tokenizer, provenance };
    Ok(Imported { source, warnings })
}

/// The checkpoint's file, or the index of its files.
fn find(from: &Path) -> Result<PathBuf, ImportError> {
    if !fs::metadata(from).map_err(io_error(from))?.is_dir() {
        return Ok(from.to_owned());
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(from).map_err(io_error(from))? {
        let name = entry.map_err(io_error(from))?.file_name().to_string_lossy().into_owned();
        let is_shard = name.ends_with(".safetensors") && name.contains("-of-");
        let ends = [".safetensors", ".safetensors.index.json", ".pt"];
        if !is_shard && ends.iter().any(|end| name.ends_with(end)) {
            found.push(name);
        }
    }
    found.sort_unstable();
    match &*found {
        [] => Err(ImportError::NoCheckpoint { path: from.to_owned() }),
        [name] => Ok(from.join(name)),
        _ => Err(ImportError::Ambiguous { path: from.to_owned(), found }),
    }
}

/// The family whose blocks these are.
fn family(kinds: impl Iterator<Item = BlockKind> + Clone) -> Option<Family> {
    let is_all = |kind| kinds.clone().all(|it| it == kind);
    if is_all(BlockKind::Recurrent) {
        return Some(Family::Hawk);
    }
    if is_all(BlockKind::Attention) {
        return Some(Family::Mqa);
    }
    let griffin = (0..).map(aerie_models::griffin::block_kind);
    kinds.zip(griffin).all(|(found, expected)| found == expected).then_some(Family::Griffin)
}

fn io_error(path: &Path) -> impl Fn(io::Error) -> ImportError {
    |source| ImportError::Io { path: path.to_owned(), source }
}
