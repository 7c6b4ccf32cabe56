//! `aerie sessions` and `aerie models`: what a server has.

use std::{
    io::{self, Write},
    time::Duration,
};

use aerie_client::v1;
use clap::Subcommand;

use super::{Seconds, ServerArgs};

#[derive(Debug, Subcommand)]
pub(super) enum SessionsCommand {
    /// List all sessions
    Ls,
    /// Tell all about one session
    Show {
        /// As `ls` tells it
        id: String,
    },
    /// Have the server forget sessions
    Rm {
        /// As `ls` tells them
        #[arg(required = true)]
        ids: Vec<String>,
    },
}

pub(super) async fn sessions(server: &ServerArgs, command: SessionsCommand) -> anyhow::Result<()> {
    let client = server.connect().await?;
    match command {
        SessionsCommand::Ls => {
            let mut rows =
                vec![["SESSION", "MODEL", "TOKENS", "STATE", "DEVICE", "IDLE"].map(str::to_owned)];
            rows.extend(client.sessions().await?.into_iter().map(|it| {
                let (residence, idle) = (residence(&it).to_owned(), idle(&it));
                [it.session_id, it.model, it.position.to_string(), residence, it.device, idle]
            }));
            write_table(&rows)?;
        }
        SessionsCommand::Show { id } => {
            write_session(&mut io::stdout(), &client.session(&id).await?)?;
        }
        SessionsCommand::Rm { ids } => {
            for id in ids {
                client.delete_session(&id).await?;
                writeln!(io::stdout(), "{id}")?;
            }
        }
    }
    client.close().await;
    Ok(())
}

pub(super) async fn models(server: &ServerArgs) -> anyhow::Result<()> {
    let header = ["MODEL", "FAMILY", "PARAMETERS", "STATE", "VOCABULARY", "FINGERPRINT"];
    let mut rows = vec![header.map(str::to_owned)];
    let client = server.connect().await?;
    rows.extend(client.models().await?.into_iter().map(|it| {
        let parameters = it.parameters.to_string();
        let (state, vocab) = (bytes(it.state_bytes), it.vocab.to_string());
        let fingerprint = it.fingerprint.chars().take(16).collect();
        [it.name, it.family, parameters, state, vocab, fingerprint]
    }));
    write_table(&rows)?;
    client.close().await;
    Ok(())
}

/// Writes one session, a line for each field.
pub(super) fn write_session(out: &mut impl Write, session: &v1::Session) -> io::Result<()> {
    writeln!(out, "session  {}", session.session_id)?;
    writeln!(out, "model    {}", session.model)?;
    writeln!(out, "tokens   {}", session.position)?;
    writeln!(out, "state    {}, {}", residence(session), bytes(session.state_bytes))?;
    writeln!(out, "device   {}", session.device)?;
    writeln!(out, "idle     {}", idle(session))
}

/// Writes rows with their columns aligned, numbers too: a terminal is for reading.
fn write_table<const N: usize>(rows: &[[String; N]]) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    let widths: [usize; N] = std::array::from_fn(|column| {
        rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0)
    });
    for row in rows {
        let cells: Vec<_> =
            row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        writeln!(stdout, "{}", cells.join("  ").trim_end())?;
    }
    Ok(())
}

fn residence(session: &v1::Session) -> &'static str {
    match session.residence() {
        v1::SessionResidence::Active => "active",
        v1::SessionResidence::Resident => "resident",
        v1::SessionResidence::Parked => "parked",
        v1::SessionResidence::Unspecified => "unknown",
    }
}

fn idle(session: &v1::Session) -> String {
    let idle = Duration::try_from_secs_f64(session.idle_seconds).unwrap_or_default();
    match idle.as_secs() {
        0..60 => Seconds(idle).to_string(),
        60..3600 => format!("{} min", idle.as_secs() / 60),
        3600..86_400 => format!("{} h", idle.as_secs() / 3600),
        _ => format!("{} d", idle.as_secs() / 86_400),
    }
}

fn bytes(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..1_048_576 => format!("{} KiB", bytes / 1024),
        _ => format!("{} MiB", bytes / 1_048_576),
    }
}
