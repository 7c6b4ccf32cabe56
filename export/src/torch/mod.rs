//! Everything that knows libtorch: the reading of the equations that trains, and the commands made
//! of it.

pub mod adamw;
pub mod attention;
pub mod backend;
pub mod device;
pub mod eval;
pub mod images;
pub mod log;
pub mod memory;
pub mod optimizer;
pub mod parameters;
pub mod reference;
pub mod sample;
pub mod sgd;
pub mod shim;
pub mod spp;
pub mod train;
