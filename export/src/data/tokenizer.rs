//! Tokenizers in Hugging Face's format: trained, loaded, asked.

#[cfg(test)]
mod tests;

use std::{
    collections::BTreeSet,
    fs, panic,
    path::{Path, PathBuf},
};

use thiserror::Error;
use tokenizers::{
    AddedToken, Tokenizer, TokenizerBuilder,
    decoders::fuse::Fuse,
    models::{
        bpe::{BPE, BpeTrainer},
        wordlevel::WordLevel,
    },
    pre_tokenizers::{
        byte_level::ByteLevel,
        split::{Split, SplitPattern},
    },
    tokenizer::SplitDelimiterBehavior,
};

use crate::{
    checkpoint::{self, TOKENIZER_FILE},
    data::text::{self, BOUNDARY},
    run::Documents,
};

/// Least vocabulary of a byte-level tokenizer: every byte and the boundary.
const BYTE_VOCAB_MIN: u32 = 257;
/// Largest vocabulary that is trained.
const VOCAB_MAX: u32 = 1 << 18;

/// Trains a tokenizer on text.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  aerie-export tokenizer --text tales.txt --vocab 4096 --out tokenizer.json
  aerie-export tokenizer --text shakespeare.txt --characters --out characters.json")]
pub struct Args {
    /// File, or folder of .txt files
    #[arg(long, value_name = "PATH")]
    text: PathBuf,
    /// Tokens of the vocabulary, bytes and the end-of-text token among them
    #[arg(long, value_name = "N", default_value_t = 4096)]
    vocab: u32,
    /// One token for each character of the text, and no other
    #[arg(long, conflicts_with = "vocab")]
    characters: bool,
    /// Where to write it
    #[arg(long, value_name = "FILE", default_value = TOKENIZER_FILE)]
    out: PathBuf,
}

/// Runs the command.
///
/// # Errors
/// If the text cannot be read, does not yield such a vocabulary, or the file cannot be written.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let documents = text::read(&args.text, Documents::Files)?;
    let tokenizer = if args.characters {
        train_characters(&documents)?
    } else {
        train_bytes(&documents, args.vocab)?
    };
    let json = tokenizer.to_string(true).map_err(anyhow::Error::from_boxed)?;
    checkpoint::write_atomically(&args.out, json.as_bytes())?;
    let vocab = tokenizer.get_vocab_size(true);
    let bytes: usize = documents.iter().map(String::len).sum();
    eprintln!("{}: {vocab} tokens from {bytes} bytes of text", args.out.display());
    Ok(())
}

/// Why there is no tokenizer, or none that fits.
#[derive(Debug, Error)]
pub enum TokenizerError {
    #[error("vocab is {found}; a byte-level tokenizer has {BYTE_VOCAB_MIN} to {VOCAB_MAX} tokens")]
    Vocab { found: u32 },
    #[error("the text yields {found} tokens, but vocab is {expected}; ask for fewer")]
    TooLittleText { found: usize, expected: u32 },
    #[error("{}: {message}", path.display())]
    Load { path: PathBuf, message: String },
    #[error("tokenizer: {0}")]
    Other(String),
}

/// Reads a tokenizer.
///
/// # Errors
/// [`TokenizerError::Load`] if the file cannot be read or is not a tokenizer.
pub fn load(path: &Path) -> Result<Tokenizer, TokenizerError> {
    let error = |message| TokenizerError::Load { path: path.to_owned(), message };
    parse(&fs::read(path).map_err(|it| error(it.to_string()))?).map_err(error)
}

/// Parses a tokenizer's file.
///
/// # Errors
/// In words, if it is not one.
pub(crate) fn parse(bytes: &[u8]) -> Result<Tokenizer, String> {
    // The library panics where JSON ends or errs within a decoder.
    match panic::catch_unwind(|| Tokenizer::from_bytes(bytes)) {
        Ok(parsed) => parsed.map_err(|it| it.to_string()),
        Err(_) => Err("not the JSON of a tokenizer: the library that reads it gave up".to_owned()),
    }
}

/// Token that separates documents; none in a vocabulary of characters.
pub fn boundary(tokenizer: &Tokenizer) -> Option<u32> {
    tokenizer.token_to_id(BOUNDARY)
}

/// Byte-pair encoding over bytes (Sennrich et al. 2016, arXiv:1508.07909), with words as GPT-2 cuts
/// them. Token 0 is `<|endoftext|>`.
///
/// # Errors
/// If `vocab` is out of range, or the text has too little in it.
pub fn train_bytes(documents: &[String], vocab: u32) -> Result<Tokenizer, TokenizerError> {
    if !(BYTE_VOCAB_MIN..=VOCAB_MAX).contains(&vocab) {
        return Err(TokenizerError::Vocab { found: vocab });
    }
    let mut tokenizer = TokenizerBuilder::<BPE, _, _, _, _>::default()
        .with_model(BPE::default())
        .with_normalizer(None::<tokenizers::NormalizerWrapper>)
        .with_pre_tokenizer(Some(words()))
        .with_post_processor(None::<tokenizers::PostProcessorWrapper>)
        .with_decoder(Some(words()))
        .build()
        .map_err(other)?;
    let mut trainer = BpeTrainer::builder()
        .vocab_size(vocab as usize)
        .min_frequency(2)
        .show_progress(false)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .special_tokens(vec![AddedToken::from(BOUNDARY, true)])
        .build();
    tokenizer.train(&mut trainer, documents.iter()).map_err(other)?;
    let found = tokenizer.get_vocab_size(true);
    if found != vocab as usize {
        return Err(TokenizerError::TooLittleText { found, expected: vocab });
    }
    Ok(tokenizer.into())
}

/// One token for each character that occurs, in the order of code points.
///
/// # Errors
/// [`TokenizerError::Other`] if the library refuses.
pub fn train_characters(documents: &[String]) -> Result<Tokenizer, TokenizerError> {
    let characters: BTreeSet<char> = documents.iter().flat_map(|it| it.chars()).collect();
    let vocab = std::iter::zip(characters.iter().map(char::to_string), 0u32..).collect();
    let model = WordLevel::builder().vocab(vocab).build().map_err(other)?;
    let mut tokenizer = Tokenizer::new(model);
    let any = SplitPattern::Regex("(?s:.)".to_owned());
    let split = Split::new(any, SplitDelimiterBehavior::Isolated, false).map_err(other)?;
    tokenizer.with_pre_tokenizer(Some(split));
    tokenizer.with_decoder(Some(Fuse::new()));
    Ok(tokenizer)
}

/// Cuts words without a space before the first, so that decoding gives the text back to the byte.
fn words() -> ByteLevel {
    ByteLevel::new(false, true, true)
}

/// The library's errors have no type of their own.
fn other(error: Box<dyn std::error::Error + Send + Sync>) -> TokenizerError {
    TokenizerError::Other(error.to_string())
}
