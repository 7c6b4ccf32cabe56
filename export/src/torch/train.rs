//! `aerie-export train`: the loop, and what it takes to stop and go on without a trace. What a training
//! is of, text or images, is a task.

mod args;
mod gradient;
mod images;
mod task;
#[cfg(test)]
mod tests;
mod text;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use aerie_models::Model;
use anyhow::{bail, ensure};
use tch::{Device, Kind};
use thiserror::Error;

pub use crate::torch::train::args::Args;
use crate::{
    checkpoint::{Checkpoint, LOG_FILE, PLOT_FILE, Progress, RUN_FILE, RunDir},
    data::batches::Cursor,
    plot,
    run::{Data, Matmul, Run, TrainConfig},
    torch::{
        device,
        log::{Display, Line, Log, Unit, Valid},
        memory,
        optimizer::{Average, Optimizer, Update},
        parameters::Parameters,
        shim,
        train::{
            images::{ImageSets, ImageTask},
            task::Task,
            text::{TextTask, TextTokens},
        },
    },
};

/// Runs the command.
///
/// # Errors
/// If the run cannot be begun or gone on with, or a file cannot be read or written.
pub fn run(args: &Args) -> anyhow::Result<()> {
    if let Some(threads) = args.threads {
        ensure!(0 < threads, "--threads is {threads}; it must be at least 1");
        tch::set_num_threads(threads);
    }
    shim::keep_freed_memory();
    device::open(args.device)?;
    let dir = RunDir::new(&args.run);
    let is_new_dir = !args.run.exists();
    if args.resume {
        ensure!(dir.exists(), "{}: no run to go on with", args.run.display());
    } else {
        args::begin(args, &dir)?;
    }
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&interrupted))?;
    }
    // Whether the run stays is settled below; this is true either way.
    let advice = format!(
        "there is too little memory; take a smaller --batch, or --rows or --time, and as much more of --accumulate; a \
         run that has begun has them in its {RUN_FILE}, and goes on with --resume"
    );
    let trained = memory::guarded(&advice, || train(&dir, args.device, args.until, &interrupted));
    // A run whose data cannot be had never began: what is asked for next may be of the same name.
    if trained.is_err() && !args.resume && !args.run.join(LOG_FILE).exists() {
        dir.withdraw(is_new_dir)?;
    }
    trained
}

/// Goes on with the run in `dir` on `device` until its end, until step `until`, or until `interrupted` is set:
/// the newest step is a checkpoint then, and a line of the log.
///
/// # Errors
/// If a file cannot be read or written, or the loss is no longer a number. The newest step is a checkpoint
/// then, too, unless that is what cannot be written, or the loss is what is wrong: the checkpoint before may
/// be better than what led there.
fn train(dir: &RunDir, device: Device, until: u64, interrupted: &AtomicBool) -> anyhow::Result<()> {
    let _claim = dir.claim()?;
    let run = dir.run()?;
    shim::set_matmul_bf16(run.train.matmul == Matmul::Bf16);
    let learner = Learner::new(dir, &run, device)?;
    let Progress { epoch, row, .. } = learner.progress;
    let (seed, cursor) = (run.train.seed, Cursor { epoch, row });
    let end = End { until, interrupted };
    match (&run.model, &run.data) {
        (Model::Language(model), Data::Text(data)) => {
            let tokens = TextTokens::read(dir, data)?;
            let task = TextTask::new(model, data, &tokens, seed, cursor)?;
            Trainer { dir, learner, task }.run(Unit::Tokens, end)
        }
        (Model::Images(model), Data::Images(data)) => {
            let sets = ImageSets::read(dir, model, data)?;
            let task = ImageTask::new(model, data, &sets, &run.train, cursor)?;
            Trainer { dir, learner, task }.run(Unit::Images, end)
        }
        _ => bail!("{}: the run's model is not made for its data", dir.path().display()),
    }
}

