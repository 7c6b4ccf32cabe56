//! What the readers of a generation are shown: its tokens and their text, to each from where it wants to read.

use crate::{
    admission::Permit,
    pipe::{Piece, Pipe, PipeEvent},
    sessions::Word,
    text::{Utf8Tail, Vocabulary},
};

/// Tokens as they were drawn, and who reads them.
#[derive(Debug)]
pub(super) struct Stage {
    pub(super) transcript: Transcript,
    readers: Vec<Reader>,
    /// The last event, once there is one.
    end: Option<PipeEvent>,
}

/// Tokens of a log, and the text that each of them set free.
#[derive(Debug, Default)]
pub(super) struct Transcript {
    /// Position of the first token.
    from: u64,
    tokens: Vec<u32>,
    text: String,
    /// Token `i` set `text[ends[i - 1]..ends[i]]` free; what comes after the last end, the end of all.
    ends: Vec<usize>,
}

/// Somebody who reads.
#[derive(Debug)]
pub(super) struct Reader {
    pipe: Pipe,
    /// What is said first.
    greeting: Option<PipeEvent>,
    /// What is shown before the transcript of the generation.
    before: Option<Box<Transcript>>,
    shown: Shown,
    /// What it occupies; given back before it hears of the end.
    place: Option<Permit>,
}

/// How much of a transcript a reader has been shown.
#[derive(Clone, Copy, Debug, Default)]
struct Shown {
    tokens: usize,
    text: usize,
}

impl Stage {
    /// A stage on which nothing was shown.
    pub(super) fn new(transcript: Transcript) -> Self {
        Self { transcript, readers: Vec::new(), end: None }
    }

    /// Lets somebody read from `position` on, which is not beyond the transcript. What it is shown first, `greeting`, is followed by
    /// `before` if that is given, which ends where the transcript begins.
    pub(super) fn attach(
        &mut self,
        pipe: Pipe,
        greeting: PipeEvent,
        position: u64,
        before: Option<Transcript>,
        place: Option<Permit>,
    ) {
        let shown = self.transcript.shown_at(position);
        let before = before.map(Box::new);
        self.readers.push(Reader { pipe, greeting: Some(greeting), before, shown, place });
    }

    /// Ends it: `event` is shown after all else.
    pub(super) fn end(&mut self, event: PipeEvent) {
        self.end = Some(event);
    }

    /// Shows every reader as much as it has room for. Who has gone, or has been shown the end, is let go.
    pub(super) fn show(&mut self) {
        let Self { transcript, readers, end } = self;
        readers.retain_mut(|reader| reader.show(transcript, end.as_ref()));
    }

    pub(super) fn has_readers(&self) -> bool {
        !self.readers.is_empty()
    }

    /// Whether one of its readers asked to end.
    pub(super) fn is_cancelled(&self) -> bool {
        self.readers.iter().any(|reader| reader.pipe.is_cancelled())
    }

    /// Whether all of its readers are slow: none has been shown all, with room for `events` more.
    pub(super) fn is_crowded(&self, events: usize) -> bool {
        let keeps_up = |reader: &Reader| {
            let has_all = reader.greeting.is_none()
                && reader.before.is_none()
                && reader.shown.tokens == self.transcript.tokens.len();
            reader.pipe.is_closed() || has_all && reader.pipe.has_room(events)
        };
        self.has_readers() && !self.readers.iter().any(keeps_up)
    }
}

impl Transcript {
    /// One without tokens, with room for those of a generation of `tokens_max`.
    pub(super) fn new(from: u64, tokens_max: u32) -> Self {
        let tokens = (tokens_max as usize).min(TOKENS_RESERVED);
        Self {
            from,
            tokens: Vec::with_capacity(tokens),
            text: String::with_capacity(tokens * BYTES_PER_TOKEN),
            ends: Vec::with_capacity(tokens),
        }
    }

    /// Tokens of a log as text, as far as it makes whole characters; `tail` is what comes before them.
    pub(super) fn of_log(
        from: u64,
        mut tail: Utf8Tail,
        log: impl Iterator<Item = Word>,
        vocabulary: &Vocabulary,
    ) -> Self {
        let mut transcript = Self { from, ..Self::default() };
        let mut was_prompt = false;
        for word in log {
            if word.is_prompt() && !was_prompt {
                // A prompt does not go on with a character that the last tokens began.
                tail = Utf8Tail::default();
            }
            was_prompt = word.is_prompt();
            tail.push(vocabulary.bytes(word.token()), &mut transcript.text);
            transcript.tokens.push(word.token());
            transcript.ends.push(transcript.text.len());
        }
        transcript
    }

