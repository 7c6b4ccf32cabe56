//! What a core does at most, for benchmarks to hold kernels against.

use crate::isa::{Isa, LANES, Lanes, best};

/// Chains of [`multiply_adds`]: four times what hides the latency of one.
const CHAINS: usize = 16;
/// Multiply-adds of a round of [`multiply_adds`].
pub const ROUND: usize = CHAINS * LANES;

/// Does nothing but `rounds` of independent f32 multiply-adds in registers; returns what they lead to.
pub fn multiply_adds(rounds: usize) -> f32 {
    best(MultiplyAdds { rounds })
}

struct MultiplyAdds {
    rounds: usize,
}

impl Lanes for MultiplyAdds {
    type Output = f32;

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> f32 {
        let (factor, term) = (isa.floats(0.999), isa.floats(0.001));
        let mut chains = [isa.floats(0.5); CHAINS];
        // As many as the registers hold, one group after the other.
        let together = if I::WIDE { CHAINS } else { CHAINS / 4 };
        for chains in chains.chunks_mut(together) {
            for _ in 0..self.rounds {
                for chain in chains.iter_mut() {
                    *chain = isa.mul_add(*chain, factor, term);
                }
            }
        }
        chains.into_iter().flat_map(|it| isa.store(it)).sum()
    }
}
