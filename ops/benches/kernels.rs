//! The kernels at the extents of the bundled model and of RecurrentGemma 2B, on one thread, beside
//! what this machine reads from memory and multiplies in the same run. Bytes are those of inputs,
//! outputs, weights and named state rows; elements are multiply-adds.

use std::hint::black_box;

use aerie_ops::{
    Serial,
    block_diagonal::{BlockDiagonal, block_diagonal},
    causal_conv1d::{CausalConv1d, causal_conv1d},
    limits::{Arithmetic, Chains},
    local_attention::{AttentionInputs, LocalAttention, LocalAttentionDims, Rings},
    rg_lru::{RgLru, RgLruInputs},
    rms_norm::rms_norm,
    segments::{RawSegments, Segments, SegmentsReader},
};
use criterion::{
    BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main, measurement::WallTime,
};

/// Extents of a model.
struct Model {
    name: &'static str,
    /// `D`: width of the residual stream.
    width: usize,
    /// `R`: width of the recurrence.
    recurrence: usize,
    /// `K`: blocks of the gates' projection.
    blocks: usize,
    attention: LocalAttentionDims,
}

const MODELS: [Model; 2] = [
    Model {
        name: "bundled",
        width: 192,
        recurrence: 256,
        blocks: 8,
        attention: LocalAttentionDims { heads: 3, head_dim: 64, window: 256, rotary_dims: 32 },
    },
    Model {
        name: "2b",
        width: 2560,
        recurrence: 2560,
        blocks: 10,
        attention: LocalAttentionDims { heads: 10, head_dim: 256, window: 2048, rotary_dims: 128 },
    },
];
/// `C`: taps of the convolution.
const TAPS: usize = 4;
/// Of the buffer that is read: far more than any cache holds.
const READ_BYTES: usize = 1 << 28;
/// Of multiply-adds in registers.
const ROUNDS: usize = 1 << 16;

criterion_group!(benches, machine, kernels, chunks);
criterion_main!(benches);

fn machine(criterion: &mut Criterion) {
    let buffer = vec![1u64; READ_BYTES / size_of::<u64>()];
    let mut group = criterion.benchmark_group("machine");
    group.throughput(Throughput::Bytes(READ_BYTES as u64)).sample_size(10);
    group.bench_function("read", |bencher| {
        bencher.iter(|| black_box(&buffer).iter().fold(0u64, |sum, &it| sum.wrapping_add(it)));
    });
    let multiply_adds = || Arithmetic::F32.multiply_adds(Chains::Many, ROUNDS);
    group.throughput(Throughput::Elements(multiply_adds().expect("every machine has floats")));
    group.bench_function("multiply_add", |bencher| bencher.iter(multiply_adds));
    group.finish();
}

fn kernels(criterion: &mut Criterion) {
    for model in &MODELS {
        for (name, lanes, tokens) in
            [("decode_1", 1, 1), ("decode_8", 8, 1), ("decode_32", 32, 1), ("chunk_512", 1, 512)]
        {
            let step = Step::new(lanes, tokens, 2 * model.attention.window);
            let mut group = criterion.benchmark_group(format!("{}_{name}", model.name));
            let mut reader = SegmentsReader::default();
            let segments = step.segments(&mut reader);
            bench_rg_lru(&mut group, model, &segments);
            bench_causal_conv1d(&mut group, model, &segments);
            if tokens == 1 {
                bench_local_attention(&mut group, "local_attention", model, &step);
            }
            bench_rms_norm(&mut group, model, step.tokens);
            bench_block_diagonal(&mut group, model, step.tokens);
            group.finish();
        }
    }
}

/// Attention of a chunk of prompt, with nothing, half a window and more than a window before it.
fn chunks(criterion: &mut Criterion) {
    for model in &MODELS {
        let mut group = criterion.benchmark_group(format!("{}_local_attention", model.name));
        group.sample_size(10);
        let window = model.attention.window;
        for tokens in [64, 512] {
            for (name, before) in [("empty", 0), ("half", window / 2), ("full", 2 * window)] {
                let step = Step::new(1, tokens, before);
                bench_local_attention(&mut group, &format!("chunk_{tokens}_{name}"), model, &step);
            }
        }
        group.finish();
    }
}

/// A step in which every lane advances by as many tokens.
struct Step {
    cuts: Vec<i32>,
    lanes: Vec<i32>,
    fresh: Vec<bool>,
    positions: Vec<i64>,
    /// `N`.
    tokens: usize,
    /// Tokens that every lane had before.
    before: usize,
}

