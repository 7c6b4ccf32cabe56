//! Inputs of a product as bytes, quantised while it runs.

use crate::{
    isa::{Isa, LANES, Lanes, QUANTISED, SPAN, Span, best},
    matmul::packing::Packing,
    simd::{Cut, Parallel, for_each_tile},
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

/// Rows that a thread quantises at a time.
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
