//! Calls that change a session at once: delete, fork, rewind, name.

use std::time::Instant;

use aerie_state_cache::Storage;
use tokio::sync::oneshot;
use tracing::warn;

use super::{Notice, Parts, Reply, Standing, Worker};
use crate::{
    admission::Reject,
    auth::{Principal, TenantId},
    device::Device,
    planted::{Bug, planted},
    residency::{Place, Seat},
    router::Gone,
    sessions::{Name, Record, Session, SessionId},
    store::Parcel,
};

/// A change on its way to a worker, and where its answer goes.
#[derive(Debug)]
pub struct Change {
    pub who: Principal,
    pub id: SessionId,
    /// Refuse unless the session stands there.
    pub expected_position: Option<u64>,
    pub what: What,
    pub reply: Reply,
}

/// What is to be done to a session.
#[derive(Clone, Copy, Debug)]
pub enum What {
    Delete,
    Fork(Fork),
    Rewind(Rewind),
    Name(Rename),
}

/// Make `new`, which stands where the session stands or stood.
#[derive(Clone, Copy, Debug)]
pub struct Fork {
    pub new: SessionId,
    pub position: Option<u64>,
    /// Of the request, if its client gave it an id to know it by.
    pub digest: Option<u128>,
}

/// Go back to `position`.
#[derive(Clone, Copy, Debug)]
pub struct Rewind {
    pub position: u64,
    /// As in [`Fork`].
    pub digest: Option<u128>,
}

/// Take a name, or lose the one there is.
#[derive(Clone, Copy, Debug)]
pub struct Rename {
    pub name: Option<Name>,
}

/// Take a copy of an idle session.
#[derive(Debug)]
pub struct Pack {
    pub who: Principal,
    pub id: SessionId,
    /// Refuse unless the session stands there.
    pub expected_position: Option<u64>,
    pub reply: oneshot::Sender<Result<Parcel, Reject>>,
}

/// Make a session of a copy.
#[derive(Debug)]
pub struct Unpack {
    pub who: Principal,
    pub id: SessionId,
    pub parcel: Parcel,
    /// As in [`Fork`].
    pub digest: Option<u128>,
    pub reply: Reply,
}

impl<S: Storage, D: Device> Worker<S, D> {
    /// Takes a copy of a session and answers with it.
    pub(super) fn pack(&mut self, pack: Pack) {
        let Pack { who, id, expected_position, reply } = pack;
        let packed = self.wake_own(who, id).and_then(|()| self.try_pack(id, expected_position));
        self.sleep(id);
        reply.send(packed).ok();
    }

    fn try_pack(&mut self, id: SessionId, expected: Option<u64>) -> Result<Parcel, Reject> {
        self.expect_idle_at(id, expected)?;
        // What is in a lane alone is kept first.
        if self.sessions.expect(id).needs_state() && !self.keep(id) {
            return Err(Reject::Internal { what: "its state could not be kept" });
        }
        let mut parcel = self.parts.store.pack(&mut self.sessions, id).map_err(|error| {
            warn!(session = %id, %error, "a session could not be copied");
            Reject::Internal { what: "it could not be read" }
        })?;
        // Whose it is and where it has been is no business of whoever gets the copy.
        parcel.record.tenant = TenantId::ANONYMOUS;
        parcel.record.name = None;
        parcel.record.epoch = 0;
        Ok(parcel)
    }

    /// Makes a session of a copy and answers.
    pub(super) fn unpack(&mut self, unpack: Unpack, now: Instant) {
        let Unpack { who, id, mut parcel, digest, reply } = unpack;
        parcel.used_at = self.parts.clock.unix_ms(now);
        parcel.record.moved_by = digest;
        parcel.record.tenant = who.tenant;
        // Names are each server's own. It is kept, whatever the file says, or it would count for nobody.
        parcel.record.name = None;
        parcel.record.keep = true;
        let unpacked = self.try_unpack(who, id, &parcel, digest);
        self.sleep(id);
        reply.send(self.committed(unpacked)).ok();
    }

