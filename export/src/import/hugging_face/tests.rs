//! Configurations that say what is computed here, in every spelling, and those that do not.

use std::fs;

use super::*;
use crate::import::tests::{config, config_json};

#[test]
fn spellings_of_the_same_model_are_read_alike() {
    accept(|_| {});
    accept(|it| {
        it["_block_types"] = it["block_types"].take();
        it.as_object_mut().unwrap().remove("block_types");
    });
    // None is the default, and so is what is not there.
    accept(|it| it["block_types"] = Value::Null);
    accept(|it| drop(it.as_object_mut().unwrap().remove("head_dim")));
    accept(|it| drop(it.as_object_mut().unwrap().remove("logits_soft_cap")));
    accept(|it| it["rope_theta"] = json!(10000));
    accept(|it| {
        let rope = json!({"rope_theta": 1e4, "partial_rotary_factor": 0.5, "rope_type": "default"});
        it["rope_parameters"] = rope;
    });
    accept(|it| it["hidden_activation"] = json!("gelu_pytorch_tanh"));
    // The pattern may be written out, and may end anywhere.
    let (r, a) = ("recurrent", "attention");
    accept(|it| it["block_types"] = json!([r, r, a, r]));
}

#[test]
fn width_of_the_recurrence_defaults_to_the_model_s() {
    let mut expected = config(Family::Griffin);
    expected.recurrence_width = expected.width;
    let mut fields = config_json(&expected);
    fields["lru_width"] = Value::Null;
    assert_eq!(read(&fields).unwrap(), expected);
}

#[test]
fn what_is_not_computed_here_is_refused_by_field() {
    let list = |kinds: &[&str]| json!(kinds);
    refuse("model_type", json!("gemma"), "\"recurrent_gemma\" is expected");
    refuse("model_type", Value::Null, "model_type is null");
    refuse("hidden_activation", json!("silu"), "\"gelu_pytorch_tanh\" is expected");
    refuse("rms_norm_eps", json!(1e-5), "rms_norm_eps is 0.00001; 1e-6 is expected");
    refuse("partial_rotary_factor", json!(1.0), "partial_rotary_factor is 1.0; 0.5 is expected");
    refuse("rope_theta", json!(100_000), "rope_theta is 100000; 10000.0 is expected");
    refuse("rope_parameters", json!({"rope_theta": 5e5}), "rope_theta is 500000.0");
    refuse("rope_parameters", json!({"rope_type": "yarn"}), "rope_type is \"yarn\"");
    refuse("embeddings_scale_by_sqrt_dim", json!(false), "true is expected");
    refuse("conv1d_width", json!(3), "conv1d_width is 3; 4 is expected");
    refuse("attention_bias", json!(true), "attention_bias is true");
    refuse("num_key_value_heads", json!(2), "num_key_value_heads is 2; 1 is expected");
    refuse("num_key_value_heads", Value::Null, "num_key_value_heads is null; 1 is expected");
    refuse("intermediate_size", json!(13), "intermediate_size is 13; an even number");
    refuse("logits_soft_cap", json!(0.0), "logits_soft_cap is 0; it must be finite and above 0");
    refuse("logits_soft_cap", json!("high"), "logits_soft_cap is \"high\"; a number is expected");
    refuse("vocab_size", json!(-1), "vocab_size is -1; a whole number");
    refuse("vocab_size", json!(1u64 << 40), "vocab_size is 1099511627776; a whole number");
    refuse("hidden_size", Value::Null, "hidden_size is null; a whole number");
    refuse("num_hidden_layers", json!(4_000_000_000u32), "at most 1024 is supported");
    refuse("num_attention_heads", json!(0), "heads is 0");
    refuse("head_dim", json!(8), "heads · head_dim is 2 · 8, but width is 8");
    refuse("block_types", list(&["recurrent", "attention"]), "recurrent, attention in turn");
    refuse("block_types", list(&["recurrent", "mamba"]), "a list of \"recurrent\" and");
    refuse("block_types", list(&[]), "a list of \"recurrent\" and");
    refuse("block_types", json!("recurrent"), "a list of \"recurrent\" and");
}

#[test]
fn files_that_are_no_configuration_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(CONFIG_FILE);
    let error = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        let fields = Fields::read(&path);
        fields.and_then(|it| it.config()).unwrap_err().to_string()
    };
    assert!(error(b"{").contains("EOF while parsing"));
    assert!(error(b"[]").contains("model_type is null"));
    assert!(error(&vec![b' '; 2 << 20]).contains("at most 1048576 are read"));
}

#[track_caller]
fn accept(change: impl FnOnce(&mut Value)) {
    let expected = config(Family::Griffin);
    let mut fields = config_json(&expected);
    change(&mut fields);
    assert_eq!(read(&fields).unwrap(), expected);
}

#[track_caller]
fn refuse(field: &str, value: Value, message: &str) {
    let mut fields = config_json(&config(Family::Griffin));
    fields[field] = value;
    let error = read(&fields).unwrap_err().to_string();
    assert!(error.contains(message), "{error}");
}

fn read(fields: &Value) -> Result<ModelConfig, ImportError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(CONFIG_FILE);
    fs::write(&path, fields.to_string()).unwrap();
    Fields::read(&path)?.config()
}
