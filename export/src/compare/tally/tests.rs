//! Figures of distributions that are known in closed form.

use super::*;

/// Logits whose distribution is `1/2, 1/4, 1/4`, and ones whose distribution is even.
const HALF: [f32; 3] = [std::f32::consts::LN_2, 0.0, 0.0];
const EVEN: [f32; 3] = [7.0, 7.0, 7.0];

#[test]
fn figures_are_those_of_the_formulas() {
    let mut tally = Tally::default();
    let mut expected = Expected::default();
    expected.set(&HALF);
    tally.add(&expected, &EVEN, 2).unwrap();
    let figures = tally.figures(2);
    let three = 3.0f64;
    check(figures.nats_per_token, three.ln());
    check(figures.perplexity, three);
    check(figures.bits_per_byte, three.log2() / 2.0);
    // 1/2 ln(3/2) + 1/2 ln(3/4)
    check(figures.kl_nats_mean, 0.5 * (9.0f64 / 8.0).ln());
    check(figures.kl_nats_p99, figures.kl_nats_mean);
    check(figures.other_choice, 0.0);
}

#[test]
fn distribution_does_not_diverge_from_itself() {
    let logits: Vec<f32> = (0..999u16).map(|it| f32::from(it % 97) * 0.31 - 12.0).collect();
    let mut expected = Expected::default();
    expected.set(&logits);
    let mut tally = Tally::default();
    tally.add(&expected, &logits, 5).unwrap();
    assert_eq!(tally.divergences, [0.0]);
}

#[test]
fn rare_divergences_show_in_the_last_of_a_hundred() {
    let mut expected = Expected::default();
    expected.set(&HALF);
    let mut tally = Tally::default();
    for idx in 0..200 {
        let logits = if idx < 3 { [0.0, 9.0, 0.0] } else { HALF };
        tally.add(&expected, &logits, 0).unwrap();
    }
    let figures = tally.figures(1);
    assert!(1.0 < figures.kl_nats_p99 && figures.kl_nats_mean < 0.1, "{figures:?}");
    check(figures.other_choice, 0.015);
}

#[test]
fn large_logits_do_not_overflow() {
    let mut expected = Expected::default();
    expected.set(&[3e38, -3e38]);
    let mut tally = Tally::default();
    tally.add(&expected, &[3e38, -3e38], 0).unwrap();
    assert_eq!(tally.figures(1).perplexity, 1.0);
}

#[test]
fn what_is_no_number_is_refused_with_its_token() {
    let mut expected = Expected::default();
    expected.set(&HALF);
    let mut tally = Tally::default();
    tally.add(&expected, &HALF, 0).unwrap();
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        assert_eq!(tally.add(&expected, &[0.0, bad, 0.0], 0), Err(1), "{bad}");
    }
}

/// Some additions of f64 numbers near 1.
#[track_caller]
fn check(found: f64, expected: f64) {
    assert!((found - expected).abs() < 1e-7, "{found} instead of {expected}");
}
