//! Which operators the time of a step goes to.
//!
//! ONNX Runtime's trace has the time of every node, cut to microseconds and with what writing the trace
//! costs in it: some microseconds a node, which in a step of half a millisecond is most of it. So what a
//! node that does nothing has in a trace is taken off each node, and the rest is scaled down to what a
//! step without a trace has room for beside that many nodes that do nothing.

mod empty;
#[cfg(test)]
mod tests;
mod trace;

use std::{
    fs,
    ops::Range,
    path::{Path, PathBuf},
};

use anyhow::{Context, ensure};

use self::{
    empty::{Empty, Origin},
    trace::Run,
};
use super::{
    Output,
    limits::{self, Memory},
    progress,
    report::{Kind, Limits, Machine, Part, Profile, Report, Task, Turn, median},
    steps::{Subject, TURN_SECONDS_MIN, count},
};
use crate::{
    emit::scratch::Scratch,
    runtime::{self, Runtime},
};

/// Measures which operators the time of a step goes to
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  aerie-export bench profile models/bundles/tales
  aerie-export bench profile small-q4 --sessions 1,8,32 --chunks 128 --json profile.json
  aerie-export bench plot profile.json --draw parts --out parts.svg
Parts are medians of the rounds, from ONNX Runtime's trace; a node counts with what it takes beyond one
that does nothing. A trace slows small models down, so parts are scaled to fit into the same step without
a trace, of which hand-overs are the rest: at least what as many nodes that do nothing take, one after
the other. How much larger the parts were before is in the last column: the nearer to 1, the better.
A node of several kinds counts as what it is called after: a norm that begins a product as a product, the
projections of gates in PackedRgLru as RG-LRU.")]
pub(super) struct Args {
    /// Folders of the bundles
    #[arg(required = true, value_name = "BUNDLE")]
    bundles: Vec<PathBuf>,
    /// Sessions that decode one token each
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = [1, 8, 32],
        value_parser = count())]
    sessions: Vec<usize>,
    /// Tokens of one session that are read at once
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = [128],
        value_parser = count())]
    chunks: Vec<usize>,
    /// Tokens that sessions have read before [default: a full window]
    #[arg(long, value_name = "N")]
    position: Option<usize>,
    /// Rounds that medians are taken of
    #[arg(long, value_name = "N", default_value_t = 9, value_parser = count())]
    rounds: usize,
    #[command(flatten)]
    runtime: runtime::Options,
    #[command(flatten)]
    output: Output,
}

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let (runtime, threads) = (args.runtime.load()?, args.runtime.threads());
    let memory = Memory::new();
    let limits = limits::measure(&memory, threads);
    let decodes = args.sessions.iter().map(|&sessions| Task::Decode { sessions });
    let prompts = args.chunks.iter().map(|&tokens| Task::Prompt { tokens });
    let bench = Bench {
        runtime: &runtime,
        memory: &memory,
        limits: &limits,
        tasks: decodes.chain(prompts).collect(),
        position: args.position,
        rounds: args.rounds,
    };
    let mut profiles = Vec::new();
    for dir in &args.bundles {
        profiles.extend(bench.run(dir)?);
    }
    let machine = Machine::here();
    args.output.write(&Report { machine, limits: Some(limits), profiles, ..Report::default() })
}

/// What the traced steps of a turn take at least. A trace holds a million events, and each of them some
/// hundred bytes: steps of a small model take half a millisecond and have two hundred nodes.
const TRACED_SECONDS_MIN: f64 = 0.02;

/// What all bundles are measured with, one after the other.
struct Bench<'a> {
    runtime: &'a Runtime,
    memory: &'a Memory,
    limits: &'a Limits,
    tasks: Vec<Task>,
    position: Option<usize>,
    rounds: usize,
}

/// A traced turn: how long its steps took, and which runs of the trace they are.
struct Traced {
    seconds: f64,
    runs: Range<usize>,
}

