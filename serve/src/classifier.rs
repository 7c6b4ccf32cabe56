//! Classifiers: one thread per device and model, which owns the device and a [`Batcher`].
//!
//! As with sessions, the async side tells it events over a bounded channel, and shares no more with it than counts. What
//! it is told is pixels; pictures are decoded before.

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, TrySendError};
use tokio::sync::oneshot;
use tracing::error;

use crate::{
    admission::{Permit, Reject, Room, Wait},
    batcher::{self, Batcher, Extent, Full, Job, Next, Priority, Ticket},
    device::DeviceError,
    oip::{classify::Pixels, statistics::Total},
    telemetry::metrics::ClassifierMetrics,
    worker::Clock,
};

/// A classifier's graph on a device.
pub trait Device {
    /// `K`.
    fn classes(&self) -> u32;

    /// The logits `[B, K]` of pixels `[B, 3, H, W]`.
    ///
    /// # Errors
    /// See [`DeviceError`].
    fn classify(
        &mut self,
        pixels: &[f32],
        rows: u32,
        extent: Extent,
    ) -> Result<&[f32], DeviceError>;
}

/// What a worker is told.
#[derive(Debug)]
pub enum Event {
    Classify(Box<Submission>),
    /// Run what waits, and what is on its way, until `deadline`; then end.
    Drain {
        deadline: Instant,
    },
}

/// A request on its way to a worker. Whoever waits for the answer cancels it by going away.
#[derive(Debug)]
pub struct Submission {
    pub pixels: Pixels,
    pub priority: Priority,
    pub expiry: Expiry,
    /// From then on it waits for company.
    pub arrived: Instant,
    pub reply: oneshot::Sender<Result<Logits, Reject>>,
    pub load: Load,
    pub permit: Permit,
}

/// Until when somebody wants an answer.
#[derive(Clone, Copy, Debug)]
pub struct Expiry {
    pub since: Instant,
    /// None for as long as it takes.
    pub timeout: Option<Duration>,
}

/// What came of a request.
#[derive(Clone, Debug, PartialEq)]
pub struct Logits {
    /// `[rows, K]`.
    pub values: Vec<f32>,
    /// From arrival until it ran.
    pub queue: Duration,
    /// How long the run took.
    pub run: Duration,
}

/// The async side's end of one worker.
#[derive(Clone, Debug)]
pub struct Handle {
    /// As in `--device`.
    pub device: String,
    events: Sender<Event>,
    board: Arc<Board>,
}

/// What a worker and those who ask it both see, and nobody waits for.
#[derive(Debug, Default)]
pub struct Board {
    /// Rows on their way to the worker, or waiting there, by what they count for.
    load: AtomicU32,
    /// What has been run, by rows of the batch.
    runs: Mutex<BTreeMap<u32, Total>>,
}

/// Rows that count as load of their worker until this is dropped.
#[derive(Debug)]
pub struct Load {
    board: Arc<Board>,
    n: u32,
}

/// The owner of a device and of what waits for it.
#[derive(Debug)]
pub struct Worker<D> {
    parts: Parts<D>,
    batcher: Batcher,
    waiting: HashMap<Ticket, Box<Submission>>,
    tickets: u64,
    drain: Option<Instant>,
    /// Kept from batch to batch.
    batch: Vec<Ticket>,
    pixels: Vec<f32>,
}

/// What a [`Worker`] is made of.
#[derive(Debug)]
pub struct Parts<D> {
    pub device: D,
    pub batcher: batcher::Config,
    /// What a client that finds no room is told to wait.
    pub retry_after: Duration,
    pub metrics: ClassifierMetrics,
    pub clock: Clock,
    /// Its handle's.
    pub board: Arc<Board>,
}

/// While it drains, how long a worker does nothing before it looks whether something is still on its way to it.
const DRAIN_POLL: Duration = Duration::from_millis(5);

