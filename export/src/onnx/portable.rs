//! What `aerie-ops` has kernels for, composed of standard ONNX operators: one token of each of `B`
//! sessions, whose state comes in and goes out by value.
//!
//! Where f32 would lose what matters (angles of late positions, `1 - a²` as `a` nears 1, softplus
//! far below 0) the composition runs in f64; ONNX has neither expm1 nor log1p.

use std::borrow::Cow;

use aerie_models::AttentionDims;

use crate::onnx::{
    emitter::{Emitter, parent},
    graph::{Attribute, Edge, Op},
    proto::DataType,
};

/// RoPE's base.
const ROPE_BASE: f64 = 10_000.0;

/// `x / √(mean(x²) + epsilon) ⊙ (1 + weight)` for `x` `[B, D]`.
pub(crate) fn rms_norm(emitter: &Emitter, x: &Edge, weight: &Edge, epsilon: f32) -> Edge {
    let at = Place::of(emitter, weight.place());
    let square = at.op("Mul", &[x, x]);
    let mean = at.op("ReduceMean", &[&square, &emitter.i64s(&[-1])]);
    let root = at.op("Sqrt", &[&at.op("Add", &[&mean, &emitter.f32s(&[epsilon])])]);
    let gain = at.op("Add", &[weight, &emitter.f32s(&[1.0])]);
    at.op("Mul", &[&at.op("Div", &[x, &root]), &gain])
}

/// `K` products, one for each block of channels, for `x` `[B, R]` and `weight` `[K, R/K, R/K]`.
pub(crate) fn block_diagonal(emitter: &Emitter, x: &Edge, weight: &Edge, bias: &Edge) -> Edge {
    let at = Place::of(emitter, weight.place());
    let shape = at.op("Shape", &[weight]);
    let blocks = at.op("Slice", &[&shape, &emitter.i64s(&[0]), &emitter.i64s(&[2])]);
    let split = at.concat(0, &[&emitter.i64s(&[-1]), &blocks]); // [B, K, R/K]
    let rows = at.op("Unsqueeze", &[&at.op("Reshape", &[x, &split]), &emitter.i64s(&[2])]);
    let product = at.op("MatMul", &[&rows, weight]); // [B, K, 1, R/K]
    let width = at.op("Shape", &[bias]);
    let merge = at.concat(0, &[&emitter.i64s(&[-1]), &width]);
    at.op("Add", &[&at.op("Reshape", &[&product, &merge]), bias])
}

/// The window of the last `C` inputs against the taps, for `x` `[B, R]`, `state` `[B, C-1, R]`.
pub(crate) fn causal_conv1d(
    emitter: &Emitter,
    x: &Edge,
    weight: &Edge,
    bias: &Edge,
    state: &Edge,
) -> (Edge, Edge) {
    let at = Place::of(emitter, weight.place());
    let past = at.void_if_fresh(state, 3);
    let now = at.op("Unsqueeze", &[x, &emitter.i64s(&[1])]);
    let window = at.concat(1, &[&past, &now]);
    let products = at.op("Mul", &[&window, weight]);
    let no_axis = Op::standard("ReduceSum").with("keepdims", Attribute::Int(0));
    let sum = emitter.op(at.place, no_axis, &[&products, &emitter.i64s(&[1])]);
    let [first, end, axis] = [&[1], &[i64::MAX], &[1]].map(|it| emitter.i64s(it));
    let next = at.op("Slice", &[&window, &first, &end, &axis]);
    (at.op("Add", &[&sum, bias]), next)
}

