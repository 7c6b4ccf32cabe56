use super::*;
use crate::{
    Serial,
    isa::{Lanes, Portable},
    segments::{RawSegments, SegmentsReader},
    simd::tests::Backwards,
};

const DIMS: LocalAttentionDims =
    LocalAttentionDims { heads: 2, head_dim: 4, window: 3, rotary_dims: 2 };
const TOKENS: usize = 9;

/// Both ends of the window: a query sees `W` tokens before itself and not one more.
#[test]
fn a_query_sees_w_tokens_back_and_not_one_more() {
    let (q, k, v) = inputs();
    let before = attend(&q, &k, &v);
    for changed in 0..TOKENS {
        let (mut k, mut v) = (k.clone(), v.clone());
        for channel in 0..DIMS.head_dim {
            k[changed * DIMS.head_dim + channel] += 0.5;
            v[changed * DIMS.head_dim + channel] -= 0.5;
        }
        let after = attend(&q, &k, &v);
        for query in 0..TOKENS {
            let width = DIMS.heads * DIMS.head_dim;
            let row = query * width..(query + 1) * width;
            let seen = changed <= query && query <= changed + DIMS.window;
            let differs = before[row.clone()] != after[row];
            assert_eq!(differs, seen, "query {query}, key {changed}");
        }
    }
}

#[test]
fn without_a_window_a_query_sees_itself_alone() {
    let dims = LocalAttentionDims { heads: 1, head_dim: 2, window: 0, rotary_dims: 2 };
    let mut rings = ([0.0; 2], [0.0; 2]);
    let v = [5.0, 6.0, 7.0, 8.0];
    let mut y = [0.0; 4];
    let raw = RawSegments { cuts: &[0, 2], lanes: &[0], fresh: &[true] };
    let mut reader = SegmentsReader::default();
    let segments = reader.read(raw, 2, 1).unwrap();
    LocalAttention::new(dims).run(
        &segments,
        &segments.positions(&[0]).unwrap(),
        AttentionInputs { q: &[1.0; 4], k: &[1.0; 4], v: &v },
        Rings { keys: &mut rings.0, values: &mut rings.1 },
        &mut y,
        &Serial,
    );
    assert_eq!((y, rings.1), (v, [7.0, 8.0]));
}

#[test]
fn the_key_of_a_position_lies_in_its_row_of_the_ring() {
    let (q, k, v) = inputs();
    let mut kernel = LocalAttention::new(DIMS);
    let (mut keys, mut values) = (vec![0.0; 16], vec![0.0; 16]);
    let rings = Rings { keys: &mut keys, values: &mut values };
    run(&mut kernel, AttentionInputs { q: &q, k: &k, v: &v }, rings);
    for position in TOKENS - 4..TOKENS {
        let row = position % 4 * 4;
        assert_eq!(values[row..row + 4], v[position * 4..][..4], "value of {position}");
        // Beyond the rotated dimensions a key is as it came.
        assert_eq!(keys[row + 2..row + 4], k[position * 4 + 2..][..2], "key of {position}");
    }
}

fn inputs() -> (Vec<f32>, Vec<f32>, Vec<f32>) {
    let wave =
        |len: usize, frequency: f32| (0..len).map(|i| (i as f32 * frequency).sin()).collect();
    let row = TOKENS * DIMS.head_dim;
    (wave(row * DIMS.heads, 0.37), wave(row, 0.73), wave(row, 1.1))
}

fn attend(q: &[f32], k: &[f32], v: &[f32]) -> Vec<f32> {
    let (mut keys, mut values) = ([f32::NAN; 16], [f32::NAN; 16]);
    let rings = Rings { keys: &mut keys, values: &mut values };
    run(&mut LocalAttention::new(DIMS), AttentionInputs { q, k, v }, rings)
}

fn run(kernel: &mut LocalAttention, inputs: AttentionInputs<'_>, rings: Rings<'_>) -> Vec<f32> {
    let cuts = [0, i32::try_from(TOKENS).unwrap()];
    let raw = RawSegments { cuts: &cuts, lanes: &[0], fresh: &[true] };
    let mut reader = SegmentsReader::default();
    let segments = reader.read(raw, TOKENS, 1).unwrap();
    let positions = segments.positions(&[0]).unwrap();
    let mut y = vec![0.0; inputs.q.len()];
    kernel.run(&segments, &positions, inputs, rings, &mut y, &Serial);
    y
}

