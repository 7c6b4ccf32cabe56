use aerie_models::{ModelConfig, census, presets};

use super::*;

fn tiny() -> ModelConfig {
    presets::preset("tiny").unwrap()
}

#[test]
fn beginning_depends_on_the_seed_alone() {
    let values = |seed| Parameters::init(&tiny(), seed, Kind::Float).values();
    assert_eq!(values(1), values(1));
    assert_ne!(values(1), values(2));
}

#[test]
fn beginning_has_the_specified_spread() {
    let config = presets::preset("shakespeare").unwrap();
    let parameters = Parameters::init(&config, 1, Kind::Double);
    for (path, spec) in census::parameters(&config) {
        let tensor = &parameters.at(&path).tensor;
        match spec.init {
            Init::Constant(_) => panic!("{path}: decoders have none"),
            Init::Zeros => assert_eq!(tensor.abs().max().double_value(&[]), 0.0, "{path}"),
            Init::Normal { std } => {
                let share = tensor.square().mean(Kind::Double).sqrt().double_value(&[]) / std;
                // Five standard errors of the estimate.
                let tolerance = 5.0 / (2.0 * tensor.numel() as f64).sqrt();
                assert!((share - 1.0).abs() < tolerance, "{path}: {share} of {std}");
            }
            Init::RgLruPaper { a_min, a_max } => {
                let a = (tensor.softplus() * -8.0).exp();
                let [lo, hi] = [a.min(), a.max()].map(|it| it.double_value(&[]));
                assert!(a_min <= lo && hi <= a_max, "{path}: {lo} to {hi}");
            }
            Init::RgLruCode { .. } => unreachable!("the preset begins as the paper does"),
        }
    }
}

#[test]
fn checkpoint_of_another_model_is_refused_by_name() {
    let good = Parameters::init(&tiny(), 1, Kind::Float).values();
    assert_eq!(Parameters::load(&tiny(), &good, Kind::Float).unwrap().values(), good);

    let refusal = |tensors: &Tensors| {
        Parameters::load(&tiny(), tensors, Kind::Float).unwrap_err().to_string()
    };
    let name = "final_norm.weight";
    let mut tensors = good.clone();
    let values = tensors.remove(name).unwrap();
    assert_eq!(refusal(&tensors), "the checkpoint lacks final_norm.weight");
    tensors.insert(name.to_owned(), Values { shape: vec![2], values: vec![0.0; 2] });
    let found = refusal(&tensors);
    assert!(found.contains(name) && found.contains("[2]") && found.contains("[32]"), "{found}");
    tensors.insert(name.to_owned(), values.clone());
    tensors.insert("extra".to_owned(), values);
    assert_eq!(refusal(&tensors), "the checkpoint holds extra, which the model does not have");
}
