//! What a worker tells the client of one generation: a bounded pipe of small values.
//!
//! The worker never waits for a reader: it looks at [`Pipe::has_room`] before it sends.

#[cfg(test)]
mod tests;

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::{admission::Reject, prefixes::Miss, sessions::SessionId};

/// The worker's end.
#[derive(Debug)]
pub struct Pipe {
    sender: mpsc::Sender<PipeEvent>,
    cancelled: Arc<AtomicBool>,
}

/// The client's end.
#[derive(Debug)]
pub struct PipeReader {
    pub receiver: mpsc::Receiver<PipeEvent>,
    cancelled: Arc<AtomicBool>,
}

/// Limits of a pipe.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Events that wait for a slow reader before its sequence sits out; most tokens are one event.
    pub events_max: u32,
}

/// One report of a worker; fixed size, nothing behind a pointer but at the beginning and in failures.
#[derive(Clone, Debug, PartialEq)]
pub enum PipeEvent {
    Accepted(Box<Accepted>),
    Attached(Attached),
    /// A token, with the text that it completed.
    Token {
        token: u32,
        position: u64,
        text: Piece,
    },
    /// More of the text that the last token completed.
    Text(Piece),
    Finished(Finished),
    Failed(Reject),
}

/// The generation has begun.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Accepted {
    pub session: SessionId,
    /// Tokens of the session before the prompt.
    pub position: u64,
    /// Tokens whose state was there already.
    pub resumed_tokens: u64,
    pub prompt_tokens: u32,
    pub seed: u64,
    /// Tokens before the prompt whose state has to be computed again, and why.
    pub recomputed_tokens: u64,
    pub recompute_reason: Option<RecomputeReason>,
    /// Tokens of a new session's prompt whose state was there, as another began alike, and why there was none.
    pub prefix_tokens: u64,
    pub prefix_miss: Option<Miss>,
    /// Whether the same request was accepted before.
    pub repeated: bool,
}

/// Why tokens of a session are computed again.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum RecomputeReason {
    /// The server was stopped amid a generation, or a device failed.
    Interrupted,
    /// The session was taken back, or forked, to a position between two states.
    Rewound,
    /// A state was damaged, or gave way to others.
    StateLost,
}

/// The reader is shown what it asked for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Attached {
    pub session: SessionId,
    /// Tokens of the session now.
    pub position: u64,
    /// Whether a generation is running.
    pub running: bool,
}

/// The generation has ended, and the session stands at `position`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Finished {
    pub reason: FinishReason,
    pub position: u64,
    pub prompt_tokens: u32,
    pub generated_tokens: u32,
    /// Microseconds from arrival to the first lane; to the end if there was none. In 4 bytes, so that an event stays small.
    pub queue_us: u32,
    /// From arrival to the first token; to the end if there was none.
    pub time_to_first_token: Duration,
    pub duration: Duration,
}

/// Why a generation ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum FinishReason {
    Length,
    Stop,
    EndOfText,
    Cancelled,
    Shutdown,
    /// The server was stopped amid the generation, or a device failed.
    Interrupted,
    /// The prompt has been read, and nothing was to be drawn.
    Prompt,
}

impl FinishReason {
    pub const ALL: [Self; 7] = [
        Self::Length,
        Self::Stop,
        Self::EndOfText,
        Self::Cancelled,
        Self::Shutdown,
        Self::Interrupted,
        Self::Prompt,
    ];
}

/// A few bytes of text, in place.
#[derive(Clone, Copy, Eq, PartialEq)]
pub struct Piece {
    bytes: [u8; Self::BYTES_MAX],
    len: u8,
}

/// Makes a pipe that holds `events_max` events.
pub fn pipe(events_max: usize) -> (Pipe, PipeReader) {
    let (sender, receiver) = mpsc::channel(events_max);
    let cancelled = Arc::new(AtomicBool::new(false));
    (Pipe { sender, cancelled: Arc::clone(&cancelled) }, PipeReader { receiver, cancelled })
}

impl Default for Config {
    fn default() -> Self {
        Self { events_max: 64 }
    }
}

impl Pipe {
    /// Whether `events` more can be sent. Only the worker sends, so room does not go away.
    pub fn has_room(&self, events: usize) -> bool {
        events <= self.sender.capacity()
    }

    /// Whether the reader has gone.
    pub fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    /// Whether the reader asked to end the generation.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    /// Sends an event; one to a reader that has gone is dropped.
    ///
    /// # Panics
    /// If there is no room: whoever sends has made sure before.
    pub fn send(&self, event: PipeEvent) {
        match self.sender.try_send(event) {
            Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => {}
            Err(mpsc::error::TrySendError::Full(event)) => panic!("no room for {event:?}"),
        }
    }

    /// Sends `token` with the `text` that it completed, in as many events as that takes.
    pub fn send_token(&self, token: u32, position: u64, text: &str) {
        let mut pieces = Piece::cut(text);
        let first = pieces.next().unwrap_or_default();
        self.send(PipeEvent::Token { token, position, text: first });
        pieces.for_each(|piece| self.send(PipeEvent::Text(piece)));
    }
}

impl PipeReader {
    /// Asks the worker to end the generation after the current step.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }
}

impl Piece {
    /// Chosen so that an event fills one cache line.
    pub const BYTES_MAX: usize = 39;

    /// How many pieces `bytes` of text can take: a cut may come three bytes early, so as not to
    /// divide a character.
    pub const fn count_max(bytes: usize) -> usize {
        bytes.div_ceil(Self::BYTES_MAX - 3)
    }

    /// Cuts `text` between characters.
    pub fn cut(mut text: &str) -> impl Iterator<Item = Self> {
        std::iter::from_fn(move || {
            if text.is_empty() {
                return None;
            }
            let (head, rest) = text.split_at(text.floor_char_boundary(Self::BYTES_MAX));
            text = rest;
            let mut piece = Self::default();
            piece.bytes[..head.len()].copy_from_slice(head.as_bytes());
            piece.len = u8::try_from(head.len()).expect("at most BYTES_MAX");
            Some(piece)
        })
    }

    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.bytes[..usize::from(self.len)]).expect("cut between characters")
    }
}

impl Default for Piece {
    fn default() -> Self {
        Self { bytes: [0; Self::BYTES_MAX], len: 0 }
    }
}

impl fmt::Debug for Piece {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_str().fmt(f)
    }
}
