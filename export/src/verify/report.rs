//! Compares readings: the first is the reference, and every other is held against it.

#[cfg(test)]
mod tests;

use std::fmt;

/// What one way of running the tokens answers.
#[derive(Clone, Debug)]
pub(super) struct Reading {
    pub(super) name: String,
    /// Whether it is the same computation as all others that are, and so has to agree to the bit.
    pub(super) ragged: bool,
    pub(super) answers: Vec<Answer>,
}

/// Logits of what follows the token at `position`.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    pub(super) position: usize,
    pub(super) logits: Vec<f64>,
}

/// How far readings are from the first.
#[derive(Clone, Debug)]
pub(super) struct Report {
    reference: String,
    positions: usize,
    /// Largest absolute logit of the reference.
    scale: f64,
    /// Largest absolute difference that passes.
    limit: f64,
    comparisons: Vec<Comparison>,
}

#[derive(Clone, Debug)]
struct Comparison {
    name: String,
    /// Answers compared.
    answers: usize,
    worst: Worst,
    /// Whether it agrees to the bit with the first of its kind; none if it is that, or has no kind.
    same_bits: Option<bool>,
}

/// The largest difference, and where it is.
#[derive(Clone, Copy, Debug, Default)]
struct Worst {
    difference: f64,
    position: usize,
    token: usize,
}

impl Report {
    /// Holds every reading against the first, which has an answer for every position.
    ///
    /// `tolerance` is a share of the largest logit.
    pub(super) fn new(readings: Vec<Reading>, tolerance: f64) -> Self {
        let mut readings = readings.into_iter();
        let reference = readings.next().expect("there is a reference");
        let logits = reference.answers.iter().flat_map(|it| &it.logits);
        let scale = logits.fold(0.0, |scale: f64, it| scale.max(it.abs()));
        let readings: Vec<Reading> = readings.collect();
        let first = readings.iter().position(|it| it.ragged);
        let compare = |(idx, reading): (usize, &Reading)| {
            let mut comparison = Comparison::new(&reference, reading);
            if let Some(first) = first.filter(|&first| reading.ragged && first < idx) {
                let same = Worst::of(&readings[first], reading).difference == 0.0;
                comparison.same_bits = Some(same);
            }
            comparison
        };
        let comparisons = readings.iter().enumerate().map(compare).collect();
        Self {
            positions: reference.answers.len(),
            reference: reference.name,
            scale,
            limit: tolerance * scale,
            comparisons,
        }
    }

    pub(super) fn passes(&self) -> bool {
        self.comparisons.iter().all(|it| self.holds(it))
    }

    fn holds(&self, comparison: &Comparison) -> bool {
        comparison.worst.difference <= self.limit && comparison.same_bits != Some(false)
    }
}

impl Comparison {
    fn new(reference: &Reading, reading: &Reading) -> Self {
        Self {
            name: reading.name.clone(),
            answers: reading.answers.len(),
            worst: Worst::of(reference, reading),
            same_bits: None,
        }
    }
}

impl Worst {
    /// Holds `reading` against `reference`, which has an answer for every position.
    fn of(reference: &Reading, reading: &Reading) -> Self {
        let mut worst = Self::default();
        for answer in &reading.answers {
            let expected = &reference.answers[answer.position];
            assert_eq!(expected.position, answer.position, "the reference answers everywhere");
            assert_eq!(expected.logits.len(), answer.logits.len(), "readings share a vocabulary");
            for (token, (a, b)) in expected.logits.iter().zip(&answer.logits).enumerate() {
                let difference = (a - b).abs();
                // What is not a number is as far away as can be.
                let difference = if difference.is_nan() { f64::INFINITY } else { difference };
                if worst.difference < difference {
                    worst = Self { difference, position: answer.position, token };
                }
            }
        }
        worst
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { reference, positions, scale, limit, comparisons } = self;
        writeln!(f, "reference: {reference}; {positions} positions, largest logit {scale:.3}")?;
        writeln!(f, "tolerance: {limit:.1e}")?;
        writeln!(f)?;
        let header = ["reading", "answers", "worst", "at position", "token", "bits"];
        let [reading, answers, worst, position, token, bits] = header;
        writeln!(f, "{reading:<38} {answers:>7} {worst:>9} {position:>12} {token:>7} {bits:>7}")?;
        for it in comparisons {
            let Comparison { name, answers, worst, same_bits } = it;
            let Worst { difference, position, token } = worst;
            let bits = match same_bits {
                None => "",
                Some(true) => "same",
                Some(false) => "differ",
            };
            let verdict = if self.holds(it) { "ok" } else { "BEYOND" };
            writeln!(
                f,
                "{name:<38} {answers:>7} {difference:>9.1e} {position:>12} {token:>7} {bits:>7}  \
                 {verdict}"
            )?;
        }
        Ok(())
    }
}
