//! The reading that computes at once, on plain buffers through the CPU kernels: reference answers for
//! whole models without any native library.

use std::{cell::RefCell, collections::BTreeMap, fmt, rc::Rc};

use aerie_models::{
    AttentionDims, Backend, Carry, Init, ModelConfig, ParameterSpec, Path, TensorSpec, decoder,
};
use aerie_ops::{
    Serial,
    block_diagonal::{BlockDiagonal, block_diagonal},
    causal_conv1d::{CausalConv1d, causal_conv1d},
    local_attention::{AttentionInputs, LocalAttention, LocalAttentionDims, Rings},
    rg_lru::{RgLru, RgLruInputs},
    rms_norm::rms_norm,
    segments::{RawSegments, Segments, SegmentsReader},
};

use crate::random::Random;

/// A model with its parameters.
#[derive(Debug)]
pub struct Model {
    config: ModelConfig,
    parameters: Parameters,
}

/// A ragged step: what a graph gets beside its tokens.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Step {
    pub cuts: Vec<i32>,
    pub lanes: Vec<i32>,
    pub positions: Vec<i64>,
    pub fresh: Vec<bool>,
}

/// A buffer of the eager reading.
#[derive(Clone)]
pub enum Tensor {
    F32 { data: Rc<Vec<f32>>, width: usize },
    Tokens(Rc<Vec<i64>>),
}

/// State of all lanes, between steps.
pub type Arena = Carry<Tensor>;

impl Model {
    /// A model with random parameters; biases and norms are moved off their zeros, so that a
    /// forgotten one shows.
    pub fn random(config: ModelConfig, seed: u64) -> Self {
        Self { config, parameters: Parameters { seed: Some(seed), found: RefCell::default() } }
    }

    /// A model with the parameters of a checkpoint, by their places in the walk.
    pub fn with_parameters(config: ModelConfig, found: BTreeMap<String, Vec<f32>>) -> Self {
        let found = found.into_iter().map(|(path, data)| (path, Rc::new(data))).collect();
        Self { config, parameters: Parameters { seed: None, found: RefCell::new(found) } }
    }

    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// An arena of zeroed lanes.
    pub fn arena(&self, lanes: usize) -> Arena {
        self.arena_of(lanes, |_| 0.0)
    }

    /// An arena filled by `element`, which is told the place of the tensor.
    pub fn arena_of(&self, lanes: usize, element: impl Fn(&TensorSpec) -> f32) -> Arena {
        Carry::layout(&self.config).map(|spec| {
            let row = usize::try_from(spec.elements()).expect("a session's state fits in memory");
            Tensor::new(vec![element(spec); lanes * row], row)
        })
    }

    /// Runs a step over `arena`; returns the logits of each segment's last token, `[B, V]`.
    ///
    /// # Panics
    /// If the step does not hold together.
    pub fn step(&self, step: &Step, tokens: &[i64], arena: &mut Arena) -> Vec<f32> {
        let lanes = arena.fields().next().expect("a model has a block").rows();
        let eager = Eager { parameters: &self.parameters, step, tokens: tokens.len(), lanes };
        let tokens = Tensor::Tokens(Rc::new(tokens.to_vec()));
        let (logits, next) = decoder::step(&self.config, &eager, &tokens, arena);
        *arena = next;
        logits.data().to_vec()
    }
}

/// What a session has in `lane`.
pub fn lane(arena: &Arena, lane: usize) -> Carry<Vec<f32>> {
    arena.map(|field| field.data()[lane * field.width()..][..field.width()].to_vec())
}

/// Puts a session into `lane`.
///
/// # Panics
/// If its fields are not those of the arena.
pub fn set_lane(arena: &mut Arena, lane: usize, session: &Carry<Vec<f32>>) {
    let mut rows = session.fields();
    *arena = arena.map(|field| {
        let (mut data, width) = (field.data().to_vec(), field.width());
        data[lane * width..][..width].copy_from_slice(rows.next().expect("a row for each field"));
        Tensor::new(data, width)
    });
}

impl Step {
    /// Appends a segment of `tokens` tokens.
    pub fn push(&mut self, tokens: usize, lane: usize, position: usize) {
        let end = self.cuts.last().copied().unwrap_or(0);
        if self.cuts.is_empty() {
            self.cuts.push(0);
        }
        self.cuts.push(end + i32::try_from(tokens).expect("tokens of a test"));
        self.lanes.push(i32::try_from(lane).expect("lanes of a test"));
        self.positions.push(i64::try_from(position).expect("positions of a test"));
        self.fresh.push(position == 0);
    }

    /// A step of one segment.
    pub fn one(tokens: usize, lane: usize, position: usize) -> Self {
        let mut step = Self::default();
        step.push(tokens, lane, position);
        step
    }
}

impl Tensor {
    fn new(data: Vec<f32>, width: usize) -> Self {
        assert!(data.len().is_multiple_of(width), "a buffer of whole rows");
        Self::F32 { data: Rc::new(data), width }
    }

