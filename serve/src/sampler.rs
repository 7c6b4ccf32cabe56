//! Logits to tokens. The draw depends on the seed and the position alone, so a session that was
//! parked, moved or batched otherwise goes on with the very same tokens.

#[cfg(test)]
mod tests;

use std::cmp::Ordering;

/// How a token is drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Finite and at least 0; 0 is greedy.
    pub temperature: f32,
    /// Draw from the k most probable tokens only; 0 for all.
    pub top_k: u32,
    /// Draw from the smallest set of most probable tokens that reaches this share, in `(0, 1]`.
    pub top_p: f32,
}

/// Draws tokens; holds the scratch memory for one vocabulary.
#[derive(Debug)]
pub struct Sampler {
    /// Kept from draw to draw, so that none allocates.
    candidates: Vec<Candidate>,
}

/// Which draw of which stream.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Draw {
    pub seed: u64,
    /// Position in the session of the token to be drawn.
    pub position: u64,
}

#[derive(Clone, Copy, Debug)]
struct Candidate {
    token: u32,
    logit: f32,
    /// Proportional to the probability.
    weight: f64,
}

impl Sampling {
    pub const GREEDY: Self = Self { temperature: 0.0, top_k: 0, top_p: 1.0 };
}

impl Sampler {
    /// A sampler for `vocab` tokens.
    pub fn new(vocab: u32) -> Self {
        Self { candidates: Vec::with_capacity(vocab as usize) }
    }

    /// Draws a token; none if no logit is finite. Logits that are not a number are never drawn.
    ///
    /// # Numerics
    /// Weights and their sums are f64, added in descending order of the logits, so that the result
    /// does not depend on how the vocabulary is laid out; ties go to the lower token.
    pub fn draw(&mut self, sampling: Sampling, logits: &[f32], draw: Draw) -> Option<u32> {
        let (best, top) = argmax(logits)?;
        if sampling.temperature == 0.0 || sampling.top_k == 1 {
            return Some(best);
        }
        let scale = 1.0 / f64::from(sampling.temperature);
        self.candidates.clear();
        self.candidates.extend((0..).zip(logits).filter(|(_, logit)| logit.is_finite()).map(
            |(token, &logit)| Candidate {
                token,
                logit,
                weight: ((f64::from(logit) - f64::from(top)) * scale).exp(),
            },
        ));
        self.keep_top_k(sampling.top_k);
        let total = self.keep_top_p(sampling.top_p);

        let mut left = unit(draw) * total;
        for candidate in &self.candidates {
            left -= candidate.weight;
            if left < 0.0 {
                return Some(candidate.token);
            }
        }
        // Rounding may leave a sliver beyond the last one.
        self.candidates.last().map(|candidate| candidate.token)
    }

    fn keep_top_k(&mut self, top_k: u32) {
        let k = top_k as usize;
        if 0 < k && k < self.candidates.len() {
            self.candidates.select_nth_unstable_by(k - 1, descending);
            self.candidates.truncate(k);
        }
    }

    /// Cuts to the smallest set that reaches `top_p` of the weight; returns the weight left.
    fn keep_top_p(&mut self, top_p: f32) -> f64 {
        if 1.0 <= top_p {
            return self.candidates.iter().map(|candidate| candidate.weight).sum();
        }
        let total: f64 = self.candidates.iter().map(|candidate| candidate.weight).sum();
        let wanted = f64::from(top_p) * total;
        // Most often a handful of tokens suffices: sorted is a prefix, grown until it reaches.
        let mut sorted = 0;
        let mut reached = 0.0;
        loop {
            let end = (sorted * 4).max(64).min(self.candidates.len());
            let rest = &mut self.candidates[sorted..];
            if end - sorted < rest.len() {
                rest.select_nth_unstable_by(end - sorted, descending);
            }
            rest[..end - sorted].sort_unstable_by(descending);
            for i in sorted..end {
                reached += self.candidates[i].weight;
                if wanted <= reached {
                    self.candidates.truncate(i + 1);
                    return reached;
                }
            }
            sorted = end;
            if sorted == self.candidates.len() {
                return reached;
            }
        }
    }
}

/// The lowest of the tokens with the highest logit, and that logit.
fn argmax(logits: &[f32]) -> Option<(u32, f32)> {
    let mut best = None;
    for (token, &logit) in (0..).zip(logits) {
        if logit.is_finite() && best.is_none_or(|(_, top)| top < logit) {
            best = Some((token, logit));
        }
    }
    best
}

/// Higher logits first, then lower tokens.
fn descending(a: &Candidate, b: &Candidate) -> Ordering {
    b.logit.total_cmp(&a.logit).then(a.token.cmp(&b.token))
}

/// The number in `[0, 1)` that belongs to a draw.
fn unit(draw: Draw) -> f64 {
    let [a, b, ..] = philox(halves(draw.position, 0), [low(draw.seed), high(draw.seed)]);
    let bits = u64::from(a) << 32 | u64::from(b);
    // The 53 bits that a double holds exactly.
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

fn halves(a: u64, b: u64) -> [u32; 4] {
    [low(a), high(a), low(b), high(b)]
}

#[expect(clippy::cast_possible_truncation, reason = "the low half is what is asked for")]
fn low(x: u64) -> u32 {
    x as u32
}

fn high(x: u64) -> u32 {
    low(x >> 32)
}

/// Philox4x32-10: a counter to four random words, without a state to keep (Salmon et al. 2011,
/// doi:10.1145/2063384.2063405, §3.3).
fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let a = u64::from(counter[0]) * 0xD251_1F53;
        let b = u64::from(counter[2]) * 0xCD9E_8D57;
        counter = [high(b) ^ counter[1] ^ key[0], low(b), high(a) ^ counter[3] ^ key[1], low(a)];
        key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
    }
    counter
}
