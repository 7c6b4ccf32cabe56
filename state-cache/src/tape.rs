//! Tapes: what was appended to each owner, word by word, in a file.
//!
//! A [`Tapes`] keeps the logs of which the records of a [`StateCache`](crate::StateCache) are the outcome. As there,
//! nobody knows here what the words mean, there are no threads and no clock, and everything has a fixed place:
//!
//! ```text
//! 0            4096
//! ├─ header ───┼─ tape 0 ────────┬─ tape 1 ────────┬─ ...      cells_max cells each, rounded up to a page
//!
//! header, little-endian                     cell
//!  0  magic         8 B   "AerieTap"         0  word    u32
//!  8  format        u32   1                  4  branch  u32
//! 12  tapes_max     u32                      8  check   u32   CRC-32 of word, branch, owner, place
//! 16  cells_max     u32                     12  zero
//! 20  fingerprint  32 B
//! 52  checksum      u32   of bytes 0..52
//! ```
//!
//! The word at place `n` lies in cell `n` modulo `cells_max`: a tape keeps the last `cells_max` words. Every cell says for
//! itself whose it is, where it belongs and whether it is whole. So there is no length to be kept in step: after a crash,
//! [`Tapes::tail`] finds what was appended last. A tape may go back and be written again from an earlier place under
//! another *branch*; what is left of the old one behind it is not taken for the tail of the new one.
//!
//! Tapes never written, and tapes that were cleared, are holes in a sparse file. What was written survives the
//! process; what was flushed, the loss of power.

#[cfg(test)]
mod tests;

use std::{io, iter::zip, ops::Range, path::Path};

use thiserror::Error;

use crate::{
    layout::Fingerprint,
    recovery::OpenError,
    storage::{MappedFile, Storage},
};

const PAGE_BYTES: u64 = 4096;
const MAGIC: [u8; 8] = *b"AerieTap";
/// The file format that this code reads and writes.
const FORMAT: u32 = 1;
const HEADER_BYTES: usize = 56;
const CELL_BYTES: usize = 16;
/// Cells that are read at a time: a page of them.
const RUN_CELLS: u64 = PAGE_BYTES / CELL_BYTES as u64;

/// The tapes of a file.
#[derive(Debug)]
pub struct Tapes<S = MappedFile> {
    storage: S,
    config: TapeConfig,
    /// Bytes on their way to the file.
    cells: Vec<u8>,
}

/// Limits of a file of tapes, and whose it is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct TapeConfig {
    pub tapes_max: u32,
    /// Words that a tape keeps.
    pub cells_max: u32,
    /// What the words belong to; a file of anybody else is refused.
    pub fingerprint: Fingerprint,
}

/// A tape in the hands of its owner.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Tape {
    /// Which tape of the file.
    pub number: u32,
    /// Cells of anybody else, left on the tape, are not read.
    pub owner: u128,
}

/// Why words are not read.
#[derive(Debug, Error)]
pub enum TapeError {
    #[error("the tape has no whole word at {at}")]
    Missing { at: u64 },
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl Tapes<MappedFile> {
    /// Opens the file at `path`, or makes it.
    ///
    /// # Errors
    /// If the file is open elsewhere, is not of this `config`, or the system reports an error.
    pub fn open(path: &Path, config: TapeConfig) -> Result<Self, OpenError> {
        // An impossible configuration should not leave a file behind.
        config.file_bytes()?;
        let storage = MappedFile::open(path).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => OpenError::Locked,
            _ => error.into(),
        })?;
        Self::open_on(storage, config)
    }
}

impl<S: Storage> Tapes<S> {
    /// Like [`Tapes::open`], on any storage.
    ///
    /// # Errors
    /// As [`Tapes::open`].
    pub fn open_on(mut storage: S, config: TapeConfig) -> Result<Self, OpenError> {
        let expected_bytes = config.file_bytes()?;
        if storage.size()? == 0 {
            storage.grow(expected_bytes)?;
        }
        let found_bytes = storage.size()?;
        if HEADER_BYTES as u64 <= found_bytes {
            let (found, header) = (storage.read(0, HEADER_BYTES as u64)?, config.to_bytes());
            // Whoever made the file was stopped before the header was whole.
            let is_begun =
                found != header && zip(found, header).all(|(it, byte)| [0, byte].contains(it));
            if found_bytes == expected_bytes && is_begun {
                storage.write(0, &header)?;
                storage.flush()?;
            }
            config.expect(storage.read(0, HEADER_BYTES as u64)?)?;
        }
        if found_bytes != expected_bytes {
            return Err(OpenError::Size { found_bytes, expected_bytes });
        }
        Ok(Self { storage, config, cells: Vec::new() })
    }

