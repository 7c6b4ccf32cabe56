//! `aerie-export bench`: how fast this machine can be, and how near our products and whole steps come.
//!
//! A machine drifts, so every figure is taken in rounds in which all that is compared takes turns, each
//! turn right after a look at how fast memory reads at that moment. Medians of the rounds are told.

mod clock;
mod kernels;
mod lengths;
mod limits;
mod plot;
mod profile;
mod report;
mod resident;
mod steps;
pub(crate) mod table;
mod turns;

use std::{
    fs,
    io::{self, Write as _},
    num::NonZeroUsize,
    path::{Path, PathBuf},
    thread,
};

use anyhow::Context;
use clap::Subcommand;
use indicatif::ProgressBar;

use self::report::Report;

/// Measures limits of the machine, products and steps of bundles, and draws what it found
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  aerie-export bench limits
  aerie-export bench kernels --preset recurrentgemma-2b --json kernels.json
  aerie-export emit --random griffin-small-512 --precision q4 --out /tmp/small-q4
  aerie-export bench steps /tmp/small-q4 models/bundles/tales --sessions 1,8,32 --json steps.json
  aerie-export bench lengths griffin hawk mqa --sessions 1,8 --json lengths.json
  aerie-export bench profile /tmp/small-q4 --json profile.json
  aerie-export bench plot kernels.json --out roofline.svg
  aerie-export bench plot steps.json --draw sessions --out sessions.svg
What other systems do beside us: tests/peers/peers.py --help")]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Limits(limits::Args),
    Kernels(kernels::Args),
    Steps(steps::Args),
    Lengths(lengths::Args),
    Profile(profile::Args),
    Turns(turns::Args),
    Plot(plot::Args),
}

/// Runs the command.
///
/// # Errors
/// If what is to be measured cannot be loaded, or a file cannot be read or written.
pub fn run(args: &Args) -> anyhow::Result<()> {
    match &args.command {
        Command::Limits(args) => limits::run(args),
        Command::Kernels(args) => kernels::run(args),
        Command::Steps(args) => steps::run(args),
        Command::Lengths(args) => lengths::run(args),
        Command::Profile(args) => profile::run(args),
        Command::Turns(args) => turns::run(args),
        Command::Plot(args) => plot::run(args),
    }
}

/// Where figures go.
#[derive(Debug, clap::Args)]
struct Output {
    /// Write the figures of every round here too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

impl Output {
    /// Shows `report`, and writes it if that is asked for.
    fn write(&self, report: &Report) -> anyhow::Result<()> {
        io::stdout().write_all(report.to_string().as_bytes())?;
        if let Some(path) = &self.json {
            let text = serde_json::to_string_pretty(report)?;
            write(path, &text)?;
        }
        Ok(())
    }
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    fs::write(path, text).with_context(|| path.display().to_string())
}

/// The threads that are asked for, or one for each core.
fn threads(asked: Option<NonZeroUsize>) -> usize {
    asked.or_else(|| thread::available_parallelism().ok()).map_or(1, NonZeroUsize::get)
}

/// A bar of `turns`, where somebody looks.
fn progress(turns: usize) -> ProgressBar {
    crate::progress::bar("{bar:30} {pos}/{len}, {eta} left {msg}", turns as u64)
}
