//! Measures what rounding costs: runs bundles of one model over a text beside each other, and compares
//! what they say of every next token.
//!
//! The graphs are those of the bundles, which the server runs, asked for the logits of every token.

mod report;
mod tally;

#[cfg(test)]
mod tests;

use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
};

use aerie_models::{
    BundleError, Manifest, ModelConfig, Precision,
    bundle::{MANIFEST_FILE, MODEL_FILE, TOKENIZER_FILE},
    census,
};
use serde_json::{Map, Value};
use thiserror::Error;

use crate::{
    checkpoint::{CheckpointError, write_atomically},
    compare::{
        report::{Report, Row},
        tally::{Expected, Tally},
    },
    data::sessions::{Amount, Encoder, Session, SessionsError, TOKENS_MAX, Text},
    emit::{EmitError, parse_tokenizer, scratch::Scratch},
    onnx::{
        self, EditError, Limits, Target, WeightsError, WriteError,
        edit::{keep_every_row, rounds_inputs},
        proto,
        weights::{Drawn, read_model},
    },
    progress,
    run::Documents,
    runtime::{self, Outputs, Runtime, RuntimeError, Segment, StepGraph},
};

/// Compares what bundles of one model say of a text: perplexity, KL divergence, first choices
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Every document is one session, as a server has it; tokens are read in order. Bundles are run as they
are served: with q8 and q4, inputs of products are rounded to bytes. --f32-activations also runs each
of these with inputs as they come, which tells what rounding the weights costs alone; its weights lie
in the system's temporary folder meanwhile, in f32.

  nats/token     cross entropy; perplexity is its exponential
  bits/weight    of the graph's parameters, scales and padding included
  KL             of a bundle's distribution from the first bundle's, in nats a token: mean, and what
                 99 of 100 tokens stay below
  other choice   share of tokens after which another token is the most likely one

Examples:
  aerie-export compare models/bundles/tales /tmp/tales-q8 /tmp/tales-q4 --text tales.valid.txt
  aerie-export compare models/bundles/tales /tmp/tales-q4 --text tales.valid.txt --tokens 20000 \\
      --f32-activations --json rounding.json")]
pub struct Args {
    /// Folder of the bundle that the others are held against
    #[arg(value_name = "REFERENCE")]
    reference: PathBuf,
    /// Folders of other bundles of the same model
    #[arg(value_name = "BUNDLE", required = true)]
    bundles: Vec<PathBuf>,
    /// Text that the model was not made from: a file, or a folder of .txt files
    #[arg(long, value_name = "PATH")]
    text: PathBuf,
    /// What begins a document, besides <|endoftext|> and files
    #[arg(long, value_enum, default_value_t)]
    documents: Documents,
    /// Tokens to read, from the text's beginning [default: all, but at most 16777216]
    #[arg(long, value_name = "N")]
    tokens: Option<usize>,
    /// Also run bundles that round inputs of products with inputs as they come
    #[arg(long)]
    f32_activations: bool,
    /// Also write the figures as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    #[command(flatten)]
    runtime: runtime::Options,
}

/// Most tokens of a step.
const CHUNK_TOKENS: usize = 512;
/// Most logits of a step, of all bundles together: 256 MiB.
const CHUNK_LOGITS_MAX: usize = 1 << 26;
/// Most bundles: all of them are in memory together.
const BUNDLES_MAX: usize = 16;

