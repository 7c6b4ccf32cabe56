//! One thread per device and model: the owner of its sessions, their states and the steps.
//!
//! [`Worker`] is a state machine that is told events and asked for steps; it knows no thread and
//! reads no clock but the one it is handed. [`run`] drives it on a thread.

pub mod generation;
#[cfg(test)]
mod tests;

use std::{
    collections::VecDeque,
    time::{Duration, Instant, SystemTime},
};

use aerie_state_cache::Storage;
use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, TrySendError};
use tokio::sync::oneshot;
use tracing::{debug, error, info, warn};

use self::generation::{Drawn, Generation};
use crate::{
    admission::{Permit, Reject},
    device::{Batch, Device, DeviceError},
    pipe::{Accepted, FinishReason, Pipe, PipeEvent},
    request::Request,
    residency::{Closed, Residency},
    router::{Load, Residence},
    sampler::Sampler,
    scheduler::{Phase, Scheduler, Sequence, SequenceId, Work},
    sessions::{Session, SessionId, Sessions},
    telemetry::metrics::{Origin, WorkerMetrics},
};

/// What the async side tells a worker.
#[derive(Debug)]
pub enum Event {
    Open(Box<Submission>),
    Delete {
        id: SessionId,
        reply: oneshot::Sender<Result<(), Reject>>,
    },
    /// Finish what runs until `deadline`, park everything, end.
    Drain {
        deadline: Instant,
    },
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

/// The owner of everything that changes on one device.
#[derive(Debug)]
pub struct Worker<S, D> {
    parts: Parts<S, D>,
    scheduler: Scheduler,
    sessions: Sessions,
    sampler: Sampler,
    /// By [`SequenceId`].
    generations: Vec<Option<Generation>>,
    n_generations: usize,
    /// Notices for which the channel had no room, oldest first.
    outbox: VecDeque<Notice>,
    drain: Option<Instant>,
    // From here on: memory that is kept from step to step, so that none allocates.
    batch: Batch,
    work: Vec<Work>,
    ending: Vec<(SequenceId, FinishReason)>,
}

/// What a [`Worker`] is made of.
#[derive(Debug)]
pub struct Parts<S, D> {
    pub device: D,
    pub residency: Residency<S>,
    pub scheduler: crate::scheduler::Config,
    pub text: generation::Text,
    pub notices: Sender<Notice>,
    pub metrics: WorkerMetrics,
    pub clock: Clock,
    /// Generations at once; the server's admission lets no more in.
    pub requests_max: u32,
    /// What a client is told to wait when there is no room.
    pub retry_after: Duration,
}

/// What came of asking for a step.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Progress {
    /// Something advanced or ended; ask again at once.
    Stepped,
    /// Every sequence waits for its reader.
    Stalled,
    /// Nothing to do before the next event.
    Idle,
    /// Drained: everything is parked, the worker may end.
    Done,
}

/// Ties the monotonic clock to the time of day, which is what the state cache keeps.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    started: Instant,
    started_unix_ms: u64,
}

/// How long a stalled worker sleeps before it looks at its readers again. A reader that catches up
/// waits this long for its next token, and nobody else waits at all.
const STALL_POLL: Duration = Duration::from_millis(1);

/// Drives a worker until it has drained. Ends also, by draining, when all senders have gone.
pub fn run<S: Storage, D: Device>(mut worker: Worker<S, D>, events: &Receiver<Event>) {
    let clock = worker.parts.clock;
    let now = || clock.now();
    // A full queue's worth of events at most, so that a flood of them does not hold up the steps.
    let events_max = events.capacity().unwrap_or(1);
    loop {
        for event in events.try_iter().take(events_max) {
            worker.handle(event, now());
        }
        let received = match worker.step(&now) {
            Progress::Done => return,
            Progress::Stepped => continue,
            Progress::Stalled => events.recv_timeout(STALL_POLL),
            Progress::Idle => events.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        match received {
            Ok(event) => worker.handle(event, now()),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                worker.handle(Event::Drain { deadline: now() }, now());
            }
        }
    }
}

