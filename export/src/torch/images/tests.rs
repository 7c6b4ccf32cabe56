//! The reading of libtorch beside the graph that is drawn of the same equations.

use aerie_models::{
    ImageConfig, Parametric, Precision,
    bundle::MODEL_FILE,
    images::{
        activation::Gains,
        config::{Norm, Padding, Stage, Standardise, StochasticDepth},
        network,
        nf_resnet::{bare, unstandardised},
        presets::preset,
    },
};
use tch::{Kind, no_grad};

use super::*;
use crate::{
    checkpoint::{Tensors, Values},
    onnx::{self, Limits, Weights, images::tests::Moved},
    runtime::{self, classifier::Classifier},
};

fn tensors(config: &ImageConfig, weights: &dyn Weights) -> Tensors {
    let load = |(path, spec): (Path, ParameterSpec)| {
        let values = weights.load(path.as_str(), &spec).unwrap();
        let shape = spec.shape.iter().map(|&it| usize::try_from(it).unwrap()).collect();
        (path.to_string(), Values { shape, values })
    };
    config.parameters().into_iter().map(load).collect()
}

/// Pixels without a pattern, the same for the same shape.
fn pixels(shape: [i64; 4]) -> Tensor {
    tch::manual_seed(7);
    Tensor::randn(shape, (Kind::Float, tch::Device::Cpu))
}

fn logits(config: &ImageConfig, pixels: &Tensor, kind: Kind) -> Vec<f64> {
    let parameters = Parameters::load(config, &tensors(config, &Moved(3)), kind).unwrap();
    let reading = ImageReading::new(&parameters, Mode::Evaluation);
    let pixels = Scaled::of(pixels.to_kind(kind));
    let logits = no_grad(|| network::logits(config, &reading, &pixels));
    Vec::try_from(logits.tensor().to_kind(Kind::Double).flatten(0, -1)).unwrap()
}

/// The network with an eighth of its channels, and of each stage two blocks.
fn eighth(mut config: ImageConfig) -> ImageConfig {
    for stage in &mut config.stages {
        let (width, middle) = (stage.width / 8, stage.middle / 8);
        let group_width = stage.group_width / 8;
        let (depth, first_middle) = (stage.depth.min(2), middle);
        *stage = Stage { depth, width, middle, first_middle, group_width, ..*stage };
    }
    config
}

/// Largest difference as a share of the largest logit.
fn distance(found: &[f64], expected: &[f64]) -> f64 {
    let scale = expected.iter().fold(0.0, |it: f64, x| it.max(x.abs()));
    let worst = found.iter().zip(expected).fold(0.0, |it: f64, (a, b)| it.max((a - b).abs()));
    worst / scale
}

/// Goal: graphs have folded everything rightly. Method: networks of every kind, weights off where they
/// begin, images of even, odd and unequal extents; libtorch in f64 beside ONNX Runtime.
#[test]
fn graphs_compute_what_libtorch_does() {
    let Some(runtime) = runtime::shared() else { return };
    let small = preset("nfnet-small").unwrap();
    let circular = ImageConfig { padding: Padding::Circular, ..small.clone() };
    let normed = ImageConfig { norm: Norm::Batch, ..bare(small.clone()) };
    let grouped = ImageConfig { norm: Norm::Group, ..bare(small.clone()) };
    let mut configs = vec![
        ("small", small),
        ("circular", circular),
        ("batch norm", normed),
        ("group norm", grouped),
    ];
    for name in ["timm/test_nfnet", "timm/nf_regnet_b0", "timm/eca_nfnet_l0"] {
        configs.push((name, preset(name).unwrap()));
    }
    configs.push(("an eighth of F0", eighth(preset("nfnet-f0").unwrap())));
    for (name, config) in configs {
        for (precision, tolerance) in [(Precision::F32, 2e-5), (Precision::F16, 2e-2)] {
            let dir = tempfile::tempdir().unwrap();
            let graph = onnx::images::emit(&config, precision, &Moved(3)).unwrap();
            onnx::write(graph, "test", &Moved(3), Limits::default(), dir.path()).unwrap();
            let mut graph = Classifier::open(runtime, &dir.path().join(MODEL_FILE)).unwrap();
            for shape in [[2, 3, 64, 64], [1, 3, 61, 75]] {
                let pixels = pixels(shape);
                let expected = logits(&config, &pixels, Kind::Double);
                let flat = Vec::try_from(pixels.flatten(0, -1)).unwrap();
                let found =
                    graph.logits(shape.map(|it| usize::try_from(it).unwrap()), flat).unwrap();
                let found: Vec<f64> = found.into_iter().map(f64::from).collect();
                let distance = distance(&found, &expected);
                assert!(distance < tolerance, "{name} {precision:?} {shape:?}: {distance:e}");
            }
        }
    }
}

