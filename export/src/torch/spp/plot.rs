//! Signals as a picture: one panel for each moment, a curve for each network, a line where a stage begins.

use std::ops::Range;

use anyhow::anyhow;
use plotters::{coord::Shift, prelude::*};

use crate::{
    plot::Hues,
    torch::spp::{BlockSignal, Propagation},
};

/// Size of the picture, in pixels.
const SIZE: (u32, u32) = (900, 900);

/// One panel: what it shows, and what it takes of a block.
type Panel = (&'static str, fn(&BlockSignal) -> f64);

const PANELS: [Panel; 3] = [
    ("variance of a block's output", |it| it.variance),
    ("variance of its branch", |it| it.branch_variance),
    ("squared mean of a channel", |it| it.squared_mean),
];

/// Draws `found` as SVG.
///
/// # Errors
/// If it cannot be drawn.
pub(super) fn draw(found: &[Propagation], log: bool) -> anyhow::Result<String> {
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        area.fill(&WHITE).map_err(|it| anyhow!("{it}"))?;
        for (number, (panel, area)) in PANELS.iter().zip(area.split_evenly((3, 1))).enumerate() {
            draw_panel(&area, panel, found, number == 0, log).map_err(|it| anyhow!("{it}"))?;
        }
        area.present().map_err(|it| anyhow!("{it}"))?;
    }
    Ok(svg)
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

fn draw_panel(
    area: &Area<'_>,
    (name, value): &Panel,
    found: &[Propagation],
    is_first: bool,
    log: bool,
) -> Result<(), Box<dyn std::error::Error>> {
    // Logarithms of what may be 0 end somewhere.
    let scaled = |it: f64| if log { it.max(1e-6).log10() } else { it };
    let blocks = found.iter().map(|it| it.blocks.len()).max().unwrap_or(1);
    let values = found.iter().flat_map(|it| it.blocks.iter().map(value)).map(scaled);
    let predicted = found.iter().flat_map(|it| it.blocks.iter().filter_map(|it| it.predicted));
    let predicted: Vec<f64> = if is_first { predicted.map(scaled).collect() } else { Vec::new() };
    let y = range(values.chain(predicted), log);
    let mut chart = ChartBuilder::on(area)
        .margin(12)
        .x_label_area_size(36)
        .y_label_area_size(64)
        .build_cartesian_2d(0.0..blocks as f64 - 0.5, y.clone())?;
    let label = if log { format!("{name} (log10)") } else { (*name).to_owned() };
    let mut mesh = chart.configure_mesh();
    mesh.disable_x_mesh().x_desc("block").x_label_formatter(&|it| format!("{it:.0}"));
    mesh.y_desc(label).draw()?;
    if let [only] = found {
        let lines = only.stage_starts.iter().map(|&it| it as f64 - 0.5).filter(|it| 0.0 < *it);
        let line = |x: f64| PathElement::new([(x, y.start), (x, y.end)], BLACK.mix(0.3));
        chart.draw_series(lines.map(line))?;
    } else if let Some(first) = found.first()
        && found.iter().all(|it| it.stage_starts == first.stage_starts)
    {
        let lines = first.stage_starts.iter().map(|&it| it as f64 - 0.5).filter(|it| 0.0 < *it);
        let line = |x: f64| PathElement::new([(x, y.start), (x, y.end)], BLACK.mix(0.3));
        chart.draw_series(lines.map(line))?;
    }
    for (at, it) in found.iter().enumerate() {
        let style = Hues::pick(at).stroke_width(2);
        let points = it.blocks.iter().map(value).map(scaled).enumerate();
        let points: Vec<(f64, f64)> = points.map(|(block, it)| (block as f64, it)).collect();
        chart
            .draw_series(LineSeries::new(points, style).point_size(3))?
            .label(&it.model)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], style));
        if is_first && it.blocks.iter().any(|it| it.predicted.is_some()) {
            let crosses = it.blocks.iter().enumerate().filter_map(|(block, it)| {
                Some(Cross::new((block as f64, scaled(it.predicted?)), 5, BLACK.stroke_width(1)))
            });
            let series = chart.draw_series(crosses)?;
            if at == 0 {
                series
                    .label("predicted")
                    .legend(|(x, y)| Cross::new((x + 10, y), 5, BLACK.stroke_width(1)));
            }
        }
    }
    if is_first {
        let mut labels = chart.configure_series_labels();
        labels.position(SeriesLabelPosition::UpperLeft).border_style(BLACK);
        labels.background_style(WHITE).draw()?;
    }
    Ok(())
}

/// From the least to the greatest value, with some room.
fn range(values: impl Iterator<Item = f64>, log: bool) -> Range<f64> {
    let finite = values.filter(|it| it.is_finite());
    let [lo, hi] =
        finite.fold([f64::INFINITY, f64::NEG_INFINITY], |[lo, hi], it| [lo.min(it), hi.max(it)]);
    if hi < lo {
        return 0.0..1.0;
    }
    let lo = if log { lo } else { lo.min(0.0) };
    let room = ((hi - lo) * 0.05).max(1e-3);
    lo - if log { room } else { 0.0 }..hi + room
}
