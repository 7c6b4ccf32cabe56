//! `aerie-export plot`: the logs of runs as curves.

mod curves;
mod sweep;
#[cfg(test)]
mod tests;

use std::{
    fs,
    ops::Range,
    path::{Path, PathBuf},
};

use anyhow::{Context, ensure};
use plotters::prelude::*;

pub(crate) use crate::plot::curves::Hues;
use crate::{
    checkpoint::LOG_FILE,
    plot::{
        curves::Curve,
        sweep::{Over, Sweep},
    },
};

/// Size of a picture, in pixels.
const SIZE: (u32, u32) = (900, 540);

/// Draws one or more runs: on their way, or their ends over an option in which they differ.
///
/// Over an option, the runs within one directory are one curve, named by it. Of runs that differ in
/// their learning rates only, the best is drawn; of runs that are alike but for their seeds, the mean.
/// A table of all of them is printed.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  aerie-export plot runs/tales --axis loss --out loss.svg
  aerie-export plot runs/griffin runs/hawk runs/mqa --out curves.svg
  aerie-export plot runs/sweep/*/* --axis accuracy --over batch --out batches.svg")]
pub struct Args {
    /// Run directories; each is named by its last part, or its last two where they are alike
    #[arg(required = true, value_name = "RUN")]
    runs: Vec<PathBuf>,
    #[arg(long, value_name = "FILE", default_value = "curves.svg")]
    out: PathBuf,
    /// What to draw
    #[arg(long, value_enum, default_value_t)]
    axis: Axis,
    /// What to draw it over [default: the tokens or images seen]
    #[arg(long, value_enum, value_name = "OPTION")]
    over: Option<Over>,
}

/// What a picture shows.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, clap::ValueEnum)]
pub enum Axis {
    /// Training and validation loss, in nats
    Loss,
    /// Validation loss, in bits per byte of text
    #[default]
    BitsPerByte,
    /// Share of the validation images that is classified right
    Accuracy,
}

impl Axis {
    fn label(self) -> &'static str {
        match self {
            Self::Loss => "loss (nats)",
            Self::BitsPerByte => "validation loss (bits per byte)",
            Self::Accuracy => "validation images classified right (share)",
        }
    }

    /// Where a log has it.
    fn column(self) -> &'static str {
        match self {
            Self::Loss => "valid_loss",
            Self::BitsPerByte => "bits_per_byte",
            Self::Accuracy => "accuracy",
        }
    }

    fn better(self, a: f64, b: f64) -> f64 {
        match self {
            Self::Loss | Self::BitsPerByte => a.min(b),
            Self::Accuracy => a.max(b),
        }
    }
}

/// Runs the command.
///
/// # Errors
/// If a log cannot be read or the picture cannot be written.
#[expect(clippy::print_stdout, reason = "the table is what the command is for")]
pub fn run(args: &Args) -> anyhow::Result<()> {
    let Some(over) = args.over else { return plot(&args.runs, &args.out, args.axis) };
    let sweep = Sweep::read(&args.runs, args.axis, over)?;
    print!("{sweep}");
    let mut svg = String::new();
    let curves = sweep.curves();
    draw_sweep(&mut svg, &curves, args.axis, over).context("the picture cannot be drawn")?;
    fs::write(&args.out, svg).with_context(|| args.out.display().to_string())
}

/// The log of the run in `dir`.
fn read_log(dir: &Path) -> anyhow::Result<String> {
    let path = dir.join(LOG_FILE);
    fs::read_to_string(&path).with_context(|| path.display().to_string())
}

/// Draws the logs of `runs` into the SVG file `out`.
///
/// # Errors
/// As [`run`].
pub fn plot(runs: &[PathBuf], out: &Path, axis: Axis) -> anyhow::Result<()> {
    let mut curves = Vec::new();
    let mut seen = "tokens";
    for (run, name) in runs.iter().zip(names(runs)) {
        let log = read_log(run)?;
        if log.starts_with("step,images") {
            seen = "images";
        }
        match axis {
            Axis::Loss => {
                curves.push(curve(&log, "train_loss", format!("{name}, training")));
                curves.push(curve(&log, axis.column(), format!("{name}, validation")));
            }
            Axis::BitsPerByte | Axis::Accuracy => {
                curves.push(curve(&log, axis.column(), name));
            }
        }
    }
    curves.retain(|it| !it.points.is_empty());
    ensure!(!curves.is_empty(), "no log has anything to draw yet");
    let mut svg = String::new();
    draw_log(&mut svg, curves, axis, seen).context("the picture cannot be drawn")?;
    fs::write(out, svg).with_context(|| out.display().to_string())
}

/// What runs are called: by their last parts, after the part before where two have the same.
fn names(runs: &[PathBuf]) -> Vec<String> {
    let last = |run: &PathBuf| run.file_name().unwrap_or(run.as_os_str()).to_owned();
    let name = |run: &PathBuf| {
        let is_alone = runs.iter().filter(|it| last(it) == last(run)).count() == 1;
        let before = run.parent().and_then(Path::file_name).filter(|_| !is_alone);
        let before = before.map_or_else(String::new, |it| format!("{}/", it.to_string_lossy()));
        before + &last(run).to_string_lossy()
    };
    runs.iter().map(name).collect()
}

/// The column `column` of a log over what was seen, in millions, where it is filled in.
fn curve(log: &str, column: &str, name: String) -> Curve {
    let mut lines = log.lines().map(|line| line.split(',').collect::<Vec<_>>());
    let header = lines.next().unwrap_or_default();
    let find = |column| header.iter().position(|it| *it == column);
    let points = match (find("tokens").or_else(|| find("images")), find(column)) {
        (Some(x), Some(y)) => lines
            .filter_map(|it| Some((it.get(x)?.parse::<f64>().ok()?, it.get(y)?.parse().ok()?)))
            .map(|(x, y)| (x / 1e6, y))
            .collect(),
        _ => Vec::new(),
    };
    Curve { name, points }
}

/// Draws curves over what was `seen`.
fn draw_log(svg: &mut String, curves: Vec<Curve>, axis: Axis, seen: &str) -> anyhow::Result<()> {
    let x = range(curves.iter().flat_map(|it| &it.points).map(|it| it.0));
    let y = visible(&curves);
    let seen = format!("{seen} seen (millions)");
    let shown = curves.into_iter().map(|it| within(it, &y)).collect::<Vec<_>>();
    let area = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = builder(&area).build_cartesian_2d(0.0..x.end, y)?;
    chart.configure_mesh().x_desc(seen).y_desc(axis.label()).draw()?;
    curves::draw(&mut chart, &shown, 0)?;
    drop(chart);
    area.present()?;
    drop(area);
    Ok(())
}

/// Draws curves over an option, whose values are told apart by their ratios.
fn draw_sweep(svg: &mut String, curves: &[Curve], axis: Axis, over: Over) -> anyhow::Result<()> {
    let points = || curves.iter().flat_map(|it| it.points.iter().copied());
    let mut marks: Vec<f64> = points().map(|it| it.0).collect();
    marks.sort_by(f64::total_cmp);
    marks.dedup();
    let (x, y) = (range(points().map(|it| it.0)), range(points().map(|it| it.1)));
    let margin = ((y.end - y.start) * 0.05).max(1e-3);
    let area = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = builder(&area).build_cartesian_2d(
        (x.start / 1.1..x.end * 1.1).log_scale().with_key_points(marks),
        y.start - margin..y.end + margin,
    )?;
    let mut mesh = chart.configure_mesh();
    mesh.x_desc(over.label())
        .y_desc(axis.label())
        .x_label_formatter(&|it| it.to_string())
        .draw()?;
    curves::draw(&mut chart, curves, 4)?;
    drop(chart);
    area.present()?;
    drop(area);
    Ok(())
}

/// Room for a chart and what its axes say.
fn builder<'a, 'b>(area: &'a Area<'b>) -> ChartBuilder<'a, 'b, SVGBackend<'b>> {
    let mut builder = ChartBuilder::on(area);
    builder.margin(16).x_label_area_size(44).y_label_area_size(60);
    builder
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

/// A curve from its first point that is not above `y`.
fn within(curve: Curve, y: &Range<f64>) -> Curve {
    let points = curve.points.into_iter().skip_while(|it| it.1 > y.end).collect();
    Curve { points, ..curve }
}

/// Values shown: from the lowest up to the highest that any curve has after a tenth of its points,
/// so that the fall at the beginning does not press all the rest together.
fn visible(curves: &[Curve]) -> Range<f64> {
    let lowest = range(curves.iter().flat_map(|it| &it.points).map(|it| it.1)).start;
    let later = curves.iter().flat_map(|it| &it.points[it.points.len() / 10..]).map(|it| it.1);
    let highest = range(later).end;
    let margin = ((highest - lowest) * 0.05).max(1e-3);
    lowest - margin..highest + margin
}

/// From the least to the greatest value, never empty.
fn range(values: impl Iterator<Item = f64>) -> Range<f64> {
    let [lo, hi] =
        values.fold([f64::INFINITY, f64::NEG_INFINITY], |[lo, hi], it| [lo.min(it), hi.max(it)]);
    if lo < hi { lo..hi } else { lo..lo + 1.0 }
}
