//! Inputs of a product as bytes or as bf16, rounded while it runs.

use crate::{
    isa::{Isa, LANES, Lanes, QUANTISED, SPAN, Span, best},
    matmul::packing::{BF16_TINY, Packing},
    simd::{Cut, Loops, Parallel, for_each_tile, widest},
};

/// Rows of bytes, with a scale for each span.
///
/// It is `[groups, spans, rows]` of [`Span`]: the spans that meet the same weights lie side by side.
#[derive(Debug, Default)]
pub(super) struct Quantised {
    rows: usize,
    spans: usize,
    data: Vec<Span>,
}

impl Quantised {
    /// Quantises `x` `[N, groups · inputs]`; memory is kept for the next call.
    ///
    /// A span that holds an infinity or a NaN gets NaN as its scale, and so has every result that it
    /// reaches.
    pub(super) fn set(&mut self, packing: &Packing, x: &[f32], parallel: &impl Parallel) {
        let Packing { groups, inputs, .. } = *packing;
        self.rows = x.len() / (groups * inputs);
        self.spans = inputs.div_ceil(SPAN);
        let (rows, spans) = (self.rows, self.spans);
        let len = groups * spans * rows;
        self.data.resize(self.data.len().max(len), Span::ZERO);
        // An input costs about as much as eight multiply-adds.
        let cut = Cut { rows: groups * spans, columns: ROWS, work: 8 * x.len() };
        for_each_tile(parallel, cut, &mut self.data[..len], rows, |[_, row], mut tile| {
            for place in 0..tile.rows() {
                let (group, span) = (place / spans, place % spans);
                let inputs = span * SPAN..inputs.min(span * SPAN + SPAN);
                for (row, span) in (row..).zip(tile.row_mut(place)) {
                    let x = &x[(row * groups + group) * packing.inputs..][inputs.clone()];
                    best(Quantise { x, span });
                }
            }
        });
    }

    /// Span `span` of each row of `group`.
    pub(super) fn rows(&self, group: usize, span: usize) -> &[Span] {
        &self.data[(group * self.spans + span) * self.rows..][..self.rows]
    }
}

/// Rows of bf16, two to a word, of which the lower half is the even one.
///
/// It is `[N, groups, inputs/2]`; an odd input that is none is 0.
#[derive(Debug, Default)]
pub(super) struct Rounded {
    /// Words of a group of a row.
    width: usize,
    words: Vec<u32>,
}

impl Rounded {
    /// Rounds `x` `[N, groups · inputs]` to nearest, ties to even, and what is less than [`BF16_TINY`] to 0;
    /// memory is kept for the next call.
    pub(super) fn set(&mut self, packing: &Packing, x: &[f32], parallel: &impl Parallel) {
        self.width = packing.inputs.div_ceil(2);
        let len = x.len() / packing.inputs * self.width;
        self.words.resize(self.words.len().max(len), 0);
        let cut = Cut { rows: ROWS, columns: self.width, work: 2 * x.len() };
        let words = &mut self.words[..len];
        for_each_tile(parallel, cut, words, self.width, |[row, _], mut tile| {
            for at in 0..tile.rows() {
                let x = &x[(row + at) * packing.inputs..][..packing.inputs];
                widest(Round { x, words: tile.row_mut(at) });
            }
        });
    }

    /// The words of one group of a row; rows are counted group by group.
    #[inline(always)]
    pub(super) fn row(&self, row: usize) -> &[u32] {
        &self.words[row * self.width..][..self.width]
    }
}

struct Round<'a> {
    x: &'a [f32],
    words: &'a mut [u32],
}

impl Loops for Round<'_> {
    #[inline(always)]
    fn run(self) {
        let (pairs, rest) = self.x.as_chunks();
        for (word, [even, odd]) in self.words.iter_mut().zip(pairs) {
            *word = bf16_bits(*even) | bf16_bits(*odd) << 16;
        }
        if let ([last], Some(word)) = (rest, self.words.last_mut()) {
            *word = bf16_bits(*last);
        }
    }
}

/// The bits of the nearest bf16.
#[inline(always)]
fn bf16_bits(x: f32) -> u32 {
    let bits = x.to_bits();
    let kept = if x.abs() < BF16_TINY { 0 } else { bits };
    let nearest = kept.wrapping_add(0x7FFF + (kept >> 16 & 1));
    // One that is no number must not be rounded to one.
    (if x.is_nan() { bits | 0x0040_0000 } else { nearest }) >> 16
}

/// Rows that a thread rounds at a time.
const ROWS: usize = 8;

struct Quantise<'a> {
    x: &'a [f32],
    span: &'a mut Span,
}

impl Lanes for Quantise<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Self { x, span } = self;
        let max = largest(x);
        let inverse = if max < TINY { 0.0 } else { 127.0 / max };
        span.scale = if max.is_finite() { max / 127.0 } else { f32::NAN };
        let (whole, rest) = x.as_chunks();
        let mut last = [0.0; QUANTISED];
        last[..rest.len()].copy_from_slice(rest);
        let x = whole.iter().chain((!rest.is_empty()).then_some(&last));
        let words = span.words.as_chunks_mut::<LANES>().0;
        let places = words.iter_mut().zip(span.zeros.as_chunks_mut().0);
        for ((words, blocks), x) in places.zip(x.chain(std::iter::repeat(&[0.0; QUANTISED]))) {
            isa.quantise(x, inverse, words, blocks);
        }
        span.sum = span.zeros.iter().sum();
        span.zeros = span.zeros.map(|sum| -8 * sum);
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
