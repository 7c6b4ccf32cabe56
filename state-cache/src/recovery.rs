//! From a file to an index: formats a new file, refuses a foreign one, scans the rest.

#[cfg(test)]
mod tests;

use std::{
    collections::{HashMap, hash_map},
    io, iter,
};

use thiserror::Error;

use crate::{
    cache::{Entry, Key, Stored},
    layout::{
        Config, Fingerprint, HEADER_BYTES, Kind, Layout, Place, Plane, STAMP_BYTES, SlabId, Stamp,
        StampRead,
    },
    storage::Storage,
};

/// Why a cache does not open. What the file holds was not changed.
#[derive(Debug, Error)]
pub enum OpenError {
    #[error("config field `{field}` is 0")]
    Zero { field: &'static str },
    #[error(
        "config fields `record_bytes` = {record_bytes} and `records_max` = {records_max} ask for \
         more than a file can hold"
    )]
    TooLarge { record_bytes: u64, records_max: u32 },
    #[error("the file is open elsewhere")]
    Locked,
    #[error(
        "header field `magic` is {found:02x?}, {expected:02x?} is expected: another kind of file"
    )]
    Magic { found: [u8; 8], expected: [u8; 8] },
    #[error("header field `format` is {found}; this build reads {expected}")]
    Format { found: u32, expected: u32 },
    #[error("header field `checksum` is {found:08x}, but the header has {expected:08x}")]
    Checksum { found: u32, expected: u32 },
    #[error("header field `records_max` is {found}, {expected} is expected")]
    RecordsMax { found: u32, expected: u32 },
    #[error("header field `record_bytes` is {found}, {expected} is expected")]
    RecordBytes { found: u64, expected: u64 },
    #[error("header field `tapes_max` is {found}, {expected} is expected")]
    TapesMax { found: u32, expected: u32 },
    #[error("header field `cells_max` is {found}, {expected} is expected")]
    CellsMax { found: u32, expected: u32 },
    #[error("header field `fingerprint` is {found}, {expected} is expected")]
    Fingerprint { found: Fingerprint, expected: Fingerprint },
    #[error("the file has {found_bytes} bytes, {expected_bytes} are expected")]
    Size { found_bytes: u64, expected_bytes: u64 },
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// What opening a file found.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Recovery {
    /// Records that can be read.
    pub records: u64,
    /// Of these, such whose other copy is damaged and may have been later.
    pub rolled_back: u64,
    /// Slabs with a damaged copy and no whole one: a first write that was cut short, or damage.
    pub lost: u64,
    /// Records older than another of the same key, now removed: the traces of a power loss.
    pub superseded: u64,
}

/// The index of a file.
#[derive(Debug, Default)]
pub(crate) struct Scan {
    pub entries: HashMap<Key, Entry>,
    /// Where the next records go; the last one first.
    pub free: Vec<Place>,
    /// Records to bury: another slab has a later one of the same key.
    pub superseded: Vec<(Key, Place)>,
    /// Of the latest stamp in the file.
    pub sequence: u64,
    pub recovery: Recovery,
}

/// Makes sure that `storage` is a cache of the shape and owner that `layout` says; an empty one
/// becomes that.
pub(crate) fn admit(storage: &mut impl Storage, layout: &Layout) -> Result<(), OpenError> {
    if storage.size()? == 0 {
        storage.grow(layout.file_bytes())?;
    }
    if is_unformatted(storage, layout)? {
        storage.write(0, &layout.config().to_bytes())?;
        // Or a loss of power could leave records without a header.
        storage.flush()?;
    }
    // A file of another shape has another size, and the shape is the better explanation.
    let found_bytes = storage.size()?;
    let expected_bytes = layout.file_bytes();
    if HEADER_BYTES as u64 <= found_bytes {
        Config::expect(*layout.config(), storage.read(0, HEADER_BYTES as u64)?)?;
    }
    if found_bytes != expected_bytes {
        return Err(OpenError::Size { found_bytes, expected_bytes });
    }
    Ok(())
}

