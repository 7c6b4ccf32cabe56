//! Steps as bars, cut where one kind of work ends and the next begins.

use anyhow::ensure;
use plotters::{
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};

use crate::bench::report::{Kind, Profile, Report};

/// Width of a picture, in pixels.
const WIDTH: u32 = 900;
/// Height of a bar with its gap, and of all that is no bar.
const BAR: u32 = 36;
const REST: u32 = 92;
/// Room for what bars are called.
const LABELS: u32 = 230;
const FONT: (&str, u32) = ("sans-serif", 13);
/// How far the horizontal axis goes, so that the legend stands beside the bars, in per cent.
const END: f64 = 132.0;

/// Draws every step of `reports` that was taken apart, the first one on top.
pub(super) fn draw(svg: &mut String, reports: &[Report]) -> anyhow::Result<()> {
    let profiles: Vec<&Profile> = reports.iter().flat_map(|it| &it.profiles).collect();
    ensure!(!profiles.is_empty(), "there are no steps that were taken apart to draw");
    let kinds =
        Kind::ALL.into_iter().filter(|&kind| profiles.iter().any(|it| 0.0 < it.share(kind)));
    let kinds: Vec<Kind> = kinds.collect();
    // The legend has a row for each kind, and they are half as high as those of bars.
    let rows = u32::try_from(profiles.len().max(kinds.len().div_ceil(2)))?;
    let n = profiles.len() as f64;
    let area = SVGBackend::with_string(svg, (WIDTH, REST + BAR * rows)).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .margin(16)
        .x_label_area_size(44)
        .y_label_area_size(LABELS)
        .build_cartesian_2d(0.0..END, 0.0..n)?;
    let percent = |it: &f64| if *it <= 100.0 { format!("{it} %") } else { String::new() };
    chart
        .configure_mesh()
        .disable_y_mesh()
        .disable_y_axis()
        .light_line_style(TRANSPARENT)
        .label_style(FONT)
        .axis_desc_style(FONT)
        .x_desc("share of the step")
        .x_label_formatter(&percent)
        .draw()?;
    for (at, &kind) in kinds.iter().enumerate() {
        let style = Palette99::pick(at).filled();
        let bars = profiles.iter().enumerate().map(|(row, it)| {
            let [start, end] = bounds(it, kind);
            let top = n - row as f64;
            Rectangle::new([(start, top - 0.88), (end, top - 0.12)], style)
        });
        chart
            .draw_series(bars)?
            .label(kind.to_string())
            .legend(move |(x, y)| Rectangle::new([(x + 4, y - 5), (x + 16, y + 5)], style));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::MiddleRight)
        .label_font(FONT)
        .border_style(BLACK)
        .background_style(WHITE)
        .draw()?;
    let right = TextStyle::from(FONT).pos(Pos::new(HPos::Right, VPos::Center));
    for (row, it) in profiles.iter().enumerate() {
        let (x, y) = chart.backend_coord(&(0.0, n - row as f64 - 0.5));
        area.draw(&Text::new(label(it), (x - 8, y), right.clone()))?;
    }
    drop(chart);
    area.present()?;
    drop(area);
    Ok(())
}

/// What a step is called in the picture.
fn label(it: &Profile) -> String {
    let ms = it.step.figures.seconds * 1e3;
    let digits = if ms < 10.0 { 2 } else { 1 };
    format!("{} {}, {}: {ms:.digits$} ms", it.step.system, it.step.precision, it.step.task)
}

/// Where the work of `kind` begins and ends in the bar of a step, in per cent.
fn bounds(it: &Profile, kind: Kind) -> [f64; 2] {
    let before = Kind::ALL.iter().take_while(|&&other| other != kind);
    let start: f64 = before.map(|&other| it.share(other)).sum();
    [start, start + it.share(kind)].map(|it| it * 100.0)
}
