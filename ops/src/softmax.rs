//! What sampling asks of a row of logits, in vectors: the largest, and the weights of a softmax.

#[cfg(test)]
mod tests;

use crate::{
    math::{PARTIALS, exp, fold},
    simd::{Loops, widest},
};

/// Weights that are added up together.
pub const BLOCK: usize = 1024;

/// The lowest of the places of the largest finite logit, and that logit; none if none is finite.
pub fn argmax(logits: &[f32]) -> Option<(usize, f32)> {
    let (mut largest, mut first) = (f32::NEG_INFINITY, 0);
    widest(Largest { logits, largest: &mut largest, first: &mut first });
    let block = &logits[first..];
    let place = block.iter().position(|&it| it == largest && it.is_finite())?;
    Some((first + place, largest))
}

/// Writes `exp((logit - top) · scale)` for each logit, and 0 where it is not finite; `sums` are those
/// of each [`BLOCK`].
///
/// # Numerics
/// Weights are f32, off by up to 2e-7 and the rounding of their exponent; below `exp(-87)` they are 0.
/// A block is added in f32, in an order of its own that no machine changes.
///
/// # Panics
/// If `weights` is not as long as `logits`, or `sums` is not as long as there are blocks.
pub fn weights(logits: &[f32], top: f32, scale: f32, weights: &mut [f32], sums: &mut [f64]) {
    assert_eq!(weights.len(), logits.len(), "as many weights as logits");
    assert_eq!(sums.len(), logits.len().div_ceil(BLOCK), "a sum of each block");
    widest(Weights { logits, top, scale, weights, sums });
}

struct Largest<'a> {
    logits: &'a [f32],
    largest: &'a mut f32,
    /// Where the block begins that holds it first.
    first: &'a mut usize,
}

impl Loops for Largest<'_> {
    #[inline(always)]
    fn run(self) {
        // Several chains, as a comparison waits for the one before. What is no number, and infinity,
        // is not below infinity.
        const CHAINS: usize = 4 * PARTIALS;
        let finite = |x: f32| if x < f32::INFINITY { x } else { f32::NEG_INFINITY };
        let larger = |a: f32, b: f32| if a < b { b } else { a };
        for (idx, block) in self.logits.chunks(BLOCK).enumerate() {
            let (whole, rest) = block.as_chunks::<CHAINS>();
            let mut partials = [f32::NEG_INFINITY; CHAINS];
            for logits in whole {
                for (partial, logit) in partials.iter_mut().zip(logits) {
                    *partial = larger(*partial, finite(*logit));
                }
            }
            // In halves: one after the other would be the slowest part, and keep the loop above from
            // being vectors.
            let mut half = CHAINS / 2;
            while 0 < half {
                for i in 0..half {
                    partials[i] = larger(partials[i], partials[i + half]);
                }
                half /= 2;
            }
            let largest = rest.iter().map(|it| finite(*it)).fold(partials[0], larger);
            if *self.largest < largest {
                (*self.largest, *self.first) = (largest, idx * BLOCK);
            }
        }
    }
}

struct Weights<'a> {
    logits: &'a [f32],
    top: f32,
    scale: f32,
    weights: &'a mut [f32],
    sums: &'a mut [f64],
}

impl Loops for Weights<'_> {
    #[inline(always)]
    fn run(self) {
        let Self { logits, top, scale, weights, sums } = self;
        let weight = |logit: f32| {
            let x = (logit - top) * scale;
            // False for what is no number, too.
            if logit.is_finite() && -87.0 < x { exp(x) } else { 0.0 }
        };
        let blocks = logits.chunks(BLOCK).zip(weights.chunks_mut(BLOCK));
        for ((logits, weights), sum) in blocks.zip(sums) {
            let mut partials = [0.0; PARTIALS];
            let (whole, rest) = logits.as_chunks::<PARTIALS>();
            let (whole_weights, rest_weights) = weights.as_chunks_mut::<PARTIALS>();
            for (logits, weights) in whole.iter().zip(whole_weights) {
                for ((weight_of, logit), partial) in
                    weights.iter_mut().zip(logits).zip(&mut partials)
                {
                    *weight_of = weight(*logit);
                    *partial += *weight_of;
                }
            }
            for ((weight_of, logit), partial) in
                rest_weights.iter_mut().zip(rest).zip(&mut partials)
            {
                *weight_of = weight(*logit);
                *partial += *weight_of;
            }
            *sum = fold(partials).into();
        }
    }
}
