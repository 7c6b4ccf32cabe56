//! The layouts in which Google released RecurrentGemma: the one of their PyTorch code, and the one
//! of their JAX code with its tree of parameters flattened, whose dense kernels are `[in, out]`.
//!
//! Neither comes with a configuration. Extents are read off the shapes, as Google's own code does;
//! what no shape tells is the caller's to give.

#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, iter};

use aerie_models::{AInit, BlockKind, ModelConfig, ParameterSpec};

use crate::{
    import::{
        ImportError,
        tensors::{Mapped, Rule, Tensors},
    },
    onnx::WeightsError,
};

/// What no shape tells; the defaults are RecurrentGemma's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Given {
    /// Attention heads, of a model without attention.
    pub heads: Option<u32>,
    /// `W`: a token attends to itself and to this many before it.
    pub window: u32,
    pub scale_embedding: bool,
    /// None leaves logits as they are.
    pub logits_soft_cap: Option<f32>,
}

impl Default for Given {
    fn default() -> Self {
        Self { heads: None, window: 2048, scale_embedding: true, logits_soft_cap: Some(30.0) }
    }
}

/// Whether tensors with these names are in one of Google's layouts.
pub(super) fn is_layout(tensors: &Tensors) -> bool {
    tensors.names().any(|name| canonical(name) == "embedder.input_embedding")
}

/// The model that `tensors` describe.
///
/// # Errors
/// If they do not make a model, or one that is not computed here.
pub(super) fn model(tensors: Tensors, given: Given) -> Result<(ModelConfig, Mapped), ImportError> {
    let names = Names::new(&tensors)?;
    let config = names.config(&tensors, given)?;
    let rule = |name: &str, spec: &ParameterSpec| {
        let mut rule = names.rule(name, spec);
        if name.ends_with("_gate_bias") {
            rule.cut(config.gate_blocks);
        }
        rule
    };
    let mapped = Mapped::new(tensors, &config, &[], rule)?;
    Ok((config, mapped))
}

/// Names as Google's PyTorch code spells them.
fn canonical(name: &str) -> String {
    let name = name.replace('/', ".");
    name.strip_prefix("params.").unwrap_or(&name).to_owned()
}

/// Names as in the file, by their canonical form.
struct Names(BTreeMap<String, String>);

impl Names {
    fn new(tensors: &Tensors) -> Result<Self, ImportError> {
        let mut names = BTreeMap::new();
        for name in tensors.names() {
            if let Some(other) = names.insert(canonical(name), name.to_owned()) {
                let (path, name) = (tensors.path().to_owned(), name.to_owned());
                return Err(ImportError::SameName { path, name, other });
            }
        }
        Ok(Self(names))
    }

    fn config(&self, tensors: &Tensors, given: Given) -> Result<ModelConfig, ImportError> {
        let embedding = self.shape(tensors, "embedder.input_embedding", "[V, D]", 2)?;
        let ffw = self.shape(tensors, "blocks.0.mlp_block.ffw_up.w", "[2, D, E]", 3)?;
        let mut kinds = Vec::new();
        let (mut gates, mut head_dim) = (None, None);
        // Every layer has at least one tensor, so this ends.
        for layer in 0.. {
            let gate = format!("blocks.{layer}.recurrent_block.rg_lru.a_gate.w");
            let keys = format!("blocks.{layer}.attention_block.proj_k");
            if self.0.contains_key(&gate) {
                kinds.push(BlockKind::Recurrent);
                gates = gates.or(Some(self.shape(tensors, &gate, "[K, R/K, R/K]", 3)?));
            } else if let Some((name, axis)) = self.linear(&keys) {
                kinds.push(BlockKind::Attention);
                let shape = self.shape(tensors, &name, "two axes", 2)?;
                head_dim = head_dim.or(Some(shape[axis]));
            } else {
                break;
            }
        }
        let width = embedding[1];
        let heads = match (head_dim, &gates, given.heads) {
            (_, _, Some(heads)) => heads,
            (Some(dim), _, _) => width.checked_div(dim).unwrap_or(0),
            (None, Some(gates), _) => gates[0],
            (None, None, _) => 0,
        };
        let (gate_blocks, recurrence_width) = match &gates {
            Some(gates) => (gates[0], gates[0].saturating_mul(gates[1])),
            None => (heads, width),
        };
        let path = || tensors.path().to_owned();
        let Some(family) = super::family(kinds.iter().copied()) else {
            return Err(ImportError::Pattern { path: path(), found: pattern(&kinds) });
        };
        let config = ModelConfig {
            family,
            vocab: embedding[0],
            width,
            recurrence_width,
            mlp_width: ffw[2],
            layers: u32::try_from(kinds.len()).unwrap_or(u32::MAX),
            heads,
            head_dim: head_dim.or_else(|| width.checked_div(heads)).unwrap_or(0),
            gate_blocks,
            window: given.window,
            scale_embedding: given.scale_embedding,
            logits_soft_cap: given.logits_soft_cap,
            a_init: AInit::Code,
        };
        config.checked().map_err(|source| ImportError::Config { path: path(), source })
    }

    /// The tensor that holds a linear map, in canonical form, and its axis of outputs.
    fn linear(&self, path: &str) -> Option<(String, usize)> {
        [("weight", 0), ("kernel", 1)]
            .map(|(leaf, axis)| (format!("{path}.{leaf}"), axis))
            .into_iter()
            .find(|(name, _)| self.0.contains_key(name))
    }

