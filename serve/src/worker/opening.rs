//! How generations begin, and how readers come to them.

use std::time::Instant;

use aerie_state_cache::{Storage, TapeError};
use tracing::{debug, warn};

use super::{
    Attachment, Notice, Submission, Worker,
    generation::Generation,
    stage::{Stage, Transcript},
};
use crate::{
    admission::Reject,
    device::Device,
    pipe::{Accepted, Attached, FinishReason, Finished, PipeEvent, RecomputeReason},
    planted::{Bug, planted},
    request::{Origin, Request},
    router::Gone,
    scheduler::{Sequence, SequenceId},
    sessions::{Record, Session, SessionId, Turn, Word},
    text::Utf8Tail,
};

/// What a request comes to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Opening {
    Begin,
    /// It was cut off before, and goes on.
    Resume,
    /// It runs, or is over: its answer is repeated.
    Repeat,
}

/// What a reader is shown.
struct Reading {
    greeting: PipeEvent,
    before: Option<Transcript>,
    /// Where the session stands.
    position: u64,
    /// The slot of its generation.
    running: Option<usize>,
}

impl<S: Storage, D: Device> Worker<S, D> {
    /// Opens or resumes a session for a generation, or tells the client why not.
    pub(super) fn open(&mut self, mut submission: Submission, now: Instant) {
        let id = submission.id;
        let opened = match self.admit(id, &submission.request) {
            Ok(Opening::Repeat) => {
                self.parts.metrics.requests_repeated.inc();
                return self.repeat(submission);
            }
            Ok(opening) => submission
                .permit
                .generate()
                .and_then(|()| self.prepare(id, &submission.request, opening, now))
                .map(|before| (opening, before)),
            Err(reject) => Err(reject),
        };
        match opened {
            Ok((opening, before)) => self.start(submission, opening, &before, now),
            Err(reject) => {
                let Submission { pipe, permit, load, .. } = submission;
                debug!(session = %id, %reject, "refused");
                self.sleep(id);
                drop((permit, load));
                pipe.send(PipeEvent::Failed(reject));
            }
        }
    }

    /// Lets somebody read a session from a position on.
    pub(super) fn attach(&mut self, attachment: Attachment) {
        let Attachment { who, id, from_position, pipe, permit } = attachment;
        let read = self.wake_own(who, id).and_then(|()| self.read(id, from_position));
        let Reading { greeting, before, position, running } = match read {
            Ok(reading) => reading,
            Err(reject) => {
                self.sleep(id);
                drop(permit);
                return pipe.send(PipeEvent::Failed(reject));
            }
        };
        match running {
            Some(slot) => {
                let stage = &mut self.generations[slot].as_mut().expect("it runs").stage;
                stage.attach(pipe, greeting, from_position, before, Some(permit));
            }
            None => {
                let mut stage = Stage::new(before.unwrap_or_else(|| Transcript::new(position, 0)));
                stage.attach(pipe, greeting, from_position, None, Some(permit));
                let turn = self.sessions.expect(id).record.turn;
                stage.end(PipeEvent::Finished(ended(position, turn)));
                self.stages.push(stage);
                self.sleep(id);
            }
        }
    }

    /// What somebody is to be shown who reads from a position on.
    fn read(&self, id: SessionId, from_position: u64) -> Result<Reading, Reject> {
        let session = self.sessions.get(id).expect("it is awake");
        let position = session.record.position;
        let greeting =
            PipeEvent::Attached(Attached { session: id, position, running: session.active });
        let running = self.running(id);
        let until = match running {
            Some(slot) => self.generations[slot].as_ref().expect("it runs").stage.transcript.from(),
            None => position,
        };
        let before = self.past(id, from_position, until, position)?;
        Ok(Reading { greeting, before, position, running })
    }

