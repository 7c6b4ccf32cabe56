//! The Real-Gated Linear Recurrent Unit: all that follows the gates' projections, in one pass.

#[cfg(test)]
mod tests;

use crate::{
    isa::{Isa, LANES, Lanes, best, loaded, vectors},
    math::{exp_pairs, exps, sigmoid, softplus},
    segments::Segments,
    simd::{Buffers, Cut, Parallel, Tile, for_each_segment},
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
    /// What the hidden states are multiplied by on their way out.
    pub times: Option<&'a [f32]>,
}

/// `c` of Griffin eq. 3.
const SHARPNESS: f64 = 8.0;
/// Channels of a tile: long enough rows to be read ahead, of which parameter and state stay in the
/// first-level cache.
const COLUMNS: usize = 1280;
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
    /// - `y`: `[N, R]`, the hidden state after each token, multiplied where it is to be
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
        let RgLruInputs { x, gate_a, gate_x, times } = inputs;
        assert_eq!(x.len(), segments.tokens() * width, "x is [N, R]");
        assert_eq!(gate_a.len(), x.len(), "gate_a is [N, R]");
        assert_eq!(gate_x.len(), x.len(), "gate_x is [N, R]");
        assert!(times.is_none_or(|it| it.len() == x.len()), "times is [N, R]");

        let cut = Cut { rows: 1, columns: COLUMNS, work: x.len() * WORK };
        let buffers = Buffers { tokens: [y], states: [state], state_rows: 1, width };
        for_each_segment(parallel, cut, segments, buffers, |[segment, column], [y], [state]| {
            best(Channels {
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

impl Lanes for Channels<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(mut self, isa: I) {
        let width = self.log_a.len();
        let h = self.state.row_mut(0);
        let log_a = &self.log_a[self.column..][..h.len()];
        for t in 0..self.y.rows() {
            let from = (self.first + t) * width + self.column;
            let [x, gate_a, gate_x] = [self.inputs.x, self.inputs.gate_a, self.inputs.gate_x]
                .map(|it| &it[from..][..h.len()]);
            let y = self.y.row_mut(t);
            if self.fresh && t == 0 {
                begin(x, gate_x, h);
                y.copy_from_slice(h);
            } else {
                advance(isa, [log_a, x, gate_a, gate_x], h, y);
            }
            if let Some(times) = self.inputs.times {
                y.iter_mut().zip(&times[from..]).for_each(|(y, times)| *y *= times);
            }
        }
    }
}

/// The first token of a session: `h = i ⊙ x`.
#[inline(always)]
fn begin(x: &[f32], gate_x: &[f32], h: &mut [f32]) {
    for ((&x, &gate_x), h) in x.iter().zip(gate_x).zip(h) {
        *h = sigmoid(gate_x) * x;
    }
}

/// Any other token; inputs are `log_a`, `x`, `gate_a` and `gate_x`.
#[inline(always)]
fn advance<I: Isa>(isa: I, inputs: [&[f32]; 4], h: &mut [f32], y: &mut [f32]) {
    /// Vectors that the core works on side by side: one alone would wait for itself.
    const ABREAST: usize = 4;
    let mut at = 0;
    while I::WIDE && ABREAST * LANES <= h.len() - at {
        advance_vectors::<I, ABREAST>(isa, inputs, [h, y], at);
        at += ABREAST * LANES;
    }
    while LANES <= h.len() - at {
        advance_vectors::<I, 1>(isa, inputs, [h, y], at);
        at += LANES;
    }
    if at < h.len() {
        let mut padded = [[0.0; LANES]; 6];
        let rest = h.len() - at;
        for (padded, data) in padded.iter_mut().zip(inputs.into_iter().chain([&*h])) {
            padded[..rest].copy_from_slice(&data[at..]);
        }
        let [a, b, c, d, new_h, new_y] = &mut padded;
        advance_vectors::<I, 1>(isa, [a, b, c, d], [new_h, new_y], 0);
        h[at..].copy_from_slice(&new_h[..rest]);
        y[at..].copy_from_slice(&new_y[..rest]);
    }
}

/// `N` vectors of channels, from channel `at` on.
#[inline(always)]
fn advance_vectors<I: Isa, const N: usize>(
    isa: I,
    [log_a, x, gate_a, gate_x]: [&[f32]; 4],
    [h, y]: [&mut [f32]; 2],
    at: usize,
) {
    let log_r = sigmoids::<I, N>(isa, loaded(isa, vectors(gate_a, at)), log_a, at); // eq. 1
    let ix = sigmoids::<I, N>(isa, loaded(isa, vectors(gate_x, at)), x, at); // eq. 2
    let [mut a, mut m] = exp_pairs(isa, log_r); // eq. 3
    for m in &mut m {
        // 1 - a² = -(a - 1)(a + 1), and a - 1 is `expm1` with all its digits.
        let less = isa.sub(isa.floats(0.0), *m);
        *m = isa.sqrt(isa.mul(less, isa.sub(*m, isa.floats(-2.0))));
    }
    for n in 0..N {
        let old = isa.load(vectors::<N>(h, at)[n]);
        a[n] = isa.mul_add(a[n], old, isa.mul(m[n], ix[n])); // eq. 4
    }
    for to in [h, y] {
        for (to, a) in to[at..].as_chunks_mut::<LANES>().0.iter_mut().zip(a) {
            *to = isa.store(a);
        }
    }
}

/// The products of `of`, from element `at` on, and the sigmoids of `gates`.
#[inline(always)]
fn sigmoids<I: Isa, const N: usize>(
    isa: I,
    mut gates: [I::Floats; N],
    of: &[f32],
    at: usize,
) -> [I::Floats; N] {
    for gate in &mut gates {
        *gate = isa.sub(isa.floats(0.0), *gate);
    }
    let mut products = exps(isa, gates);
    let of = vectors::<N>(of, at);
    for n in 0..N {
        products[n] = isa.div(isa.load(of[n]), isa.sub(products[n], isa.floats(-1.0)));
    }
    products
}
