use aerie_models::{Init, Role};

use super::*;

/// Two units of four weights, and their gains.
#[derive(Debug)]
struct Two;

impl Weights for Two {
    fn load(&self, name: &str, _spec: &ParameterSpec) -> Result<Vec<f32>, WeightsError> {
        Ok(match name {
            "weight" => vec![1.0, 2.0, 3.0, 6.0, 0.0, 0.0, 0.002, 0.002],
            _ => vec![2.0, 1.0],
        })
    }
}

fn fold(standardised: Option<Standardise>) -> Vec<f32> {
    let spec = ParameterSpec { shape: vec![2, 4], init: Init::Zeros, role: Role::Matrix };
    let standardised = standardised.map(|how| (how, "gain".to_owned(), spec.clone()));
    let fold = Fold { standardised, ..Fold::new("weight".to_owned(), spec) };
    fold.times(0.5).load(&Two).unwrap()
}

#[test]
fn a_plain_weight_is_multiplied() {
    assert_eq!(fold(None), [0.5, 1.0, 1.5, 3.0, 0.0, 0.0, 0.001, 0.001]);
}

/// Units by hand: mean 3, variance 3.5, `N·σ² = 14`; mean 0.001, variance 1e-6, `N·σ² = 4e-6`.
#[test]
fn each_unit_is_standardised_as_each_code_has_it() {
    let check = |how, scales: [f64; 2]| {
        let deviations = [[-2.0, -1.0, 0.0, 3.0], [-0.001, -0.001, 0.001, 0.001]];
        let expected = deviations.iter().zip(scales).flat_map(|(unit, s)| unit.map(|it| it * s));
        for (found, expected) in fold(Some(how)).into_iter().zip(expected) {
            // Weights are given in f32.
            assert!((f64::from(found) - expected).abs() < 1e-6, "{how:?}: {found}, {expected}");
        }
    };
    check(Standardise::Max, [1.0 / 14f64.sqrt(), 0.5 / 1e-4f64.sqrt()]);
    let add = |variance: f64| (4.0 * (variance + 1e-5)).sqrt().recip();
    check(Standardise::Add, [add(3.5), 0.5 * add(1e-6)]);
}