    /// The elements, row after row.
    ///
    /// # Panics
    /// If these are tokens.
    pub fn data(&self) -> &[f32] {
        match self {
            Self::F32 { data, .. } => data,
            Self::Tokens(_) => panic!("tokens where activations are expected"),
        }
    }

    fn width(&self) -> usize {
        match self {
            Self::F32 { width, .. } => *width,
            Self::Tokens(_) => 1,
        }
    }

    fn rows(&self) -> usize {
        self.data().len() / self.width()
    }

    fn map(&self, f: impl Fn(f32) -> f32) -> Self {
        Self::new(self.data().iter().map(|&x| f(x)).collect(), self.width())
    }

    fn zip(&self, other: &Self, f: impl Fn(f32, f32) -> f32) -> Self {
        assert_eq!(self.data().len(), other.data().len(), "operands of one shape");
        let data = self.data().iter().zip(other.data()).map(|(&a, &b)| f(a, b)).collect();
        Self::new(data, self.width())
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::F32 { data, width } => write!(f, "[{}, {width}]", data.len() / width),
            Self::Tokens(tokens) => write!(f, "{} tokens", tokens.len()),
        }
    }
}

/// Parameters by path.
#[derive(Debug)]
struct Parameters {
    /// Of those that are not found; none if all must be there.
    seed: Option<u64>,
    found: RefCell<BTreeMap<String, Rc<Vec<f32>>>>,
}

impl Parameters {
    fn at(&self, path: &Path, spec: &ParameterSpec) -> Rc<Vec<f32>> {
        let len = spec.shape.iter().product::<u64>();
        let len = usize::try_from(len).expect("a parameter fits in memory");
        let mut found = self.found.borrow_mut();
        let data = found.entry(path.as_str().to_owned()).or_insert_with(|| {
            let seed = self.seed.unwrap_or_else(|| panic!("no parameter {path}"));
            Rc::new(random_parameter(seed, path, spec, len))
        });
        assert_eq!(data.len(), len, "{path} is {:?}", spec.shape);
        Rc::clone(data)
    }
}

/// The same numbers whatever the order of the walk.
#[expect(clippy::cast_possible_truncation, reason = "parameters are f32")]
fn random_parameter(seed: u64, path: &Path, spec: &ParameterSpec, len: usize) -> Vec<f32> {
    // FNV-1a, to tell paths apart.
    let mix = |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3);
    let hash = path.as_str().bytes().fold(0xCBF2_9CE4_8422_2325 ^ seed, mix);
    let mut random = Random::new(hash);
    let between = |random: &mut Random, low: f64, high: f64| low + (high - low) * random.unit();
    match spec.init {
        Init::Zeros => random.normals(len, 0.1),
        Init::Constant(value) => {
            random.normals(len, 0.1).iter().map(|it| value as f32 + it).collect()
        }
        Init::Normal { std } => random.normals(len, std as f32),
        Init::RgLruCode { rho_min, rho_max } => {
            let rho =
                |random: &mut Random| between(random, rho_min.powi(2), rho_max.powi(2)).sqrt();
            (0..len).map(|_| (rho(&mut random).recip() - 1.0).ln() as f32).collect()
        }
        Init::RgLruPaper { a_min, a_max } => {
            let rho = |random: &mut Random| between(random, a_min, a_max).powf(0.125);
            (0..len).map(|_| (rho(&mut random).recip() - 1.0).ln() as f32).collect()
        }
    }
}

/// One step of the eager reading.
#[derive(Debug)]
struct Eager<'a> {
    parameters: &'a Parameters,
    step: &'a Step,
    tokens: usize,
    lanes: usize,
}

impl Eager<'_> {
    fn segments(&self) -> Segments<'_> {
        let Step { cuts, lanes, fresh, .. } = self.step;
        SegmentsReader::default()
            .read(RawSegments { cuts, lanes, fresh }, self.tokens, self.lanes)
            .unwrap_or_else(|e| panic!("{e}"))
    }
}

