//! Text to tokens and back, as plain state machines: no IO, no clock.
//!
//! Tokens become text one at a time, and neither a character cut between two tokens nor a possible
//! beginning of a stop string may leave early: see [`Utf8Tail`] and [`StopMatcher`].

mod bpe;
mod model;
#[cfg(test)]
mod tests;

use std::panic;

use thiserror::Error;
use tokenizers::{
    AddedToken, DecoderWrapper, Model as _, NormalizerWrapper, PostProcessorWrapper,
    PreTokenizerWrapper, TokenizerImpl,
};

use self::model::Model;

/// Content of the token that ends a document, the first that there is: ours, then Gemma's.
const ENDS_OF_TEXT: [&str; 2] = ["<|endoftext|>", "<eos>"];

/// Turns prompts into tokens.
#[derive(Debug)]
pub struct Tokenizer {
    inner: HuggingFace,
}

/// The library's tokenizer, around a [`Model`].
type HuggingFace = TokenizerImpl<
    Model,
    NormalizerWrapper,
    PreTokenizerWrapper,
    PostProcessorWrapper,
    DecoderWrapper,
>;

/// The bytes of every token.
#[derive(Debug)]
pub struct Vocabulary {
    bytes: Vec<u8>,
    /// Token `i` is `bytes[ends[i - 1]..ends[i]]`.
    ends: Vec<u32>,
    /// Bytes of the longest token.
    token_bytes_max: usize,
    end_of_text: Option<u32>,
}

/// Where a text stands in its session.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Place {
    /// Nothing comes before it.
    First,
    Later,
}

/// How the tokens of a vocabulary are spelt.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Spelling {
    /// As they are.
    Plain,
    /// A printable character for each byte.
    ByteLevel,
    /// U+2581 for a space, `<0x0A>` for a byte that is no character of the vocabulary.
    SentencePiece,
}

/// Why a tokenizer cannot be used.
#[derive(Debug, Error)]
pub enum TokenizerError {
    #[error("tokenizer: {0}")]
    Load(tokenizers::Error),
    #[error("tokenizer: not the JSON of one: the library that reads it gave up")]
    Panic,
    #[error("tokenizer has {found} tokens, but the model's vocab is {vocab}")]
    Vocab { found: u32, vocab: u32 },
    #[error("tokenizer: token {token:?} holds {symbol:?}, which stands for no byte")]
    Symbol { token: String, symbol: char },
}

impl Tokenizer {
    /// Reads a tokenizer from the bytes of `tokenizer.json`.
    ///
    /// # Errors
    /// [`TokenizerError::Load`] if it is not one.
    pub fn parse(json: &[u8]) -> Result<Self, TokenizerError> {
        let read = || {
            let text = std::str::from_utf8(json)?;
            Ok(serde_json::from_str::<HuggingFace>(text)?)
        };
        // The library panics where JSON ends or errs within a decoder.
        let read = panic::catch_unwind(read).map_err(|_| TokenizerError::Panic)?;
        let mut inner = read.map_err(TokenizerError::Load)?;
        // A prompt that quotes a control token means its characters, not its effect.
        inner.set_encode_special_tokens(true);
        Ok(Self { inner })
    }

    /// The tokens of `text`; none if the tokenizer knows no way to write it.
    ///
    /// Those of a text that begins a session begin as the tokenizer says that texts do; ours say
    /// nothing of it, Gemma's ask for `<bos>`.
    pub fn encode(&self, text: &str, place: Place) -> Option<Vec<u32>> {
        let encoding = self.inner.encode_fast(text, place == Place::First).ok()?;
        Some(encoding.get_ids().to_vec())
    }

