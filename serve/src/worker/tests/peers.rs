//! Clients of the simulation, who know what they are owed.

use std::{collections::VecDeque, ops::Range};

use rand::{Rng, rngs::StdRng};

use super::solo::{Solo, solo};
use crate::{
    admission::Reject,
    auth::{Principal, TenantId},
    device::fake::FakeDevice,
    pipe::{FinishReason, PipeEvent, PipeReader},
    request::Request,
    sessions::{Name, SessionId},
    store::Parcel,
    text::Vocabulary,
};

/// Whose sessions there are.
pub(super) const TENANTS: [&str; 2] = ["ants", "bees"];

/// A session as its client knows it.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) id: SessionId,
    pub(super) who: Principal,
    pub(super) name: Option<Name>,
    /// Its tokens, as far as the client was told of them, and which of them came with prompts.
    pub(super) log: Vec<u32>,
    pub(super) prompts: Vec<Range<usize>>,
    /// Whether the server has been heard of it.
    pub(super) is_known: bool,
    pub(super) is_fork: bool,
    pub(super) seed: u64,
    pub(super) turn: Option<Turn>,
    /// The last turn, to be sent again.
    pub(super) last: Option<Turn>,
    pub(super) observers: Vec<Reader>,
    /// What somebody who reads was refused with, until the client sees to it.
    pub(super) refused: Option<Reject>,
}

/// A session as a file, and what its client knew of it then.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) parcel: Parcel,
    pub(super) peer: Peer,
}

/// A request that was sent, and what is owed for it.
#[derive(Debug)]
pub(super) struct Turn {
    pub(super) request: Request,
    /// Position before the prompt.
    pub(super) base: usize,
    /// Of the draws.
    seed: u64,
    pub(super) owed: Solo,
    /// Tokens that some reader has been shown.
    pub(super) shown: usize,
    pub(super) is_cancelled: bool,
    /// Whether the server was heard of it.
    pub(super) is_accepted: bool,
    pub(super) readers: Vec<Reader>,
}

/// Somebody who reads a turn, or a session.
#[derive(Debug)]
pub(super) struct Reader {
    pub(super) reader: PipeReader,
    /// Position of the next token.
    next: usize,
    text: String,
    is_begun: bool,
}

/// What a reader comes to.
#[derive(Debug, PartialEq)]
pub(super) enum End {
    Finished(FinishReason, u64),
    Refused(Reject),
}

impl Reader {
    pub(super) fn new(reader: PipeReader, next: usize) -> Self {
        Self { reader, next, text: String::new(), is_begun: false }
    }

    /// Reads what there is, at most `events`. Every token must be the one of `log`.
    fn read(&mut self, log: &[u32], events: usize, context: &str) -> Option<End> {
        for _ in 0..events {
            match self.reader.receiver.try_recv().ok()? {
                PipeEvent::Accepted(_) | PipeEvent::Attached(_) => {
                    assert!(!self.is_begun, "{context}: it was greeted twice");
                    self.is_begun = true;
                }
                PipeEvent::Token { token, position, text } => {
                    assert!(self.is_begun, "{context}: a token before the greeting");
                    assert_eq!(position, self.next as u64, "{context}: a token is lost or doubled");
                    let owed = log.get(self.next);
                    assert_eq!(Some(&token), owed, "{context}: token at {position}");
                    self.text.push_str(text.as_str());
                    self.next += 1;
                }
                PipeEvent::Text(text) => self.text.push_str(text.as_str()),
                PipeEvent::Finished(it) => return Some(End::Finished(it.reason, it.position)),
                PipeEvent::Failed(reject) => return Some(End::Refused(reject)),
            }
        }
        None
    }
}

impl Peer {
    pub(super) fn new(id: SessionId, tenant: usize) -> Self {
        Self {
            id,
            who: Self::tenant(tenant),
            name: None,
            log: Vec::new(),
            prompts: Vec::new(),
            is_known: false,
            is_fork: false,
            seed: seed_of(id),
            turn: None,
            last: None,
            observers: Vec::new(),
            refused: None,
        }
    }

    /// One of two.
    pub(super) fn tenant(number: usize) -> Principal {
        let tenant = TenantId::named(TENANTS[number]);
        Principal { tenant, is_admin: false }
    }

    /// Somebody of the other tenant.
    pub(super) fn stranger(&self) -> Principal {
        let ants = Self::tenant(0);
        if self.who == ants { Self::tenant(1) } else { ants }
    }

    /// What a client knows of a copy of its session, which is idle.
    pub(super) fn copied(&self, id: SessionId, who: Principal) -> Self {
        Self {
            log: self.log.clone(),
            prompts: self.prompts.clone(),
            is_known: true,
            is_fork: self.is_fork,
            seed: self.seed,
            // A copy knows the request as well.
            last: self.last.as_ref().map(|turn| turn.copied(who)),
            who,
            ..Self::new(id, 0)
        }
    }

    pub(super) fn has_readers(&self) -> bool {
        !self.observers.is_empty() || self.turn.as_ref().is_some_and(|it| !it.readers.is_empty())
    }

    /// Notes that a request is sent.
    pub(super) fn ask(&mut self, request: Request, vocabulary: &Vocabulary) {
        let base = self.log.len();
        let seed = request.seed.unwrap_or(self.seed);
        let mut log = self.log.clone();
        log.extend(&request.prompt);
        let owed = solo(&log, self.drawn_at(base), &request, seed, vocabulary);
        self.seed = seed;
        self.turn = Some(Turn {
            request,
            base,
            seed,
            owed,
            shown: 0,
            is_cancelled: false,
            is_accepted: false,
            readers: Vec::new(),
        });
    }

