//! Whole steps of bundles: loading them, decoding with many sessions, reading prompts.

#[cfg(test)]
mod tests;

use std::{
    collections::BTreeSet,
    iter,
    path::{Path, PathBuf},
};

use aerie_models::{Carry, Manifest, ModelConfig, bundle::MODEL_FILE, census};
use anyhow::ensure;
use clap::builder::RangedU64ValueParser;
use rand::Rng;
use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};

use super::{
    Output, clock,
    limits::{self, Memory},
    progress,
    report::{Bundle, Figures, Limits, Machine, Report, Step, Task, Turn, Work, median},
    resident::Resident,
};
use crate::{
    onnx::{Target, weights::read_model},
    runtime::{self, Runtime, RuntimeError, Segment, StepGraph},
};

/// Measures steps of bundles that take turns: decoding, prompts, loading, memory
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  aerie-export bench steps models/bundles/tales
  aerie-export bench steps small-q4 small-q8 small-bf16 --sessions 1,8,32 --chunks 128 --json steps.json
  aerie-export bench steps models/bundles/tales --position 0 --threads 1
  aerie-export bench plot steps.json --draw sessions --out sessions.svg
Nothing but the step runs: no server, no sampling, no wire; `aerie bench` measures those. The limit is
reading all weights once or multiplying with them, whichever takes longer, with as many threads.")]
pub(super) struct Args {
    /// Folders of the bundles
    #[arg(required = true, value_name = "BUNDLE")]
    bundles: Vec<PathBuf>,
    /// Sessions that decode one token each
    #[arg(long, value_name = "N", value_delimiter = ',',
        default_values_t = [1, 2, 4, 8, 16, 32, 64], value_parser = count())]
    sessions: Vec<usize>,
    /// Tokens of one session that are read at once
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = [128, 512],
        value_parser = count())]
    chunks: Vec<usize>,
    /// Tokens that sessions have read before [default: a full window]
    #[arg(long, value_name = "N")]
    position: Option<usize>,
    /// Rounds that medians are taken of
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = count())]
    rounds: usize,
    #[command(flatten)]
    runtime: runtime::Options,
    #[command(flatten)]
    output: Output,
}

/// A number that is not 0.
pub(super) fn count() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..=1 << 20)
}

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let decodes = args.sessions.iter().map(|&sessions| Task::Decode { sessions });
    let prompts = args.chunks.iter().map(|&tokens| Task::Prompt { tokens });
    let plan = Plan {
        bundles: &args.bundles,
        steps: decodes.chain(prompts).map(|task| (task, args.position)).collect(),
        walks: false,
        rounds: args.rounds,
        runtime: &args.runtime,
    };
    args.output.write(&plan.measure()?)
}

/// What takes turns: every bundle in every kind of step.
#[derive(Debug)]
pub(super) struct Plan<'a> {
    pub(super) bundles: &'a [PathBuf],
    /// Kinds of steps, with the tokens that sessions have read before; none for a full window.
    pub(super) steps: Vec<(Task, Option<usize>)>,
    /// Whether sessions read those tokens; else their windows hold anything.
    pub(super) walks: bool,
    pub(super) rounds: usize,
    pub(super) runtime: &'a runtime::Options,
}

impl Plan<'_> {
    /// # Errors
    /// If a bundle cannot be loaded or run.
    pub(super) fn measure(&self) -> anyhow::Result<Report> {
        let (runtime, threads) = (self.runtime.load()?, self.runtime.threads());
        let memory = Memory::new();
        let limits = limits::measure(&memory, threads);
        let mut subjects = self.load(&runtime)?;
        let mut turns = vec![vec![Vec::new(); self.steps.len()]; subjects.len()];
        let bar = progress(self.rounds * self.steps.len() * subjects.len());
        for _ in 0..self.rounds {
            for (at, &(task, position)) in self.steps.iter().enumerate() {
                for (subject, turns) in subjects.iter_mut().zip(&mut turns) {
                    bar.set_message(format!("{}, {task}", subject.bundle.system));
                    let read_bytes_per_s = memory.read_bytes_per_s(threads);
                    let seconds = subject.turn(task, position, TURN_SECONDS_MIN)?;
                    turns[at].push(Turn { seconds, read_bytes_per_s });
                    bar.inc(1);
                }
            }
        }
        bar.finish_and_clear();
        let mut steps = Vec::new();
        for (subject, turns) in subjects.iter().zip(turns) {
            for (&(task, position), turns) in self.steps.iter().zip(turns) {
                steps.push(subject.step(task, position, &limits, turns));
            }
        }
        let bundles = subjects.into_iter().map(|it| it.bundle).collect();
        let (machine, limits) = (Machine::here(), Some(limits));
        Ok(Report { machine, limits, bundles, steps, ..Report::default() })
    }

    fn load(&self, runtime: &Runtime) -> anyhow::Result<Vec<Subject>> {
        let lanes = self.steps.iter().map(|(task, _)| task.sessions()).max().unwrap_or(1);
        let mut subjects = Vec::new();
        for dir in self.bundles {
            let mut subject = Subject::load(runtime, dir, lanes)?;
            if self.walks {
                let positions: BTreeSet<usize> = self.steps.iter().filter_map(|it| it.1).collect();
                subject.walk(lanes, positions.into_iter().collect())?;
            }
            subjects.push(subject);
        }
        Ok(subjects)
    }
}

