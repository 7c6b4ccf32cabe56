//! ONNX Runtime's trace, a list of events as Chrome's tracing has them, read as runs of nodes.
//!
//! A node's event ends before the next one's begins, and a run's comes after those of its nodes.

#[cfg(test)]
mod tests;

use anyhow::Context;
use serde::Deserialize;

use super::super::report::Kind;

/// One run of a graph.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Run {
    /// In the order in which they were run.
    pub(super) nodes: Vec<Node>,
}

/// A node of a run.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Node {
    pub(super) name: String,
    pub(super) operator: String,
    pub(super) seconds: f64,
}

#[derive(Debug, Deserialize)]
struct Event {
    name: String,
    /// Whole microseconds, cut.
    #[serde(default)]
    dur: u64,
    #[serde(default)]
    args: Args,
}

#[derive(Debug, Default, Deserialize)]
struct Args {
    op_name: Option<String>,
}

/// What the event of a node is called after the node's name.
const NODE: &str = "_kernel_time";
/// What the event of a run is called.
const RUN: &str = "model_run";

/// Reads a trace.
///
/// # Errors
/// If it is not one.
pub(super) fn parse(text: &str) -> anyhow::Result<Vec<Run>> {
    let events: Vec<Event> =
        serde_json::from_str(text).context("ONNX Runtime's trace cannot be read")?;
    let (mut runs, mut run) = (Vec::new(), Run::default());
    for Event { name, dur, args } in events {
        if name == RUN {
            runs.push(std::mem::take(&mut run));
        } else if let (Some(name), Some(operator)) = (name.strip_suffix(NODE), args.op_name) {
            // What was cut is half a microsecond on average.
            let seconds = (dur as f64 + 0.5) * 1e-6;
            run.nodes.push(Node { name: name.to_owned(), operator, seconds });
        }
    }
    Ok(runs)
}

/// What kind of work a node does; one that does several counts as what it is called after. So norms,
/// residuals and gates of the MLP may be in products, and the projections of its gates in the RG-LRU.
pub(super) fn kind(node: &Node) -> Kind {
    match node.operator.trim_start_matches("Fused") {
        "PackedMatMul" | "PackedPair" | "PackedQkv" | "PackedGated" => Kind::Products,
        "BlockDiagonal" | "MatMul" | "Gemm" => Kind::Products,
        "LocalAttention" => Kind::Attention,
        "RgLru" | "PackedRgLru" => Kind::RgLru,
        "CausalConv1d" => Kind::Convolution,
        "RmsNorm" => Kind::Norms,
        "PackedGather" => Kind::Embedding,
        "Gather" if node.name.contains("embed_tokens") => Kind::Embedding,
        _ => Kind::Elementwise,
    }
}
