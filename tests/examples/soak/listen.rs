//! Hears streams to their end, and holds every token, position and byte of text to the script.

use std::time::Duration;

use aerie_client::{
    Client, Error, Event, Generation,
    v1::{self, FinishReason},
};
use tokio::time::{Instant, sleep, timeout};
use tokio_stream::StreamExt as _;

use crate::{
    script::{Answer, Script},
    surprise::Surprise,
    town::{Counts, Town},
};

/// The longest time in which a server may be away.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// A stream, and what was heard of it by now.
pub(crate) struct Listener<'a> {
    town: &'a Town,
    script: &'a Script,
    stream: Generation,
    /// Where the text begins that must be equal; none if a character is cut there.
    text_from: Option<usize>,
    text: String,
    pub(crate) position: usize,
    pub(crate) finished: Option<v1::Finished>,
    /// Waited after each event.
    pub(crate) pause: Duration,
}

impl<'a> Listener<'a> {
    /// Begins a generation and hears what it was accepted as.
    pub(crate) async fn generate(
        town: &'a Town,
        client: &Client,
        start: &v1::Start,
        answer: &Answer,
    ) -> Result<Self, Surprise> {
        let mut stream = knock(town, || client.generate(start.clone()))
            .await
            .map_err(Surprise::call("a generation"))?;
        let Some(Event::Accepted(accepted)) = next(&mut stream).await? else {
            return Err(Surprise::Call { what: "a generation", source: Error::Answer });
        };
        Surprise::unless_equal("the position before the prompt", answer.begin, accepted.position)?;
        let n_prompt = answer.drawn_from - answer.begin;
        Surprise::unless_equal("prompt_tokens", n_prompt, accepted.prompt_tokens.into())?;
        if accepted.repeated {
            Counts::one(&town.counts.repeated);
        }
        Ok(Self::new(town, answer.script, stream, answer.drawn_from))
    }

    /// Follows a session from a position on.
    pub(crate) async fn attach(
        town: &'a Town,
        client: &Client,
        id: &str,
        script: usize,
        from: usize,
    ) -> Result<Self, Surprise> {
        Counts::one(&town.counts.readers);
        let stream = knock(town, || client.attach(id, from as u64))
            .await
            .map_err(Surprise::call("a reader"))?;
        Ok(Self::new(town, script, stream, from))
    }

    fn new(town: &'a Town, script: usize, stream: Generation, position: usize) -> Self {
        let script = &town.scripts[script];
        // A turn goes on with a character that the tokens before it have begun, and so does our text.
        let text_from = Some(position);
        let (text, pause, finished) = (String::new(), Duration::ZERO, None);
        Self { town, script, stream, text_from, text, position, finished, pause }
    }

    /// For readers that begin within a character: its text cannot be told.
    pub(crate) fn without_text(mut self) -> Self {
        self.text_from = None;
        self
    }

    /// Hears until the session stands at `position`, or the stream has ended.
    pub(crate) async fn until(&mut self, position: usize) -> Result<(), Surprise> {
        while self.position < position && self.finished.is_none() {
            self.hear().await?;
        }
        Ok(())
    }

    /// Hears all there is, and gives the reason of the end.
    pub(crate) async fn rest(&mut self) -> Result<FinishReason, Surprise> {
        while self.finished.is_none() {
            self.hear().await?;
        }
        let finished = self.finished.as_ref().expect("it has just ended");
        Surprise::unless_equal("the final position", self.position, finished.position)?;
        if let Some(begin) = self.text_from {
            let (end, expected) = (self.position, self.script.text(begin, self.position));
            if expected != self.text {
                let (expected, found) = (expected.to_owned(), self.text.clone());
                return Err(Surprise::Text { begin, end, expected, found });
            }
        }
        Ok(finished.reason())
    }

    pub(crate) fn town(&self) -> &'a Town {
        self.town
    }

    /// Asks to be told no more.
    pub(crate) async fn cancel(&mut self) -> Result<(), Surprise> {
        self.stream.cancel().await.map_err(Surprise::call("a cancellation"))
    }

    async fn hear(&mut self) -> Result<(), Surprise> {
        match next(&mut self.stream).await? {
            Some(Event::Delta(delta)) => self.take(&delta)?,
            Some(Event::Finished(finished)) => self.finished = Some(finished),
            Some(Event::Accepted(_) | Event::Attached(_)) => {}
            None => return Err(Surprise::Call { what: "a stream", source: Error::Answer }),
        }
        if !self.pause.is_zero() {
            sleep(self.pause).await;
        }
        Ok(())
    }

    fn take(&mut self, delta: &v1::Delta) -> Result<(), Surprise> {
        if !delta.ids.is_empty() {
            Surprise::unless_equal("the position of a delta", self.position, delta.position)?;
        }
        for &found in &delta.ids {
            let expected = self.script.ids.get(self.position).copied();
            if expected != Some(found) {
                return Err(Surprise::Token { position: self.position, expected, found });
            }
            self.position += 1;
        }
        self.town
            .counts
            .tokens
            .fetch_add(delta.ids.len() as u64, std::sync::atomic::Ordering::Relaxed);
        self.text.push_str(&delta.text);
        Ok(())
    }
}

/// Whether a reader was told that the server goes: others than whoever asked are not told more.
pub(crate) fn is_cut(reason: FinishReason) -> bool {
    matches!(reason, FinishReason::Interrupted | FinishReason::Shutdown)
}

async fn next(stream: &mut Generation) -> Result<Option<Event>, Surprise> {
    match timeout(2 * PATIENCE, stream.next()).await {
        Ok(Some(Ok(event))) => Ok(Some(event)),
        Ok(Some(Err(source))) => Err(Surprise::Call { what: "a stream", source }),
        Ok(None) => Ok(None),
        Err(_) => Err(Surprise::Silence { what: "a stream", seconds: 2 * PATIENCE.as_secs() }),
    }
}

/// Asks until there is an answer: while the server is away, a new call is told so at once, and files are carried
/// without asking again.
pub(crate) async fn knock<T, F>(town: &Town, mut ask: impl FnMut() -> F) -> Result<T, Error>
where
    F: Future<Output = Result<T, Error>>,
{
    let began = Instant::now();
    loop {
        match ask().await {
            Err(error) if is_away(&error) && began.elapsed() < PATIENCE => {
                Counts::one(&town.counts.knocks);
                sleep(Duration::from_millis(50)).await;
            }
            answer => return answer,
        }
    }
}

fn is_away(error: &Error) -> bool {
    error.code() == aerie_client::Code::Unavailable
}
