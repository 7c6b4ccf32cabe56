//! The command line of `aerie-serve`: flags over a file over defaults.

#[cfg(test)]
mod tests;

use std::{fs, net::SocketAddr, path::PathBuf};

use anyhow::{Context as _, bail};
use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;

use crate::{
    auth::Token,
    config::Config,
    device::DeviceSpec,
    server::Server,
    sessions::{Durability, Name, Windows},
};

const EXAMPLES: &str = "\
Examples:
  Serve the bundled model to this machine:
    aerie-serve --model models/bundles/tales
    aerie generate 'Once upon a time'

  Serve a classifier beside it, to clients of KServe and Triton over HTTP too:
    aerie-serve --model models/bundles/tales --model models/bundles/pictures --rest 127.0.0.1:8000
    aerie classify docs/ship.jpg

  Two devices of one core each, to the whole network, states in /var/lib/aerie:
    aerie-serve --model models/bundles/tales --device cpu:0 --device cpu:1 \\
        --grpc 0.0.0.0:7447 --quic 0.0.0.0:7447 --data /var/lib/aerie

  See every setting with its value, keep them in a file, go on from there:
    aerie-serve --model models/bundles/tales --print-config > aerie.toml
    aerie-serve --config aerie.toml

  Over a network, to who has a token:
    aerie-serve token tales >> tokens.toml
    aerie-serve --model models/bundles/tales --grpc 0.0.0.0:7447 --grpc-tls --tokens tokens.toml

  Let tenants be listed anew, or have the server drain, from this machine alone:
    aerie-serve --model models/bundles/tales --tokens tokens.toml --admin-listen 7449
    aerie admin reload

  Watch it:
    curl http://127.0.0.1:7448/metrics

SIGTERM and SIGINT (ctrl-c) drain: running generations get a moment to finish, all sessions are
parked, and the next start goes on with them. A second signal exits at once.";

/// Serves recurrent models, and classifiers beside them, over gRPC, QUIC and HTTP.
///
/// Sessions are states of a fixed size: they are batched while they run, parked on disk while they
/// are idle, and resumed where they were, also after a restart. Pictures are classified in batches of
/// whoever asks at once.
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

    /// Where gRPC listens, in plaintext without --grpc-tls; port 0 takes a free one [default: 127.0.0.1:7447]
    #[arg(long, value_name = "ADDRESS", help_heading = "Listeners")]
    grpc: Option<SocketAddr>,

    /// Encrypt gRPC too, with the certificate that QUIC has
    #[arg(long, help_heading = "Listeners")]
    grpc_tls: bool,

    /// Where QUIC listens, always encrypted [default: 127.0.0.1:7447]
    #[arg(long, value_name = "ADDRESS", help_heading = "Listeners")]
    quic: Option<SocketAddr>,

    /// Speak the Open Inference Protocol over HTTP too, here; over gRPC it is spoken where gRPC is
    #[arg(long, value_name = "ADDRESS", help_heading = "Listeners")]
    rest: Option<SocketAddr>,

    /// Encrypt that too, with the certificate that QUIC has
    #[arg(long, help_heading = "Listeners")]
    rest_tls: bool,

    /// Where /metrics, /healthz and /readyz are [default: 127.0.0.1:7448]
    #[arg(long, value_name = "ADDRESS", help_heading = "Listeners")]
    http: Option<SocketAddr>,

    /// Where admins are listened to, on loopback if it is only a port; nowhere by default
    #[arg(long, value_name = "ADDRESS", value_parser = admin_address, help_heading = "Listeners")]
    admin_listen: Option<SocketAddr>,

    /// Certificate chain in PEM; without it one is generated in the data folder
    #[arg(long, value_name = "FILE", requires = "key", help_heading = "Listeners")]
    certificate: Option<PathBuf>,

    /// Private key of the certificate, in PEM
    #[arg(long, value_name = "FILE", requires = "certificate", help_heading = "Listeners")]
    key: Option<PathBuf>,

    /// Refuse clients without a certificate that is signed by one in this PEM file; needs --grpc-tls
    #[arg(long, value_name = "FILE", help_heading = "Who may call")]
    client_ca: Option<PathBuf>,

    /// Refuse calls without a token, or certificate, of a tenant in this TOML file; see aerie-serve token. SIGHUP has it
    /// read again
    #[arg(long, value_name = "FILE", help_heading = "Who may call")]
    tokens: Option<PathBuf>,

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

    /// Attention windows of parked sessions: exact, bit for bit; q8, a quarter of the bytes, but rounded
    #[arg(long, value_name = "MODE", hide_possible_values = true, help_heading = "Limits")]
    parked_windows: Option<Windows>,

    /// Print the settings that would be used, in TOML, and exit
    #[arg(long)]
    print_config: bool,

    /// What to log to stderr: error, warn, info, debug, trace, or a list like info,aerie_serve=debug
    #[arg(long, value_name = "FILTER", default_value = "info")]
    log: String,

    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a token for a tenant: the token, and the lines of a tokens file that know it
    ///
    /// Quotas may follow those lines: sessions_max = N, generations_max = N.
    Token {
        /// Letters, digits, `-`, `_` and `.`
        name: String,
    },
}

