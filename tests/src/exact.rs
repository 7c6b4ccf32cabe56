//! The reading in f64: a whole session at once and from its first token on, by the equations alone.
//! It shares no arithmetic with the kernels, and keeps no state.

use std::{collections::BTreeMap, rc::Rc};

use aerie_models::{
    AttentionDims, Backend, Carry, ModelConfig, ParameterSpec, Path, decoder,
    layers::conv1d::CONV_WIDTH,
};
use aerie_ops::local_attention::LocalAttentionDims;

use crate::conformance::reference::{self, Turn};

/// The logits of every token of a session, `[T, V]`.
///
/// # Panics
/// If `parameters` are not those of `config`.
pub fn logits(
    config: &ModelConfig,
    parameters: &BTreeMap<String, Vec<f32>>,
    turn: Turn,
    tokens: &[i64],
) -> Vec<Vec<f64>> {
    let exact = Exact { parameters, turn };
    // Ids are far below 2^53, so that they are numbers like all others.
    let tokens = Tensor::new(tokens.iter().map(|&it| it as f64).collect(), 1);
    let none = Carry::layout(config).map(|_| Tensor::new(Vec::new(), 1));
    let (logits, _) = decoder::step(config, &exact, &tokens, &none);
    logits.rows().map(<[f64]>::to_vec).collect()
}

/// Rows of numbers.
#[derive(Clone, Debug)]
struct Tensor {
    data: Rc<Vec<f64>>,
    width: usize,
}

impl Tensor {
    fn new(data: Vec<f64>, width: usize) -> Self {
        Self { data: Rc::new(data), width }
    }

    fn rows(&self) -> impl Iterator<Item = &[f64]> {
        self.data.chunks_exact(self.width)
    }

    fn map(&self, f: impl Fn(f64) -> f64) -> Self {
        Self::new(self.data.iter().map(|&x| f(x)).collect(), self.width)
    }

    fn zip(&self, other: &Self, f: impl Fn(f64, f64) -> f64) -> Self {
        assert_eq!(self.data.len(), other.data.len(), "operands of one shape");
        Self::new(self.data.iter().zip(&*other.data).map(|(&a, &b)| f(a, b)).collect(), self.width)
    }
}

#[derive(Debug)]
struct Exact<'a> {
    parameters: &'a BTreeMap<String, Vec<f32>>,
    turn: Turn,
}

impl Backend for Exact<'_> {
    type Tensor = Tensor;

    fn parameter(&self, path: &Path, spec: ParameterSpec) -> Tensor {
        let found = self.parameters.get(path.as_str());
        let found = found.unwrap_or_else(|| panic!("no parameter {path}"));
        let width = *spec.shape.last().expect("parameters have an axis");
        let width = usize::try_from(width).expect("a row fits in memory");
        Tensor::new(found.iter().map(|&x| f64::from(x)).collect(), width)
    }

    #[expect(clippy::cast_possible_truncation, reason = "ids were whole numbers before")]
    fn gather(&self, table: &Tensor, tokens: &Tensor) -> Tensor {
        let row = |&token: &f64| &table.data[token as usize * table.width..][..table.width];
        Tensor::new(tokens.data.iter().flat_map(row).copied().collect(), table.width)
    }

    fn linear(&self, x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Tensor {
        let mut y = Vec::new();
        for x in x.rows() {
            for (out, weight) in weight.rows().enumerate() {
                let bias = bias.map_or(0.0, |bias| bias.data[out]);
                y.push(bias + x.iter().zip(weight).map(|(x, w)| x * w).sum::<f64>());
            }
        }
        Tensor::new(y, weight.data.len() / weight.width)
    }

    fn block_diagonal(&self, x: &Tensor, weight: &Tensor, bias: &Tensor) -> Tensor {
        let block = weight.width;
        let mut y = Vec::new();
        for x in x.rows() {
            for (channel, bias) in bias.data.iter().enumerate() {
                let (k, j) = (channel / block, channel % block);
                let product =
                    |i: usize| x[k * block + i] * weight.data[(k * block + i) * block + j];
                y.push(bias + (0..block).map(product).sum::<f64>());
            }
        }
        Tensor::new(y, x.width)
    }

    fn add(&self, a: &Tensor, b: &Tensor) -> Tensor {
        a.zip(b, |a, b| a + b)
    }

    fn mul(&self, a: &Tensor, b: &Tensor) -> Tensor {
        a.zip(b, |a, b| a * b)
    }

    fn scale(&self, x: &Tensor, factor: f32) -> Tensor {
        x.map(|x| f64::from(factor) * x)
    }

    fn gelu(&self, x: &Tensor) -> Tensor {
        let inner = |x: f64| (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3));
        x.map(|x| 0.5 * x * (1.0 + inner(x).tanh()))
    }

    fn tanh(&self, x: &Tensor) -> Tensor {
        x.map(f64::tanh)
    }

    fn rms_norm(&self, x: &Tensor, weight: &Tensor, epsilon: f32) -> Tensor {
        let normed = x.rows().flat_map(|row| {
            let square = row.iter().map(|x| x * x).sum::<f64>() / row.len() as f64;
            let root = (square + f64::from(epsilon)).sqrt();
            row.iter().zip(&*weight.data).map(move |(x, w)| x / root * (1.0 + w))
        });
        Tensor::new(normed.collect(), x.width)
    }

    /// All rows: every token is asked for its logits.
    fn last_rows(&self, x: &Tensor) -> Tensor {
        x.clone()
    }

    fn causal_conv1d(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        state: &Tensor,
    ) -> (Tensor, Tensor) {
        let taps = CONV_WIDTH as usize;
        let y = reference::causal_conv1d(taps, x.width, &weight.data, &bias.data, &x.data);
        (Tensor::new(y, x.width), state.clone())
    }

    fn rg_lru(
        &self,
        x: &Tensor,
        gate_a: &Tensor,
        gate_x: &Tensor,
        p: &Tensor,
        state: &Tensor,
    ) -> (Tensor, Tensor) {
        let inputs = [x, gate_a, gate_x].map(|it| it.data.to_vec());
        (Tensor::new(reference::rg_lru(&p.data, &inputs), x.width), state.clone())
    }

    fn local_attention(
        &self,
        dims: AttentionDims,
        qkv: [&Tensor; 3],
        keys: &Tensor,
        values: &Tensor,
    ) -> (Tensor, [Tensor; 2]) {
        let inputs = qkv.map(|it| it.data.to_vec());
        let dims = LocalAttentionDims {
            heads: dims.heads as usize,
            head_dim: dims.head_dim as usize,
            window: dims.window as usize,
            rotary_dims: dims.rotary_dims as usize,
        };
        let y = reference::local_attention(dims, self.turn, &inputs);
        (Tensor::new(y, qkv[0].width), [keys.clone(), values.clone()])
    }
}
