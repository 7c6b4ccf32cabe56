//! Logits to tokens. The draw depends on the seed and the position alone, so a session that was
//! parked, moved or batched otherwise goes on with the very same tokens.

mod penalties;
#[cfg(test)]
mod tests;

use std::{cmp::Ordering, mem};

use aerie_ops::softmax::{self, BLOCK, argmax};

use self::penalties::Penaliser;
pub use self::penalties::Penalties;

/// How a token is drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Finite and at least 0; 0 is greedy.
    pub temperature: f32,
    /// Draw from the k most probable tokens only; 0 for all.
    pub top_k: u32,
    /// Draw from the smallest set of most probable tokens that reaches this share, in `(0, 1]`.
    pub top_p: f32,
    /// Applied first.
    pub penalties: Penalties,
}

/// Draws tokens; holds the scratch memory for one vocabulary.
#[derive(Debug)]
pub struct Sampler {
    /// Proportional to the probabilities, one for each token. As all scratch memory, kept from draw to
    /// draw, so that none allocates.
    weights: Vec<f32>,
    /// Sums of each [`BLOCK`] of weights.
    sums: Vec<f64>,
    candidates: Vec<Candidate>,
    penaliser: Penaliser,
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
    pub const GREEDY: Self =
        Self { temperature: 0.0, top_k: 0, top_p: 1.0, penalties: Penalties::NONE };
}

impl Sampler {
    /// A sampler for `vocab` tokens.
    pub fn new(vocab: u32) -> Self {
        let vocab = vocab as usize;
        Self {
            weights: Vec::with_capacity(vocab),
            sums: Vec::with_capacity(vocab.div_ceil(BLOCK)),
            candidates: Vec::with_capacity(vocab),
            penaliser: Penaliser::new(vocab),
        }
    }

    /// As [`Sampler::draw`], after penalties for what was said: `recent` gives the last tokens of the log, at most
    /// `window` of them.
    pub fn draw_after(
        &mut self,
        sampling: Sampling,
        logits: &[f32],
        draw: Draw,
        recent: impl Iterator<Item = u32>,
    ) -> Option<u32> {
        if !sampling.penalties.are_any() {
            return self.draw(sampling, logits, draw);
        }
        let mut penaliser = mem::take(&mut self.penaliser);
        let token = self.draw(sampling, penaliser.apply(sampling.penalties, logits, recent), draw);
        self.penaliser = penaliser;
        token
    }

    /// Draws a token; none if no logit is finite. Logits that are not a number are never drawn.
    ///
    /// # Numerics
    /// Weights are f32; their sums are f64, in the order of the tokens, or in descending order of the
    /// logits where not all are kept; then ties go to the lower token.
    pub fn draw(&mut self, sampling: Sampling, logits: &[f32], draw: Draw) -> Option<u32> {
        let (best, top) = argmax(logits)?;
        let scale = 1.0 / sampling.temperature;
        if !scale.is_finite() || sampling.top_k == 1 {
            return Some(token(best));
        }
        self.weights.resize(logits.len(), 0.0);
        self.sums.resize(logits.len().div_ceil(BLOCK), 0.0);
        softmax::weights(logits, top, scale, &mut self.weights, &mut self.sums);
        let total = self.sums.iter().sum();
        if sampling.top_k == 0 && 1.0 <= sampling.top_p {
            return Some(self.among_all(unit(draw) * total).unwrap_or_else(|| token(best)));
        }

        // What is below an even share of what may be cut off is never needed to reach the rest.
        let negligible = match sampling.top_k {
            0 => (1.0 - f64::from(sampling.top_p)) * total / logits.len() as f64,
            _ => 0.0,
        };
        self.candidates.clear();
        self.candidates.extend(
            (0..)
                .zip(logits.iter().zip(&self.weights))
                .map(|(token, (&logit, &weight))| Candidate { token, logit, weight: weight.into() })
                .filter(|it| it.logit.is_finite() && negligible <= it.weight),
        );
        let total = match sampling.top_k {
            0 => total,
            top_k => self.keep_top_k(top_k),
        };
        let total = self.keep_top_p(sampling.top_p, total);

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

    /// The token at which the weights before it and its own exceed `left`; none if rounding has left a
    /// sliver beyond the last.
    fn among_all(&self, mut left: f64) -> Option<u32> {
        let within = |sum: &f64| {
            left -= sum;
            left < 0.0
        };
        let block = self.sums.iter().position(within)?;
        left += self.sums[block];
        let first = block * BLOCK;
        let weights = &self.weights[first..self.weights.len().min(first + BLOCK)];
        let mut last = None;
        for (at, &weight) in weights.iter().enumerate().filter(|(_, weight)| 0.0 < **weight) {
            last = Some(token(first + at));
            left -= f64::from(weight);
            if left < 0.0 {
                break;
            }
        }
        last
    }

    /// Returns the weight left.
    fn keep_top_k(&mut self, top_k: u32) -> f64 {
        let k = top_k as usize;
        if k < self.candidates.len() {
            self.candidates.select_nth_unstable_by(k - 1, descending);
            self.candidates.truncate(k);
        }
        self.candidates.iter().map(|candidate| candidate.weight).sum()
    }

    /// Cuts to the smallest set that reaches `top_p` of `total`; returns the weight left.
    fn keep_top_p(&mut self, top_p: f32, total: f64) -> f64 {
        if 1.0 <= top_p {
            return total;
        }
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

fn token(place: usize) -> u32 {
    u32::try_from(place).expect("a vocabulary is counted by u32")
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
