//! Local multi-query attention over a ring of the last `W + 1` keys of each lane: what a step is, and
//! how it is cut. The arithmetic is in `products`.

mod products;
#[cfg(test)]
mod tests;

use std::{cell::RefCell, ops::Range};

use crate::{
    isa::best,
    rope::{Rope, rotate},
    segments::{Positions, Segments},
    simd::{Buffers, Cut, Loops, Parallel, Tile, for_each_segment, for_each_tile, widest},
};

use products::{Keys, Means, Run, Scores, Softmax};

/// Extents of local multi-query attention.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct LocalAttentionDims {
    /// `H`: query heads; keys and values have one.
    pub heads: usize,
    /// `d`.
    pub head_dim: usize,
    /// `W`: tokens before the query that it sees.
    pub window: usize,
    /// Leading dimensions of each head that are rotated; even.
    pub rotary_dims: usize,
}

/// The kernel and the memory it keeps between steps.
#[derive(Clone, Debug)]
pub struct LocalAttention {
    dims: LocalAttentionDims,
    rope: Rope,
    /// Rotated and scaled queries, `[N·H, padded d]`.
    queries: Vec<f32>,
    /// For each token its rotated key, then the cosines and sines of its position:
    /// `[N, d + rotary_dims]`.
    keys: Vec<f32>,
    /// Weights of a step of few tokens, `[N·H, keys]`; see [`FEW_TOKENS`].
    weights: Vec<f32>,
}

/// Inputs of a step: `q` is `[N, H·d]`, `k` and `v` are `[N, d]`.
#[derive(Clone, Copy, Debug)]
pub struct AttentionInputs<'a> {
    pub q: &'a [f32],
    pub k: &'a [f32],
    pub v: &'a [f32],
}

/// The ring of every lane: the key of position `p` lies, rotated, in row `p mod (W+1)`; `[lanes,
/// W+1, d]` each.
#[derive(Debug)]
pub struct Rings<'a> {
    pub keys: &'a mut [f32],
    pub values: &'a mut [f32],
}

/// Queries, each head counted, that share one reading of the keys. At `W` = 2048 their weights are
/// a third of a second-level cache.
const ROWS: usize = 40;
/// Tokens of a step below which tiles of whole queries would leave threads without work. From here on
/// a step has at least as many tiles.
const FEW_TOKENS: usize = 4;
/// Ranges of keys, and of channels, that each query of a step of few tokens is cut into.
const PARTS: usize = 4;
/// Tokens whose rotation is one tile.
const ROTATED: usize = 16;
/// About what a sine and a cosine cost, in multiply-adds.
const TURN: usize = 64;

impl LocalAttention {
    /// # Panics
    /// If `rotary_dims` is odd or exceeds `head_dim`, or an extent is 0.
    pub fn new(dims: LocalAttentionDims) -> Self {
        assert!(0 < dims.heads && 0 < dims.head_dim, "heads and head_dim are at least 1");
        assert!(dims.rotary_dims <= dims.head_dim, "rotary_dims is part of head_dim");
        let rope = Rope::new(dims.rotary_dims);
        Self { dims, rope, queries: Vec::new(), keys: Vec::new(), weights: Vec::new() }
    }

    pub fn dims(&self) -> LocalAttentionDims {
        self.dims
    }

