//! Checkpoints in every layout, made here from the same parameters: each must give these back to the
//! bit, and what is spoilt must be refused by name.

mod memory;

use std::{
    collections::{BTreeMap, HashMap},
    fs, iter,
    path::{Path, PathBuf},
};

use aerie_fuzz::{Format, Fuzz, overwrite};
use aerie_models::{
    AInit, Family, Manifest, ModelConfig, Precision,
    bundle::{MODEL_FILE, TOKENIZER_FILE},
    census,
};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};

use super::*;
use crate::{
    emit::Options,
    onnx::{
        Target, Weights,
        weights::{Drawn, Random},
    },
};

/// By name: shape and elements.
pub(super) type Values = BTreeMap<String, (Vec<u64>, Vec<f32>)>;

/// What a PyTorch program wrote; `tests/fixtures/make.py` tells how.
pub(super) const GRIFFIN_PT: &[u8] = include_bytes!("../../tests/fixtures/griffin.pt");

#[test]
fn every_layout_gives_the_same_parameters() {
    for family in [Family::Griffin, Family::Hawk, Family::Mqa] {
        let config = config(family);
        let dir = tempfile::tempdir().unwrap();
        let whole = dir.path().join("whole");
        write_hugging_face(&whole, &config, &hugging_face(&config), 1);
        check(&whole, None, &config);
        let sharded = dir.path().join("sharded");
        write_hugging_face(&sharded, &config, &hugging_face(&config), 3);
        check(&sharded, None, &config);
        for (name, tensors) in [("torch", google(&config)), ("flax", flax(&config))] {
            let path = dir.path().join(name);
            write_folder(&path, &tensors);
            check(&path, Some(given(&config)), &config);
            check(&path.join("model.safetensors"), Some(given(&config)), &config);
        }
    }
}

#[test]
fn file_of_torch_gives_what_safetensors_give() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("griffin.pt");
    fs::write(&path, GRIFFIN_PT).unwrap();
    write_tokenizer(dir.path());
    let from_torch = import(&request(&path)).unwrap().source;

    // The formula of make.py; every value is exact in 16 bits.
    let tensors = google(&from_torch.config).into_iter().map(|(name, (shape, values))| {
        let value = |i: usize| ((7 * i + 13 * name.len()) % 61) as f32 - 30.0;
        let values = (0..values.len()).map(|i| value(i) / 32.0).collect();
        (name, (shape, values))
    });
    let other = dir.path().join("other");
    write_folder(&other, &tensors.collect());
    let expected = import(&request(&other)).unwrap().source;
    assert_eq!(from_torch.config, expected.config);
    assert_eq!(from_torch.config.window, 2048);
    for (name, spec) in census::parameters(&expected.config) {
        let load = |it: &Source| it.weights.load(name.as_str(), &spec).unwrap();
        assert_eq!(load(&from_torch), load(&expected), "{name}");
    }
}

#[test]
fn import_becomes_a_bundle_that_opens() {
    let (dir, config) = (tempfile::tempdir().unwrap(), config(Family::Griffin));
    let from = dir.path().join("recurrentgemma");
    write_hugging_face(&from, &config, &hugging_face(&config), 2);
    let source = import(&request(&from)).unwrap().source;
    let options = Options {
        name: "imported".to_owned(),
        target: Target::Ragged,
        precision: Precision::F32,
        force: false,
    };
    let out = dir.path().join("out");
    let written = emit::emit(&source, &options, &out).unwrap();
    let version = |op: &str| aerie_ops::schema::schema(op).map(|it| it.version);
    let manifest: Manifest = Manifest::open(&out, version).unwrap();
    assert_eq!(manifest, written);
    assert_eq!(manifest.model, config);
    assert_eq!(manifest.provenance.data, "unknown: imported recurrentgemma");
    assert_eq!((manifest.provenance.steps, manifest.provenance.tokens), (None, None));
    let drawn = Drawn::open(&out.join(MODEL_FILE), &config).unwrap();
    for (name, spec) in census::parameters(&config) {
        let expected = parameter(&config, name.as_str());
        assert_eq!(drawn.load(name.as_str(), &spec).unwrap(), expected, "{name}");
    }
}

