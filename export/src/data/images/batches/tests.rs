//! Batches of a small data set whose pictures tell by their bytes which they are.

use aerie_models::images::preprocessing::{Extent, Interpolation};

use super::*;
use crate::data::images::{
    Multiplicity, Split, augment::Fill, dataset::tests::cifar_10, rand_augment::RandAugment,
};

const LIMITS: AheadLimits = AheadLimits { threads_max: 3, ready_max: 1 };
const EXTENT: Extent = Extent { height: 4, width: 4 };
const PICTURES: u8 = 10;
const CLASSES: usize = 3;

#[test]
fn plain_batches_are_the_pictures_themselves() {
    let feed = feed(BatchOptions::plain(4));
    for batch in feed.batches(Cursor::default()).take(5).map(Result::unwrap) {
        assert_eq!((batch.pixels.len(), batch.targets.len()), (4 * 48, 4 * CLASSES));
        for (row, source) in batch.sources.iter().enumerate() {
            let value = f32::from(u8::try_from(*source).unwrap()) / 255.0;
            assert!(batch.pixels[row * 48..][..48].iter().all(|it| *it == value));
            let mut target = [0.0; CLASSES];
            target[*source as usize % CLASSES] = 1.0;
            assert_eq!(batch.targets[row * CLASSES..][..CLASSES], target);
        }
    }
}

/// Goal: what a training gets depends on seed and cursor alone.
/// Method: compare batches made here, made by three threads, and taken up at every cursor.
#[test]
fn threads_and_interruptions_change_nothing() {
    let feed = feed(everything());
    let whole: Vec<_> = feed.batches(Cursor::default()).take(9).map(Result::unwrap).collect();
    let ahead = feed.batches_ahead(Cursor::default(), LIMITS);
    assert_eq!(ahead.take(9).map(Result::unwrap).collect::<Vec<_>>(), whole);
    for (number, pair) in whole.windows(2).enumerate() {
        let mut resumed = feed.batches_ahead(pair[0].cursor, LIMITS);
        assert_eq!(resumed.next().unwrap().unwrap(), pair[1], "after batch {number}");
    }
    let other = Feed { seed: 12, ..feed };
    assert_ne!(other.batches(Cursor::default()).next().unwrap().unwrap(), whole[0]);
}

#[test]
fn draws_of_a_picture_differ() {
    let options = BatchOptions {
        multiplicity: 4,
        multiplicity_mode: Multiplicity::Growing,
        crop: Some(Crop::Padded { padding: 2, fill: Fill::Zero }),
        ..BatchOptions::plain(2)
    };
    let batch = feed(options).batches(Cursor::default()).next().unwrap().unwrap();
    assert_eq!(batch.sources.len(), 8);
    assert!(batch.sources.chunks(4).all(|it| it.iter().all(|source| *source == it[0])));
    let rows: Vec<_> = batch.pixels.chunks(48).take(4).collect();
    assert!(rows.iter().any(|it| *it != rows[0]));
}

#[test]
fn targets_are_shared_as_pictures_are() {
    let options = BatchOptions { cutmix: true, label_smoothing: 0.3, ..BatchOptions::plain(5) };
    for batch in feed(options).batches(Cursor::default()).take(20).map(Result::unwrap) {
        for (row, source) in batch.sources.iter().enumerate() {
            let own = f32::from(u8::try_from(*source).unwrap()) / 255.0;
            let pixels = &batch.pixels[row * 48..][..48];
            let share = pixels.iter().filter(|it| **it == own).count() as f32 / 48.0;
            let other = pixels.iter().find(|it| **it != own);
            let picture = |value| (0..PICTURES).find(|it| f32::from(*it) / 255.0 == value);
            let class = |value| usize::from(picture(value).unwrap()) % CLASSES;
            let mut target = [0.1; CLASSES];
            target[class(own)] += 0.7 * share;
            target[class(*other.unwrap_or(&own))] += 0.7 * (1.0 - share);
            for (found, expected) in batch.targets[row * CLASSES..].iter().zip(target) {
                // Three additions of numbers below 1.
                assert!((found - expected).abs() < 3.0 * f32::EPSILON, "{found}, not {expected}");
            }
        }
    }
}

