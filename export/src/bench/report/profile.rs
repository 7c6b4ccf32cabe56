//! Where the time of a step goes, as figures and as tables.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Report, Step, percent};
use crate::bench::table::Table;

/// A kind of step, taken apart.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(in crate::bench) struct Profile {
    /// Without a trace.
    #[serde(flatten)]
    pub(in crate::bench) step: Step,
    /// Median of the same steps with one.
    pub(in crate::bench) traced_seconds: f64,
    /// What as many nodes that do nothing take.
    pub(in crate::bench) dispatch_seconds: f64,
    /// How many times as large the parts were in the trace, where they would not fit into the step.
    pub(in crate::bench) trace_scale: f64,
    /// They come to the seconds of the step.
    pub(in crate::bench) parts: Vec<Part>,
}

/// What nodes of one kind take in a step.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub(in crate::bench) struct Part {
    pub(in crate::bench) kind: Kind,
    pub(in crate::bench) nodes: usize,
    pub(in crate::bench) seconds: f64,
}

/// What is done with the time.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(in crate::bench) enum Kind {
    Products,
    Attention,
    RgLru,
    Convolution,
    Norms,
    Embedding,
    /// All other operators, which are ONNX Runtime's.
    Elementwise,
    /// What lies between nodes, and what it takes to have them.
    HandOvers,
}

impl Kind {
    pub(in crate::bench) const ALL: [Self; 8] = [
        Self::Products,
        Self::Attention,
        Self::RgLru,
        Self::Convolution,
        Self::Norms,
        Self::Embedding,
        Self::Elementwise,
        Self::HandOvers,
    ];
    /// Those that nodes have.
    pub(in crate::bench) const NODES: [Self; 7] = *Self::ALL.first_chunk().expect("one fewer");
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Products => "matrix products",
            Self::Attention => "attention",
            Self::RgLru => "RG-LRU",
            Self::Convolution => "convolution",
            Self::Norms => "norms",
            Self::Embedding => "embedding",
            Self::Elementwise => "elementwise",
            Self::HandOvers => "hand-overs",
        })
    }
}

impl Profile {
    /// Share of the step that parts of `kind` take.
    pub(in crate::bench) fn share(&self, kind: Kind) -> f64 {
        let parts = self.parts.iter().filter(|it| it.kind == kind);
        parts.map(|it| it.seconds).sum::<f64>() / self.step.figures.seconds
    }

    fn nodes(&self) -> usize {
        let nodes = self.parts.iter().filter(|it| it.kind != Kind::HandOvers);
        nodes.map(|it| it.nodes).sum()
    }
}

impl Report {
    /// Every step with its parts.
    pub(super) fn part_table(&self) -> Table {
        let header = ["step", "bundle", "weights", "part", "nodes", "us", "of the step"];
        let mut table = Table::new(4, &header);
        for it in &self.profiles {
            for part in &it.parts {
                let nodes = match part.kind {
                    Kind::HandOvers => String::new(),
                    _ => part.nodes.to_string(),
                };
                table.row([
                    it.step.task.to_string(),
                    it.step.system.clone(),
                    it.step.precision.clone(),
                    part.kind.to_string(),
                    nodes,
                    format!("{:.1}", part.seconds * 1e6),
                    percent(it.share(part.kind)),
                ]);
            }
        }
        table
    }

    /// What it takes to have nodes at all.
    pub(super) fn dispatch_table(&self) -> Table {
        let header = [
            "step",
            "bundle",
            "weights",
            "nodes",
            "ms",
            "ms with a trace",
            "empty nodes us",
            "of the step",
            "parts scaled by",
        ];
        let mut table = Table::new(3, &header);
        for it in &self.profiles {
            let seconds = it.step.figures.seconds;
            table.row([
                it.step.task.to_string(),
                it.step.system.clone(),
                it.step.precision.clone(),
                it.nodes().to_string(),
                format!("{:.3}", seconds * 1e3),
                format!("{:.3}", it.traced_seconds * 1e3),
                format!("{:.1}", it.dispatch_seconds * 1e6),
                format!("{:.1} %", it.dispatch_seconds / seconds * 100.0),
                format!("1 / {:.2}", it.trace_scale),
            ]);
        }
        table
    }
}
