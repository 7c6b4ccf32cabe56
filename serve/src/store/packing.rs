//! How a state lies in its record: without the part of attention's windows that no token has filled yet, and if that is
//! asked for with windows of 8 bits. What is in a window is `aerie-ops`' affair; here it is rows.
//!
//! ```text
//! state of a lane, f32     packed
//! ├─ conv, rg_lru ───┤     ├─ as they are ───────────────────────────┤
//! ├─ keys ───────────┤     ├─ rows 0..filled ────────────────────────┤     exact: row after row as they are
//! ├─ values ─────────┤     ├─ rows 0..filled ────────────────────────┤     8 bits: a scale in f32, then a byte for each value
//! ```
//!
//! Position `p` has row `p` modulo the ring's `W + 1` rows. So a state that has seen fewer tokens than that has filled as many
//! rows, the first ones. No token sees the others, whatever is in them: they are neither read from a lane nor written to it.
//! From then on all rows are filled.

#[cfg(test)]
mod tests;

use std::ops::Range;

use aerie_models::{BlockCarry, Carry, TensorSpec};

use crate::sessions::{Fingerprint, Windows};

/// The way from a lane's state to a record and back. Keeps the memory that it takes on the way.
#[derive(Clone, Debug)]
pub struct Packing {
    /// The fields of a state in their order; what needs no care in one piece.
    pieces: Vec<Piece>,
    windows: Windows,
    state_bytes: usize,
    packed: Vec<u8>,
    /// A window on its way back.
    unpacked: Vec<u8>,
}

/// Bytes of a state that are treated alike.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Piece {
    Plain { bytes: usize },
    Window { rows: usize, row_bytes: usize },
}

/// Bytes of a row's scale.
const SCALE_BYTES: usize = size_of::<f32>();
/// The greatest byte: one less than there is room for, so that there are as many below 0 as above.
const BYTE_MAX: f32 = 127.0;
/// Bits of a scale that are 0, so that its product with a byte is exact. A row that was rounded once has the same scale and
/// the same bytes when it is rounded again, however often its session is parked.
const SCALE_VOID_BITS: u32 = 0x7F;
/// A row whose greatest value is below this is zeros: its scale would have no reciprocal.
const GREATEST_MIN: f32 = f32::MIN_POSITIVE * (1 << 20) as f32;
/// Added to a number of few bits it pushes all but the whole part out, rounded to the nearest, ties to even.
const ROUNDING: f32 = (3 << 22) as f32;

impl Packing {
    /// For states of this layout.
    ///
    /// # Panics
    /// If such a state does not fit in memory.
    pub fn new(layout: &Carry<TensorSpec>, windows: Windows) -> Self {
        let bytes =
            |field: &TensorSpec| usize::try_from(field.bytes()).expect("a state fits in memory");
        let mut it = Self::opaque(0);
        it.windows = windows;
        for block in &layout.blocks {
            for field in block.fields() {
                let rows = field.shape.first().copied().unwrap_or(1);
                match block {
                    BlockCarry::Recurrent { .. } => it.push_plain(bytes(field)),
                    BlockCarry::Attention { .. } => {
                        let rows = usize::try_from(rows).expect("a row has bytes");
                        it.pieces.push(Piece::Window { rows, row_bytes: bytes(field) / rows });
                    }
                }
                it.state_bytes += bytes(field);
            }
        }
        it
    }

    /// For states of which nothing is known but their bytes.
    pub fn opaque(state_bytes: u64) -> Self {
        let state_bytes = usize::try_from(state_bytes).expect("a state fits in memory");
        let mut it = Self {
            pieces: Vec::new(),
            windows: Windows::Exact,
            state_bytes,
            packed: Vec::new(),
            unpacked: Vec::new(),
        };
        it.push_plain(state_bytes);
        it
    }

    /// Bytes of a packed state, at most.
    pub fn bytes_max(&self) -> u64 {
        self.bytes(u64::MAX) as u64
    }

    /// Bytes of a packed state that has seen `tokens`.
    pub fn bytes(&self, tokens: u64) -> usize {
        let bytes = |piece: &Piece| match *piece {
            Piece::Plain { bytes } => bytes,
            Piece::Window { rows, row_bytes } => {
                filled(rows, tokens) * packed_row_bytes(self.windows, row_bytes)
            }
        };
        self.pieces.iter().map(bytes).sum()
    }

    /// What tells states of a model that are packed like this from all others.
    pub fn fingerprint(&self, model: &Fingerprint) -> Fingerprint {
        let mut hasher = blake3::Hasher::new();
        hasher.update(model);
        hasher.update(match self.windows {
            Windows::Exact => b"packed: exact",
            Windows::Q8 => b"packed: q8, a scale for each row",
        });
        *hasher.finalize().as_bytes()
    }

    /// The bytes to keep of a state that has seen `tokens`. What is void in `state` is not looked at.
    ///
    /// # Panics
    /// If `state` is not as long as a state.
    pub fn pack<'a>(&'a mut self, tokens: u64, state: &'a [u8]) -> &'a [u8] {
        assert_eq!(state.len(), self.state_bytes, "a state has a fixed size");
        if self.is_plain(tokens) {
            return state;
        }
        let bytes = self.bytes(tokens);
        self.packed.resize(bytes, 0);
        let (mut rest, mut to) = (state, &mut self.packed[..]);
        for piece in &self.pieces {
            let (from, packed);
            (from, rest) = rest.split_at(piece.bytes());
            match *piece {
                Piece::Window { rows, row_bytes } if self.windows == Windows::Q8 => {
                    let rows = filled(rows, tokens);
                    let packed_bytes = packed_row_bytes(self.windows, row_bytes);
                    (packed, to) = to.split_at_mut(rows * packed_bytes);
                    let rows = from.chunks_exact(row_bytes);
                    rows.zip(packed.chunks_exact_mut(packed_bytes))
                        .for_each(|(row, to)| round(row, to));
                }
                _ => {
                    let seen = piece.seen(tokens);
                    (packed, to) = to.split_at_mut(seen.len());
                    packed.copy_from_slice(&from[seen]);
                }
            }
        }
        &self.packed
    }

