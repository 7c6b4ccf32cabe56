//! Who gives way when the cache is full: the least recently used; and which slabs are free. No
//! clock, no bytes.

#[cfg(test)]
mod tests;

use crate::layout::SlabId;

/// The slabs whose records may be evicted, the next victim first, and those that are free.
///
/// A binary heap of slab numbers and, so that any of them can leave it, where in the heap each slab
/// is: 16 bytes for each slab, all of it allocated at once, and O(log n) for each change. Whoever
/// was used at the same time is told apart by sequence, for which the caller is asked. A record
/// under a lease is not in the heap, so it cannot be chosen.
///
/// Times are the caller's and may go backwards: the order is that of the times, not of the calls.
#[derive(Debug)]
pub(crate) struct Evictable {
    /// As the caller counts time, by slab. Noted for records under a lease too.
    used_at: Vec<u64>,
    /// `n_evictable` slabs that form a heap; then room; then `n_free` slabs, a stack that grows to
    /// the left. No slab is in both, so there is room for all.
    order: Vec<SlabId>,
    /// Where in the heap a slab is, or [`NOWHERE`].
    places: Vec<u32>,
    n_evictable: usize,
    n_free: usize,
}

const NOWHERE: u32 = u32::MAX;

impl Evictable {
    /// Nobody to evict, and no slab free.
    pub(crate) fn new(records_max: u32) -> Self {
        let n = records_max as usize;
        Self {
            used_at: vec![0; n],
            order: vec![SlabId(0); n],
            places: vec![NOWHERE; n],
            n_evictable: 0,
            n_free: 0,
        }
    }

    /// When the record of a slab was last used.
    pub(crate) fn used_at(&self, slab: SlabId) -> u64 {
        self.used_at[slab.0 as usize]
    }

    /// Notes when a record was last used. `sequence` tells that of any slab.
    pub(crate) fn set_used_at(
        &mut self,
        slab: SlabId,
        used_at: u64,
        sequence: &impl Fn(SlabId) -> u64,
    ) {
        self.used_at[slab.0 as usize] = used_at;
        self.settle(slab, sequence);
    }

    /// Puts a slab where it belongs, if it is in the heap: its time or sequence has changed.
    pub(crate) fn settle(&mut self, slab: SlabId, sequence: &impl Fn(SlabId) -> u64) {
        let place = self.places[slab.0 as usize];
        if place != NOWHERE {
            let place = self.rise(place as usize, sequence);
            self.sink(place, sequence);
        }
    }

    /// Makes a record evictable.
    pub(crate) fn insert(&mut self, slab: SlabId, sequence: &impl Fn(SlabId) -> u64) {
        assert_eq!(self.places[slab.0 as usize], NOWHERE, "a record is evictable once: {slab:?}");
        assert!(self.n_evictable + self.n_free < self.order.len(), "a slab is in one place only");
        self.put(self.n_evictable, slab);
        self.n_evictable += 1;
        self.rise(self.n_evictable - 1, sequence);
    }

    /// Makes records evictable, when none is yet: O(1) for each.
    pub(crate) fn fill(
        &mut self,
        slabs: impl Iterator<Item = SlabId>,
        sequence: &impl Fn(SlabId) -> u64,
    ) {
        assert_eq!(self.n_evictable, 0, "a heap is filled once");
        for slab in slabs {
            assert_eq!(self.places[slab.0 as usize], NOWHERE, "evictable once: {slab:?}");
            self.put(self.n_evictable, slab);
            self.n_evictable += 1;
        }
        for place in (0..self.n_evictable / 2).rev() {
            self.sink(place, sequence);
        }
    }

    /// Makes a record safe from eviction.
    pub(crate) fn remove(&mut self, slab: SlabId, sequence: &impl Fn(SlabId) -> u64) {
        let place = self.places[slab.0 as usize];
        assert_ne!(place, NOWHERE, "a record without a lease is evictable: {slab:?}");
        self.n_evictable -= 1;
        let last = self.order[self.n_evictable];
        self.places[slab.0 as usize] = NOWHERE;
        if last != slab {
            self.put(place as usize, last);
            self.settle(last, sequence);
        }
    }

    /// Who gives way, if anybody can.
    pub(crate) fn victim(&self) -> Option<SlabId> {
        self.order[..self.n_evictable].first().copied()
    }

    pub(crate) fn n_free(&self) -> usize {
        self.n_free
    }

    /// Frees a slab that is not evictable.
    pub(crate) fn push_free(&mut self, slab: SlabId) {
        assert!(self.n_evictable + self.n_free < self.order.len(), "a slab is in one place only");
        self.n_free += 1;
        let top = self.order.len() - self.n_free;
        self.order[top] = slab;
    }

    /// Takes the slab that was freed last.
    pub(crate) fn pop_free(&mut self) -> Option<SlabId> {
        let top = self.order.len() - self.n_free;
        let slab = self.order[top..].first().copied()?;
        self.n_free -= 1;
        Some(slab)
    }

    /// Moves what is at `place` of the heap to where nobody above it goes later; returns where.
    fn rise(&mut self, mut place: usize, sequence: &impl Fn(SlabId) -> u64) -> usize {
        while let Some(above) = place.checked_sub(1).map(|it| it / 2) {
            if !self.goes_before(place, above, sequence) {
                break;
            }
            self.swap(place, above);
            place = above;
        }
        place
    }

    /// Moves what is at `place` of the heap to where nobody below it goes earlier.
    fn sink(&mut self, mut place: usize, sequence: &impl Fn(SlabId) -> u64) {
        loop {
            let mut first = place;
            for below in [2 * place + 1, 2 * place + 2] {
                if below < self.n_evictable && self.goes_before(below, first, sequence) {
                    first = below;
                }
            }
            if first == place {
                return;
            }
            self.swap(place, first);
            place = first;
        }
    }

    /// Whether what is at one place of the heap is to go before what is at another.
    fn goes_before(&self, one: usize, other: usize, sequence: &impl Fn(SlabId) -> u64) -> bool {
        let (one, other) = (self.order[one], self.order[other]);
        let times = (self.used_at(one), self.used_at(other));
        // A sequence lies in the file, so it is looked up only where it decides.
        times.0 < times.1 || (times.0 == times.1 && sequence(one) < sequence(other))
    }

    fn swap(&mut self, one: usize, other: usize) {
        let slabs = (self.order[one], self.order[other]);
        self.put(one, slabs.1);
        self.put(other, slabs.0);
    }

    fn put(&mut self, place: usize, slab: SlabId) {
        self.order[place] = slab;
        self.places[slab.0 as usize] =
            u32::try_from(place).expect("there are fewer than 2^32 slabs");
    }
}
