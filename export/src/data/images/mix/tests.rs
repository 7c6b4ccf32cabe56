//! Shares of two pictures, by what they are drawn from and by what is seen in the result.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::*;

const EXTENT: Extent = Extent { height: 12, width: 20 };

/// A variance of `1 / (4 (2 alpha + 1))` around a half is what Beta(alpha, alpha) has. 20 000 draws
/// put the mean within 0.01 and the variance within 0.003: more than three deviations each.
#[test]
fn weights_have_the_moments_of_their_distribution() {
    for alpha in [0.1, 0.2, 1.0, 4.0] {
        let mut rng = ChaCha8Rng::seed_from_u64(9);
        let draws: Vec<f64> = (0..20_000).map(|_| f64::from(beta(alpha, &mut rng))).collect();
        let mean = draws.iter().sum::<f64>() / draws.len() as f64;
        let variance = draws.iter().map(|it| (it - mean).powi(2)).sum::<f64>() / draws.len() as f64;
        assert!((mean - 0.5).abs() < 0.012, "alpha {alpha}: {mean}");
        let expected = 0.25 / (2.0 * alpha + 1.0);
        assert!((variance - expected).abs() < 0.003, "alpha {alpha}: {variance}, not {expected}");
    }
}

#[test]
fn mixup_is_the_weighted_mean() {
    for seed in 0..50 {
        let mut own = vec![200; EXTENT.bytes()];
        let other = vec![100; EXTENT.bytes()];
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let share = Mix::MixUp { alpha: 0.2 }.apply(EXTENT, &mut own, &other, &mut rng);
        let expected = (100.0 + 100.0 * share).round();
        assert!(
            (0.0..=1.0).contains(&share) && own.iter().all(|it| f32::from(*it) == expected),
            "seed {seed}"
        );
    }
}

/// Goal: the share is that of the pixels that are left, also where the rectangle is clipped.
/// Method: count them; the rectangle's area is uniform, and clipping takes some of it.
#[test]
fn share_of_cutmix_is_what_is_left() {
    let mut cut = 0.0;
    for seed in 0..2000 {
        let mut own = vec![1; EXTENT.bytes()];
        let other = vec![0; EXTENT.bytes()];
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let share = Mix::CutMix.apply(EXTENT, &mut own, &other, &mut rng);
        let left = own.iter().map(|it| u32::from(*it)).sum::<u32>() / 3;
        assert_eq!(share, 1.0 - (240 - left) as f32 / 240.0, "seed {seed}");
        cut += 1.0 - f64::from(share);
    }
    // A square of side s around a uniform centre keeps s - s²/4 of its side, so with s = √u on
    // average E[(s - s²/4)²] = 1/2 - 1/5 + 1/48 of the picture.
    let expected = 0.5 - 0.2 + 1.0 / 48.0;
    assert!((cut / 2000.0 - expected).abs() < 0.02, "{}", cut / 2000.0);
}

#[test]
fn partner_is_another_picture_with_the_same_number() {
    let draws = draws(&[5, 8, 5, 9], 3);
    for row in 0..draws.len() {
        let mut found = std::collections::BTreeSet::new();
        for seed in 0..100 {
            let partner = partner(&draws, row, 3, &mut ChaCha8Rng::seed_from_u64(seed)).unwrap();
            assert_ne!(draws[partner].picture, draws[row].picture);
            assert_eq!(draws[partner].number, draws[row].number);
            found.insert(draws[partner].picture);
        }
        assert_eq!(found.len(), 2, "row {row}");
    }
}

#[test]
fn nobody_is_the_partner_where_all_are_the_same() {
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    assert_eq!(partner(&draws(&[5, 5], 2), 1, 2, &mut rng), None);
    assert_eq!(partner(&draws(&[5], 2), 1, 2, &mut rng), None);
}

fn draws(pictures: &[u32], multiplicity: u32) -> Vec<Draw> {
    let numbers = |picture| (0..multiplicity).map(move |number| Draw { epoch: 0, picture, number });
    pictures.iter().flat_map(|it| numbers(*it)).collect()
}
