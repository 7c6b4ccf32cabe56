//! Who is let in: limits of connections and handshakes, and when an address has to be proved.

#[cfg(test)]
mod tests;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use quinn::{Connection, ConnectionError, Incoming};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::debug;

use super::{Config, handshake::Handshake};
use crate::telemetry::metrics::QuicMetrics;

/// Decides about everyone who comes.
#[derive(Debug)]
pub(super) struct Door {
    limits: Limits,
    handshake_time_max: Duration,
    /// One permit for each handshake that may be under way.
    handshakes: Arc<Semaphore>,
    metrics: QuicMetrics,
}

/// Somebody who was let in and has not been answered yet.
#[derive(Debug)]
pub(super) struct Visit {
    incoming: Incoming,
    handshake_time_max: Duration,
    attempt: Attempt,
}

/// A handshake that has its place; gives it back and is counted when it is dropped.
#[derive(Debug)]
pub(super) struct Attempt {
    _permit: OwnedSemaphorePermit,
    metrics: QuicMetrics,
    /// What it is counted as.
    pub(super) result: &'static str,
}

#[derive(Clone, Copy, Debug)]
struct Limits {
    connections_max: usize,
    handshakes_max: usize,
}

/// Who is there already. A handshake is a connection, too.
#[derive(Clone, Copy, Debug)]
struct Crowd {
    connections: usize,
    handshakes: usize,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Verdict {
    Accept,
    /// Stays without an answer. Its client takes that for a loss and tries again, a little later
    /// each time.
    Ignore,
    Refuse,
    /// May come back with a token that only the owner of its address gets; until then nothing is
    /// kept of it (RFC 9000 §8.1.2).
    Retry,
}

impl Door {
    pub(super) fn new(config: &Config, metrics: QuicMetrics) -> Self {
        let limits = Limits {
            connections_max: config.connections_max as usize,
            handshakes_max: config.handshakes_max as usize,
        };
        Self {
            limits,
            handshake_time_max: Duration::from_millis(config.handshake_ms_max.into()),
            handshakes: Arc::new(Semaphore::new(limits.handshakes_max)),
            metrics,
        }
    }

    /// Lets `incoming` in, or answers it with something else.
    pub(super) fn admit(&self, incoming: Incoming, connections: usize) -> Option<Visit> {
        let handshakes = self.limits.handshakes_max - self.handshakes.available_permits();
        let crowd = Crowd { connections, handshakes };
        let verdict = self.limits.verdict(crowd, incoming.remote_address_validated());
        match (verdict, Arc::clone(&self.handshakes).try_acquire_owned()) {
            (Verdict::Accept, Ok(permit)) => {
                let (metrics, handshake_time_max) = (self.metrics.clone(), self.handshake_time_max);
                let attempt = Attempt { _permit: permit, metrics, result: "failed" };
                Some(Visit { incoming, handshake_time_max, attempt })
            }
            (Verdict::Accept | Verdict::Ignore, _) => {
                self.count("ignored");
                incoming.ignore();
                None
            }
            (Verdict::Refuse, _) => {
                debug!(?crowd, "connection refused");
                self.count("refused");
                incoming.refuse();
                None
            }
            (Verdict::Retry, _) => {
                self.count("retried");
                incoming.retry().expect("an address that is not proved may be asked to be");
                None
            }
        }
    }

    fn count(&self, result: &'static str) {
        self.metrics.handshakes.with_label_values(&[result]).inc();
    }
}

impl Visit {
    pub(super) fn remote_address(&self) -> SocketAddr {
        self.incoming.remote_address()
    }

    /// Answers: the connection can be used for early data already.
    pub(super) fn begin(self) -> Result<(Connection, Handshake), ConnectionError> {
        let Self { incoming, handshake_time_max, attempt } = self;
        let Ok((connection, completed)) = incoming.accept()?.into_0rtt() else {
            unreachable!("a server can always use a connection early");
        };
        Ok((connection, Handshake::new(completed, handshake_time_max, attempt)))
    }
}

impl Limits {
    fn verdict(self, crowd: Crowd, is_validated: bool) -> Verdict {
        let Self { connections_max, handshakes_max } = self;
        if connections_max <= crowd.connections {
            return Verdict::Refuse;
        }
        let is_crowded = connections_max / 2 <= crowd.connections
            || handshakes_max.div_ceil(2) <= crowd.handshakes;
        if is_crowded && !is_validated {
            return Verdict::Retry;
        }
        if handshakes_max <= crowd.handshakes {
            return Verdict::Ignore;
        }
        Verdict::Accept
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        self.metrics.handshakes.with_label_values(&[self.result]).inc();
    }
}