impl<S: Storage, D: Device> Worker<S, D> {
    /// A worker with the sessions that its state cache has records of.
    pub fn new(mut parts: Parts<S, D>) -> Self {
        let dims = parts.device.dims();
        let config = parts.scheduler;
        let sessions = parts.residency.recover();
        let lanes_max = config.lanes_max as usize;
        let requests_max = parts.requests_max as usize;
        Self {
            scheduler: Scheduler::new(config),
            sessions,
            sampler: Sampler::new(dims.vocab),
            generations: Vec::with_capacity(requests_max),
            n_generations: 0,
            outbox: VecDeque::new(),
            drain: None,
            batch: Batch::with_capacity(config.step_tokens_max as usize, lanes_max),
            work: Vec::with_capacity(lanes_max),
            ending: Vec::with_capacity(requests_max),
            parts,
        }
    }

    /// Every session there is, for a directory that knows none yet.
    pub fn notices(&self) -> Vec<Notice> {
        self.sessions.iter().map(|(id, session)| notice(id, session)).collect()
    }

    /// Takes in an event.
    pub fn handle(&mut self, event: Event, now: Instant) {
        match event {
            Event::Open(submission) => self.open(*submission, now),
            Event::Delete { id, reply } => {
                // Whoever asked may have gone.
                reply.send(self.delete(id)).ok();
            }
            Event::Drain { deadline } => {
                let deadline = self.drain.map_or(deadline, |earlier| earlier.min(deadline));
                self.drain = Some(deadline);
            }
        }
    }

    /// Runs one step: ends what is cancelled, feeds the device, hands out tokens.
    pub fn step(&mut self, now: &impl Fn() -> Instant) -> Progress {
        let started = now();
        self.send_notices();
        let ended = self.end_cancelled(started);
        if self.n_generations == 0 {
            self.observe_gauges();
            return match self.drain {
                Some(_) => self.finish_drain(),
                None if ended => Progress::Stepped,
                None => Progress::Idle,
            };
        }
        self.plan(started);
        if self.work.is_empty() {
            self.observe_gauges();
            return if self.n_generations == 0 { Progress::Stepped } else { Progress::Stalled };
        }

        let before = now();
        let result = self.parts.device.step(&self.batch);
        let after = now();
        // Taken out so that the logits, which borrow the device, do not hold up the rest.
        let failed = match result {
            Ok(logits) => {
                self.parts.metrics.step_duration.observe((after - before).as_secs_f64());
                draw_all(
                    logits,
                    &self.work,
                    &mut self.generations,
                    &mut self.sampler,
                    &self.sessions,
                );
                None
            }
            Err(error) => Some(error),
        };
        match failed {
            None => self.deliver(after),
            Some(error) => self.fail_step(&error),
        }
        let overhead = (before - started) + (now() - after);
        self.parts.metrics.step_overhead.observe(overhead.as_secs_f64());
        self.observe_gauges();
        Progress::Stepped
    }

    /// Opens or resumes a session for a generation, or tells the client why not.
    fn open(&mut self, submission: Submission, now: Instant) {
        let Submission { id, request, pipe, permit, load, arrived } = submission;
        let is_new = request.session.is_none();
        let session = match self.admit(id, &request, now) {
            Ok(session) => session,
            Err(reject) => {
                debug!(session = %id, %reject, "refused");
                if is_new {
                    self.notify(Notice::Gone { id });
                }
                drop((permit, load));
                return pipe.send(PipeEvent::Failed(reject));
            }
        };
        let decoder = session.decoder;
        let is_resident = session.lane.is_some();
        // A new session's name is random already.
        #[expect(clippy::cast_possible_truncation, reason = "half of a random number is one too")]
        let chosen = if is_new { id.0 as u64 } else { decoder.seed };
        let seed = request.seed.unwrap_or(chosen);
        let prompt_tokens = u32::try_from(request.prompt.len()).expect("prompt_tokens_max is u32");
        let opened = notice(id, session);
        self.notify(opened);
        pipe.send(PipeEvent::Accepted(Accepted {
            session: id,
            position: decoder.position,
            resumed_tokens: decoder.computed(),
            prompt_tokens,
            seed,
        }));
        debug!(session = %id, request_id = request.request_id, prompt_tokens, "accepted");

        let origin = match (decoder.computed(), is_resident) {
            (0, _) => Origin::New,
            (_, true) => Origin::Resident,
            (_, false) => Origin::Parked,
        };
        let mut generation =
            Generation::new(id, request, decoder, seed, pipe, (permit, load), arrived, origin);
        generation.reserve(&self.parts.text);
        let prompt_left = generation.left();
        let slot = self.generations.iter().position(Option::is_none);
        let slot = slot.unwrap_or_else(|| {
            self.generations.push(None);
            self.generations.len() - 1
        });
        self.generations[slot] = Some(generation);
        self.n_generations += 1;
        let id = SequenceId(u32::try_from(slot).expect("requests_max is u32"));
        self.scheduler.push(Sequence { id, prompt_left });
    }

