//! Inputs of a product as bytes, quantised while it runs.

use crate::{
    matmul::packing::{BLOCK4, Format, Packing},
    simd::{Loops, widest},
};

/// Rows of bytes, with a scale for each block of a row.
///
/// A row of the product becomes one for each group. A block is the row in the 8-bit format and 32
/// inputs in the 4-bit one, so that a large input costs its neighbours no precision there.
#[derive(Debug, Default)]
pub(super) struct Quantised {
    /// Bytes of a row, by fours.
    pub(super) steps: usize,
    /// Blocks of a row.
    pub(super) blocks: usize,
    /// `[rows, steps]`, padded with 0.
    pub(super) bytes: Vec<[i8; 4]>,
    /// `[rows, blocks]`: an input is its scale times its byte.
    pub(super) scales: Vec<f32>,
    /// `[rows, blocks]`: sums of the bytes.
    pub(super) sums: Vec<i32>,
}

impl Quantised {
    /// Quantises `x` `[N, groups · inputs]`; memory is kept for the next call.
    ///
    /// A block that holds an infinity or a NaN gets NaN as its scale, and so has every result that it
    /// reaches.
    pub(super) fn set(&mut self, packing: &Packing, x: &[f32]) {
        let depth = packing.depth();
        let block = if packing.format == Format::Q4 { BLOCK4 } else { depth };
        let rows = x.len() / packing.inputs;
        (self.steps, self.blocks) = (depth / 4, depth / block);
        self.bytes.clear();
        self.bytes.resize(rows * self.steps, [0; 4]);
        self.scales.clear();
        self.scales.resize(rows * self.blocks, 0.0);
        self.sums.clear();
        self.sums.resize(rows * self.blocks, 0);
        for (row, x) in x.chunks_exact(packing.inputs).enumerate() {
            let bytes = self.bytes[row * self.steps..][..self.steps].as_flattened_mut();
            let scales = &mut self.scales[row * self.blocks..][..self.blocks];
            let sums = &mut self.sums[row * self.blocks..][..self.blocks];
            widest(Row { x, block, bytes, scales, sums });
        }
    }

    /// Bytes of a row.
    pub(super) fn row(&self, row: usize) -> &[[i8; 4]] {
        &self.bytes[row * self.steps..][..self.steps]
    }

    /// Scales and sums of a row's blocks.
    pub(super) fn blocks(&self, row: usize) -> (&[f32], &[i32]) {
        let at = row * self.blocks;
        (&self.scales[at..][..self.blocks], &self.sums[at..][..self.blocks])
    }
}

struct Row<'a> {
    x: &'a [f32],
    block: usize,
    bytes: &'a mut [i8],
    scales: &'a mut [f32],
    sums: &'a mut [i32],
}

impl Loops for Row<'_> {
    #[inline(always)]
    fn run(self) {
        let Self { x, block, bytes, scales, sums } = self;
        let blocks = x.chunks(block).zip(bytes.chunks_mut(block));
        for ((x, bytes), (scale, sum)) in blocks.zip(scales.iter_mut().zip(sums)) {
            let max = largest(x);
            let inverse = if max < TINY { 0.0 } else { 127.0 / max };
            *sum = 0;
            for (byte, x) in bytes.iter_mut().zip(x) {
                // Adding and subtracting 1.5 · 2^23 rounds to nearest, ties to even.
                let [rounded, ..] = (x * inverse + 12_582_912.0).to_bits().to_le_bytes();
                *byte = rounded.cast_signed();
                *sum += i32::from(*byte);
            }
            *scale = if max.is_finite() { max / 127.0 } else { f32::NAN };
        }
    }
}

/// A block whose largest input is below this is nothing: the inverse of its scale would overflow.
const TINY: f32 = 1e-30;

/// The largest absolute value; infinite if there is an infinity or a NaN.
#[inline(always)]
fn largest(x: &[f32]) -> f32 {
    // As integers, so that a NaN is larger than all else and the order of comparisons does not matter.
    let bits = x.iter().fold(0, |max: u32, it| max.max(it.to_bits() & 0x7FFF_FFFF));
    if bits < f32::INFINITY.to_bits() { f32::from_bits(bits) } else { f32::INFINITY }
}