impl Expiry {
    /// When it is; none for never.
    pub fn at(&self) -> Option<Instant> {
        self.since.checked_add(self.timeout?)
    }

    /// Whether there is time left.
    ///
    /// # Errors
    /// [`Reject::Expired`] if there is not.
    pub fn check(&self, now: Instant) -> Result<(), Reject> {
        match self.at() {
            Some(at) if at <= now => Err(self.reject()),
            _ => Ok(()),
        }
    }

    /// The refusal for want of time.
    pub fn reject(&self) -> Reject {
        Reject::Expired { wait: Wait::Device, max: self.timeout.unwrap_or_default() }
    }
}

impl Board {
    /// What is on its way to the worker, or waits there.
    pub fn load(&self) -> u32 {
        self.load.load(Ordering::Relaxed)
    }

    /// What has been run.
    pub fn runs(&self) -> MutexGuard<'_, BTreeMap<u32, Total>> {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Handle {
    pub fn new(device: String, events: Sender<Event>) -> Self {
        Self { device, events, board: Arc::default() }
    }

    pub fn board(&self) -> &Arc<Board> {
        &self.board
    }

    /// Counts rows for `n` more.
    pub fn load(&self, n: u32) -> Load {
        self.board.load.fetch_add(n, Ordering::Relaxed);
        Load { board: Arc::clone(&self.board), n }
    }

    /// Tells it something, without waiting.
    ///
    /// # Errors
    /// The event, if there is no room or the worker has ended.
    pub fn send(&self, event: Event) -> Result<(), TrySendError<Event>> {
        self.events.try_send(event)
    }

    /// Tells it to end, and waits until there is room to say so. One that has ended needs not be told.
    pub fn drain(&self, deadline: Instant) {
        self.events.send(Event::Drain { deadline }).ok();
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.board.load.fetch_sub(self.n, Ordering::Relaxed);
    }
}

impl<D: Device> Worker<D> {
    pub fn new(parts: Parts<D>) -> Self {
        let batcher = Batcher::new(parts.batcher);
        let (waiting, batch, pixels) = (HashMap::new(), Vec::new(), Vec::new());
        Self { parts, batcher, waiting, tickets: 0, drain: None, batch, pixels }
    }

    /// Takes in what it is told.
    pub fn handle(&mut self, event: Event) {
        match event {
            Event::Drain { deadline } => {
                self.batcher.drain();
                self.drain = Some(deadline);
            }
            Event::Classify(submission) => self.accept(submission),
        }
    }

    fn accept(&mut self, submission: Box<Submission>) {
        let ticket = Ticket(self.tickets);
        self.tickets += 1;
        let Submission { pixels: Pixels { weight: rows, extent, .. }, priority, arrived, .. } =
            *submission;
        let expires = submission.expiry.at();
        let mut pushed =
            self.batcher.push(Job { ticket, rows, extent, priority, arrived, expires });
        if pushed.is_err() {
            // Whoever has gone leaves room.
            self.forget_gone();
            pushed = self.batcher.push(Job { ticket, rows, extent, priority, arrived, expires });
        }
        match pushed {
            Ok(()) => _ = self.waiting.insert(ticket, submission),
            Err(Full { queue_rows_max }) => {
                let retry_after = self.parts.retry_after;
                let busy = Reject::Busy { room: Room::Rows, max: queue_rows_max, retry_after };
                answer(*submission, Err(busy));
            }
        }
        self.parts.metrics.rows_waiting.set(self.batcher.rows_waiting().into());
    }

