use super::*;
use crate::{
    Serial, math,
    segments::{RawSegments, SegmentsReader},
};

/// Reference implementations have lost their long memory here: in f32, `1 - exp(2ℓ)` at ℓ near -1e-7
/// is 5 % off, and ℓ itself needs `log1p`.
#[test]
fn the_normaliser_keeps_its_digits_as_a_nears_one() {
    for p in [-14.0, -12.0, -7.0, -2.2, 0.0, 3.0, 30.0] {
        for gate_a in [-7.0, -3.0, 0.0, 5.0] {
            let mut state = [0.0];
            let y = run(&[p], false, [&[1.0], &[gate_a], &[40.0]], &mut state);
            let log_a = -8.0 / (1.0 + (-f64::from(gate_a)).exp()) * math::softplus(p.into());
            let exact = (-(2.0 * log_a).exp_m1()).sqrt();
            let off = (f64::from(y[0]) - exact).abs() / exact;
            // Two sigmoids, an exponential, a product and a root: a few units of 6e-8.
            assert!(off < 1e-6, "m is off by {off:e} at p {p}, gate {gate_a}");
        }
    }
}

#[test]
fn extremes_of_the_parameter_hold_or_forget_and_never_overflow() {
    // a = 1, m = 0: the state stays. a = 0, m = 1: only the input is left.
    let mut state = [0.25, 0.25];
    let x = [4.0, 4.0];
    let y = run(&[-200.0, 200.0], false, [&x, &[0.0; 2], &[100.0; 2]], &mut state);
    assert_eq!(y, [0.25, 4.0]);
}

#[test]
fn the_first_token_of_a_session_is_not_scaled_and_sees_no_state() {
    let mut state = [f32::NAN];
    let y = run(&[-7.0], true, [&[3.0], &[f32::NAN], &[0.0]], &mut state);
    assert_eq!((y[0], state[0]), (1.5, 1.5));
}

/// Goal: rounding does not pile up in sessions without end.
/// Method: 100 000 steps of long memory against f64; the worst error of the last tenth is within
/// twice that of the second.
#[test]
fn the_error_of_long_memory_does_not_grow() {
    const STEPS: usize = 100_000;
    let (p, mut state, mut exact) = (-6.9f32, [0.0f32], 0.0f64);
    let mut worst = [0.0f64; 10];
    let recurrence = RgLru::new(&[p]);
    for step in 0..STEPS {
        let x = (step as f32 * 0.7).sin() + 0.5;
        let gate = (step as f32 * 0.13).cos();
        advance_one(&recurrence, false, [&[x], &[gate], &[gate]], &mut state);
        let sigma = 1.0 / (1.0 + (-f64::from(gate)).exp());
        let log_a = -8.0 * sigma * math::softplus(p.into());
        let m = (-(2.0 * log_a).exp_m1()).sqrt();
        exact = log_a.exp() * exact + m * sigma * f64::from(x);
        let off = (f64::from(state[0]) - exact).abs();
        let tenth = &mut worst[step * 10 / STEPS];
        *tenth = tenth.max(off);
    }
    assert!(worst[9] < 2.0 * worst[1], "{worst:?}");
    // The state is of order 3; what is rounded at each step lives for 1 / (1 - a), some 200 steps.
    assert!(worst[9] < 3.0 * 6e-8 * 200.0, "{worst:?}");
}

fn run(p: &[f32], fresh: bool, inputs: [&[f32]; 3], state: &mut [f32]) -> Vec<f32> {
    advance_one(&RgLru::new(p), fresh, inputs, state)
}

fn advance_one(
    recurrence: &RgLru,
    fresh: bool,
    [x, gate_a, gate_x]: [&[f32]; 3],
    state: &mut [f32],
) -> Vec<f32> {
    let tokens = x.len() / state.len();
    let cuts = [0, i32::try_from(tokens).unwrap()];
    let raw = RawSegments { cuts: &cuts, lanes: &[0], fresh: &[fresh] };
    let mut reader = SegmentsReader::default();
    let segments = reader.read(raw, tokens, 1).unwrap();
    let mut y = vec![0.0; x.len()];
    recurrence.run(
        &segments,
        RgLruInputs { x, gate_a, gate_x, times: None },
        state,
        &mut y,
        &Serial,
    );
    y
}
