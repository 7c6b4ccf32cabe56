//! The command line: which commands there are. What each takes and does is in its own module.

use clap::{Parser, Subcommand};

#[cfg(feature = "torch")]
use crate::torch::{eval, memory, sample, spp, train};
use crate::{
    bench, compare, data::tokenizer, emit, import, inspect, plot, quantize, scaling, verify,
};

/// What is said of a model that is only read, where nothing can be asked for that would be smaller.
#[cfg(feature = "torch")]
const TOO_LARGE: &str = "there is too little memory for this model";

/// Trains the models that Aerie serves, and writes them as bundles.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "\
From text to a bundle:
  aerie-export tokenizer --text tales.train.txt --vocab 4096 --out tokenizer.json
  aerie-export train --run runs/tales --preset tales --tokenizer tokenizer.json \\
      --text tales.train.txt --valid tales.valid.txt --documents headings
  aerie-export sample --run runs/tales --prompt 'Once upon a time'
  aerie-export emit --run runs/tales --precision f16 --out models/bundles/tales

From images to a bundle:
  aerie-export train --run runs/pictures --preset nfnet-small --images train.parquet --valid test.parquet
  aerie-export emit --run runs/pictures --precision f16 --out models/bundles/pictures

To fewer bits, and what that costs:
  aerie-export quantize models/bundles/tales --precision q4 --out /tmp/tales-q4
  aerie-export compare models/bundles/tales /tmp/tales-q4 --text tales.valid.txt"
)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Tokenizer(tokenizer::Args),
    #[cfg(feature = "torch")]
    Train(Box<train::Args>),
    #[cfg(feature = "torch")]
    Eval(eval::Args),
    #[cfg(feature = "torch")]
    Sample(sample::Args),
    #[cfg(feature = "torch")]
    Spp(spp::Args),
    Plot(plot::Args),
    Scaling(scaling::Args),
    Bench(bench::Args),
    Emit(emit::Args),
    Import(import::Args),
    Quantize(quantize::Args),
    Compare(compare::Args),
    Verify(verify::Args),
    Inspect(inspect::Args),
}

impl Cli {
    /// Runs the command that was asked for.
    ///
    /// # Errors
    /// Whatever stops it, with what it was doing.
    pub fn run(&self) -> anyhow::Result<()> {
        match &self.command {
            Command::Tokenizer(args) => tokenizer::run(args),
            #[cfg(feature = "torch")]
            Command::Train(args) => train::run(args),
            #[cfg(feature = "torch")]
            Command::Eval(args) => memory::guarded(TOO_LARGE, || eval::run(args)),
            #[cfg(feature = "torch")]
            Command::Sample(args) => memory::guarded(TOO_LARGE, || sample::run(args)),
            #[cfg(feature = "torch")]
            Command::Spp(args) => memory::guarded(
                "there is too little memory; take fewer --images or a smaller --size",
                || spp::run(args),
            ),
            Command::Plot(args) => plot::run(args),
            Command::Scaling(args) => scaling::run(args),
            Command::Bench(args) => bench::run(args),
            Command::Emit(args) => emit::run(args),
            Command::Import(args) => import::run(args),
            Command::Quantize(args) => quantize::run(args),
            Command::Compare(args) => compare::run(args),
            Command::Verify(args) => verify::run(args),
            Command::Inspect(args) => inspect::run(args),
        }
    }
}
