//! `aerie chat`: turns in one session, which the server keeps between them and after.

use std::{
    io::{self, IsTerminal as _, Write as _},
    path::Path,
};

use aerie_client::{Client, Code, Error, v1};
use anyhow::{Context as _, bail};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader, Lines, Stdin},
    signal::ctrl_c,
};

use super::{
    ServerArgs, explain,
    generate::{Turn, stream},
    inventory,
    sampling::SamplingArgs,
};

const COMMANDS: &str = "\
/stats      what the last turn took
/session    the session's id and where it stands
/fork       go on in a fork of the session, which stays as it is
/rewind N   take back the last N turns; 1 by default
/save FILE  write the session to a file
/load FILE  go on with a session from a file
/help       this
/quit       leave, as ctrl-d does; the server keeps the session
An empty line lets the model go on. Ctrl-c ends a turn early.";

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Go on with this session; also after the server was restarted
    #[arg(long, value_name = "ID")]
    session: Option<String>,

    /// Model to use; the server's first by default
    #[arg(long, value_name = "NAME")]
    model: Option<String>,

    /// Put between the model's text and yours
    #[arg(long, value_name = "TEXT", default_value = "\n")]
    join: String,

    #[command(flatten)]
    sampling: SamplingArgs,
}

/// A conversation, and where its session stands as far as the client knows.
struct Chat<'a> {
    server: &'a ServerArgs,
    args: Args,
    /// None after it was lost; the next turn connects anew.
    client: Option<Client>,
    session: Option<Known>,
    last: Option<Turn>,
    /// Where each turn of the session began, as far as this conversation has seen.
    begins: Vec<u64>,
}

struct Known {
    id: String,
    /// None after a turn of which the end was not heard.
    position: Option<u64>,
}

enum Line {
    Text(String),
    Quit,
}

pub(super) async fn run(server: &ServerArgs, mut args: Args) -> anyhow::Result<()> {
    let client = server.connect().await?;
    let session = match args.session.take() {
        Some(id) => Some(resume(&client, id).await?),
        None => None,
    };
    let mut chat =
        Chat { server, args, client: Some(client), session, last: None, begins: Vec::new() };
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    if io::stdin().is_terminal() {
        writeln!(io::stderr(), "Type how the tale begins. /help tells more.")?;
    }
    while let Line::Text(line) = read(&mut lines).await? {
        match line.trim_end() {
            "/quit" => break,
            text => match chat.line(text).await {
                Ok(()) => {}
                // The terminal is gone, or nobody reads: there is no point in going on.
                Err(error) if error.downcast_ref::<io::Error>().is_some() => return Err(error),
                Err(error) => explain(&error),
            },
        }
    }
    if let Some(Known { id, .. }) = &chat.session {
        writeln!(io::stderr(), "the server keeps session {id}; go on with:")?;
        writeln!(io::stderr(), "  aerie chat --server {} --session {id}", chat.server.server)?;
    }
    if let Some(client) = chat.client {
        client.close().await;
    }
    Ok(())
}

async fn resume(client: &Client, id: String) -> anyhow::Result<Known> {
    let session = client.session(&id).await?;
    writeln!(io::stderr(), "session {id} of {} at token {}", session.model, session.position)?;
    Ok(Known { id, position: Some(session.position) })
}

async fn read(lines: &mut Lines<BufReader<Stdin>>) -> io::Result<Line> {
    if io::stdin().is_terminal() {
        write!(io::stderr(), "> ")?;
    }
    let line = tokio::select! {
        line = lines.next_line() => line?,
        _ = ctrl_c() => None,
    };
    if line.is_none() && io::stdin().is_terminal() {
        writeln!(io::stderr())?;
    }
    Ok(line.map_or(Line::Quit, Line::Text))
}

