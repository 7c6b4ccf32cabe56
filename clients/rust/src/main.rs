//! `aerie`: generate, chat, look after sessions and measure, from a terminal.

mod cli;

use std::process::ExitCode;

use clap::Parser as _;

#[tokio::main]
async fn main() -> ExitCode {
    match cli::run(cli::Args::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            cli::explain(&error);
            ExitCode::FAILURE
        }
    }
}