/// Goal: what a batch's mean varies by is what theory says (Fort et al. 2021, arXiv:2105.13343): with `K` of
/// `N` pictures and `n` draws of each, `V_img/K · (N-K)/(N-1) + V_aug/(K n)`.
///
/// Method: the mean over a batch of a fixed function of the pixels, as a gradient is one, over many batches;
/// the two variances are taken of draws picture by picture. Both are estimates of some 1 %.
#[test]
fn means_of_batches_vary_as_their_pictures_and_draws_do() {
    const DRAWS: usize = 4000;
    let crop = Some(Crop::Padded { padding: 2, fill: Fill::Zero });
    let function = |pixels: &[f32]| -> f64 {
        let weight = |at: usize| f64::from((at * 37 % 101) as u32) / 101.0;
        pixels.iter().enumerate().map(|(at, it)| weight(at) * f64::from(*it)).sum()
    };
    let moments = |values: &[f64]| {
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        let square = values.iter().map(|it| (it - mean).powi(2)).sum::<f64>();
        (mean, square / values.len() as f64)
    };
    let all = BatchOptions { crop, ..BatchOptions::plain(PICTURES.into()) };
    let mut by_picture = vec![Vec::new(); PICTURES.into()];
    for batch in feed(all.clone()).batches(Cursor::default()).take(DRAWS).map(Result::unwrap) {
        for (pixels, &source) in batch.pixels.chunks(48).zip(&batch.sources) {
            by_picture[source as usize].push(function(pixels));
        }
    }
    let means: Vec<f64> = by_picture.iter().map(|it| moments(it).0).collect();
    let within: f64 = by_picture.iter().map(|it| moments(it).1).sum();
    let (of_images, of_draws) = (moments(&means).1, within / f64::from(PICTURES));
    for (mode, batch, multiplicity) in [
        (Multiplicity::Fixed, 4, 1),
        (Multiplicity::Fixed, 4, 2),
        (Multiplicity::Fixed, 4, 4),
        (Multiplicity::Growing, 5, 1),
        (Multiplicity::Growing, 5, 4),
    ] {
        let options = BatchOptions { batch, multiplicity, multiplicity_mode: mode, ..all.clone() };
        let pictures = options.shape().pictures;
        // A batch that goes over the end of a pass may have a picture twice.
        let per_pass = usize::from(PICTURES) / pictures as usize;
        let is_whole = usize::from(PICTURES) == per_pass * pictures as usize;
        let batches = feed(options).batches(Cursor::default()).take(4 * DRAWS).map(Result::unwrap);
        let batches = batches.enumerate().filter(|(at, _)| {
            is_whole || {
                let first = at * pictures as usize % usize::from(PICTURES);
                first + pictures as usize <= usize::from(PICTURES)
            }
        });
        let means: Vec<f64> = batches
            .map(|(_, it)| {
                it.pixels.chunks(48).map(function).sum::<f64>() * 48.0 / it.pixels.len() as f64
            })
            .collect();
        let [k, total, n] = [pictures, PICTURES.into(), multiplicity].map(f64::from);
        let expected = of_images / k * (total - k) / (total - 1.0) + of_draws / (k * n);
        let found = moments(&means).1;
        assert!((found / expected - 1.0).abs() < 0.05, "{mode:?} {n}: {found}, not {expected}");
    }
}

/// Half of the rows are means of two pictures, the others are cut together.
#[test]
fn mixup_and_cutmix_take_turns() {
    let options = BatchOptions { mixup_alpha: Some(1.0), cutmix: true, ..BatchOptions::plain(10) };
    let mut values = [Vec::new(), Vec::new()];
    for batch in feed(options).batches(Cursor::default()).take(20).map(Result::unwrap) {
        for (row, pixels) in batch.pixels.chunks(48).enumerate() {
            let mut distinct = pixels.to_vec();
            distinct.dedup();
            distinct.sort_by(f32::total_cmp);
            distinct.dedup();
            values[row % 2].push(distinct.len());
        }
    }
    assert!(values[0].iter().all(|it| *it == 1), "means of two plain pictures are plain");
    assert!(values[1].contains(&2) && values[1].iter().all(|it| *it <= 2));
}

