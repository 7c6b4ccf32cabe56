//! From pictures on disk to batches: data sets. Knows no tensor library.

pub mod dataset;

pub use dataset::{Dataset, DatasetError, Split};
