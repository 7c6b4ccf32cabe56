//! What every transport offers, in one place: generations, sessions, models, readiness.

use std::{
    collections::VecDeque,
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use aerie_models::Manifest;
use aerie_proto::v1;
use tokio::sync::{oneshot, watch};
use tokio_stream::Stream;

use crate::{
    admission::{Admission, Permit, Reject},
    pipe::{self, FinishReason, PipeEvent, PipeReader, pipe},
    request::{self, Request},
    router::{Entry, Load, Residence, Router, SendError, WorkerId},
    sessions::{Fingerprint, SessionId},
    telemetry::metrics::Metrics,
    text::{Tokenizer, Vocabulary},
    worker::{Clock, Event, Submission},
};

#[cfg(test)]
mod tests;

/// The server as its transports see it; cloning gives another handle to the same.
#[derive(Clone, Debug)]
pub struct Service {
    inner: Arc<Inner>,
}

/// The tokens of one generation.
///
/// Dropping it cancels the generation within one step; the session is kept if it asked to be.
#[derive(Debug)]
pub struct TokenStream {
    reader: PipeReader,
    /// Read from the pipe, but not yet part of an event: what ended a run of tokens.
    next: VecDeque<PipeEvent>,
    model: String,
    service: Service,
    is_over: bool,
}

/// One event of a generation: `Accepted`, then any number of `Delta`, then one of the others.
#[derive(Clone, Debug, PartialEq)]
pub enum TokenEvent {
    Accepted(v1::Accepted),
    Delta(v1::Delta),
    Finished(v1::Finished),
    Failed(Reject),
}

/// Whether requests are welcome.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Readiness {
    Starting,
    Ready,
    /// The server shuts down, or a worker has died.
    Draining,
}

/// A model that is served.
#[derive(Debug)]
pub struct Hosted {
    pub name: String,
    pub manifest: Manifest,
    pub fingerprint: Fingerprint,
    pub parameters: u64,
    pub tokenizer: Tokenizer,
    pub vocabulary: Arc<Vocabulary>,
}

/// What a [`Service`] is made of.
#[derive(Debug)]
pub struct Parts {
    pub models: Vec<Hosted>,
    pub router: Router,
    pub admission: Admission,
    pub request: request::Config,
    pub pipe: pipe::Config,
    pub metrics: Metrics,
    pub readiness: watch::Sender<Readiness>,
    pub clock: Clock,
}

#[derive(Debug)]
struct Inner {
    parts: Parts,
}

/// Longer prompts are tokenized away from the threads that serve sockets: this takes about a
/// millisecond.
const INLINE_PROMPT_BYTES_MAX: usize = 8 << 10;

impl Service {
    pub fn new(parts: Parts) -> Self {
        Self { inner: Arc::new(Inner { parts }) }
    }

    /// Parses, admits and routes a generation, and waits until its worker has opened the session.
    ///
    /// # Errors
    /// See [`Reject`]. Dropping the future before it is ready cancels the generation.
    pub async fn generate(&self, start: v1::Start) -> Result<TokenStream, Reject> {
        let result = self.open(start).await;
        if let Err(reject) = &result {
            self.count_reject(reject);
        }
        result
    }

    /// Every session, in the order of their ids.
    pub fn sessions(&self) -> Vec<v1::Session> {
        let sessions = self.parts().router.sessions();
        sessions.into_iter().map(|(id, entry)| self.describe(id, entry)).collect()
    }

    /// One session.
    ///
    /// # Errors
    /// [`Reject::Invalid`] or [`Reject::UnknownSession`].
    pub fn session(&self, id: &str) -> Result<v1::Session, Reject> {
        let id = parse_session_id(id)?;
        let entry = self.parts().router.session(id).ok_or(Reject::UnknownSession { id })?;
        Ok(self.describe(id, entry))
    }

