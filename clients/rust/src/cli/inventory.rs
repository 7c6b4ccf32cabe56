//! `aerie sessions` and `aerie models`: what a server has.

use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use aerie_client::{Client, Error, random_id, v1};
use anyhow::Context as _;
use clap::Subcommand;

use super::{Seconds, ServerArgs, generate::stream};

#[derive(Debug, Subcommand)]
pub(super) enum SessionsCommand {
    /// List all sessions
    Ls,
    /// Tell all about one session
    Show {
        /// As `ls` tells it
        id: String,
    },
    /// Make a session that stands where another stands or stood
    Fork {
        /// Id or name of the other, which stays as it is
        id: String,
        /// Fork it after this many tokens; where it stands by default
        #[arg(long, value_name = "TOKENS")]
        at: Option<u64>,
    },
    /// Take a session back
    Rewind {
        /// As `ls` tells it
        id: String,
        /// Tokens that are to be left
        position: u64,
    },
    /// Give a session a name, under which it can be forked
    Name {
        /// As `ls` tells it
        id: String,
        /// Letters, digits, -, _ and .; leave it out to take the name away
        name: Option<String>,
    },
    /// Bring a session to another device of the server, also while it is generating
    Move {
        /// Id or name
        id: String,
        /// As `ls` tells devices
        device: String,
    },
    /// Show what a session has said, and what it says while it is generating
    Follow {
        /// Id or name
        id: String,
        /// Begin at this token
        #[arg(long, value_name = "TOKENS", default_value_t = 0)]
        from: u64,
    },
    /// Write a session to a file, for this server or another with the same model
    Export {
        /// Id or name
        id: String,
        /// Where to write it
        file: PathBuf,
    },
    /// Make a session of a file
    Import {
        /// What `export` wrote
        file: PathBuf,
        /// Give it an id of its own, so that it may be there beside the one that was exported
        #[arg(long)]
        new_id: bool,
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
    let mut stdout = io::stdout();
    match command {
        SessionsCommand::Ls => list(&client).await?,
        SessionsCommand::Show { id } => write_session(&mut stdout, &client.session(&id).await?)?,
        SessionsCommand::Fork { id, at } => {
            let session = fork(&client, id, at).await?;
            writeln!(stdout, "{}", session.session_id)?;
        }
        SessionsCommand::Rewind { id, position } => {
            write_session(&mut stdout, &rewind(&client, &id, position, None).await?)?;
        }
        SessionsCommand::Name { id, name } => {
            let request = v1::NameSessionRequest {
                session_id: id,
                name: name.unwrap_or_default(),
                expected_position: None,
            };
            write_session(&mut stdout, &client.name_session(request).await?)?;
        }
        SessionsCommand::Move { id, device } => {
            let request =
                v1::MoveSessionRequest { session_id: id, device, expected_position: None };
            write_session(&mut stdout, &client.move_session(request).await?)?;
        }
        SessionsCommand::Follow { id, from } => {
            stream(&mut client.attach(&id, from).await?).await?;
            writeln!(stdout)?;
        }
        SessionsCommand::Export { id, file } => {
            let bytes = export(&client, id, &file).await?;
            writeln!(stdout, "{}, {}", file.display(), bytes_of(bytes))?;
        }
        SessionsCommand::Import { file, new_id } => {
            write_session(&mut stdout, &import(&client, &file, new_id).await?)?;
        }
        SessionsCommand::Rm { ids } => {
            for id in ids {
                let request =
                    v1::DeleteSessionRequest { session_id: id.clone(), expected_position: None };
                client.delete_session(request).await?;
                writeln!(stdout, "{id}")?;
            }
        }
    }
    client.close().await;
    Ok(())
}

async fn list(client: &Client) -> anyhow::Result<()> {
    let header = ["SESSION", "NAME", "MODEL", "TOKENS", "STATE", "DEVICE", "IDLE"];
    let mut rows = vec![header.map(str::to_owned)];
    rows.extend(client.sessions().await?.into_iter().map(|it| {
        let (residence, idle) = (residence(&it).to_owned(), idle(&it));
        [it.session_id, it.name, it.model, it.position.to_string(), residence, it.device, idle]
    }));
    write_table(&rows)?;
    Ok(())
}

/// Makes a session that stands where another stands, or stood at `position`.
pub(super) async fn fork(
    client: &Client,
    id: String,
    position: Option<u64>,
) -> Result<v1::Session, Error> {
    let request = v1::ForkSessionRequest {
        session_id: id,
        position,
        new_session_id: random_id(),
        expected_position: None,
        request_id: random_id(),
    };
    client.fork_session(request).await
}

/// Takes a session back to `position`.
pub(super) async fn rewind(
    client: &Client,
    id: &str,
    position: u64,
    expected_position: Option<u64>,
) -> Result<v1::Session, Error> {
    let session_id = id.to_owned();
    let request_id = random_id();
    let request = v1::RewindSessionRequest { session_id, position, expected_position, request_id };
    client.rewind_session(request).await
}

/// Writes a session to a file that is there when it is whole; returns its bytes.
pub(super) async fn export(client: &Client, id: String, path: &Path) -> anyhow::Result<u64> {
    let request = v1::ExportSessionRequest { session_id: id, expected_position: None };
    let file = client.export_session(request).await?;
    let partial = path.with_added_extension("part");
    fs::write(&partial, &file)
        .and_then(|()| fs::rename(&partial, path))
        .with_context(|| format!("{} cannot be written", path.display()))?;
    Ok(file.len() as u64)
}

/// Makes a session of a file.
pub(super) async fn import(
    client: &Client,
    path: &Path,
    new_id: bool,
) -> anyhow::Result<v1::Session> {
    let file = fs::read(path).with_context(|| format!("{} cannot be read", path.display()))?;
    let session_id = if new_id { random_id() } else { String::new() };
    let start = v1::ImportStart { session_id, request_id: random_id() };
    Ok(client.import_session(start, file).await?)
}

pub(super) async fn models(server: &ServerArgs) -> anyhow::Result<()> {
    let header = ["MODEL", "FAMILY", "PARAMETERS", "STATE", "VOCABULARY", "CLASSES", "FINGERPRINT"];
    let mut rows = vec![header.map(str::to_owned)];
    let client = server.connect().await?;
    rows.extend(client.models().await?.into_iter().map(|it| {
        let parameters = it.parameters.to_string();
        let or_dash = |n: u32| if n == 0 { "-".to_owned() } else { n.to_string() };
        let (vocab, classes) = (or_dash(it.vocab), or_dash(it.classes));
        let state = if it.classes == 0 { bytes_of(it.state_bytes) } else { "-".to_owned() };
        let fingerprint = it.fingerprint.chars().take(16).collect();
        [it.name, it.family, parameters, state, vocab, classes, fingerprint]
    }));
    write_table(&rows)?;
    client.close().await;
    Ok(())
}

/// Writes one session, a line for each field.
pub(super) fn write_session(out: &mut impl Write, session: &v1::Session) -> io::Result<()> {
    writeln!(out, "session  {}", session.session_id)?;
    if !session.name.is_empty() {
        writeln!(out, "name     {}", session.name)?;
    }
    writeln!(out, "model    {}", session.model)?;
    writeln!(out, "tokens   {}", session.position)?;
    writeln!(out, "rewinds  to {} and later", session.position_min)?;
    writeln!(out, "state    {}, {}", residence(session), bytes_of(session.state_bytes))?;
    writeln!(out, "device   {}", session.device)?;
    writeln!(out, "idle     {}", idle(session))
}

/// Writes rows with their columns aligned, numbers too: a terminal is for reading.
pub(super) fn write_table<const N: usize>(rows: &[[String; N]]) -> io::Result<()> {
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

pub(super) fn residence(session: &v1::Session) -> &'static str {
    match session.residence() {
        v1::SessionResidence::Active => "active",
        v1::SessionResidence::Resident => "resident",
        v1::SessionResidence::Parked => "parked",
        v1::SessionResidence::Unspecified => "unknown",
    }
}

pub(super) fn idle(session: &v1::Session) -> String {
    let idle = Duration::try_from_secs_f64(session.idle_seconds).unwrap_or_default();
    match idle.as_secs() {
        0..60 => Seconds(idle).to_string(),
        60..3600 => format!("{} min", idle.as_secs() / 60),
        3600..86_400 => format!("{} h", idle.as_secs() / 3600),
        _ => format!("{} d", idle.as_secs() / 86_400),
    }
}

fn bytes_of(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..1_048_576 => format!("{} KiB", bytes / 1024),
        _ => format!("{} MiB", bytes / 1_048_576),
    }
}