    fn try_unpack(
        &mut self,
        who: Principal,
        id: SessionId,
        parcel: &Parcel,
        digest: Option<u128>,
    ) -> Result<Standing, Reject> {
        if self.rouse(id) {
            self.wake_own(who, id)?;
            if self.was_moved_by(id, digest) {
                return Ok(self.stands(id));
            }
            let position = self.sessions.expect(id).record.position;
            return Err(Reject::SessionExists { id, position });
        }
        self.ledger.take(who.tenant)?;
        let unpacked = self.parts.store.unpack(&mut self.sessions, id, parcel);
        self.tell_evicted();
        unpacked.map_err(|error| {
            warn!(session = %id, %error, "a session could not be made of a copy");
            self.ledger.give_back(who.tenant);
            Reject::Internal { what: "it could not be written" }
        })?;
        self.notify(Notice::Made { id });
        Ok(self.stands(id))
    }

    /// An answer, once what it tells of can be promised.
    fn committed(&mut self, answer: Result<Standing, Reject>) -> Result<Standing, Reject> {
        match self.parts.store.commit() {
            Ok(()) => answer,
            Err(error) => {
                warn!(%error, "a change cannot be flushed");
                self.is_broken = true;
                Err(Reject::Internal { what: "the disk does not keep what is written" })
            }
        }
    }

    /// Whether a session is there, idle, and where it is expected.
    fn expect_idle_at(&self, id: SessionId, expected: Option<u64>) -> Result<(), Reject> {
        let unknown = Reject::UnknownSession { id, gone: None };
        let session = self.sessions.get(id).ok_or(unknown)?;
        let position = session.record.position;
        match expected {
            Some(expected) if expected != position && !planted(Bug::IgnorePosition) => {
                Err(Reject::StalePosition { id, position, expected })
            }
            _ if session.active => Err(Reject::SessionBusy { id }),
            _ => Ok(()),
        }
    }

    /// Makes a change and answers.
    pub(super) fn change(&mut self, change: Change, now: Instant) {
        let Change { who, id, expected_position, what, reply } = change;
        let changed = self.try_change(who, id, expected_position, what, now);
        let answer = self.committed(changed);
        self.sleep(id);
        if let What::Fork(Fork { new, .. }) = what {
            self.sleep(new);
        }
        // Whoever asked may have gone.
        reply.send(answer).ok();
    }

    fn try_change(
        &mut self,
        who: Principal,
        id: SessionId,
        expected_position: Option<u64>,
        what: What,
        now: Instant,
    ) -> Result<Standing, Reject> {
        if let What::Fork(Fork { new, digest, .. }) = what
            && self.rouse(new)
        {
            self.wake_own(who, new)?;
            if self.was_moved_by(new, digest) {
                // Sent again: the answer is the same, whatever has happened since.
                return Ok(self.stands(new));
            }
            let position = self.sessions.expect(new).record.position;
            return Err(Reject::SessionExists { id: new, position });
        }
        match what {
            What::Delete => self.wake(who, id)?,
            _ => self.wake_own(who, id)?,
        }
        if let What::Rewind(rewind) = what
            && self.was_moved_by(id, rewind.digest)
        {
            // The first time it may have been done in memory alone.
            self.write_changed(id, |_| {})?;
            return Ok(self.stands(id));
        }
        match self.expect_idle_at(id, expected_position) {
            Err(Reject::SessionBusy { .. }) if matches!(what, What::Fork(_)) => {}
            expected => expected?,
        }
        let used_at = self.parts.clock.unix_ms(now);
        match what {
            What::Delete => {
                let standing = self.stands(id);
                self.forget(id, Gone::Deleted);
                Ok(standing)
            }
            What::Fork(fork) => self.fork(who, id, fork, used_at),
            What::Rewind(rewind) => self.rewind(id, rewind, used_at),
            What::Name(Rename { name }) => self.rename(id, name),
        }
    }

