//! The structure of graphs: what they are made of and whether they hang together. What they compute
//! is compared by `verify`, and by Python's runtime below.

mod parts;

use std::{
    collections::{BTreeMap, HashSet},
    env, fs,
    path::{Path as FilePath, PathBuf},
    process::Command,
};

use aerie_models::{
    Carry, Init, ModelConfig, ParameterSpec, Precision, bundle::MODEL_FILE, presets,
};
use expect_test::{Expect, expect};
use prost::Message;

use super::{
    Graph, Limits, Target, Weights, WeightsError, emit,
    emitter::state_name,
    proto,
    weights::{Drawn, Random},
    write,
    write::DATA_FILE,
};

/// Random weights without zeros: a bias or norm that is mixed up with another shows.
#[derive(Debug)]
pub(crate) struct Jittered(pub(crate) Random);

impl Weights for Jittered {
    fn load(&self, name: &str, spec: &ParameterSpec) -> Result<Vec<f32>, WeightsError> {
        let init = match spec.init {
            Init::Zeros => Init::Normal { std: 0.2 },
            other => other,
        };
        self.0.load(name, &ParameterSpec { init, ..spec.clone() })
    }
}

#[test]
fn ragged_graph_has_one_node_for_each_operation() {
    check_nodes(
        Target::Ragged,
        Precision::F32,
        expect![
            "10 Add, 2 Gather, 9 Gelu, 32 Gemm, 12 Mul, 1 Slice, 1 Sub, 1 Tanh, 8 aerie.BlockDiagonal, 4 aerie.CausalConv1d, 1 aerie.LocalAttention, 4 aerie.RgLru, 11 aerie.RmsNorm"
        ],
    );
}

#[test]
fn weights_of_16_bits_are_cast_once_each() {
    // 44 matrices, the tied table once.
    check_nodes(
        Target::Ragged,
        Precision::F16,
        expect![
            "10 Add, 44 Cast, 2 Gather, 9 Gelu, 32 Gemm, 12 Mul, 1 Slice, 1 Sub, 1 Tanh, 8 aerie.BlockDiagonal, 4 aerie.CausalConv1d, 1 aerie.LocalAttention, 4 aerie.RgLru, 11 aerie.RmsNorm"
        ],
    );
}

#[test]
fn packed_graph_has_our_products() {
    check_nodes(
        Target::Ragged,
        Precision::Q4,
        expect![
            "1 Gather, 1 Mul, 1 Slice, 1 Sub, 4 aerie.CausalConv1d, 1 aerie.LocalAttention, 5 aerie.PackedGated, 1 aerie.PackedGather, 11 aerie.PackedMatMul, 4 aerie.PackedPair, 1 aerie.PackedQkv, 4 aerie.PackedRgLru, 1 aerie.RmsNorm"
        ],
    );
}

#[test]
fn portable_graph_has_standard_operators_only() {
    check_nodes(
        Target::Portable,
        Precision::F32,
        expect![
            "4 Abs, 58 Add, 27 Cast, 22 Concat, 1 Cos, 11 Div, 1 Equal, 12 Exp, 1 Gather, 9 Gelu, 32 Gemm, 1 LessOrEqual, 4 Log, 10 MatMul, 4 Max, 1 Mod, 72 Mul, 4 Neg, 11 ReduceMean, 4 ReduceSum, 20 Reshape, 16 Shape, 8 Sigmoid, 1 Sin, 18 Slice, 1 Softmax, 15 Sqrt, 6 Sub, 1 Tanh, 1 Transpose, 30 Unsqueeze, 17 Where"
        ],
    );
}

/// Goal: no exporter may lose `√(1 - a²)`, as one of a known library once did in silence.
/// Method: follow the next state of a recurrent layer back to its inputs.
#[test]
fn normaliser_is_in_the_graph() {
    let graph = emit(&tiny(), Target::Portable, Precision::F32);
    let made: BTreeMap<&str, &proto::Node> = graph
        .nodes()
        .iter()
        .flat_map(|node| node.output.iter().map(move |it| (it.as_str(), node)))
        .collect();
    for layer in [0, 1, 3, 4] {
        let mut ops = HashSet::new();
        let mut edges = vec![format!("state.layers.{layer}.rg_lru.next")];
        while let Some(edge) = edges.pop() {
            let Some(node) = made.get(edge.as_str()) else { continue };
            if node.name.starts_with(&format!("layers.{layer}.temporal_block.rg_lru/"))
                && ops.insert(node.op_type.as_str())
            {
                edges.extend(node.input.iter().cloned());
            }
        }
        assert!(ops.contains("Sqrt") && ops.contains("Sub"), "layer {layer}: {ops:?}");
    }
    let ragged = emit(&tiny(), Target::Ragged, Precision::F32);
    assert_eq!(ragged.ops().get("RgLru"), Some(&1), "the operator has the normaliser in it");
}

#[test]
fn every_edge_is_made_before_it_is_read() {
    for target in [Target::Ragged, Target::Portable] {
        for preset in ["tiny", "tales-hawk", "tales-mqa"] {
            let config = presets::preset(preset).unwrap();
            let graph = emit(&config, target, Precision::F16);
            let mut known: HashSet<String> =
                graph.constants().iter().map(|it| it.name.clone()).collect();
            let nodes = graph.nodes().to_vec();
            let proto = graph.into_proto(String::new(), Vec::new());
            known.extend(proto.input.iter().map(|it| it.name.clone()));
            let mut names = HashSet::new();
            for node in &nodes {
                assert!(names.insert(&node.name), "two nodes are called {}", node.name);
                let unknown = node.input.iter().find(|it| !known.contains(*it));
                assert_eq!(unknown, None, "{preset}, {target:?}: input of {}", node.name);
                for edge in &node.output {
                    assert!(known.insert(edge.clone()), "{edge} is made twice");
                }
            }
            let lost = proto.output.iter().find(|it| !known.contains(&it.name));
            assert_eq!(lost, None, "{preset}, {target:?}");
        }
    }
}

