//! Dynamic batching of requests that leave nothing behind, as a pure state machine.
//!
//! Sans-IO: no clock, no channel, no device. A worker pushes what has come, asks for a batch and runs it.

#[cfg(test)]
mod tests;

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

/// Decides which requests run together, and when.
///
/// # Invariants
/// - A batch counts for at most `rows_max` rows, all of one extent.
/// - The request that is next in order is in the next batch of its extent: so each of them is, some time.
/// - No request waits for company longer than `delay_us_max`.
#[derive(Debug)]
pub struct Batcher {
    config: Config,
    /// In order of arrival.
    waiting: VecDeque<Job>,
    rows_waiting: u32,
    /// Few others will come, if any: there is nothing to wait for.
    is_draining: bool,
}

/// Limits of a [`Batcher`].
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Rows of one batch, and so of one request. One with more pixels than the model was measured with counts for several.
    pub rows_max: u32,
    /// How long a request waits for others that could run with it, while the device has nothing else to do.
    pub delay_us_max: u32,
    /// Rows that wait at each device; a request that has no room is refused.
    pub queue_rows_max: u32,
    /// After so long, a request of low priority is one of high priority.
    pub patience_ms: u32,
}

/// A request that waits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Job {
    pub ticket: Ticket,
    /// What it counts for, from 1 to `rows_max`; see [`Extent::weight`].
    pub rows: u32,
    pub extent: Extent,
    pub priority: Priority,
    pub arrived: Instant,
    /// When its client has no more use for it.
    pub expires: Option<Instant>,
}

/// Names a request as long as it waits.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Ticket(pub u64);

/// Of pictures; only those of one run together.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Extent {
    pub height: u32,
    pub width: u32,
}

/// Who goes first.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub enum Priority {
    #[default]
    High,
    /// When no other waits, or after a while.
    Low,
}

/// What to do now.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Next {
    /// Run the batch that was planned.
    Run,
    /// Look again then, or when something comes.
    Wait(Instant),
    /// Nothing waits.
    Idle,
}

/// There is no room for as many rows.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Full {
    pub queue_rows_max: u32,
}

/// A picture is no quicker to classify for being narrower than this: maps are halved some five times on their way through
/// a model, and have a pixel at least.
const SIDE_MIN: u32 = 32;

impl Extent {
    /// As how many pictures of extent `usual` one of this counts, as far as time and memory go: both grow with pixels.
    pub fn weight(self, usual: Self) -> u32 {
        let pixels = |it: Self| {
            u64::from(it.height.max(SIDE_MIN)).saturating_mul(it.width.max(SIDE_MIN).into())
        };
        u32::try_from(pixels(self).div_ceil(pixels(usual))).unwrap_or(u32::MAX)
    }
}

impl Batcher {
    /// A batcher with nothing to do.
    ///
    /// # Panics
    /// If a limit on rows is 0, or no batch of `rows_max` could wait.
    pub fn new(config: Config) -> Self {
        assert!(0 < config.rows_max && config.rows_max <= config.queue_rows_max, "{config:?}");
        Self { config, waiting: VecDeque::new(), rows_waiting: 0, is_draining: false }
    }

    /// Accepts a request.
    ///
    /// # Errors
    /// [`Full`] if more rows would wait than may.
    ///
    /// # Panics
    /// If it has no rows, or more than a batch.
    pub fn push(&mut self, job: Job) -> Result<(), Full> {
        let Config { rows_max, queue_rows_max, .. } = self.config;
        assert!((1..=rows_max).contains(&job.rows), "{job:?}");
        if queue_rows_max < self.rows_waiting + job.rows {
            return Err(Full { queue_rows_max });
        }
        self.rows_waiting += job.rows;
        self.waiting.push_back(job);
        Ok(())
    }

    /// Forgets what waits and `is_gone` says to have no client any more.
    pub fn cancel(&mut self, mut is_gone: impl FnMut(Ticket) -> bool) {
        self.waiting.retain(|job| {
            let stays = !is_gone(job.ticket);
            self.rows_waiting -= if stays { 0 } else { job.rows };
            stays
        });
    }

    /// Takes out a request whose time is up; there may be others.
    pub fn expired(&mut self, now: Instant) -> Option<Ticket> {
        let idx = self.waiting.iter().position(|job| job.expires.is_some_and(|it| it <= now))?;
        Some(self.take(idx).ticket)
    }

    /// Plans a batch into `batch`, which is emptied: its requests, in the order of its rows.
    pub fn next(&mut self, now: Instant, batch: &mut Vec<Ticket>) -> Next {
        batch.clear();
        let mut wait: Option<Instant> = None;
        // Extents are looked at by the first in order of each.
        let mut seen: Vec<Extent> = Vec::new();
        for priority in [Priority::High, Priority::Low] {
            for idx in 0..self.waiting.len() {
                let head = self.waiting[idx];
                if self.rank(&head, now) != priority || seen.contains(&head.extent) {
                    continue;
                }
                let oldest = self.waiting.iter().find(|job| job.extent == head.extent);
                let ripe = oldest.map_or(head.arrived, |job| job.arrived) + self.delay();
                if self.is_draining || ripe <= now || self.is_full(head.extent) {
                    self.gather(head.extent, now, batch);
                    return Next::Run;
                }
                seen.push(head.extent);
                wait = Some(wait.map_or(ripe, |it| it.min(ripe)));
            }
        }
        let expiry = self.waiting.iter().filter_map(|job| job.expires).min();
        match wait {
            None => Next::Idle,
            Some(ripe) => Next::Wait(expiry.map_or(ripe, |it| it.min(ripe))),
        }
    }

    /// Lets nobody wait for others any more.
    pub fn drain(&mut self) {
        self.is_draining = true;
    }

    /// Rows that wait.
    pub fn rows_waiting(&self) -> u32 {
        self.rows_waiting
    }

    /// Whether a batch of this extent gets no larger by waiting.
    fn is_full(&self, extent: Extent) -> bool {
        let of_extent = self.waiting.iter().filter(|job| job.extent == extent);
        self.config.rows_max <= of_extent.map(|job| job.rows).sum()
    }

    /// Takes out the requests of `extent` that fit into a batch, in their order; one that does not fit waits, and those
    /// behind it may go ahead, until it is the first.
    fn gather(&mut self, extent: Extent, now: Instant, batch: &mut Vec<Ticket>) {
        let mut rows_left = self.config.rows_max;
        for priority in [Priority::High, Priority::Low] {
            let mut idx = 0;
            while idx < self.waiting.len() && 0 < rows_left {
                let job = self.waiting[idx];
                let is_next = job.extent == extent && self.rank(&job, now) == priority;
                if is_next && job.rows <= rows_left {
                    rows_left -= job.rows;
                    batch.push(self.take(idx).ticket);
                } else {
                    idx += 1;
                }
            }
        }
    }

    /// The priority of a request, as long as it has waited.
    fn rank(&self, job: &Job, now: Instant) -> Priority {
        let patience = Duration::from_millis(self.config.patience_ms.into());
        if job.arrived + patience <= now { Priority::High } else { job.priority }
    }

    fn delay(&self) -> Duration {
        Duration::from_micros(self.config.delay_us_max.into())
    }

    fn take(&mut self, idx: usize) -> Job {
        let job = self.waiting.remove(idx).expect("it is there");
        self.rows_waiting -= job.rows;
        job
    }
}

impl Default for Config {
    fn default() -> Self {
        Self { rows_max: 16, delay_us_max: 1_000, queue_rows_max: 128, patience_ms: 500 }
    }
}
