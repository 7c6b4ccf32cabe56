//! Chance that can be had again: every purpose has its own, so that none follows from another.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

/// The `number`th source of chance for `purpose` in what is seeded by `seed`.
pub(crate) fn source(seed: u64, purpose: &str, number: u64) -> ChaCha8Rng {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes()).update(purpose.as_bytes());
    let mut rng = ChaCha8Rng::from_seed(*hasher.finalize().as_bytes());
    rng.set_stream(number);
    rng
}
