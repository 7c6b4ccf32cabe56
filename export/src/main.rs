//! The program `aerie-export`.

use clap::Parser;

fn main() -> anyhow::Result<()> {
    aerie_export::cli::Cli::parse().run()
}