impl Step {
    fn new(lanes: usize, tokens_each: usize, before: usize) -> Self {
        Self {
            cuts: (0..).step_by(tokens_each).take(lanes + 1).collect(),
            lanes: (0..).take(lanes).collect(),
            fresh: vec![false; lanes],
            positions: vec![before as i64; lanes],
            tokens: lanes * tokens_each,
            before,
        }
    }

    fn segments<'a>(&'a self, reader: &mut SegmentsReader) -> Segments<'a> {
        let raw = RawSegments { cuts: &self.cuts, lanes: &self.lanes, fresh: &self.fresh };
        reader.read(raw, self.tokens, self.lanes.len()).expect("the step holds together")
    }

    /// Keys that all queries see together.
    fn seen(&self, window: usize) -> usize {
        let each = self.tokens / self.lanes.len();
        let seen = (0..each).map(|token| window.min(self.before + token) + 1);
        self.lanes.len() * seen.sum::<usize>()
    }
}

type Group<'a> = BenchmarkGroup<'a, WallTime>;

fn bench_rg_lru(group: &mut Group<'_>, model: &Model, segments: &Segments<'_>) {
    let width = model.recurrence;
    let n = segments.tokens() * width;
    let kernel = RgLru::new(&ramp(width));
    let (x, mut y, mut state) = (ramp(n), ramp(n), ramp(segments.lanes_extent() * width));
    let (gate_a, gate_x) = (x.clone(), x.clone());
    let inputs = RgLruInputs { x: &x, gate_a: &gate_a, gate_x: &gate_x, times: None };
    group.throughput(floats(4 * n + 2 * state.len() + width));
    group.bench_function("rg_lru", |bencher| {
        bencher.iter(|| kernel.run(segments, black_box(inputs), &mut state, &mut y, &Serial));
    });
}

fn bench_causal_conv1d(group: &mut Group<'_>, model: &Model, segments: &Segments<'_>) {
    let width = model.recurrence;
    let n = segments.tokens() * width;
    let (weight, bias) = (ramp(TAPS * width), ramp(width));
    let conv = CausalConv1d { weight: &weight, bias: &bias };
    let mut state = ramp(segments.lanes_extent() * (TAPS - 1) * width);
    let (x, mut y) = (ramp(n), ramp(n));
    group.throughput(floats(2 * n + 2 * state.len() + weight.len() + bias.len()));
    group.bench_function("causal_conv1d", |bencher| {
        bencher.iter(|| causal_conv1d(&conv, segments, black_box(&x), &mut state, &mut y, &Serial));
    });
}

fn bench_local_attention(group: &mut Group<'_>, name: &str, model: &Model, step: &Step) {
    let LocalAttentionDims { heads, head_dim, window, .. } = model.attention;
    let mut reader = SegmentsReader::default();
    let segments = step.segments(&mut reader);
    let positions = segments.positions(&step.positions).expect("the positions hold together");
    let mut kernel = LocalAttention::new(model.attention);
    let (q, k) = (ramp(step.tokens * heads * head_dim), ramp(step.tokens * head_dim));
    let inputs = AttentionInputs { q: &q, k: &k, v: &k };
    let mut y = ramp(q.len());
    let mut keys = ramp(step.lanes.len() * (window + 1) * head_dim);
    let mut values = keys.clone();
    if step.tokens == step.lanes.len() {
        group.throughput(floats(2 * q.len() + 4 * k.len() + 2 * keys.len()));
    } else {
        let products = 2 * step.seen(window) * heads * head_dim;
        group.throughput(Throughput::Elements(products as u64));
    }
    group.bench_function(name, |bencher| {
        bencher.iter(|| {
            let rings = Rings { keys: &mut keys, values: &mut values };
            kernel.run(&segments, &positions, black_box(inputs), rings, &mut y, &Serial);
        });
    });
}

fn bench_rms_norm(group: &mut Group<'_>, model: &Model, tokens: usize) {
    let width = model.width;
    let (weight, x, mut y) = (ramp(width), ramp(tokens * width), ramp(tokens * width));
    group.throughput(floats(2 * x.len() + width));
    group.bench_function("rms_norm", |bencher| {
        bencher.iter(|| rms_norm(1e-6, &weight, black_box(&x), &mut y, &Serial));
    });
}

fn bench_block_diagonal(group: &mut Group<'_>, model: &Model, tokens: usize) {
    let &Model { recurrence, blocks, .. } = model;
    let (weight, bias) = (ramp(recurrence * recurrence / blocks), ramp(recurrence));
    let projection = BlockDiagonal { blocks, weight: &weight, bias: &bias };
    let (x, mut y) = (ramp(tokens * recurrence), ramp(tokens * recurrence));
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