    /// Forgets an idle session.
    ///
    /// # Errors
    /// See [`Reject`]; [`Reject::SessionBusy`] if a generation is running.
    pub async fn delete_session(&self, id: &str) -> Result<(), Reject> {
        let id = parse_session_id(id)?;
        let router = &self.parts().router;
        let entry = router.session(id).ok_or(Reject::UnknownSession { id })?;
        let (reply, answer) = oneshot::channel();
        let event = Event::Delete { id, reply };
        router.send(entry.worker, event).map_err(|error| self.undelivered(error))?;
        answer.await.unwrap_or(Err(Reject::Internal { what: "its worker has ended" }))
    }

    /// Every model, in the order of the configuration.
    pub fn models(&self) -> Vec<v1::Model> {
        self.parts().models.iter().map(Hosted::describe).collect()
    }

    /// Readiness now and in the future.
    pub fn readiness(&self) -> watch::Receiver<Readiness> {
        self.parts().readiness.subscribe()
    }

    pub fn metrics(&self) -> &Metrics {
        &self.parts().metrics
    }

    /// Generations in flight.
    pub fn in_flight(&self) -> usize {
        self.parts().admission.in_flight()
    }

    /// Changes the readiness, if it goes forward: a server that drains does not become ready.
    pub fn set_readiness(&self, readiness: Readiness) {
        self.parts().readiness.send_if_modified(|current| {
            let goes_forward = (*current as u8) < (readiness as u8);
            if goes_forward {
                *current = readiness;
            }
            goes_forward
        });
    }

    pub(crate) fn parts(&self) -> &Parts {
        &self.inner.parts
    }

    async fn open(&self, start: v1::Start) -> Result<TokenStream, Reject> {
        let arrived = self.parts().clock.now();
        if *self.parts().readiness.borrow() != Readiness::Ready {
            return Err(self.parts().admission.unavailable());
        }
        let permit = self.parts().admission.admit()?;
        let (model, entry) = self.resolve(&start)?;
        let request = self.parse(model, start).await?;
        let (id, worker) = match (request.session, entry) {
            (Some(id), Some(entry)) => (id, entry.worker),
            _ => {
                let id = SessionId::random();
                let used_at = self.parts().clock.unix_ms(arrived);
                (id, self.parts().router.place(id, model, used_at))
            }
        };
        let reader = self.submit(Seat { id, worker, permit, arrived }, request)?;
        let name = self.parts().models[model].name.clone();
        let stream = TokenStream::begin(reader, name.clone(), self.clone()).await?;
        self.metrics().generations_accepted.with_label_values(&[&name]).inc();
        Ok(stream)
    }

    /// The model that `start` means, and its session's entry if it names one.
    fn resolve(&self, start: &v1::Start) -> Result<(usize, Option<Entry>), Reject> {
        let models = &self.parts().models;
        let named = models.iter().position(|it| it.name == start.model);
        if named.is_none() && !start.model.is_empty() {
            return Err(Reject::UnknownModel { name: start.model.clone() });
        }
        if start.session_id.is_empty() {
            return Ok((named.unwrap_or(0), None));
        }
        let id = parse_session_id(&start.session_id)?;
        let entry = self.parts().router.session(id).ok_or(Reject::UnknownSession { id })?;
        let model = self.parts().router.worker(entry.worker).model;
        if named.is_some_and(|named| named != model) {
            let problem = format!("is {:?}, but the session is of another", start.model);
            return Err(Reject::Invalid { field: "model", problem });
        }
        Ok((model, Some(entry)))
    }

    async fn parse(&self, model: usize, start: v1::Start) -> Result<Request, Reject> {
        let is_long = matches!(
            &start.prompt,
            Some(v1::start::Prompt::Text(text)) if INLINE_PROMPT_BYTES_MAX < text.len()
        );
        if !is_long {
            return self.parse_here(model, start);
        }
        let service = self.clone();
        tokio::task::spawn_blocking(move || service.parse_here(model, start))
            .await
            .unwrap_or(Err(Reject::Internal { what: "its prompt could not be tokenized" }))
    }

