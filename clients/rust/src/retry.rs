//! When to ask again, and how long to wait before. Sans-IO.

#[cfg(test)]
mod tests;

use std::time::{Duration, Instant};

use crate::{Code, Error};

/// How long a client goes on asking.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Retry {
    /// Without any progress; none to ask once.
    pub patience: Option<Duration>,
}

/// The waits between one attempt and the next, since there was progress.
///
/// They are drawn from a range that doubles with each attempt, so that clients that were cut off together do not come back
/// together; what the server asks for is the least.
#[derive(Debug)]
pub(crate) struct Backoff {
    retry: Retry,
    attempts: u32,
    /// When the first attempt since the last progress failed.
    since: Option<Instant>,
}

/// The first range ends here.
const FIRST_MAX: Duration = Duration::from_millis(50);
/// No range ends later than this.
const MAX: Duration = Duration::from_secs(5);

impl Retry {
    /// Ask once.
    pub const NEVER: Self = Self { patience: None };
}

impl Default for Retry {
    /// Half a minute: a server restarts in less.
    fn default() -> Self {
        Self { patience: Some(Duration::from_secs(30)) }
    }
}

impl Backoff {
    pub(crate) fn new(retry: Retry) -> Self {
        Self { retry, attempts: 0, since: None }
    }
    /// Something was achieved: the next failure is a first one.
    pub(crate) fn progressed(&mut self) {
        (self.attempts, self.since) = (0, None);
    }

    /// How long to wait after `error` before asking again; none if that is of no use, or has been tried for long
    /// enough. `unit` is a random number from 0 to 1.
    pub(crate) fn wait(&mut self, error: &Error, now: Instant, unit: f64) -> Option<Duration> {
        let patience = self.retry.patience?;
        if !may_help(error) {
            return None;
        }
        let since = *self.since.get_or_insert(now);
        let range = FIRST_MAX.saturating_mul(1 << self.attempts.min(16)).min(MAX);
        self.attempts += 1;
        let wait = error.retry_after().unwrap_or_default() + range.mul_f64(unit);
        // More patience than time is counted in has no end.
        let ends = since.checked_add(patience);
        ends.is_none_or(|end| now + wait < end).then_some(wait)
    }
}

/// Whether the same question may get another answer.
fn may_help(error: &Error) -> bool {
    match error {
        Error::Interrupted { .. } | Error::Unreachable { .. } => true,
        Error::Rejected { code, retry_after, .. } => {
            retry_after.is_some() || *code == Code::Unavailable
        }
        _ => false,
    }
}
