//! Elementary functions in f32 that vectorise: no tables, no branches, no calls. Bounds are on the
//! relative error, found by the sweeps in the tests.

#[cfg(test)]
mod tests;

/// Partial sums of a reduction. Fixed, so that the order of additions is.
pub(crate) const PARTIALS: usize = 16;

/// `exp(x)` and `expm1(x)` of one argument, for the price of one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Exp {
    pub(crate) exp: f32,
    pub(crate) expm1: f32,
}

/// Both exponentials: `exp` to 2e-7 over -87 ..= 88, `expm1` to 3e-7. Below, `exp` stays at
/// `exp(-87)`; above, at `exp(88)`. NaN stays NaN.
#[inline(always)]
pub(crate) fn exp_pair(x: f32) -> Exp {
    // Comparisons rather than `clamp`, which would lose nothing, and `max`, which would lose NaN.
    let x = if x < -87.0 { -87.0 } else { x };
    let x = if 88.0 < x { 88.0 } else { x };

    // x = n ln 2 + r with |r| <= ln 2 / 2. Adding 1.5 * 2^23 rounds to the nearest integer, which
    // then stands in the low bits of the sum.
    const ROUND: f32 = 12_582_912.0;
    const LN_2_HI: f32 = 0.693_145_75;
    const LN_2_LO: f32 = 1.428_606_8e-6;
    let shifted = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-LN_2_LO, n.mul_add(-LN_2_HI, x));
    let scale = f32::from_bits(shifted.to_bits().wrapping_add(127) << 23);

    // expm1(r) by its Taylor series: what is left out is below r^7/8! = 1.5e-8, relative to r.
    let q = (1.0f32 / 5040.0).mul_add(r, 1.0 / 720.0);
    let q = q.mul_add(r, 1.0 / 120.0);
    let q = q.mul_add(r, 1.0 / 24.0);
    let q = q.mul_add(r, 1.0 / 6.0);
    let q = q.mul_add(r, 0.5);
    let q = (q * r).mul_add(r, r);
    Exp { exp: scale.mul_add(q, scale), expm1: scale.mul_add(q, scale - 1.0) }
}

/// `1 / (1 + exp(-x))` to 3e-7; below -87 it stays at `exp(-87)`.
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp_pair(-x).exp)
}

/// The tanh form of GELU: `x/2 · (1 + tanh(u))` is `x · sigmoid(2u)`, `u = √(2/π) · (x + 0.044715·x³)`.
#[inline(always)]
pub(crate) fn gelu(x: f32) -> f32 {
    const TWICE_ROOT: f32 = 2.0 * 0.797_884_6;
    x * sigmoid(TWICE_ROOT * (0.044_715 * x * x).mul_add(x, x))
}

/// `c · tanh(x / c)`, by `tanh(y) = expm1(2y) / (expm1(2y) + 2)`.
#[inline(always)]
pub(crate) fn soft_cap(x: f32, cap: f32) -> f32 {
    let Exp { expm1, .. } = exp_pair(2.0 * x / cap);
    cap * (expm1 / (expm1 + 2.0))
}

/// `ln(1 + exp(p))` without overflow or cancellation.
pub(crate) fn softplus(p: f64) -> f64 {
    p.max(0.0) + (-p.abs()).exp().ln_1p()
}

/// Adds up partial sums, halves first.
#[inline(always)]
pub(crate) fn fold(partials: [f32; PARTIALS]) -> f32 {
    let mut sums = partials;
    let mut half = PARTIALS / 2;
    while 0 < half {
        for i in 0..half {
            sums[i] += sums[i + half];
        }
        half /= 2;
    }
    sums[0]
}
