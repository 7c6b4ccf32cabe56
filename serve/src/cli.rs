//! The command line of `aerie-serve`: flags over a file over defaults.

#[cfg(test)]
mod tests;

use std::{fs, net::SocketAddr, path::PathBuf};

use anyhow::{Context as _, bail};
use clap::Parser;
use tracing_subscriber::EnvFilter;

use crate::{config::Config, device::DeviceSpec, server::Server, sessions::Durability};

const EXAMPLES: &str = "\
Examples:
  Serve the bundled model to this machine:
    aerie-serve --model models/bundles/tales
    aerie generate 'Once upon a time'

  Two devices of one core each, to the whole network, states in /var/lib/aerie:
    aerie-serve --model models/bundles/tales --device cpu:0 --device cpu:1 \\
        --grpc 0.0.0.0:7447 --quic 0.0.0.0:7447 --data /var/lib/aerie

  See every setting with its value, keep them in a file, go on from there:
    aerie-serve --model models/bundles/tales --print-config > aerie.toml
    aerie-serve --config aerie.toml

  Watch it:
    curl http://127.0.0.1:7448/metrics

SIGTERM and SIGINT (ctrl-c) drain: running generations get a moment to finish, all sessions are
parked, and the next start goes on with them. A second signal exits at once.";

/// Serves recurrent models over gRPC and QUIC.
///
/// Sessions are states of a fixed size: they are batched while they run, parked on disk while they
/// are idle, and resumed where they were, also after a restart.
#[derive(Debug, Parser)]
#[command(name = "aerie-serve", version, after_long_help = EXAMPLES, max_term_width = 100)]
pub struct Args {
    /// Bundle to serve, as aerie-export writes it; may be repeated
    #[arg(long = "model", value_name = "DIR")]
    models: Vec<PathBuf>,

    /// Where to run: cpu, cpu:CORE or cpu:FIRST-LAST; each has a worker of its own [default: cpu]
    #[arg(long = "device", value_name = "DEVICE")]
    devices: Vec<DeviceSpec>,

    /// Folder of parked sessions and of the generated certificate [default: aerie-data]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,

    /// Settings in TOML; flags win over it
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Where gRPC listens, in plaintext; port 0 takes a free one [default: 127.0.0.1:7447]
    #[arg(long, value_name = "ADDRESS", help_heading = "Listeners")]
    grpc: Option<SocketAddr>,

    /// Where QUIC listens, always encrypted [default: 127.0.0.1:7447]
    #[arg(long, value_name = "ADDRESS", help_heading = "Listeners")]
    quic: Option<SocketAddr>,

    /// Where /metrics, /healthz and /readyz are [default: 127.0.0.1:7448]
    #[arg(long, value_name = "ADDRESS", help_heading = "Listeners")]
    http: Option<SocketAddr>,

    /// Certificate chain in PEM; without it one is generated in the data folder
    #[arg(long, value_name = "FILE", requires = "key", help_heading = "Listeners")]
    certificate: Option<PathBuf>,

    /// Private key of the certificate, in PEM
    #[arg(long, value_name = "FILE", requires = "certificate", help_heading = "Listeners")]
    key: Option<PathBuf>,

    /// Write the addresses to this file, one URL a line, once the server is ready
    #[arg(long, value_name = "FILE", help_heading = "Listeners")]
    addresses: Option<PathBuf>,

    /// Generations that run at once on each device; more wait
    #[arg(long, value_name = "N", help_heading = "Limits")]
    lanes_max: Option<u32>,

    /// Tokens in one step, prompts and live streams together; more than lanes-max
    #[arg(long, value_name = "N", help_heading = "Limits")]
    step_tokens_max: Option<u32>,

    /// Sessions kept on each device; beyond it the least recently used is forgotten
    #[arg(long, value_name = "N", help_heading = "Limits")]
    sessions_max: Option<u32>,

    /// Generations in flight, waiting ones included; one more is refused
    #[arg(long, value_name = "N", help_heading = "Limits")]
    requests_max: Option<u32>,

