use std::panic::{AssertUnwindSafe, catch_unwind};

use super::*;
use crate::isa::{Parts, SPAN_WORDS, Span};

/// A row whose first `words` words are something, the largest bytes and the smallest among them.
fn row(seed: usize, words: usize) -> Span {
    let byte = |at: usize| match (seed + at) % 7 {
        0 => -127,
        1 => 127,
        _ => i32::try_from((seed * 37 + at * 101) % 255).expect("a byte") - 127,
    };
    let mut span = Span { scale: seed as f32 - 1.5, ..Span::ZERO };
    for (word, to) in span.words[..words].iter_mut().enumerate() {
        let bytes = [0, 1, 2, 3].map(|it| byte(4 * word + it));
        *to = i32::from_le_bytes(bytes.map(|it| it.to_le_bytes()[0]));
        span.sum += bytes.iter().sum::<i32>();
    }
    span
}

/// Weights that meet `words` words.
fn weights(words: usize) -> Vec<Lines> {
    let byte =
        |at: usize| if at.is_multiple_of(5) { 255 } else { (at * 89 % 256).to_le_bytes()[0] };
    let line = |at: usize| std::array::from_fn(|it| byte(at * 64 + it));
    (0..words).map(|at| std::array::from_fn(|vector| line(at * VECTORS + vector))).collect()
}

fn product(x: &Span, weights: &[Lines], output: usize) -> i32 {
    let one = |(word, lines): (&i32, &Lines)| {
        let weights = &lines[output / LANES][4 * (output % LANES)..][..4];
        let products = word.to_le_bytes().into_iter().zip(weights);
        products.map(|(x, w)| i32::from(x.cast_signed()) * (i32::from(*w) - 128)).sum::<i32>()
    };
    x.words.iter().zip(weights).map(one).sum()
}

#[test]
fn tiles_add_what_the_definition_says() {
    for rows in [1, 2, 7, 15, 16, 17, 31, 32, 33, 100] {
        let Some(amx) = Amx::new(rows) else {
            return eprintln!("skipped: this machine has no AMX");
        };
        for words in [8, 16, 24, 56, 64] {
            let weights = weights(words);
            let x: Vec<Span> = (0..rows).map(|seed| row(seed, words)).collect();
            let mut sums = vec![[0.25; 64]; rows];
            amx.multiply(&x, &weights, &mut sums, &[]);
            for (x, sums) in x.iter().zip(&sums) {
                for (output, sum) in sums.iter().enumerate() {
                    let expected = (product(x, &weights, output) as f32).mul_add(x.scale, 0.25);
                    assert_eq!(*sum, expected, "{rows} rows of {words} words");
                }
            }
        }
    }
}

/// Libraries remember for a thread what they have set up.
#[test]
fn tiles_are_left_as_they_were_found() {
    let [Some(outer), Some(inner)] = [5, 16].map(Amx::new) else {
        return eprintln!("skipped: this machine has no AMX");
    };
    let (x, weights) = (vec![row(3, 64); 16], weights(64));
    let mut sums = [[0.0; 64]; 16];
    inner.multiply(&x, &weights, &mut sums, &[]);
    drop(inner);
    let mut fewer = [[0.0; 64]; 5];
    outer.multiply(&x[..5], &weights, &mut fewer, &[]);
    assert_eq!(fewer[..], sums[..5]);
}

#[test]
fn what_would_be_read_elsewhere_is_refused() {
    let Some(amx) = Amx::new(3) else { return eprintln!("skipped: this machine has no AMX") };
    let (x, lines) = (vec![row(3, 64); 4], weights(SPAN_WORDS + 8));
    let mut sums = [[0.0; 64]; 4];
    for (rows, words, results) in [(4, SPAN_WORDS + 8, 4), (2, 8, 2), (4, 8, 3)] {
        let work = AssertUnwindSafe(|| {
            amx.multiply(&x[..rows], &lines[..words], &mut sums[..results], &[]);
        });
        assert!(catch_unwind(work).is_err(), "{rows} rows of {words} words to {results}");
    }
}

