//! What changes in a graph, and what does not.

use aerie_fuzz::{Format, Fuzz};
use aerie_models::{Family, ModelConfig, Precision, presets};
use prost::Message;

use super::*;
use crate::{
    import::tests::config,
    onnx::{
        Limits, Target, emit,
        graph::Elements,
        weights::{Random, read_model},
        write,
    },
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

/// Nodes that take or give nothing were indexed as if they did.
#[test]
fn nodes_without_edges_are_refused_or_passed_over() {
    let mut graph = tiny(Target::Ragged, Precision::F16);
    graph.node.iter_mut().filter(|it| it.op_type == "Cast").for_each(|it| it.input.clear());
    collect_squares(&mut graph).unwrap();
    let gather = graph.node.iter_mut().find(|it| it.name == "last_rows/Gather");
    assert_eq!(gather, None);
    let mut graph = tiny(Target::Ragged, Precision::F16);
    let gather = graph.node.iter_mut().find(|it| it.name == "last_rows/Gather");
    gather.unwrap().output.clear();
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

#[test]
fn fuzzed_graphs_are_changed_or_refused() {
    let small = |precision| {
        let mut graph = drawn(&config(Family::Griffin), Target::Ragged, precision);
        // Elements are nothing that is changed.
        graph.initializer.iter_mut().for_each(|it| it.raw_data = None);
        graph.encode_to_vec()
    };
    let seeds = [Precision::F16, Precision::Q4].map(small).to_vec();
    let words: &[&[u8]] =
        &[b"last_rows/Gather", b"Cast", b"Gemm", b"PackedGated", b"aerie", b"logits"];
    Fuzz { name: "edit", format: Format::Protobuf, seeds, words }.run(|bytes| {
        let Ok(graph) = proto::Graph::decode(bytes) else { return false };
        let mut squares = graph.clone();
        rounds_inputs(&graph);
        keep_every_row(&mut graph.clone()).is_ok() && collect_squares(&mut squares).is_ok()
    });
}

fn tiny(target: Target, precision: Precision) -> proto::Graph {
    drawn(&presets::preset("tiny").unwrap(), target, precision)
}

fn drawn(config: &ModelConfig, target: Target, precision: Precision) -> proto::Graph {
    let dir = tempfile::tempdir().unwrap();
    let graph = emit(config, target, precision);
    write(graph, "tiny", &Random { seed: 1 }, Limits::default(), dir.path()).unwrap();
    read_model(&dir.path().join("model.onnx")).unwrap().graph.unwrap()
}
