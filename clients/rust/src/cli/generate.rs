//! `aerie generate`: one prompt in, text out as it comes.

use std::{
    io::{self, IsTerminal as _, Read as _, Write as _},
    pin::pin,
    time::Duration,
};

use aerie_client::{Error, Event, Generation, v1};
use anyhow::bail;
use tokio::signal::ctrl_c;
use tokio_stream::StreamExt as _;

use super::{Seconds, ServerArgs, sampling::SamplingArgs};

/// More than this is no prompt; the server has a limit of its own.
const PROMPT_BYTES_MAX: u64 = 1 << 20;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Text to go on from; without it, or with -, stdin is read
    prompt: Option<String>,

    /// Model to use; the server's first by default
    #[arg(long, value_name = "NAME")]
    model: Option<String>,

    /// Go on with this session
    #[arg(long, value_name = "ID")]
    session: Option<String>,

    /// Begin as a fork of this session, by its id or its name, which stays as it is
    #[arg(long, value_name = "ID", conflicts_with = "session")]
    fork: Option<String>,

    /// Have the server read the prompt and draw nothing; with --keep, to be forked later
    #[arg(long, requires = "keep")]
    prompt_only: bool,

    /// Have the server keep the session, and tell its id
    #[arg(long)]
    keep: bool,

    /// Print the prompt before the text
    #[arg(long)]
    echo: bool,

    /// Tell on stderr how long it took
    #[arg(long)]
    show_stats: bool,

    #[command(flatten)]
    sampling: SamplingArgs,
}

pub(super) async fn run(server: &ServerArgs, args: Args) -> anyhow::Result<()> {
    let prompt = read_prompt(args.prompt, args.session.is_some() || args.fork.is_some())?;
    let start = v1::Start {
        model: args.model.unwrap_or_default(),
        session_id: args.session.unwrap_or_default(),
        keep: args.keep,
        fork_of: args.fork.unwrap_or_default(),
        prompt_only: args.prompt_only,
        prompt: Some(v1::start::Prompt::Text(prompt.clone())),
        ..args.sampling.start()
    };
    let client = server.connect().await?;
    let mut generation = client.generate(start).await?;
    if args.echo {
        io::stdout().write_all(prompt.as_bytes())?;
    }
    let turn = stream(&mut generation).await?;
    io::stdout().write_all(b"\n")?;
    if args.keep {
        writeln!(io::stderr(), "session {}", turn.accepted.session_id)?;
    }
    if args.show_stats {
        turn.write_stats()?;
    }
    client.close().await;
    Ok(())
}

/// A generation that has ended.
#[derive(Debug, Default)]
pub(super) struct Turn {
    pub accepted: v1::Accepted,
    pub finished: v1::Finished,
}

/// Writes the text of a generation to stdout as it comes; ctrl-c ends it early.
pub(super) async fn stream(generation: &mut Generation) -> anyhow::Result<Turn> {
    let mut turn = Turn::default();
    let mut is_cancelled = false;
    let mut interrupted = pin!(ctrl_c());
    loop {
        let event = tokio::select! {
            event = generation.next() => event,
            _ = &mut interrupted, if !is_cancelled => {
                is_cancelled = true;
                generation.cancel().await?;
                continue;
            }
        };
        match event.ok_or(Error::Answer)?? {
            Event::Accepted(accepted) => turn.accepted = accepted,
            // Of a session that is followed, nobody asked to begin anything.
            Event::Attached(_) => {}
            Event::Delta(delta) => {
                let mut stdout = io::stdout().lock();
                stdout.write_all(delta.text.as_bytes())?;
                stdout.flush()?;
            }
            Event::Finished(finished) => {
                turn.finished = finished;
                return Ok(turn);
            }
        }
    }
}

impl Turn {
    /// Tells on stderr what the generation was and what it took, as the server saw it.
    pub(super) fn write_stats(&self) -> io::Result<()> {
        let Self { accepted, finished } = self;
        let to_first = finished.time_to_first_token_seconds;
        let total = finished.duration_seconds;
        // The first token belongs to the prompt's computation.
        let n_after = f64::from(finished.generated_tokens.saturating_sub(1));
        let rate = if to_first < total { n_after / (total - to_first) } else { 0.0 };
        writeln!(
            io::stderr(),
            "{model}: {prompt} prompt tokens{shared} after {resumed} resumed and {again} computed again, \
             {generated} generated; first after {first}, then {rate:.0} tokens/s; position {position}, seed {seed}, \
             ended by {reason}",
            model = accepted.model,
            prompt = finished.prompt_tokens,
            shared = match accepted.prefix_tokens {
                0 => String::new(),
                n => format!(" ({n} known from others)"),
            },
            resumed = accepted.resumed_tokens,
            again = accepted.recomputed_tokens,
            generated = finished.generated_tokens,
            first = Seconds(Duration::try_from_secs_f64(to_first).unwrap_or_default()),
            position = finished.position,
            seed = accepted.seed,
            reason = describe(finished.reason()),
        )
    }
}

pub(super) fn describe(reason: v1::FinishReason) -> &'static str {
    match reason {
        v1::FinishReason::Length => "length",
        v1::FinishReason::Stop => "a stop string",
        v1::FinishReason::EndOfText => "the model",
        v1::FinishReason::Cancelled => "cancellation",
        v1::FinishReason::Shutdown => "the server's shutdown",
        v1::FinishReason::Interrupted => "an interruption; the same request would go on",
        v1::FinishReason::Prompt => "the end of the prompt",
        v1::FinishReason::Unspecified => "something that this client does not know",
    }
}

/// The prompt, from stdin if it is not given; an empty one only to go on with a session.
fn read_prompt(argument: Option<String>, has_session: bool) -> anyhow::Result<String> {
    let prompt = match argument {
        Some(prompt) if prompt != "-" => prompt,
        None if io::stdin().is_terminal() && has_session => String::new(),
        None if io::stdin().is_terminal() => {
            bail!("no prompt; try: aerie generate 'Once upon a time'")
        }
        _ => {
            let mut prompt = String::new();
            io::stdin().take(PROMPT_BYTES_MAX).read_to_string(&mut prompt)?;
            prompt
        }
    };
    if prompt.is_empty() && !has_session {
        bail!("the prompt is empty; only a --session or a --fork can go on without one");
    }
    Ok(prompt)
}