/// Several rows of a vector and a rest, more keys than a block, and more queries than a tile.
const LARGE: LocalAttentionDims =
    LocalAttentionDims { heads: 7, head_dim: 72, window: 45, rotary_dims: 16 };
/// More than 2W.
const LONG: usize = 101;

/// Goal: the stated equations, whatever the size of the scores.
/// Method: f64, the rings holding W + 1 tokens before the first.
#[test]
fn agrees_with_f64_whatever_the_size_of_the_scores() {
    for scale in [0.0, 1e-20, 1.0, 30.0, 1e4] {
        for before in [0, 7, 1 << 31] {
            let session = Session::new(LARGE, before, LONG, scale);
            let (found, _) = session.run(&[LONG]);
            for (at, (found, exact)) in found.iter().zip(session.exact()).enumerate() {
                let off = (f64::from(*found) - exact).abs();
                // Values are below 1 and so are their means. An error of a score is one of a weight:
                // 72 products of up to `scale`, by the root of 72, in 16 partial sums.
                let bound = 1e-6 + 5e-7 * f64::from(scale.min(30.0));
                let sharp = 30.0 < scale; // Two nearly equal scores may change places.
                assert!(off < bound || sharp && found.is_finite(), "{off:e} at {at}, {scale}");
            }
        }
    }
}

/// Goal: no cut shows, where the ring wraps, where the window fills and at positions that f32 and i32
/// do not hold.
/// Method: a session in one step, against one cut around W and 2W, token by token, and at random.
#[test]
fn no_cut_of_a_session_changes_a_bit() {
    let window = LARGE.window;
    for before in [0, 3, window as u64, (1 << 31) - 50, (1 << 31) + 11, (1 << 53) - LONG as u64] {
        let session = Session::new(LARGE, before, LONG, 3.0);
        let whole = session.run(&[LONG]);
        let mut cuts: Vec<Vec<usize>> = vec![vec![1; LONG], [vec![3; 33], vec![2]].concat()];
        for first in [window - 1, window, window + 1, 2 * window, 2 * window + 1] {
            cuts.push(vec![first, LONG - first]);
            cuts.push(vec![1, first - 1, LONG - first]);
        }
        cuts.push(vec![16, 1, 4, 31, 2, LONG - 54]);
        for cut in cuts {
            assert_same(&session.run(&cut), &whole, &format!("{before} before, {cut:?}"));
        }
    }
}

/// Goal: several threads and either way to cut the work give the bits of one, also with one token.
/// Method: enough work for them to be asked, in chunks that are few tokens and in chunks that are not.
#[test]
fn threads_do_not_change_a_bit() {
    let dims = LocalAttentionDims { heads: 10, head_dim: 96, window: 150, rotary_dims: 32 };
    let session = Session::new(dims, 1000, 60, 2.0);
    let whole = session.run(&[60]);
    for cut in [vec![1, 2, 57], vec![60], vec![3; 20]] {
        let found = session.run_with(&cut, &Backwards);
        assert_same(&found, &whole, &format!("{cut:?}"));
    }
}

