//! A device whose logits are a hash of the token log in its lane, so that a mix-up of states, or a
//! token fed twice or never, changes every token after it.

use super::{Batch, Device, DeviceDims, DeviceError, Lane};
use crate::planted::{Bug, planted};

#[derive(Debug)]
pub(crate) struct FakeDevice {
    dims: DeviceDims,
    lanes: Vec<u64>,
    logits: Vec<f32>,
}

impl FakeDevice {
    pub(crate) const VOCAB: u32 = 59;

    pub(crate) fn new(config: crate::scheduler::Config) -> Self {
        let dims = DeviceDims {
            lanes: config.lanes_max,
            tokens_max: config.step_tokens_max,
            vocab: Self::VOCAB,
            state_bytes: 8,
        };
        Self { dims, lanes: vec![u64::MAX; config.lanes_max as usize], logits: Vec::new() }
    }

    /// The state after one more token.
    pub(crate) fn absorb(state: u64, token: u64) -> u64 {
        let mixed = (state ^ token.wrapping_add(1)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        mixed ^ (mixed >> 29)
    }

    /// The state that has seen `log`.
    pub(crate) fn absorb_all(log: &[u32]) -> u64 {
        log.iter().fold(0, |state, &token| Self::absorb(state, token.into()))
    }

    /// The greedy token of a state; never the one that ends a document.
    pub(crate) fn next(state: u64) -> u32 {
        1 + u32::try_from(state % u64::from(Self::VOCAB - 1)).unwrap()
    }
}

impl FakeDevice {
    /// The logits of a state: the greedy token is ahead, the others are not out of reach.
    pub(crate) fn logits(state: u64) -> Vec<f32> {
        let best = Self::next(state);
        (0..Self::VOCAB).map(|token| f32::from(u8::from(token == best)) * 4.0).collect()
    }
}

impl Device for FakeDevice {
    fn dims(&self) -> DeviceDims {
        self.dims
    }

    fn step(&mut self, batch: &Batch) -> Result<&[f32], DeviceError> {
        assert!(batch.tokens.len() <= self.dims.tokens_max as usize);
        self.logits.clear();
        let mut seen = std::collections::BTreeSet::new();
        for b in 0..batch.len() {
            assert!(seen.insert(batch.lanes[b]), "a lane is named twice");
            let lane = &mut self.lanes[usize::try_from(batch.lanes[b]).unwrap()];
            let half = if planted(Bug::ResetHalf) { *lane & 0xFFFF_FFFF } else { 0 };
            let mut state = if batch.fresh[b] { half } else { *lane };
            let range = batch.segments[b]..batch.segments[b + 1];
            for i in range {
                let token = batch.tokens[usize::try_from(i).unwrap()];
                state = Self::absorb(state, u64::try_from(token).unwrap());
            }
            *lane = state;
            self.logits.extend(Self::logits(state));
        }
        Ok(&self.logits)
    }

    fn read_part(&self, lane: Lane, at: usize, part: &mut [u8]) {
        assert_eq!(at, 0, "its states have one part");
        part.copy_from_slice(&self.lanes[lane.0 as usize].to_le_bytes());
    }

    fn write_part(&mut self, lane: Lane, at: usize, part: &[u8]) {
        assert_eq!(at, 0, "its states have one part");
        self.lanes[lane.0 as usize] = u64::from_le_bytes(part.try_into().unwrap());
    }
}
