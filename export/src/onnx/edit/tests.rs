//! What changes in a graph, and what does not.

use aerie_models::{Precision, presets};

use super::*;
use crate::onnx::{
    Limits, Target, emit,
    graph::Elements,
    weights::{Random, read_model},
    write,
};

#[test]
fn rows_are_kept_and_nothing_else_changes() {
    for precision in Precision::ALL {
        let before = tiny(Target::Ragged, precision);
        let mut after = before.clone();
        keep_every_row(&mut after).unwrap();
        let gone = before.node.iter().filter(|it| after.node.iter().all(|has| has.name != it.name));
        let gone: Vec<&str> = gone.map(|it| it.name.as_str()).collect();
        assert_eq!(gone, ["last_rows/Slice", "last_rows/Sub", "last_rows/Gather"]);
        let head = after.node.iter().filter(|it| !before.node.contains(it));
        let head: Vec<&str> = head.map(|it| it.name.as_str()).collect();
        assert_eq!(head.len(), 1, "one node reads other rows: {head:?}");
        assert!(head[0].starts_with("embed_tokens/"), "{head:?}");
    }
}

#[test]
fn portable_graph_is_refused() {
    let mut graph = tiny(Target::Portable, Precision::F32);
    let error = keep_every_row(&mut graph).unwrap_err();
    assert_eq!(error.to_string(), "the graph has no node last_rows/Gather");
}

#[test]
fn products_that_round_are_told_from_those_that_do_not() {
    for precision in Precision::ALL {
        let rounds = matches!(precision, Precision::Q8 | Precision::Q4);
        assert_eq!(rounds_inputs(&tiny(Target::Ragged, precision)), rounds, "{precision:?}");
    }
}

/// Every matrix that would be packed tells its inputs, whatever it is stored as, and none is packed
/// whose inputs are unknown.
#[test]
fn squares_are_collected_for_what_is_packed() {
    let config = presets::preset("tiny").unwrap();
    let packed = emit(&config, Target::Ragged, Precision::Q4);
    let is_packed = |it: &Elements| matches!(it, Elements::Packed(..));
    let mut names: Vec<String> = packed
        .constants()
        .iter()
        .filter(|it| is_packed(&it.elements))
        .map(|it| it.name.clone())
        .collect();
    names.sort();
    for precision in [Precision::F32, Precision::F16, Precision::Bf16] {
        let mut graph = tiny(Target::Ragged, precision);
        let outputs = collect_squares(&mut graph).unwrap();
        assert!(outputs.keys().eq(&names), "{precision:?}: {outputs:?}");
        let heads = graph.node.iter().filter(|it| it.name.starts_with("embed_tokens/"));
        let heads: Vec<&str> = heads.map(|it| it.op_type.as_str()).collect();
        assert!(!heads.contains(&"Tanh"), "the logits are not computed: {heads:?}");
    }
}

fn tiny(target: Target, precision: Precision) -> proto::Graph {
    let config = presets::preset("tiny").unwrap();
    let dir = tempfile::tempdir().unwrap();
    let graph = emit(&config, target, precision);
    write(graph, "tiny", &Random { seed: 1 }, Limits::default(), dir.path()).unwrap();
    read_model(&dir.path().join("model.onnx")).unwrap().graph.unwrap()
}
