use aerie_models::presets;
use tch::{Device, Kind};

use super::*;

const CONFIG: AdamwConfig = AdamwConfig { beta1: 0.9, beta2: 0.95, decay: 0.1, clip: 2.0 };

/// Goal: the fused update is the paper's algorithm 2. Method: its lines, one operation each, in f64.
#[test]
fn update_is_that_of_the_paper() {
    let model = presets::preset("tiny").unwrap();
    let parameters = Parameters::init(&model, 1, Kind::Double);
    let mut optimizer = AdamW::new(CONFIG, &parameters);
    let mut expected: Vec<[Tensor; 3]> = parameters
        .iter()
        .map(|(_, it)| {
            [
                it.tensor.detach().copy(),
                it.tensor.detach().zeros_like(),
                it.tensor.detach().zeros_like(),
            ]
        })
        .collect();
    for step in 1..=3u32 {
        let loss: Vec<Tensor> = parameters
            .iter()
            .map(|(_, it)| {
                let at = Tensor::arange(it.tensor.numel() as i64, (Kind::Double, Device::Cpu));
                let slope = (at * f64::from(step)).sin().reshape(it.tensor.size());
                (&it.tensor * slope).sum(Kind::Double)
            })
            .collect();
        Tensor::stack(&loss, 0).sum(Kind::Double).backward();
        let gradients: Vec<Tensor> =
            parameters.iter().map(|(_, it)| it.tensor.grad().copy()).collect();
        let norm = optimizer.step(&parameters, u64::from(step), 0.01).gradient_norm;
        assert!(CONFIG.clip < norm, "the gradients are clipped");
        let exponent = f64::from(step);
        for (([p, m, v], gradient), (path, found)) in
            expected.iter_mut().zip(gradients).zip(parameters.iter())
        {
            let g = gradient * (CONFIG.clip / norm);
            *m = &*m * CONFIG.beta1 + &g * (1.0 - CONFIG.beta1);
            *v = &*v * CONFIG.beta2 + g.square() * (1.0 - CONFIG.beta2);
            let m_hat = &*m / (1.0 - CONFIG.beta1.powf(exponent));
            let v_hat = &*v / (1.0 - CONFIG.beta2.powf(exponent));
            let decay = if found.role == Role::Matrix { CONFIG.decay } else { 0.0 };
            *p = &*p - (m_hat / (v_hat.sqrt() + EPSILON) + &*p * decay) * 0.01;
            let worst = (&*p - found.tensor.detach()).abs().max().double_value(&[]);
            // f64, a dozen roundings of numbers of order one.
            assert!(worst < 1e-14, "{path}: {worst:e} apart");
        }
    }
}