    /// What a token that was shown survives: fast, the server's end; durable, a loss of power
    #[arg(long, value_name = "MODE", hide_possible_values = true, help_heading = "Limits")]
    durability: Option<Durability>,

    /// Print the settings that would be used, in TOML, and exit
    #[arg(long)]
    print_config: bool,

    /// What to log to stderr: error, warn, info, debug, trace, or a list like info,aerie_serve=debug
    #[arg(long, value_name = "FILTER", default_value = "info")]
    log: String,
}

impl Args {
    /// Whether to print the settings instead of serving.
    pub fn prints_config(&self) -> bool {
        self.print_config
    }

    /// The defaults, overridden by the file, overridden by flags.
    ///
    /// # Errors
    /// If the file cannot be read or two settings contradict each other.
    pub fn config(&self) -> anyhow::Result<Config> {
        let mut config = match &self.config {
            Some(path) => Config::open(path)?,
            None => Config::default(),
        };
        if !self.models.is_empty() {
            config.models.clone_from(&self.models);
        }
        if !self.devices.is_empty() {
            config.devices.clone_from(&self.devices);
        }
        if self.certificate.is_some() {
            config.tls.certificate.clone_from(&self.certificate);
            config.tls.key.clone_from(&self.key);
        }
        override_with(&mut config.data_dir, self.data.as_ref());
        override_with(&mut config.grpc.listen, self.grpc.as_ref());
        override_with(&mut config.quic.listen, self.quic.as_ref());
        override_with(&mut config.http.listen, self.http.as_ref());
        override_with(&mut config.scheduler.lanes_max, self.lanes_max.as_ref());
        override_with(&mut config.scheduler.step_tokens_max, self.step_tokens_max.as_ref());
        override_with(&mut config.sessions.sessions_max, self.sessions_max.as_ref());
        override_with(&mut config.sessions.durability, self.durability.as_ref());
        override_with(&mut config.admission.requests_max, self.requests_max.as_ref());
        coherent(config)
    }

    /// Sends events to stderr, in colour if it is a terminal.
    ///
    /// # Errors
    /// If `--log` is not a filter.
    pub fn start_logging(&self) -> anyhow::Result<()> {
        let filter = EnvFilter::try_new(&self.log)
            .with_context(|| format!("--log {:?} is not a filter", self.log))?;
        let is_terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
        tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(std::io::stderr)
            .with_ansi(is_terminal)
            .with_target(false)
            .init();
        Ok(())
    }

    /// Tells the world where `server` listens, if `--addresses` asks for it.
    ///
    /// # Errors
    /// If the file cannot be written. It appears at once, with all its lines.
    pub fn write_addresses(&self, server: &Server) -> anyhow::Result<()> {
        let Some(path) = &self.addresses else { return Ok(()) };
        let (grpc, quic, http) = (server.grpc_addr(), server.quic_addr(), server.http_addr());
        let new = path.with_added_extension("new");
        fs::write(&new, format!("grpc://{grpc}\nquic://{quic}\nhttp://{http}\n"))
            .and_then(|()| fs::rename(&new, path))
            .with_context(|| format!("--addresses {}", path.display()))
    }
}

fn override_with<T: Clone>(setting: &mut T, flag: Option<&T>) {
    if let Some(flag) = flag {
        setting.clone_from(flag);
    }
}

/// Passes on a configuration whose settings agree with each other.
fn coherent(config: Config) -> anyhow::Result<Config> {
    let (lanes_max, step_tokens_max) =
        (config.scheduler.lanes_max, config.scheduler.step_tokens_max);
    if lanes_max == 0 {
        bail!("scheduler.lanes_max = 0: no generation could run");
    }
    if step_tokens_max <= lanes_max {
        bail!(
            "scheduler.step_tokens_max = {step_tokens_max} leaves prompts no room beside \
             scheduler.lanes_max = {lanes_max} streams; it must be more"
        );
    }
    if config.sessions.sessions_max == 0 {
        bail!("sessions.sessions_max = 0: no generation could have a session");
    }
    if config.admission.requests_max == 0 {
        bail!("admission.requests_max = 0: every generation would be refused");
    }
    Ok(config)
}
