//! The picture: loss over compute with its laws, best learning rates, best sizes and best epochs.

#[cfg(test)]
mod tests;

use std::{
    error::Error,
    ops::{Range, RangeInclusive},
};

use plotters::{chart::SeriesAnno, coord::Shift, prelude::*};

use crate::{
    plot::Hues,
    scaling::{
        Outcome,
        fit::Fitted,
        optimum::Budget,
        rates::{self, Edge},
        report::Report,
    },
};

/// Size of the picture, in pixels.
const SIZE: (u32, u32) = (1240, 1000);
/// Steps of a curve.
const CURVE_STEPS: u32 = 30;
/// Laws are drawn this far beyond the largest compute.
const AHEAD: f64 = 4.0;
/// What an axis can show: a law through points that do not go together may lead anywhere.
const SHOWN: RangeInclusive<f64> = 1e-60..=1e90;
/// Most models that the legend names.
const NAMED_MAX: usize = 16;

/// Room around a panel, in pixels.
const MARGIN: i32 = 16;
/// Room for a note below a panel, in pixels.
const NOTE: i32 = 12;
/// Left end of the horizontal axis, in pixels.
const LEFT: i32 = 92;

type Drawn = Result<(), Box<dyn Error>>;
type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// The report as SVG.
pub(super) fn draw(report: &Report) -> Result<String, Box<dyn Error>> {
    let mut svg = String::new();
    let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let panels = area.split_evenly((2, 2));
    losses(&panels[0], report)?;
    learning_rates(&panels[1], report)?;
    best_sizes(&panels[2], report)?;
    best_epochs(&panels[3], report)?;
    area.present()?;
    drop(panels);
    drop(area);
    Ok(svg)
}

/// Something with a name in a panel.
struct Series {
    name: String,
    style: ShapeStyle,
    form: Form,
    points: Vec<(f64, f64)>,
}

#[derive(Clone, Copy, Eq, PartialEq)]
enum Form {
    Line,
    Dots,
    /// Dots that are not filled.
    Rings,
    /// Dots with a line from each to the next.
    Chain,
}

/// A plane with logarithmic axes.
struct Panel<'a> {
    title: &'a str,
    x_label: &'a str,
    y_label: &'a str,
    legend: SeriesLabelPosition,
    series: Vec<Series>,
    /// What is said in place of a law.
    note: Option<String>,
}

fn losses(area: &Area<'_>, report: &Report) -> Drawn {
    let models = models(report);
    let mut series = Vec::new();
    for (at, model) in models.iter().enumerate() {
        let trials = report.trainings.iter().filter(|it| it.model == *model);
        let points = trials.filter_map(|it| Some((it.flops, it.loss?))).collect();
        let name = if at < NAMED_MAX { (*model).to_owned() } else { String::new() };
        series.push(Series { name, style: colour(at), form: Form::Dots, points });
    }
    let corners: Vec<(f64, f64)> = report.envelope.iter().map(|it| (it.flops, it.loss)).collect();
    let span = span(corners.iter().map(|it| it.0));
    let end = span.end * AHEAD;
    series.push(rings("envelope", corners));
    let laws = [
        ("power law", &report.power_law, 1, RGBColor(140, 140, 140)),
        ("saturating law", &report.saturating, CURVE_STEPS, BLACK),
    ];
    let mut note = Vec::new();
    for (name, law, steps, colour) in laws {
        match law {
            Outcome::Lacking(lack) => note.push(format!("{name}: {lack}")),
            Outcome::Found(law) => {
                let points = curve(law, span.start..end, steps);
                let style = colour.stroke_width(2);
                series.push(Series { name: name.to_owned(), style, form: Form::Line, points });
            }
        }
    }
    let note = (!note.is_empty()).then(|| note.join("; "));
    let panel = Panel {
        title: "Loss over compute",
        x_label: "compute (flops)",
        y_label: "loss (nats)",
        legend: SeriesLabelPosition::UpperRight,
        series,
        note,
    };
    panel.draw(area)
}

/// A power is a line here, and needs one step.
fn curve(law: &Fitted, span: Range<f64>, steps: u32) -> Vec<(f64, f64)> {
    let step = (span.end / span.start).ln() / f64::from(steps);
    let flops = (0..=steps).map(|it| span.start * (step * f64::from(it)).exp());
    flops.map(|it| (it, law.loss(it))).collect()
}