    /// The session for a generation, with a record reserved for it.
    fn admit(
        &mut self,
        id: SessionId,
        request: &Request,
        now: Instant,
    ) -> Result<&Session, Reject> {
        if self.drain.is_some() {
            return Err(Reject::Unavailable { retry_after: self.parts.retry_after });
        }
        let used_at = self.parts.clock.unix_ms(now);
        if request.session.is_none() {
            self.sessions.insert(id, Session::new(request.keep, used_at));
        }
        let session = self.sessions.get_mut(id).ok_or(Reject::UnknownSession { id })?;
        let result = check_start(id, session, request).and_then(|()| {
            self.parts.residency.reserve(&mut self.sessions, &mut self.parts.device, id).map_err(
                |error| {
                    warn!(session = %id, %error, "no record can be reserved");
                    Reject::QueueFull {
                        requests_max: self.parts.requests_max,
                        retry_after: self.parts.retry_after,
                    }
                },
            )
        });
        match result {
            Ok(evicted) => {
                if let Some(id) = evicted {
                    self.parts.metrics.sessions_evicted.inc();
                    self.notify(Notice::Gone { id });
                }
                let session = self.sessions.expect(id);
                session.active = true;
                session.keep |= request.keep;
                session.used_at = used_at;
                Ok(session)
            }
            Err(reject) => {
                if request.session.is_none() {
                    self.sessions.remove(id);
                }
                Err(reject)
            }
        }
    }

    fn delete(&mut self, id: SessionId) -> Result<(), Reject> {
        let session = self.sessions.get(id).ok_or(Reject::UnknownSession { id })?;
        if session.active {
            return Err(Reject::SessionBusy { id });
        }
        self.parts.residency.forget(&mut self.sessions, &mut self.parts.device, id);
        self.notify(Notice::Gone { id });
        Ok(())
    }

    /// Ends the generations whose clients have gone or asked to, and at the deadline of a drain
    /// all; says whether there were any.
    fn end_cancelled(&mut self, now: Instant) -> bool {
        let is_over = self.drain.is_some_and(|deadline| deadline <= now);
        for (slot, generation) in (0..).zip(&self.generations) {
            let Some(generation) = generation else { continue };
            if generation.pipe.is_cancelled() {
                self.ending.push((SequenceId(slot), FinishReason::Cancelled));
            } else if is_over {
                self.ending.push((SequenceId(slot), FinishReason::Shutdown));
            }
        }
        let ended = !self.ending.is_empty();
        self.end_all(now);
        ended
    }

