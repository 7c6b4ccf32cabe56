//! Layers: what a backend's operations are composed into. Each is a function of its path, so that
//! the walk names the parameters.

pub mod block_diagonal;
pub mod conv1d;
pub mod embedding;
pub mod gated_mlp;
pub mod linear;
pub mod local_mqa;
pub mod recurrent;
pub mod rg_lru;
pub mod rms_norm;
