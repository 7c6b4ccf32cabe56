//! Who gives way when the cache is full: the least recently used. No clock, no bytes.

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use crate::cache::Key;

/// The records that may be evicted, the next victim first.
///
/// An ordered set, so that a full cache of a million records finds its victim in O(log n). A record
/// under a lease is not in it, so it cannot be chosen.
#[derive(Debug, Default)]
pub(crate) struct Evictable {
    order: BTreeSet<Recency>,
}

/// When a record was last used. Ordered; the smallest gives way first.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct Recency {
    /// As the caller counts time.
    pub used_at: u64,
    /// Breaks ties: of two records used at the same time, the one written first goes.
    pub sequence: u64,
    pub key: Key,
}

impl Evictable {
    pub(crate) fn insert(&mut self, recency: Recency) {
        let is_new = self.order.insert(recency);
        assert!(is_new, "a record is evictable once: {recency:?}");
    }

    pub(crate) fn remove(&mut self, recency: Recency) {
        let was_there = self.order.remove(&recency);
        assert!(was_there, "a record without a lease is evictable: {recency:?}");
    }

    /// Who gives way, if anybody can.
    pub(crate) fn victim(&self) -> Option<Key> {
        self.order.first().map(|recency| recency.key)
    }
}
