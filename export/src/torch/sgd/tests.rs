use aerie_models::images::presets::preset;

use super::*;

fn matrix(rows: &[[f64; 2]]) -> Tensor {
    Tensor::from_slice2(rows)
}

/// Brock et al. 2021 (arXiv:2102.06171), eq. 3, by hand: the first row has norms 5 and 50, the second one
/// 1e-3 at the least and 1.
#[test]
fn each_units_gradient_is_held_to_its_weights() {
    let weights = matrix(&[[3.0, 4.0], [0.0, 0.0]]);
    let gradient = matrix(&[[30.0, 40.0], [1.0, 0.0]]);
    let clipped = &gradient * unit_scale(&weights, &gradient, 0.01);
    let expected = matrix(&[[0.03, 0.04], [1e-5, 0.0]]);
    let worst = (clipped - expected).abs().max().double_value(&[]);
    assert!(worst < 1e-17, "{worst:e} apart");
    assert_eq!(unit_scale(&weights, &gradient, 1e9).min().double_value(&[]), 1.0);
}

/// What is a unit follows from the shape: outputs of kernels and matrices; vectors and gains as wholes.
#[test]
fn units_follow_from_shapes() {
    let check = |shape: &[i64], expected: &[i64]| {
        let tensor = Tensor::ones(shape, (Kind::Double, tch::Device::Cpu));
        assert_eq!(unit_scale(&tensor, &tensor, 0.01).size(), expected, "{shape:?}");
    };
    check(&[8, 4, 3, 3], &[8, 1, 1, 1]);
    check(&[8, 4], &[8, 1]);
    check(&[8], &[]);
    check(&[8, 1, 1, 1], &[]);
    check(&[], &[]);
}

/// Goal: a step is clipping, then decay, then momentum that looks ahead. Method: the lines of the paper's
/// appendix one by one in f64, for every parameter of a network.
#[test]
fn a_step_is_that_of_the_paper() {
    let config = SgdConfig { momentum: 0.9, nesterov: true, decay: 0.1, clip: Some(0.5) };
    let parameters = Parameters::init(&preset("nf-wrn-10-1").unwrap(), 1, Kind::Double);
    let mut optimizer = Sgd::new(config, &parameters);
    let mut expected: Vec<[Tensor; 2]> =
        parameters.learnt().map(|(_, it)| [it.detach().copy(), it.detach().zeros_like()]).collect();
    for step in 1..=3 {
        let loss: Vec<Tensor> = parameters
            .learnt()
            .map(|(_, it)| (it * (it * f64::from(step)).sin()).sum(Kind::Double))
            .collect();
        Tensor::stack(&loss, 0).sum(Kind::Double).backward();
        let gradients: Vec<Tensor> = parameters.learnt().map(|(_, it)| it.grad().copy()).collect();
        let update = optimizer.step(&parameters, 0.01);
        let clipped = update.clipped.unwrap();
        assert!(0.0 < clipped && clipped < 1.0, "{clipped}");
        for (([w, v], g), (path, found)) in
            expected.iter_mut().zip(gradients).zip(parameters.iter())
        {
            let g = match is_head_weight(path) {
                true => g,
                false => &g * unit_scale(w, &g, 0.5),
            };
            let g = if found.role == Role::Matrix { g + &*w * 0.1 } else { g };
            *v = &*v * 0.9 + &g;
            *w = &*w - (g + &*v * 0.9) * 0.01;
            let worst = (&*w - found.tensor.detach()).abs().max().double_value(&[]);
            assert!(worst < 1e-14, "{path}: {worst:e} apart");
        }
    }
}
