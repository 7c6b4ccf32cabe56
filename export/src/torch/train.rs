//! `aerie-export train`: the loop, and what it takes to stop and go on without a trace.

#[cfg(test)]
mod tests;

use std::{
    fs,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use aerie_models::{ModelConfig, decoder, presets};
use anyhow::{Context, bail, ensure};
use tch::{Kind, Tensor, no_grad};

use crate::{
    checkpoint::{
        Documents, LOG_FILE, Matmul, PLOT_FILE, Progress, Run, RunDir, TOKENIZER_FILE, TrainConfig,
    },
    data::{
        batches::{Batch, Cursor, Shape, Shuffle},
        corpus::Tokens,
        text, tokenizer,
    },
    plot,
    torch::{
        adamw::{self, AdamW},
        backend::{Handle, Packing, PackingKind, Reading, void},
        log::{Display, Line, Log, Valid},
        parameters::Parameters,
        shim,
    },
};

/// Tokens of a row when validating; longer than in training, so that few tokens lack a past.
const VALID_TIME: usize = 2048;
/// Rows of a batch when validating.
const VALID_ROWS: usize = 4;

/// Trains a model on text.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  aerie-export tokenizer --text tales.train.txt --vocab 4096 --out tokenizer.json
  aerie-export train --run runs/tales --preset tales --tokenizer tokenizer.json \\
      --text tales.train.txt --valid tales.valid.txt --documents headings
  aerie-export train --run runs/tales --resume

SIGINT and SIGTERM write a checkpoint before the program ends; --resume goes on from the newest one,
bit for bit as if nothing had happened (on the same machine, with the same number of threads).")]
pub struct Args {
    /// Run directory: made by a new run, read by --resume
    #[arg(long, value_name = "DIR")]
    run: PathBuf,
    /// Go on with the run; all options are the run's own
    #[arg(long, conflicts_with_all = ["preset", "model", "tokenizer", "text"])]
    resume: bool,
    /// Stop after this step, with a checkpoint; the learning rate still aims at --steps
    #[arg(long, value_name = "STEP", default_value_t = u64::MAX, hide_default_value = true)]
    until: u64,
    /// Threads of libtorch; all cores if left out
    #[arg(long, value_name = "N")]
    threads: Option<i32>,
    /// A model by its name; a wrong one prints the list
    #[arg(long, value_name = "NAME", required_unless_present_any = ["resume", "model"])]
    preset: Option<String>,
    /// A model by a file in the presets' format
    #[arg(long, value_name = "FILE", conflicts_with = "preset")]
    model: Option<PathBuf>,
    #[arg(long, value_name = "FILE", required_unless_present = "resume")]
    tokenizer: Option<PathBuf>,
    #[command(flatten)]
    data: DataArgs,
    #[command(flatten)]
    options: OptionArgs,
}

#[derive(Debug, clap::Args)]
struct DataArgs {
    /// Text to train on: a file, or a folder of .txt files
    #[arg(long, value_name = "PATH", required_unless_present = "resume")]
    text: Option<PathBuf>,
    /// Text to validate on
    #[arg(long, value_name = "PATH")]
    valid: Option<PathBuf>,
    /// Validate on this share of the text, cut from its end
    #[arg(long, value_name = "SHARE", conflicts_with = "valid")]
    holdout: Option<f64>,
    /// What begins a document, besides <|endoftext|> and files
    #[arg(long, value_enum, default_value_t)]
    documents: Documents,
}

#[derive(Debug, clap::Args)]
struct OptionArgs {
    /// Rows of a batch
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    rows: u32,
    /// Tokens of a row
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=1_048_576))]
    time: u32,
    /// Batches to one optimiser step
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    accumulate: u32,
    /// Optimiser steps
    #[arg(long, value_name = "N", default_value_t = 2000, value_parser = clap::value_parser!(u64).range(1..))]
    steps: u64,
    #[arg(long, value_name = "RATE", default_value_t = 2e-3)]
    learning_rate: f64,
    /// Learning rate at the end, as a share of --learning-rate
    #[arg(long, value_name = "SHARE", default_value_t = 0.05)]
    final_share: f64,
    /// Steps over which the learning rate rises
    #[arg(long, value_name = "N", default_value_t = 100)]
    warmup: u64,
    #[arg(long, value_name = "SHARE", default_value_t = 0.9)]
    beta1: f64,
    #[arg(long, value_name = "SHARE", default_value_t = 0.98)]
    beta2: f64,
    /// Weight decay of matrices
    #[arg(long, value_name = "RATE", default_value_t = 0.1)]
    decay: f64,
    /// Largest norm of all gradients together
    #[arg(long, value_name = "NORM", default_value_t = 1.0)]
    clip: f64,
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Arithmetic of matrix products
    #[arg(long, value_enum, default_value_t)]
    matmul: Matmul,
    /// Steps between checkpoints
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u64).range(1..))]
    checkpoint_every: u64,
    /// Steps between validations
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u64).range(1..))]
    valid_every: u64,
    /// Steps between lines of the log
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
    log_every: u64,
}

