//! `aerie-export eval`: the loss of a trained model on a text, read as one stream with its state
//! carried from chunk to chunk, as a server reads it; or on images, and how many of them it gets right.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use aerie_models::{ModelConfig, decoder};
use anyhow::Context;
use tch::{Kind, Tensor, no_grad};

use crate::{
    checkpoint::{LABELS_FILE, RunDir, TOKENIZER_FILE},
    data::{corpus::Tokens, images::Dataset, text, tokenizer},
    emit,
    run::Documents,
    torch::{
        backend::{Handle, Packing, PackingKind, Reading, void},
        images::accuracy,
        log::Valid,
        parameters::Parameters,
        shim,
    },
};

/// Tokens that are read at one time.
const CHUNK_TOKENS: usize = 1024;

/// Measures the loss of a trained model on a text, or on images.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  aerie-export eval --run runs/tales --text tales.valid.txt
  aerie-export eval --run runs/tales-mqa --text tales.valid.txt --restart 512
  aerie-export eval --run runs/shakespeare --text shakespeare.txt --holdout 0.1
  aerie-export eval --run runs/pictures --images cifar10/test.parquet

Every document is one session: its state is carried from chunk to chunk, as a server does. All is computed in
f32, whatever the run was trained in.")]
pub struct Args {
    /// Run directory
    #[arg(long, value_name = "DIR")]
    run: PathBuf,
    /// File, or folder of .txt files
    #[arg(long, value_name = "PATH", required_unless_present = "images")]
    text: Option<PathBuf>,
    /// Images of the classes that the run's network tells apart, as --valid of `train` takes them
    #[arg(long, value_name = "PATH", conflicts_with_all = ["text", "holdout", "documents", "restart"])]
    images: Option<PathBuf>,
    /// Use only this share of the text, at its end
    #[arg(long, value_name = "SHARE")]
    holdout: Option<f64>,
    /// What begins a document, besides <|endoftext|> and files
    #[arg(long, value_enum, default_value_t)]
    documents: Documents,
    /// Begin a new session after this many tokens, to see what a longer past is worth
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(1..))]
    restart: Option<u32>,
    /// Threads of libtorch; all cores if left out
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(1..))]
    threads: Option<i32>,
}

/// Runs the command.
///
/// # Errors
/// If the run, the text or the images cannot be read.
pub fn run(args: &Args) -> anyhow::Result<()> {
    if let Some(threads) = args.threads {
        tch::set_num_threads(threads);
    }
    match (&args.images, &args.text) {
        (Some(path), _) => images(args, path),
        (None, Some(path)) => text(args, path),
        (None, None) => unreachable!("one of them is required"),
    }
}

#[expect(clippy::print_stdout, reason = "the figures are the program's output")]
fn images(args: &Args, path: &Path) -> anyhow::Result<()> {
    let dir = RunDir::new(&args.run);
    let run = dir.run()?;
    let (model, data) = run.images().context("--run is not of a classifier")?;
    let step = dir.latest()?.context("the run has no checkpoint yet")?;
    let parameters = Parameters::load(model, &step.model()?, Kind::Float)?;
    let classes = emit::images::labels(&dir.path().join(LABELS_FILE), model.classes)?;
    let set = Arc::new(Dataset::open_test(path, &classes)?);
    let Valid { loss, score } = accuracy::measure(model, &parameters, &set, &data.preprocessing)?;
    println!("images          {}", set.labels().len());
    println!("loss            {loss:.4} nats/image");
    println!("right           {:.2} %", 100.0 * score);
    Ok(())
}

#[expect(clippy::print_stdout, reason = "the figures are the program's output")]
fn text(args: &Args, path: &Path) -> anyhow::Result<()> {
    let dir = RunDir::new(&args.run);
    let run = dir.run()?;
    let (model, _) = run.language().context("--run is not of a language model")?;
    let step = dir.latest()?.context("the run has no checkpoint yet")?;
    let parameters = Parameters::load(model, &step.model()?, Kind::Float)?;
    let tokenizer = tokenizer::load(&dir.path().join(TOKENIZER_FILE))?;
    let documents = match args.holdout {
        Some(holdout) => {
            let [_, tail] = text::read_split(path, args.documents, holdout)?;
            tail
        }
        None => text::read(path, args.documents)?,
    };
    let tokens = Tokens::encode(&tokenizer, &documents, None)?;
    let nats = no_grad(|| stream_nats(model, &parameters, &tokens, args.restart));
    let targets = tokens.ids.len() - 1;
    let loss = nats / targets as f64;
    println!("tokens          {targets}");
    println!("bytes           {}", tokens.text_bytes);
    println!("loss            {loss:.4} nats/token");
    println!("perplexity      {:.3}", loss.exp());
    println!("bits per byte   {:.4}", nats / std::f64::consts::LN_2 / tokens.text_bytes as f64);
    Ok(())
}

/// Sum of the cross entropy over all tokens but the first; sessions are cut at `restart` tokens.
fn stream_nats(
    model: &ModelConfig,
    parameters: &Parameters,
    tokens: &Tokens,
    restart: Option<u32>,
) -> f64 {
    let session_max = restart.map_or(usize::MAX, |it| it as usize);
    let table = parameters.embedding();
    let mut carry = void(model, 1, parameters.options()).map(Handle::of);
    let mut position = 0;
    let mut nats = 0.0;
    let mut begin = 0;
    while begin + 1 < tokens.ids.len() {
        if Some(tokens.ids[begin]) == tokens.boundary || session_max <= position {
            position = 0;
        }
        // A chunk ends before the next document, which is a session of its own.
        let chunk = CHUNK_TOKENS.min(session_max - position);
        let most = &tokens.ids[begin..(begin + chunk).min(tokens.ids.len() - 1)];
        let document = most[1..].iter().position(|it| Some(*it) == tokens.boundary);
        let end = begin + document.map_or(most.len(), |it| it + 1);
        let [inputs, targets] =
            [begin..end, begin + 1..end + 1].map(|it| Tensor::from_slice(&widen(&tokens.ids[it])));
        let bounds = vec![0, (end - begin) as i64];
        let kind = PackingKind::Sessions { positions: vec![position as i64] };
        let reading = Reading::new(model, parameters, Packing { bounds, kind });
        let (x, next) = decoder::hidden(model, &reading, &Handle(inputs), &carry);
        nats += shim::cross_entropy(&x, table, &targets, model.logits_soft_cap).double_value(&[]);
        carry = next;
        position += end - begin;
        begin = end;
    }
    nats
}

fn widen(ids: &[u32]) -> Vec<i64> {
    ids.iter().copied().map(i64::from).collect()
}
