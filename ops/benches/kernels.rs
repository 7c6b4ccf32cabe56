//! Bytes per second of the kernels at the sizes of the bundled model, beside what this machine reads
//! from memory in the same run. Bytes are those of inputs, outputs, weights and named state rows.

use std::hint::black_box;

use aerie_ops::{
    Serial,
    block_diagonal::{BlockDiagonal, block_diagonal},
    causal_conv1d::{CausalConv1d, causal_conv1d},
    local_attention::{AttentionInputs, LocalAttention, LocalAttentionDims, Rings},
    rg_lru::{RgLru, RgLruInputs},
    rms_norm::rms_norm,
    segments::{RawSegments, Segments, SegmentsReader},
};
use criterion::{
    BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main, measurement::WallTime,
};

/// `D`: width of the residual stream.
const WIDTH: usize = 192;
/// `R`: width of the recurrence.
const RECURRENCE: usize = 256;
/// `K`: blocks of the gates' projection.
const BLOCKS: usize = 8;
/// `C`: taps of the convolution.
const TAPS: usize = 4;
const ATTENTION: LocalAttentionDims =
    LocalAttentionDims { heads: 3, head_dim: 64, window: 256, rotary_dims: 32 };
/// Of the buffer that is read: far more than any cache holds.
const READ_BYTES: usize = 1 << 28;

criterion_group!(benches, memory, kernels);
criterion_main!(benches);

fn memory(criterion: &mut Criterion) {
    let buffer = vec![1u64; READ_BYTES / size_of::<u64>()];
    let mut group = criterion.benchmark_group("memory");
    group.throughput(Throughput::Bytes(READ_BYTES as u64)).sample_size(10);
    group.bench_function("read", |bencher| {
        bencher.iter(|| black_box(&buffer).iter().fold(0u64, |sum, &it| sum.wrapping_add(it)));
    });
    group.finish();
}

fn kernels(criterion: &mut Criterion) {
    for (name, lanes, tokens) in
        [("decode_1", 1, 1), ("decode_8", 8, 1), ("decode_32", 32, 1), ("prefill_512", 1, 512)]
    {
        let step = Step::new(lanes, tokens);
        let mut group = criterion.benchmark_group(name);
        let segments = SegmentsReader::default()
            .read(step.raw(), step.tokens, lanes)
            .expect("the step holds together");
        bench_rg_lru(&mut group, &segments, lanes);
        bench_causal_conv1d(&mut group, &segments, lanes);
        bench_local_attention(&mut group, &segments, &step);
        bench_rms_norm(&mut group, step.tokens);
        bench_block_diagonal(&mut group, step.tokens);
        group.finish();
    }
}

/// A step in which every lane advances by as many tokens.
struct Step {
    cuts: Vec<i32>,
    lanes: Vec<i32>,
    fresh: Vec<bool>,
    /// Every window is full.
    positions: Vec<i64>,
    /// `N`.
    tokens: usize,
}

impl Step {
    fn new(lanes: usize, tokens_each: usize) -> Self {
        Self {
            cuts: (0..).step_by(tokens_each).take(lanes + 1).collect(),
            lanes: (0..).take(lanes).collect(),
            fresh: vec![false; lanes],
            positions: vec![2 * ATTENTION.window as i64; lanes],
            tokens: lanes * tokens_each,
        }
    }

    fn raw(&self) -> RawSegments<'_> {
        RawSegments { cuts: &self.cuts, lanes: &self.lanes, fresh: &self.fresh }
    }
}

type Group<'a> = BenchmarkGroup<'a, WallTime>;

fn bench_rg_lru(group: &mut Group<'_>, segments: &Segments<'_>, lanes: usize) {
    let n = segments.tokens() * RECURRENCE;
    let kernel = RgLru::new(&ramp(RECURRENCE));
    let (x, mut y, mut state) = (ramp(n), ramp(n), ramp(lanes * RECURRENCE));
    let inputs = RgLruInputs { x: &x, gate_a: &x, gate_x: &x };
    group.throughput(floats(4 * n + 2 * state.len() + RECURRENCE));
    group.bench_function("rg_lru", |bencher| {
        bencher.iter(|| kernel.run(segments, black_box(inputs), &mut state, &mut y, &Serial));
    });
}

fn bench_causal_conv1d(group: &mut Group<'_>, segments: &Segments<'_>, lanes: usize) {
    let n = segments.tokens() * RECURRENCE;
    let (weight, bias) = (ramp(TAPS * RECURRENCE), ramp(RECURRENCE));
    let conv = CausalConv1d { weight: &weight, bias: &bias };
    let (x, mut y, mut state) = (ramp(n), ramp(n), ramp(lanes * (TAPS - 1) * RECURRENCE));
    group.throughput(floats(2 * n + 2 * state.len() + weight.len() + bias.len()));
    group.bench_function("causal_conv1d", |bencher| {
        bencher.iter(|| causal_conv1d(&conv, segments, black_box(&x), &mut state, &mut y, &Serial));
    });
}

fn bench_local_attention(group: &mut Group<'_>, segments: &Segments<'_>, step: &Step) {
    let LocalAttentionDims { heads, head_dim, window, .. } = ATTENTION;
    let positions = segments.positions(&step.positions).expect("the positions hold together");
    let mut kernel = LocalAttention::new(ATTENTION);
    let (q, k) = (ramp(step.tokens * heads * head_dim), ramp(step.tokens * head_dim));
    let inputs = AttentionInputs { q: &q, k: &k, v: &k };
    let mut y = ramp(q.len());
    let mut keys = ramp(step.lanes.len() * (window + 1) * head_dim);
    let mut values = keys.clone();
    group.throughput(floats(2 * q.len() + 4 * k.len() + 2 * keys.len()));
    group.bench_function("local_attention", |bencher| {
        bencher.iter(|| {
            let rings = Rings { keys: &mut keys, values: &mut values };
            kernel.run(segments, &positions, black_box(inputs), rings, &mut y, &Serial);
        });
    });
}

fn bench_rms_norm(group: &mut Group<'_>, tokens: usize) {
    let (weight, x, mut y) = (ramp(WIDTH), ramp(tokens * WIDTH), ramp(tokens * WIDTH));
    group.throughput(floats(2 * x.len() + WIDTH));
    group.bench_function("rms_norm", |bencher| {
        bencher.iter(|| rms_norm(1e-6, &weight, black_box(&x), &mut y, &Serial));
    });
}

fn bench_block_diagonal(group: &mut Group<'_>, tokens: usize) {
    let (weight, bias) = (ramp(RECURRENCE * RECURRENCE / BLOCKS), ramp(RECURRENCE));
    let projection = BlockDiagonal { blocks: BLOCKS, weight: &weight, bias: &bias };
    let (x, mut y) = (ramp(tokens * RECURRENCE), ramp(tokens * RECURRENCE));
    group.throughput(floats(2 * x.len() + weight.len() + bias.len()));
    group.bench_function("block_diagonal", |bencher| {
        bencher.iter(|| block_diagonal(&projection, black_box(&x), &mut y, &Serial));
    });
}

fn floats(n: usize) -> Throughput {
    Throughput::Bytes((n * size_of::<f32>()) as u64)
}

/// Values between -1 and 1 that differ from neighbour to neighbour.
fn ramp(n: usize) -> Vec<f32> {
    (0u16..=250).cycle().take(n).map(|it| f32::from(it) / 125.0 - 1.0).collect()
}
