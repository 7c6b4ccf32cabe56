use aerie_models::{
    Parametric,
    images::{config::BranchEnd, presets::preset},
};

use super::*;
use crate::onnx::weights::Random;

/// Random weights, all of them moved off where they begin: numbers at the ends of branches off 0, gains
/// off 1.
#[derive(Debug)]
pub(crate) struct Moved(pub(crate) u64);

impl Weights for Moved {
    fn load(&self, name: &str, spec: &ParameterSpec) -> Result<Vec<f32>, WeightsError> {
        let noise = Random { seed: self.0 ^ 0x5eed };
        let normal =
            ParameterSpec { init: aerie_models::Init::Normal { std: 1.0 }, ..spec.clone() };
        let mut values = Random { seed: self.0 }.load(name, spec)?;
        for (value, moved) in values.iter_mut().zip(noise.load(name, &normal)?) {
            *value = match name {
                _ if name.ends_with("skipinit_gain") => 1.0 + 0.3 * moved,
                _ if name.ends_with(".gain") => value.max(0.5) * (1.0 + 0.2 * moved),
                _ if name.ends_with("running_var") => (0.2 * moved).exp(),
                _ if name.ends_with(".bias") || name.ends_with("running_mean") => 0.05 * moved,
                _ if name.starts_with("head") => 0.05 * moved,
                _ => *value,
            };
        }
        Ok(values)
    }
}

fn nodes(name: &str, weights: &dyn Weights) -> Vec<String> {
    let config = preset(name).expect("a preset");
    let graph = emit(&config, Precision::F32, weights).unwrap();
    graph.nodes().iter().map(|it| it.op_type.clone()).collect()
}

/// Goal: what takes the place of normalisation costs nothing. Method: F0 has, for each of its blocks, four
/// convolutions with GELU before them and what weighs the channels, and nothing that only scales.
#[test]
fn nfnet_f0_has_nothing_but_what_it_needs() {
    for name in ["nfnet-f0", "timm/dm_nfnet_f0"] {
        let found = nodes(name, &Moved(1));
        let count = |op: &str| found.iter().filter(|it| *it == op).count();
        assert!(found.len() <= 220, "{name}: {}", found.len());
        assert_eq!(count("Gelu"), 12 * 4 + 3 + 1);
        assert_eq!(count("Conv"), 12 * 6 + 4 + 4 + 1);
        assert_eq!([count("Mul"), count("Add"), count("AveragePool")], [12, 12, 3]);
        assert_eq!(count("ReduceMean"), 12 + 1);
        assert_eq!(count("BatchNormalization") + count("Div") + count("Sub") + count("Sqrt"), 0);
    }
}

/// Numbers at the ends of branches that are 0, as where training begins, are multiplied where they are:
/// nothing is divided by them.
#[test]
fn branches_that_are_nothing_are_nothing() {
    let found = nodes("nfnet-f0", &Random { seed: 1 });
    assert_eq!(found.iter().filter(|it| *it == "Mul").count(), 24);
    let config = preset("timm/nfnet_f0").expect("a preset");
    assert_eq!(config.branch_end, BranchEnd::ZeroGain);
    let graph = emit(&config, Precision::F32, &Random { seed: 1 }).unwrap();
    let finite = graph.constants().iter().filter_map(|it| match &it.elements {
        Elements::Folded(fold) if it.shape.iter().product::<u64>() < 1 << 16 => Some(fold),
        _ => None,
    });
    for fold in finite {
        let values = fold.load(&Random { seed: 1 }).unwrap();
        assert!(values.iter().all(|it| it.is_finite()), "{}", fold.name);
    }
}

#[test]
fn every_parameter_is_in_the_graph() {
    for name in ["timm/test_nfnet", "timm/nf_regnet_b0", "timm/eca_nfnet_l0", "wrn-16-4-group"] {
        let config = preset(name).expect("a preset");
        let graph = emit(&config, Precision::F16, &Moved(2)).unwrap();
        for (path, spec) in config.parameters() {
            let found = graph.constants().iter().any(|it| it.name == path.as_str());
            // Gains and numbers at the ends of branches are in the weights.
            let is_folded = path.as_str().ends_with("gain");
            assert_eq!(found, !is_folded, "{name}: {path} {:?}", spec.shape);
        }
    }
}