/// When a training ends before its last step.
#[derive(Clone, Copy, Debug)]
struct End<'a> {
    until: u64,
    interrupted: &'a AtomicBool,
}

/// A model in training, whatever it is trained on.
struct Learner<'a> {
    run: &'a Run,
    parameters: Parameters,
    average: Option<Average>,
    optimizer: Optimizer,
    progress: Progress,
}

impl<'a> Learner<'a> {
    /// Takes the run up where its newest checkpoint left it, or at the beginning.
    fn new(dir: &RunDir, run: &'a Run, device: Device) -> anyhow::Result<Self> {
        let average = |tensors| {
            let average = |decay| Average::new(decay, &run.model, tensors, device);
            run.train.average.map(average).transpose()
        };
        let Some(step) = dir.latest()? else {
            let parameters = Parameters::init(&run.model, run.train.seed, Kind::Float);
            let parameters = parameters.to_device(device);
            let optimizer = Optimizer::new(run.optimizer, &parameters);
            let average = average(&parameters.values())?;
            return Ok(Self { run, parameters, average, optimizer, progress: Progress::default() });
        };
        let tensors = step.tensors()?;
        let parameters = Parameters::load(&run.model, &tensors.model, Kind::Float)?;
        let parameters = parameters.to_device(device);
        let optimizer = Optimizer::load(run.optimizer, &parameters, &tensors.optimizer)?;
        let average = average(tensors.average.as_ref().unwrap_or(&tensors.model))?;
        Ok(Self { run, parameters, average, optimizer, progress: step.progress()? })
    }

    /// The parameters to be used: averages, where there are some.
    fn best(&self) -> &Parameters {
        self.average.as_ref().map_or(&self.parameters, Average::parameters)
    }

    fn save(&self, dir: &RunDir) -> anyhow::Result<()> {
        let tensors = Checkpoint {
            model: self.parameters.values(),
            average: self.average.as_ref().map(|it| it.parameters().values()),
            optimizer: self.optimizer.values(),
        };
        dir.save(&self.progress, &tensors)?;
        Ok(())
    }
}

/// A model that learns a task.
struct Trainer<'a, T> {
    dir: &'a RunDir,
    learner: Learner<'a>,
    task: T,
}

/// A training has left the numbers.
#[derive(Debug, Error)]
#[error("step {step}: the loss is {loss}; a lower learning rate may help")]
struct Diverged {
    step: u64,
    loss: f64,
}

/// What one step found.
#[derive(Clone, Copy, Debug)]
struct Step {
    /// Mean over the step's batches, in nats.
    loss: f64,
    learning_rate: f64,
    update: Update,
    /// Tokens or images.
    seen: u64,
    seconds: f64,
}

