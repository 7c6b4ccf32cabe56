//! The Open Inference Protocol without its wires: tensors, parameters, and what a model takes and gives.
//!
//! gRPC and REST both speak in the messages of [`aerie_proto::inference`]; `transport/oip` carries them. What is said
//! of a recurrent model comes to a [`v1::Start`](aerie_proto::v1::Start), so that there is one way to run a generation.

pub mod classify;
pub mod parameters;
pub mod recurrent;
pub mod sequence;
pub mod statistics;
pub mod tensor;
pub mod wire;

use std::{num::NonZeroU32, sync::Arc, thread};

use serde::{
    Deserialize, Deserializer, Serialize,
    de::{Error as _, Unexpected},
};
use tokio::sync::Semaphore;

use self::{sequence::SequenceKey, statistics::Statistics};

/// The version that every model has: a bundle is served as it is.
pub const VERSION: &str = "1";

/// Most that [`Config::tensors_max`] may be.
pub const TENSORS_MAX: u32 = 256;

/// Of an id that is told again in each response, and means nothing else.
const ID_BYTES_MAX: u32 = 1024;

/// Extensions of the protocol that are spoken, as Triton names them.
pub const EXTENSIONS: &[&str] = &[
    "binary_tensor_data",
    "classification",
    "model_repository",
    "parameters",
    "schedule_policy",
    "sequence",
    "sequence(string_id)",
    "statistics",
];

/// Limits of the protocol.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Bytes of one request; a picture of 224 by 224 pixels has 602 112 of them as a tensor. Read, it takes a few times
    /// as much, as all is counted that would take more.
    pub message_bytes_max: u32,
    /// Calls at once that infer, streams included, over both wires together. With `message_bytes_max` it bounds what
    /// requests take of memory.
    pub calls_max: u32,
    /// Tensors of one request, and as many outputs and parameters; from 1 to 256.
    #[serde(deserialize_with = "tensors_max")]
    pub tensors_max: u32,
    /// Requests at once on one stream; more wait at the client, and so do those that follow on `message_bytes_max`.
    pub stream_requests_max: u32,
    /// How long it may take until a request has come, where it is the call's only one.
    pub request_ms_max: NonZeroU32,
    /// A stream on which nothing runs, and nothing is asked for that long, is ended; and so is one of whose responses none
    /// is read that long.
    pub idle_ms_max: NonZeroU32,
    /// Of what classifiers are given.
    pub pictures: classify::Config,
}

/// What a service needs to speak the protocol.
#[derive(Debug)]
pub struct Setup {
    pub config: Config,
    pub key: SequenceKey,
    pub statistics: Statistics,
    /// A place for each call that is let in; see [`Config::calls_max`].
    pub room: Arc<Semaphore>,
    /// A place for each request whose pictures are decoded.
    pub decoders: Arc<Semaphore>,
}

impl Setup {
    pub fn new(config: Config, key: SequenceKey) -> Self {
        assert!(config.tensors_max <= TENSORS_MAX, "it was read as no more than that");
        let room = Arc::new(Semaphore::new(config.calls_max as usize));
        let decoders = match config.pictures.decoders_max {
            0 => thread::available_parallelism().map_or(1, usize::from),
            decoders_max => decoders_max as usize,
        };
        let decoders = Arc::new(Semaphore::new(decoders));
        Self { config, key, statistics: Statistics::default(), room, decoders }
    }
}

impl Setup {
    /// Calls that are let in now.
    pub fn calls(&self) -> usize {
        (self.config.calls_max as usize).saturating_sub(self.room.available_permits())
    }
}

impl Default for Setup {
    fn default() -> Self {
        Self::new(Config::default(), SequenceKey::default())
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            message_bytes_max: 16 << 20,
            calls_max: 256,
            tensors_max: 16,
            stream_requests_max: 64,
            request_ms_max: NonZeroU32::new(60_000).expect("it is not zero"),
            idle_ms_max: NonZeroU32::new(300_000).expect("it is not zero"),
            pictures: classify::Config::default(),
        }
    }
}

/// Reads a number from 1 to [`TENSORS_MAX`].
fn tensors_max<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    let found = u32::deserialize(deserializer)?;
    match found {
        1..=TENSORS_MAX => Ok(found),
        _ => {
            let expected = format!("a number from 1 to {TENSORS_MAX}");
            Err(D::Error::invalid_value(Unexpected::Unsigned(found.into()), &&*expected))
        }
    }
}
