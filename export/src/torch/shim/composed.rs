//! The native operators out of libtorch's own operations, for tensors that are on a GPU. All segments
//! are fresh there: what runs there is training, on documents.

use tch::{Device, Tensor};

use crate::torch::shim::Rates;

/// `c` of Griffin's eq. 3: the exponent of the decay.
const DECAY_EXPONENT: f64 = 8.0;
/// Bound on the derivative of the normaliser's square root, as in Google's code.
const SQRT_SLOPE_MAX: f64 = 1000.0;

/// Where each token stands in its segment.
#[derive(Debug)]
pub(super) struct Places {
    /// i64 `[N, 1]`: tokens of its segment before it.
    at: Tensor,
    /// Tokens of the longest segment.
    longest: i64,
}

impl Places {
    /// Places of tokens whose segment `b` is `bounds[b]..bounds[b+1]`.
    pub(super) fn new(bounds: &[i64], device: Device) -> Self {
        let lengths = bounds.windows(2).map(|it| it[1] - it[0]);
        let at: Vec<i64> = lengths.clone().flat_map(|it| 0..it).collect();
        let at = Tensor::from_slice(&at).unsqueeze(1).to_device(device);
        Self { at, longest: lengths.max().unwrap_or(0) }
    }
}

/// See `shim::rg_lru`.
pub(super) fn rg_lru(
    x: &Tensor,
    [gate_a, gate_x]: [&Tensor; 2],
    p: &Tensor,
    places: &Places,
) -> Tensor {
    let goes_on = places.at.gt(0).to_kind(x.kind());
    let log_a = gate_a.sigmoid() * (p.softplus() * -DECAY_EXPONENT);
    let m = bounded_sqrt(&-(&log_a * 2.0).expm1());
    // A first token takes a = 0 and m = 1.
    let m = m * &goes_on + (1.0 - &goes_on);
    scan(log_a.exp() * goes_on, m * gate_x.sigmoid() * x, places.longest)
}

/// `√u` with a derivative of at most [`SQRT_SLOPE_MAX`].
fn bounded_sqrt(u: &Tensor) -> Tensor {
    let steep_below = 0.25 / SQRT_SLOPE_MAX.powi(2);
    let fixed = u.detach();
    let line = (fixed.sqrt() - fixed * SQRT_SLOPE_MAX) + u * SQRT_SLOPE_MAX;
    u.clamp_min(steep_below).sqrt().where_self(&u.ge(steep_below), &line)
}

/// `h_t = a_t h_{t-1} + b_t` where no more than `longest` rows lie from one whose `a` is 0 to the next: each pass
/// doubles the number of tokens that a row has taken in (Hillis and Steele 1986).
fn scan(mut a: Tensor, mut b: Tensor, longest: i64) -> Tensor {
    let rows = a.size()[0];
    let mut reach = 1;
    while reach < longest {
        let rest = rows - reach;
        let [a_late, b_late] = [&a, &b].map(|it| it.narrow(0, reach, rest));
        let [a_early, b_early] = [&a, &b].map(|it| it.narrow(0, 0, rest));
        let b_next = b_late.addcmul(&a_late, &b_early);
        b = Tensor::cat(&[b.narrow(0, 0, reach), b_next], 0);
        if 2 * reach < longest {
            a = Tensor::cat(&[a.narrow(0, 0, reach), a_late * a_early], 0);
        }
        reach *= 2;
    }
    b
}

/// See `shim::conv1d`.
pub(super) fn conv1d(x: &Tensor, weight: &Tensor, bias: &Tensor, places: &Places) -> Tensor {
    let taps = weight.size()[0];
    let mut y = x * weight.get(taps - 1) + bias;
    for lag in 1..taps.min(places.longest) {
        let lagged = x.narrow(0, 0, x.size()[0] - lag).constant_pad_nd([0, 0, lag, 0]);
        y += lagged * weight.get(taps - 1 - lag) * places.at.ge(lag).to_kind(x.kind());
    }
    y
}

/// See `shim::adamw`.
pub(super) fn adamw(parameter: &Tensor, gradient: &Tensor, [m, v]: [&Tensor; 2], rates: Rates) {
    let [mut parameter, mut m, mut v] = [parameter, m, v].map(Tensor::shallow_clone);
    let gradient = gradient * rates.gradient_scale;
    let _ = m.lerp_(&gradient, 1.0 - rates.beta1);
    let _ = v.g_mul_scalar_(rates.beta2).g_add_(&(gradient.square() * (1.0 - rates.beta2)));
    let step = &m / ((&v / rates.bias2).sqrt() + rates.epsilon);
    let _ = parameter.g_mul_scalar_(rates.keep).g_sub_(&(step * rates.step_size));
}

/// See `shim::gelu`.
pub(super) fn gelu(x: &Tensor) -> Tensor {
    x.gelu("tanh")
}

/// See `shim::rms_norm`.
pub(super) fn rms_norm(x: &Tensor, weight: &Tensor, epsilon: f64) -> Tensor {
    x.rms_norm([x.size()[1]], Some(&(weight + 1.0)), epsilon)
}
