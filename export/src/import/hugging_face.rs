//! Hugging Face's RecurrentGemma: what `config.json` says, and what its tensors are called.

#[cfg(test)]
mod tests;

use std::{fs, path::Path};

use aerie_models::{AInit, BlockKind, Family, ModelConfig, ParameterSpec};
use serde_json::{Value, json};

use crate::{
    import::{
        ImportError, io_error,
        tensors::{Mapped, Rule, Tensors},
    },
    onnx::WeightsError,
};

/// Name of the configuration beside a checkpoint.
pub(super) const CONFIG_FILE: &str = "config.json";
/// A configuration is a few kilobytes; what is larger is not one.
const CONFIG_BYTES_MAX: u64 = 1 << 20;
/// The head's own table, which repeats the embedding's.
const HEAD: &str = "lm_head.weight";
const EMBEDDING: &str = "model.embed_tokens.weight";

/// The model that `tensors` and the configuration at `path` describe, and what is odd about it.
///
/// # Errors
/// If one of them says something that is not computed here, or they do not fit each other.
pub(super) fn model(
    tensors: Tensors,
    path: &Path,
) -> Result<(ModelConfig, Mapped, Option<String>), ImportError> {
    let fields = Fields::read(path)?;
    let config = fields.config()?;
    let expected = [config.vocab.into(), config.width.into()];
    for table in [HEAD, EMBEDDING] {
        if let Some(found) = tensors.shape(table).filter(|found| **found != expected) {
            let (path, name) = (tensors.path().to_owned(), table.to_owned());
            let (found, expected) = (found.to_vec(), expected.to_vec());
            return Err(WeightsError::Shape { path, name, found, expected }.into());
        }
    }
    let has = |name| tensors.shape(name).is_some();
    let warning = if has(HEAD) && has(EMBEDDING) && !tensors.equal(EMBEDDING, HEAD)? {
        // Two tables that are meant to be two make another model.
        fields.require("tie_word_embeddings", &json!(true))?;
        let path = tensors.path().display();
        Some(format!("{path}: {HEAD} differs from {EMBEDDING}; the latter is taken for both"))
    } else {
        None
    };
    let embedding = if has(HEAD) && !has(EMBEDDING) { HEAD } else { EMBEDDING };
    let rule = |name: &str, spec: &ParameterSpec| match name {
        "embed_tokens.weight" => Rule::copy(embedding, spec),
        _ => rule(name, spec, config.gate_blocks),
    };
    let mapped = Mapped::new(tensors, &config, &[HEAD], rule)?;
    Ok((config, mapped, warning))
}

/// Our names are theirs without `model.`. The convolution has its axes the other way round, and the
/// gates' biases are cut into blocks.
fn rule(name: &str, spec: &ParameterSpec, gate_blocks: u32) -> Rule {
    let mut rule = Rule::copy(format!("model.{name}"), spec);
    if name.ends_with("conv_1d.weight") {
        let &[taps, channels] = &*spec.shape else { panic!("{name} is a matrix: {spec:?}") };
        rule.shape = vec![channels, 1, taps];
        rule.transpose = true;
    }
    if name.ends_with("_gate_bias") {
        rule.cut(gate_blocks);
    }
    rule
}

/// `config.json`; what does not change what is computed is not looked at.
struct Fields<'a> {
    path: &'a Path,
    value: Value,
}

impl<'a> Fields<'a> {
    fn read(path: &'a Path) -> Result<Self, ImportError> {
        let found_bytes = fs::metadata(path).map_err(io_error(path))?.len();
        if CONFIG_BYTES_MAX < found_bytes {
            let (path, max_bytes) = (path.to_owned(), CONFIG_BYTES_MAX);
            return Err(ImportError::TooLarge { path, found_bytes, max_bytes });
        }
        let bytes = fs::read(path).map_err(io_error(path))?;
        let value = serde_json::from_slice(&bytes)
            .map_err(|source| ImportError::Json { path: path.to_owned(), source })?;
        Ok(Self { path, value })
    }

