//! One generation in flight: what it is fed, what it draws, what its client hears.

use std::{iter, sync::Arc, time::Instant};

use crate::{
    admission::{Permit, Reject},
    device::{Batch, Lane},
    pipe::{FinishReason, Finished, Piece, Pipe, PipeEvent},
    request::Request,
    router::Load,
    sampler::{Draw, Sampler, Sampling},
    sessions::{Decoder, Session, SessionId},
    telemetry::metrics::{Origin, WorkerMetrics},
    text::{StopMatcher, Utf8Tail, Vocabulary},
};

/// A generation in flight.
#[derive(Debug)]
pub(super) struct Generation {
    pub(super) session: SessionId,
    pub(super) pipe: Pipe,
    /// Set to what went wrong; the worker then ends the generation.
    pub(super) failed: Option<&'static str>,
    /// The token of the step that has just run, until it is delivered.
    pub(super) drawn: Option<Drawn>,
    /// Tokens to feed before the first draw: the session's pending one, then the prompt.
    feed: Vec<u32>,
    fed: usize,
    lane: Option<Lane>,
    sampling: Sampling,
    seed: u64,
    stop: StopMatcher,
    tokens_max: u32,
    prompt_tokens: u32,
    generated_tokens: u32,
    origin: Origin,
    arrived: Instant,
    first_token_at: Option<Instant>,
    last_token_at: Option<Instant>,
    /// What it occupies; given back before the client hears of the end.
    places: (Permit, Load),
}

/// What a draw gave.
#[derive(Clone, Copy, Debug)]
pub(super) enum Drawn {
    Token(u32),
    NotFinite,
}

/// What it takes to make text of tokens; shared by the generations of a worker.
#[derive(Debug)]
pub struct Text {
    vocabulary: Arc<Vocabulary>,
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
    #[expect(clippy::too_many_arguments, reason = "called once, by name")]
    pub(super) fn new(
        session: SessionId,
        request: Request,
        decoder: Decoder,
        seed: u64,
        pipe: Pipe,
        places: (Permit, Load),
        arrived: Instant,
        origin: Origin,
    ) -> Self {
        let prompt_tokens = u32::try_from(request.prompt.len()).expect("prompt_tokens_max is u32");
        Self {
            session,
            pipe,
            failed: None,
            drawn: None,
            feed: decoder.pending.into_iter().chain(request.prompt).collect(),
            fed: 0,
            lane: None,
            sampling: request.sampling,
            seed,
            stop: StopMatcher::new(request.stop),
            tokens_max: request.tokens_max,
            prompt_tokens,
            generated_tokens: 0,
            origin,
            arrived,
            first_token_at: None,
            last_token_at: None,
            places,
        }
    }

    /// Makes room for the text of any token.
    pub(super) fn reserve(&mut self, text: &Text) {
        self.stop.reserve(text.characters_max());
    }

    /// Tokens to feed before the first draw.
    pub(super) fn left(&self) -> u32 {
        u32::try_from(self.feed.len() - self.fed).expect("prompt_tokens_max is below u32::MAX")
    }

    /// Notes the lane, and the end of the wait for the first one.
    pub(super) fn seated(&mut self, lane: Lane, now: Instant, metrics: &WorkerMetrics) {
        if self.lane.is_none() {
            metrics.queue_wait.observe((now - self.arrived).as_secs_f64());
        }
        self.lane = Some(lane);
    }

    /// Puts the next `tokens` tokens into a batch: of the prompt, or the last one that was drawn.
    pub(super) fn feed(&mut self, session: &mut Session, tokens: u32, batch: &mut Batch) {
        let lane = self.lane.expect("who works is seated");
        let decoder = &mut session.decoder;
        let computed = decoder.computed();
        if self.fed < self.feed.len() {
            if self.fed == 0 && 0 < self.prompt_tokens {
                // A prompt does not go on with a character that the last tokens began.
                decoder.utf8_tail = Utf8Tail::default();
            }
            let end = self.fed + tokens as usize;
            batch.push(lane, computed, self.feed[self.fed..end].iter().copied());
            self.fed = end;
        } else {
            let pending = decoder.pending.expect("who decodes has drawn a token");
            batch.push(lane, computed, iter::once(pending));
        }
        decoder.pending = None;
        decoder.position = computed + u64::from(tokens);
        decoder.seed = self.seed;
        session.recorded = false;
    }

    pub(super) fn draw(&mut self, session: &Session, logits: &[f32], sampler: &mut Sampler) {
        let draw = Draw { seed: self.seed, position: session.decoder.position };
        let token = sampler.draw(self.sampling, logits, draw);
        self.drawn = Some(token.map_or(Drawn::NotFinite, Drawn::Token));
    }

    /// Appends a token to the session and tells the client; says if the generation is over.
    pub(super) fn deliver(
        &mut self,
        session: &mut Session,
        token: u32,
        text: &mut Text,
        metrics: &WorkerMetrics,
        now: Instant,
    ) -> Option<FinishReason> {
        self.observe_token(metrics, now);
        let decoder = &mut session.decoder;
        if Some(token) == text.vocabulary.end_of_text() {
            // Nothing may follow it in the session, so it is not part of the log.
            self.flush(text);
            return Some(FinishReason::EndOfText);
        }
        let position = decoder.position;
        decoder.pending = Some(token);
        decoder.position += 1;
        self.generated_tokens += 1;
        text.characters.clear();
        text.text.clear();
        decoder.utf8_tail.push(text.vocabulary.bytes(token), &mut text.characters);
        let is_stopped = self.stop.push(&text.characters, &mut text.text);
        self.pipe.send_token(token, position, &text.text);
        if is_stopped {
            return Some(FinishReason::Stop);
        }
        if self.generated_tokens == self.tokens_max {
            self.flush(text);
            return Some(FinishReason::Length);
        }
        None
    }

    /// Tells the client of the end.
    pub(super) fn finish(mut self, reason: FinishReason, position: u64, now: Instant) {
        if matches!(reason, FinishReason::Cancelled | FinishReason::Shutdown) {
            let mut held = String::new();
            self.stop.flush(&mut held);
            self.send_text(&held);
        }
        let duration = now - self.arrived;
        let first_token_at = self.first_token_at.unwrap_or(now);
        // Before the client hears, so that what it asks for next finds the places free.
        drop(self.places);
        self.pipe.send(PipeEvent::Finished(Finished {
            reason,
            position,
            prompt_tokens: self.prompt_tokens,
            generated_tokens: self.generated_tokens,
            time_to_first_token: first_token_at - self.arrived,
            duration,
        }));
    }

    /// Tells the client of a failure.
    pub(super) fn fail(self, reject: Reject) {
        drop(self.places);
        self.pipe.send(PipeEvent::Failed(reject));
    }

    /// Sends what a stop string's beginning held back.
    fn flush(&mut self, text: &mut Text) {
        text.text.clear();
        self.stop.flush(&mut text.text);
        self.send_text(&text.text);
    }

    fn send_text(&self, text: &str) {
        Piece::cut(text).for_each(|piece| self.pipe.send(PipeEvent::Text(piece)));
    }

    fn observe_token(&mut self, metrics: &WorkerMetrics, now: Instant) {
        metrics.generated_tokens.inc();
        match self.last_token_at {
            None => {
                let elapsed = (now - self.arrived).as_secs_f64();
                metrics.time_to_first_token(self.origin).observe(elapsed);
                self.first_token_at = Some(now);
            }
            Some(last) => {
                metrics.inter_token_latency.observe((now - last).as_secs_f64());
            }
        }
        self.last_token_at = Some(now);
    }
}
