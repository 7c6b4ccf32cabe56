//! What a client that comes back shows: a ticket to resume TLS with, a token that proves its address.
//!
//! Either is worth something once. A ticket that is shown again is unknown, so that a recorded first
//! flight brings its early data to a server only once (RFC 8446 §8.1).

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use quinn::{TokenLog, TokenReuseError};
use rustls::server::StoresServerSessions;

use crate::{telemetry::metrics::QuicMetrics, worker::Clock};

/// Tickets that were handed out and not yet shown, in memory alone: a restart forgets them all.
pub(super) struct Tickets {
    clock: Clock,
    metrics: QuicMetrics,
    kept: Mutex<Kept>,
}

/// Tokens for a later connection that were used. One that it has no room for counts as used, which
/// costs its client one more round trip.
#[derive(Debug)]
pub(super) struct UsedTokens {
    tokens_max: usize,
    used: Mutex<BTreeSet<(SystemTime, u128)>>,
}

/// Sans-IO half of [`Tickets`]: at most so many, each for so long, each taken once.
struct Kept {
    tickets_max: usize,
    lifetime: Duration,
    /// Secrets by what a client shows.
    secrets: HashMap<Vec<u8>, Secret>,
    /// What a client shows by age.
    ages: BTreeMap<u64, Vec<u8>>,
    next_age: u64,
}

struct Secret {
    age: u64,
    issued: Instant,
    bytes: Vec<u8>,
}

/// What becomes of a ticket that is shown.
#[derive(Debug, Eq, PartialEq)]
enum Shown {
    Resumed(Vec<u8>),
    Expired,
    /// Forged, shown before, pushed out by newer ones, or from before a restart.
    Unknown,
}

impl Tickets {
    pub(super) fn new(
        tickets_max: usize,
        lifetime: Duration,
        clock: Clock,
        metrics: QuicMetrics,
    ) -> Self {
        Self { clock, metrics, kept: Mutex::new(Kept::new(tickets_max, lifetime)) }
    }
}

impl StoresServerSessions for Tickets {
    fn put(&self, id: Vec<u8>, secret: Vec<u8>) -> bool {
        locked(&self.kept).put(id, secret, self.clock.now())
    }

    /// Looking without taking is for TLS 1.2, which QUIC does not have.
    fn get(&self, _: &[u8]) -> Option<Vec<u8>> {
        None
    }

    fn take(&self, id: &[u8]) -> Option<Vec<u8>> {
        let shown = locked(&self.kept).take(id, self.clock.now());
        let (label, secret) = match shown {
            Shown::Resumed(secret) => ("resumed", Some(secret)),
            Shown::Expired => ("expired", None),
            Shown::Unknown => ("unknown", None),
        };
        self.metrics.tickets.with_label_values(&[label]).inc();
        secret
    }

    fn can_cache(&self) -> bool {
        0 < locked(&self.kept).tickets_max
    }
}

impl fmt::Debug for Tickets {
    /// Tells no secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tickets").finish_non_exhaustive()
    }
}

impl UsedTokens {
    pub(super) fn new(tokens_max: usize) -> Self {
        Self { tokens_max, used: Mutex::default() }
    }
}

impl TokenLog for UsedTokens {
    fn check_and_insert(
        &self,
        nonce: u128,
        issued: SystemTime,
        lifetime: Duration,
    ) -> Result<(), TokenReuseError> {
        let mut used = locked(&self.used);
        // No token is younger than now, so that what was too old when the youngest was issued is so
        // still. Whoever calls has refused this one if it is.
        let youngest = used.last().map_or(issued, |(last, _)| issued.max(*last));
        if let Some(oldest) = youngest.checked_sub(lifetime) {
            *used = used.split_off(&(oldest, 0));
        }
        let is_new = used.len() < self.tokens_max && used.insert((issued, nonce));
        if is_new { Ok(()) } else { Err(TokenReuseError) }
    }
}

impl Kept {
    fn new(tickets_max: usize, lifetime: Duration) -> Self {
        Self { tickets_max, lifetime, secrets: HashMap::new(), ages: BTreeMap::new(), next_age: 0 }
    }

    /// Keeps a ticket, for which the oldest may have to go; false if there is room for none.
    fn put(&mut self, id: Vec<u8>, bytes: Vec<u8>, now: Instant) -> bool {
        if self.tickets_max == 0 {
            return false;
        }
        while self.tickets_max <= self.secrets.len() {
            let (_, oldest) = self.ages.pop_first().expect("every secret has an age");
            self.secrets.remove(&oldest);
        }
        let age = self.next_age;
        self.next_age += 1;
        self.ages.insert(age, id.clone());
        self.secrets.insert(id, Secret { age, issued: now, bytes });
        true
    }

    fn take(&mut self, id: &[u8], now: Instant) -> Shown {
        let Some(Secret { age, issued, bytes }) = self.secrets.remove(id) else {
            return Shown::Unknown;
        };
        self.ages.remove(&age);
        if self.lifetime < now.saturating_duration_since(issued) {
            return Shown::Expired;
        }
        Shown::Resumed(bytes)
    }
}

/// What it guards is whole between any two calls, whatever panicked.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
