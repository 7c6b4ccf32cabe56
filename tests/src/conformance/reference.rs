//! The equations of the schemas in f64, for one whole session at a time: as short as they can be said
//! and written without a look at the kernels.

use std::iter;

use aerie_ops::local_attention::LocalAttentionDims;

use super::{Problem, Session};

/// The rows of `y` for a session from its first token on.
pub fn outputs(problem: &Problem, session: &Session) -> Vec<f64> {
    let inputs: Vec<Vec<f64>> = session.inputs.iter().map(|it| doubles(it)).collect();
    match problem {
        Problem::CausalConv1d { taps, width, weight, bias } => {
            causal_conv1d(*taps, *width, &doubles(weight), &doubles(bias), &inputs[0])
        }
        Problem::RgLru { p, .. } => rg_lru(&doubles(p), &inputs),
        Problem::LocalAttention { dims } => local_attention(*dims, &inputs),
    }
}

fn causal_conv1d(taps: usize, width: usize, weight: &[f64], bias: &[f64], x: &[f64]) -> Vec<f64> {
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

fn rg_lru(p: &[f64], inputs: &[Vec<f64>]) -> Vec<f64> {
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

fn local_attention(dims: LocalAttentionDims, inputs: &[Vec<f64>]) -> Vec<f64> {
    let LocalAttentionDims { heads, head_dim, window, rotary_dims } = dims;
    let (q, k, v) = (&inputs[0], &inputs[1], &inputs[2]);
    let key = |t: usize| rope(&k[t * head_dim..][..head_dim], rotary_dims, t);
    let mut y = Vec::with_capacity(q.len());
    for t in 0..k.len() / head_dim {
        for head in 0..heads {
            let query = rope(&q[(t * heads + head) * head_dim..][..head_dim], rotary_dims, t);
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

fn rope(head: &[f64], rotary_dims: usize, position: usize) -> Vec<f64> {
    let half = rotary_dims / 2;
    let mut turned = head.to_vec();
    for pair in 0..half {
        let exponent = -2.0 * pair as f64 / rotary_dims as f64;
        let (sin, cos) = (position as f64 * 10_000f64.powf(exponent)).sin_cos();
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
