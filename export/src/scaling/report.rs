//! What was found: a table for people, JSON and CSV for programs.

use std::{collections::BTreeSet, fmt};

use serde::Serialize;

use crate::{
    bench::table::Table,
    scaling::{
        Outcome,
        envelope::{self, Corner, envelope},
        fit::{Bootstrap, Estimate, Fitted, Law},
        optimum::{self, Budget, Growth},
        rates::{self, Rates, Trend},
        trials::{ADDED, COLUMNS, DIVERGED, LeftOut, Trial, Trials},
    },
};

/// Share of the largest compute that held-out fits are made to.
const HELD_OUT: f64 = 0.25;

/// Everything that a sweep of trainings says.
#[derive(Debug, PartialEq, Serialize)]
pub(super) struct Report {
    pub(super) trainings: Vec<Trial>,
    pub(super) left_out: Vec<LeftOut>,
    pub(super) rates: Vec<Rates>,
    pub(super) trend: Outcome<Trend>,
    pub(super) envelope: Vec<Corner>,
    pub(super) power_law: Outcome<Fitted>,
    pub(super) saturating: Outcome<Fitted>,
    pub(super) budgets: Vec<Budget>,
    pub(super) growth: Outcome<Growth>,
    pub(super) held_out: HeldOut,
}

/// What fits to the lower part of the envelope say of its last corner.
#[derive(Debug, PartialEq, Serialize)]
pub(super) struct HeldOut {
    pub(super) flops: f64,
    pub(super) loss: f64,
    pub(super) power_law: Outcome<Prediction>,
    pub(super) saturating: Outcome<Prediction>,
}

/// A loss that was predicted.
#[derive(Debug, PartialEq, Serialize)]
pub(super) struct Prediction {
    /// Corners of the envelope that it follows from.
    pub(super) budgets: usize,
    pub(super) loss: Estimate,
    /// How much the prediction is above the truth, as a share of it.
    pub(super) error: f64,
}

impl Report {
    pub(super) fn new(trials: Trials, budget: f64, bootstrap: Bootstrap) -> Self {
        let Trials { all, left_out } = trials;
        let corners = envelope(&all);
        let points = envelope::points(&corners);
        let [power_law, saturating] =
            [Law::Power, Law::Saturating].map(|it| it.fit(&points, None, bootstrap));
        let exponent = power_law.found().map_or(0.0, |it| it.coefficients["b"].value);
        let budgets = optimum::budgets(&all, budget, exponent);
        let rates = rates::rates(&all);
        Self {
            left_out,
            trend: rates::trend(&rates, bootstrap),
            rates,
            held_out: HeldOut::new(&points, bootstrap),
            envelope: corners,
            power_law,
            saturating,
            growth: optimum::growth(&budgets, bootstrap),
            budgets,
            trainings: all,
        }
    }

    pub(super) fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("figures have a JSON form") + "\n"
    }

    /// Every training, and whether it is the best of its kind or on the envelope.
    pub(super) fn to_csv(&self) -> String {
        let mut text = COLUMNS.iter().chain(&ADDED).copied().collect::<Vec<_>>().join(",") + "\n";
        for it in &self.trainings {
            let edge = self.edge(it);
            let corner = self.envelope.iter().any(|corner| {
                Some(corner.loss) == it.loss
                    && corner.flops == it.flops
                    && corner.learning_rate == it.learning_rate
                    && corner.model == it.model
            });
            let loss = it.loss.map_or_else(|| DIVERGED.to_owned(), |it| it.to_string());
            text += &format!(
                "{},{},{},{},{},{loss},{},{},{}\n",
                it.model,
                it.parameters,
                it.epochs,
                it.learning_rate,
                it.flops,
                yes(edge.is_some()),
                edge.unwrap_or_default(),
                yes(corner),
            );
        }
        text
    }

    /// Where `trial` lies among the learning rates of its kind, if it is the best of them.
    fn edge(&self, trial: &Trial) -> Option<&'static str> {
        let kind = rates::kind(&trial.model, trial.epochs);
        let best = self.rates.iter().find(|it| rates::kind(&it.model, it.epochs) == kind)?.best?;
        let is_best = best.learning_rate == trial.learning_rate
            && best.flops == trial.flops
            && Some(best.loss) == trial.loss;
        is_best.then(|| best.edge.name())
    }
}

