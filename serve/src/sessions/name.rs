//! Names of sessions, under which they can be forked.

use std::{fmt, str};

use thiserror::Error;

/// A name: letters, digits, `-`, `_` and `.`, at most [`Name::BYTES_MAX`].
#[derive(Clone, Copy, Eq, Hash, PartialEq)]
pub struct Name {
    bytes: [u8; Self::BYTES_MAX],
    len: u8,
}

/// Why a text is no [`Name`].
#[derive(Clone, Debug, Eq, Error, PartialEq)]
pub enum NameError {
    #[error("has {found_bytes} bytes; at least 1 and at most {} are allowed", Name::BYTES_MAX)]
    Length { found_bytes: usize },
    #[error("has {0:?}; letters, digits, `-`, `_` and `.` are allowed")]
    Character(char),
    #[error("looks like a session's id")]
    Id,
}

impl Name {
    pub const BYTES_MAX: usize = 64;

    /// Reads a name.
    ///
    /// # Errors
    /// See [`NameError`].
    pub fn parse(text: &str) -> Result<Self, NameError> {
        if text.is_empty() || Self::BYTES_MAX < text.len() {
            return Err(NameError::Length { found_bytes: text.len() });
        }
        let is_allowed = |c: &char| c.is_ascii_alphanumeric() || ['-', '_', '.'].contains(c);
        if let Some(c) = text.chars().find(|c| !is_allowed(c)) {
            return Err(NameError::Character(c));
        }
        if super::SessionId::parse(text).is_some() {
            return Err(NameError::Id);
        }
        let mut bytes = [0; Self::BYTES_MAX];
        bytes[..text.len()].copy_from_slice(text.as_bytes());
        let len = u8::try_from(text.len()).expect("at most BYTES_MAX");
        Ok(Self { bytes, len })
    }

    pub fn as_str(&self) -> &str {
        str::from_utf8(&self.bytes[..usize::from(self.len)]).expect("its characters are ASCII")
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_str().fmt(f)
    }
}
