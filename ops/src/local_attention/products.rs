//! The arithmetic of attention: scores, their softmax, and means of values, for queries of one session
//! that share the reading of keys and values.

use std::{cmp::Ordering, iter::zip, ops::Range};

use crate::{
    isa::{Isa, LANES, Lanes, loaded, prefetch, rows_abreast, vectors},
    math::{PARTIALS, exp, fold},
    simd::{Loops, Tile},
};

/// Keys that all queries meet while they lie in the first-level cache; whole vectors of scores.
pub(super) const BLOCK: usize = 16;
/// Values that all rows meet while they lie in the first-level cache.
const VALUES: usize = 32;
/// Vectors of a value that a row multiplies at once.
const VECTORS: usize = 4;
/// Exponents of weights that are told from 0. Beyond, a weight adds nothing that an f32 could hold
/// beside the greatest, and its products would be subnormal, which some machines are slow at.
const EXPONENT_MIN: f32 = -80.0;

/// The extent of a part if `extent` keys or channels are cut into about `parts`: whole tiles.
pub(super) fn part(extent: usize, parts: usize) -> usize {
    extent.div_ceil(parts).next_multiple_of(VECTORS * LANES)
}

/// The width of heads that are whole vectors.
pub(super) fn padded(head_dim: usize) -> usize {
    head_dim.next_multiple_of(LANES)
}

/// Keys and values at consecutive positions.
#[derive(Clone, Copy)]
pub(super) struct Run<'a> {
    pub(super) keys: &'a [f32],
    pub(super) key_stride: usize,
    /// `[count, d]`.
    pub(super) values: &'a [f32],
    pub(super) count: usize,
}

/// All keys that a few consecutive queries of a session see, from the oldest to the newest.
#[derive(Clone, Copy)]
pub(super) struct Keys<'a> {
    pub(super) runs: [Run<'a>; 3],
    /// Keys before that of the first query.
    pub(super) before: usize,
    pub(super) queries: usize,
    pub(super) window: usize,
    pub(super) head_dim: usize,
}

impl<'a> Keys<'a> {
    pub(super) fn count(&self) -> usize {
        self.before + self.queries
    }

    /// The keys that query `query` sees.
    #[inline(always)]
    pub(super) fn seen(&self, query: usize) -> Range<usize> {
        let own = self.before + query;
        own.saturating_sub(self.window)..own + 1
    }

    /// The [`BLOCK`] of keys from `from` on, as rows of `width` or more, and the distance of the rows:
    /// where they lie or, if they do not lie together, in `spare`, padded by zeros.
    #[inline(always)]
    fn block<'b>(&self, from: usize, width: usize, spare: &'b mut [f32]) -> (&'b [f32], usize)
    where
        'a: 'b,
    {
        let mut first = 0;
        for run in self.runs {
            let at = from.wrapping_sub(first);
            if width == self.head_dim && at < run.count && at + BLOCK <= run.count {
                return (&run.keys[at * run.key_stride..], run.key_stride);
            }
            first += run.count;
        }
        spare.fill(0.0);
        let keys = (from..self.count()).map(|at| self.key(at));
        for (spare, key) in zip(spare.chunks_exact_mut(width), keys) {
            spare[..self.head_dim].copy_from_slice(key);
        }
        (spare, width)
    }

    #[inline(always)]
    fn key(&self, mut at: usize) -> &'a [f32] {
        let [first, second, _] = &self.runs;
        let mut run = first;
        if run.count <= at {
            (at, run) = (at - run.count, second);
            if run.count <= at {
                (at, run) = (at - run.count, &self.runs[2]);
            }
        }
        &run.keys[at * run.key_stride..][..self.head_dim]
    }

    /// The values of `range`, in pieces of at most [`VALUES`] that lie together, each with the index of
    /// its first.
    #[inline(always)]
    fn values(&self, range: Range<usize>) -> impl Iterator<Item = (usize, &'a [f32])> {
        let mut first = 0;
        let width = self.head_dim;
        self.runs.into_iter().flat_map(move |run| {
            let from = range.start.clamp(first, first + run.count);
            let to = range.end.clamp(from, first + run.count);
            let values = &run.values[(from - first) * width..(to - first) * width];
            first += run.count;
            (from..).step_by(VALUES).zip(values.chunks(VALUES * width))
        })
    }
}

