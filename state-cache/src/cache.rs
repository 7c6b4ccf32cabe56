//! The index of a file and what one can do with it: read, write, lease, remove.

#[cfg(test)]
mod tests;

use std::{collections::HashMap, fmt, io, path::Path};

use thiserror::Error;

use crate::{
    eviction::{Evictable, Recency},
    layout::{Config, Kind, Layout, Place, Stamp, StampRead, used_bytes},
    recovery::{self, OpenError, Recovery, Scan},
    storage::{MappedFile, Storage},
};

/// Bytes that are checksummed and written at a time, so that the second pass finds them in the
/// processor's cache.
const PIECE_BYTES: usize = 1 << 20;

/// Fixed-size records by key, in a file. See the crate for the format and for what survives.
///
/// # Invariants
/// - Every slab is free or belongs to one key. One whose content is in doubt after failed writes
///   is neither, until the file is opened again.
/// - A key has one lease at most, and a record under a lease is not evicted.
/// - The plane that an entry names for its next write never holds the copy that it reads.
#[derive(Debug)]
pub struct StateCache<S = MappedFile> {
    storage: S,
    layout: Layout,
    entries: HashMap<Key, Entry>,
    free: Vec<Place>,
    evictable: Evictable,
    /// Of the latest stamp.
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

/// A key and its slab.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    /// Where the next write goes. The record, if there is one, lies in the other plane.
    pub next: Place,
    /// Nothing if the slab is reserved for a lease.
    pub stored: Option<Stored>,
    /// Generation of the lease.
    lease: Option<u64>,
    /// A write failed, so `next` may hold anything, even all of what was to be written.
    in_doubt: bool,
}

/// What the index keeps of a stamp.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stored {
    pub sequence: u64,
    pub used_at: u64,
    pub checksum: u32,
    pub rolled_back: bool,
}

impl StateCache<MappedFile> {
    /// Opens the file at `path`, or makes it, and recovers what it holds.
    ///
    /// Reads the latest copy of every record once, to verify it.
    ///
    /// # Errors
    /// If the file is open elsewhere, is not of this `config`, or the system reports an error.
    pub fn open(path: &Path, config: Config) -> Result<Self, OpenError> {
        // An impossible configuration should not leave a file behind.
        Layout::new(config)?;
        let storage = MappedFile::open(path).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => OpenError::Locked,
            _ => error.into(),
        })?;
        Self::open_on(storage, config)
    }
}

impl<S: Storage> StateCache<S> {
    /// Like [`StateCache::open`], on any storage.
    ///
    /// # Errors
    /// As [`StateCache::open`].
    pub fn open_on(mut storage: S, config: Config) -> Result<Self, OpenError> {
        let layout = Layout::new(config)?;
        recovery::admit(&mut storage, &layout)?;
        let Scan { entries, free, superseded, sequence, recovery } =
            recovery::scan(&storage, &layout)?;
        let mut evictable = Evictable::default();
        for (key, entry) in &entries {
            entry.recency(*key).into_iter().for_each(|recency| evictable.insert(recency));
        }
        let mut cache =
            Self { storage, layout, entries, free, evictable, sequence, generation: 0, recovery };
        for (key, place) in superseded {
            cache.bury(key, place)?;
        }
        Ok(cache)
    }

    /// What opening the file found.
    pub fn recovery(&self) -> Recovery {
        self.recovery
    }

    /// Number of records.
    pub fn len(&self) -> usize {
        self.records().count()
    }

    pub fn is_empty(&self) -> bool {
        self.records().next().is_none()
    }

    /// All records, in no order.
    pub fn records(&self) -> impl Iterator<Item = RecordInfo> {
        self.entries.iter().filter_map(|(key, entry)| Some(entry.stored?.info(*key)))
    }

    /// What is known of the record of `key` without reading it.
    pub fn record(&self, key: Key) -> Option<RecordInfo> {
        Some(self.entries.get(&key)?.stored?.info(key))
    }

