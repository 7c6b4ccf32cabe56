//! Sessions: what a worker knows of each.
//!
//! A session *is* its log of tokens. The state of the model, the text that is not complete yet, what a stop string
//! holds back: all of it follows from the log, and what is kept of it is kept so as not to compute it again. So a
//! session has a log on a tape, some states of positions that it has passed, and a [`Record`] that says where it
//! stands. `store.rs` keeps all three, `residency.rs` has one state of a session in a lane of the device.
//!
//! A session that nobody uses *sleeps*: it is a row in a file and nothing in memory, until somebody asks for it.

mod name;
pub mod row;
#[cfg(test)]
mod tests;

use std::{collections::HashMap, fmt};

use aerie_state_cache::{Lease, Tape};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

pub use self::name::{Name, NameError};
use crate::{auth::TenantId, pipe::FinishReason, residency::Seat};

/// Name of a session: 122 random bits in the form of a UUID.
#[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct SessionId(pub u128);

/// The sessions of one worker that are awake: in use, in a lane, named, or with a row that is not up to date.
#[derive(Debug, Default)]
pub struct Sessions {
    map: HashMap<SessionId, Session>,
}

/// Limits of the sessions of one worker.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Sessions kept on each device, idle and parked ones included; beyond it the least recently
    /// used is forgotten.
    pub sessions_max: u32,
    /// Bytes of states kept on each device. Beyond it the least recently used give way; what they held is
    /// computed again from the tokens when it is needed.
    pub states_bytes_max: u64,
    /// Tokens of each session that are kept, the last ones: what it can be taken back over.
    pub log_tokens_max: u32,
    /// While a session advances, a state is kept each time it has come this far.
    pub state_interval_tokens: u32,
    /// How the windows of local attention lie in states that are kept.
    pub parked_windows: Windows,
    /// States kept of one session, closer together the later they are.
    pub states_max: u32,
    /// Whether a token is shown only when a loss of power could not take it back.
    pub durability: Durability,
    /// How long a generation that can be gone on with runs without a reader.
    pub detached_ms_max: u32,
    /// A session without a name that nobody has used for this long is forgotten; 0 for none.
    pub idle_s_max: u32,
    /// Sessions on each device that may have a name: they stay, whoever else has to give way. Never more than
    /// half of all.
    pub names_max: u32,
    /// Calls on each device that wait at once because their sessions are on their way to another; one more is refused.
    pub held_calls_max: u32,
    /// Bytes of states kept on each device of what several prompts begin with, out of `states_bytes_max` and at most
    /// half of it; 0 for none.
    pub prefix_bytes_max: u64,
    /// Tokens that a prompt must have in common with an earlier one for a state to be kept.
    pub prefix_tokens_min: u32,
    /// Tokens of earlier prompts and answers that are remembered on each device, to find what they have in common.
    pub prefix_tokens_max: u32,
}

/// What a client that was shown a token may count on.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Durability {
    /// It survives the server, however that ends. Should the machine lose power, what the operating system has not
    /// written yet is lost: by default up to half a minute.
    #[default]
    Fast,
    /// It survives a loss of power: all tokens of a step are flushed to the disk together before any is shown.
    Durable,
}

/// How the windows of local attention lie in states that are kept; the recurrence is f32 always.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Windows {
    /// In f32: what a session says does not depend on whether it was parked.
    #[default]
    Exact,
    /// A byte for each number and a scale for each key and value: nearly four times as many states in the same room. A
    /// session that was parked goes on from rounded numbers, and may say something else than one that was not.
    Q8,
}

/// What a worker knows of a session.
#[derive(Clone, Debug)]
pub struct Session {
    pub record: Record,
    /// Whether a generation is running.
    pub active: bool,
    /// Where in the device a state of it is, if one is there.
    pub seat: Option<Seat>,
    /// The right to write its row; held while a generation runs, keeping its state has failed, or it has a name. Who
    /// has it does not give way to others.
    pub lease: Option<Lease>,
    /// Where the log lies that its own begins with, if it has a lineage.
    pub origin: Option<Tape>,
    /// In the clock of the state cache; see [`crate::worker::Clock`].
    pub used_at: u64,
}

/// Where a session stands, and what is kept of its past.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Record {
    /// Whose it is.
    pub tenant: TenantId,
    /// Whether the session outlives its generation.
    pub keep: bool,
    pub name: Option<Name>,
    /// Tokens of the log, of prompts and drawn ones.
    pub position: u64,
    /// Grows each time that the session moves to another device: of two rows of a session, which a crash may leave, the
    /// later one is right.
    pub epoch: u32,
    /// Grows with each turn and each time the session goes back, so that what was left behind on its tape is told
    /// from what comes after.
    pub branch: u32,
    /// Of the draws; with the position it decides each.
    pub seed: u64,
    /// The last generation.
    pub turn: Option<Turn>,
    /// Request that last took the session back or made it, if it was given a name to be known by.
    pub moved_by: Option<u128>,
    /// Number of its tape; none before anything was written.
    pub tape: Option<u32>,
    /// Until there is a tape: whose log its own begins with.
    pub lineage: Option<Lineage>,
    /// States that are kept, by growing position.
    pub states: Vec<StateRef>,
}

/// A generation, as far as it must be remembered.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Turn {
    /// Of the request, if its client gave it an id to know it by.
    pub digest: Option<u128>,
    /// Position before its prompt.
    pub base: u64,
    /// Position after it, where the first token was drawn.
    pub drawn_from: u64,
    /// Bytes of text that were shown by its end; a stop string was not.
    pub text_bytes: u64,
    /// None while it runs, and after the server was stopped amid it.
    pub end: Option<FinishReason>,
}

