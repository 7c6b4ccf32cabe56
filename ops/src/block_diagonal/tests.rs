use super::*;
use crate::Serial;

#[test]
fn agrees_with_f64_at_every_remainder() {
    for (blocks, block, rows) in [(1, 1, 1), (2, 5, 3), (3, 31, 4), (2, 32, 5), (2, 40, 67)] {
        let width = blocks * block;
        let (x, weight) = (wave(rows * width, 0.37), wave(width * block, 0.73));
        let bias = wave(width, 0.11);
        let y = project(blocks, &weight, &bias, &x);
        for (n, y) in y.chunks(width).enumerate() {
            for (out, &y) in y.iter().enumerate() {
                let (k, j) = (out / block, out % block);
                let product = |i: usize| {
                    f64::from(x[n * width + k * block + i])
                        * f64::from(weight[(k * block + i) * block + j])
                };
                let exact = f64::from(bias[out]) + (0..block).map(product).sum::<f64>();
                // f32, one rounding for each of `block` products of numbers below 1.
                let tolerance = 1.2e-7 * block as f64;
                assert!((f64::from(y) - exact).abs() <= tolerance, "{y} {exact} at {n}, {out}");
            }
        }
    }
}

/// Rows go four at a time where there are four: the sums of a row must not show in which company
/// they were made.
#[test]
fn a_row_does_not_see_its_neighbours() {
    let (blocks, width, rows) = (2, 74, 70);
    let (x, weight, bias) = (wave(rows * width, 0.37), wave(width * 37, 0.73), wave(width, 0.11));
    let together = project(blocks, &weight, &bias, &x);
    for (row, x) in x.chunks(width).enumerate() {
        let alone = project(blocks, &weight, &bias, x);
        assert_eq!(alone, together[row * width..][..width], "row {row}");
    }
}

fn project(blocks: usize, weight: &[f32], bias: &[f32], x: &[f32]) -> Vec<f32> {
    let mut y = vec![0.0; x.len()];
    block_diagonal(&BlockDiagonal { blocks, weight, bias }, x, &mut y, &Serial);
    y
}

fn wave(len: usize, frequency: f32) -> Vec<f32> {
    (0..len).map(|i| (i as f32 * frequency).sin()).collect()
}