impl HeldOut {
    /// `points` are those of an envelope that has some.
    fn new(points: &[(f64, f64)], bootstrap: Bootstrap) -> Self {
        let (flops, loss) = points[points.len() - 1];
        let known = points.partition_point(|it| it.0 <= HELD_OUT * flops);
        let predict = |law: Law| match law.fit(&points[..known], Some(flops), bootstrap) {
            Outcome::Lacking(lack) => Outcome::Lacking(lack),
            Outcome::Found(it) => {
                let predicted = it.prediction.expect("a loss was asked for");
                let error = predicted.value / loss - 1.0;
                Outcome::Found(Prediction { budgets: known, loss: predicted, error })
            }
        };
        let [power_law, saturating] = [Law::Power, Law::Saturating].map(predict);
        Self { flops, loss, power_law, saturating }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let models: BTreeSet<&str> = self.trainings.iter().map(|it| &*it.model).collect();
        let diverged = self.trainings.iter().filter(|it| it.loss.is_none()).count();
        let (trainings, models, left_out) =
            (self.trainings.len(), models.len(), self.left_out.len());
        writeln!(
            f,
            "{trainings} trainings, sizes {models}, diverged {diverged}, left out {left_out}"
        )?;
        for LeftOut { run, why } in &self.left_out {
            writeln!(f, "  {} is left out: {why}", run.display())?;
        }
        writeln!(f, "\nBest learning rates\n{}", self.rates_table())?;
        writeln!(f, "{}\n", self.trend_line())?;
        writeln!(f, "Envelope of loss over compute\n{}", self.envelope_table())?;
        writeln!(f, "Laws of the envelope\n{}", self.laws_table())?;
        writeln!(f, "Best size for the compute\n{}", self.budgets_table())?;
        writeln!(f, "{}\n", self.growth_line())?;
        let HeldOut { flops, loss, .. } = self.held_out;
        let (flops, loss) = (digits(flops, 3), digits(loss, 4));
        writeln!(f, "Held out: {loss} at {flops} flops, from at most a quarter of them")?;
        write!(f, "{}", self.held_out_table())
    }
}

impl Report {
    fn rates_table(&self) -> Table {
        let header = [
            "model",
            "parameters",
            "epochs",
            "rates",
            "diverged",
            "best rate",
            "loss",
            "place",
            "parabola's rate",
        ];
        let mut table = Table::new(1, &header);
        for it in &self.rates {
            let best = |text: fn(&rates::Best) -> String| {
                it.best.as_ref().map_or_else(|| "-".to_owned(), text)
            };
            table.row([
                it.model.clone(),
                digits(it.parameters, 4),
                digits(it.epochs, 3),
                it.tried.to_string(),
                it.diverged.to_string(),
                best(|it| digits(it.learning_rate, 3)),
                best(|it| digits(it.loss, 4)),
                best(|it| match it.edge {
                    rates::Edge::Inside => "inside".to_owned(),
                    edge => format!("EDGE: {}", edge.name()),
                }),
                said(&it.parabola, |it| digits(*it, 3)),
            ]);
        }
        table
    }

    fn trend_line(&self) -> String {
        match &self.trend {
            Outcome::Lacking(lack) => format!("trend of the best rate: {lack}"),
            Outcome::Found(Trend { pairs, epochs, parameters }) => {
                let factor = |name, it: &Option<Estimate>| match it {
                    Some(it) => format!(" {name}^{}", with_interval(it)),
                    None => String::new(),
                };
                format!(
                    "trend of the best rate, of {pairs} that are inside: ~{}{}",
                    factor("epochs", epochs),
                    factor("parameters", parameters)
                )
            }
        }
    }

    fn envelope_table(&self) -> Table {
        let mut table = Table::new(1, &["model", "epochs", "learning rate", "flops", "loss"]);
        for it in &self.envelope {
            table.row([
                it.model.clone(),
                digits(it.epochs, 3),
                digits(it.learning_rate, 3),
                digits(it.flops, 4),
                digits(it.loss, 4),
            ]);
        }
        table
    }