    fn config(&self) -> Result<ModelConfig, ImportError> {
        if self.get("model_type").is_none() {
            return Err(self.error("model_type", &Value::Null, "\"recurrent_gemma\""));
        }
        for (field, expected) in [
            ("model_type", json!("recurrent_gemma")),
            ("hidden_activation", json!("gelu_pytorch_tanh")),
            ("rms_norm_eps", json!(1e-6)),
            ("partial_rotary_factor", json!(0.5)),
            ("rope_theta", json!(10_000.0)),
            ("rope_type", json!("default")),
            ("embeddings_scale_by_sqrt_dim", json!(true)),
            ("conv1d_width", json!(4)),
            ("attention_bias", json!(false)),
        ] {
            self.require(field, &expected)?;
        }
        let width = self.extent("hidden_size", None)?;
        let layers = self.extent("num_hidden_layers", None)?;
        let heads = self.extent("num_attention_heads", None)?;
        if self.extent("num_key_value_heads", Some(heads))? != 1 {
            let found = self.get("num_key_value_heads").unwrap_or(&Value::Null);
            return Err(self.error("num_key_value_heads", found, "1"));
        }
        let mlp_width_twice = self.extent("intermediate_size", None)?;
        if mlp_width_twice % 2 != 0 {
            let found = json!(mlp_width_twice);
            return Err(self.error("intermediate_size", &found, "an even number"));
        }
        let cap = self.get("logits_soft_cap").map_or(Ok(30.0), |found| {
            found.as_f64().ok_or_else(|| self.error("logits_soft_cap", found, "a number"))
        })?;
        let config = ModelConfig {
            family: self.family(layers)?,
            vocab: self.extent("vocab_size", None)?,
            width,
            recurrence_width: self.extent("lru_width", Some(width))?,
            mlp_width: mlp_width_twice / 2,
            layers,
            heads,
            head_dim: self.extent("head_dim", width.checked_div(heads))?,
            gate_blocks: heads,
            window: self.extent("attention_window_size", Some(2048))?,
            scale_embedding: true,
            #[expect(clippy::cast_possible_truncation, reason = "f32 is what it is computed in")]
            logits_soft_cap: Some(cap as f32),
            a_init: AInit::Code,
        };
        let path = || self.path.to_owned();
        config.checked().map_err(|source| ImportError::Config { path: path(), source })
    }

    /// The family that the list of block types means, repeated over all layers.
    fn family(&self, layers: u32) -> Result<Family, ImportError> {
        let field = if self.get("block_types").is_some() { "block_types" } else { "_block_types" };
        let default = json!(["recurrent", "recurrent", "attention"]);
        let found = self.get(field).unwrap_or(&default);
        let kind = |it: &Value| match it.as_str() {
            Some("recurrent") => Some(BlockKind::Recurrent),
            Some("attention") => Some(BlockKind::Attention),
            _ => None,
        };
        let pattern: Option<Vec<_>> = found.as_array().and_then(|it| it.iter().map(kind).collect());
        let pattern = pattern.filter(|it| !it.is_empty());
        let expected = "a list of \"recurrent\" and \"attention\"";
        let pattern = pattern.ok_or_else(|| self.error(field, found, expected))?;
        // What repeats after so many blocks and what repeats after three agree everywhere if they do
        // up to here, however many layers somebody asks for.
        let layers_max = (layers as usize).min(3 * pattern.len());
        let kinds = pattern.iter().copied().cycle().take(layers_max);
        super::family(kinds).ok_or_else(|| {
            let expected = "recurrent, recurrent, attention in turn, or one of them throughout";
            self.error(field, found, expected)
        })
    }

    /// Holds a field that is there to the only value that is computed here.
    fn require(&self, field: &'static str, expected: &Value) -> Result<(), ImportError> {
        let Some(found) = self.get(field) else { return Ok(()) };
        let is_same = match (found.as_f64(), expected.as_f64()) {
            (Some(found), Some(expected)) => found == expected,
            _ => found == expected,
        };
        if is_same { Ok(()) } else { Err(self.error(field, found, &expected.to_string())) }
    }

    fn extent(&self, field: &'static str, default: Option<u32>) -> Result<u32, ImportError> {
        let number = |it: &Value| it.as_u64().and_then(|it| u32::try_from(it).ok());
        let found = self.get(field);
        found.map_or(default, number).ok_or_else(|| {
            self.error(field, found.unwrap_or(&Value::Null), "a whole number below 2^32")
        })
    }

    /// A field that is there and not null. Newer files keep those of the rotary embedding apart.
    fn get(&self, field: &str) -> Option<&Value> {
        let nested = self.value.get("rope_parameters").and_then(|it| it.get(field));
        self.value.get(field).or(nested).filter(|it| !it.is_null())
    }

    fn error(&self, field: &'static str, found: &Value, expected: &str) -> ImportError {
        let (path, found) = (self.path.to_owned(), found.to_string());
        ImportError::Field { path, field, found, expected: expected.to_owned() }
    }
}
