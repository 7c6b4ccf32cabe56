//! RandAugment: random operations of one magnitude (Cubuk et al. 2019, arXiv:1909.13719).

#[cfg(test)]
mod tests;

use std::array;

use aerie_models::images::preprocessing::{Picture, picture::CHANNELS};
use rand::Rng;
use serde::{Deserialize, Serialize};

/// How much is done to each picture.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct RandAugment {
    /// Operations, one after another, each drawn out of all 16.
    pub layers: u32,
    /// Strength of each; 10 is what the authors of AutoAugment took for the most.
    pub magnitude: f64,
    /// Half the side of the square that is cut out at magnitude 10, in pixels.
    #[serde(default = "cutout_pixels")]
    pub cutout_pixels: u32,
    /// Way that a picture is moved at magnitude 10, in pixels.
    #[serde(default = "translate_pixels")]
    pub translate_pixels: u32,
}

/// For pictures of about 224 pixels.
fn cutout_pixels() -> u32 {
    40
}

/// For pictures of about 224 pixels.
fn translate_pixels() -> u32 {
    100
}

/// What is seen where there is no picture.
const GREY: u8 = 128;

/// What may be done to a picture.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Operation {
    AutoContrast,
    Equalize,
    Invert,
    Rotate,
    Posterize,
    Solarize,
    Color,
    Contrast,
    Brightness,
    Sharpness,
    ShearX,
    ShearY,
    TranslateX,
    TranslateY,
    Cutout,
    SolarizeAdd,
}

impl Operation {
    const ALL: [Self; 16] = [
        Self::AutoContrast,
        Self::Equalize,
        Self::Invert,
        Self::Rotate,
        Self::Posterize,
        Self::Solarize,
        Self::Color,
        Self::Contrast,
        Self::Brightness,
        Self::Sharpness,
        Self::ShearX,
        Self::ShearY,
        Self::TranslateX,
        Self::TranslateY,
        Self::Cutout,
        Self::SolarizeAdd,
    ];
}

impl RandAugment {
    /// The usual operations, with ways in pixels that suit pictures of `side` pixels.
    pub fn for_side(layers: u32, magnitude: f64, side: u32) -> Self {
        let scaled = |pixels: u32| (pixels * side.min(4096)).div_ceil(224);
        let (cutout_pixels, translate_pixels) =
            (scaled(cutout_pixels()), scaled(translate_pixels()));
        Self { layers, magnitude, cutout_pixels, translate_pixels }
    }

    /// Draws operations and applies them.
    pub fn apply(&self, picture: &mut Picture, rng: &mut impl Rng) {
        for _ in 0..self.layers {
            let operation = Operation::ALL[rng.random_range(0..Operation::ALL.len())];
            self.operate(operation, picture, rng);
        }
    }

    /// The constants are those of AutoAugment (Cubuk et al. 2018, arXiv:1805.09501), table 6, as its
    /// authors' code for EfficientNet has them: a larger magnitude keeps more bits and solarizes less.
    #[expect(clippy::cast_possible_truncation, reason = "the magnitude has a limit")]
    fn operate(&self, operation: Operation, picture: &mut Picture, rng: &mut impl Rng) {
        let level = self.magnitude / 10.0;
        let sign = if rng.random::<bool>() { 1.0 } else { -1.0 };
        let factor = (level * 1.8 + 0.1) as f32;
        let shear = sign * level * 0.3;
        let way = sign * level * f64::from(self.translate_pixels);
        match operation {
            Operation::AutoContrast => auto_contrast(picture),
            Operation::Equalize => equalize(picture),
            Operation::Invert => look_up(picture, |it| 255 - it),
            Operation::Rotate => rotate(picture, sign * level * 30.0),
            Operation::Posterize => posterize(picture, (level * 4.0) as u32),
            Operation::Solarize => solarize(picture, (level * 256.0) as u32),
            Operation::Color => color(picture, factor),
            Operation::Contrast => contrast(picture, factor),
            Operation::Brightness => look_up(picture, |it| enhanced(0, it, factor)),
            Operation::Sharpness => sharpness(picture, factor),
            Operation::ShearX => warp(picture, [1.0, shear, 0.0], [0.0, 1.0, 0.0]),
            Operation::ShearY => warp(picture, [1.0, 0.0, 0.0], [shear, 1.0, 0.0]),
            Operation::TranslateX => warp(picture, [1.0, 0.0, way], [0.0, 1.0, 0.0]),
            Operation::TranslateY => warp(picture, [1.0, 0.0, 0.0], [0.0, 1.0, way]),
            Operation::Cutout => {
                let half = (level * f64::from(self.cutout_pixels)) as usize;
                cutout(picture, half, rng);
            }
            Operation::SolarizeAdd => {
                let sum = (level * 110.0) as u8;
                look_up(picture, |it| if it < 128 { it.saturating_add(sum) } else { it });
            }
        }
    }
}