#[test]
fn values_that_are_no_numbers_are_refused_before_a_bundle_is() {
    for bad in [f32::NAN, f32::INFINITY] {
        let (dir, config) = (tempfile::tempdir().unwrap(), config(Family::Griffin));
        let from = dir.path().join("from");
        let mut tensors = hugging_face(&config);
        tensors.get_mut("model.final_norm.weight").unwrap().1[5] = bad;
        write_hugging_face(&from, &config, &tensors, 1);
        let source = import(&request(&from)).unwrap().source;
        let options = Options {
            name: "imported".to_owned(),
            target: Target::Portable,
            precision: Precision::F32,
            force: false,
        };
        let out = dir.path().join("out");
        let error = emit::emit(&source, &options, &out).unwrap_err().to_string();
        let expected = format!("tensor model.final_norm.weight holds {bad} at element 5");
        assert!(error.ends_with(&expected), "{error}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left of a bundle");
    }
}

#[test]
fn tensor_that_does_not_fit_is_named() {
    let conv = "model.layers.0.temporal_block.conv_1d.weight";
    refused(
        |it| drop(it.remove(conv)),
        &format!("tensor {conv} is missing; one of shape [12, 1, 4] is expected"),
    );
    refused(
        |it| it.get_mut(conv).unwrap().0 = vec![12, 4, 1],
        &format!("tensor {conv} has shape [12, 4, 1]; [12, 1, 4] is expected"),
    );
    refused(
        |it| drop(it.remove("model.embed_tokens.weight")),
        "tensor model.embed_tokens.weight is missing; one of shape [16, 8] is expected",
    );
    refused(
        |it| drop(it.insert("model.layers.9.x".to_owned(), (vec![1], vec![0.0]))),
        "tensor model.layers.9.x is none of the model's",
    );
    refused(
        |it| drop(it.insert("lm_head.weight".to_owned(), (vec![1], vec![0.0]))),
        "tensor lm_head.weight has shape [1]; [16, 8] is expected",
    );
    // A head that fits beside an embedding that does not: the two were compared before either was
    // held to a shape, and the shorter ended first.
    let embedding = "model.embed_tokens.weight";
    refused(
        |it| {
            it.insert("lm_head.weight".to_owned(), it[embedding].clone());
            it.insert(embedding.to_owned(), (vec![17, 8], vec![0.5; 17 * 8]));
        },
        &format!("tensor {embedding} has shape [17, 8]; [16, 8] is expected"),
    );
}

/// A tensor that was transposed before it was saved keeps its buffer; one that is cut into blocks is
/// then no matrix of the model's, but its own axes are swapped all the same.
#[test]
fn biases_in_blocks_may_lie_column_by_column() {
    let (_dir, file) = torch();
    let load = |bytes: &[u8]| {
        overwrite(&file, bytes);
        let source = import(&request(&file)).unwrap().source;
        let parameters = census::parameters(&source.config);
        let bias = |(name, _): &(&aerie_models::Path, _)| name.as_str().ends_with("_gate_bias");
        let biases = parameters.iter().filter(bias);
        let load = |(name, spec): (&aerie_models::Path, _)| {
            source.weights.load(name.as_str(), spec).unwrap()
        };
        biases.map(load).collect::<Vec<_>>()
    };
    let plain = load(GRIFFIN_PT);
    let (rows, columns) = (b"K\x04K\x01\x86", b"K\x01K\x02\x86");
    let swapped = load(&torch_file::tests::changed(|name, mut bytes| {
        for at in 0..bytes.len().saturating_sub(rows.len()) {
            if name.ends_with("data.pkl") && bytes[at..].starts_with(rows) {
                bytes[at..at + columns.len()].copy_from_slice(columns);
            }
        }
        Some(bytes)
    }));
    let expected = plain.iter().map(|it| transpose(it, &[4, 2])).collect::<Vec<_>>();
    assert_eq!((swapped, plain.len()), (expected, 4));
}

