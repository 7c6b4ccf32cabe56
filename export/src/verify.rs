//! Runs the same tokens through every reading of a bundle's model that this build has, and compares
//! the logits: libtorch in f64, the bundle's graph fed in several ways, the portable graph.

mod report;

#[cfg(test)]
mod tests;

use std::{
    borrow::Cow,
    collections::BTreeMap,
    env, fs, io,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

use aerie_models::{
    BundleError, Carry, Manifest, ModelConfig, Precision, TensorSpec,
    bundle::{MODEL_FILE, TOKENIZER_FILE},
};
use ort::{
    environment::Environment,
    session::{Session, SessionInputValue},
    value::{DynValue, Tensor},
};
use rand::{Rng, seq::SliceRandom};
use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};
use thiserror::Error;

use crate::{
    emit::{EmitError, parse_tokenizer},
    onnx::{self, Limits, Target, WeightsError, WriteError, emitter::state_name, weights::Drawn},
    verify::report::{Answer, Reading, Report},
};

/// Compares what a bundle's graph computes with other readings of the same model
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  aerie-export verify models/bundles/tales
  aerie-export verify models/bundles/tales --text tales.valid.txt --tokens 600
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
    /// Seed of the tokens, of the chunks and of the lanes
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
    let environment = environment(args.onnxruntime.as_deref())?;
    let model = Model::open(&args.bundle)?;
    let tokens = model.tokens(args)?;
    let report = verify(&environment, &model, &tokens, args)?;
    io::Write::write_all(&mut io::stdout(), report.to_string().as_bytes())?;
    if report.passes() { Ok(()) } else { Err(VerifyError::Beyond.into()) }
}

/// Why a bundle cannot be verified, or does not hold.
#[derive(Debug, Error)]
pub enum VerifyError {
    #[error("a reading is beyond the tolerance")]
    Beyond,
    #[error(
        "ONNX Runtime: {}: there is no such library; `make` fetches one, --onnxruntime names another",
        path.display()
    )]
    NoRuntime { path: PathBuf },
    #[error("ONNX Runtime: {0}")]
    LoadRuntime(String),
    #[error("ONNX Runtime: {0}")]
    Runtime(#[from] ort::Error),
    #[error("the graph has no output {name}")]
    NoOutput { name: String },
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
/// Where `make` puts ONNX Runtime, from the root of the repository.
const RUNTIME: &str = ".deps/onnxruntime/libonnxruntime.so";

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
    environment: &Environment,
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
    onnx::write(portable, "portable", &model.weights, Limits::default(), &scratch.path)?;
    let mut portable =
        StepGraph::open(environment, &scratch.path.join(MODEL_FILE), config, Target::Portable)?;
    let mut readings = Vec::new();
    #[cfg(feature = "torch")]
    readings.push(torch(model, tokens)?);
    readings.push(portable.one_by_one("portable graph, one by one", tokens)?);

    let file = model.dir.join(MODEL_FILE);
    if model.manifest.ops.is_empty() {
        let mut graph = StepGraph::open(environment, &file, config, Target::Portable)?;
        readings.push(graph.one_by_one("the bundle's graph, one by one", tokens)?);
        return Ok(Report::new(readings, tolerance));
    }
    let mut rng = ChaCha8Rng::seed_from_u64(args.seed);
    let mut graph = StepGraph::open(environment, &file, config, Target::Ragged)?;
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

/// A graph with the state of its sessions.
struct StepGraph {
    session: Session,
    target: Target,
    layout: Vec<TensorSpec>,
    /// By the name of the input; none before the first step.
    state: BTreeMap<String, DynValue>,
}

/// The next tokens of one session.
#[derive(Clone, Copy, Debug)]
struct Segment<'a> {
    lane: u32,
    position: usize,
    tokens: &'a [u32],
}

impl StepGraph {
    fn open(
        environment: &Environment,
        file: &Path,
        config: &ModelConfig,
        target: Target,
    ) -> Result<Self, VerifyError> {
        let recover = |error: ort::Error<_>| ort::Error::new(error.to_string());
        let mut builder = Session::builder(environment)?.with_intra_threads(1).map_err(recover)?;
        if target == Target::Ragged {
            builder = builder.with_operators(aerie_ops::ort::domain()?).map_err(recover)?;
        }
        let session = builder.commit_from_file(file)?;
        let layout = Carry::layout(config).fields().cloned().collect();
        Ok(Self { session, target, layout, state: BTreeMap::new() })
    }

