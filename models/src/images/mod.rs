//! Image classifiers: residual networks without normalisation, and what they are compared with.
//!
//! | letter | meaning | in code |
//! |---|---|---|
//! | `B` | images of a batch | |
//! | `C` | channels | `width`, `middle` |
//! | `H`, `W` | height and width of a map | |
//! | `K` | classes | `classes` |

pub mod activation;
pub mod backend;
pub mod census;
pub mod config;
mod layers;
mod lineage;
pub mod network;
pub mod nf_regnet;
pub mod nf_resnet;
pub mod nfnet;
pub mod preprocessing;
pub mod presets;
pub mod wrn;

pub use backend::{
    BranchScale, ChannelWeights, Conv, ImageBackend, Observed, WeighedConv, channel_logits,
    weighed_conv_in_parts,
};
pub use config::{ImageConfig, ImageConfigError, ImageFamily};
