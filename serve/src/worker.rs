//! One thread per device and model: the owner of its sessions, their states and the steps.
//!
//! [`Worker`] is a state machine that is told events and asked for steps; it knows no thread and
//! reads no clock but the one it is handed. [`run`] drives it on a thread.

mod changes;
mod events;
pub mod generation;
mod looks;
mod losses;
mod moves;
mod opening;
mod shared;
mod stage;
#[cfg(test)]
mod tests;

use std::{
    collections::VecDeque,
    time::{Duration, Instant, SystemTime},
};

use aerie_state_cache::Storage;
use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, TrySendError};
use tracing::{debug, error, info, warn};

pub use self::{
    changes::{Change, Fork, Pack, Rename, Rewind, Unpack, What},
    events::{Attachment, Event, Notice, Reply, Standing, Submission},
    looks::{List, Look, Page},
    moves::{Arrival, Arrived, Move, Peer},
};
use self::{
    generation::{Drawn, Generation},
    moves::Moves,
    stage::Stage,
};
use crate::{
    admission::Reject,
    auth::Principal,
    device::{Batch, Device, DeviceError},
    pipe::{FinishReason, PipeEvent},
    planted::{Bug, planted},
    prefixes::{self, Prefixes},
    quotas::{Ledger, Quotas},
    residency::{Place, Residency},
    router::{Gone, Residence},
    sampler::Sampler,
    scheduler::{Phase, Scheduler, SequenceId, Work},
    sessions::{Record, Session, SessionId, Sessions, Word},
    store::Store,
    telemetry::metrics::WorkerMetrics,
};

/// The owner of everything that changes on one device.
#[derive(Debug)]
pub struct Worker<S, D> {
    parts: Parts<S, D>,
    scheduler: Scheduler,
    sessions: Sessions,
    sampler: Sampler,
    prefixes: Prefixes,
    /// By [`SequenceId`].
    generations: Vec<Option<Generation>>,
    n_generations: usize,
    /// What has ended, or did long ago, and is still being read.
    stages: Vec<Stage>,
    ledger: Ledger,
    moves: Moves,
    /// Notices for which the channel had no room, oldest first.
    outbox: VecDeque<Notice>,
    drain: Option<Instant>,
    /// When sessions that nobody uses are looked for next.
    expires_at: Option<Instant>,
    /// The store cannot promise any more what was written: nothing further is shown.
    is_broken: bool,
    // From here on: memory that is kept from step to step, so that none allocates.
    batch: Batch,
    work: Vec<Work>,
    ending: Vec<(SequenceId, FinishReason)>,
}

/// What a [`Worker`] is made of.
#[derive(Debug)]
pub struct Parts<S, D> {
    pub device: D,
    pub store: Store<S>,
    pub sessions: Sessions,
    pub residency: Residency,
    pub scheduler: crate::scheduler::Config,
    pub limits: Limits,
    pub text: generation::Text,
    pub notices: Sender<Notice>,
    /// Of the whole server.
    pub quotas: Quotas,
    pub metrics: WorkerMetrics,
    pub clock: Clock,
}

/// Limits of a worker.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Generations at once; the server's admission lets no more in.
    pub requests_max: u32,
    /// What a client is told to wait when there is no room.
    pub retry_after: Duration,
    /// Tokens between two states that are kept while a session advances.
    pub state_interval_tokens: u32,
    /// How long a generation that can be gone on with runs without a reader.
    pub detached_max: Duration,
    /// Tokens that a reader may be shown of the past.
    pub replay_tokens_max: u32,
    /// How long a session without a name may be idle.
    pub idle_max: Option<Duration>,
    /// Sessions that may have a name.
    pub names_max: u32,
    /// Calls that wait for sessions which are on their way to another worker.
    pub held_calls_max: u32,
    /// Of what prompts have in common; see [`prefixes::Limits`].
    pub prefix_bytes_max: u64,
    pub prefix_tokens_min: u32,
    pub prefix_tokens_max: u32,
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

