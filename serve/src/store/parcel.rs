//! Sessions on their way from one store to another.

use aerie_state_cache::{Storage, TapeError};

use super::{Store, StoreError};
use crate::{
    planted::{Bug, planted},
    router::Gone,
    sessions::{Record, Session, SessionId, Sessions, Word},
};

/// All that is needed to go on with a session: where it stands, the latest state, the log.
#[derive(Clone, Debug, PartialEq)]
pub struct Parcel {
    /// Without what only its store can make sense of: tape, lineage, states.
    pub record: Record,
    pub used_at: u64,
    /// The latest state and the tokens that it has seen; none if nothing was computed.
    pub state: Option<(u64, Vec<u8>)>,
    /// Position of the first token of `log`, which ends where the session stands.
    pub log_from: u64,
    pub log: Vec<Word>,
}

impl<S: Storage> Store<S> {
    /// Takes a copy of a session that is awake; of what was drawn in it, what its log has.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn pack(&mut self, sessions: &mut Sessions, id: SessionId) -> Result<Parcel, StoreError> {
        let session = sessions.expect(id);
        let (position, mut state) = (session.record.position, Vec::new());
        let state_bytes = self.packing.state_bytes();
        let found = self.find_state(session, position, |at, bytes| {
            state.resize(state_bytes, 0);
            state[at..][..bytes.len()].copy_from_slice(bytes);
        })?;
        let Session { record, used_at, .. } = session;
        let record = Record { tape: None, lineage: None, states: Vec::new(), ..record.clone() };
        let used_at = *used_at;
        let mut log_from = position.saturating_sub(self.tapes.config().cells_max.into());
        let mut log = Vec::new();
        while let Err(error) = self.log(sessions, id, log_from..position, &mut log) {
            match error {
                TapeError::Missing { at } if at < position => log_from = at + 1,
                error => return Err(error.into()),
            }
        }
        Ok(Parcel {
            record,
            used_at,
            state: found.map(|computed| (computed + u64::from(planted(Bug::MoveState)), state)),
            log_from,
            log,
        })
    }

    /// Makes a session of a copy; another may give way, as for [`Store::reserve`].
    ///
    /// # Errors
    /// If the disk fails; the session is not there then.
    ///
    /// # Panics
    /// If the session is there already.
    pub fn unpack(
        &mut self,
        sessions: &mut Sessions,
        id: SessionId,
        parcel: &Parcel,
    ) -> Result<(), StoreError> {
        let mut record = Record { position: parcel.log_from, ..parcel.record.clone() };
        record.tape = None;
        sessions.insert(id, Session::parked(record, parcel.used_at));
        let unpacked = self.reserve(sessions, id).and_then(|()| self.fill(sessions, id, parcel));
        if unpacked.is_err() {
            self.forget(sessions, id, Some(Gone::Ended));
        }
        unpacked
    }

    fn fill(
        &mut self,
        sessions: &mut Sessions,
        id: SessionId,
        parcel: &Parcel,
    ) -> Result<(), StoreError> {
        self.own_tape(sessions, id)?;
        self.append(sessions, id, parcel.log.iter().copied())?;
        let session = sessions.expect(id);
        if let Some((computed, state)) = &parcel.state {
            self.keep_state(session, *computed, state)?;
        }
        self.write(id, session)?;
        self.release(session);
        Ok(())
    }
}
