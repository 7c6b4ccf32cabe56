//! How fast this machine reads memory, and how fast it multiplies and adds in registers.

use std::{hint::black_box, num::NonZeroUsize, thread};

use aerie_ops::limits::{self, Arithmetic, Chains};

use super::{
    Output, clock, progress,
    report::{Limits, Machine, Peak, Read, Report},
};

/// Measures how fast memory is read and how fast multiply-adds run in registers
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  aerie-export bench limits
  aerie-export bench limits --threads 1 --json limits.json
The best of all rounds counts: what a machine has done once, it can do.")]
pub(super) struct Args {
    /// Threads of the second column [default: one for each core]
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
    #[command(flatten)]
    output: Output,
}

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let limits = measure(&Memory::new(), super::threads(args.threads));
    args.output.write(&Report {
        machine: Machine::here(),
        limits: Some(limits),
        ..Report::default()
    })
}

/// Of the buffer that is read: far more than any cache holds.
const READ_BYTES: usize = 1 << 28;
/// Rounds of which the best counts.
const ROUNDS: usize = 7;
/// What a loop of multiply-adds takes at least, so that starting threads does not matter.
const LOOP_SECONDS_MIN: f64 = 0.02;

/// A buffer that no cache holds.
pub(super) struct Memory {
    words: Vec<u64>,
}

impl Memory {
    pub(super) fn new() -> Self {
        // Not zeros: those might all be one page.
        Self { words: (0..READ_BYTES as u64 / 8).collect() }
    }

    /// Bytes a second that `threads` threads read together, right now.
    pub(super) fn read_bytes_per_s(&self, threads: usize) -> f64 {
        let parts = self.words.chunks(self.words.len().div_ceil(threads));
        let ((), seconds) = clock::timed(|| {
            together(parts.map(|part| move || _ = black_box(limits::read(part))).collect());
        });
        READ_BYTES as f64 / seconds
    }
}

/// Every limit with one thread and with `threads`.
pub(super) fn measure(memory: &Memory, threads: usize) -> Limits {
    let bar = progress(ROUNDS * (1 + Arithmetic::ALL.len()));
    let best = |rate: &dyn Fn(usize) -> Option<f64>| -> Option<[f64; 2]> {
        let mut best = [0.0f64; 2];
        for _ in 0..ROUNDS {
            for (best, threads) in best.iter_mut().zip([1, threads]) {
                *best = best.max(rate(threads)?);
            }
            bar.inc(1);
        }
        Some(best)
    };
    let read = best(&|threads| Some(memory.read_bytes_per_s(threads)));
    let [one, all] = read.expect("every machine reads");
    let read = Read { one_bytes_per_s: one, all_bytes_per_s: all };
    let peak = |arithmetic: Arithmetic| {
        let [one_per_s, all_per_s] = best(&|threads| multiply_adds_per_s(arithmetic, threads))?;
        Some(Peak { arithmetic: arithmetic.name().to_owned(), one_per_s, all_per_s })
    };
    let multiply_adds = Arithmetic::ALL.into_iter().filter_map(peak).collect();
    bar.finish_and_clear();
    Limits { threads, read, multiply_adds }
}

/// Multiply-adds a second of `threads` threads together; none where there is no instruction for it.
fn multiply_adds_per_s(arithmetic: Arithmetic, threads: usize) -> Option<f64> {
    let rate = |chains| {
        let mut rounds = 1 << 10;
        loop {
            let once = arithmetic.multiply_adds(chains, 1)?;
            let work = move || _ = arithmetic.multiply_adds(chains, rounds);
            let ((), seconds) = clock::timed(|| together(vec![work; threads]));
            if LOOP_SECONDS_MIN <= seconds {
                return Some((once * rounds as u64 * threads as u64) as f64 / seconds);
            }
            rounds *= 2;
        }
    };
    Chains::ALL.into_iter().filter_map(rate).reduce(f64::max)
}

/// Runs each part on a thread of its own; a single one on this.
fn together<F: FnOnce() + Send>(parts: Vec<F>) {
    if parts.len() == 1 {
        return parts.into_iter().for_each(|part| part());
    }
    thread::scope(|scope| {
        for part in parts {
            scope.spawn(part);
        }
    });
}