/// Replaces every byte by what a table has for it.
fn look_up(picture: &mut Picture, table: impl Fn(u8) -> u8) {
    let table: [u8; 256] = array::from_fn(|it| table(u8::try_from(it).unwrap_or(u8::MAX)));
    for value in picture.rgb_mut() {
        *value = table[usize::from(*value)];
    }
}

/// Replaces the bytes of each channel by what a table made of their counts has for them.
fn look_up_channels(picture: &mut Picture, table: impl Fn(&[u32; 256]) -> Option<[u8; 256]>) {
    let mut counts = [[0; 256]; CHANNELS];
    let pixels = picture.rgb_mut().as_chunks_mut::<CHANNELS>().0;
    for pixel in pixels.iter() {
        for (counts, value) in counts.iter_mut().zip(pixel) {
            counts[usize::from(*value)] += 1;
        }
    }
    for (channel, counts) in counts.iter().enumerate() {
        let Some(table) = table(counts) else { continue };
        for pixel in pixels.iter_mut() {
            pixel[channel] = table[usize::from(pixel[channel])];
        }
    }
}

/// Stretches each channel to the whole range.
fn auto_contrast(picture: &mut Picture) {
    look_up_channels(picture, |counts| {
        let low = counts.iter().position(|it| 0 < *it)?;
        let high = counts.iter().rposition(|it| 0 < *it)?;
        let scale = (low < high).then(|| 255.0 / (high - low) as f64)?;
        let offset = -(low as f64) * scale;
        Some(array::from_fn(|it| saturated(it as f64 * scale + offset)))
    });
}

/// Makes all values of each channel about as frequent.
fn equalize(picture: &mut Picture) {
    look_up_channels(picture, |counts| {
        let last = counts.iter().rfind(|it| 0 < **it)?;
        let step = (counts.iter().sum::<u32>() - last) / 255;
        if step == 0 {
            return None;
        }
        let mut sum = step / 2;
        Some(array::from_fn(|it| {
            let value = sum / step;
            sum += counts[it];
            u8::try_from(value).unwrap_or(u8::MAX)
        }))
    });
}

fn posterize(picture: &mut Picture, bits: u32) {
    let mask = u8::MAX.checked_shl(8 - bits.min(8)).unwrap_or(0);
    look_up(picture, |it| it & mask);
}

/// Inverts what is at least as bright as `threshold`.
fn solarize(picture: &mut Picture, threshold: u32) {
    look_up(picture, |it| if u32::from(it) < threshold { it } else { 255 - it });
}

/// Moves each pixel away from its grey.
fn color(picture: &mut Picture, factor: f32) {
    for pixel in picture.rgb_mut().as_chunks_mut::<CHANNELS>().0 {
        let grey = grey(pixel);
        *pixel = pixel.map(|it| enhanced(grey, it, factor));
    }
}

/// Moves each pixel away from the mean grey of the picture.
fn contrast(picture: &mut Picture, factor: f32) {
    let pixels = picture.rgb_mut().as_chunks::<CHANNELS>().0;
    let sum: u64 = pixels.iter().map(|it| u64::from(grey(it))).sum();
    let mean = saturated(sum as f64 / pixels.len() as f64 + 0.5);
    look_up(picture, |it| enhanced(mean, it, factor));
}

