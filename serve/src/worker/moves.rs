//! Sessions that move to another worker of the same model, with the generation that runs and all who read it.
//!
//! 1. The worker that has it keeps the state and sends a copy of it, and the generation itself, to the other. The session
//!    stays where it is, out of reach: calls that come for it meanwhile are held back.
//! 2. The other writes the session down, with a later *epoch*, and flushes that; the generation goes on there.
//! 3. The first forgets the session, tells the directory where it is, and sends on what it held back.
//!
//! If the server dies in between, two rows of the session may be left; `server/stores.rs` takes the one of the later epoch. If
//! the other worker refuses, everything goes on where it was.

use std::{
    collections::{HashMap, VecDeque},
    mem,
    time::Instant,
};

use aerie_state_cache::Storage;
use crossbeam::channel::{Sender, TrySendError};
use tracing::{debug, warn};

use super::{Event, Notice, Reply, Standing, Worker, generation::Generation};
use crate::{
    admission::Reject,
    auth::Principal,
    device::Device,
    router::{Load, WorkerId},
    scheduler::{Sequence, SequenceId},
    sessions::SessionId,
    store::Parcel,
};

/// Bring a session to another worker.
#[derive(Debug)]
pub struct Move {
    pub who: Principal,
    pub id: SessionId,
    /// Refuse unless the session stands there.
    pub expected_position: Option<u64>,
    /// Refuse if a generation is running.
    pub only_idle: bool,
    /// The worker that is asked.
    pub from: Peer,
    pub to: Peer,
    /// Of the generation, on the other worker.
    pub load: Load,
    pub reply: Reply,
}

/// A worker, as others reach it.
#[derive(Clone, Debug)]
pub struct Peer {
    pub worker: WorkerId,
    pub events: Sender<Event>,
}

/// A session that comes from another worker.
#[derive(Debug)]
pub struct Arrival {
    id: SessionId,
    parcel: Parcel,
    generation: Option<Box<Generation>>,
    load: Load,
    from: Peer,
}

/// What came of a move.
#[derive(Debug)]
pub struct Arrived {
    id: SessionId,
    outcome: Result<Standing, (Reject, Option<Box<Generation>>)>,
}

/// What a worker knows of sessions that move, and have moved.
#[derive(Debug, Default)]
pub(super) struct Moves {
    leaving: HashMap<SessionId, Leaving>,
    /// Where the last of those went that have left: for calls that were on their way.
    left: HashMap<SessionId, Sender<Event>>,
    left_order: VecDeque<SessionId>,
    /// For other workers, oldest first.
    outbound: VecDeque<(Sender<Event>, Event)>,
    /// Calls that are held back for all that leave.
    n_held: usize,
}

#[derive(Debug)]
struct Leaving {
    to: Peer,
    reply: Reply,
    held: Vec<Event>,
    began: Instant,
}

/// Sessions that have left which are remembered.
const LEFT_MAX: usize = 1024;

impl Moves {
    /// Whether nothing is under way.
    pub(super) fn are_over(&self) -> bool {
        self.leaving.is_empty() && self.outbound.is_empty()
    }

    /// Whether other workers are still to be told of something.
    pub(super) fn have_outbound(&self) -> bool {
        !self.outbound.is_empty()
    }

    /// Calls that wait: for a session to arrive where it goes, or for room in another worker's inbox.
    fn n_waiting(&self) -> usize {
        self.n_held + self.outbound.len()
    }

    fn remember(&mut self, id: SessionId, to: Sender<Event>) {
        if self.left.insert(id, to).is_none() {
            self.left_order.push_back(id);
        }
        if LEFT_MAX < self.left_order.len()
            && let Some(oldest) = self.left_order.pop_front()
        {
            self.left.remove(&oldest);
        }
    }
}

impl<S: Storage, D: Device> Worker<S, D> {
    /// Gives an event back that is to be handled here and now. One for a session that is about to leave waits; one for a
    /// session that has left goes where that is. If too many wait already, it is refused.
    pub(super) fn here(&mut self, event: Event) -> Option<Event> {
        let is_full = self.parts.limits.held_calls_max as usize <= self.moves.n_waiting();
        let Moves { leaving, left, n_held, .. } = &mut self.moves;
        for id in event.sessions().into_iter().flatten() {
            let leaving = leaving.get_mut(&id);
            let to = left.get(&id).filter(|_| !self.parts.store.has(id)).cloned();
            if is_full && (leaving.is_some() || to.is_some()) {
                self.turn_away(event);
                return None;
            }
            if let Some(leaving) = leaving {
                leaving.held.push(event);
                *n_held += 1;
                return None;
            }
            if let Some(to) = to {
                self.send_on(to, event);
                return None;
            }
        }
        Some(event)
    }

