//! Where things lie in the file, and how headers and stamps are written down. Arithmetic only.

#[cfg(test)]
mod tests;

use std::{fmt, num::NonZeroU64};

use crate::{cache::Key, recovery::OpenError};

/// The unit in which the operating system writes back: what lies on different pages is not torn
/// together.
const PAGE_BYTES: u64 = 4096;
/// Bytes of the file header, which has a page for itself.
pub(crate) const HEADER_BYTES: usize = 60;
/// Bytes of a stamp: a cache line, so that none crosses a sector.
pub(crate) const STAMP_BYTES: usize = 64;
const MAGIC: [u8; 8] = *b"AerieRec";
/// The file format that this code writes; it reads those before as well.
const FORMAT: u32 = 2;
/// From this format on there are records shorter than `record_bytes`. A file of an earlier one gets none,
/// as whoever wrote it would take them for damaged.
const FORMAT_SHORT: u32 = 2;
/// Bits of a stamp's `kind` below the length of a short record.
const KIND_BITS: u32 = 16;
/// Above any length that a stamp can tell.
const RECORD_BYTES_END: u64 = 1 << (u64::BITS - KIND_BITS);
const KIND_RECORD: u64 = 1;
const KIND_TOMBSTONE: u64 = 2;
/// Where the part of a stamp begins that [`used_bytes`] renews.
const USED_OFFSET: usize = 48;

/// Limits of a cache, and whose it is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Config {
    /// Bytes of every record, but for those that are written as shorter ones.
    pub record_bytes: u64,
    /// Slabs in the file, and so the number of keys it can hold.
    pub records_max: u32,
    /// What the records belong to; a file of anybody else is refused.
    pub fingerprint: Fingerprint,
}

/// Thirty-two bytes that tell the records of one kind from those of another, such as a hash of
/// their layout and of the model that wrote them.
#[derive(Clone, Copy, Eq, PartialEq)]
pub struct Fingerprint(pub [u8; 32]);

/// Offsets in a file of one [`Config`], which it has proven possible.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    config: Config,
    /// Bytes of the stamps of one plane, rounded up to a page.
    stamps_bytes: u64,
    /// Bytes from one record to the next, a multiple of a page.
    stride_bytes: u64,
    plane_bytes: u64,
    file_bytes: u64,
}

/// One of the two halves of the file; each holds one copy of every record.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Plane {
    A,
    B,
}

/// Number of a slab in the file.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct SlabId(pub u32);

/// Where one copy of a record lies.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Place {
    pub slab: SlabId,
    pub plane: Plane,
}

/// What is written beside a copy.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Stamp {
    pub key: Key,
    /// Greater than that of every stamp written before.
    pub sequence: u64,
    pub used_at: u64,
    pub kind: Kind,
}

/// What a copy is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Kind {
    Record {
        /// CRC-32 of the bytes of the record.
        checksum: u32,
        /// Bytes of a record that is shorter than all others; none if it is as long.
        short: Option<NonZeroU64>,
    },
    /// The key was here and has been removed.
    Tombstone { reason: u32 },
}

/// Why and when a record was removed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Gone {
    /// The caller's number for it, but for [`Gone::EVICTED`]; 0 says nothing, and is not found
    /// again.
    pub reason: u32,
    /// As the caller counts time; when a record was last used, if it was evicted.
    pub at: u64,
}

/// What 64 bytes turn out to be.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum StampRead {
    /// Never written.
    Blank,
    /// Torn or damaged.
    Damaged,
    Whole(Stamp),
}

impl Layout {
    pub(crate) fn new(config: Config) -> Result<Self, OpenError> {
        let Config { record_bytes, records_max, .. } = config;
        if record_bytes == 0 {
            return Err(OpenError::Zero { field: "record_bytes" });
        }
        if records_max == 0 {
            return Err(OpenError::Zero { field: "records_max" });
        }
        // Offsets in a file are signed.
        let sizes = || {
            if RECORD_BYTES_END <= record_bytes {
                return None;
            }
            let stamps_bytes = (u64::from(records_max) * STAMP_BYTES as u64)
                .checked_next_multiple_of(PAGE_BYTES)?;
            let stride_bytes = record_bytes.checked_next_multiple_of(PAGE_BYTES)?;
            let records_bytes = stride_bytes.checked_mul(records_max.into())?;
            let plane_bytes = stamps_bytes.checked_add(records_bytes)?;
            let file_bytes = plane_bytes.checked_mul(2)?.checked_add(PAGE_BYTES)?;
            i64::try_from(file_bytes).ok()?;
            Some(Self { config, stamps_bytes, stride_bytes, plane_bytes, file_bytes })
        };
        sizes().ok_or(OpenError::TooLarge { record_bytes, records_max })
    }

    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    pub(crate) fn file_bytes(&self) -> u64 {
        self.file_bytes
    }

    /// Bytes of the stamps of one plane.
    pub(crate) fn stamps_bytes(&self) -> u64 {
        self.stamps_bytes
    }

    /// Where a plane begins, and with it its stamps.
    pub(crate) fn plane(&self, plane: Plane) -> u64 {
        match plane {
            Plane::A => PAGE_BYTES,
            Plane::B => PAGE_BYTES + self.plane_bytes,
        }
    }

    pub(crate) fn stamp(&self, place: Place) -> u64 {
        self.plane(place.plane) + u64::from(place.slab.0) * STAMP_BYTES as u64
    }

    /// Where the part of a stamp lies that [`used_bytes`] renews.
    pub(crate) fn used(&self, place: Place) -> u64 {
        self.stamp(place) + USED_OFFSET as u64
    }