/// Goal: a tile of queries of several sessions gives each what it gets alone.
/// Method: chunks and single tokens of three sessions in a step, on lanes in another order.
#[test]
fn company_does_not_show() {
    let LocalAttentionDims { heads, head_dim, .. } = LARGE;
    let sessions = [(0, 9), (1000, 1), (20, 3), (46, 60)]
        .map(|(before, tokens)| Session::new(LARGE, before, tokens, 2.0));
    const LANES: [usize; 4] = [2, 0, 3, 1];
    let join = |of: fn(&Session) -> &Vec<f32>| -> Vec<f32> {
        sessions.iter().flat_map(|it| of(it).clone()).collect()
    };
    let (q, k, v) = (join(|it| &it.q), join(|it| &it.k), join(|it| &it.v));
    let mut rings = [join(|it| &it.keys), join(|it| &it.values)];
    let ring = sessions[0].keys.len();
    for (session, lane) in sessions.iter().zip(LANES) {
        rings[0][lane * ring..][..ring].copy_from_slice(&session.keys);
        rings[1][lane * ring..][..ring].copy_from_slice(&session.values);
    }
    let fresh = [true, false, false, false];
    let raw = RawSegments { cuts: &[0, 9, 10, 13, 73], lanes: &[2, 0, 3, 1], fresh: &fresh };
    let mut reader = SegmentsReader::default();
    let segments = reader.read(raw, 73, 4).unwrap();
    let positions = segments.positions(&[0, 1000, 20, 46]).unwrap();
    let inputs = AttentionInputs { q: &q, k: &k, v: &v };
    let (mut y, [keys, values]) = (vec![0.0; q.len()], &mut rings);
    let mut kernel = LocalAttention::new(LARGE);
    kernel.run(&segments, &positions, inputs, Rings { keys, values }, &mut y, &Backwards);
    let mut y = &*y;
    for (session, lane) in sessions.iter().zip(LANES) {
        let (found, rest) = y.split_at(session.tokens * heads * head_dim);
        let own = rings.each_ref().map(|it| it[lane * ring..][..ring].to_vec());
        let (expected, rings_alone) = session.run(&[session.tokens]);
        let rings_alone = rings_alone.map(|it| it[ring..2 * ring].to_vec());
        let context = format!("lane {lane}");
        assert_same(&(found.to_vec(), own), &(expected, rings_alone), &context);
        y = rest;
    }
}

#[test]
fn every_set_of_instructions_gives_the_same_bits() {
    for heads in 1..=LARGE.heads {
        let dims = LocalAttentionDims { heads, ..LARGE };
        let session = Session::new(dims, 1000, 9, 3.0);
        let (found, _) = session.run(&[9]);
        assert_eq!(bits(&session.plain()), bits(&found), "{heads} heads");
    }
}

/// A key that is not a number spoils those who see it, and a value only its channel.
#[test]
fn what_is_not_a_number_spoils_only_what_it_reaches() {
    let clean = Session::new(LARGE, 0, LONG, 1.0);
    let LocalAttentionDims { heads, head_dim, window, .. } = LARGE;
    let (expected, _) = clean.run(&[LONG]);
    for token in [0, 30, LONG - 1] {
        let (mut key, mut value) = (clean.clone(), clean.clone());
        key.k[token * head_dim + 20] = f32::NAN;
        value.v[token * head_dim + 70] = f32::NAN;
        let (key, value) = (key.run(&[13, 1, LONG - 14]).0, value.run(&[LONG - 13, 1, 12]).0);
        for (at, expected) in expected.iter().enumerate() {
            let (query, channel) = (at / (heads * head_dim), at % head_dim);
            let seen = (token..=token + window).contains(&query);
            let same = |found: f32| found.to_bits() == expected.to_bits();
            assert!(if seen { key[at].is_nan() } else { same(key[at]) }, "key {token}, {at}");
            let seen = seen && channel == 70;
            assert!(if seen { value[at].is_nan() } else { same(value[at]) }, "value {token}, {at}");
        }
    }
}

/// Zeros of either sign are equal scores, and all the weight may lie on one key.
#[test]
fn weights_are_what_they_should_be_at_the_edges() {
    for (scores, expected) in [
        (vec![5.0], vec![1.0]),
        (vec![-0.0, 0.0], vec![0.5, 0.5]),
        (vec![f32::MIN, f32::MAX], vec![0.0, 1.0]),
        (vec![f32::MAX; 4], vec![0.25; 4]),
        (vec![-1e30, -1e30, f32::NEG_INFINITY], vec![0.5, 0.5, 0.0]),
        (
            [vec![0.0; 16], vec![-200.0; 20]].concat(),
            [vec![1.0 / 16.0; 16], vec![0.0; 20]].concat(),
        ),
    ] {
        let mut weights = scores.clone();
        widest(Softmax(&mut weights));
        assert_eq!(weights, expected, "{scores:?}");
    }
    let mut weights = [1.0, f32::NAN, 2.0];
    widest(Softmax(&mut weights));
    assert!(weights.iter().all(|it| it.is_nan()));
}

