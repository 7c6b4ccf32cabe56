//! Nonlinearities, and the gains by which they keep the variance of a standard normal.

#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

/// A nonlinearity.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Activation {
    Relu,
    Silu,
    /// `x · Φ(x)`.
    Gelu,
    /// `x/2 · (1 + tanh(√(2/π) · (x + 0.044715·x³)))`.
    GeluTanh,
}

/// Where the gain of an activation comes from.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Gains {
    /// `1/√(Var g(x))` for a standard normal `x` (Brock, De and Smith 2021, arXiv:2101.08692, §3).
    Exact,
    /// What Google DeepMind's code has: drawn by chance, up to 0.09 % away. Checkpoints need them.
    Deepmind,
    /// No gain: for networks that normalise.
    One,
}

impl Activation {
    pub const ALL: [Self; 4] = [Self::Relu, Self::Silu, Self::Gelu, Self::GeluTanh];

    /// The factor that gives `g(x)` the variance 1 where `x` is a standard normal.
    pub fn gain(self, gains: Gains) -> f64 {
        match (gains, self) {
            (Gains::One, _) => 1.0,
            // √(2 / (1 - 1/π))
            (Gains::Exact, Self::Relu) => 1.712_858_550_449_663,
            (Gains::Exact, Self::Silu) => 1.787_187_222_100,
            (Gains::Exact, Self::Gelu) => 1.700_926_243_363,
            (Gains::Exact, Self::GeluTanh) => 1.700_916_561_695,
            (Gains::Deepmind, Self::Relu) => 1.713_958_859_443_664_6,
            (Gains::Deepmind, Self::Silu) => 1.788_129_329_681_396_5,
            (Gains::Deepmind, Self::Gelu | Self::GeluTanh) => 1.701_504_349_708_557_1,
        }
    }
}
