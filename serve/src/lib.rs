//! Serves recurrent models: batches sessions over devices, streams tokens, keeps sessions.
//!
//! Two pipes and one owner. Many async tasks parse requests and talk to clients; one thread per
//! device and model owns every piece of mutable state and runs the steps. Between them go a
//! bounded channel of events one way and a bounded pipe per request the other way.
//!
//! ```text
//! transport -> request -> admission -> router ==> worker -> sessions -> scheduler -> residency
//!     ^                                             |                                   |
//!     +----------------- pipe <---------------------+--- sampler <------ device <-------+
//! ```

pub mod admin;
pub mod admission;
pub mod auth;
pub mod batcher;
pub mod classifier;
pub mod cli;
pub mod config;
pub mod device;
pub mod oip;
pub mod pipe;
mod planted;
pub mod prefixes;
pub mod quotas;
pub mod request;
pub mod residency;
pub mod router;
pub mod sampler;
pub mod scheduler;
pub mod sealed;
pub mod server;
pub mod service;
pub mod sessions;
pub mod store;
pub mod telemetry;
#[cfg(test)]
mod testing;
pub mod text;
pub mod tls;
pub mod transport;
pub mod worker;