/// A session from position `before` on, over a ring that earlier tokens have filled.
#[derive(Clone)]
struct Session {
    dims: LocalAttentionDims,
    before: u64,
    tokens: usize,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    /// Rows that no token has filled are not numbers.
    keys: Vec<f32>,
    values: Vec<f32>,
}

type Outcome = (Vec<f32>, [Vec<f32>; 2]);

impl Session {
    fn new(dims: LocalAttentionDims, before: u64, tokens: usize, scale: f32) -> Self {
        let LocalAttentionDims { heads, head_dim, window, .. } = dims;
        let mut seed = 7u32;
        let mut numbers = |len: usize, scale: f32| -> Vec<f32> {
            let mut number = || {
                seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                scale * ((seed >> 8) as f32 / (1 << 23) as f32 - 1.0)
            };
            (0..len).map(|_| number()).collect()
        };
        let ring = (window + 1) * head_dim;
        let (mut keys, mut values) = (numbers(ring, 1.0), numbers(ring, 1.0));
        let filled = usize::try_from(before.min(window as u64 + 1)).unwrap() * head_dim;
        keys[filled..].fill(f32::NAN);
        values[filled..].fill(f32::NAN);
        let (q, k) = (numbers(tokens * heads * head_dim, scale), numbers(tokens * head_dim, 1.0));
        let v = numbers(tokens * head_dim, 1.0);
        Self { dims, before, tokens, q, k, v, keys, values }
    }

    fn run(&self, cut: &[usize]) -> Outcome {
        self.run_with(cut, &Serial)
    }

    /// The session in steps of as many tokens as `cut` says, on the middle of three lanes.
    fn run_with(&self, cut: &[usize], parallel: &impl Parallel) -> Outcome {
        let LocalAttentionDims { heads, head_dim, .. } = self.dims;
        let ring = self.keys.len();
        let mut rings = [&self.keys, &self.values].map(|it| {
            let mut lanes = vec![f32::NAN; 3 * ring];
            lanes[ring..2 * ring].copy_from_slice(it);
            lanes
        });
        let mut kernel = LocalAttention::new(self.dims);
        let (mut y, mut from) = (vec![0.0; self.q.len()], 0);
        for &tokens in cut {
            let cuts = [0, i32::try_from(tokens).unwrap()];
            let fresh = [self.before == 0 && from == 0];
            let raw = RawSegments { cuts: &cuts, lanes: &[1], fresh: &fresh };
            let mut reader = SegmentsReader::default();
            let segments = reader.read(raw, tokens, 3).unwrap();
            let start = [i64::try_from(self.before).unwrap() + from as i64];
            let rows = |width: usize| from * width..(from + tokens) * width;
            let inputs = AttentionInputs {
                q: &self.q[rows(heads * head_dim)],
                k: &self.k[rows(head_dim)],
                v: &self.v[rows(head_dim)],
            };
            let positions = segments.positions(&start).unwrap();
            let [keys, values] = &mut rings;
            let y = &mut y[rows(heads * head_dim)];
            kernel.run(&segments, &positions, inputs, Rings { keys, values }, y, parallel);
            from += tokens;
        }
        assert_eq!(from, self.tokens, "the cut covers the session");
        (y, rings)
    }