    /// Shows the record of `key`, after verifying it. A lease does not keep anybody from reading.
    ///
    /// # Errors
    /// If there is no record, or neither copy is whole.
    pub fn read(&mut self, key: Key) -> Result<Record<'_>, ReadError> {
        let absent = || ReadError::Absent { key };
        let entry = self.entries.get(&key).ok_or_else(absent)?;
        let stored = entry.stored.ok_or_else(absent)?;
        let place = entry.next.other();
        let (place, stored) =
            if recovery::is_whole(&self.storage, &self.layout, place, stored.checksum)? {
                (place, stored)
            } else {
                (place.other(), self.roll_back(key)?)
            };
        let bytes = self.storage.read(self.layout.record(place), self.record_bytes())?;
        Ok(Record { bytes, info: stored.info(key) })
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
        let Self { storage, layout, entries, sequence, .. } = self;
        let entry = held(entries, lease)?;
        let place = entry.next;
        *sequence += 1;

        entry.in_doubt = true;
        let mut hasher = crc32fast::Hasher::new();
        let mut offset = layout.record(place);
        for piece in parts.iter().flat_map(|part| part.chunks(PIECE_BYTES)) {
            hasher.update(piece);
            storage.write(offset, piece)?;
            offset += piece.len() as u64;
        }
        let checksum = hasher.finalize();
        let kind = Kind::Record { checksum };
        let stamp = Stamp { key: lease.key, sequence: *sequence, used_at, kind };
        storage.write(layout.stamp(place), &stamp.to_bytes())?;
        entry.in_doubt = false;

