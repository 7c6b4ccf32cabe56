//! `aerie-serve`: starts a server, and drains it when it is told to stop.

use std::{io::Write as _, process::ExitCode};

use aerie_serve::{admin::Admin, cli::Args, server::Server, service::Readiness};
use anyhow::{Context as _, bail};
use clap::Parser as _;
use tokio::signal::unix::{SignalKind, signal};
use tracing::{error, info};

#[tokio::main]
async fn main() -> ExitCode {
    match run(&Args::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: &Args) -> anyhow::Result<()> {
    if let Some(token) = args.new_token()? {
        return Ok(std::io::stdout().write_all(token.as_bytes())?);
    }
    let config = args.config()?;
    if args.prints_config() {
        return Ok(std::io::stdout().write_all(config.to_toml().as_bytes())?);
    }
    args.start_logging()?;
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT")?;
    let mut stop = async || {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };

    let has_tokens = config.auth.tokens_file.is_some();

    let server = tokio::select! {
        server = Server::start(config) => server?,
        () = stop() => return Ok(()),
    };
    args.write_addresses(&server)?;
    info!("ready");

    let mut readiness = server.service().readiness();
    let broke = tokio::select! {
        // A drain that was asked for shows in the readiness too.
        biased;
        () = stop() => false,
        () = server.admin().drained() => false,
        error = reload(server.admin()), if has_tokens => return Err(error),
        _ = readiness.wait_for(|it| *it == Readiness::Draining) => true,
    };
    info!("draining; a second signal exits at once");
    tokio::select! {
        () = server.drain() => info!("drained"),
        () = stop() => {
            error!("exit before the drain was over");
            std::process::exit(130);
        }
    }
    if broke {
        bail!("a worker died; the log tells why");
    }
    Ok(())
}

/// Reads the tenants' file again at each SIGHUP; ends if there is no such signal to be had.
async fn reload(admin: &Admin) -> anyhow::Error {
    let mut hangup = match signal(SignalKind::hangup()).context("SIGHUP") {
        Ok(hangup) => hangup,
        Err(error) => return error,
    };
    while hangup.recv().await.is_some() {
        // The log has what came of it.
        let _ = admin.reload().await;
    }
    std::future::pending().await
}
