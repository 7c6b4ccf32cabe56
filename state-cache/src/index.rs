//! Which slab has the record of a key, and what each slab holds. No bytes: keys lie in the stamps.

#[cfg(test)]
mod tests;

use std::{
    hash::{BuildHasher, RandomState},
    io, mem,
};

use crate::{
    cache::Key,
    layout::{Place, Plane, SlabId},
};

/// Slabs by key, in 7 bytes for each slab, all of it allocated at once.
///
/// A hash table of chains through the slabs. The keys themselves stay in the stamps of the file;
/// whoever looks for one passes a function that reads them. Four bits of its hash lie beside each
/// slab, so that few stamps are read in vain. Nothing is lost of the table if a stamp is: chains
/// hold without the keys.
#[derive(Debug)]
pub(crate) struct Index {
    hasher: RandomState,
    /// First slab of each chain, or [`END`].
    heads: Vec<u32>,
    /// The next slab of the same chain, or [`END`], by slab.
    nexts: Vec<u32>,
    slabs: Vec<Packed>,
    n_records: usize,
}

const END: u32 = u32::MAX;

/// What a slab holds.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Slab {
    /// Where the next write goes. What the slab holds lies in the other plane.
    pub next: Plane,
    pub content: Content,
    /// See [`RecordInfo::rolled_back`](crate::RecordInfo::rolled_back).
    pub rolled_back: bool,
}

/// What kind of thing a slab holds.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Content {
    /// Nothing that one could ask for. In no chain.
    Nothing,
    /// Why a key is gone.
    Tombstone,
    Record,
}

/// A [`Slab`] and four bits of the hash of its key.
#[derive(Clone, Copy, Debug)]
struct Packed(u8);

impl Index {
    /// Nothing in any slab.
    pub(crate) fn new(records_max: u32) -> Self {
        let n = records_max as usize;
        Self {
            hasher: RandomState::new(),
            heads: vec![END; n / 2 + 1],
            nexts: vec![END; n],
            slabs: vec![Packed(0); n],
            n_records: 0,
        }
    }

    pub(crate) fn n_records(&self) -> usize {
        self.n_records
    }

    /// All slabs that have a record.
    pub(crate) fn records(&self) -> impl Iterator<Item = SlabId> {
        self.records_from(SlabId(0))
    }

    /// All slabs from `first` on that have a record.
    pub(crate) fn records_from(&self, first: SlabId) -> impl Iterator<Item = SlabId> {
        self.slabs_with(Content::Record, first)
    }

    /// All slabs that have a tombstone.
    pub(crate) fn tombstones(&self) -> impl Iterator<Item = SlabId> {
        self.slabs_with(Content::Tombstone, SlabId(0))
    }

    fn slabs_with(&self, content: Content, first: SlabId) -> impl Iterator<Item = SlabId> {
        let packed = self.slabs.iter().skip(first.0 as usize);
        let slabs = (first.0..).map(SlabId).zip(packed);
        slabs.filter(move |(_, it)| it.unpack().content == content).map(|(slab, _)| slab)
    }

    pub(crate) fn slab(&self, slab: SlabId) -> Slab {
        self.slabs[slab.0 as usize].unpack()
    }

    /// Where the next write to a slab goes.
    pub(crate) fn next(&self, slab: SlabId) -> Place {
        Place { slab, plane: self.slab(slab).next }
    }

    /// Which slab holds a record or tombstone of `key`; `key_of` tells those of others.
    ///
    /// # Errors
    /// Those of `key_of`.
    pub(crate) fn find(
        &self,
        key: Key,
        key_of: impl Fn(SlabId) -> io::Result<Option<Key>>,
    ) -> io::Result<Option<SlabId>> {
        let (bucket, tag) = self.hash(key);
        let mut slab = self.heads[bucket];
        while slab != END {
            if self.slabs[slab as usize].tag() == tag && key_of(SlabId(slab))? == Some(key) {
                return Ok(Some(SlabId(slab)));
            }
            slab = self.nexts[slab as usize];
        }
        Ok(None)
    }

