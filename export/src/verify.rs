//! Runs the same tokens through every reading of a bundle's model that this build has, and compares
//! the logits: libtorch in f64, the bundle's graph fed in several ways, the portable graph.

#[cfg(feature = "torch")]
mod images;
mod report;

#[cfg(test)]
mod tests;

use std::{
    fs, io,
    ops::RangeInclusive,
    path::{Path, PathBuf},
};

use aerie_models::{
    AnyManifest, BundleError, ImageConfig, Manifest, ModelConfig, Precision,
    bundle::{MODEL_FILE, TOKENIZER_FILE},
};
use rand::{Rng, seq::SliceRandom};
use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};
use thiserror::Error;

use crate::{
    checkpoint::CheckpointError,
    emit::{EmitError, parse_tokenizer, scratch::Scratch},
    onnx::{self, Limits, Target, WeightsError, WriteError, weights::Drawn},
    runtime::{Runtime, RuntimeError, Segment, StepGraph},
    verify::report::{Answer, Reading, Report},
};

/// Compares what a bundle's graph computes with other readings of the same model
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  aerie-export verify models/bundles/tales
  aerie-export verify models/bundles/tales --text tales.valid.txt --tokens 600
  aerie-export verify models/bundles/pictures --checkpoint runs/pictures
Exits with 1 if a reading is beyond the tolerance.")]
pub struct Args {
    /// Folder of the bundle
    #[arg(value_name = "BUNDLE")]
    bundle: PathBuf,
    /// Text whose tokens are run [default: tokens drawn by seed]
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// Tokens to run [default: past the attention window three times]
    #[arg(long, value_name = "N")]
    tokens: Option<usize>,
    /// What the bundle of a classifier was made of: a run directory, or a safetensors file
    #[arg(long, value_name = "PATH")]
    checkpoint: Option<PathBuf>,
    /// Seed of the tokens or pixels, of the chunks and of the lanes
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Largest difference that passes, as a share of the largest logit [default: 1e-5, and 0.05 where
    /// products round their inputs to bytes]
    #[arg(long, value_name = "X")]
    tolerance: Option<f64>,
    /// ONNX Runtime's library [default: $ORT_DYLIB_PATH, or the one that `make` fetched]
    #[arg(long, value_name = "FILE")]
    onnxruntime: Option<PathBuf>,
}

/// Runs the command.
///
/// # Errors
/// See [`VerifyError`].
pub fn run(args: &Args) -> anyhow::Result<()> {
    // One thread, so that the order of sums within the runtime's own products is fixed.
    let runtime = Runtime::load(args.onnxruntime.as_deref(), 1)?;
    let version = |op: &str| aerie_ops::schema::schema(op).map(|it| it.version);
    if let AnyManifest::Images(manifest) = AnyManifest::open(&args.bundle, version)? {
        return verify_images(&runtime, &manifest, args);
    }
    let model = Model::open(&args.bundle)?;
    let tokens = model.tokens(args)?;
    let report = verify(&runtime, &model, &tokens, args)?;
    io::Write::write_all(&mut io::stdout(), report.to_string().as_bytes())?;
    if report.passes() { Ok(()) } else { Err(VerifyError::Beyond.into()) }
}

#[cfg(feature = "torch")]
fn verify_images(
    runtime: &Runtime,
    manifest: &Manifest<ImageConfig>,
    args: &Args,
) -> anyhow::Result<()> {
    let checkpoint = args.checkpoint.as_ref().ok_or(VerifyError::Unsaid)?;
    let (bundle, seed) = (&args.bundle, args.seed);
    let report = images::verify(runtime, bundle, manifest, checkpoint, seed, args.tolerance)?;
    io::Write::write_all(&mut io::stdout(), report.to_string().as_bytes())?;
    if report.passes() { Ok(()) } else { Err(VerifyError::Beyond.into()) }
}

#[cfg(not(feature = "torch"))]
fn verify_images(
    _runtime: &Runtime,
    _manifest: &Manifest<ImageConfig>,
    _args: &Args,
) -> anyhow::Result<()> {
    Err(VerifyError::NoTorch.into())
}

/// Why a bundle cannot be verified, or does not hold.
#[derive(Debug, Error)]
pub enum VerifyError {
    #[error("a reading is beyond the tolerance")]
    Beyond,
    #[error("a classifier is verified against what it was made of: --checkpoint names it")]
    Unsaid,
    #[error("a classifier is verified by libtorch, which this build does without")]
    NoTorch,
    #[error("{}: the run has no checkpoint yet", path.display())]
    NoCheckpoint { path: PathBuf },
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{}: {found} tokens; at least 1 is needed", path.display())]
    NoTokens { path: PathBuf, found: usize },
    #[error(
        "{tokens} tokens of vocab {vocab} make {found} logits; at most {LOGITS_MAX} are compared \
         (lower --tokens)"
    )]
    TooMany { tokens: usize, vocab: u32, found: u64 },
    #[cfg(feature = "torch")]
    #[error("libtorch: {0}")]
    Torch(#[from] crate::torch::parameters::ParametersError),
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    #[error(transparent)]
    Bundle(#[from] BundleError),
    #[error(transparent)]
    Weights(#[from] WeightsError),
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error(transparent)]
    Emit(#[from] EmitError),
}

/// f32 keeps 7 digits, of which sums over a few thousand products lose one or two.
const TOLERANCE: f64 = 1e-5;
/// Where inputs of products are bytes, each is off by up to 1/254 of the largest beside it.
const TOLERANCE_BYTES: f64 = 0.05;
/// Most logits kept of a reading: 1 GiB.
const LOGITS_MAX: u64 = 1 << 27;

/// A bundle, opened.
struct Model {
    dir: PathBuf,
    manifest: Manifest,
    weights: Drawn,
}

impl Model {
    fn open(dir: &Path) -> Result<Self, VerifyError> {
        let manifest =
            Manifest::open(dir, |op| aerie_ops::schema::schema(op).map(|it| it.version))?;
        let weights = Drawn::open(&dir.join(MODEL_FILE), &manifest.model)?;
        Ok(Self { dir: dir.to_owned(), manifest, weights })
    }

    fn config(&self) -> &ModelConfig {
        &self.manifest.model
    }

    /// The tokens that `args` asks for.
    fn tokens(&self, args: &Args) -> Result<Vec<u32>, VerifyError> {
        let ring = self.config().window as usize + 1;
        let n_tokens = args.tokens.unwrap_or(3 * ring + 5);
        let tokens: Vec<u32> = match &args.text {
            Some(path) => {
                let io_error = |source| VerifyError::Io { path: path.clone(), source };
                let text = fs::read_to_string(path).map_err(io_error)?;
                let file = self.dir.join(TOKENIZER_FILE);
                let bytes = fs::read(&file).map_err(io_error)?;
                let encoding =
                    parse_tokenizer(&bytes, &file)?.encode_fast(text, false).map_err(|error| {
                        EmitError::Tokenizer { path: file, message: error.to_string() }
                    })?;
                encoding.get_ids().iter().copied().take(n_tokens).collect()
            }
            None => {
                let mut rng = ChaCha8Rng::seed_from_u64(args.seed);
                (0..n_tokens).map(|_| rng.random_range(0..self.config().vocab)).collect()
            }
        };
        if tokens.is_empty() {
            let path = args.text.clone().unwrap_or_else(|| self.dir.clone());
            return Err(VerifyError::NoTokens { path, found: 0 });
        }
        let (tokens_len, vocab) = (tokens.len(), self.config().vocab);
        let found = (tokens_len as u64).saturating_mul(vocab.into());
        if LOGITS_MAX < found {
            return Err(VerifyError::TooMany { tokens: tokens_len, vocab, found });
        }
        Ok(tokens)
    }
}

/// Runs `tokens` through every reading.
fn verify(
    runtime: &Runtime,
    model: &Model,
    tokens: &[u32],
    args: &Args,
) -> Result<Report, VerifyError> {
    let config = model.config();
    let tolerance = args.tolerance.unwrap_or(match model.manifest.precision {
        Precision::F32 | Precision::F16 | Precision::Bf16 => TOLERANCE,
        Precision::Q8 | Precision::Q4 => TOLERANCE_BYTES,
    });
    let scratch = Scratch::new()?;
    let portable = onnx::emit(config, Target::Portable, Precision::F32);
    onnx::write(portable, "portable", &model.weights, Limits::default(), scratch.path())?;
    let mut portable = runtime.open(&scratch.path().join(MODEL_FILE), config, Target::Portable)?;
    let mut readings = Vec::new();
    #[cfg(feature = "torch")]
    readings.push(torch(model, tokens)?);
    readings.push(portable.one_by_one("portable graph, one by one", tokens)?);

    let file = model.dir.join(MODEL_FILE);
    if model.manifest.ops.is_empty() {
        let mut graph = runtime.open(&file, config, Target::Portable)?;
        readings.push(graph.one_by_one("the bundle's graph, one by one", tokens)?);
        return Ok(Report::new(readings, tolerance));
    }
    let mut rng = ChaCha8Rng::seed_from_u64(args.seed);
    let mut graph = runtime.open(&file, config, Target::Ragged)?;
    readings.push(graph.one_by_one("ragged graph, one by one", tokens)?);
    // Some chunks within the window, some beyond.
    let chunk = 1..=2 * config.window as usize;
    readings.push(graph.in_chunks("ragged graph, in chunks", tokens, chunk, &mut rng)?);
    let whole = tokens.len()..=tokens.len();
    readings.push(graph.in_chunks("ragged graph, all at once", tokens, whole, &mut rng)?);
    readings.push(graph.packed("ragged graph, 3 sessions in 4 lanes", tokens, &mut rng)?);
    Ok(Report::new(readings, tolerance))
}

/// What libtorch computes of it, in f64.
#[cfg(feature = "torch")]
fn torch(model: &Model, tokens: &[u32]) -> Result<Reading, VerifyError> {
    use std::collections::BTreeMap;

    use crate::{checkpoint::Values, onnx::Weights, torch::reference};

    let mut tensors = BTreeMap::new();
    for (path, spec) in aerie_models::census::parameters(model.config()) {
        let values = model.weights.load(path.as_str(), &spec)?;
        let extent = |&it: &u64| usize::try_from(it).expect("the tensor is in memory");
        let shape = spec.shape.iter().map(extent).collect();
        tensors.insert(path.to_string(), Values { shape, values });
    }
    let logits = reference::logits(model.config(), &tensors, tokens)?;
    let answers = logits.into_iter().enumerate();
    let answers = answers.map(|(position, logits)| Answer { position, logits }).collect();
    Ok(Reading { name: "libtorch in f64, one by one".to_owned(), ragged: false, answers })
}

impl StepGraph {
    /// Advances the sessions that `segments` names; gives the logits after each segment.
    fn logits(&mut self, segments: &[Segment<'_>]) -> Result<Vec<Vec<f64>>, VerifyError> {
        let outputs = self.step(segments)?;
        let logits = outputs.floats("logits")?;
        let vocab = logits.len() / segments.len();
        Ok(logits.chunks(vocab).map(|row| row.iter().copied().map(f64::from).collect()).collect())
    }

    fn one_by_one(&mut self, name: &str, tokens: &[u32]) -> Result<Reading, VerifyError> {
        self.in_chunks(name, tokens, 1..=1, &mut ChaCha8Rng::seed_from_u64(0))
    }

    /// Runs one session in chunks whose lengths are drawn from `chunk`.
    fn in_chunks(
        &mut self,
        name: &str,
        tokens: &[u32],
        chunk: RangeInclusive<usize>,
        rng: &mut ChaCha8Rng,
    ) -> Result<Reading, VerifyError> {
        self.reset(1)?;
        let mut answers = Vec::new();
        let mut position = 0;
        while position < tokens.len() {
            let end = tokens.len().min(position + rng.random_range(chunk.clone()));
            let segment = Segment { lane: 0, position, tokens: &tokens[position..end] };
            for logits in self.logits(&[segment])? {
                answers.push(Answer { position: end - 1, logits });
            }
            position = end;
        }
        Ok(Reading { name: name.to_owned(), ragged: self.is_ragged(), answers })
    }

    /// Runs three sessions with the same tokens, each with its own lane and its own chunks; they
    /// begin one after another and are packed in another order in every step.
    fn packed(
        &mut self,
        name: &str,
        tokens: &[u32],
        rng: &mut ChaCha8Rng,
    ) -> Result<Reading, VerifyError> {
        const LANES: [u32; 3] = [2, 0, 3];
        self.reset(4)?;
        let mut answers = Vec::new();
        let mut sessions: Vec<(u32, usize)> = Vec::new();
        let mut waiting = LANES.iter().copied();
        loop {
            sessions.extend(waiting.next().map(|lane| (lane, 0)));
            sessions.retain(|&(_, position)| position < tokens.len());
            if sessions.is_empty() {
                return Ok(Reading { name: name.to_owned(), ragged: true, answers });
            }
            sessions.shuffle(rng);
            let chunk_max = (tokens.len() / 4).max(1);
            let segments: Vec<Segment<'_>> = sessions
                .iter()
                .map(|&(lane, position)| {
                    // Half of them decode, as in a live batch.
                    let chunk = if rng.random() { 1 } else { rng.random_range(1..=chunk_max) };
                    let end = tokens.len().min(position + chunk);
                    Segment { lane, position, tokens: &tokens[position..end] }
                })
                .collect();
            let logits = self.logits(&segments)?;
            for ((session, segment), logits) in sessions.iter_mut().zip(&segments).zip(logits) {
                session.1 += segment.tokens.len();
                answers.push(Answer { position: session.1 - 1, logits });
            }
        }
    }
}
