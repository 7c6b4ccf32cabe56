//! Inputs of a product as kernels take them, made while it runs: as bytes, or each as a sum of bf16.

use crate::{
    isa::{Isa, LANES, Lanes, Parts, QUANTISED, SPAN, Span, amx::PADDING_MAX, best},
    matmul::packing::Packing,
    simd::{Cut, Loops, Parallel, for_each_tile, widest},
};

/// Rows cut into spans: `[groups, spans, rows]`, so that those that meet the same weights lie side by side.
#[derive(Debug)]
pub(super) struct Spans<S> {
    rows: usize,
    spans: usize,
    /// Beyond the last, as many as tiles may read of rows that are not there.
    data: Vec<S>,
}

/// Rows of bytes, with a scale for each span.
pub(super) type Quantised = Spans<Span>;
/// Rows of numbers, each as a sum of bf16.
pub(super) type Split = Spans<Parts>;

impl<S> Default for Spans<S> {
    fn default() -> Self {
        Self { rows: 0, spans: 0, data: Vec::new() }
    }
}

impl Quantised {
    /// Quantises `x` `[N, groups · inputs]`; memory is kept for the next call.
    ///
    /// A span that holds an infinity or a NaN gets NaN as its scale, and so has every result that it
    /// reaches.
    pub(super) fn set(&mut self, packing: &Packing, x: &[f32], parallel: &impl Parallel) {
        self.fill(packing, x, Span::ZERO, parallel, |x, span| best(Quantise { x, span }));
    }
}

impl Split {
    /// Splits `x` `[N, groups · inputs]`; memory is kept for the next call.
    pub(super) fn set(&mut self, packing: &Packing, x: &[f32], parallel: &impl Parallel) {
        self.fill(packing, x, Parts::ZERO, parallel, |x, span| widest(SplitSpan { x, span }));
    }
}

impl<S: Copy + Send> Spans<S> {
    /// Each span as `write` makes it of its inputs; `zero` is one of zeros.
    fn fill(
        &mut self,
        packing: &Packing,
        x: &[f32],
        zero: S,
        parallel: &impl Parallel,
        write: impl Fn(&[f32], &mut S) + Sync,
    ) {
        let Packing { groups, inputs, .. } = *packing;
        self.rows = x.len() / (groups * inputs);
        self.spans = inputs.div_ceil(SPAN);
        let (rows, spans) = (self.rows, self.spans);
        let len = groups * spans * rows;
        self.data.resize(self.data.len().max(len + PADDING_MAX), zero);
        // An input costs about as much as eight multiply-adds.
        let cut = Cut { rows: groups * spans, columns: ROWS, work: 8 * x.len() };
        for_each_tile(parallel, cut, &mut self.data[..len], rows, |[_, row], mut tile| {
            for place in 0..tile.rows() {
                let (group, span) = (place / spans, place % spans);
                let inputs = span * SPAN..inputs.min(span * SPAN + SPAN);
                for (row, span) in (row..).zip(tile.row_mut(place)) {
                    let x = &x[(row * groups + group) * packing.inputs..][inputs.clone()];
                    write(x, span);
                }
            }
        });
    }

    /// Span `span` of each row of `group`, and whatever lies behind.
    pub(super) fn rows(&self, group: usize, span: usize) -> &[S] {
        &self.data[(group * self.spans + span) * self.rows..]
    }
}

/// Rows that a thread takes at a time.
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

struct SplitSpan<'a> {
    x: &'a [f32],
    span: &'a mut Parts,
}

impl Loops for SplitSpan<'_> {
    #[inline(always)]
    fn run(self) {
        let Self { x, span: Parts([high, low]) } = self;
        for ((x, high), low) in x.iter().zip(high.iter_mut()).zip(low.iter_mut()) {
            *high = nearest_bf16(*x);
            *low = nearest_bf16(x - f32::from_bits(u32::from(*high) << 16));
        }
        high[x.len()..].fill(0);
        low[x.len()..].fill(0);
    }
}

/// The bits of the bf16 that is nearest to `x`; of two, the even one.
#[inline(always)]
fn nearest_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7FFF + (bits >> 16 & 1)) >> 16;
    // Of some, rounding would carry into the sign.
    if x.is_nan() { 0x7FC0 } else { rounded as u16 }
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