    /// What a request comes to, as far as its session decides.
    fn admit(&mut self, id: SessionId, request: &Request) -> Result<Opening, Reject> {
        if self.drain.is_some() || self.is_broken {
            return Err(Reject::Unavailable { retry_after: self.parts.limits.retry_after });
        }
        if !self.rouse(id) {
            return match request.origin {
                Origin::Session if request.expected_position != Some(0) => {
                    Err(Reject::UnknownSession { id, gone: None })
                }
                _ => Ok(Opening::Begin),
            };
        }
        self.wake_own(request.who, id)?;
        let session = self.sessions.expect(id);
        if let Some(turn) = &session.record.turn
            && request.digest.is_some()
            && request.digest == turn.digest
            && !planted(Bug::RunAgain)
        {
            let goes_on = !session.active && turn.is_interrupted();
            return Ok(if goes_on { Opening::Resume } else { Opening::Repeat });
        }
        if session.active {
            return Err(Reject::SessionBusy { id });
        }
        let position = session.record.position;
        let expected = match request.origin {
            Origin::Session => request.expected_position,
            // It is there already, and was not made by this request.
            Origin::New | Origin::Fork { .. } => {
                return Err(Reject::SessionExists { id, position });
            }
        };
        if let Some(expected) = expected
            && expected != position
            && !planted(Bug::IgnorePosition)
        {
            return Err(Reject::StalePosition { id, position, expected });
        }
        if request.prompt.is_empty() && position == 0 {
            return Err(no_prompt());
        }
        Ok(Opening::Begin)
    }

    /// Readies the session for a generation: its row, its tape, the prompt on it. Gives its record as it was before.
    fn prepare(
        &mut self,
        id: SessionId,
        request: &Request,
        opening: Opening,
        now: Instant,
    ) -> Result<Record, Reject> {
        let used_at = self.parts.clock.unix_ms(now);
        let is_new = self.sessions.get(id).is_none();
        match request.origin {
            Origin::Fork { of, position } if is_new => {
                self.wake_own(request.who, of)?;
                let at = self.fork_position(of, position).and_then(|at| {
                    self.ledger.take(request.who.tenant)?;
                    Ok(at)
                });
                if let Ok(at) = at {
                    self.parts.store.fork(&mut self.sessions, of, at, id);
                }
                self.sleep(of);
                at?;
            }
            _ if is_new => {
                if request.keep {
                    self.ledger.take(request.who.tenant)?;
                }
                let mut session = Session::new(id, request.keep, used_at);
                session.record.tenant = request.who.tenant;
                self.sessions.insert(id, session);
            }
            _ => {}
        }
        if is_new {
            self.notify(Notice::Made { id });
        }
        let session = self.sessions.expect(id);
        session.used_at = used_at;
        let before = session.record.clone();
        let prepared = if request.prompt.is_empty() && before.position == 0 {
            Err(no_prompt())
        } else {
            self.write_prompt(id, request, opening)
        };
        if let Err(reject) = prepared {
            let session = self.sessions.expect(id);
            session.active = false;
            if is_new {
                self.forget(id, Gone::Ended);
            } else {
                // What was written of the turn stays on the tape; no later one may pass for its branch.
                let Record { tape, lineage, branch, .. } = session.record;
                session.record = Record { tape, lineage, branch, ..before };
                self.parts.store.release(session);
            }
            return Err(reject);
        }
        Ok(before)
    }

    fn write_prompt(
        &mut self,
        id: SessionId,
        request: &Request,
        opening: Opening,
    ) -> Result<(), Reject> {
        self.reserve(id)?;
        let failed = |error| {
            warn!(session = %id, %error, "a generation could not be logged");
            Reject::Internal { what: "its log could not be written" }
        };
        self.parts.store.own_tape(&mut self.sessions, id).map_err(failed)?;
        let record = &mut self.sessions.expect(id).record;
        let base = record.position;
        if opening == Opening::Begin {
            // What an earlier turn left behind this place, when its end was lost, is not of this one.
            record.branch += u32::from(!planted(Bug::OneBranch));
            let prompt = request.prompt.iter().map(|&token| Word::prompt(token));
            self.parts.store.append(&mut self.sessions, id, prompt).map_err(failed)?;
        }
        let session = self.sessions.expect(id);
        session.active = true;
        let record = &mut session.record;
        match (&mut record.turn, opening) {
            (Some(turn), Opening::Resume) => turn.end = None,
            (turn, _) => {
                record.keep |= request.keep;
                record.seed = request.seed.unwrap_or(record.seed);
                let drawn_from = record.position;
                let digest = request.digest;
                *turn = Some(Turn { digest, base, drawn_from, text_bytes: 0, end: None });
            }
        }
        self.parts.store.write(id, session).map_err(failed)
    }

