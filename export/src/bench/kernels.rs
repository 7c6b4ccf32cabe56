//! Products with packed weights at the extents of a preset, on one thread.

#[cfg(test)]
mod tests;

use std::{collections::BTreeSet, hint::black_box};

use aerie_models::{ModelConfig, Precision, census};
use aerie_ops::{
    Serial,
    matmul::{
        Activations, Format, MatMul, Order, Packing, Scratch, Then, Weights, matmul, packing::PANEL,
    },
};

use super::{
    Output, clock,
    limits::{self, Memory},
    progress,
    report::{Figures, Kernel, Limits, Machine, Report, Turn, Work},
};
use crate::onnx::packed;

/// Measures our products at the shapes of a preset, on one thread
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  aerie-export bench kernels --preset griffin-small-512
  aerie-export bench kernels --preset recurrentgemma-2b --rows 1,8,64 --rounds 9 --json kernels.json
  aerie-export bench plot kernels.json --out roofline.svg
GB/s counts weights alone. The limit is reading them or multiplying with them, whichever takes longer:
q8 and q4 weights are multiplied as bytes, bf16 ones in f32. Weights that take turns fill a quarter of
a gigabyte, so that none is in a cache when its turn comes.")]
pub(super) struct Args {
    /// Preset whose matrices are multiplied with
    #[arg(long, value_name = "PRESET")]
    preset: String,
    /// Rows of the inputs
    #[arg(long, value_name = "N", value_delimiter = ',',
        default_values_t = [1, 2, 4, 8, 16, 32, 64, 256], value_parser = super::steps::count())]
    rows: Vec<usize>,
    /// Rounds that medians are taken of
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = super::steps::count())]
    rounds: usize,
    #[command(flatten)]
    output: Output,
}

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let config = crate::emit::preset(&args.preset)?;
    let memory = Memory::new();
    let limits = limits::measure(&memory, 1);
    let products = products(&config);
    let bar = progress(products.len() * args.rounds);
    let mut kernels = Vec::new();
    for product in &products {
        bar.set_message(product.name.clone());
        let bench = Bench::new(product, &args.rows);
        kernels.extend(bench.run(&memory, &limits, args.rounds, &|| bar.inc(1)));
    }
    bar.finish_and_clear();
    let machine = Machine::here();
    args.output.write(&Report { machine, limits: Some(limits), kernels, ..Report::default() })
}

/// Matrices of a model that have the same extents.
#[derive(Clone, Debug, PartialEq)]
struct Product {
    name: String,
    groups: usize,
    inputs: usize,
    outputs: usize,
}

/// All extents that the products of `config` have.
fn products(config: &ModelConfig) -> Vec<Product> {
    let mut found: Vec<(Packing, BTreeSet<String>)> = Vec::new();
    for (path, spec) in census::parameters(config) {
        // The convolution's weight has two axes and is not multiplied with.
        let matrix = packed::packing(Format::Q8, &spec);
        let Some((packing, _)) = matrix.filter(|_| !path.as_str().contains(".conv")) else {
            continue;
        };
        let name = path.as_str().trim_end_matches("_weight").trim_end_matches(".weight");
        let name = name.rsplit('.').next().unwrap_or(name).to_owned();
        match found.iter_mut().find(|(it, _)| *it == packing) {
            Some((_, names)) => _ = names.insert(name),
            None => found.push((packing, BTreeSet::from([name]))),
        }
    }
    let product = |(packing, names): (Packing, BTreeSet<String>)| {
        let Packing { groups, inputs, outputs, .. } = packing;
        let name = names.into_iter().collect::<Vec<_>>().join(", ");
        Product { name, groups, inputs, outputs }
    };
    found.into_iter().map(product).collect()
}

/// Of the weights that take turns, at least.
const ROTATED_BYTES: usize = 1 << 28;
/// What a turn takes at least.
const TURN_SECONDS_MIN: f64 = 0.02;
/// Larger products than this take too long to be repeated.
const MULTIPLY_ADDS_MAX: usize = 1 << 36;

/// What one product needs in all formats.
struct Bench<'a> {
    product: &'a Product,
    rows: Vec<usize>,
    weights: Vec<Rotated>,
    x: Vec<f32>,
    y: Vec<f32>,
    scratch: Scratch,
}

/// Copies of packed weights, one of which is the next to be multiplied with.
struct Rotated {
    packing: Packing,
    bytes: Vec<u8>,
    /// Where the first copy begins, so that it is where a line of the caches is.
    start: usize,
    copies: usize,
    next: usize,
}