/// Griffin eq. 1 to 4 (De et al. 2024, arXiv:2402.19427) for one token: `x` and `state` `[B, R]`.
pub(crate) fn rg_lru(
    emitter: &Emitter,
    x: &Edge,
    [gate_a, gate_x]: [&Edge; 2],
    p: &Edge,
    state: &Edge,
) -> (Edge, Edge) {
    let at = Place::of(emitter, parent(p.place()));
    let one = emitter.f64s(&[1.0]);
    // softplus(p) = max(p, 0) + ln(1 + exp(-|p|)), which does not overflow
    let p = at.f64(p);
    let tail = at.op("Exp", &[&at.op("Neg", &[&at.op("Abs", &[&p])])]);
    let tail = at.op("Log", &[&at.op("Add", &[&tail, &one])]);
    let softplus = at.op("Add", &[&at.op("Max", &[&p, &emitter.f64s(&[0.0])]), &tail]);
    let rate = at.op("Mul", &[&softplus, &emitter.f64s(&[-8.0])]);

    let log_a = at.op("Mul", &[&at.op("Sigmoid", &[&at.f64(gate_a)]), &rate]); // eq. 3
    let a = at.op("Exp", &[&log_a]);
    let square = at.op("Exp", &[&at.op("Mul", &[&log_a, &emitter.f64s(&[2.0])])]);
    let normaliser = at.op("Sqrt", &[&at.op("Sub", &[&one, &square])]);
    let fresh = at.fresh(2);
    let normaliser = at.op("Where", &[&fresh, &one, &normaliser]);

    let gated = at.op("Mul", &[&at.op("Sigmoid", &[&at.f64(gate_x)]), &at.f64(x)]);
    let input = at.op("Mul", &[&normaliser, &gated]);
    let past = at.f64(&at.void_if_fresh(state, 2));
    let h = at.op("Add", &[&at.op("Mul", &[&a, &past]), &input]); // eq. 4
    let h = emitter.cast(at.place, &h, DataType::F32);
    (h.clone(), h)
}

/// One query of each session over its ring: `q` `[B, H·d]`, rings `[B, W+1, d]`.
pub(crate) fn local_attention(
    emitter: &Emitter,
    dims: AttentionDims,
    [q, k, v]: [&Edge; 3],
    [keys, values]: [&Edge; 2],
) -> (Edge, [Edge; 2]) {
    let at = Place::of(emitter, parent(q.place()));
    let AttentionDims { heads, head_dim, window, .. } = dims;
    let ring = i64::from(window) + 1;
    let rows = emitter.i64s(&(0..ring).collect::<Vec<_>>());
    let position = at.op("Unsqueeze", &[&emitter.step.positions, &emitter.i64s(&[1])]);
    let angles = Angles::new(&at, dims, &position);

    let split = |x, n| at.op("Reshape", &[x, &emitter.i64s(&[-1, n, head_dim.into()])]);
    let q = angles.rotate(&at, &split(q, heads.into())); // [B, H, d]
    let k = angles.rotate(&at, &split(k, 1)); // [B, 1, d]
    let v = split(v, 1);

    let row = at.op("Mod", &[&position, &emitter.i64s(&[ring])]);
    let written = at.op("Unsqueeze", &[&at.op("Equal", &[&rows, &row]), &emitter.i64s(&[2])]);
    let write = |ring, new| at.op("Where", &[&written, new, &at.void_if_fresh(ring, 3)]);
    let (keys, values) = (write(keys, &k), write(values, &v));

    // Until the ring has gone round, rows past the position have not been written.
    let seen = at.op("LessOrEqual", &[&rows, &position]);
    let seen = at.op("Unsqueeze", &[&seen, &emitter.i64s(&[1])]); // [B, 1, W+1]
    let transposed = emitter.op(at.place, Op::standard("Transpose").with("perm", SWAP), &[&keys]);
    let scores = at.op("MatMul", &[&q, &transposed]); // [B, H, W+1]
    let scale = f64::from(head_dim).sqrt().recip();
    #[expect(clippy::cast_possible_truncation, reason = "a scale, rounded to f32")]
    let scores = at.op("Mul", &[&scores, &emitter.f32s(&[scale as f32])]);
    let scores = at.op("Where", &[&seen, &scores, &emitter.f32s(&[f32::MIN])]);
    let weights = at.op("Softmax", &[&scores]);
    let y = at.op("MatMul", &[&weights, &values]);
    let width = i64::from(heads) * i64::from(head_dim);
    (at.op("Reshape", &[&y, &emitter.i64s(&[-1, width])]), [keys, values])
}