    /// A row to write to.
    pub(super) fn reserve(&mut self, id: SessionId) -> Result<(), Reject> {
        let reserved = self.parts.store.reserve(&mut self.sessions, id);
        self.tell_evicted();
        reserved.map_err(|error| {
            warn!(session = %id, %error, "no record can be reserved");
            Reject::QueueFull {
                requests_max: self.parts.limits.requests_max,
                retry_after: self.parts.limits.retry_after,
            }
        })
    }

    /// Says which sessions have given way, and frees their lanes.
    pub(super) fn tell_evicted(&mut self) {
        for (id, session) in self.parts.store.take_evicted() {
            self.parts.residency.forgotten(&mut self.parts.device, &session);
            self.parts.metrics.sessions_evicted.inc();
            if !planted(Bug::EvictSilently) {
                self.tell_gone(id, &session, Gone::Evicted);
            }
        }
        self.settle_losses();
    }

    /// Sets a generation going.
    fn start(&mut self, submission: Submission, opening: Opening, before: &Record, now: Instant) {
        let Submission { id, request, pipe, permit, load, arrived, .. } = submission;
        let session = self.sessions.expect(id);
        let is_first = opening == Opening::Begin && before.position == 0 && session.seat.is_none();
        let prefix = is_first.then(|| self.find_prefix(id, &request.prompt));
        let session = self.sessions.expect(id);
        let record = &session.record;
        let (turn, seed) = (record.turn.expect("it has just been written"), record.seed);
        let keeps = record.keep;
        let state = session.seat.map(|seat| seat.computed).filter(|&it| it < record.position);
        let state = state.or_else(|| Some(record.state_within(record.position - 1)?.computed));
        let computed = state.unwrap_or(0);
        // The last token of a log has never been computed, unless its text had ended.
        let recomputed = before.position.saturating_sub(1).saturating_sub(computed);
        let accepted = Accepted {
            session: id,
            position: turn.base,
            resumed_tokens: computed.min(before.position),
            prompt_tokens: u32::try_from(turn.drawn_from - turn.base).expect("it is a u32"),
            seed,
            recomputed_tokens: recomputed,
            recompute_reason: (0 < recomputed).then(|| recompute_reason(before)),
            prefix_tokens: prefix.and_then(|it| it.state).map_or(0, |it| it.computed),
            prefix_miss: prefix.and_then(|it| it.miss),
            repeated: opening == Opening::Resume,
        };
        debug!(session = %id, request_id = request.request_id, ?accepted, "accepted");
        self.parts.metrics.resumed_tokens.inc_by(accepted.resumed_tokens);
        self.parts.metrics.recomputed_tokens.inc_by(recomputed);
        let prompt_only = request.prompt_only;
        let utf8_tail = self.utf8_tail(id, turn.drawn_from);
        let mut generation =
            Generation::new(id, turn, request, seed, utf8_tail, (permit, load), arrived);
        // Whoever asks again finds a session that is kept.
        generation.survives = keeps && turn.digest.is_some();
        generation.junction = prefix.and_then(|it| it.junction);
        generation.reserve(&self.parts.text);
        self.tell_recent(id, turn, &mut generation);
        let over = match self.drawn(id, turn) {
            Ok(drawn) => generation.replay(&drawn, &mut self.parts.text),
            Err(what) => {
                generation.failed = Some(what);
                None
            }
        };
        let greeting = PipeEvent::Accepted(Box::new(accepted));
        generation.stage.attach(pipe, greeting, turn.drawn_from, None, None);
        generation.planned = generation.left(&self.sessions.expect(id).record, computed);
        let left = generation.planned;
        let stop_at = generation.stop_at(&self.sessions.expect(id).record);
        let sequence = self.place(generation);
        let is_read = prompt_only && left == 0;
        match over.or_else(|| is_read.then_some(FinishReason::Prompt)) {
            Some(reason) => {
                self.ending.push((sequence, reason));
                self.end_all(now);
            }
            None => self.scheduler.push(Sequence { id: sequence, prompt_left: left, stop_at }),
        }
    }