impl<T: Task> Trainer<'_, T> {
    fn run(mut self, unit: Unit, end: End<'_>) -> anyhow::Result<()> {
        let config = &self.learner.run.train;
        let step = self.learner.progress.step;
        let mut log = Log::open(&self.dir.path().join(LOG_FILE), unit, step)?;
        let display = Display::new(unit, config.steps, step);
        let last = config.steps.min(end.until);
        let mut saved = step;
        let mut gathered = Gathered::default();
        if end.interrupted.load(Ordering::Relaxed) {
            return Ok(());
        }
        while self.learner.progress.step < last {
            match self.step() {
                Ok(step) => gathered.add(step),
                // The data cannot be read: what was learnt of it until here is sound.
                Err(error) if error.downcast_ref::<Diverged>().is_none() => {
                    if saved != self.learner.progress.step {
                        self.learner.save(self.dir)?;
                    }
                    return Err(error);
                }
                Err(error) => return Err(error),
            }
            let step = self.learner.progress.step;
            display.advance(step);
            let is_last = step == config.steps;
            let ends = step == last || end.interrupted.load(Ordering::Relaxed);
            let saves = ends || step.is_multiple_of(config.checkpoint_every);
            let validates = is_last || step.is_multiple_of(config.valid_every);
            // Sums since the last line are in no checkpoint.
            if saves || validates || step.is_multiple_of(config.log_every) {
                let valid = if validates { self.validate()? } else { None };
                let line = std::mem::take(&mut gathered).line(&self.learner.progress, valid);
                log.add(&line)?;
                display.show(&line);
            }
            if saves {
                self.learner.save(self.dir)?;
                saved = step;
                self.draw(&display);
            }
            if ends {
                break;
            }
        }
        Ok(())
    }

    /// Draws the log. A picture that cannot be drawn is no reason to stop.
    fn draw(&self, display: &Display) {
        let picture = self.dir.path().join(PLOT_FILE);
        if let Err(error) = plot::plot(&[self.dir.path().to_owned()], &picture, plot::Axis::Loss) {
            display.say(&format!("{}: {error}", picture.display()));
        }
    }

    /// One optimiser step.
    ///
    /// # Errors
    /// [`Diverged`], or if a batch cannot be read; parameters are those of the step before then.
    #[expect(clippy::disallowed_methods, reason = "the driver of a training measures its speed")]
    fn step(&mut self) -> anyhow::Result<Step> {
        let begun = Instant::now();
        let Learner { run, parameters, average, optimizer, progress } = &mut self.learner;
        let config = &run.train;
        let step = progress.step + 1;
        let weight = f64::from(config.accumulate).recip();
        let (mut loss, mut seen) = (0.0, 0);
        for part in 0..config.accumulate {
            let batch = self.task.batch()?;
            let seed = noise_seed(config.seed, step, part);
            let how = (config.flatness.at(step), weight);
            loss += weight * gradient::gather(&self.task, parameters, &batch, how, seed);
            seen += self.task.seen(&batch);
        }
        if !loss.is_finite() {
            return Err(Diverged { step, loss }.into());
        }
        let learning_rate = learning_rate(config, step);
        let update = optimizer.step(parameters, step, learning_rate);
        if let Some(average) = average {
            average.add(parameters, step);
        }
        let seconds = begun.elapsed().as_secs_f64();
        let Cursor { epoch, row } = self.task.cursor();
        *progress = Progress {
            step,
            seen: progress.seen + seen,
            seconds: progress.seconds + seconds,
            epoch,
            row,
            ..*progress
        };
        Ok(Step { loss, learning_rate, update, seen, seconds })
    }

    /// Loss over all of the validation data.
    fn validate(&mut self) -> anyhow::Result<Option<Valid>> {
        let valid = self.task.validate(self.learner.best())?;
        if let Some(it) = valid {
            let best = &mut self.learner.progress.valid_loss_best;
            *best = Some(best.map_or(it.loss, |best| best.min(it.loss)));
        }
        Ok(valid)
    }
}

/// Seeds what a network draws by chance for one batch.
fn noise_seed(seed: u64, step: u64, part: u32) -> u64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes()).update(&step.to_le_bytes()).update(&part.to_le_bytes());
    let mut seed = [0; 8];
    hasher.finalize_xof().fill(&mut seed);
    u64::from_le_bytes(seed)
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
        let count = self.steps.len() as f64;
        let seen: u64 = self.steps.iter().map(|it| it.seen).sum();
        let seconds: f64 = self.steps.iter().map(|it| it.seconds).sum();
        let clipped: Option<f64> = self.steps.iter().map(|it| it.update.clipped).sum();
        Line {
            step: progress.step,
            seen: progress.seen,
            seconds: progress.seconds,
            train_loss: self.steps.iter().map(|it| it.loss).sum::<f64>() / count,
            valid,
            learning_rate: last.learning_rate,
            gradient_norm: last.update.gradient_norm,
            clipped: clipped.map(|it| it / count),
            seen_per_second: seen as f64 / seconds,
        }
    }
}
