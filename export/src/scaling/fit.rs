//! Laws through points: least squares, least squares that outliers move little, and how far their
//! coefficients may be off. Knows nothing of trainings.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use crate::scaling::{Lack, Outcome};

/// Share of the draws outside an interval, on each side.
const TAIL: f64 = 0.025;

/// A number and the middle 95 % of what the bootstrap makes of it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Estimate {
    pub(super) value: f64,
    pub(super) low: f64,
    pub(super) high: f64,
}

/// How intervals are found (Efron 1979): residuals are dealt out anew, and the fit is made again.
///
/// Points stay where they are on the first axis, so that few of them never become too few. Residuals are
/// enlarged by the coefficients that they were fitted with: `n` points leave `n - p` of them free.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bootstrap {
    pub(super) draws: u32,
    pub(super) seed: u64,
}

impl Bootstrap {
    /// Estimates of `best`, where `refit` gives the same numbers for residuals that are those numbered.
    /// Draws that cannot be fitted are left out.
    pub(super) fn estimates(
        self,
        points: usize,
        best: &[f64],
        refit: impl Fn(&[usize]) -> Option<Vec<f64>>,
    ) -> Vec<Estimate> {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        let mut drawn = vec![Vec::new(); best.len()];
        for _ in 0..self.draws {
            let residuals: Vec<usize> = (0..points).map(|_| rng.random_range(0..points)).collect();
            for (drawn, value) in drawn.iter_mut().zip(refit(&residuals).unwrap_or_default()) {
                drawn.push(value);
            }
        }
        best.iter().zip(drawn).map(|(&value, drawn)| Estimate::within(value, drawn)).collect()
    }
}

impl Estimate {
    fn within(value: f64, mut drawn: Vec<f64>) -> Self {
        drawn.sort_by(f64::total_cmp);
        let quantile = |share: f64| {
            let place = share * (drawn.len().max(1) - 1) as f64;
            #[expect(clippy::cast_possible_truncation, reason = "a place among the draws")]
            let at = place as usize;
            let [lo, hi] = [at, at + 1].map(|it| drawn.get(it).copied());
            let lo = lo.unwrap_or(value);
            lo + (hi.unwrap_or(lo) - lo) * place.fract()
        };
        Self { value, low: quantile(TAIL), high: quantile(1.0 - TAIL) }
    }
}

/// Residuals of a fit of `coefficients` numbers, centred and enlarged for [`Bootstrap`].
pub(super) fn dealt(residuals: &[f64], coefficients: usize) -> Vec<f64> {
    let points = residuals.len() as f64;
    let mean = residuals.iter().sum::<f64>() / points;
    let enlarged = (points / (points - coefficients as f64).max(1.0)).sqrt();
    residuals.iter().map(|it| (it - mean) * enlarged).collect()
}

/// A sum of columns with factors.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Linear {
    pub(super) constant: f64,
    /// One for each column.
    pub(super) factors: Vec<f64>,
}

impl Linear {
    /// The one with the least sum of squares from `y`; none if `columns` do not determine it.
    pub(super) fn fit(columns: &[Vec<f64>], y: &[f64]) -> Option<Self> {
        let mean = |it: &[f64]| it.iter().sum::<f64>() / it.len() as f64;
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        // Centred and of length 1, so that what is left depends on no unit.
        let mut unit = Vec::new();
        for column in columns {
            let centre = mean(column);
            let centred: Vec<f64> = column.iter().map(|it| it - centre).collect();
            let length = dot(&centred, &centred).sqrt();
            let size = column.iter().fold(0.0, |most: f64, it| most.max(it.abs()));
            if length <= 1e-9 * size {
                return None;
            }
            unit.push((centred.iter().map(|it| it / length).collect::<Vec<_>>(), length));
        }
        let matrix = unit.iter().map(|(a, _)| unit.iter().map(|(b, _)| dot(a, b)).collect());
        let shares = solve(matrix.collect(), unit.iter().map(|(it, _)| dot(it, y)).collect())?;
        let factors: Vec<f64> = shares.iter().zip(&unit).map(|(it, (_, by))| it / by).collect();
        let means: Vec<f64> = columns.iter().map(|it| mean(it)).collect();
        Some(Self { constant: mean(y) - dot(&factors, &means), factors })
    }

    pub(super) fn at(&self, columns: &[f64]) -> f64 {
        self.constant + self.factors.iter().zip(columns).map(|(a, b)| a * b).sum::<f64>()
    }