/// Scores of all queries with the keys of `range`.
pub(super) struct Scores<'a, 't> {
    /// `[rows, width]`: heads, padded by zeros.
    pub(super) queries: &'a [f32],
    pub(super) width: usize,
    pub(super) keys: &'a Keys<'a>,
    pub(super) range: Range<usize>,
    /// Its columns begin with `range`, and are whole blocks.
    pub(super) scores: &'a mut Tile<'t>,
    /// `[BLOCK, width]`, for keys that do not lie together.
    pub(super) spare: &'a mut [f32],
}

impl Lanes for Scores<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Self { queries, width, keys, range, scores, spare } = self;
        let rows = scores.rows();
        for from in range.clone().step_by(BLOCK) {
            let (block, stride) = keys.block(from, width, spare);
            let block = Block { width, block, stride, keys, from, end: range.end };
            let column = from - range.start;
            let mut row = 0;
            while row < rows {
                row += match rows - row {
                    1 => block.meet::<I, 1, 16>(isa, queries, row, scores, column),
                    2 | 3 => block.meet::<I, 2, 8>(isa, queries, row, scores, column),
                    _ => block.meet::<I, 4, 4>(isa, queries, row, scores, column),
                };
            }
        }
    }
}

/// A block of keys on its way past the queries.
struct Block<'a> {
    width: usize,
    /// `[BLOCK, width]`, rows `stride` apart.
    block: &'a [f32],
    stride: usize,
    keys: &'a Keys<'a>,
    /// The key that the block begins with.
    from: usize,
    /// Where keys end that anybody asks for.
    end: usize,
}

impl Block<'_> {
    /// Scores of `R` rows, `K` keys at a time; returns `R`.
    #[inline(always)]
    fn meet<I: Isa, const R: usize, const K: usize>(
        &self,
        isa: I,
        queries: &[f32],
        row: usize,
        scores: &mut Tile<'_>,
        column: usize,
    ) -> usize {
        const { assert!(R * K == LANES && BLOCK.is_multiple_of(K)) };
        let (rows, width) = (scores.rows(), self.width);
        let queries = &queries[row * width..];
        // The next block is asked for evenly while this one is multiplied.
        let ahead = |pairs: usize| (self.from + BLOCK + pairs / rows).min(self.end);
        for at in (0..BLOCK.min(self.end - self.from)).step_by(K) {
            let pairs = row * BLOCK + at * R;
            for key in ahead(pairs)..ahead(pairs + LANES) {
                prefetch(self.keys.key(key));
            }
            let keys = &self.block[at * self.stride..];
            let products = products::<I, R, K>(isa, [queries, keys], [width, self.stride], width);
            for (r, products) in products.as_chunks::<K>().0.iter().enumerate() {
                let to = scores.row_mut(row + r)[column + at..].first_chunk_mut();
                *to.expect("whole blocks of scores") = *products;
            }
        }
        R
    }
}

/// Products of each of `R` queries with each of `K` keys, `[R, K]`: rows of `width` that begin
/// `strides` apart.
#[inline(always)]
fn products<I: Isa, const R: usize, const K: usize>(
    isa: I,
    [queries, keys]: [&[f32]; 2],
    strides: [usize; 2],
    width: usize,
) -> [f32; LANES] {
    const NARROW: usize = 4;
    let mut sums = [isa.floats(0.0); LANES];
    if I::WIDE {
        add_products::<I, R, K>(isa, [queries, keys], strides, width, &mut sums);
    } else {
        for (r, sums) in sums.chunks_exact_mut(K).enumerate() {
            let query = &queries[r * strides[0]..];
            for (n, sums) in sums.chunks_exact_mut(NARROW).enumerate() {
                let keys = &keys[n * NARROW * strides[1]..];
                add_products::<I, 1, NARROW>(isa, [query, keys], strides, width, sums);
            }
        }
    }
    isa.store(isa.folds(sums))
}

