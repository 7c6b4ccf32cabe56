//! Pictures of figures: products under the roof of the machine's limits, and tokens a second over the
//! number of sessions and over their length. Steps taken apart are in [`parts`].

mod parts;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    fs,
    ops::Range,
    path::{Path, PathBuf},
};

use anyhow::{Context, ensure};
use plotters::{coord::Shift, prelude::*};

use super::report::{Kernel, Limits, Report, Step, Task};

/// Draws files that `--json` wrote
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  aerie-export bench plot kernels.json --out roofline.svg
  aerie-export bench plot steps.json peers.json --draw sessions --out sessions.svg
  aerie-export bench plot lengths.json --draw lengths --out lengths.svg
  aerie-export bench plot profile.json --draw parts --out parts.svg")]
pub(super) struct Args {
    /// Files of figures; limits are taken from the first that has some
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    #[arg(long, value_enum, default_value_t)]
    draw: Draw,
    #[arg(long, value_name = "FILE", default_value = "bench.svg")]
    out: PathBuf,
}

/// What a picture shows.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, clap::ValueEnum)]
enum Draw {
    /// Multiply-adds a second of products over those that a byte of weights takes part in
    #[default]
    Roofline,
    /// Tokens a second of whole systems over the number of sessions
    Sessions,
    /// Tokens a second of whole systems over what sessions have read before
    Lengths,
    /// Shares of a step by kinds of operators
    Parts,
}

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let mut reports = Vec::new();
    for path in &args.files {
        reports.push(read(path).with_context(|| path.display().to_string())?);
    }
    let mut svg = String::new();
    match args.draw {
        Draw::Roofline => roofline(&mut svg, &reports)?,
        Draw::Sessions => sessions(&mut svg, &reports)?,
        Draw::Lengths => lengths(&mut svg, &reports)?,
        Draw::Parts => parts::draw(&mut svg, &reports)?,
    }
    super::write(&args.out, &svg)
}

fn read(path: &Path) -> anyhow::Result<Report> {
    Ok(serde_json::from_str(&fs::read_to_string(path)?)?)
}

/// Size of a picture, in pixels.
const SIZE: (u32, u32) = (900, 540);

/// Something with a name in the picture.
#[derive(Clone, Debug, PartialEq)]
struct Series {
    name: String,
    points: Vec<(f64, f64)>,
}

/// Products by their format, under what reading and multiplying allow.
fn roofline(svg: &mut String, reports: &[Report]) -> anyhow::Result<()> {
    let kernels: Vec<&Kernel> = reports.iter().flat_map(|it| &it.kernels).collect();
    let limits = reports.iter().find_map(|it| it.limits.as_ref());
    let limits = limits.filter(|_| !kernels.is_empty());
    let limits = limits.context("there are no products and limits to draw")?;
    let points = products(&kernels);
    let x = decades(points.iter().flat_map(|it| &it.points).map(|it| it.0));
    let roofs = roofs(limits, &x);
    let shown = points.iter().chain(&roofs).flat_map(|it| &it.points);
    let picture = Picture {
        x_label: "multiply-adds for each byte of weights",
        y_label: "10⁹ multiply-adds a second, one thread",
        legend: SeriesLabelPosition::LowerRight,
        x,
        y: decades(shown.map(|it| it.1)),
    };
    picture.draw(svg, &roofs, &points)
}

/// A point for each product, by format.
fn products(kernels: &[&Kernel]) -> Vec<Series> {
    let mut formats: BTreeMap<&str, Vec<(f64, f64)>> = BTreeMap::new();
    for Kernel { format, figures, .. } in kernels {
        let x = figures.work.multiply_adds as f64 / figures.work.bytes as f64;
        let point = (x, figures.multiply_adds_per_s() / 1e9);
        formats.entry(format).or_default().push(point);
    }
    let series = |(name, points): (&str, _)| Series { name: name.to_owned(), points };
    formats.into_iter().map(series).collect()
}

/// For each arithmetic, what one thread can do at most over `x`.
fn roofs(limits: &Limits, x: &Range<f64>) -> Vec<Series> {
    let slope = limits.read.one_bytes_per_s / 1e9;
    let roof = |it: &super::report::Peak| {
        let peak = it.one_per_s / 1e9;
        // Where reading and multiplying take equally long.
        let ridge = (peak / slope).clamp(x.start, x.end);
        let points = [x.start, ridge, x.end].map(|x| (x, (slope * x).min(peak)));
        Series { name: format!("limit of {}", it.arithmetic), points: points.into() }
    };
    limits.multiply_adds.iter().map(roof).collect()
}

