//! The loops of a product over one tile of its result.

use std::hint;

use crate::{
    isa::{self, Isa, LANES, Lanes, Line, abreast},
    matmul::{
        activations::Quantised,
        packing::{BLOCK4_BYTES, Format, PANEL, Packing, SCALES8_BYTES},
    },
    simd::{Loops, Tile},
};

/// Vectors of a panel's outputs.
const VECTORS: usize = PANEL / LANES;

/// A tile of a product: some rows by some panels of one group.
pub(super) struct Product<'a> {
    pub(super) packing: Packing,
    pub(super) packed: &'a [u8],
    pub(super) group: usize,
    /// First row of the tile.
    pub(super) row: usize,
    /// First output of the tile within the group; a multiple of [`PANEL`].
    pub(super) column: usize,
    /// Of the tile's outputs.
    pub(super) bias: Option<&'a [f32]>,
    pub(super) x: Inputs<'a>,
    pub(super) y: Tile<'a>,
}

#[derive(Clone, Copy)]
pub(super) enum Inputs<'a> {
    /// `[N, groups · inputs]`
    Floats(&'a [f32]),
    Bytes(&'a Quantised),
}

impl Product<'_> {
    /// Computes the tile with `run`, which runs a kernel with some set of instructions.
    pub(super) fn run(mut self, run: impl Run) {
        // What 4-bit and bf16 weights are unpacked to takes registers too.
        let rows_max = match self.packing.format {
            Format::Q8 => run.run(RowsMax),
            Format::Q4 | Format::Bf16 => run.run(RowsMax).min(4),
        };
        for column in (0..self.y.width()).step_by(PANEL) {
            let mut row = 0;
            while row < self.y.rows() {
                let rows = rows_max.min(self.y.rows() - row);
                match rows {
                    1 => self.rows::<1>(run, row, column),
                    2 => self.rows::<2>(run, row, column),
                    3 => self.rows::<3>(run, row, column),
                    4 => self.rows::<4>(run, row, column),
                    5 => self.rows::<5>(run, row, column),
                    6 => self.rows::<6>(run, row, column),
                    _ => unreachable!("no instructions have more rows"),
                }
                row += rows;
            }
        }
    }

    /// `N` rows by the panel that begins at `column`, both counted within the tile.
    fn rows<const N: usize>(&mut self, run: impl Run, row: usize, column: usize) {
        let Self { packing, group, .. } = *self;
        let panel = packing.panel(self.packed, group, self.column + column);
        let rows = std::array::from_fn(|n| (self.row + row + n) * packing.groups + group);
        let sums: [[f32; PANEL]; N] = match (self.x, packing.format) {
            (Inputs::Floats(x), _) => {
                run.run(Bf16 { panel, x: rows.map(|row| floats(x, &packing, row)) })
            }
            (Inputs::Bytes(x), Format::Q4) => q4(run, panel, x, rows, row == 0),
            (Inputs::Bytes(x), _) => run.run(Q8 { panel, x, rows }),
        };
        let width = PANEL.min(self.y.width() - column);
        for (n, sums) in sums.iter().enumerate() {
            let y = &mut self.y.row_mut(row + n)[column..][..width];
            match self.bias {
                Some(bias) => {
                    let sums = sums.iter().zip(&bias[column..]);
                    y.iter_mut().zip(sums).for_each(|(y, (sum, bias))| *y = sum + bias);
                }
                None => y.copy_from_slice(&sums[..width]),
            }
        }
    }
}

/// Whoever runs kernels.
pub(super) trait Run: Copy {
    fn run<L: Lanes>(self, lanes: L) -> L::Output;
}

/// Runs kernels with the best instructions of this machine.
#[derive(Clone, Copy)]
pub(super) struct Best;

impl Run for Best {
    fn run<L: Lanes>(self, lanes: L) -> L::Output {
        isa::best(lanes)
    }
}

/// Asks for the most rows of a kernel.
struct RowsMax;

impl Lanes for RowsMax {
    type Output = usize;

    #[inline(always)]
    fn run<I: Isa>(self, _isa: I) -> usize {
        I::ROWS
    }
}

