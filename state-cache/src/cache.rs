//! The index of a file and what one can do with it: read, write, lease, remove.

#[cfg(test)]
mod tests;

use std::{collections::HashMap, fmt, io, num::NonZeroU64, path::Path};

use thiserror::Error;

use crate::{
    eviction::Evictable,
    index::{Content, Index, Slab},
    layout::{Config, Gone, Kind, Layout, Place, SlabId, Stamp, used_bytes},
    recovery::{self, OpenError, Recovery, Scan, Verify},
    stamps::Stamps,
    storage::{MappedFile, Storage},
};

/// Bytes that are checksummed and written at a time, so that the second pass finds them in the
/// processor's cache.
const PIECE_BYTES: usize = 1 << 20;

/// Fixed-size records by key, in a file. See the crate for the format and for what survives.
///
/// # Invariants
/// - Every slab is free, holds a record or is reserved by a lease. One whose content is in doubt
///   after failed writes is none of these, until the file is opened again.
/// - A key has one lease at most, and a record under a lease is not evicted.
/// - The plane that the index names for the next write never holds the copy that is read.
///
/// # Memory
/// 23 bytes for each of `records_max`, allocated when the file is opened, and some for each lease.
/// Keys and sequences are read from the stamps in the file.
#[derive(Debug)]
pub struct StateCache<S = MappedFile> {
    storage: S,
    layout: Layout,
    /// Whether the file may have short records.
    has_short: bool,
    index: Index,
    /// Of all slabs but those under a lease or in doubt.
    order: Evictable,
    leases: HashMap<Key, Held>,
    /// Of the latest stamp. Only a forged file can have it at its end, where it stays.
    sequence: u64,
    /// Of the latest lease.
    generation: u64,
    recovery: Recovery,
}

/// Who a record belongs to.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Key(pub u128);

/// The exclusive right to write the record of a key, and a slab to write it to.
///
/// It is a ticket, not a borrow: after its release it is stale, and whoever still shows it gets an
/// error.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Lease {
    key: Key,
    generation: u64,
}

/// A new lease, and who gave way for it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Leased {
    pub lease: Lease,
    pub evicted: Option<Key>,
}

/// A record written, and who gave way for it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Written {
    pub sequence: u64,
    pub evicted: Option<Key>,
}

/// A verified record.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Record<'a> {
    pub bytes: &'a [u8],
    pub info: RecordInfo,
}

/// What is known of a record without reading it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct RecordInfo {
    pub key: Key,
    /// Greater than that of every record written before.
    pub sequence: u64,
    /// As the caller counts time.
    pub used_at: u64,
    /// The other copy is torn or damaged, and may have been a later one than this.
    pub rolled_back: bool,
}

