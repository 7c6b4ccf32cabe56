//! Text as the sessions of a server: every document from its first token on, as its tokenizer says
//! that texts begin.

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use rand::seq::SliceRandom;
use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};
use thiserror::Error;
use tokenizers::Tokenizer;

use crate::{
    data::{
        text::{self, TextError},
        tokenizer::{self, TokenizerError},
    },
    run::Documents,
};

/// Most tokens that are read for one purpose: with each, a few figures are kept.
pub const TOKENS_MAX: usize = 1 << 24;
/// Bytes of a piece of a text that is looked at here and there: some two thousand tokens.
const PIECE_BYTES: usize = 8 << 10;

/// A text, read.
#[derive(Debug)]
pub struct Text {
    path: PathBuf,
    documents: Vec<String>,
}

/// Tokens that are read one after the other, with no others before them.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Session {
    pub ids: Vec<u32>,
    /// Bytes of text behind all tokens but the first.
    pub text_bytes: u64,
}

/// Why a text makes no sessions.
#[derive(Debug, Error)]
pub enum SessionsError {
    #[error("--tokens is {found}; {min} to {TOKENS_MAX} are supported")]
    Tokens { found: usize, min: usize },
    #[error("{}: {found} tokens; at least {min} are needed", path.display())]
    TooShort { path: PathBuf, found: usize, min: usize },
    #[error("{}: {found} tokens; --tokens asks for {expected}", path.display())]
    FewerThanAsked { path: PathBuf, found: usize, expected: usize },
    #[error("the tokenizer makes token {found}, but the model's vocab is {vocab}")]
    Vocab { found: u32, vocab: u32 },
    #[error(transparent)]
    Text(#[from] TextError),
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
}

/// How much of a text is wanted.
#[derive(Clone, Copy, Debug)]
pub struct Amount {
    /// Tokens that somebody asked for.
    pub asked: Option<usize>,
    /// Most tokens, where nobody asked.
    pub default: usize,
    /// Fewest tokens that are of any use.
    pub min: usize,
}

/// Turns text into tokens of a model.
#[derive(Clone, Copy, Debug)]
pub struct Encoder<'a> {
    pub tokenizer: &'a Tokenizer,
    /// Tokens that the model has.
    pub vocab: u32,
}

impl Text {
    /// Reads a file, or a folder of `.txt` files.
    ///
    /// # Errors
    /// See [`TextError`].
    pub fn read(path: &Path, documents: Documents) -> Result<Self, SessionsError> {
        Ok(Self { path: path.to_owned(), documents: text::read(path, documents)? })
    }

    /// Name of the file or folder: figures and bundles say nothing of the machine that made them.
    pub fn name(&self) -> String {
        self.path.file_name().unwrap_or(self.path.as_os_str()).to_string_lossy().into_owned()
    }

    /// Every document as a session, from the first on until there are enough tokens.
    ///
    /// # Errors
    /// See [`SessionsError`].
    pub fn in_order(
        &self,
        encoder: Encoder<'_>,
        amount: Amount,
    ) -> Result<Vec<Session>, SessionsError> {
        let documents = self.documents.iter().map(String::as_str);
        self.sessions(encoder, amount, documents, Place::Whole)
    }

    /// Pieces from all over the text, in an order that is always the same, until there are enough
    /// tokens.
    ///
    /// # Errors
    /// See [`SessionsError`].
    pub fn here_and_there(
        &self,
        encoder: Encoder<'_>,
        amount: Amount,
    ) -> Result<Vec<Session>, SessionsError> {
        let mut pieces: Vec<&str> = self.documents.iter().flat_map(|it| pieces(it)).collect();
        pieces.shuffle(&mut ChaCha8Rng::seed_from_u64(0));
        self.sessions(encoder, amount, pieces.into_iter(), Place::Piece)
    }

    fn sessions<'t>(
        &self,
        encoder: Encoder<'_>,
        amount: Amount,
        texts: impl Iterator<Item = &'t str>,
        place: Place,
    ) -> Result<Vec<Session>, SessionsError> {
        let Amount { asked, default, min } = amount;
        let tokens = asked.unwrap_or(default);
        if !(min..=TOKENS_MAX).contains(&tokens) {
            return Err(SessionsError::Tokens { found: tokens, min });
        }
        let mut sessions = Vec::new();
        let mut found = 0;
        for text in texts {
            // A session of one token has nothing to predict.
            if tokens < found + 2 {
                break;
            }
            let session = encoder.session(text, place, tokens - found)?;
            found += session.ids.len();
            sessions.push(session);
        }
        let path = || self.path.clone();
        if found < min {
            return Err(SessionsError::TooShort { path: path(), found, min });
        }
        match asked {
            // The last token may be the one that would have begun another session.
            Some(expected) if found + 1 < expected => {
                Err(SessionsError::FewerThanAsked { path: path(), found, expected })
            }
            _ => Ok(sessions),
        }
    }
}

/// What a text is of a document.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Place {
    Whole,
    /// It may end in the middle.
    Piece,
}

impl Encoder<'_> {
    /// The first tokens of `text`, at most `tokens_max`.
    fn session(
        &self,
        text: &str,
        place: Place,
        tokens_max: usize,
    ) -> Result<Session, SessionsError> {
        // Our vocabularies begin and end documents themselves; others say what a text begins with.
        let boundary = tokenizer::boundary(self.tokenizer);
        let encoding = self
            .tokenizer
            .encode(text, boundary.is_none())
            .map_err(|error| TokenizerError::Other(error.to_string()))?;
        let ends = encoding.get_offsets().iter().map(|&(_, end)| end);
        let mut tokens: Vec<(u32, usize)> = boundary.map(|id| (id, 0)).into_iter().collect();
        tokens.extend(std::iter::zip(encoding.get_ids().iter().copied(), ends));
        if place == Place::Whole {
            tokens.extend(boundary.map(|id| (id, text.len())));
        }
        tokens.truncate(tokens_max);
        if let Some(&(found, _)) = tokens.iter().find(|(id, _)| self.vocab <= *id) {
            return Err(SessionsError::Vocab { found, vocab: self.vocab });
        }
        // What the tokenizer adds stands for no text, wherever it stands.
        let end = tokens.iter().map(|(_, end)| *end).max().unwrap_or_default();
        let start = tokens.first().map_or(0, |(_, end)| *end);
        let ids = tokens.into_iter().map(|(id, _)| id).collect();
        Ok(Session { ids, text_bytes: (end - start) as u64 })
    }
}

/// Cuts a document after lines, or where a line is too long, within it.
fn pieces(document: &str) -> Vec<&str> {
    let mut pieces = Vec::new();
    let mut rest = document;
    while PIECE_BYTES < rest.len() {
        let mut most = PIECE_BYTES;
        while !rest.is_char_boundary(most) {
            most -= 1;
        }
        let cut = rest[..most].rfind('\n').map_or(most, |line| line + 1);
        let (piece, after) = rest.split_at(cut);
        pieces.push(piece);
        rest = after;
    }
    pieces.extend((!rest.is_empty()).then_some(rest));
    pieces
}