    pub fn config(&self) -> &TapeConfig {
        &self.config
    }

    /// Writes `words` from place `at` on, over whatever is there. Of more than `cells_max`, the last are kept.
    ///
    /// # Errors
    /// Whatever the storage reports; any of the words may have been written then.
    ///
    /// # Panics
    /// If the file has no such tape.
    pub fn write(&mut self, tape: Tape, branch: u32, at: u64, words: &[u32]) -> io::Result<()> {
        let cells_max = self.config.cells_max as usize;
        let dropped = words.len().saturating_sub(cells_max);
        let (mut at, mut words) = (at + dropped as u64, &words[dropped..]);
        while !words.is_empty() {
            let cell = self.config.cell(at);
            let n = words.len().min(cells_max - cell as usize);
            let (run, rest) = words.split_at(n);
            self.cells.clear();
            for (place, &word) in (at..).zip(run) {
                self.cells.extend_from_slice(&encode(tape.owner, branch, place, word));
            }
            self.storage.write(self.config.offset(tape.number, cell), &self.cells)?;
            (at, words) = (at + n as u64, rest);
        }
        Ok(())
    }

    /// Appends the words at `places` to `into`.
    ///
    /// # Errors
    /// If one of them is not on the tape any more, was never, or is damaged; `into` is as before then.
    pub fn read(
        &self,
        tape: Tape,
        places: Range<u64>,
        into: &mut Vec<u32>,
    ) -> Result<(), TapeError> {
        let before = into.len();
        let mut at = places.start;
        while at < places.end {
            let n = (places.end - at).min(RUN_CELLS);
            let whole = self.run(tape, at, n, |_, word| into.push(word))?;
            if whole < n {
                into.truncate(before);
                return Err(TapeError::Missing { at: at + whole });
            }
            at += n;
        }
        Ok(())
    }

    /// The words that were written under `branch` from place `at` on, without a gap.
    ///
    /// # Errors
    /// Whatever the storage reports.
    pub fn tail(&self, tape: Tape, branch: u32, at: u64) -> io::Result<Vec<u32>> {
        let mut words = Vec::new();
        while words.len() < self.config.cells_max as usize {
            let (before, mut of_branch) = (words.len(), true);
            let whole = self.run(tape, at + before as u64, RUN_CELLS, |found, word| {
                of_branch &= found == branch;
                if of_branch {
                    words.push(word);
                }
            })?;
            if whole < RUN_CELLS || !of_branch {
                break;
            }
        }
        words.truncate(self.config.cells_max as usize);
        Ok(words)
    }

    /// Copies the words at `places` to the same places of `to`; of those that `from` has lost, and all before
    /// them, nothing. Returns the first place that was copied.
    ///
    /// # Errors
    /// Whatever the storage reports.
    pub fn copy(
        &mut self,
        from: Tape,
        to: Tape,
        branch: u32,
        places: Range<u64>,
    ) -> io::Result<u64> {
        let mut first = places.start.max(places.end.saturating_sub(self.config.cells_max.into()));
        let (mut words, mut at) = (Vec::new(), first);
        while at < places.end {
            at += self.run(from, at, places.end - at, |_, word| words.push(word))?;
            if at < places.end {
                words.clear();
                at += 1;
                first = at;
            }
        }
        self.write(to, branch, first, &words)?;
        Ok(first)
    }

    /// Empties a tape, and gives its pages back to the file system.
    ///
    /// # Errors
    /// Whatever the storage reports.
    pub fn clear(&mut self, number: u32) -> io::Result<()> {
        let start = self.config.offset(number, 0);
        self.storage.discard(start, self.config.stride_bytes())
    }

    /// Returns when every write so far would survive the loss of power.
    ///
    /// # Errors
    /// Whatever the system reports.
    pub fn flush(&mut self) -> io::Result<()> {
        self.storage.flush()
    }

    /// Closes the file, without a flush, and gives the storage back.
    pub fn into_storage(self) -> S {
        self.storage
    }

    /// The storage, to arm faults.
    #[cfg(any(test, feature = "faulty"))]
    pub fn storage_mut(&mut self) -> &mut S {
        &mut self.storage
    }