/// Moves each pixel within the edge away from the mean of its neighbourhood.
fn sharpness(picture: &mut Picture, factor: f32) {
    let row_bytes = picture.extent().width * CHANNELS;
    let source = picture.rgb_mut().to_vec();
    let rows: Vec<&[u8]> = source.chunks_exact(row_bytes).collect();
    let inner = row_bytes.saturating_sub(2 * CHANNELS);
    for (above, to) in picture.rgb_mut().chunks_exact_mut(row_bytes).skip(1).enumerate() {
        let Some(&[above, own, below]) = rows.get(above..above + 3) else { break };
        for at in CHANNELS..CHANNELS + inner {
            let sum: u16 = [above, own, below]
                .iter()
                .flat_map(|row| [row[at - CHANNELS], row[at], row[at + CHANNELS]])
                .map(u16::from)
                .sum();
            let mean = f64::from(sum + 4 * u16::from(own[at])) / 13.0;
            to[at] = enhanced(saturated(mean + 0.5), own[at], factor);
        }
    }
}

/// What is as bright, according to ITU-R BT.601.
fn grey(pixel: &[u8; CHANNELS]) -> u8 {
    let [red, green, blue] = pixel.map(u32::from);
    let sum = red * 19_595 + green * 38_470 + blue * 7_471 + (1 << 15);
    u8::try_from(sum >> 16).unwrap_or(u8::MAX)
}

/// `value`, away from `base` by a factor.
fn enhanced(base: u8, value: u8, factor: f32) -> u8 {
    let base = f32::from(base);
    saturated(f64::from(base + factor * (f32::from(value) - base)))
}

/// The byte below; casts stay within its range.
#[expect(clippy::cast_possible_truncation, reason = "casts saturate")]
fn saturated(value: f64) -> u8 {
    value as u8
}

fn rotate(picture: &mut Picture, degrees: f64) {
    let (sin, cos) = degrees.to_radians().sin_cos();
    let extent = picture.extent();
    let (across, down) = (extent.width as f64 / 2.0, extent.height as f64 / 2.0);
    let columns = [cos, sin, across - cos * across - sin * down];
    let rows = [-sin, cos, down + sin * across - cos * down];
    warp(picture, columns, rows);
}

/// Takes each pixel from where `columns` and `rows` say, as `[of column, of row, constant]`, counting
/// from the picture's corner to the middle of pixels; the nearest is taken.
#[expect(clippy::cast_possible_truncation, reason = "within the picture")]
fn warp(picture: &mut Picture, columns: [f64; 3], rows: [f64; 3]) {
    let extent = picture.extent();
    let source = picture.rgb_mut().to_vec();
    let source = source.as_chunks::<CHANNELS>().0;
    let inside = 0.0..extent.width as f64;
    let pixels = picture.rgb_mut().as_chunks_mut::<CHANNELS>().0;
    for (row, pixels) in pixels.chunks_exact_mut(extent.width).enumerate() {
        let y = row as f64 + 0.5;
        let [across, down] = [columns, rows].map(|it| it[1] * y + it[2]);
        for (column, pixel) in pixels.iter_mut().enumerate() {
            let x = column as f64 + 0.5;
            let (from, at) = (columns[0] * x + across, rows[0] * x + down);
            let is_seen = inside.contains(&from) && 0.0 <= at && at < extent.height as f64;
            *pixel = if is_seen {
                source[at as usize * extent.width + from as usize]
            } else {
                [GREY; CHANNELS]
            };
        }
    }
}

/// Greys a square around a random pixel, as far as it lies within the picture.
fn cutout(picture: &mut Picture, half: usize, rng: &mut impl Rng) {
    let extent = picture.extent();
    let [rows, columns] = [extent.height, extent.width].map(|side| {
        let centre = rng.random_range(0..side);
        centre.saturating_sub(half)..(centre + half).min(side)
    });
    for row in
        picture.rgb_mut().chunks_exact_mut(extent.width * CHANNELS).take(rows.end).skip(rows.start)
    {
        row[columns.start * CHANNELS..columns.end * CHANNELS].fill(GREY);
    }
}
