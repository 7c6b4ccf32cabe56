//! Local multi-query attention over a ring of the last `W + 1` keys of each lane.

#[cfg(test)]
mod tests;

use std::{array, cell::RefCell};

use crate::{
    math::{PARTIALS, exp_pair, fold},
    rope::{Rope, rotate},
    segments::{Positions, Segments},
    simd::{Buffers, Cut, Loops, Parallel, Tile, for_each_segment, for_each_tile, widest},
};

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
    /// Rotated and scaled queries of every head, then the rotated key: `[N, (H+1)·d]`.
    rotated: Vec<f32>,
    /// Cosines, then sines, of one token.
    turn: Vec<f32>,
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

/// Heads that share one reading of a key.
const HEADS: usize = 4;
/// Queries of a tile.
const ROWS: usize = 8;
/// Channels whose sums stay in registers: two vectors of [`PARTIALS`].
const CHANNELS: usize = 2 * PARTIALS;

impl LocalAttention {
    /// # Panics
    /// If `rotary_dims` is odd or exceeds `head_dim`, or an extent is 0.
    pub fn new(dims: LocalAttentionDims) -> Self {
        assert!(0 < dims.heads && 0 < dims.head_dim, "heads and head_dim are at least 1");
        assert!(dims.rotary_dims <= dims.head_dim, "rotary_dims is part of head_dim");
        let rope = Rope::new(dims.rotary_dims);
        Self { dims, turn: vec![0.0; dims.rotary_dims], rope, rotated: Vec::new() }
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
    /// f32, angles in f64. For each query and head, scores are taken by ascending position, their
    /// exponentials added in 16 partial sums, and values added in that same order: nothing depends
    /// on where the session was cut or where in the ring a key lies.
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

        self.rotate(segments, positions, inputs);
        self.attend(segments, positions, inputs.v, &rings, y, parallel);
        self.keep(segments, positions, inputs.v, rings);
    }

    /// Fills `rotated`.
    fn rotate(
        &mut self,
        segments: &Segments<'_>,
        positions: &Positions<'_>,
        inputs: AttentionInputs<'_>,
    ) {
        let LocalAttentionDims { heads, head_dim, .. } = self.dims;
        let stride = (heads + 1) * head_dim;
        self.rotated.resize(segments.tokens() * stride, 0.0);
        for segment in 0..segments.count() {
            let range = segments.range(segment);
            for (token, position) in range.zip(positions.start(segment)..) {
                let (cos, sin) = self.turn.split_at_mut(self.rope.pairs());
                self.rope.turn(position, cos, sin);
                let (queries, key) =
                    self.rotated[token * stride..][..stride].split_at_mut(heads * head_dim);
                queries.copy_from_slice(&inputs.q[token * heads * head_dim..][..heads * head_dim]);
                key.copy_from_slice(&inputs.k[token * head_dim..][..head_dim]);
                widest(Rotate { queries, key, cos, sin });
            }
        }
    }

    /// Fills `y`.
    fn attend(
        &self,
        segments: &Segments<'_>,
        positions: &Positions<'_>,
        v: &[f32],
        rings: &Rings<'_>,
        y: &mut [f32],
        parallel: &impl Parallel,
    ) {
        let LocalAttentionDims { heads, head_dim, window, .. } = self.dims;
        let width = heads * head_dim;
        let cut = Cut {
            rows: ROWS,
            columns: HEADS * head_dim,
            work: 2 * segments.tokens() * width * window,
        };
        let session = |segment: usize| {
            let (range, lane) = (segments.range(segment), segments.lane(segment));
            let stride = (heads + 1) * head_dim;
            let ring = lane * (window + 1) * head_dim..(lane + 1) * (window + 1) * head_dim;
            Session {
                dims: self.dims,
                start: positions.start(segment),
                first: range.start,
                rotated: &self.rotated[range.start * stride..range.end * stride],
                v: &v[range.start * head_dim..range.end * head_dim],
                ring_keys: &rings.keys[ring.clone()],
                ring_values: &rings.values[ring],
            }
        };
        for_each_tile(parallel, cut, y, width, |[row, column], mut y| {
            for n in 0..y.rows() {
                let session = session(segments.of_token(row + n));
                session.attend(row + n, column / head_dim, y.row_mut(n));
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
    ) {
        let LocalAttentionDims { heads, head_dim, window, .. } = self.dims;
        let stride = (heads + 1) * head_dim;
        let slots = window + 1;
        let cut = Cut { rows: 1, columns: head_dim, work: 0 };
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
                    let key = &self.rotated[token * stride + heads * head_dim..][..head_dim];
                    keys.row_mut(slot).copy_from_slice(key);
                    values.row_mut(slot).copy_from_slice(&v[token * head_dim..][..head_dim]);
                }
            };
        for_each_segment(&crate::Serial, cut, segments, buffers, body);
    }
}

/// The row of the ring that `position` has.
fn slot_of(position: u64, slots: usize) -> usize {
    usize::try_from(position % slots as u64).expect("a remainder is below its divisor")
}

/// Rotates one token's queries and key.
struct Rotate<'a> {
    queries: &'a mut [f32],
    key: &'a mut [f32],
    cos: &'a [f32],
    sin: &'a [f32],
}

