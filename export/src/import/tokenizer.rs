//! The tokenizer that comes with a checkpoint, as the file that a bundle has.

#[cfg(test)]
mod tests;

use std::{
    fs,
    path::{Path, PathBuf},
};

use aerie_models::bundle::TOKENIZER_FILE;

use crate::{
    emit::{EmitError, parse_tokenizer},
    import::{ImportError, io_error, sentencepiece},
};

/// Name of SentencePiece's file beside a checkpoint.
const SENTENCEPIECE_FILE: &str = "tokenizer.model";
/// Gemma's take 35 MB as JSON.
const BYTES_MAX: u64 = 256 << 20;
/// Tokens at which a server stops, the first that there is.
const ENDS: [&str; 2] = ["<|endoftext|>", "<eos>"];

/// The bytes of `tokenizer.json` for a checkpoint at `checkpoint`, and what is odd about them.
///
/// A tokenizer may have fewer tokens than the model: tables are often filled up to a round number,
/// and ids that no tokenizer makes are never asked for. It may not have more.
///
/// # Errors
/// If there is none, it cannot be read, or the model lacks one of its tokens.
pub(super) fn read(
    checkpoint: &Path,
    given: Option<&Path>,
    vocab: u32,
) -> Result<(Vec<u8>, Option<String>), ImportError> {
    let path = match given {
        Some(path) => path.to_owned(),
        None => beside(checkpoint)?,
    };
    let found_bytes = fs::metadata(&path).map_err(io_error(&path))?.len();
    if BYTES_MAX < found_bytes {
        return Err(ImportError::TooLarge { path, found_bytes, max_bytes: BYTES_MAX });
    }
    let mut bytes = fs::read(&path).map_err(io_error(&path))?;
    if bytes.trim_ascii_start().first() != Some(&b'{') {
        bytes = match sentencepiece::to_json(&bytes) {
            Ok(bytes) => bytes,
            Err(source) => return Err(ImportError::SentencePiece { path, source }),
        };
    }
    let tokenizer = parse_tokenizer(&bytes, &path)?;
    // Ids may have gaps, so the last one counts.
    let last = tokenizer.get_vocab(true).into_values().max();
    if let Some(last) = last.filter(|last| vocab <= *last) {
        let found = last as usize + 1;
        return Err(EmitError::TokenizerVocab { path, found, expected: vocab }.into());
    }
    let has_end = ENDS.iter().any(|end| tokenizer.token_to_id(end).is_some());
    let warning = format!("{}: no {}: only limits end a text", path.display(), ENDS.join(" or "));
    Ok((bytes, (!has_end).then_some(warning)))
}

fn beside(checkpoint: &Path) -> Result<PathBuf, ImportError> {
    let candidates = [TOKENIZER_FILE, SENTENCEPIECE_FILE].map(|it| checkpoint.with_file_name(it));
    candidates.into_iter().find(|it| it.exists()).ok_or_else(|| {
        let path = checkpoint.parent().unwrap_or(checkpoint).to_owned();
        ImportError::NoTokenizer { path }
    })
}
