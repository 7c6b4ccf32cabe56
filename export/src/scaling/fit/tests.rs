use super::*;
use crate::scaling::tests::noise;

const BOOTSTRAP: Bootstrap = Bootstrap { draws: 200, seed: 1 };

/// Losses at 24 amounts of compute from 1e13 to 1e18, with Gaussian noise of the standard deviation
/// `sigma` in their logarithms.
fn losses(seed: u64, sigma: f64, loss: impl Fn(f64) -> f64) -> Vec<(f64, f64)> {
    let flops = (0..24).map(|it| 1e13 * 1e5_f64.powf(f64::from(it) / 23.0));
    flops.zip(noise(seed)).map(|(it, noise)| (it, loss(it) * (sigma * noise).exp())).collect()
}

#[track_caller]
fn near(name: &str, found: f64, expected: f64, tolerance: f64) {
    let off = (found / expected - 1.0).abs();
    assert!(off <= tolerance, "{name} is {found}, expected {expected} within {tolerance}");
}

/// Goal: coefficients are recovered from noisy losses within 2 %, and intervals hold what is true.
/// Method: noise of 0.2 % puts the standard error of `b` at 0.002 / (sqrt(24) · 3.4) = 1.2e-4, 0.24 %
/// of it; and that of `a`, at the reference in the middle, at 4e-4.
#[test]
fn power_law_is_recovered_from_noisy_losses() {
    for seed in 0..5 {
        let points = losses(seed, 2e-3, |it| 2.5 * (it / 1e16).powf(-0.05));
        let fitted = Law::Power.fit(&points, None, BOOTSTRAP);
        let Fitted { reference_flops, coefficients, .. } = fitted.found().unwrap();
        let a = 2.5_f64.ln() + 0.05 * (1e16 / reference_flops).ln();
        for (name, expected) in [("a", a), ("b", 0.05)] {
            let Estimate { value, low, high } = coefficients[name];
            near(&format!("{name}, seed {seed}"), value, expected, 0.02);
            assert!(low < value && value < high, "{name}, seed {seed}: {:?}", coefficients[name]);
        }
    }
}

/// As above; a floor, a factor and a power together are held less firmly by the same points, so the noise
/// is 0.05 %.
#[test]
fn saturating_law_is_recovered_from_noisy_losses() {
    for seed in 0..5 {
        let points = losses(seed, 5e-4, |it| 1.2 + 0.6 * (it / 1e16).powf(-0.2));
        let fitted = Law::Saturating.fit(&points, None, BOOTSTRAP);
        let Fitted { reference_flops, coefficients, .. } = fitted.found().unwrap();
        let a = 0.6 * (reference_flops / 1e16).powf(-0.2);
        for (name, expected) in [("a", a), ("b", 0.2), ("floor", 1.2)] {
            near(&format!("{name}, seed {seed}"), coefficients[name].value, expected, 0.02);
        }
    }
}

/// Goal: one training that went wrong does not bend the saturating law.
/// Method: a loss in the middle is 30 % too high; least squares would be off by more than the tolerance.
#[test]
fn an_outlier_moves_the_saturating_law_little() {
    let mut points = losses(7, 5e-4, |it| 1.2 + 0.6 * (it / 1e16).powf(-0.2));
    points[12].1 *= 1.3;
    let fitted = Law::Saturating.fit(&points, None, BOOTSTRAP);
    let coefficients = &fitted.found().unwrap().coefficients;
    near("floor", coefficients["floor"].value, 1.2, 0.02);
    near("b", coefficients["b"].value, 0.2, 0.04);
}

/// Goal: intervals are as wide as they say.
/// Method: of 100 sweeps, the truth lies in about 95 intervals; 85 is four standard deviations below.
#[test]
fn intervals_hold_the_truth_about_as_often_as_they_say() {
    let holds = (0..100).filter(|&seed| {
        let points = losses(100 + seed, 0.01, |it| 2.5 * (it / 1e16).powf(-0.05));
        let fitted = Law::Power.fit(&points, None, Bootstrap { draws: 200, seed });
        let Estimate { low, high, .. } = fitted.found().unwrap().coefficients["b"];
        low <= 0.05 && 0.05 <= high
    });
    let holds = holds.count();
    assert!((85..=100).contains(&holds), "{holds} of 100");
}

#[test]
fn law_without_a_point_to_spare_is_not_fitted() {
    let points = losses(0, 0.0, |it| 2.5 * (it / 1e16).powf(-0.05));
    for (law, needs) in [(Law::Power, 3), (Law::Saturating, 4)] {
        let Outcome::Lacking(lack) = law.fit(&points[..needs - 1], None, BOOTSTRAP) else {
            panic!("{law:?} was fitted to {} points", needs - 1);
        };
        assert_eq!(lack.to_string(), format!("needs {needs} budgets, has {}", needs - 1));
        assert!(law.fit(&points[..needs], None, BOOTSTRAP).found().is_some(), "{law:?}");
    }
}

#[test]
fn lowest_point_of_a_parabola_is_found_between_points_only() {
    let parabola =
        |at: f64| move |it: i32| (f64::from(it), 2.0 + 0.3 * (f64::from(it) - at).powi(2));
    let points = |at| (0..7).map(parabola(at)).collect::<Vec<_>>();
    near("the lowest point", lowest(&points(3.3)).unwrap(), 3.3, 1e-9);
    assert_eq!(lowest(&points(-1.0)), None);
    assert_eq!(lowest(&points(9.0)), None);
    assert_eq!(lowest(&[]), None);
}

#[test]
fn columns_that_say_the_same_determine_nothing() {
    let column = vec![1.0, 2.0, 4.0, 7.0];
    let y = [1.0, 2.0, 3.0, 4.0];
    assert_eq!(Linear::fit(&[vec![3.0; 4]], &y), None);
    let doubled = column.iter().map(|it| 2.0 * it).collect();
    assert_eq!(Linear::fit(&[column.clone(), doubled], &y), None);
    assert!(Linear::fit(&[column], &y).is_some());
}
