//! Changes to graphs that were written before, for those who look inside: what the server runs stays
//! as it lies in the bundle, node for node, and only the questions differ.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap, HashSet};

use aerie_ops::schema;
use thiserror::Error;

use crate::onnx::{
    emitter::LAST_ROWS,
    proto::{self, AttributeKind, DataType, Extent},
};

/// Why a graph cannot be changed.
#[derive(Debug, Error, PartialEq)]
pub enum EditError {
    #[error("the graph has no node {name}")]
    NoNode { name: String },
    #[error("the graph has no output {name}")]
    NoOutput { name: &'static str },
}

/// What the graph calls its answer.
const LOGITS: &str = "logits";
/// The axis over which squares are summed.
const AXIS: &str = "constant.squares.axis";

/// Has a ragged graph give the logits of every token, `[N, V]`, instead of each segment's last.
///
/// # Errors
/// If the graph does not choose them as ours do.
pub(crate) fn keep_every_row(graph: &mut proto::Graph) -> Result<(), EditError> {
    let name = format!("{LAST_ROWS}/Gather");
    let is_gather =
        |it: &proto::Node| it.name == name && matches!((&*it.input, &*it.output), ([_, _], [_]));
    let Some(at) = graph.node.iter().position(is_gather) else {
        return Err(EditError::NoNode { name });
    };
    let gather = graph.node.remove(at);
    for node in &mut graph.node {
        for input in node.input.iter_mut().filter(|it| **it == gather.output[0]) {
            input.clone_from(&gather.input[0]);
        }
    }
    let logits = graph.output.iter_mut().find(|it| it.name == LOGITS);
    let logits = logits.ok_or(EditError::NoOutput { name: LOGITS })?;
    let shape = logits.r#type.iter_mut().filter_map(|it| it.tensor.as_mut()?.shape.as_mut());
    if let Some(rows) = shape.flat_map(|it| it.dim.first_mut()).next() {
        rows.extent = Some(Extent::Symbol("N".to_owned()));
    }
    prune(graph);
    Ok(())
}

/// Whether products round their inputs to bytes.
pub(crate) fn rounds_inputs(graph: &proto::Graph) -> bool {
    let products = graph.node.iter().filter(|it| !weights(it).is_empty());
    let mut attributes = products.flat_map(|it| &it.attribute);
    attributes.any(|it| it.name == "activation_bits" && it.i != Some(32))
}

/// Has a ragged graph give, instead of logits, for every product the sums over all tokens of the
/// squares of its inputs, `[groups · inputs]`; says what the outputs are called, by the weight.
///
/// # Errors
/// If the graph is not made as ours are.
pub(crate) fn collect_squares(
    graph: &mut proto::Graph,
) -> Result<BTreeMap<String, String>, EditError> {
    keep_every_row(graph)?;
    let constants: HashSet<&str> = graph.initializer.iter().map(|it| it.name.as_str()).collect();
    let casts: HashMap<&str, &str> = graph
        .node
        .iter()
        .filter(|it| it.op_type == "Cast")
        .filter_map(|it| Some((it.output.first()?.as_str(), it.input.first()?.as_str())))
        .collect();
    let mut outputs = BTreeMap::new();
    let mut added = Vec::new();
    for product in &graph.node {
        let weights = weights(product).iter().filter_map(|weight| {
            let weight = casts.get(weight.as_str()).copied().unwrap_or(weight);
            constants.contains(weight).then_some(weight)
        });
        let norm = normed(product);
        for (idx, weight) in weights.enumerate() {
            let x = norm.as_ref().map_or(&product.input[0], |it| &it.output[0]);
            if let Some(norm) = norm.as_ref().filter(|_| idx == 0) {
                added.push(norm.clone());
            }
            let name = format!("{weight}.squares");
            outputs.insert(weight.to_owned(), name.clone());
            added.push(sum_of_squares(x, &name));
        }
    }
    graph.output.retain(|it| it.name != LOGITS);
    graph.output.extend(outputs.values().map(|it| value_info(it)));
    graph.node.extend(added);
    graph.initializer.push(proto::Tensor {
        dims: vec![1],
        data_type: DataType::I64.into(),
        name: AXIS.to_owned(),
        raw_data: Some(0i64.to_le_bytes().to_vec()),
        ..proto::Tensor::default()
    });
    prune(graph);
    Ok(outputs)
}

/// The weights that `node` multiplies its first input by, or its norm, if it is a product.
fn weights(node: &proto::Node) -> &[String] {
    let is = |names: &[&str]| names.iter().any(|name| is_ours(node, name));
    let is_gemm = node.domain.is_empty() && node.op_type == "Gemm";
    let range = if is_gemm || is(&[schema::BLOCK_DIAGONAL.name, schema::PACKED_MATMUL.name]) {
        1..2
    } else if is(&[schema::PACKED_RG_LRU.name]) {
        1..3
    } else if is(&[schema::PACKED_PAIR.name, schema::PACKED_GATED.name]) {
        2..4
    } else if is(&[schema::PACKED_QKV.name]) {
        2..5
    } else {
        0..0
    };
    node.input.get(range).unwrap_or_default()
}

/// The norm that `node` takes of its first input within, as a node of its own.
fn normed(node: &proto::Node) -> Option<proto::Node> {
    let epsilon = node.attribute.iter().find(|it| it.name == "epsilon")?;
    (!weights(node).is_empty()).then(|| proto::Node {
        input: node.input[..2].to_vec(),
        output: vec![format!("{}.norm", node.name)],
        name: format!("{}.norm", node.name),
        op_type: schema::RMS_NORM.name.to_owned(),
        attribute: vec![epsilon.clone()],
        domain: schema::DOMAIN.to_owned(),
    })
}

fn is_ours(node: &proto::Node, name: &str) -> bool {
    node.domain == schema::DOMAIN && node.op_type == name
}

/// A node that sums the squares of `x` `[N, ·]` over `N`.
fn sum_of_squares(x: &str, name: &str) -> proto::Node {
    let mut no_axis = proto::Attribute { name: "keepdims".to_owned(), ..Default::default() };
    no_axis.i = Some(0);
    no_axis.set_kind(AttributeKind::Int);
    proto::Node {
        input: vec![x.to_owned(), AXIS.to_owned()],
        output: vec![name.to_owned()],
        name: name.to_owned(),
        op_type: "ReduceSumSquare".to_owned(),
        attribute: vec![no_axis],
        domain: String::new(),
    }
}

/// An output of f32 whose shape follows from the graph.
fn value_info(name: &str) -> proto::ValueInfo {
    let tensor = proto::TensorType { element: DataType::F32.into(), shape: None };
    proto::ValueInfo { name: name.to_owned(), r#type: Some(proto::Type { tensor: Some(tensor) }) }
}

/// Removes what no output depends on: the runtime would compute it.
fn prune(graph: &mut proto::Graph) {
    let mut needed: HashSet<String> = graph.output.iter().map(|it| it.name.clone()).collect();
    let mut kept = Vec::with_capacity(graph.node.len());
    // Nodes lie in an order in which they can be run.
    for node in std::mem::take(&mut graph.node).into_iter().rev() {
        if node.output.iter().any(|it| needed.contains(it)) {
            needed.extend(node.input.iter().cloned());
            kept.push(node);
        }
    }
    kept.reverse();
    graph.node = kept;
    graph.initializer.retain(|it| needed.contains(&it.name));
}
