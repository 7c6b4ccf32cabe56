//! From files to sessions: what a store does when it is opened, and when a session wakes.

use std::collections::HashSet;

use aerie_state_cache::{Key, ReadError, Storage, Tape};
use thiserror::Error;
use tracing::{info, warn};

use super::{FreeTapes, Store, tape_of};
use crate::{
    pipe::FinishReason,
    router::Gone,
    sessions::{
        Record, Session, SessionId, Sessions,
        row::{self, RowError},
    },
};

/// Why a row is no session.
#[derive(Debug, Error)]
pub(super) enum WakeError {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Row(#[from] RowError),
    #[error("its log is lost")]
    Log,
}

/// What the rows of a file tell together.
#[derive(Default)]
struct Census {
    /// By number.
    tapes_taken: HashSet<u32>,
    /// Sessions at their beginning, and the tapes that they claim.
    empty: Vec<(SessionId, u32)>,
    /// Keys of states.
    referred: HashSet<u64>,
    /// Whose row is not up to date.
    stale: Vec<SessionId>,
}

impl<S: Storage> Store<S> {
    /// The sessions that are awake from the start. All others are looked at once, for what they share.
    pub(super) fn recover_sessions(&mut self) -> Sessions {
        let mut sessions = Sessions::default();
        let mut census = Census::default();
        // Rows that are brought up to date count on logs that nobody may have flushed.
        self.owes_logs = true;
        let ids: Vec<SessionId> = self.ids().collect();
        for id in ids {
            match self.read_session(&sessions, id) {
                Ok(session) if session.record.keep => {
                    self.note_tenant(session.record.tenant);
                    self.recover_session(&mut sessions, &mut census, id, session);
                }
                Ok(session) => {
                    self.remove_row(id, session.record.tenant, Some(Gone::Ended), session.used_at);
                }
                Err(error) => {
                    warn!(session = %id, %error, "a session is lost");
                    self.remove_row(id, Default::default(), Some(Gone::Lost), 0);
                }
            }
        }
        // Forks may still share what is on the tape of one that went back to its beginning.
        for (id, tape) in census.empty {
            if !census.tapes_taken.insert(tape) {
                self.orphan_forks(&mut sessions, id);
                self.wake(&mut sessions, id);
                sessions.expect(id).record.tape = None;
                census.stale.push(id);
            }
        }
        let tapes_max = self.tapes.config().tapes_max;
        self.free_tapes = FreeTapes::new(&census.tapes_taken, tapes_max);
        self.remove_unreferred(&census.referred);
        for id in census.stale {
            self.sleep(&mut sessions, id);
        }
        sessions
    }

    fn recover_session(
        &mut self,
        sessions: &mut Sessions,
        census: &mut Census,
        id: SessionId,
        mut session: Session,
    ) {
        let record = &session.record;
        match record.tape {
            Some(tape) if 0 < record.position => _ = census.tapes_taken.insert(tape),
            Some(tape) => census.empty.push((id, tape)),
            None => {}
        }
        if let Some(lineage) = record.lineage {
            self.forks.entry(lineage.of).or_default().push(id, lineage.until);
        }
        for state in &record.states {
            if !census.referred.insert(state.key)
                && self.states.record(Key(state.key.into())).is_some()
            {
                *self.shared.entry(state.key).or_default() += 1;
            }
        }
        let encoded = row::encode(record);
        let is_stale = !self.rows.read(Key(id.0)).is_ok_and(|row| row.bytes == encoded);
        if is_stale {
            census.stale.push(id);
        }
        if record.name.is_some() {
            match self.rows.lease(Key(id.0)) {
                Ok(leased) => session.lease = Some(leased.lease),
                Err(error) => warn!(session = %id, %error, "a session with a name may give way"),
            }
        }
        if is_stale || session.lease.is_some() {
            sessions.insert(id, session);
        }
    }

    /// Reads the row of a session, and what follows from the logs that there are.
    ///
    /// # Errors
    /// See [`WakeError`].
    pub(super) fn read_session(
        &mut self,
        sessions: &Sessions,
        id: SessionId,
    ) -> Result<Session, WakeError> {
        let row = self.rows.read(Key(id.0))?;
        let used_at = row.info.used_at;
        let mut record = row::decode(row.bytes)?;
        let mut origin = None;
        if let Some(lineage) = record.lineage.filter(|_| record.tape.is_none()) {
            origin = self.tape_with(sessions, lineage.of);
        } else if !self.recover_log(id, &mut record) {
            return Err(WakeError::Log);
        }
        // A fork whose origin has gone loses the log that they shared.
        record.lineage = record.lineage.filter(|_| origin.is_some());
        Ok(Session { origin, ..Session::parked(record, used_at) })
    }

    /// The tape of a session, awake or not.
    fn tape_with(&mut self, sessions: &Sessions, id: SessionId) -> Option<Tape> {
        if let Some(session) = sessions.get(id) {
            return tape_of(id, &session.record);
        }
        let row = self.rows.read(Key(id.0)).ok()?;
        tape_of(id, &row::decode(row.bytes).ok()?)
    }

    /// Has a session stand where its log ends, if it was cut off; says whether it has a log.
    ///
    /// Its last token tells whether a tape is its own: the row of a session whose deletion was lost may name one that another
    /// has by now.
    fn recover_log(&self, id: SessionId, record: &mut Record) -> bool {
        let is_possible = |tape: &u32| *tape < self.tapes.config().tapes_max;
        record.tape = record.tape.filter(is_possible);
        if record.position == 0 {
            return true;
        }
        let Some(tape) = tape_of(id, record) else { return false };
        let ends_at =
            |position: u64| self.tapes.read(tape, position - 1..position, &mut Vec::new()).is_ok();
        if !ends_at(record.position) {
            // Without a flush, the row of a turn may have outlived its prompt.
            let base = record.turn.map_or(0, |turn| turn.base);
            if base == 0 || !ends_at(base) {
                return false;
            }
            record.position = base;
            record.turn = None;
            record.states.retain(|state| state.computed <= base);
        }
        let Some(turn) = record.turn.as_mut().filter(|turn| turn.end.is_none()) else {
            return true;
        };
        turn.end = Some(FinishReason::Interrupted);
        match self.tapes.tail(tape, record.branch, record.position) {
            Ok(tail) => record.position += tail.len() as u64,
            Err(error) => warn!(session = %id, %error, "the end of its log cannot be read"),
        }
        info!(session = %id, position = record.position, "was cut off");
        true
    }

    /// Removes the states to which no row refers.
    fn remove_unreferred(&mut self, referred: &HashSet<u64>) {
        let keys: Vec<Key> = self.states.records().map(|info| info.key).collect();
        for key in keys {
            let known = u64::try_from(key.0).ok();
            if known.is_some_and(|known| referred.contains(&known)) {
                continue;
            }
            if let Err(error) = self.states.remove(key) {
                warn!(state = %key, %error, "a state without a session could not be removed");
            }
        }
    }
}