/// Why bundles are not compared.
#[derive(Debug, Error)]
pub enum CompareError {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{found} bundles; at most {BUNDLES_MAX} are compared")]
    Bundles { found: usize },
    #[error(
        "{}: manifest field `ops` is empty: this bundle is portable, but ones with the operators of \
         the domain `aerie` are compared", path.display()
    )]
    Portable { path: PathBuf },
    #[error(
        "{}: manifest field `model.{field}` is {found}, but {expected} in the reference",
        path.display()
    )]
    Model { path: PathBuf, field: String, found: String, expected: String },
    #[error("{}: {TOKENIZER_FILE} differs from the reference's", path.display())]
    Tokenizer { path: PathBuf },
    #[error("{}: the logits after token {token} of the text are not finite", path.display())]
    NotFinite { path: PathBuf, token: usize },
    #[error(transparent)]
    Sessions(#[from] SessionsError),
    #[error(transparent)]
    Emit(#[from] EmitError),
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    #[error(transparent)]
    Edit(#[from] EditError),
    #[error(transparent)]
    Weights(#[from] WeightsError),
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error(transparent)]
    Bundle(#[from] BundleError),
    #[error(transparent)]
    Json(#[from] CheckpointError),
}

/// Runs the command.
///
/// # Errors
/// See [`CompareError`].
pub fn run(args: &Args) -> anyhow::Result<()> {
    let report = compare(args, &args.runtime.load()?)?;
    io::stdout().write_all(report.to_string().as_bytes())?;
    Ok(())
}

fn compare(args: &Args, runtime: &Runtime) -> Result<Report, CompareError> {
    let found = args.bundles.len() + 1;
    if BUNDLES_MAX < found {
        return Err(CompareError::Bundles { found });
    }
    let reference = Bundle::open(&args.reference)?;
    let others = args.bundles.iter().map(|it| Bundle::open(it)?.of_model(&reference));
    let others: Vec<Bundle> = others.collect::<Result<_, _>>()?;
    let text = Text::read(&args.text, args.documents)?;
    let config = &reference.manifest.model;
    let path = reference.dir.join(TOKENIZER_FILE);
    let tokenizer = parse_tokenizer(&reference.tokenizer, &path)?;
    let encoder = Encoder { tokenizer: &tokenizer, vocab: config.vocab };
    let amount = Amount { asked: args.tokens, default: TOKENS_MAX, min: 2 };
    let sessions = text.in_order(encoder, amount)?;

    let mut subjects = vec![Subject::open(runtime, &reference, Inputs::AsServed)?];
    for bundle in &others {
        subjects.push(Subject::open(runtime, bundle, Inputs::AsServed)?);
        if args.f32_activations && bundle.rounds_inputs() {
            subjects.push(Subject::open(runtime, bundle, Inputs::AsTheyCome)?);
        }
    }
    read(&mut subjects, &sessions, config.vocab as usize)?;
    let text_bytes = sessions.iter().map(|it| it.text_bytes).sum();
    let rows = subjects.into_iter().map(|it| it.row(text_bytes)).collect();
    let report = Report::new(text.name(), &sessions, rows);
    if let Some(path) = &args.json {
        write_atomically(path, report.to_json().as_bytes())?;
    }
    Ok(report)
}

/// Has all of `subjects` read `sessions`; the first is what the others are held against.
fn read(
    subjects: &mut [Subject<'_>],
    sessions: &[Session],
    vocab: usize,
) -> Result<(), CompareError> {
    let chunk = (CHUNK_LOGITS_MAX / (vocab * subjects.len())).clamp(1, CHUNK_TOKENS);
    let targets: usize = sessions.iter().map(|it| it.ids.len() - 1).sum();
    let bar = progress::bar("{bar:30} {pos}/{len} tokens, {eta} left", targets as u64);
    for subject in &mut *subjects {
        subject.graph.reset(1)?;
    }
    let mut expected = Expected::default();
    for session in sessions {
        let inputs = &session.ids[..session.ids.len() - 1];
        for (idx, tokens) in inputs.chunks(chunk).enumerate() {
            let position = idx * chunk;
            let targets = &session.ids[position + 1..][..tokens.len()];
            let mut answers = Vec::with_capacity(subjects.len());
            for Subject { bundle, graph, tally, .. } in &mut *subjects {
                let logits = graph.step(&[Segment { lane: 0, position, tokens }])?;
                answers.push(Answer { bundle, logits, tally });
            }
            compare_rows(&mut answers, targets, &mut expected)?;
            bar.inc(tokens.len() as u64);
        }
    }
    bar.finish_and_clear();
    Ok(())
}

/// What a bundle says of the tokens of a step.
struct Answer<'s> {
    bundle: &'s Bundle,
    logits: Outputs<'s>,
    tally: &'s mut Tally,
}

/// Adds what `answers` say of `targets`, row by row; `expected` is memory that is kept.
fn compare_rows(
    answers: &mut [Answer<'_>],
    targets: &[u32],
    expected: &mut Expected,
) -> Result<(), CompareError> {
    for (row, &target) in targets.iter().enumerate() {
        for (idx, Answer { bundle, logits, tally }) in answers.iter_mut().enumerate() {
            let logits = logits.floats("logits")?;
            let vocab = logits.len() / targets.len();
            let logits = &logits[row * vocab..][..vocab];
            if idx == 0 {
                expected.set(logits);
            }
            tally
                .add(expected, logits, target as usize)
                .map_err(|token| CompareError::NotFinite { path: bundle.dir.clone(), token })?;
        }
    }
    Ok(())
}

/// A bundle, read and verified against its manifest.
#[derive(Debug)]
struct Bundle {
    dir: PathBuf,
    manifest: Manifest,
    model: proto::Model,
    /// The tokenizer's file.
    tokenizer: Vec<u8>,
    /// Bytes of all files.
    bytes: u64,
}

impl Bundle {
    fn open(dir: &Path) -> Result<Self, CompareError> {
        let manifest =
            Manifest::open(dir, |op| aerie_ops::schema::schema(op).map(|it| it.version))?;
        if manifest.ops.is_empty() {
            return Err(CompareError::Portable { path: dir.to_owned() });
        }
        let io_error = |path: &Path| {
            let path = path.to_owned();
            |source| CompareError::Io { path, source }
        };
        let mut bytes = 0;
        for name in manifest.files.keys().map(String::as_str).chain([MANIFEST_FILE]) {
            let path = dir.join(name);
            bytes += fs::metadata(&path).map_err(io_error(&path))?.len();
        }
        let path = dir.join(TOKENIZER_FILE);
        let tokenizer = fs::read(&path).map_err(io_error(&path))?;
        let model = read_model(&dir.join(MODEL_FILE))?;
        Ok(Self { dir: dir.to_owned(), manifest, model, tokenizer, bytes })
    }

    /// This bundle, if it is of the model that `reference` is of.
    fn of_model(self, reference: &Self) -> Result<Self, CompareError> {
        let [found, expected] = [&self, reference].map(|it| fields(&it.manifest.model));
        let names = expected.keys().chain(found.keys());
        if let Some(field) = names.into_iter().find(|it| found.get(*it) != expected.get(*it)) {
            let value = |it: &Map<String, Value>| match it.get(field) {
                Some(value) => value.to_string(),
                None => "absent".to_owned(),
            };
            let (found, expected) = (value(&found), value(&expected));
            return Err(CompareError::Model {
                path: self.dir,
                field: field.clone(),
                found,
                expected,
            });
        }
        if self.tokenizer != reference.tokenizer {
            return Err(CompareError::Tokenizer { path: self.dir });
        }
        Ok(self)
    }

    /// Whether products round their inputs.
    fn rounds_inputs(&self) -> bool {
        self.model.graph.as_ref().is_some_and(rounds_inputs)
    }

    /// A folder with the graph in f32, of the weights as they are once unpacked: our products with
    /// inputs as they come are made for checking, not for reading a text.
    fn unpacked(&self) -> Result<Scratch, CompareError> {
        let config = &self.manifest.model;
        let weights = Drawn::open(&self.dir.join(MODEL_FILE), config)?;
        let graph = onnx::emit(config, Target::Ragged, Precision::F32);
        let scratch = Scratch::new()?;
        onnx::write(graph, "unpacked", &weights, Limits::default(), scratch.path())?;
        Ok(scratch)
    }

    /// Bits of the graph's parameters, for each of the model's.
    fn weight_bits(&self) -> f64 {
        let initializers = self.model.graph.iter().flat_map(|it| &it.initializer);
        let parameters = initializers.filter(|it| !it.name.starts_with("constant."));
        let bytes: u64 = parameters.map(proto::Tensor::bytes).sum();
        8.0 * bytes as f64 / census::parameter_total(&self.manifest.model) as f64
    }
}

/// The fields of a configuration that are there, by name.
fn fields(config: &ModelConfig) -> Map<String, Value> {
    match serde_json::to_value(config) {
        Ok(Value::Object(fields)) => fields,
        other => unreachable!("a configuration is a table: {other:?}"),
    }
}

/// What products take their inputs as.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Inputs {
    AsServed,
    AsTheyCome,
}

/// A bundle's graph that reads.
#[derive(Debug)]
struct Subject<'a> {
    bundle: &'a Bundle,
    graph: StepGraph,
    /// Bits of the inputs of products.
    activation_bits: u32,
    tally: Tally,
    /// Where the graph lies that takes inputs as they come.
    _scratch: Option<Scratch>,
}

impl<'a> Subject<'a> {
    fn open(runtime: &Runtime, bundle: &'a Bundle, inputs: Inputs) -> Result<Self, CompareError> {
        let config = &bundle.manifest.model;
        let scratch = match inputs {
            Inputs::AsServed => None,
            Inputs::AsTheyCome => Some(bundle.unpacked()?),
        };
        let (mut model, dir) = match &scratch {
            None => (bundle.model.clone(), bundle.dir.as_path()),
            Some(it) => (read_model(&it.path().join(MODEL_FILE))?, it.path()),
        };
        keep_every_row(model.graph.get_or_insert_default())?;
        let rounds = inputs == Inputs::AsServed && bundle.rounds_inputs();
        Ok(Self {
            bundle,
            graph: runtime.open_edited(&model, dir, config)?,
            activation_bits: if rounds { 8 } else { 32 },
            tally: Tally::default(),
            _scratch: scratch,
        })
    }

    fn row(self, text_bytes: u64) -> Row {
        let Self { bundle, activation_bits, tally, .. } = self;
        let name = bundle.dir.file_name().unwrap_or(bundle.dir.as_os_str());
        Row {
            bundle: name.to_string_lossy().into_owned(),
            precision: bundle.manifest.precision,
            activation_bits,
            bytes: bundle.bytes,
            weight_bits: bundle.weight_bits(),
            figures: tally.figures(text_bytes),
        }
    }
}
