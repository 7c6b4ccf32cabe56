//! One generation in flight: what it is fed, what it draws, what its readers are shown.

use std::{sync::Arc, time::Instant};

use super::stage::{Stage, Transcript};
use crate::{
    admission::Permit,
    device::{Batch, Lane},
    pipe::{FinishReason, Finished, Piece},
    request::Request,
    router::Load,
    sampler::{Draw, Sampler, Sampling},
    sessions::{Record, Session, SessionId, Turn, Word},
    telemetry::metrics::{Origin, WorkerMetrics},
    text::{StopMatcher, Utf8Tail, Vocabulary},
};

/// A generation in flight.
#[derive(Debug)]
pub(super) struct Generation {
    pub(super) session: SessionId,
    pub(super) stage: Stage,
    /// Set to what went wrong; the worker then ends the generation.
    pub(super) failed: Option<&'static str>,
    /// What came of the step that has just run, until it is delivered.
    pub(super) drawn: Option<Drawn>,
    /// Whether it goes on without a reader, and since when it has none.
    pub(super) survives: bool,
    pub(super) detached_at: Option<Instant>,
    /// Tokens of the log that it was planned to be fed yet; see [`Generation::left`].
    pub(super) planned: u32,
    /// Where its state is to be kept for other prompts that begin alike.
    pub(super) junction: Option<u64>,
    /// It sits the step out that is being planned, which counts on another number of tokens.
    pub(super) is_replanned: bool,
    /// Tokens of the log from `feed_from` to where it draws.
    feed: Vec<u32>,
    feed_from: u64,
    lane: Option<Lane>,
    sampling: Sampling,
    seed: u64,
    /// The log before what is drawn, as far as penalties look back.
    recent: Vec<u32>,
    utf8_tail: Utf8Tail,
    stop: StopMatcher,
    tokens_max: u32,
    /// Read the prompt, draw nothing.
    prompt_only: bool,
    prompt_tokens: u32,
    origin: Option<Origin>,
    arrived: Instant,
    seated_at: Option<Instant>,
    first_token_at: Option<Instant>,
    last_token_at: Option<Instant>,
    /// What it occupies; given back before anybody hears of the end.
    places: (Permit, Load),
}

/// What came of a step.
#[derive(Clone, Copy, Debug)]
pub(super) enum Drawn {
    Token(u32),
    NotFinite,
    /// The prompt was read, and nothing was to be drawn.
    Nothing,
}

/// What it takes to make text of tokens; shared by the generations of a worker.
#[derive(Debug)]
pub struct Text {
    pub(super) vocabulary: Arc<Vocabulary>,
    /// Bytes of text that a stop matcher may hold back.
    stop_bytes_max: usize,
    // Kept from token to token, so that none allocates.
    characters: String,
    text: String,
}

impl Text {
    pub fn new(vocabulary: Arc<Vocabulary>, stop_bytes_max: u32) -> Self {
        let stop_bytes_max = stop_bytes_max as usize;
        let mut text = Self { vocabulary, stop_bytes_max, characters: "".into(), text: "".into() };
        text.characters.reserve(text.characters_max());
        text.text.reserve(text.characters_max() + stop_bytes_max);
        text
    }

    /// Events that one step may have to send: a token with all the text that it sets free, what is
    /// held back at the end, and the end itself.
    pub fn events_per_step_max(&self) -> usize {
        let held = Piece::count_max(self.stop_bytes_max);
        1 + Piece::count_max(self.characters_max() + self.stop_bytes_max) + held + 1
    }

    /// Bytes of text that one token may complete, if every byte of it is invalid.
    fn characters_max(&self) -> usize {
        let bytes_max = self.vocabulary.token_bytes_max() + Utf8Tail::BYTES_MAX;
        bytes_max * char::REPLACEMENT_CHARACTER.len_utf8()
    }
}