    /// How many tokens before `position` no prompt separates.
    pub(super) fn drawn_at(&self, position: usize) -> usize {
        let before = self.prompts.iter().rev().find(|prompt| prompt.start < position);
        before.map_or(position, |prompt| position - prompt.end.min(position))
    }

    /// Goes back to `position`.
    pub(super) fn truncate(&mut self, position: usize) {
        self.log.truncate(position);
        self.prompts.retain(|prompt| prompt.start < position);
        self.prompts.iter_mut().for_each(|prompt| prompt.end = prompt.end.min(position));
    }

    /// The state after the first `n` tokens of the log as it will be.
    pub(super) fn owed_state(&self, n: usize) -> u64 {
        let turn = self.turn.as_ref();
        let asked = turn.into_iter().flat_map(|it| it.request.prompt.iter().chain(&it.owed.tokens));
        let mut left = n;
        let log = self.log.iter().chain(asked).take(n).inspect(|_| left -= 1);
        let state = log.fold(0, |state, &token| FakeDevice::absorb(state, token.into()));
        assert_eq!(left, 0, "it has seen more than there is");
        state
    }

    /// The log as it will be, if nobody interferes.
    pub(super) fn owed_log(&self) -> Vec<u32> {
        let mut log = self.log.clone();
        if let Some(turn) = &self.turn {
            log.extend(&turn.request.prompt);
            log.extend(&turn.owed.tokens);
        }
        log
    }

    /// Lets all readers of the running turn read.
    pub(super) fn read(&mut self, rng: &mut StdRng, context: &str) {
        let context = &format!("{context}, {}", self.id);
        let log = self.owed_log();
        let refused = &mut self.refused;
        self.observers.retain_mut(|observer| {
            let end = observer.read(&log, rng.random_range(1..12), context);
            if let Some(End::Refused(reject)) = &end {
                *refused = Some(reject.clone());
            }
            end.is_none()
        });
        let Some(turn) = &mut self.turn else { return };
        let drawn_from = turn.base + turn.request.prompt.len();
        let mut ends = VecDeque::new();
        turn.readers.retain_mut(|reader| {
            let end = reader.read(&log, rng.random_range(1..12), context);
            turn.is_accepted |= reader.is_begun;
            turn.shown = turn.shown.max(reader.next - drawn_from);
            // Where it was cancelled, the beginning of a stop string is text like any other.
            let is_cut = matches!(end, Some(End::Finished(FinishReason::Cancelled, _)));
            assert!(is_cut || turn.owed.text.starts_with(&reader.text), "{context}: {reader:?}");
            if let Some(end) = end {
                ends.push_back((end, reader.next, reader.text.clone()));
                return false;
            }
            true
        });
        for (end, next, text) in ends {
            self.end(end, next, &text, context);
        }
    }

    /// Takes in how a turn ended for one of its readers.
    fn end(&mut self, end: End, next: usize, text: &str, context: &str) {
        let Some(turn) = &mut self.turn else { return };
        let drawn_from = turn.base + turn.request.prompt.len();
        match end {
            End::Finished(reason, position) => {
                let position = usize::try_from(position).unwrap();
                assert_eq!(next, position, "{context}: the end came before the last token");
                match reason {
                    // The same request goes on.
                    FinishReason::Shutdown | FinishReason::Interrupted => return,
                    FinishReason::Cancelled => {}
                    reason => {
                        assert_eq!(Some(reason), turn.owed.reason, "{context}");
                        assert_eq!(position - drawn_from, turn.owed.tokens.len(), "{context}");
                        assert_eq!(text, turn.owed.text, "{context}: {turn:?}");
                    }
                }
                let turn = self.turn.take().expect("it was there");
                if !turn.request.prompt.is_empty() {
                    self.prompts.push(turn.base..drawn_from);
                }
                self.log.extend(&turn.request.prompt);
                let drawn = position - drawn_from;
                self.log.extend(&turn.owed.tokens[..drawn]);
                self.is_known = true;
                // Whoever was shown something later than the end would have been cheated.
                assert!(turn.shown <= drawn, "{context}");
                self.last = Some(turn);
            }
            // Others may be running; it is asked again.
            End::Refused(
                Reject::Unavailable { .. } | Reject::QueueFull { .. } | Reject::Internal { .. },
            ) => {}
            End::Refused(reject) => self.refused = Some(reject),
        }
    }

    /// All connections are lost.
    pub(super) fn disconnect(&mut self) {
        self.observers.clear();
        if let Some(turn) = &mut self.turn {
            turn.readers.clear();
        }
    }
}

impl Turn {
    /// Whether a session that is not there is made for it, and it then gives what it is to give.
    pub(super) fn is_made_anew(&self, id: SessionId) -> bool {
        self.base == 0 && (self.request.seed.is_some() || self.seed == seed_of(id))
    }

    /// The same request of somebody else, who has not sent it yet.
    fn copied(&self, who: Principal) -> Self {
        Self {
            request: Request { who, ..self.request.clone() },
            owed: self.owed.clone(),
            readers: Vec::new(),
            ..*self
        }
    }
}

/// With which a session draws that is told nothing else.
#[expect(clippy::cast_possible_truncation, reason = "as the worker chooses it")]
fn seed_of(id: SessionId) -> u64 {
    id.0 as u64
}
