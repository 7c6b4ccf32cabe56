//! What was asked of each model over the protocol, and how long it took.

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, HashMap},
    ops::AddAssign,
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
}

/// How often, and how long all of it took.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Total {
    count: u64,
    sum: Duration,
}

/// How often a model's graph has run, as its workers tell.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Runs {
    Steps(u64),
    /// By rows of the batch, which are at most as many as the batcher puts together.
    Batches(BTreeMap<u32, Total>),
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

    /// What there is to tell of a model that has run so often.
    pub fn describe(&self, model: &str, runs: &Runs) -> ModelStatistics {
        let tally = self.models().get(model).cloned().unwrap_or_default();
        let batch = |(&rows, total): (&u32, &Total)| InferBatchStatistics {
            batch_size: rows.into(),
            compute_infer: Some(total.describe()),
            ..InferBatchStatistics::default()
        };
        let (execution_count, batch_stats) = match runs {
            Runs::Steps(n) => (*n, Vec::new()),
            Runs::Batches(batches) => {
                let n = batches.values().map(|it| it.count).sum();
                (n, batches.iter().map(batch).collect())
            }
        };
        ModelStatistics {
            name: model.to_owned(),
            version: VERSION.to_owned(),
            last_inference: tally.last_unix_ms,
            inference_count: tally.n_rows,
            execution_count,
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
            batch_stats,
            ..ModelStatistics::default()
        }
    }

    fn models(&self) -> MutexGuard<'_, HashMap<String, Tally>> {
        self.models.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Total {
    pub fn count(self) -> u64 {
        self.count
    }

    pub fn add(&mut self, took: Duration) {
        *self += Self { count: 1, sum: took };
    }

    fn describe(self) -> StatisticDuration {
        let ns = u64::try_from(self.sum.as_nanos()).unwrap_or(u64::MAX);
        StatisticDuration { count: self.count, ns }
    }
}

impl AddAssign for Total {
    fn add_assign(&mut self, other: Self) {
        self.count += other.count;
        self.sum += other.sum;
    }
}
