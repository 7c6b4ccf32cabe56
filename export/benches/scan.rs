//! Time per token of the fused training scan by the length of the sequence, forward and backward, at
//! the width of the bundled model. Linear in the length is a time per token that does not grow.

use aerie_export::torch::shim::{self, Cut};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use tch::{Device, Kind, Tensor};

/// `R`: width of the recurrence.
const RECURRENCE: i64 = 256;
const LENGTHS: [i64; 6] = [512, 1024, 2048, 4096, 8192, 16384];

criterion_group!(benches, scan);
criterion_main!(benches);

fn scan(criterion: &mut Criterion) {
    tch::set_num_threads(1);
    let mut group = criterion.benchmark_group("scan");
    group.sample_size(20);
    for length in LENGTHS {
        let inputs = Inputs::new(length);
        group.throughput(Throughput::Elements(length.unsigned_abs()));
        group.bench_function(BenchmarkId::from_parameter(length), |bencher| {
            bencher.iter(|| inputs.forward_backward());
        });
    }
    group.finish();
}

/// One session of one segment.
struct Inputs {
    /// `[N, R]`: the input and the pre-activations of its two gates.
    rows: [Tensor; 3],
    /// `[R]`
    p: Tensor,
    /// `[1, R]`
    h0: Tensor,
    cut: Cut,
}

impl Inputs {
    fn new(length: i64) -> Self {
        let draw = |shape: &[i64]| {
            Tensor::randn(shape, (Kind::Float, Device::Cpu)).set_requires_grad(true)
        };
        Self {
            rows: [(); 3].map(|()| draw(&[length, RECURRENCE])),
            p: draw(&[RECURRENCE]),
            h0: Tensor::zeros([1, RECURRENCE], (Kind::Float, Device::Cpu)),
            cut: Cut::new(&[0, length], &[true], Device::Cpu),
        }
    }

    fn forward_backward(&self) -> Vec<Tensor> {
        let [x, gate_a, gate_x] = &self.rows;
        let h = shim::rg_lru(x, [gate_a, gate_x], &self.p, &self.h0, &self.cut);
        let loss = h.sum(Kind::Float);
        Tensor::run_backward(&[loss], &[x, gate_a, gate_x, &self.p], false, false)
    }
}
