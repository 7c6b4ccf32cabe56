use super::*;

#[test]
fn argmax_is_the_lowest_place_of_the_largest_finite() {
    let mut logits = vec![-1.0; 100];
    assert_eq!(argmax(&logits), Some((0, -1.0)));
    (logits[37], logits[90], logits[99]) = (2.5, 2.5, 2.0);
    (logits[3], logits[50], logits[98]) = (f32::NAN, f32::INFINITY, f32::NEG_INFINITY);
    assert_eq!(argmax(&logits), Some((37, 2.5)));
    logits[99] = 3.0;
    assert_eq!(argmax(&logits), Some((99, 3.0)));
    assert_eq!(argmax(&[f32::NAN, f32::NEG_INFINITY]), None);
    assert_eq!(argmax(&[]), None);
}

/// Goal: the place is right in whichever block, chain or rest it is.
/// Method: a largest logit at each of many places, its equal further on, infinities around.
#[test]
fn argmax_finds_every_place() {
    let mut logits: Vec<f32> = (0..3 * BLOCK + 77).map(|i| ((i * 37) % 101) as f32).collect();
    for i in (0..logits.len()).step_by(500) {
        logits[i] = [f32::INFINITY, f32::NAN, f32::NEG_INFINITY][i / 500 % 3];
    }
    let last = logits.len() - 1;
    for place in (1..logits.len()).step_by(13).filter(|place| place % 500 != 0) {
        let before = (logits[place], logits[last]);
        (logits[place], logits[last]) = (200.0, 200.0);
        assert_eq!(argmax(&logits), Some((place, 200.0)));
        (logits[place], logits[last]) = before;
    }
}

/// Goal: weights and their sums are those of f64, up to the rounding that is promised.
#[test]
fn weights_follow_f64() {
    for len in [1, 15, 16, BLOCK - 1, BLOCK, 2 * BLOCK + 37] {
        let mut logits: Vec<f32> = (0..len).map(|i| ((i * 37) % 101) as f32 * 0.3 - 9.0).collect();
        if len > 20 {
            (logits[3], logits[7], logits[11]) = (f32::NAN, f32::NEG_INFINITY, -500.0);
        }
        let (top, scale) = (argmax(&logits).unwrap().1, 1.0 / 0.7);
        let (mut found, mut sums) = (vec![f32::NAN; len], vec![f64::NAN; len.div_ceil(BLOCK)]);
        weights(&logits, top, scale, &mut found, &mut sums);
        let exact = |&logit: &f32| {
            let x = (f64::from(logit) - f64::from(top)) * f64::from(scale);
            if logit.is_finite() && -87.0 < x { x.exp() } else { 0.0 }
        };
        for (found, logit) in found.iter().zip(&logits) {
            // The exponent is up to 43 and rounded twice to 2^-24 of it.
            let off = (f64::from(*found) - exact(logit)).abs();
            assert!(off <= 6e-6 * exact(logit), "{found} for {logit} of {len}");
        }
        for (sum, logits) in sums.iter().zip(logits.chunks(BLOCK)) {
            let exact: f64 = logits.iter().map(exact).sum();
            assert!((sum - exact).abs() <= 7e-6 * exact, "{sum} for {exact} of {len}");
        }
    }
}
