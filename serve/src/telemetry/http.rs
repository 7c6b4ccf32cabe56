//! HTTP for those who watch: `/metrics`, `/healthz` and `/readyz`.

use std::{io, net::SocketAddr};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tracing::{error, info};

use super::metrics::CONTENT_TYPE;
use crate::{
    server::{Listener, Shutdown},
    service::{Readiness, Service},
};

/// Where the HTTP endpoint is.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where to listen (TCP); port 0 lets the system choose.
    pub listen: SocketAddr,
}

/// Opens the port and serves until `shutdown`, which is to come after the drain: `/readyz` tells of
/// that meanwhile.
///
/// # Errors
/// If the port cannot be had.
pub async fn listen(
    config: &Config,
    service: Service,
    mut shutdown: Shutdown,
) -> io::Result<Listener> {
    let listener = TcpListener::bind(config.listen).await?;
    let addr = listener.local_addr()?;
    info!(address = %format_args!("http://{addr}"), "listening");
    let stopped = async move {
        // An error means that nobody is left to tell.
        let _ = shutdown.wait_for(|stop| *stop).await;
    };
    let server = axum::serve(listener, router(service)).with_graceful_shutdown(stopped);
    let task = tokio::spawn(async move {
        if let Err(error) = server.await {
            error!(%error, "http listener broke");
        }
    });
    Ok(Listener { addr, task })
}

fn router(service: Service) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(async || "alive\n"))
        .route("/readyz", get(readyz))
        .with_state(service)
}

async fn metrics(State(service): State<Service>) -> Response {
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], service.render_metrics()).into_response()
}

async fn readyz(State(service): State<Service>) -> Response {
    match *service.readiness().borrow() {
        Readiness::Starting => (StatusCode::SERVICE_UNAVAILABLE, "starting\n").into_response(),
        Readiness::Ready => "ready\n".into_response(),
        Readiness::Draining => (StatusCode::SERVICE_UNAVAILABLE, "draining\n").into_response(),
    }
}

impl Default for Config {
    fn default() -> Self {
        Self { listen: ([127, 0, 0, 1], 7448).into() }
    }
}