    /// Appends a token and the text that it sets free.
    pub(super) fn push(&mut self, token: u32, text: &str) {
        self.tokens.push(token);
        self.text.push_str(text);
        self.ends.push(self.text.len());
    }

    /// Appends text that no token sets free, but the end.
    pub(super) fn push_text(&mut self, text: &str) {
        self.text.push_str(text);
    }

    /// Leaves out the text of the last generation, which drew from `drawn_from` on, beyond what it showed.
    pub(super) fn cut_last(&mut self, drawn_from: u64, text_bytes: u64) {
        let before = self.shown_at(drawn_from).text as u64;
        if self.from <= drawn_from {
            self.cut_text(before + text_bytes);
        }
    }

    /// Leaves out all text from byte `len` on.
    pub(super) fn cut_text(&mut self, len: u64) {
        let len = usize::try_from(len).unwrap_or(usize::MAX).min(self.text.len());
        self.text.truncate(self.text.floor_char_boundary(len));
        self.ends.iter_mut().for_each(|end| *end = (*end).min(self.text.len()));
    }

    pub(super) fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    pub(super) fn from(&self) -> u64 {
        self.from
    }

    pub(super) fn n_tokens(&self) -> u32 {
        u32::try_from(self.tokens.len()).expect("tokens_max is u32")
    }

    pub(super) fn text_bytes(&self) -> u64 {
        self.text.len() as u64
    }

    /// The token at `position`, which is one of its own.
    pub(super) fn token(&self, position: u64) -> u32 {
        let i = usize::try_from(position - self.from).expect("it is one of the transcript");
        self.tokens[i]
    }

    fn shown_at(&self, position: u64) -> Shown {
        let tokens = usize::try_from(position.saturating_sub(self.from)).unwrap_or(usize::MAX);
        let tokens = tokens.min(self.tokens.len());
        Shown { tokens, text: tokens.checked_sub(1).map_or(0, |last| self.ends[last]) }
    }

    /// Shows what has not been `shown`, as far as there is room; says whether that was all.
    fn show(&self, shown: &mut Shown, pipe: &Pipe, is_over: bool) -> bool {
        while let Some(&end) = self.ends.get(shown.tokens) {
            let text = &self.text[shown.text..end];
            if !pipe.has_room(Piece::count_max(text.len()).max(1)) {
                return false;
            }
            pipe.send_token(self.tokens[shown.tokens], self.from + shown.tokens as u64, text);
            *shown = Shown { tokens: shown.tokens + 1, text: end };
        }
        let rest = &self.text[shown.text..];
        if is_over && !rest.is_empty() {
            if !pipe.has_room(Piece::count_max(rest.len())) {
                return false;
            }
            Piece::cut(rest).for_each(|piece| pipe.send(PipeEvent::Text(piece)));
            shown.text = self.text.len();
        }
        true
    }
}

impl Reader {
    /// Shows what there is room for; says whether there may be more.
    fn show(&mut self, transcript: &Transcript, end: Option<&PipeEvent>) -> bool {
        if self.pipe.is_closed() {
            return false;
        }
        if let Some(greeting) = self.greeting.take() {
            if !self.pipe.has_room(1) {
                self.greeting = Some(greeting);
                return true;
            }
            self.pipe.send(greeting);
        }
        if let Some(before) = &self.before {
            // `shown` is of this as long as it is there: the transcript after it is read from its beginning.
            if !before.show(&mut self.shown, &self.pipe, true) {
                return true;
            }
            self.before = None;
            self.shown = Shown::default();
        }
        if !transcript.show(&mut self.shown, &self.pipe, end.is_some()) {
            return true;
        }
        match end {
            Some(end) if self.pipe.has_room(1) => {
                self.place = None;
                self.pipe.send(end.clone());
                false
            }
            _ => true,
        }
    }
}

/// Tokens for which a transcript has room from its start, so that none of a usual generation allocates.
const TOKENS_RESERVED: usize = 1024;
/// Bytes of text per token that are reserved: more than any language needs.
const BYTES_PER_TOKEN: usize = 8;
