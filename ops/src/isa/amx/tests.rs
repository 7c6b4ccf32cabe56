use std::panic::{AssertUnwindSafe, catch_unwind};

use super::*;
use crate::isa::{SPAN_WORDS, Span};

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
            amx.multiply(&x, &weights, &mut sums);
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
    inner.multiply(&x, &weights, &mut sums);
    drop(inner);
    let mut fewer = [[0.0; 64]; 5];
    outer.multiply(&x[..5], &weights, &mut fewer);
    assert_eq!(fewer[..], sums[..5]);
}

#[test]
fn what_would_be_read_elsewhere_is_refused() {
    let Some(amx) = Amx::new(3) else { return eprintln!("skipped: this machine has no AMX") };
    let (x, lines) = (vec![row(3, 64); 4], weights(SPAN_WORDS + 8));
    let mut sums = [[0.0; 64]; 4];
    for (rows, words, results) in [(4, SPAN_WORDS + 8, 4), (2, 8, 2), (4, 8, 3)] {
        let work = AssertUnwindSafe(|| {
            amx.multiply(&x[..rows], &lines[..words], &mut sums[..results]);
        });
        assert!(catch_unwind(work).is_err(), "{rows} rows of {words} words to {results}");
    }
}
