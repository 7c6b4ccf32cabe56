//! What can go wrong between a client and its server, the same over both transports.

use std::{collections::HashMap, time::Duration};

use aerie_proto::frame::FrameError;
use thiserror::Error;

pub use tonic::Code;

use crate::tls::TrustError;

/// Why a call did not succeed.
#[derive(Clone, Debug, Error)]
pub enum Error {
    /// The address is not one of a server.
    #[error("address {address:?} {problem}")]
    Address {
        /// As it was given.
        address: String,
        /// What is wrong with it.
        problem: String,
    },
    /// What to trust cannot be read or used.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// The token has characters that no token has.
    #[error("the token has characters that no token has")]
    Token,
    /// No connection came about.
    #[error("no connection to {address}: {reason}")]
    Unreachable {
        /// As it was given.
        address: String,
        /// What the transport tells.
        reason: String,
    },
    /// The server refused the call, or could not go on with it.
    #[error("{message}")]
    Rejected {
        /// What kind of refusal it is.
        code: Code,
        /// The server's words.
        message: String,
        /// When trying again may help; none if it will not.
        retry_after: Option<Duration>,
        /// What kind of refusal it is, more exactly, such as `STALE_POSITION` or `QUOTA_SESSIONS`; may be empty.
        reason: String,
        /// Where the session stands, if that is what the refusal is about.
        position: Option<u64>,
    },
    /// The connection was lost while the call was running.
    #[error("connection lost: {reason}")]
    Interrupted {
        /// What the transport tells.
        reason: String,
    },
    /// A server that was asked again gave another answer than before.
    #[error("the server now says something else at token {position} than it did before")]
    Contradiction {
        /// Where.
        position: u64,
    },
    /// A message is too large for the wire, or the server's bytes are none.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The call is not one of those that this wire has.
    #[error("pictures are classified over gRPC alone: connect to grpc:// or grpcs://")]
    Wire,
    /// The server answered with something other than what was asked for.
    #[error("the server's answer is not one to this call")]
    Answer,
}

/// Where a session stands, as a refusal's metadata tell.
pub(crate) fn position(metadata: &HashMap<String, String>) -> Option<u64> {
    metadata.get("position")?.parse().ok()
}

impl Error {
    /// The kind of the error in gRPC's terms.
    pub fn code(&self) -> Code {
        match self {
            Self::Address { .. } | Self::Trust(_) | Self::Token | Self::Wire => {
                Code::InvalidArgument
            }
            Self::Unreachable { .. } | Self::Interrupted { .. } => Code::Unavailable,
            Self::Rejected { code, .. } => *code,
            Self::Frame(FrameError::TooLarge { .. }) => Code::InvalidArgument,
            Self::Frame(_) | Self::Answer | Self::Contradiction { .. } => Code::Internal,
        }
    }

    /// When trying again may help, as far as the server told.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Rejected { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}