#[test]
fn evaluation_goes_through_all_in_order() {
    let feed = feed(BatchOptions::plain(1));
    let batches = in_order(&feed.dataset, &feed.preprocessing, 4, LIMITS);
    let batches: Vec<_> = batches.map(Result::unwrap).collect();
    assert_eq!(batches.iter().map(|it| it.labels.len()).collect::<Vec<_>>(), [4, 4, 2]);
    let labels: Vec<i64> = batches.iter().flat_map(|it| it.labels.clone()).collect();
    assert_eq!(labels, Vec::from_iter((0..10).map(|it| it % 3)));
    let first: Vec<f32> =
        batches.iter().flat_map(|it| it.pixels.chunks(48).map(|it| it[0])).collect();
    assert_eq!(first, Vec::from_iter((0..PICTURES).map(|it| f32::from(it) / 255.0)));
}

#[test]
fn what_does_not_go_together_is_refused() {
    let dataset = dataset(PICTURES);
    let larger = Preprocessing { height: 5, ..preprocessing() };
    let error = Feed::new(Arc::clone(&dataset), larger.clone(), BatchOptions::plain(2), 0);
    assert!(error.unwrap_err().to_string().contains("5 and 4 are expected"));
    let resized = BatchOptions { crop: Some(Crop::resized()), ..BatchOptions::plain(2) };
    assert!(Feed::new(dataset, larger, resized, 0).is_ok());
    let mixed = BatchOptions { cutmix: true, ..BatchOptions::plain(2) };
    let error = Feed::new(self::dataset(1), preprocessing(), mixed, 0);
    assert_eq!(error.unwrap_err(), FeedError::Alone);
}

/// Needs the folder of CIFAR-10 in Parquet.
#[test]
fn cifar_10_is_seen_whole_in_a_pass() {
    let Some(dataset) = cifar_10(Split::Test) else { return };
    let preprocessing = Preprocessing { height: 32, width: 32, ..preprocessing() };
    let options = BatchOptions { batch: 250, ..everything() };
    let feed = Feed::new(dataset, preprocessing, options, 1).unwrap();
    let batches = feed.batches_ahead(Cursor::default(), LIMITS).take(80).map(Result::unwrap);
    let mut sources: Vec<u32> = batches.flat_map(|it| it.sources).collect();
    sources.sort_unstable();
    assert_eq!(sources, Vec::from_iter((0..10_000).flat_map(|it| [it; 2])));
}

fn everything() -> BatchOptions {
    BatchOptions {
        batch: 6,
        multiplicity: 2,
        multiplicity_mode: Multiplicity::Fixed,
        crop: Some(Crop::Padded { padding: 1, fill: Fill::Reflect }),
        flip: true,
        mixup_alpha: Some(0.2),
        cutmix: true,
        rand_augment: Some(RandAugment::for_side(2, 8.0, 4)),
        label_smoothing: 0.1,
    }
}

fn feed(options: BatchOptions) -> Feed {
    Feed::new(dataset(PICTURES), preprocessing(), options.checked().unwrap(), 11).unwrap()
}

/// Picture `i` has the byte `i` everywhere and is of class `i % 3`.
fn dataset(pictures: u8) -> Arc<Dataset> {
    let rgb = (0..pictures).flat_map(|it| [it; 48]).collect();
    let labels = (0..u32::from(pictures)).map(|it| it % 3).collect();
    let classes = ["a", "b", "c"].map(str::to_owned).to_vec();
    Arc::new(Dataset::packed(EXTENT, rgb, labels, classes))
}

fn preprocessing() -> Preprocessing {
    Preprocessing {
        height: 4,
        width: 4,
        resize: Resize::None,
        crop_share: 1.0,
        interpolation: Interpolation::Bicubic,
        mean: [0.0; 3],
        std: [1.0; 3],
    }
}
