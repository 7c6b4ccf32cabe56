//! The tokenizer of a model that was never trained: bytes, then words without a meaning, so that
//! every id a random model can draw decodes to text.

#[cfg(test)]
mod tests;

use std::collections::VecDeque;

use tokenizers::{
    AddedToken, Tokenizer,
    models::bpe::{BPE, Merges, Vocab},
    pre_tokenizers::byte_level::ByteLevel,
};

/// Token 0, which also stands for bytes that a small vocabulary has no room for.
const BOUNDARY: &str = "<|endoftext|>";
/// Bytes that come first: what plain English is made of, so that even the smallest vocabulary can
/// say something.
const FIRST: &[u8] = b" etaoinshrdlcumwfgypbvkxjqz.,;:!?'\"-\nETAOINSHRDLCUMWFGYPBVKXJQZ0123456789";
/// Letters that words are made of, the space first so that they may begin with one.
const LETTERS: usize = 27;

/// A byte-level tokenizer of `vocab` tokens, as a file.
pub(crate) fn bytes(vocab: u32) -> Vec<u8> {
    let rest = (0..=u8::MAX).filter(|byte| !FIRST.contains(byte));
    let order: Vec<u8> = FIRST.iter().copied().chain(rest).collect();
    let alphabet = order.iter().map(|&byte| visible(byte).to_string());

    let mut tokens = vec![BOUNDARY.to_owned()];
    tokens.extend(alphabet.take(vocab as usize - 1));
    let mut merges = Merges::new();
    // Breadth first: all words of two letters, then of three. Only letters follow the first place.
    let letters: Vec<String> = order[..LETTERS].iter().map(|&it| visible(it).to_string()).collect();
    let mut stems: VecDeque<String> = letters.iter().cloned().collect();
    while tokens.len() < vocab as usize {
        let stem = stems.pop_front().expect("each stem makes more stems");
        for letter in &letters[1..] {
            if tokens.len() == vocab as usize {
                break;
            }
            let word = format!("{stem}{letter}");
            merges.push((stem.clone(), letter.clone()));
            tokens.push(word.clone());
            stems.push_back(word);
        }
    }
    let vocab: Vocab = std::iter::zip(tokens, 0u32..).collect();
    let model = BPE::builder()
        .vocab_and_merges(vocab, merges)
        .unk_token(BOUNDARY.to_owned())
        .build()
        .expect("each merge joins two tokens into a third");
    let mut tokenizer = Tokenizer::new(model);
    tokenizer.with_pre_tokenizer(Some(ByteLevel::new(false, true, true)));
    tokenizer.with_decoder(Some(ByteLevel::new(false, true, true)));
    tokenizer.add_special_tokens(&[AddedToken::from(BOUNDARY, true)]);
    tokenizer.to_string(false).expect("every part has a JSON form").into_bytes()
}

/// The character that stands for `byte` in byte-level vocabularies: itself where it can be seen, else
/// one of the code points from 256 on, in order.
fn visible(byte: u8) -> char {
    let seen = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    if seen(byte) {
        return char::from(byte);
    }
    let unseen_before = (0..byte).filter(|&it| !seen(it)).count();
    u32::try_from(256 + unseen_before)
        .ok()
        .and_then(char::from_u32)
        .expect("fewer than 256 bytes come before")
}
