//! How well a network tells the images of a data set apart.

use std::{sync::Arc, thread};

use aerie_models::{ImageConfig, images::preprocessing::Preprocessing};
use tch::{Kind, Reduction, Tensor, no_grad};

use crate::{
    data::images::{AheadLimits, Dataset, batches::in_order},
    torch::{
        images::{Mode, logits},
        log::Valid,
        parameters::Parameters,
    },
};

/// Images of a batch.
const ROWS: usize = 250;
/// Batches that each thread makes ready.
const READY_MAX: usize = 2;

/// Mean cross entropy over all images of `set`, in nats, and the share of them that is told right. Maps are f32.
///
/// # Errors
/// If an image cannot be read.
pub fn measure(
    model: &ImageConfig,
    parameters: &Parameters,
    set: &Arc<Dataset>,
    preprocessing: &Preprocessing,
) -> anyhow::Result<Valid> {
    let (_, device) = parameters.options();
    let [height, width] = [preprocessing.height, preprocessing.width].map(i64::from);
    let [mut nats, mut right] = [0.0, 0.0];
    for batch in in_order(set, preprocessing, ROWS, limits()) {
        let batch = batch?;
        let pixels = Tensor::from_slice(&batch.pixels).view([-1, 3, height, width]);
        let labels = Tensor::from_slice(&batch.labels).to_device(device);
        let logits =
            no_grad(|| logits(model, parameters, Mode::Evaluation, &pixels.to_device(device)));
        let none = None::<&Tensor>;
        let loss = logits.cross_entropy_loss(&labels, none, Reduction::Sum, -100, 0.0);
        nats += loss.double_value(&[]);
        let found = logits.argmax(1, false).eq_tensor(&labels);
        right += found.sum(Kind::Double).double_value(&[]);
    }
    let total = set.labels().len() as f64;
    Ok(Valid { loss: nats / total, score: right / total })
}

/// A thread for each core makes batches ready.
pub(in crate::torch) fn limits() -> AheadLimits {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    AheadLimits { threads_max: cores, ready_max: READY_MAX }
}