    fn laws_table(&self) -> Table {
        let mut table = Table::new(2, &["law", "", "value", "95 % from", "to", "C0"]);
        let laws = [
            ("log L = a - b log(C/C0)", &self.power_law),
            ("L = floor + a (C/C0)^-b", &self.saturating),
        ];
        for (name, law) in laws {
            match law {
                Outcome::Lacking(lack) => {
                    let empty = String::new;
                    let name = format!("{name}: {lack}");
                    table.row([name, empty(), empty(), empty(), empty(), empty()]);
                }
                Outcome::Found(it) => {
                    for (coefficient, Estimate { value, low, high }) in &it.coefficients {
                        table.row([
                            name.to_owned(),
                            (*coefficient).to_owned(),
                            digits(*value, 4),
                            digits(*low, 4),
                            digits(*high, 4),
                            format!("{:.0e}", it.reference_flops),
                        ]);
                    }
                }
            }
        }
        table
    }

    fn budgets_table(&self) -> Table {
        let mut table = Table::new(0, &["flops", "sizes", "parameters", "epochs", "place"]);
        for it in &self.budgets {
            table.row([
                digits(it.flops, 3),
                it.sizes.to_string(),
                digits(it.parameters, 3),
                digits(it.epochs, 3),
                match it.edge {
                    rates::Edge::Inside => "inside".to_owned(),
                    edge => format!("EDGE: {}", edge.name()),
                },
            ]);
        }
        table
    }

    fn growth_line(&self) -> String {
        match &self.growth {
            Outcome::Lacking(lack) => format!("size and epochs over compute: {lack}"),
            Outcome::Found(it) => format!(
                "of {} budgets that are inside, C0 = {:.0e}:\n\
                 \x20 parameters = {} (C/C0)^{}\n\
                 \x20 epochs = {} (C/C0)^{}\n\
                 \x20 ratio of the exponents {}",
                it.budgets,
                it.reference_flops,
                digits(it.parameters.value, 3),
                with_interval(&it.parameters_exponent),
                digits(it.epochs.value, 3),
                with_interval(&it.epochs_exponent),
                with_interval(&it.ratio),
            ),
        }
    }

    fn held_out_table(&self) -> Table {
        let mut table =
            Table::new(1, &["law", "budgets", "predicted", "95 % from", "to", "off by"]);
        let HeldOut { power_law, saturating, .. } = &self.held_out;
        for (name, outcome) in [("power", power_law), ("saturating", saturating)] {
            let name = name.to_owned();
            match outcome {
                Outcome::Lacking(lack) => {
                    let empty = String::new;
                    table.row([
                        format!("{name}: {lack}"),
                        empty(),
                        empty(),
                        empty(),
                        empty(),
                        empty(),
                    ]);
                }
                Outcome::Found(it) => table.row([
                    name,
                    it.budgets.to_string(),
                    digits(it.loss.value, 4),
                    digits(it.loss.low, 4),
                    digits(it.loss.high, 4),
                    format!("{:+.2} %", 100.0 * it.error),
                ]),
            }
        }
        table
    }
}

fn yes(it: bool) -> &'static str {
    if it { "yes" } else { "no" }
}

fn said<T>(outcome: &Outcome<T>, text: impl Fn(&T) -> String) -> String {
    match outcome {
        Outcome::Found(it) => text(it),
        Outcome::Lacking(lack) => lack.to_string(),
    }
}

fn with_interval(it: &Estimate) -> String {
    let [value, low, high] = [it.value, it.low, it.high].map(|it| digits(it, 3));
    format!("{value} [{low}, {high}]")
}

/// `number` to so many digits that say something.
fn digits(number: f64, count: i32) -> String {
    let size = number.abs();
    if size == 0.0 || !size.is_finite() {
        return number.to_string();
    }
    let places = |it: i32| usize::try_from(it).unwrap_or(0);
    if (1e-4..1e7).contains(&size) {
        #[expect(clippy::cast_possible_truncation, reason = "from -4 to 6")]
        let before = size.log10().floor() as i32;
        format!("{number:.*}", places(count - 1 - before))
    } else {
        format!("{number:.*e}", places(count - 1))
    }
}