impl Loops for Rotate<'_> {
    #[inline(always)]
    fn run(self) {
        let scale = (self.key.len() as f32).sqrt().recip();
        for query in self.queries.chunks_exact_mut(self.key.len()) {
            rotate(query, self.cos, self.sin);
            for x in query {
                *x *= scale;
            }
        }
        rotate(self.key, self.cos, self.sin);
    }
}

/// One segment, with all that its queries may see.
struct Session<'a> {
    dims: LocalAttentionDims,
    /// Position of the segment's first token.
    start: u64,
    /// The segment's first token in the packed step.
    first: usize,
    /// The segment's rows of [`LocalAttention::rotated`].
    rotated: &'a [f32],
    /// The segment's values, `[T, d]`.
    v: &'a [f32],
    /// `[W+1, d]`.
    ring_keys: &'a [f32],
    ring_values: &'a [f32],
}

thread_local! {
    /// Weights of the heads of a tile, `[heads, keys]`: one buffer for each thread that runs tiles,
    /// as large as the largest window it has met.
    static WEIGHTS: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

impl Session<'_> {
    /// Attends for packed token `token` with the heads from `head` on that `y` has room for.
    fn attend(&self, token: usize, head: usize, y: &mut [f32]) {
        let LocalAttentionDims { heads, head_dim, window, .. } = self.dims;
        let slots = window + 1;
        let stride = (heads + 1) * head_dim;
        let row = token - self.first;
        let position = self.start + row as u64;
        let oldest = position.saturating_sub(window as u64);

        // By ascending position: the ring up to its end, the ring from its beginning, the segment.
        let in_ring = count(self.start.saturating_sub(oldest));
        let slot = slot_of(oldest, slots);
        let before_wrap = in_ring.min(slots - slot);
        let from_segment = row.min(window);
        let ring = |from: usize, count: usize| Run {
            keys: &self.ring_keys[from * head_dim..],
            key_stride: head_dim,
            values: &self.ring_values[from * head_dim..],
            count,
        };
        let runs = [
            ring(if in_ring == 0 { 0 } else { slot }, before_wrap),
            ring(0, in_ring - before_wrap),
            Run {
                keys: &self.rotated[(row - from_segment) * stride + heads * head_dim..],
                key_stride: stride,
                values: &self.v[(row - from_segment) * head_dim..],
                count: from_segment + 1,
            },
        ];
        let queries = &self.rotated[row * stride + head * head_dim..][..y.len()];
        WEIGHTS.with_borrow_mut(|weights| match y.len() / head_dim {
            4 => widest(Heads::<4> { head_dim, queries, runs, weights, y }),
            3 => widest(Heads::<3> { head_dim, queries, runs, weights, y }),
            2 => widest(Heads::<2> { head_dim, queries, runs, weights, y }),
            1 => widest(Heads::<1> { head_dim, queries, runs, weights, y }),
            heads => unreachable!("a tile of {heads} heads"),
        });
    }
}

/// A count of keys, at most `W`.
fn count(keys: u64) -> usize {
    usize::try_from(keys).expect("no more keys than the window holds")
}

/// Keys and values at consecutive positions.
#[derive(Clone, Copy)]
struct Run<'a> {
    keys: &'a [f32],
    key_stride: usize,
    /// `[count, d]`.
    values: &'a [f32],
    count: usize,
}

/// `G` heads of one query.
struct Heads<'a, const G: usize> {
    head_dim: usize,
    /// `[G, d]`.
    queries: &'a [f32],
    runs: [Run<'a>; 3],
    weights: &'a mut Vec<f32>,
    /// `[G, d]`.
    y: &'a mut [f32],
}

