//! Pictures as bytes of red, green and blue, and how JPEG and PNG become them.
//!
//! Turns that a camera notes beside the picture (EXIF) and colour profiles are not looked at, as
//! training pipelines do not either.

#[cfg(test)]
mod tests;

use std::io::Cursor;

use png::{BitDepth, ColorType, Transformations};
use thiserror::Error;
use zune_core::{colorspace::ColorSpace, options::DecoderOptions};
use zune_jpeg::{JpegDecoder, errors::DecodeErrors};

use crate::images::preprocessing::resize::{Extent, Window};

/// Bytes of a pixel: red, green, blue.
pub const CHANNELS: usize = 3;

/// A picture in memory.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Picture {
    extent: Extent,
    /// `[H, W, 3]`.
    rgb: Vec<u8>,
}

/// A picture that somebody else holds.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    extent: Extent,
    rgb: &'a [u8],
}

/// Limits of [`decode`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct PictureLimits {
    /// Largest file.
    pub bytes_max: usize,
    /// Most pixels, height times width. Decoding holds up to 32 bytes for each.
    pub pixels_max: usize,
}

/// Why bytes are not taken as a picture.
#[derive(Debug, Error)]
pub enum PictureError {
    #[error("the picture has {found_bytes} bytes; at most {bytes_max} are taken")]
    TooManyBytes { found_bytes: usize, bytes_max: usize },
    #[error("the picture is {height} pixels high and {width} wide; at most {pixels_max} are taken")]
    TooManyPixels { height: usize, width: usize, pixels_max: usize },
    #[error("a side of the picture has {found} pixels; 1 to {SIDE_PIXELS_MAX} are taken")]
    Side { found: usize },
    #[error("the bytes are neither JPEG nor PNG; they begin with {begin:02x?}")]
    Format { begin: Vec<u8> },
    #[error("the JPEG: {0:?}")]
    Jpeg(DecodeErrors),
    #[error("the PNG: {0}")]
    Png(#[from] png::DecodingError),
}

/// Longest side: what JPEG can say, and what filters of a resize are made for.
const SIDE_PIXELS_MAX: usize = 65_535;
/// Bytes for each pixel of a PNG's rows and what is inflated ahead of them.
const PNG_PIXEL_BYTES: usize = 16;
/// What a PNG's decoder needs whatever the picture's size.
const PNG_BYTES: usize = 1 << 20;

impl Default for PictureLimits {
    fn default() -> Self {
        Self { bytes_max: 32 << 20, pixels_max: 1 << 26 }
    }
}

/// Decodes a JPEG or a PNG.
///
/// Grey becomes three equal channels, transparency is dropped, and of 16 bits the upper 8 are kept.
///
/// # Numerics
/// PNG is exact. JPEG leaves the last bits to decoders: the bytes of 2 000 pictures of CIFAR-10, with
/// chroma of half the width and height, differ from Pillow's (libjpeg-turbo 3.1) by 0.30 on average
/// and by 4 at most.
///
/// # Errors
/// [`PictureError`]. The header is held to `limits` before memory is taken for the pixels.
pub fn decode(bytes: &[u8], limits: &PictureLimits) -> Result<Picture, PictureError> {
    let &PictureLimits { bytes_max, .. } = limits;
    if bytes_max < bytes.len() {
        return Err(PictureError::TooManyBytes { found_bytes: bytes.len(), bytes_max });
    }
    if bytes.starts_with(&[0xff, 0xd8, 0xff]) {
        decode_jpeg(bytes, limits)
    } else if bytes.starts_with(b"\x89PNG\r\n\x1a\n") {
        decode_png(bytes, limits)
    } else {
        Err(PictureError::Format { begin: bytes.iter().copied().take(8).collect() })
    }
}

impl PictureLimits {
    fn hold(&self, height: usize, width: usize) -> Result<Extent, PictureError> {
        let &Self { pixels_max, .. } = self;
        for found in [height, width] {
            if !(1..=SIDE_PIXELS_MAX).contains(&found) {
                return Err(PictureError::Side { found });
            }
        }
        if pixels_max < height.saturating_mul(width) {
            return Err(PictureError::TooManyPixels { height, width, pixels_max });
        }
        Ok(Extent { height, width })
    }
}

fn decode_jpeg(bytes: &[u8], limits: &PictureLimits) -> Result<Picture, PictureError> {
    let options = DecoderOptions::new_safe()
        .jpeg_set_out_colorspace(ColorSpace::RGB)
        .set_max_width(SIDE_PIXELS_MAX)
        .set_max_height(SIDE_PIXELS_MAX)
        .set_strict_mode(true);
    let mut decoder =
        JpegDecoder::new_with_options(zune_core::bytestream::ZCursor::new(bytes), options);
    decoder.decode_headers().map_err(PictureError::Jpeg)?;
    let (width, height) = decoder.dimensions().unwrap_or_default();
    let extent = limits.hold(height, width)?;
    let mut rgb = vec![0; extent.bytes()];
    decoder.decode_into(&mut rgb).map_err(PictureError::Jpeg)?;
    Ok(Picture { extent, rgb })
}

fn decode_png(bytes: &[u8], limits: &PictureLimits) -> Result<Picture, PictureError> {
    let memory = limits.pixels_max.saturating_mul(PNG_PIXEL_BYTES).saturating_add(PNG_BYTES);
    let mut decoder =
        png::Decoder::new_with_limits(Cursor::new(bytes), png::Limits { bytes: memory });
    decoder.set_ignore_text_chunk(true);
    decoder.set_ignore_iccp_chunk(true);
    decoder.set_transformations(Transformations::EXPAND | Transformations::STRIP_16);
    let info = decoder.read_header_info()?;
    let extent = limits.hold(info.height as usize, info.width as usize)?;
    let mut reader = decoder.read_info()?;
    let (color, depth) = reader.output_color_type();
    assert_eq!(depth, BitDepth::Eight, "16 bits are stripped and less than 8 expanded");
    let mut samples = vec![0; extent.pixels() * color.samples()];
    reader.next_frame(&mut samples)?;
    let rgb = match color {
        ColorType::Rgb => samples,
        ColorType::Rgba => samples.chunks_exact(4).flat_map(|it| [it[0], it[1], it[2]]).collect(),
        ColorType::Grayscale => samples.iter().flat_map(|&it| [it; 3]).collect(),
        ColorType::GrayscaleAlpha => samples.chunks_exact(2).flat_map(|it| [it[0]; 3]).collect(),
        ColorType::Indexed => unreachable!("palettes are expanded"),
    };
    Ok(Picture { extent, rgb })
}

impl Picture {
    /// A picture of the given pixels.
    ///
    /// # Panics
    /// If `rgb` is not `[H, W, 3]` or has no pixel.
    pub fn new(extent: Extent, rgb: Vec<u8>) -> Self {
        View::new(extent, &rgb);
        Self { extent, rgb }
    }

