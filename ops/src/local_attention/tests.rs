use super::*;
use crate::{
    Serial,
    segments::{RawSegments, SegmentsReader},
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