    /// The session in one step, by the instructions that every machine has.
    fn plain(&self) -> Vec<f32> {
        let LocalAttentionDims { heads, head_dim, .. } = self.dims;
        let mut kernel = LocalAttention::new(self.dims);
        let cuts = [0, i32::try_from(self.tokens).unwrap()];
        let raw = RawSegments { cuts: &cuts, lanes: &[0], fresh: &[false] };
        let mut reader = SegmentsReader::default();
        let segments = &reader.read(raw, self.tokens, 1).unwrap();
        let starts = [i64::try_from(self.before).unwrap()];
        let positions = &segments.positions(&starts).unwrap();
        kernel.rotate_keys(segments, positions, &self.k, &Serial);
        kernel.rotate_queries(&self.q, &Serial);
        let (mut keys, mut values) = (self.keys.clone(), self.values.clone());
        let rings = &Rings { keys: &mut keys, values: &mut values };
        let (queries, keys, v) = (&*kernel.queries, &*kernel.keys, &*self.v);
        let step = Step { dims: self.dims, segments, positions, queries, keys, v, rings };

        let (keys, queries) = (&step.keys(0..self.tokens), step.queries(0..self.tokens));
        let width = keys.count().next_multiple_of(products::BLOCK);
        let mut weights = vec![0.0; self.tokens * heads * width];
        let scores = &mut Tile::whole(&mut weights, width);
        let spare = &mut vec![0.0; products::BLOCK * products::padded(head_dim)];
        let (range, padded) = (0..keys.count(), products::padded(head_dim));
        Scores { queries, width: padded, keys, range, scores, spare }.run(Portable);
        for (row, weights) in weights.chunks_exact_mut(width).enumerate() {
            Softmax(&mut weights[keys.seen(row / heads)]).run();
        }
        let mut y = vec![0.0; self.q.len()];
        let mut tile = Tile::whole(&mut y, head_dim);
        let (weights, y_tile) = (&*weights, &mut tile);
        Means { heads, weights, width, keys, y: y_tile, row: 0, column: 0 }.run(Portable);
        y
    }

    /// The means in f64.
    fn exact(&self) -> Vec<f64> {
        let LocalAttentionDims { heads, head_dim, window, rotary_dims } = self.dims;
        let slots = window as u64 + 1;
        let row = |data: &[f32], row: usize| -> Vec<f64> {
            data[row * head_dim..][..head_dim].iter().map(|&x| f64::from(x)).collect()
        };
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        let oldest = self.before.saturating_sub(window as u64);
        for position in oldest..self.before {
            let slot = usize::try_from(position % slots).unwrap();
            keys.push(row(&self.keys, slot));
            values.push(row(&self.values, slot));
        }
        let known = keys.len();
        for (token, position) in (0..self.tokens).zip(self.before..) {
            keys.push(turned(row(&self.k, token), rotary_dims, position));
            values.push(row(&self.v, token));
        }
        let mut y = Vec::new();
        for token in 0..self.tokens {
            let seen = (known + token).saturating_sub(window)..known + token + 1;
            for head in 0..heads {
                let query = row(&self.q, token * heads + head);
                let query = turned(query, rotary_dims, self.before + token as u64);
                let score = |key: &Vec<f64>| -> f64 {
                    let products = query.iter().zip(key).map(|(a, b)| a * b);
                    products.sum::<f64>() / (head_dim as f64).sqrt()
                };
                let scores: Vec<f64> = keys[seen.clone()].iter().map(score).collect();
                let greatest = scores.iter().copied().fold(f64::MIN, f64::max);
                let weights: Vec<f64> = scores.iter().map(|it| (it - greatest).exp()).collect();
                let sum: f64 = weights.iter().sum();
                y.extend((0..head_dim).map(|channel| {
                    let values = values[seen.clone()].iter().map(|it| it[channel]);
                    weights.iter().zip(values).map(|(w, v)| w * v).sum::<f64>() / sum
                }));
            }
        }
        y
    }
}

fn turned(mut head: Vec<f64>, rotary_dims: usize, position: u64) -> Vec<f64> {
    let half = rotary_dims / 2;
    for pair in 0..half {
        let exponent = -2.0 * pair as f64 / rotary_dims as f64;
        let (sin, cos) = (position as f64 * 10_000f64.powf(exponent)).sin_cos();
        let (x, y) = (head[pair], head[pair + half]);
        (head[pair], head[pair + half]) = (x * cos - y * sin, y * cos + x * sin);
    }
    head
}

#[track_caller]
fn assert_same(found: &Outcome, expected: &Outcome, context: &str) {
    assert!(bits(&found.0) == bits(&expected.0), "outputs differ: {context}");
    for (found, expected) in found.1.iter().zip(&expected.1) {
        assert!(bits(found) == bits(expected), "rings differ: {context}");
    }
}

fn bits(data: &[f32]) -> Vec<u32> {
    data.iter().map(|x| x.to_bits()).collect()
}
