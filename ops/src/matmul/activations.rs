//! Inputs of a product as bytes, quantised while it runs.

use crate::{
    isa::{Isa, Lanes, QUANTISED, best},
    matmul::packing::{BLOCK, Packing},
    simd::{Cut, Parallel, for_each_tile},
};

/// Inputs that share a scale: a large input costs only so many others their precision.
pub(super) const SPAN: usize = 256;
/// Words, of four bytes each, that hold the bytes of a span.
pub(super) const SPAN_WORDS: usize = SPAN / 4;
/// Blocks of weights that meet a span.
const SPAN_BLOCKS: usize = SPAN / BLOCK;

/// Rows of bytes, with a scale for each span.
///
/// A row of the product becomes one for each group. It is kept in words of 32 bits, so that it is cut
/// among threads as the results are:
///
/// | words | |
/// |---|---|
/// | `depth / 4` | the bytes by fours, padded with 0 |
/// | `depth / 16` | the sum of each block's bytes |
/// | spans | the sum of each span's bytes |
/// | spans | the bits of each span's scale: an input is its scale times its byte |
#[derive(Debug, Default)]
pub(super) struct Quantised {
    /// Inputs of a row with their padding.
    depth: usize,
    words: Vec<i32>,
}

/// One span of a row.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span<'a> {
    /// Bytes by fours.
    pub(super) words: &'a [i32],
    /// Sum of each block's bytes.
    pub(super) blocks: &'a [i32],
    /// Of all bytes.
    pub(super) sum: i32,
    pub(super) scale: f32,
}

impl Quantised {
    /// Quantises `x` `[N, groups · inputs]`; memory is kept for the next call.
    ///
    /// A span that holds an infinity or a NaN gets NaN as its scale, and so has every result that it
    /// reaches.
    pub(super) fn set(&mut self, packing: &Packing, x: &[f32], parallel: &impl Parallel) {
        let inputs = packing.inputs;
        self.depth = inputs.next_multiple_of(QUANTISED);
        let width = self.width();
        self.words.resize(x.len() / inputs * width, 0);
        // A row costs about as much as eight multiply-adds for each input.
        let cut = Cut { rows: ROWS, columns: width, work: 8 * x.len() };
        let depth = self.depth;
        for_each_tile(parallel, cut, &mut self.words, width, |[row, _], mut tile| {
            for n in 0..tile.rows() {
                let x = &x[(row + n) * inputs..][..inputs];
                best(Row { x, depth, words: tile.row_mut(n) });
            }
        });
    }

    /// Words of a row.
    fn width(&self) -> usize {
        self.depth / 4 + self.depth / BLOCK + 2 * self.spans()
    }

    fn spans(&self) -> usize {
        self.depth.div_ceil(SPAN)
    }

    /// Span `span` of row `row`; rows are counted group by group.
    #[inline(always)]
    pub(super) fn span(&self, row: usize, span: usize) -> Span<'_> {
        let row = &self.words[row * self.width()..][..self.width()];
        let (words, rest) = row.split_at(self.depth / 4);
        let (blocks, rest) = rest.split_at(self.depth / BLOCK);
        let (sums, scales) = rest.split_at(self.spans());
        Span {
            words: &words[span * SPAN_WORDS..(span * SPAN_WORDS + SPAN_WORDS).min(words.len())],
            blocks: &blocks
                [span * SPAN_BLOCKS..(span * SPAN_BLOCKS + SPAN_BLOCKS).min(blocks.len())],
            sum: sums[span],
            scale: f32::from_bits(scales[span].cast_unsigned()),
        }
    }
}

/// Rows that a thread quantises at a time.
const ROWS: usize = 8;

struct Row<'a> {
    x: &'a [f32],
    depth: usize,
    words: &'a mut [i32],
}

impl Lanes for Row<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Self { x, depth, words } = self;
        let (words, rest) = words.split_at_mut(depth / 4);
        let (blocks, rest) = rest.split_at_mut(depth / BLOCK);
        let (sums, scales) = rest.split_at_mut(depth.div_ceil(SPAN));
        let spans = words.chunks_mut(SPAN_WORDS).zip(blocks.chunks_mut(SPAN_BLOCKS));
        let totals = sums.iter_mut().zip(scales);
        for (((words, blocks), (sum, scale)), x) in spans.zip(totals).zip(x.chunks(SPAN)) {
            let max = largest(x);
            let inverse = if max < TINY { 0.0 } else { 127.0 / max };
            let found = if max.is_finite() { max / 127.0 } else { f32::NAN };
            *scale = found.to_bits().cast_signed();
            let (whole, rest) = x.as_chunks();
            let mut last = [0.0; QUANTISED];
            last[..rest.len()].copy_from_slice(rest);
            let to = words.as_chunks_mut().0.iter_mut().zip(blocks.as_chunks_mut().0);
            for ((words, blocks), x) in to.zip(whole.iter().chain([&last])) {
                isa.quantise(x, inverse, words, blocks);
            }
            *sum = blocks.iter().sum();
        }
    }
}

/// A span whose largest input is below this is nothing: the inverse of its scale would overflow.
const TINY: f32 = 1e-30;

/// The largest absolute value; infinite if there is an infinity or a NaN.
#[inline(always)]
fn largest(x: &[f32]) -> f32 {
    // As integers, so that a NaN is larger than all else and the order of comparisons does not matter.
    let bits = x.iter().fold(0, |max: u32, it| max.max(it.to_bits() & 0x7FFF_FFFF));
    if bits < f32::INFINITY.to_bits() { f32::from_bits(bits) } else { f32::INFINITY }
}