    /// The bytes of the first `vocab` tokens.
    ///
    /// # Errors
    /// See [`TokenizerError`].
    pub fn vocabulary(&self, vocab: u32) -> Result<Vocabulary, TokenizerError> {
        let added = self.inner.get_added_tokens_decoder();
        let model = self.inner.get_model();
        let is_beside = |token: &&AddedToken| model.token_to_id(&token.content).is_none();
        let found = model.get_vocab_size() + added.values().filter(is_beside).count();
        let found = u32::try_from(found).unwrap_or(u32::MAX);
        if vocab < found {
            return Err(TokenizerError::Vocab { found, vocab });
        }
        let spelling = self.spelling();
        let mut bytes = Vec::new();
        let mut ends = Vec::with_capacity(vocab as usize);
        for id in 0..vocab {
            match (added.get(&id), self.inner.id_to_token(id)) {
                // Control tokens have no text, and neither do ids that the model has to spare.
                (Some(token), _) if token.special => {}
                (Some(token), _) if spelling == Spelling::SentencePiece => {
                    push_sentence_piece(&token.content, &mut bytes);
                }
                (Some(token), _) => bytes.extend_from_slice(token.content.as_bytes()),
                (None, Some(token)) => match spelling {
                    Spelling::ByteLevel => push_byte_level(&token, &mut bytes)?,
                    Spelling::SentencePiece => push_sentence_piece(&token, &mut bytes),
                    Spelling::Plain => bytes.extend_from_slice(token.as_bytes()),
                },
                (None, None) => {}
            }
            ends.push(u32::try_from(bytes.len()).expect("a vocabulary is far below 4 GiB"));
        }
        let end_of_text = ENDS_OF_TEXT.iter().find_map(|end| self.inner.token_to_id(end));
        Ok(Vocabulary::new(bytes, ends, end_of_text))
    }

    /// How the vocabulary spells bytes, of which its decoder tells.
    fn spelling(&self) -> Spelling {
        let of = |decoder: &DecoderWrapper| match decoder {
            DecoderWrapper::ByteLevel(_) => Some(Spelling::ByteLevel),
            DecoderWrapper::ByteFallback(_) => Some(Spelling::SentencePiece),
            _ => None,
        };
        let found = match self.inner.get_decoder() {
            Some(DecoderWrapper::Sequence(decoders)) => decoders.get_decoders().iter().find_map(of),
            Some(decoder) => of(decoder),
            None => None,
        };
        found.unwrap_or(Spelling::Plain)
    }
}

impl Vocabulary {
    fn new(bytes: Vec<u8>, ends: Vec<u32>, end_of_text: Option<u32>) -> Self {
        let mut start = 0;
        let mut token_bytes_max = 0;
        for &end in &ends {
            token_bytes_max = token_bytes_max.max((end - start) as usize);
            start = end;
        }
        Self { bytes, ends, token_bytes_max, end_of_text }
    }

    /// The bytes of a token; not necessarily whole characters.
    ///
    /// # Panics
    /// If the token is outside the vocabulary.
    pub fn bytes(&self, token: u32) -> &[u8] {
        let idx = token as usize;
        let start = if idx == 0 { 0 } else { self.ends[idx - 1] };
        &self.bytes[start as usize..self.ends[idx] as usize]
    }

    pub fn len(&self) -> u32 {
        u32::try_from(self.ends.len()).expect("made from a u32")
    }

    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    pub fn token_bytes_max(&self) -> usize {
        self.token_bytes_max
    }

    /// The token that ends a document.
    pub fn end_of_text(&self) -> Option<u32> {
        self.end_of_text
    }
}

/// Undoes SentencePiece's spelling of spaces and bytes.
fn push_sentence_piece(token: &str, bytes: &mut Vec<u8>) {
    let digits = token.strip_prefix("<0x").and_then(|it| it.strip_suffix('>'));
    match digits.filter(|it| it.len() == 2).and_then(|it| u8::from_str_radix(it, 16).ok()) {
        Some(byte) => bytes.push(byte),
        None => bytes.extend_from_slice(token.replace('\u{2581}', " ").as_bytes()),
    }
}

/// Undoes the byte-level alphabet, in which each of the 256 bytes is a printable character.
fn push_byte_level(token: &str, bytes: &mut Vec<u8>) -> Result<(), TokenizerError> {
    for symbol in token.chars() {
        let byte = byte_of(symbol)
            .ok_or_else(|| TokenizerError::Symbol { token: token.to_owned(), symbol })?;
        bytes.push(byte);
    }
    Ok(())
}

/// The byte for which `symbol` stands: printable bytes for themselves, the others, in order, for
/// the characters from U+0100 on.
fn byte_of(symbol: char) -> Option<u8> {
    let is_printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    match u32::from(symbol) {
        code @ 0..=0xFF => u8::try_from(code).ok().filter(|&byte| is_printable(byte)),
        code @ 0x100.. => {
            (0..=u8::MAX).filter(|&byte| !is_printable(byte)).nth((code - 0x100) as usize)
        }
    }
}

/// The beginning of a character whose other bytes are still to come.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Utf8Tail {
    bytes: [u8; Self::BYTES_MAX],
    len: u8,
}

impl Utf8Tail {
    /// A character has at most four bytes, so an incomplete one at most three.
    pub const BYTES_MAX: usize = 3;

