//! What Aerie's clients and servers say to each other: messages, gRPC stubs, QUIC framing.
//!
//! The messages are the same over both transports; `proto/aerie/v1/aerie.proto` is their
//! reference. `admin.proto` beside it is for operators, and over gRPC alone; `proto/inference` is the Open Inference
//! Protocol. This crate does no IO.

pub mod early;
pub mod frame;

use std::time::Duration;

pub use generated::{inference, v1};

#[allow(
    missing_debug_implementations,
    unreachable_pub,
    clippy::all,
    clippy::allow_attributes_without_reason,
    clippy::cast_possible_truncation,
    clippy::or_fun_call,
    clippy::str_to_string,
    clippy::use_self,
    reason = "generated"
)]
mod generated {
    /// Messages, and gRPC clients and servers, of the package `aerie.v1`.
    pub mod v1 {
        tonic::include_proto!("aerie.v1");
    }

    /// Messages, and gRPC clients and servers, of the Open Inference Protocol: the package `inference`.
    pub mod inference {
        tonic::include_proto!("inference");
    }
}

/// An encoded `FileDescriptorSet` of `aerie.v1` and `inference`, as gRPC reflection serves it.
pub const FILE_DESCRIPTOR_SET: &[u8] = tonic::include_file_descriptor_set!("aerie");

/// An encoded `FileDescriptorSet` of what operators call.
pub const ADMIN_DESCRIPTOR_SET: &[u8] = tonic::include_file_descriptor_set!("aerie.v1.admin");

/// The application protocol that QUIC peers agree on in TLS; one for each incompatible version.
pub const ALPN: &[u8] = b"aerie/1";

/// How often a QUIC client says that it is there while a call of its is open and nothing else flows.
/// Servers, who do not, wait for longer.
pub const KEEP_ALIVE: Duration = Duration::from_secs(10);
