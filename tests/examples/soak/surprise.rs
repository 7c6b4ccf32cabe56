//! What must not happen.

use aerie_client::{Code, Error, v1::FinishReason};
use thiserror::Error;

/// The server said or did what it promises not to.
#[derive(Debug, Error)]
pub(crate) enum Surprise {
    #[error("{what}: {source}")]
    Call { what: &'static str, source: Error },
    #[error("token {position} is {found}, but undisturbed it is {expected:?}")]
    Token { position: usize, expected: Option<u32>, found: u32 },
    #[error("text of the tokens {begin} to {end} is {found:?}, but undisturbed it is {expected:?}")]
    Text { begin: usize, end: usize, expected: String, found: String },
    #[error("{what} is {found}, but must be {expected}")]
    Number { what: &'static str, expected: usize, found: usize },
    #[error("it ended for {found:?} at position {position} of {end}")]
    Reason { found: FinishReason, position: usize, end: usize },
    #[error("{what} was not refused")]
    NotRefused { what: &'static str },
    #[error("nothing was heard of {what} for {seconds} s")]
    Silence { what: &'static str, seconds: u64 },
    #[error("the list has {id} at position {position}, which nobody made")]
    Unknown { id: String, position: u64 },
}

impl Surprise {
    /// For `map_err` on calls.
    pub(crate) fn call(what: &'static str) -> impl Fn(Error) -> Self {
        move |source| Self::Call { what, source }
    }

    /// Whether a number is as it must be.
    ///
    /// # Errors
    /// If it is not.
    pub(crate) fn unless_equal(
        what: &'static str,
        expected: usize,
        found: u64,
    ) -> Result<(), Self> {
        let found = usize::try_from(found).unwrap_or(usize::MAX);
        if expected == found { Ok(()) } else { Err(Self::Number { what, expected, found }) }
    }

    /// Whether the server says that there is no such session.
    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, Self::Call { source, .. } if source.code() == Code::NotFound)
    }
}
