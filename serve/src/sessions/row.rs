//! How a [`Record`] is written down: the rows of the table of sessions. Little-endian:
//!
//! ```text
//!   0   8  magic "aeriesn2"
//!   8   4  version
//!  12   1  flags: 1 keep, 2 turn, 4 turn has a digest, 8 moved_by, 16 tape, 32 lineage
//!  13   4  zeros
//!  17   1  end of the turn: 0 none, else the reason's number
//!  18   1  states
//!  19   1  bytes of the name
//!  20   4  branch
//!  24   8  position
//!  32   8  seed
//!  40  16  turn: digest
//!  56   8  turn: base
//!  64   8  turn: drawn_from
//!  72   4  tape
//!  76   4  epoch
//!  80  16  moved_by
//!  96  16  lineage: of
//! 112   8  lineage: until
//! 120   8  turn: text_bytes
//! 128 512  states: key and computed, 8 bytes each
//! 640  64  name, then zeros
//! 704  16  tenant: 0 for the anonymous one
//! 720  48  zeros
//! ```
//!
//! A row has no checksum: the cache that keeps rows has one, and so has a sealed file. One within would make them
//! blind, since the CRC-32 of bytes that end in their own CRC-32 is always the same.

#[cfg(test)]
mod tests;

use thiserror::Error;

use super::{Lineage, Name, Record, SessionId, StateRef, Turn};
use crate::{auth::TenantId, pipe::FinishReason};

/// Bytes of a row.
pub const BYTES: usize = 768;
/// States that a row has room for.
pub const STATES_MAX: usize = 32;

const MAGIC: [u8; 8] = *b"aeriesn2";
const VERSION: u32 = 1;
const KEEP: u8 = 1;
const TURN: u8 = 2;
const DIGEST: u8 = 4;
const MOVED_BY: u8 = 8;
const TAPE: u8 = 16;
const LINEAGE: u8 = 32;
const STATES_AT: usize = 128;
const NAME_AT: usize = 640;
const TENANT_AT: usize = 704;

/// Why bytes are no row.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum RowError {
    #[error("a row has {BYTES} bytes, but these are {found_bytes}")]
    Length { found_bytes: usize },
    #[error("row field `magic` is not that of a session")]
    Magic,
    #[error("row field `version` is {found}; this build reads {VERSION}")]
    Version { found: u32 },
    #[error("row field `{field}` is impossible")]
    Field { field: &'static str },
}

/// Writes a record down.
///
/// # Panics
/// If it has more than [`STATES_MAX`] states.
pub fn encode(record: &Record) -> [u8; BYTES] {
    let mut row = [0; BYTES];
    let mut put = |at: usize, bytes: &[u8]| row[at..at + bytes.len()].copy_from_slice(bytes);
    let mut flags = if record.keep { KEEP } else { 0 };
    put(0, &MAGIC);
    put(8, &VERSION.to_le_bytes());
    put(TENANT_AT, &record.tenant.0.to_le_bytes());
    put(20, &record.branch.to_le_bytes());
    put(76, &record.epoch.to_le_bytes());
    put(24, &record.position.to_le_bytes());
    put(32, &record.seed.to_le_bytes());
    if let Some(Turn { digest, base, drawn_from, text_bytes, end }) = record.turn {
        flags |= TURN;
        put(17, &[end.map_or(0, number)]);
        put(56, &base.to_le_bytes());
        put(64, &drawn_from.to_le_bytes());
        put(120, &text_bytes.to_le_bytes());
        if let Some(digest) = digest {
            flags |= DIGEST;
            put(40, &digest.to_le_bytes());
        }
    }
    if let Some(tape) = record.tape {
        flags |= TAPE;
        put(72, &tape.to_le_bytes());
    }
    if let Some(moved_by) = record.moved_by {
        flags |= MOVED_BY;
        put(80, &moved_by.to_le_bytes());
    }
    if let Some(Lineage { of, until }) = record.lineage {
        flags |= LINEAGE;
        put(96, &of.0.to_le_bytes());
        put(112, &until.to_le_bytes());
    }
    assert!(record.states.len() <= STATES_MAX, "{} states", record.states.len());
    put(18, &[u8::try_from(record.states.len()).expect("at most STATES_MAX")]);
    for (i, state) in record.states.iter().enumerate() {
        put(STATES_AT + 16 * i, &state.key.to_le_bytes());
        put(STATES_AT + 16 * i + 8, &state.computed.to_le_bytes());
    }
    if let Some(name) = record.name {
        put(19, &[u8::try_from(name.as_str().len()).expect("at most 64 bytes")]);
        put(NAME_AT, name.as_str().as_bytes());
    }
    put(12, &[flags]);
    row
}

