//! Training a classifier on images with labels.

use std::{sync::Arc, thread};

use aerie_models::{
    ImageConfig,
    images::{network, preprocessing::Preprocessing},
};
use anyhow::ensure;
use tch::{Kind, Reduction, Tensor, no_grad};

use crate::{
    checkpoint::{LABELS_FILE, RunDir, write_atomically},
    data::{
        batches::Cursor,
        images::{
            Ahead, AheadLimits, BatchError, Dataset, Feed, ImageBatch, Split, batches::in_order,
        },
    },
    run::{ImageData, Matmul, TrainConfig},
    torch::{
        images::{ImageReading, Mode, Scaled},
        log::Valid,
        parameters::Parameters,
        train::task::Task,
    },
};

/// Images of a batch when validating.
const VALID_ROWS: usize = 250;
/// Batches that each thread makes ready.
const READY_MAX: usize = 2;

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
            (Some(path), _) => Some(Arc::new(train.open_test(path)?)),
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
        let batches = feed.batches_ahead(cursor, limits());
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

    fn logits(&self, parameters: &Parameters, mode: Mode, pixels: &Tensor) -> Tensor {
        let pixels = Scaled::of(channels_last(pixels));
        network::logits(self.model, &ImageReading::new(parameters, mode), &pixels).tensor()
    }
}

fn limits() -> AheadLimits {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    AheadLimits { threads_max: cores, ready_max: READY_MAX }
}

/// The layout in which libtorch's convolutions are fastest here.
fn channels_last(pixels: &Tensor) -> Tensor {
    pixels.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2])
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
        let logits = self.logits(parameters, Mode::Training { seed }, &pixels);
        let shares = logits.log_softmax(1, Kind::Float) * &targets;
        shares.sum(Kind::Float) / -(targets.size()[0] as f64)
    }

    fn validate(&self, parameters: &Parameters) -> anyhow::Result<Option<Valid>> {
        let Some(set) = &self.sets.valid else { return Ok(None) };
        let [mut nats, mut right] = [0.0, 0.0];
        for batch in in_order(set, self.preprocessing, VALID_ROWS, limits()) {
            let batch = batch?;
            let [height, width] = self.extent();
            let (_, device) = parameters.options();
            let pixels = Tensor::from_slice(&batch.pixels).view([-1, 3, height, width]);
            let pixels = pixels.to_device(device);
            let labels = Tensor::from_slice(&batch.labels).to_device(device);
            let logits = no_grad(|| self.logits(parameters, Mode::Evaluation, &pixels));
            let none = None::<&Tensor>;
            let loss = logits.cross_entropy_loss(&labels, none, Reduction::Sum, -100, 0.0);
            nats += loss.double_value(&[]);
            let found = logits.argmax(1, false).eq_tensor(&labels);
            right += found.sum(Kind::Double).double_value(&[]);
        }
        let total = set.labels().len() as f64;
        Ok(Some(Valid { loss: nats / total, score: right / total }))
    }
}
