//! Numbers for tests: the same for the same seed on every machine.

/// A stream of numbers (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number
/// generators", the finaliser known as SplitMix64).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// One of `0..end`; the bias is of no matter to tests.
    pub fn below(&mut self, end: usize) -> usize {
        assert!(0 < end, "nothing is below 0");
        usize::try_from(self.bits() >> 33).expect("31 bits") % end
    }

    /// Uniform on `[0, 1)`.
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 * 2f64.powi(-53)
    }

    /// About standard normal: the sum of twelve uniforms, less their mean.
    #[expect(clippy::cast_possible_truncation, reason = "rounded once, from f64")]
    pub fn normal(&mut self) -> f32 {
        ((0..12).map(|_| self.unit()).sum::<f64>() - 6.0) as f32
    }

    /// `len` normals of this standard deviation.
    pub fn normals(&mut self, len: usize, std: f32) -> Vec<f32> {
        (0..len).map(|_| self.normal() * std).collect()
    }
}