impl Args {
    /// Whether to print the settings instead of serving.
    pub fn prints_config(&self) -> bool {
        self.print_config
    }

    /// What to print instead of serving: a new token, if one is asked for.
    ///
    /// # Errors
    /// If the tenant's name is none.
    pub fn new_token(&self) -> anyhow::Result<Option<String>> {
        let Some(Command::Token { name }) = &self.command else { return Ok(None) };
        let tenant = Name::parse(name).with_context(|| format!("the name {name:?}"))?;
        let token = Token::random();
        let (token, lines) = (token.as_str(), token.to_toml(&tenant));
        Ok(Some(format!("# The token, which is kept nowhere else: {token}\n{lines}")))
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
        if self.client_ca.is_some() {
            config.tls.client_ca.clone_from(&self.client_ca);
        }
        if self.tokens.is_some() {
            config.auth.tokens_file.clone_from(&self.tokens);
        }
        config.grpc.tls |= self.grpc_tls;
        config.rest.tls |= self.rest_tls;
        config.admin.listen = self.admin_listen.or(config.admin.listen);
        override_with(&mut config.data_dir, self.data.as_ref());
        override_with(&mut config.grpc.listen, self.grpc.as_ref());
        override_with(&mut config.quic.listen, self.quic.as_ref());
        override_with(&mut config.http.listen, self.http.as_ref());
        config.rest.listen = self.rest.or(config.rest.listen);
        override_with(&mut config.scheduler.lanes_max, self.lanes_max.as_ref());
        override_with(&mut config.scheduler.step_tokens_max, self.step_tokens_max.as_ref());
        override_with(&mut config.sessions.sessions_max, self.sessions_max.as_ref());
        override_with(&mut config.sessions.durability, self.durability.as_ref());
        override_with(&mut config.sessions.parked_windows, self.parked_windows.as_ref());
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
        let scheme = server.grpc_scheme();
        let (grpc, quic, http) = (server.grpc_addr(), server.quic_addr(), server.http_addr());
        let new = path.with_added_extension("new");
        let mut lines = format!("{scheme}://{grpc}\nquic://{quic}\nhttp://{http}\n");
        if let Some(rest) = server.rest_addr() {
            lines.push_str(&format!("{}://{rest}/v2\n", server.rest_scheme()));
        }
        if let Some(admin) = server.admin_addr() {
            lines.push_str(&format!("admin+{scheme}://{admin}\n"));
        }
        fs::write(&new, lines)
            .and_then(|()| fs::rename(&new, path))
            .with_context(|| format!("--addresses {}", path.display()))
    }
}

/// An address, or a port of this machine.
fn admin_address(text: &str) -> Result<SocketAddr, std::net::AddrParseError> {
    match text.parse::<u16>() {
        Ok(port) => Ok((std::net::Ipv4Addr::LOCALHOST, port).into()),
        Err(_) => text.parse(),
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
    let (rows_max, queue_rows_max) = (config.batcher.rows_max, config.batcher.queue_rows_max);
    if rows_max == 0 || queue_rows_max < rows_max {
        bail!(
            "batcher.rows_max = {rows_max} and batcher.queue_rows_max = {queue_rows_max}: a batch must \
             have rows, and as many must be able to wait"
        );
    }
    if config.sessions.sessions_max == 0 {
        bail!("sessions.sessions_max = 0: no generation could have a session");
    }
    let listen = config.grpc.listen;
    if config.auth.tokens_file.is_some() && !config.grpc.tls && !listen.ip().is_loopback() {
        bail!(
            "grpc.tls = false: with auth.tokens_file, tokens would cross the network in plaintext to \
             grpc.listen = {listen}; encrypt gRPC, or have it listen on a loopback address"
        );
    }
    if let Some(listen) = config.admin.listen.filter(|it| !it.ip().is_loopback()) {
        if config.auth.tokens_file.is_none() {
            bail!(
                "admin.listen = {listen}: without auth.tokens_file, everybody would be an admin; have it listen on a \
                 loopback address, or list an admin"
            );
        }
        if !config.grpc.tls {
            bail!(
                "admin.listen = {listen}: tokens would cross the network in plaintext; set grpc.tls"
            );
        }
    }
    if config.tls.client_ca.is_some() && !config.grpc.tls {
        bail!("grpc.tls = false: gRPC would ask nobody for the certificate of tls.client_ca");
    }
    if config.grpc.connections_max == 0 || config.rest.connections_max == 0 {
        bail!("grpc.connections_max = 0 or rest.connections_max = 0: nobody would be let in");
    }
    if let Some(listen) = config.rest.listen
        && !config.rest.tls
    {
        if config.auth.tokens_file.is_some() && !listen.ip().is_loopback() {
            bail!(
                "rest.tls = false: with auth.tokens_file, tokens would cross the network in plaintext to \
                 rest.listen = {listen}; encrypt it, or have it listen on a loopback address"
            );
        }
        if config.tls.client_ca.is_some() {
            bail!("rest.tls = false: HTTP would ask nobody for the certificate of tls.client_ca");
        }
    }
    if config.admission.requests_max == 0 {
        bail!("admission.requests_max = 0: every generation would be refused");
    }
    Ok(config)
}