#[test]
fn head_of_its_own_is_told_of() {
    let (dir, config) = (tempfile::tempdir().unwrap(), config(Family::Griffin));
    let embedding = "model.embed_tokens.weight";
    let with_head = |change: fn(&mut Values)| {
        let mut tensors = hugging_face(&config);
        tensors.insert("lm_head.weight".to_owned(), tensors[embedding].clone());
        change(&mut tensors);
        write_hugging_face(dir.path(), &config, &tensors, 1);
        import(&request(dir.path())).unwrap()
    };
    assert_eq!(with_head(|_| {}).warnings, [] as [String; 0]);
    let imported = with_head(|it| it.get_mut("lm_head.weight").unwrap().1[3] += 1.0);
    assert!(imported.warnings[0].contains("lm_head.weight differs"), "{:?}", imported.warnings);
    check_weights(&imported.source, &config);
    let imported = with_head(|it| drop(it.remove("model.embed_tokens.weight")));
    check_weights(&imported.source, &config);

    let path = dir.path().join("config.json");
    let mut fields = config_json(&config);
    fields["tie_word_embeddings"] = json!(false);
    fs::write(&path, fields.to_string()).unwrap();
    check_weights(&import(&request(dir.path())).unwrap().source, &config);
    let mut tensors = hugging_face(&config);
    tensors.insert("lm_head.weight".to_owned(), (vec![16, 8], vec![0.5; 128]));
    write_safetensors(&dir.path().join("model.safetensors"), &tensors);
    let error = import(&request(dir.path())).unwrap_err().to_string();
    assert!(error.ends_with("tie_word_embeddings is false; true is expected"), "{error}");
}

#[test]
fn folder_has_to_hold_one_checkpoint() {
    let (dir, config) = (tempfile::tempdir().unwrap(), config(Family::Griffin));
    let error = || import(&request(dir.path())).unwrap_err().to_string();
    assert!(error().contains("no checkpoint in this folder"), "{}", error());
    write_hugging_face(dir.path(), &config, &hugging_face(&config), 1);
    fs::write(dir.path().join("other.pt"), "").unwrap();
    assert!(error().contains("several checkpoints: model.safetensors, other.pt"), "{}", error());
    check(&dir.path().join("model.safetensors"), None, &config);
    let error = import(&request(&dir.path().join("config.json"))).unwrap_err().to_string();
    assert!(error.contains("not a .safetensors"), "{error}");
}

#[test]
fn configuration_that_is_there_is_not_given_again() {
    let (dir, config) = (tempfile::tempdir().unwrap(), config(Family::Griffin));
    write_hugging_face(dir.path(), &config, &hugging_face(&config), 1);
    let request = Request { given: Some(Given::default()), ..request(dir.path()) };
    let error = import(&request).unwrap_err().to_string();
    assert!(error.contains("config.json: says what --heads"), "{error}");
}

const HEADER_WORDS: &[&[u8]] = &[
    b"dtype",
    b"shape",
    b"data_offsets",
    b"__metadata__",
    b"F32",
    b"F16",
    b"BF16",
    b"F64",
    b"I64",
    b"F8_E4M3",
    b"U8",
    b"model.norm.weight",
    b"lm_head.weight",
    b"model.embed_tokens.weight",
    b"model.final_norm.weight",
];

#[test]
fn fuzzed_safetensors_are_imported_or_refused() {
    let (dir, config) = (tempfile::tempdir().unwrap(), config(Family::Griffin));
    let mut tensors = hugging_face(&config);
    write_hugging_face(dir.path(), &config, &tensors, 1);
    let file = dir.path().join("model.safetensors");
    let plain = fs::read(&file).unwrap();
    tensors.insert("lm_head.weight".to_owned(), tensors["model.embed_tokens.weight"].clone());
    write_safetensors(&file, &tensors);
    let seeds = vec![plain, fs::read(&file).unwrap()];
    let fuzz = Fuzz { name: "safetensors", format: Format::Headed, seeds, words: HEADER_WORDS };
    fuzz.run(|bytes| imported(&file, bytes, &request(dir.path()), load_all));
}

#[test]
fn fuzzed_parameters_of_google_are_imported_or_refused() {
    let (dir, config) = (tempfile::tempdir().unwrap(), config(Family::Griffin));
    let file = dir.path().join("model.safetensors");
    let seeds = [google(&config), flax(&config)].map(|tensors| {
        write_folder(dir.path(), &tensors);
        fs::read(&file).unwrap()
    });
    let words = &[HEADER_WORDS, &[b"blocks.0.mlp_block.ffw_up.w", b"params/", b"kernel"]].concat();
    let fuzz = Fuzz { name: "google", format: Format::Headed, seeds: seeds.to_vec(), words };
    fuzz.run(|bytes| imported(&file, bytes, &request(dir.path()), load_all));
}