    /// Voids all sessions: `lanes` rows of what no computation may let through.
    fn reset(&mut self, lanes: usize) -> Result<(), VerifyError> {
        for spec in &self.layout {
            let row = usize::try_from(spec.elements()).expect("a row is in memory");
            let shape: Vec<usize> = [lanes as u64]
                .iter()
                .chain(&spec.shape)
                .map(|&extent| usize::try_from(extent).expect("a row is in memory"))
                .collect();
            let void = Tensor::from_array((shape, vec![f32::NAN; lanes * row]))?;
            self.state.insert(state_name(spec), void.into_dyn());
        }
        Ok(())
    }

    /// Advances the sessions that `segments` names; gives the logits after each segment.
    fn step(&mut self, segments: &[Segment<'_>]) -> Result<Vec<Vec<f64>>, VerifyError> {
        let tokens: Vec<i64> =
            segments.iter().flat_map(|it| it.tokens).copied().map(i64::from).collect();
        let positions: Vec<i64> = segments.iter().map(|it| it.position as i64).collect();
        let fresh: Vec<bool> = segments.iter().map(|it| it.position == 0).collect();
        let mut inputs: Vec<(Cow<'_, str>, SessionInputValue<'_>)> = vec![
            ("tokens".into(), Tensor::from_array(([tokens.len()], tokens))?.into()),
            ("positions".into(), Tensor::from_array(([positions.len()], positions))?.into()),
            ("fresh".into(), Tensor::from_array(([fresh.len()], fresh))?.into()),
        ];
        if self.target == Target::Ragged {
            let mut bounds = vec![0i32];
            for segment in segments {
                let tokens = i32::try_from(segment.tokens.len()).expect("tokens fit a step");
                bounds.push(bounds.last().copied().unwrap_or_default() + tokens);
            }
            let lanes: Vec<i32> = segments.iter().map(|it| it.lane.cast_signed()).collect();
            inputs.push(("segments".into(), Tensor::from_array(([bounds.len()], bounds))?.into()));
            inputs.push(("lanes".into(), Tensor::from_array(([lanes.len()], lanes))?.into()));
        }
        for (name, value) in std::mem::take(&mut self.state) {
            inputs.push((name.into(), value.into()));
        }

        let mut outputs = self.session.run(inputs)?;
        for spec in &self.layout {
            let name = state_name(spec);
            let next = format!("{name}.next");
            let value = outputs.remove(&next).ok_or(VerifyError::NoOutput { name: next })?;
            self.state.insert(name, value);
        }
        let logits = outputs
            .get("logits")
            .ok_or_else(|| VerifyError::NoOutput { name: "logits".to_owned() })?;
        let (_, logits) = logits.try_extract_tensor::<f32>()?;
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
            for logits in self.step(&[segment])? {
                answers.push(Answer { position: end - 1, logits });
            }
            position = end;
        }
        Ok(Reading { name: name.to_owned(), ragged: self.target == Target::Ragged, answers })
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
            let logits = self.step(&segments)?;
            for ((session, segment), logits) in sessions.iter_mut().zip(&segments).zip(logits) {
                session.1 += segment.tokens.len();
                answers.push(Answer { position: session.1 - 1, logits });
            }
        }
    }
}

/// A folder that goes when the command ends.
struct Scratch {
    path: PathBuf,
}

impl Scratch {
    fn new() -> Result<Self, VerifyError> {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let made = MADE.fetch_add(1, Ordering::Relaxed);
        let name = format!("aerie-export-verify-{}-{made}", std::process::id());
        let path = env::temp_dir().join(name);
        match fs::create_dir(&path) {
            Ok(()) => Ok(Self { path }),
            Err(source) => Err(VerifyError::Io { path, source }),
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Best effort: it lies where the system clears up.
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// Loads ONNX Runtime.
fn environment(library: Option<&Path>) -> Result<Environment, VerifyError> {
    let path = match library {
        Some(path) => path.to_owned(),
        None => env::var_os("ORT_DYLIB_PATH").map_or_else(|| RUNTIME.into(), PathBuf::from),
    };
    if !path.exists() {
        return Err(VerifyError::NoRuntime { path });
    }
    let builder =
        ort::init_from(&path).map_err(|error| VerifyError::LoadRuntime(error.to_string()))?;
    Ok(builder.with_telemetry(false).build()?)
}