impl Bench<'_> {
    fn run(&self, dir: &Path) -> anyhow::Result<Vec<Profile>> {
        let scratch = Scratch::new()?;
        let trace = scratch.path().join("step");
        let lanes = self.tasks.iter().map(|it| it.sessions()).max().unwrap_or(1);
        let mut plain = Subject::load(self.runtime, dir, lanes)?;
        let mut traced = Subject::open(dir, lanes, |file, config, target| {
            self.runtime.open_traced(file, runtime::layout(config), target, &trace)
        })?;
        let mut empty = Empty::new(self.runtime, scratch.path())?;
        let mut turns = vec![Vec::new(); self.tasks.len()];
        let mut traces: Vec<Vec<Traced>> = self.tasks.iter().map(|_| Vec::new()).collect();
        let bar = progress(self.rounds * self.tasks.len());
        for _ in 0..self.rounds {
            empty.turn()?;
            for (at, &task) in self.tasks.iter().enumerate() {
                bar.set_message(format!("{}, {task}", plain.bundle.system));
                let read_bytes_per_s = self.memory.read_bytes_per_s(self.limits.threads);
                let seconds = plain.turn(task, self.position, TURN_SECONDS_MIN)?;
                turns[at].push(Turn { seconds, read_bytes_per_s });
                // The first run may have memory to allocate.
                let first = traced.graph.runs() + 1;
                let seconds = traced.turn(task, self.position, TRACED_SECONDS_MIN)?;
                traces[at].push(Traced { seconds, runs: first..traced.graph.runs() });
                bar.inc(1);
            }
        }
        bar.finish_and_clear();
        let (costs, n_runs) = (empty.costs()?, traced.graph.runs());
        let runs = trace::parse(&fs::read_to_string(traced.graph.end_trace()?)?)?;
        let found = runs.len();
        ensure!(
            found == n_runs,
            "the trace has {found} of {n_runs} steps; fewer --rounds fit into it"
        );
        let mut profiles = Vec::new();
        for ((&task, turns), traces) in self.tasks.iter().zip(turns).zip(traces) {
            let step = plain.step(task, self.position, self.limits, turns);
            let rounds = traces.iter().map(|it| parts(&runs[it.runs.clone()], &costs));
            let rounds = rounds.collect::<anyhow::Result<Vec<_>>>()?;
            let traced_seconds = median(traces.iter().map(|it| it.seconds));
            let dispatch_seconds = costs.of_all(&runs[traces[0].runs.start]);
            let (parts, trace_scale) =
                fit(medians(&rounds), step.figures.seconds, dispatch_seconds);
            profiles.push(Profile { step, traced_seconds, dispatch_seconds, trace_scale, parts });
        }
        Ok(profiles)
    }
}

/// What an empty node takes, of ours and of ONNX Runtime's.
#[derive(Clone, Copy, Debug, Default)]
struct Costs {
    ours: Cost,
    standard: Cost,
}

/// What an empty node takes.
#[derive(Clone, Copy, Debug, Default)]
struct Cost {
    /// In a step without a trace, with what lies between it and the next.
    seconds: f64,
    /// By a trace.
    traced_seconds: f64,
}

impl Costs {
    fn of(&self, operator: &str) -> Cost {
        match Origin::of(operator) {
            Origin::Ours => self.ours,
            Origin::Standard => self.standard,
        }
    }

    /// Seconds of as many empty nodes as `run` has.
    fn of_all(&self, run: &Run) -> f64 {
        run.nodes.iter().map(|it| self.of(&it.operator).seconds).sum()
    }
}

/// Where the time of `runs` of one kind of step goes, node by node and then by kind.
fn parts(runs: &[Run], costs: &Costs) -> anyhow::Result<Vec<Part>> {
    let first = runs.first().context("a turn has no steps")?;
    let mut parts = Kind::NODES.map(|kind| Part { kind, nodes: 0, seconds: 0.0 });
    for (at, node) in first.nodes.iter().enumerate() {
        let mut taken = Vec::new();
        for run in runs {
            let same = run.nodes.get(at).filter(|it| it.operator == node.operator);
            taken.push(same.context("steps of one kind have other nodes")?.seconds);
        }
        let seconds = middle(taken) - costs.of(&node.operator).traced_seconds;
        let kind = trace::kind(node);
        let part = parts.iter_mut().find(|it| it.kind == kind).expect("every kind has its part");
        part.nodes += 1;
        part.seconds += seconds.max(0.0);
    }
    Ok(parts.into())
}

/// The mean of the middle half: what was interrupted is out of it, and cut microseconds even out.
fn middle(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let cut = values.len() / 4;
    let middle = &values[cut..values.len() - cut];
    middle.iter().sum::<f64>() / middle.len() as f64
}

/// Medians of what parts have in `rounds`, without parts that have no nodes.
fn medians(rounds: &[Vec<Part>]) -> Vec<Part> {
    let median_of = |at: usize| median(rounds.iter().map(|it| it[at].seconds));
    let parts = rounds.first().into_iter().flatten().enumerate();
    let parts = parts.map(|(at, it)| Part { seconds: median_of(at), ..*it });
    parts.filter(|it| 0 < it.nodes).collect()
}

/// Has `parts` and hand-overs fill a step of `seconds`, of which hand-overs take `dispatch` at least; gives
/// how many times as large as they are now the parts were.
fn fit(mut parts: Vec<Part>, seconds: f64, dispatch: f64) -> (Vec<Part>, f64) {
    let nodes = parts.iter().map(|it| it.nodes).sum();
    let traced: f64 = parts.iter().map(|it| it.seconds).sum();
    let room = (seconds - dispatch).max(0.0);
    let scale = (traced / room).max(1.0);
    for part in &mut parts {
        part.seconds /= scale;
    }
    let rest = seconds - traced / scale;
    parts.push(Part { kind: Kind::HandOvers, nodes, seconds: rest });
    (parts, scale)
}