/// Inputs of one group of a row as they came; rows are counted group by group.
#[inline(always)]
fn floats<'x>(x: &'x [f32], packing: &Packing, row: usize) -> &'x [f32] {
    &x[row * packing.inputs..][..packing.inputs]
}

/// Rows by a panel of bf16: sums over pairs of inputs, in their order, in f32.
struct Bf16<'a, const N: usize> {
    panel: &'a [u8],
    x: [&'a [f32]; N],
}

impl<const N: usize> Lanes for Bf16<'_, N> {
    type Output = [[f32; PANEL]; N];

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> Self::Output {
        let pairs = self.x.map(|x| x.as_chunks::<2>());
        let (lines, rest) = lines(self.panel).split_at(pairs[0].0.len());
        let mut sums = [[isa.floats(0.0); VECTORS]; N];
        for (lines, x) in lines.iter().zip(abreast(pairs.map(|it| it.0), lines.len())) {
            sums = bf16_pair(isa, sums, lines, x);
        }
        if let [lines] = rest {
            sums = bf16_pair(isa, sums, lines, pairs.map(|(_, last)| [last[0], 0.0]));
        }
        stored(isa, &settle(sums))
    }
}

#[inline(always)]
fn bf16_pair<I: Isa, const N: usize>(
    isa: I,
    mut sums: [[I::Floats; VECTORS]; N],
    lines: &[Line; VECTORS],
    x: [[f32; 2]; N],
) -> [[I::Floats; VECTORS]; N] {
    for (vector, line) in lines.iter().enumerate() {
        let [even, odd] = isa.bf16_pairs(isa.bytes(line));
        for n in 0..N {
            let sum = isa.mul_add(isa.floats(x[n][0]), even, sums[n][vector]);
            sums[n][vector] = isa.mul_add(isa.floats(x[n][1]), odd, sum);
        }
    }
    sums
}

/// Rows by a panel of 8 bits: sums of bytes over all inputs, exact; then scaled.
struct Q8<'a, const N: usize> {
    panel: &'a [u8],
    x: &'a Quantised,
    rows: [usize; N],
}

impl<const N: usize> Lanes for Q8<'_, N> {
    type Output = [[f32; PANEL]; N];

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> Self::Output {
        let Self { panel, x, rows } = self;
        let (scales, bytes) = panel.split_at(SCALES8_BYTES);
        let lines = lines(bytes);
        let blocks = rows.map(|row| x.blocks(row));
        let mut sums =
            blocks.map(|(_, sums)| [isa.ints(sums[0].wrapping_mul(-I::DOT8_ZERO)); VECTORS]);
        for (lines, x) in lines.iter().zip(abreast(rows.map(|row| x.row(row)), lines.len())) {
            let weights = lines.each_ref().map(|line| isa.bytes(line));
            for n in 0..N {
                for vector in 0..VECTORS {
                    sums[n][vector] = isa.dot8(sums[n][vector], weights[vector], x[n]);
                }
            }
        }
        let mut sums = stored(isa, &settle(sums.map(|row| row.map(|it| isa.convert(it)))));
        let scales = scales.as_chunks().0;
        for (sums, (row_scales, _)) in sums.iter_mut().zip(blocks) {
            for (sum, scale) in sums.iter_mut().zip(scales) {
                *sum = *sum * f32::from_le_bytes(*scale) * row_scales[0];
            }
        }
        sums
    }
}

/// Rows by a panel of 4 bits.
fn q4<const N: usize>(
    run: impl Run,
    panel: &[u8],
    x: &Quantised,
    rows: [usize; N],
    cold: bool,
) -> [[f32; PANEL]; N] {
    let mut sums = [[0.0; PANEL]; N];
    if cold {
        // One stream through the panel, as fast as memory gives it.
        run.run(Q4::<N, VECTORS> { panel, x, rows, first: 0, sums: &mut sums });
    } else {
        // The panel lies in a near cache, so that it can be walked once for each vector: all sums and
        // what the nibbles are unpacked to then fit in registers.
        for first in 0..VECTORS {
            run.run(Q4::<N, 1> { panel, x, rows, first, sums: &mut sums });
        }
    }
    sums
}