/// What the steps of a turn take at least.
pub(super) const TURN_SECONDS_MIN: f64 = 0.2;

/// A bundle with sessions of which each has its lane.
pub(super) struct Subject {
    pub(super) bundle: Bundle,
    config: ModelConfig,
    pub(super) graph: StepGraph,
    /// What is read, whatever the task.
    tokens: Vec<u32>,
    walked: Walked,
}

/// Which sessions have read what they are said to have read; none before [`Subject::walk`].
#[derive(Debug, Default)]
struct Walked {
    /// Sessions at each of the positions, lane by lane.
    sessions: usize,
    positions: Vec<usize>,
}

impl Subject {
    /// Loads the bundle in `dir`, noting what that takes, for up to `lanes` sessions.
    pub(super) fn load(runtime: &Runtime, dir: &Path, lanes: usize) -> anyhow::Result<Self> {
        Self::open(dir, lanes, |file, config, target| runtime.open(file, config, target))
    }

    /// As [`Subject::load`], with a graph that `open` gives.
    pub(super) fn open(
        dir: &Path,
        lanes: usize,
        open: impl FnOnce(&Path, &ModelConfig, Target) -> Result<StepGraph, RuntimeError>,
    ) -> anyhow::Result<Self> {
        let version = |op: &str| aerie_ops::schema::schema(op).map(|it| it.version);
        let (manifest, verify_seconds) = clock::timed(|| Manifest::open(dir, version));
        let manifest: Manifest = manifest?;
        let config = manifest.model.clone();
        let target = if manifest.ops.is_empty() { Target::Portable } else { Target::Ragged };
        let file = dir.join(MODEL_FILE);
        let parameters = read_model(&file)?.graph.unwrap_or_default().initializer;
        let parameters = parameters.iter().filter(|it| !it.name.starts_with("constant."));
        let weights_bytes = parameters.map(|it| it.bytes()).sum();

        let before = Resident::now();
        let (graph, load_seconds) = clock::timed(|| open(&file, &config, target));
        let bundle = Bundle {
            system: manifest.name,
            precision: manifest.precision.name().to_owned(),
            weights_bytes,
            state_bytes: Carry::layout(&config).bytes(),
            verify_seconds,
            load_seconds,
            first_step_seconds: 0.0,
            resident: None,
        };
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        let tokens = (0..TOKENS).map(|_| rng.random_range(0..config.vocab)).collect();
        let walked = Walked::default();
        let mut subject = Self { bundle, config, graph: graph?, tokens, walked };
        subject.graph.fill(1, state)?;
        let decode = Task::Decode { sessions: 1 };
        let (outcome, seconds) = clock::timed(|| subject.turn(decode, None, 0.0));
        outcome?;
        subject.bundle.first_step_seconds = seconds;
        subject.bundle.resident = before.and_then(|it| Some(Resident::now()?.since(it)));
        subject.graph.fill(lanes, state)?;
        Ok(subject)
    }

