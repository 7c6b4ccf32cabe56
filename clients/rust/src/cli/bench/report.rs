//! What the requests of a benchmark came to: counted, then told.

#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, fmt, time::Duration};

use hdrhistogram::Histogram;
use serde::Serialize;

use super::Outcome;
use crate::cli::Seconds;

/// Longer latencies count as this.
const LATENCY_MAX: Duration = Duration::from_secs(3600);

/// What has ended so far.
pub(super) struct Tally {
    pub completed: u64,
    errors: BTreeMap<String, u64>,
    first_error: Option<String>,
    tokens: u64,
    /// In microseconds, as all of them.
    first_token: Histogram<u64>,
    inter_token: Histogram<u64>,
    request: Histogram<u64>,
}

/// The figures of a benchmark.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Report {
    address: String,
    mode: String,
    seconds: f64,
    requests_completed: u64,
    /// By gRPC's name of the code.
    requests_failed: BTreeMap<String, u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    first_error: Option<String>,
    tokens: u64,
    tokens_per_second: f64,
    /// From when a request was due to its first token.
    time_to_first_token: Latency,
    /// Between tokens; those that came in one message share the wait for it.
    inter_token_latency: Latency,
    /// From when a request was due to its end.
    request_duration: Latency,
}

/// A distribution, in seconds.
#[derive(Clone, Copy, Debug, Serialize)]
struct Latency {
    count: u64,
    mean: f64,
    p50: f64,
    p90: f64,
    p99: f64,
    max: f64,
}

impl Tally {
    pub(super) fn add(&mut self, outcome: Outcome) {
        self.tokens += outcome.tokens;
        if let Some(latency) = outcome.first_token {
            self.first_token.saturating_record(micros(latency));
        }
        for (gap, n_tokens) in outcome.gaps {
            let share = micros(gap / n_tokens.max(1));
            self.inter_token.saturating_record_n(share, n_tokens.into());
        }
        match outcome.result {
            Ok(()) => {
                self.completed += 1;
                self.request.saturating_record(micros(outcome.duration));
            }
            Err(error) => {
                *self.errors.entry(format!("{:?}", error.code())).or_default() += 1;
                self.first_error.get_or_insert_with(|| error.to_string());
            }
        }
    }

    pub(super) fn failed(&self) -> u64 {
        self.errors.values().sum()
    }
}

impl Default for Tally {
    fn default() -> Self {
        let histogram = || {
            Histogram::new_with_bounds(1, micros(LATENCY_MAX), 3).expect("the bounds are in order")
        };
        Self {
            completed: 0,
            errors: BTreeMap::new(),
            first_error: None,
            tokens: 0,
            first_token: histogram(),
            inter_token: histogram(),
            request: histogram(),
        }
    }
}

impl Report {
    pub(super) fn new(address: &str, mode: String, tally: Tally, elapsed: Duration) -> Self {
        let seconds = elapsed.as_secs_f64();
        Self {
            address: address.to_owned(),
            mode,
            seconds,
            requests_completed: tally.completed,
            requests_failed: tally.errors,
            first_error: tally.first_error,
            tokens: tally.tokens,
            tokens_per_second: tally.tokens as f64 / seconds,
            time_to_first_token: Latency::new(&tally.first_token),
            inter_token_latency: Latency::new(&tally.inter_token),
            request_duration: Latency::new(&tally.request),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { address, mode, seconds, tokens, tokens_per_second, .. } = self;
        writeln!(f, "{address}, {mode}, {seconds:.1} s")?;
        writeln!(f)?;
        writeln!(f, "requests   {} completed", self.requests_completed)?;
        for (code, count) in &self.requests_failed {
            writeln!(f, "           {count} failed with {code}")?;
        }
        if let Some(error) = &self.first_error {
            writeln!(f, "           the first with: {error}")?;
        }
        writeln!(f, "tokens     {tokens}, {tokens_per_second:.1} a second")?;
        writeln!(f)?;
        let head = ["p50", "p90", "p99", "max", "mean"].map(|it| format!("{it:>10}")).concat();
        writeln!(f, "{:22}{head}", "")?;
        for (name, latency) in [
            ("time to first token", &self.time_to_first_token),
            ("inter-token latency", &self.inter_token_latency),
            ("whole request", &self.request_duration),
        ] {
            writeln!(f, "{name:22}{latency}")?;
        }
        Ok(())
    }
}

impl Latency {
    fn new(micros: &Histogram<u64>) -> Self {
        let quantile = |q| micros.value_at_quantile(q) as f64 * 1e-6;
        Self {
            count: micros.len(),
            mean: micros.mean() * 1e-6,
            p50: quantile(0.5),
            p90: quantile(0.9),
            p99: quantile(0.99),
            max: micros.max() as f64 * 1e-6,
        }
    }
}

impl fmt::Display for Latency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { p50, p90, p99, max, mean, .. } = *self;
        for seconds in [p50, p90, p99, max, mean] {
            if self.count == 0 {
                write!(f, "{:>10}", "-")?;
            } else {
                let duration = Duration::try_from_secs_f64(seconds).unwrap_or_default();
                write!(f, "{:>10}", Seconds(duration).to_string())?;
            }
        }
        Ok(())
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX).max(1)
}