/// Runs the command.
///
/// # Errors
/// If the run cannot be begun or gone on with, or a file cannot be read or written.
pub fn run(args: &Args) -> anyhow::Result<()> {
    if let Some(threads) = args.threads {
        ensure!(0 < threads, "--threads is {threads}; it must be at least 1");
        tch::set_num_threads(threads);
    }
    let dir = RunDir::new(&args.run);
    if args.resume {
        ensure!(dir.exists(), "{}: no run to go on with", args.run.display());
    } else {
        begin(args, &dir)?;
    }
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&interrupted))?;
    }
    train(&dir, args.until, &interrupted)
}

/// Writes what fixes a new run.
fn begin(args: &Args, dir: &RunDir) -> anyhow::Result<()> {
    ensure!(!dir.exists(), "{}: a run is here already; --resume goes on", args.run.display());
    let model = match (&args.preset, &args.model) {
        (Some(name), _) => presets::preset(name).with_context(|| {
            let names: Vec<_> = presets::names().collect();
            format!("--preset: no preset is called {name:?}; there are {}", names.join(", "))
        })?,
        (None, Some(path)) => {
            let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
            toml::from_str(&text).with_context(|| path.display().to_string())?
        }
        (None, None) => bail!("one of --preset and --model is needed"),
    };
    let tokenizer = args.tokenizer.as_ref().context("--tokenizer is needed")?;
    let vocab = tokenizer::load(tokenizer)?.get_vocab_size(true);
    ensure!(
        vocab == model.vocab as usize,
        "{}: {vocab} tokens, but the model's vocab is {}",
        tokenizer.display(),
        model.vocab
    );
    dir.create(&Run { model, train: config(args)? })?;
    fs::copy(tokenizer, dir.path().join(TOKENIZER_FILE))
        .with_context(|| tokenizer.display().to_string())?;
    Ok(())
}

/// The options of a new run, checked.
fn config(args: &Args) -> anyhow::Result<TrainConfig> {
    let Args { data, options: it, .. } = args;
    for (name, share) in [("beta1", it.beta1), ("beta2", it.beta2)] {
        ensure!((0.0..1.0).contains(&share), "--{name} is {share}; it must be in 0..1");
    }
    for (name, rate) in [("learning-rate", it.learning_rate), ("clip", it.clip)] {
        ensure!(0.0 < rate && rate.is_finite(), "--{name} is {rate}; it must be above 0");
    }
    for (name, rate) in [("decay", it.decay), ("final-share", it.final_share)] {
        ensure!(0.0 <= rate && rate.is_finite(), "--{name} is {rate}; it must not be below 0");
    }
    Ok(TrainConfig {
        text: data.text.clone().context("--text is needed")?,
        valid: data.valid.clone(),
        holdout: data.holdout,
        documents: data.documents,
        rows: it.rows,
        time: it.time,
        accumulate: it.accumulate,
        steps: it.steps,
        learning_rate: it.learning_rate,
        final_share: it.final_share,
        warmup: it.warmup,
        beta1: it.beta1,
        beta2: it.beta2,
        decay: it.decay,
        clip: it.clip,
        seed: it.seed,
        matmul: it.matmul,
        checkpoint_every: it.checkpoint_every,
        valid_every: it.valid_every,
        log_every: it.log_every,
    })
}

