use tch::{Device, Kind};

use super::*;

/// Tokens, channels and segments of most tests here: the segments have 5, 1 and 6 tokens.
const TOKENS: i64 = 12;
const WIDTH: i64 = 70;
const BOUNDS: [i64; 4] = [0, 5, 6, 12];

fn cut(bounds: &[i64], fresh: &[bool]) -> Cut {
    Cut::new(bounds, fresh, Device::Cpu)
}

/// Values that look random and are the same everywhere: a sine of a polynomial in the index.
fn wave(shape: &[i64], seed: f64, scale: f64) -> Tensor {
    let at = Tensor::arange(shape.iter().product::<i64>(), (Kind::Double, Device::Cpu));
    let phase = at.square() * 0.37 + at * (1.3 + seed) + seed;
    (phase.sin() * scale).reshape(shape).set_requires_grad(true)
}

/// The equations token by token, for autograd to differentiate.
fn naive_rg_lru(
    x: &Tensor,
    [gate_a, gate_x]: [&Tensor; 2],
    p: &Tensor,
    h0: &Tensor,
    bounds: &[i64],
    fresh: &[bool],
) -> Tensor {
    let log_a = gate_a.sigmoid() * p.softplus() * -8.0; // eq. 3
    let a = log_a.exp();
    let m = (-(log_a * 2.0).expm1()).sqrt();
    let v = gate_x.sigmoid() * x;
    let mut rows = Vec::new();
    for (segment, it) in bounds.windows(2).enumerate() {
        let mut h = h0.get(segment as i64);
        for t in it[0]..it[1] {
            h = if fresh[segment] && t == it[0] {
                v.get(t) + h * 0.0 // a = 0, m = 1
            } else {
                a.get(t) * h + m.get(t) * v.get(t) // eq. 4
            };
            rows.push(h.shallow_clone());
        }
    }
    Tensor::stack(&rows, 0)
}

/// How the same operators are made of libtorch's operations.
fn on_a_gpu(bounds: &[i64]) -> Cut {
    let places = Some(Places::new(bounds, Device::Cpu));
    Cut { places, ..cut(bounds, &vec![true; bounds.len() - 1]) }
}

/// A number that depends on every output, on the final state of each segment most of all.
fn scalar(h: &Tensor, bounds: &[i64]) -> Tensor {
    let lasts = h.index_select(0, &(Tensor::from_slice(&bounds[1..]) - 1));
    (h * wave(&h.size(), 9.0, 1.0).detach()).sum(Kind::Double) + lasts.square().sum(Kind::Double)
}

#[track_caller]
fn assert_close(found: &Tensor, expected: &Tensor, tolerance: f64, what: &str) {
    assert_eq!(found.size(), expected.size(), "{what}");
    let worst = (found.to_kind(Kind::Double) - expected.to_kind(Kind::Double)).abs().max();
    let worst = worst.double_value(&[]);
    assert!(worst <= tolerance, "{what}: {worst:e} apart, {tolerance:e} allowed");
}

/// Leaves of the recurrence: x, the gates, p and the state.
fn leaves() -> [Tensor; 5] {
    let x = || [TOKENS, WIDTH];
    [
        wave(&x(), 0.1, 1.0),
        wave(&x(), 0.2, 2.0),
        wave(&x(), 0.3, 2.0),
        wave(&[WIDTH], 0.4, 3.0),
        wave(&[3, WIDTH], 0.5, 1.0),
    ]
}

/// Goal: the backward written by hand is the derivative of the forward, resets, carried state and
/// final state included. Method: autograd through the equations token by token, all in f64.
#[test]
fn rg_lru_and_its_gradients_are_those_of_the_equations() {
    let all = [true; 3];
    let cuts = [all, [false; 3], [false, true, false]].map(|it| (it, cut(&BOUNDS, &it)));
    for (fresh, cut) in cuts.into_iter().chain([(all, on_a_gpu(&BOUNDS))]) {
        let found = leaves();
        let [x, gate_a, gate_x, p, h0] = &found;
        let h = rg_lru(x, [gate_a, gate_x], p, h0, &cut);
        scalar(&h, &BOUNDS).backward();

        let expected = leaves();
        let [x, gate_a, gate_x, p, h0] = &expected;
        let naive = naive_rg_lru(x, [gate_a, gate_x], p, h0, &BOUNDS, &fresh);
        scalar(&naive, &BOUNDS).backward();

        // f64: a dozen roundings along each chain.
        assert_close(&h, &naive, 1e-13, "h");
        let names = ["x", "gate_a", "gate_x", "p", "h0"];
        // Off the CPU, a void state is not read at all.
        let read = if cut.places.is_some() { 4 } else { 5 };
        for ((name, found), expected) in names.into_iter().zip(&found).zip(&expected).take(read) {
            assert_close(&found.grad(), &expected.grad(), 1e-11, name);
        }
    }
}

