//! The short depthwise convolution before the recurrence, with the last inputs as its state.

#[cfg(test)]
mod tests;

use crate::{
    segments::Segments,
    simd::{Buffers, Cut, Loops, Parallel, Tile, for_each_segment, widest},
};

/// A depthwise causal convolution of `C` taps.
#[derive(Clone, Copy, Debug)]
pub struct CausalConv1d<'a> {
    /// `[C, R]`; the last row meets the current token.
    pub weight: &'a [f32],
    /// `[R]`.
    pub bias: &'a [f32],
}

/// Channels of a tile.
const COLUMNS: usize = 512;
/// Channels whose sums stay in registers.
const CHUNK: usize = 64;

/// Runs `y[t] = bias + Σ_s weight[C-1-s] ⊙ x[t-s]` over each segment.
///
/// Griffin §2.3 (De et al. 2024, arXiv:2402.19427). Lags that reach before a segment read its
/// lane; a fresh lane reads zero.
///
/// # Shapes
/// - `x`, `y`: `[N, R]`
/// - `state`: `[lanes, C-1, R]`, the inputs before the segment, oldest first; only named lanes are
///   read or written
///
/// # Numerics
/// Each sum begins with the bias and adds fused products from the oldest tap to the current one, in
/// f32, wherever the inputs come from: cutting a session into other segments changes no bit.
///
/// # Panics
/// If a slice does not have the length that the others ask for.
pub fn causal_conv1d(
    conv: &CausalConv1d<'_>,
    segments: &Segments<'_>,
    x: &[f32],
    state: &mut [f32],
    y: &mut [f32],
    parallel: &impl Parallel,
) {
    let width = conv.bias.len();
    assert!(0 < width && conv.weight.len().is_multiple_of(width), "weight is [C, R]");
    assert_eq!(x.len(), segments.tokens() * width, "x is [N, R]");
    let taps = conv.weight.len() / width;
    assert!(0 < taps, "weight is [C, R] with at least the current token's row");

    let cut = Cut { rows: 1, columns: COLUMNS, work: x.len() * taps };
    let buffers = Buffers { tokens: [y], states: [state], state_rows: taps - 1, width };
    for_each_segment(parallel, cut, segments, buffers, |[segment, column], [y], [state]| {
        let x = &x[segments.range(segment).start * width..];
        let fresh = segments.fresh(segment);
        widest(Channels { conv: *conv, x, column, fresh, state, y });
    });
}

/// Some channels of one segment.
struct Channels<'a> {
    conv: CausalConv1d<'a>,
    /// From the segment's first token on.
    x: &'a [f32],
    column: usize,
    fresh: bool,
    state: Tile<'a>,
    y: Tile<'a>,
}

impl Loops for Channels<'_> {
    #[inline(always)]
    fn run(mut self) {
        if self.fresh {
            for row in 0..self.state.rows() {
                self.state.row_mut(row).fill(0.0);
            }
        }
        for t in 0..self.y.rows() {
            let width = self.y.row(t).len();
            let whole = width - width % CHUNK;
            for column in (0..whole).step_by(CHUNK) {
                self.sum::<CHUNK>(t, column);
            }
            for column in whole..width {
                self.sum::<1>(t, column);
            }
        }
        self.keep();
    }
}

impl Channels<'_> {
    /// `C` channels of token `t`.
    #[inline(always)]
    fn sum<const C: usize>(&mut self, t: usize, column: usize) {
        let stride = self.conv.bias.len();
        let kept = self.state.rows();
        let mut sums = [0.0f32; C];
        sums.copy_from_slice(&self.conv.bias[self.column + column..][..C]);
        for tap in 0..=kept {
            // The input `kept - tap` tokens before `t`: row `t + tap` of the state followed by `x`.
            let x = match (t + tap).checked_sub(kept) {
                Some(row) => &self.x[row * stride + self.column + column..][..C],
                None => &self.state.row(t + tap)[column..][..C],
            };
            let weight = &self.conv.weight[tap * stride + self.column + column..][..C];
            for c in 0..C {
                sums[c] = weight[c].mul_add(x[c], sums[c]);
            }
        }
        self.y.row_mut(t)[column..][..C].copy_from_slice(&sums);
    }

    /// Leaves the last inputs in the state.
    #[inline(always)]
    fn keep(&mut self) {
        let (kept, tokens) = (self.state.rows(), self.y.rows());
        let (stride, width) = (self.conv.bias.len(), self.y.row(0).len());
        let x = |row: usize| &self.x[row * stride + self.column..][..width];
        for row in 0..kept {
            // As in `sum`: row `tokens + row` of the old state followed by `x`.
            match (tokens + row).checked_sub(kept) {
                Some(token) => self.state.row_mut(row).copy_from_slice(x(token)),
                None => self.state.copy_row(tokens + row, row),
            }
        }
    }
}
