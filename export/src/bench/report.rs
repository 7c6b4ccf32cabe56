//! What a run found: the figures, how they follow from turns, and the tables that show them.

mod profile;
#[cfg(test)]
mod tests;

use std::{fmt, fs};

use serde::{Deserialize, Serialize};

pub(super) use self::profile::{Kind, Part, Profile};
use super::{resident::Resident, table::Table};

/// What `--json` writes and `bench plot` reads; `tests/peers` writes the same.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub(super) struct Report {
    pub(super) machine: Machine,
    pub(super) limits: Option<Limits>,
    pub(super) kernels: Vec<Kernel>,
    pub(super) bundles: Vec<Bundle>,
    pub(super) steps: Vec<Step>,
    pub(super) profiles: Vec<Profile>,
}

/// Where figures come from.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(super) struct Machine {
    pub(super) cpu: String,
    pub(super) cores: usize,
}

/// What the machine can do at most.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct Limits {
    /// What `all` stands for.
    pub(super) threads: usize,
    pub(super) read: Read,
    pub(super) multiply_adds: Vec<Peak>,
}

/// Reading of memory that no cache holds.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub(super) struct Read {
    pub(super) one_bytes_per_s: f64,
    pub(super) all_bytes_per_s: f64,
}

/// Multiply-adds in registers.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct Peak {
    pub(super) arithmetic: String,
    pub(super) one_per_s: f64,
    pub(super) all_per_s: f64,
}

/// A product with packed weights, on one thread.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct Kernel {
    /// Which matrices of the preset have these extents.
    pub(super) name: String,
    pub(super) format: String,
    pub(super) groups: usize,
    pub(super) inputs: usize,
    pub(super) outputs: usize,
    pub(super) rows: usize,
    #[serde(flatten)]
    pub(super) figures: Figures,
}

/// A bundle that steps were measured of.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct Bundle {
    pub(super) system: String,
    pub(super) precision: String,
    /// Of all parameters as they are stored.
    pub(super) weights_bytes: u64,
    /// Of one session.
    pub(super) state_bytes: u64,
    /// Hashing all files, as the server does before it loads them.
    pub(super) verify_seconds: f64,
    /// Until the runtime has the graph.
    pub(super) load_seconds: f64,
    /// The first step, which reads all weights for the first time.
    pub(super) first_step_seconds: f64,
    /// On top of what the process held before, after the first step.
    pub(super) resident: Option<Resident>,
}

/// One kind of step of one system.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct Step {
    pub(super) system: String,
    pub(super) precision: String,
    pub(super) task: Task,
    /// Tokens that each session has read before; none if every bundle had its window full.
    pub(super) position: Option<usize>,
    #[serde(flatten)]
    pub(super) figures: Figures,
}

/// What a step does.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Task {
    /// One token of each of so many sessions.
    Decode { sessions: usize },
    /// So many tokens of one session.
    Prompt { tokens: usize },
}

impl Task {
    /// Tokens that a step takes in.
    pub(super) fn tokens(self) -> usize {
        match self {
            Self::Decode { sessions } => sessions,
            Self::Prompt { tokens } => tokens,
        }
    }

    /// Sessions that a step advances.
    pub(super) fn sessions(self) -> usize {
        match self {
            Self::Decode { sessions } => sessions,
            Self::Prompt { .. } => 1,
        }
    }
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Decode { sessions } => write!(f, "decode {sessions}"),
            Self::Prompt { tokens } => write!(f, "prompt {tokens}"),
        }
    }
}

/// One turn: what something took, and how fast memory was read just before.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub(super) struct Turn {
    pub(super) seconds: f64,
    pub(super) read_bytes_per_s: f64,
}

/// What is done in a turn at least.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Serialize)]
pub(super) struct Work {
    /// Of weights that are read.
    pub(super) bytes: u64,
    pub(super) multiply_adds: u64,
}

/// Which limit is the nearer one.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Bound {
    #[default]
    Memory,
    MultiplyAdds,
}

/// What turns come to.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub(super) struct Figures {
    pub(super) work: Work,
    /// Median.
    pub(super) seconds: f64,
    /// Median of the looks before each turn.
    pub(super) read_bytes_per_s: f64,
    pub(super) bound: Bound,
    /// Median of the turns' shares of what the nearer limit allows.
    pub(super) of_limit: f64,
    pub(super) turns: Vec<Turn>,
}