    /// What it gives at each of the points.
    pub(super) fn along(&self, columns: &[Vec<f64>], points: usize) -> Vec<f64> {
        let row = |point: usize| columns.iter().map(|it| it[point]).collect::<Vec<_>>();
        (0..points).map(|it| self.at(&row(it))).collect()
    }
}

/// Solves `matrix · x = right` by elimination; none if it is singular.
fn solve(mut matrix: Vec<Vec<f64>>, mut right: Vec<f64>) -> Option<Vec<f64>> {
    let size = right.len();
    let scale = matrix.iter().flatten().fold(0.0, |most: f64, it| most.max(it.abs()));
    for at in 0..size {
        let pivot = (at..size).max_by(|&a, &b| matrix[a][at].abs().total_cmp(&matrix[b][at].abs()));
        matrix.swap(at, pivot?);
        right.swap(at, pivot?);
        let is_regular = 1e-12 * scale < matrix[at][at].abs();
        if !is_regular {
            return None;
        }
        let (above, below) = matrix.split_at_mut(at + 1);
        for (row, values) in below.iter_mut().enumerate() {
            let factor = values[at] / above[at][at];
            for (value, by) in values.iter_mut().zip(&above[at]) {
                *value -= factor * by;
            }
            right[at + 1 + row] -= factor * right[at];
        }
    }
    for at in (0..size).rev() {
        let known: f64 = (at + 1..size).map(|it| matrix[at][it] * right[it]).sum();
        right[at] = (right[at] - known) / matrix[at][at];
    }
    Some(right)
}

/// Place of the lowest point of a parabola, by least squares, through the lowest of `points` and up to two
/// on each side of it, or one where two give none; none if it is not between them. `points` are `(x, y)`
/// with `x` rising.
pub(super) fn lowest(points: &[(f64, f64)]) -> Option<f64> {
    let best = (0..points.len()).min_by(|&a, &b| points[a].1.total_cmp(&points[b].1))?;
    if best == 0 || best + 1 == points.len() {
        return None;
    }
    let vertex = |reach: usize| {
        let near = &points[best.saturating_sub(reach)..points.len().min(best + reach + 1)];
        let x: Vec<f64> = near.iter().map(|it| it.0 - points[best].0).collect();
        let y: Vec<f64> = near.iter().map(|it| it.1).collect();
        let (square, ends) = (x.iter().map(|it| it * it).collect(), [x[0], x[x.len() - 1]]);
        let [slope, bend] = Linear::fit(&[x, square], &y)?.factors.try_into().ok()?;
        let place = -slope / (2.0 * bend);
        (0.0 < bend && ends[0] <= place && place <= ends[1]).then(|| place + points[best].0)
    };
    vertex(2).or_else(|| vertex(1))
}

/// A form of the loss `L` as a function of the compute `C`, relative to some compute `C0`.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Law {
    /// `log L = a - b · log(C/C0)`, by least squares.
    Power,
    /// `L = floor + a · (C/C0)^-b`, by Huber's loss of the differences of logarithms, as Hoffmann et al.
    /// 2022 (arXiv:2203.15556, §3.3) fit theirs. There the loss turns linear at 1e-3; here that is the
    /// least, and usually 1.345 times the spread of the points (Huber 1964), which loses little where the
    /// noise is Gaussian.
    Saturating,
}

/// A law with its coefficients.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Fitted {
    pub(super) law: Law,
    /// `C0`.
    pub(super) reference_flops: f64,
    /// Points of the envelope that it was fitted to.
    pub(super) budgets: usize,
    pub(super) coefficients: BTreeMap<&'static str, Estimate>,
    /// Loss at the compute that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) prediction: Option<Estimate>,
}

