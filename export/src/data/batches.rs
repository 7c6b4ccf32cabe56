//! Rows of a token stream in a seeded order, which can be taken up at any row.

#[cfg(test)]
mod tests;

use rand::{Rng, seq::SliceRandom};
use thiserror::Error;

use crate::{chance, data::corpus::Tokens};

/// Packed rows, and for every token the one that follows it.
///
/// # Shapes
/// - `inputs`, `targets`: `[N]`; `bounds`: `[B+1]`
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Batch {
    pub inputs: Vec<i64>,
    pub targets: Vec<i64>,
    /// Segment `b` is `bounds[b]..bounds[b+1]`: documents, cut where a row ends. Each begins anew.
    pub bounds: Vec<i64>,
}

/// Extents of the batches of a training.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub rows: u32,
    /// Tokens of a row.
    pub time: u32,
}

/// Where a shuffle stands; with the seed it determines all that follows.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Cursor {
    /// Passes begun, from 0.
    pub epoch: u64,
    /// Rows of this pass already used.
    pub row: u64,
}

/// The stream has fewer tokens than a row.
#[derive(Debug, Error)]
#[error("the text has {tokens} tokens, but a row of {time} needs {needed}")]
pub struct TooShort {
    tokens: usize,
    time: u32,
    needed: usize,
}

/// Batches without end: in every pass the stream is cut into rows at another offset, and the rows
/// come in another order.
#[derive(Debug)]
pub struct Shuffle<'a> {
    tokens: &'a Tokens,
    shape: Shape,
    seed: u64,
    cursor: Cursor,
    /// First token of each row of this pass.
    starts: Vec<usize>,
}

impl<'a> Shuffle<'a> {
    /// A shuffle that stands at `cursor`.
    ///
    /// # Errors
    /// [`TooShort`] if there is not one row in `tokens` at every offset.
    pub fn new(
        tokens: &'a Tokens,
        shape: Shape,
        seed: u64,
        cursor: Cursor,
    ) -> Result<Self, TooShort> {
        let needed = 2 * shape.time as usize + 1;
        if tokens.ids.len() < needed {
            return Err(TooShort { tokens: tokens.ids.len(), time: shape.time, needed });
        }
        let mut shuffle = Self { tokens, shape, seed, cursor, starts: Vec::new() };
        shuffle.begin_epoch();
        Ok(shuffle)
    }

    /// Where the shuffle stands.
    pub fn cursor(&self) -> Cursor {
        self.cursor
    }

    /// The next batch; a pass may end in its middle.
    pub fn batch(&mut self) -> Batch {
        let starts: Vec<usize> = (0..self.shape.rows).map(|_| self.row()).collect();
        self.tokens.batch(&starts, self.shape.time as usize)
    }

    fn row(&mut self) -> usize {
        if self.starts.len() as u64 <= self.cursor.row {
            self.cursor = Cursor { epoch: self.cursor.epoch + 1, row: 0 };
            self.begin_epoch();
        }
        let row = usize::try_from(self.cursor.row).expect("the row is below a count in memory");
        self.cursor.row += 1;
        self.starts[row]
    }

    fn begin_epoch(&mut self) {
        let mut rng = chance::source(self.seed, "order of rows", self.cursor.epoch);
        let time = self.shape.time as usize;
        let offset = rng.random_range(0..time);
        let rows = (self.tokens.ids.len() - 1 - offset) / time;
        self.starts = (0..rows).map(|row| offset + row * time).collect();
        self.starts.shuffle(&mut rng);
    }
}
