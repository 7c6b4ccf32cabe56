//! How curves are drawn, and where their names go.

#[cfg(test)]
mod tests;

use std::ops::Range;

use plotters::{
    coord::{
        ranged1d::{Ranged, ValueFormatter},
        types::RangedCoordf64,
    },
    prelude::*,
};

/// Colours, of which people who see few of them tell the first six apart too (Okabe and Ito 2008, *Color Universal
/// Design*, without yellow, which is faint on white, and black, which is for what is no curve).
pub(crate) struct Hues;

impl Palette for Hues {
    const COLORS: &'static [(u8, u8, u8)] = &[
        (0, 114, 178),
        (213, 94, 0),
        (0, 158, 115),
        (204, 121, 167),
        (230, 159, 0),
        (86, 180, 233),
        (51, 34, 136),
        (136, 34, 85),
        (153, 153, 51),
        (102, 60, 20),
        (17, 119, 51),
        (128, 128, 128),
    ];
}

/// One line of a picture, a name and points.
#[derive(Debug, PartialEq)]
pub(super) struct Curve {
    pub(super) name: String,
    pub(super) points: Vec<(f64, f64)>,
}

/// A chart over any kind of axis.
pub(super) type Chart<'a, X> = ChartContext<'a, SVGBackend<'a>, Cartesian2d<X, RangedCoordf64>>;

/// Draws curves with marks of `mark` pixels, and their names where they are least in the way.
pub(super) fn draw<X>(chart: &mut Chart<'_, X>, curves: &[Curve], mark: u32) -> anyhow::Result<()>
where
    X: Ranged<ValueType = f64> + ValueFormatter<f64>,
{
    for (at, it) in curves.iter().enumerate() {
        let style = Hues::pick(at).stroke_width(2);
        chart
            .draw_series(LineSeries::new(it.points.iter().copied(), style).point_size(mark))?
            .label(&it.name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], style));
    }
    let (width, height) = chart.plotting_area().dim_in_pixel();
    let area = chart.plotting_area().get_pixel_range();
    let places = curves.iter().map(|it| {
        let place = |&point: &(f64, f64)| {
            let (x, y) = chart.backend_coord(&point);
            [
                f64::from(x - area.0.start) / f64::from(width),
                f64::from(y - area.1.start) / f64::from(height),
            ]
        };
        it.points.iter().map(place).collect::<Vec<_>>()
    });
    let corner = emptiest(&places.collect::<Vec<_>>());
    chart
        .configure_series_labels()
        .position(corner)
        .border_style(BLACK)
        .background_style(WHITE)
        .draw()?;
    Ok(())
}

/// The corner with the least of lines whose points are shares of a picture's width and height, from its upper left.
fn emptiest(lines: &[Vec<[f64; 2]>]) -> SeriesLabelPosition {
    /// Into how many parts a line from point to point is cut.
    const PARTS: u32 = 32;
    let deep = (0.06 * lines.len() as f64 + 0.05).min(0.5);
    let [left, right] = [0.0..0.25, 0.75..1.0];
    let [upper, lower] = [0.0..deep, 1.0 - deep..1.0];
    let met = |x: &Range<f64>, y: &Range<f64>| {
        let pairs = lines.iter().flat_map(|it| it.windows(2));
        let parts = pairs.flat_map(|pair| {
            (0..=PARTS).map(|at| {
                let share = f64::from(at) / f64::from(PARTS);
                [0, 1].map(|axis| pair[0][axis] + share * (pair[1][axis] - pair[0][axis]))
            })
        });
        parts.filter(|it| x.contains(&it[0]) && y.contains(&it[1])).count()
    };
    let corners = [
        (SeriesLabelPosition::UpperRight, met(&right, &upper)),
        (SeriesLabelPosition::LowerRight, met(&right, &lower)),
        (SeriesLabelPosition::UpperLeft, met(&left, &upper)),
        (SeriesLabelPosition::LowerLeft, met(&left, &lower)),
    ];
    let least = corners.into_iter().min_by_key(|it| it.1);
    least.map_or(SeriesLabelPosition::UpperRight, |it| it.0)
}
