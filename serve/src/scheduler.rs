//! Continuous batching as a pure state machine.

#[cfg(test)]
mod tests;

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

/// Decides, step by step, which sequences advance and by how many tokens.
///
/// Sans-IO: no clock, no channel, no device. The worker owns it, pushes arrivals, runs the [`Plan`]
/// it hands out and reports what finished. The same calls always give the same plans; the simulation
/// tests rest on that.
///
/// # Invariants
/// - At most `lanes_max` sequences are seated.
/// - Every seated sequence that decodes and does not sit out is in every plan; prefill takes what is
///   left of the budget, oldest first.
/// - A sequence that sits out loses its seat only to one that can run.
#[derive(Debug)]
pub struct Scheduler {
    config: Config,
    /// Without a seat, in order of arrival.
    waiting: VecDeque<Sequence>,
    /// With a seat, in the order in which they got it.
    seated: Vec<Sequence>,
    /// Kept from step to step, so that none allocates.
    plan: Plan,
}

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

/// A generation in flight, as far as scheduling cares.
#[derive(Clone, Copy, Debug)]
pub struct Sequence {
    pub id: SequenceId,
    /// Prompt tokens not yet prefilled; at zero the sequence decodes.
    pub prompt_left: u32,
    /// A step ends where so many of them are left, so that somebody can look at the state there; 0 for nowhere.
    pub stop_at: u32,
}

/// Names a sequence as long as it is in flight.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct SequenceId(pub u32);

/// What to do in one step, in this order.
#[derive(Debug, Default)]
pub struct Plan {
    /// Sequences that give up their seats.
    pub unseat: Vec<SequenceId>,
    /// Sequences that get one.
    pub seat: Vec<SequenceId>,
    /// Sequences that advance; all of them are seated.
    pub work: Vec<Work>,
}

/// How far a sequence advances.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Work {
    pub id: SequenceId,
    pub phase: Phase,
}

/// What a sequence is fed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Phase {
    /// Its last token.
    Decode,
    /// This many of its prompt's tokens; after the last of them a token is drawn.
    Prefill { tokens: u32, is_last: bool },
}

/// Numbers of sequences, for metrics.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Counts {
    pub waiting: usize,
    pub seated: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self { lanes_max: 64, step_tokens_max: 256 }
    }
}

impl Scheduler {
    /// An idle scheduler with every seat free.
    ///
    /// # Panics
    /// If `step_tokens_max` does not exceed `lanes_max`; see [`Config`].
    pub fn new(config: Config) -> Self {
        assert!(config.lanes_max < config.step_tokens_max, "no room for prefill: {config:?}");
        let lanes_max = config.lanes_max as usize;
        Self {
            config,
            waiting: VecDeque::new(),
            seated: Vec::with_capacity(lanes_max),
            plan: Plan {
                unseat: Vec::with_capacity(lanes_max),
                seat: Vec::with_capacity(lanes_max),
                work: Vec::with_capacity(lanes_max),
            },
        }
    }

    /// Accepts a sequence; it is seated as soon as a seat falls free.
    pub fn push(&mut self, sequence: Sequence) {
        assert!(0 < sequence.prompt_left, "{:?} has no token to start from", sequence.id);
        self.waiting.push_back(sequence);
    }

    /// Seats whom it can, then plans one step. A plan without work means that nobody can run.
    ///
    /// `sits_out` tells who cannot take a token now, for instance because its reader is slow.
    /// The plan is what [`Scheduler::plan`] shows until the next step.
    pub fn step(&mut self, sits_out: impl Fn(SequenceId) -> bool) -> &Plan {
        self.plan.clear();
        self.change_seats(&sits_out);

        let mut budget = self.config.step_tokens_max;
        // Decodes are paid for first: no prompt, however long, holds up a live stream.
        for sequence in &self.seated {
            if sequence.prompt_left == 0 && !sits_out(sequence.id) {
                budget -= 1;
                self.plan.work.push(Work { id: sequence.id, phase: Phase::Decode });
            }
        }
        for sequence in &mut self.seated {
            let tokens = sequence.until_stop().min(budget);
            if 0 < tokens && !sits_out(sequence.id) {
                budget -= tokens;
                sequence.prompt_left -= tokens;
                let phase = Phase::Prefill { tokens, is_last: sequence.prompt_left == 0 };
                self.plan.work.push(Work { id: sequence.id, phase });
            }
        }
        &self.plan
    }

    /// The plan of the last step.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Has a seated sequence begin with `prompt_left` tokens: what the last plan says of it is void.
    pub fn restart(&mut self, id: SequenceId, prompt_left: u32) {
        assert!(0 < prompt_left, "{id:?} has no token to start from");
        let sequence = self.seated.iter_mut().find(|it| it.id == id);
        sequence.expect("it has just been seated").prompt_left = prompt_left;
    }

    /// Takes a sequence out, wherever it stands.
    pub fn finish(&mut self, id: SequenceId) {
        self.waiting.retain(|it| it.id != id);
        self.seated.retain(|it| it.id != id);
    }

    pub fn counts(&self) -> Counts {
        Counts { waiting: self.waiting.len(), seated: self.seated.len() }
    }

    /// Gives free seats to those who wait, then those of seated sequences that sit out.
    fn change_seats(&mut self, sits_out: &impl Fn(SequenceId) -> bool) {
        let lanes_max = self.config.lanes_max as usize;
        while let Some(next) = self.waiting.iter().position(|it| !sits_out(it.id)) {
            if self.seated.len() == lanes_max {
                let Some(idle) = self.seated.iter().position(|it| sits_out(it.id)) else { return };
                let unseated = self.seated.remove(idle);
                self.plan.unseat.push(unseated.id);
                self.waiting.push_back(unseated);
            }
            let sequence = self.waiting.remove(next).expect("`next` is a position in it");
            self.plan.seat.push(sequence.id);
            self.seated.push(sequence);
        }
    }
}

impl Sequence {
    /// Prompt tokens that may be in one step.
    fn until_stop(&self) -> u32 {
        if self.stop_at < self.prompt_left {
            self.prompt_left - self.stop_at
        } else {
            self.prompt_left
        }
    }
}

impl Plan {
    fn clear(&mut self) {
        self.unseat.clear();
        self.seat.clear();
        self.work.clear();
    }
}