impl<'a> Bench<'a> {
    fn new(product: &'a Product, rows: &[usize]) -> Self {
        let Product { groups, inputs, outputs, .. } = *product;
        let fits = |&rows: &usize| {
            let work = [groups, inputs, outputs].into_iter().try_fold(rows, usize::checked_mul);
            work.is_some_and(|it| it <= MULTIPLY_ADDS_MAX)
        };
        let rows: Vec<usize> = rows.iter().copied().filter(fits).collect();
        let most = rows.iter().copied().max().unwrap_or_default();
        let packings = Format::ALL.map(|format| Packing { format, groups, inputs, outputs });
        Self {
            product,
            rows,
            weights: packings.map(Rotated::new).into(),
            x: (0..most * groups * inputs).map(|it| (it % 17) as f32 * 0.1 - 0.8).collect(),
            y: vec![0.0; most * groups * outputs],
            scratch: Scratch::default(),
        }
    }

    fn run(
        mut self,
        memory: &Memory,
        limits: &Limits,
        rounds: usize,
        done: &dyn Fn(),
    ) -> Vec<Kernel> {
        let (n_formats, rows) = (self.weights.len(), self.rows.clone());
        let mut turns = vec![vec![Vec::new(); rows.len()]; n_formats];
        for _ in 0..rounds {
            for (row, &rows) in rows.iter().enumerate() {
                for (format, turns) in turns.iter_mut().enumerate() {
                    let read_bytes_per_s = memory.read_bytes_per_s(1);
                    turns[row].push(Turn { seconds: self.turn(format, rows), read_bytes_per_s });
                }
            }
            done();
        }
        let mut kernels = Vec::new();
        for (weights, turns) in self.weights.iter().zip(turns) {
            let Packing { format, groups, inputs, outputs } = weights.packing;
            let format = name(format).to_owned();
            for (&rows, turns) in rows.iter().zip(turns) {
                let work = Work {
                    bytes: weights.copy_bytes() as u64,
                    multiply_adds: (rows * groups * inputs * outputs) as u64,
                };
                let limit = limits.multiply_adds_per_s(&format, 1);
                let (name, format) = (self.product.name.clone(), format.clone());
                let figures = Figures::new(work, limit, turns);
                kernels.push(Kernel { name, format, groups, inputs, outputs, rows, figures });
            }
        }
        kernels
    }

    /// Seconds of a product with `rows` rows, on average.
    fn turn(&mut self, format: usize, rows: usize) -> f64 {
        let Self { product, weights, x, y, scratch, .. } = self;
        let x = &x[..rows * product.groups * product.inputs];
        let y = &mut y[..rows * product.groups * product.outputs];
        let weights = &mut weights[format];
        let (mut done, mut total) = (0u32, 0.0);
        while total < TURN_SECONDS_MIN {
            let product = weights.turn();
            let ((), seconds) = clock::timed(|| matmul(&product, x, y, scratch, &Serial));
            black_box(&y);
            done += 1;
            total += seconds;
        }
        total / f64::from(done)
    }
}

impl Rotated {
    /// Weights of which one panel is packed and all others are copies: packing takes far longer.
    fn new(packing: Packing) -> Self {
        let weight: Vec<f32> = (0..packing.inputs * PANEL).map(|it| (it % 251) as f32).collect();
        let panel = Packing { groups: 1, outputs: PANEL, ..packing };
        let panel =
            panel.pack(&weight, Order::OutputsInputs, None).expect("small numbers can be held");
        let copy_bytes: usize = packing.shape().iter().product();
        let copies = ROTATED_BYTES.div_ceil(copy_bytes);
        let mut bytes: Vec<u8> = Vec::with_capacity(LINE_BYTES + copies * copy_bytes);
        let start = bytes.as_ptr().align_offset(LINE_BYTES).min(LINE_BYTES);
        bytes.resize(start, 0);
        while bytes.len() < start + copies * copy_bytes {
            bytes.extend_from_slice(&panel);
        }
        Self { packing, bytes, start, copies, next: 0 }
    }

    fn copy_bytes(&self) -> usize {
        self.packing.shape().iter().product()
    }

    fn turn(&mut self) -> MatMul<'_> {
        let at = self.start + self.next * self.copy_bytes();
        self.next = (self.next + 1) % self.copies;
        let packed = &self.bytes[at..][..self.packing.shape().iter().product()];
        let activations = match self.packing.format {
            Format::Bf16 => Activations::F32,
            Format::Q8 | Format::Q4 => Activations::I8,
        };
        let weights = Weights { packed, bias: None };
        MatMul { packing: self.packing, weights, then: Then::Nothing, activations }
    }
}

/// Bytes of a line of the caches.
const LINE_BYTES: usize = 64;

fn name(format: Format) -> &'static str {
    match format {
        Format::Bf16 => Precision::Bf16.name(),
        Format::Q8 => Precision::Q8.name(),
        Format::Q4 => Precision::Q4.name(),
    }
}