/// Goal: shapes and types that fit the file, and not the model or each other.
/// Method: spoil a list of names, types and shapes, and write a file around it that holds what it says.
#[test]
fn fuzzed_shapes_are_imported_or_refused() {
    let (dir, config) = (tempfile::tempdir().unwrap(), config(Family::Griffin));
    let mut tensors = hugging_face(&config);
    tensors.insert("lm_head.weight".to_owned(), tensors["model.embed_tokens.weight"].clone());
    write_hugging_face(dir.path(), &config, &tensors, 1);
    let list = |tensors: &Values| {
        let entry = |(name, (shape, _)): (&String, &(Vec<u64>, _))| json!([name, "F32", shape]);
        tensors.iter().map(entry).collect::<Value>().to_string().into_bytes()
    };
    let fuzz = Fuzz {
        name: "shapes",
        format: Format::Text,
        seeds: vec![list(&tensors), list(&hugging_face(&config))],
        words: HEADER_WORDS,
    };
    let file = dir.path().join("model.safetensors");
    fuzz.run(|bytes| {
        let Some(bytes) = safetensors_of(bytes) else { return false };
        imported(&file, &bytes, &request(dir.path()), load_all)
    });
}

/// A file of the tensors that `list` names, if it is a list of names, types and shapes.
fn safetensors_of(list: &[u8]) -> Option<Vec<u8>> {
    const DATA_BYTES_MAX: u64 = 1 << 16;
    let (mut header, mut end) = (serde_json::Map::new(), 0u64);
    for entry in serde_json::from_slice::<Value>(list).ok()?.as_array()? {
        let extents = entry.get(2)?.as_array()?.iter();
        let elements = extents.map(Value::as_u64).try_fold(1u64, |n, it| n.checked_mul(it?))?;
        let element_bytes = match entry.get(1)?.as_str()? {
            "F16" | "BF16" => 2,
            "F64" | "I64" => 8,
            _ => 4,
        };
        let start = end;
        end = elements.checked_mul(element_bytes)?.checked_add(start)?;
        let name = entry.get(0)?.as_str()?.to_owned();
        let (dtype, shape) = (&entry[1], &entry[2]);
        let entry = json!({ "dtype": dtype, "shape": shape, "data_offsets": [start, end] });
        header.insert(name, entry);
    }
    if DATA_BYTES_MAX < end {
        return None;
    }
    let header = Value::Object(header).to_string().into_bytes();
    let data = vec![0; usize::try_from(end).unwrap()];
    Some([&(header.len() as u64).to_le_bytes(), &*header, &data].concat())
}

/// An index says which file a tensor is in, and no more: the weights are the same or there are none.
#[test]
fn fuzzed_indices_mean_the_same_or_are_refused() {
    let (dir, index) = sharded();
    let fuzz = Fuzz {
        name: "index",
        format: Format::Text,
        seeds: vec![fs::read(&index).unwrap()],
        words: &[b"model-00001-of-00003.safetensors", b"../x.safetensors", b"weight_map", b"/"],
    };
    let config = config(Family::Griffin);
    fuzz.run(|bytes| {
        imported(&index, bytes, &request(dir.path()), |it| check_weights(it, &config))
    });
}

#[test]
fn fuzzed_configurations_are_understood_or_refused() {
    let (dir, config) = (tempfile::tempdir().unwrap(), config(Family::Griffin));
    write_hugging_face(dir.path(), &config, &hugging_face(&config), 1);
    let file = dir.path().join(CONFIG_FILE);
    let fuzz = Fuzz {
        name: "config",
        format: Format::Text,
        seeds: vec![fs::read(&file).unwrap()],
        words: &[b"recurrent", b"attention", b"_block_types", b"rope_parameters", b"head_dim"],
    };
    // Some numbers may change and still make a model of the same tensors, like the window.
    fuzz.run(|bytes| imported(&file, bytes, &request(dir.path()), load_all));
}

