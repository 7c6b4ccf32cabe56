//! Checkpoints that fit and that do not; random weights.

use std::{collections::HashMap, fs};

use aerie_models::{ParameterSpec, census, presets};
use safetensors::tensor::{Dtype, TensorView};

use super::*;

#[test]
fn checkpoint_gives_what_was_written() {
    let (dir, config) = (tempfile::tempdir().unwrap(), tiny());
    let path = dir.path().join("model.safetensors");
    write(&path, |_| {});
    let checkpoint = Checkpoint::open(&path, &config).unwrap();
    for (name, spec) in census::parameters(&config) {
        let expected = Random { seed: 1 }.load(name.as_str(), &spec).unwrap();
        assert_eq!(checkpoint.load(name.as_str(), &spec).unwrap(), expected, "{name}");
    }
}

#[test]
fn tensor_that_does_not_fit_is_named() {
    check(|it| drop(it.remove("final_norm.weight")), "tensor final_norm.weight is missing");
    check(
        |it| {
            it.get_mut("embed_tokens.weight").unwrap().0 = vec![32, 64];
        },
        "tensor embed_tokens.weight has shape [32, 64]; [64, 32] is expected",
    );
    check(
        |it| drop(it.insert("lm_head.weight".to_owned(), (vec![1], vec![0.0]))),
        "tensor lm_head.weight is none of the model's",
    );
}

#[test]
fn cut_or_foreign_files_are_errors() {
    let (dir, config) = (tempfile::tempdir().unwrap(), tiny());
    let path = dir.path().join("model.safetensors");
    write(&path, |_| {});
    let whole = fs::read(&path).unwrap();
    for length in [0, 7, 8, 100] {
        fs::write(&path, &whole[..length]).unwrap();
        assert!(Checkpoint::open(&path, &config).is_err(), "cut after {length} bytes");
    }
    // The header is whole, the last tensor is not; or something follows it.
    for data in [&whole[..whole.len() - 1], &[&*whole, &[0]].concat()] {
        fs::write(&path, data).unwrap();
        let error = Checkpoint::open(&path, &config).unwrap_err().to_string();
        assert!(error.contains("its header describes"), "{error}");
    }

    fs::write(&path, u64::MAX.to_le_bytes()).unwrap();
    let error = Checkpoint::open(&path, &config).unwrap_err().to_string();
    assert!(error.contains("at most 100000000 are read"), "{error}");
    fs::write(&path, b"not a graph").unwrap();
    assert!(Drawn::open(&path, &config).is_err());
}

#[test]
fn headers_that_lie_are_refused() {
    let lie = |header: &str, data_bytes: usize, message: &str| {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        let length = (header.len() as u64).to_le_bytes();
        fs::write(&path, [&length, header.as_bytes(), &vec![0; data_bytes]].concat()).unwrap();
        let error = Checkpoint::open(&path, &tiny()).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    };
    lie(
        r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},
            "b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}"#,
        12,
        "invalid offset for tensor `b`",
    );
    lie(
        r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}"#,
        12,
        "invalid offset for tensor `a`",
    );
    lie(
        r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,8]}}"#,
        8,
        "overflow",
    );
    lie(
        r#"{"a":{"dtype":"BF16","shape":[3],"data_offsets":[0,8]}}"#,
        8,
        "invalid shape, data type, or offset",
    );
    lie(
        r#"{"a":{"dtype":"F32","shape":[0],"data_offsets":[0,18446744073709551615]}}"#,
        0,
        "invalid shape, data type, or offset",
    );
}

#[test]
fn random_weights_depend_on_seed_and_name_alone() {
    let spec = spec(Init::Normal { std: 2.0 }, 10_000);
    let load = |seed, name: &str| Random { seed }.load(name, &spec).unwrap();
    assert_eq!(load(1, "a"), load(1, "a"));
    assert_ne!(load(1, "a"), load(2, "a"));
    assert_ne!(load(1, "a"), load(1, "b"));

    let values = load(1, "a");
    let mean = values.iter().sum::<f32>() / 1e4;
    let deviation = (values.iter().map(|it| (it - mean).powi(2)).sum::<f32>() / 1e4).sqrt();
    // Four standard errors of 10 000 draws.
    assert!(mean.abs() < 0.08, "mean {mean}");
    assert!((deviation - 2.0).abs() < 0.06, "standard deviation {deviation}");
}

#[test]
fn recurrences_begin_within_their_range() {
    let rho = |p: f32| 1.0 / (1.0 + f64::from(p).exp());
    let init = Init::RgLruPaper { a_min: 0.9, a_max: 0.999 };
    for p in (Random { seed: 1 }).load("p", &spec(init, 1000)).unwrap() {
        let a = rho(p).powi(8);
        assert!((0.9 - 1e-5..=0.999 + 1e-5).contains(&a), "ρ⁸ is {a}");
    }
    let init = Init::RgLruCode { rho_min: 0.9, rho_max: 0.999 };
    for p in (Random { seed: 1 }).load("p", &spec(init, 1000)).unwrap() {
        assert!((0.9 - 1e-5..=0.999 + 1e-5).contains(&rho(p)), "ρ is {}", rho(p));
    }
}

type Tensors = HashMap<String, (Vec<usize>, Vec<f32>)>;

/// Changes a good checkpoint and expects it to be refused with `message`.
#[track_caller]
fn check(change: impl FnOnce(&mut Tensors), message: &str) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    write(&path, change);
    let error = Checkpoint::open(&path, &tiny()).unwrap_err().to_string();
    assert!(error.contains(message), "{error}");
}

fn write(path: &FilePath, change: impl FnOnce(&mut Tensors)) {
    let mut tensors: Tensors = census::parameters(&tiny())
        .into_iter()
        .map(|(name, spec)| {
            let shape = spec.shape.iter().map(|&it| usize::try_from(it).unwrap()).collect();
            let values = Random { seed: 1 }.load(name.as_str(), &spec).unwrap();
            (name.to_string(), (shape, values))
        })
        .collect();
    change(&mut tensors);
    let bytes: HashMap<&String, Vec<u8>> = tensors
        .iter()
        .map(|(name, (_, values))| (name, values.iter().flat_map(|it| it.to_le_bytes()).collect()))
        .collect();
    let views = tensors.iter().map(|(name, (shape, _))| {
        (name, TensorView::new(Dtype::F32, shape.clone(), &bytes[name]).unwrap())
    });
    fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

fn spec(init: Init, extent: u64) -> ParameterSpec {
    ParameterSpec { shape: vec![extent], init, decay: false }
}

fn tiny() -> ModelConfig {
    presets::preset("tiny").unwrap()
}