/// Goes on with the run in `dir` until its end, until step `until`, or until `interrupted` is set.
/// However it ends, the newest step is a checkpoint then.
///
/// # Errors
/// If a file cannot be read or written, or the loss is no longer a number.
fn train(dir: &RunDir, until: u64, interrupted: &AtomicBool) -> anyhow::Result<()> {
    let run = dir.run()?;
    shim::set_matmul_bf16(run.train.matmul == Matmul::Bf16);
    let tokenizer = tokenizer::load(&dir.path().join(TOKENIZER_FILE))?;
    let [text, valid] = read_text(&run.train)?;
    let text = Tokens::encode(&tokenizer, &text, Some(dir.path()))?;
    let valid = match &*valid {
        [] => None,
        documents => Some(Tokens::encode(&tokenizer, documents, Some(dir.path()))?),
    };
    let mut trainer = Trainer::new(dir, &run, &text)?;
    let mut log = Log::open(&dir.path().join(LOG_FILE), trainer.progress.step)?;
    let end = run.train.steps.min(until);
    let display = Display::new(run.train.steps, trainer.progress.step);
    let mut saved = trainer.progress.step;
    let mut gathered = Gathered::default();
    while trainer.progress.step < end && !interrupted.load(Ordering::Relaxed) {
        gathered.add(trainer.step()?);
        let Progress { step, .. } = trainer.progress;
        display.advance(step);
        let last = step == run.train.steps;
        let validates = last || step.is_multiple_of(run.train.valid_every);
        if validates || step.is_multiple_of(run.train.log_every) {
            let found = valid.as_ref().filter(|_| validates).map(|it| trainer.validate(it));
            let line = std::mem::take(&mut gathered).line(&trainer.progress, found);
            log.add(&line)?;
            display.show(&line);
        }
        if last || step.is_multiple_of(run.train.checkpoint_every) {
            trainer.save(dir)?;
            saved = step;
            plot::plot(&[dir.path().to_owned()], &dir.path().join(PLOT_FILE), plot::Axis::Loss)?;
        }
    }
    if saved != trainer.progress.step {
        trainer.save(dir)?;
    }
    Ok(())
}

/// Documents to train on, and to validate on, as the options say.
fn read_text(config: &TrainConfig) -> anyhow::Result<[Vec<String>; 2]> {
    if let Some(holdout) = config.holdout {
        return Ok(text::read_split(&config.text, config.documents, holdout)?);
    }
    let train = text::read(&config.text, config.documents)?;
    let valid = match &config.valid {
        Some(path) => text::read(path, config.documents)?,
        None => Vec::new(),
    };
    Ok([train, valid])
}

/// A model in training.
struct Trainer<'a> {
    run: &'a Run,
    parameters: Parameters,
    optimizer: AdamW,
    shuffle: Shuffle<'a>,
    progress: Progress,
}

/// What one step found.
#[derive(Clone, Copy, Debug)]
struct Step {
    /// Mean over the step's tokens, in nats.
    loss: f64,
    learning_rate: f64,
    gradient_norm: f64,
    tokens: u64,
    seconds: f64,
}

impl<'a> Trainer<'a> {
    /// Takes the run up where its newest checkpoint left it, or at the beginning.
    fn new(dir: &RunDir, run: &'a Run, tokens: &'a Tokens) -> anyhow::Result<Self> {
        let it = &run.train;
        let adamw =
            adamw::Config { beta1: it.beta1, beta2: it.beta2, decay: it.decay, clip: it.clip };
        let (parameters, optimizer, progress) = match dir.latest()? {
            Some(step) => {
                let parameters = Parameters::load(&run.model, &step.model()?, Kind::Float)?;
                let optimizer = AdamW::load(adamw, &parameters, &step.optimizer()?)?;
                (parameters, optimizer, step.progress()?)
            }
            None => {
                let parameters = Parameters::init(&run.model, it.seed, Kind::Float);
                let optimizer = AdamW::new(adamw, &parameters);
                (parameters, optimizer, Progress::default())
            }
        };
        let shape = Shape { rows: it.rows, time: it.time };
        let cursor = Cursor { epoch: progress.epoch, row: progress.row };
        let shuffle = Shuffle::new(tokens, shape, it.seed, cursor)?;
        Ok(Self { run, parameters, optimizer, shuffle, progress })
    }