    /// Attends: query `q` sees keys `q - W ..= q` of its own session.
    ///
    /// Griffin §2.3 (De et al. 2024, arXiv:2402.19427); multi-query as in Shazeer 2019,
    /// arXiv:1911.02150. The rings are read before the segment's last `W + 1` keys go into them, so
    /// a segment may be of any length. A fresh lane is zeroed first.
    ///
    /// # Shapes
    /// - `y`: `[N, H·d]`
    ///
    /// # Numerics
    /// f32, angles in f64. What a query and head get is made of
    /// - scores: products with a key in 16 partial sums over `d`, folded; a score is a function of
    ///   its query and its key alone;
    /// - weights: exponentials of the distance from the greatest of the scores, whose sum is taken in
    ///   16 partial sums by the distance from the oldest key seen, folded; what is less than e⁻⁸⁰ of
    ///   the greatest is 0;
    /// - the mean: for each channel one chain of fused multiply-adds over the keys seen, from the
    ///   oldest to the newest.
    ///
    /// Neither tiles, blocks of keys nor parts of a query appear in this: sums of a score are never
    /// cut, and a chain may be put down and taken up between any two keys, because it is a single
    /// f32 then. Keys that a tile reads for the sake of another query are never multiplied into a
    /// query's own chains, not even by 0. So nothing depends on where the session was cut, where in
    /// the ring a key lies, who else is in the step, or who computes.
    ///
    /// # Panics
    /// If a slice does not have the length that the others ask for.
    pub fn run(
        &mut self,
        segments: &Segments<'_>,
        positions: &Positions<'_>,
        inputs: AttentionInputs<'_>,
        rings: Rings<'_>,
        y: &mut [f32],
        parallel: &impl Parallel,
    ) {
        let LocalAttentionDims { heads, head_dim, window, .. } = self.dims;
        let tokens = segments.tokens();
        let ring_len = segments.lanes_extent() * (window + 1) * head_dim;
        assert_eq!(inputs.q.len(), tokens * heads * head_dim, "q is [N, H·d]");
        assert_eq!(inputs.k.len(), tokens * head_dim, "k is [N, d]");
        assert_eq!(inputs.v.len(), tokens * head_dim, "v is [N, d]");
        assert_eq!(y.len(), inputs.q.len(), "y is [N, H·d]");
        assert_eq!(rings.keys.len(), ring_len, "keys is [lanes, W+1, d]");
        assert_eq!(rings.values.len(), ring_len, "values is [lanes, W+1, d]");

        self.rotate_keys(segments, positions, inputs.k, parallel);
        self.rotate_queries(inputs.q, parallel);
        let step = Step {
            dims: self.dims,
            segments,
            positions,
            queries: &self.queries,
            keys: &self.keys,
            v: inputs.v,
            rings: &rings,
        };
        if tokens < FEW_TOKENS {
            step.attend_by_parts(&mut self.weights, y, parallel);
        } else {
            step.attend(y, parallel);
        }
        self.keep(segments, positions, inputs.v, rings, parallel);
    }

    /// Fills `keys`.
    fn rotate_keys(
        &mut self,
        segments: &Segments<'_>,
        positions: &Positions<'_>,
        k: &[f32],
        parallel: &impl Parallel,
    ) {
        let LocalAttentionDims { head_dim, rotary_dims, .. } = self.dims;
        let (width, pairs, rope) = (head_dim + rotary_dims, self.rope.pairs(), &self.rope);
        self.keys.resize(segments.tokens() * width, 0.0);
        let work = segments.tokens() * pairs * TURN;
        let cut = Cut { rows: ROTATED, columns: width, work };
        for_each_tile(parallel, cut, &mut self.keys, width, |[first, _], mut tile| {
            for row in 0..tile.rows() {
                let token = first + row;
                let (key, turn) = tile.row_mut(row).split_at_mut(head_dim);
                let (cos, sin) = turn.split_at_mut(pairs);
                rope.turn(position_of(token, segments, positions), cos, sin);
                key.copy_from_slice(&k[token * head_dim..][..head_dim]);
                widest(Rotate { head: key, cos, sin, scale: 1.0 });
            }
        });
    }

    /// Fills `queries`.
    fn rotate_queries(&mut self, q: &[f32], parallel: &impl Parallel) {
        let LocalAttentionDims { heads, head_dim, rotary_dims, .. } = self.dims;
        let (keys, pairs) = (&self.keys, self.rope.pairs());
        let scale = (head_dim as f32).sqrt().recip();
        let width = products::padded(head_dim);
        self.queries.resize(q.len() / head_dim * width, 0.0);
        let cut = Cut { rows: ROTATED * heads, columns: width, work: 2 * q.len() };
        for_each_tile(parallel, cut, &mut self.queries, width, |[first, _], mut tile| {
            for row in 0..tile.rows() {
                let key = (first + row) / heads * (head_dim + rotary_dims);
                let (cos, sin) = keys[key + head_dim..][..rotary_dims].split_at(pairs);
                let head = &mut tile.row_mut(row)[..head_dim];
                head.copy_from_slice(&q[(first + row) * head_dim..][..head_dim]);
                widest(Rotate { head, cos, sin, scale });
            }
        });
    }

    /// Puts the last keys and values of each segment into its ring.
    fn keep(
        &self,
        segments: &Segments<'_>,
        positions: &Positions<'_>,
        v: &[f32],
        rings: Rings<'_>,
        parallel: &impl Parallel,
    ) {
        let LocalAttentionDims { head_dim, window, rotary_dims, .. } = self.dims;
        let slots = window + 1;
        let fresh = (0..segments.count()).filter(|&segment| segments.fresh(segment)).count();
        let work = (segments.tokens() + fresh * slots) * head_dim / 4;
        let cut = Cut { rows: 1, columns: head_dim, work };
        let buffers = Buffers {
            tokens: [],
            states: [rings.keys, rings.values],
            state_rows: slots,
            width: head_dim,
        };
        let body =
            |[segment, _]: [usize; 2], []: [Tile<'_>; 0], [mut keys, mut values]: [Tile<'_>; 2]| {
                if segments.fresh(segment) {
                    for slot in 0..slots {
                        keys.row_mut(slot).fill(0.0);
                        values.row_mut(slot).fill(0.0);
                    }
                }
                let range = segments.range(segment);
                let skipped = range.len().saturating_sub(slots);
                let position = positions.start(segment) + skipped as u64;
                for (token, position) in range.skip(skipped).zip(position..) {
                    let slot = slot_of(position, slots);
                    let key = &self.keys[token * (head_dim + rotary_dims)..][..head_dim];
                    keys.row_mut(slot).copy_from_slice(key);
                    values.row_mut(slot).copy_from_slice(&v[token * head_dim..][..head_dim]);
                }
            };
        for_each_segment(parallel, cut, segments, buffers, body);
    }
}