    fn parse_here(&self, model: usize, start: v1::Start) -> Result<Request, Reject> {
        let Hosted { tokenizer, vocabulary, .. } = &self.parts().models[model];
        Request::parse(start, &self.parts().request, tokenizer, vocabulary.len())
    }

    /// Sends the generation to its worker.
    fn submit(&self, seat: Seat, request: Request) -> Result<PipeReader, Reject> {
        let Seat { id, worker, permit, arrived } = seat;
        let (sender, reader) = pipe(self.parts().pipe.events_max as usize);
        let is_new = request.session.is_none();
        let load: Load = self.parts().router.load(worker);
        let submission = Submission { id, request, pipe: sender, permit, load, arrived };
        let event = Event::Open(Box::new(submission));
        self.parts().router.send(worker, event).map_err(|error| {
            if is_new {
                self.parts().router.unplace(id);
            }
            self.undelivered(error)
        })?;
        Ok(reader)
    }

    fn undelivered(&self, error: SendError) -> Reject {
        match error {
            SendError::Full => self.parts().admission.queue_full(),
            SendError::Gone => self.parts().admission.unavailable(),
        }
    }

    fn count_reject(&self, reject: &Reject) {
        let label = reject.kind().label();
        self.metrics().requests_rejected.with_label_values(&[label]).inc();
    }

    fn describe(&self, id: SessionId, entry: Entry) -> v1::Session {
        let worker = self.parts().router.worker(entry.worker);
        let model = &self.parts().models[worker.model];
        let clock = &self.parts().clock;
        let idle_ms = clock.unix_ms(clock.now()).saturating_sub(entry.used_at);
        let residence = match entry.residence {
            Residence::Active => v1::SessionResidence::Active,
            Residence::Resident => v1::SessionResidence::Resident,
            Residence::Parked => v1::SessionResidence::Parked,
        };
        v1::Session {
            session_id: id.to_string(),
            model: model.name.clone(),
            position: entry.position,
            residence: residence.into(),
            state_bytes: model.manifest.layout().bytes(),
            device: worker.device.clone(),
            idle_seconds: match residence {
                v1::SessionResidence::Active => 0.0,
                _ => Duration::from_millis(idle_ms).as_secs_f64(),
            },
        }
    }
}

/// Where a generation goes, and what lets it in.
struct Seat {
    id: SessionId,
    worker: WorkerId,
    permit: Permit,
    arrived: Instant,
}

impl TokenStream {
    /// Asks to end the generation after the current step; `Finished` still comes.
    pub fn cancel(&self) {
        self.reader.cancel();
    }

    /// Waits for the worker's word on the session.
    async fn begin(
        mut reader: PipeReader,
        model: String,
        service: Service,
    ) -> Result<Self, Reject> {
        match reader.receiver.recv().await {
            Some(PipeEvent::Failed(reject)) => Err(reject),
            Some(event) => {
                let next = VecDeque::from([event]);
                Ok(Self { reader, next, model, service, is_over: false })
            }
            None => Err(Reject::Internal { what: "its worker has ended" }),
        }
    }

    fn poll_pipe(&mut self, context: &mut Context<'_>) -> Poll<Option<PipeEvent>> {
        match self.next.pop_front() {
            Some(event) => Poll::Ready(Some(event)),
            None => self.reader.receiver.poll_recv(context),
        }
    }
}

impl Stream for TokenStream {
    type Item = TokenEvent;

