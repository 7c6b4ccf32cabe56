//! Moves states between a device's lanes and the state cache; only here do their bytes move.
//!
//! A lane is a cache of a session's state. Whoever has a generation running is *pinned* to its lane;
//! the lanes of all others go to the next who needs one, least recently used first. Each session
//! with a generation holds a lease on its record, so that there is always room to park it.

#[cfg(test)]
mod tests;

use aerie_state_cache::{Key, LeaseError, ReadError, StateCache, Storage, WriteError};
use thiserror::Error;
use tracing::warn;

use crate::{
    device::{Device, DeviceDims, Lane},
    sessions::{Fingerprint, Session, SessionId, Sessions, Snapshot, SnapshotError},
    telemetry::metrics::Origin,
};

/// The lanes of one device and the records of one state cache.
///
/// # Invariants
/// - A lane is free or held by exactly one session, whose [`LaneTicket`] says so.
/// - A session that is not in a lane has a record of its state, or has none yet.
#[derive(Debug)]
pub struct Residency<S> {
    cache: StateCache<S>,
    fingerprint: Fingerprint,
    lanes: Vec<Slot>,
    free: Vec<Lane>,
    /// Grows with every seat taken; the lane with the least has been idle longest.
    seats: u64,
    /// One state, on its way.
    scratch: Box<[u8]>,
    park_failures: u64,
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
    pub lane: Lane,
    /// Where its state was before.
    pub origin: Origin,
}

/// Why a session gets no lane.
#[derive(Debug, Error)]
pub enum SeatError {
    #[error("every lane is pinned, or its state cannot be parked")]
    NoLane,
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    #[error("the latest record is damaged; the one before stands at position {position}")]
    RolledBack { position: u64 },
}

/// What became of a session whose generation ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Closed {
    /// A record of how it stands was written.
    Parked,
    /// No record was to be written, or none could be.
    Kept,
    Gone,
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

impl<S: Storage> Residency<S> {
    /// All lanes free.
    ///
    /// # Panics
    /// If the records of `cache` do not have [`record_bytes`] of `dims`.
    pub fn new(cache: StateCache<S>, fingerprint: Fingerprint, dims: DeviceDims) -> Self {
        let slot = Slot { generation: 0, holder: None, pinned: false, used: 0 };
        let state_bytes = usize::try_from(dims.state_bytes).expect("a state fits in memory");
        Self {
            cache,
            fingerprint,
            lanes: vec![slot; dims.lanes as usize],
            free: (0..dims.lanes).rev().map(Lane).collect(),
            seats: 0,
            scratch: vec![0; state_bytes].into_boxed_slice(),
            park_failures: 0,
        }
    }

    /// The sessions of which the cache has records; those that are not worth keeping are removed.
    pub fn recover(&mut self) -> Sessions {
        let mut sessions = Sessions::default();
        let records: Vec<_> = self.cache.records().collect();
        for info in records {
            let id = SessionId(info.key.0);
            let snapshot =
                self.cache.read(info.key).map_err(SeatError::from).and_then(|record| {
                    Ok(Snapshot::decode(block(record.bytes), &self.fingerprint)?)
                });
            match snapshot {
                Ok(snapshot) if snapshot.keep => {
                    sessions.insert(id, Session::parked(&snapshot, info.used_at));
                }
                Ok(_) => self.remove_record(id),
                Err(error) => {
                    warn!(session = %id, %error, "a session is lost");
                    self.remove_record(id);
                }
            }
        }
        sessions
    }

    /// Makes sure that the session `id`, which begins a generation, can be parked; returns the
    /// session whose record gave way, which is forgotten.
    ///
    /// # Errors
    /// If every record belongs to a session with a generation, or the cache fails.
    pub fn reserve(
        &mut self,
        sessions: &mut Sessions,
        device: &mut dyn Device,
        id: SessionId,
    ) -> Result<Option<SessionId>, LeaseError> {
        if sessions.expect(id).lease.is_some() {
            return Ok(None);
        }
        let leased = self.cache.lease(Key(id.0))?;
        sessions.expect(id).lease = Some(leased.lease);
        let Some(Key(evicted)) = leased.evicted else { return Ok(None) };
        let evicted = SessionId(evicted);
        if let Some(session) = sessions.remove(evicted) {
            self.free_lane(device, &session);
        }
        Ok(Some(evicted))
    }

