use super::*;
use crate::isa::{LANES, Lanes, Portable, best, loaded, vectors};

/// Goal: the stated bounds.
/// Method: a sweep against f64, denser than the reduction's steps and off its grid.
#[test]
fn exponentials_keep_their_bounds_against_f64() {
    let (mut worst_exp, mut worst_expm1) = (0f64, 0f64);
    let sweeps = sweep(-87.0, 88.0, 400_000).chain(sweep(-1.0, 1.0, 400_000));
    for x in sweeps.chain(tiny()).collect::<Vec<_>>().chunks(2 * LANES) {
        let mut padded = [1.0; 2 * LANES];
        padded[..x.len()].copy_from_slice(x);
        let [_, paired, expm1] = exponentials(padded);
        for (at, &x) in x.iter().enumerate() {
            worst_exp = worst_exp.max(relative(paired[at], f64::from(x).exp()));
            worst_exp = worst_exp.max(relative(exp(x), f64::from(x).exp()));
            worst_expm1 = worst_expm1.max(relative(expm1[at], f64::from(x).exp_m1()));
        }
    }
    assert!(worst_exp < 2e-7, "exp is off by {worst_exp:e}");
    assert!(worst_expm1 < 3e-7, "expm1 is off by {worst_expm1:e}");
}

#[test]
fn sigmoid_keeps_its_bound_against_f64() {
    let exact = |x: f32| 1.0 / (1.0 + (-f64::from(x)).exp());
    let worst = sweep(-87.0, 87.0, 400_000).map(|x| relative(sigmoid(x), exact(x)));
    let worst = worst.fold(0.0, f64::max);
    assert!(worst < 3e-7, "sigmoid is off by {worst:e}");
}

/// Of the result where it is larger than an eighth, and an eighth of it else: near 0 and far below, the
/// equation itself cancels.
#[test]
fn gelu_keeps_its_bound_against_f64() {
    let exact = |x: f32| {
        let x = f64::from(x);
        let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
        x / 2.0 * (1.0 + u.tanh())
    };
    for x in sweep(-40.0, 40.0, 400_000) {
        let (found, exact) = (f64::from(gelu(x)), exact(x));
        assert!((found - exact).abs() < 6e-7 * exact.abs().max(0.125), "gelu({x}) is {found:e}");
    }
    assert!(gelu(f32::NAN).is_nan());
    assert_eq!(gelu(0.0), 0.0);
}

#[test]
fn soft_cap_keeps_its_bound_against_f64() {
    for cap in [30.0f32, 2.5] {
        let exact = |x: f32| f64::from(cap) * (f64::from(x) / f64::from(cap)).tanh();
        let sweeps = sweep(-50.0, 50.0, 200_000).chain(sweep(-0.1, 0.1, 10_000));
        let worst = sweeps.map(|x| relative(soft_cap(x, cap), exact(x))).fold(0.0, f64::max);
        assert!(worst < 6e-7, "soft_cap of {cap} is off by {worst:e}");
        assert_eq!(soft_cap(f32::INFINITY, cap), cap);
        assert_eq!(soft_cap(f32::NEG_INFINITY, cap), -cap);
        assert!(soft_cap(f32::NAN, cap).is_nan());
    }
}

#[test]
fn beyond_their_range_functions_stay_at_its_end() {
    let pair = |x: f32| {
        let [_, exp, expm1] = exponentials([x; 2 * LANES]);
        (exp[0], expm1[0])
    };
    assert_eq!(pair(f32::NEG_INFINITY).0, pair(-87.0).0);
    assert_eq!(pair(f32::INFINITY).0, pair(88.0).0);
    assert_eq!(pair(f32::NEG_INFINITY).1, -1.0);
    assert_eq!([exp(f32::NEG_INFINITY), exp(f32::INFINITY)], [exp(-87.0), exp(88.0)]);
    assert_eq!(exp(0.0), 1.0);
    assert_eq!(sigmoid(f32::INFINITY), 1.0);
    assert!(sigmoid(f32::NEG_INFINITY) < 1e-37);
    assert_eq!(pair(0.0), (1.0, 0.0));
}

#[test]
fn nan_is_not_hidden() {
    assert!(exp(f32::NAN).is_nan());
    assert!(exponentials([f32::NAN; 2 * LANES]).iter().flatten().all(|it| it.is_nan()));
    assert!(sigmoid(f32::NAN).is_nan());
}

/// Vectors and single numbers take the same operations, with any instructions.
#[test]
fn vectors_are_their_elements_bit_for_bit() {
    let ends = [f32::NEG_INFINITY, f32::INFINITY, -0.0, 0.0, -87.0, 88.0, 1e-40, -1e-8];
    let sweeps = sweep(-90.0, 90.0, 2000).chain(sweep(-1.0, 1.0, 2000));
    let x: Vec<f32> = ends.into_iter().chain(sweeps).collect();
    for x in x.as_chunks::<{ 2 * LANES }>().0 {
        let found = exponentials(*x);
        assert_eq!(found[0], x.map(exp));
        assert_eq!(found[2], x.map(expm1));
        assert_eq!(found, Exponentials(*x).run(Portable));
    }
}

/// `exp`, then `exp` and `expm1` of a pair.
fn exponentials(x: [f32; 2 * LANES]) -> [[f32; 2 * LANES]; 3] {
    best(Exponentials(x))
}

struct Exponentials([f32; 2 * LANES]);

impl Lanes for Exponentials {
    type Output = [[f32; 2 * LANES]; 3];

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> Self::Output {
        let x = loaded::<I, 2>(isa, vectors(&self.0, 0));
        let [exp, expm1] = exp_pairs(isa, x);
        [exps(isa, x), exp, expm1].map(|[a, b]| {
            let (a, b) = (isa.store(a), isa.store(b));
            std::array::from_fn(|at| if at < LANES { a[at] } else { b[at - LANES] })
        })
    }
}

#[test]
fn softplus_neither_overflows_nor_cancels() {
    for (p, expected) in [
        (-30.0, 9.357_622_968_839_737e-14),
        (-12.0, 6.144_193_477_732_805e-6),
        (0.0, std::f64::consts::LN_2),
        (30.0, 30.000_000_000_000_092),
        (800.0, 800.0),
        (-800.0, 0.0),
    ] {
        let found = softplus(p);
        let off = (found - expected).abs();
        assert!(off <= 4.0 * f64::EPSILON * expected, "softplus({p}) is {found:e}");
    }
}

#[test]
fn fold_adds_halves_first() {
    let mut partials = [0.0; PARTIALS];
    (partials[0], partials[8], partials[4]) = (1e8, 1.0, -1e8);
    // 1e8 + 1 rounds to 1e8 before -1e8 joins it.
    assert_eq!(fold(partials), 0.0);
    (partials[8], partials[4]) = (-1e8, 1.0);
    assert_eq!(fold(partials), 1.0);
}

fn sweep(from: f32, to: f32, steps: u32) -> impl Iterator<Item = f32> {
    (0..=steps).map(move |step| from + (to - from) * (step as f32 / steps as f32))
}

fn tiny() -> impl Iterator<Item = f32> {
    (1..38).flat_map(|exponent| [10f32.powi(-exponent), -(10f32.powi(-exponent))])
}

fn relative(found: f32, exact: f64) -> f64 {
    ((f64::from(found) - exact) / exact).abs()
}