fn learning_rates(area: &Area<'_>, report: &Report) -> Drawn {
    let mut series = Vec::new();
    let mut edges = Vec::new();
    for (at, model) in models(report).iter().enumerate() {
        let of_model = || report.rates.iter().filter(|it| it.model == *model);
        let points = of_model().filter_map(|it| Some((it.epochs, rates::rate(it)?))).collect();
        let name = if at < NAMED_MAX { (*model).to_owned() } else { String::new() };
        series.push(Series { name, style: colour(at), form: Form::Chain, points });
        let is_edge = |it: &&rates::Rates| it.best.is_some_and(|it| it.edge != Edge::Inside);
        edges.extend(
            of_model().filter(is_edge).filter_map(|it| Some((it.epochs, rates::rate(it)?))),
        );
    }
    series.push(rings("at the edge of what was tried", edges));
    let note = match &report.trend {
        Outcome::Lacking(lack) => Some(format!("trend: {lack}")),
        Outcome::Found(_) => None,
    };
    let panel = Panel {
        title: "Best learning rate",
        x_label: "epochs",
        y_label: "learning rate",
        legend: SeriesLabelPosition::LowerLeft,
        series,
        note,
    };
    panel.draw(area)
}

fn best_sizes(area: &Area<'_>, report: &Report) -> Drawn {
    let law = report.growth.found();
    let power = law.map(|it| (it.parameters.value, it.parameters_exponent.value));
    let title = "Best size for the compute";
    best(area, report, (title, "parameters"), |it| it.parameters, power)
}

fn best_epochs(area: &Area<'_>, report: &Report) -> Drawn {
    let law = report.growth.found();
    let power = law.map(|it| (it.epochs.value, it.epochs_exponent.value));
    let title = "Best number of epochs for the compute";
    best(area, report, (title, "epochs"), |it| it.epochs, power)
}

fn best(
    area: &Area<'_>,
    report: &Report,
    (title, y_label): (&str, &str),
    number: fn(&Budget) -> f64,
    power: Option<(f64, f64)>,
) -> Drawn {
    let points = |is_wanted: fn(Edge) -> bool| {
        let budgets = report.budgets.iter().filter(|it| is_wanted(it.edge));
        budgets.map(|it| (it.flops, number(it))).collect::<Vec<_>>()
    };
    let name = "best of a budget".to_owned();
    let style = Hues::pick(0).filled();
    let inside = points(|it| it == Edge::Inside);
    let mut series = vec![Series { name, style, form: Form::Dots, points: inside }];
    series.push(rings("best, but at the edge of the sizes tried", points(|it| it != Edge::Inside)));
    let mut note = None;
    match (&report.growth, power) {
        (Outcome::Found(it), Some((factor, exponent))) => {
            let span = span(report.budgets.iter().map(|it| it.flops));
            let at = |flops: f64| (flops, factor * (flops / it.reference_flops).powf(exponent));
            series.push(Series {
                name: format!("compute to the power {exponent:.2}"),
                style: BLACK.stroke_width(2),
                form: Form::Line,
                points: vec![at(span.start), at(span.end)],
            });
        }
        (Outcome::Lacking(lack), _) => note = Some(lack.to_string()),
        _ => {}
    }
    let x_label = "compute (flops)";
    let legend = SeriesLabelPosition::UpperLeft;
    Panel { title, x_label, y_label, legend, series, note }.draw(area)
}

fn rings(name: &str, points: Vec<(f64, f64)>) -> Series {
    Series { name: name.to_owned(), style: BLACK.stroke_width(1), form: Form::Rings, points }
}

/// Names of the models, sizes rising.
fn models(report: &Report) -> Vec<&str> {
    let mut models: Vec<&str> = Vec::new();
    for it in &report.trainings {
        if !models.contains(&&*it.model) {
            models.push(&it.model);
        }
    }
    models
}

fn colour(at: usize) -> ShapeStyle {
    Hues::pick(at).filled().stroke_width(2)
}