impl Backend for Eager<'_> {
    type Tensor = Tensor;

    fn parameter(&self, path: &Path, spec: ParameterSpec) -> Tensor {
        let width = *spec.shape.last().expect("parameters have an axis");
        let width = usize::try_from(width).expect("a row fits in memory");
        Tensor::F32 { data: self.parameters.at(path, &spec), width }
    }

    fn gather(&self, table: &Tensor, tokens: &Tensor) -> Tensor {
        let Tensor::Tokens(tokens) = tokens else { panic!("rows are chosen by tokens") };
        let width = table.width();
        let row = |&token: &i64| {
            let token = usize::try_from(token).expect("tokens are not negative");
            &table.data()[token * width..][..width]
        };
        Tensor::new(tokens.iter().flat_map(row).copied().collect(), width)
    }

    /// Sums in f64: a reference need not be fast.
    #[expect(clippy::cast_possible_truncation, reason = "rounded once, from f64")]
    fn linear(&self, x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Tensor {
        let (inputs, outputs) = (x.width(), weight.rows());
        assert_eq!(weight.width(), inputs, "weight is [out, in]");
        let mut y = Vec::with_capacity(x.rows() * outputs);
        for x in x.data().chunks_exact(inputs) {
            for (out, weight) in weight.data().chunks_exact(inputs).enumerate() {
                let products = x.iter().zip(weight).map(|(&x, &w)| f64::from(x) * f64::from(w));
                let bias = bias.map_or(0.0, |bias| f64::from(bias.data()[out]));
                y.push((products.sum::<f64>() + bias) as f32);
            }
        }
        Tensor::new(y, outputs)
    }

    fn block_diagonal(&self, x: &Tensor, weight: &Tensor, bias: &Tensor) -> Tensor {
        let projection = BlockDiagonal {
            blocks: x.width() / weight.width(),
            weight: weight.data(),
            bias: bias.data(),
        };
        let mut y = vec![0.0; x.data().len()];
        block_diagonal(&projection, x.data(), &mut y, &Serial);
        Tensor::new(y, x.width())
    }

    fn add(&self, a: &Tensor, b: &Tensor) -> Tensor {
        a.zip(b, |a, b| a + b)
    }

    fn mul(&self, a: &Tensor, b: &Tensor) -> Tensor {
        a.zip(b, |a, b| a * b)
    }

    fn scale(&self, x: &Tensor, factor: f32) -> Tensor {
        x.map(|x| factor * x)
    }

    fn gelu(&self, x: &Tensor) -> Tensor {
        const SQRT_2_OVER_PI: f32 = 0.797_884_6;
        x.map(|x| 0.5 * x * (1.0 + (SQRT_2_OVER_PI * (x + 0.044_715 * x * x * x)).tanh()))
    }

    fn tanh(&self, x: &Tensor) -> Tensor {
        x.map(f32::tanh)
    }

    fn rms_norm(&self, x: &Tensor, weight: &Tensor, epsilon: f32) -> Tensor {
        let mut y = vec![0.0; x.data().len()];
        rms_norm(epsilon, weight.data(), x.data(), &mut y, &Serial);
        Tensor::new(y, x.width())
    }

    fn last_rows(&self, x: &Tensor) -> Tensor {
        let (segments, width) = (self.segments(), x.width());
        let last = |segment| {
            let row = segments.range(segment).end - 1;
            &x.data()[row * width..][..width]
        };
        Tensor::new((0..segments.count()).flat_map(last).copied().collect(), width)
    }

    fn causal_conv1d(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        state: &Tensor,
    ) -> (Tensor, Tensor) {
        let conv = CausalConv1d { weight: weight.data(), bias: bias.data() };
        let (mut next, mut y) = (state.data().to_vec(), vec![0.0; x.data().len()]);
        causal_conv1d(&conv, &self.segments(), x.data(), &mut next, &mut y, &Serial);
        (Tensor::new(y, x.width()), Tensor::new(next, state.width()))
    }

    fn rg_lru(
        &self,
        x: &Tensor,
        gate_a: &Tensor,
        gate_x: &Tensor,
        p: &Tensor,
        state: &Tensor,
    ) -> (Tensor, Tensor) {
        let inputs =
            RgLruInputs { x: x.data(), gate_a: gate_a.data(), gate_x: gate_x.data(), times: None };
        let (mut next, mut y) = (state.data().to_vec(), vec![0.0; x.data().len()]);
        RgLru::new(p.data()).run(&self.segments(), inputs, &mut next, &mut y, &Serial);
        (Tensor::new(y, x.width()), Tensor::new(next, state.width()))
    }

    fn local_attention(
        &self,
        dims: AttentionDims,
        [q, k, v]: [&Tensor; 3],
        keys: &Tensor,
        values: &Tensor,
    ) -> (Tensor, [Tensor; 2]) {
        let mut attention = LocalAttention::new(LocalAttentionDims {
            heads: dims.heads as usize,
            head_dim: dims.head_dim as usize,
            window: dims.window as usize,
            rotary_dims: dims.rotary_dims as usize,
        });
        let segments = self.segments();
        let positions = segments.positions(&self.step.positions).unwrap_or_else(|e| panic!("{e}"));
        let inputs = AttentionInputs { q: q.data(), k: k.data(), v: v.data() };
        let (mut next_keys, mut next_values) = (keys.data().to_vec(), values.data().to_vec());
        let rings = Rings { keys: &mut next_keys, values: &mut next_values };
        let mut y = vec![0.0; q.data().len()];
        attention.run(&segments, &positions, inputs, rings, &mut y, &Serial);
        let next = [Tensor::new(next_keys, keys.width()), Tensor::new(next_values, values.width())];
        (Tensor::new(y, q.width()), next)
    }
}
