//! What sessions say: scripts, and what an undisturbed server made of them.
//!
//! A token follows from those before it, from the seed and from its position. So a session that follows a script
//! says the same however it is cut into turns, and from wherever it is taken back to.

use aerie_client::{
    Client, Retry,
    v1::{self, FinishReason, start::Prompt},
};
use aerie_serve::text::{Utf8Tail, Vocabulary};
use aerie_tests::turn::{Turn, follow, greedy, run};
use rand::{Rng as _, seq::IndexedRandom as _};
use rand_chacha::ChaCha8Rng;

use crate::surprise::Surprise;

/// Turns of a script.
const TURNS: u32 = 6;

/// What one session says, from its first token on.
#[derive(Debug)]
pub(crate) struct Script {
    sampling: v1::Sampling,
    passages: Vec<Passage>,
    pub(crate) ids: Vec<u32>,
    text: String,
    /// Bytes of `text` after so many tokens.
    text_ends: Vec<usize>,
    /// Whether a character is incomplete after so many tokens.
    is_amid: Vec<bool>,
}

/// A prompt and what was said to it.
#[derive(Debug)]
struct Passage {
    prompt: String,
    begin: usize,
    drawn_from: usize,
    end: usize,
    /// Whether the model ended its document here.
    is_ended: bool,
}

/// What is to be asked, and what must come of it.
#[derive(Clone, Debug)]
pub(crate) struct Question {
    pub(crate) start: v1::Start,
    pub(crate) answer: Answer,
}

/// The tokens that a generation must say.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Answer {
    pub(crate) script: usize,
    pub(crate) begin: usize,
    pub(crate) drawn_from: usize,
    pub(crate) end: usize,
    /// How it may end, if nobody ends it.
    reasons: [FinishReason; 2],
}

impl Script {
    /// Has a server that nothing happens to say a new script.
    pub(crate) async fn take(
        client: &Client,
        vocabulary: &Vocabulary,
        rng: &mut ChaCha8Rng,
    ) -> Result<Self, Surprise> {
        let client = client.clone().with_retry(Retry::default());
        // One in four is greedy; most models then repeat themselves, which hides a token that is doubled.
        let sampling = match rng.random_range(0..4) {
            0 => v1::Sampling::default(),
            _ => v1::Sampling {
                temperature: 0.9,
                top_p: 0.95,
                seed: Some(rng.random()),
                ..Default::default()
            },
        };
        let id = aerie_client::random_id();
        let mut passages: Vec<Passage> = Vec::new();
        for _ in 0..TURNS {
            let begin = passages.last().map_or(0, |it| it.end);
            let prompt = sentence(rng);
            let start = v1::Start {
                session_id: id.clone(),
                keep: true,
                expected_position: Some(begin as u64),
                sampling: Some(sampling),
                ..greedy(&prompt, rng.random_range(40..160))
            };
            let turn = run(&client, start).await.map_err(Surprise::call("an undisturbed turn"))?;
            let drawn_from = begin + turn.accepted.prompt_tokens as usize;
            let is_ended = turn.finished.reason() == FinishReason::EndOfText;
            let end = drawn_from + turn.ids.len();
            passages.push(Passage { prompt, begin, drawn_from, end, is_ended });
        }
        let mut whole = Turn::default();
        let reader = client.attach(&id, 0).await.map_err(Surprise::call("reading it"))?;
        follow(reader, &mut whole, 0).await.map_err(Surprise::call("reading it"))?;
        let script = Self::new(sampling, passages, whole.ids, vocabulary);
        if script.text != whole.text {
            let (expected, found) = (script.text, whole.text);
            return Err(Surprise::Text { begin: 0, end: script.ids.len(), expected, found });
        }
        Ok(script)
    }

    fn new(
        sampling: v1::Sampling,
        passages: Vec<Passage>,
        ids: Vec<u32>,
        vocabulary: &Vocabulary,
    ) -> Self {
        let (mut text, mut tail) = (String::new(), Utf8Tail::default());
        let (mut text_ends, mut is_amid) = (vec![0], vec![false]);
        for &id in &ids {
            tail.push(vocabulary.bytes(id), &mut text);
            text_ends.push(text.len());
            is_amid.push(!tail.as_bytes().is_empty());
        }
        Self { sampling, passages, ids, text, text_ends, is_amid }
    }

    /// How long a session can go on.
    pub(crate) fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether the text from `position` on is whole characters.
    pub(crate) fn is_boundary(&self, position: usize) -> bool {
        !self.is_amid[position]
    }

    /// The text of some of the tokens.
    pub(crate) fn text(&self, begin: usize, end: usize) -> &str {
        &self.text[self.text_ends[begin]..self.text_ends[end]]
    }

    /// Goes on from `begin` by about `n_tokens`, not beyond the passage.
    ///
    /// # Panics
    /// If the script ends at `begin`.
    pub(crate) fn go_on(&self, script: usize, begin: usize, n_tokens: usize) -> Question {
        let passage = self.passages.iter().find(|it| begin < it.end).expect("there is more of it");
        let drawn_from = begin.max(passage.drawn_from);
        let prompt = if begin == passage.begin {
            Prompt::Text(passage.prompt.clone())
        } else {
            Prompt::Tokens(v1::TokenIds { ids: self.ids[begin..drawn_from].to_vec() })
        };
        let left = passage.end - drawn_from;
        let max_tokens = n_tokens.clamp(1, left + usize::from(passage.is_ended));
        let end = drawn_from + max_tokens.min(left);
        let reasons = match (passage.is_ended, max_tokens.cmp(&left)) {
            (true, std::cmp::Ordering::Greater) => [FinishReason::EndOfText; 2],
            (true, std::cmp::Ordering::Equal) => [FinishReason::EndOfText, FinishReason::Length],
            _ => [FinishReason::Length; 2],
        };
        let start = v1::Start {
            prompt: Some(prompt),
            keep: true,
            expected_position: Some(begin as u64),
            sampling: Some(self.sampling),
            max_tokens: u32::try_from(max_tokens).expect("scripts are short"),
            ..v1::Start::default()
        };
        Question { start, answer: Answer { script, begin, drawn_from, end, reasons } }
    }
}

impl Answer {
    pub(crate) fn may_end_for(&self, reason: FinishReason) -> bool {
        self.reasons.contains(&reason)
    }
}

/// A prompt of some ten words.
fn sentence(rng: &mut ChaCha8Rng) -> String {
    const OPENINGS: &[&str] =
        &["Once upon a time", " Then", " But when it was night,", " The next day", " At last"];
    const WHO: &[&str] = &[
        " a little girl",
        " the old king",
        " the wolf",
        " a fisherman",
        " the youngest brother",
        " the queen's daughter",
        " a poor tailor",
        " the fox",
    ];
    const DID: &[&str] = &[
        " went into the wood and",
        " looked at the golden bird and",
        " said to the miller: 'Who",
        " came to a great castle where",
        " could not sleep, for",
        " took the key out of the well and",
    ];
    [OPENINGS, WHO, DID].map(|it| *it.choose(rng).expect("there are some")).concat()
}