/// Adds to the partial sums of the product of each query with each key, `[R, K]`.
#[inline(always)]
fn add_products<I: Isa, const R: usize, const K: usize>(
    isa: I,
    [queries, keys]: [&[f32]; 2],
    strides: [usize; 2],
    width: usize,
    to: &mut [I::Floats],
) {
    let mut sums = [[isa.floats(0.0); K]; R];
    let queries = rows_abreast::<R, LANES>(queries, strides[0], width);
    for (queries, keys) in zip(queries, rows_abreast::<K, LANES>(keys, strides[1], width)) {
        let keys = loaded(isa, keys);
        for r in 0..R {
            let query = isa.load(queries[r]);
            for k in 0..K {
                sums[r][k] = isa.mul_add(query, keys[k], sums[r][k]);
            }
        }
    }
    for (to, sum) in zip(to, sums.as_flattened()) {
        *to = *sum;
    }
}

/// Turns the scores of one query and head into weights.
pub(super) struct Softmax<'a>(pub(super) &'a mut [f32]);

impl Loops for Softmax<'_> {
    #[inline(always)]
    fn run(self) {
        let (chunks, rest) = self.0.as_chunks_mut::<PARTIALS>();
        let mut greatest = [f32::NEG_INFINITY; PARTIALS];
        let mut raise = |lane: usize, score: f32| {
            greatest[lane] = if greatest[lane] < score { score } else { greatest[lane] };
        };
        for chunk in chunks.iter() {
            for (lane, &score) in chunk.iter().enumerate() {
                raise(lane, score);
            }
        }
        for (lane, &score) in rest.iter().enumerate() {
            raise(lane, score);
        }
        let greatest =
            greatest.into_iter().fold(f32::NEG_INFINITY, |a, b| if a < b { b } else { a });

        let mut sums = [0.0f32; PARTIALS];
        for chunk in chunks.iter_mut() {
            for (score, sum) in zip(chunk, &mut sums) {
                *score = weight(*score - greatest);
                *sum += *score;
            }
        }
        for (score, sum) in zip(rest, &mut sums) {
            *score = weight(*score - greatest);
            *sum += *score;
        }
        let factor = fold(sums).recip();
        for weight in self.0 {
            *weight *= factor;
        }
    }
}

/// The exponential of a distance from the greatest score.
#[inline(always)]
fn weight(distance: f32) -> f32 {
    if distance < EXPONENT_MIN { 0.0 } else { exp(distance) }
}

/// Some channels of the means that the queries of [`Keys`] take of the values they see.
pub(super) struct Means<'a, 't> {
    /// Rows of a query.
    pub(super) heads: usize,
    /// `[rows, width]`; a row's columns are the keys.
    pub(super) weights: &'a [f32],
    pub(super) width: usize,
    pub(super) keys: &'a Keys<'a>,
    pub(super) y: &'a mut Tile<'t>,
    /// The row of `y` that the first row of `weights` makes.
    pub(super) row: usize,
    /// The channel that the first column of `y` is.
    pub(super) column: usize,
}

impl Lanes for Means<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(mut self, isa: I) {
        let (heads, queries) = (self.heads, self.keys.queries);
        for row in 0..queries * heads {
            self.y.row_mut(self.row + row).fill(0.0);
        }
        // Each query alone with what not all see, so that nobody meets a key that is not his.
        let all = self.keys.seen(queries - 1).start..self.keys.seen(0).end;
        let all = all.start..all.end.max(all.start);
        for turn in 0..=2 * queries {
            let query = if turn < queries { turn } else { turn.saturating_sub(queries + 1) };
            let (rows, seen) = (query * heads..(query + 1) * heads, self.keys.seen(query));
            let (rows, range) = match turn.cmp(&queries) {
                Ordering::Less => (rows, seen.start..all.start.min(seen.end)),
                Ordering::Equal => (0..queries * heads, all.clone()),
                Ordering::Greater => (rows, all.end.min(seen.end)..seen.end),
            };
            self.add(isa, rows, range);
        }
    }
}