    /// Refuses a call for which there is no room to wait.
    fn turn_away(&mut self, event: Event) {
        let placed = event.placed();
        event.refuse(Reject::Unavailable { retry_after: self.parts.limits.retry_after });
        if let Some(id) = placed {
            self.notify(Notice::Settled { id });
        }
    }

    /// Sends an event on to where its session is now. Not so one that was to bring it from here to there or elsewhere: whoever
    /// wants that looks again where it is.
    fn send_on(&mut self, to: Sender<Event>, event: Event) {
        match event {
            Event::Move(departure) => {
                let retry_after = self.parts.limits.retry_after;
                departure.reply.send(Err(Reject::Unavailable { retry_after })).ok();
            }
            event => self.moves.outbound.push_back((to, event)),
        }
    }

    /// Sends a session on its way.
    pub(super) fn depart(&mut self, departure: Move, now: Instant) {
        let Move { who, id, expected_position, only_idle, from, to, load, reply } = departure;
        if from.worker == to.worker {
            let standing = self.wake(who, id).map(|()| self.stands(id));
            self.sleep(id);
            reply.send(standing).ok();
            return;
        }
        match self.pack_up(who, id, expected_position, only_idle) {
            Ok((parcel, generation)) => {
                let arrival = Arrival { id, parcel, generation, load, from };
                let events = to.events.clone();
                let leaving = Leaving { to, reply, held: Vec::new(), began: now };
                self.moves.leaving.insert(id, leaving);
                self.moves.outbound.push_back((events, Event::Arrive(Box::new(arrival))));
                self.send_outbound(now);
            }
            Err(reject) => {
                self.sleep(id);
                reply.send(Err(reject)).ok();
            }
        }
    }

    fn pack_up(
        &mut self,
        who: Principal,
        id: SessionId,
        expected: Option<u64>,
        only_idle: bool,
    ) -> Result<(Parcel, Option<Box<Generation>>), Reject> {
        if self.drain.is_some() || self.is_broken {
            return Err(Reject::Unavailable { retry_after: self.parts.limits.retry_after });
        }
        self.wake(who, id)?;
        let session = self.sessions.expect(id);
        let position = session.record.position;
        if let Some(expected) = expected.filter(|it| *it != position) {
            return Err(Reject::StalePosition { id, position, expected });
        }
        if session.active && only_idle {
            return Err(Reject::SessionBusy { id });
        }
        if session.needs_state() && !self.keep(id) {
            return Err(Reject::Internal { what: "its state could not be kept" });
        }
        let parcel = self.parts.store.pack(&mut self.sessions, id).map_err(|error| {
            warn!(session = %id, %error, "a session could not be copied");
            Reject::Internal { what: "it could not be read" }
        })?;
        // So that it does not give way meanwhile.
        self.reserve(id)?;
        let generation = self.running(id).map(|slot| {
            let slot = u32::try_from(slot).expect("requests_max is u32");
            let mut generation = self.take(SequenceId(slot));
            generation.leave();
            Box::new(generation)
        });
        self.parts.residency.unpin(&mut self.sessions, id);
        self.sessions.expect(id).active = true;
        Ok((parcel, generation))
    }

    /// Takes in a session from another worker.
    pub(super) fn arrive(&mut self, arrival: Arrival, now: Instant) {
        let Arrival { id, parcel, mut generation, load, from } = arrival;
        let running = generation.is_some();
        let outcome = match self.unpack_moved(id, parcel, running) {
            Ok(standing) => {
                if let Some(mut generation) = generation.take() {
                    generation.set_load(load);
                    self.go_on(id, *generation);
                }
                debug!(session = %id, running, "came from another device");
                Ok(standing)
            }
            Err(reject) => Err((reject, generation)),
        };
        self.moves.outbound.push_back((from.events, Event::Arrived(Arrived { id, outcome })));
        self.send_outbound(now);
    }

