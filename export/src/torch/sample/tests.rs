use std::collections::BTreeSet;

use super::*;

const LOGITS: [f64; 4] = [1.0, 3.0, 2.0, 3.0];

/// Every token that comes up in many draws.
#[track_caller]
fn check(temperature: f64, top_k: usize, top_p: f64, expected: &[u32]) {
    let sampling = Sampling { temperature, top_k, top_p };
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let found: BTreeSet<u32> = (0..2000).map(|_| draw(&LOGITS, sampling, &mut rng)).collect();
    assert_eq!(found.into_iter().collect::<Vec<_>>(), expected, "{sampling:?}");
}

#[test]
fn greedy_takes_the_lowest_of_the_likeliest() {
    check(0.0, 0, 1.0, &[1]);
}

#[test]
fn cuts_keep_the_likeliest() {
    check(1.0, 0, 1.0, &[0, 1, 2, 3]);
    check(1.0, 1, 1.0, &[1]);
    check(1.0, 3, 1.0, &[1, 2, 3]);
    // The two likeliest hold 0.40 each.
    check(1.0, 0, 0.39, &[1]);
    check(1.0, 0, 0.79, &[1, 3]);
    check(0.01, 0, 1.0, &[1, 3]);
}