/// Each point in which codes differ shows in the logits, by as much as it did where it was found. What is
/// unlike in none of them would prove nothing of the others.
#[test]
fn every_point_in_which_codes_differ_shows() {
    let config = eighth(preset("timm/dm_nfnet_f0").unwrap());
    let pixels = pixels([1, 3, 64, 64]);
    let expected = logits(&config, &pixels, Kind::Float);
    let check = |least: f64, most: f64, other: ImageConfig| {
        let found = distance(&logits(&other, &pixels, Kind::Float), &expected);
        assert!(least < found && found < most, "{found:e} is not in {least:e}..{most:e}");
    };
    check(5e-3, 0.2, ImageConfig { standardise: Standardise::Max, ..config.clone() });
    check(0.05, 1.0, ImageConfig { padding: Padding::Symmetric, ..config.clone() });
    check(3e-5, 3e-3, ImageConfig { activation: Activation::GeluTanh, ..config.clone() });
    check(1e-4, 0.1, ImageConfig { gains: Gains::Exact, ..config });
}

/// Goal: stochastic depth leaves out a branch for a share of the images and rescales as it says. Method: a
/// branch of ones.
#[test]
fn branches_are_left_out_image_by_image() {
    tch::manual_seed(1);
    let config = preset("wrn-10-1-bare").unwrap();
    let parameters = Parameters::init(&config, 1, Kind::Float);
    let ones = Scaled::of(Tensor::ones([4000, 2, 3, 1], (Kind::Float, tch::Device::Cpu)));
    let training = ImageReading::new(&parameters, Mode::Training { seed: 5 });
    for (rescale, kept) in [(false, 1.0), (true, 4.0)] {
        let found = training.drop_branch(&ones, 0.75, rescale);
        let per_image = found.tensor().flatten(1, -1);
        let [lo, hi] = [per_image.amin([1], false), per_image.amax([1], false)];
        assert_eq!(lo, hi, "an image is left out as a whole");
        assert_eq!(hi.max().double_value(&[]), kept);
        let share = lo.eq(kept).to_kind(Kind::Double).mean(Kind::Double).double_value(&[]);
        // Five standard errors of 4000 draws.
        assert!((share - 0.25).abs() < 0.035, "{share}");
    }
    let evaluation = ImageReading::new(&parameters, Mode::Evaluation);
    assert_eq!(evaluation.drop_branch(&ones, 0.75, true).tensor(), ones.tensor());
}

/// What is done at once, with all that scales a branch in its weights or in its gates, is what is done one
/// after another where somebody looks on, and so is its gradient; also of images that are left out.
#[test]
fn branches_at_once_are_branches_in_parts() {
    let pixels = pixels([6, 3, 32, 32]);
    for (name, rescale) in [("nfnet-small", false), ("nfnet-small", true), ("nf-wrn-10-1", true)] {
        let mut config = preset(name).unwrap();
        config.stochastic_depth = StochasticDepth { rate: 0.8, rescale };
        let load =
            || Parameters::load(&config, &tensors(&config, &Moved(3)), Kind::Double).unwrap();
        // Logits, and the gradient of the sum of their squares.
        let run = |reading: &ImageReading<'_>, parameters: &Parameters| {
            let pixels = Scaled::of(pixels.to_kind(Kind::Double));
            let logits = network::logits(&config, reading, &pixels).tensor();
            logits.square().sum(Kind::Double).backward();
            let flat = |it: &Tensor| Vec::<f64>::try_from(it.flatten(0, -1)).unwrap();
            let gradients = parameters.learnt().flat_map(|(_, it)| flat(&it.grad()));
            [flat(&logits), gradients.collect()]
        };
        let [once, parts, evaluated] = [(); 3].map(|()| load());
        let at_once = run(&ImageReading::new(&once, Mode::Training { seed: 5 }), &once);
        let mut seen = 0;
        let looked =
            ImageReading::new(&parts, Mode::Training { seed: 5 }).observed(|_, _| seen += 1);
        let in_parts = run(&looked, &parts);
        drop(looked);
        assert!(0 < seen);
        for (at_once, in_parts) in at_once.iter().zip(&in_parts) {
            assert!(distance(at_once, in_parts) < 1e-12, "{name}, {rescale}");
        }
        let kept = run(&ImageReading::new(&evaluated, Mode::Evaluation), &evaluated);
        let [at_once, kept] = [&at_once[0], &kept[0]];
        assert!(1e-6 < distance(at_once, kept), "{name}, {rescale}: something is left out");
    }
}