impl<const G: usize> Loops for Heads<'_, G> {
    #[inline(always)]
    fn run(self) {
        let Self { head_dim, queries, runs, weights, y } = self;
        let keys = runs.iter().map(|run| run.count).sum::<usize>();
        weights.resize(weights.len().max(G * keys), 0.0);
        let weights = &mut weights[..G * keys];

        let mut at = 0;
        for run in &runs {
            for row in 0..run.count {
                let key = &run.keys[row * run.key_stride..][..head_dim];
                for (head, score) in dots::<G>(queries, key).into_iter().enumerate() {
                    weights[head * keys + at] = score;
                }
                at += 1;
            }
        }

        let mut factors = [0.0f32; G];
        for (weights, factor) in weights.chunks_exact_mut(keys).zip(&mut factors) {
            *factor = exponentials(weights).recip();
        }

        let whole = head_dim - head_dim % CHANNELS;
        for channel in (0..whole).step_by(CHANNELS) {
            weigh::<G, CHANNELS>(&runs, weights, factors, [channel, head_dim], y);
        }
        for channel in whole..head_dim {
            weigh::<G, 1>(&runs, weights, factors, [channel, head_dim], y);
        }
    }
}

/// Products of one key with `G` queries.
#[inline(always)]
fn dots<const G: usize>(queries: &[f32], key: &[f32]) -> [f32; G] {
    let mut sums = [[0.0f32; CHANNELS]; G];
    let queries: [_; G] =
        array::from_fn(|head| queries[head * key.len()..][..key.len()].as_chunks::<CHANNELS>());
    let (key, key_rest) = key.as_chunks::<CHANNELS>();
    for (at, key) in key.iter().enumerate() {
        let queries: [&[f32; CHANNELS]; G] = array::from_fn(|head| &queries[head].0[at]);
        // Heads inside, or the compiler leaves the sums in memory and takes them one by one.
        for i in 0..CHANNELS {
            for head in 0..G {
                sums[head][i] = queries[head][i].mul_add(key[i], sums[head][i]);
            }
        }
    }
    for (sums, (_, query_rest)) in sums.iter_mut().zip(queries) {
        for ((sum, &query), &key) in sums.iter_mut().zip(query_rest).zip(key_rest) {
            *sum = query.mul_add(key, *sum);
        }
    }
    sums.map(|sums| fold(array::from_fn(|i| sums[i] + sums[i + PARTIALS])))
}

/// Replaces scores by the exponentials of their distance from the greatest; returns their sum.
#[inline(always)]
fn exponentials(scores: &mut [f32]) -> f32 {
    let greatest = scores.iter().fold(f32::NEG_INFINITY, |a, &b| if a < b { b } else { a });
    for score in scores.iter_mut() {
        *score = exp_pair(*score - greatest).exp;
    }
    let mut sums = [0.0f32; PARTIALS];
    let chunks = scores.chunks_exact(PARTIALS);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (sum, &x) in sums.iter_mut().zip(chunk) {
            *sum += x;
        }
    }
    for (sum, &x) in sums.iter_mut().zip(rest) {
        *sum += x;
    }
    fold(sums)
}

/// `C` channels of the weighted mean of the values, for `G` heads.
#[inline(always)]
fn weigh<const G: usize, const C: usize>(
    runs: &[Run<'_>; 3],
    weights: &[f32],
    factors: [f32; G],
    [channel, head_dim]: [usize; 2],
    y: &mut [f32],
) {
    let keys = weights.len() / G;
    let weights: [&[f32]; G] = array::from_fn(|head| &weights[head * keys..][..keys]);
    let mut sums = [[0.0f32; C]; G];
    let mut at = 0;
    for run in runs {
        for row in 0..run.count {
            let value: &[f32; C] =
                run.values[row * head_dim + channel..].first_chunk().expect("C channels are left");
            let weights: [f32; G] = array::from_fn(|head| weights[head][at]);
            // As in `dots`.
            for c in 0..C {
                for head in 0..G {
                    sums[head][c] = weights[head].mul_add(value[c], sums[head][c]);
                }
            }
            at += 1;
        }
    }
    for head in 0..G {
        let y = &mut y[head * head_dim + channel..][..C];
        for c in 0..C {
            y[c] = sums[head][c] * factors[head];
        }
    }
}
