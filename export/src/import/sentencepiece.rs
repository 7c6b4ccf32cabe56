//! SentencePiece's model files of Gemma's kind, as Hugging Face's `tokenizer.json`: byte-pair
//! encoding over characters with bytes for those that it lacks (Kudo and Richardson 2018,
//! arXiv:1808.06226), spaces written as U+2581 and nothing else normalised. Other kinds are refused.

#[cfg(test)]
mod tests;

use std::{cmp::Reverse, collections::HashMap};

use prost::Message;
use thiserror::Error;
use tokenizers::{
    AddedToken, DecoderWrapper, Tokenizer,
    decoders::{byte_fallback::ByteFallback, fuse::Fuse, sequence::Sequence},
    models::bpe::{BPE, Merges, Vocab},
    normalizers::replace::Replace,
    processors::template::TemplateProcessing,
};

/// Why a model file is refused.
#[derive(Debug, Error)]
pub enum SentencePieceError {
    #[error("not a SentencePiece model: {0}")]
    Decode(#[from] prost::DecodeError),
    #[error("SentencePiece model: {field} is {found}; {expected} is expected, as Gemma has it")]
    Kind { field: &'static str, found: String, expected: &'static str },
    #[error("SentencePiece model: piece {id} ({piece:?}) {problem}")]
    Piece { id: usize, piece: String, problem: &'static str },
    #[error("SentencePiece model: {0}")]
    Build(String),
}

/// What SentencePiece writes for a space.
const SPACE: &str = "\u{2581}";
/// Longest piece: every way to cut one in two is looked at.
const PIECE_BYTES_MAX: usize = 1024;

/// The model in `bytes` as `tokenizer.json`.
///
/// # Errors
/// See [`SentencePieceError`].
pub(super) fn to_json(bytes: &[u8]) -> Result<Vec<u8>, SentencePieceError> {
    let model = Model::decode(bytes)?;
    model.check_kind()?;
    let vocab = model.vocab()?;
    let mut builder = BPE::builder()
        .vocab_and_merges(vocab.clone(), model.merges(&vocab))
        .fuse_unk(true)
        .byte_fallback(model.trainer().byte_fallback());
    if let Some(unknown) = model.pieces.iter().find(|it| it.kind() == PieceKind::Unknown) {
        builder = builder.unk_token(unknown.piece().to_owned());
    }
    let mut tokenizer = Tokenizer::new(builder.build().map_err(build)?);
    tokenizer.with_normalizer(Some(Replace::new(" ", SPACE).map_err(build)?));
    let space = Replace::new(SPACE, " ").map_err(build)?;
    tokenizer.with_decoder(Some(Sequence::new(vec![
        DecoderWrapper::Replace(space),
        DecoderWrapper::ByteFallback(ByteFallback::new()),
        DecoderWrapper::Fuse(Fuse::new()),
    ])));
    if let Some(begin) = model.begin() {
        let template = TemplateProcessing::builder()
            .try_single(format!("{begin} $A"))
            .and_then(|it| it.try_pair(format!("{begin} $A {begin} $B")))
            .map_err(SentencePieceError::Build)?
            .special_tokens(vec![(begin.to_owned(), vocab[begin])])
            .build()
            .map_err(|it| SentencePieceError::Build(it.to_string()))?;
        tokenizer.with_post_processor(Some(template));
    }
    let is_control = |it: &&Piece| matches!(it.kind(), PieceKind::Control | PieceKind::Unknown);
    let control: Vec<_> = model.pieces.iter().filter(is_control).map(|it| it.added(true)).collect();
    tokenizer.add_special_tokens(&control);
    // These are cut out of the text before anything is merged, the longest first.
    let is_defined = |it: &&Piece| it.kind() == PieceKind::UserDefined;
    let defined: Vec<_> =
        model.pieces.iter().filter(is_defined).map(|it| it.added(false)).collect();
    tokenizer.add_tokens(&defined);
    tokenizer.to_string(false).map(String::into_bytes).map_err(build)
}

/// A model file, with the field numbers of its definition; what is not read is skipped.
#[derive(Clone, PartialEq, Message)]
struct Model {
    #[prost(message, repeated, tag = "1")]
    pieces: Vec<Piece>,
    #[prost(message, optional, tag = "2")]
    trainer: Option<Trainer>,
    #[prost(message, optional, tag = "3")]
    normalizer: Option<Normalizer>,
}

#[derive(Clone, PartialEq, Message)]
struct Piece {
    #[prost(string, optional, tag = "1")]
    piece: Option<String>,
    #[prost(float, optional, tag = "2")]
    score: Option<f32>,
    #[prost(enumeration = "PieceKind", optional, tag = "3", default = "Normal")]
    kind: Option<i32>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, prost::Enumeration)]
#[repr(i32)]
enum PieceKind {
    Undefined = 0,
    Normal = 1,
    Unknown = 2,
    Control = 3,
    UserDefined = 4,
    Unused = 5,
    Byte = 6,
}

#[derive(Clone, PartialEq, Message)]
struct Trainer {
    /// 1 for unigrams, 2 for byte-pair encoding.
    #[prost(int32, optional, tag = "3", default = "1")]
    model_type: Option<i32>,
    #[prost(bool, optional, tag = "24")]
    treat_whitespace_as_suffix: Option<bool>,
    #[prost(bool, optional, tag = "35")]
    byte_fallback: Option<bool>,
    #[prost(int32, optional, tag = "41", default = "1")]
    bos_id: Option<i32>,
}

#[derive(Clone, PartialEq, Message)]
struct Normalizer {
    #[prost(bytes = "vec", optional, tag = "2")]
    precompiled_charsmap: Option<Vec<u8>>,
    #[prost(bool, optional, tag = "3", default = "true")]
    add_dummy_prefix: Option<bool>,
    #[prost(bool, optional, tag = "4", default = "true")]
    remove_extra_whitespaces: Option<bool>,
    #[prost(bool, optional, tag = "5", default = "true")]
    escape_whitespaces: Option<bool>,
}

impl Model {
    fn trainer(&self) -> Trainer {
        self.trainer.clone().unwrap_or_default()
    }