/// A log that begins as another's did.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Lineage {
    pub of: SessionId,
    /// Tokens that both share.
    pub until: u64,
}

/// A state that is kept.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct StateRef {
    pub key: u64,
    /// Tokens that it has seen.
    pub computed: u64,
}

/// A token of a log, and whether it was drawn or came with a prompt.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Word(u32);

/// What identifies the model whose sessions a file holds: the fingerprint of its manifest.
pub type Fingerprint = [u8; 32];

impl SessionId {
    /// A new name.
    pub fn random() -> Self {
        Self(Uuid::new_v4().as_u128())
    }

    /// Reads a UUID in any of its usual forms.
    pub fn parse(text: &str) -> Option<Self> {
        Uuid::try_parse(text).ok().map(|uuid| Self(uuid.as_u128()))
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Uuid::from_u128(self.0).hyphenated().fmt(f)
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            sessions_max: 1024,
            states_bytes_max: 8 << 30,
            log_tokens_max: 1 << 16,
            state_interval_tokens: 64,
            parked_windows: Windows::Exact,
            states_max: 16,
            durability: Durability::Fast,
            detached_ms_max: 60_000,
            idle_s_max: 0,
            names_max: 128,
            held_calls_max: 256,
            prefix_bytes_max: 1 << 30,
            prefix_tokens_min: 32,
            prefix_tokens_max: 1 << 20,
        }
    }
}

impl Sessions {
    pub fn get(&self, id: SessionId) -> Option<&Session> {
        self.map.get(&id)
    }

    pub fn get_mut(&mut self, id: SessionId) -> Option<&mut Session> {
        self.map.get_mut(&id)
    }

    /// The session `id`, of which the caller knows that it is here.
    ///
    /// # Panics
    /// If it is not.
    pub fn expect(&mut self, id: SessionId) -> &mut Session {
        self.map.get_mut(&id).unwrap_or_else(|| panic!("session {id} is gone"))
    }

    pub fn insert(&mut self, id: SessionId, session: Session) {
        let old = self.map.insert(id, session);
        assert!(old.is_none(), "session {id} is here already");
    }

    pub fn remove(&mut self, id: SessionId) -> Option<Session> {
        self.map.remove(&id)
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = (SessionId, &mut Session)> {
        self.map.iter_mut().map(|(&id, session)| (id, session))
    }

    pub fn iter(&self) -> impl Iterator<Item = (SessionId, &Session)> {
        self.map.iter().map(|(&id, session)| (id, session))
    }

    pub fn len(&self) -> usize {
        self.map.len()
    }

    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }
}

impl Session {
    /// A session without a past.
    #[expect(clippy::cast_possible_truncation, reason = "half of a random number is one too")]
    pub fn new(id: SessionId, keep: bool, used_at: u64) -> Self {
        // Its name is random already.
        Self::parked(Record { keep, seed: id.0 as u64, ..Record::default() }, used_at)
    }

    /// A session that is in no lane.
    pub fn parked(record: Record, used_at: u64) -> Self {
        Self { record, active: false, seat: None, lease: None, origin: None, used_at }
    }

    /// Whether the state in its lane is later than all that are kept.
    pub fn needs_state(&self) -> bool {
        self.seat.is_some_and(|seat| self.record.kept() < seat.computed)
    }
}

impl Record {
    /// Tokens that the latest state kept has seen.
    pub fn kept(&self) -> u64 {
        self.states.last().map_or(0, |state| state.computed)
    }

    /// The latest state that has seen no more than `max` tokens.
    pub fn state_within(&self, max: u64) -> Option<StateRef> {
        self.states.iter().rev().find(|state| state.computed <= max).copied()
    }

    /// Adds a state, the latest of all; returns the one that has to make room for it among at most `max`: that
    /// with the least distance between its neighbours, relative to how long ago it was passed.
    pub fn push_state(&mut self, state: StateRef, max: usize) -> Option<StateRef> {
        debug_assert!(self.states.last().is_none_or(|last| last.computed < state.computed));
        self.states.push(state);
        if self.states.len() <= max {
            return None;
        }
        let head = state.computed + 1;
        let spread = |i: usize| {
            let before = i.checked_sub(1).map_or(0, |i| self.states[i].computed);
            let gap = self.states[i + 1].computed - before;
            gap as f64 / (head - self.states[i].computed) as f64
        };
        let dropped =
            (0..self.states.len() - 1).min_by(|&a, &b| spread(a).total_cmp(&spread(b)))?;
        Some(self.states.remove(dropped))
    }
}

impl Turn {
    /// Whether it was cut off, so that its request may go on with it.
    pub fn is_interrupted(&self) -> bool {
        matches!(self.end, None | Some(FinishReason::Interrupted | FinishReason::Shutdown))
    }
}

impl Word {
    const PROMPT: u32 = 1 << 31;

    /// # Panics
    /// If a vocabulary had 2^31 tokens.
    pub fn prompt(token: u32) -> Self {
        assert!(token < Self::PROMPT, "token {token} of no vocabulary");
        Self(token | Self::PROMPT)
    }

    /// # Panics
    /// As [`Word::prompt`].
    pub fn drawn(token: u32) -> Self {
        assert!(token < Self::PROMPT, "token {token} of no vocabulary");
        Self(token)
    }

    pub fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    pub fn bits(self) -> u32 {
        self.0
    }

    pub fn token(self) -> u32 {
        self.0 & !Self::PROMPT
    }

    pub fn is_prompt(self) -> bool {
        self.0 & Self::PROMPT != 0
    }
}