    /// Tells a generation what was said lately, as far as the log has it.
    fn tell_recent(&self, id: SessionId, turn: Turn, generation: &mut Generation) {
        let mut from = turn.drawn_from.saturating_sub(generation.recent_tokens());
        let mut log = Vec::new();
        while let Err(error) =
            self.parts.store.log(&self.sessions, id, from..turn.drawn_from, &mut log)
        {
            match error {
                TapeError::Missing { at } if at < turn.drawn_from => from = at + 1,
                error => {
                    warn!(session = %id, %error, "what was said lately cannot be read");
                    break;
                }
            }
        }
        generation.set_recent(&log);
    }

    /// Gives a generation a slot.
    pub(super) fn place(&mut self, generation: Generation) -> SequenceId {
        let slot = self.generations.iter().position(Option::is_none);
        let slot = slot.unwrap_or_else(|| {
            self.generations.push(None);
            self.generations.len() - 1
        });
        self.generations[slot] = Some(generation);
        self.n_generations += 1;
        SequenceId(u32::try_from(slot).expect("requests_max is u32"))
    }

    /// Repeats the answer to a request that runs or has ended.
    fn repeat(&mut self, submission: Submission) {
        let Submission { id, pipe, permit, load, .. } = submission;
        drop(load);
        let record = self.sessions.expect(id).record.clone();
        let turn = record.turn.expect("it was compared with the request's");
        let greeting = PipeEvent::Accepted(Box::new(Accepted {
            session: id,
            position: turn.base,
            resumed_tokens: turn.drawn_from,
            prompt_tokens: u32::try_from(turn.drawn_from - turn.base).expect("it is a u32"),
            seed: record.seed,
            recomputed_tokens: 0,
            recompute_reason: None,
            prefix_tokens: 0,
            prefix_miss: None,
            repeated: true,
        }));
        debug!(session = %id, "repeated");
        if let Some(slot) = self.running(id) {
            let stage = &mut self.generations[slot].as_mut().expect("it runs").stage;
            return stage.attach(pipe, greeting, turn.drawn_from, None, Some(permit));
        }
        let position = record.position;
        let mut stage = match self.drawn(id, turn) {
            Ok(drawn) => {
                let tail = self.utf8_tail(id, turn.drawn_from);
                let (words, vocabulary) = (drawn.into_iter(), &self.parts.text.vocabulary);
                let mut transcript = Transcript::of_log(turn.drawn_from, tail, words, vocabulary);
                transcript.cut_text(turn.text_bytes);
                Stage::new(transcript)
            }
            Err(what) => {
                self.sleep(id);
                drop(permit);
                return pipe.send(PipeEvent::Failed(Reject::Internal { what }));
            }
        };
        stage.attach(pipe, greeting, turn.drawn_from, None, Some(permit));
        stage.end(PipeEvent::Finished(ended(position, Some(turn))));
        self.stages.push(stage);
        self.sleep(id);
    }

