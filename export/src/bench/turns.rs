//! Turns at the order of another program, so that systems of all kinds can take turns with ours.

#[cfg(test)]
mod tests;

use std::{
    io::{self, BufRead, Write},
    path::PathBuf,
};

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};

use super::{
    limits::{self, Memory},
    report::{Bundle, Limits, Task},
    steps::{Subject, count},
};
use crate::runtime;

/// Measures what orders on standard input ask for, a line of JSON each
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  echo '{\"decode\": {\"sessions\": 8}}' | aerie-export bench turns models/bundles/tales
Orders, and what the answer on standard output has:
  {\"decode\": {\"sessions\": N}}   {\"seconds\": S}           median of a step of N sessions
  {\"prompt\": {\"tokens\": N}}     {\"seconds\": S}           median of a step of one session
  \"read\"                        {\"read_bytes_per_s\": R}  how fast memory is read right now
  \"limits\"                      {\"limits\": {…}}          as in the files of `bench limits`
  \"bundle\"                      {\"bundle\": {…}}          as in the files of `bench steps`
tests/peers/peers.py gives such orders to several systems in turn.")]
pub(super) struct Args {
    /// Folder of the bundle
    #[arg(value_name = "BUNDLE")]
    bundle: PathBuf,
    /// Most sessions that an order may ask for
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = count())]
    lanes: usize,
    /// Tokens that sessions have read before [default: a full window]
    #[arg(long, value_name = "N")]
    position: Option<usize>,
    #[command(flatten)]
    runtime: runtime::Options,
}

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let (runtime, threads) = (args.runtime.load()?, args.runtime.threads());
    let mut subject = Subject::load(&runtime, &args.bundle, args.lanes)?;
    let memory = Memory::new();
    serve(io::stdin().lock(), io::stdout().lock(), |order| {
        Ok(match order {
            Order::Read => Answer::Read { read_bytes_per_s: memory.read_bytes_per_s(threads) },
            Order::Limits => Answer::Limits { limits: limits::measure(&memory, threads) },
            Order::Bundle => Answer::Bundle { bundle: subject.bundle.clone() },
            Order::Task(task) => {
                let sessions = task.sessions();
                ensure!(sessions <= args.lanes, "{sessions} sessions; --lanes is {}", args.lanes);
                Answer::Step { seconds: subject.turn(task, args.position, TURN_SECONDS_MIN)? }
            }
        })
    })
}

/// What the steps of a turn take at least.
const TURN_SECONDS_MIN: f64 = 0.5;

/// What another program asks for.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "lowercase")]
enum Order {
    Read,
    Limits,
    Bundle,
    #[serde(untagged)]
    Task(Task),
}

/// What it is told.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Answer {
    Step { seconds: f64 },
    Read { read_bytes_per_s: f64 },
    Limits { limits: Limits },
    Bundle { bundle: Bundle },
}

/// Answers every line of `orders` until they end.
fn serve(
    orders: impl BufRead,
    mut answers: impl Write,
    mut answer: impl FnMut(Order) -> anyhow::Result<Answer>,
) -> anyhow::Result<()> {
    for order in orders.lines() {
        let order = order?;
        let order = serde_json::from_str(&order).with_context(|| format!("order {order:?}"))?;
        let answer = serde_json::to_string(&answer(order)?)?;
        writeln!(answers, "{answer}")?;
        answers.flush()?;
    }
    Ok(())
}