impl Chat<'_> {
    /// Does what a line asks for: a command, or a turn.
    async fn line(&mut self, text: &str) -> anyhow::Result<()> {
        let (command, argument) = text.split_once(' ').unwrap_or((text, ""));
        match (command, argument.trim()) {
            ("/help", _) => writeln!(io::stderr(), "{COMMANDS}")?,
            ("/stats", _) => self.write_stats()?,
            ("/session", _) => self.write_session().await?,
            ("/fork", _) => self.fork().await?,
            ("/rewind", "") => self.rewind(1).await?,
            ("/rewind", turns) => {
                let turns = turns.parse().with_context(|| format!("{turns} is no number"))?;
                self.rewind(turns).await?;
            }
            ("/save" | "/load", "") => bail!("{command} needs a file"),
            ("/save", file) => self.save(Path::new(file)).await?,
            ("/load", file) => self.load(Path::new(file)).await?,
            _ if command.starts_with('/') => {
                writeln!(io::stderr(), "no such command: {command}\n{COMMANDS}")?;
            }
            _ => self.turn(text).await?,
        }
        Ok(())
    }

    /// The connection and the session, if there is one.
    async fn known(&mut self) -> anyhow::Result<(&Client, &mut Known)> {
        let Some(known) = &mut self.session else { bail!("there is no session yet") };
        if self.client.is_none() {
            self.client = Some(self.server.connect().await?);
        }
        Ok((self.client.as_ref().expect("it has just been connected"), known))
    }

    async fn fork(&mut self) -> anyhow::Result<()> {
        let (client, known) = self.known().await?;
        let session = inventory::fork(client, known.id.clone(), known.position).await?;
        writeln!(io::stderr(), "session {} stays at token {}", known.id, session.position)?;
        writeln!(io::stderr(), "going on in its fork {}", session.session_id)?;
        *known = Known { id: session.session_id, position: Some(session.position) };
        Ok(())
    }

    /// Takes back the last `turns` turns.
    async fn rewind(&mut self, turns: usize) -> anyhow::Result<()> {
        let n = self.begins.len();
        let Some(kept) = n.checked_sub(turns).filter(|_| 0 < turns) else {
            bail!("{n} turns are known here; aerie sessions rewind ID TOKENS goes back further");
        };
        let to = self.begins[kept];
        let (client, known) = self.known().await?;
        let session = inventory::rewind(client, &known.id, to, known.position).await?;
        known.position = Some(session.position);
        self.begins.truncate(kept);
        writeln!(io::stderr(), "back at token {}", session.position)?;
        Ok(())
    }

    async fn save(&mut self, file: &Path) -> anyhow::Result<()> {
        let (client, known) = self.known().await?;
        inventory::export(client, known.id.clone(), file).await?;
        writeln!(io::stderr(), "saved to {}", file.display())?;
        Ok(())
    }

    async fn load(&mut self, file: &Path) -> anyhow::Result<()> {
        if self.client.is_none() {
            self.client = Some(self.server.connect().await?);
        }
        let client = self.client.as_ref().expect("it has just been connected");
        let session = inventory::import(client, file, true).await?;
        writeln!(io::stderr(), "session {} at token {}", session.session_id, session.position)?;
        self.session = Some(Known { id: session.session_id, position: Some(session.position) });
        self.begins.clear();
        Ok(())
    }

    /// Appends `text` to the session and streams what follows.
    async fn turn(&mut self, text: &str) -> anyhow::Result<()> {
        let client = match self.client.take() {
            Some(client) => client,
            None => self.server.connect().await?,
        };
        if let Some(known) = &mut self.session
            && known.position.is_none()
        {
            known.position = Some(client.session(&known.id).await?.position);
        }
        let result = self.converse(&client, text).await;
        match result.as_ref().err().and_then(|error| error.downcast_ref::<Error>()) {
            // The connection may be of no more use; the session is.
            Some(error) if error.code() == Code::Unavailable => {}
            _ => self.client = Some(client),
        }
        result
    }

    async fn converse(&mut self, client: &Client, text: &str) -> anyhow::Result<()> {
        let mut start = v1::Start {
            model: self.args.model.clone().unwrap_or_default(),
            keep: true,
            ..self.args.sampling.start()
        };
        let join = match &mut self.session {
            Some(known) => {
                start.session_id.clone_from(&known.id);
                // A turn is never run twice, whatever was lost on the way.
                start.expected_position = known.position.take();
                if !text.is_empty() { self.args.join.as_str() } else { "" }
            }
            None => "",
        };
        start.prompt = Some(v1::start::Prompt::Text(format!("{join}{text}")));
        let mut generation = client.generate(start).await?;
        let turn = stream(&mut generation).await?;
        io::stdout().write_all(b"\n")?;
        let position = Some(turn.finished.position);
        self.begins.push(turn.accepted.position);
        self.session = Some(Known { id: turn.accepted.session_id.clone(), position });
        self.last = Some(turn);
        Ok(())
    }

    fn write_stats(&self) -> io::Result<()> {
        match &self.last {
            Some(turn) => turn.write_stats(),
            None => writeln!(io::stderr(), "there was no turn yet"),
        }
    }

    async fn write_session(&self) -> anyhow::Result<()> {
        match (&self.session, &self.client) {
            (Some(known), Some(client)) => match client.session(&known.id).await {
                Ok(session) => inventory::write_session(&mut io::stderr(), &session)?,
                Err(error) => explain(&error.into()),
            },
            (Some(known), None) => writeln!(io::stderr(), "session {}", known.id)?,
            (None, _) => writeln!(io::stderr(), "there is none before the first turn")?,
        }
        Ok(())
    }
}
