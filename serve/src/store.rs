//! What is kept of sessions: a row for each that says where it stands, its log, and some of its states.
//!
//! Three files, each with things of one size: the table of rows and the states are
//! [`StateCache`]s, the logs [`Tapes`]. Rows and logs are the truth; a state spares computing, and may give way. A log is
//! written before the row that counts on it, and a token on the tape behind what the row tells belongs to the
//! session all the same, so that each token costs one small write.
//!
//! Forks share: a state is dropped when the last session that refers to it has dropped it, and the log of a fork is
//! its origin's until one of the two writes.
//!
//! Of a session that sleeps nothing is in memory: [`Store::wake`] reads its row, [`Store::sleep`] makes sure of it.

mod free;
mod gone;
mod losses;
pub mod packing;
mod parcel;
mod recovery;
#[cfg(test)]
mod tests;

use std::{
    collections::{HashMap, HashSet},
    fs, io, mem,
    ops::Range,
    path::{Path, PathBuf},
};

use aerie_state_cache::{
    Config as CacheConfig, Key, LeaseError, MappedFile, OpenError, ReadError, StateCache, Storage,
    Tape, TapeConfig, TapeError, Tapes, Verify, WriteError,
};
use thiserror::Error;
use tracing::warn;

use self::{free::FreeTapes, recovery::WakeError};
pub use self::{packing::Packing, parcel::Parcel};

use crate::{
    auth::TenantId,
    planted::{Bug, planted},
    router::Gone,
    sessions::{
        Durability, Fingerprint, Lineage, Record, Session, SessionId, Sessions, StateRef, Word,
        row::{self, STATES_MAX},
    },
};

/// The files of one worker's sessions, and what they have in common.
#[derive(Debug)]
pub struct Store<S> {
    rows: StateCache<S>,
    states: StateCache<S>,
    tapes: Tapes<S>,
    durability: Durability,
    packing: Packing,
    /// States kept of one session.
    states_max: usize,
    free_tapes: FreeTapes,
    /// The key of the next state: a random number of this process, then one that counts. One that only counted
    /// would begin again where nothing is known of an earlier one; and a loss of power brings back what that was.
    next_state: u64,
    /// How many sessions beside the first refer to a state, of those that several do.
    shared: HashMap<u64, u32>,
    /// Who still shares a log, by whose it is.
    forks: HashMap<SessionId, Forks>,
    /// Sessions of each tenant that were there at the start.
    tenants: HashMap<TenantId, u32>,
    /// Logs and rows were written that [`Store::commit`] owes to the disk.
    owes_logs: bool,
    owes_rows: bool,
    /// Whose rows were written since: of a row that is written twice, a loss of power may leave nothing.
    written: HashSet<SessionId>,
    evicted: Vec<(SessionId, Session)>,
    /// Whose row or log has turned out damaged.
    lost: Vec<SessionId>,
    /// Tapes that are free once the disk knows that whoever had them is gone: it might come back, and read what another has
    /// written by then.
    freeing: Vec<u32>,
    // Kept from token to token, so that none allocates.
    words: Vec<u32>,
}

/// Who shares the log of a session.
#[derive(Debug, Default)]
struct Forks {
    ids: Vec<SessionId>,
    /// None of them shares more tokens than this.
    until_max: u64,
}

/// The three files.
#[derive(Debug)]
pub struct Files<S> {
    /// Of [`row::BYTES`] each.
    pub rows: StateCache<S>,
    /// Of [`state_record_bytes`] each, at most.
    pub states: StateCache<S>,
    /// Of the states.
    pub packing: Packing,
    /// At least as many as rows.
    pub tapes: Tapes<S>,
}

/// How large the files are.
#[derive(Clone, Debug)]
pub struct Sizes {
    pub sessions: u32,
    pub states: u32,
    /// Tokens that a log keeps.
    pub log_tokens: u32,
    /// Of states.
    pub packing: Packing,
    /// Of the model.
    pub fingerprint: Fingerprint,
}

/// Extensions of the files.
pub const ROWS: &str = "rows";
pub const STATES: &str = "states";
pub const LOGS: &str = "logs";