/// With bfloat16 maps logits are off by its 8 bits, and gradients of f32 parameters are f32.
#[test]
fn maps_may_be_bfloat16() {
    let normed = ImageConfig { norm: Norm::Batch, ..bare(preset("nfnet-small").unwrap()) };
    for config in [preset("nfnet-small").unwrap(), normed] {
        let load = || Parameters::load(&config, &tensors(&config, &Moved(3)), Kind::Float).unwrap();
        let run = |parameters: &Parameters, kind: Kind| {
            let pixels = Scaled::of(pixels([4, 3, 32, 32]).to_kind(kind));
            let reading = ImageReading::new(parameters, Mode::Training { seed: 5 });
            let logits = network::logits(&config, &reading, &pixels).tensor();
            assert_eq!(logits.kind(), Kind::Float);
            logits.square().sum(Kind::Float).backward();
            let flat = |it: &Tensor| Vec::<f64>::try_from(it.to_kind(Kind::Double).flatten(0, -1));
            let gradients = parameters.learnt().map(|(_, it)| it.grad());
            let kinds = gradients.inspect(|it| assert_eq!(it.kind(), Kind::Float));
            let gradients: Vec<f64> = kinds.flat_map(|it| flat(&it).unwrap()).collect();
            (flat(&logits).unwrap(), gradients)
        };
        let (logits, gradients) = run(&load(), Kind::Float);
        let (rounded, rounded_gradients) = run(&load(), Kind::BFloat16);
        assert!(distance(&rounded, &logits) < 0.05, "{:e}", distance(&rounded, &logits));
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let norms =
            (dot(&gradients, &gradients) * dot(&rounded_gradients, &rounded_gradients)).sqrt();
        let cosine = dot(&gradients, &rounded_gradients) / norms;
        assert!(0.99 < cosine, "{cosine}");
    }
}

/// Goal: variances at the beginning are those that the equations predict (Brock, De and Smith 2021,
/// arXiv:2101.08692, fig. 2). Method: NF-ResNet-50's blocks without edges, fed with noise, branches open;
/// then the same without standardisation.
#[test]
fn signals_propagate_as_predicted() {
    let config = ImageConfig {
        padding: Padding::Circular,
        gains: Gains::Exact,
        ..preset("nf-resnet-50").unwrap()
    };
    let [with, mean_square] = propagate(&config);
    for (found, predicted) in with.iter().zip(config.predicted_variances()) {
        let ratio = found / predicted;
        assert!((ratio - 1.0).abs() < 0.05, "{found} is not {predicted}");
    }
    assert!(mean_square.iter().all(|&it| it < 0.02), "{mean_square:?}");
    let without = unstandardised(config);
    let [_, mean_square] = propagate(&without);
    assert!(5.0 < mean_square[15], "{mean_square:?}");
}

/// Mean variance and mean squared mean of the channels after each block.
fn propagate(config: &ImageConfig) -> [Vec<f64>; 2] {
    tch::manual_seed(2);
    let parameters = Parameters::init(config, 4, Kind::Float);
    no_grad(|| {
        for (path, it) in parameters.iter() {
            if path.as_str().ends_with("skipinit_gain") {
                let _ = it.tensor.shallow_clone().fill_(1.0);
            }
        }
    });
    let mut found = [Vec::new(), Vec::new()];
    let reading = ImageReading::new(&parameters, Mode::Evaluation).observed(|at, x| {
        if at == Observed::Block {
            let (variance, mean) = x.var_mean_dim(&[0i64, 2, 3][..], false, false);
            found[0].push(variance.mean(Kind::Double).double_value(&[]));
            found[1].push(mean.square().mean(Kind::Double).double_value(&[]));
        }
    });
    let x = Tensor::randn([8, 64, 32, 32], (Kind::Float, tch::Device::Cpu));
    no_grad(|| network::blocks(config, &reading, Scaled::of(x)));
    drop(reading);
    found
}