    /// Runs a batch, if one is ready; says what to do next.
    pub fn step(&mut self, now: Instant) -> Next {
        self.forget_gone();
        while let Some(ticket) = self.batcher.expired(now) {
            let submission = self.waiting.remove(&ticket).expect("it waits");
            let expired = submission.expiry.reject();
            answer(*submission, Err(expired));
        }
        if self.drain.is_some_and(|deadline| deadline <= now) {
            self.batcher.cancel(|_| true);
            let unavailable = self.unavailable();
            self.waiting.drain().for_each(|(_, it)| answer(*it, Err(unavailable.clone())));
        }
        let mut batch = std::mem::take(&mut self.batch);
        let next = self.batcher.next(now, &mut batch);
        if next == Next::Run {
            self.run(&batch, now);
        }
        self.batch = batch;
        self.parts.metrics.rows_waiting.set(self.batcher.rows_waiting().into());
        next
    }

    /// Whether it was told to end, and has: nothing waits, and nothing is on its way for which there is time.
    ///
    /// What is on its way was counted as load before its server was seen not to drain, and so before this was told to.
    pub fn is_done(&self, now: Instant) -> bool {
        let Some(deadline) = self.drain else { return false };
        self.waiting.is_empty() && (deadline <= now || self.parts.board.load() == 0)
    }

    fn run(&mut self, batch: &[Ticket], now: Instant) {
        let take = |ticket| self.waiting.remove(ticket).expect("it waits");
        let batch: Vec<Box<Submission>> = batch.iter().map(take).collect();
        let rows = batch.iter().map(|it| it.pixels.rows).sum();
        let extent = batch[0].pixels.extent;
        self.pixels.clear();
        batch.iter().for_each(|it| self.pixels.extend_from_slice(&it.pixels.values));
        let Parts { device, metrics, clock, board, .. } = &mut self.parts;
        let classes = device.classes() as usize;
        let ran = device.classify(&self.pixels, rows, extent);
        let run = clock.now().saturating_duration_since(now);
        let logits = match ran {
            Ok(logits) => logits,
            Err(error) => {
                error!(%error, rows, "a batch could not be classified");
                metrics.device_errors.inc();
                let failed = Reject::Internal { what: "its device failed" };
                return batch.into_iter().for_each(|it| answer(*it, Err(failed.clone())));
            }
        };
        metrics.step_duration.observe(run.as_secs_f64());
        metrics.batch_rows.observe(rows.into());
        metrics.rows.inc_by(rows.into());
        board.runs().entry(rows).or_default().add(run);
        let mut at = 0;
        for submission in batch {
            let end = at + submission.pixels.rows as usize * classes;
            let queue = now.saturating_duration_since(submission.arrived);
            metrics.queue_wait.observe(queue.as_secs_f64());
            let values = logits[at..end].to_vec();
            answer(*submission, Ok(Logits { values, queue, run }));
            at = end;
        }
    }

    fn forget_gone(&mut self) {
        let waiting = &mut self.waiting;
        self.batcher.cancel(|ticket| {
            let is_gone = waiting.get(&ticket).is_some_and(|it| it.reply.is_closed());
            if is_gone {
                waiting.remove(&ticket);
            }
            is_gone
        });
    }

    fn unavailable(&self) -> Reject {
        Reject::Unavailable { retry_after: self.parts.retry_after }
    }
}

/// Gives back what a request took, and answers it.
fn answer(submission: Submission, answer: Result<Logits, Reject>) {
    let Submission { reply, load, permit, .. } = submission;
    drop((load, permit));
    // Who has gone needs no answer.
    reply.send(answer).ok();
}

/// Works until drained, or until nobody is left to tell it anything.
pub fn run<D: Device>(mut worker: Worker<D>, inbox: &Receiver<Event>) {
    let clock = worker.parts.clock;
    loop {
        while let Ok(event) = inbox.try_recv() {
            worker.handle(event);
        }
        let now = clock.now();
        let event = match worker.step(now) {
            Next::Run => continue,
            Next::Wait(until) => inbox.recv_deadline(until),
            Next::Idle if worker.is_done(now) => return,
            Next::Idle if worker.drain.is_some() => inbox.recv_timeout(DRAIN_POLL),
            Next::Idle => inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        match event {
            Ok(event) => worker.handle(event),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}