impl Law {
    /// Names of the coefficients.
    fn names(self) -> &'static [&'static str] {
        match self {
            Self::Power => &["a", "b"],
            Self::Saturating => &["a", "b", "floor"],
        }
    }

    /// Fits the law to points `(C, L)`, and tells the loss at `flops` too.
    pub(super) fn fit(
        self,
        points: &[(f64, f64)],
        flops: Option<f64>,
        bootstrap: Bootstrap,
    ) -> Outcome<Fitted> {
        let names = self.names();
        let lack = Lack { of: "budgets", needs: names.len() + 1, has: points.len() };
        if lack.has < lack.needs {
            return Outcome::Lacking(lack);
        }
        let reference_flops = reference(points);
        let x: Vec<f64> = points.iter().map(|it| (it.0 / reference_flops).ln()).collect();
        let y: Vec<f64> = points.iter().map(|it| it.1.ln()).collect();
        let Some((best, bend)) = self.first(&x, &y) else { return Outcome::Lacking(lack) };
        let told = |coefficients: &[f64]| {
            let at = flops.map(|it| self.log_loss(coefficients, (it / reference_flops).ln()).exp());
            coefficients.iter().copied().chain(at).collect::<Vec<f64>>()
        };
        let fitted: Vec<f64> = x.iter().map(|&x| self.log_loss(&best, x)).collect();
        let residuals: Vec<f64> = y.iter().zip(&fitted).map(|(y, at)| y - at).collect();
        let residuals = dealt(&residuals, names.len());
        let refit = |drawn: &[usize]| {
            let y: Vec<f64> = fitted.iter().zip(drawn).map(|(y, &it)| y + residuals[it]).collect();
            self.again(&x, &y, &best, bend).map(|it| told(&it))
        };
        let estimates = bootstrap.estimates(points.len(), &told(&best), refit);
        Outcome::Found(Fitted {
            law: self,
            reference_flops,
            budgets: points.len(),
            coefficients: names.iter().copied().zip(estimates.iter().copied()).collect(),
            prediction: estimates.get(names.len()).copied(),
        })
    }

    /// Coefficients for logarithms of compute and loss, and where Huber's loss turns linear.
    fn first(self, x: &[f64], y: &[f64]) -> Option<(Vec<f64>, f64)> {
        match self {
            Self::Power => self.again(x, y, &[], f64::INFINITY).map(|it| (it, f64::INFINITY)),
            Self::Saturating => {
                let curve = Curve { x, y, bend: f64::INFINITY };
                let first = curve.best(&curve.starts())?;
                let bend = (1.345 * spread(&curve.residuals(&first))).max(1e-3);
                let curve = Curve { bend, ..curve };
                let starts = curve.starts().into_iter().chain([first]).collect::<Vec<_>>();
                curve.best(&starts).map(|it| (it.map(f64::exp).into(), bend))
            }
        }
    }

    /// Coefficients for other losses than those that gave `near`.
    fn again(self, x: &[f64], y: &[f64], near: &[f64], bend: f64) -> Option<Vec<f64>> {
        match self {
            Self::Power => {
                let line = Linear::fit(&[x.to_vec()], y)?;
                Some(vec![line.constant, -line.factors[0]])
            }
            Self::Saturating => {
                let curve = Curve { x, y, bend };
                let near = [near[0].ln(), near[1].ln(), near[2].ln()];
                // The floor may be anywhere below: one start beside what the whole data say.
                let starts = [Some(near), curve.start(0.5)].into_iter().flatten();
                curve.best(&starts.collect::<Vec<_>>()).map(|it| it.map(f64::exp).into())
            }
        }
    }

    fn log_loss(self, coefficients: &[f64], x: f64) -> f64 {
        match self {
            Self::Power => coefficients[0] - coefficients[1] * x,
            Self::Saturating => {
                (coefficients[2] + coefficients[0] * (-coefficients[1] * x).exp()).ln()
            }
        }
    }
}

impl Fitted {
    /// The loss at `flops`.
    pub(super) fn loss(&self, flops: f64) -> f64 {
        let coefficients: Vec<f64> = self.coefficients.values().map(|it| it.value).collect();
        self.law.log_loss(&coefficients, (flops / self.reference_flops).ln()).exp()
    }
}

/// The power of ten that is next to the middle of the points.
pub(super) fn reference(points: &[(f64, f64)]) -> f64 {
    let middle = points.iter().map(|it| it.0.log10()).sum::<f64>() / points.len() as f64;
    10_f64.powf(middle.round())
}

/// Standard deviation of Gaussian noise that has these residuals' median.
fn spread(residuals: &[f64]) -> f64 {
    let mut sizes: Vec<f64> = residuals.iter().map(|it| it.abs()).collect();
    sizes.sort_by(f64::total_cmp);
    let [lo, hi] = [(sizes.len() - 1) / 2, sizes.len() / 2].map(|it| sizes[it]);
    1.4826 * (lo + hi) / 2.0
}

/// Logarithms of a coefficient that the curve has, `a`, `b` and the floor: all are above 0.
type Logs = [f64; 3];