/// How often sessions that nobody uses are looked for.
const EXPIRY_POLL: Duration = Duration::from_secs(1);
/// Sessions that are forgotten between two steps; the others follow after the next.
const EXPIRED_PER_POLL_MAX: usize = 64;

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
            Progress::Idle if worker.parts.limits.idle_max.is_some() => {
                events.recv_timeout(EXPIRY_POLL)
            }
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
    /// A worker with the sessions that were recovered.
    pub fn new(mut parts: Parts<S, D>) -> Self {
        let dims = parts.device.dims();
        let config = parts.scheduler;
        let sessions = std::mem::take(&mut parts.sessions);
        // Nobody was told of them yet.
        parts.store.take_lost();
        let mut ledger = Ledger::new(parts.quotas.clone());
        for (tenant, n) in parts.store.take_tenants() {
            ledger.add(tenant, n);
        }
        let lanes_max = config.lanes_max as usize;
        let requests_max = parts.limits.requests_max as usize;
        Self {
            scheduler: Scheduler::new(config),
            sessions,
            sampler: Sampler::new(dims.vocab),
            prefixes: Prefixes::new(prefix_limits(&parts.limits, &parts.store)),
            generations: Vec::with_capacity(requests_max),
            n_generations: 0,
            stages: Vec::new(),
            ledger,
            moves: Moves::default(),
            outbox: VecDeque::new(),
            drain: None,
            expires_at: None,
            is_broken: false,
            batch: Batch::with_capacity(config.step_tokens_max as usize, lanes_max),
            work: Vec::with_capacity(lanes_max),
            ending: Vec::with_capacity(requests_max),
            parts,
        }
    }

    /// Number of sessions.
    pub fn n_sessions(&self) -> usize {
        self.parts.store.len()
    }

    /// Every session there is, for a directory that knows none yet, and those that have gone.
    pub fn notices(&self) -> Vec<Notice> {
        let store = &self.parts.store;
        let made = store.ids().map(|id| Notice::Made { id });
        let named = self.sessions.iter().filter_map(|(id, session)| {
            let Record { tenant, name, .. } = session.record;
            Some(Notice::Named { id, tenant, name: name? })
        });
        let gone = store.gone().map(|(id, tenant, why)| Notice::Recalled { id, tenant, why });
        made.chain(named).chain(gone).collect()
    }

    /// Takes in an event.
    pub fn handle(&mut self, event: Event, now: Instant) {
        let Some(event) = self.here(event) else { return };
        let placed = event.placed();
        match event {
            Event::Open(submission) => self.open(*submission, now),
            Event::Attach(attachment) => self.attach(*attachment),
            Event::Look(look) => self.look(look),
            Event::List(list) => self.list(list),
            Event::Change(change) => self.change(*change, now),
            Event::Pack(pack) => self.pack(pack),
            Event::Unpack(unpack) => self.unpack(*unpack, now),
            Event::Move(departure) => self.depart(*departure, now),
            Event::Arrive(arrival) => self.arrive(*arrival, now),
            Event::Arrived(arrived) => self.arrived(arrived, now),
            Event::Drain { deadline } => {
                let deadline = self.drain.map_or(deadline, |earlier| earlier.min(deadline));
                self.drain = Some(deadline);
            }
        }
        if let Some(id) = placed {
            self.notify(Notice::Settled { id });
        }
    }

    /// Runs one step: ends what is cancelled, feeds the device, hands out tokens.
    pub fn step(&mut self, now: &impl Fn() -> Instant) -> Progress {
        let started = now();
        self.send_notices();
        self.settle_losses();
        self.send_outbound(started);
        let expired = self.expire(started);
        let ended = self.end_cancelled(started) || expired;
        self.show();
        if self.n_generations == 0 {
            self.observe_gauges();
            return match self.drain {
                Some(deadline)
                    if self.stages.is_empty() && self.moves.are_over() || deadline <= started =>
                {
                    self.finish_drain()
                }
                _ if ended => Progress::Stepped,
                _ if !self.stages.is_empty() || self.moves.have_outbound() => Progress::Stalled,
                _ => Progress::Idle,
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
        self.keep_states();
        let overhead = (before - started) + (now() - after);
        self.parts.metrics.step_overhead.observe(overhead.as_secs_f64());
        self.observe_gauges();
        Progress::Stepped
    }

    /// Forgets sessions that nobody has used for too long; says whether there may be more.
    fn expire(&mut self, now: Instant) -> bool {
        let Some(idle_max) = self.parts.limits.idle_max else { return false };
        if self.expires_at.is_some_and(|at| now < at) {
            return false;
        }
        self.expires_at = Some(now + EXPIRY_POLL);
        let idle_ms_max = u64::try_from(idle_max.as_millis()).unwrap_or(u64::MAX);
        let used_min = self.parts.clock.unix_ms(now).saturating_sub(idle_ms_max);
        // Those with a generation or a name are not among them.
        for _ in 0..EXPIRED_PER_POLL_MAX {
            match self.parts.store.oldest() {
                Some((id, used_at)) if used_at < used_min => {
                    self.parts.metrics.sessions_expired.inc();
                    self.forget(id, Gone::Expired);
                    if self.parts.store.has(id) {
                        // The disk fails; it is tried again at the next poll.
                        return false;
                    }
                }
                _ => return false,
            }
        }
        self.expires_at = None;
        true
    }

    /// Ends the generations whose clients asked to or have gone, and at the deadline of a drain
    /// all; says whether there were any.
    fn end_cancelled(&mut self, now: Instant) -> bool {
        let is_over = self.drain.is_some_and(|deadline| deadline <= now);
        let detached_max = self.parts.limits.detached_max;
        for (slot, generation) in (0..).zip(&mut self.generations) {
            let Some(generation) = generation else { continue };
            if generation.stage.has_readers() {
                generation.detached_at = None;
            }
            let is_alone = !generation.stage.has_readers() && {
                let since = *generation.detached_at.get_or_insert(now);
                !generation.survives || detached_max <= now - since
            };
            if generation.stage.is_cancelled() || is_alone {
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
        let Self { scheduler, generations, .. } = self;
        let events_max = self.parts.text.events_per_step_max();
        scheduler.step(|id| {
            let generation = generations[id.0 as usize].as_ref();
            generation.is_none_or(|it| it.stage.is_crowded(events_max))
        });
        self.work.clear();
        self.batch.clear();
        for i in 0..self.scheduler.plan().unseat.len() {
            let id = self.scheduler.plan().unseat[i];
            let session = expect(&mut self.generations, id).session;
            self.parts.residency.unpin(&mut self.sessions, session);
        }
        for i in 0..self.scheduler.plan().seat.len() {
            self.seat(self.scheduler.plan().seat[i], now);
        }
        let Self { parts, scheduler, sessions, generations, batch, work, .. } = self;
        for item in &scheduler.plan().work {
            let generation = expect(generations, item.id);
            if generation.failed.is_some() || generation.is_replanned {
                continue;
            }
            let tokens = match item.phase {
                Phase::Decode => 1,
                Phase::Prefill { tokens, .. } => tokens,
            };
            generation.feed(sessions.expect(generation.session), tokens, batch);
            if matches!(item.phase, Phase::Prefill { .. }) {
                parts.metrics.prompt_tokens.inc_by(tokens.into());
            }
            work.push(*item);
        }
        for &id in &scheduler.plan().seat {
            expect(generations, id).is_replanned = false;
        }
        parts.metrics.step_sequences.observe(work.len() as f64);
        parts.metrics.step_tokens.observe(batch.tokens.len() as f64);
        self.end_failed();
    }

    /// Brings a session to a lane. If its state there has seen less of the log than was planned with, as the state that
    /// was counted on has been lost since, it is planned again.
    fn seat(&mut self, sequence: SequenceId, now: Instant) {
        let Self { parts, scheduler, sessions, generations, .. } = self;
        let Parts { device, store, residency, metrics, clock, .. } = parts;
        let generation = expect(generations, sequence);
        let id = generation.session;
        let began = clock.now();
        let max = sessions.expect(id).record.position - 1;
        let mut place = Place { store, sessions, device };
        let origin = match residency.seat(&mut place, id, max) {
            Ok(origin) => origin,
            Err(error) => {
                error!(session = %id, %error, "a session got no lane");
                generation.failed = Some("its state could not be brought to the device");
                return;
            }
        };
        if origin == crate::telemetry::metrics::Origin::Parked {
            metrics.session_resume.observe((clock.now() - began).as_secs_f64());
        }
        let session = sessions.expect(id);
        let seat = session.seat.expect("it has just been seated");
        let left = generation.left(&session.record, seat.computed);
        generation.seated(seat.ticket.lane, origin, now, metrics);
        if generation.lacks(seat.computed) {
            let drawn_from = generation.stage.transcript.from();
            let mut log = Vec::new();
            if let Err(error) = store.log(sessions, id, seat.computed..drawn_from, &mut log) {
                error!(session = %id, %error, "a state is lost, and so is the log to compute it from");
                generation.failed = Some("its state is lost");
                return;
            }
            generation.set_feed(seat.computed, &log);
        }
        if left != generation.planned {
            generation.replan(left);
            scheduler.restart(sequence, left);
        }
    }

    /// Takes in the tokens that were drawn, shows them, and ends who is done.
    fn deliver(&mut self, now: Instant) {
        for i in 0..self.work.len() {
            let work = self.work[i];
            let generation = expect(&mut self.generations, work.id);
            let id = generation.session;
            let token = match generation.drawn.take() {
                None => continue,
                Some(Drawn::NotFinite) => {
                    error!(session = %id, "no logit is finite");
                    generation.failed = Some("the model's output is not finite");
                    continue;
                }
                Some(Drawn::Nothing) => {
                    self.ending.push((work.id, FinishReason::Prompt));
                    continue;
                }
                Some(Drawn::Token(token)) => token,
            };
            let Parts { store, text, metrics, .. } = &mut self.parts;
            if Generation::is_logged(token, text) {
                let word = Word::drawn(token);
                if let Err(error) = store.append(&mut self.sessions, id, [word].into_iter()) {
                    error!(session = %id, %error, "a token could not be logged");
                    generation.failed = Some("its log could not be written");
                    continue;
                }
            }
            if let Some(reason) = generation.deliver(token, text, metrics, now) {
                self.ending.push((work.id, reason));
            }
        }
        self.show();
        self.end_failed();
        self.end_all(now);
    }

    /// Shows what is to be shown, once it can be promised.
    fn show(&mut self) {
        if let Err(error) = self.parts.store.commit() {
            error!(%error, "the logs cannot be flushed: nothing more is shown");
            self.is_broken = true;
        }
        if self.is_broken {
            return self.break_off();
        }
        for generation in self.generations.iter_mut().flatten() {
            generation.stage.show();
        }
        self.stages.retain_mut(|stage| {
            stage.show();
            stage.has_readers()
        });
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

    /// Fails all generations.
    fn break_off(&mut self) {
        for generation in self.generations.iter_mut().flatten() {
            generation.failed = Some("the disk does not keep what is written");
        }
        self.stages.clear();
        self.end_failed();
    }

    /// Keeps the states of those that have come far since the last time.
    fn keep_states(&mut self) {
        let interval = u64::from(self.parts.limits.state_interval_tokens);
        for i in 0..self.work.len() {
            let Some(generation) = &self.generations[self.work[i].id.0 as usize] else { continue };
            let (id, junction) = (generation.session, generation.junction);
            let session = self.sessions.expect(id);
            let computed = session.seat.map_or(0, |seat| seat.computed);
            if junction == Some(computed) {
                self.keep_prefix(id, computed);
            } else if session.record.keep
                && interval <= computed - session.record.kept().min(computed)
            {
                self.keep(id);
            }
        }
    }

    /// Keeps the state of a session and writes its row; says whether its row is as it should be.
    fn keep(&mut self, id: SessionId) -> bool {
        let Self { parts, sessions, .. } = self;
        let Parts { device, store, residency, .. } = parts;
        let mut place = Place { store, sessions, device };
        let kept = residency.keep(&mut place, id).map(drop);
        let written = store.write(id, sessions.expect(id));
        if let Err(error) = kept.and(written) {
            warn!(session = %id, %error, "a session could not be parked");
            return false;
        }
        true
    }

    /// Ends the generations in `ending`, each for its reason.
    fn end_all(&mut self, now: Instant) {
        if self.ending.is_empty() {
            return;
        }
        while let Some((sequence, reason)) = self.ending.pop() {
            if self.generations[sequence.0 as usize].is_none() {
                // It has failed meanwhile.
                continue;
            }
            let mut generation = self.take(sequence);
            generation.give_up(reason, &mut self.parts.text);
            let id = generation.session;
            let session = self.sessions.expect(id);
            session.used_at = self.parts.clock.unix_ms(now);
            session.active = false;
            // Interrupted by us, it may be gone on with, even if its client meant it to end here.
            if reason == FinishReason::Shutdown && !session.record.keep {
                session.record.keep = true;
                self.ledger.add(session.record.tenant, 1);
            }
            if let Some(turn) = &mut session.record.turn {
                turn.end = Some(reason);
                turn.text_bytes = generation.stage.transcript.text_bytes();
            }
            let (position, keep) = (session.record.position, session.record.keep);
            self.note_said(id);
            self.parts.residency.unpin(&mut self.sessions, id);
            if keep && 0 < position {
                self.close(id);
            } else {
                self.forget(id, Gone::Ended);
            }
            self.parts.metrics.finished(reason).inc();
            debug!(session = %id, ?reason, position, "finished");
            let finished = generation.finished(reason, position, now);
            let mut stage = generation.into_stage();
            stage.end(PipeEvent::Finished(finished));
            self.stages.push(stage);
        }
        self.show();
    }

    /// Parks a session whose generation has ended.
    fn close(&mut self, id: SessionId) {
        let began = self.parts.clock.now();
        if self.keep(id) {
            self.parts.store.release(self.sessions.expect(id));
            let elapsed = self.parts.clock.now() - began;
            self.parts.metrics.session_park.observe(elapsed.as_secs_f64());
            self.sleep(id);
        }
    }

    /// Ends the generations that failed. What their lanes hold is void; what their logs say stands.
    fn end_failed(&mut self) {
        for slot in 0..self.generations.len() {
            let Some(what) = self.generations[slot].as_ref().and_then(|it| it.failed) else {
                continue;
            };
            let sequence = SequenceId(u32::try_from(slot).expect("requests_max is u32"));
            self.work.retain(|work| work.id != sequence);
            let generation = self.take(sequence);
            let id = generation.session;
            let Parts { device, store, residency, .. } = &mut self.parts;
            let sessions = &mut self.sessions;
            residency.leave(&mut Place { store, sessions, device }, id);
            let session = self.sessions.expect(id);
            session.active = false;
            if let Some(turn) = &mut session.record.turn {
                turn.end = Some(FinishReason::Interrupted);
            }
            if session.record.keep {
                self.close(id);
            } else {
                self.forget(id, Gone::Ended);
            }
            let mut stage = generation.into_stage();
            stage.end(PipeEvent::Failed(Reject::Internal { what }));
            stage.show();
            self.stages.push(stage);
        }
    }

    /// Takes a generation out of the slot and the schedule.
    fn take(&mut self, id: SequenceId) -> Generation {
        self.scheduler.finish(id);
        self.n_generations -= 1;
        self.generations[id.0 as usize].take().expect("a sequence has a generation")
    }

    /// Forgets a session wherever it is.
    fn forget(&mut self, id: SessionId, why: Gone) {
        let forgotten = self.parts.store.forget(&mut self.sessions, id, Some(why));
        match forgotten {
            Some(session) => {
                self.parts.residency.forgotten(&mut self.parts.device, &session);
                self.tell_gone(id, &session, why);
            }
            None => self.settle_losses(),
        }
    }

    /// Tells the directory of a session that is not there any more.
    fn tell_gone(&mut self, id: SessionId, session: &Session, why: Gone) {
        let Record { tenant, name, keep, .. } = session.record;
        if let Some(name) = name {
            self.notify(Notice::Unnamed { id, tenant, name });
        }
        if keep {
            self.ledger.give_back(tenant);
        }
        self.notify(Notice::Gone { id, tenant: tenant.mark(), why });
    }

    /// Has a session awake that `who` may be shown.
    fn wake(&mut self, who: Principal, id: SessionId) -> Result<(), Reject> {
        let unknown = Reject::UnknownSession { id, gone: None };
        if !self.rouse(id) {
            return Err(unknown);
        }
        if !who.sees(self.sessions.expect(id).record.tenant) && !planted(Bug::SkipTenant) {
            self.sleep(id);
            return Err(unknown);
        }
        Ok(())
    }

    /// Has a session awake that is `who`'s own.
    fn wake_own(&mut self, who: Principal, id: SessionId) -> Result<(), Reject> {
        self.wake(who, id)?;
        if !who.owns(self.sessions.expect(id).record.tenant) && !planted(Bug::SkipTenant) {
            self.sleep(id);
            return Err(Reject::Forbidden { id });
        }
        Ok(())
    }

    /// Lets a session sleep, unless it is in use.
    fn sleep(&mut self, id: SessionId) {
        self.parts.store.sleep(&mut self.sessions, id);
    }

    fn finish_drain(&mut self) -> Progress {
        let ids: Vec<SessionId> = self
            .sessions
            .iter()
            .filter(|(_, session)| session.record.keep && session.needs_state())
            .map(|(id, _)| id)
            .collect();
        for id in ids {
            self.keep(id);
        }
        match self.parts.store.flush() {
            Ok(()) => info!(sessions = self.n_sessions(), "drained"),
            Err(error) => error!(%error, "the sessions could not be flushed"),
        }
        Progress::Done
    }

    fn standing(&self, id: SessionId, session: &Session) -> Standing {
        let residence = match session {
            Session { active: true, .. } => Residence::Active,
            Session { seat: Some(_), .. } => Residence::Resident,
            Session { seat: None, .. } => Residence::Parked,
        };
        Standing {
            id,
            tenant: session.record.tenant,
            position: session.record.position,
            position_min: self.parts.store.position_min(session),
            residence,
            name: session.record.name,
            used_at: session.used_at,
        }
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
        let parked = self.n_sessions().saturating_sub(self.n_generations + resident);
        metrics.sessions_parked.set(count(parked));
        let prefix_states = u64::from(self.prefixes.n_states());
        let prefix_bytes = prefix_states * self.parts.store.state_record_bytes();
        metrics.prefix_bytes.set(i64::try_from(prefix_bytes).unwrap_or(i64::MAX));
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

/// What may be kept of prompts: half of the states at most, as sessions have need of them as well.
fn prefix_limits<S: Storage>(limits: &Limits, store: &Store<S>) -> prefixes::Limits {
    let states = limits.prefix_bytes_max / store.state_record_bytes();
    prefixes::Limits {
        states_max: u32::try_from(states).unwrap_or(u32::MAX).min(store.states_max() / 2),
        tokens_max: limits.prefix_tokens_max,
        spared_min: limits.prefix_tokens_min,
    }
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
