use std::fs;

use aerie_fuzz::{Format, Fuzz};
use aerie_models::{Manifest, bundle::hash_file};

use super::*;
use crate::testing::hosted;

#[test]
fn weights_in_other_files_are_found() {
    let graph = GraphProto { initializer: vec![inline(), tensor()] };
    let model = ModelProto { graph: Some(graph) }.encode_to_vec();
    let expected = External {
        name: "w".to_owned(),
        shape: vec![2, 3],
        element: WeightType::F32,
        file: "model.onnx.data".to_owned(),
        offset: 8,
        bytes: 24,
    };
    assert_eq!(externals(&model).unwrap(), [expected]);
}

#[test]
fn what_is_not_as_it_should_be_is_refused_by_name() {
    check(|it| it.data_type = 16, "elements of type 16");
    check(|it| it.dims = vec![2, 4], "24 bytes");
    check(|it| it.dims = vec![-2, -3], "[-2, -3]");
    check(|it| it.dims = vec![i64::MAX, i64::MAX], "24 bytes");
    check(|it| it.external_data.truncate(2), "length is missing");
    check(|it| drop(it.external_data.remove(0)), "location is missing");
    check(|it| it.external_data[1].value = "-8".to_owned(), "offset is missing or is not one");
    check(|it| it.external_data[2].value = "many".to_owned(), "length is missing or is not one");
    assert_eq!(externals(b"no protobuf"), Err(ExternalError::Graph));
    assert_eq!(externals(b"").unwrap(), []);
}

/// Weights come from files that the manifest names, and so has the hashes of.
#[test]
fn a_weight_in_a_file_that_the_manifest_does_not_name_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut manifest = hosted().manifest;
    manifest.files.clear();
    fs::write(dir.path().join("model.onnx.data"), [0; 64]).unwrap();
    let find = |manifest: &Manifest, weight: TensorProto| {
        let files = BundleFiles::open(dir.path(), manifest).unwrap();
        let weight = external(weight).unwrap();
        weight.find(&files).map(<[u8]>::len).map_err(|error| error.to_string())
    };
    let error = find(&manifest, tensor()).unwrap_err();
    assert!(error.contains("\"w\" is in \"model.onnx.data\", which the manifest"), "{error}");
    let hash = hash_file(&dir.path().join("model.onnx.data")).unwrap();
    manifest.files.insert("model.onnx.data".to_owned(), hash);
    assert_eq!(find(&manifest, tensor()), Ok(24));
    let mut late = tensor();
    late.external_data[1].value = usize::MAX.to_string();
    let error = find(&manifest, late).unwrap_err();
    assert!(error.contains("the file ends before"), "{error}");
}

#[test]
fn a_weight_ends_within_its_file_and_lies_aligned() {
    let weight = external(tensor()).unwrap();
    let file = [0f32; 9].map(f32::to_ne_bytes);
    let file = file.as_flattened();
    let start = file.as_ptr().align_offset(4);
    let file = &file[start..];
    assert_eq!(weight.of(&file[..32]), Some(&file[8..32]));
    assert_eq!(weight.of(&file[..31]), None);
    assert_eq!(weight.of(&file[1..33]), None);
    assert_eq!(weight.of(&[]), None);
}

/// Whatever a graph says of its weights, what is found of them lies within their file.
#[test]
fn fuzzed_graphs_have_their_weights_in_files_or_are_refused() {
    let graph = GraphProto { initializer: vec![inline(), tensor(), tensor()] };
    let seeds = vec![ModelProto { graph: Some(graph) }.encode_to_vec()];
    let words: &[&[u8]] =
        &[b"location", b"offset", b"length", b"18446744073709551615", b"-1", b"0"];
    let file = [0f32.to_ne_bytes(); 17];
    let file = file.as_flattened();
    let file = &file[file.as_ptr().align_offset(4)..];
    Fuzz { name: "externals", format: Format::Protobuf, seeds, words }.run(|bytes| {
        let Ok(weights) = externals(bytes) else { return false };
        let found = weights.iter().filter_map(|it| Some((it, it.of(file)?)));
        found.into_iter().for_each(|(it, found)| {
            let elements: u128 = it.shape.iter().map(|it| u128::from(it.unsigned_abs())).product();
            assert_eq!(found.len() as u128, elements * it.element.bytes() as u128);
        });
        true
    });
}

#[track_caller]
fn check(spoil: impl Fn(&mut TensorProto), expected: &str) {
    let mut tensor = tensor();
    spoil(&mut tensor);
    let error = external(tensor).unwrap_err().to_string();
    assert!(error.contains("\"w\"") && error.contains(expected), "{error}");
}

fn inline() -> TensorProto {
    TensorProto { data_location: 0, ..tensor() }
}

fn tensor() -> TensorProto {
    let entry = |(key, value): (&str, &str)| StringStringEntryProto {
        key: key.to_owned(),
        value: value.to_owned(),
    };
    let entries = [("location", "model.onnx.data"), ("offset", "8"), ("length", "24")];
    TensorProto {
        dims: vec![2, 3],
        data_type: 1,
        name: "w".to_owned(),
        external_data: entries.map(entry).into(),
        data_location: EXTERNAL,
    }
}
