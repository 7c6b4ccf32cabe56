//! From a file to an index: formats a new file, refuses a foreign one, scans the rest.

#[cfg(test)]
mod tests;

use std::{io, iter};

use thiserror::Error;

use crate::{
    cache::Key,
    eviction::Evictable,
    index::{Content, Index, Slab},
    layout::{
        Config, Fingerprint, Gone, HEADER_BYTES, Kind, Layout, Place, Plane, STAMP_BYTES, SlabId,
        Stamp, StampRead,
    },
    stamps::{RUN, Stamps},
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
    #[error("header field `format` is {found}; this build reads up to {expected}")]
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

/// When the bytes of records are verified that a file holds when it is opened.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Verify {
    /// All of them are read.
    AtOpen,
    /// Each is when it is read first, as at every time that it is read; opening looks at stamps
    /// only. If the latest copy is damaged, reading it brings back the one before. Until then what
    /// is known of the record is what the latest stamp says, and [`Recovery`] counts it so.
    OnRead,
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

/// The index of a file, in the making and done.
pub(crate) struct Scan<'a, S> {
    stamps: Stamps<'a, S>,
    verify: Verify,
    pub index: Index,
    /// Knows when records were used, but not yet who is to go.
    pub order: Evictable,
    /// Slabs to look at again, verifying: two records of one key are in the file, and one of them
    /// is not whole.
    doubtful: Vec<SlabId>,
    /// Records to bury, no longer in the index: another slab has a later one of the same key.
    pub superseded: Vec<(Key, SlabId)>,
    /// Copies that were looked at and are not whole, though their stamps are. Those are to be damaged too: what was
    /// found in their stead must not depend on whether somebody looks at the next opening.
    pub refuted: Vec<(Place, Stamp)>,
    /// Of the latest stamp in the file.
    pub sequence: u64,
    pub recovery: Recovery,
}

/// The latest copy of a slab, as far as that was looked at.
struct Found {
    /// Where it lies; plane B if there is none.
    place: Place,
    stamp: Option<Stamp>,
    n_damaged: u32,
}

/// Makes sure that `storage` is a cache of the shape and owner that `layout` says; an empty one
/// becomes that. Tells whether it may have short records.
pub(crate) fn admit(storage: &mut impl Storage, layout: &Layout) -> Result<bool, OpenError> {
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
    let mut has_short = false;
    if HEADER_BYTES as u64 <= found_bytes {
        has_short = Config::expect(*layout.config(), storage.read(0, HEADER_BYTES as u64)?)?;
    }
    if found_bytes != expected_bytes {
        return Err(OpenError::Size { found_bytes, expected_bytes });
    }
    Ok(has_short)
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

/// Reads every stamp and, if that is asked for, of every slab the latest copy that is whole.
pub(crate) fn scan<'a, S: Storage>(
    storage: &'a S,
    layout: &'a Layout,
    verify: Verify,
) -> io::Result<Scan<'a, S>> {
    let mut scan = Scan {
        stamps: Stamps { storage, layout },
        verify,
        index: Index::new(layout.config().records_max),
        order: Evictable::new(layout.config().records_max),
        doubtful: Vec::new(),
        superseded: Vec::new(),
        refuted: Vec::new(),
        sequence: 0,
        recovery: Recovery::default(),
    };
    for first in (0..layout.config().records_max).step_by(RUN as usize) {
        let stamps = |plane| scan.stamps.run(SlabId(first), plane);
        let (a, b) = (stamps(Plane::A)?, stamps(Plane::B)?);
        let stamps = iter::zip(a.chunks_exact(STAMP_BYTES), b.chunks_exact(STAMP_BYTES));
        for (slab, (a, b)) in (first..).map(SlabId).zip(stamps) {
            scan.settle(slab, [Stamp::from_bytes(a), Stamp::from_bytes(b)], verify)?;
            scan.settle_doubtful()?;
        }
    }
    scan.recovery.records = scan.index.n_records() as u64;
    scan.recovery.superseded = scan.superseded.len() as u64;
    let is_rolled_back = |slab: &SlabId| scan.index.slab(*slab).rolled_back;
    scan.recovery.rolled_back = scan.index.records().filter(is_rolled_back).count() as u64;
    Ok(scan)
}

