//! TLS for gRPC: rustls beneath HTTP/2, with the trust that QUIC has.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::codegen::{Service, http::Uri};

/// What TLS peers agree on for HTTP/2 (RFC 9113 §3.2).
pub(super) const ALPN: &[u8] = b"h2";

/// Opens encrypted connections to one server.
pub(super) struct Connector {
    tls: TlsConnector,
    authority: String,
    name: ServerName<'static>,
}

impl Connector {
    /// None if `authority` has no name that a certificate could be for.
    pub(super) fn new(config: ClientConfig, authority: &str) -> Option<Self> {
        let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let name = ServerName::try_from(host.to_owned()).ok()?;
        let tls = TlsConnector::from(Arc::new(config));
        Some(Self { tls, authority: authority.to_owned(), name })
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let Self { tls, authority, name } = self;
        let (tls, authority, name) = (tls.clone(), authority.clone(), name.clone());
        Box::pin(async move {
            let stream = TcpStream::connect(authority).await?;
            stream.set_nodelay(true)?;
            Ok(TokioIo::new(tls.connect(name, stream).await?))
        })
    }
}
