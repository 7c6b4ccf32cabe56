//! Logits lowered for tokens that were said lately.

#[cfg(test)]
mod tests;

/// How much a token is held back for having been among the last ones, prompts included.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Penalties {
    /// Divides positive logits and multiplies negative ones (Keskar et al. 2019, arXiv:1909.05858, §4.1); finite, above 0, and
    /// 1 for none.
    pub repetition: f32,
    /// Taken from a logit once; finite.
    pub presence: f32,
    /// Taken from a logit for each time; finite.
    pub frequency: f32,
    /// How many tokens are the last ones.
    pub window: u32,
}

/// Applies penalties; holds the scratch memory for one vocabulary.
#[derive(Debug, Default)]
pub(super) struct Penaliser {
    logits: Vec<f32>,
    /// How often each token was said; all 0 between two draws.
    counts: Vec<u32>,
    /// Which were.
    said: Vec<u32>,
}

impl Penalties {
    pub const NONE: Self = Self { repetition: 1.0, presence: 0.0, frequency: 0.0, window: 0 };

    /// Whether any logit may change.
    pub fn are_any(self) -> bool {
        let Self { repetition, presence, frequency, window } = self;
        0 < window && (repetition != 1.0 || presence != 0.0 || frequency != 0.0)
    }
}

impl Penaliser {
    pub(super) fn new(vocab: usize) -> Self {
        Self { logits: Vec::with_capacity(vocab), counts: vec![0; vocab], said: Vec::new() }
    }

    /// `logits` after `recent` tokens of the vocabulary were said.
    pub(super) fn apply(
        &mut self,
        penalties: Penalties,
        logits: &[f32],
        recent: impl Iterator<Item = u32>,
    ) -> &[f32] {
        self.logits.clear();
        self.logits.extend_from_slice(logits);
        self.said.clear();
        for token in recent {
            let count = &mut self.counts[token as usize];
            if *count == 0 {
                self.said.push(token);
            }
            *count += 1;
        }
        for &token in &self.said {
            let count = std::mem::take(&mut self.counts[token as usize]);
            let logit = &mut self.logits[token as usize];
            if *logit < 0.0 {
                *logit *= penalties.repetition;
            } else {
                *logit /= penalties.repetition;
            }
            *logit -= penalties.presence + penalties.frequency * count as f32;
        }
        &self.logits
    }
}