/// The bf16 of `bits`, as f32.
fn bf16(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// The bits of a bf16 from 2^-11 to 2^-3, of either sign.
fn number(seed: usize) -> u16 {
    let [a, b, ..] = (seed as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15).to_be_bytes();
    (u16::from(b & 0x80) << 8) | (0x3A00 + u16::from(a & 7) * 0x80) | u16::from(b & 0x7F)
}

/// Words, or pairs of bf16, of a row that meet weights before the sum is added to.
const STEP: usize = 16;

/// What [`Amx::multiply_parts`] is to add for one output.
fn parts_product(x: &Parts, weights: &[Lines], output: usize, sum: f32) -> f32 {
    let pair = |lines: &Lines| {
        let bytes = &lines[output / LANES][4 * (output % LANES)..][..4];
        [0, 2].map(|it| bf16(u16::from_le_bytes([bytes[it], bytes[it + 1]])))
    };
    weights.chunks(STEP).enumerate().fold(sum, |sum, (step, lines)| {
        x.0.iter().fold(sum, |sum, x| {
            let x = x[step * 2 * STEP..].chunks(2);
            let chains = lines.iter().zip(x).fold([0.0f32; 2], |chains, (lines, x)| {
                let w = pair(lines);
                [0, 1].map(|it| bf16(x[it]).mul_add(w[it], chains[it]))
            });
            sum + (chains[0] + chains[1])
        })
    })
}

/// Goal: sums of bf16 are what the definition says, bit for bit, whatever the rows beside.
#[test]
fn tiles_of_parts_add_in_the_order_that_is_told() {
    for rows in [1, 2, 7, 15, 16, 17, 31, 32, 33, 100] {
        let Some(amx) = Amx::of_parts(rows) else {
            return eprintln!("skipped: this machine has no AMX for bf16");
        };
        for pairs in [1, 15, 16, 17, 96, 128] {
            let weights: Vec<Lines> = (0..pairs)
                .map(|at| {
                    std::array::from_fn(|vector| {
                        let number = |it: usize| number((at * VECTORS + vector) * 32 + it / 2);
                        std::array::from_fn(|it| number(it).to_le_bytes()[it % 2])
                    })
                })
                .collect();
            let x: Vec<Parts> = (0..amx.padded(rows))
                .map(|row| {
                    let mut x = Parts::ZERO;
                    for at in 0..2 * pairs {
                        for (part, x) in x.0.iter_mut().enumerate() {
                            x[at] = number((row * 3 + part) * 1000 + at);
                        }
                    }
                    x
                })
                .collect();
            let mut sums = vec![[0.25; 64]; x.len()];
            amx.multiply_parts(&x, &weights, &mut sums, &[]);
            for (x, sums) in x.iter().zip(&sums) {
                for (output, sum) in sums.iter().enumerate() {
                    let expected = parts_product(x, &weights, output, 0.25);
                    assert_eq!(*sum, expected, "{rows} rows of {pairs} pairs");
                }
            }
        }
    }
}

/// Goal: a row alone gives the bits that it gives among others, be numbers too small to be normal. Method: weights
/// and inputs of exponents whose products are about as small as numbers can be.
#[test]
fn a_row_alone_has_the_bits_of_tiles() {
    let Some(many) = Amx::of_parts(16) else {
        return eprintln!("skipped: this machine has no AMX for bf16");
    };
    let small = |seed: usize, exponents: u8| {
        let [a, b, ..] = (seed as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15).to_be_bytes();
        u16::from_be_bytes([(b & 0x80) | (a % exponents), b])
    };
    let line =
        |at: usize| std::array::from_fn(|it| small(at * 32 + it / 2, 3).to_le_bytes()[it % 2]);
    let weights: Vec<Lines> =
        (0..128).map(|at| std::array::from_fn(|vector| line(at * VECTORS + vector))).collect();
    let part = |seed: usize| std::array::from_fn(|at| small(seed * 1000 + at, 2) + 0x3E00);
    let x: Vec<Parts> = (0..16).map(|row| Parts([2 * row, 2 * row + 1].map(part))).collect();
    let mut together = vec![[1e-38; 64]; 16];
    many.multiply_parts(&x, &weights, &mut together, &[]);
    drop(many);
    let one = Amx::of_parts(1).expect("the machine has tiles");
    let bits = |sums: &Sums| sums.map(f32::to_bits);
    for (x, together) in x.iter().zip(&together) {
        let mut alone = [[1e-38; 64]];
        one.multiply_parts(std::slice::from_ref(x), &weights, &mut alone, &[]);
        assert_eq!(bits(&alone[0]), bits(together));
    }
    let subtle = together.as_flattened().iter().filter(|it| (1e-38..1e-34).contains(&it.abs()));
    assert!(subtle.count() > 100, "sums are about as small as numbers can be");
}
