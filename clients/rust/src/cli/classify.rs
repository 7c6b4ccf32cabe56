//! `aerie classify`: pictures in, what is on them out.

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use aerie_client::Client;
use anyhow::{Context as _, bail};

use super::ServerArgs;

/// More than this is no picture; the server has a limit of its own.
const PICTURE_BYTES_MAX: u64 = 64 << 20;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Files of JPEG or PNG
    #[arg(required = true, value_name = "PICTURE")]
    pictures: Vec<PathBuf>,

    /// Classifier to use; the server's first by default
    #[arg(long, value_name = "NAME")]
    model: Option<String>,

    /// Classes to tell of each picture, the most probable first
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    top: u32,
}

pub(super) async fn run(server: &ServerArgs, args: Args) -> anyhow::Result<()> {
    let Args { pictures, model, top } = args;
    let client = server.connect().await?;
    let model = match model {
        Some(model) => model,
        None => first(&client).await?,
    };
    for path in &pictures {
        // One by one, so that each is told as soon as it is known, and however large all are together.
        let classes = client.classify(&model, &[read(path)?], top).await?;
        let mut stdout = io::stdout().lock();
        if 1 < pictures.len() {
            writeln!(stdout, "{}", path.display())?;
        }
        for class in classes.iter().flatten() {
            writeln!(stdout, "{:5.1} %  {}", class.probability * 100.0, class.label)?;
        }
    }
    client.close().await;
    Ok(())
}

/// The server's first classifier.
async fn first(client: &Client) -> anyhow::Result<String> {
    let models = client.models().await?;
    let Some(model) = models.into_iter().find(|it| 0 < it.classes) else {
        bail!("the server has no classifier; see aerie models");
    };
    Ok(model.name)
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    let of = || path.display().to_string();
    let bytes = fs::metadata(path).with_context(of)?.len();
    if PICTURE_BYTES_MAX < bytes {
        bail!("{}: has {bytes} bytes, which no picture has", path.display());
    }
    fs::read(path).with_context(of)
}
