//! From files to sessions: what a store does when it is opened.

use std::collections::HashSet;

use aerie_state_cache::{Key, Storage};
use tracing::{info, warn};

use super::{Store, state_key, tape_of};
use crate::{
    pipe::FinishReason,
    sessions::{Lineage, Record, Session, SessionId, Sessions, row},
};

impl<S: Storage> Store<S> {
    /// The sessions whose rows are whole, each with the log that it has.
    pub(super) fn recover_rows(&mut self) -> Sessions {
        let mut sessions = Sessions::default();
        let mut tapes_taken = HashSet::new();
        let mut empty = Vec::new();
        let infos: Vec<_> = self.rows.records().collect();
        for info in infos {
            let id = SessionId(info.key.0);
            let row = self.rows.read(info.key).map_err(|error| error.to_string());
            let record =
                row.and_then(|row| row::decode(row.bytes).map_err(|error| error.to_string()));
            let mut record = match record {
                Ok(record) if record.keep => record,
                Ok(_) => {
                    self.remove_row(id);
                    continue;
                }
                Err(error) => {
                    warn!(session = %id, %error, "a session is lost");
                    self.remove_row(id);
                    continue;
                }
            };
            if record.lineage.is_none() && !self.recover_log(id, &mut record) {
                warn!(session = %id, "the log of a session is lost");
                self.remove_row(id);
                continue;
            }
            match record.tape {
                Some(tape) if 0 < record.position => _ = tapes_taken.insert(tape),
                Some(_) => empty.push(id),
                None => {}
            }
            sessions.insert(id, Session::parked(record, info.used_at));
        }
        // Forks may still share what is on the tape of one that went back to its beginning.
        for id in empty {
            let record = &mut sessions.expect(id).record;
            record.tape = record.tape.filter(|tape| tapes_taken.insert(*tape));
        }
        self.free_tapes.retain(|tape| !tapes_taken.contains(tape));
        sessions
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

    /// Forks whose origin has gone lose the log that they shared.
    pub(super) fn recover_lineages(&mut self, sessions: &mut Sessions) {
        let lineages: Vec<(SessionId, Lineage)> = sessions
            .iter()
            .filter_map(|(id, session)| Some((id, session.record.lineage?)))
            .collect();
        for (id, Lineage { of, .. }) in lineages {
            let has_tape = sessions.get(of).is_some_and(|it| it.record.tape.is_some());
            let record = &mut sessions.expect(id).record;
            if has_tape && record.tape.is_none() {
                self.forks.entry(of).or_default().push(id);
            } else {
                record.lineage = None;
            }
        }
    }

    /// Counts who refers to which state, and removes those to which nobody does.
    pub(super) fn recover_states(&mut self, sessions: &mut Sessions) {
        let mut referred = HashSet::new();
        for (_, session) in sessions.iter_mut() {
            let states = &mut session.record.states;
            for state in states.iter() {
                self.next_state = self.next_state.max(state.key.saturating_add(1));
            }
            states.retain(|state| self.states.record(Key(state.key.into())).is_some());
            for state in states {
                if !referred.insert(state.key) {
                    *self.shared.entry(state.key).or_default() += 1;
                }
            }
        }
        let keys: Vec<Key> = self.states.records().map(|info| info.key).collect();
        for key in keys {
            let known = u64::try_from(key.0).ok();
            if known.is_some_and(|known| referred.contains(&known)) {
                continue;
            }
            self.next_state = self.next_state.max(state_key(key.0).saturating_add(1));
            if let Err(error) = self.states.remove(key) {
                warn!(state = %key, %error, "a state without a session could not be removed");
            }
        }
    }
}
