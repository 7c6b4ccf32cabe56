use aerie_ops::schema::SCHEMAS;

use super::*;

/// As ONNX Runtime writes it, with fields that nobody here reads.
const TRACE: &str = r#"[
{"cat": "Session", "pid": 1, "tid": 1, "dur": 900, "ts": 3, "ph": "X", "name": "session_initialization", "args": {}},
{"cat": "Node", "pid": 1, "tid": 1, "dur": 6, "ts": 1000, "ph": "X", "name": "embed_tokens/Gather_kernel_time",
 "args": {"op_name": "Gather", "provider": "CPUExecutionProvider", "node_index": "0"}},
{"cat": "Node", "pid": 1, "tid": 1, "dur": 0, "ts": 1009, "ph": "X", "name": "layers.0/Add_kernel_time",
 "args": {"op_name": "Add", "provider": "CPUExecutionProvider", "node_index": "1"}},
{"cat": "Session", "pid": 1, "tid": 1, "dur": 12, "ts": 999, "ph": "X", "name": "SequentialExecutor::Execute", "args": {}},
{"cat": "Session", "pid": 1, "tid": 1, "dur": 14, "ts": 998, "ph": "X", "name": "model_run", "args": {}},
{"cat": "Session", "pid": 1, "tid": 1, "dur": 14, "ts": 1998, "ph": "X", "name": "model_run", "args": {}}
]"#;

fn node(name: &str, operator: &str, seconds: f64) -> Node {
    Node { name: name.to_owned(), operator: operator.to_owned(), seconds }
}

#[test]
fn nodes_belong_to_the_run_that_ends_after_them() {
    let runs = parse(TRACE).unwrap();
    let nodes = vec![
        node("embed_tokens/Gather", "Gather", 6.5 * 1e-6),
        node("layers.0/Add", "Add", 0.5 * 1e-6),
    ];
    assert_eq!(runs, [Run { nodes }, Run::default()]);
}

#[test]
fn half_a_trace_is_refused() {
    let error = parse(&TRACE[..TRACE.len() / 2]).unwrap_err();
    assert!(error.to_string().contains("trace"), "{error}");
}

#[test]
fn operators_have_the_kind_of_their_work() {
    for (name, operator, expected) in [
        ("embed_tokens/PackedMatMul", "PackedMatMul", Kind::Products),
        ("layers.0/Gemm", "FusedGemm", Kind::Products),
        ("embed_tokens/Gather", "Gather", Kind::Embedding),
        ("last_rows/Gather", "Gather", Kind::Elementwise),
        ("layers.0/Add", "Add", Kind::Elementwise),
    ] {
        assert_eq!(kind(&node(name, operator, 0.0)), expected, "{name}, {operator}");
    }
}

/// Whoever adds an operator says here what kind of work it does.
#[test]
fn every_operator_of_ours_has_a_kind() {
    for schema in SCHEMAS {
        assert_ne!(kind(&node("", schema.name, 0.0)), Kind::Elementwise, "{}", schema.name);
    }
}
