//! Why sessions are not there any more: what their tombstones say, as long as those are there.
//!
//! The number of a tombstone has the reason in its lowest byte and a mark of the tenant above it.

use aerie_state_cache::{Gone as Tombstone, Key, Storage};
use tracing::warn;

use super::Store;
use crate::{
    auth::{TenantId, TenantMark},
    router::Gone,
    sessions::SessionId,
};

impl<S: Storage> Store<S> {
    /// Who has gone, as far as is still known: whose it was, and why it is not there.
    pub fn gone(&self) -> impl Iterator<Item = (SessionId, TenantMark, Gone)> {
        self.rows.all_gone().filter_map(|(key, tombstone)| {
            let why = reason(tombstone.reason & 0xFF)?;
            Some((SessionId(key.0), TenantMark(tombstone.reason >> 8), why))
        })
    }

    pub(super) fn remove_row(
        &mut self,
        id: SessionId,
        tenant: TenantId,
        why: Option<Gone>,
        at: u64,
    ) {
        self.owes_rows = true;
        let reason = why.map_or(0, |why| tenant.mark().0 << 8 | number(why));
        if self.rows.record(Key(id.0)).is_some()
            && let Err(error) = self.rows.remove_as(Key(id.0), Tombstone { reason, at })
        {
            warn!(session = %id, %error, "a row could not be removed");
        }
    }
}

/// The number of a reason, which files keep. The cache has 0 and the highest of all for itself.
fn number(why: Gone) -> u32 {
    match why {
        Gone::Ended => 1,
        Gone::Deleted => 2,
        Gone::Evicted => 3,
        Gone::Expired => 4,
        Gone::Lost => 5,
    }
}

fn reason(found: u32) -> Option<Gone> {
    Gone::ALL.into_iter().find(|&why| number(why) == found)
}
