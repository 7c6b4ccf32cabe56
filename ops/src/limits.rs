//! What a machine can do at most, for figures to be held against: loops of known work and nothing
//! beside it. They read no clock; who calls them does.

#[cfg(test)]
mod tests;

use std::hint::black_box;

use crate::{
    isa::{self, Isa, LANES, Lanes, Line},
    simd::{Loops, widest},
};

/// Reads `words` with the widest loads there are, at [`STREAMS`] places at once: machines that bring memory
/// closer by themselves do so for each place, and for one alone not as fast as they could.
///
/// What comes back is made of all of them, so that nothing can be left out.
pub fn read(words: &[u64]) -> u64 {
    let mut folded = 0;
    widest(Fold { words, folded: &mut folded });
    folded
}

/// Multiply-adds of one kind, as instructions do them.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Arithmetic {
    /// Fused, in f32.
    F32,
    /// Bytes, four products to a sum of 32 bits: what q8 and q4 weights are multiplied with.
    I8,
    /// Bytes by tiles, 64 products to a sum of 32 bits: the same for several rows, where a machine has it.
    I8Tiles,
    /// bf16, two products to a sum in f32. No kernel uses it: with eight rows and more it is slower than
    /// [`Self::F32`] on the machines with tiles, and its rounding is the machine's own.
    Bf16,
    /// Numbers as sums of two bf16 by tiles of bf16 weights: what bf16 weights are multiplied with, where a machine
    /// has it. Two products count as one.
    Bf16Tiles,
}

/// How many sums run beside each other: few where there are 16 registers, many where an instruction
/// takes long to end.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Chains {
    Few,
    Many,
}

impl Chains {
    pub const ALL: [Self; 2] = [Self::Few, Self::Many];
}

/// Sums of [`Chains::Few`].
const FEW: usize = 4;
/// Sums of [`Chains::Many`]: with as many factors they still fit in 32 registers.
const MANY: usize = 12;

impl Arithmetic {
    pub const ALL: [Self; 5] = [Self::F32, Self::I8, Self::I8Tiles, Self::Bf16, Self::Bf16Tiles];

    /// What tables and files call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::I8 => "i8",
            Self::I8Tiles => "i8 tiles",
            Self::Bf16 => "bf16",
            Self::Bf16Tiles => "bf16 tiles",
        }
    }

    /// Multiplies and adds in registers for `rounds` rounds; gives how many multiply-adds that was, or
    /// none if this machine has no instruction for it.
    pub fn multiply_adds(self, chains: Chains, rounds: usize) -> Option<u64> {
        let (done, per_round) = match (self, chains) {
            (Self::F32, Chains::Few) => (isa::best(Fused::<FEW> { rounds }), FEW * LANES),
            (Self::F32, Chains::Many) => (isa::best(Fused::<MANY> { rounds }), MANY * LANES),
            (Self::I8, Chains::Few) => (isa::best(Dots::<FEW> { rounds }), FEW * DOTS_LINE),
            (Self::I8, Chains::Many) => (isa::best(Dots::<MANY> { rounds }), MANY * DOTS_LINE),
            // There are as many tiles for sums as there are.
            (Self::I8Tiles, _) => return isa::amx::peak(rounds),
            (Self::Bf16Tiles, _) => return isa::amx::peak_of_parts(rounds),
            (Self::Bf16, Chains::Few) => (isa::bf16_dots::<FEW>(rounds)?, FEW * 2 * LANES),
            (Self::Bf16, Chains::Many) => (isa::bf16_dots::<MANY>(rounds)?, MANY * 2 * LANES),
        };
        black_box(done);
        Some(rounds as u64 * per_round as u64)
    }
}

/// Places at which memory is read at once.
const STREAMS: usize = 4;

/// Exclusive or of all words.
struct Fold<'a> {
    words: &'a [u64],
    folded: &'a mut u64,
}

impl Loops for Fold<'_> {
    #[inline(always)]
    fn run(self) {
        let each = self.words.len() / STREAMS;
        let (words, rest) = self.words.split_at(each * STREAMS);
        let (a, b) = words.split_at(2 * each);
        let ((a, b), (c, d)) = (a.split_at(each), b.split_at(each));
        // Written plainly, this becomes the widest vectors whose loads do not wait for each other.
        let folded = (0..each).fold(0, |folded, at| folded ^ a[at] ^ b[at] ^ c[at] ^ d[at]);
        *self.folded = rest.iter().fold(folded, |folded, it| folded ^ it);
    }
}

/// `N` vectors of sums, each advanced once in a round.
struct Fused<const N: usize> {
    rounds: usize,
}

impl<const N: usize> Lanes for Fused<N> {
    type Output = f32;

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> f32 {
        // They settle at 2: no sum becomes infinite or so small that the machine slows down.
        let [factor, term] = black_box([0.5, 1.0]).map(|it| isa.floats(it));
        let mut sums: [I::Floats; N] = std::array::from_fn(|n| isa.floats(n as f32));
        for _ in 0..self.rounds {
            for sum in &mut sums {
                *sum = isa.mul_add(*sum, factor, term);
            }
        }
        sums.iter().flat_map(|it| isa.store(*it)).sum()
    }
}

/// `N` vectors of sums of four products of bytes, with as many inputs: the heart of a product of
/// `N` rows, with weights that never leave the first cache.
struct Dots<const N: usize> {
    rounds: usize,
}

/// Vectors of weights that take turns, so that no product can be made once and kept.
const DOTS_LINES: usize = 16;
/// Multiply-adds of a sum in a round.
const DOTS_LINE: usize = DOTS_LINES * size_of::<Line>();

impl<const N: usize> Lanes for Dots<N> {
    type Output = f32;

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> f32 {
        let lines = black_box([[3u8; size_of::<Line>()]; DOTS_LINES]);
        let x = black_box([i32::from_le_bytes([1, 254, 3, 252]); N]);
        let mut sums: [I::Ints; N] = [isa.ints(0); N];
        for _ in 0..self.rounds {
            for line in black_box(&lines) {
                let weights = isa.bytes(line);
                for n in 0..N {
                    sums[n] = isa.dot4(sums[n], weights, &x[n]);
                }
            }
        }
        sums.iter().flat_map(|it| isa.store(isa.convert(*it))).sum()
    }
}
