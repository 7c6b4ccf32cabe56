//! The command line: flags, and what the commands share.

mod admin;
mod bench;
mod chat;
mod classify;
mod generate;
mod inventory;
mod sampling;

#[cfg(test)]
mod tests;

use std::{
    io::{self, Write as _},
    path::PathBuf,
    time::Duration,
};

use aerie_client::{Client, ClientCertificate, Code, Credentials, Error, Trust, TrustError};
use clap::{Parser, Subcommand};

const EXAMPLES: &str = "\
Examples:
  aerie generate 'Once upon a time'
  aerie chat --server quic://127.0.0.1:7447 --certificate aerie-data/tls/certificate.pem
  aerie chat --session 0b1c9a52-8f0e-4c3e-9d0f-1f6a2c7f9e11
  aerie classify picture.jpg
  aerie sessions ls
  aerie bench --rate 20 --duration 30 --tokens 64
  aerie admin tenants";

/// Talks to an Aerie server.
#[derive(Debug, Parser)]
#[command(name = "aerie", version, after_help = EXAMPLES, max_term_width = 100)]
pub(crate) struct Args {
    #[command(flatten)]
    server: ServerArgs,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Server")]
struct ServerArgs {
    /// Where the server is: grpc://HOST:PORT, grpcs://HOST:PORT or quic://HOST:PORT
    #[arg(
        long,
        global = true,
        value_name = "ADDRESS",
        env = "AERIE_SERVER",
        hide_env_values = true,
        default_value = "grpc://127.0.0.1:7447"
    )]
    server: String,

    /// Trust the certificates in this PEM file (grpcs://, quic://)
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "AERIE_CERTIFICATE",
        hide_env_values = true
    )]
    certificate: Option<PathBuf>,

    /// Trust the certificate with this SHA-256, which aerie-serve logs when it starts (grpcs://, quic://)
    #[arg(long, global = true, value_name = "HEX", conflicts_with = "certificate")]
    fingerprint: Option<String>,

    /// Trust whoever answers; for development only (grpcs://, quic://)
    #[arg(long, global = true, conflicts_with_all = ["certificate", "fingerprint"])]
    insecure: bool,

    /// Token to show, where the server asks for one; better in the environment than on a command line
    #[arg(long, global = true, value_name = "TOKEN", env = "AERIE_TOKEN", hide_env_values = true)]
    token: Option<String>,

    /// Certificate chain in PEM to show, where the server asks for one (grpcs://, quic://)
    #[arg(long, global = true, value_name = "FILE", requires = "client_key")]
    client_certificate: Option<PathBuf>,

    /// Private key of the client certificate, in PEM
    #[arg(long, global = true, value_name = "FILE", requires = "client_certificate")]
    client_key: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Stream text that follows a prompt
    Generate(generate::Args),
    /// Take turns with a model in one session, which the server keeps
    Chat(chat::Args),
    /// Tell what is on a picture
    Classify(classify::Args),
    /// List, show and remove the sessions that the server keeps
    #[command(subcommand)]
    Sessions(inventory::SessionsCommand),
    /// List what the server serves
    Models,
    /// Measure latency and throughput
    Bench(bench::Args),
    /// Tenants and sessions of all, for whoever runs the server
    Admin(admin::Args),
}

/// Runs the command.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let Args { server, command } = args;
    match command {
        Command::Generate(args) => generate::run(&server, args).await,
        Command::Chat(args) => chat::run(&server, args).await,
        Command::Classify(args) => classify::run(&server, args).await,
        Command::Sessions(command) => inventory::sessions(&server, command).await,
        Command::Models => inventory::models(&server).await,
        Command::Bench(args) => bench::run(&server, args).await,
        Command::Admin(args) => admin::run(&server, args).await,
    }
}

/// Tells on stderr what went wrong, and what to do about it.
pub(crate) fn explain(error: &anyhow::Error) {
    // A reader that has had enough, as `head` does, is no error.
    if error.downcast_ref().is_some_and(|it: &io::Error| it.kind() == io::ErrorKind::BrokenPipe) {
        return;
    }
    let mut stderr = io::stderr().lock();
    let _ = writeln!(stderr, "error: {error:#}");
    if let Some(hint) = error.downcast_ref().and_then(hint) {
        let _ = writeln!(stderr, "hint: {hint}");
    }
}

impl ServerArgs {
    async fn connect(&self) -> Result<Client, Error> {
        Client::connect_as(&self.server, &self.trust()?, &self.credentials()).await
    }

    fn credentials(&self) -> Credentials {
        let certificate = self.client_certificate.clone().zip(self.client_key.clone());
        let certificate =
            certificate.map(|(certificate, key)| ClientCertificate { certificate, key });
        Credentials { token: self.token.clone(), certificate }
    }

    fn trust(&self) -> Result<Trust, TrustError> {
        Ok(match (&self.certificate, &self.fingerprint) {
            (Some(path), _) => Trust::Certificate(path.clone()),
            (None, Some(fingerprint)) => Trust::Fingerprint(fingerprint.parse()?),
            (None, None) if self.insecure => Trust::Insecure,
            (None, None) => Trust::Nobody,
        })
    }
}

/// What a user can do about an error.
fn hint(error: &Error) -> Option<String> {
    let hint = match error {
        Error::Trust(TrustError::Nobody) => {
            "pass --certificate DATA/tls/certificate.pem with the server's data folder, \
             --fingerprint with what aerie-serve logs when it starts, or --insecure"
        }
        Error::Unreachable { reason, .. } if reason.contains("certificate") => {
            "the server's certificate is not the one you trust; aerie-serve logs the fingerprint \
             of its own when it starts"
        }
        Error::Unreachable { .. } => {
            "is it running? start one with: aerie-serve --model models/bundles/tales"
        }
        Error::Interrupted { .. } => "a session that is kept is not lost; see: aerie sessions ls",
        Error::Rejected { retry_after: Some(delay), .. } => {
            return Some(format!("try again in {}", Seconds(*delay)));
        }
        Error::Rejected { code: Code::Unauthenticated, .. } => {
            "pass --token, or set AERIE_TOKEN; whoever runs the server makes one with: aerie-serve token NAME"
        }
        Error::Rejected { code: Code::PermissionDenied, reason, .. } if reason == "NOT_ADMIN" => {
            "the token's tenant needs admin = true in the server's tenants' file"
        }
        Error::Rejected { code: Code::NotFound, .. } => {
            "what there is: aerie models, aerie sessions ls"
        }
        Error::Rejected { code: Code::FailedPrecondition, .. } => {
            "where the session stands: aerie sessions show ID"
        }
        _ => return None,
    };
    Some(hint.to_owned())
}

/// A duration for people: three digits and a unit.
struct Seconds(Duration);

impl std::fmt::Display for Seconds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let seconds = self.0.as_secs_f64();
        let (value, unit) = match seconds {
            s if 1.0 <= s => (s, "s"),
            s if 1e-3 <= s => (s * 1e3, "ms"),
            s => (s * 1e6, "us"),
        };
        let decimals = match value {
            v if 100.0 <= v => 0,
            v if 10.0 <= v => 1,
            _ => 2,
        };
        write!(f, "{value:.decimals$} {unit}")
    }
}
