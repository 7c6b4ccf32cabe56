//! Sessions: what a worker knows of each, and the block that stands before the state in a record.
//!
//! A session's state is a pure function of its token log, but the log itself is not kept. What is
//! kept besides the state is the decoder: see [`Decoder`] and its encoding, [`Snapshot`].

#[cfg(test)]
mod tests;

use std::{collections::HashMap, fmt};

use aerie_state_cache::Lease;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use uuid::Uuid;

use crate::{residency::LaneTicket, text::Utf8Tail};

/// Name of a session: 122 random bits in the form of a UUID.
#[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct SessionId(pub u128);

/// The sessions of one worker, those that are parked included.
#[derive(Debug, Default)]
pub struct Sessions {
    map: HashMap<SessionId, Session>,
}

/// Limits of the sessions of one worker.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Sessions kept on each device, idle and parked ones included; beyond it the least recently
    /// used is forgotten. The cache file grows to this many records.
    pub sessions_max: u32,
}

/// What a worker knows of a session.
#[derive(Clone, Copy, Debug)]
pub struct Session {
    pub decoder: Decoder,
    /// Whether the session outlives its generation.
    pub keep: bool,
    /// Whether a generation is running.
    pub active: bool,
    /// Where in the device its state is, if it is there.
    pub lane: Option<LaneTicket>,
    /// The right to write its record; held while a generation runs or parking has failed.
    pub lease: Option<Lease>,
    /// Whether the state cache has a record of exactly this decoder and state.
    pub recorded: bool,
    /// In the clock of the state cache; see [`crate::worker::Clock`].
    pub used_at: u64,
}

/// What a session needs, besides the state, to go on.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Decoder {
    /// Tokens of the session's log, prompt and generated.
    pub position: u64,
    /// The last token of the log if it was drawn but not yet fed to the model.
    pub pending: Option<u32>,
    /// Bytes of a character that the last tokens began.
    pub utf8_tail: Utf8Tail,
    /// Of the draws; with the position it decides each.
    pub seed: u64,
}

/// What identifies the model whose state a record holds: the fingerprint of its manifest.
pub type Fingerprint = [u8; 32];

/// The block before the state in a session record. Little-endian:
///
/// ```text
///  0   8  magic "aeriesn1"
///  8   4  version
/// 12   1  flags: 1 keep, 2 pending
/// 13   1  bytes of the UTF-8 tail
/// 14   3  UTF-8 tail, then zeros
/// 20   4  pending token
/// 24   8  position
/// 32   8  seed
/// 40  32  fingerprint of the model
/// 72  52  zeros
/// 124  4  CRC-32 of all before
/// ```
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Snapshot {
    pub decoder: Decoder,
    pub keep: bool,
    pub fingerprint: Fingerprint,
}

/// Why a block is not a snapshot.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum SnapshotError {
    #[error("snapshot field `magic` is not that of a snapshot")]
    Magic,
    #[error("snapshot field `version` is {found}; this build reads {VERSION}")]
    Version { found: u32 },
    #[error("snapshot field `checksum` is {found:#010x}, but {expected:#010x} is expected")]
    Checksum { found: u32, expected: u32 },
    #[error("snapshot field `{field}` is impossible")]
    Field { field: &'static str },
    #[error("snapshot field `fingerprint` is of another model")]
    Fingerprint,
}

const MAGIC: [u8; 8] = *b"aeriesn1";
const VERSION: u32 = 1;
const FLAG_KEEP: u8 = 1;
const FLAG_PENDING: u8 = 2;
const CHECKSUM_AT: usize = Snapshot::BYTES - 4;

impl SessionId {
    /// A new name.
    pub fn random() -> Self {
        Self(Uuid::new_v4().as_u128())
    }

    /// Reads a UUID in any of its usual forms.
    pub fn parse(text: &str) -> Option<Self> {
        Uuid::try_parse(text).ok().map(|uuid| Self(uuid.as_u128()))
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Uuid::from_u128(self.0).hyphenated().fmt(f)
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Default for Config {
    fn default() -> Self {
        Self { sessions_max: 1024 }
    }
}

impl Sessions {
    pub fn get(&self, id: SessionId) -> Option<&Session> {
        self.map.get(&id)
    }

    pub fn get_mut(&mut self, id: SessionId) -> Option<&mut Session> {
        self.map.get_mut(&id)
    }

    /// The session `id`, of which the caller knows that it is here.
    ///
    /// # Panics
    /// If it is not.
    pub fn expect(&mut self, id: SessionId) -> &mut Session {
        self.map.get_mut(&id).unwrap_or_else(|| panic!("session {id} is gone"))
    }

    pub fn insert(&mut self, id: SessionId, session: Session) {
        let old = self.map.insert(id, session);
        assert!(old.is_none(), "session {id} is here already");
    }

    pub fn remove(&mut self, id: SessionId) -> Option<Session> {
        self.map.remove(&id)
    }

    pub fn iter(&self) -> impl Iterator<Item = (SessionId, &Session)> {
        self.map.iter().map(|(&id, session)| (id, session))
    }

    pub fn len(&self) -> usize {
        self.map.len()
    }

    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }
}

impl Session {
    /// A session without a past.
    pub fn new(keep: bool, used_at: u64) -> Self {
        let decoder = Decoder::default();
        Self { decoder, keep, active: false, lane: None, lease: None, recorded: false, used_at }
    }

