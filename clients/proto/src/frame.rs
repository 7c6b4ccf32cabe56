//! How messages follow each other on a QUIC stream. Sans-IO: bytes in, messages out.
//!
//! ```text
//! ┌───────────────┬──────────────────────────┐
//! │ length: u32be │ protobuf message: length │  ... repeated until the stream ends
//! └───────────────┴──────────────────────────┘
//! ```

#[cfg(test)]
mod tests;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message;
use thiserror::Error;

/// Most bytes of one message, its length prefix left out. Holds for gRPC too.
pub const FRAME_BYTES_MAX: usize = 1 << 20;

/// Bytes of the length prefix.
const PREFIX_BYTES: usize = size_of::<u32>();

/// Why bytes are not frames, or a message does not become one.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
pub enum FrameError {
    /// The prefix announces, or the message needs, more than a frame may hold.
    #[error("frame of {found_bytes} bytes, but a frame has at most {max_bytes}")]
    TooLarge {
        /// Bytes of the message.
        found_bytes: usize,
        /// [`FRAME_BYTES_MAX`].
        max_bytes: usize,
    },
    /// The bytes of a frame are not the message that they should be.
    #[error("frame does not hold the expected message: {0}")]
    Malformed(#[from] prost::DecodeError),
    /// The stream ended within a frame.
    #[error("stream ended {found_bytes} bytes into a frame")]
    Truncated {
        /// Bytes of the incomplete frame, its prefix included.
        found_bytes: usize,
    },
}

/// Encodes `message` as one frame.
///
/// # Errors
/// [`FrameError::TooLarge`] if it is longer than [`FRAME_BYTES_MAX`].
pub fn encode(message: &impl Message) -> Result<Bytes, FrameError> {
    let found_bytes = message.encoded_len();
    let length = parse_length(found_bytes)?;
    let mut frame = BytesMut::with_capacity(PREFIX_BYTES + found_bytes);
    frame.put_u32(length);
    message.encode(&mut frame).expect("the buffer has the encoded length");
    Ok(frame.freeze())
}

/// Cuts a stream of bytes, arriving in any pieces, into messages.
///
/// Take messages until there is none before pushing more: what is kept is then less than one frame.
/// An error is final, since nothing tells where the next frame would begin.
///
/// # Example
/// ```
/// use aerie_proto::{frame, v1};
///
/// let cancel = frame::encode(&v1::Cancel {})?;
/// let mut decoder = frame::Decoder::default();
/// decoder.push(&cancel[..2]);
/// assert_eq!(decoder.message::<v1::Cancel>()?, None);
/// decoder.push(&cancel[2..]);
/// assert_eq!(decoder.message()?, Some(v1::Cancel {}));
/// decoder.finish()?;
/// # Ok::<(), frame::FrameError>(())
/// ```
#[derive(Debug, Default)]
pub struct Decoder {
    /// Received and not yet part of a message.
    pending: BytesMut,
}

impl Decoder {
    /// Takes in what has arrived.
    pub fn push(&mut self, bytes: &[u8]) {
        self.pending.extend_from_slice(bytes);
    }

    /// Takes out the next message, if it has arrived completely.
    ///
    /// # Errors
    /// A frame that is too large is refused as soon as its prefix is known; one that does not hold
    /// an `M`, when it is complete.
    pub fn message<M: Message + Default>(&mut self) -> Result<Option<M>, FrameError> {
        let Some(prefix) = self.pending.first_chunk::<PREFIX_BYTES>() else {
            return Ok(None);
        };
        let length = usize::try_from(u32::from_be_bytes(*prefix)).unwrap_or(usize::MAX);
        parse_length(length)?;
        if self.pending.len() < PREFIX_BYTES + length {
            self.pending.reserve(PREFIX_BYTES + length - self.pending.len());
            return Ok(None);
        }
        self.pending.advance(PREFIX_BYTES);
        Ok(Some(M::decode(self.pending.split_to(length).freeze())?))
    }

    /// Tells that the stream has ended.
    ///
    /// # Errors
    /// [`FrameError::Truncated`] if that leaves a frame incomplete.
    pub fn finish(&self) -> Result<(), FrameError> {
        match self.pending.len() {
            0 => Ok(()),
            found_bytes => Err(FrameError::Truncated { found_bytes }),
        }
    }
}

fn parse_length(found_bytes: usize) -> Result<u32, FrameError> {
    let too_large = FrameError::TooLarge { found_bytes, max_bytes: FRAME_BYTES_MAX };
    if FRAME_BYTES_MAX < found_bytes {
        return Err(too_large);
    }
    u32::try_from(found_bytes).map_err(|_| too_large)
}
