//! The server's configuration: one structure per subsystem, the whole their product.

#[cfg(test)]
mod tests;

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{
    admin, admission, auth, batcher,
    device::DeviceSpec,
    oip, pipe, request, scheduler, sessions,
    telemetry::http,
    tls,
    transport::{grpc, oip::rest, quic},
};

/// A configuration file is a few kilobytes; what is larger is not one.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// What `aerie-serve` is told, by file and flags.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Bundles to serve.
    pub models: Vec<PathBuf>,
    /// One worker for each, and for each model.
    pub devices: Vec<DeviceSpec>,
    /// Where session caches and generated certificates are kept.
    pub data_dir: PathBuf,
    /// At shutdown, how long running generations may take to finish before they are parked.
    pub drain_grace_ms: u32,
    pub grpc: grpc::Config,
    pub quic: quic::Config,
    pub http: http::Config,
    pub rest: rest::Config,
    pub admin: admin::Config,
    pub tls: tls::Config,
    pub auth: auth::Config,
    pub admission: admission::Config,
    pub request: request::Config,
    pub pipe: pipe::Config,
    pub oip: oip::Config,
    pub scheduler: scheduler::Config,
    pub batcher: batcher::Config,
    pub sessions: sessions::Config,
}

/// Why a file is no [`Config`].
#[derive(Debug, Error)]
pub enum ConfigError {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{}: {found_bytes} bytes, but a configuration has at most {max_bytes}", path.display())]
    TooLarge { path: PathBuf, found_bytes: u64, max_bytes: u64 },
    /// The source tells the line and the field.
    #[error("{}: {source}", path.display())]
    Parse { path: PathBuf, source: Box<toml::de::Error> },
}

impl Config {
    /// Reads a file; what it does not tell keeps its default.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn open(path: &Path) -> Result<Self, ConfigError> {
        let io_error = |source| ConfigError::Io { path: path.to_owned(), source };
        let found_bytes = fs::metadata(path).map_err(io_error)?.len();
        if FILE_BYTES_MAX < found_bytes {
            let max_bytes = FILE_BYTES_MAX;
            return Err(ConfigError::TooLarge { path: path.to_owned(), found_bytes, max_bytes });
        }
        let text = fs::read_to_string(path).map_err(io_error)?;
        toml::from_str(&text).map_err(|source| {
            let (path, source) = (path.to_owned(), Box::new(source));
            ConfigError::Parse { path, source }
        })
    }

    /// The whole configuration in TOML.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("every field has a form in TOML")
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            models: Vec::new(),
            devices: vec![DeviceSpec::default()],
            data_dir: PathBuf::from("aerie-data"),
            drain_grace_ms: 5_000,
            grpc: grpc::Config::default(),
            quic: quic::Config::default(),
            http: http::Config::default(),
            rest: rest::Config::default(),
            admin: admin::Config::default(),
            tls: tls::Config::default(),
            auth: auth::Config::default(),
            admission: admission::Config::default(),
            request: request::Config::default(),
            pipe: pipe::Config::default(),
            oip: oip::Config::default(),
            scheduler: scheduler::Config::default(),
            batcher: batcher::Config::default(),
            sessions: sessions::Config::default(),
        }
    }
}
