//! Products with packed weights at a shape of RecurrentGemma 2B, on one thread: bytes per second of
//! weights for one row, multiply-adds per second for many, beside what this machine reads from memory
//! in the same run.

use std::hint::black_box;

use aerie_ops::{
    Serial,
    matmul::{Activations, Format, MatMul, Order, Packing, Scratch, Then, Weights, matmul},
};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

/// `D`
const INPUTS: usize = 2560;
/// `E`
const OUTPUTS: usize = 7680;
/// Of the weights that take turns: more than any cache holds.
const ROTATED_BYTES: usize = 1 << 29;

criterion_group!(benches, memory, products);
criterion_main!(benches);

fn memory(criterion: &mut Criterion) {
    let buffer = vec![1u64; ROTATED_BYTES / size_of::<u64>()];
    let mut group = criterion.benchmark_group("memory");
    group.throughput(Throughput::Bytes(ROTATED_BYTES as u64)).sample_size(10);
    group.bench_function("read", |bencher| {
        bencher.iter(|| black_box(&buffer).iter().fold(0u64, |sum, &it| sum.wrapping_add(it)));
    });
    group.finish();
}

fn products(criterion: &mut Criterion) {
    for (name, format, activations) in [
        ("q4", Format::Q4, Activations::I8),
        ("q8", Format::Q8, Activations::I8),
        ("bf16", Format::Bf16, Activations::F32),
    ] {
        let packing = Packing { format, groups: 1, inputs: INPUTS, outputs: OUTPUTS };
        let weight: Vec<f32> = (0..INPUTS * OUTPUTS).map(|i| (i % 251) as f32 - 125.0).collect();
        let packed = packing.pack(&weight, Order::OutputsInputs, None).expect("weights are small");
        let copies = vec![packed; ROTATED_BYTES.div_ceil(packing.shape().iter().product())];
        let mut group = criterion.benchmark_group(name);
        group.sample_size(20);
        let mut scratch = Scratch::default();
        for rows in [1, 2, 4, 8, 16, 64, 256] {
            let x: Vec<f32> = (0..rows * INPUTS).map(|i| (i % 17) as f32 * 0.1 - 0.8).collect();
            let mut y = vec![0.0; rows * OUTPUTS];
            group.throughput(if rows == 1 {
                Throughput::Bytes(copies[0].len() as u64)
            } else {
                Throughput::Elements((rows * INPUTS * OUTPUTS) as u64)
            });
            let mut turn = 0;
            group.bench_function(format!("{rows}"), |bencher| {
                bencher.iter(|| {
                    turn = (turn + 1) % copies.len();
                    let weights = Weights { packed: &copies[turn], bias: None };
                    let product = MatMul { packing, weights, then: Then::Nothing, activations };
                    matmul(&product, &x, &mut y, &mut scratch, &Serial);
                });
            });
        }
        group.finish();
    }
}
