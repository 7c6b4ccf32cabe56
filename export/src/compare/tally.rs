//! What is counted of a bundle's answers, token by token. Knows logits, not where they come from.

#[cfg(test)]
mod tests;

use serde::Serialize;

/// What the reference says of the next token.
#[derive(Debug, Default)]
pub(super) struct Expected {
    probabilities: Vec<f64>,
    logarithms: Vec<f64>,
    choice: usize,
}

/// What a bundle has said so far.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// Sum of the cross entropy, in nats.
    nats: f64,
    /// KL divergence from the reference after each token, in nats.
    divergences: Vec<f64>,
    /// Tokens after which another one is the likeliest.
    other_choices: u64,
}

/// What is made of a [`Tally`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Figures {
    /// Cross entropy of a token.
    pub(super) nats_per_token: f64,
    pub(super) perplexity: f64,
    pub(super) bits_per_byte: f64,
    /// Mean KL divergence from the reference.
    pub(super) kl_nats_mean: f64,
    /// What 99 of 100 tokens stay below.
    pub(super) kl_nats_p99: f64,
    /// Share of tokens after which another one is the likeliest.
    pub(super) other_choice: f64,
}

impl Expected {
    /// Takes the logits of the next token; memory is kept.
    pub(super) fn set(&mut self, logits: &[f32]) {
        let (sum, choice) = logarithm_of_sum(logits);
        self.logarithms.clear();
        self.logarithms.extend(logits.iter().map(|&it| f64::from(it) - sum));
        self.probabilities.clear();
        self.probabilities.extend(self.logarithms.iter().map(|it| it.exp()));
        self.choice = choice;
    }
}

impl Tally {
    /// Adds what `logits` say where the next token is `target`.
    ///
    /// # Errors
    /// How many tokens were added before, if what they say is not finite.
    pub(super) fn add(
        &mut self,
        expected: &Expected,
        logits: &[f32],
        target: usize,
    ) -> Result<(), usize> {
        let (sum, choice) = logarithm_of_sum(logits);
        let pairs = std::iter::zip(&expected.probabilities, &expected.logarithms).zip(logits);
        let divergence: f64 =
            pairs.map(|((p, log_p), &logit)| p * (log_p - (f64::from(logit) - sum))).sum();
        let nats = sum - f64::from(logits[target]);
        if !(divergence.is_finite() && nats.is_finite()) {
            return Err(self.divergences.len());
        }
        self.nats += nats;
        // It is not negative; of rounding, it may be by a hair.
        self.divergences.push(divergence.max(0.0));
        self.other_choices += u64::from(choice != expected.choice);
        Ok(())
    }

    /// The figures of at least one token, where `text_bytes` are behind them all.
    pub(super) fn figures(mut self, text_bytes: u64) -> Figures {
        let count = self.divergences.len();
        let mean = |sum: f64| sum / count as f64;
        self.divergences.sort_unstable_by(f64::total_cmp);
        let nats_per_token = mean(self.nats);
        Figures {
            nats_per_token,
            perplexity: nats_per_token.exp(),
            bits_per_byte: self.nats / std::f64::consts::LN_2 / text_bytes as f64,
            kl_nats_mean: mean(self.divergences.iter().sum()),
            kl_nats_p99: self.divergences[(count * 99).div_ceil(100) - 1],
            other_choice: mean(self.other_choices as f64),
        }
    }
}

/// `ln Σ exp(logit)`, and the first of the largest logits.
fn logarithm_of_sum(logits: &[f32]) -> (f64, usize) {
    let mut choice = 0;
    for (idx, logit) in logits.iter().enumerate() {
        if logits[choice] < *logit {
            choice = idx;
        }
    }
    let max = f64::from(logits[choice]);
    let sum: f64 = logits.iter().map(|&it| (f64::from(it) - max).exp()).sum();
    (max + sum.ln(), choice)
}