impl Means<'_, '_> {
    /// Takes up the chains of `rows` and leads them over the keys of `range`.
    #[inline(always)]
    fn add<I: Isa>(&mut self, isa: I, rows: Range<usize>, range: Range<usize>) {
        let channels = self.y.width();
        let step = if I::WIDE { VECTORS * LANES } else { 2 * LANES };
        let keys = *self.keys;
        let mut pieces = keys.values(range).peekable();
        while let Some((first, values)) = pieces.next() {
            let next = pieces.peek().map_or(&[][..], |it| it.1);
            let mut channel = 0;
            while channel < channels {
                let width = match channels - channel {
                    left if step <= left => step,
                    left if LANES <= left => LANES,
                    _ => 1,
                };
                let mut row = rows.start;
                while row < rows.end {
                    let at = [row, channel, first];
                    let added = match (width, rows.end - row) {
                        (1, _) => self.add_one(values, at),
                        (LANES, _) => self.add_tile::<I, 1, 1>(isa, values, at),
                        (_, left) if !I::WIDE => match left {
                            1 => self.add_tile::<I, 1, 2>(isa, values, at),
                            _ => self.add_tile::<I, 2, 2>(isa, values, at),
                        },
                        (_, 1 | 2) => self.add_tile::<I, 1, VECTORS>(isa, values, at),
                        (_, 3 | 4) => self.add_tile::<I, 3, VECTORS>(isa, values, at),
                        _ => self.add_tile::<I, 5, VECTORS>(isa, values, at),
                    };
                    let done = channel * rows.len() + (row - rows.start) * width;
                    self.ask(next, [done, done + added * width, channels * rows.len()]);
                    row += added;
                }
                channel += width;
            }
        }
    }

    /// Leads `R` chains for each of `C` vectors of channels, from `row` and `channel` on, over the
    /// keys of `values`, of which `first` is the first; returns `R`.
    #[inline(always)]
    fn add_tile<I: Isa, const R: usize, const C: usize>(
        &mut self,
        isa: I,
        values: &[f32],
        [row, channel, first]: [usize; 3],
    ) -> usize {
        let head_dim = self.keys.head_dim;
        let keys = values.len() / head_dim;
        let mut sums = [[isa.floats(0.0); C]; R];
        for (r, sums) in sums.iter_mut().enumerate() {
            *sums = loaded(isa, vectors(self.y.row(self.row + row + r), channel));
        }
        let weights = &self.weights[row * self.width + first..];
        let weights = rows_abreast::<R, 1>(weights, self.width, keys);
        for (weights, values) in zip(weights, values.chunks_exact(head_dim)) {
            let values = loaded::<I, C>(isa, vectors(values, self.column + channel));
            for r in 0..R {
                let weight = isa.floats(weights[r][0]);
                for c in 0..C {
                    sums[r][c] = isa.mul_add(weight, values[c], sums[r][c]);
                }
            }
        }
        for (r, sums) in sums.into_iter().enumerate() {
            let y = &mut self.y.row_mut(self.row + row + r)[channel..][..C * LANES];
            for (y, sums) in zip(y.as_chunks_mut::<LANES>().0, sums) {
                *y = isa.store(sums);
            }
        }
        R
    }

    /// As [`Self::add_tile`], for one row and channel.
    #[inline(always)]
    fn add_one(&mut self, values: &[f32], [row, channel, first]: [usize; 3]) -> usize {
        let head_dim = self.keys.head_dim;
        let weights = &self.weights[row * self.width + first..];
        let y = &mut self.y.row_mut(self.row + row)[channel];
        for (weight, values) in zip(weights, values.chunks_exact(head_dim)) {
            *y = weight.mul_add(values[self.column + channel], *y);
        }
        1
    }

    /// Asks for a part of the rows of `next`, evenly while `done` goes towards `total`.
    #[inline(always)]
    fn ask(&self, next: &[f32], [done, then, total]: [usize; 3]) {
        let head_dim = self.keys.head_dim;
        let rows = next.len() / head_dim;
        for row in rows * done / total..rows * then / total {
            prefetch(&next[row * head_dim + self.column..][..self.y.width()]);
        }
    }
}
