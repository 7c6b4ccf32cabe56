//! What is drawn for a picture before others have a part in it: a crop, and whether it is mirrored.

#[cfg(test)]
mod tests;

use aerie_models::images::preprocessing::{
    Extent, Picture, Preprocessing, Scaling, View, Window, WrongSize, picture::CHANNELS, scale,
};
use rand::Rng;
use serde::{Deserialize, Serialize};

/// Which part of a picture is taken.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum Crop {
    /// The picture of the preprocessing, moved by up to `padding` pixels each way.
    Padded { padding: u32, fill: Fill },
    /// A rectangle of the picture, resized to what is wanted (Szegedy et al. 2015, "Going deeper with
    /// convolutions", arXiv:1409.4842, section 6).
    Resized {
        /// Least and largest share of the picture's area.
        #[serde(default = "whole_area")]
        area: [f64; 2],
        /// Least and largest width of a pixel of height, on a logarithmic scale.
        #[serde(default = "near_square")]
        aspect: [f64; 2],
    },
}

/// What lies beyond the edge of a picture.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Fill {
    /// The picture, mirrored at its outermost pixels.
    Reflect,
    /// Black.
    Zero,
}

/// Rectangles that are tried before the centre is taken.
const TRIES: u32 = 10;

fn whole_area() -> [f64; 2] {
    [0.08, 1.0]
}

fn near_square() -> [f64; 2] {
    [3.0 / 4.0, 4.0 / 3.0]
}

impl Crop {
    /// Inception's distribution of rectangles.
    pub fn resized() -> Self {
        Self::Resized { area: whole_area(), aspect: near_square() }
    }

    /// Draws a crop of `picture`, of the extent that `preprocessing` has.
    ///
    /// # Errors
    /// [`WrongSize`] if nothing is to be resized and the picture has another size.
    pub fn draw(
        &self,
        picture: View<'_>,
        preprocessing: &Preprocessing,
        rng: &mut impl Rng,
    ) -> Result<Picture, WrongSize> {
        match *self {
            Self::Padded { padding, fill } => {
                let padding = padding as usize;
                let [down, across] = [0, 0].map(|_| rng.random_range(0..=2 * padding));
                let fitted = preprocessing.fit(picture)?;
                Ok(moved(
                    fitted.view(),
                    [down, across].map(|it| it as isize - padding as isize),
                    fill,
                ))
            }
            Self::Resized { area, aspect } => {
                let window = rectangle(picture.extent(), area, aspect, rng);
                let to = preprocessing.extent();
                let whole = Window { top: 0, left: 0, height: to.height, width: to.width };
                let scaling =
                    Scaling { to, window: whole, interpolation: preprocessing.interpolation };
                Ok(scale(picture.crop(window).view(), &scaling))
            }
        }
    }
}

/// Mirrors each row.
pub fn flip(picture: &mut Picture) {
    let row_bytes = picture.extent().width * CHANNELS;
    for row in picture.rgb_mut().chunks_exact_mut(row_bytes) {
        let pixels = row.as_chunks_mut::<CHANNELS>().0;
        pixels.reverse();
    }
}

/// The picture as it is seen through a frame moved by `by` rows and columns.
fn moved(picture: View<'_>, by: [isize; 2], fill: Fill) -> Picture {
    let extent = picture.extent();
    let [rows, columns] = [(extent.height, by[0]), (extent.width, by[1])]
        .map(|(side, by)| (0..side).map(|at| source(at as isize + by, side, fill)).collect());
    let (rows, columns): (Vec<_>, Vec<_>) = (rows, columns);
    let mut rgb = vec![0; extent.bytes()];
    let row_bytes = extent.width * CHANNELS;
    for (to, row) in rgb.chunks_exact_mut(row_bytes).zip(rows) {
        let Some(row) = row else { continue };
        let from = picture.rgb()[row * row_bytes..][..row_bytes].as_chunks::<CHANNELS>().0;
        for (to, column) in to.as_chunks_mut::<CHANNELS>().0.iter_mut().zip(&columns) {
            if let Some(column) = *column {
                *to = from[column];
            }
        }
    }
    Picture::new(extent, rgb)
}

/// Which pixel of a side is seen at `at`, if any.
fn source(at: isize, side: usize, fill: Fill) -> Option<usize> {
    let last = side as isize - 1;
    let inside = (0..=last).contains(&at);
    let mirrored = if last < at { 2 * last - at } else { at.abs() };
    match fill {
        Fill::Zero => inside.then_some(at.unsigned_abs()),
        // A picture that is smaller than the padding ends with its other edge.
        Fill::Reflect => Some(mirrored.clamp(0, last).unsigned_abs()),
    }
}

/// Draws a rectangle by its share of the area and its shape.
#[expect(clippy::cast_possible_truncation, reason = "sides lie within the picture")]
fn rectangle(extent: Extent, area: [f64; 2], aspect: [f64; 2], rng: &mut impl Rng) -> Window {
    let (height, width) = (extent.height as f64, extent.width as f64);
    for _ in 0..TRIES {
        let pixels = rng.random_range(area[0]..=area[1]) * height * width;
        let shape = rng.random_range(aspect[0].ln()..=aspect[1].ln()).exp();
        let [wide, high] = [(pixels * shape).sqrt(), (pixels / shape).sqrt()].map(f64::round);
        if (1.0..=width).contains(&wide) && (1.0..=height).contains(&high) {
            let (wide, high) = (wide as usize, high as usize);
            let top = rng.random_range(0..=extent.height - high);
            let left = rng.random_range(0..=extent.width - wide);
            return Window { top, left, height: high, width: wide };
        }
    }
    let shape = (width / height).clamp(aspect[0], aspect[1]);
    let wide = width.min((height * shape).round()).max(1.0) as usize;
    let high = height.min((width / shape).round()).max(1.0) as usize;
    Window {
        top: (extent.height - high) / 2,
        left: (extent.width - wide) / 2,
        height: high,
        width: wide,
    }
}
