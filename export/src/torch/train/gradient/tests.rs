use std::collections::BTreeMap;

use aerie_models::{Init, ParameterSpec, Parametric, Path, Role};

use super::*;
use crate::{data::batches::Cursor, torch::log::Valid};

/// `½ xᵀ A x` of three numbers, where a batch is a factor.
struct Quadratic;

impl Parametric for Quadratic {
    fn parameters(&self) -> BTreeMap<Path, ParameterSpec> {
        let spec =
            ParameterSpec { shape: vec![3], init: Init::Normal { std: 1.0 }, role: Role::Matrix };
        BTreeMap::from([(Path::root().child("x"), spec)])
    }
}

fn matrix() -> Tensor {
    Tensor::from_slice2(&[[2.0, 0.5, 0.0], [0.5, 1.0, -0.3], [0.0, -0.3, 3.0]])
        .to_kind(Kind::Double)
}

impl Task for Quadratic {
    type Batch = f64;

    fn batch(&mut self) -> anyhow::Result<f64> {
        Ok(1.0)
    }

    fn cursor(&self) -> Cursor {
        Cursor::default()
    }

    fn seen(&self, _batch: &f64) -> u64 {
        1
    }

    /// All rows of a quadratic are the same, so a part is recognised by its sign.
    fn part(&self, batch: &f64, share: f64) -> f64 {
        batch * share
    }

    fn loss(&self, parameters: &Parameters, batch: &f64) -> Tensor {
        let (_, x) = parameters.learnt().next().unwrap();
        (x * matrix().mv(x)).sum(Kind::Double) * (0.5 * batch)
    }

    fn validate(&self, _parameters: &Parameters) -> anyhow::Result<Option<Valid>> {
        Ok(None)
    }
}

/// The gradient that gathers, and the parameters it is taken at.
fn gathered(flatness: Flatness) -> (Tensor, Tensor) {
    let parameters = Parameters::init(&Quadratic, 5, Kind::Double);
    let (_, x) = parameters.learnt().next().unwrap();
    let before = x.detach().copy();
    gather(&Quadratic, &parameters, &1.0, (flatness, 2.0), 1);
    assert_eq!(x.detach(), before, "the parameters are where they were");
    (x.grad(), before)
}

#[track_caller]
fn check(found: &Tensor, expected: &Tensor, tolerance: f64) {
    let worst = (found - expected).abs().max().double_value(&[]);
    assert!(worst < tolerance, "{worst:e} apart");
}

/// Smith et al. 2021 (arXiv:2101.12176): the gradient of `C + λ/4 ‖∇C‖²` is `g + λ/2 H g`; here `g = A x`
/// and `H = A`. A quadratic has no third derivative, so the difference is exact as well.
#[test]
fn both_forms_of_the_gradients_norm_are_that_of_a_quadratic() {
    for form in [GradientNormForm::Exact, GradientNormForm::Difference] {
        let (found, x) = gathered(Flatness::GradientNorm { lambda: 0.3, form });
        let slope = matrix().mv(&x);
        check(&found, &((&slope + matrix().mv(&slope) * 0.15) * 2.0), 1e-10);
    }
}

#[test]
fn nothing_added_is_the_plain_gradient() {
    let (found, x) = gathered(Flatness::Off);
    check(&found, &(matrix().mv(&x) * 2.0), 1e-14);
}

/// Foret et al. 2021 (arXiv:2010.01412), eq. 2 and 3: the gradient at `x + ρ g/‖g‖`.
#[test]
fn sharpness_is_looked_at_up_the_slope() {
    let (found, x) = gathered(Flatness::Sam { radius: 0.05, share: 0.2 });
    let slope = matrix().mv(&x);
    let norm = slope.square().sum(Kind::Double).sqrt();
    check(&found, &(matrix().mv(&(x + slope / norm * 0.05)) * 2.0), 1e-13);
}
