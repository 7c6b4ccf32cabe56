//! Indices of shards that lie.

use serde_json::{Value, json};

use super::*;
use crate::import::tests::{Values, sharded, write_safetensors};

#[test]
fn index_has_to_agree_with_its_shards() {
    let name = "model.final_norm.weight";
    check(|map| map[name] = json!("../x.safetensors"), "is not the name of a file beside it");
    check(|map| map[name] = json!("/x.safetensors"), "is not the name of a file beside it");
    check(|map| map[name] = json!("config.json"), "is not the name of a file beside it");
    check(|map| map[name] = json!(3), "invalid type");
    let expected = format!("tensor {name} of model-00002-of-00003.safetensors is not in it");
    check(|map| drop(map.as_object_mut().unwrap().remove(name)), &expected);
    check(
        |map| map["model.ghost"] = json!("model-00001-of-00003.safetensors"),
        "tensor model.ghost is not in model-00001-of-00003.safetensors",
    );
    let expected = format!("tensor {name} is in model-00002-of-00003.safetensors, not model-00003");
    check(|map| map[name] = json!("model-00003-of-00003.safetensors"), &expected);
}

#[test]
fn tensor_in_two_shards_and_a_shard_too_many_are_refused() {
    let (dir, index) = sharded();
    let extra = dir.path().join("model-00004-of-00004.safetensors");
    let tensors = Values::from([("model.final_norm.weight".to_owned(), (vec![1], vec![0.0]))]);
    write_safetensors(&extra, &tensors);
    let error = Tensors::open(&index).unwrap_err().to_string();
    assert!(error.contains("model-00004-of-00004.safetensors lies beside it"), "{error}");

    // The same tensor in a file that the index does name, for another one.
    let tensors = Values::from([
        ("model.final_norm.weight".to_owned(), (vec![1], vec![0.0])),
        ("model.more".to_owned(), (vec![1], vec![0.0])),
    ]);
    write_safetensors(&extra, &tensors);
    change(&index, |map| map["model.more"] = json!("model-00004-of-00004.safetensors"));
    let error = Tensors::open(&index).unwrap_err().to_string();
    assert!(error.contains("tensor model.final_norm.weight is in model-00004"), "{error}");
}

#[test]
fn shard_that_is_cut_or_missing_is_refused() {
    let (dir, index) = sharded();
    let shard = dir.path().join("model-00002-of-00003.safetensors");
    let bytes = fs::read(&shard).unwrap();
    fs::write(&shard, &bytes[..bytes.len() - 1]).unwrap();
    let error = Tensors::open(&index).unwrap_err().to_string();
    assert!(error.contains("model-00002-of-00003.safetensors") && error.contains("cut"), "{error}");
    fs::remove_file(&shard).unwrap();
    let error = Tensors::open(&index).unwrap_err().to_string();
    assert!(error.contains("model-00002-of-00003.safetensors: No such file"), "{error}");
}

/// Axes are swapped in squares; extents on either side of one must come out right.
#[test]
fn matrices_of_all_extents_are_transposed() {
    for (rows, columns) in [(1, 1), (3, 70), (32, 32), (33, 31), (64, 65)] {
        let values: Vec<f32> = (0..rows * columns).map(|it| it as f32).collect();
        let swapped = transposed(&values, &[rows, columns]);
        for (i, it) in swapped.iter().enumerate() {
            let (row, column) = (i as u64 / columns, i as u64 % columns);
            assert_eq!(
                *it,
                (column * rows + row) as f32,
                "[{row}, {column}] of [{rows}, {columns}]"
            );
        }
    }
}

/// Changes the map of a good index and expects it to be refused with `message`.
#[track_caller]
fn check(edit: impl FnOnce(&mut Value), message: &str) {
    let (_dir, index) = sharded();
    change(&index, edit);
    let error = Tensors::open(&index).unwrap_err().to_string();
    assert!(error.contains(message), "{error}");
}

fn change(index: &Path, edit: impl FnOnce(&mut Value)) {
    let mut value: Value = serde_json::from_slice(&fs::read(index).unwrap()).unwrap();
    edit(&mut value["weight_map"]);
    fs::write(index, value.to_string()).unwrap();
}
