//! Whoever has the server: kills it, starts it again, and writes down what it holds.

use std::{fs, io, path::Path, sync::Arc, thread, time::Duration};

use aerie_tests::server::Server;
use rand::Rng as _;
use rand_chacha::ChaCha8Rng;
use tokio::time::Instant;

use crate::town::Town;

const SAMPLE_INTERVAL: Duration = Duration::from_millis(500);

/// The server, its faults and its figures.
#[derive(Debug)]
pub(crate) struct Caretaker {
    pub(crate) server: Server,
    pub(crate) rng: ChaCha8Rng,
    pub(crate) began: Instant,
    /// Faults come until then; what follows is one long life, in which memory must be flat.
    pub(crate) calm_from: Duration,
    /// Seconds that other lives last, drawn from this range.
    pub(crate) life_s: std::ops::Range<f64>,
    pub(crate) watch: Watch,
}

/// What was seen.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    pub(crate) samples: Vec<Sample>,
    pub(crate) lives: Vec<Life>,
}

/// What the process held at one moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    pub(crate) at_s: f64,
    pub(crate) life: usize,
    /// Memory of its own, without mapped files.
    pub(crate) anon_bytes: u64,
    pub(crate) n_fds: u64,
    pub(crate) n_threads: u64,
    /// On the disk, in its data folder.
    pub(crate) data_bytes: u64,
}

/// One process, from its start to its end.
#[derive(Clone, Debug)]
pub(crate) struct Life {
    pub(crate) ended_s: f64,
    pub(crate) end: End,
    /// What `/metrics` said last.
    pub(crate) metrics: String,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum End {
    /// SIGKILL.
    Killed,
    /// SIGTERM.
    Stopped,
    /// Of the run.
    Calm,
}

impl Caretaker {
    /// Takes care until the town closes; gives the server back, which runs.
    pub(crate) fn stay(mut self, town: &Arc<Town>) -> (Server, Watch) {
        let mut ends_at = self.next_end(Duration::ZERO);
        while !town.is_over() {
            thread::sleep(SAMPLE_INTERVAL);
            let now = self.began.elapsed();
            self.sample(now);
            if ends_at.is_some_and(|it| it <= now) {
                // One in five is asked to go, and has a moment to wind up.
                let end = if self.rng.random_bool(0.2) { End::Stopped } else { End::Killed };
                self.end_life(end);
                match end {
                    End::Stopped => {
                        self.server.terminate();
                        self.server.restart();
                    }
                    _ => self.server.kill_and_restart(),
                }
                ends_at = self.next_end(self.began.elapsed());
            }
        }
        self.end_life(End::Calm);
        (self.server, self.watch)
    }

    fn next_end(&mut self, now: Duration) -> Option<Duration> {
        let life = Duration::from_secs_f64(self.rng.random_range(self.life_s.clone()));
        Some(now + life).filter(|it| *it < self.calm_from)
    }

    fn end_life(&mut self, end: End) {
        self.watch.lives.push(Life {
            ended_s: self.began.elapsed().as_secs_f64(),
            end,
            metrics: self.server.metrics(),
        });
    }

    fn sample(&mut self, now: Duration) {
        let process = Path::new("/proc").join(self.server.process_id().to_string());
        let status = fs::read_to_string(process.join("status")).unwrap_or_default();
        let field = |name: &str| -> u64 {
            let line = status.lines().find_map(|it| it.strip_prefix(name));
            line.and_then(|it| it.split_whitespace().next()?.parse().ok()).unwrap_or(0)
        };
        let (anon_bytes, n_threads) = (field("RssAnon:") << 10, field("Threads:"));
        if anon_bytes == 0 {
            // It is no more; who waits for it will say so.
            return;
        }
        self.watch.samples.push(Sample {
            at_s: now.as_secs_f64(),
            life: self.watch.lives.len(),
            anon_bytes,
            n_fds: fs::read_dir(process.join("fd")).map_or(0, |it| it.count() as u64),
            n_threads,
            data_bytes: folder_bytes(&self.server.data_dir()).unwrap_or(0),
        });
    }
}

impl Watch {
    /// Sum over all lives of the series of `name` whose labels have `label`.
    pub(crate) fn total(&self, name: &str, label: &str) -> f64 {
        self.lives.iter().map(|life| series_sum(&life.metrics, name, label)).sum()
    }
}

/// Sum of the series of `name` in Prometheus' text whose labels have `label`.
fn series_sum(metrics: &str, name: &str, label: &str) -> f64 {
    let of = |line: &str| {
        let (series, value) = line.rsplit_once(' ')?;
        let is_it =
            series.strip_prefix(name).is_some_and(|it| it.is_empty() || it.starts_with('{'));
        if is_it && series.contains(label) { value.parse::<f64>().ok() } else { None }
    };
    metrics.lines().filter_map(of).sum()
}

/// Bytes of a folder's files.
fn folder_bytes(folder: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        bytes += if metadata.is_dir() { folder_bytes(&entry.path())? } else { metadata.len() };
    }
    Ok(bytes)
}