/// Whether the file has its size and at most part of its header: making it was cut short.
fn is_unformatted(storage: &impl Storage, layout: &Layout) -> io::Result<bool> {
    if storage.size()? != layout.file_bytes() {
        return Ok(false);
    }
    let header = layout.config().to_bytes();
    let found = storage.read(0, HEADER_BYTES as u64)?;
    if found == header || !iter::zip(found, header).all(|(found, byte)| [0, byte].contains(found)) {
        return Ok(false);
    }
    let stamps = |plane| storage.read(layout.plane(plane), layout.stamps_bytes());
    let is_blank = |bytes: &[u8]| bytes.iter().all(|byte| *byte == 0);
    Ok(is_blank(stamps(Plane::A)?) && is_blank(stamps(Plane::B)?))
}

/// Reads every stamp, and of every slab the latest copy that is whole.
pub(crate) fn scan(storage: &impl Storage, layout: &Layout) -> io::Result<Scan> {
    let mut scan = Scan::default();
    for slab in (0..layout.config().records_max).map(SlabId) {
        let (place, occupant) = scan.resolve(storage, layout, slab)?;
        match occupant {
            Some((key, stored)) => scan.seat(key, Entry::new(place.other(), Some(stored))),
            None => scan.free.push(place.other()),
        }
    }
    // The lowest slabs are taken first, so that the file stays short on the disk.
    scan.free.reverse();
    scan.recovery.records = scan.entries.len() as u64;
    scan.recovery.superseded = scan.superseded.len() as u64;
    let rolled_back = |entry: &&Entry| entry.stored.is_some_and(|stored| stored.rolled_back);
    scan.recovery.rolled_back = scan.entries.values().filter(rolled_back).count() as u64;
    Ok(scan)
}

/// The stamp at `place`.
pub(crate) fn stamp(
    storage: &impl Storage,
    layout: &Layout,
    place: Place,
) -> io::Result<StampRead> {
    Ok(Stamp::from_bytes(storage.read(layout.stamp(place), STAMP_BYTES as u64)?))
}

/// Whether the bytes of the record at `place` have this checksum.
pub(crate) fn is_whole(
    storage: &impl Storage,
    layout: &Layout,
    place: Place,
    checksum: u32,
) -> io::Result<bool> {
    let bytes = storage.read(layout.record(place), layout.config().record_bytes)?;
    Ok(crc32fast::hash(bytes) == checksum)
}

impl Scan {
    /// Finds the latest whole copy of a slab, and the record if it is one.
    fn resolve(
        &mut self,
        storage: &impl Storage,
        layout: &Layout,
        slab: SlabId,
    ) -> io::Result<(Place, Option<(Key, Stored)>)> {
        let mut whole = Vec::with_capacity(2);
        let mut n_damaged = 0;
        for plane in [Plane::A, Plane::B] {
            let place = Place { slab, plane };
            match stamp(storage, layout, place)? {
                StampRead::Blank => {}
                StampRead::Damaged => n_damaged += 1,
                StampRead::Whole(stamp) => whole.push((stamp, place)),
            }
        }
        whole.sort_by_key(|(stamp, _)| stamp.sequence);
        for (stamp, place) in whole.into_iter().rev() {
            self.sequence = self.sequence.max(stamp.sequence);
            let Stamp { key, sequence, used_at, kind } = stamp;
            let Kind::Record { checksum } = kind else { return Ok((place, None)) };
            if is_whole(storage, layout, place, checksum)? {
                let rolled_back = 0 < n_damaged;
                return Ok((
                    place,
                    Some((key, Stored { sequence, used_at, checksum, rolled_back })),
                ));
            }
            n_damaged += 1;
        }
        self.recovery.lost += u64::from(0 < n_damaged);
        Ok((Place { slab, plane: Plane::B }, None))
    }

    /// Enters a record, unless another slab has a later one of the same key.
    fn seat(&mut self, key: Key, entry: Entry) {
        match self.entries.entry(key) {
            hash_map::Entry::Vacant(vacant) => {
                vacant.insert(entry);
            }
            hash_map::Entry::Occupied(mut occupied) => {
                let sequence = |entry: &Entry| entry.stored.map(|stored| stored.sequence);
                let earlier = if sequence(occupied.get()) < sequence(&entry) {
                    occupied.insert(entry)
                } else {
                    entry
                };
                self.superseded.push((key, earlier.next));
            }
        }
    }
}