#[test]
fn fuzzed_tokenizers_are_taken_or_refused() {
    let (dir, config) = (tempfile::tempdir().unwrap(), config(Family::Griffin));
    write_hugging_face(dir.path(), &config, &hugging_face(&config), 1);
    let file = dir.path().join(TOKENIZER_FILE);
    let fuzz = Fuzz {
        name: "tokenizer",
        format: Format::Text,
        seeds: vec![fs::read(&file).unwrap(), crate::emit::tokenizer_bytes(300)],
        words: &[
            b"BPE",
            b"WordPiece",
            b"Unigram",
            b"WordLevel",
            b"Split",
            b"Regex",
            b"(a+)+",
            b"id",
        ],
    };
    fuzz.run(|bytes| {
        overwrite(&file, bytes);
        tokenizer::read(&file, None, 300).is_ok()
    });
}

/// The archive as it lies: its directory, its names, its pickle and its buffers. It has no checksum of
/// its pickle that is read, so a name may come to mean another buffer of the same size.
#[test]
fn fuzzed_archives_are_imported_or_refused() {
    let words: &[&[u8]] =
        &[b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06", b"PK\x06\x06", b"data.pkl"];
    let words = &[words, pickle::tests::WORDS].concat();
    let seeds = vec![GRIFFIN_PT.to_vec()];
    let (dir, file) = torch();
    Fuzz { name: "archive", format: Format::Binary, seeds, words }
        .run(|bytes| imported(&file, bytes, &request(dir.path()), load_all));
}

/// The pickle within a good archive: shapes, strides and offsets meet the buffers they are of.
#[test]
fn fuzzed_pickles_are_imported_or_refused() {
    let (dir, file) = torch();
    let seeds = vec![torch_file::tests::pickle()];
    let fuzz = Fuzz {
        name: "archived-pickle",
        format: Format::Binary,
        seeds,
        words: pickle::tests::WORDS,
    };
    fuzz.run(|pickle| {
        let change = |name: &str, bytes| {
            Some(if name.ends_with("data.pkl") { pickle.to_vec() } else { bytes })
        };
        let bytes = torch_file::tests::changed(change);
        imported(&file, &bytes, &request(dir.path()), load_all)
    });
}

/// A folder with a good archive and a tokenizer.
fn torch() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    write_tokenizer(dir.path());
    let file = dir.path().join("griffin.pt");
    (dir, file)
}

/// Imports with `bytes` as `file`; what is imported is for `accept` to judge.
fn imported(file: &Path, bytes: &[u8], request: &Request<'_>, accept: impl Fn(&Source)) -> bool {
    overwrite(file, bytes);
    match import(request) {
        Ok(imported) => {
            accept(&imported.source);
            true
        }
        Err(error) => {
            assert_ne!(error.to_string(), "");
            false
        }
    }
}

fn load_all(source: &Source) {
    for (name, spec) in census::parameters(&source.config) {
        // Values may be none that a model has; they are then refused here.
        if let Ok(values) = source.weights.load(name.as_str(), &spec) {
            assert!(values.iter().all(|it| it.is_finite()), "{name}");
            assert_eq!(values.len() as u64, spec.shape.iter().product::<u64>(), "{name}");
        }
    }
}

/// Changes a good checkpoint and expects it to be refused with `message`.
#[track_caller]
fn refused(change: impl FnOnce(&mut Values), message: &str) {
    let (dir, config) = (tempfile::tempdir().unwrap(), config(Family::Griffin));
    let mut tensors = hugging_face(&config);
    change(&mut tensors);
    write_hugging_face(dir.path(), &config, &tensors, 1);
    let error = import(&request(dir.path())).unwrap_err().to_string();
    assert!(error.ends_with(message), "{error}");
}

/// Imports `from` and expects the parameters of `config`.
#[track_caller]
pub(super) fn check(from: &Path, given: Option<Given>, config: &ModelConfig) {
    let imported = import(&Request { given, ..request(from) }).unwrap();
    assert_eq!(imported.source.config, *config);
    assert_eq!(imported.warnings, [] as [String; 0]);
    check_weights(&imported.source, config);
}

#[track_caller]
fn check_weights(source: &Source, config: &ModelConfig) {
    for (name, spec) in census::parameters(config) {
        let found = source.weights.load(name.as_str(), &spec).unwrap();
        assert_eq!(found, parameter(config, name.as_str()), "{name}");
    }
}

pub(super) fn request(from: &Path) -> Request<'_> {
    Request { from, tokenizer: None, given: None, data: None }
}