/// Swaps the last two axes of three.
const SWAP: Attribute = Attribute::Ints(Cow::Borrowed(&[0, 2, 1]));

/// Sine and cosine of each session's position, `[B, 1, rotary/2]`.
struct Angles {
    sine: Edge,
    cosine: Edge,
    rotary_dims: i64,
}

impl Angles {
    /// Takes `position` `[B, 1]`; in f64, since f32 has lost whole turns by position 2²⁴.
    fn new(at: &Place<'_>, dims: AttentionDims, position: &Edge) -> Self {
        let rotary_dims = f64::from(dims.rotary_dims);
        let frequency = |j: u32| ROPE_BASE.powf(-2.0 * f64::from(j) / rotary_dims);
        let frequencies: Vec<f64> = (0..dims.rotary_dims / 2).map(frequency).collect();
        let angle = at.op("Mul", &[&at.f64(position), &at.emitter.f64s(&frequencies)]);
        let angle = at.op("Unsqueeze", &[&angle, &at.emitter.i64s(&[1])]);
        let f32 = |name| at.emitter.cast(at.place, &at.op(name, &[&angle]), DataType::F32);
        Self { sine: f32("Sin"), cosine: f32("Cos"), rotary_dims: dims.rotary_dims.into() }
    }

    /// Turns dimension `j` with `j + rotary/2` in the first `rotary` dimensions of `x` `[B, ·, d]`.
    fn rotate(&self, at: &Place<'_>, x: &Edge) -> Edge {
        let half = self.rotary_dims / 2;
        let cut = |from: i64, to: i64| {
            let [from, to, axis] = [from, to, 2].map(|it| at.emitter.i64s(&[it]));
            at.op("Slice", &[x, &from, &to, &axis])
        };
        let (a, b, rest) = (cut(0, half), cut(half, 2 * half), cut(2 * half, i64::MAX));
        let product = |x, turn| at.op("Mul", &[x, turn]);
        let turned_a = at.op("Sub", &[&product(&a, &self.cosine), &product(&b, &self.sine)]);
        let turned_b = at.op("Add", &[&product(&b, &self.cosine), &product(&a, &self.sine)]);
        at.concat(2, &[&turned_a, &turned_b, &rest])
    }
}

/// Where nodes are added.
struct Place<'a> {
    emitter: &'a Emitter,
    place: &'a str,
}

impl<'a> Place<'a> {
    fn of(emitter: &'a Emitter, place: &'a str) -> Self {
        Self { emitter, place }
    }

    fn op(&self, name: &'static str, inputs: &[&Edge]) -> Edge {
        self.emitter.standard(self.place, name, inputs)
    }

    fn concat(&self, axis: i64, parts: &[&Edge]) -> Edge {
        let op = Op::standard("Concat").with("axis", Attribute::Int(axis));
        self.emitter.op(self.place, op, parts)
    }

    fn f64(&self, x: &Edge) -> Edge {
        self.emitter.cast(self.place, x, DataType::F64)
    }

    /// `fresh`, with axes of extent 1 up to `axes`.
    fn fresh(&self, axes: i64) -> Edge {
        let added: Vec<i64> = (1..axes).collect();
        self.op("Unsqueeze", &[&self.emitter.step.fresh, &self.emitter.i64s(&added)])
    }

    /// `state`, zero where the session is fresh whatever the host left there, be it NaN.
    fn void_if_fresh(&self, state: &Edge, axes: i64) -> Edge {
        self.op("Where", &[&self.fresh(axes), &self.emitter.f32s(&[0.0]), state])
    }
}
