//! One thread per device and model: the owner of its sessions, states and steps.

#[cfg(test)]
mod tests;

use std::time::{Duration, Instant, SystemTime};

use tokio::sync::oneshot;

use crate::{
    admission::{Permit, Reject},
    pipe::Pipe,
    request::Request,
    router::{Load, Residence},
    sessions::SessionId,
};

/// What the async side tells a worker.
#[derive(Debug)]
pub enum Event {
    Open(Box<Submission>),
    Delete { id: SessionId, reply: oneshot::Sender<Result<(), Reject>> },
    /// Finish what runs until `deadline`, park everything, end.
    Drain { deadline: Instant },
}

/// A generation on its way to a worker.
#[derive(Debug)]
pub struct Submission {
    pub id: SessionId,
    pub request: Request,
    pub pipe: Pipe,
    pub permit: Permit,
    pub load: Load,
    pub arrived: Instant,
}

/// What a worker tells the directory.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Notice {
    Session { id: SessionId, position: u64, residence: Residence, used_at: u64 },
    Gone { id: SessionId },
}

/// Ties the monotonic clock to the time of day, which is what the state cache keeps.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    started: Instant,
    started_unix_ms: u64,
}

impl Clock {
    /// Reads both clocks, once.
    #[expect(clippy::disallowed_methods, reason = "one of the two places that read the clock")]
    pub fn start() -> Self {
        let since_epoch = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        let started_unix_ms = u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX);
        Self { started: Instant::now(), started_unix_ms }
    }

    /// The monotonic clock.
    #[expect(clippy::disallowed_methods, reason = "one of the two places that read the clock")]
    pub fn now(&self) -> Instant {
        Instant::now()
    }

    /// Milliseconds since 1970 at `now`; never goes back while the server runs.
    pub fn unix_ms(&self, now: Instant) -> u64 {
        let elapsed: Duration = now.saturating_duration_since(self.started);
        self.started_unix_ms.saturating_add(u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX))
    }
}
