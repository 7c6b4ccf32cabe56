//! Continuous batching as a pure state machine.

use serde::{Deserialize, Serialize};

/// Limits of a [`Scheduler`].
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Sequences that run at once, and so the number of states a device holds.
    pub lanes_max: u32,
    /// Tokens in one step, prefill and decode together. Must exceed `lanes_max`, so that a
    /// newcomer's prompt moves even while every other lane decodes.
    pub step_tokens_max: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self { lanes_max: 64, step_tokens_max: 256 }
    }
}
