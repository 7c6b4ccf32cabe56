//! One connection: how it comes about, whether its handshake has ended, what keeps it alive.

#[cfg(test)]
mod tests;

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use aerie_proto::KEEP_ALIVE;
use quinn::{ClientConfig, Endpoint, VarInt, ZeroRttAccepted};
use tokio::{
    net::lookup_host,
    sync::{Mutex, watch},
    task::JoinSet,
    time::{Instant, sleep, timeout, timeout_at},
};

use super::{RECEIVE_WINDOW, interrupted};
use crate::{Error, client::CONNECT_TIMEOUT};

/// How long the server may take to hear that the client has left.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// What a connection is closed with: the client wants nothing more.
const CLOSE_DONE: VarInt = VarInt::from_u32(0);

/// Where a server is, as it was given.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) address: String,
    pub(crate) authority: String,
}

#[derive(Debug)]
pub(super) struct Link {
    pub(super) connection: quinn::Connection,
    /// Drives the connection; lives as long as it.
    endpoint: Endpoint,
    address: String,
    handshake: Mutex<Handshake>,
    /// Calls that are open: those that were not answered, and calls that run.
    calls: watch::Sender<usize>,
    /// Ends with the link.
    _keeper: JoinSet<()>,
}

/// A call that is open; its connection is kept alive until it is dropped.
#[derive(Debug)]
pub(super) struct Open(Arc<Link>);

enum Handshake {
    /// The server was met before, so that calls may be sent already.
    Early {
        accepted: ZeroRttAccepted,
        deadline: Instant,
    },
    /// What was sent before its end has been read, or has not.
    Ended {
        early_was_read: bool,
    },
    Failed {
        reason: String,
    },
}

impl Link {
    /// Connects, or begins to if the server was met before: [`Self::established`] tells how it went.
    pub(super) async fn open(place: &Place, config: ClientConfig) -> Result<Arc<Self>, Error> {
        let Place { address, authority } = place;
        let unreachable = |reason: String| Error::Unreachable { address: address.clone(), reason };
        let remote = lookup_host(authority)
            .await
            .map_err(|error| unreachable(error.to_string()))?
            .next()
            .ok_or_else(|| unreachable("the name has no address".to_owned()))?;
        let local = unspecified(remote);
        let endpoint = Endpoint::client(local).map_err(|error| unreachable(error.to_string()))?;
        let host = authority.rsplit_once(':').map_or(authority.as_str(), |(host, _)| host);
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let connecting = endpoint
            .connect_with(config, remote, host)
            .map_err(|error| unreachable(error.to_string()))?;
        let (connection, handshake) = match connecting.into_0rtt() {
            Ok((connection, accepted)) => {
                let deadline = Instant::now() + CONNECT_TIMEOUT;
                (connection, Handshake::Early { accepted, deadline })
            }
            Err(connecting) => {
                let connection = timeout(CONNECT_TIMEOUT, connecting)
                    .await
                    .map_err(|_| unreachable(NOBODY.to_owned()))?
                    .map_err(|error| unreachable(error.to_string()))?;
                (connection, Handshake::Ended { early_was_read: true })
            }
        };
        let calls = watch::Sender::new(0);
        let mut keeper = JoinSet::new();
        keeper.spawn({
            let (connection, calls, mut window) =
                (connection.clone(), calls.clone(), RECEIVE_WINDOW);
            async move {
                keep_alive(calls, connection.closed(), || widen(&connection, &mut window)).await;
            }
        });
        let (address, handshake) = (address.clone(), Mutex::new(handshake));
        Ok(Arc::new(Self { connection, endpoint, address, handshake, calls, _keeper: keeper }))
    }

    /// Whether calls would be sent before the handshake has ended.
    pub(super) fn is_early(&self) -> bool {
        // It is locked by whoever waits for the end.
        self.handshake.try_lock().map_or(true, |it| matches!(*it, Handshake::Early { .. }))
    }

    /// Waits for the end of the handshake; tells whether what was sent before has been read.
    ///
    /// # Errors
    /// [`Error::Unreachable`] if it does not end well.
    pub(super) async fn established(&self) -> Result<bool, Error> {
        let mut handshake = self.handshake.lock().await;
        if let Handshake::Early { accepted, deadline } = &mut *handshake {
            let ended = timeout_at(*deadline, accepted).await;
            if ended.is_err() {
                self.connection.close(CLOSE_DONE, b"");
            }
            *handshake = match (ended, self.connection.close_reason()) {
                (Ok(early_was_read), None) => Handshake::Ended { early_was_read },
                (Ok(_), Some(reason)) => Handshake::Failed { reason: reason.to_string() },
                (Err(_), _) => Handshake::Failed { reason: NOBODY.to_owned() },
            };
        }
        match &*handshake {
            Handshake::Ended { early_was_read } => Ok(*early_was_read),
            Handshake::Failed { reason } => {
                let (address, reason) = (self.address.clone(), reason.clone());
                Err(Error::Unreachable { address, reason })
            }
            Handshake::Early { .. } => unreachable!("its end was waited for"),
        }
    }

    /// Keeps the connection alive as long as what is returned.
    pub(super) fn begin_call(self: &Arc<Self>) -> Open {
        self.calls.send_modify(|n| *n += 1);
        Open(Arc::clone(self))
    }

    /// Goes on from another port, and from whatever address this machine has now.
    pub(super) fn rebind(&self) -> Result<(), Error> {
        let local = unspecified(self.connection.remote_address());
        let socket = UdpSocket::bind(local).map_err(interrupted)?;
        self.endpoint.rebind(socket).map_err(interrupted)
    }

    pub(super) async fn close(&self) {
        self.connection.close(CLOSE_DONE, b"");
        // Whoever does not answer by then finds out by the silence.
        let _ = timeout(CLOSE_TIMEOUT, self.endpoint.wait_idle()).await;
    }
}

const NOBODY: &str = "nobody answers";

impl Drop for Open {
    fn drop(&mut self) {
        self.0.calls.send_modify(|n| *n -= 1);
    }
}

impl std::fmt::Debug for Handshake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Early { .. } => "Early",
            Self::Ended { .. } => "Ended",
            Self::Failed { .. } => "Failed",
        })
    }
}

/// Calls `speak` every now and then while a call is open. Ends with `closed`.
async fn keep_alive(calls: watch::Sender<usize>, closed: impl Future, mut speak: impl FnMut()) {
    let mut calls = calls.subscribe();
    let mut closed = pin!(closed);
    loop {
        tokio::select! {
            _ = &mut closed => return,
            _ = calls.wait_for(|n| 0 < *n) => {}
        }
        tokio::select! {
            _ = &mut closed => return,
            _ = calls.wait_for(|n| *n == 0) => {}
            () = sleep(KEEP_ALIVE) => speak(),
        }
    }
}

/// Has `connection` send something that the server acknowledges.
///
/// quinn would send PINGs, but either always or never, which is settled before the first call. A
/// window that grows by a byte is told to the server in a frame as small, which is acknowledged like
/// a PING and changes nothing else.
fn widen(connection: &quinn::Connection, window: &mut u32) {
    *window = window.saturating_add(1);
    connection.set_receive_window((*window).into());
}

/// Any address of this machine from which `remote` may be reached, and any port.
fn unspecified(remote: SocketAddr) -> SocketAddr {
    match remote {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    }
}
