//! A token stream: documents one after another, with a cache on disk.
//!
//! A cache file is the stream as `u32`, little endian, behind the bytes of text it was made of as
//! `u64`. Its name holds the hash of the text and the tokenizer, so it cannot be stale.

#[cfg(test)]
mod tests;

use std::{fs, path::Path};

use tokenizers::Tokenizer;

use crate::{
    checkpoint::write_atomically,
    data::{
        batches::Batch,
        tokenizer::{TokenizerError, boundary},
    },
};

/// Documents that are encoded at one time: what is held of them beside their tokens is large.
const ENCODE_DOCUMENTS: usize = 64;

/// Documents as one stream of tokens, each after the boundary if the vocabulary has one.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Tokens {
    pub ids: Vec<u32>,
    /// Bytes of the text behind the stream.
    pub text_bytes: u64,
    /// The token that begins every document.
    pub boundary: Option<u32>,
}

impl Tokens {
    /// Encodes `documents`, or reads what an earlier call left in the folder `cache`.
    ///
    /// # Errors
    /// [`TokenizerError`] if a document cannot be encoded, as when it has a character that the
    /// vocabulary lacks. A cache that cannot be read or written is done without.
    pub fn encode(
        tokenizer: &Tokenizer,
        documents: &[String],
        cache: Option<&Path>,
    ) -> Result<Self, TokenizerError> {
        let boundary = boundary(tokenizer);
        let file = cache.map(|dir| dir.join(format!("tokens-{}.bin", name(tokenizer, documents))));
        if let Some(file) = &file
            && let Some((text_bytes, ids)) = fs::read(file).ok().as_deref().and_then(parse)
        {
            return Ok(Self { ids, text_bytes, boundary });
        }
        let mut ids = Vec::new();
        for documents in documents.chunks(ENCODE_DOCUMENTS) {
            let encodings = tokenizer
                .encode_batch_fast(documents.iter().map(|it| &**it).collect(), false)
                .map_err(|error| TokenizerError::Other(error.to_string()))?;
            for encoding in encodings {
                ids.extend(boundary);
                ids.extend(encoding.get_ids());
            }
        }
        // The last document ends like all others.
        ids.extend(boundary);
        let text_bytes = documents.iter().map(|it| it.len() as u64).sum();
        if let Some(file) = &file {
            let bytes = ids.iter().flat_map(|it| it.to_le_bytes());
            let bytes: Vec<u8> = u64::to_le_bytes(text_bytes).into_iter().chain(bytes).collect();
            let _ = write_atomically(file, &bytes);
        }
        Ok(Self { ids, text_bytes, boundary })
    }

    /// Rows of `time` tokens each from `starts`, packed; the last may be cut short by the end.
    pub fn batch(&self, starts: &[usize], time: usize) -> Batch {
        let capacity = starts.len() * time;
        let mut batch = Batch {
            inputs: Vec::with_capacity(capacity),
            targets: Vec::with_capacity(capacity),
            bounds: vec![0],
        };
        for &start in starts {
            let end = self.ids.len().min(start + time + 1);
            for (at, pair) in self.ids[start..end].windows(2).enumerate() {
                if at != 0 && Some(pair[0]) == self.boundary {
                    batch.bounds.push(batch.inputs.len() as i64);
                }
                batch.inputs.push(i64::from(pair[0]));
                batch.targets.push(i64::from(pair[1]));
            }
            batch.bounds.push(batch.inputs.len() as i64);
        }
        batch
    }

    /// The whole stream in order, in batches of up to `rows` rows of `time` tokens: every token but
    /// the first is a target once.
    pub fn in_order(&self, rows: usize, time: usize) -> impl Iterator<Item = Batch> + '_ {
        let starts: Vec<usize> = (0..self.ids.len().saturating_sub(1)).step_by(time).collect();
        let batches: Vec<Vec<usize>> = starts.chunks(rows).map(<[usize]>::to_vec).collect();
        batches.into_iter().map(move |starts| self.batch(&starts, time))
    }
}

/// Hash of everything that the stream depends on.
fn name(tokenizer: &Tokenizer, documents: &[String]) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(tokenizer.to_string(false).unwrap_or_default().as_bytes());
    for document in documents {
        hasher.update(&(document.len() as u64).to_le_bytes());
        hasher.update(document.as_bytes());
    }
    hasher.finalize().to_hex()[..16].to_owned()
}

fn parse(bytes: &[u8]) -> Option<(u64, Vec<u32>)> {
    let (text_bytes, ids) = bytes.split_first_chunk::<8>()?;
    let (ids, []) = ids.as_chunks::<4>() else { return None };
    Some((u64::from_le_bytes(*text_bytes), ids.iter().copied().map(u32::from_le_bytes).collect()))
}