    /// Puts a session in a lane and pins it there.
    ///
    /// # Errors
    /// See [`SeatError`]; the session has no lane then.
    pub fn seat(
        &mut self,
        sessions: &mut Sessions,
        device: &mut dyn Device,
        id: SessionId,
    ) -> Result<Seat, SeatError> {
        self.seats += 1;
        let &mut Session { lane, decoder, .. } = sessions.expect(id);
        if let Some(ticket) = lane {
            let slot = self.slot(ticket);
            slot.pinned = true;
            return Ok(Seat { lane: ticket.lane, origin: Origin::Resident });
        }
        let lane = self.take_lane(sessions, device)?;
        let origin = if decoder.computed() == 0 {
            Origin::New
        } else if let Err(error) = self.load(sessions, device, id, lane) {
            self.free.push(lane);
            return Err(error);
        } else {
            Origin::Parked
        };
        let seats = self.seats;
        let slot = &mut self.lanes[lane.0 as usize];
        let generation = slot.generation + 1;
        *slot = Slot { generation, holder: Some(id), pinned: true, used: seats };
        sessions.expect(id).lane = Some(LaneTicket { lane, generation });
        Ok(Seat { lane, origin })
    }

    /// Leaves a session in its lane, but lets others take it.
    pub fn unpin(&mut self, sessions: &mut Sessions, id: SessionId) {
        if let Some(ticket) = sessions.expect(id).lane {
            self.slot(ticket).pinned = false;
        }
    }

    /// Ends a session's generation. A session that is kept gets a record of how it stands now;
    /// any other is forgotten.
    pub fn close(
        &mut self,
        sessions: &mut Sessions,
        device: &mut dyn Device,
        id: SessionId,
    ) -> Closed {
        self.unpin(sessions, id);
        let session = sessions.expect(id);
        session.active = false;
        // Nothing has been computed: there is no state to go on from.
        if !session.keep || session.decoder.position == 0 {
            self.forget(sessions, device, id);
            return Closed::Gone;
        }
        if !session.needs_record() {
            self.release(session);
            return Closed::Kept;
        }
        if let Err(error) = self.park(sessions, device, id) {
            // It lives on in its lane, and holds its lease; parking is tried again.
            warn!(session = %id, %error, "a session could not be parked");
            return Closed::Kept;
        }
        self.release(sessions.expect(id));
        Closed::Parked
    }

    /// Undoes what a failed step may have done to a session: goes back to its record.
    pub fn revert(
        &mut self,
        sessions: &mut Sessions,
        device: &mut dyn Device,
        id: SessionId,
    ) -> Closed {
        let fingerprint = self.fingerprint;
        let snapshot = match self.cache.read(Key(id.0)) {
            Ok(record) => Snapshot::decode(block(record.bytes), &fingerprint).ok(),
            Err(_) => None,
        };
        let Some(snapshot) = snapshot.filter(|snapshot| snapshot.keep) else {
            self.forget(sessions, device, id);
            return Closed::Gone;
        };
        let session = sessions.expect(id);
        session.active = false;
        session.decoder = snapshot.decoder;
        session.recorded = true;
        let lane = session.lane.take();
        self.release(session);
        if let Some(ticket) = lane {
            self.vacate(device, ticket);
        }
        Closed::Kept
    }

    /// Forgets a session wherever it is.
    pub fn forget(&mut self, sessions: &mut Sessions, device: &mut dyn Device, id: SessionId) {
        let Some(mut session) = sessions.remove(id) else { return };
        self.release(&mut session);
        self.free_lane(device, &session);
        self.remove_record(id);
    }

