//! Starting and stopping the whole: bundles, caches, workers, listeners.
//!
//! A transport is a function from its part of the configuration and a [`Service`] to a
//! [`Listener`]; it stops accepting and winds up its calls when its [`Shutdown`] says so.

use std::{net::SocketAddr, path::PathBuf};

use aerie_models::BundleError;
use thiserror::Error;
use tokio::{sync::watch, task::JoinHandle};

use crate::{config::Config, service::Service, text::TokenizerError};

/// A running server.
#[derive(Debug)]
pub struct Server {
    service: Service,
    grpc: Listener,
    quic: Listener,
    http: Listener,
}

/// A transport that runs: where it listens, and the task that ends once it has shut down.
#[derive(Debug)]
pub struct Listener {
    pub addr: SocketAddr,
    pub task: JoinHandle<()>,
}

/// Becomes true when transports are to stop.
pub type Shutdown = watch::Receiver<bool>;

/// Why a server does not start.
#[derive(Debug, Error)]
pub enum StartError {
    #[error("no model is given; name a bundle with --model DIR")]
    NoModel,
    #[error("bundle {}: {source}", path.display())]
    Bundle { path: PathBuf, source: BundleError },
    #[error("bundle {}: {source}", path.display())]
    Tokenizer { path: PathBuf, source: TokenizerError },
    #[error("two bundles have the name {name:?}")]
    DuplicateModel { name: String },
    #[error("{what} on {addr}: {source}")]
    Listen { what: &'static str, addr: SocketAddr, source: std::io::Error },
    #[error("{0}")]
    Tls(String),
}

impl Server {
    /// Loads the bundles, recovers sessions, spawns workers and listeners.
    ///
    /// # Errors
    /// See [`StartError`]; what had been started is stopped again.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        let _ = config;
        Err(StartError::NoModel)
    }

    pub fn grpc_addr(&self) -> SocketAddr {
        self.grpc.addr
    }

    pub fn quic_addr(&self) -> SocketAddr {
        self.quic.addr
    }

    pub fn http_addr(&self) -> SocketAddr {
        self.http.addr
    }

    pub fn service(&self) -> &Service {
        &self.service
    }

    /// Stops accepting, lets generations finish or parks their sessions, flushes, joins everything.
    pub async fn drain(self) {}
}
