//! What the compiler has to take on trust: which instructions this machine has, and that the tiles
//! of a buffer which several threads write at once do not overlap. Kernels above this file are safe
//! code.

#![allow(unsafe_code, reason = "run-time choice of instructions and disjoint tiles need it")]

#[cfg(test)]
pub(crate) mod tests;

use std::{marker::PhantomData, ops::Range, slice};

use crate::segments::Segments;

/// Loops to be compiled for several sets of instructions.
///
/// `run` must be `#[inline(always)]`, and all that it calls, so that the loops end up in the
/// function that has the instructions enabled.
pub(crate) trait Loops {
    fn run(self);
}

/// Runs `loops` with the widest vectors that this machine has; the results are the same with any.
pub(crate) fn widest<L: Loops>(loops: L) {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
        {
            // SAFETY: the machine has every feature that `avx512` is compiled for; AVX-512 implies
            // AVX2 and FMA.
            return unsafe { avx512(loops) };
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: the machine has every feature that `avx2` is compiled for.
            return unsafe { avx2(loops) };
        }
    }
    loops.run();
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512dq,avx512vl,avx2,fma")]
fn avx512<L: Loops>(loops: L) {
    loops.run();
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn avx2<L: Loops>(loops: L) {
    loops.run();
}

/// Whoever runs the tiles of a kernel.
///
/// # Safety
/// `for_each` calls `body` at most once for each index in `0..tiles`, and never after it returned.
pub unsafe trait Parallel: Sync {
    /// Calls `body` for each of `0..tiles`, in any order, on any threads.
    fn for_each(&self, tiles: usize, body: &(dyn Fn(usize) + Sync));
}

/// Runs tiles one after the other on the calling thread.
#[derive(Clone, Copy, Debug, Default)]
pub struct Serial;

// SAFETY: each index is visited once, by this loop.
unsafe impl Parallel for Serial {
    fn for_each(&self, tiles: usize, body: &(dyn Fn(usize) + Sync)) {
        (0..tiles).for_each(body);
    }
}

/// Multiply-adds below which waking another thread costs more than it saves (a few microseconds).
const PARALLEL_WORK_MIN: usize = 1 << 18;

/// How a kernel is cut.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cut {
    /// Rows of a tile; where segments cut the rows this is not read.
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    /// About how many multiply-adds the whole kernel takes.
    pub(crate) work: usize,
}

/// A rectangle of a row-major matrix, for one owner.
#[derive(Debug)]
pub(crate) struct Tile<'a, T = f32> {
    start: *mut T,
    rows: usize,
    width: usize,
    stride: usize,
    owner: PhantomData<&'a mut [T]>,
}

impl<'a, T> Tile<'a, T> {
    /// All of `data`, whose rows are `width` long.
    pub(crate) fn whole(data: &'a mut [T], width: usize) -> Self {
        let matrix = Matrix::new_rows(data, width);
        // SAFETY: the matrix ends here, with this as its only tile.
        unsafe { matrix.tile(0..matrix.rows, 0..width) }
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    pub(crate) fn width(&self) -> usize {
        self.width
    }

    #[inline(always)]
    pub(crate) fn row(&self, row: usize) -> &[T] {
        assert!(row < self.rows, "row of a tile");
        // SAFETY: the tile lies inside its matrix and `row` inside the tile; nobody else has these
        // elements, and `&self` keeps `row_mut` away.
        unsafe { slice::from_raw_parts(self.start.add(row * self.stride), self.width) }
    }

    #[inline(always)]
    pub(crate) fn row_mut(&mut self, row: usize) -> &mut [T] {
        assert!(row < self.rows, "row of a tile");
        // SAFETY: as in `row`, and `&mut self` makes this the only reference.
        unsafe { slice::from_raw_parts_mut(self.start.add(row * self.stride), self.width) }
    }

    /// Copies one row over another.
    #[inline(always)]
    pub(crate) fn copy_row(&mut self, from: usize, to: usize) {
        let (from, to) = (self.row(from).as_ptr(), self.row_mut(to).as_mut_ptr());
        // SAFETY: both rows are ours and `width` long; `copy` allows them to be the same.
        unsafe { to.copy_from(from, self.width) };
    }
}

/// A row-major matrix about to be cut.
struct Matrix<'a, T> {
    start: *mut T,
    rows: usize,
    width: usize,
    owner: PhantomData<&'a mut [T]>,
}

// SAFETY: a `Matrix` gives access only through `tile`, whose callers see to it that no two live
// tiles overlap.
unsafe impl<T: Send> Sync for Matrix<'_, T> {}

impl<'a, T> Matrix<'a, T> {
    fn new(data: &'a mut [T], rows: usize, width: usize) -> Self {
        assert_eq!(data.len(), rows * width, "a matrix of {rows} rows of {width}");
        Self { start: data.as_mut_ptr(), rows, width, owner: PhantomData }
    }

    /// All of `data`, in rows of `width`, which may be 0 if there is none.
    fn new_rows(data: &'a mut [T], width: usize) -> Self {
        let rows = data.len().checked_div(width).unwrap_or(0);
        Self::new(data, rows, width)
    }