/// Reads a record.
///
/// # Errors
/// See [`RowError`].
pub fn decode(bytes: &[u8]) -> Result<Record, RowError> {
    let length = RowError::Length { found_bytes: bytes.len() };
    let row: &[u8; BYTES] = bytes.try_into().map_err(|_| length)?;
    if row[..8] != MAGIC {
        return Err(RowError::Magic);
    }
    let version = u32::from_le_bytes(field(row, 8));
    if version != VERSION {
        return Err(RowError::Version { found: version });
    }
    let flags = row[12];
    if flags & !(KEEP | TURN | DIGEST | MOVED_BY | TAPE | LINEAGE) != 0 {
        return Err(RowError::Field { field: "flags" });
    }
    let has = |flag: u8| flags & flag != 0;
    let position = u64::from_le_bytes(field(row, 24));
    let record = Record {
        tenant: TenantId(u128::from_le_bytes(field(row, TENANT_AT))),
        keep: has(KEEP),
        name: name(row)?,
        position,
        branch: u32::from_le_bytes(field(row, 20)),
        epoch: u32::from_le_bytes(field(row, 76)),
        seed: u64::from_le_bytes(field(row, 32)),
        turn: if has(TURN) { Some(turn(row, has(DIGEST))?) } else { None },
        moved_by: has(MOVED_BY).then(|| u128::from_le_bytes(field(row, 80))),
        tape: has(TAPE).then(|| u32::from_le_bytes(field(row, 72))),
        lineage: has(LINEAGE).then(|| Lineage {
            of: SessionId(u128::from_le_bytes(field(row, 96))),
            until: u64::from_le_bytes(field(row, 112)),
        }),
        states: states(row)?,
    };
    let is_within = |at: u64| at <= position;
    if !record.turn.is_none_or(|it| it.base <= it.drawn_from && is_within(it.drawn_from)) {
        return Err(RowError::Field { field: "turn" });
    }
    if !record.states.last().is_none_or(|it| is_within(it.computed)) {
        return Err(RowError::Field { field: "states" });
    }
    if !record.lineage.is_none_or(|it| is_within(it.until)) {
        return Err(RowError::Field { field: "lineage" });
    }
    Ok(record)
}

fn turn(row: &[u8; BYTES], has_digest: bool) -> Result<Turn, RowError> {
    let end = match row[17] {
        0 => None,
        found => Some(reason(found).ok_or(RowError::Field { field: "turn.end" })?),
    };
    Ok(Turn {
        digest: has_digest.then(|| u128::from_le_bytes(field(row, 40))),
        base: u64::from_le_bytes(field(row, 56)),
        drawn_from: u64::from_le_bytes(field(row, 64)),
        text_bytes: u64::from_le_bytes(field(row, 120)),
        end,
    })
}

fn states(row: &[u8; BYTES]) -> Result<Vec<StateRef>, RowError> {
    let error = RowError::Field { field: "states" };
    let n = usize::from(row[18]);
    if STATES_MAX < n {
        return Err(error);
    }
    let state = |i: usize| StateRef {
        key: u64::from_le_bytes(field(row, STATES_AT + 16 * i)),
        computed: u64::from_le_bytes(field(row, STATES_AT + 16 * i + 8)),
    };
    let states: Vec<StateRef> = (0..n).map(state).collect();
    if !states.is_sorted_by(|a, b| a.computed < b.computed) {
        return Err(error);
    }
    Ok(states)
}

fn name(row: &[u8; BYTES]) -> Result<Option<Name>, RowError> {
    let error = RowError::Field { field: "name" };
    match usize::from(row[19]) {
        0 => Ok(None),
        len if len <= Name::BYTES_MAX => {
            let text = std::str::from_utf8(&row[NAME_AT..NAME_AT + len]).map_err(|_| error)?;
            Name::parse(text).map(Some).map_err(|_| error)
        }
        _ => Err(error),
    }
}

/// The number of a reason, which files keep.
fn number(reason: FinishReason) -> u8 {
    match reason {
        FinishReason::Length => 1,
        FinishReason::Stop => 2,
        FinishReason::EndOfText => 3,
        FinishReason::Cancelled => 4,
        FinishReason::Shutdown => 5,
        FinishReason::Interrupted => 6,
        FinishReason::Prompt => 7,
    }
}

fn reason(found: u8) -> Option<FinishReason> {
    FinishReason::ALL.into_iter().find(|&reason| number(reason) == found)
}

fn field<const N: usize>(row: &[u8; BYTES], at: usize) -> [u8; N] {
    row[at..at + N].try_into().expect("N bytes are asked for")
}