    /// Refuses what Gemma's tokenizers do not do, since nothing here does it either.
    fn check_kind(&self) -> Result<(), SentencePieceError> {
        let kind = |field, found: String, expected| {
            Err(SentencePieceError::Kind { field, found, expected })
        };
        let (trainer, normalizer) = (self.trainer(), self.normalizer.clone().unwrap_or_default());
        if trainer.model_type() != 2 {
            return kind("model_type", trainer.model_type().to_string(), "2 (byte pairs)");
        }
        let charsmap_bytes = normalizer.precompiled_charsmap().len();
        if charsmap_bytes != 0 {
            let found = format!("a table of {charsmap_bytes} bytes");
            return kind("precompiled_charsmap", found, "none");
        }
        for (field, found, expected) in [
            ("treat_whitespace_as_suffix", trainer.treat_whitespace_as_suffix(), "false"),
            ("add_dummy_prefix", normalizer.add_dummy_prefix(), "false"),
            ("remove_extra_whitespaces", normalizer.remove_extra_whitespaces(), "false"),
            ("escape_whitespaces", normalizer.escape_whitespaces(), "true"),
        ] {
            if found.to_string() != expected {
                return kind(field, found.to_string(), expected);
            }
        }
        Ok(())
    }

    /// Every piece with its id, which is its place.
    fn vocab(&self) -> Result<Vocab, SentencePieceError> {
        let mut vocab = Vocab::default();
        for (id, piece) in self.pieces.iter().enumerate() {
            let refuse = |problem| {
                let piece = piece.piece().to_owned();
                Err(SentencePieceError::Piece { id, piece, problem })
            };
            match piece.kind() {
                _ if piece.piece().is_empty() => return refuse("is empty"),
                _ if PIECE_BYTES_MAX < piece.piece().len() => return refuse("is too long"),
                _ if !piece.score().is_finite() => return refuse("has a score that is no number"),
                PieceKind::Unused | PieceKind::Undefined => {
                    return refuse("is of a kind that Gemma's vocabularies do not have");
                }
                PieceKind::Byte if !is_byte(piece.piece()) => {
                    return refuse("stands for a byte, but is not spelt <0xNN>");
                }
                _ => {}
            }
            let number = u32::try_from(id).expect("the file has fewer bytes");
            if vocab.insert(piece.piece().to_owned(), number).is_some() {
                return refuse("is there twice");
            }
        }
        Ok(vocab)
    }

    /// Pairs to merge, the best first: every way to make a piece of two others, in the order of the
    /// pieces' scores.
    fn merges(&self, vocab: &Vocab) -> Merges {
        let normal: HashMap<&str, f32> = self
            .pieces
            .iter()
            .filter(|it| it.kind() == PieceKind::Normal)
            .map(|it| (it.piece(), it.score()))
            .collect();
        let mut ranked = Vec::new();
        for (&piece, &score) in &normal {
            for (cut, _) in piece.char_indices().skip(1) {
                let (left, right) = piece.split_at(cut);
                if normal.contains_key(left) && normal.contains_key(right) {
                    ranked.push((score, vocab[piece], cut, left, right));
                }
            }
        }
        // Pieces of one score keep their order; of one piece, the longest left part goes first.
        ranked.sort_unstable_by(|a, b| {
            b.0.total_cmp(&a.0).then_with(|| (a.1, Reverse(a.2)).cmp(&(b.1, Reverse(b.2))))
        });
        let owned = |left: &str, right: &str| (left.to_owned(), right.to_owned());
        ranked.into_iter().map(|(.., left, right)| owned(left, right)).collect()
    }

    /// The token that every text begins with, if there is one.
    fn begin(&self) -> Option<&str> {
        let id = usize::try_from(self.trainer().bos_id()).ok()?;
        self.pieces.get(id).filter(|it| it.kind() == PieceKind::Control).map(Piece::piece)
    }
}

impl Piece {
    fn added(&self, is_special: bool) -> AddedToken {
        // Defined pieces are looked for where spaces are U+2581 already.
        AddedToken::from(self.piece().to_owned(), is_special).normalized(!is_special)
    }
}

/// Whether `piece` is `<0x00>` to `<0xFF>`.
fn is_byte(piece: &str) -> bool {
    let digits = piece.strip_prefix("<0x").and_then(|it| it.strip_suffix('>'));
    digits.is_some_and(|it| it.len() == 2 && u8::from_str_radix(it, 16).is_ok())
}

fn build(error: tokenizers::Error) -> SentencePieceError {
    SentencePieceError::Build(error.to_string())
}