/// Why there is no lease.
#[derive(Debug, Error)]
pub enum LeaseError {
    #[error("{key} is under a lease")]
    Leased { key: Key },
    #[error("all of `records_max` = {records_max} records are under a lease")]
    Full { records_max: u32 },
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Why a lease is not released: it is not held.
#[derive(Debug, Error)]
#[error("the lease on {key} is stale")]
pub struct ReleaseError {
    pub key: Key,
}

/// Why a record is not written. The one before is still there.
#[derive(Debug, Error)]
pub enum WriteError {
    #[error("a record of {found_bytes} bytes, but `record_bytes` is {expected_bytes}")]
    Length { found_bytes: u64, expected_bytes: u64 },
    #[error("a record of {found_bytes} bytes, but 1 to {max_bytes} are expected")]
    Short { found_bytes: u64, max_bytes: u64 },
    #[error("the file is of a format that has no records shorter than the others")]
    NoShort,
    #[error(transparent)]
    Stale(#[from] ReleaseError),
    #[error(transparent)]
    Lease(#[from] LeaseError),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Why a record is not read.
#[derive(Debug, Error)]
pub enum ReadError {
    #[error("no record of {key}")]
    Absent { key: Key },
    #[error("both copies of {key} are damaged")]
    Damaged { key: Key },
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Why the last use of a record is not noted.
#[derive(Debug, Error)]
pub enum TouchError {
    #[error("no record of {key}")]
    Absent { key: Key },
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Why a record is not removed.
#[derive(Debug, Error)]
pub enum RemoveError {
    #[error("no record of {key}")]
    Absent { key: Key },
    #[error("{key} is under a lease")]
    Leased { key: Key },
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// What a lease is on.
#[derive(Clone, Copy, Debug)]
struct Held {
    generation: u64,
    slab: SlabId,
    /// A write failed, so the place of the next may hold anything, even all of what was to be
    /// written.
    in_doubt: bool,
}

impl StateCache<MappedFile> {
    /// Opens the file at `path`, or makes it, and recovers what it holds.
    ///
    /// Reads the latest copy of every record once, to verify it; see [`Verify`].
    ///
    /// # Errors
    /// If the file is open elsewhere, is not of this `config`, or the system reports an error.
    pub fn open(path: &Path, config: Config) -> Result<Self, OpenError> {
        Self::open_with(path, config, Verify::AtOpen)
    }

    /// Like [`StateCache::open`], with a choice of when records are verified.
    ///
    /// # Errors
    /// As [`StateCache::open`].
    pub fn open_with(path: &Path, config: Config, verify: Verify) -> Result<Self, OpenError> {
        // An impossible configuration should not leave a file behind.
        Layout::new(config)?;
        let storage = MappedFile::open(path).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => OpenError::Locked,
            _ => error.into(),
        })?;
        Self::open_on_with(storage, config, verify)
    }
}

impl<S: Storage> StateCache<S> {
    /// Like [`StateCache::open`], on any storage.
    ///
    /// # Errors
    /// As [`StateCache::open`].
    pub fn open_on(storage: S, config: Config) -> Result<Self, OpenError> {
        Self::open_on_with(storage, config, Verify::AtOpen)
    }

    /// Like [`StateCache::open_with`], on any storage.
    ///
    /// # Errors
    /// As [`StateCache::open`].
    pub fn open_on_with(mut storage: S, config: Config, verify: Verify) -> Result<Self, OpenError> {
        let layout = Layout::new(config)?;
        let has_short = recovery::admit(&mut storage, &layout)?;
        let Scan { index, order, superseded, refuted, sequence, recovery, .. } =
            recovery::scan(&storage, &layout, verify)?;
        for (place, stamp) in refuted {
            storage.write(layout.stamp(place), &stamp.to_damaged_bytes())?;
        }
        let mut cache = Self {
            storage,
            layout,
            has_short,
            index,
            order,
            leases: HashMap::new(),
            sequence,
            generation: 0,
            recovery,
        };
        for (key, slab) in superseded {
            cache.bury(key, slab, Gone::UNSAID)?;
        }
        cache.line_up();
        Ok(cache)
    }

    pub fn config(&self) -> &Config {
        self.layout.config()
    }

    /// What opening the file found.
    pub fn recovery(&self) -> Recovery {
        self.recovery
    }

    /// Number of records.
    pub fn len(&self) -> usize {
        self.index.n_records()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All records, in no order, but those whose stamps have been damaged since the file was opened.
    pub fn records(&self) -> impl Iterator<Item = RecordInfo> {
        self.index.records().filter_map(|slab| self.info(slab).ok()?)
    }

    /// The records from a place on, each with its own, which it keeps while it is there: so one can
    /// go through all in pieces, while others come and go.
    pub fn records_from(&self, place: u32) -> impl Iterator<Item = (u32, RecordInfo)> {
        let slabs = self.index.records_from(SlabId(place));
        slabs.filter_map(|slab| Some((slab.0, self.info(slab).ok()??)))
    }

    /// Who would give way next: the least recently used of all that are not under a lease.
    pub fn oldest(&self) -> Option<RecordInfo> {
        self.info(self.order.victim()?).ok()?
    }

    /// Whether a record of a new key takes the place of another.
    pub fn is_full(&self) -> bool {
        self.order.n_free() == 0
    }

    /// Whose records were removed or evicted, and why, as far as that is still known: see
    /// [`StateCache::gone`].
    pub fn all_gone(&self) -> impl Iterator<Item = (Key, Gone)> {
        self.index.tombstones().filter_map(|slab| {
            let (_, stamp) = self.stamps().latest(self.index.next(slab).other()).ok()??;
            match stamp.kind {
                Kind::Tombstone { reason } => Some((stamp.key, Gone { reason, at: stamp.used_at })),
                Kind::Record { .. } => None,
            }
        })
    }

    /// What is known of the record of `key` without reading it.
    pub fn record(&self, key: Key) -> Option<RecordInfo> {
        self.info(self.find(key, Content::Record).ok()??).ok()?
    }

    /// Why there is no record of `key`, if it was removed or evicted and its slab has not been used
    /// again. An eviction is for the sake of a slab, so that is soon.
    ///
    /// After the file was opened this may be why an earlier record of the key had gone.
    pub fn gone(&self, key: Key) -> Option<Gone> {
        let slab = self.find(key, Content::Tombstone).ok()??;
        let (_, stamp) = self.stamps().latest(self.index.next(slab).other()).ok()??;
        match stamp.kind {
            Kind::Tombstone { reason } => Some(Gone { reason, at: stamp.used_at }),
            Kind::Record { .. } => None,
        }
    }

    /// Shows the record of `key`, after verifying it. A lease does not keep anybody from reading.
    ///
    /// # Errors
    /// If there is no record, or neither copy is whole.
    pub fn read(&mut self, key: Key) -> Result<Record<'_>, ReadError> {
        let absent = || ReadError::Absent { key };
        let slab = self.find(key, Content::Record)?.ok_or_else(absent)?;
        let latest = self.index.next(slab).other();
        let (place, stamp) = match self.stamps().whole(key, latest)? {
            Some(stamp) => (latest, stamp),
            None => (latest.other(), self.roll_back(key, slab)?),
        };
        let (sequence, used_at) = (stamp.sequence, self.order.used_at(slab));
        let rolled_back = self.index.slab(slab).rolled_back;
        let info = RecordInfo { key, sequence, used_at, rolled_back };
        let Kind::Record { short, .. } = stamp.kind else { return Err(absent()) };
        Ok(Record { bytes: self.stamps().record(place, short)?, info })
    }

    /// Writes the record of `key`: the concatenation of `parts`. Takes a slab if the key has none,
    /// and evicts the least recently used record if no slab is free.
    ///
    /// # Errors
    /// If `parts` are not `record_bytes` together, the key is under a lease, or no slab can be had.
    /// Even then somebody may have been evicted.
    pub fn write(
        &mut self,
        key: Key,
        parts: &[&[u8]],
        used_at: u64,
    ) -> Result<Written, WriteError> {
        self.expect_length(parts)?;
        let Leased { lease, evicted } = self.lease(key)?;
        let written = self.write_leased(lease, parts, used_at);
        self.release(lease)?;
        Ok(Written { sequence: written?, evicted })
    }

    /// Writes the record of `key` as [`StateCache::write`] does, but it may be shorter than `record_bytes`: then it is
    /// read as it was written. What lies behind it in its slab is neither written nor read, and
    /// stays a hole of the file where no longer record was before.
    ///
    /// # Errors
    /// If `parts` are empty or more than `record_bytes`; if they are less and the file was made by a
    /// version of this crate that knew no short records; else as [`StateCache::write`].
    pub fn write_short(
        &mut self,
        key: Key,
        parts: &[&[u8]],
        used_at: u64,
    ) -> Result<Written, WriteError> {
        let (found_bytes, max_bytes) = (total_bytes(parts), self.record_bytes());
        if !(1..=max_bytes).contains(&found_bytes) {
            return Err(WriteError::Short { found_bytes, max_bytes });
        }
        let short = NonZeroU64::new(found_bytes).filter(|_| found_bytes < max_bytes);
        if short.is_some() && !self.has_short {
            return Err(WriteError::NoShort);
        }
        let Leased { lease, evicted } = self.lease(key)?;
        let written = self.put(lease, parts, short, used_at);
        self.release(lease)?;
        Ok(Written { sequence: written?, evicted })
    }

    /// Writes the record of a key under a lease; returns its sequence number. As the slab is there
    /// already, this never evicts and never lacks room.
    ///
    /// # Errors
    /// If `parts` are not `record_bytes` together or the lease is stale.
    pub fn write_leased(
        &mut self,
        lease: Lease,
        parts: &[&[u8]],
        used_at: u64,
    ) -> Result<u64, WriteError> {
        self.expect_length(parts)?;
        self.put(lease, parts, None, used_at)
    }

    /// Takes the exclusive right to write `key`. If the key has no record, a slab is reserved for
    /// it, so that whoever holds a lease can always write; the least recently used record gives way
    /// if no slab is free.
    ///
    /// # Errors
    /// If the key is under a lease, or every record is.
    pub fn lease(&mut self, key: Key) -> Result<Leased, LeaseError> {
        if self.leases.contains_key(&key) {
            return Err(LeaseError::Leased { key });
        }
        let mut evicted = None;
        let slab = if let Some(slab) = self.find(key, Content::Record)? {
            let Self { storage, layout, index, order, .. } = self;
            order.remove(slab, &Stamps { storage, layout }.sequences(index));
            slab
        } else {
            if self.order.n_free() == 0 {
                evicted = self.evict()?;
            }
            self.order.pop_free().expect("a slab was free or has been vacated")
        };
        self.generation += 1;
        let generation = self.generation;
        self.leases.insert(key, Held { generation, slab, in_doubt: false });
        Ok(Leased { lease: Lease { key, generation }, evicted })
    }

    /// Gives a lease back. A slab that was reserved and never written becomes free.
    ///
    /// # Errors
    /// If the lease is stale.
    pub fn release(&mut self, lease: Lease) -> Result<(), ReleaseError> {
        let key = lease.key;
        let Held { slab, in_doubt, .. } = *held(&mut self.leases, lease)?;
        self.leases.remove(&key);
        if self.index.slab(slab).content == Content::Record {
            let Self { storage, layout, index, order, .. } = self;
            order.insert(slab, &Stamps { storage, layout }.sequences(index));
        } else if !in_doubt {
            self.order.push_free(slab);
        } else {
            self.forget(slab);
            // What was refused may lie there in full, and must not come up beside a later record
            // of the same key. If it cannot be buried, nobody gets the slab until the next scan.
            if self.bury(key, slab, Gone::UNSAID).is_ok() {
                self.order.push_free(slab);
            }
        }
        Ok(())
    }

    /// Notes that the record of `key` was used.
    ///
    /// # Errors
    /// If there is no record.
    pub fn touch(&mut self, key: Key, used_at: u64) -> Result<(), TouchError> {
        let absent = || TouchError::Absent { key };
        let slab = self.find(key, Content::Record)?.ok_or_else(absent)?;
        let (place, stamp) = self.latest(slab)?.ok_or_else(absent)?;
        self.storage.write(self.layout.used(place), &used_bytes(stamp.sequence, used_at))?;
        let Self { storage, layout, index, order, .. } = self;
        order.set_used_at(slab, used_at, &Stamps { storage, layout }.sequences(index));
        Ok(())
    }

    /// Removes the record of `key`, without saying why.
    ///
    /// # Errors
    /// If there is no record, or it is under a lease.
    pub fn remove(&mut self, key: Key) -> Result<(), RemoveError> {
        self.remove_as(key, Gone::UNSAID)
    }

    /// Removes the record of `key`, and notes for [`StateCache::gone`] why.
    ///
    /// # Errors
    /// If there is no record, or it is under a lease.
    pub fn remove_as(&mut self, key: Key, gone: Gone) -> Result<(), RemoveError> {
        if self.leases.contains_key(&key) {
            return Err(RemoveError::Leased { key });
        }
        let slab = self.find(key, Content::Record)?.ok_or(RemoveError::Absent { key })?;
        Ok(self.vacate(Some(key), slab, gone)?)
    }

    /// Returns when every write so far would survive the loss of power.
    ///
    /// # Errors
    /// Whatever the system reports.
    pub fn flush(&mut self) -> io::Result<()> {
        self.storage.flush()
    }

    /// Closes the cache, without a flush, and gives the storage back.
    pub fn into_storage(self) -> S {
        self.storage
    }

    /// The storage, to arm faults.
    #[cfg(any(test, feature = "faulty"))]
    pub fn storage_mut(&mut self) -> &mut S {
        &mut self.storage
    }

    fn record_bytes(&self) -> u64 {
        self.layout.config().record_bytes
    }

    fn expect_length(&self, parts: &[&[u8]]) -> Result<(), WriteError> {
        let found_bytes = total_bytes(parts);
        let expected_bytes = self.record_bytes();
        if found_bytes != expected_bytes {
            return Err(WriteError::Length { found_bytes, expected_bytes });
        }
        Ok(())
    }

    /// Writes a record, whose length is `short` if that is not `record_bytes`.
    fn put(
        &mut self,
        lease: Lease,
        parts: &[&[u8]],
        short: Option<NonZeroU64>,
        used_at: u64,
    ) -> Result<u64, WriteError> {
        let Self { storage, layout, index, order, leases, sequence, .. } = self;
        let held = held(leases, lease)?;
        let slab = held.slab;
        let place = index.next(slab);
        *sequence = sequence.saturating_add(1);
        let sequence = *sequence;

        held.in_doubt = true;
        let mut hasher = crc32fast::Hasher::new();
        let mut offset = layout.record(place);
        for piece in parts.iter().flat_map(|part| part.chunks(PIECE_BYTES)) {
            hasher.update(piece);
            storage.write(offset, piece)?;
            offset += piece.len() as u64;
        }
        let kind = Kind::Record { checksum: hasher.finalize(), short };
        let stamp = Stamp { key: lease.key, sequence, used_at, kind };
        storage.write(layout.stamp(place), &stamp.to_bytes())?;
        held.in_doubt = false;

        // It is not in the order that its sequence has a say in.
        order.set_used_at(slab, used_at, &|_| sequence);
        let next = place.other().plane;
        let state = Slab { next, content: Content::Record, rolled_back: false };
        if index.slab(slab).content == Content::Record {
            index.change(slab, state);
        } else {
            self.forget(slab);
            if let Ok(Some(tombstone)) = self.find(lease.key, Content::Tombstone) {
                self.index.unlink(Some(lease.key), tombstone);
            }
            self.index.link(lease.key, slab, state);
        }
        Ok(sequence)
    }

    fn stamps(&self) -> Stamps<'_, S> {
        Stamps { storage: &self.storage, layout: &self.layout }
    }

    /// The slab that holds a record of `key`, or that holds its tombstone.
    fn find(&self, key: Key, content: Content) -> io::Result<Option<SlabId>> {
        self.index.find(key, |slab| {
            if self.index.slab(slab).content != content {
                return Ok(None);
            }
            self.stamps().key(self.index.next(slab).other())
        })
    }

    /// What is known of the record of a slab, unless neither stamp is whole.
    fn info(&self, slab: SlabId) -> io::Result<Option<RecordInfo>> {
        let Some((place, stamp)) = self.latest(slab)? else { return Ok(None) };
        let Stamp { key, sequence, .. } = stamp;
        let rolled_back = self.index.slab(slab).rolled_back || place == self.index.next(slab);
        Ok(Some(RecordInfo { key, sequence, used_at: self.order.used_at(slab), rolled_back }))
    }

    /// Where the latest copy of a record lies whose stamp is whole, and that stamp.
    fn latest(&self, slab: SlabId) -> io::Result<Option<(Place, Stamp)>> {
        let next = self.index.next(slab);
        let latest = self.stamps().latest(next.other())?;
        Ok(match latest {
            // The copy before may be somebody else's. That the index has it where it would have
            // their slab is a coincidence of the chain and four bits, in a slab whose latest stamp
            // is damaged and whose last tombstone was lost with the power.
            Some((place, stamp)) if place == next => {
                let is_same = self.find(stamp.key, Content::Record)? == Some(slab);
                latest.filter(|_| is_same)
            }
            _ => latest,
        })
    }

    /// Puts the copy before the latest in its place, for that one has turned out damaged.
    fn roll_back(&mut self, key: Key, slab: SlabId) -> Result<Stamp, ReadError> {
        let place = self.index.next(slab);
        let stamp = self.stamps().whole(key, place)?.ok_or(ReadError::Damaged { key })?;
        let next = place.other().plane;
        let Self { storage, layout, index, order, .. } = self;
        index.change(slab, Slab { next, content: Content::Record, rolled_back: true });
        order.set_used_at(slab, stamp.used_at, &Stamps { storage, layout }.sequences(index));
        Ok(stamp)
    }

    /// Removes the least recently used record; says whose it was, if its stamps still tell.
    fn evict(&mut self) -> Result<Option<Key>, LeaseError> {
        let records_max = self.layout.config().records_max;
        let slab = self.order.victim().ok_or(LeaseError::Full { records_max })?;
        let key = self.latest(slab)?.map(|(_, stamp)| stamp.key);
        let at = self.order.used_at(slab);
        self.vacate(key, slab, Gone { reason: Gone::EVICTED, at })?;
        Ok(key)
    }

    /// Removes a record that is not under a lease, and frees its slab.
    fn vacate(&mut self, key: Option<Key>, slab: SlabId, gone: Gone) -> io::Result<()> {
        // Where nobody can tell whose it was, the copy before must not come up either.
        let (whose, gone) = key.map_or((Key(0), Gone::UNSAID), |key| (key, gone));
        self.write_tombstone(whose, slab, gone)?;
        let Self { storage, layout, index, order, .. } = self;
        // The order still knows it by the stamp before the tombstone.
        order.remove(slab, &Stamps { storage, layout }.sequences(index));
        order.push_free(slab);
        let next = index.next(slab).other().plane;
        if gone.is_said() {
            index.change(slab, Slab { next, content: Content::Tombstone, rolled_back: false });
        } else {
            index.unlink(key, slab);
            index.change(slab, Slab::empty(next));
        }
        Ok(())
    }

    /// Writes a tombstone to a slab that the index has nothing in.
    fn bury(&mut self, key: Key, slab: SlabId, gone: Gone) -> io::Result<()> {
        self.write_tombstone(key, slab, gone)?;
        let next = self.index.next(slab).other().plane;
        self.index.change(slab, Slab::empty(next));
        Ok(())
    }

    fn write_tombstone(&mut self, key: Key, slab: SlabId, gone: Gone) -> io::Result<()> {
        let place = self.index.next(slab);
        self.sequence = self.sequence.saturating_add(1);
        let kind = Kind::Tombstone { reason: gone.reason };
        let stamp = Stamp { key, sequence: self.sequence, used_at: gone.at, kind };
        self.storage.write(self.layout.stamp(place), &stamp.to_bytes())
    }

    /// Drops the tombstone that a slab may hold from the index.
    fn forget(&mut self, slab: SlabId) {
        let key = self.stamps().key(self.index.next(slab).other());
        self.index.unlink(key.ok().flatten(), slab);
    }

    /// Puts every slab in the order: the record of each, or the slab as a free one.
    fn line_up(&mut self) {
        let Self { storage, layout, index, order, .. } = self;
        order.fill(index.records(), &Stamps { storage, layout }.sequences(index));
        // The lowest slabs are taken first, so that the file stays short on the disk.
        let slabs = (0..layout.config().records_max).rev().map(SlabId);
        slabs
            .filter(|slab| index.slab(*slab).content != Content::Record)
            .for_each(|slab| order.push_free(slab));
    }
}

impl Lease {
    pub fn key(&self) -> Key {
        self.key
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

fn total_bytes(parts: &[&[u8]]) -> u64 {
    parts.iter().map(|part| part.len() as u64).sum()
}

/// What `lease` is on.
fn held(leases: &mut HashMap<Key, Held>, lease: Lease) -> Result<&mut Held, ReleaseError> {
    leases
        .get_mut(&lease.key)
        .filter(|held| held.generation == lease.generation)
        .ok_or(ReleaseError { key: lease.key })
}