impl Generation {
    /// A generation of `turn`, of which nothing was drawn yet. `utf8_tail` is what the log ends with.
    pub(super) fn new(
        session: SessionId,
        turn: Turn,
        request: Request,
        seed: u64,
        utf8_tail: Utf8Tail,
        places: (Permit, Load),
        arrived: Instant,
    ) -> Self {
        let prompt_tokens =
            u32::try_from(turn.drawn_from - turn.base).expect("prompt_tokens_max is u32");
        Self {
            session,
            stage: Stage::new(Transcript::new(turn.drawn_from, request.tokens_max)),
            failed: None,
            drawn: None,
            survives: false,
            detached_at: None,
            planned: 0,
            junction: None,
            is_replanned: false,
            feed: Vec::new(),
            feed_from: 0,
            lane: None,
            sampling: request.sampling,
            seed,
            recent: Vec::new(),
            utf8_tail,
            stop: StopMatcher::new(request.stop),
            tokens_max: request.tokens_max,
            prompt_only: request.prompt_only,
            prompt_tokens,
            origin: None,
            arrived,
            seated_at: None,
            first_token_at: None,
            last_token_at: None,
            places,
        }
    }

    /// Makes room for the text of any token.
    pub(super) fn reserve(&mut self, text: &Text) {
        self.stop.reserve(text.characters_max());
    }

    /// How many tokens of the log, before what it draws, it has to be told for penalties.
    pub(super) fn recent_tokens(&self) -> u64 {
        let penalties = self.sampling.penalties;
        if penalties.are_any() { penalties.window.into() } else { 0 }
    }

    /// Takes the tokens of the log before what it draws, as far as it asked for them.
    pub(super) fn set_recent(&mut self, log: &[Word]) {
        self.recent.extend(log.iter().map(|word| word.token()));
    }

    /// Goes over what was drawn before it was cut off; says if that was all.
    pub(super) fn replay(&mut self, drawn: &[Word], text: &mut Text) -> Option<FinishReason> {
        drawn.iter().find_map(|word| self.push(word.token(), text))
    }

    /// Tokens of the log to feed before the next draw, or the end of the prompt.
    pub(super) fn left(&self, record: &Record, computed: u64) -> u32 {
        // The last token of a log is left to whoever goes on, who needs what the model says to it.
        let left = record.position - computed - u64::from(self.prompt_only);
        u32::try_from(left).expect("log_tokens_max is u32, and prompt_tokens_max")
    }

    /// Tokens of the log that are left to be fed where a step is to end, for the sake of its junction; 0 for nowhere.
    pub(super) fn stop_at(&self, record: &Record) -> u32 {
        self.junction.map_or(0, |junction| self.left(record, junction))
    }

    /// Is to be fed `left` tokens, from the next step on.
    pub(super) fn replan(&mut self, left: u32) {
        self.planned = left;
        self.is_replanned = true;
    }

    /// Whether it has to be given the log from `computed` on.
    pub(super) fn lacks(&self, computed: u64) -> bool {
        let drawn_from = self.stage.transcript.from();
        let has_it = !self.feed.is_empty() && (self.feed_from..=drawn_from).contains(&computed);
        computed < drawn_from && !has_it
    }

    /// Takes the tokens of the log from `from` to where it draws.
    pub(super) fn set_feed(&mut self, from: u64, log: &[Word]) {
        self.feed_from = from;
        self.feed.clear();
        self.feed.extend(log.iter().map(|word| word.token()));
    }

    /// Leaves its lane for another device.
    pub(super) fn leave(&mut self) {
        self.lane = None;
        self.junction = None;
        self.is_replanned = false;
    }

    /// Counts as load of another worker.
    pub(super) fn set_load(&mut self, load: Load) {
        self.places.1 = load;
    }

    /// Notes the lane, and the end of the wait for the first one.
    pub(super) fn seated(
        &mut self,
        lane: Lane,
        origin: Origin,
        now: Instant,
        metrics: &WorkerMetrics,
    ) {
        if self.seated_at.is_none() {
            metrics.queue_wait.observe((now - self.arrived).as_secs_f64());
            self.seated_at = Some(now);
        }
        self.lane = Some(lane);
        self.origin.get_or_insert(origin);
    }

    /// Puts the next `tokens` tokens of the log into a batch.
    pub(super) fn feed(&mut self, session: &mut Session, tokens: u32, batch: &mut Batch) {
        let lane = self.lane.expect("who works is seated");
        let seat = session.seat.as_mut().expect("who works is seated");
        let end = seat.computed + u64::from(tokens);
        let drawn_from = self.stage.transcript.from();
        let token = |position: u64| {
            if position < drawn_from {
                let i = usize::try_from(position - self.feed_from).expect("it is in `feed`");
                self.feed[i]
            } else {
                self.stage.transcript.token(position)
            }
        };
        batch.push(lane, seat.computed, (seat.computed..end).map(token));
        seat.computed = end;
        self.planned = self.planned.saturating_sub(tokens);
    }

