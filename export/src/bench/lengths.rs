//! Decoding over what a session has read and written before: bundles of several families beside each other,
//! every length of every one taking turns.

use std::path::PathBuf;

use super::{
    Output,
    report::Task,
    steps::{Plan, count},
};
use crate::runtime;

/// Measures decoding over the length of the sessions, of bundles that take turns
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  for p in griffin hawk mqa; do aerie-export emit --random $p-small-512 --precision q4 --out $p; done
  aerie-export bench lengths griffin hawk mqa --sessions 1,8 --json lengths.json
  aerie-export bench lengths models/bundles/tales --lengths 4000,100000 --walk --rounds 15
  aerie-export bench plot lengths.json --draw lengths --out lengths.svg
A session of length N has read N tokens, and the step that is timed reads one more. What a step costs does
not depend on what its state holds, so without --walk it holds anything. An MQA transformer needs a
`window` as long as the longest of the lengths, or it forgets.")]
pub(super) struct Args {
    /// Folders of the bundles
    #[arg(required = true, value_name = "BUNDLE")]
    bundles: Vec<PathBuf>,
    /// Tokens that sessions have read before
    #[arg(long, value_name = "N", value_delimiter = ',',
        default_values_t = [128, 256, 512, 1024, 2048, 4096, 8192, 16384], value_parser = count())]
    lengths: Vec<usize>,
    /// Sessions that decode one token each
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = [1],
        value_parser = count())]
    sessions: Vec<usize>,
    /// Have every session read all the tokens that it is said to have read
    #[arg(long)]
    walk: bool,
    /// Rounds that medians are taken of
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = count())]
    rounds: usize,
    #[command(flatten)]
    runtime: runtime::Options,
    #[command(flatten)]
    output: Output,
}

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let at = |sessions| args.lengths.iter().map(move |&it| (Task::Decode { sessions }, Some(it)));
    let plan = Plan {
        bundles: &args.bundles,
        steps: args.sessions.iter().copied().flat_map(at).collect(),
        walks: args.walk,
        rounds: args.rounds,
        runtime: &args.runtime,
    };
    args.output.write(&plan.measure()?)
}
