//! Writes a bundle with fewer bits for each weight, from one that has them all or from a training.
//!
//! Which scales are chosen may follow from a text: then errors count by how large the inputs are that
//! they meet, see [`calibrate`].

pub mod calibrate;

#[cfg(test)]
mod tests;

use std::path::PathBuf;

use aerie_models::{Precision, Provenance, bundle::TOKENIZER_FILE};
use thiserror::Error;

use crate::{
    data::sessions::{Amount, Encoder, SessionsError, Text},
    emit::{self, EmitError, Options, Source, parse_tokenizer, precision_parser, staging::Staging},
    onnx::{self, EditError, Limits, Target, WeightsError, WriteError},
    quantize::calibrate::{Calibrated, Collector},
    run::Documents,
    runtime::{self, RuntimeError},
};

/// Writes a bundle of fewer bits: bf16, 8 or 4 for each weight of a matrix
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The scales of q4 are chosen so that the squares of the weights' errors are small. With --calibrate, the
model first reads a text, and each error counts by the mean square of the input that it meets there:
what meets little may be wrong. Take text of the kind that the model is to read, but not the text that
it is measured on.

Examples:
  aerie-export quantize models/bundles/tales --precision q8 --out /tmp/tales-q8
  aerie-export quantize models/bundles/tales --precision q4 --calibrate tales.train.txt \\
      --out /tmp/tales-q4
  aerie-export quantize --run runs/tales --step 2000 --precision q4 --out /tmp/tales-q4
What that costs: aerie-export compare models/bundles/tales /tmp/tales-q4 --text tales.valid.txt")]
pub struct Args {
    /// Folder of a bundle in f32, f16 or bf16
    #[arg(value_name = "BUNDLE", required_unless_present = "run")]
    bundle: Option<PathBuf>,
    /// Run directory of a training, instead of a bundle
    #[arg(long, value_name = "RUN", conflicts_with = "bundle")]
    run: Option<PathBuf>,
    /// Checkpoint of the run to take [default: the latest]
    #[arg(long, value_name = "N", requires = "run")]
    step: Option<u64>,
    /// How matrices are stored; with q8 and q4, inputs of products are rounded to 8 bits
    #[arg(long, value_name = "TYPE", value_parser = precision_parser(PRECISIONS))]
    precision: Precision,
    /// Text to choose the scales of q4 by: a file, or a folder of .txt files
    #[arg(long, value_name = "PATH")]
    calibrate: Option<PathBuf>,
    /// Tokens to read of it, in pieces from all over the text [default: 32768, or all if there are
    /// fewer]
    #[arg(long, value_name = "N", requires = "calibrate")]
    tokens: Option<usize>,
    /// What begins a document of the text, besides <|endoftext|> and files
    #[arg(long, value_enum, default_value_t, requires = "calibrate")]
    documents: Documents,
    /// Folder to write; it must not exist yet
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// What clients call the model [default: the folder's name]
    #[arg(long)]
    name: Option<String>,
    /// Replace the folder if it exists
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    runtime: runtime::Options,
}

/// What can be asked for.
const PRECISIONS: [Precision; 3] = [Precision::Bf16, Precision::Q8, Precision::Q4];
/// Tokens that are read if nobody says how many.
const TOKENS: usize = 1 << 15;
/// Fewest tokens that say anything of the inputs.
const TOKENS_MIN: usize = 512;
/// Where the graph of a training is drawn for as long as it reads.
const DRAWN_FOLDER: &str = "calibration";

/// Why there is no bundle.
#[derive(Debug, Error)]
pub enum QuantizeError {
    #[error("--calibrate with --precision {found}: only q4 has scales to choose")]
    NoScales { found: &'static str },
    #[error("the inputs of {weight} are not finite on this text")]
    NotFinite { weight: String },
    #[error(transparent)]
    Sessions(#[from] SessionsError),
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    #[error(transparent)]
    Edit(#[from] EditError),
    #[error(transparent)]
    Weights(#[from] WeightsError),
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error(transparent)]
    Emit(#[from] EmitError),
}

/// Runs the command.
///
/// # Errors
/// See [`QuantizeError`]; nothing is written then.
pub fn run(args: &Args) -> anyhow::Result<()> {
    Ok(quantize(args, || args.runtime.load())?)
}

/// As [`run`], with a runtime that is loaded only where it is needed.
fn quantize(
    args: &Args,
    load: impl FnOnce() -> Result<runtime::Runtime, RuntimeError>,
) -> Result<(), QuantizeError> {
    if args.calibrate.is_some() && args.precision != Precision::Q4 {
        return Err(QuantizeError::NoScales { found: args.precision.name() });
    }
    let options = Options {
        name: emit::name(args.name.as_deref(), &args.out)?,
        target: Target::Ragged,
        precision: args.precision,
        force: args.force,
    };
    let source = match (&args.bundle, &args.run) {
        (Some(bundle), _) => Source::bundle(bundle)?,
        (None, Some(run)) => Source::run(run, args.step, None)?,
        (None, None) => unreachable!("clap asks for one of the two"),
    };
    // What is in the way is told before the text is read, not after.
    let staging = options.stage(&args.out)?;
    let source = match &args.calibrate {
        Some(text) => {
            let text = Text::read(text, args.documents)?;
            calibrated(args, &text, source, &staging, &load()?)?
        }
        None => source,
    };
    Ok(emit::write(source, &options, staging)?)
}

/// `source` with what its products are multiplied by on `text`.
fn calibrated(
    args: &Args,
    text: &Text,
    source: Source,
    staging: &Staging,
    runtime: &runtime::Runtime,
) -> Result<Source, QuantizeError> {
    let Source { config, weights, tokenizer, .. } = &source;
    let tokenizer = parse_tokenizer(tokenizer, TOKENIZER_FILE.as_ref())?;
    let encoder = Encoder { tokenizer: &tokenizer, vocab: config.vocab };
    let amount = Amount { asked: args.tokens, default: TOKENS, min: TOKENS_MIN };
    let sessions = text.here_and_there(encoder, amount)?;
    let importance = match &args.bundle {
        Some(bundle) => Collector::open(runtime, bundle, config)?.importance(&sessions)?,
        None => {
            let dir = staging.folder(DRAWN_FOLDER)?;
            let graph = onnx::emit(config, Target::Ragged, Precision::F32);
            onnx::write(graph, DRAWN_FOLDER, weights.as_ref(), Limits::default(), &dir)?;
            let importance = Collector::open(runtime, &dir, config)?.importance(&sessions)?;
            staging.remove_folder(DRAWN_FOLDER)?;
            importance
        }
    };
    let tokens: usize = sessions.iter().map(|it| it.ids.len()).sum();
    let calibration = Some(format!("{tokens} tokens of {}", text.name()));
    Ok(Source {
        weights: Box::new(Calibrated { weights: source.weights, importance }),
        provenance: Provenance { calibration, ..source.provenance },
        ..source
    })
}
