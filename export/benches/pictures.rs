//! Pictures that one thread augments in a second, of CIFAR's size.

use std::{hint::black_box, sync::Arc};

use aerie_export::data::{
    batches::Cursor,
    images::{
        BatchOptions, Dataset, Feed,
        augment::{Crop, Fill},
        rand_augment::RandAugment,
    },
};
use aerie_models::images::preprocessing::{Extent, Interpolation, Preprocessing, Resize};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

const ROWS: u32 = 256;
const EXTENT: Extent = Extent { height: 32, width: 32 };

criterion_group!(benches, augmentation);
criterion_main!(benches);

fn augmentation(criterion: &mut Criterion) {
    let crop = Some(Crop::Padded { padding: 4, fill: Fill::Reflect });
    let light = BatchOptions { crop, flip: true, ..BatchOptions::plain(ROWS) };
    let rand_augment = Some(RandAugment::for_side(2, 10.0, 32));
    let options = [
        ("crop_flip", light.clone()),
        ("crop_flip_mix", BatchOptions { mixup_alpha: Some(0.2), cutmix: true, ..light.clone() }),
        ("crop_flip_rand_augment_2x10", BatchOptions { rand_augment, ..light.clone() }),
        ("resized_crop_flip", BatchOptions { crop: Some(Crop::resized()), ..light }),
    ];
    let dataset = Arc::new(dataset());
    let mut group = criterion.benchmark_group("augmentation");
    group.throughput(Throughput::Elements(ROWS.into()));
    for (name, options) in options {
        let feed = Feed::new(Arc::clone(&dataset), preprocessing(), options, 1);
        let mut batches = feed.expect("they go together").batches(Cursor::default());
        group.bench_function(name, |bencher| bencher.iter(|| black_box(batches.next())));
    }
    group.finish();
}

/// Slopes and noise, so that operations that look at values have some.
fn dataset() -> Dataset {
    let count = 1024;
    let mut state = 1u32;
    let bytes = (0..count * EXTENT.bytes()).map(|at| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state.to_be_bytes()[0] / 2).saturating_add(at.to_le_bytes()[0] / 3)
    });
    let labels = (0..10).cycle().take(count).collect();
    Dataset::packed(EXTENT, bytes.collect(), labels, (0..10).map(|it| it.to_string()).collect())
}

fn preprocessing() -> Preprocessing {
    Preprocessing {
        height: 32,
        width: 32,
        resize: Resize::None,
        crop_share: 1.0,
        interpolation: Interpolation::Bicubic,
        mean: [0.5; 3],
        std: [0.25; 3],
    }
}