    /// The tail that holds `bytes`; none if they do not begin a character.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let mut tail = Self::default();
        let mut text = String::new();
        tail.push(bytes, &mut text);
        (text.is_empty() && tail.as_bytes() == bytes).then_some(tail)
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }

    /// Appends `bytes`, behind the tail, to `out` as far as they make whole characters; keeps the
    /// rest. What can never become a character comes out as U+FFFD.
    pub fn push(&mut self, mut bytes: &[u8], out: &mut String) {
        // The tail is completed byte by byte: it is rare, and at most three bytes are missing.
        while 0 < self.len {
            let Some((&byte, rest)) = bytes.split_first() else { return };
            let held = usize::from(self.len);
            let mut joined = [0; Self::BYTES_MAX + 1];
            joined[..held].copy_from_slice(self.as_bytes());
            joined[held] = byte;
            match std::str::from_utf8(&joined[..=held]) {
                Ok(character) => {
                    out.push_str(character);
                    *self = Self::default();
                    bytes = rest;
                }
                Err(error) if error.error_len().is_none() => {
                    self.keep(&joined[..=held]);
                    bytes = rest;
                }
                // `byte` does not go on with what is held, but may begin something itself.
                Err(_) => {
                    out.push(char::REPLACEMENT_CHARACTER);
                    *self = Self::default();
                }
            }
        }
        for chunk in bytes.utf8_chunks() {
            out.push_str(chunk.valid());
            let invalid = chunk.invalid();
            match std::str::from_utf8(invalid) {
                Ok(_) => {}
                // Only the last chunk can be incomplete; inside, a byte follows that breaks it.
                Err(error) if error.error_len().is_none() && is_suffix(bytes, invalid) => {
                    self.keep(invalid);
                }
                Err(_) => out.push(char::REPLACEMENT_CHARACTER),
            }
        }
    }

    fn keep(&mut self, bytes: &[u8]) {
        // Two tails are equal if their bytes are, so no byte of an earlier one may stay.
        *self = Self::default();
        self.bytes[..bytes.len()].copy_from_slice(bytes);
        self.len = u8::try_from(bytes.len()).expect("at most three bytes are incomplete");
    }
}

/// Whether `part`, a part of `whole`, is its end.
fn is_suffix(whole: &[u8], part: &[u8]) -> bool {
    std::ptr::eq(whole.as_ptr_range().end, part.as_ptr_range().end)
}

/// Watches text for the first of several strings and holds back what may begin one.
#[derive(Clone, Debug, Default)]
pub struct StopMatcher {
    stops: Vec<String>,
    /// The longest end of the text so far that begins a stop string.
    held: String,
}

impl StopMatcher {
    /// A matcher at the beginning of the text.
    ///
    /// # Panics
    /// If one of `stops` is empty.
    pub fn new(stops: Vec<String>) -> Self {
        assert!(stops.iter().all(|stop| !stop.is_empty()), "an empty string is met everywhere");
        Self { stops, held: String::new() }
    }

    /// Makes room for what is held back and `bytes` of text beside it, so that no push allocates.
    pub fn reserve(&mut self, bytes: usize) {
        let held_max = self.stops.iter().map(String::len).max();
        self.held.reserve(held_max.map_or(0, |held| held + bytes));
    }

    /// Appends `text`; what is certain not to belong to a stop string is appended to `out`.
    ///
    /// Returns whether a stop string was met; if so, `out` got what comes before it and the rest is
    /// dropped.
    pub fn push(&mut self, text: &str, out: &mut String) -> bool {
        if self.stops.is_empty() {
            out.push_str(text);
            return false;
        }
        self.held.push_str(text);
        let met = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min();
        let free = met.unwrap_or_else(|| self.held.len() - self.held_len());
        out.push_str(&self.held[..free]);
        if met.is_some() {
            self.held.clear();
        } else {
            self.held.drain(..free);
        }
        met.is_some()
    }

    /// Gives up what is held, because the text ends here.
    pub fn flush(&mut self, out: &mut String) {
        out.push_str(&self.held);
        self.held.clear();
    }

    /// Bytes of the longest end of `held` that begins a stop string.
    fn held_len(&self) -> usize {
        let overlap = |stop: &String| {
            stop.char_indices()
                .map(|(len, _)| len)
                .rev()
                .find(|&len| self.held.ends_with(&stop[..len]))
        };
        self.stops.iter().filter_map(overlap).max().unwrap_or(0)
    }
}
