//! What a run came to: a table, a file of samples, a picture, and whether memory was flat.

use std::{
    fmt::{self, Write as _},
    fs, io,
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
};

use plotters::prelude::*;

use crate::{
    caretaker::{End, Sample, Watch},
    town::Town,
};

const MIB: f64 = (1 << 20) as f64;
/// Size of the picture, in pixels.
const SIZE: (u32, u32) = (900, 400);
/// What memory may grow by after a life's first quarter: noise of the allocator, which keeps what tasks gave back.
const GROWTH_BYTES_MAX: f64 = 8.0 * MIB;
/// Descriptors and threads come and go with connections and long prompts.
const GROWTH_COUNT_MAX: f64 = 16.0;
/// A life that is too short says nothing of growth.
const CALM_SAMPLES_MIN: usize = 60;

/// All figures of a run.
#[derive(Debug)]
pub(crate) struct Report<'a> {
    pub(crate) town: &'a Town,
    pub(crate) watch: &'a Watch,
    pub(crate) seconds: f64,
    /// Sessions whose whole log was read in the end.
    pub(crate) audited: usize,
}

/// How something went over the last, long life: medians of its quarters.
#[derive(Clone, Copy, Debug)]
struct Trend {
    name: &'static str,
    second: f64,
    third: f64,
    last: f64,
    growth_max: f64,
}