    /// Tiles beside each other.
    fn across(&self, cut: Cut) -> usize {
        self.width.div_ceil(cut.columns)
    }

    /// # Safety
    /// No other live tile of this matrix may overlap this one.
    unsafe fn tile(&self, rows: Range<usize>, columns: Range<usize>) -> Tile<'a, T> {
        assert!(rows.start <= rows.end && rows.end <= self.rows, "rows of a matrix");
        assert!(columns.start <= columns.end && columns.end <= self.width, "columns of a matrix");
        Tile {
            // An empty range may begin one past the last row: offset without claiming it.
            start: self.start.wrapping_add(rows.start * self.width + columns.start),
            rows: rows.len(),
            width: columns.len(),
            stride: self.width,
            owner: PhantomData,
        }
    }
}

/// Cuts `y` `[N, width]` into tiles of `cut.rows` by `cut.columns` and runs `body` once for each,
/// with the first row and column of the tile.
pub(crate) fn for_each_tile<T: Send>(
    parallel: &impl Parallel,
    cut: Cut,
    y: &mut [T],
    width: usize,
    body: impl Fn([usize; 2], Tile<'_, T>) + Sync,
) {
    for_each_tile_of(parallel, [(cut, y, width)], |_, place, tile| body(place, tile));
}

/// [`for_each_tile`] of several matrices at once: `body` is also told of which.
pub(crate) fn for_each_tile_of<T: Send, const N: usize>(
    parallel: &impl Parallel,
    of: [(Cut, &mut [T], usize); N],
    body: impl Fn(usize, [usize; 2], Tile<'_, T>) + Sync,
) {
    let of = of.map(|(cut, y, width)| (cut, Matrix::new_rows(y, width)));
    let tiles = |(cut, it): &(Cut, Matrix<'_, T>)| [it.rows.div_ceil(cut.rows), it.across(*cut)];
    let counts = of.each_ref().map(|it| tiles(it).iter().product::<usize>());
    let work = of.iter().map(|(cut, _)| cut.work).sum();
    run(parallel, work, counts.iter().sum(), &|mut tile| {
        let mut which = 0;
        while counts[which] <= tile {
            tile -= counts[which];
            which += 1;
        }
        let (cut, matrix) = &of[which];
        let across = matrix.across(*cut);
        let (row, column) = (tile / across * cut.rows, tile % across * cut.columns);
        let rows = row..(row + cut.rows).min(matrix.rows);
        let columns = column..(column + cut.columns).min(matrix.width);
        // SAFETY: tiles with different indices differ in their matrix, or in their block of rows or of
        // columns, and `Parallel` calls each index once.
        body(which, [row, column], unsafe { matrix.tile(rows, columns) });
    });
}

/// Buffers that [`for_each_segment`] cuts, all of the same width.
pub(crate) struct Buffers<'a, const Y: usize, const S: usize> {
    /// `[N, width]` each.
    pub(crate) tokens: [&'a mut [f32]; Y],
    /// `[lanes, state_rows, width]` each.
    pub(crate) states: [&'a mut [f32]; S],
    pub(crate) state_rows: usize,
    pub(crate) width: usize,
}

/// Cuts token and state buffers by segment and by `cut.columns`, and runs `body` once for each pair
/// with the segment and the first column: a segment's tiles are its tokens and its lane.
pub(crate) fn for_each_segment<const Y: usize, const S: usize>(
    parallel: &impl Parallel,
    cut: Cut,
    segments: &Segments<'_>,
    buffers: Buffers<'_, Y, S>,
    body: impl Fn([usize; 2], [Tile<'_>; Y], [Tile<'_>; S]) + Sync,
) {
    let Buffers { tokens, states, state_rows, width } = buffers;
    let tokens = tokens.map(|data| Matrix::new(data, segments.tokens(), width));
    let states = states.map(|data| Matrix::new(data, segments.lanes_extent() * state_rows, width));
    let across = width.div_ceil(cut.columns);
    run(parallel, cut.work, segments.count() * across, &|tile| {
        let (segment, column) = (tile / across, tile % across * cut.columns);
        let columns = column..(column + cut.columns).min(width);
        let rows = segments.range(segment);
        let lane = segments.lane(segment) * state_rows;
        body(
            [segment, column],
            tokens.each_ref().map(|matrix| {
                // SAFETY: `Segments` cuts tokens without overlap, columns differ within a segment,
                // and `Parallel` calls each index once.
                unsafe { matrix.tile(rows.clone(), columns.clone()) }
            }),
            states.each_ref().map(|matrix| {
                // SAFETY: no two segments share a lane; the rest as above.
                unsafe { matrix.tile(lane..lane + state_rows, columns.clone()) }
            }),
        );
    });
}

fn run(parallel: &impl Parallel, work: usize, tiles: usize, body: &(dyn Fn(usize) + Sync)) {
    if tiles < 2 || work < PARALLEL_WORK_MIN {
        Serial.for_each(tiles, body);
    } else {
        parallel.for_each(tiles, body);
    }
}