impl Figures {
    /// `multiply_adds_per_s` is the limit; the other one is in each turn.
    pub(super) fn new(work: Work, multiply_adds_per_s: f64, turns: Vec<Turn>) -> Self {
        let read_bytes_per_s = median(turns.iter().map(|it| it.read_bytes_per_s));
        let read_seconds = |rate: f64| work.bytes as f64 / rate;
        let multiply_seconds = work.multiply_adds as f64 / multiply_adds_per_s;
        let share =
            |it: &Turn| read_seconds(it.read_bytes_per_s).max(multiply_seconds) / it.seconds;
        let is_memory = multiply_seconds <= read_seconds(read_bytes_per_s);
        Self {
            work,
            seconds: median(turns.iter().map(|it| it.seconds)),
            read_bytes_per_s,
            bound: if is_memory { Bound::Memory } else { Bound::MultiplyAdds },
            of_limit: median(turns.iter().map(share)),
            turns,
        }
    }

    pub(super) fn bytes_per_s(&self) -> f64 {
        self.work.bytes as f64 / self.seconds
    }

    pub(super) fn multiply_adds_per_s(&self) -> f64 {
        self.work.multiply_adds as f64 / self.seconds
    }

    /// How many times as fast as `other` this is: median of the rounds that both took part in.
    pub(super) fn times_as_fast_as(&self, other: &Self) -> f64 {
        median(self.turns.iter().zip(&other.turns).map(|(it, other)| other.seconds / it.seconds))
    }
}

/// The middle one, or the mean of the middle two; 0 of nothing.
pub(super) fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => 0.0,
        n if n % 2 == 1 => values[middle],
        _ => f64::midpoint(values[middle - 1], values[middle]),
    }
}

impl Machine {
    /// The one that this runs on.
    pub(super) fn here() -> Self {
        let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let name = info.lines().find_map(|it| it.strip_prefix("model name")?.split_once(": "));
        Self {
            cpu: name.map_or_else(|| "unknown".to_owned(), |(_, name)| name.to_owned()),
            cores: super::threads(None),
        }
    }
}

impl Limits {
    /// Multiply-adds a second of `threads` threads with weights of `precision`, in the fastest way that the
    /// machine has; infinite if none was measured.
    pub(super) fn multiply_adds_per_s(&self, precision: &str, threads: usize) -> f64 {
        let names: &[&str] = match precision {
            "q8" | "q4" => &["i8", "i8 tiles"],
            "bf16" => &["f32", "bf16 tiles"],
            _ => &["f32"],
        };
        let peaks = self.multiply_adds.iter().filter(|it| names.contains(&&*it.arithmetic));
        let peaks = peaks.map(|it| if threads == 1 { it.one_per_s } else { it.all_per_s });
        peaks.reduce(f64::max).unwrap_or(f64::INFINITY)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}, {} cores", self.machine.cpu, self.machine.cores)?;
        if let Some(limits) = &self.limits {
            write!(f, "\n{}", limits.table())?;
        }
        if !self.kernels.is_empty() {
            write!(f, "\n{}", self.kernel_table())?;
        }
        if !self.bundles.is_empty() {
            write!(f, "\n{}", self.bundle_table())?;
        }
        if !self.steps.is_empty() {
            let has_lengths = self.steps.iter().any(|it| it.position != self.steps[0].position);
            let table = if has_lengths { self.length_table() } else { self.step_table() };
            write!(f, "\n{table}")?;
        }
        if !self.profiles.is_empty() {
            write!(f, "\n{}\n{}", self.part_table(), self.dispatch_table())?;
        }
        Ok(())
    }
}

impl Limits {
    fn table(&self) -> Table {
        let mut table = Table::new(1, &["limit", "", "1 thread", "all threads"]);
        let Read { one_bytes_per_s, all_bytes_per_s } = self.read;
        let mut row = |name: String, unit: &str, one: f64, all: f64| {
            table.row([name, unit.to_owned(), giga(one), giga(all)]);
        };
        row("read".to_owned(), "GB/s", one_bytes_per_s, all_bytes_per_s);
        for Peak { arithmetic, one_per_s, all_per_s } in &self.multiply_adds {
            row(format!("multiply-add {arithmetic}"), "G/s", *one_per_s, *all_per_s);
        }
        table
    }
}

