//! One stream of tokens out of several answers to the same question. Sans-IO.
//!
//! A server that is asked again repeats its answer: the same tokens at the same positions, the same text in sum. But
//! several tokens may come as one delta here and as two there, so what was passed on is counted in tokens and in
//! bytes, not in deltas.

#[cfg(test)]
mod tests;

use aerie_proto::v1;

use crate::Error;

/// Passes on each token and each byte of text once.
#[derive(Debug)]
pub(crate) struct Stitch {
    /// Where an answer begins that is asked for again.
    mark: u64,
    /// Tokens passed on since.
    ids: Vec<u32>,
    /// Bytes of text passed on since.
    text_bytes: usize,
    /// Bytes of text of the current answer.
    heard_bytes: usize,
    /// Whether the whole answer is repeated, or only what came since the last delta.
    repeats_all: bool,
}

impl Stitch {
    /// For answers that begin at `mark` each time.
    pub(crate) fn of_answer(mark: u64) -> Self {
        Self { mark, ids: Vec::new(), text_bytes: 0, heard_bytes: 0, repeats_all: true }
    }

    /// For answers that can be asked for from any position.
    pub(crate) fn of_reading(from: u64) -> Self {
        Self { repeats_all: false, ..Self::of_answer(from) }
    }

    /// Where to ask again from.
    pub(crate) fn mark(&self) -> u64 {
        self.mark
    }

    /// Another answer begins.
    pub(crate) fn again(&mut self) {
        self.heard_bytes = 0;
    }

    /// Leaves what is new of `delta`; nothing if all of it was passed on before.
    ///
    /// # Errors
    /// [`Error::Contradiction`] if it says something else than before, or leaves something out.
    pub(crate) fn push(&mut self, mut delta: v1::Delta) -> Result<Option<v1::Delta>, Error> {
        if !delta.ids.is_empty() {
            let next = self.mark + self.ids.len() as u64;
            let contradiction = || Error::Contradiction { position: delta.position };
            let at = delta.position.checked_sub(self.mark).ok_or_else(contradiction)?;
            let at = usize::try_from(at).map_err(|_| contradiction())?;
            let known = self.ids.get(at..).ok_or_else(contradiction)?;
            let n_known = known.len().min(delta.ids.len());
            if known[..n_known] != delta.ids[..n_known] {
                return Err(contradiction());
            }
            let new = delta.ids.split_off(n_known);
            if !self.repeats_all && n_known == 0 {
                // All before has been heard: if need be, the next answer begins here.
                (self.mark, self.text_bytes, self.heard_bytes) = (next, 0, 0);
                self.ids.clear();
            }
            self.ids.extend(&new);
            delta.position += n_known as u64;
            delta.ids = new;
        }
        let heard = self.heard_bytes + delta.text.len();
        let known_bytes = self.text_bytes.saturating_sub(self.heard_bytes).min(delta.text.len());
        self.heard_bytes = heard;
        self.text_bytes = self.text_bytes.max(heard);
        if !delta.text.is_char_boundary(known_bytes) {
            return Err(Error::Contradiction { position: delta.position });
        }
        delta.text.drain(..known_bytes);
        Ok((!delta.ids.is_empty() || !delta.text.is_empty()).then_some(delta))
    }
}