    /// Enters what `slab`, which held nothing, holds of `key`, which nothing was held of.
    pub(crate) fn link(&mut self, key: Key, slab: SlabId, state: Slab) {
        let held = self.slab(slab).content;
        assert_eq!(held, Content::Nothing, "a slab holds one thing: {slab:?}");
        assert_ne!(state.content, Content::Nothing, "nothing belongs to no key: {slab:?}");
        let (bucket, tag) = self.hash(key);
        self.nexts[slab.0 as usize] = self.heads[bucket];
        self.heads[bucket] = slab.0;
        self.slabs[slab.0 as usize] = Packed::new(state, tag);
        self.n_records += usize::from(state.content == Content::Record);
    }

    /// Changes what is held of the same key.
    pub(crate) fn change(&mut self, slab: SlabId, state: Slab) {
        let packed = &mut self.slabs[slab.0 as usize];
        let is_linked = |slab: Slab| slab.content != Content::Nothing;
        assert_eq!(is_linked(packed.unpack()), is_linked(state), "{slab:?} stays in its chain");
        self.n_records -= usize::from(packed.unpack().content == Content::Record);
        self.n_records += usize::from(state.content == Content::Record);
        *packed = Packed::new(state, packed.tag());
    }

    /// Has a slab hold nothing. `key` is whose record or tombstone it held, if that can be told.
    pub(crate) fn unlink(&mut self, key: Option<Key>, slab: SlabId) {
        let state = self.slab(slab);
        if state.content == Content::Nothing {
            return;
        }
        let is_found = key.is_some_and(|key| {
            let (bucket, _) = self.hash(key);
            self.unlink_from(bucket, slab)
        });
        if !is_found {
            // Its stamp is damaged, which is rare enough to look everywhere.
            let is_found = (0..self.heads.len()).any(|bucket| self.unlink_from(bucket, slab));
            assert!(is_found, "{slab:?} is in a chain");
        }
        self.n_records -= usize::from(state.content == Content::Record);
        self.slabs[slab.0 as usize] =
            Packed::new(Slab { content: Content::Nothing, rolled_back: false, ..state }, 0);
    }

    /// Takes a slab out of one chain; says whether it was there.
    fn unlink_from(&mut self, bucket: usize, slab: SlabId) -> bool {
        let mut before = None;
        let mut at = self.heads[bucket];
        while at != END && at != slab.0 {
            before = Some(at as usize);
            at = self.nexts[at as usize];
        }
        if at == END {
            return false;
        }
        let after = mem::replace(&mut self.nexts[slab.0 as usize], END);
        match before {
            Some(before) => self.nexts[before] = after,
            None => self.heads[bucket] = after,
        }
        true
    }

    /// The chain of a key, and the bits that lie beside its slab.
    fn hash(&self, key: Key) -> (usize, u8) {
        let bytes = self.hasher.hash_one(key).to_le_bytes();
        let [a, b, c, d, .., tag] = bytes;
        let share = u64::from(u32::from_le_bytes([a, b, c, d])) * self.heads.len() as u64;
        // Below the number of chains, which a `usize` held before.
        (usize::try_from(share >> 32).unwrap_or(0), tag & 15)
    }
}

impl Packed {
    fn new(slab: Slab, tag: u8) -> Self {
        let content = match slab.content {
            Content::Nothing => 0,
            Content::Tombstone => 1,
            Content::Record => 2,
        };
        let plane = u8::from(slab.next == Plane::B);
        Self(tag << 4 | u8::from(slab.rolled_back) << 3 | content << 1 | plane)
    }

    fn tag(self) -> u8 {
        self.0 >> 4
    }

    fn unpack(self) -> Slab {
        Slab {
            next: if self.0 & 1 == 0 { Plane::A } else { Plane::B },
            content: match self.0 >> 1 & 3 {
                0 => Content::Nothing,
                1 => Content::Tombstone,
                _ => Content::Record,
            },
            rolled_back: self.0 & 8 != 0,
        }
    }
}

impl Slab {
    /// Nothing, and the next write goes to plane `next`.
    pub(crate) fn empty(next: Plane) -> Self {
        Self { next, content: Content::Nothing, rolled_back: false }
    }
}
