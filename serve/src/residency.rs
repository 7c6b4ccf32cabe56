//! Moves states between a device's lanes and the store; only here do their bytes move.
//!
//! A lane has a state of a session, which has seen some of its log. Whoever has a generation running is *pinned*
//! to its lane; the lanes of all others go to the next who needs one, least recently used first.

#[cfg(test)]
mod tests;

use std::io;

use aerie_state_cache::Storage;
use thiserror::Error;
use tracing::warn;

use crate::{
    device::{Device, DeviceDims, Lane},
    planted::{Bug, planted},
    sessions::{Session, SessionId, Sessions},
    store::{Store, StoreError},
    telemetry::metrics::Origin,
};

/// The lanes of one device.
///
/// # Invariants
/// - A lane is free or held by exactly one session, whose [`LaneTicket`] says so.
#[derive(Debug)]
pub struct Residency {
    lanes: Vec<Slot>,
    free: Vec<Lane>,
    /// Grows with every seat taken; the lane with the least has been idle longest.
    seats: u64,
    /// One state, on its way.
    scratch: Box<[u8]>,
    park_failures: u64,
}

/// What moves: the lanes' states, the sessions that they are of, and where they are kept.
#[expect(missing_debug_implementations, reason = "devices have nothing to show")]
pub struct Place<'a, S> {
    pub store: &'a mut Store<S>,
    pub sessions: &'a mut Sessions,
    pub device: &'a mut dyn Device,
}

/// A lane as its holder knows it; void once the lane has been given to another.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct LaneTicket {
    pub lane: Lane,
    /// Counts the holders of the lane.
    generation: u32,
}

/// A session in its lane.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Seat {
    pub ticket: LaneTicket,
    /// Tokens that the state in the lane has seen.
    pub computed: u64,
}

/// Why a session gets no lane.
#[derive(Debug, Error)]
pub enum SeatError {
    #[error("every lane is pinned, or its state cannot be parked")]
    NoLane,
    #[error(transparent)]
    Io(#[from] io::Error),
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    generation: u32,
    holder: Option<SessionId>,
    /// Its holder has a generation running.
    pinned: bool,
    /// [`Residency::seats`] when it was last taken.
    used: u64,
}

impl Residency {
    /// All lanes free.
    pub fn new(dims: DeviceDims) -> Self {
        let slot = Slot { generation: 0, holder: None, pinned: false, used: 0 };
        let state_bytes = usize::try_from(dims.state_bytes).expect("a state fits in memory");
        Self {
            lanes: vec![slot; dims.lanes as usize],
            free: (0..dims.lanes).rev().map(Lane).collect(),
            seats: 0,
            scratch: vec![0; state_bytes].into_boxed_slice(),
            park_failures: 0,
        }
    }

    /// Puts a session in a lane, with the latest state that there is of it and that has seen no more than `max` tokens, and
    /// pins it there. Says where that state was.
    ///
    /// # Errors
    /// See [`SeatError`]; the session has no lane then.
    pub fn seat(
        &mut self,
        place: &mut Place<'_, impl Storage>,
        id: SessionId,
        max: u64,
    ) -> Result<Origin, SeatError> {
        self.seats += 1;
        if let Some(seat) = place.sessions.expect(id).seat {
            if seat.computed <= max {
                self.slot(seat.ticket).pinned = true;
                return Ok(Origin::Resident);
            }
            self.leave(place, id);
        }
        let lane = self.take_lane(place)?;
        let Place { store, sessions, device } = place;
        let session = sessions.expect(id);
        let found = store.find_state(session, max, |at, part| device.write_part(lane, at, part));
        let found = match found {
            Ok(found) => found,
            Err(error) => {
                self.free.push(lane);
                return Err(error.into());
            }
        };
        let seats = self.seats;
        let slot = &mut self.lanes[lane.0 as usize];
        let generation = slot.generation + 1;
        *slot = Slot { generation, holder: Some(id), pinned: true, used: seats };
        let ticket = LaneTicket { lane, generation };
        session.seat = Some(Seat { ticket, computed: found.unwrap_or(0) });
        Ok(if found.is_some() { Origin::Parked } else { Origin::New })
    }

    /// Leaves a session in its lane, but lets others take it.
    pub fn unpin(&mut self, sessions: &mut Sessions, id: SessionId) {
        if let Some(seat) = sessions.expect(id).seat {
            self.slot(seat.ticket).pinned = false;
        }
    }

