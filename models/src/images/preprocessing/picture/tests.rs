//! Pictures that others wrote, and bytes that are none.

use aerie_fuzz::{Format, Fuzz};

use super::*;

const COLOUR: &[u8] = include_bytes!("../../../../tests/fixtures/colour.jpg");
const PROGRESSIVE: &[u8] = include_bytes!("../../../../tests/fixtures/progressive.jpg");
const GREY: &[u8] = include_bytes!("../../../../tests/fixtures/grey.jpg");
const ODD: &[u8] = include_bytes!("../../../../tests/fixtures/odd.jpg");
/// What Pillow decodes `COLOUR` to.
const COLOUR_RGB: &[u8] = include_bytes!("../../../../tests/fixtures/colour.rgb");

/// JPEG leaves the last bits of its transform to the decoder; the largest difference here is 2.
#[test]
fn jpeg_is_decoded_as_pillow_does_it() {
    let picture = decode(COLOUR, &PictureLimits::default()).unwrap();
    assert_eq!(picture.extent(), Extent { height: 16, width: 24 });
    let differences = picture.rgb().iter().zip(COLOUR_RGB).map(|(a, b)| a.abs_diff(*b));
    let largest = differences.max().unwrap();
    assert!(largest <= 2, "{largest}");
}

#[test]
fn every_kind_of_jpeg_is_decoded() {
    check(PROGRESSIVE, (16, 24));
    check(ODD, (13, 9));
    let grey = check(GREY, (16, 24));
    assert!(grey.rgb().chunks(3).all(|it| it[0] == it[1] && it[1] == it[2]));
}

#[test]
fn every_kind_of_png_becomes_red_green_and_blue() {
    let rgb = png(ColorType::Rgb, BitDepth::Eight, &[1, 2, 3, 4, 5, 6]);
    assert_eq!(check(&rgb, (1, 2)).rgb(), [1, 2, 3, 4, 5, 6]);
    let rgba = png(ColorType::Rgba, BitDepth::Eight, &[1, 2, 3, 0, 4, 5, 6, 255]);
    assert_eq!(check(&rgba, (1, 2)).rgb(), [1, 2, 3, 4, 5, 6]);
    let grey = png(ColorType::Grayscale, BitDepth::Eight, &[7, 200]);
    assert_eq!(check(&grey, (1, 2)).rgb(), [7, 7, 7, 200, 200, 200]);
    let grey_alpha = png(ColorType::GrayscaleAlpha, BitDepth::Eight, &[7, 0, 200, 9]);
    assert_eq!(check(&grey_alpha, (1, 2)).rgb(), [7, 7, 7, 200, 200, 200]);
    let two_bits = png(ColorType::Grayscale, BitDepth::Two, &[0b0111_0000]);
    assert_eq!(check(&two_bits, (1, 2)).rgb(), [85, 85, 85, 255, 255, 255]);
    let deep = png(ColorType::Rgb, BitDepth::Sixteen, &[1, 9, 2, 9, 3, 9, 4, 9, 5, 9, 6, 9]);
    assert_eq!(check(&deep, (1, 2)).rgb(), [1, 2, 3, 4, 5, 6]);
    let palette = png(ColorType::Indexed, BitDepth::Eight, &[1, 0]);
    assert_eq!(check(&palette, (1, 2)).rgb(), [40, 50, 60, 10, 20, 30]);
}

#[test]
fn what_is_no_picture_is_refused() {
    refuse(b"", PictureLimits::default(), "neither JPEG nor PNG; they begin with []");
    refuse(b"GIF89a", PictureLimits::default(), "they begin with [47, 49, 46");
    refuse(&COLOUR[..COLOUR.len() / 2], PictureLimits::default(), "the JPEG");
    refuse(&rgb_png()[..40], PictureLimits::default(), "the PNG");
}

