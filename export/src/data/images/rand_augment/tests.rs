//! Operations beside Pillow, whose answers lie in `tests/fixtures/operations.tsv`, and their strength.

use aerie_models::images::preprocessing::Extent;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::*;

const EXTENT: Extent = Extent { height: 24, width: 20 };

#[test]
fn operations_do_what_pillow_does_to_every_byte() {
    let lines = include_str!("../../../../tests/fixtures/operations.tsv").lines();
    for line in lines.clone() {
        let fields: Vec<&str> = line.split('\t').collect();
        let argument: f64 = fields[1].parse().unwrap();
        let factor: f32 = fields[1].parse().unwrap();
        let mut it = picture();
        match fields[0] {
            "auto_contrast" => auto_contrast(&mut it),
            "equalize" => equalize(&mut it),
            "invert" => look_up(&mut it, |it| 255 - it),
            "posterize" => posterize(&mut it, fields[1].parse().unwrap()),
            "solarize" => solarize(&mut it, fields[1].parse().unwrap()),
            "color" => color(&mut it, factor),
            "contrast" => contrast(&mut it, factor),
            "brightness" => look_up(&mut it, |it| enhanced(0, it, factor)),
            "sharpness" => sharpness(&mut it, factor),
            "rotate" => rotate(&mut it, argument),
            "shear_x" => warp(&mut it, [1.0, argument, 0.0], [0.0, 1.0, 0.0]),
            "shear_y" => warp(&mut it, [1.0, 0.0, 0.0], [argument, 1.0, 0.0]),
            "translate_x" => warp(&mut it, [1.0, 0.0, argument], [0.0, 1.0, 0.0]),
            "translate_y" => warp(&mut it, [1.0, 0.0, 0.0], [0.0, 1.0, argument]),
            other => panic!("{other} is no operation"),
        }
        assert_eq!(format!("{:016x}", fnv(it.rgb())), fields[2], "{line}");
    }
    assert_eq!(lines.count(), 43);
}

/// What each operation does at half, at full and beyond full strength, in numbers that can be seen.
#[test]
fn magnitude_says_how_much() {
    let brightest = |operation, magnitude| {
        let mut picture =
            Picture::new(Extent { height: 1, width: 2 }, vec![100, 10, 60, 200, 255, 0]);
        let rand_augment = RandAugment::for_side(1, magnitude, 224);
        rand_augment.operate(operation, &mut picture, &mut ChaCha8Rng::seed_from_u64(1));
        picture.rgb().to_vec()
    };
    assert_eq!(brightest(Operation::Posterize, 5.0), [64, 0, 0, 192, 192, 0]);
    assert_eq!(brightest(Operation::Posterize, 15.0), [100, 8, 60, 200, 252, 0]);
    assert_eq!(brightest(Operation::Posterize, 0.0), [0; 6]);
    assert_eq!(brightest(Operation::Solarize, 5.0), [100, 10, 60, 55, 0, 0]);
    assert_eq!(brightest(Operation::Solarize, 10.0), [100, 10, 60, 200, 255, 0]);
    assert_eq!(brightest(Operation::SolarizeAdd, 10.0), [210, 120, 170, 200, 255, 110]);
    assert_eq!(brightest(Operation::SolarizeAdd, 15.0), [255, 175, 225, 200, 255, 165]);
    assert_eq!(brightest(Operation::Brightness, 5.0), [100, 10, 60, 200, 255, 0]);
    assert_eq!(brightest(Operation::Brightness, 10.0), [190, 19, 114, 255, 255, 0]);
}

#[test]
fn cutout_is_a_square_that_is_clipped_at_edges() {
    for seed in 0..50 {
        let mut picture = Picture::new(EXTENT, vec![7; EXTENT.bytes()]);
        cutout(&mut picture, 3, &mut ChaCha8Rng::seed_from_u64(seed));
        let grey = picture.rgb().iter().filter(|it| **it == GREY).count() / CHANNELS;
        assert!((9..=36).contains(&grey), "{grey} pixels with seed {seed}");
    }
}

/// Chance chooses among all operations and both directions; a picture keeps its extent.
#[test]
fn every_operation_is_drawn() {
    let mut results = std::collections::BTreeSet::new();
    for seed in 0..400 {
        let mut it = picture();
        RandAugment::for_side(1, 5.0, 32).apply(&mut it, &mut ChaCha8Rng::seed_from_u64(seed));
        assert_eq!(it.extent(), EXTENT);
        results.insert(fnv(it.rgb()));
    }
    // 9 operations without direction, 5 with two of them, and squares cut out at hundreds of places.
    assert!(18 + 9 < results.len(), "{}", results.len());
}

#[test]
fn tiny_pictures_survive_everything() {
    for extent in [(1, 1), (1, 3), (2, 2), (3, 1)] {
        let extent = Extent { height: extent.0, width: extent.1 };
        for operation in Operation::ALL {
            let mut picture = Picture::new(extent, vec![9; extent.bytes()]);
            let rand_augment = RandAugment {
                layers: 1,
                magnitude: 30.0,
                cutout_pixels: 4096,
                translate_pixels: 4096,
            };
            rand_augment.operate(operation, &mut picture, &mut ChaCha8Rng::seed_from_u64(3));
            assert_eq!(picture.extent(), extent);
        }
    }
}

/// The picture of `tests/fixtures/operations.py`.
fn picture() -> Picture {
    let mut state = 1u32;
    let values = (0..EXTENT.bytes()).map(|_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let value = u16::from(state.to_be_bytes()[0]);
        20 + u8::try_from((u32::from(value) * u32::from(value)) >> 9).unwrap()
    });
    Picture::new(EXTENT, values.collect())
}

/// FNV-1a of 64 bits.
fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}