#[test]
fn inputs_and_outputs_are_those_of_the_step() {
    let graph = emit(&tiny(), Target::Ragged, Precision::F32).into_proto(String::new(), vec![]);
    let names = |list: &[proto::ValueInfo]| -> Vec<String> {
        list.iter().map(|it| it.name.clone()).collect()
    };
    let layout = Carry::layout(&tiny());
    let state: Vec<String> = layout.fields().map(state_name).collect();
    let step = ["tokens", "segments", "lanes", "positions", "fresh"].map(str::to_owned);
    assert_eq!(names(&graph.input), [step.as_slice(), &state].concat());
    let next: Vec<String> = state.iter().map(|it| format!("{it}.next")).collect();
    assert_eq!(names(&graph.output), [&["logits".to_owned()][..], &next].concat());
}

#[test]
fn small_weights_stay_in_the_graph_and_large_ones_leave_it() {
    let config = tiny();
    let dir = tempfile::tempdir().unwrap();
    let graph = || emit(&config, Target::Ragged, Precision::F32);
    let weights = Random { seed: 3 };
    let files = write(graph(), "m", &weights, Limits::default(), dir.path()).unwrap();
    assert_eq!(files, [MODEL_FILE]);
    let inline = fs::read(dir.path().join(MODEL_FILE)).unwrap();

    let limits = Limits { inline_bytes_max: 1 << 10, constant_bytes_max: 1 << 12 };
    let files = write(graph(), "m", &weights, limits, dir.path()).unwrap();
    assert_eq!(files, [MODEL_FILE, DATA_FILE]);
    let model = proto::Model::decode(&*fs::read(dir.path().join(MODEL_FILE)).unwrap()).unwrap();
    let initializers = model.graph.unwrap().initializer;
    for tensor in &initializers {
        let offset = tensor.external("offset").map(|it| it.parse::<u64>().unwrap());
        assert_eq!(offset.is_some(), 1 << 12 < tensor.bytes(), "{}", tensor.name);
        assert_eq!(offset.unwrap_or_default() % 4096, 0, "{} can be mapped", tensor.name);
    }

    // Either way the same elements come back.
    let drawn = Drawn::open(&dir.path().join(MODEL_FILE), &config).unwrap();
    for (path, spec) in aerie_models::census::parameters(&config) {
        let expected = weights.load(path.as_str(), &spec).unwrap();
        assert_eq!(drawn.load(path.as_str(), &spec).unwrap(), expected, "{path}");
    }
    assert!(fs::read(dir.path().join(MODEL_FILE)).unwrap().len() < inline.len());
}

/// Goal: what we write is ONNX to others, and both graphs are one model.
/// Method: Python's `onnx` checks both graphs; Python's runtime runs them beside each other, ours
/// with the operators' shared library, past the attention window three times. Where weights are
/// packed, the standard graph has what unpacking gives.
#[test]
fn python_accepts_both_graphs_and_finds_them_equal() {
    check_in_python(Precision::F32, 1e-5);
    // Where bf16 are multiplied by tiles, inputs keep seventeen digits.
    check_in_python(Precision::Bf16, 5e-5);
    // Logits of a few units, from inputs that are bytes.
    check_in_python(Precision::Q8, 0.2);
    check_in_python(Precision::Q4, 0.2);
}

#[track_caller]
fn check_in_python(precision: Precision, tolerance: f64) {
    let root = FilePath::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let python = root.join(".deps/venv/bin/python");
    if !python.exists() {
        eprintln!("skipped: {} is missing; `make test` makes it", python.display());
        return;
    }
    let library = env::current_exe().unwrap().with_file_name("libaerie_ops.so");
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, target, precision, weights: &dyn Weights| -> PathBuf {
        let dir = dir.path().join(name);
        fs::create_dir(&dir).unwrap();
        let graph = emit(&tiny(), target, precision);
        super::write(graph, name, weights, Limits::default(), &dir).unwrap();
        dir.join(MODEL_FILE)
    };
    let ragged = write("ragged", Target::Ragged, precision, &Jittered(Random { seed: 5 }));
    let drawn = Drawn::open(&ragged, &tiny()).unwrap();
    let portable = write("portable", Target::Portable, Precision::F32, &drawn);
    let output = Command::new(python)
        .arg(root.join("tests/python/graph_parity.py"))
        .args([ragged, portable, library])
        .arg(tolerance.to_string())
        .output()
        .unwrap();
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{precision:?}: {out}\n{err}");
}

#[track_caller]
fn check_nodes(target: Target, precision: Precision, expected: Expect) {
    let graph: Graph = emit(&tiny(), target, precision);
    let mut counts: BTreeMap<String, u32> = BTreeMap::new();
    for node in graph.nodes() {
        let domain = if node.domain.is_empty() { String::new() } else { node.domain.clone() + "." };
        *counts.entry(domain + &node.op_type).or_default() += 1;
    }
    let counts: Vec<String> = counts.iter().map(|(op, n)| format!("{n} {op}")).collect();
    expected.assert_eq(&counts.join(", "));
}

fn tiny() -> ModelConfig {
    presets::preset("tiny").unwrap()
}
