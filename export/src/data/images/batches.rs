//! Batches of pixels and targets: augmented ones without end, and those of an evaluation in order.

#[cfg(test)]
mod tests;

use std::sync::Arc;

use aerie_models::images::preprocessing::{Picture, Preprocessing, Resize, WrongSize};
use rand::Rng;
use thiserror::Error;

use crate::data::{
    batches::Cursor,
    images::{
        Ahead, AheadLimits, BatchOptions, Dataset, DatasetError,
        augment::{Crop, flip},
        mix::{Mix, partner},
        sampler::{Draw, Purpose, Sampler},
    },
};

/// Augmented rows.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageBatch {
    /// `[B, 3, H, W]`, normalised.
    pub pixels: Vec<f32>,
    /// `[B, K]`: shares of the classes, mixed and smoothed; each row adds up to 1.
    pub targets: Vec<f32>,
    /// `[B]`: which picture each row is of; draws of one picture follow each other.
    pub sources: Vec<u32>,
    /// Where a training goes on after this batch.
    pub cursor: Cursor,
}

/// Rows of an evaluation.
#[derive(Clone, Debug, PartialEq)]
pub struct EvalBatch {
    /// `[B, 3, H, W]`, normalised.
    pub pixels: Vec<f32>,
    /// `[B]`.
    pub labels: Vec<i64>,
}

/// All that batches follow from, together with a cursor.
#[derive(Clone, Debug)]
pub struct Feed {
    dataset: Arc<Dataset>,
    preprocessing: Preprocessing,
    options: BatchOptions,
    seed: u64,
}

/// Why data, preprocessing and options do not go together.
#[derive(Debug, Error, PartialEq)]
pub enum FeedError {
    #[error(transparent)]
    Size(#[from] WrongSize),
    #[error("the data set has one picture only, but mixing takes two different ones")]
    Alone,
}

/// Why there is no batch.
#[derive(Debug, Error)]
pub enum BatchError {
    #[error(transparent)]
    Dataset(#[from] DatasetError),
    #[error("picture {picture} of the data set: {source}")]
    Size { picture: usize, source: WrongSize },
}

impl Feed {
    /// Data with what is done to it.
    ///
    /// # Errors
    /// [`FeedError`] if that does not go together.
    pub fn new(
        dataset: Arc<Dataset>,
        preprocessing: Preprocessing,
        options: BatchOptions,
        seed: u64,
    ) -> Result<Self, FeedError> {
        let expected = preprocessing.extent();
        let is_fixed = preprocessing.resize == Resize::None
            && !matches!(options.crop, Some(Crop::Resized { .. }));
        if let Some(found) = dataset.extent().filter(|it| is_fixed && *it != expected) {
            return Err(WrongSize { found, expected }.into());
        }
        if options.mixes() && dataset.len() < 2 {
            return Err(FeedError::Alone);
        }
        Ok(Self { dataset, preprocessing, options, seed })
    }

    /// Batches from `cursor` on, made by the caller.
    pub fn batches(
        &self,
        cursor: Cursor,
    ) -> impl Iterator<Item = Result<ImageBatch, BatchError>> + use<> {
        self.clone().share(cursor, 0, 1)
    }

    /// The same batches, made ahead by threads.
    pub fn batches_ahead(
        &self,
        cursor: Cursor,
        limits: AheadLimits,
    ) -> Ahead<Result<ImageBatch, BatchError>> {
        let threads = limits.threads_max;
        Ahead::new(limits, |thread| self.clone().share(cursor, thread, threads))
    }

    /// Every batch of which the number leaves the remainder `thread` by `threads`.
    fn share(
        self,
        cursor: Cursor,
        thread: usize,
        threads: usize,
    ) -> impl Iterator<Item = Result<ImageBatch, BatchError>> + Send + use<> {
        let total = u32::try_from(self.dataset.len()).expect("data sets have a limit");
        let mut sampler = Sampler::new(self.seed, total, self.options.shape(), cursor);
        for _ in 0..thread {
            sampler.batch();
        }
        std::iter::repeat_with(move || {
            let draws = sampler.batch();
            let cursor = sampler.cursor();
            for _ in 1..threads {
                sampler.batch();
            }
            self.batch(&draws, cursor)
        })
    }

