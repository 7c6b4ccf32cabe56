//! What was asked of each model over the protocol, and how long it took.

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use aerie_proto::inference::{
    InferBatchStatistics, InferStatistics, ModelStatistics, StatisticDuration,
};

use super::VERSION;

/// Counts by model. Models that nobody asked have none.
#[derive(Debug, Default)]
pub struct Statistics {
    models: Mutex<HashMap<String, Tally>>,
}

/// A request that was answered.
#[derive(Clone, Copy, Debug, Default)]
pub struct Answered {
    /// When, in milliseconds of Unix time.
    pub unix_ms: u64,
    /// Pictures, or 1.
    pub rows: u64,
    /// From its arrival to its last response.
    pub total: Duration,
    /// Until it ran.
    pub queue: Duration,
    /// Decoding, before it could run.
    pub input: Duration,
    pub infer: Duration,
}

#[derive(Clone, Debug, Default)]
struct Tally {
    success: Total,
    fail: Total,
    queue: Total,
    input: Total,
    infer: Total,
    last_unix_ms: u64,
    n_rows: u64,
    n_runs: u64,
    /// By rows of the batch, which are at most as many as the batcher puts together.
    batches: BTreeMap<u64, Total>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Total {
    count: u64,
    sum: Duration,
}

impl Statistics {
    pub fn succeed(&self, model: &str, answered: &Answered) {
        let mut models = self.models();
        let tally = models.entry(model.to_owned()).or_default();
        tally.success.add(answered.total);
        tally.queue.add(answered.queue);
        tally.input.add(answered.input);
        tally.infer.add(answered.infer);
        tally.last_unix_ms = tally.last_unix_ms.max(answered.unix_ms);
        tally.n_rows += answered.rows;
    }

    pub fn fail(&self, model: &str, total: Duration) {
        self.models().entry(model.to_owned()).or_default().fail.add(total);
    }

    /// Counts a run of the graph over `rows` rows.
    pub fn run(&self, model: &str, rows: u64, took: Duration) {
        let mut models = self.models();
        let tally = models.entry(model.to_owned()).or_default();
        tally.n_runs += 1;
        tally.batches.entry(rows).or_default().add(took);
    }

    /// What there is to tell of a model; of one that is run step by step, it ran `n_steps` times.
    pub fn describe(&self, model: &str, n_steps: Option<u64>) -> ModelStatistics {
        let tally = self.models().get(model).cloned().unwrap_or_default();
        let batch = |(&rows, total): (&u64, &Total)| InferBatchStatistics {
            batch_size: rows,
            compute_infer: Some(total.describe()),
            ..InferBatchStatistics::default()
        };
        ModelStatistics {
            name: model.to_owned(),
            version: VERSION.to_owned(),
            last_inference: tally.last_unix_ms,
            inference_count: tally.n_rows,
            execution_count: n_steps.unwrap_or(tally.n_runs),
            inference_stats: Some(InferStatistics {
                success: Some(tally.success.describe()),
                fail: Some(tally.fail.describe()),
                queue: Some(tally.queue.describe()),
                compute_input: Some(tally.input.describe()),
                compute_infer: Some(tally.infer.describe()),
                compute_output: Some(StatisticDuration::default()),
                cache_hit: Some(StatisticDuration::default()),
                cache_miss: Some(StatisticDuration::default()),
            }),
            batch_stats: tally.batches.iter().map(batch).collect(),
            ..ModelStatistics::default()
        }
    }

    fn models(&self) -> MutexGuard<'_, HashMap<String, Tally>> {
        self.models.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Total {
    fn add(&mut self, took: Duration) {
        self.count += 1;
        self.sum += took;
    }

    fn describe(self) -> StatisticDuration {
        let ns = u64::try_from(self.sum.as_nanos()).unwrap_or(u64::MAX);
        StatisticDuration { count: self.count, ns }
    }
}
