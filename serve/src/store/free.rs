//! Which tapes nobody has. Takes memory for those alone that somebody had and gave back.

use std::{collections::HashSet, ops::Range};

/// Numbers of tapes that nobody has.
#[derive(Debug, Default)]
pub(super) struct FreeTapes {
    given_back: Vec<u32>,
    /// Greater than all that were ever taken.
    untouched: Range<u32>,
}

impl FreeTapes {
    /// All below `tapes_max` that are not `taken`.
    pub(super) fn new(taken: &HashSet<u32>, tapes_max: u32) -> Self {
        let end = taken.iter().max().map_or(0, |last| last + 1);
        let given_back = (0..end).rev().filter(|tape| !taken.contains(tape)).collect();
        Self { given_back, untouched: end..tapes_max }
    }

    pub(super) fn pop(&mut self) -> Option<u32> {
        self.given_back.pop().or_else(|| self.untouched.next())
    }

    pub(super) fn push(&mut self, tape: u32) {
        self.given_back.push(tape);
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.given_back.len() + self.untouched.len()
    }
}