    /// Shows the state of which `packed` was kept, part by part, each with its place in the state; what is void is not
    /// shown. False, and nothing is shown, if nothing as long is kept of a state that has seen `tokens`.
    pub fn unpack(
        &mut self,
        tokens: u64,
        packed: &[u8],
        mut show: impl FnMut(usize, &[u8]),
    ) -> bool {
        if packed.len() != self.bytes(tokens) {
            return false;
        }
        if self.is_plain(tokens) {
            show(0, packed);
            return true;
        }
        let mut rest = packed;
        let mut start = 0;
        for piece in &self.pieces {
            let seen = piece.seen(tokens);
            let from;
            match *piece {
                Piece::Window { row_bytes, .. } if self.windows == Windows::Q8 => {
                    let packed_bytes = packed_row_bytes(self.windows, row_bytes);
                    (from, rest) = rest.split_at(seen.len() / row_bytes * packed_bytes);
                    self.unpacked.resize(seen.len(), 0);
                    let rows = self.unpacked.chunks_exact_mut(row_bytes);
                    let packed_rows = from.chunks_exact(packed_bytes);
                    packed_rows.zip(rows).for_each(|(row, to)| restore(row, to));
                    show(start, &self.unpacked);
                }
                _ => {
                    (from, rest) = rest.split_at(seen.len());
                    show(start, from);
                }
            }
            start += piece.bytes();
        }
        true
    }

    /// What is not void of a state that has seen `tokens`.
    pub fn seen(&self, tokens: u64) -> impl Iterator<Item = Range<usize>> {
        let mut start = 0;
        self.pieces.iter().map(move |piece| {
            let seen = piece.seen(tokens);
            let range = start..start + seen.len();
            start += piece.bytes();
            range
        })
    }

    /// Bytes of a state in its lane.
    pub fn state_bytes(&self) -> usize {
        self.state_bytes
    }

    fn push_plain(&mut self, more: usize) {
        match self.pieces.last_mut() {
            Some(Piece::Plain { bytes }) => *bytes += more,
            _ => self.pieces.push(Piece::Plain { bytes: more }),
        }
    }

    /// Whether a state that has seen `tokens` is kept as it is.
    fn is_plain(&self, tokens: u64) -> bool {
        let is_plain = |piece: &Piece| match piece {
            Piece::Plain { .. } => true,
            Piece::Window { rows, .. } => {
                self.windows == Windows::Exact && filled(*rows, tokens) == *rows
            }
        };
        self.pieces.iter().all(is_plain)
    }
}

impl Piece {
    /// Within a state.
    fn bytes(self) -> usize {
        match self {
            Self::Plain { bytes } => bytes,
            Self::Window { rows, row_bytes } => rows * row_bytes,
        }
    }

    /// What is not void of it, after `tokens`.
    fn seen(self, tokens: u64) -> Range<usize> {
        match self {
            Self::Plain { bytes } => 0..bytes,
            Self::Window { rows, row_bytes } => 0..filled(rows, tokens) * row_bytes,
        }
    }
}

/// How many of a ring's rows have been filled after `tokens`.
fn filled(rows: usize, tokens: u64) -> usize {
    usize::try_from(tokens).unwrap_or(usize::MAX).min(rows)
}

/// Bytes of a row of a window in its record.
fn packed_row_bytes(windows: Windows, row_bytes: usize) -> usize {
    match windows {
        Windows::Exact => row_bytes,
        Windows::Q8 => SCALE_BYTES + row_bytes / size_of::<f32>(),
    }
}

/// Rounds a row of f32 to bytes: the nearest multiples of a scale, a 127th of the greatest value. A row that is not finite
/// has a scale that is not a number.
fn round(row: &[u8], to: &mut [u8]) {
    let values = || row.chunks_exact(4).map(|it| f32::from_le_bytes([it[0], it[1], it[2], it[3]]));
    // Numbers above 0 are ordered as their bits are, and whatever is not finite is above them.
    let greatest = values().map(|it| it.to_bits() & !(1 << 31)).fold(0, u32::max);
    let greatest = f32::from_bits(greatest);
    let scale = if !greatest.is_finite() {
        f32::NAN
    } else if greatest < GREATEST_MIN {
        0.0
    } else {
        f32::from_bits((greatest / BYTE_MAX).to_bits() & !SCALE_VOID_BITS)
    };
    let factor = if scale == 0.0 { 0.0 } else { scale.recip() };
    let (to_scale, to) = to.split_at_mut(SCALE_BYTES);
    to_scale.copy_from_slice(&scale.to_le_bytes());
    for (to, value) in to.iter_mut().zip(values()) {
        // The lowest byte of the sum is the whole number, below 0 in two's complement.
        [*to, ..] = (value * factor + ROUNDING).to_bits().to_le_bytes();
    }
}

/// The row of f32 that [`round`] has made bytes of, but for the rounding.
fn restore(row: &[u8], to: &mut [u8]) {
    let (scale, bytes) = row.split_at(SCALE_BYTES);
    let scale = f32::from_le_bytes(scale.try_into().expect("a scale has its bytes"));
    for (to, byte) in to.chunks_exact_mut(4).zip(bytes) {
        to.copy_from_slice(&(f32::from(byte.cast_signed()) * scale).to_le_bytes());
    }
}
