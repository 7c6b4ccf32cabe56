//! Architectures as equations, the layout of their state, and the manifest of a bundle.
//!
//! A model is written once, generically over the tensor, against [`Backend`]. What it *does* depends
//! on who reads it: libtorch trains it, the ONNX emitter draws it, plain slices check it. This crate
//! knows no tensor library, no ONNX and no sockets.
//!
//! | letter | meaning | in code |
//! |---|---|---|
//! | `N` | tokens of a step, packed segment after segment | `tokens` |
//! | `B` | segments of a step (batch) | `segments` |
//! | `T` | tokens of one segment (time) | `time` |
//! | `D` | width of the residual stream | `width` |
//! | `R` | width of the recurrence | `recurrence_width` |
//! | `E` | width of the gated MLP | `mlp_width` |
//! | `H`, `K` | query heads; blocks of a block-diagonal weight | `heads`, `gate_blocks` |
//! | `d` | width of one head | `head_dim` |
//! | `W` | reach of local attention: a query sees itself and `W` tokens before it | `window` |
//! | `V` | size of the vocabulary | `vocab` |

pub mod backend;
pub mod bundle;
pub mod carry;
pub mod census;
pub mod config;
pub mod decoder;
pub mod griffin;
pub mod hawk;
pub mod images;
pub mod layers;
pub mod model;
pub mod mqa;
pub mod path;
pub mod presets;

pub use backend::{AttentionDims, Backend, Init, ParameterSpec, Role};
pub use bundle::{AnyManifest, BundleError, Bundled, Manifest, Pictures, Precision, Provenance};
pub use carry::{BlockCarry, Carry, Dtype, TensorSpec};
pub use config::{AInit, BlockKind, ConfigError, Family, ModelConfig};
pub use images::ImageConfig;
pub use model::{Model, Parametric};
pub use path::Path;
