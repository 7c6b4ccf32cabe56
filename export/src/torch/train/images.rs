//! Training a classifier on images with labels.

use std::sync::Arc;

use aerie_models::{ImageConfig, images::preprocessing::Preprocessing};
use anyhow::ensure;
use tch::{Kind, Tensor};

use crate::{
    checkpoint::{LABELS_FILE, RunDir, write_atomically},
    data::{
        batches::Cursor,
        images::{Ahead, BatchError, Dataset, Feed, ImageBatch, Split},
    },
    run::{ImageData, Matmul, TrainConfig},
    torch::{
        images::{Mode, accuracy, logits},
        log::Valid,
        parameters::Parameters,
        train::task::Task,
    },
};

/// The images of a run.
#[derive(Debug)]
pub(super) struct ImageSets {
    train: Arc<Dataset>,
    valid: Option<Arc<Dataset>>,
}

impl ImageSets {
    /// Reads the images of the run in `dir`, and those for validation if it has some; notes the names of
    /// their classes.
    ///
    /// # Errors
    /// If they cannot be read, or have other classes than `model`.
    pub(super) fn read(
        dir: &RunDir,
        model: &ImageConfig,
        data: &ImageData,
    ) -> anyhow::Result<Self> {
        let mut train = Dataset::open(&data.images, Split::Train)?;
        let classes = train.classes().len();
        ensure!(
            classes == model.classes as usize,
            "{}: {classes} classes, but the model has {}",
            data.images.display(),
            model.classes
        );
        // One name a line: whatever a name has of lines is one.
        let names: Vec<_> =
            train.classes().iter().map(|it| it.replace(['\r', '\n'], " ")).collect();
        write_atomically(&dir.path().join(LABELS_FILE), (names.join("\n") + "\n").as_bytes())?;
        let valid = match (&data.valid, data.holdout) {
            (None, None) => None,
            (None, Some(holdout)) => {
                let (kept, held_out) = train.hold_out(holdout)?;
                train = kept;
                Some(Arc::new(held_out))
            }
            (Some(path), _) => Some(Arc::new(Dataset::open_test(path, train.classes())?)),
        };
        if let Some(count) = data.images_max {
            train = train.at_most(usize::try_from(count).unwrap_or(usize::MAX));
        }
        Ok(Self { train: Arc::new(train), valid })
    }
}

/// Images to classify.
#[derive(Debug)]
pub(super) struct ImageTask<'a> {
    model: &'a ImageConfig,
    sets: &'a ImageSets,
    preprocessing: &'a Preprocessing,
    /// Kind of the maps while learning.
    maps: Kind,
    batches: Ahead<Result<ImageBatch, BatchError>>,
    cursor: Cursor,
}

impl<'a> ImageTask<'a> {
    /// Takes the images up at `cursor`.
    ///
    /// # Errors
    /// If images, preprocessing and augmentation do not go together.
    pub(super) fn new(
        model: &'a ImageConfig,
        data: &'a ImageData,
        sets: &'a ImageSets,
        train: &TrainConfig,
        cursor: Cursor,
    ) -> anyhow::Result<Self> {
        let preprocessing = data.preprocessing.clone();
        let feed =
            Feed::new(Arc::clone(&sets.train), preprocessing, data.batch.clone(), train.seed)?;
        let batches = feed.batches_ahead(cursor, accuracy::limits());
        let maps = match train.matmul {
            Matmul::F32 => Kind::Float,
            Matmul::Bf16 => Kind::BFloat16,
        };
        Ok(Self { model, sets, preprocessing: &data.preprocessing, maps, batches, cursor })
    }

    /// `[H, W]` of what the network sees.
    fn extent(&self) -> [i64; 2] {
        [self.preprocessing.height, self.preprocessing.width].map(i64::from)
    }
}

/// A batch as tensors.
#[derive(Debug)]
pub(super) struct Batch {
    /// `[B, 3, H, W]`.
    pixels: Tensor,
    /// `[B, K]`.
    targets: Tensor,
}

impl Task for ImageTask<'_> {
    type Batch = Batch;

    fn batch(&mut self) -> anyhow::Result<Batch> {
        let batch = self.batches.next().expect("batches have no end")?;
        self.cursor = batch.cursor;
        let [height, width] = self.extent();
        Ok(Batch {
            pixels: Tensor::from_slice(&batch.pixels).view([-1, 3, height, width]),
            targets: Tensor::from_slice(&batch.targets).view([-1, i64::from(self.model.classes)]),
        })
    }

    fn cursor(&self) -> Cursor {
        self.cursor
    }

    fn seen(&self, batch: &Batch) -> u64 {
        batch.pixels.size()[0].unsigned_abs()
    }

    fn part(&self, batch: &Batch, share: f64) -> Batch {
        let rows = batch.pixels.size()[0];
        #[expect(clippy::cast_possible_truncation, reason = "rows of a batch")]
        let kept = ((rows as f64 * share).ceil() as i64).clamp(1, rows);
        Batch { pixels: batch.pixels.narrow(0, 0, kept), targets: batch.targets.narrow(0, 0, kept) }
    }

    fn loss(&self, parameters: &Parameters, batch: &Batch, seed: u64) -> Tensor {
        let (_, device) = parameters.options();
        let pixels = batch.pixels.to_device(device).to_kind(self.maps);
        let targets = batch.targets.to_device(device);
        let logits = logits(self.model, parameters, Mode::Training { seed }, &pixels);
        let shares = logits.log_softmax(1, Kind::Float) * &targets;
        shares.sum(Kind::Float) / -(targets.size()[0] as f64)
    }

    fn validate(&self, parameters: &Parameters) -> anyhow::Result<Option<Valid>> {
        let set = self.sets.valid.as_ref();
        set.map(|set| accuracy::measure(self.model, parameters, set, self.preprocessing))
            .transpose()
    }
}