    pub fn view(&self) -> View<'_> {
        View { extent: self.extent, rgb: &self.rgb }
    }

    pub fn extent(&self) -> Extent {
        self.extent
    }

    /// `[H, W, 3]`.
    pub fn rgb(&self) -> &[u8] {
        &self.rgb
    }

    /// `[H, W, 3]`.
    pub fn rgb_mut(&mut self) -> &mut [u8] {
        &mut self.rgb
    }
}

impl<'a> View<'a> {
    /// A view of the given pixels.
    ///
    /// # Panics
    /// If `rgb` is not `[H, W, 3]` or has no pixel.
    pub fn new(extent: Extent, rgb: &'a [u8]) -> Self {
        assert!(!rgb.is_empty(), "a picture has pixels");
        assert_eq!(rgb.len(), extent.bytes(), "rgb is [H, W, 3]");
        Self { extent, rgb }
    }

    pub fn extent(&self) -> Extent {
        self.extent
    }

    /// `[H, W, 3]`.
    pub fn rgb(&self) -> &'a [u8] {
        self.rgb
    }

    pub fn to_picture(&self) -> Picture {
        Picture { extent: self.extent, rgb: self.rgb.to_vec() }
    }

    /// A copy of a part.
    ///
    /// # Panics
    /// If the window has no pixel or does not lie within the picture.
    pub fn crop(&self, window: Window) -> Picture {
        let Window { top, left, height, width } = window;
        assert!(left + width <= self.extent.width, "the window lies within the picture");
        let rows = self.rgb.chunks_exact(self.extent.width * CHANNELS).skip(top).take(height);
        let rgb: Vec<u8> =
            rows.flat_map(|row| &row[left * CHANNELS..][..width * CHANNELS]).copied().collect();
        Picture::new(Extent { height, width }, rgb)
    }
}

impl Extent {
    pub fn pixels(self) -> usize {
        self.height * self.width
    }

    /// Bytes of a picture of this extent.
    pub fn bytes(self) -> usize {
        self.pixels() * CHANNELS
    }
}