    /// Median of the seconds that a step takes, of as many as `seconds_min` has room for.
    pub(super) fn turn(
        &mut self,
        task: Task,
        position: Option<usize>,
        seconds_min: f64,
    ) -> anyhow::Result<f64> {
        let (sessions, tokens) = (task.sessions(), task.tokens() / task.sessions());
        ensure!(tokens <= TOKENS, "{task}: at most {TOKENS} tokens of a session are read at once");
        ensure!(
            self.graph.is_ragged() || tokens == 1,
            "{}: {task}: a portable graph reads one token of a session at once",
            self.bundle.system
        );
        let first = self.walked.first_lane(position);
        let position = position.unwrap_or(self.config.window as usize + 1);
        let segments: Vec<Segment<'_>> = (first..first + sessions)
            .map(|lane| segment(&self.tokens, lane, position, tokens))
            .collect();
        self.graph.bind(&segments)?;
        // The first one may have memory to allocate.
        let (outcome, first) = clock::timed(|| self.graph.run().map(drop));
        outcome?;
        let (mut taken, mut total) = (Vec::new(), 0.0);
        while total < seconds_min {
            let (outcome, seconds) = clock::timed(|| self.graph.run().map(drop));
            outcome?;
            taken.push(seconds);
            total += seconds;
        }
        Ok(if taken.is_empty() { first } else { median(taken.into_iter()) })
    }

    /// Has `sessions` sessions read as many tokens as each of `positions` says, in lanes of their own.
    fn walk(&mut self, sessions: usize, positions: Vec<usize>) -> anyhow::Result<()> {
        let system = &self.bundle.system;
        ensure!(self.graph.is_ragged(), "{system}: a portable graph reads one token at once");
        self.graph.fill(sessions * positions.len(), state)?;
        let bar = progress(sessions * positions.iter().sum::<usize>());
        bar.set_message(format!("{system} reads"));
        for (lane, &end) in positions.iter().flat_map(|it| iter::repeat_n(it, sessions)).enumerate()
        {
            for position in (0..end).step_by(WALK_TOKENS) {
                let tokens = WALK_TOKENS.min(end - position);
                self.graph.step(&[segment(&self.tokens, lane, position, tokens)])?;
                bar.inc(tokens as u64);
            }
        }
        bar.finish_and_clear();
        self.walked = Walked { sessions, positions };
        Ok(())
    }

    /// What `turns` of a kind of step come to.
    pub(super) fn step(
        &self,
        task: Task,
        position: Option<usize>,
        limits: &Limits,
        turns: Vec<Turn>,
    ) -> Step {
        let Bundle { system, precision, .. } = &self.bundle;
        let limit = limits.multiply_adds_per_s(precision, limits.threads);
        let figures = Figures::new(self.work(task), limit, turns);
        Step { system: system.clone(), precision: precision.clone(), task, position, figures }
    }

    /// What a step cannot do without: all weights are read, and multiplied with what comes in. The
    /// table of the embedding is multiplied with the last token of each session.
    fn work(&self, task: Task) -> Work {
        let table = u64::from(self.config.vocab) * u64::from(self.config.width);
        let parameters = census::parameters(&self.config);
        let matrices = parameters.values().filter(|it| 1 < it.shape.len());
        let all: u64 = matrices.map(|it| it.shape.iter().product::<u64>()).sum();
        let (tokens, sessions) = (task.tokens() as u64, task.sessions() as u64);
        Work {
            bytes: self.bundle.weights_bytes,
            multiply_adds: tokens * (all - table) + sessions * table,
        }
    }
}

impl Walked {
    /// First lane of the sessions at `position`: those that have read so much, if any have.
    fn first_lane(&self, position: Option<usize>) -> usize {
        let at = self.positions.iter().position(|&it| Some(it) == position);
        at.unwrap_or_default() * self.sessions
    }
}

/// The next `n` tokens of the session in `lane`, each session's being others.
fn segment(tokens: &[u32], lane: usize, position: usize, n: usize) -> Segment<'_> {
    Segment {
        lane: u32::try_from(lane).expect("sessions are few"),
        position,
        tokens: &tokens[(lane + position) % (TOKENS - n + 1)..][..n],
    }
}

/// Tokens that are read at once on the way to a position.
const WALK_TOKENS: usize = 512;
/// Most tokens of a session that are read at once.
const TOKENS: usize = 1 << 13;

/// State that is neither zero nor all alike.
fn state(index: usize) -> f32 {
    (index.wrapping_mul(2_654_435_761) >> 16 & 0xFF) as f32 / 256.0 - 0.5
}