    /// The shape of a tensor that tells extents.
    fn shape(
        &self,
        tensors: &Tensors,
        name: &str,
        expected: &'static str,
        axes: usize,
    ) -> Result<Vec<u32>, ImportError> {
        let path = || tensors.path().to_owned();
        let Some(found) = self.0.get(name).and_then(|name| tensors.shape(name)) else {
            return Err(WeightsError::Missing { path: path(), name: name.to_owned() }.into());
        };
        let extents: Option<Vec<_>> = found.iter().map(|&it| u32::try_from(it).ok()).collect();
        match extents.filter(|it| it.len() == axes) {
            Some(extents) => Ok(extents),
            None => {
                let (path, name, found) = (path(), name.to_owned(), found.to_vec());
                Err(ImportError::Axes { path, name, found, expected })
            }
        }
    }

    /// Where a parameter of ours is found.
    fn rule(&self, name: &str, spec: &ParameterSpec) -> Rule {
        let Some((layer, rest)) = split_layer(name) else {
            let top = [
                ("embed_tokens.weight", "embedder.input_embedding"),
                ("final_norm.weight", "final_norm.scale"),
            ];
            let source = top.iter().find(|(ours, _)| *ours == name).map_or(name, |it| it.1);
            return Rule::copy(self.actual(source.to_owned()), spec);
        };
        let place = |theirs: &str| format!("blocks.{layer}.{theirs}");
        for (ours, theirs) in COPIES {
            if *ours == rest {
                return Rule::copy(self.actual(place(theirs)), spec);
            }
        }
        for (half, ours) in iter::zip(0.., ["mlp_block.gate_proj", "mlp_block.up_proj"]) {
            if let Some(leaf) = rest.strip_prefix(ours) {
                return self.half(half, &place("mlp_block.ffw_up"), leaf, spec);
            }
        }
        let known = LINEAR.iter().find_map(|(ours, theirs)| {
            Some((place(theirs), rest.strip_prefix(ours)?.strip_prefix('.')?))
        });
        let Some((path, leaf)) = known else { panic!("{name} has a place in Google's layout") };
        if leaf == "weight"
            && let Some((name, axis)) = self.linear(&path)
        {
            let mut rule = Rule::copy(self.actual(name), spec);
            if axis == 1 {
                rule.shape.reverse();
                rule.transpose = true;
            }
            return rule;
        }
        Rule::copy(self.actual(format!("{path}.{leaf}")), spec)
    }

    /// One of the two maps `[D, E]` that go up, which Google keeps in one tensor.
    fn half(&self, half: u64, path: &str, leaf: &str, spec: &ParameterSpec) -> Rule {
        let is_matrix = leaf == ".weight";
        let source = self.actual(format!("{path}.{}", if is_matrix { "w" } else { "b" }));
        let shape = match *spec.shape {
            [outputs, inputs] => vec![2, inputs, outputs],
            _ => [&[2, 1, 1], &*spec.shape].concat(),
        };
        Rule { source, shape, half: Some(half), transpose: is_matrix }
    }

    /// The name in the file; the canonical one if there is none, so that it can be missed.
    fn actual(&self, name: String) -> String {
        self.0.get(&name).cloned().unwrap_or(name)
    }
}

/// Tensors of a block that are ours as they are.
const COPIES: &[(&str, &str)] = &[
    ("temporal_pre_norm.weight", "temporal_pre_norm.scale"),
    ("channel_pre_norm.weight", "channel_pre_norm.scale"),
    ("temporal_block.conv_1d.weight", "recurrent_block.conv_1d.w"),
    ("temporal_block.conv_1d.bias", "recurrent_block.conv_1d.b"),
    ("temporal_block.rg_lru.recurrent_param", "recurrent_block.rg_lru.a_param"),
    ("temporal_block.rg_lru.input_gate_weight", "recurrent_block.rg_lru.input_gate.w"),
    ("temporal_block.rg_lru.input_gate_bias", "recurrent_block.rg_lru.input_gate.b"),
    ("temporal_block.rg_lru.recurrent_gate_weight", "recurrent_block.rg_lru.a_gate.w"),
    ("temporal_block.rg_lru.recurrent_gate_bias", "recurrent_block.rg_lru.a_gate.b"),
];

/// Linear maps of a block: `weight` `[out, in]`, or `kernel` `[in, out]`.
const LINEAR: &[(&str, &str)] = &[
    ("temporal_block.linear_x", "recurrent_block.linear_x"),
    ("temporal_block.linear_y", "recurrent_block.linear_y"),
    ("temporal_block.linear_out", "recurrent_block.linear_out"),
    ("temporal_block.q_proj", "attention_block.proj_q"),
    ("temporal_block.k_proj", "attention_block.proj_k"),
    ("temporal_block.v_proj", "attention_block.proj_v"),
    ("temporal_block.o_proj", "attention_block.proj_final"),
    ("mlp_block.down_proj", "mlp_block.ffw_down"),
];

/// `layers.7.x.y` as `7` and `x.y`.
fn split_layer(name: &str) -> Option<(&str, &str)> {
    name.strip_prefix("layers.")?.split_once('.')
}

/// Kinds as one letter each.
fn pattern(kinds: &[BlockKind]) -> String {
    let letter = |it: &BlockKind| match it {
        BlockKind::Recurrent => 'R',
        BlockKind::Attention => 'A',
    };
    kinds.iter().take(64).map(letter).collect()
}