    /// Plans a step and fills the batch; whoever cannot be seated fails.
    fn plan(&mut self, now: Instant) {
        let Self { parts, scheduler, sessions, generations, batch, work, .. } = self;
        let Parts { device, residency, text, metrics, clock, .. } = parts;
        let plan = scheduler.step(|id| {
            let generation = generations[id.0 as usize].as_ref();
            !generation.is_some_and(|it| it.pipe.has_room(text.events_per_step_max()))
        });
        work.clear();
        batch.clear();
        for id in &plan.unseat {
            residency.unpin(sessions, expect(generations, *id).session);
        }
        for id in &plan.seat {
            let generation = expect(generations, *id);
            let began = clock.now();
            match residency.seat(sessions, device, generation.session) {
                Ok(seat) => {
                    if seat.origin == Origin::Parked {
                        metrics.session_resume.observe((clock.now() - began).as_secs_f64());
                    }
                    generation.seated(seat.lane, now, metrics);
                }
                Err(error) => {
                    error!(session = %generation.session, %error, "a session got no lane");
                    generation.failed = Some("its state could not be brought to the device");
                }
            }
        }
        for item in &plan.work {
            let generation = expect(generations, item.id);
            if generation.failed.is_some() {
                continue;
            }
            let tokens = match item.phase {
                Phase::Decode => 1,
                Phase::Prefill { tokens, .. } => tokens,
            };
            let session = sessions.expect(generation.session);
            generation.feed(session, tokens, batch);
            if matches!(item.phase, Phase::Prefill { .. }) {
                metrics.prompt_tokens.inc_by(tokens.into());
            }
            work.push(*item);
        }
        metrics.step_sequences.observe(work.len() as f64);
        metrics.step_tokens.observe(batch.tokens.len() as f64);
        self.end_failed();
    }

    /// Hands out the tokens that were drawn, and ends who is done.
    fn deliver(&mut self, now: Instant) {
        for work in &self.work {
            let generation = expect(&mut self.generations, work.id);
            let session = self.sessions.expect(generation.session);
            let reason = match generation.drawn.take() {
                None => continue,
                Some(Drawn::NotFinite) => {
                    error!(session = %generation.session, "no logit is finite");
                    generation.failed = Some("the model's output is not finite");
                    continue;
                }
                Some(Drawn::Token(token)) => generation.deliver(
                    session,
                    token,
                    &mut self.parts.text,
                    &self.parts.metrics,
                    now,
                ),
            };
            if let Some(reason) = reason {
                self.ending.push((work.id, reason));
            }
        }
        self.end_failed();
        self.end_all(now);
    }

    /// Ends everybody in a batch that the device could not run: their states are void.
    fn fail_step(&mut self, error: &DeviceError) {
        error!(%error, sequences = self.work.len(), "a step failed");
        self.parts.metrics.device_errors.inc();
        for work in &self.work {
            expect(&mut self.generations, work.id).failed = Some("the device could not run a step");
        }
        self.end_failed();
    }

    /// Ends the generations in `ending`, each for its reason.
    fn end_all(&mut self, now: Instant) {
        while let Some((id, reason)) = self.ending.pop() {
            let generation = self.take(id);
            let session = self.sessions.expect(generation.session);
            session.used_at = self.parts.clock.unix_ms(now);
            // Interrupted by us, it may be gone on with, even if its client meant it to end here.
            session.keep |= reason == FinishReason::Shutdown;
            let position = session.decoder.position;
            let Parts { device, residency, metrics, clock, .. } = &mut self.parts;
            let began = clock.now();
            let closed = residency.close(&mut self.sessions, device, generation.session);
            if closed == Closed::Parked {
                metrics.session_park.observe((clock.now() - began).as_secs_f64());
            }
            self.tell_closed(generation.session, closed);
            self.parts.metrics.finished(reason).inc();
            debug!(session = %generation.session, ?reason, position, "finished");
            generation.finish(reason, position, now);
        }
    }

    /// Ends the generations that failed, and takes their sessions back to their records.
    fn end_failed(&mut self) {
        for slot in 0..self.generations.len() {
            let Some(what) = self.generations[slot].as_ref().and_then(|it| it.failed) else {
                continue;
            };
            let id = SequenceId(u32::try_from(slot).expect("requests_max is u32"));
            self.work.retain(|work| work.id != id);
            let generation = self.take(id);
            let closed = self.parts.residency.revert(
                &mut self.sessions,
                &mut self.parts.device,
                generation.session,
            );
            self.tell_closed(generation.session, closed);
            generation.fail(Reject::Internal { what });
        }
    }

