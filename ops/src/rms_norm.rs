//! Root-mean-square normalisation, row by row.

#[cfg(test)]
mod tests;

use crate::{
    math::{PARTIALS, fold},
    simd::{Cut, Loops, Parallel, Tile, for_each_tile, widest},
};

/// Computes `y = x / sqrt(mean(x²) + epsilon) ⊙ (1 + weight)` for each row.
///
/// Zhang and Sennrich 2019, arXiv:1910.07467, eq. 4, with the gain kept as its distance from 1.
///
/// # Shapes
/// - `x`, `y`: `[N, D]`; `weight`: `[D]`
///
/// # Numerics
/// Squares are added in 16 partial sums over `D`, in f32.
///
/// # Panics
/// If `x` and `y` are not whole rows of `weight.len()`.
pub fn rms_norm(epsilon: f32, weight: &[f32], x: &[f32], y: &mut [f32], parallel: &impl Parallel) {
    let width = weight.len();
    assert_eq!(x.len(), y.len(), "x and y are [N, D]");
    assert!(0 < width && x.len().is_multiple_of(width), "x is [N, D]");

    let cut = Cut { rows: 32, columns: width, work: 4 * x.len() };
    for_each_tile(parallel, cut, y, width, |[row, _], y| {
        let x = &x[row * width..][..y.rows() * width];
        widest(Rows { epsilon, weight, x, y });
    });
}

struct Rows<'a> {
    epsilon: f32,
    weight: &'a [f32],
    x: &'a [f32],
    y: Tile<'a>,
}

impl Loops for Rows<'_> {
    #[inline(always)]
    fn run(mut self) {
        let width = self.weight.len();
        for (row, x) in self.x.chunks_exact(width).enumerate() {
            let factor = (mean_square(x) + self.epsilon).sqrt().recip();
            let y = self.y.row_mut(row);
            for ((y, &x), &weight) in y.iter_mut().zip(x).zip(self.weight) {
                *y = x * factor * (1.0 + weight);
            }
        }
    }
}

#[inline(always)]
fn mean_square(x: &[f32]) -> f32 {
    let mut sums = [0.0f32; PARTIALS];
    let chunks = x.chunks_exact(PARTIALS);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (sum, &x) in sums.iter_mut().zip(chunk) {
            *sum = x.mul_add(x, *sum);
        }
    }
    for (sum, &x) in sums.iter_mut().zip(rest) {
        *sum = x.mul_add(x, *sum);
    }
    fold(sums) / x.len() as f32
}