/// Decoding of every system by sessions.
fn sessions(svg: &mut String, reports: &[Report]) -> anyhow::Result<()> {
    let lines = decodes(reports, |step, sessions| {
        Some((format!("{} {}", step.system, step.precision), sessions as f64))
    });
    ensure!(!lines.is_empty(), "there are no steps that decode to draw");
    paces(svg, "sessions", SeriesLabelPosition::LowerRight, &lines)
}

/// Decoding of every system with each number of sessions by length.
fn lengths(svg: &mut String, reports: &[Report]) -> anyhow::Result<()> {
    let lines = decodes(reports, |step, sessions| {
        let plural = if sessions == 1 { "" } else { "s" };
        let name = format!("{} {}, {sessions} session{plural}", step.system, step.precision);
        // A logarithmic axis has no 0.
        step.position.filter(|&it| 0 < it).map(|it| (name, it as f64))
    });
    ensure!(!lines.is_empty(), "there are no steps at a length to draw");
    let label = "tokens that the session has read and written";
    // What slows down with the length does so on the right.
    paces(svg, label, SeriesLabelPosition::LowerLeft, &lines)
}

/// Tokens a second of steps that decode over what `place` gives, in lines by the name that it gives.
fn decodes(
    reports: &[Report],
    place: impl Fn(&Step, usize) -> Option<(String, f64)>,
) -> Vec<Series> {
    let mut lines: Vec<Series> = Vec::new();
    for step in reports.iter().flat_map(|it| &it.steps) {
        let Task::Decode { sessions } = step.task else { continue };
        let Some((name, x)) = place(step, sessions) else { continue };
        let point = (x, step.tokens_per_s());
        match lines.iter_mut().find(|it| it.name == name) {
            Some(line) => line.points.push(point),
            None => lines.push(Series { name, points: vec![point] }),
        }
    }
    for line in &mut lines {
        line.points.sort_by(|a, b| a.0.total_cmp(&b.0));
    }
    lines
}

fn paces(
    svg: &mut String,
    x_label: &'static str,
    legend: SeriesLabelPosition,
    lines: &[Series],
) -> anyhow::Result<()> {
    let points = || lines.iter().flat_map(|it| &it.points);
    let picture = Picture {
        x_label,
        y_label: "tokens a second",
        legend,
        x: decades(points().map(|it| it.0)),
        y: decades(points().map(|it| it.1)),
    };
    picture.draw(svg, lines, &[])
}

/// A plane with logarithmic axes.
struct Picture {
    x_label: &'static str,
    y_label: &'static str,
    legend: SeriesLabelPosition,
    x: Range<f64>,
    y: Range<f64>,
}

impl Picture {
    /// Draws `lines`, and `points` that nothing joins.
    fn draw(&self, svg: &mut String, lines: &[Series], points: &[Series]) -> anyhow::Result<()> {
        let area = SVGBackend::with_string(svg, SIZE).into_drawing_area();
        area.fill(&WHITE)?;
        self.draw_on(&area, lines, points)?;
        area.present()?;
        Ok(())
    }

    fn draw_on(
        &self,
        area: &DrawingArea<SVGBackend<'_>, Shift>,
        lines: &[Series],
        points: &[Series],
    ) -> anyhow::Result<()> {
        let mut chart = ChartBuilder::on(area)
            .margin(16)
            .x_label_area_size(44)
            .y_label_area_size(60)
            .build_cartesian_2d(self.x.clone().log_scale(), self.y.clone().log_scale())?;
        let number = |it: &f64| it.to_string();
        chart
            .configure_mesh()
            .x_desc(self.x_label)
            .y_desc(self.y_label)
            .x_label_formatter(&number)
            .y_label_formatter(&number)
            // Decades have more of them than can be told apart.
            .light_line_style(TRANSPARENT)
            .draw()?;
        for (at, it) in lines.iter().enumerate() {
            let style = Palette99::pick(at).stroke_width(2);
            chart
                .draw_series(LineSeries::new(it.points.iter().copied(), style))?
                .label(&it.name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], style));
        }
        for (at, it) in points.iter().enumerate() {
            let style = Palette99::pick(lines.len() + at).filled();
            chart
                .draw_series(it.points.iter().map(|&point| Circle::new(point, 4, style)))?
                .label(&it.name)
                .legend(move |(x, y)| Circle::new((x + 10, y), 4, style));
        }
        chart
            .configure_series_labels()
            .position(self.legend.clone())
            .border_style(BLACK)
            .background_style(WHITE)
            .draw()?;
        Ok(())
    }
}

/// A range with room for all of `values`, which are above 0.
fn decades(values: impl Iterator<Item = f64>) -> Range<f64> {
    let [lo, hi] =
        values.fold([f64::INFINITY, 0.0], |[lo, hi]: [f64; 2], it| [lo.min(it), hi.max(it)]);
    if lo <= hi { lo / 1.5..hi * 1.5 } else { 1.0..10.0 }
}