/// Rotates a head, then scales it.
struct Rotate<'a> {
    head: &'a mut [f32],
    cos: &'a [f32],
    sin: &'a [f32],
    scale: f32,
}

impl Loops for Rotate<'_> {
    #[inline(always)]
    fn run(self) {
        rotate(self.head, self.cos, self.sin);
        for x in self.head {
            *x *= self.scale;
        }
    }
}

/// The row of the ring that `position` has.
fn slot_of(position: u64, slots: usize) -> usize {
    usize::try_from(position % slots as u64).expect("a remainder is below its divisor")
}

fn position_of(token: usize, segments: &Segments<'_>, positions: &Positions<'_>) -> u64 {
    let segment = segments.of_token(token);
    positions.start(segment) + (token - segments.range(segment).start) as u64
}

/// A step with all that its queries may see.
#[derive(Clone, Copy)]
struct Step<'a> {
    dims: LocalAttentionDims,
    segments: &'a Segments<'a>,
    positions: &'a Positions<'a>,
    queries: &'a [f32],
    keys: &'a [f32],
    v: &'a [f32],
    rings: &'a Rings<'a>,
}

/// Memory of a tile.
#[derive(Default)]
struct Scratch {
    /// `[rows, keys]`.
    weights: Vec<f32>,
    /// See [`Scores::spare`].
    spare: Vec<f32>,
    /// `[heads, channels of a part]`.
    means: Vec<f32>,
}

