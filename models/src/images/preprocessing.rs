//! What has to be done to a picture before a classifier's graph: decoding, resizing, cropping,
//! normalising. Trainer and server share it, so that what is served is what was measured.

pub mod picture;
pub mod resize;
#[cfg(test)]
mod tests;

use std::array;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use thiserror::Error;

pub use picture::{Picture, PictureError, PictureLimits, View, decode};
pub use resize::{Extent, Interpolation, Scaling, Window, scale};

/// The way of a picture to the pixels that a classifier was measured with.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct Preprocessing {
    /// `H` of the pixels.
    pub height: u32,
    /// `W` of the pixels.
    pub width: u32,
    pub resize: Resize,
    /// Share of the resized picture's sides that the centre crop keeps, above 0 and at most 1.
    pub crop_share: f64,
    pub interpolation: Interpolation,
    /// Of red, green and blue where white is 1.
    pub mean: [f32; 3],
    /// Of red, green and blue where white is 1.
    pub std: [f32; 3],
}

/// What a picture is made to measure by, before the centre of `height` and `width` is cut out.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Resize {
    /// Both sides become `1 / crop_share` of what is wanted, whatever that does to the shape.
    Squash,
    /// The shape stays; the picture just covers `1 / crop_share` of what is wanted.
    Crop,
    /// Nothing: pictures have the wanted size already.
    None,
}

/// Why a preprocessing is refused.
#[derive(Debug, Error, PartialEq)]
pub enum PreprocessingError {
    #[error("{field} is {found}; 1 to {SIDE_MAX} is supported")]
    Side { field: &'static str, found: u32 },
    #[error("crop_share is {0}; it must be at least {CROP_SHARE_MIN} and at most 1")]
    CropShare(f64),
    #[error("crop_share is {0}, but pictures that are not resized are not cropped: it must be 1")]
    CropWithoutResize(f64),
    #[error("mean has {0}; it must be finite")]
    Mean(f32),
    #[error("std has {0}; it must be finite and above 0")]
    Std(f32),
}

/// A picture of another size than a preprocessing without resizing asks for.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[error(
    "the picture is {} pixels high and {} wide, but {} and {} are expected, and nothing is resized",
    found.height, found.width, expected.height, expected.width
)]
pub struct WrongSize {
    pub found: Extent,
    pub expected: Extent,
}

/// Largest side of the pixels.
pub const SIDE_MAX: u32 = 4096;
/// Least share that a crop may keep: what is resized stays within memory.
const CROP_SHARE_MIN: f64 = 0.1;

impl Preprocessing {
    /// The same preprocessing if it is sound, for those who put one together field by field.
    ///
    /// # Errors
    /// [`PreprocessingError`], naming the field.
    pub fn checked(self) -> Result<Self, PreprocessingError> {
        for (field, found) in [("height", self.height), ("width", self.width)] {
            if !(1..=SIDE_MAX).contains(&found) {
                return Err(PreprocessingError::Side { field, found });
            }
        }
        if !(CROP_SHARE_MIN..=1.0).contains(&self.crop_share) {
            return Err(PreprocessingError::CropShare(self.crop_share));
        }
        if self.resize == Resize::None && self.crop_share != 1.0 {
            return Err(PreprocessingError::CropWithoutResize(self.crop_share));
        }
        if let Some(&found) = self.mean.iter().find(|it| !it.is_finite()) {
            return Err(PreprocessingError::Mean(found));
        }
        if let Some(&found) = self.std.iter().find(|it| !(it.is_finite() && 0.0 < **it)) {
            return Err(PreprocessingError::Std(found));
        }
        Ok(self)
    }

    /// `[H, W]`: extent of what comes out.
    pub fn extent(&self) -> Extent {
        Extent { height: self.height as usize, width: self.width as usize }
    }

    /// Makes a picture into normalised pixels.
    ///
    /// # Shapes
    /// - result: `[3, H, W]`, red before green before blue
    ///
    /// # Errors
    /// [`WrongSize`] if nothing is to be resized and the picture has another size.
    pub fn apply(&self, picture: View<'_>) -> Result<Vec<f32>, WrongSize> {
        let fitted = self.fit(picture)?;
        let mut pixels = vec![0.0; fitted.rgb().len()];
        self.normalise(fitted.rgb(), &mut pixels);
        Ok(pixels)
    }

    /// Resizes and crops a picture, without normalising it.
    ///
    /// # Errors
    /// [`WrongSize`] if nothing is to be resized and the picture has another size.
    pub fn fit(&self, picture: View<'_>) -> Result<Picture, WrongSize> {
        let expected = self.extent();
        let found = picture.extent();
        let scaled = match self.resize {
            Resize::None if found == expected => return Ok(picture.to_picture()),
            Resize::None => return Err(WrongSize { found, expected }),
            Resize::Squash => self.uncropped(),
            Resize::Crop => covering(found, self.uncropped()),
        };
        let window = Window {
            top: centred(scaled.height, expected.height),
            left: centred(scaled.width, expected.width),
            height: expected.height,
            width: expected.width,
        };
        Ok(scale(picture, &Scaling { to: scaled, window, interpolation: self.interpolation }))
    }

    /// Turns bytes of pixels into planes of numbers with the mean and the deviation taken out.
    ///
    /// # Shapes
    /// - `rgb`: `[H, W, 3]`; `pixels`: `[3, H, W]`
    ///
    /// # Panics
    /// If the two have not the same length, a multiple of 3.
    pub fn normalise(&self, rgb: &[u8], pixels: &mut [f32]) {
        assert_eq!(rgb.len(), pixels.len(), "rgb is [H, W, 3] and pixels is [3, H, W]");
        assert!(rgb.len().is_multiple_of(3), "rgb is [H, W, 3]");
        let plane = (pixels.len() / 3).max(1);
        for (channel, pixels) in pixels.chunks_exact_mut(plane).enumerate() {
            let (mean, std) = (self.mean[channel], self.std[channel]);
            let values: [f32; 256] = array::from_fn(|it| (it as f32 / 255.0 - mean) / std);
            for (pixel, rgb) in pixels.iter_mut().zip(rgb.chunks_exact(3)) {
                *pixel = values[usize::from(rgb[channel])];
            }
        }
    }

    /// What is wanted, and around it what the crop takes away.
    #[expect(clippy::cast_possible_truncation, reason = "sides and share have limits")]
    fn uncropped(&self) -> Extent {
        let side = |wanted: u32| (f64::from(wanted) / self.crop_share).floor() as usize;
        Extent { height: side(self.height), width: side(self.width) }
    }
}

/// The least extent of `picture`'s shape that covers `wanted`.
fn covering(picture: Extent, wanted: Extent) -> Extent {
    let Extent { height, width } = picture;
    if wanted.width * height <= wanted.height * width {
        Extent { height: wanted.height, width: wanted.height * width / height }
    } else {
        Extent { height: wanted.width * height / width, width: wanted.width }
    }
}

/// Where the middle `part` of `whole` begins; halves go to the even side, as in torchvision.
fn centred(whole: usize, part: usize) -> usize {
    let (half, rest) = ((whole - part) / 2, (whole - part) % 2);
    half + rest * (half % 2)
}

impl<'de> Deserialize<'de> for Preprocessing {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::deserialize(deserializer)?.checked().map_err(D::Error::custom)
    }
}

impl Serialize for Preprocessing {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Self::serialize(self, serializer)
    }
}
