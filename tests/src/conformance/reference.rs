//! The equations of the schemas in f64, for one whole session at a time: as short as they can be said
//! and written without a look at the kernels.

use std::iter;

use aerie_ops::local_attention::LocalAttentionDims;

use super::{Problem, Session};

/// How queries and keys are turned.
#[derive(Clone, Copy, Debug)]
pub struct Turn {
    /// Position of the session's first token.
    pub start: u64,
    /// The angle of a position, for dimensions of the frequency `10000^exponent`.
    pub angle: fn(u64, f64) -> f64,
}

impl Default for Turn {
    /// A session from position 0, its angles in f64.
    fn default() -> Self {
        Self { start: 0, angle: |position, exponent| position as f64 * 10_000f64.powf(exponent) }
    }
}

/// The rows of `y` for a session from its first token on.
pub fn outputs(problem: &Problem, session: &Session) -> Vec<f64> {
    let inputs: Vec<Vec<f64>> = session.inputs.iter().map(|it| doubles(it)).collect();
    match problem {
        Problem::CausalConv1d { taps, width, weight, bias } => {
            causal_conv1d(*taps, *width, &doubles(weight), &doubles(bias), &inputs[0])
        }
        Problem::RgLru { p, .. } => rg_lru(&doubles(p), &inputs),
        Problem::LocalAttention { dims } => local_attention(*dims, Turn::default(), &inputs),
    }
}

pub(crate) fn causal_conv1d(
    taps: usize,
    width: usize,
    weight: &[f64],
    bias: &[f64],
    x: &[f64],
) -> Vec<f64> {
    let mut y = Vec::with_capacity(x.len());
    for t in 0..x.len() / width {
        for channel in 0..width {
            let lags = (0..taps).filter(|&lag| lag <= t);
            let product = |lag: usize| {
                weight[(taps - 1 - lag) * width + channel] * x[(t - lag) * width + channel]
            };
            y.push(bias[channel] + lags.map(product).sum::<f64>());
        }
    }
    y
}

pub(crate) fn rg_lru(p: &[f64], inputs: &[Vec<f64>]) -> Vec<f64> {
    let [x, gate_a, gate_x] = inputs else { panic!("RG-LRU has three inputs") };
    let width = p.len();
    let mut h = vec![0.0; width];
    let mut y = Vec::with_capacity(x.len());
    for (at, ((x, gate_a), gate_x)) in x.iter().zip(gate_a).zip(gate_x).enumerate() {
        let (first, channel) = (at < width, at % width);
        let log_a = -8.0 * sigmoid(*gate_a) * p[channel].exp().ln_1p();
        let (a, m) =
            if first { (0.0, 1.0) } else { (log_a.exp(), (-(2.0 * log_a).exp_m1()).sqrt()) };
        h[channel] = a * h[channel] + m * sigmoid(*gate_x) * x;
        y.push(h[channel]);
    }
    y
}

pub(crate) fn local_attention(
    dims: LocalAttentionDims,
    turn: Turn,
    inputs: &[Vec<f64>],
) -> Vec<f64> {
    let LocalAttentionDims { heads, head_dim, window, rotary_dims } = dims;
    let (q, k, v) = (&inputs[0], &inputs[1], &inputs[2]);
    let rope = |head: &[f64], t: usize| rope(head, rotary_dims, turn, t);
    let key = |t: usize| rope(&k[t * head_dim..][..head_dim], t);
    let mut y = Vec::with_capacity(q.len());
    for t in 0..k.len() / head_dim {
        for head in 0..heads {
            let query = rope(&q[(t * heads + head) * head_dim..][..head_dim], t);
            let seen = t.saturating_sub(window)..=t;
            let score = |at| dot(&query, &key(at)) / (head_dim as f64).sqrt();
            let weights: Vec<f64> = seen.clone().map(|at| score(at).exp()).collect();
            let total: f64 = weights.iter().sum();
            y.extend((0..head_dim).map(|channel| {
                let value = |(at, weight): (usize, &f64)| weight * v[at * head_dim + channel];
                iter::zip(seen.clone(), &weights).map(value).sum::<f64>() / total
            }));
        }
    }
    y
}

fn rope(head: &[f64], rotary_dims: usize, turn: Turn, t: usize) -> Vec<f64> {
    let half = rotary_dims / 2;
    let position = turn.start + t as u64;
    let mut turned = head.to_vec();
    for pair in 0..half {
        let exponent = -2.0 * pair as f64 / rotary_dims as f64;
        let (sin, cos) = (turn.angle)(position, exponent).sin_cos();
        turned[pair] = head[pair] * cos - head[pair + half] * sin;
        turned[pair + half] = head[pair + half] * cos + head[pair] * sin;
    }
    turned
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    iter::zip(a, b).map(|(a, b)| a * b).sum()
}

fn doubles(singles: &[f32]) -> Vec<f64> {
    singles.iter().map(|&x| f64::from(x)).collect()
}
