use super::*;
use crate::{
    Serial,
    segments::{RawSegments, SegmentsReader},
};

/// The last row of the weight meets the current token: an impulse reads the rows backwards.
#[test]
fn an_impulse_reads_the_taps_from_last_to_first() {
    let weight = [1.0, 2.0, 3.0, 4.0];
    let conv = CausalConv1d { weight: &weight, bias: &[0.0] };
    let mut state = [0.0; 3];
    let y = run(&conv, true, &[1.0, 0.0, 0.0, 0.0, 0.0], &mut state);
    assert_eq!(y, [4.0, 3.0, 2.0, 1.0, 0.0]);
}

#[test]
fn the_state_holds_the_last_inputs_oldest_first() {
    let conv = CausalConv1d { weight: &[0.0; 4], bias: &[0.5] };
    let mut state = [9.0; 3];
    assert_eq!(run(&conv, true, &[1.0], &mut state), [0.5]);
    assert_eq!(state, [0.0, 0.0, 1.0], "a fresh lane begins with zeros");
    run(&conv, false, &[2.0, 3.0], &mut state);
    assert_eq!(state, [1.0, 2.0, 3.0]);
    run(&conv, false, &[4.0, 5.0, 6.0, 7.0], &mut state);
    assert_eq!(state, [5.0, 6.0, 7.0]);
}

#[test]
fn one_tap_needs_no_state() {
    let conv = CausalConv1d { weight: &[3.0], bias: &[1.0] };
    assert_eq!(run(&conv, false, &[1.0, 2.0], &mut []), [4.0, 7.0]);
}

fn run(conv: &CausalConv1d<'_>, fresh: bool, x: &[f32], state: &mut [f32]) -> Vec<f32> {
    let cuts = [0, i32::try_from(x.len()).unwrap()];
    let raw = RawSegments { cuts: &cuts, lanes: &[0], fresh: &[fresh] };
    let mut reader = SegmentsReader::default();
    let segments = reader.read(raw, x.len(), 1).unwrap();
    let mut y = vec![0.0; x.len()];
    causal_conv1d(conv, &segments, x, state, &mut y, &Serial);
    y
}
