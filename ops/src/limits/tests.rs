use super::*;

#[test]
fn every_word_is_read() {
    for len in [0, 1, 31, 32, 33, 1000] {
        let words: Vec<u64> = (0..len).map(|it| 1 << (it % 64)).collect();
        let expected = words.iter().fold(0, |folded, it| folded ^ it);
        assert_eq!(read(&words), expected, "{len} words");
        for at in 0..words.len() {
            let mut changed = words.clone();
            changed[at] ^= 1 << 63;
            assert_ne!(read(&changed), expected, "word {at} of {len}");
        }
    }
}

#[test]
fn work_is_proportional_to_rounds() {
    for arithmetic in Arithmetic::ALL {
        for chains in Chains::ALL {
            let Some(once) = arithmetic.multiply_adds(chains, 1) else { continue };
            assert!(0 < once);
            assert_eq!(arithmetic.multiply_adds(chains, 7), Some(7 * once), "{arithmetic:?}");
        }
    }
}

/// A loop that the compiler saw through would end with other sums.
#[test]
fn sums_are_those_of_the_rounds() {
    for rounds in [0u16, 1, 5, 40] {
        let expected: f32 = (0..FEW)
            .map(|n| (0..rounds).fold(n as f32, |sum, _| sum.mul_add(0.5, 1.0)) * LANES as f32)
            .sum();
        let rounds = usize::from(rounds);
        assert!((isa::best(Fused::<FEW> { rounds }) - expected).abs() < 1e-4, "{rounds}");
        // Four products of 3 with 1, -2, 3 and -4, for each line.
        let dot = 3.0 * -2.0 * (rounds * DOTS_LINES) as f32;
        assert_eq!(isa::best(Dots::<FEW> { rounds }), dot * (FEW * LANES) as f32);
        if let Some(sum) = isa::bf16_dots::<FEW>(rounds) {
            // Two products of 0.5 with 1, on top of 0 + 1 + 2 + 3.
            assert_eq!(sum, ((rounds * FEW + 6) * LANES) as f32);
        }
    }
}
