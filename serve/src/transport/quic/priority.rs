//! Which of several streams of a connection goes first when not all fit at once.

#[cfg(test)]
mod tests;

use aerie_proto::v1::{self, call_response, generate_response};

/// From last to first.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum Priority {
    /// Whole states, long lists: whoever asked for them has time.
    Bulk = -1,
    /// Awaited by a reader, one after another. What quinn gives a new stream, too.
    Tokens = 0,
    /// Errors, and how a generation ended: small, and what a client acts on.
    Last = 1,
}

/// A message that knows how urgent it is.
pub(super) trait Urgent {
    fn priority(&self) -> Priority;
}

impl Urgent for v1::GenerateResponse {
    fn priority(&self) -> Priority {
        use generate_response::Event;

        match self.event {
            Some(Event::Finished(_) | Event::Error(_)) => Priority::Last,
            _ => Priority::Tokens,
        }
    }
}

impl Urgent for v1::CallResponse {
    fn priority(&self) -> Priority {
        use call_response::Result as Answer;

        match self.result {
            Some(Answer::Error(_)) => Priority::Last,
            Some(Answer::ListSessions(_) | Answer::Chunk(_)) => Priority::Bulk,
            _ => Priority::Tokens,
        }
    }
}
