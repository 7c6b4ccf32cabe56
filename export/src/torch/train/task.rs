//! What a training is of: where its batches come from, what the loss of one is, how it is validated.

use tch::Tensor;

use crate::{
    data::batches::Cursor,
    torch::{log::Valid, parameters::Parameters},
};

/// One kind of training. The loop, optimisers, checkpoints and logs are the same for all.
pub(super) trait Task {
    type Batch;

    /// The next batch.
    fn batch(&mut self) -> anyhow::Result<Self::Batch>;

    /// Where the order of batches stands, after the last one.
    fn cursor(&self) -> Cursor;

    /// Tokens or images of a batch.
    fn seen(&self, batch: &Self::Batch) -> u64;

    /// The first `share` of a batch's rows, at least one.
    fn part(&self, batch: &Self::Batch, share: f64) -> Self::Batch;

    /// Mean loss over a batch, in nats. What a network leaves out by chance follows from `seed`.
    fn loss(&self, parameters: &Parameters, batch: &Self::Batch, seed: u64) -> Tensor;

    /// Loss over the whole of the validation data; none if there is none.
    fn validate(&self, parameters: &Parameters) -> anyhow::Result<Option<Valid>>;
}