    fn unpack_moved(
        &mut self,
        id: SessionId,
        mut parcel: Parcel,
        running: bool,
    ) -> Result<Standing, Reject> {
        if self.drain.is_some() || self.is_broken {
            return Err(Reject::Unavailable { retry_after: self.parts.limits.retry_after });
        }
        if self.rouse(id) {
            let position = self.sessions.expect(id).record.position;
            return Err(Reject::SessionExists { id, position });
        }
        parcel.record.epoch += 1;
        // Whatever a tape still has of an earlier stay here is not of this one.
        parcel.record.branch += 1;
        let failed = |error| {
            warn!(session = %id, %error, "a session could not be taken in");
            Reject::Internal { what: "it could not be written" }
        };
        let unpacked = self.parts.store.unpack(&mut self.sessions, id, &parcel);
        self.tell_evicted();
        unpacked.map_err(failed)?;
        let kept = match running {
            true => self.reserve(id),
            false => Ok(()),
        };
        // The other forgets it now, so here it has to survive a loss of power.
        let flushed = self.parts.store.flush_logs_and_rows().map_err(|error| {
            warn!(session = %id, %error, "a session that was taken in could not be flushed");
            Reject::Internal { what: "the disk does not keep what is written" }
        });
        if let Err(reject) = kept.and(flushed) {
            self.parts.store.forget(&mut self.sessions, id, None);
            return Err(reject);
        }
        self.sessions.expect(id).active = running;
        if parcel.record.keep {
            self.ledger.arrive(parcel.record.tenant);
        }
        self.moves.left.remove(&id);
        let standing = self.stands(id);
        self.sleep(id);
        Ok(standing)
    }

    /// Takes in what came of a move to another worker.
    pub(super) fn arrived(&mut self, arrived: Arrived, now: Instant) {
        let Arrived { id, outcome } = arrived;
        let Some(Leaving { to, reply, held, began }) = self.moves.leaving.remove(&id) else {
            return;
        };
        self.moves.n_held -= held.len();
        match outcome {
            Ok(standing) => {
                let forgotten = self.parts.store.forget(&mut self.sessions, id, None);
                if let Some(session) = &forgotten {
                    self.parts.residency.forgotten(&mut self.parts.device, session);
                    if session.record.keep {
                        self.ledger.depart(session.record.tenant);
                    }
                }
                self.notify(Notice::Moved { id, to: to.worker });
                self.parts.metrics.session_move.observe((now - began).as_secs_f64());
                self.moves.remember(id, to.events.clone());
                held.into_iter().for_each(|event| self.send_on(to.events.clone(), event));
                reply.send(Ok(standing)).ok();
                self.send_outbound(now);
            }
            Err((reject, generation)) => {
                debug!(session = %id, %reject, "a session stays where it is");
                match generation {
                    Some(generation) => self.go_on(id, *generation),
                    None => {
                        let session = self.sessions.expect(id);
                        session.active = false;
                        self.parts.store.release(session);
                        self.sleep(id);
                    }
                }
                reply.send(Err(reject)).ok();
                for event in held {
                    self.handle(event, now);
                }
            }
        }
    }

    /// Sets a generation going again, where its log ends.
    fn go_on(&mut self, id: SessionId, mut generation: Generation) {
        let record = &self.sessions.expect(id).record;
        let computed = record.state_within(record.position - 1).map_or(0, |it| it.computed);
        let left = generation.left(record, computed);
        generation.planned = left;
        let sequence = self.place(generation);
        self.scheduler.push(Sequence { id: sequence, prompt_left: left, stop_at: 0 });
    }

    /// Sends other workers what they have room for.
    pub(super) fn send_outbound(&mut self, now: Instant) {
        for (to, event) in mem::take(&mut self.moves.outbound) {
            if self.moves.have_outbound() {
                self.moves.outbound.push_back((to, event));
                continue;
            }
            match to.try_send(event) {
                Ok(()) => {}
                Err(TrySendError::Full(event)) => self.moves.outbound.push_back((to, event)),
                // It has ended, so the session stays here. Whoever waits for another answer learns of the end.
                Err(TrySendError::Disconnected(Event::Arrive(arrival))) => {
                    let Arrival { id, generation, .. } = *arrival;
                    let retry_after = self.parts.limits.retry_after;
                    let outcome = Err((Reject::Unavailable { retry_after }, generation));
                    self.arrived(Arrived { id, outcome }, now);
                }
                Err(TrySendError::Disconnected(_)) => {}
            }
        }
    }
}