    /// Whether its state would be lost with its lane.
    pub fn needs_record(&self) -> bool {
        !self.recorded && 0 < self.decoder.computed() && self.lane.is_some()
    }

    /// A session whose record was found in the state cache.
    pub fn parked(snapshot: &Snapshot, used_at: u64) -> Self {
        let &Snapshot { decoder, keep, .. } = snapshot;
        Self { decoder, keep, active: false, lane: None, lease: None, recorded: true, used_at }
    }
}

impl Decoder {
    /// Tokens that the state has seen.
    pub fn computed(&self) -> u64 {
        self.position - u64::from(self.pending.is_some())
    }
}

impl Snapshot {
    /// Bytes of the encoding.
    pub const BYTES: usize = 128;

    pub fn encode(&self) -> [u8; Self::BYTES] {
        let Decoder { position, pending, utf8_tail, seed } = self.decoder;
        let mut flags = 0;
        if self.keep {
            flags |= FLAG_KEEP;
        }
        if pending.is_some() {
            flags |= FLAG_PENDING;
        }
        let tail = utf8_tail.as_bytes();
        let mut block = [0; Self::BYTES];
        block[..8].copy_from_slice(&MAGIC);
        block[8..12].copy_from_slice(&VERSION.to_le_bytes());
        block[12] = flags;
        block[13] = u8::try_from(tail.len()).expect("at most three bytes");
        block[14..14 + tail.len()].copy_from_slice(tail);
        block[20..24].copy_from_slice(&pending.unwrap_or(0).to_le_bytes());
        block[24..32].copy_from_slice(&position.to_le_bytes());
        block[32..40].copy_from_slice(&seed.to_le_bytes());
        block[40..72].copy_from_slice(&self.fingerprint);
        let checksum = crc32fast::hash(&block[..CHECKSUM_AT]);
        block[CHECKSUM_AT..].copy_from_slice(&checksum.to_le_bytes());
        block
    }

    /// Reads the block of a session of the model `fingerprint`.
    ///
    /// # Errors
    /// See [`SnapshotError`].
    pub fn decode(
        block: &[u8; Self::BYTES],
        fingerprint: &Fingerprint,
    ) -> Result<Self, SnapshotError> {
        if block[..8] != MAGIC {
            return Err(SnapshotError::Magic);
        }
        let version = u32::from_le_bytes(bytes_at(block, 8));
        if version != VERSION {
            return Err(SnapshotError::Version { found: version });
        }
        let found = u32::from_le_bytes(bytes_at(block, CHECKSUM_AT));
        let expected = crc32fast::hash(&block[..CHECKSUM_AT]);
        if found != expected {
            return Err(SnapshotError::Checksum { found, expected });
        }
        let flags = block[12];
        if flags & !(FLAG_KEEP | FLAG_PENDING) != 0 {
            return Err(SnapshotError::Field { field: "flags" });
        }
        let position = u64::from_le_bytes(bytes_at(block, 24));
        let token = u32::from_le_bytes(bytes_at(block, 20));
        let pending = (flags & FLAG_PENDING != 0).then_some(token);
        if position == 0 && pending.is_some() {
            return Err(SnapshotError::Field { field: "position" });
        }
        let utf8_tail = block[14..]
            .get(..usize::from(block[13]).min(Utf8Tail::BYTES_MAX + 1))
            .and_then(Utf8Tail::from_bytes)
            .ok_or(SnapshotError::Field { field: "utf8_tail" })?;
        if bytes_at::<32>(block, 40) != *fingerprint {
            return Err(SnapshotError::Fingerprint);
        }
        let seed = u64::from_le_bytes(bytes_at(block, 32));
        let decoder = Decoder { position, pending, utf8_tail, seed };
        Ok(Self { decoder, keep: flags & FLAG_KEEP != 0, fingerprint: *fingerprint })
    }
}

fn bytes_at<const N: usize>(block: &[u8; Snapshot::BYTES], at: usize) -> [u8; N] {
    block[at..at + N].try_into().expect("N bytes are asked for")
}
