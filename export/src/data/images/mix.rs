//! Rows made of two pictures: MixUp and CutMix.

#[cfg(test)]
mod tests;

use aerie_models::images::preprocessing::{Extent, picture::CHANNELS};
use rand::Rng;

use crate::data::images::sampler::Draw;

/// How two pictures become one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Mix {
    /// Zhang et al. 2018 (arXiv:1710.09412): a weighted mean, with a weight of `Beta(alpha, alpha)`.
    MixUp { alpha: f64 },
    /// Yun et al. 2019 (arXiv:1905.04899): a rectangle of the other, of uniform area.
    CutMix,
}

/// The row of another picture, for row `row` of a batch with `multiplicity` draws of each; none if all
/// rows are of one picture, as a small data set may have it where a pass ends.
///
/// Every picture but the row's own is as likely, and the draw of it has the row's number.
pub(super) fn partner(
    draws: &[Draw],
    row: usize,
    multiplicity: usize,
    rng: &mut impl Rng,
) -> Option<usize> {
    let pictures = draws.len() / multiplicity;
    let (own, number) = (row / multiplicity, row % multiplicity);
    if pictures < 2 {
        return None;
    }
    let step = rng.random_range(1..pictures);
    // A pass that ends within the batch may bring the same picture again.
    let others = (step..pictures).chain(1..step).map(|it| (own + it) % pictures);
    let mut rows = others.map(|it| it * multiplicity + number);
    rows.find(|it| draws[*it].picture != draws[row].picture)
}

impl Mix {
    /// Mixes `other` into `own`; tells which share of the result is of `own`.
    ///
    /// # Shapes
    /// - `own`, `other`: `[H, W, 3]`
    pub(super) fn apply(
        self,
        extent: Extent,
        own: &mut [u8],
        other: &[u8],
        rng: &mut impl Rng,
    ) -> f32 {
        match self {
            Self::MixUp { alpha } => {
                let share = beta(alpha, rng);
                for (own, other) in own.iter_mut().zip(other) {
                    *own = blend(*own, *other, share);
                }
                share
            }
            Self::CutMix => cut(extent, own, other, rng),
        }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "between two bytes")]
fn blend(own: u8, other: u8, share: f32) -> u8 {
    (f32::from(other) + share * (f32::from(own) - f32::from(other))).round() as u8
}

/// Puts a rectangle of `other` at its place in `own`. Its area is uniform before it is clipped at the
/// edges; what counts is how many pixels it has after.
#[expect(clippy::cast_possible_truncation, reason = "sides lie within the picture")]
fn cut(extent: Extent, own: &mut [u8], other: &[u8], rng: &mut impl Rng) -> f32 {
    let side = rng.random::<f64>().sqrt();
    let mut span = |whole: usize| {
        let half = side * whole as f64 / 2.0;
        let centre = rng.random::<f64>() * whole as f64;
        let [start, end] = [centre - half, centre + half].map(f64::round);
        (start.max(0.0) as usize)..(end as usize).min(whole)
    };
    let (rows, columns) = (span(extent.height), span(extent.width));
    for row in rows.clone() {
        let start = (row * extent.width + columns.start) * CHANNELS;
        let end = (row * extent.width + columns.end) * CHANNELS;
        own[start..end].copy_from_slice(&other[start..end]);
    }
    let cut = rows.len() * columns.len();
    1.0 - cut as f32 / extent.pixels() as f32
}

/// Draws from `Beta(alpha, alpha)` with Jöhnk's method (1964), in logarithms, as `alpha` may be small.
#[expect(clippy::cast_possible_truncation, reason = "shares of classes are f32")]
fn beta(alpha: f64, rng: &mut impl Rng) -> f32 {
    loop {
        let [own, other] = [0, 0].map(|_| (1.0 - rng.random::<f64>()).ln() / alpha);
        let larger = own.max(other);
        let total = larger + ((own - larger).exp() + (other - larger).exp()).ln();
        // Accepted with a chance of at least 1 in 70 for an `alpha` of up to 4.
        if total <= 0.0 {
            return (own - total).exp() as f32;
        }
    }
}
