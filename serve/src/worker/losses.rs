//! Sessions whose rows turn out damaged while the server runs.
//!
//! Nobody can tell from such a row whose it was. So all rows are read once more, to see what each tenant still has; that takes
//! about a microsecond for each, and steps wait for it.

use aerie_state_cache::Storage;

use super::{Notice, Worker};
use crate::{auth::TenantId, device::Device, router::Gone, sessions::SessionId};

impl<S: Storage, D: Device> Worker<S, D> {
    /// Has a session awake, if it is there. One whose row is damaged is not, from now on.
    pub(super) fn rouse(&mut self, id: SessionId) -> bool {
        let is_awake = self.parts.store.wake(&mut self.sessions, id);
        self.settle_losses();
        is_awake
    }

    /// Forgets the sessions whose rows have turned out damaged, and all others whose rows are; none of them counts for its
    /// tenant any more.
    pub(super) fn settle_losses(&mut self) {
        let mut lost = self.parts.store.take_lost();
        if lost.is_empty() {
            return;
        }
        let (kept, damaged) = self.parts.store.count_kept(&self.sessions, &lost);
        lost.extend(damaged);
        lost.sort();
        lost.dedup();
        for id in lost {
            self.parts.store.remove_damaged(id);
            // What the disk does not let go is tried again when somebody meets it next.
            if !self.parts.store.has(id) {
                let tenant = TenantId::ANONYMOUS.mark();
                self.notify(Notice::Gone { id, tenant, why: Gone::Lost });
            }
        }
        self.ledger.correct(kept);
    }
}
