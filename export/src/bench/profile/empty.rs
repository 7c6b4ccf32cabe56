//! Nodes that do next to nothing, for what it costs to have a node at all.

use std::{
    fs,
    path::{Path, PathBuf},
};

use aerie_ops::schema::{DOMAIN, RMS_NORM, schema};
use anyhow::ensure;

use super::{
    super::{clock, report::median},
    Cost, Costs, middle, trace,
};
use crate::{
    onnx::{
        self, Limits, Target,
        graph::{Attribute, Dim, Edge, Elements, Graph, Op},
        proto::DataType,
        weights::Random,
    },
    runtime::{Runtime, Segment, StepGraph},
};

/// Whose operator a node has.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Origin {
    Ours,
    Standard,
}

impl Origin {
    const ALL: [Self; 2] = [Self::Ours, Self::Standard];

    pub(super) fn of(operator: &str) -> Self {
        if schema(operator).is_some() { Self::Ours } else { Self::Standard }
    }
}

/// Nodes of a chain.
const NODES: usize = 256;
/// Elements that a node works on.
const WIDTH: usize = 8;
/// Runs of each chain in a turn.
const RUNS: usize = 64;

/// Chains of empty nodes that take turns.
#[derive(Debug)]
pub(super) struct Empty {
    /// No chain at all.
    none: StepGraph,
    chains: [Chain; 2],
}

#[derive(Debug)]
struct Chain {
    plain: StepGraph,
    traced: StepGraph,
    /// Seconds of a node in each turn.
    turns: Vec<f64>,
}

impl Empty {
    /// Writes the graphs below `dir`, and opens them.
    pub(super) fn new(runtime: &Runtime, dir: &Path) -> anyhow::Result<Self> {
        let none = bound(runtime.open_stateless(&write(dir, "none", None)?)?)?;
        let chain = |origin| -> anyhow::Result<Chain> {
            let name = format!("{origin:?}");
            let file = write(dir, &name, Some(origin))?;
            let trace = dir.join(name);
            let plain = bound(runtime.open_stateless(&file)?)?;
            let traced = runtime.open_traced(&file, Vec::new(), Target::Ragged, &trace)?;
            Ok(Chain { plain, traced: bound(traced)?, turns: Vec::new() })
        };
        let [ours, standard] = Origin::ALL.map(chain);
        Ok(Self { none, chains: [ours?, standard?] })
    }

    /// Runs every chain some times.
    pub(super) fn turn(&mut self) -> anyhow::Result<()> {
        let none = seconds(&mut self.none)?;
        for chain in &mut self.chains {
            let all = seconds(&mut chain.plain)?;
            chain.turns.push((all - none).max(0.0) / NODES as f64);
            seconds(&mut chain.traced)?;
        }
        Ok(())
    }

    /// What a node was found to take.
    pub(super) fn costs(self) -> anyhow::Result<Costs> {
        let [ours, standard] = self.chains.map(Chain::cost);
        Ok(Costs { ours: ours?, standard: standard? })
    }
}

impl Chain {
    fn cost(self) -> anyhow::Result<Cost> {
        let runs = trace::parse(&fs::read_to_string(self.traced.end_trace()?)?)?;
        let nodes = runs.iter().flat_map(|it| &it.nodes).filter(|it| it.operator != FIRST);
        let taken: Vec<f64> = nodes.map(|it| it.seconds).collect();
        // The runtime might have seen through it.
        ensure!(taken.len() == runs.len() * NODES, "ONNX Runtime has no node for each empty one");
        let traced_seconds = middle(taken);
        Ok(Cost { seconds: median(self.turns.into_iter()), traced_seconds })
    }
}

/// Median of the seconds of a run.
fn seconds(graph: &mut StepGraph) -> anyhow::Result<f64> {
    let mut taken = Vec::new();
    for _ in 0..RUNS {
        let (outcome, seconds) = clock::timed(|| graph.run().map(drop));
        outcome?;
        taken.push(seconds);
    }
    Ok(median(taken.into_iter()))
}

/// With the one token that the table has.
fn bound(mut graph: StepGraph) -> anyhow::Result<StepGraph> {
    graph.bind(&[Segment { lane: 0, position: 1, tokens: &[0] }])?;
    Ok(graph)
}

/// What makes rows of tokens.
const FIRST: &str = "Gather";

/// Writes a graph with the inputs of a step, that takes a row for each token through a chain of nodes.
fn write(dir: &Path, name: &str, chain: Option<Origin>) -> anyhow::Result<PathBuf> {
    let mut graph = Graph::default();
    let tokens = graph.input("tokens", DataType::I64, &[Dim::Symbol("N")]);
    for (name, element, letter) in [
        ("segments", DataType::I32, "S"),
        ("lanes", DataType::I32, "B"),
        ("positions", DataType::I64, "B"),
        ("fresh", DataType::Bool, "B"),
    ] {
        graph.input(name, element, &[Dim::Symbol(letter)]);
    }
    let ones = || Elements::Here(1f32.to_le_bytes().repeat(WIDTH));
    let width = WIDTH as u64;
    let table = graph.constant("table", DataType::F32, vec![1, width], ones());
    let weight = graph.constant("weight", DataType::F32, vec![width], ones());
    let [mut edge] = graph.node("chain", Op::standard(FIRST), &[&table, &tokens], ["y"]);
    for _ in 0..chain.map_or(0, |_| NODES) {
        edge = match chain {
            Some(Origin::Ours) => norm(&mut graph, &edge, &weight),
            _ => graph.node("chain", Op::standard("Neg"), &[&edge], ["y"])[0].clone(),
        };
    }
    graph.output(&edge, "logits", DataType::F32, &[Dim::Symbol("N"), Dim::Fixed(width)]);
    let dir = dir.join(format!("{name}.onnx"));
    fs::create_dir(&dir)?;
    // Nothing is asked of the weights: the constants are here.
    onnx::write(graph, name, &Random { seed: 0 }, Limits::default(), &dir)?;
    Ok(dir.join(aerie_models::bundle::MODEL_FILE))
}

/// The norm of `x`, the smallest of our operators.
fn norm(graph: &mut Graph, x: &Edge, weight: &Edge) -> Edge {
    graph.uses_op(RMS_NORM.name, RMS_NORM.version);
    let attributes = vec![("epsilon", Attribute::Float(1e-6))];
    let op = Op { name: RMS_NORM.name, domain: DOMAIN, attributes };
    let [y] = graph.node("chain", op, &[x, weight], ["y"]);
    y
}
