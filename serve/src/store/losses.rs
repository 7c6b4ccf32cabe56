//! Rows that turn out damaged after the start.

use std::collections::{HashMap, HashSet};

use aerie_state_cache::{Key, Storage};

use super::{Store, free::FreeTapes};
use crate::{
    auth::TenantId,
    router::Gone,
    sessions::{Record, SessionId, Sessions, row},
};

impl<S: Storage> Store<S> {
    /// Whose row or log has turned out damaged since it was asked last.
    pub fn take_lost(&mut self) -> Vec<SessionId> {
        std::mem::take(&mut self.lost)
    }

    /// How many sessions of each tenant are kept, but for those that are `lost`; and whose rows are damaged besides. Reads
    /// every row, and frees the tapes that nobody has.
    pub fn count_kept(
        &mut self,
        sessions: &Sessions,
        lost: &[SessionId],
    ) -> (HashMap<TenantId, u32>, Vec<SessionId>) {
        let mut kept: HashMap<TenantId, u32> = HashMap::new();
        let mut tapes: HashSet<u32> = self.freeing.iter().copied().collect();
        let mut damaged = Vec::new();
        let mut count = |record: &Record| {
            tapes.extend(record.tape);
            if record.keep {
                *kept.entry(record.tenant).or_default() += 1;
            }
        };
        sessions.iter().for_each(|(_, session)| count(&session.record));
        let ids: Vec<SessionId> = self.ids().collect();
        for id in ids.into_iter().filter(|id| sessions.get(*id).is_none() && !lost.contains(id)) {
            let row = self.rows.read(Key(id.0)).ok().and_then(|row| row::decode(row.bytes).ok());
            match row {
                Some(record) => count(&record),
                None => damaged.push(id),
            }
        }
        // What a fork shared with one that is lost it keeps until that tape has another owner.
        tapes.extend(sessions.iter().filter_map(|(_, session)| session.origin).map(|it| it.number));
        self.free_tapes = FreeTapes::new(&tapes, self.tapes.config().tapes_max);
        (kept, damaged)
    }

    /// Removes a row that is damaged, if it is there still, and remembers why.
    pub fn remove_damaged(&mut self, id: SessionId) {
        self.remove_row(id, TenantId::ANONYMOUS, Some(Gone::Lost), 0);
    }
}