/// The saturating law as a problem of least squares.
#[derive(Clone, Copy, Debug)]
struct Curve<'a> {
    /// Logarithms of compute.
    x: &'a [f64],
    /// Logarithms of loss.
    y: &'a [f64],
    /// Where Huber's loss turns linear.
    bend: f64,
}

impl Curve<'_> {
    /// Steps of a descent.
    const STEPS_MAX: u32 = 2000;
    /// Damping at which no step helps.
    const DAMPING_MAX: f64 = 1e10;

    /// The lowest place that descents from `starts` lead to.
    fn best(&self, starts: &[Logs]) -> Option<Logs> {
        let ends = starts.iter().map(|&it| self.descend(it));
        ends.min_by(|a, b| a.1.total_cmp(&b.1)).filter(|it| it.1.is_finite()).map(|it| it.0)
    }

    /// Starts with floors at several shares of the least loss.
    fn starts(&self) -> Vec<Logs> {
        [1e-3, 0.3, 0.6, 0.8, 0.9, 0.97, 0.995]
            .into_iter()
            .filter_map(|it| self.start(it))
            .collect()
    }

    /// The start whose floor is `share` of the least loss: with a floor, the rest is a line.
    fn start(&self, share: f64) -> Option<Logs> {
        let floor = share * self.y.iter().copied().fold(f64::INFINITY, f64::min).exp();
        let above = self.y.iter().map(|it| (it.exp() - floor).ln()).collect::<Vec<_>>();
        let line = Linear::fit(&[self.x.to_vec()], &above)?;
        Some([line.constant, (-line.factors[0]).max(1e-3).ln(), floor.ln()])
    }

    fn residuals(&self, at: &Logs) -> Vec<f64> {
        let [a, b, floor] = at.map(f64::exp);
        let residual = |(x, y): (&f64, &f64)| (floor + a * (-b * x).exp()).ln() - y;
        self.x.iter().zip(self.y).map(residual).collect()
    }

    /// Sum of Huber's loss.
    fn cost(&self, at: &Logs) -> f64 {
        let huber = |it: f64| match it.abs() {
            size if size <= self.bend => 0.5 * size * size,
            size => self.bend * (size - 0.5 * self.bend),
        };
        let sum: f64 = self.residuals(at).into_iter().map(huber).sum();
        if sum.is_nan() { f64::INFINITY } else { sum }
    }

    /// Goes down from `at` (Levenberg 1944, Marquardt 1963), points weighed by how far off they are.
    fn descend(&self, mut at: Logs) -> (Logs, f64) {
        let (mut cost, mut damping) = (self.cost(&at), 1e-3);
        for _ in 0..Self::STEPS_MAX {
            let (matrix, slope) = self.normal(&at);
            let before = cost;
            while damping < Self::DAMPING_MAX {
                let mut damped = matrix.clone();
                for (it, row) in damped.iter_mut().enumerate() {
                    // A floor that is far below has no slope left.
                    row[it] += damping * row[it].max(1e-6);
                }
                let step = solve(damped, slope.clone()).unwrap_or_else(|| vec![0.0; 3]);
                let next = [at[0] - step[0], at[1] - step[1], at[2] - step[2]];
                let found = self.cost(&next);
                if found < cost {
                    (at, cost, damping) = (next, found, (damping * 0.2).max(1e-12));
                    break;
                }
                damping *= 5.0;
            }
            if before - cost <= 1e-14 * before {
                break;
            }
        }
        (at, cost)
    }

    /// `Jᵀ W J` and `Jᵀ W r`.
    fn normal(&self, at: &Logs) -> (Vec<Vec<f64>>, Vec<f64>) {
        let [a, b, floor] = at.map(f64::exp);
        let mut matrix = vec![vec![0.0; 3]; 3];
        let mut slope = vec![0.0; 3];
        for (&x, residual) in self.x.iter().zip(self.residuals(at)) {
            let falling = a * (-b * x).exp();
            let share = falling / (falling + floor);
            let row = [share, -b * x * share, 1.0 - share];
            let weight = (self.bend / residual.abs()).min(1.0);
            for (i, matrix) in matrix.iter_mut().enumerate() {
                for (value, by) in matrix.iter_mut().zip(row) {
                    *value += weight * row[i] * by;
                }
                slope[i] += weight * row[i] * residual;
            }
        }
        (matrix, slope)
    }
}
