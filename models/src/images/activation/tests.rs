use super::{Activation, Gains};

/// `g(x)`.
fn apply(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::Relu => x.max(0.0),
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::Gelu => x * normal_cdf(x),
        Activation::GeluTanh => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3));
            0.5 * x * (1.0 + inner.tanh())
        }
    }
}

/// `Φ(x)` by its Taylor series around 0, which needs many terms far out and loses nothing, since all
/// are positive: `½ + φ(x) Σ xⁿ / (1·3·5…n)` over odd `n`.
fn normal_cdf(x: f64) -> f64 {
    let mut term = x;
    let mut sum = x;
    for n in 1..2000 {
        term *= x * x / f64::from(2 * n + 1);
        sum += term;
    }
    0.5 + density(x) * sum
}

fn density(x: f64) -> f64 {
    (-0.5 * x * x).exp() / std::f64::consts::TAU.sqrt()
}

/// `1/√(Var g(x))` by Simpson's rule on each side of 0, where ReLU has its corner.
fn gain_by_quadrature(activation: Activation) -> f64 {
    const STEPS: i32 = 20_000;
    const END: f64 = 12.0;
    let h = END / f64::from(STEPS);
    let moment = |power: i32| {
        let f = |x: f64| density(x) * apply(activation, x).powi(power);
        let side = |sign: f64| {
            let weight = |i: i32| match i {
                0 | STEPS => 1.0,
                i if i % 2 == 1 => 4.0,
                _ => 2.0,
            };
            (0..=STEPS).map(|i| weight(i) * f(sign * f64::from(i) * h)).sum::<f64>() * h / 3.0
        };
        side(1.0) + side(-1.0)
    };
    (moment(2) - moment(1).powi(2)).sqrt().recip()
}

#[test]
fn exact_gains_are_those_of_quadrature() {
    for activation in Activation::ALL {
        let (found, expected) = (activation.gain(Gains::Exact), gain_by_quadrature(activation));
        assert!((found - expected).abs() < 1e-9, "{activation:?}: {found}, {expected}");
    }
}

#[test]
fn deepminds_gains_are_within_a_thousandth() {
    for activation in Activation::ALL {
        let ratio = activation.gain(Gains::Deepmind) / activation.gain(Gains::Exact);
        assert!((ratio - 1.0).abs() < 1e-3, "{activation:?}: {ratio}");
        assert!(1e-5 < (ratio - 1.0).abs(), "{activation:?}: they are not the same");
    }
}