    /// Shows branch and word of up to `n` places from `at` on, until one is not there or not whole; returns how many
    /// were shown.
    fn run(&self, tape: Tape, at: u64, n: u64, mut show: impl FnMut(u32, u32)) -> io::Result<u64> {
        let mut shown = 0;
        while shown < n {
            let cell = self.config.cell(at + shown);
            let run = (n - shown).min(u64::from(self.config.cells_max - cell));
            let offset = self.config.offset(tape.number, cell);
            let cells = self.storage.read(offset, run * CELL_BYTES as u64)?;
            for cell in cells.as_chunks::<CELL_BYTES>().0 {
                let [word, branch, ..] = numbers(cell);
                if *cell != encode(tape.owner, branch, at + shown, word) {
                    return Ok(shown);
                }
                show(branch, word);
                shown += 1;
            }
        }
        Ok(shown)
    }
}

impl TapeConfig {
    fn stride_bytes(self) -> u64 {
        (u64::from(self.cells_max) * CELL_BYTES as u64).next_multiple_of(PAGE_BYTES)
    }

    fn file_bytes(self) -> Result<u64, OpenError> {
        let Self { tapes_max, cells_max, .. } = self;
        if tapes_max == 0 {
            return Err(OpenError::Zero { field: "tapes_max" });
        }
        if cells_max == 0 {
            return Err(OpenError::Zero { field: "cells_max" });
        }
        let too_large =
            OpenError::TooLarge { record_bytes: self.stride_bytes(), records_max: tapes_max };
        // Offsets in a file are signed.
        self.stride_bytes()
            .checked_mul(tapes_max.into())
            .and_then(|bytes| bytes.checked_add(PAGE_BYTES))
            .filter(|&bytes| i64::try_from(bytes).is_ok())
            .ok_or(too_large)
    }

    fn cell(self, at: u64) -> u32 {
        u32::try_from(at % u64::from(self.cells_max)).expect("it is below cells_max")
    }

    fn offset(self, number: u32, cell: u32) -> u64 {
        assert!(number < self.tapes_max, "tape {number} of {}", self.tapes_max);
        PAGE_BYTES + u64::from(number) * self.stride_bytes() + u64::from(cell) * CELL_BYTES as u64
    }

    fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&FORMAT.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.tapes_max.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.cells_max.to_le_bytes());
        bytes[20..52].copy_from_slice(&self.fingerprint.0);
        let checksum = crc32fast::hash(&bytes[..52]);
        bytes[52..].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// Compares the header of a file with what is expected, field by field.
    fn expect(self, bytes: &[u8]) -> Result<(), OpenError> {
        let number =
            |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        if bytes[..8] != MAGIC {
            let found = bytes[..8].try_into().expect("eight bytes");
            return Err(OpenError::Magic { found, expected: MAGIC });
        }
        if number(8) != FORMAT {
            return Err(OpenError::Format { found: number(8), expected: FORMAT });
        }
        let (found, expected) = (number(52), crc32fast::hash(&bytes[..52]));
        if found != expected {
            return Err(OpenError::Checksum { found, expected });
        }
        let (found, expected) = (number(12), self.tapes_max);
        if found != expected {
            return Err(OpenError::TapesMax { found, expected });
        }
        let (found, expected) = (number(16), self.cells_max);
        if found != expected {
            return Err(OpenError::CellsMax { found, expected });
        }
        let found = Fingerprint(bytes[20..52].try_into().expect("32 bytes"));
        if found != self.fingerprint {
            return Err(OpenError::Fingerprint { found, expected: self.fingerprint });
        }
        Ok(())
    }
}

/// The four numbers of a cell.
fn numbers(cell: &[u8; CELL_BYTES]) -> [u32; 4] {
    std::array::from_fn(|i| {
        u32::from_le_bytes([cell[4 * i], cell[4 * i + 1], cell[4 * i + 2], cell[4 * i + 3]])
    })
}

fn encode(owner: u128, branch: u32, at: u64, word: u32) -> [u8; CELL_BYTES] {
    let mut sealed = [0; 32];
    sealed[..4].copy_from_slice(&word.to_le_bytes());
    sealed[4..8].copy_from_slice(&branch.to_le_bytes());
    sealed[8..16].copy_from_slice(&at.to_le_bytes());
    sealed[16..].copy_from_slice(&owner.to_le_bytes());
    let mut cell = [0; CELL_BYTES];
    cell[..8].copy_from_slice(&sealed[..8]);
    // Beside a cell of zeros, which is a hole, even the word 0 has something to show.
    let check = crc32fast::hash(&sealed) | 1;
    cell[8..12].copy_from_slice(&check.to_le_bytes());
    cell
}
