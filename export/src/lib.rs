//! Trains the models that Aerie serves, and writes them as bundles. The program `aerie-export` is
//! this library behind a command line.

pub mod bench;
mod chance;
pub mod checkpoint;
pub mod cli;
pub mod compare;
pub mod data;
pub mod emit;
pub mod import;
pub mod inspect;
pub mod onnx;
pub mod plot;
mod progress;
pub mod quantize;
pub mod run;
pub mod runtime;
pub mod scaling;
#[cfg(feature = "torch")]
pub mod torch;
pub mod verify;