/// Method: the forward pass alone, at points a little to each side, in f64.
#[test]
fn rg_lru_gradients_are_finite_differences() {
    const STEP: f64 = 1e-6;
    let fresh = [true, false, false];
    let value = |leaves: &[Tensor; 5]| {
        let [x, gate_a, gate_x, p, h0] = leaves;
        scalar(&rg_lru(x, [gate_a, gate_x], p, h0, &cut(&BOUNDS, &fresh)), &BOUNDS)
    };
    let differentiated = leaves();
    value(&differentiated).backward();
    for which in 0..5 {
        let gradient = differentiated[which].grad().flatten(0, -1);
        for element in [0, WIDTH / 2, WIDTH - 1] {
            let moved = |by: f64| {
                let leaves = leaves().map(|it| it.detach());
                let _ = leaves[which].view([-1]).get(element).g_add_scalar_(by);
                value(&leaves).double_value(&[])
            };
            let expected = (moved(STEP) - moved(-STEP)) / (2.0 * STEP);
            let found = gradient.double_value(&[element]);
            // The difference of two sums of about a thousand terms, each right to 1e-16.
            let close = (found - expected).abs() <= 1e-6 * expected.abs().max(1.0);
            assert!(close, "leaf {which}, element {element}: {found} instead of {expected}");
        }
    }
}

/// Where a comes near 1 the derivative of √(1 - a²) grows without bound; it is held at 1000.
#[test]
fn slope_of_the_normaliser_is_bounded() {
    // The first of the two tokens is 0 and so leaves no state.
    let two = |values: [f64; 2]| Tensor::from_slice(&values).view([2, 1]).set_requires_grad(true);
    for cut in [cut(&[0, 2], &[true]), on_a_gpu(&[0, 2])] {
        let [x, gate_a, gate_x] = [two([0.0, 1.0]), two([-12.0; 2]), two([0.0; 2])];
        let p = Tensor::from_slice(&[-12.0]);
        let h0 = Tensor::zeros([1, 1], (Kind::Double, Device::Cpu));
        rg_lru(&x, [&gate_a, &gate_x], &p, &h0, &cut).sum(Kind::Double).backward();
        let r = gate_a.get(1).sigmoid().double_value(&[]);
        let scale = -8.0 * p.softplus().double_value(&[]);
        // ∂h/∂ℓ = -2a² · slope · i · x, with a = 1 and i = 1/2; then ℓ's own derivative.
        let expected = -1000.0 * scale * r * (1.0 - r);
        let found = gate_a.grad().get(1).double_value(&[0]);
        assert!((found / expected - 1.0).abs() < 1e-6, "{found} instead of {expected}");
    }
}

#[test]
fn rg_lru_in_f32_follows_f64() {
    let some = [false, true, false];
    let cuts = [cut(&BOUNDS, &some), on_a_gpu(&BOUNDS)];
    for (cut, shift) in cuts.iter().flat_map(|cut| [0.0, -10.0, 10.0].map(|it| (cut, it))) {
        let [x, gate_a, gate_x, p, h0] = leaves();
        let p = p + shift;
        let exact = rg_lru(&x, [&gate_a, &gate_x], &p, &h0, cut);
        let [x, gate_a, gate_x, p, h0] =
            [x, gate_a, gate_x, p, h0].map(|it| it.to_kind(Kind::Float));
        let found = rg_lru(&x, [&gate_a, &gate_x], &p, &h0, cut);
        // A few units in the last place of f32 for each token of the longest segment.
        assert_close(&found, &exact, 6.0 * 4e-7, &format!("p shifted by {shift}"));
    }
}