impl Report<'_> {
    /// What grew that must not; empty if memory was flat.
    pub(crate) fn growth(&self) -> Vec<String> {
        let grown = |it: &&Trend| it.second + it.growth_max < it.last;
        let trends = self.trends();
        let mut growth: Vec<_> =
            trends.iter().filter(grown).map(|it| format!("grows in one life: {it}")).collect();
        if let Some([early, late]) = self.lives()
            && early + GROWTH_BYTES_MAX / MIB < late
        {
            growth.push(format!("memory grows from life to life: {early:.1} to {late:.1} MiB"));
        }
        growth
    }

    fn trends(&self) -> Vec<Trend> {
        let last = self.watch.lives.len().saturating_sub(1);
        let samples: Vec<_> = self.watch.samples.iter().filter(|it| it.life == last).collect();
        if samples.len() < CALM_SAMPLES_MIN {
            return Vec::new();
        }
        let quarter = samples.len() / 4;
        let trend = |name, growth_max, of: fn(&Sample) -> f64| {
            let [second, third, last] = [1, 2, 3]
                .map(|it| median(samples[it * quarter..][..quarter].iter().map(|it| of(it))));
            Trend { name, second, third, last, growth_max }
        };
        vec![
            trend("memory, MiB", GROWTH_BYTES_MAX / MIB, |it| it.anon_bytes as f64 / MIB),
            trend("descriptors", GROWTH_COUNT_MAX, |it| it.n_fds as f64),
            trend("threads", GROWTH_COUNT_MAX, |it| it.n_threads as f64),
            trend("data folder, MiB", 1.0, |it| it.data_bytes as f64 / MIB),
        ]
    }

    /// Memory at the end of lives that were cut short, early and late in the run: median of thirds.
    fn lives(&self) -> Option<[f64; 2]> {
        let n_short = self.watch.lives.iter().filter(|it| it.end != End::Calm).count();
        let at_end = |life: usize| {
            let mut of = self.watch.samples.iter().rev().filter(|it| it.life == life);
            of.next().map(|it| it.anon_bytes as f64 / MIB)
        };
        let third = n_short / 3;
        if third == 0 {
            return None;
        }
        let thirds = [third..2 * third, n_short - third..n_short];
        Some(thirds.map(|it| median(it.filter_map(at_end))))
    }

    /// Writes every sample as CSV.
    pub(crate) fn write_samples(&self, path: &Path) -> io::Result<()> {
        let mut text = "seconds,life,anon_bytes,descriptors,threads,data_bytes\n".to_owned();
        for Sample { at_s, life, anon_bytes, n_fds, n_threads, data_bytes } in &self.watch.samples {
            writeln!(text, "{at_s:.1},{life},{anon_bytes},{n_fds},{n_threads},{data_bytes}")
                .expect("a string takes everything");
        }
        fs::write(path, text)
    }

    /// Draws memory over time, and the ends of lives.
    ///
    /// # Errors
    /// If there is nothing to draw, or no place to write to.
    pub(crate) fn draw(&self, path: &Path) -> anyhow::Result<()> {
        let samples = &self.watch.samples;
        let of = |it: &Sample| it.anon_bytes as f64 / MIB;
        let top = samples.iter().map(of).fold(1.0, f64::max) * 1.1;
        let area = SVGBackend::new(path, SIZE).into_drawing_area();
        area.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&area)
            .margin(16)
            .x_label_area_size(44)
            .y_label_area_size(60)
            .build_cartesian_2d(0.0..self.seconds, 0.0..top)?;
        let mesh = &mut chart.configure_mesh();
        mesh.disable_x_mesh()
            .x_desc("seconds")
            .y_desc("memory of the server's own (MiB)")
            .draw()?;
        for life in self.watch.lives.iter().filter(|it| it.end != End::Calm) {
            let style = match life.end {
                End::Killed => RED.mix(0.35),
                End::Stopped | End::Calm => BLUE.mix(0.5),
            };
            let line = [(life.ended_s, 0.0), (life.ended_s, top)];
            chart.draw_series(LineSeries::new(line, style))?;
        }
        for life in 0..self.watch.lives.len() {
            let line = samples.iter().filter(|it| it.life == life).map(|it| (it.at_s, of(it)));
            chart.draw_series(LineSeries::new(line, BLACK.stroke_width(2)))?;
        }
        drop(chart);
        area.present()?;
        Ok(())
    }

    fn faults(&self, end: End) -> usize {
        self.watch.lives.iter().filter(|it| it.end == end).count()
    }
}

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = &self.town.counts;
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed) as f64;
        let total = |name: &str, label: &str| self.watch.total(name, label);
        let tokens = of(&counts.tokens);
        let rows: &[(&str, f64)] = &[
            ("kill -9", self.faults(End::Killed) as f64),
            ("SIGTERM", self.faults(End::Stopped) as f64),
            ("sessions made", of(&counts.sessions)),
            ("turns heard to their end", of(&counts.turns)),
            ("streams dropped amid", of(&counts.dropped)),
            ("cancelled", of(&counts.cancelled)),
            ("readers attached", of(&counts.readers)),
            ("forks", of(&counts.forks)),
            ("moves asked for", of(&counts.moves)),
            ("rewinds", of(&counts.rewinds)),
            ("names given and taken", of(&counts.names)),
            ("exported and imported", of(&counts.carried)),
            ("deleted", of(&counts.deleted)),
            ("refused, as they had to be", of(&counts.refused)),
            ("forgotten by right: expired, evicted", of(&counts.forgotten)),
            ("tokens checked", tokens),
            ("tokens drawn by the server", total("serve_tokens_total", "generated")),
            ("tokens whose state was kept", total("serve_resumed_tokens_total", "")),
            ("tokens computed again", total("serve_recomputed_tokens_total", "")),
            ("tokens known from others' prompts", total("serve_prefix_tokens_total", "")),
            ("requests answered as before", total("serve_requests_repeated_total", "")),
            ("answers begun again after a fault", of(&counts.repeated)),
            ("calls while nobody was there", of(&counts.knocks)),
            ("states parked", total("serve_session_park_seconds_count", "")),
            ("sessions moved", total("serve_session_move_seconds_count", "")),
            ("sessions evicted", total("serve_sessions_evicted_total", "")),
            ("sessions expired", total("serve_sessions_expired_total", "")),
            ("whole logs read in the end", self.audited as f64),
        ];
        writeln!(f, "{:<40}{:>12.0}", "seconds", self.seconds)?;
        for (name, value) in rows {
            writeln!(f, "{name:<40}{value:>12.0}")?;
        }
        writeln!(f, "{:<40}{:>12.0}", "tokens checked a second", tokens / self.seconds)?;
        if let Some([early, late]) = self.lives() {
            let name = "memory where lives were cut off, MiB";
            writeln!(f, "{name:<40}{early:>12.1}{late:>12.1}   early, late in the run")?;
        }
        self.trends().iter().try_for_each(|it| writeln!(f, "{it}"))
    }
}

impl fmt::Display for Trend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, second, third, last, growth_max } = self;
        write!(f, "{name:<40}{second:>12.1}{third:>12.1}{last:>12.1}   ")?;
        write!(f, "quarters of the last life, from the second; +{growth_max:.0} at most")
    }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<_> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