    pub(crate) fn record(&self, place: Place) -> u64 {
        let records = self.plane(place.plane) + self.stamps_bytes;
        records + u64::from(place.slab.0) * self.stride_bytes
    }
}

impl Gone {
    /// The reason of records that gave way to others.
    pub const EVICTED: u32 = u32::MAX;
    /// No reason, at no time: what is said of a record that just was not to be there.
    pub(crate) const UNSAID: Self = Self { reason: 0, at: 0 };

    pub(crate) fn is_said(self) -> bool {
        self.reason != 0
    }
}

impl Plane {
    pub(crate) fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }
}

impl Place {
    /// The place of the other copy.
    pub(crate) fn other(self) -> Self {
        Self { plane: self.plane.other(), ..self }
    }
}

impl Config {
    /// The file header.
    pub(crate) fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&FORMAT.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.records_max.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.record_bytes.to_le_bytes());
        bytes[24..56].copy_from_slice(&self.fingerprint.0);
        let checksum = crc32fast::hash(&bytes[..56]);
        bytes[56..].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// Reads the header of a file and compares it with what is expected, field by field; tells whether the
    /// file may have short records.
    pub(crate) fn expect(self, bytes: &[u8]) -> Result<bool, OpenError> {
        if bytes[..8] != MAGIC {
            return Err(OpenError::Magic { found: array(&bytes[..8]), expected: MAGIC });
        }
        let format = u32::from_le_bytes(array(&bytes[8..12]));
        if !(1..=FORMAT).contains(&format) {
            return Err(OpenError::Format { found: format, expected: FORMAT });
        }
        let (found, expected) =
            (u32::from_le_bytes(array(&bytes[56..60])), crc32fast::hash(&bytes[..56]));
        if found != expected {
            return Err(OpenError::Checksum { found, expected });
        }
        let (found, expected) = (u32::from_le_bytes(array(&bytes[12..16])), self.records_max);
        if found != expected {
            return Err(OpenError::RecordsMax { found, expected });
        }
        let (found, expected) = (u64::from_le_bytes(array(&bytes[16..24])), self.record_bytes);
        if found != expected {
            return Err(OpenError::RecordBytes { found, expected });
        }
        let (found, expected) = (Fingerprint(array(&bytes[24..56])), self.fingerprint);
        if found != expected {
            return Err(OpenError::Fingerprint { found, expected });
        }
        Ok(FORMAT_SHORT <= format)
    }
}

impl Stamp {
    pub(crate) fn to_bytes(self) -> [u8; STAMP_BYTES] {
        let mut bytes = [0; STAMP_BYTES];
        let (kind, checksum) = match self.kind {
            Kind::Record { checksum, short } => {
                (KIND_RECORD | short.map_or(0, NonZeroU64::get) << KIND_BITS, checksum)
            }
            Kind::Tombstone { reason } => (KIND_TOMBSTONE, reason),
        };
        bytes[..16].copy_from_slice(&self.key.0.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.used_at.to_le_bytes());
        bytes[32..40].copy_from_slice(&kind.to_le_bytes());
        bytes[40..44].copy_from_slice(&checksum.to_le_bytes());
        let own = crc32fast::hash(&bytes[..44]);
        bytes[44..48].copy_from_slice(&own.to_le_bytes());
        bytes[USED_OFFSET..60].copy_from_slice(&used_bytes(self.sequence, self.used_at));
        bytes
    }

    /// As [`Stamp::to_bytes`], but damaged: its copy is nobody's from now on.
    pub(crate) fn to_damaged_bytes(self) -> [u8; STAMP_BYTES] {
        let mut bytes = self.to_bytes();
        bytes[44..48].iter_mut().for_each(|byte| *byte = !*byte);
        bytes
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> StampRead {
        if bytes.iter().all(|byte| *byte == 0) {
            return StampRead::Blank;
        }
        if bytes[44..48] != crc32fast::hash(&bytes[..44]).to_le_bytes() {
            return StampRead::Damaged;
        }
        let checksum = u32::from_le_bytes(array(&bytes[40..44]));
        let kind = u64::from_le_bytes(array(&bytes[32..40]));
        let short = NonZeroU64::new(kind >> KIND_BITS);
        let kind = match (kind % (1 << KIND_BITS), short) {
            (KIND_RECORD, short) => Kind::Record { checksum, short },
            (KIND_TOMBSTONE, None) => Kind::Tombstone { reason: checksum },
            _ => return StampRead::Damaged,
        };
        let sequence = u64::from_le_bytes(array(&bytes[16..24]));
        let written_at = u64::from_le_bytes(array(&bytes[24..32]));
        let used_at = u64::from_le_bytes(array(&bytes[USED_OFFSET..56]));
        let used_is_whole = bytes[USED_OFFSET..60] == used_bytes(sequence, used_at);
        StampRead::Whole(Self {
            key: Key(u128::from_le_bytes(array(&bytes[..16]))),
            sequence,
            used_at: if used_is_whole { used_at } else { written_at },
            kind,
        })
    }
}

/// The end of a stamp, which is renewed without the rest. Its checksum covers the sequence too, so
/// that it cannot pass for part of another stamp.
pub(crate) fn used_bytes(sequence: u64, used_at: u64) -> [u8; 12] {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&sequence.to_le_bytes());
    hasher.update(&used_at.to_le_bytes());
    let mut bytes = [0; 12];
    bytes[..8].copy_from_slice(&used_at.to_le_bytes());
    bytes[8..].copy_from_slice(&hasher.finalize().to_le_bytes());
    bytes
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({self})")
    }
}

fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    bytes.try_into().expect("the field has its width")
}