/// Cutting a segment anywhere and carrying its state over gives the same bits.
#[test]
fn rg_lru_may_be_cut_anywhere() {
    let [x, gate_a, gate_x, p, h0] = leaves().map(|it| it.detach().to_kind(Kind::Float));
    let state = h0.narrow(0, 0, 1);
    for fresh in [true, false] {
        let whole = rg_lru(&x, [&gate_a, &gate_x], &p, &state, &cut(&[0, TOKENS], &[fresh]));
        for at in 1..TOKENS {
            let part = |state: &Tensor, from, to, fresh| {
                let [x, gate_a, gate_x] = [&x, &gate_a, &gate_x].map(|it| it.slice(0, from, to, 1));
                rg_lru(&x, [&gate_a, &gate_x], &p, state, &cut(&[0, to - from], &[fresh]))
            };
            let head = part(&state, 0, at, fresh);
            let tail = part(&head.slice(0, at - 1, None, 1), at, TOKENS, false);
            assert_eq!(Tensor::cat(&[head, tail], 0), whole, "cut at {at}");
        }
    }
}

/// The sum that defines the convolution, for autograd to differentiate.
fn naive_conv1d(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    state: &Tensor,
    bounds: &[i64],
    fresh: &[bool],
) -> Tensor {
    let mut rows = Vec::new();
    for (segment, it) in bounds.windows(2).enumerate() {
        let before = state.get(segment as i64);
        let before = if fresh[segment] { before * 0.0 } else { before };
        let inputs = Tensor::cat(&[before, x.slice(0, it[0], it[1], 1)], 0);
        for t in 0..it[1] - it[0] {
            rows.push(
                (inputs.slice(0, t, t + 4, 1) * weight).sum_dim_intlist(0, false, Kind::Double)
                    + bias,
            );
        }
    }
    Tensor::stack(&rows, 0)
}

#[test]
fn conv1d_and_its_gradients_are_those_of_the_sum() {
    let leaves = || {
        let x = wave(&[TOKENS, WIDTH], 0.1, 1.0);
        let [weight, bias] = [wave(&[4, WIDTH], 0.2, 1.0), wave(&[WIDTH], 0.3, 1.0)];
        [x, weight, bias, wave(&[3, 3, WIDTH], 0.4, 1.0)]
    };
    let all = [true; 3];
    let cuts = [all, [false, false, true], [true, false, false]].map(|it| (it, cut(&BOUNDS, &it)));
    for (fresh, cut) in cuts.into_iter().chain([(all, on_a_gpu(&BOUNDS))]) {
        let found = leaves();
        let [x, weight, bias, state] = &found;
        let y = conv1d(x, weight, bias, state, &cut);
        scalar(&y, &BOUNDS).backward();

        let expected = leaves();
        let [x, weight, bias, state] = &expected;
        let naive = naive_conv1d(x, weight, bias, state, &BOUNDS, &fresh);
        scalar(&naive, &BOUNDS).backward();

        assert_close(&y, &naive, 1e-14, "y");
        let names = ["x", "weight", "bias", "state"];
        let read = if cut.places.is_some() { 3 } else { 4 };
        for ((name, found), expected) in names.into_iter().zip(&found).zip(&expected).take(read) {
            assert_close(&found.grad(), &expected.grad(), 1e-12, name);
        }
    }
}

/// More rows than one chunk, with and without the cap.
#[test]
fn cross_entropy_and_its_gradients_are_those_of_the_definition() {
    let leaves = || [wave(&[700, 6], 0.1, 2.0), wave(&[11, 6], 0.2, 2.0)];
    let targets = Tensor::arange(700, (Kind::Int64, Device::Cpu)).remainder(11);
    for soft_cap in [None, Some(2.5)] {
        let found = leaves();
        let [x, table] = &found;
        let loss = cross_entropy(x, table, &targets, soft_cap);
        (&loss * 0.5).backward();

        let expected = leaves();
        let [x, table] = &expected;
        let mut z = x.linear(table, None::<&Tensor>);
        if let Some(cap) = soft_cap {
            z = (z / f64::from(cap)).tanh() * f64::from(cap);
        }
        let naive = -z.log_softmax(1, Kind::Double).gather(1, &targets.unsqueeze(1), false);
        let naive = naive.sum(Kind::Double);
        (&naive * 0.5).backward();

        // f64, 700 additions of numbers of order one.
        assert_close(&loss, &naive, 1e-11, "loss");
        for ((name, found), expected) in ["x", "table"].into_iter().zip(&found).zip(&expected) {
            assert_close(&found.grad(), &expected.grad(), 1e-12, name);
        }
    }
}