    /// The log from `from` to `until`, to be shown before what is shown live; none if that is all live.
    fn past(
        &self,
        id: SessionId,
        from: u64,
        until: u64,
        position: u64,
    ) -> Result<Option<Transcript>, Reject> {
        let max = self.parts.limits.replay_tokens_max;
        if position < from || u64::from(max) < until.saturating_sub(from) {
            let first = until.saturating_sub(max.into());
            return Err(Reject::OutOfRange { id, found: from, min: first, max: position });
        }
        if until <= from {
            return Ok(None);
        }
        let mut log = Vec::new();
        self.parts.store.log(&self.sessions, id, from..until, &mut log).map_err(|error| {
            debug!(session = %id, %error, "its past cannot be shown");
            Reject::OutOfRange { id, found: from, min: until, max: position }
        })?;
        let (words, vocabulary) = (log.into_iter(), &self.parts.text.vocabulary);
        let tail = self.utf8_tail(id, from);
        let mut transcript = Transcript::of_log(from, tail, words, vocabulary);
        let turn = self.sessions.get(id).and_then(|it| it.record.turn);
        // Of a turn that was cut off, nobody wrote down how much of its text was shown: it is all of it.
        let is_told = |turn: &Turn| !matches!(turn.end, None | Some(FinishReason::Interrupted));
        if let Some(turn) = turn.filter(|turn| is_told(turn) && turn.drawn_from < until) {
            transcript.cut_last(turn.drawn_from, turn.text_bytes);
        }
        Ok(Some(transcript))
    }

    /// The tokens that `turn`, the last one, has drawn.
    fn drawn(&self, id: SessionId, turn: Turn) -> Result<Vec<Word>, &'static str> {
        let position = self.sessions.get(id).map_or(turn.drawn_from, |it| it.record.position);
        let mut drawn = Vec::new();
        let places = turn.drawn_from..position;
        match self.parts.store.log(&self.sessions, id, places, &mut drawn) {
            Ok(()) => Ok(drawn),
            Err(error) => {
                warn!(session = %id, %error, "what was drawn cannot be read");
                Err("its log cannot be read")
            }
        }
    }

    /// Bytes of a character that the log has begun at `position`: none after a prompt.
    fn utf8_tail(&self, id: SessionId, position: u64) -> Utf8Tail {
        let mut tail = Utf8Tail::default();
        let mut log = Vec::new();
        let mut from = position;
        // Back to the last prompt, a piece at a time.
        while 0 < from && !log.first().is_some_and(|word: &Word| word.is_prompt()) {
            let piece = from.saturating_sub(PIECE_TOKENS)..from;
            let mut words = Vec::new();
            if self.parts.store.log(&self.sessions, id, piece.clone(), &mut words).is_err() {
                break;
            }
            from = piece.start;
            words.extend(log);
            log = words;
        }
        let prompt = log.iter().rposition(|word| word.is_prompt()).map_or(0, |last| last + 1);
        let mut text = String::new();
        for word in &log[prompt..] {
            text.clear();
            tail.push(self.parts.text.vocabulary.bytes(word.token()), &mut text);
        }
        tail
    }

    /// The slot of the generation of a session.
    pub(super) fn running(&self, id: SessionId) -> Option<usize> {
        let is_of = |it: &Option<Generation>| it.as_ref().is_some_and(|it| it.session == id);
        self.generations.iter().position(is_of)
    }
}

/// Tokens of a log that are looked at at a time.
const PIECE_TOKENS: u64 = 64;

/// What is said of a generation that ended before somebody read it.
fn ended(position: u64, turn: Option<Turn>) -> Finished {
    let (base, drawn_from) = turn.map_or((position, position), |it| (it.base, it.drawn_from));
    let count = |from: u64, to: u64| u32::try_from(to - from).unwrap_or(u32::MAX);
    Finished {
        reason: turn.and_then(|it| it.end).unwrap_or(FinishReason::Interrupted),
        position,
        prompt_tokens: count(base, drawn_from),
        generated_tokens: count(drawn_from, position),
        queue_us: 0,
        time_to_first_token: Default::default(),
        duration: Default::default(),
    }
}

fn recompute_reason(before: &Record) -> RecomputeReason {
    match before.turn {
        Some(turn) if turn.is_interrupted() => RecomputeReason::Interrupted,
        Some(_) => RecomputeReason::StateLost,
        // Going back, and beginning as a fork, leave none.
        None => RecomputeReason::Rewound,
    }
}

fn no_prompt() -> Reject {
    let problem = "has no token, and the session has none either".to_owned();
    Reject::Invalid { field: "prompt", problem }
}