thread_local! {
    /// One for each thread that runs tiles, as large as the largest that it has met.
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// The first `len` elements of `data`, made longer if need be.
fn room(data: &mut Vec<f32>, len: usize) -> &mut [f32] {
    data.resize(data.len().max(len), 0.0);
    &mut data[..len]
}

impl Step<'_> {
    /// Fills `y` by tiles of queries.
    fn attend(&self, y: &mut [f32], parallel: &impl Parallel) {
        let LocalAttentionDims { heads, head_dim, .. } = self.dims;
        let queries = (self.segments.tokens() / FEW_TOKENS).min(ROWS / heads).max(1);
        let cut = Cut { rows: queries * heads, columns: head_dim, work: self.work() };
        for_each_tile(parallel, cut, y, head_dim, |[row, _], mut y| {
            let (mut token, end) = (row / heads, (row + y.rows()) / heads);
            while token < end {
                let segment = self.segments.range(self.segments.of_token(token));
                let tokens = token..end.min(segment.end);
                token = tokens.end;
                self.attend_tile(tokens, row, &mut y);
            }
        });
    }

    /// Fills the rows of `tokens`, which are of one segment, in a tile of `y` that begins with row
    /// `first`.
    fn attend_tile(&self, tokens: Range<usize>, first: usize, y: &mut Tile<'_>) {
        let heads = self.dims.heads;
        let (keys, queries) = (self.keys(tokens.clone()), self.queries(tokens.clone()));
        let width = keys.count().next_multiple_of(products::BLOCK);
        SCRATCH.with_borrow_mut(|scratch| {
            let weights = room(&mut scratch.weights, tokens.len() * heads * width);
            let mut scores = Tile::whole(weights, width);
            self.score(&keys, queries, 0..keys.count(), &mut scores, &mut scratch.spare);
            for (row, weights) in weights.chunks_exact_mut(width).enumerate() {
                widest(Softmax(&mut weights[keys.seen(row / heads)]));
            }
            let row = tokens.start * heads - first;
            best(Means { heads, weights, width, keys: &keys, y, row, column: 0 });
        });
    }

    /// Fills `y` with each query cut into [`PARTS`], so that also one session gives work to several
    /// threads: first by keys, then by heads, then by channels.
    fn attend_by_parts(&self, weights: &mut Vec<f32>, y: &mut [f32], parallel: &impl Parallel) {
        let LocalAttentionDims { heads, head_dim, .. } = self.dims;
        let tokens = self.segments.tokens();
        let keys = |row: usize| self.keys(row / heads..row / heads + 1);
        let count = (0..tokens).map(|token| keys(token * heads).count()).max().unwrap_or(1);
        let width = count.next_multiple_of(products::BLOCK);
        // At once for a full window, or memory would grow with the sessions; without, if there is not as
        // much to be had.
        let most = tokens * heads * (self.dims.window + 1).next_multiple_of(products::BLOCK);
        weights.try_reserve_exact(most.saturating_sub(weights.len())).ok();
        let weights = room(weights, tokens * heads * width);

        let columns = products::part(width, PARTS);
        let cut = Cut { rows: heads, columns, work: self.work() };
        for_each_tile(parallel, cut, weights, width, |[row, column], mut scores| {
            let (keys, queries) = (keys(row), self.queries(row / heads..row / heads + 1));
            let range = column..keys.count().min(column + scores.width());
            SCRATCH.with_borrow_mut(|scratch| {
                self.score(&keys, queries, range, &mut scores, &mut scratch.spare);
            });
        });
        let work = 16 * weights.len();
        let cut = Cut { rows: heads.div_ceil(PARTS), columns: width, work };
        for_each_tile(parallel, cut, weights, width, |[first, _], mut weights| {
            for row in 0..weights.rows() {
                let seen = keys(first + row).seen(0);
                widest(Softmax(&mut weights.row_mut(row)[seen]));
            }
        });
        let columns = products::part(head_dim, PARTS);
        let cut = Cut { rows: heads, columns, work: self.work() };
        for_each_tile(parallel, cut, y, head_dim, |[row, column], mut y| {
            let weights = &weights[row * width..][..heads * width];
            // Chains are taken up often, and two threads must not have them in one line.
            SCRATCH.with_borrow_mut(|scratch| {
                let means = room(&mut scratch.means, heads * y.width());
                let mut tile = Tile::whole(means, y.width());
                let keys = &keys(row);
                best(Means { heads, weights, width, keys, y: &mut tile, row: 0, column });
                for (head, means) in means.chunks_exact(y.width()).enumerate() {
                    y.row_mut(head).copy_from_slice(means);
                }
            });
        });
    }

    /// Fills `scores` with those of `queries` and the keys of `range`.
    fn score(
        &self,
        keys: &Keys<'_>,
        queries: &[f32],
        range: Range<usize>,
        scores: &mut Tile<'_>,
        spare: &mut Vec<f32>,
    ) {
        let width = products::padded(self.dims.head_dim);
        let spare = room(spare, products::BLOCK * width);
        best(Scores { queries, width, keys, range, scores, spare });
    }

    /// Multiply-adds of the step.
    fn work(&self) -> usize {
        let seen = (0..self.segments.count()).map(|segment| {
            let tokens = self.segments.range(segment);
            tokens.len() * self.keys(tokens.end - 1..tokens.end).count()
        });
        2 * self.dims.heads * self.dims.head_dim * seen.sum::<usize>()
    }

    /// The heads of `tokens`, one after the other.
    fn queries(&self, tokens: Range<usize>) -> &[f32] {
        let row = self.dims.heads * products::padded(self.dims.head_dim);
        &self.queries[tokens.start * row..tokens.end * row]
    }

    /// The keys that `tokens` see, which are of one segment.
    fn keys(&self, tokens: Range<usize>) -> Keys<'_> {
        let LocalAttentionDims { head_dim, window, rotary_dims, .. } = self.dims;
        let segment = self.segments.of_token(tokens.start);
        let (start, first) = (self.positions.start(segment), self.segments.range(segment).start);
        let row = tokens.start - first;
        let position = start + row as u64;
        let oldest = position.saturating_sub(window as u64);

        // By ascending position: the ring up to its end, the ring from its beginning, the segment.
        let slots = window + 1;
        let in_ring = count(start.saturating_sub(oldest));
        let slot = slot_of(oldest, slots);
        let before_wrap = in_ring.min(slots - slot);
        let before = count(position - oldest);
        let lane = self.segments.lane(segment) * slots;
        let ring = |slot: usize, count: usize| {
            let from = (lane + slot) * head_dim;
            let rows = from..from + count * head_dim;
            let (keys, values) = (&self.rings.keys[rows.clone()], &self.rings.values[rows]);
            Run { keys, key_stride: head_dim, values, count }
        };
        let key_stride = head_dim + rotary_dims;
        let from = tokens.start - (before - in_ring);
        let own = Run {
            keys: &self.keys[from * key_stride..tokens.end * key_stride],
            key_stride,
            values: &self.v[from * head_dim..tokens.end * head_dim],
            count: tokens.end - from,
        };
        let runs = [
            ring(if in_ring == 0 { 0 } else { slot }, before_wrap),
            ring(0, in_ring - before_wrap),
            own,
        ];
        Keys { runs, before, queries: tokens.len(), window, head_dim }
    }
}

/// A count of keys, at most `W`.
fn count(keys: u64) -> usize {
    usize::try_from(keys).expect("no more keys than the window holds")
}
