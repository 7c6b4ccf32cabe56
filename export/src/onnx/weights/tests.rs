//! Checkpoints that fit and that do not; random weights.

use std::{collections::HashMap, fs};

use aerie_fuzz::{Format, Fuzz, overwrite};
use aerie_models::{
    Family, ModelConfig, ParameterSpec, Precision, Role, bundle::MODEL_FILE, census, presets,
};
use safetensors::tensor::{Dtype, TensorView};

use super::*;
use crate::{
    import::tests::config,
    onnx::{self, Limits, Target},
};

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

/// A manifest may ask for a table of a petabyte, a graph may claim to have it, and nothing was asked of
/// the file before memory was.
#[test]
fn weights_that_a_file_has_no_room_for_are_refused() {
    let (dir, config) = (tempfile::tempdir().unwrap(), tiny());
    let huge = ModelConfig { vocab: 1 << 24, ..config.clone() };
    let path = dir.path().join(MODEL_FILE);
    let outside = Limits { inline_bytes_max: 0, constant_bytes_max: 1 << 9 };
    for precision in [Precision::F32, Precision::Q4] {
        let graph = onnx::emit(&config, Target::Ragged, precision);
        onnx::write(graph, "tiny", &Random { seed: 1 }, outside, dir.path()).unwrap();
        let mut model = read_model(&path).unwrap();
        let tables = model.graph.as_mut().unwrap().initializer.iter_mut();
        let table = tables.into_iter().find(|it| it.name == "embed_tokens.weight").unwrap();
        let panels = table.data_type() == DataType::U8;
        table.dims[usize::from(panels)] = if panels { (1 << 24) / 64 } else { 1 << 24 };
        let length = table.bytes().to_string();
        table.external_data.iter_mut().find(|it| it.key == "length").unwrap().value = length;
        fs::write(&path, model.encode_to_vec()).unwrap();
        let drawn = Drawn::open(&path, &huge).unwrap();
        let spec = ParameterSpec { shape: vec![1 << 24, 32], ..spec(Init::Zeros, 1) };
        let error = drawn.load("embed_tokens.weight", &spec).unwrap_err().to_string();
        assert!(error.contains("tensor embed_tokens.weight reaches beyond the file's"), "{error}");
    }
}

/// What is bf16 in a bundle lies there as the products read it, and what is f16 or f32 as it came: none
/// of these formats has another place where NaN is noticed.
#[test]
fn weights_that_are_no_numbers_are_refused_by_name() {
    let (dir, config) = (tempfile::tempdir().unwrap(), tiny());
    let path = dir.path().join(MODEL_FILE);
    for precision in [Precision::F32, Precision::F16, Precision::Bf16] {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let graph = onnx::emit(&config, Target::Ragged, precision);
            onnx::write(graph, "tiny", &Random { seed: 1 }, Limits::default(), dir.path()).unwrap();
            let mut model = read_model(&path).unwrap();
            let tables = model.graph.as_mut().unwrap().initializer.iter_mut();
            let table = tables.into_iter().find(|it| it.name == "embed_tokens.weight").unwrap();
            let first = match precision {
                Precision::F32 => bad.to_le_bytes().to_vec(),
                Precision::F16 => half::f16::from_f32(bad).to_le_bytes().to_vec(),
                _ => half::bf16::from_f32(bad).to_le_bytes().to_vec(),
            };
            table.raw_data.as_mut().unwrap()[..first.len()].copy_from_slice(&first);
            fs::write(&path, model.encode_to_vec()).unwrap();
            let drawn = Drawn::open(&path, &config).unwrap();
            let spec = ParameterSpec { shape: vec![64, 32], ..spec(Init::Zeros, 1) };
            let error = drawn.load("embed_tokens.weight", &spec).unwrap_err().to_string();
            let expected = format!("tensor embed_tokens.weight holds {bad} at element 0");
            assert!(error.ends_with(&expected), "{precision:?}: {error}");
        }
    }
    let path = dir.path().join("model.safetensors");
    write(&path, |it| it.get_mut("final_norm.weight").unwrap().1[3] = f32::NAN);
    let checkpoint = Checkpoint::open(&path, &config).unwrap();
    let error = checkpoint.load("final_norm.weight", &spec(Init::Zeros, 32)).unwrap_err();
    assert!(
        error.to_string().ends_with("tensor final_norm.weight holds NaN at element 3"),
        "{error}"
    );
}

/// Goal: whatever a graph says of its initializers, of their types, extents and places in another file,
/// what is loaded is what the model has, and numbers.
#[test]
fn fuzzed_graphs_give_weights_or_are_refused() {
    let (dir, config) = (tempfile::tempdir().unwrap(), config(Family::Griffin));
    let path = dir.path().join(MODEL_FILE);
    let outside = Limits { inline_bytes_max: 0, constant_bytes_max: 64 };
    // The file of large weights is that of the last.
    let inline = Precision::ALL.map(|it| (it, Limits::default()));
    let seeds =
        inline.into_iter().chain([(Precision::Bf16, outside)]).map(|(precision, limits)| {
            let graph = onnx::emit(&config, Target::Ragged, precision);
            onnx::write(graph, "small", &Random { seed: 1 }, limits, dir.path()).unwrap();
            fs::read(&path).unwrap()
        });
    let fuzz = Fuzz {
        name: "graph",
        format: Format::Protobuf,
        seeds: seeds.collect(),
        words: &[b"location", b"offset", b"length", b"18446744073709551615", b"..", b"model.onnx"],
    };
    fuzz.run(|bytes| {
        overwrite(&path, bytes);
        let Ok(drawn) = Drawn::open(&path, &config) else { return false };
        census::parameters(&config).into_iter().all(|(name, spec)| {
            let Ok(values) = drawn.load(name.as_str(), &spec) else { return false };
            assert_eq!(values.len() as u64, spec.shape.iter().product::<u64>(), "{name}");
            assert!(values.iter().all(|it| it.is_finite()), "{name}");
            true
        })
    });
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
    ParameterSpec { shape: vec![extent], init, role: Role::Steering }
}

fn tiny() -> ModelConfig {
    presets::preset("tiny").unwrap()
}