    fn batch(&self, draws: &[Draw], cursor: Cursor) -> Result<ImageBatch, BatchError> {
        let pictures = self.augmented(draws)?;
        let classes = self.dataset.classes().len();
        let plane = self.preprocessing.extent().bytes();
        let mut pixels = vec![0.0; draws.len() * plane];
        let mut targets = vec![0.0; draws.len() * classes];
        let rows = pixels.chunks_exact_mut(plane).zip(targets.chunks_exact_mut(classes));
        for (row, (pixels, targets)) in rows.enumerate() {
            let mut picture = pictures[row].clone();
            self.mix(draws, &pictures, row, &mut picture, targets);
            if let Some(rand_augment) = &self.options.rand_augment {
                let mut rng = draws[row].rng(self.seed, Purpose::RandAugment);
                rand_augment.apply(&mut picture, &mut rng);
            }
            self.preprocessing.normalise(picture.rgb(), pixels);
            self.smooth(targets);
        }
        let sources = draws.iter().map(|it| it.picture).collect();
        Ok(ImageBatch { pixels, targets, sources, cursor })
    }

    /// Decodes each picture once; crops and mirrors it for each of its draws.
    fn augmented(&self, draws: &[Draw]) -> Result<Vec<Picture>, BatchError> {
        let mut pictures = Vec::with_capacity(draws.len());
        for draws in draws.chunks_exact(self.options.multiplicity as usize) {
            let Some(first) = draws.first() else { continue };
            let picture = self.dataset.picture(first.picture as usize)?;
            for draw in draws {
                let mut rng = draw.rng(self.seed, Purpose::Crop);
                let crop = match &self.options.crop {
                    Some(crop) => crop.draw(picture.view(), &self.preprocessing, &mut rng),
                    None => self.preprocessing.fit(picture.view()),
                };
                let size = |source| BatchError::Size { picture: first.picture as usize, source };
                let mut crop = crop.map_err(size)?;
                if self.options.flip && draw.rng(self.seed, Purpose::Flip).random() {
                    flip(&mut crop);
                }
                pictures.push(crop);
            }
        }
        Ok(pictures)
    }

    /// Mixes another picture into that of `row`, and writes the shares of their classes.
    fn mix(
        &self,
        draws: &[Draw],
        pictures: &[Picture],
        row: usize,
        picture: &mut Picture,
        targets: &mut [f32],
    ) {
        let label = |row: usize| self.dataset.labels()[draws[row].picture as usize] as usize;
        let mix = match self.options.mixup_alpha.map(|alpha| Mix::MixUp { alpha }) {
            Some(_) if self.options.cutmix && row % 2 == 1 => Some(Mix::CutMix),
            None if self.options.cutmix => Some(Mix::CutMix),
            mixup => mixup,
        };
        let mut rng = draws[row].rng(self.seed, Purpose::Mix);
        let multiplicity = self.options.multiplicity as usize;
        let other = mix.and_then(|mix| Some((mix, partner(draws, row, multiplicity, &mut rng)?)));
        let Some((mix, other)) = other else {
            targets[label(row)] = 1.0;
            return;
        };
        let extent = picture.extent();
        let share = mix.apply(extent, picture.rgb_mut(), pictures[other].rgb(), &mut rng);
        targets[label(row)] += share;
        targets[label(other)] += 1.0 - share;
    }

    /// Label smoothing (Szegedy et al. 2016, arXiv:1512.00567, section 7).
    fn smooth(&self, targets: &mut [f32]) {
        let smoothing = self.options.label_smoothing;
        let floor = smoothing / targets.len() as f32;
        for target in targets {
            *target = *target * (1.0 - smoothing) + floor;
        }
    }
}

/// All pictures of `dataset` in order, in batches of up to `rows`, made ahead by threads.
///
/// # Panics
/// If `rows` is 0.
pub fn in_order(
    dataset: &Arc<Dataset>,
    preprocessing: &Preprocessing,
    rows: usize,
    limits: AheadLimits,
) -> Ahead<Result<EvalBatch, BatchError>> {
    assert!(0 < rows, "batches have rows");
    let threads = limits.threads_max;
    Ahead::new(limits, |thread| {
        let (dataset, preprocessing) = (Arc::clone(dataset), preprocessing.clone());
        let starts = (0..dataset.len()).step_by(rows).skip(thread).step_by(threads);
        starts.map(move |start| {
            let end = dataset.len().min(start + rows);
            eval_batch(&dataset, &preprocessing, start..end)
        })
    })
}

fn eval_batch(
    dataset: &Dataset,
    preprocessing: &Preprocessing,
    range: std::ops::Range<usize>,
) -> Result<EvalBatch, BatchError> {
    let plane = preprocessing.extent().bytes();
    let mut pixels = vec![0.0; range.len() * plane];
    for (idx, pixels) in range.clone().zip(pixels.chunks_exact_mut(plane)) {
        let picture = dataset.picture(idx)?;
        let fitted = preprocessing.fit(picture.view());
        let fitted = fitted.map_err(|source| BatchError::Size { picture: idx, source })?;
        preprocessing.normalise(fitted.rgb(), pixels);
    }
    let labels = dataset.labels()[range].iter().map(|it| i64::from(*it)).collect();
    Ok(EvalBatch { pixels, labels })
}
