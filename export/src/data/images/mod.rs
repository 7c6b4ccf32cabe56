//! From pictures on disk to batches: data sets, a seeded order with augmentation multiplicity,
//! augmentation, and threads that prepare batches ahead. Knows no tensor library.

pub mod ahead;
pub mod augment;
pub mod batches;
pub mod dataset;
mod mix;
pub mod options;
pub mod rand_augment;
pub mod sampler;

pub use ahead::{Ahead, AheadLimits};
pub use batches::{BatchError, EvalBatch, Feed, FeedError, ImageBatch};
pub use dataset::{Dataset, DatasetError, Split};
pub use options::{BatchOptions, Multiplicity, OptionsError};