/// Extents that all differ, so that no mistake about axes goes unnoticed.
pub(crate) fn config(family: Family) -> ModelConfig {
    ModelConfig {
        family,
        vocab: 16,
        width: 8,
        // A transformer's tensors do not tell one; it is taken to be as wide as the model.
        recurrence_width: if family == Family::Mqa { 8 } else { 12 },
        mlp_width: 6,
        layers: 4,
        heads: 2,
        head_dim: 4,
        gate_blocks: 2,
        window: 5,
        scale_embedding: true,
        logits_soft_cap: Some(30.0),
        a_init: AInit::Code,
    }
}

fn given(config: &ModelConfig) -> Given {
    Given { window: config.window, ..Given::default() }
}

/// A parameter as it has to come out.
fn parameter(config: &ModelConfig, name: &str) -> Vec<f32> {
    let parameters = census::parameters(config);
    let (_, spec) = parameters.iter().find(|(path, _)| path.as_str() == name).unwrap();
    // Biases and norms begin at zero; here they are to be told apart.
    let init = aerie_models::Init::Normal { std: 1.0 };
    let spec = aerie_models::ParameterSpec { init, ..spec.clone() };
    Random { seed: 1 }.load(name, &spec).unwrap()
}

/// The parameters as Hugging Face keeps them.
pub(super) fn hugging_face(config: &ModelConfig) -> Values {
    let mut tensors = Values::new();
    for (name, spec) in census::parameters(config) {
        let values = parameter(config, name.as_str());
        let (shape, values) = if name.as_str().ends_with("conv_1d.weight") {
            (vec![spec.shape[1], 1, spec.shape[0]], transpose(&values, &spec.shape))
        } else if name.as_str().ends_with("gate_bias") {
            (vec![2, spec.shape[0] / 2], values)
        } else {
            (spec.shape, values)
        };
        tensors.insert(format!("model.{name}"), (shape, values));
    }
    tensors
}

/// The parameters as Google's PyTorch code keeps them.
pub(super) fn google(config: &ModelConfig) -> Values {
    let mut tensors = Values::new();
    let mut ups: BTreeMap<String, [Vec<f32>; 2]> = BTreeMap::new();
    for (name, (shape, values)) in hugging_face(config) {
        let name = name.strip_prefix("model.").unwrap();
        if name == "embed_tokens.weight" {
            tensors.insert("embedder.input_embedding".to_owned(), (shape, values));
            continue;
        }
        if let Some((block, rest)) = name.split_once(".mlp_block.")
            && let Some(half) =
                ["gate_proj.", "up_proj."].iter().position(|it| rest.starts_with(it))
        {
            let is_weight = rest.ends_with("weight");
            let values = if is_weight { transpose(&values, &shape) } else { values };
            let leaf = if is_weight { "w" } else { "b" };
            ups.entry(format!("{block}.mlp_block.ffw_up.{leaf}")).or_default()[half] = values;
            continue;
        }
        let (name, shape, values) = if let Some(stem) = name.strip_suffix("conv_1d.weight") {
            let (rows, columns) = (shape[0], shape[2]);
            let values = transpose(&values, &[rows, columns]);
            (format!("{stem}conv_1d.w"), vec![columns, rows], values)
        } else {
            (name.to_owned(), shape, values)
        };
        tensors.insert(google_name(&name), (shape, values));
    }
    let (d, e) = (u64::from(config.width), u64::from(config.mlp_width));
    for (name, halves) in ups {
        let shape = if name.ends_with('w') { vec![2, d, e] } else { vec![2, 1, 1, e] };
        tensors.insert(name.replace("layers.", "blocks."), (shape, halves.concat()));
    }
    tensors
}

fn google_name(name: &str) -> String {
    let kind = if name.contains("_proj") { "attention_block" } else { "recurrent_block" };
    let pairs = [
        ("layers.", "blocks."),
        ("temporal_block", kind),
        ("norm.weight", "norm.scale"),
        ("conv_1d.bias", "conv_1d.b"),
        ("recurrent_param", "a_param"),
        ("recurrent_gate_", "a_gate."),
        ("input_gate_", "input_gate."),
        ("gate.weight", "gate.w"),
        ("gate.bias", "gate.b"),
        ("mlp_block.down_proj", "mlp_block.ffw_down"),
        ("q_proj", "proj_q"),
        ("k_proj", "proj_k"),
        ("v_proj", "proj_v"),
        ("o_proj", "proj_final"),
    ];
    pairs.iter().fold(name.to_owned(), |name, (ours, theirs)| name.replace(ours, theirs))
}