    /// One optimiser step.
    #[expect(clippy::disallowed_methods, reason = "the driver of a training measures its speed")]
    fn step(&mut self) -> anyhow::Result<Step> {
        let begun = Instant::now();
        let config = &self.run.train;
        let mut loss = 0.0;
        let mut tokens = 0;
        for _ in 0..config.accumulate {
            let batch = self.shuffle.batch();
            let row = i64::from(config.time);
            let count = batch.targets.len() as f64;
            let total = nats(&self.run.model, &self.parameters, &batch, row);
            let mean = total / (count * f64::from(config.accumulate));
            mean.backward();
            loss += mean.double_value(&[]);
            tokens += batch.targets.len() as u64;
        }
        let step = self.progress.step + 1;
        ensure!(
            loss.is_finite(),
            "step {step}: the loss is {loss}; a lower learning rate may help"
        );
        let learning_rate = learning_rate(config, step);
        let gradient_norm = self.optimizer.step(&self.parameters, step, learning_rate);
        let seconds = begun.elapsed().as_secs_f64();
        let Cursor { epoch, row } = self.shuffle.cursor();
        self.progress = Progress {
            step,
            tokens: self.progress.tokens + tokens,
            seconds: self.progress.seconds + seconds,
            epoch,
            row,
            ..self.progress
        };
        Ok(Step { loss, learning_rate, gradient_norm, tokens, seconds })
    }

    /// Loss over the whole of `tokens`.
    fn validate(&mut self, tokens: &Tokens) -> Valid {
        let valid = evaluate(&self.run.model, &self.parameters, tokens);
        let best = self.progress.valid_loss_best.map_or(valid.loss, |it| it.min(valid.loss));
        self.progress.valid_loss_best = Some(best);
        valid
    }

    fn save(&self, dir: &RunDir) -> anyhow::Result<()> {
        dir.save(&self.progress, &self.parameters.values(), &self.optimizer.values())?;
        Ok(())
    }
}

/// Loss over all of `tokens` in rows of their own.
fn evaluate(model: &ModelConfig, parameters: &Parameters, tokens: &Tokens) -> Valid {
    let mut total = 0.0;
    let mut targets = 0;
    for batch in tokens.in_order(VALID_ROWS, VALID_TIME) {
        let found = no_grad(|| nats(model, parameters, &batch, VALID_TIME as i64));
        total += found.double_value(&[]);
        targets += batch.targets.len();
    }
    Valid {
        loss: total / targets as f64,
        bits_per_byte: total / std::f64::consts::LN_2 / tokens.text_bytes as f64,
    }
}

/// Sum of the cross entropy over a batch, in nats. No segment crosses a multiple of `row` tokens.
fn nats(model: &ModelConfig, parameters: &Parameters, batch: &Batch, row: i64) -> Tensor {
    let kind = PackingKind::Documents { row };
    let reading = Reading::new(model, parameters, Packing { bounds: batch.bounds.clone(), kind });
    let carry = void(model, batch.bounds.len() as i64 - 1, parameters.kind()).map(Handle::of);
    let tokens = Handle(Tensor::from_slice(&batch.inputs));
    let (x, _) = decoder::hidden(model, &reading, &tokens, &carry);
    let table = parameters.embedding();
    let targets = Tensor::from_slice(&batch.targets);
    shim::cross_entropy(&x, table, &targets, model.logits_soft_cap)
}

/// Rises in a line, then falls along half a cosine to its final share.
fn learning_rate(config: &TrainConfig, step: u64) -> f64 {
    if step < config.warmup {
        return config.learning_rate * step as f64 / config.warmup as f64;
    }
    let done = (step - config.warmup) as f64 / (config.steps - config.warmup).max(1) as f64;
    let cosine = 0.5 * (1.0 + (std::f64::consts::PI * done).cos());
    config.learning_rate * (config.final_share + (1.0 - config.final_share) * cosine)
}

/// Steps since the last line of the log.
#[derive(Debug, Default)]
struct Gathered {
    steps: Vec<Step>,
}

impl Gathered {
    fn add(&mut self, step: Step) {
        self.steps.push(step);
    }

    /// The line over these steps; there is at least one.
    fn line(self, progress: &Progress, valid: Option<Valid>) -> Line {
        let last = self.steps[self.steps.len() - 1];
        let tokens: u64 = self.steps.iter().map(|it| it.tokens).sum();
        let seconds: f64 = self.steps.iter().map(|it| it.seconds).sum();
        Line {
            step: progress.step,
            tokens: progress.tokens,
            seconds: progress.seconds,
            train_loss: self.steps.iter().map(|it| it.loss).sum::<f64>() / self.steps.len() as f64,
            valid,
            learning_rate: last.learning_rate,
            gradient_norm: last.gradient_norm,
            tokens_per_second: tokens as f64 / seconds,
        }
    }
}