    /// Takes a generation out of the slot and the schedule.
    fn take(&mut self, id: SequenceId) -> Generation {
        self.scheduler.finish(id);
        self.n_generations -= 1;
        self.generations[id.0 as usize].take().expect("a sequence has a generation")
    }

    fn tell_closed(&mut self, id: SessionId, closed: Closed) {
        match closed {
            Closed::Parked | Closed::Kept => {
                let kept = notice(id, self.sessions.expect(id));
                self.notify(kept);
            }
            Closed::Gone => self.notify(Notice::Gone { id }),
        }
    }

    fn finish_drain(&mut self) -> Progress {
        match self.parts.residency.flush(&mut self.sessions, &mut self.parts.device) {
            Ok(()) => info!(sessions = self.sessions.len(), "drained"),
            Err(error) => error!(%error, "the state cache could not be flushed"),
        }
        Progress::Done
    }

    /// Queues a notice; the order of notices is kept.
    fn notify(&mut self, notice: Notice) {
        self.outbox.push_back(notice);
        self.send_notices();
    }

    fn send_notices(&mut self) {
        while let Some(&notice) = self.outbox.front() {
            match self.parts.notices.try_send(notice) {
                // A directory that has gone needs no notices.
                Ok(()) | Err(TrySendError::Disconnected(_)) => _ = self.outbox.pop_front(),
                Err(TrySendError::Full(_)) => return,
            }
        }
    }

    fn observe_gauges(&self) {
        let Parts { metrics, residency, .. } = &self.parts;
        let counts = self.scheduler.counts();
        let paused = counts.seated.saturating_sub(self.work.len());
        let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        metrics.sequences_waiting.set(count(counts.waiting));
        metrics.sequences_running.set(count(counts.seated - paused));
        metrics.sequences_paused.set(count(paused));
        let used = residency.n_lanes() - residency.n_free();
        metrics.lanes_used.set(count(used));
        metrics.lanes_free.set(count(residency.n_free()));
        let resident = used.saturating_sub(counts.seated);
        metrics.sessions_active.set(count(self.n_generations));
        metrics.sessions_resident.set(count(resident));
        let parked = self.sessions.len().saturating_sub(self.n_generations + resident);
        metrics.sessions_parked.set(count(parked));
        let park_failures = residency.park_failures() - metrics.session_park_failures.get();
        metrics.session_park_failures.inc_by(park_failures);
    }
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

/// Whether `session` can begin with `request`.
fn check_start(id: SessionId, session: &Session, request: &Request) -> Result<(), Reject> {
    let position = session.decoder.position;
    if session.active {
        return Err(Reject::SessionBusy { id });
    }
    if let Some(expected) = request.expected_position
        && expected != position
    {
        return Err(Reject::StalePosition { id, position, expected });
    }
    if request.prompt.is_empty() && session.decoder.pending.is_none() {
        let problem = "has no token, and the session's text has ended".to_owned();
        return Err(Reject::Invalid { field: "prompt", problem });
    }
    Ok(())
}

/// Draws a token for each sequence whose last one was fed.
fn draw_all(
    logits: &[f32],
    work: &[Work],
    generations: &mut [Option<Generation>],
    sampler: &mut Sampler,
    sessions: &Sessions,
) {
    let vocab = logits.len() / work.len();
    for (work, logits) in work.iter().zip(logits.chunks_exact(vocab)) {
        if !matches!(work.phase, Phase::Prefill { is_last: false, .. }) {
            let generation = expect(generations, work.id);
            let session = sessions.get(generation.session).expect("it is in the batch");
            generation.draw(session, logits, sampler);
        }
    }
}

fn expect(generations: &mut [Option<Generation>], id: SequenceId) -> &mut Generation {
    generations[id.0 as usize].as_mut().expect("a scheduled sequence has a generation")
}

fn notice(id: SessionId, session: &Session) -> Notice {
    let residence = match session {
        Session { active: true, .. } => Residence::Active,
        Session { lane: Some(_), .. } => Residence::Resident,
        Session { lane: None, .. } => Residence::Parked,
    };
    let position = session.decoder.position;
    Notice::Session { id, position, residence, used_at: session.used_at }
}