impl Panel<'_> {
    fn draw(mut self, area: &Area<'_>) -> Drawn {
        for it in &mut self.series {
            it.points.retain(|(x, y)| SHOWN.contains(x) && SHOWN.contains(y));
        }
        let points = || self.series.iter().flat_map(|it| &it.points);
        let [x, y] = [span(points().map(|it| it.0)), span(points().map(|it| it.1))].map(widened);
        let mut chart = ChartBuilder::on(area)
            .caption(self.title, ("sans-serif", 18))
            .margin(MARGIN)
            .margin_bottom(MARGIN + NOTE)
            .x_label_area_size(44)
            .y_label_area_size(LEFT - MARGIN)
            .build_cartesian_2d(
                x.clone().log_scale().with_key_points(ticks(&x, 8)),
                y.clone().log_scale().with_key_points(ticks(&y, 10)),
            )?;
        chart
            .configure_mesh()
            .x_desc(self.x_label)
            .y_desc(self.y_label)
            .x_label_formatter(&short)
            .y_label_formatter(&short)
            .light_line_style(TRANSPARENT)
            .draw()?;
        for it in self.series.iter().filter(|it| !it.points.is_empty()) {
            let (style, points) = (it.style, it.points.iter().copied());
            let line = || LineSeries::new(points.clone(), style);
            let dots = |size| points.clone().map(move |it| Circle::new(it, size, style));
            let drawn = match it.form {
                Form::Line => chart.draw_series(line())?,
                Form::Dots => chart.draw_series(dots(4))?,
                Form::Rings => chart.draw_series(dots(6))?,
                Form::Chain => {
                    chart.draw_series(line())?;
                    chart.draw_series(dots(4))?
                }
            };
            if !it.name.is_empty() {
                name(drawn, it);
            }
        }
        chart
            .configure_series_labels()
            .position(self.legend.clone())
            .border_style(BLACK)
            .background_style(WHITE.mix(0.85))
            .draw()?;
        self.say(area)
    }

    /// Writes the note below the axis.
    fn say(&self, area: &Area<'_>) -> Drawn {
        if let Some(note) = &self.note {
            let style = ("sans-serif", 13).into_font().color(&RED);
            let (_, height) = area.dim_in_pixel();
            let place = (LEFT, i32::try_from(height)? - MARGIN - NOTE / 2);
            area.draw(&Text::new(note.clone(), place, style))?;
        }
        Ok(())
    }
}

/// Names a series in the legend, beside what stands for it.
fn name<B: DrawingBackend>(series: &mut SeriesAnno<'_, B>, named: &Series) {
    let Series { name, style, form, .. } = named;
    let style = *style;
    series.label(name);
    match form {
        Form::Dots => series.legend(move |(x, y)| Circle::new((x + 10, y), 4, style)),
        Form::Rings => series.legend(move |(x, y)| Circle::new((x + 10, y), 6, style)),
        Form::Line | Form::Chain => {
            series.legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], style))
        }
    };
}

/// From the least to the greatest of numbers above 0.
fn span(values: impl Iterator<Item = f64>) -> Range<f64> {
    let [lo, hi] =
        values.fold([f64::INFINITY, 0.0], |[lo, hi]: [f64; 2], it| [lo.min(it), hi.max(it)]);
    if lo <= hi { lo..hi } else { 1.0..10.0 }
}

/// With a margin, and never empty.
fn widened(it: Range<f64>) -> Range<f64> {
    let margin = (it.end / it.start).powf(0.06).max(1.05);
    it.start / margin..it.end * margin
}

/// Round numbers within `range`, about as many as `most` if they can be told apart.
fn ticks(range: &Range<f64>, most: u32) -> Vec<f64> {
    let Range { start, end } = *range;
    let most = f64::from(most);
    if end / start < 5.0 {
        let least = (end - start) / most;
        let decade = 10_f64.powf(least.log10().floor());
        let step = [1.0, 2.0, 5.0].map(|it| it * decade).into_iter().find(|it| least <= *it);
        let step = step.unwrap_or(10.0 * decade);
        let first = (start / step).ceil();
        let marks = (0..).map(|it| (first + f64::from(it)) * step);
        return marks.take_while(|it| *it <= end * (1.0 + 1e-9)).collect();
    }
    let decades = (end / start).log10();
    let within = if 3.0 * decades <= most { vec![1.0, 2.0, 5.0] } else { vec![1.0] };
    let stride = (decades / most).ceil();
    let first = (start.log10() / stride).floor();
    let powers = (0..).map(|it| 10_f64.powf((first + f64::from(it)) * stride));
    let powers: Vec<f64> = powers.take_while(|it| *it <= end).collect();
    let marks = powers.iter().flat_map(|power| within.iter().map(move |it| power * it));
    marks.filter(|it| start <= *it && *it <= end).collect()
}

fn short(number: &f64) -> String {
    let is_plain = 1e-3 <= *number && *number < 1e5;
    // What is left of multiplying powers of ten is rounded away.
    let rounded: f64 = format!("{number:.6e}").parse().unwrap_or(*number);
    if is_plain { rounded.to_string() } else { format!("{rounded:e}") }
}