#[test]
fn cross_entropy_is_finite_without_gradients_and_far_from_the_target() {
    let x = Tensor::from_slice(&[1e4f32]).view([1, 1]);
    let table = Tensor::from_slice(&[1.0f32, 0.0]).view([2, 1]);
    let loss = cross_entropy(&x, &table, &Tensor::from_slice(&[1i64]), None);
    assert_eq!(loss.double_value(&[]), 1e4);
}

#[test]
fn gelu_and_rms_norm_are_those_of_libtorch() {
    let leaves = || [wave(&[130, WIDTH], 0.1, 3.0), wave(&[WIDTH], 0.2, 1.0)];
    let found = leaves();
    let [x, weight] = &found;
    let y = rms_norm(&gelu(x), weight, 1e-6);
    (&y * wave(&y.size(), 0.7, 1.0).detach()).sum(Kind::Double).backward();

    let expected = leaves();
    let [x, weight] = &expected;
    let naive = composed::rms_norm(&composed::gelu(x), weight, 1e-6);
    (&naive * wave(&y.size(), 0.7, 1.0).detach()).sum(Kind::Double).backward();

    assert_close(&y, &naive, 1e-13, "y");
    for ((name, found), expected) in ["x", "weight"].into_iter().zip(&found).zip(&expected) {
        assert_close(&found.grad(), &expected.grad(), 1e-11, name);
    }
}

/// Goal: one update is the same on a GPU as here. Method: both from the same moments, in f64.
#[test]
fn adamw_is_the_same_of_libtorchs_operations() {
    let rates = Rates {
        beta1: 0.9,
        beta2: 0.98,
        epsilon: 1e-8,
        step_size: 0.01,
        bias2: 0.3,
        keep: 0.999,
        gradient_scale: 0.5,
    };
    let make = || {
        let of = |seed| wave(&[3, WIDTH], seed, 1.0).detach();
        [of(0.1), of(0.2), of(0.3), of(0.4).square()]
    };
    let [found, expected] = [make(), make()];
    let [parameter, gradient, m, v] = &found;
    composed::adamw(parameter, gradient, [m, v], rates);
    let [parameter, gradient, m, v] = &expected;
    adamw(parameter, gradient, [m, v], rates);
    for ((name, found), expected) in
        ["parameter", "gradient", "m", "v"].into_iter().zip(&found).zip(&expected)
    {
        assert_close(found, expected, 1e-14, name);
    }
}

/// Goal: segments shorter than the convolution's taps, and of one token, are the same on a GPU as here.
#[test]
fn short_segments_are_the_same_of_libtorchs_operations() {
    for bounds in [&[0, 1, 2][..], &[0, 3], &[0, 2, 3, 6]] {
        let tokens = bounds[bounds.len() - 1];
        let segments = bounds.len() as i64 - 1;
        let of = |seed| wave(&[tokens, WIDTH], seed, 1.0);
        let [x, gate_a, gate_x] = [of(0.1), of(0.2), of(0.3)];
        let p = wave(&[WIDTH], 0.4, 3.0);
        let h0 = Tensor::zeros([segments, WIDTH], (Kind::Double, Device::Cpu));
        let here = cut(bounds, &vec![true; bounds.len() - 1]);
        let gates = [&gate_a, &gate_x];
        let expected = rg_lru(&x, gates, &p, &h0, &here);
        assert_close(&rg_lru(&x, gates, &p, &h0, &on_a_gpu(bounds)), &expected, 1e-14, "rg_lru");
        let [weight, bias] = [wave(&[4, WIDTH], 0.5, 1.0), wave(&[WIDTH], 0.6, 1.0)];
        let state = Tensor::zeros([segments, 3, WIDTH], (Kind::Double, Device::Cpu));
        let expected = conv1d(&x, &weight, &bias, &state, &here);
        let found = conv1d(&x, &weight, &bias, &state, &on_a_gpu(bounds));
        assert_close(&found, &expected, 1e-14, "conv1d");
    }
}

#[test]
#[should_panic(expected = "on a GPU all segments are fresh")]
fn sessions_do_not_go_on_on_a_gpu() {
    let _ = Cut::new(&[0, 1], &[false], Device::Cuda(0));
}