    /// Tokens that have come meanwhile are one `Delta`: a slow reader gets fewer, larger ones.
    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<TokenEvent>> {
        let this = self.get_mut();
        if this.is_over {
            return Poll::Ready(None);
        }
        let mut delta: Option<v1::Delta> = None;
        loop {
            let event = match (this.poll_pipe(context), delta.take()) {
                (Poll::Pending, None) => return Poll::Pending,
                (Poll::Pending, Some(delta)) => {
                    return Poll::Ready(Some(TokenEvent::Delta(delta)));
                }
                (Poll::Ready(Some(PipeEvent::Token { token, position, text })), so_far) => {
                    let mut grown =
                        so_far.unwrap_or_else(|| v1::Delta { position, ..v1::Delta::default() });
                    grown.ids.push(token);
                    grown.text.push_str(text.as_str());
                    delta = Some(grown);
                    continue;
                }
                (Poll::Ready(Some(PipeEvent::Text(text))), so_far) => {
                    let mut grown = so_far.unwrap_or_default();
                    grown.text.push_str(text.as_str());
                    delta = Some(grown);
                    continue;
                }
                (Poll::Ready(Some(event)), None) => event,
                (Poll::Ready(Some(event)), Some(delta)) => {
                    this.next.push_front(event);
                    return Poll::Ready(Some(TokenEvent::Delta(delta)));
                }
                (Poll::Ready(None), Some(delta)) => {
                    return Poll::Ready(Some(TokenEvent::Delta(delta)));
                }
                (Poll::Ready(None), None) => {
                    PipeEvent::Failed(Reject::Internal { what: "its worker has ended" })
                }
            };
            this.is_over = !matches!(event, PipeEvent::Accepted(_));
            if let PipeEvent::Failed(reject) = &event {
                this.service.count_reject(reject);
            }
            return Poll::Ready(Some(this.describe(event)));
        }
    }
}

impl TokenStream {
    /// An event that is not part of a `Delta`, for the wire.
    fn describe(&self, event: PipeEvent) -> TokenEvent {
        match event {
            PipeEvent::Accepted(accepted) => TokenEvent::Accepted(v1::Accepted {
                session_id: accepted.session.to_string(),
                model: self.model.clone(),
                position: accepted.position,
                prompt_tokens: accepted.prompt_tokens,
                resumed_tokens: accepted.resumed_tokens,
                seed: accepted.seed,
            }),
            PipeEvent::Finished(finished) => TokenEvent::Finished(v1::Finished {
                reason: finished.reason.describe().into(),
                position: finished.position,
                prompt_tokens: finished.prompt_tokens,
                generated_tokens: finished.generated_tokens,
                time_to_first_token_seconds: finished.time_to_first_token.as_secs_f64(),
                duration_seconds: finished.duration.as_secs_f64(),
            }),
            PipeEvent::Failed(reject) => TokenEvent::Failed(reject),
            PipeEvent::Token { .. } | PipeEvent::Text(_) => {
                unreachable!("tokens are gathered into deltas")
            }
        }
    }
}

impl FinishReason {
    fn describe(self) -> v1::FinishReason {
        match self {
            Self::Length => v1::FinishReason::Length,
            Self::Stop => v1::FinishReason::Stop,
            Self::EndOfText => v1::FinishReason::EndOfText,
            Self::Cancelled => v1::FinishReason::Cancelled,
            Self::Shutdown => v1::FinishReason::Shutdown,
        }
    }
}

impl Hosted {
    fn describe(&self) -> v1::Model {
        let config = &self.manifest.model;
        v1::Model {
            name: self.name.clone(),
            family: format!("{:?}", config.family).to_lowercase(),
            parameters: self.parameters,
            state_bytes: self.manifest.layout().bytes(),
            fingerprint: Hex(&self.fingerprint).to_string(),
            vocab: config.vocab,
            window: config.window,
        }
    }
}

/// Bytes in hexadecimal.
pub(crate) struct Hex<'a>(pub &'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

fn parse_session_id(text: &str) -> Result<SessionId, Reject> {
    let problem = || Reject::Invalid { field: "session_id", problem: "is not a UUID".to_owned() };
    SessionId::parse(text).ok_or_else(problem)
}