impl<S: Storage> Scan<'_, S> {
    fn settle_doubtful(&mut self) -> io::Result<()> {
        while let Some(slab) = self.doubtful.pop() {
            let read = |plane| self.stamps.read(Place { slab, plane });
            let stamps = [read(Plane::A)?, read(Plane::B)?];
            self.settle(slab, stamps, Verify::AtOpen)?;
        }
        Ok(())
    }

    /// Enters what a slab holds, whose stamps in planes A and B these are.
    fn settle(&mut self, slab: SlabId, stamps: [StampRead; 2], verify: Verify) -> io::Result<()> {
        let Found { place, stamp, n_damaged } = self.resolve(slab, stamps, verify)?;
        let next = place.other().plane;
        self.index.change(slab, Slab::empty(next));
        match stamp {
            Some(stamp @ Stamp { kind: Kind::Record { .. }, .. }) => {
                let state = Slab { next, content: Content::Record, rolled_back: 0 < n_damaged };
                self.seat(slab, stamp, state, verify)
            }
            Some(Stamp { key, sequence, used_at, kind: Kind::Tombstone { reason } }) => {
                if (Gone { reason, at: used_at }).is_said() {
                    let state = Slab { next, content: Content::Tombstone, rolled_back: false };
                    self.remember(key, sequence, slab, state)?;
                }
                Ok(())
            }
            None => {
                self.recovery.lost += u64::from(0 < n_damaged);
                Ok(())
            }
        }
    }

    /// Finds the latest copy of a slab that is whole, or whose stamp is.
    fn resolve(
        &mut self,
        slab: SlabId,
        stamps: [StampRead; 2],
        verify: Verify,
    ) -> io::Result<Found> {
        let mut whole = [None, None];
        let mut n_damaged = 0;
        for ((plane, stamp), whole) in [Plane::A, Plane::B].into_iter().zip(stamps).zip(&mut whole)
        {
            let place = Place { slab, plane };
            match stamp {
                StampRead::Blank => {}
                StampRead::Damaged => n_damaged += 1,
                StampRead::Whole(stamp) => *whole = Some((stamp, place)),
            }
        }
        whole.sort_by_key(|it| it.map(|(stamp, _)| stamp.sequence));
        for (stamp, place) in whole.into_iter().rev().flatten() {
            self.sequence = self.sequence.max(stamp.sequence);
            let is_whole = match stamp.kind {
                Kind::Record { checksum, short } => {
                    verify == Verify::OnRead || self.stamps.is_whole(place, checksum, short)?
                }
                Kind::Tombstone { .. } => true,
            };
            if is_whole {
                return Ok(Found { place, stamp: Some(stamp), n_damaged });
            }
            self.refuted.push((place, stamp));
            n_damaged += 1;
        }
        Ok(Found { place: Place { slab, plane: Plane::B }, stamp: None, n_damaged })
    }

    /// Enters a record, unless another slab has a later one of the same key.
    fn seat(&mut self, slab: SlabId, stamp: Stamp, state: Slab, verify: Verify) -> io::Result<()> {
        let key = stamp.key;
        self.order.set_used_at(slab, stamp.used_at, &|_| stamp.sequence);
        let Some(other) = self.find(key)? else {
            self.index.link(key, slab, state);
            return Ok(());
        };
        let place = self.index.next(other).other();
        if self.index.slab(other).content == Content::Tombstone {
            self.index.unlink(Some(key), other);
            self.index.link(key, slab, state);
            return Ok(());
        }
        if self.verify == Verify::OnRead {
            // The earlier one goes for good, so the later one had better be whole.
            let is_whole = self.stamps.whole(key, place)?.is_some();
            if !is_whole {
                self.index.unlink(Some(key), other);
                self.doubtful.push(other);
            }
            if !is_whole || verify == Verify::OnRead {
                self.doubtful.push(slab);
                return Ok(());
            }
        }
        if self.stamps.sequence(place) < stamp.sequence {
            self.index.unlink(Some(key), other);
            self.index.link(key, slab, state);
            self.superseded.push((key, other));
        } else {
            self.superseded.push((key, slab));
        }
        Ok(())
    }

    /// Enters a tombstone, unless there is a record of the same key, or a later tombstone.
    fn remember(&mut self, key: Key, sequence: u64, slab: SlabId, state: Slab) -> io::Result<()> {
        if let Some(other) = self.find(key)? {
            let place = self.index.next(other).other();
            let is_record = self.index.slab(other).content == Content::Record;
            if is_record || sequence < self.stamps.sequence(place) {
                return Ok(());
            }
            self.index.unlink(Some(key), other);
        }
        self.index.link(key, slab, state);
        Ok(())
    }

    fn find(&self, key: Key) -> io::Result<Option<SlabId>> {
        self.index.find(key, |slab| self.stamps.key(self.index.next(slab).other()))
    }
}
