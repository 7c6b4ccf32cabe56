//! Resizing with the filter widened where a picture shrinks, to the bit as Pillow up to 12 does it.
//!
//! Pillow keeps weights as integers of 22 bits behind the point and rounds to bytes after each of
//! its two passes, along rows first (13 begins with the columns where that is less work, which
//! rounds otherwise). Only the window that is asked for is computed.

#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

use crate::images::preprocessing::picture::{CHANNELS, Picture, View};

/// Extent of a picture, in pixels.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Extent {
    pub height: usize,
    pub width: usize,
}

/// A rectangle of a picture, in pixels.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Window {
    pub top: usize,
    pub left: usize,
    pub height: usize,
    pub width: usize,
}

/// How a picture is resized.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Scaling {
    /// What the whole picture becomes.
    pub to: Extent,
    /// The part of `to` that is wanted.
    pub window: Window,
    pub interpolation: Interpolation,
}

/// The filter that weighs neighbours.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Interpolation {
    Bilinear,
    /// Keys' cubic with `a = -1/2`.
    Bicubic,
}

/// Bits behind the point of a weight: with 8 of a value and 2 to spare they fill an `i32`.
const WEIGHT_BITS: u32 = 22;

/// Resizes `picture` and keeps the window.
///
/// # Numerics
/// Equal to the `resize` of Pillow 11 and 12 followed by `crop` in every byte.
///
/// # Panics
/// If an extent is 0 or the window does not lie within `to`.
pub fn scale(picture: View<'_>, scaling: &Scaling) -> Picture {
    let Scaling { to, window, interpolation } = *scaling;
    assert!(0 < window.height && 0 < window.width, "the window has pixels");
    assert!(window.top + window.height <= to.height, "the window lies within the picture");
    assert!(window.left + window.width <= to.width, "the window lies within the picture");
    let Extent { height, width } = picture.extent();

    let across = Filter::new(interpolation, width, to.width, window.left, window.width);
    let down = Filter::new(interpolation, height, to.height, window.top, window.height);
    // Rows that no output asks for need not be narrowed.
    let rows = down.sources();
    let row_bytes = width * CHANNELS;
    let source = &picture.rgb()[rows.start * row_bytes..rows.end * row_bytes];
    let narrow = if width == to.width && window.width == width {
        source.to_vec()
    } else {
        narrowed(source, row_bytes, &across)
    };
    let rgb = if height == to.height && window.height == height {
        narrow
    } else {
        flattened(&narrow, rows.start, &down, window.width * CHANNELS)
    };
    Picture::new(Extent { height: window.height, width: window.width }, rgb)
}

/// Filters each row.
fn narrowed(source: &[u8], row_bytes: usize, filter: &Filter) -> Vec<u8> {
    let n_rows = source.len() / row_bytes;
    let mut narrow = Vec::with_capacity(n_rows * filter.taps.len() * CHANNELS);
    for row in source.chunks_exact(row_bytes) {
        for taps in &filter.taps {
            let weights = filter.weights(taps);
            let mut sums = [1 << (WEIGHT_BITS - 1); CHANNELS];
            for (rgb, &weight) in row[taps.first * CHANNELS..].chunks_exact(CHANNELS).zip(weights) {
                for (sum, &value) in sums.iter_mut().zip(rgb) {
                    *sum += weight * i32::from(value);
                }
            }
            narrow.extend(sums.map(rounded));
        }
    }
    narrow
}

/// Filters each column; the first row of `source` is row `first` of what the filter was made for.
fn flattened(source: &[u8], first: usize, filter: &Filter, row_bytes: usize) -> Vec<u8> {
    let mut flat = Vec::with_capacity(filter.taps.len() * row_bytes);
    let mut sums = vec![0; row_bytes];
    for taps in &filter.taps {
        sums.fill(1 << (WEIGHT_BITS - 1));
        let rows = source[(taps.first - first) * row_bytes..].chunks_exact(row_bytes);
        for (row, &weight) in rows.zip(filter.weights(taps)) {
            for (sum, &value) in sums.iter_mut().zip(row) {
                *sum += weight * i32::from(value);
            }
        }
        flat.extend(sums.iter().map(|&sum| rounded(sum)));
    }
    flat
}

fn rounded(sum: i32) -> u8 {
    (sum >> WEIGHT_BITS).clamp(0, 255) as u8
}

/// Weights of the source pixels of each output along one axis.
struct Filter {
    taps: Vec<Taps>,
    /// Of all outputs, one after another.
    weights: Vec<i32>,
}

/// Source pixels of one output.
struct Taps {
    /// First source pixel.
    first: usize,
    /// First weight.
    start: usize,
    count: usize,
}

impl Filter {
    /// Weights of outputs `from..from + count` where `source` pixels become `to`.
    #[expect(clippy::cast_possible_truncation, reason = "places lie within the picture")]
    fn new(
        interpolation: Interpolation,
        source: usize,
        to: usize,
        from: usize,
        count: usize,
    ) -> Self {
        let step = source as f64 / to as f64;
        let stretch = step.max(1.0);
        let reach = interpolation.reach() * stretch;
        let mut filter = Self { taps: Vec::with_capacity(count), weights: Vec::new() };
        let mut exact = Vec::new();
        for output in from..from + count {
            let centre = (output as f64 + 0.5) * step;
            // Casts of what is below 0 saturate there.
            let first = (centre - reach + 0.5) as usize;
            let end = ((centre + reach + 0.5) as usize).min(source);
            exact.clear();
            exact.extend(
                (first..end)
                    .map(|it| interpolation.weight((it as f64 - centre + 0.5) * (1.0 / stretch))),
            );
            let total: f64 = exact.iter().sum();
            let start = filter.weights.len();
            filter.weights.extend(exact.iter().map(|it| fixed(it / total)));
            filter.taps.push(Taps { first, start, count: end - first });
        }
        filter
    }

    fn weights(&self, taps: &Taps) -> &[i32] {
        &self.weights[taps.start..][..taps.count]
    }

    /// Source pixels that some output asks for.
    fn sources(&self) -> std::ops::Range<usize> {
        let first = self.taps.first().map_or(0, |it| it.first);
        let end = self.taps.last().map_or(0, |it| it.first + it.count);
        first..end
    }
}

/// The nearest weight that integers can hold.
#[expect(clippy::cast_possible_truncation, reason = "normalised weights are small")]
fn fixed(weight: f64) -> i32 {
    let scaled = weight * f64::from(1 << WEIGHT_BITS);
    (scaled + 0.5f64.copysign(scaled)) as i32
}

impl Interpolation {
    /// How far the filter reaches, in pixels of the smaller picture.
    fn reach(self) -> f64 {
        match self {
            Self::Bilinear => 1.0,
            Self::Bicubic => 2.0,
        }
    }

    fn weight(self, at: f64) -> f64 {
        const A: f64 = -0.5;
        let at = at.abs();
        match self {
            Self::Bilinear if at < 1.0 => 1.0 - at,
            // Keys 1981, "Cubic convolution interpolation for digital image processing", eq. 4.
            Self::Bicubic if at < 1.0 => ((A + 2.0) * at - (A + 3.0)) * at * at + 1.0,
            Self::Bicubic if at < 2.0 => (((at - 5.0) * at + 8.0) * at - 4.0) * A,
            Self::Bilinear | Self::Bicubic => 0.0,
        }
    }
}
