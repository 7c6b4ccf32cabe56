//! What prompts have in common is read once: states of their beginnings, found and kept.

use aerie_state_cache::Storage;
use tracing::warn;

use super::Worker;
use crate::{
    device::Device,
    prefixes::{Found, Miss},
    sessions::{SessionId, Word},
};

impl<S: Storage, D: Device> Worker<S, D> {
    /// Has a session that is at its beginning go on with the state of a beginning of `prompt`, if there is one.
    pub(super) fn find_prefix(&mut self, id: SessionId, prompt: &[u32]) -> Found {
        let store = &mut self.parts.store;
        let session = self.sessions.expect(id);
        let tenant = session.record.tenant;
        let found = self.prefixes.ask(tenant, prompt, |key| store.has_state(key));
        if let Some(state) = found.state {
            store.share_state(state.key);
            session.record.states.push(state);
        }
        self.drop_prefixes();
        let metrics = &self.parts.metrics;
        if self.prefixes.is_on() {
            metrics.prefix_lookups(found.miss).inc();
            metrics.prefix_tokens.inc_by(found.state.map_or(0, |it| it.computed));
        }
        found
    }

    /// Keeps the state of a session that has read as much of its prompt as another had in common with it.
    pub(super) fn keep_prefix(&mut self, id: SessionId, computed: u64) {
        self.keep(id);
        let session = self.sessions.expect(id);
        let tenant = session.record.tenant;
        let kept = session.record.states.iter().find(|state| state.computed == computed);
        let Some(key) = kept.map(|state| state.key) else { return };
        if let Some(tokens) = self.said(id, computed) {
            self.parts.store.share_state(key);
            self.prefixes.keep(tenant, &tokens, key);
            self.drop_prefixes();
        }
    }

    /// Remembers what was said in a session so far, if that was its first turn: whoever keeps no session sends it again.
    pub(super) fn note_said(&mut self, id: SessionId) {
        let record = &self.sessions.expect(id).record;
        let (tenant, position) = (record.tenant, record.position);
        let is_first = record.turn.is_some_and(|turn| turn.base == 0);
        if self.prefixes.is_on()
            && is_first
            && let Some(tokens) = self.said(id, position)
        {
            self.prefixes.note(tenant, &tokens);
            self.drop_prefixes();
        }
    }

    /// The first tokens of a session, as far as its log still has them.
    fn said(&self, id: SessionId, until: u64) -> Option<Vec<u32>> {
        let mut log = Vec::new();
        match self.parts.store.log(&self.sessions, id, 0..until, &mut log) {
            Ok(()) => Some(log.into_iter().map(Word::token).collect()),
            Err(error) => {
                warn!(session = %id, %error, "what was said cannot be remembered");
                None
            }
        }
    }

    fn drop_prefixes(&mut self) {
        for key in self.prefixes.take_dropped() {
            self.parts.store.drop_state(key);
        }
    }
}

impl Miss {
    pub const ALL: [Self; 4] = [Self::TooShort, Self::Unseen, Self::SeenOnce, Self::Evicted];

    /// The label of metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::TooShort => "too_short",
            Self::Unseen => "unseen",
            Self::SeenOnce => "seen_once",
            Self::Evicted => "evicted",
        }
    }
}
