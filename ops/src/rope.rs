//! Rotary position embedding with angles that stay true in sessions without end.

#[cfg(test)]
mod tests;

/// Frequencies of the rotated part of a head.
#[derive(Clone, Debug)]
pub struct Rope {
    /// `10000^(-2j / rotary_dims)` for pair `j`.
    frequencies: Vec<f64>,
}

const BASE: f64 = 10_000.0;

impl Rope {
    /// # Panics
    /// If `rotary_dims` is odd: dimensions turn in pairs.
    pub fn new(rotary_dims: usize) -> Self {
        assert!(rotary_dims.is_multiple_of(2), "rotary_dims is even");
        let exponent = |pair: usize| -2.0 * pair as f64 / rotary_dims as f64;
        let frequencies = (0..rotary_dims / 2).map(|pair| BASE.powf(exponent(pair))).collect();
        Self { frequencies }
    }

    /// Pairs of dimensions that turn.
    pub fn pairs(&self) -> usize {
        self.frequencies.len()
    }

    /// Writes the cosine and sine of each pair's angle at `position`.
    ///
    /// Su et al. 2021, arXiv:2104.09864, eq. 15.
    ///
    /// # Numerics
    /// The angle is formed and reduced in f64: its error stays below 1e-6 up to position 2³². In f32
    /// it would be 0.05 at a million tokens.
    ///
    /// # Panics
    /// If the slices do not hold one number for each pair.
    #[expect(clippy::cast_possible_truncation, reason = "rounded once, from f64")]
    pub fn turn(&self, position: u64, cos: &mut [f32], sin: &mut [f32]) {
        assert_eq!(cos.len(), self.pairs(), "one cosine for each pair");
        assert_eq!(sin.len(), self.pairs(), "one sine for each pair");
        for ((frequency, cos), sin) in self.frequencies.iter().zip(cos).zip(sin) {
            let (s, c) = (position as f64 * frequency).sin_cos();
            (*cos, *sin) = (c as f32, s as f32);
        }
    }
}

/// Turns the leading dimensions of `head`, pairing `j` with `j + cos.len()`.
#[inline(always)]
pub(crate) fn rotate(head: &mut [f32], cos: &[f32], sin: &[f32]) {
    let (low, high) = head.split_at_mut(cos.len());
    for (((low, high), &cos), &sin) in low.iter_mut().zip(high).zip(cos).zip(sin) {
        let (x, y) = (*low, *high);
        *low = x.mul_add(cos, -(y * sin));
        *high = y.mul_add(cos, x * sin);
    }
}