        entry.next = place.other();
        entry.stored = Some(Stored { sequence: *sequence, used_at, checksum, rolled_back: false });
        Ok(*sequence)
    }

    /// Takes the exclusive right to write `key`. If the key has no record, a slab is reserved for
    /// it, so that whoever holds a lease can always write; the least recently used record gives way
    /// if no slab is free.
    ///
    /// # Errors
    /// If the key is under a lease, or every record is.
    pub fn lease(&mut self, key: Key) -> Result<Leased, LeaseError> {
        let mut evicted = None;
        let generation = self.generation + 1;
        if let Some(entry) = self.entries.get_mut(&key) {
            if entry.lease.is_some() {
                return Err(LeaseError::Leased { key });
            }
            entry.recency(key).into_iter().for_each(|recency| self.evictable.remove(recency));
            entry.lease = Some(generation);
        } else {
            if self.free.is_empty() {
                evicted = Some(self.evict()?);
            }
            let next = self.free.pop().expect("a slab was free or has been vacated");
            let lease = Some(generation);
            self.entries.insert(key, Entry { lease, ..Entry::new(next, None) });
        }
        self.generation = generation;
        Ok(Leased { lease: Lease { key, generation }, evicted })
    }

    /// Gives a lease back. A slab that was reserved and never written becomes free.
    ///
    /// # Errors
    /// If the lease is stale.
    pub fn release(&mut self, lease: Lease) -> Result<(), ReleaseError> {
        let key = lease.key;
        let entry = held(&mut self.entries, lease)?;
        entry.lease = None;
        if let Some(recency) = entry.recency(key) {
            self.evictable.insert(recency);
            return Ok(());
        }
        let Entry { next, in_doubt, .. } = *entry;
        self.entries.remove(&key);
        if !in_doubt {
            self.free.push(next);
        } else {
            // What was refused may lie there in full, and must not come up beside a later record
            // of the same key. If it cannot be buried, nobody gets the slab until the next scan.
            self.bury(key, next).ok();
        }
        Ok(())
    }

    /// Notes that the record of `key` was used.
    ///
    /// # Errors
    /// If there is no record.
    pub fn touch(&mut self, key: Key, used_at: u64) -> Result<(), TouchError> {
        let absent = || TouchError::Absent { key };
        let entry = self.entries.get_mut(&key).ok_or_else(absent)?;
        let stored = entry.stored.ok_or_else(absent)?;
        let offset = self.layout.used(entry.next.other());
        self.storage.write(offset, &used_bytes(stored.sequence, used_at))?;

        let is_evictable = entry.lease.is_none();
        if is_evictable {
            self.evictable.remove(stored.recency(key));
        }
        let stored = Stored { used_at, ..stored };
        entry.stored = Some(stored);
        if is_evictable {
            self.evictable.insert(stored.recency(key));
        }
        Ok(())
    }

    /// Removes the record of `key`.
    ///
    /// # Errors
    /// If there is no record, or it is under a lease.
    pub fn remove(&mut self, key: Key) -> Result<(), RemoveError> {
        let Some(entry) = self.entries.get(&key) else {
            return Err(RemoveError::Absent { key });
        };
        if entry.lease.is_some() {
            return Err(RemoveError::Leased { key });
        }
        Ok(self.vacate(key)?)
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
        let found_bytes = parts.iter().map(|part| part.len() as u64).sum();
        let expected_bytes = self.record_bytes();
        if found_bytes != expected_bytes {
            return Err(WriteError::Length { found_bytes, expected_bytes });
        }
        Ok(())
    }

    /// Puts the copy before the latest in its place, for that one has turned out damaged.
    fn roll_back(&mut self, key: Key) -> Result<Stored, ReadError> {
        let Self { storage, layout, entries, evictable, .. } = self;
        let entry = entries.get_mut(&key).ok_or(ReadError::Absent { key })?;
        let place = entry.next;
        let StampRead::Whole(stamp) = recovery::stamp(storage, layout, place)? else {
            return Err(ReadError::Damaged { key });
        };
        let Stamp { key: found, sequence, used_at, kind: Kind::Record { checksum } } = stamp else {
            return Err(ReadError::Damaged { key });
        };
        if found != key || !recovery::is_whole(storage, layout, place, checksum)? {
            return Err(ReadError::Damaged { key });
        }
        entry.recency(key).into_iter().for_each(|recency| evictable.remove(recency));
        let stored = Stored { sequence, used_at, checksum, rolled_back: true };
        entry.stored = Some(stored);
        entry.next = place.other();
        entry.recency(key).into_iter().for_each(|recency| evictable.insert(recency));
        Ok(stored)
    }

    /// Removes the least recently used record.
    fn evict(&mut self) -> Result<Key, LeaseError> {
        let records_max = self.layout.config().records_max;
        let key = self.evictable.victim().ok_or(LeaseError::Full { records_max })?;
        self.vacate(key)?;
        Ok(key)
    }

    /// Removes a record that is not under a lease.
    fn vacate(&mut self, key: Key) -> io::Result<()> {
        let entry = self.entries[&key];
        self.bury(key, entry.next)?;
        self.entries.remove(&key);
        entry.recency(key).into_iter().for_each(|recency| self.evictable.remove(recency));
        Ok(())
    }

    /// Writes a tombstone, and frees the slab.
    fn bury(&mut self, key: Key, place: Place) -> io::Result<()> {
        self.sequence += 1;
        let stamp = Stamp { key, sequence: self.sequence, used_at: 0, kind: Kind::Tombstone };
        self.storage.write(self.layout.stamp(place), &stamp.to_bytes())?;
        self.free.push(place.other());
        Ok(())
    }
}

impl Entry {
    /// An entry without a lease.
    pub(crate) fn new(next: Place, stored: Option<Stored>) -> Self {
        Self { next, stored, lease: None, in_doubt: false }
    }

    /// Its rank among the evictable, if it is one of them.
    fn recency(&self, key: Key) -> Option<Recency> {
        if self.lease.is_some() {
            return None;
        }
        Some(self.stored?.recency(key))
    }
}

impl Stored {
    fn info(self, key: Key) -> RecordInfo {
        let Self { sequence, used_at, rolled_back, .. } = self;
        RecordInfo { key, sequence, used_at, rolled_back }
    }

    fn recency(self, key: Key) -> Recency {
        Recency { used_at: self.used_at, sequence: self.sequence, key }
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

/// The entry that `lease` stands for.
fn held(entries: &mut HashMap<Key, Entry>, lease: Lease) -> Result<&mut Entry, ReleaseError> {
    entries
        .get_mut(&lease.key)
        .filter(|entry| entry.lease == Some(lease.generation))
        .ok_or(ReleaseError { key: lease.key })
}
