//! Small bundles; where ONNX Runtime is missing, the tests say so and skip.

use aerie_models::Precision;

use super::{trace::Node, *};
use crate::{
    bench::report::Read,
    emit::{Options, Source, emit},
    onnx::Target,
    runtime::shared,
};

#[test]
fn step_of_a_small_bundle_is_taken_apart() {
    let Some(runtime) = shared() else { return };
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("tiny");
    let (target, precision) = (Target::Ragged, Precision::Q4);
    let options = Options { name: "tiny".to_owned(), target, precision, force: true };
    emit(&Source::random("tiny", 3).unwrap(), &options, &out).unwrap();
    let read = Read { one_bytes_per_s: 1e9, all_bytes_per_s: 1e9 };
    let limits = Limits { threads: 1, read, multiply_adds: Vec::new() };
    let tasks = vec![Task::Decode { sessions: 2 }, Task::Prompt { tokens: 20 }];
    let memory = Memory::new();
    let bench =
        Bench { runtime, memory: &memory, limits: &limits, tasks, position: None, rounds: 2 };
    let profiles = bench.run(&out).unwrap();
    assert_eq!(profiles.len(), 2);
    for it in &profiles {
        let nodes = |kind| it.parts.iter().find(|it| it.kind == kind).map(|it| it.nodes);
        // Four recurrent blocks and one of attention.
        assert_eq!(nodes(Kind::RgLru), Some(4));
        assert_eq!(nodes(Kind::Attention), Some(1));
        assert_eq!(nodes(Kind::Embedding), Some(1));
        assert!(0.0 < it.dispatch_seconds && 0.0 < it.traced_seconds, "{it:?}");
        assert_eq!(it.parts.last().map(|it| it.kind), Some(Kind::HandOvers));
    }
}

fn run(nodes: &[(&str, f64)]) -> Run {
    let node = |&(operator, us): &(&str, f64)| Node {
        name: String::new(),
        operator: operator.to_owned(),
        seconds: us * 1e-6,
    };
    Run { nodes: nodes.iter().map(node).collect() }
}

/// Empty nodes have 2 µs of ours and 1 µs of ONNX Runtime's in the trace: that much is not work.
fn costs() -> Costs {
    let cost = |us: f64| Cost { seconds: us * 1e-7, traced_seconds: us * 1e-6 };
    Costs { ours: cost(2.0), standard: cost(1.0) }
}

#[test]
fn nodes_count_with_what_they_take_beyond_an_empty_one() {
    let runs = [
        run(&[("RmsNorm", 5.0), ("Add", 4.0), ("RmsNorm", 3.0), ("Mul", 0.5)]),
        run(&[("RmsNorm", 7.0), ("Add", 4.0), ("RmsNorm", 3.0), ("Mul", 0.5)]),
    ];
    let parts = parts(&runs, &costs()).unwrap();
    let us = |kind| {
        let part = parts.iter().find(|it| it.kind == kind).unwrap();
        (part.nodes, (part.seconds * 1e6).round())
    };
    assert_eq!(us(Kind::Norms), (2, 5.0));
    assert_eq!(us(Kind::Elementwise), (2, 3.0));
    assert_eq!(us(Kind::Products), (0, 0.0));
    assert!((costs().of_all(&runs[0]) - 0.6e-6).abs() < 1e-12);
}

#[test]
fn runs_of_other_nodes_are_not_taken_together() {
    let other = [run(&[("Add", 4.0)]), run(&[("Mul", 4.0)])];
    assert!(parts(&other, &costs()).is_err());
    assert!(parts(&[run(&[("Add", 4.0)]), Run::default()], &costs()).is_err());
    assert!(parts(&[], &costs()).is_err());
}

fn part(kind: Kind, nodes: usize, seconds: f64) -> Part {
    Part { kind, nodes, seconds }
}

#[test]
fn parts_without_nodes_are_left_out() {
    let round = |seconds| vec![part(Kind::Norms, 2, seconds), part(Kind::Attention, 0, 0.0)];
    let rounds = [round(1.0), round(9.0), round(3.0)];
    assert_eq!(medians(&rounds), [part(Kind::Norms, 2, 3.0)]);
}

/// What a trace adds does not make a step longer than it is, and dispatch is never given away.
#[test]
fn parts_and_hand_overs_fill_the_step() {
    for (seconds, expected, expected_rest, scale) in
        [(12.0, [3.0, 5.0], 4.0, 1.0), (10.0, [3.0, 5.0], 2.0, 1.0), (6.0, [1.5, 2.5], 2.0, 2.0)]
    {
        let parts = vec![part(Kind::Norms, 2, 3.0), part(Kind::Products, 1, 5.0)];
        let [norms, products] = expected;
        let fitted = vec![
            part(Kind::Norms, 2, norms),
            part(Kind::Products, 1, products),
            part(Kind::HandOvers, 3, expected_rest),
        ];
        assert_eq!(fit(parts, seconds, 2.0), (fitted, scale), "{seconds}");
    }
}

#[test]
fn middle_half_leaves_out_what_was_interrupted() {
    assert_eq!(middle(vec![100.0, 1.0, 3.0, 0.0]), 2.0);
    assert_eq!(middle(vec![5.0]), 5.0);
}