/// Why something is not kept, or not found.
#[derive(Debug, Error)]
pub enum StoreError {
    #[error("its row: {0}")]
    Row(#[from] WriteError),
    #[error("a row for it: {0}")]
    Lease(#[from] LeaseError),
    #[error("its log: {0}")]
    Log(#[from] TapeError),
    #[error("a state of it: {0}")]
    State(#[source] WriteError),
    #[error("every tape is taken")]
    NoTape,
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Bytes before a state in its record: a magic, the tokens that it has seen, zeros. As many as keep the state aligned.
const BLOCK_BYTES: usize = 64;
const MAGIC: [u8; 8] = *b"aeriest2";
/// When a state counts as used that is not its session's latest: before all others.
const LONG_AGO: u64 = 0;

impl Files<MappedFile> {
    /// Opens the files at `path` with their extensions, or makes them. States are verified when they are read: they
    /// are most of the bytes, and one that is damaged is one that is computed again. So are all of them if their file is of
    /// another size or packing than it is to be: that one is removed.
    ///
    /// # Errors
    /// See [`OpenError`]; with the file that it is of.
    pub fn open(path: &Path, sizes: &Sizes) -> Result<Self, (PathBuf, OpenError)> {
        let fingerprint = aerie_state_cache::Fingerprint(sizes.fingerprint);
        let rows_config = CacheConfig {
            record_bytes: row::BYTES as u64,
            records_max: sizes.sessions,
            fingerprint,
        };
        let rows = path.with_extension(ROWS);
        let tapes =
            TapeConfig { tapes_max: sizes.sessions, cells_max: sizes.log_tokens, fingerprint };
        let logs = path.with_extension(LOGS);
        Ok(Self {
            // First: whoever is refused here has found files that are not his.
            rows: StateCache::open(&rows, rows_config).map_err(|error| (rows, error))?,
            states: open_states(path.with_extension(STATES), sizes)?,
            packing: sizes.packing.clone(),
            tapes: Tapes::open(&logs, tapes).map_err(|error| (logs, error))?,
        })
    }
}

impl<S: Storage> Store<S> {
    /// Everything that the files hold, and the sessions of it that are awake from the start: those with a name, and those
    /// whose row is not up to date.
    ///
    /// Rows that cannot be read, those of sessions that were not to be kept, and states that no row refers to are
    /// removed. A generation that was running has been interrupted where its log ends.
    pub fn recover(files: Files<S>, durability: Durability, states_max: u32) -> (Self, Sessions) {
        let Files { rows, states, packing, tapes } = files;
        let mut store = Self {
            rows,
            states,
            packing,
            durability,
            states_max: (states_max as usize).clamp(1, STATES_MAX),
            free_tapes: FreeTapes::default(),
            tapes,
            next_state: u64::from(rand::random::<u32>()) << 32,
            shared: HashMap::new(),
            forks: HashMap::new(),
            tenants: HashMap::new(),
            owes_logs: false,
            owes_rows: false,
            written: HashSet::new(),
            evicted: Vec::new(),
            lost: Vec::new(),
            freeing: Vec::new(),
            words: Vec::new(),
        };
        let sessions = store.recover_sessions();
        if durability == Durability::Durable
            && let Err(error) = store.flush()
        {
            // What a process before has left to the system, this one counts on.
            warn!(%error, "what was recovered could not be flushed");
        }
        (store, sessions)
    }

    /// How many sessions of each tenant were recovered, or moved in since.
    pub fn take_tenants(&mut self) -> HashMap<TenantId, u32> {
        mem::take(&mut self.tenants)
    }

    /// Counts a session of a tenant among those that were recovered.
    pub fn note_tenant(&mut self, tenant: TenantId) {
        *self.tenants.entry(tenant).or_default() += 1;
    }

    /// Number of sessions, those that sleep included.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The epoch of a session, if it is there; see [`Record::epoch`].
    pub fn epoch(&mut self, sessions: &mut Sessions, id: SessionId) -> Option<u32> {
        self.wake(sessions, id).then(|| {
            let epoch = sessions.expect(id).record.epoch;
            self.sleep(sessions, id);
            epoch
        })
    }

    /// Whether a session has a row.
    pub fn has(&self, id: SessionId) -> bool {
        self.rows.record(Key(id.0)).is_some()
    }

    /// Every session that has a row.
    pub fn ids(&self) -> impl Iterator<Item = SessionId> {
        self.ids_from(0).map(|(_, id)| id)
    }

    /// The sessions whose rows are at a place or after it, each with its place, which it keeps.
    pub fn ids_from(&self, place: u32) -> impl Iterator<Item = (u32, SessionId)> {
        self.rows.records_from(place).map(|(place, info)| (place, SessionId(info.key.0)))
    }

    /// The session without a generation or a name that was used before all others, and when that was.
    pub fn oldest(&self) -> Option<(SessionId, u64)> {
        self.rows.oldest().map(|info| (SessionId(info.key.0), info.used_at))
    }

    /// Has a session awake; says whether there is one.
    pub fn wake(&mut self, sessions: &mut Sessions, id: SessionId) -> bool {
        if sessions.get(id).is_some() {
            return true;
        }
        match self.read_session(sessions, id) {
            Ok(session) => sessions.insert(id, session),
            Err(WakeError::Read(ReadError::Absent { .. })) => return false,
            Err(error) => {
                warn!(session = %id, %error, "a session is lost");
                self.lost.push(id);
                return false;
            }
        }
        true
    }

    /// Lets a session sleep that nobody uses, once its row tells all of it.
    pub fn sleep(&mut self, sessions: &mut Sessions, id: SessionId) {
        let Some(session) = sessions.get(id) else { return };
        let Session { active, seat, lease, record, .. } = session;
        if *active || seat.is_some() || lease.is_some() {
            return;
        }
        let row = row::encode(record);
        let is_told = match self.rows.read(Key(id.0)) {
            Ok(found) => {
                found.bytes == row || planted(Bug::SleepEarly) || self.write(id, session).is_ok()
            }
            Err(_) => false,
        };
        if is_told {
            sessions.remove(id);
        }
    }

    /// Makes sure that session `id` has a row to write to: takes a lease on it. A session whose row gives way is forgotten; see
    /// [`Store::take_evicted`].
    ///
    /// # Errors
    /// If every row belongs to a session with a generation or a name, or the disk fails.
    pub fn reserve(&mut self, sessions: &mut Sessions, id: SessionId) -> Result<(), StoreError> {
        if sessions.expect(id).lease.is_some() {
            return Ok(());
        }
        if self.rows.is_full() && self.rows.record(Key(id.0)).is_none() {
            let records_max = self.rows.config().records_max;
            let oldest = self.oldest_but_origin(sessions.expect(id));
            let oldest = oldest.ok_or(LeaseError::Full { records_max })?;
            if let Some(session) = self.forget(sessions, oldest, Some(Gone::Evicted)) {
                self.evicted.push((oldest, session));
            }
        }
        sessions.expect(id).lease = Some(self.rows.lease(Key(id.0))?.lease);
        Ok(())
    }

    /// The sessions that have given way since it was asked last, whatever became of those for whom. Their lanes are still theirs.
    pub fn take_evicted(&mut self) -> Vec<(SessionId, Session)> {
        mem::take(&mut self.evicted)
    }

    /// The session that is to give way to `session`: not the one whose log that begins with, as there may be no tape for a
    /// copy of it.
    fn oldest_but_origin(&mut self, session: &Session) -> Option<SessionId> {
        let lineage = session.record.lineage.filter(|_| session.record.tape.is_none());
        let origin = lineage.map(|it| Key(it.of.0)).filter(|of| self.rows.record(*of).is_some());
        let held = origin.and_then(|of| self.rows.lease(of).ok());
        let oldest = self.oldest().map(|(oldest, _)| oldest);
        if let Some(held) = held {
            self.rows.release(held.lease).expect("it has just been taken");
        }
        oldest
    }

    /// Gives back the lease on the row of a session, unless that has a name.
    pub fn release(&mut self, session: &mut Session) {
        if session.record.name.is_none() || planted(Bug::EvictNamed) {
            self.give_back(session);
        }
    }

    /// Appends to the log of a session that has a tape.
    ///
    /// # Errors
    /// If the disk fails; the session stands where it stood.
    pub fn append(
        &mut self,
        sessions: &mut Sessions,
        id: SessionId,
        log: impl ExactSizeIterator<Item = Word>,
    ) -> Result<(), StoreError> {
        let n = log.len() as u64;
        self.part_from_forks(sessions, id, n)?;
        let record = &mut sessions.expect(id).record;
        let tape = tape_of(id, record).expect("a tape was reserved");
        self.words.clear();
        self.words.extend(log.map(Word::bits));
        self.tapes.write(tape, record.branch, record.position, &self.words)?;
        self.owes_logs = true;
        record.position += n;
        Ok(())
    }

    /// Appends the words of a session's log at `places` to `into`.
    ///
    /// # Errors
    /// If the log does not reach back so far, or the disk fails.
    pub fn log(
        &self,
        sessions: &Sessions,
        id: SessionId,
        places: Range<u64>,
        into: &mut Vec<Word>,
    ) -> Result<(), TapeError> {
        let missing = TapeError::Missing { at: places.start };
        let Some(session) = sessions.get(id) else { return Err(missing) };
        let tape = match tape_of(id, &session.record).or(session.origin) {
            Some(tape) => tape,
            None if places.is_empty() => return Ok(()),
            None => return Err(missing),
        };
        let mut words = Vec::with_capacity(usize::try_from(places.end - places.start).unwrap_or(0));
        self.tapes.read(tape, places, &mut words)?;
        into.extend(words.into_iter().map(Word::from_bits));
        Ok(())
    }

    /// Writes the row of a session.
    ///
    /// # Errors
    /// If the disk fails; the row before is still there.
    pub fn write(&mut self, id: SessionId, session: &Session) -> Result<(), StoreError> {
        if self.durability == Durability::Durable {
            if self.written.contains(&id) {
                self.commit()?;
            }
            // A row counts on what the log has.
            if mem::take(&mut self.owes_logs) {
                self.tapes.flush()?;
            }
        }
        let row = row::encode(&session.record);
        match session.lease {
            Some(lease) => self.rows.write_leased(lease, &[&row], session.used_at),
            None => self.rows.write(Key(id.0), &[&row], session.used_at).map(|it| it.sequence),
        }?;
        self.owes_rows = true;
        if self.durability == Durability::Durable {
            self.written.insert(id);
        }
        Ok(())
    }

    /// Keeps `state`, which has seen `computed` tokens, more than any that is kept of the session. Its row is to be
    /// written after that.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn keep_state(
        &mut self,
        session: &mut Session,
        computed: u64,
        state: &[u8],
    ) -> Result<(), StoreError> {
        let key = self.next_state;
        let mut block = [0; BLOCK_BYTES];
        block[..8].copy_from_slice(&MAGIC);
        block[8..16].copy_from_slice(&computed.to_le_bytes());
        let packed = self.packing.pack(computed, state);
        let written = self.states.write_short(Key(key.into()), &[&block, packed], session.used_at);
        let written = written.map_err(StoreError::State)?;
        self.next_state += 1;
        if let Some(Key(evicted)) = written.evicted {
            // Whoever refers to it finds out when it looks for it.
            self.shared.remove(&state_key(evicted));
        }
        if let Some(before) = session.record.states.last()
            && !self.shared.contains_key(&before.key)
        {
            // It may have been evicted.
            self.states.touch(Key(before.key.into()), LONG_AGO).ok();
        }
        if let Some(dropped) =
            session.record.push_state(StateRef { key, computed }, self.states_max)
        {
            self.drop_state(dropped.key);
        }
        Ok(())
    }

    /// Shows the latest state of a session that is kept and has seen no more than `max` tokens to `show`; returns how many it
    /// has seen. Those that turn out to be lost are forgotten. It is shown part by part, each with its place in the state, without
    /// what is void.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn find_state(
        &mut self,
        session: &mut Session,
        max: u64,
        mut show: impl FnMut(usize, &[u8]),
    ) -> io::Result<Option<u64>> {
        while let Some(found) = session.record.state_within(max) {
            let packing = &mut self.packing;
            let is_shown = self.states.read(Key(found.key.into())).map(|record| {
                let packed = packed_of(record.bytes, found.computed);
                packed.is_some_and(|it| packing.unpack(found.computed, it, &mut show))
            });
            match is_shown {
                Ok(true) => {
                    self.states.touch(Key(found.key.into()), session.used_at).ok();
                    return Ok(Some(found.computed));
                }
                Ok(false) | Err(ReadError::Absent { .. } | ReadError::Damaged { .. }) => {
                    session.record.states.retain(|it| *it != found);
                    self.drop_state(found.key);
                }
                Err(ReadError::Io(error)) => return Err(error),
            }
        }
        Ok(None)
    }

    /// Whether a state is there.
    pub fn has_state(&self, key: u64) -> bool {
        self.states.record(Key(key.into())).is_some()
    }

    /// Keeps a state until somebody more has dropped it.
    pub fn share_state(&mut self, key: u64) {
        *self.shared.entry(key).or_default() += 1;
    }

    /// How states lie in their records.
    pub fn packing(&self) -> &Packing {
        &self.packing
    }

    /// Bytes of the record of a state, at most.
    pub fn state_record_bytes(&self) -> u64 {
        self.states.config().record_bytes
    }

    /// States that there is room for.
    pub fn states_max(&self) -> u32 {
        self.states.config().records_max
    }

    /// Makes session `id`, which stands where `origin`, which is awake, stood at `at`. It has no row yet.
    pub fn fork(&mut self, sessions: &mut Sessions, origin: SessionId, at: u64, id: SessionId) {
        let Session { record: from, origin: shared, used_at, .. } = sessions.expect(origin);
        let tape = tape_of(origin, from).or(*shared);
        let of = tape.map(|tape| SessionId(tape.owner));
        let states: Vec<_> =
            from.states.iter().filter(|state| state.computed <= at).copied().collect();
        let record = Record {
            tenant: from.tenant,
            keep: true,
            position: at,
            seed: from.seed,
            lineage: of.map(|of| Lineage { of, until: at }),
            states,
            ..Record::default()
        };
        for state in &record.states {
            self.share_state(state.key);
        }
        if let Some(of) = of {
            self.forks.entry(of).or_default().push(id, at);
        }
        let session = Session { origin: tape, ..Session::parked(record, *used_at) };
        sessions.insert(id, session);
    }

    /// Takes a session back to `to`. Its row is to be written after that.
    pub fn rewind(&mut self, session: &mut Session, to: u64) {
        let record = &mut session.record;
        record.position = to;
        record.branch += u32::from(!planted(Bug::OneBranch));
        record.turn = None;
        if let Some(lineage) = &mut record.lineage {
            lineage.until = to;
        }
        let kept = record.states.partition_point(|state| state.computed <= to);
        for state in record.states.split_off(kept) {
            self.drop_state(state.key);
        }
    }

    /// Forgets a session, and remembers why, if that is to be said; gives back what is to be said of its lane.
    pub fn forget(
        &mut self,
        sessions: &mut Sessions,
        id: SessionId,
        why: Option<Gone>,
    ) -> Option<Session> {
        if !self.wake(sessions, id) {
            // Nothing is known of it that could be given back before the next start.
            self.remove_damaged(id);
            return None;
        }
        if let Err(error) = self.part_from_forks(sessions, id, u64::MAX) {
            warn!(session = %id, %error, "forks of a session that goes lose their log");
            self.orphan_forks(sessions, id);
        }
        let mut session = sessions.remove(id)?;
        self.give_back(&mut session);
        // First, or half of it would come back after a crash.
        self.remove_row(id, session.record.tenant, why, session.used_at);
        for state in mem::take(&mut session.record.states) {
            self.drop_state(state.key);
        }
        self.leave_lineage(id, &mut session);
        if let Some(tape) = session.record.tape.take() {
            self.free_tape(tape);
        }
        Some(session)
    }

    /// Forgets a session that was recovered, as another device has it too.
    pub fn forget_recovered(&mut self, sessions: &mut Sessions, id: SessionId) {
        if let Some(session) = self.forget(sessions, id, None)
            && let Some(n) = self.tenants.get_mut(&session.record.tenant)
        {
            *n -= 1;
        }
    }

    /// Returns when, in durable mode, all that was written would survive a loss of power; at once in fast mode.
    ///
    /// # Errors
    /// Whatever the disk reports.
    pub fn commit(&mut self) -> io::Result<()> {
        if self.durability == Durability::Fast || planted(Bug::SkipFlush) {
            return Ok(());
        }
        if mem::take(&mut self.owes_logs) {
            self.tapes.flush()?;
        }
        if mem::take(&mut self.owes_rows) {
            self.rows.flush()?;
            self.rows_are_flushed();
        }
        Ok(())
    }

    /// Returns when sessions and their logs would survive a loss of power: states can be computed again.
    ///
    /// # Errors
    /// Whatever the disk reports.
    pub fn flush_logs_and_rows(&mut self) -> io::Result<()> {
        self.tapes.flush()?;
        self.rows.flush()?;
        self.owes_logs = false;
        self.owes_rows = false;
        self.rows_are_flushed();
        Ok(())
    }

    /// Returns when all that was written would survive a loss of power.
    ///
    /// # Errors
    /// Whatever the disk reports.
    pub fn flush(&mut self) -> io::Result<()> {
        self.states.flush()?;
        self.flush_logs_and_rows()
    }

    /// The lowest position to which a session can be taken back.
    pub fn position_min(&self, session: &Session) -> u64 {
        let Record { position, states, .. } = &session.record;
        let on_tape = position.saturating_sub(self.tapes.config().cells_max.into());
        if on_tape == 0 {
            return 0;
        }
        states.iter().map(|it| it.computed).find(|&it| on_tape <= it).unwrap_or(*position)
    }

    /// What the files are on: rows, states, tapes.
    #[cfg(test)]
    pub(crate) fn storages_mut(&mut self) -> [&mut S; 3] {
        [self.rows.storage_mut(), self.states.storage_mut(), self.tapes.storage_mut()]
    }

    /// Gives a session a tape of its own, with the log so far, if it has none.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn own_tape(&mut self, sessions: &mut Sessions, id: SessionId) -> Result<(), StoreError> {
        let Session { record, .. } = sessions.expect(id);
        if record.tape.is_some() {
            return Ok(());
        }
        let number = match self.free_tapes.pop() {
            Some(number) => number,
            None => {
                self.commit()?;
                self.free_tapes.pop().ok_or(StoreError::NoTape)?
            }
        };
        let Session { record, origin, .. } = sessions.expect(id);
        let own = Tape { number, owner: id.0 };
        if let Some(from) = *origin
            && let Err(error) = self.tapes.copy(from, own, record.branch, 0..record.position)
        {
            self.free_tape(number);
            return Err(error.into());
        }
        self.owes_logs = true;
        record.tape = Some(number);
        self.leave_lineage(id, sessions.expect(id));
        Ok(())
    }

    /// Gives the forks of a session tapes of their own, if appending `n` words to its log would touch what they share.
    fn part_from_forks(
        &mut self,
        sessions: &mut Sessions,
        id: SessionId,
        n: u64,
    ) -> Result<(), StoreError> {
        let Some(forks) = self.forks.get(&id).filter(|_| !planted(Bug::ShareForever)) else {
            return Ok(());
        };
        let position = sessions.expect(id).record.position;
        let kept_from =
            position.saturating_add(n).saturating_sub(self.tapes.config().cells_max.into());
        if forks.until_max <= position && kept_from == 0 {
            return Ok(());
        }
        let mut has_parted = false;
        for fork in forks.ids.clone() {
            self.wake(sessions, fork);
            let lineage = sessions.get(fork).and_then(|it| it.record.lineage);
            if lineage.is_some_and(|it| position < it.until || 0 < kept_from) {
                self.own_tape(sessions, fork)?;
                self.write(fork, sessions.expect(fork))?;
                has_parted = true;
            }
            self.sleep(sessions, fork);
        }
        if has_parted {
            // Before what they shared is written over.
            self.commit()?;
        }
        Ok(())
    }

    /// Leaves the forks of a session, which goes, without the log that they share with it.
    fn orphan_forks(&mut self, sessions: &mut Sessions, id: SessionId) {
        let Some(forks) = self.forks.remove(&id) else { return };
        for fork in forks.ids {
            self.wake(sessions, fork);
            if let Some(session) = sessions.get_mut(fork) {
                session.record.lineage = None;
                session.origin = None;
            }
            self.sleep(sessions, fork);
        }
    }

    fn leave_lineage(&mut self, id: SessionId, session: &mut Session) {
        session.origin = None;
        let Some(Lineage { of, .. }) = session.record.lineage.take() else { return };
        if let Some(forks) = self.forks.get_mut(&of) {
            forks.ids.retain(|fork| *fork != id);
            if forks.ids.is_empty() {
                self.forks.remove(&of);
            }
        }
    }

    /// Lets go of a state; it is removed when nobody else keeps it.
    pub fn drop_state(&mut self, key: u64) {
        match self.shared.get_mut(&key) {
            Some(1) => _ = self.shared.remove(&key),
            Some(others) => *others -= 1,
            None => {
                if self.has_state(key)
                    && let Err(error) = self.states.remove(Key(key.into()))
                {
                    warn!(state = key, %error, "a state could not be removed");
                }
            }
        }
    }

    fn free_tape(&mut self, number: u32) {
        match self.durability {
            Durability::Durable => self.freeing.push(number),
            Durability::Fast => self.clear_tape(number),
        }
    }

    fn clear_tape(&mut self, number: u32) {
        if let Err(error) = self.tapes.clear(number) {
            // Its cells are another owner's to whoever gets it next.
            warn!(tape = number, %error, "a tape could not be cleared");
        }
        self.free_tapes.push(number);
    }

    fn rows_are_flushed(&mut self) {
        self.written.clear();
        for number in mem::take(&mut self.freeing) {
            self.clear_tape(number);
        }
    }

    fn give_back(&mut self, session: &mut Session) {
        if let Some(lease) = session.lease.take() {
            self.rows.release(lease).expect("a session holds its lease until here");
        }
    }
}

impl Forks {
    fn push(&mut self, id: SessionId, until: u64) {
        self.ids.push(id);
        self.until_max = self.until_max.max(until);
    }
}

/// The tape of a session, in its hands.
fn tape_of(id: SessionId, record: &Record) -> Option<Tape> {
    Some(Tape { number: record.tape?, owner: id.0 })
}

/// Opens the states, or makes an empty file of them.
fn open_states(
    path: PathBuf,
    sizes: &Sizes,
) -> Result<StateCache<MappedFile>, (PathBuf, OpenError)> {
    let Sizes { packing, states, fingerprint, .. } = sizes;
    let config = CacheConfig {
        record_bytes: state_record_bytes(packing),
        records_max: *states,
        fingerprint: aerie_state_cache::Fingerprint(packing.fingerprint(fingerprint)),
    };
    let open = || StateCache::open_with(&path, config, Verify::OnRead);
    let opened = match open() {
        Err(
            error @ (OpenError::RecordsMax { .. }
            | OpenError::RecordBytes { .. }
            | OpenError::Fingerprint { .. }),
        ) => {
            warn!(path = %path.display(), %error, "states of another size or packing will be computed again");
            fs::remove_file(&path).map_err(OpenError::Io).and_then(|()| open())
        }
        opened => opened,
    };
    opened.map_err(|error| (path, error))
}

/// What is packed in the record of a state that has seen `computed` tokens, if it is one.
fn packed_of(record: &[u8], computed: u64) -> Option<&[u8]> {
    let (block, packed) = record.split_at_checked(BLOCK_BYTES)?;
    let is_state = block[..8] == MAGIC && block[8..16] == computed.to_le_bytes();
    is_state.then_some(packed)
}

/// A state's key, of which this file only has those that it gave.
#[expect(clippy::cast_possible_truncation, reason = "keys of states are made from 64 bits")]
fn state_key(key: u128) -> u64 {
    key as u64
}

/// Bytes of the record of a state, at most.
pub fn state_record_bytes(packing: &Packing) -> u64 {
    BLOCK_BYTES as u64 + packing.bytes_max()
}
