//! Crops of small pictures whose bytes tell where they come from.

use aerie_models::images::preprocessing::{Interpolation, Resize};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::*;

#[test]
fn padded_picture_is_moved_and_mirrored_at_its_edge() {
    let picture = row(&[1, 2, 3, 4]);
    let columns = |by, fill| values(&moved(picture.view(), [0, by], fill));
    assert_eq!(columns(0, Fill::Zero), [1, 2, 3, 4]);
    assert_eq!(columns(2, Fill::Zero), [3, 4, 0, 0]);
    assert_eq!(columns(-1, Fill::Zero), [0, 1, 2, 3]);
    assert_eq!(columns(2, Fill::Reflect), [3, 4, 3, 2]);
    assert_eq!(columns(-2, Fill::Reflect), [3, 2, 1, 2]);
    assert_eq!(columns(-9, Fill::Reflect), [4, 4, 4, 4]);
    let column = Picture::new(Extent { height: 3, width: 1 }, vec![1, 1, 1, 2, 2, 2, 3, 3, 3]);
    assert_eq!(values(&moved(column.view(), [1, 0], Fill::Reflect)), [2, 3, 2]);
    assert_eq!(values(&moved(column.view(), [1, 0], Fill::Zero)), [2, 3, 0]);
}

#[test]
fn every_way_within_the_padding_is_drawn() {
    let picture = row(&[10, 20, 30, 40, 50]);
    let preprocessing = preprocessing(Extent { height: 1, width: 5 });
    let crop = Crop::Padded { padding: 2, fill: Fill::Zero };
    let mut seen = std::collections::BTreeSet::new();
    for seed in 0..200 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        seen.insert(values(&crop.draw(picture.view(), &preprocessing, &mut rng).unwrap()));
    }
    // Five ways sideways; up and down there is only black, in four of five ways.
    assert_eq!(seen.len(), 6);
    assert!(seen.contains(&vec![30, 40, 50, 0, 0]) && seen.contains(&vec![0; 5]));
}

#[test]
fn mirrored_picture_has_its_rows_backwards() {
    let mut picture = Picture::new(Extent { height: 2, width: 2 }, (0..12).collect());
    flip(&mut picture);
    assert_eq!(picture.rgb(), [3, 4, 5, 0, 1, 2, 9, 10, 11, 6, 7, 8]);
}

/// Goal: rectangles lie within the picture and have the area and shape that are asked for.
/// Method: draw many; rounding to whole pixels moves either by less than a pixel of a side.
#[test]
fn rectangles_keep_within_area_and_aspect() {
    let extent = Extent { height: 300, width: 200 };
    let (area, aspect) = (whole_area(), near_square());
    let mut rng = ChaCha8Rng::seed_from_u64(4);
    let mut shares = Vec::new();
    for _ in 0..2000 {
        let Window { top, left, height, width } = rectangle(extent, area, aspect, &mut rng);
        assert!(top + height <= extent.height && left + width <= extent.width);
        let shape = width as f64 / height as f64;
        assert!(0.75 * 0.98 < shape && shape < 4.0 / 3.0 * 1.02, "{shape}");
        shares.push((width * height) as f64 / extent.pixels() as f64);
    }
    let least = shares.iter().copied().fold(1.0, f64::min);
    assert!(0.078 < least && least < 0.1, "{least}");
    // Large rectangles do not fit and are drawn again, so the mean is below that of 0.08 to 1.
    let mean = shares.iter().sum::<f64>() / shares.len() as f64;
    assert!(0.35 < mean && mean < 0.54, "{mean}");
}

#[test]
fn centre_is_taken_where_no_rectangle_fits() {
    let mut rng = ChaCha8Rng::seed_from_u64(4);
    let wide = rectangle(Extent { height: 10, width: 1000 }, [0.9, 1.0], near_square(), &mut rng);
    assert_eq!(wide, Window { top: 0, left: 493, height: 10, width: 13 });
    let high = rectangle(Extent { height: 900, width: 1 }, [0.9, 1.0], near_square(), &mut rng);
    assert_eq!(high, Window { top: 449, left: 0, height: 1, width: 1 });
}

#[test]
fn resized_crop_has_the_extent_that_is_wanted() {
    let picture = Picture::new(Extent { height: 30, width: 50 }, vec![77; 4500]);
    let wanted = Extent { height: 16, width: 16 };
    let mut rng = ChaCha8Rng::seed_from_u64(4);
    let made = Crop::resized().draw(picture.view(), &preprocessing(wanted), &mut rng).unwrap();
    assert_eq!(made, Picture::new(wanted, vec![77; wanted.bytes()]));
}

#[test]
fn picture_of_another_size_is_refused_where_nothing_resizes() {
    let crop = Crop::Padded { padding: 1, fill: Fill::Zero };
    let mut rng = ChaCha8Rng::seed_from_u64(4);
    let wanted = preprocessing(Extent { height: 2, width: 2 });
    assert!(crop.draw(row(&[1, 2, 3]).view(), &wanted, &mut rng).is_err());
}

/// Grey pixels in one row.
fn row(values: &[u8]) -> Picture {
    let rgb = values.iter().flat_map(|it| [*it; 3]).collect();
    Picture::new(Extent { height: 1, width: values.len() }, rgb)
}

fn values(picture: &Picture) -> Vec<u8> {
    picture.rgb().chunks(3).map(|it| it[0]).collect()
}

fn preprocessing(extent: Extent) -> Preprocessing {
    let [height, width] = [extent.height, extent.width].map(|it| u32::try_from(it).unwrap());
    Preprocessing {
        height,
        width,
        resize: Resize::None,
        crop_share: 1.0,
        interpolation: Interpolation::Bicubic,
        mean: [0.0; 3],
        std: [1.0; 3],
    }
}