    fn rename(&mut self, id: SessionId, name: Option<Name>) -> Result<Standing, Reject> {
        let Record { tenant, name: before, .. } = self.sessions.expect(id).record;
        let names_max = self.parts.limits.names_max;
        let n_named = self.sessions.iter().filter(|(_, it)| it.record.name.is_some()).count();
        if name.is_some() && before.is_none() && names_max as usize <= n_named {
            return Err(Reject::TooManyNames { names_max });
        }
        let written = self.write_changed(id, |session| session.record.name = name);
        if written.is_err() {
            self.sessions.expect(id).record.name = before;
        }
        self.parts.store.release(self.sessions.expect(id));
        written?;
        if let Some(name) = before {
            self.notify(Notice::Unnamed { id, tenant, name });
        }
        if let Some(name) = name {
            self.notify(Notice::Named { id, tenant, name });
        }
        Ok(self.stands(id))
    }

    /// Whether the last move of a session, or its making, was this very request.
    fn was_moved_by(&self, id: SessionId, digest: Option<u128>) -> bool {
        let moved_by = self.sessions.get(id).and_then(|it| it.record.moved_by);
        digest.is_some() && moved_by == digest
    }

    fn fork(
        &mut self,
        who: Principal,
        of: SessionId,
        fork: Fork,
        used_at: u64,
    ) -> Result<Standing, Reject> {
        let Fork { new, position, digest } = fork;
        let at = self.fork_position(of, position)?;
        self.ledger.take(who.tenant)?;
        self.parts.store.fork(&mut self.sessions, of, at, new);
        let session = self.sessions.expect(new);
        session.used_at = used_at;
        session.record.moved_by = digest;
        self.notify(Notice::Made { id: new });
        if let Err(reject) = self.write_changed(new, |_| {}) {
            self.forget(new, Gone::Ended);
            return Err(reject);
        }
        Ok(self.stands(new))
    }

    fn rewind(&mut self, id: SessionId, rewind: Rewind, used_at: u64) -> Result<Standing, Reject> {
        let Rewind { position: to, digest } = rewind;
        self.expect_reachable(id, to)?;
        let is_ahead = |seat: Seat| to < seat.computed;
        if self.sessions.expect(id).seat.is_some_and(is_ahead) {
            let Parts { device, store, residency, .. } = &mut self.parts;
            residency.leave(&mut Place { store, sessions: &mut self.sessions, device }, id);
        }
        let session = self.sessions.expect(id);
        self.parts.store.rewind(session, to);
        session.used_at = used_at;
        session.record.moved_by = digest;
        self.write_changed(id, |_| {})?;
        Ok(self.stands(id))
    }

    /// Where a fork of a session begins.
    pub(super) fn fork_position(
        &self,
        of: SessionId,
        position: Option<u64>,
    ) -> Result<u64, Reject> {
        let unknown = Reject::UnknownSession { id: of, gone: None };
        let session = self.sessions.get(of).ok_or(unknown)?;
        let at = position.unwrap_or(session.record.position);
        self.expect_reachable(of, at)?;
        Ok(at)
    }

    /// Whether there is what it takes to stand at `position` again: a state, and the log from there.
    fn expect_reachable(&self, id: SessionId, position: u64) -> Result<(), Reject> {
        let session = self.sessions.get(id).expect("it was asked for");
        let record = &session.record;
        let min = self.parts.store.position_min(session);
        let out_of_range = Reject::OutOfRange { id, found: position, min, max: record.position };
        if record.position < position {
            return Err(out_of_range);
        }
        let from = record.state_within(position).map_or(0, |state| state.computed);
        let mut log = Vec::new();
        self.parts.store.log(&self.sessions, id, from..position, &mut log).map_err(|_| out_of_range)
    }

    /// Changes a session and writes its row.
    fn write_changed(
        &mut self,
        id: SessionId,
        change: impl FnOnce(&mut Session),
    ) -> Result<(), Reject> {
        let was_leased = self.sessions.expect(id).lease.is_some();
        self.reserve(id)?;
        let session = self.sessions.expect(id);
        change(session);
        let written = match planted(Bug::SleepEarly) {
            true => Ok(()),
            false => self.parts.store.write(id, session),
        };
        if !was_leased {
            self.parts.store.release(session);
        }
        written.map_err(|error| {
            warn!(session = %id, %error, "a change could not be written");
            Reject::Internal { what: "its row could not be written" }
        })
    }

    pub(super) fn stands(&self, id: SessionId) -> Standing {
        self.standing(id, self.sessions.get(id).expect("it is here"))
    }
}
