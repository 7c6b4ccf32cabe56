//! Resizing beside Pillow, whose answers lie in `tests/fixtures`.

use super::*;

/// Every one of 100 resizes of noise, from 1 to 300 pixels a side, has the bytes of Pillow 12.
#[test]
fn every_byte_is_the_one_that_pillow_gives() {
    let lines = include_str!("../../../../tests/fixtures/resize.tsv").lines();
    for line in lines.clone() {
        let fields: Vec<&str> = line.split('\t').collect();
        let side = |idx: usize| fields[idx].parse::<usize>().unwrap();
        let interpolation = match fields[4] {
            "bilinear" => Interpolation::Bilinear,
            "bicubic" => Interpolation::Bicubic,
            other => panic!("{other} is no filter"),
        };
        let picture = noise(Extent { height: side(0), width: side(1) });
        let made = whole(&picture, Extent { height: side(2), width: side(3) }, interpolation);
        assert_eq!(format!("{:016x}", fnv(made.rgb())), fields[5], "{line}");
    }
    assert_eq!(lines.count(), 100);
}

/// Goal: only what is wanted is computed, and it is what the whole would have had there.
/// Method: cut windows out of a resized picture and compare with resizing to the windows.
#[test]
fn window_is_a_part_of_the_whole() {
    let picture = noise(Extent { height: 23, width: 31 });
    for to in [Extent { height: 40, width: 52 }, Extent { height: 11, width: 9 }] {
        let full = whole(&picture, to, Interpolation::Bicubic);
        for (top, left, height, width) in [(0, 0, 5, 6), (3, 2, 7, 5), (to.height - 1, 0, 1, 9)] {
            let window = Window { top, left, height, width };
            let scaling = Scaling { to, window, interpolation: Interpolation::Bicubic };
            let part = scale(picture.view(), &scaling);
            assert_eq!(part, full.view().crop(window), "{window:?} of {to:?}");
        }
    }
}

/// A shape that covers a square with its short side would have two thousand million pixels.
#[test]
fn window_of_an_enormous_picture_takes_little() {
    let picture = noise(Extent { height: 1, width: 60_000 });
    let scaling = Scaling {
        to: Extent { height: 256, width: 256 * 60_000 },
        window: Window { top: 16, left: 7_000_000, height: 224, width: 224 },
        interpolation: Interpolation::Bicubic,
    };
    assert_eq!(scale(picture.view(), &scaling).extent(), Extent { height: 224, width: 224 });
}

fn whole(picture: &Picture, to: Extent, interpolation: Interpolation) -> Picture {
    let window = Window { top: 0, left: 0, height: to.height, width: to.width };
    scale(picture.view(), &Scaling { to, window, interpolation })
}

/// The noise of `tests/fixtures/make.py`.
fn noise(extent: Extent) -> Picture {
    let mut state = 1u32;
    let values = (0..extent.bytes()).map(|_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    });
    Picture::new(extent, values.collect())
}

/// FNV-1a of 64 bits.
fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}
