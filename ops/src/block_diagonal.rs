//! The projection of the recurrence's gates: one dense matrix for each block of channels.

#[cfg(test)]
mod tests;

use crate::simd::{Cut, Loops, Parallel, Tile, for_each_tile, widest};

/// A block-diagonal projection.
#[derive(Clone, Copy, Debug)]
pub struct BlockDiagonal<'a> {
    /// `K`.
    pub blocks: usize,
    /// `[K, R/K, R/K]`, in before out.
    pub weight: &'a [f32],
    /// `[R]`.
    pub bias: &'a [f32],
}

/// Rows that share one pass over a block's weight.
const ROWS: usize = 4;
/// Columns whose sums stay in registers.
const COLUMNS: usize = 32;

/// Computes `y[n, k·o + j] = bias[k·o + j] + Σ_i x[n, k·o + i] · weight[k, i, j]` with `o = R/K`.
///
/// # Shapes
/// - `x`, `y`: `[N, R]`
///
/// # Numerics
/// Each sum begins with the bias and adds fused products in the order of `i`, in f32.
///
/// # Panics
/// If a slice does not have the length that the others ask for.
pub fn block_diagonal(
    projection: &BlockDiagonal<'_>,
    x: &[f32],
    y: &mut [f32],
    parallel: &impl Parallel,
) {
    let BlockDiagonal { blocks, weight, bias } = *projection;
    let width = bias.len();
    assert!(0 < width && 0 < blocks && width.is_multiple_of(blocks), "bias is [R], K divides R");
    let block = width / blocks;
    assert_eq!(weight.len(), width * block, "weight is [K, R/K, R/K]");
    assert_eq!(x.len(), y.len(), "x and y are [N, R]");
    assert!(x.len().is_multiple_of(width), "x is [N, R]");

    let cut = Cut { rows: 16 * ROWS, columns: block, work: x.len() * block };
    for_each_tile(parallel, cut, y, width, |[row, column], y| {
        widest(Block {
            x: &x[row * width..],
            stride: width,
            column,
            weight: &weight[column * block..][..block * block],
            bias: &bias[column..][..block],
            y,
        });
    });
}

/// One block of channels of some rows.
struct Block<'a> {
    /// From the tile's first row on.
    x: &'a [f32],
    stride: usize,
    /// First channel of the block.
    column: usize,
    weight: &'a [f32],
    bias: &'a [f32],
    y: Tile<'a>,
}

impl Loops for Block<'_> {
    #[inline(always)]
    fn run(mut self) {
        let rows = self.y.rows();
        let whole = rows - rows % ROWS;
        for row in (0..whole).step_by(ROWS) {
            self.rows::<ROWS>(row);
        }
        for row in whole..rows {
            self.rows::<1>(row);
        }
    }
}

impl Block<'_> {
    #[inline(always)]
    fn rows<const N: usize>(&mut self, row: usize) {
        let block = self.bias.len();
        let whole = block - block % COLUMNS;
        for column in (0..whole).step_by(COLUMNS) {
            self.columns::<N, COLUMNS>(row, column);
        }
        for column in whole..block {
            self.columns::<N, 1>(row, column);
        }
    }

    /// `N` rows by `C` columns, with all sums in registers.
    #[inline(always)]
    fn columns<const N: usize, const C: usize>(&mut self, row: usize, column: usize) {
        let block = self.bias.len();
        let mut sums = [[0.0f32; C]; N];
        for sums in &mut sums {
            sums.copy_from_slice(&self.bias[column..][..C]);
        }
        let x: [&[f32]; N] =
            std::array::from_fn(|n| &self.x[(row + n) * self.stride + self.column..][..block]);
        for (i, weight) in self.weight.chunks_exact(block).enumerate() {
            let weight: &[f32; C] = weight[column..].first_chunk().expect("C columns are left");
            let x: [f32; N] = std::array::from_fn(|n| x[n][i]);
            // Rows inside, or the compiler leaves the sums in memory and takes them one by one.
            for c in 0..C {
                for n in 0..N {
                    sums[n][c] = x[n].mul_add(weight[c], sums[n][c]);
                }
            }
        }
        for (n, sums) in sums.iter().enumerate() {
            self.y.row_mut(row + n)[column..][..C].copy_from_slice(sums);
        }
    }
}