    /// Writes a record of a session that is in a lane.
    ///
    /// # Errors
    /// If the state cache fails; the session stays as it was.
    pub fn park(
        &mut self,
        sessions: &mut Sessions,
        device: &mut dyn Device,
        id: SessionId,
    ) -> Result<(), WriteError> {
        let session = sessions.expect(id);
        let &mut Session { decoder, keep, used_at, .. } = session;
        let ticket = session.lane.expect("who is not in a lane has a record");
        let lease = session.lease.expect("who has no record holds a lease");
        self.slot(ticket);
        device.read_lane(ticket.lane, &mut self.scratch);
        let block = Snapshot { decoder, keep, fingerprint: self.fingerprint }.encode();
        let written = self.cache.write_leased(lease, &[&block, &self.scratch], used_at);
        if written.is_err() {
            self.park_failures += 1;
        }
        written?;
        sessions.expect(id).recorded = true;
        Ok(())
    }

    /// Parks all that can be, and makes the records survive a loss of power.
    ///
    /// # Errors
    /// If the state cache cannot be flushed.
    pub fn flush(
        &mut self,
        sessions: &mut Sessions,
        device: &mut dyn Device,
    ) -> std::io::Result<()> {
        let unrecorded: Vec<SessionId> = sessions
            .iter()
            .filter(|(_, session)| session.keep && session.needs_record())
            .map(|(id, _)| id)
            .collect();
        for id in unrecorded {
            if let Err(error) = self.park(sessions, device, id) {
                warn!(session = %id, %error, "a session is lost");
            }
        }
        self.cache.flush()
    }

    /// Lanes that nobody holds.
    pub fn n_free(&self) -> usize {
        self.free.len()
    }

    pub fn n_lanes(&self) -> usize {
        self.lanes.len()
    }

    /// Records that could not be written, so far.
    pub fn park_failures(&self) -> u64 {
        self.park_failures
    }

    /// A free lane, or the one that has been idle longest; its holder is parked.
    fn take_lane(
        &mut self,
        sessions: &mut Sessions,
        device: &mut dyn Device,
    ) -> Result<Lane, SeatError> {
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
            if sessions.expect(holder).needs_record()
                && let Err(error) = self.park(sessions, device, holder)
            {
                warn!(session = %holder, %error, "a session could not be parked");
                continue;
            }
            let session = sessions.expect(holder);
            let ticket = session.lane.take().expect("it holds a lane");
            if !session.active {
                self.release(session);
            }
            self.vacate(device, ticket);
            return Ok(self.free.pop().expect("it has just been vacated"));
        }
    }

    /// Copies a session's record to `lane`.
    fn load(
        &mut self,
        sessions: &mut Sessions,
        device: &mut dyn Device,
        id: SessionId,
        lane: Lane,
    ) -> Result<(), SeatError> {
        let record = self.cache.read(Key(id.0))?;
        let snapshot = Snapshot::decode(block(record.bytes), &self.fingerprint)?;
        let session = sessions.expect(id);
        if snapshot.decoder != session.decoder {
            session.decoder = snapshot.decoder;
            return Err(SeatError::RolledBack { position: snapshot.decoder.position });
        }
        device.write_lane(lane, &record.bytes[Snapshot::BYTES..]);
        Ok(())
    }

    /// The lane of a ticket.
    ///
    /// # Panics
    /// If the lane has another holder by now: one session was about to see another's state.
    fn slot(&mut self, ticket: LaneTicket) -> &mut Slot {
        let seats = self.seats;
        let slot = &mut self.lanes[ticket.lane.0 as usize];
        assert_eq!(slot.generation, ticket.generation, "{:?} has another holder", ticket.lane);
        slot.used = seats;
        slot
    }

    fn free_lane(&mut self, device: &mut dyn Device, session: &Session) {
        if let Some(ticket) = session.lane {
            self.vacate(device, ticket);
        }
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

    fn release(&mut self, session: &mut Session) {
        if let Some(lease) = session.lease.take() {
            self.cache.release(lease).expect("a session holds its lease until here");
        }
    }

    fn remove_record(&mut self, id: SessionId) {
        if self.cache.record(Key(id.0)).is_some()
            && let Err(error) = self.cache.remove(Key(id.0))
        {
            warn!(session = %id, %error, "a record could not be removed");
        }
    }
}

/// Bytes of a session's record.
pub fn record_bytes(state_bytes: u64) -> u64 {
    Snapshot::BYTES as u64 + state_bytes
}

fn block(record: &[u8]) -> &[u8; Snapshot::BYTES] {
    record.first_chunk().expect("records begin with a block")
}