/// Rows by `V` vectors of a panel of 4 bits: sums of bytes over each block, exact; scaled and added
/// in the blocks' order.
struct Q4<'a, const N: usize, const V: usize> {
    panel: &'a [u8],
    x: &'a Quantised,
    rows: [usize; N],
    /// First of the vectors.
    first: usize,
    sums: &'a mut [[f32; PANEL]; N],
}

impl<const N: usize, const V: usize> Lanes for Q4<'_, N, V> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Self { panel, x, rows, first, sums: to } = self;
        let panel = panel.as_chunks::<BLOCK4_BYTES>().0;
        let inputs = abreast(rows.map(|row| x.row(row).as_chunks::<8>().0), panel.len());
        let scales = abreast(rows.map(|row| x.blocks(row).0), panel.len());
        let zeros = abreast(rows.map(|row| x.blocks(row).1), panel.len());
        let mut sums = [[isa.floats(0.0); V]; N];
        for (((weights, x), scales), zeros) in panel.iter().zip(inputs).zip(scales).zip(zeros) {
            let (halves, bytes) = weights.split_at(2 * PANEL);
            let halves = &halves.as_chunks::<{ 2 * LANES }>().0[first..first + V];
            let lines = &lines(bytes)[first..first + V];
            for (vector, (half, lines)) in halves.iter().zip(lines).enumerate() {
                let scale = isa.halves(half);
                let bytes = lines.each_ref().map(|line| isa.bytes(line));
                let (lows, highs) = (bytes.map(|it| isa.low(it)), bytes.map(|it| isa.high(it)));
                for n in 0..N {
                    let (mut low, mut high) = (isa.ints(-8 * zeros[n]), isa.ints(0));
                    for j in 0..4 {
                        low = isa.dot4(low, lows[j], x[n][j]);
                        high = isa.dot4(high, highs[j], x[n][4 + j]);
                    }
                    let whole = isa.convert(isa.add_ints(low, high));
                    let scale = isa.mul(scale, isa.floats(scales[n]));
                    sums[n][vector] = isa.mul_add(whole, scale, sums[n][vector]);
                }
            }
        }
        for (to, sums) in to.iter_mut().zip(settle(sums)) {
            let to = &mut to.as_chunks_mut().0[first..first + V];
            to.iter_mut().zip(sums).for_each(|(to, sums)| *to = isa.store(sums));
        }
    }
}

/// Moves sums to where they can be indexed, once: left alone, compilers index the loop's own and
/// write every sum to memory in every turn of it.
#[inline(always)]
fn settle<T>(sums: T) -> T {
    hint::black_box(sums)
}

#[inline(always)]
fn stored<I: Isa, const N: usize>(isa: I, sums: &[[I::Floats; VECTORS]; N]) -> [[f32; PANEL]; N] {
    let mut stored = [[0.0; PANEL]; N];
    for (to, sums) in stored.iter_mut().zip(sums) {
        to.as_chunks_mut().0.iter_mut().zip(sums).for_each(|(to, sums)| *to = isa.store(*sums));
    }
    stored
}

/// Bytes by fours of vectors.
#[inline(always)]
fn lines(bytes: &[u8]) -> &[[Line; VECTORS]] {
    bytes.as_chunks::<{ size_of::<Line>() }>().0.as_chunks::<VECTORS>().0
}

/// The tile with inputs as they came and any format, one weight at a time: slow, and what the fast
/// ways are checked with.
pub(super) struct Checked<'a>(pub(super) Product<'a>);

impl Loops for Checked<'_> {
    #[inline(always)]
    fn run(self) {
        let Product { packing, packed, group, row: first, column, bias, x, mut y } = self.0;
        let Inputs::Floats(x) = x else { panic!("checking takes floats") };
        for row in 0..y.rows() {
            let x = floats(x, &packing, (first + row) * packing.groups + group);
            for (output, y) in y.row_mut(row).iter_mut().enumerate() {
                let panel = packing.panel(packed, group, column + output);
                let products = x.iter().enumerate();
                let sum = products.fold(0.0f32, |sum, (input, x)| {
                    x.mul_add(packing.element(panel, column + output, input), sum)
                });
                *y = sum + bias.map_or(0.0, |bias| bias[output]);
            }
        }
    }
}