impl Report {
    fn kernel_table(&self) -> Table {
        let header = [
            "product",
            "weights",
            "rows",
            "us",
            "GB/s",
            "GMAC/s",
            "read GB/s",
            "bound",
            "of limit",
        ];
        let mut table = Table::new(2, &header);
        for it in &self.kernels {
            let Kernel { groups, inputs, outputs, format, rows, figures, .. } = it;
            let groups = if *groups == 1 { String::new() } else { format!("{groups} x ") };
            table.row([
                format!("{groups}{inputs} to {outputs}: {}", it.name),
                format.clone(),
                rows.to_string(),
                format!("{:.1}", figures.seconds * 1e6),
                giga(figures.bytes_per_s()),
                giga(figures.multiply_adds_per_s()),
                giga(figures.read_bytes_per_s),
                figures.bound.name().to_owned(),
                percent(figures.of_limit),
            ]);
        }
        table
    }

    fn bundle_table(&self) -> Table {
        let header = [
            "bundle",
            "weights",
            "MB",
            "hash s",
            "load s",
            "first step s",
            "resident MB: file",
            "other",
            "session MB",
        ];
        let mut table = Table::new(2, &header);
        let mega = |bytes: u64| format!("{:.1}", bytes as f64 / 1e6);
        for it in &self.bundles {
            let resident = |part: fn(Resident) -> u64| {
                it.resident.map_or_else(String::new, |it| mega(part(it)))
            };
            table.row([
                it.system.clone(),
                it.precision.clone(),
                mega(it.weights_bytes),
                format!("{:.2}", it.verify_seconds),
                format!("{:.3}", it.load_seconds),
                format!("{:.3}", it.first_step_seconds),
                resident(|it| it.file_bytes),
                resident(|it| it.anonymous_bytes),
                mega(it.state_bytes),
            ]);
        }
        table
    }

    /// Each task with everyone who did it; ratios are to the first of them.
    fn step_table(&self) -> Table {
        let header = [
            "step",
            "bundle",
            "weights",
            "ms",
            "tokens/s",
            "to the first",
            "read GB/s",
            "bound",
            "of limit",
        ];
        let mut table = Table::new(3, &header);
        for task in distinct(self.steps.iter().map(|it| it.task)) {
            let steps: Vec<&Step> = self.steps.iter().filter(|it| it.task == task).collect();
            for it in &steps {
                let Step { system, precision, figures, .. } = it;
                table.row([
                    task.to_string(),
                    system.clone(),
                    precision.clone(),
                    format!("{:.3}", figures.seconds * 1e3),
                    format!("{:.1}", it.tokens_per_s()),
                    format!("{:.2}", figures.times_as_fast_as(&steps[0].figures)),
                    giga(figures.read_bytes_per_s),
                    figures.bound.name().to_owned(),
                    percent(figures.of_limit),
                ]);
            }
        }
        table
    }
}

impl Report {
    /// Each task at each length with everyone who did it; ratios are to the first of them, and to the
    /// first length of the same one.
    fn length_table(&self) -> Table {
        let header = [
            "step",
            "bundle",
            "weights",
            "after",
            "ms",
            "tokens/s",
            "to the first",
            "to its first length",
            "read GB/s",
        ];
        let mut table = Table::new(3, &header);
        for kind in distinct(self.steps.iter().map(|it| (it.task, it.position))) {
            let steps = self.steps.iter().filter(|it| (it.task, it.position) == kind);
            let steps: Vec<&Step> = steps.collect();
            for it in &steps {
                let Step { system, precision, task, position, figures } = it;
                let is_its_own = |other: &&Step| {
                    (&other.system, &other.precision, other.task) == (system, precision, *task)
                };
                let first = self.steps.iter().find(is_its_own).unwrap_or(it);
                table.row([
                    task.to_string(),
                    system.clone(),
                    precision.clone(),
                    position.map_or_else(|| "window".to_owned(), |it| it.to_string()),
                    format!("{:.3}", figures.seconds * 1e3),
                    format!("{:.1}", it.tokens_per_s()),
                    format!("{:.2}", figures.times_as_fast_as(&steps[0].figures)),
                    format!("{:.3}", figures.times_as_fast_as(&first.figures)),
                    giga(figures.read_bytes_per_s),
                ]);
            }
        }
        table
    }
}

/// Each of `values` once, in the order in which they first come.
pub(super) fn distinct<T: PartialEq>(values: impl Iterator<Item = T>) -> Vec<T> {
    let mut found = Vec::new();
    for value in values {
        if !found.contains(&value) {
            found.push(value);
        }
    }
    found
}

impl Step {
    pub(super) fn tokens_per_s(&self) -> f64 {
        self.task.tokens() as f64 / self.figures.seconds
    }
}

impl Bound {
    fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::MultiplyAdds => "multiply-adds",
        }
    }
}

fn giga(value: f64) -> String {
    format!("{:.1}", value / 1e9)
}

fn percent(share: f64) -> String {
    format!("{:.0} %", share * 100.0)
}