    /// Keeps the state of a session that is in a lane, if it is later than those that are kept already. Its row is
    /// to be written after that.
    ///
    /// # Errors
    /// If the store fails; the session stays as it was.
    pub fn keep(
        &mut self,
        place: &mut Place<'_, impl Storage>,
        id: SessionId,
    ) -> Result<bool, StoreError> {
        let session = place.sessions.expect(id);
        let Some(seat) = session.seat.filter(|_| session.needs_state()) else { return Ok(false) };
        self.holders_slot(seat.ticket);
        for seen in place.store.packing().seen(seat.computed) {
            let part = &mut self.scratch[seen.clone()];
            place.device.read_part(seat.ticket.lane, seen.start, part);
        }
        let kept = place.store.keep_state(session, seat.computed, &self.scratch);
        if kept.is_err() {
            self.park_failures += 1;
        }
        kept.map(|()| true)
    }

    /// Takes a session out of its lane, whose state is not wanted any more.
    pub fn leave(&mut self, place: &mut Place<'_, impl Storage>, id: SessionId) {
        if let Some(seat) = place.sessions.expect(id).seat.take() {
            self.vacate(place.device, seat.ticket);
        }
    }

    /// Frees the lane of a session that has been forgotten.
    pub fn forgotten(&mut self, device: &mut dyn Device, session: &Session) {
        if let Some(seat) = session.seat {
            self.vacate(device, seat.ticket);
        }
    }

    /// Lanes that nobody holds.
    pub fn n_free(&self) -> usize {
        self.free.len()
    }

    pub fn n_lanes(&self) -> usize {
        self.lanes.len()
    }

    /// States that could not be kept, so far.
    pub fn park_failures(&self) -> u64 {
        self.park_failures
    }

    /// A free lane, or the one that has been idle longest; its holder is parked.
    fn take_lane(&mut self, place: &mut Place<'_, impl Storage>) -> Result<Lane, SeatError> {
        if planted(Bug::AliasLane)
            && let Some(&lane) = self.free.last()
        {
            return Ok(lane);
        }
        if let Some(lane) = self.free.pop() {
            return Ok(lane);
        }
        // Those that cannot be parked are passed over: each round tries one that is idle longer
        // than the next, so there are at most as many rounds as lanes.
        let mut used_min = 0;
        loop {
            let idle = self.lanes.iter().filter(|slot| !slot.pinned && used_min <= slot.used);
            let slot = idle.min_by_key(|slot| slot.used).ok_or(SeatError::NoLane)?;
            used_min = slot.used + 1;
            let holder = slot.holder.expect("no lane is free");
            match self.keep(place, holder) {
                Ok(false) => {}
                Ok(true) => {
                    let session = place.sessions.expect(holder);
                    if let Err(error) = place.store.write(holder, session) {
                        warn!(session = %holder, %error, "its row could not be written");
                    }
                    if !session.active {
                        place.store.release(session);
                    }
                }
                Err(error) => {
                    warn!(session = %holder, %error, "a session could not be parked");
                    continue;
                }
            }
            self.leave(place, holder);
            place.store.sleep(place.sessions, holder);
            return Ok(self.free.pop().expect("it has just been vacated"));
        }
    }

    /// The lane of a ticket, which is used.
    fn slot(&mut self, ticket: LaneTicket) -> &mut Slot {
        let seats = self.seats;
        let slot = self.holders_slot(ticket);
        slot.used = seats;
        slot
    }

    /// The lane of a ticket.
    ///
    /// # Panics
    /// If the lane has another holder by now: one session was about to see another's state.
    fn holders_slot(&mut self, ticket: LaneTicket) -> &mut Slot {
        let slot = &mut self.lanes[ticket.lane.0 as usize];
        assert_eq!(slot.generation, ticket.generation, "{:?} has another holder", ticket.lane);
        slot
    }

    fn vacate(&mut self, device: &mut dyn Device, ticket: LaneTicket) {
        let slot = self.slot(ticket);
        slot.holder = None;
        slot.pinned = false;
        // So that an old ticket is void at once, and not only when the lane is taken again.
        slot.generation += 1;
        self.free.push(ticket.lane);
        if cfg!(debug_assertions) {
            // Every byte set is not a number: whoever reads it shows it.
            self.scratch.fill(0xFF);
            device.write_lane(ticket.lane, &self.scratch);
        }
    }
}
