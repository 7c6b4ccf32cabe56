//! Elementary functions in f32 that vectorise: no tables, no branches, no calls. Bounds are on the
//! relative error, found by the sweeps in the tests.

#[cfg(test)]
mod tests;

use crate::isa::Isa;

/// Partial sums of a reduction. Fixed, so that the order of additions is.
pub(crate) const PARTIALS: usize = 16;

/// `exp(x)` to 2e-7 over -87 ..= 88. Below, it stays at `exp(-87)`; above, at `exp(88)`. NaN stays
/// NaN.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    let (r, scale) = reduce(x);
    horner(EXP, r) * scale
}

/// `expm1(x)` to 3e-7, over the same range.
#[inline(always)]
pub(crate) fn expm1(x: f32) -> f32 {
    let (r, scale) = reduce(x);
    let q = (horner(EXPM1, r) * r).mul_add(r, r);
    scale.mul_add(q, scale - 1.0)
}

/// `r` and `2^n` such that `x = n ln 2 + r` with `|r| <= ln 2 / 2`.
#[inline(always)]
fn reduce(x: f32) -> (f32, f32) {
    // Comparisons rather than `clamp`, which would lose nothing, and `max`, which would lose NaN.
    let x = if x < LOWEST { LOWEST } else { x };
    let x = if HIGHEST < x { HIGHEST } else { x };
    let shifted = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-LN_2_LO, n.mul_add(-LN_2_HI, x));
    (r, f32::from_bits(shifted.to_bits().wrapping_add(127) << 23))
}

/// The sum of `terms`, the highest first, at `r`.
#[inline(always)]
fn horner<const T: usize>(terms: [f32; T], r: f32) -> f32 {
    let mut sum = terms[0];
    for &term in &terms[1..] {
        sum = sum.mul_add(r, term);
    }
    sum
}

/// Ends of the range of the exponentials.
const LOWEST: f32 = -87.0;
const HIGHEST: f32 = 88.0;
/// Adding 1.5 * 2^23 rounds to the nearest integer, which then stands in the low bits of the sum.
const ROUND: f32 = 12_582_912.0;
const LN_2_HI: f32 = 0.693_145_75;
const LN_2_LO: f32 = 1.428_606_8e-6;
/// Terms of `exp(r)`, the highest first: within 1.1e-7 of it where `|r| <= ln 2 / 2`, by Lawson's
/// iteration with the last two held at 1.
const EXP: [f32; 6] = [8.312_501e-3, 4.189_033e-2, 0.166_671_15, 0.499_992_3, 1.0, 1.0];
/// Terms of `(expm1(r) - r) / r^2` likewise, within 1.4e-8 of `expm1(r)`.
const EXPM1: [f32; 5] = [1.388_251_7e-3, 8.366_548e-3, 4.166_72e-2, 0.166_665_43, 0.499_999_97];

/// [`exp`] for vectors, whose chains the core works on side by side.
#[inline(always)]
pub(crate) fn exps<I: Isa, const N: usize>(isa: I, x: [I::Floats; N]) -> [I::Floats; N] {
    let (r, scales) = reduces(isa, x);
    let mut sums = horners(isa, EXP, r);
    for n in 0..N {
        sums[n] = isa.mul(sums[n], scales[n]);
    }
    sums
}

/// `exp(x)` as above and, for little more, `expm1(x)` to 3e-7.
#[inline(always)]
pub(crate) fn exp_pairs<I: Isa, const N: usize>(isa: I, x: [I::Floats; N]) -> [[I::Floats; N]; 2] {
    let (r, scales) = reduces(isa, x);
    let mut exp = horners(isa, EXPM1, r);
    let mut expm1 = exp;
    for n in 0..N {
        let q = isa.mul_add(isa.mul(exp[n], r[n]), r[n], r[n]);
        exp[n] = isa.mul_add(scales[n], q, scales[n]);
        expm1[n] = isa.mul_add(scales[n], q, isa.sub(scales[n], isa.floats(1.0)));
    }
    [exp, expm1]
}

/// [`reduce`] for vectors.
#[inline(always)]
fn reduces<I: Isa, const N: usize>(isa: I, x: [I::Floats; N]) -> ([I::Floats; N], [I::Floats; N]) {
    let (mut r, mut scales) = (x, x);
    for n in 0..N {
        r[n] = isa.clamp(x[n], LOWEST, HIGHEST);
    }
    for n in 0..N {
        let shifted = isa.mul_add(r[n], isa.floats(std::f32::consts::LOG2_E), isa.floats(ROUND));
        scales[n] = isa.power(shifted);
        let whole = isa.sub(shifted, isa.floats(ROUND));
        r[n] = isa.mul_add(whole, isa.floats(-LN_2_HI), r[n]);
        r[n] = isa.mul_add(whole, isa.floats(-LN_2_LO), r[n]);
    }
    (r, scales)
}

/// [`horner`] for vectors.
#[inline(always)]
fn horners<I: Isa, const N: usize, const T: usize>(
    isa: I,
    terms: [f32; T],
    r: [I::Floats; N],
) -> [I::Floats; N] {
    let mut sums = [isa.floats(terms[0]); N];
    for &term in &terms[1..] {
        for n in 0..N {
            sums[n] = isa.mul_add(sums[n], r[n], isa.floats(term));
        }
    }
    sums
}

/// `1 / (1 + exp(-x))` to 3e-7; below -87 it stays at `exp(-87)`.
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
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
    let e = expm1(2.0 * x / cap);
    cap * (e / (e + 2.0))
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
