//! Who gets a connection: as many at once as there is room for, those that shake hands in time.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;
use tracing::{debug, warn};

use super::stopped;
use crate::{server::Shutdown, tls::PeerCertificate};

/// Connections on their way from the door to those who serve them.
const HANDED_MAX: usize = 16;
/// How long the door stays shut when the system has no socket to give.
const BREATHER: Duration = Duration::from_millis(50);

/// Limits of a [`Door`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub connections_max: u32,
    pub handshake_ms_max: u32,
}

/// Lets connections in.
pub(in crate::transport) struct Door {
    listener: TcpListener,
    /// None for plaintext.
    tls: Option<TlsAcceptor>,
    handshake_max: Duration,
    room: Arc<Semaphore>,
}

/// A connection; its place is given back when it is dropped.
#[derive(Debug)]
pub(in crate::transport) struct Socket {
    stream: Stream,
    _place: OwnedSemaphorePermit,
}

#[derive(Debug)]
enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Door {
    pub(in crate::transport) fn new(
        limits: Limits,
        listener: TcpListener,
        tls: Option<rustls::ServerConfig>,
    ) -> Self {
        Self {
            listener,
            tls: tls.map(|it| TlsAcceptor::from(Arc::new(it))),
            handshake_max: Duration::from_millis(limits.handshake_ms_max.into()),
            room: Arc::new(Semaphore::new(limits.connections_max as usize)),
        }
    }

    /// Lets connections in until `shutdown`, or until nobody takes them any more.
    pub(in crate::transport) fn open(
        self,
        shutdown: Shutdown,
    ) -> ReceiverStream<io::Result<Socket>> {
        let (sockets, incoming) = mpsc::channel(HANDED_MAX);
        tokio::spawn(async move {
            tokio::select! {
                () = stopped(&shutdown) => {}
                () = sockets.closed() => {}
                () = self.accept(&sockets) => {}
            }
            // Whoever connects now is refused. The stream goes on without them: its end would cut short what the server
            // does at a shutdown.
            drop(self);
            sockets.closed().await;
        });
        ReceiverStream::new(incoming)
    }

    /// Handshakes are made side by side, and end with this.
    async fn accept(&self, sockets: &mpsc::Sender<io::Result<Socket>>) {
        let mut handshakes = JoinSet::new();
        loop {
            let (stream, remote) = tokio::select! {
                Some(_) = handshakes.join_next() => continue,
                accepted = self.listener.accept() => match accepted {
                    Ok(accepted) => accepted,
                    Err(error) => {
                        warn!(%error, "no connection could be accepted");
                        sleep(BREATHER).await;
                        continue;
                    }
                },
            };
            let Ok(place) = Arc::clone(&self.room).try_acquire_owned() else {
                debug!(%remote, "refused, as there are connections_max");
                continue;
            };
            let (tls, max, sockets) = (self.tls.clone(), self.handshake_max, sockets.clone());
            handshakes.spawn(async move {
                match timeout(max, handshake(tls, stream)).await {
                    // Whoever takes them is shutting down if it does not.
                    Ok(Ok(stream)) => {
                        drop(sockets.send(Ok(Socket { stream, _place: place })).await)
                    }
                    Ok(Err(error)) => debug!(%remote, %error, "handshake failed"),
                    Err(_) => debug!(%remote, "handshake took too long"),
                }
            });
        }
    }
}

async fn handshake(tls: Option<TlsAcceptor>, stream: TcpStream) -> io::Result<Stream> {
    stream.set_nodelay(true)?;
    match tls {
        None => Ok(Stream::Plain(stream)),
        Some(tls) => Ok(Stream::Tls(Box::new(tls.accept(stream).await?))),
    }
}

/// Whoever is at the other end, as far as TLS has verified that.
#[derive(Clone, Debug)]
pub(in crate::transport) struct Peer(pub Option<Arc<PeerCertificate>>);

impl Connected for Socket {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        let chain = match &self.stream {
            Stream::Plain(_) => None,
            Stream::Tls(stream) => stream.get_ref().1.peer_certificates(),
        };
        Peer(chain.and_then(PeerCertificate::first).map(Arc::new))
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
            Stream::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Stream::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bytes),
            Stream::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bytes),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.stream {
            Stream::Plain(stream) => stream.is_write_vectored(),
            Stream::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