/// The parameters as Google's JAX code keeps them, its tree flattened.
pub(super) fn flax(config: &ModelConfig) -> Values {
    let flatten = |name: String| {
        let path = name.replace('.', "/").replacen("blocks/", "blocks.", 1);
        format!("params/{path}")
    };
    let tensors = google(config).into_iter().map(|(name, (shape, values))| {
        match name.strip_suffix(".weight") {
            Some(stem) => {
                let values = transpose(&values, &shape);
                (flatten(format!("{stem}.kernel")), (vec![shape[1], shape[0]], values))
            }
            None => (flatten(name), (shape, values)),
        }
    });
    tensors.collect()
}

fn transpose(values: &[f32], shape: &[u64]) -> Vec<f32> {
    let [rows, columns] = [0, 1].map(|axis| usize::try_from(shape[axis]).unwrap());
    let column = |column: usize| (0..rows).map(move |row| values[row * columns + column]);
    (0..columns).flat_map(column).collect()
}

/// `config.json` of Hugging Face.
pub(super) fn config_json(config: &ModelConfig) -> Value {
    let block_types = match config.family {
        Family::Griffin => json!(["recurrent", "recurrent", "attention"]),
        Family::Hawk => json!(["recurrent"]),
        Family::Mqa => json!(["attention"]),
    };
    json!({
        "model_type": "recurrent_gemma",
        "block_types": block_types,
        "vocab_size": config.vocab,
        "hidden_size": config.width,
        "lru_width": config.recurrence_width,
        "intermediate_size": 2 * config.mlp_width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": 1,
        "head_dim": config.head_dim,
        "attention_window_size": config.window,
        "logits_soft_cap": 30.0,
    })
}

/// Writes a folder as Hugging Face does, in so many files.
pub(super) fn write_hugging_face(
    dir: &Path,
    config: &ModelConfig,
    tensors: &Values,
    shards: usize,
) {
    fs::create_dir_all(dir).unwrap();
    fs::write(dir.join("config.json"), config_json(config).to_string()).unwrap();
    write_tokenizer(dir);
    if shards == 1 {
        return write_safetensors(&dir.join("model.safetensors"), tensors);
    }
    let mut parts = vec![Values::new(); shards];
    for ((name, tensor), part) in iter::zip(tensors, (0..shards).cycle()) {
        parts[part].insert(name.clone(), tensor.clone());
    }
    let mut weight_map = BTreeMap::new();
    for (idx, part) in parts.iter().enumerate() {
        let file = format!("model-{:05}-of-{shards:05}.safetensors", idx + 1);
        weight_map.extend(part.keys().map(|name| (name.clone(), file.clone())));
        write_safetensors(&dir.join(file), part);
    }
    let index = json!({ "metadata": { "total_size": 0 }, "weight_map": weight_map });
    fs::write(dir.join("model.safetensors.index.json"), index.to_string()).unwrap();
}

fn write_folder(dir: &Path, tensors: &Values) {
    fs::create_dir_all(dir).unwrap();
    write_tokenizer(dir);
    write_safetensors(&dir.join("model.safetensors"), tensors);
}

pub(super) fn write_tokenizer(dir: &Path) {
    fs::write(dir.join(TOKENIZER_FILE), crate::emit::tokenizer_bytes(16)).unwrap();
}

pub(super) fn write_safetensors(path: &Path, tensors: &Values) {
    let bytes: HashMap<&String, Vec<u8>> = tensors
        .iter()
        .map(|(name, (_, values))| (name, values.iter().flat_map(|it| it.to_le_bytes()).collect()))
        .collect();
    let views = tensors.iter().map(|(name, (shape, _))| {
        let shape = shape.iter().map(|&it| usize::try_from(it).unwrap()).collect();
        (name, TensorView::new(Dtype::F32, shape, &bytes[name]).unwrap())
    });
    fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

/// A folder with a good checkpoint in three files.
pub(super) fn sharded() -> (tempfile::TempDir, PathBuf) {
    let (dir, config) = (tempfile::tempdir().unwrap(), config(Family::Griffin));
    write_hugging_face(dir.path(), &config, &hugging_face(&config), 3);
    let index = dir.path().join("model.safetensors.index.json");
    (dir, index)
}
