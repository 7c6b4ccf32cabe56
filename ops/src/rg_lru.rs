//! The Real-Gated Linear Recurrent Unit: all that follows the gates' projections, in one pass.

#[cfg(test)]
mod tests;

use crate::{
    math::{exp_pair, sigmoid, softplus},
    segments::Segments,
    simd::{Buffers, Cut, Loops, Parallel, Tile, for_each_segment, widest},
};

/// What the recurrence decays by, from its parameter.
#[derive(Clone, Debug)]
pub struct RgLru {
    /// `-8 · softplus(p)`: the logarithm of `a` where the gate is fully open, `[R]`.
    log_a: Vec<f32>,
}

/// Inputs of a step, `[N, R]` each.
#[derive(Clone, Copy, Debug)]
pub struct RgLruInputs<'a> {
    pub x: &'a [f32],
    /// Before the sigmoid of eq. 1.
    pub gate_a: &'a [f32],
    /// Before the sigmoid of eq. 2.
    pub gate_x: &'a [f32],
}

/// `c` of Griffin eq. 3.
const SHARPNESS: f64 = 8.0;
/// Channels of a tile: what a step reads and writes of them stays in the first-level cache.
const COLUMNS: usize = 256;
/// About what an element costs, in multiply-adds.
const WORK: usize = 48;

impl RgLru {
    pub fn new(p: &[f32]) -> Self {
        let mut this = Self { log_a: Vec::new() };
        this.set(p);
        this
    }

    /// Takes on another parameter, in the same memory.
    pub fn set(&mut self, p: &[f32]) {
        self.log_a.clear();
        #[expect(clippy::cast_possible_truncation, reason = "rounded once, from f64")]
        self.log_a.extend(p.iter().map(|&p| (-SHARPNESS * softplus(f64::from(p))) as f32));
    }

    /// Runs the recurrence over each segment, from and to its lane.
    ///
    /// Griffin eq. 1 to 4 (De et al. 2024, arXiv:2402.19427) with `a = σ(Λ)` written as
    /// `log a = -softplus(p)`. At the first token of a fresh segment `a` is 0 and `m` is 1.
    ///
    /// # Shapes
    /// - `y`: `[N, R]`, the hidden state after each token
    /// - `state`: `[lanes, R]`; only named lanes are read or written
    ///
    /// # Numerics
    /// f32 throughout. `m = √(1 - a²)` comes from `expm1`, so it keeps its digits as `a` nears 1. An
    /// element takes the same operations in the same order however its session is cut.
    ///
    /// # Panics
    /// If a slice does not have the length that the others ask for.
    pub fn run(
        &self,
        segments: &Segments<'_>,
        inputs: RgLruInputs<'_>,
        state: &mut [f32],
        y: &mut [f32],
        parallel: &impl Parallel,
    ) {
        let width = self.log_a.len();
        let RgLruInputs { x, gate_a, gate_x } = inputs;
        assert_eq!(x.len(), segments.tokens() * width, "x is [N, R]");
        assert_eq!(gate_a.len(), x.len(), "gate_a is [N, R]");
        assert_eq!(gate_x.len(), x.len(), "gate_x is [N, R]");

        let cut = Cut { rows: 1, columns: COLUMNS, work: x.len() * WORK };
        let buffers = Buffers { tokens: [y], states: [state], state_rows: 1, width };
        for_each_segment(parallel, cut, segments, buffers, |[segment, column], [y], [state]| {
            widest(Channels {
                inputs,
                log_a: &self.log_a,
                first: segments.range(segment).start,
                column,
                fresh: segments.fresh(segment),
                state,
                y,
            });
        });
    }
}

/// Some channels of one segment.
struct Channels<'a> {
    inputs: RgLruInputs<'a>,
    log_a: &'a [f32],
    /// First token of the segment.
    first: usize,
    column: usize,
    fresh: bool,
    state: Tile<'a>,
    y: Tile<'a>,
}

impl Loops for Channels<'_> {
    #[inline(always)]
    fn run(mut self) {
        let width = self.log_a.len();
        let h = self.state.row_mut(0);
        let log_a = &self.log_a[self.column..][..h.len()];
        for t in 0..self.y.rows() {
            let from = (self.first + t) * width + self.column;
            let x = &self.inputs.x[from..][..h.len()];
            let gate_x = &self.inputs.gate_x[from..][..h.len()];
            let y = self.y.row_mut(t);
            if self.fresh && t == 0 {
                begin(x, gate_x, h, y);
            } else {
                let gate_a = &self.inputs.gate_a[from..][..h.len()];
                advance(log_a, [x, gate_a, gate_x], h, y);
            }
        }
    }
}

/// The first token of a session: `h = i ⊙ x`.
#[inline(always)]
fn begin(x: &[f32], gate_x: &[f32], h: &mut [f32], y: &mut [f32]) {
    for (((&x, &gate_x), h), y) in x.iter().zip(gate_x).zip(h).zip(y) {
        *h = sigmoid(gate_x) * x;
        *y = *h;
    }
}

/// Any other token.
#[inline(always)]
fn advance(log_a: &[f32], [x, gate_a, gate_x]: [&[f32]; 3], h: &mut [f32], y: &mut [f32]) {
    for (((((&log_a, &x), &gate_a), &gate_x), h), y) in
        log_a.iter().zip(x).zip(gate_a).zip(gate_x).zip(h).zip(y)
    {
        let r = sigmoid(gate_a); // eq. 1
        let i = sigmoid(gate_x); // eq. 2
        let a = exp_pair(log_a * r); // eq. 3
        // 1 - a² = -(a - 1)(a + 1), and a - 1 is `expm1` with all its digits.
        let m = (-a.expm1 * (2.0 + a.expm1)).sqrt();
        *h = a.exp.mul_add(*h, m * (i * x)); // eq. 4
        *y = *h;
    }
}
