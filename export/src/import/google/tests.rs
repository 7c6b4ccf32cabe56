//! What shapes tell, what is given, and what neither makes a model of.

use aerie_models::Family;

use super::*;
use crate::import::tests::{Values, config, flax, google, write_safetensors};

#[test]
fn what_shapes_do_not_tell_is_given() {
    let given = Given { heads: None, window: 7, scale_embedding: false, logits_soft_cap: None };
    let mut expected = config(Family::Griffin);
    (expected.window, expected.scale_embedding, expected.logits_soft_cap) = (7, false, None);
    assert_eq!(open(&google(&expected), given).unwrap().0, expected);

    // Without attention, heads are the gates' blocks unless somebody knows better.
    let mut expected = config(Family::Hawk);
    expected.window = 2048;
    assert_eq!(open(&google(&expected), Given::default()).unwrap().0, expected);
    (expected.heads, expected.head_dim) = (1, 8);
    let given = Given { heads: Some(1), ..Given::default() };
    assert_eq!(open(&google(&expected), given).unwrap().0, expected);
}

#[test]
fn what_makes_no_model_is_refused() {
    let up = "blocks.0.mlp_block.ffw_up.w";
    refuse(|it| drop(it.remove(up)), "tensor blocks.0.mlp_block.ffw_up.w is missing");
    refuse(|it| it.get_mut(up).unwrap().0 = vec![2, 48], "shape [2, 48]; [2, D, E] is expected");
    refuse(
        |it| it.get_mut("embedder.input_embedding").unwrap().0 = vec![128],
        "embedder.input_embedding has shape [128]; [V, D] is expected",
    );
    // A layer that is not there ends the model, and those after it are then too many.
    refuse(|it| it.retain(|name, _| !name.starts_with("blocks.1.")), "is none of the model's");
    refuse(
        |it| it.retain(|name, _| !name.starts_with("blocks.0.recurrent")),
        "layers is 0; it must be at least 1",
    );
    refuse(
        |it| {
            let gate = it["blocks.0.recurrent_block.rg_lru.a_gate.w"].clone();
            it.insert("blocks.2.recurrent_block.rg_lru.a_gate.w".to_owned(), gate);
            it.insert(
                "blocks.4.attention_block.proj_k.weight".to_owned(),
                (vec![4, 8], vec![0.0; 32]),
            );
        },
        "the blocks are \"RRRRA\"",
    );
    refuse(
        |it| {
            let extra = it["final_norm.scale"].clone();
            it.insert("params/final_norm/scale".to_owned(), extra);
        },
        "have the same meaning",
    );
    let given = Given { heads: Some(3), ..Given::default() };
    let error = open(&google(&config(Family::Griffin)), given).unwrap_err().to_string();
    assert!(error.contains("heads · head_dim is 3 · 4, but width is 8"), "{error}");
}

#[test]
fn kernels_are_not_mistaken_for_weights() {
    let mut tensors = flax(&config(Family::Griffin));
    let name = "params/blocks.0/recurrent_block/linear_x/kernel";
    tensors.get_mut(name).unwrap().0.reverse();
    let error = open(&tensors, Given::default()).unwrap_err().to_string();
    let expected = "linear_x/kernel has shape [12, 8]; [8, 12] is expected";
    assert!(error.ends_with(expected), "{error}");
}

#[track_caller]
fn refuse(change: impl FnOnce(&mut Values), message: &str) {
    let mut tensors = google(&config(Family::Griffin));
    change(&mut tensors);
    let error = open(&tensors, Given::default()).unwrap_err().to_string();
    assert!(error.contains(message), "{error}");
}

fn open(tensors: &Values, given: Given) -> Result<(ModelConfig, Mapped), ImportError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    write_safetensors(&path, tensors);
    model(Tensors::open(&path)?, given)
}