    pub(super) fn draw(&mut self, session: &Session, logits: &[f32], sampler: &mut Sampler) {
        if self.prompt_only {
            self.drawn = Some(Drawn::Nothing);
            return;
        }
        let draw = Draw { seed: self.seed, position: session.record.position };
        let window = self.sampling.penalties.window as usize;
        let drawn = self.stage.transcript.tokens();
        let before = window.saturating_sub(drawn.len()).min(self.recent.len());
        let recent = self.recent[self.recent.len() - before..].iter();
        let recent = recent.chain(&drawn[drawn.len().saturating_sub(window)..]).copied();
        let token = sampler.draw_after(self.sampling, logits, draw, recent);
        self.drawn = Some(token.map_or(Drawn::NotFinite, Drawn::Token));
    }

    /// Whether `token`, which was drawn, belongs into the log: the one that ends a text does not, as nothing may
    /// follow it.
    pub(super) fn is_logged(token: u32, text: &Text) -> bool {
        Some(token) != text.vocabulary.end_of_text()
    }

    /// Takes in a token that was drawn and is logged, or ends the text; says if the generation is over.
    pub(super) fn deliver(
        &mut self,
        token: u32,
        text: &mut Text,
        metrics: &WorkerMetrics,
        now: Instant,
    ) -> Option<FinishReason> {
        self.observe_token(metrics, now);
        if !Self::is_logged(token, text) {
            self.flush(text);
            return Some(FinishReason::EndOfText);
        }
        self.planned = 1;
        self.push(token, text)
    }

    /// What it comes to at the end, where the session stands at `position`.
    pub(super) fn finished(&self, reason: FinishReason, position: u64, now: Instant) -> Finished {
        let queue = self.seated_at.unwrap_or(now) - self.arrived;
        Finished {
            reason,
            position,
            prompt_tokens: self.prompt_tokens,
            generated_tokens: self.stage.transcript.n_tokens(),
            queue_us: u32::try_from(queue.as_micros()).unwrap_or(u32::MAX),
            time_to_first_token: self.first_token_at.unwrap_or(now) - self.arrived,
            duration: now - self.arrived,
        }
    }

    /// Gives up what a stop string's beginning held back, if the text ends here for another reason.
    pub(super) fn give_up(&mut self, reason: FinishReason, text: &mut Text) {
        // Who goes on after a shutdown is to be shown the same text as without one.
        if reason == FinishReason::Cancelled || reason == FinishReason::Shutdown && !self.survives {
            self.flush(text);
        }
    }

    /// Gives back what it occupies; what is left is shown to those who read.
    pub(super) fn into_stage(self) -> Stage {
        drop(self.places);
        self.stage
    }

    /// Appends a token to the transcript, with the text that it sets free.
    fn push(&mut self, token: u32, text: &mut Text) -> Option<FinishReason> {
        text.characters.clear();
        text.text.clear();
        self.utf8_tail.push(text.vocabulary.bytes(token), &mut text.characters);
        let is_stopped = self.stop.push(&text.characters, &mut text.text);
        self.stage.transcript.push(token, &text.text);
        if is_stopped {
            return Some(FinishReason::Stop);
        }
        if self.tokens_max <= self.stage.transcript.n_tokens() {
            self.flush(text);
            return Some(FinishReason::Length);
        }
        None
    }

    /// Shows what a stop string's beginning held back.
    fn flush(&mut self, text: &mut Text) {
        text.text.clear();
        self.stop.flush(&mut text.text);
        self.stage.transcript.push_text(&text.text);
    }

    fn observe_token(&mut self, metrics: &WorkerMetrics, now: Instant) {
        metrics.generated_tokens.inc();
        match self.last_token_at {
            None => {
                let elapsed = (now - self.arrived).as_secs_f64();
                let origin = self.origin.unwrap_or(Origin::New);
                metrics.time_to_first_token(origin).observe(elapsed);
                self.first_token_at = Some(now);
            }
            Some(last) => {
                metrics.inter_token_latency.observe((now - last).as_secs_f64());
            }
        }
        self.last_token_at = Some(now);
    }
}