#[test]
fn limits_hold_before_memory_is_taken() {
    let few = PictureLimits { bytes_max: 20, ..PictureLimits::default() };
    refuse(COLOUR, few, "at most 20 are taken");
    let small = PictureLimits { pixels_max: 100, ..PictureLimits::default() };
    refuse(COLOUR, small, "16 pixels high and 24 wide; at most 100 are taken");
    // A header that speaks of 60 000 by 60 000 pixels.
    let mut enormous = rgb_png();
    enormous[16..24].copy_from_slice(&[0, 0, 0xea, 0x60, 0, 0, 0xea, 0x60]);
    let crc = crc32(&enormous[12..29]);
    enormous[29..33].copy_from_slice(&crc.to_be_bytes());
    refuse(&enormous, PictureLimits::default(), "60000 pixels high and 60000 wide");
}

#[test]
fn crop_is_the_part_that_was_asked_for() {
    let picture = Picture::new(Extent { height: 3, width: 3 }, (0..27).collect());
    let part = picture.view().crop(Window { top: 1, left: 1, height: 2, width: 1 });
    assert_eq!(part.rgb(), [12, 13, 14, 21, 22, 23]);
}

#[test]
fn fuzzed_jpegs_are_read_or_refused() {
    let seeds = [COLOUR, PROGRESSIVE, GREY, ODD].map(<[u8]>::to_vec).to_vec();
    let words: &[&[u8]] = &[
        b"\xff\xc0",
        b"\xff\xc2",
        b"\xff\xc4",
        b"\xff\xda",
        b"\xff\xdb",
        b"\xff\xdd\x00\x04\x00\x01",
        b"\xff\xd0",
        b"\xff\xd9",
        b"\xff\xee\x00\x0eAdobe",
        b"\xff\xe1",
        b"\xff\xe2",
    ];
    Fuzz { name: "jpeg", format: Format::Binary, seeds, words }.run(takes);
}

#[test]
fn fuzzed_pngs_are_read_or_refused() {
    let seeds = vec![
        rgb_png(),
        png(ColorType::Indexed, BitDepth::Eight, &[1, 0]),
        png(ColorType::Grayscale, BitDepth::Two, &[0b0111_0000]),
        png(ColorType::Rgba, BitDepth::Sixteen, &[5; 16]),
    ];
    let words: &[&[u8]] =
        &[b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"acTL", b"fcTL", b"fdAT", b"zTXt", b"iCCP"];
    Fuzz { name: "png", format: Format::Binary, seeds, words }.run(takes);
}

/// Decodes within a million pixels; what is taken is as large as it says.
fn takes(bytes: &[u8]) -> bool {
    let limits = PictureLimits { pixels_max: 1 << 20, ..PictureLimits::default() };
    match decode(bytes, &limits) {
        Ok(picture) => {
            assert_eq!(picture.rgb().len(), picture.extent().bytes());
            assert!(picture.extent().pixels() <= limits.pixels_max);
            true
        }
        Err(_) => false,
    }
}

#[track_caller]
fn check(bytes: &[u8], (height, width): (usize, usize)) -> Picture {
    let picture = decode(bytes, &PictureLimits::default()).unwrap();
    assert_eq!(picture.extent(), Extent { height, width });
    picture
}

#[track_caller]
fn refuse(bytes: &[u8], limits: PictureLimits, message: &str) {
    let error = decode(bytes, &limits).unwrap_err().to_string();
    assert!(error.contains(message), "{error}");
}

fn rgb_png() -> Vec<u8> {
    png(ColorType::Rgb, BitDepth::Eight, &[1, 2, 3, 4, 5, 6])
}

/// A picture of one row of two pixels.
fn png(color: ColorType, depth: BitDepth, row: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, 2, 1);
    encoder.set_color(color);
    encoder.set_depth(depth);
    if color == ColorType::Indexed {
        encoder.set_palette(vec![10, 20, 30, 40, 50, 60]);
    }
    let mut writer = encoder.write_header().unwrap();
    writer.write_image_data(row).unwrap();
    writer.finish().unwrap();
    bytes
}

fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = !0u32;
    for &byte in bytes {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0xedb8_8320 & 0u32.wrapping_sub(crc & 1));
        }
    }
    !crc
}
