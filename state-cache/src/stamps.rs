//! Reads stamps of a file, and tells whether they and their records are whole. Changes nothing.

use std::{io, num::NonZeroU64};

use crate::{
    cache::Key,
    index::Index,
    layout::{Kind, Layout, Place, Plane, STAMP_BYTES, SlabId, Stamp, StampRead},
    storage::Storage,
};

/// Slabs whose stamps are read at a time.
pub(crate) const RUN: u32 = 1024;

/// The stamps of a file.
#[derive(Debug)]
pub(crate) struct Stamps<'a, S> {
    pub storage: &'a S,
    pub layout: &'a Layout,
}

impl<'a, S: Storage> Stamps<'a, S> {
    /// The stamp at `place`.
    pub(crate) fn read(&self, place: Place) -> io::Result<StampRead> {
        Ok(Stamp::from_bytes(self.storage.read(self.layout.stamp(place), STAMP_BYTES as u64)?))
    }

    /// The stamps of up to [`RUN`] slabs from `first` in a plane, unread. One look at the file
    /// instead of many, each of which is a call of the system.
    pub(crate) fn run(&self, first: SlabId, plane: Plane) -> io::Result<&'a [u8]> {
        let n = RUN.min(self.layout.config().records_max - first.0);
        let n_bytes = u64::from(n) * STAMP_BYTES as u64;
        self.storage.read(self.layout.stamp(Place { slab: first, plane }), n_bytes)
    }

    /// The stamp at `place`, or that of the other copy if this one is damaged; and where it lies.
    pub(crate) fn latest(&self, place: Place) -> io::Result<Option<(Place, Stamp)>> {
        for place in [place, place.other()] {
            if let StampRead::Whole(stamp) = self.read(place)? {
                return Ok(Some((place, stamp)));
            }
        }
        Ok(None)
    }

    /// Whose copy is at `place`, if that can be told.
    pub(crate) fn key(&self, place: Place) -> io::Result<Option<Key>> {
        Ok(self.latest(place)?.map(|(_, stamp)| stamp.key))
    }

    /// The sequence of the copy at `place`; 0, before all others, if that cannot be told.
    pub(crate) fn sequence(&self, place: Place) -> u64 {
        self.latest(place).ok().flatten().map_or(0, |(_, stamp)| stamp.sequence)
    }

    /// The sequences of the copies that the index knows for the latest.
    pub(crate) fn sequences(&self, index: &'a Index) -> impl Fn(SlabId) -> u64 + use<'a, S> {
        let Self { storage, layout } = *self;
        move |slab| Stamps { storage, layout }.sequence(index.next(slab).other())
    }

    /// The stamp of the record of `key` at `place`, if there is one and it is whole.
    pub(crate) fn whole(&self, key: Key, place: Place) -> io::Result<Option<Stamp>> {
        let StampRead::Whole(stamp) = self.read(place)? else { return Ok(None) };
        let Kind::Record { checksum, short } = stamp.kind else { return Ok(None) };
        let is_whole = stamp.key == key && self.is_whole(place, checksum, short)?;
        Ok(is_whole.then_some(stamp))
    }

    /// Whether the bytes of the record at `place`, which may be a short one, have this checksum.
    pub(crate) fn is_whole(
        &self,
        place: Place,
        checksum: u32,
        short: Option<NonZeroU64>,
    ) -> io::Result<bool> {
        // Only a forged stamp tells of more than there is room for.
        let is_possible = short.is_none_or(|it| it.get() <= self.layout.config().record_bytes);
        Ok(is_possible && crc32fast::hash(self.record(place, short)?) == checksum)
    }

    /// The bytes of a record that is whole.
    pub(crate) fn record(&self, place: Place, short: Option<NonZeroU64>) -> io::Result<&'a [u8]> {
        let n_bytes = short.map_or_else(|| self.layout.config().record_bytes, NonZeroU64::get);
        self.storage.read(self.layout.record(place), n_bytes)
    }
}
