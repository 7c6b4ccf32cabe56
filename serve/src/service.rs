//! What every transport offers, in one place: generations, sessions, models, readiness.

use std::{
    collections::VecDeque,
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use aerie_models::Manifest;
use aerie_proto::v1;
use tokio::{
    sync::{oneshot, watch},
    task::spawn_blocking,
};
use tokio_stream::Stream;

use crate::{
    admission::{Admission, Reject},
    auth::{Auth, Caller, Evidence, Principal, TenantId},
    device::{DeviceSpec, DeviceSpecError},
    oip,
    pipe::{self, FinishReason, PipeEvent, PipeReader, RecomputeReason, pipe},
    prefixes::Miss,
    quotas::Usage,
    request::{self, Origin, Request},
    router::{Load, Residence, Router, SendError, WorkerId},
    sealed,
    sessions::{Fingerprint, Name, SessionId},
    store::Parcel,
    telemetry::metrics::Metrics,
    text::{Tokenizer, Vocabulary},
    worker::{
        Attachment, Change, Clock, Event, Fork, List, Look, Move, Pack, Rename, Rewind, Standing,
        Submission, Unpack, What,
    },
};

mod classify;
#[cfg(test)]
mod tests;

pub use self::classify::{Classified, Classifier};

/// The server as its transports see it; cloning gives another handle to the same.
#[derive(Clone, Debug)]
pub struct Service {
    inner: Arc<Inner>,
}

/// The tokens of one generation.
///
/// Dropping it cancels the generation within one step, unless that can be gone on with; the session is kept if it
/// asked to be.
#[derive(Debug)]
pub struct TokenStream {
    reader: PipeReader,
    /// Read from the pipe, but not yet part of an event: what ended a run of tokens.
    next: VecDeque<PipeEvent>,
    model: String,
    service: Service,
    queue: Duration,
    is_over: bool,
}

/// One event of a generation: `Accepted` or `Attached`, then any number of `Delta`, then one of the others.
#[derive(Clone, Debug, PartialEq)]
pub enum TokenEvent {
    Accepted(v1::Accepted),
    Attached(v1::Attached),
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

/// Where a page of a list ended.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct ListPlace {
    /// Number of the worker whose sessions come next.
    pub worker: usize,
    /// Among those.
    pub place: u32,
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
    pub auth: Auth,
    pub models: Vec<Hosted>,
    pub classifiers: Vec<Classifier>,
    pub router: Router,
    pub admission: Admission,
    pub request: request::Config,
    /// Tokens of a session's log that are kept.
    pub log_tokens_max: u32,
    /// Rows of one request to a classifier.
    pub rows_max: u32,
    pub pipe: pipe::Config,
    pub oip: oip::Setup,
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
    pub async fn generate(&self, who: Principal, start: v1::Start) -> Result<TokenStream, Reject> {
        let result = self.open(who, start).await;
        if let Err(reject) = &result {
            self.count_reject(reject);
        }
        result
    }

    /// Who makes a call that shows `evidence`.
    ///
    /// # Errors
    /// [`Reject::Unauthenticated`], unless everybody is let in.
    pub fn caller(&self, evidence: Evidence) -> Result<Caller, Reject> {
        self.parts().auth.caller(evidence).inspect_err(|reject| self.count_reject(reject))
    }

    /// Who makes a call to the admin listener.
    ///
    /// # Errors
    /// [`Reject::Unauthenticated`] or [`Reject::NotAdmin`].
    pub fn admin(&self, evidence: &Evidence) -> Result<Principal, Reject> {
        self.parts().auth.admin(evidence).inspect_err(|reject| self.count_reject(reject))
    }

    /// A page of the sessions that `who` is shown, in no order; each that is there all the while is on one page. `from` is
    /// where the page before ended. Says where the next begins.
    ///
    /// # Errors
    /// See [`Reject`].
    pub async fn sessions(
        &self,
        who: Principal,
        from: ListPlace,
        sessions_max: usize,
    ) -> Result<(Vec<(TenantId, v1::Session)>, Option<ListPlace>), Reject> {
        let ListPlace { worker, place } = from;
        let n_workers = self.parts().router.workers().len();
        if n_workers <= worker {
            return Ok((Vec::new(), None));
        }
        let worker = WorkerId(worker);
        let page =
            self.ask(worker, |reply| Event::List(List { who, place, sessions_max, reply })).await?;
        let describe = |standing: Standing| (standing.tenant, self.describe(worker, standing));
        let sessions = page.sessions.into_iter().map(describe).collect();
        let next = match page.next {
            Some(place) => Some(ListPlace { worker: worker.0, place }),
            None if worker.0 + 1 < n_workers => Some(ListPlace { worker: worker.0 + 1, place: 0 }),
            None => None,
        };
        Ok((sessions, next))
    }

    /// One session, by its id or its name.
    ///
    /// # Errors
    /// [`Reject::Invalid`], [`Reject::UnknownSession`] or [`Reject::UnknownName`].
    pub async fn session(&self, who: Principal, id: &str) -> Result<v1::Session, Reject> {
        Ok(self.owned_session(who, id).await?.1)
    }

    /// The same, and whose it is.
    ///
    /// # Errors
    /// As [`Service::session`].
    pub async fn owned_session(
        &self,
        who: Principal,
        id: &str,
    ) -> Result<(TenantId, v1::Session), Reject> {
        let (id, worker) = self.find(who, "session_id", id)?;
        let look = |reply| Event::Look(Look { who, id, reply });
        let standing = self.answer(who, worker, look).await?;
        Ok((standing.tenant, self.describe(worker, standing)))
    }

    /// Lets a reader follow a session from a position on.
    ///
    /// # Errors
    /// See [`Reject`].
    pub async fn attach(
        &self,
        who: Principal,
        request: &v1::AttachRequest,
    ) -> Result<TokenStream, Reject> {
        let result = self.open_reader(who, request).await;
        if let Err(reject) = &result {
            self.count_reject(reject);
        }
        result
    }

    /// Forgets an idle session.
    ///
    /// # Errors
    /// See [`Reject`]; [`Reject::SessionBusy`] if a generation is running.
    pub async fn delete_session(
        &self,
        who: Principal,
        request: &v1::DeleteSessionRequest,
    ) -> Result<(), Reject> {
        let (id, worker) = self.find(who, "session_id", &request.session_id)?;
        let expected_position = request.expected_position;
        self.change(who, worker, id, expected_position, What::Delete).await?;
        Ok(())
    }

    /// Makes a session that stands where another stands or has stood.
    ///
    /// # Errors
    /// See [`Reject`].
    pub async fn fork_session(
        &self,
        who: Principal,
        request: &v1::ForkSessionRequest,
    ) -> Result<v1::Session, Reject> {
        self.check_request_id(&request.request_id)?;
        let (id, worker) = self.find(who, "session_id", &request.session_id)?;
        let new = match request.new_session_id.as_str() {
            "" => SessionId::random(),
            text => parse_session_id("new_session_id", text)?,
        };
        let worker = self.parts().router.place_beside(new, worker);
        let digest = digest_of(&request.request_id, request);
        let fork = What::Fork(Fork { new, position: request.position, digest });
        let expected_position = request.expected_position;
        self.change(who, worker, id, expected_position, fork).await
    }

    /// Takes an idle session back to a position where it has stood.
    ///
    /// # Errors
    /// See [`Reject`].
    pub async fn rewind_session(
        &self,
        who: Principal,
        request: &v1::RewindSessionRequest,
    ) -> Result<v1::Session, Reject> {
        self.check_request_id(&request.request_id)?;
        let (id, worker) = self.find(who, "session_id", &request.session_id)?;
        let digest = digest_of(&request.request_id, request);
        let rewind = What::Rewind(Rewind { position: request.position, digest });
        self.change(who, worker, id, request.expected_position, rewind).await
    }

    /// Brings a session to another device.
    ///
    /// # Errors
    /// See [`Reject`].
    pub async fn move_session(
        &self,
        who: Principal,
        request: &v1::MoveSessionRequest,
    ) -> Result<v1::Session, Reject> {
        let (id, from) = self.find(who, "session_id", &request.session_id)?;
        let invalid = |problem: String| Reject::Invalid { field: "device", problem };
        let device: DeviceSpec = request
            .device
            .parse()
            .map_err(|error: DeviceSpecError| invalid(format!("is refused: {error}")))?;
        let to = self.parts().router.beside(from, &device.to_string());
        let to = to.ok_or_else(|| invalid(format!("{device} does not run the session's model")))?;
        let standing = self.bring(who, id, [from, to], request.expected_position, false).await?;
        Ok(self.describe(to, standing))
    }

    async fn bring(
        &self,
        who: Principal,
        id: SessionId,
        [from, to]: [WorkerId; 2],
        expected_position: Option<u64>,
        only_idle: bool,
    ) -> Result<Standing, Reject> {
        let router = &self.parts().router;
        let load = router.load(to);
        let departure = |reply| {
            let (from, to) = (router.peer(from), router.peer(to));
            let departure = Move { who, id, expected_position, only_idle, from, to, load, reply };
            Event::Move(Box::new(departure))
        };
        self.answer(who, from, departure).await
    }

    /// Gives a session a name, or takes it away.
    ///
    /// # Errors
    /// See [`Reject`].
    pub async fn name_session(
        &self,
        who: Principal,
        request: &v1::NameSessionRequest,
    ) -> Result<v1::Session, Reject> {
        let id = parse_session_id("session_id", &request.session_id)?;
        let worker = self.locate(who, id)?;
        let name =
            match request.name.as_str() {
                "" => None,
                text => Some(Name::parse(text).map_err(|error| Reject::Invalid {
                    field: "name",
                    problem: error.to_string(),
                })?),
            };
        let router = &self.parts().router;
        if let Some(name) = name {
            router.reserve_name(who.tenant, name, id)?;
        }
        let rename = What::Name(Rename { name });
        let named = self.change(who, worker, id, request.expected_position, rename).await;
        if let (Some(name), Err(_)) = (name, &named) {
            router.release_name(who.tenant, name, id);
        }
        named
    }

    /// A session as a sealed file; see [`sealed`].
    ///
    /// # Errors
    /// See [`Reject`].
    pub async fn export_session(
        &self,
        who: Principal,
        request: &v1::ExportSessionRequest,
    ) -> Result<Vec<u8>, Reject> {
        let (id, worker) = self.find(who, "session_id", &request.session_id)?;
        let expected_position = request.expected_position;
        let pack = |reply| Event::Pack(Pack { who, id, expected_position, reply });
        let parcel = self.answer(who, worker, pack).await?;
        let (service, model) = (self.clone(), self.parts().router.worker(worker).model);
        spawn_blocking(move || sealed::seal(&service.parts().models[model].manifest, id, &parcel))
            .await
            .map_err(|_| Reject::Internal { what: "its file could not be written" })
    }

    /// Makes a session of a file.
    ///
    /// # Errors
    /// See [`Reject`].
    pub async fn import_session(
        &self,
        who: Principal,
        start: v1::ImportStart,
        file: Vec<u8>,
    ) -> Result<v1::Session, Reject> {
        self.check_request_id(&start.request_id)?;
        let named = match start.session_id.as_str() {
            "" => None,
            text => Some(parse_session_id("session_id", text)?),
        };
        let digest = digest_of(&start.request_id, &start);
        let service = self.clone();
        let opened = spawn_blocking(move || service.open_sealed(&file))
            .await
            .map_err(|_| Reject::Internal { what: "its file could not be read" })?;
        let (model, sealed_id, parcel) = opened.inspect_err(|reject| self.count_reject(reject))?;
        let id = named.unwrap_or(sealed_id);
        let worker = self.parts().router.place(id, model);
        let unpack = |reply| Event::Unpack(Box::new(Unpack { who, id, parcel, digest, reply }));
        let standing = self.answer(who, worker, unpack).await?;
        Ok(self.describe(worker, standing))
    }

    /// Bytes of the largest file that can be imported.
    pub fn sealed_bytes_max(&self) -> u64 {
        let Parts { models, log_tokens_max, .. } = self.parts();
        let bytes = models.iter().map(|it| sealed::bytes_max(&it.manifest, *log_tokens_max));
        bytes.max().unwrap_or(0)
    }

    /// Reads a file for the model that it is of.
    fn open_sealed(&self, file: &[u8]) -> Result<(usize, SessionId, Parcel), Reject> {
        let mut refused = None;
        for (model, hosted) in self.parts().models.iter().enumerate() {
            match sealed::open(&hosted.manifest, file) {
                Ok((id, parcel)) => return Ok((model, id, parcel)),
                Err(error) => _ = refused.get_or_insert(error),
            }
        }
        let problem = match refused {
            Some(error) => format!("is refused: {error}"),
            None => "is refused: no model here has sessions".to_owned(),
        };
        Err(Reject::Invalid { field: "chunk", problem })
    }

    /// Every model: those that generate, then those that classify, in the order of the configuration.
    pub fn models(&self) -> Vec<v1::Model> {
        let Parts { models, classifiers, .. } = self.parts();
        let classifiers = classifiers.iter().map(Classifier::describe);
        models.iter().map(Hosted::describe).chain(classifiers).collect()
    }

    /// Readiness now and in the future.
    pub fn readiness(&self) -> watch::Receiver<Readiness> {
        self.parts().readiness.subscribe()
    }

    pub fn metrics(&self) -> &Metrics {
        &self.parts().metrics
    }

    /// All metrics in text, with what each tenant has now.
    pub fn render_metrics(&self) -> String {
        let Parts { auth, admission, metrics, oip, .. } = self.parts();
        let gauge = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        metrics.oip_calls.set(gauge(oip.calls()));
        metrics.classifications.set(gauge(admission.classifying()));
        for tenant in auth.tenants() {
            let Usage { sessions, generations } = admission.quotas().usage(tenant.id);
            let gauges = metrics.tenant(&tenant.name);
            gauges.sessions.set(sessions.into());
            gauges.generations.set(generations.into());
        }
        metrics.render()
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

    async fn open(&self, who: Principal, start: v1::Start) -> Result<TokenStream, Reject> {
        let arrived = self.parts().clock.now();
        if *self.parts().readiness.borrow() != Readiness::Ready {
            return Err(self.parts().admission.unavailable());
        }
        let permit = self.parts().admission.admit(who.tenant)?;
        let Target { model, origin, beside } = self.resolve(who, &start)?;
        let named = match start.session_id.as_str() {
            "" => None,
            text => Some(parse_session_id("session_id", text)?),
        };
        let makes = origin != Origin::Session || start.expected_position == Some(0);
        let request = self.parse(model, who, start, origin).await?;
        let router = &self.parts().router;
        let id = named.unwrap_or_else(SessionId::random);
        let worker = match beside {
            Some(worker) if !makes => self.lighten(who, id, worker).await,
            Some(worker) => router.place_beside(id, worker),
            None => router.place(id, model),
        };
        let is_placed = makes || beside.is_none();
        let (sender, reader) = pipe(self.parts().pipe.events_max as usize);
        let load: Load = router.load(worker);
        let submission = Submission { id, request, pipe: sender, permit, load, is_placed, arrived };
        self.send(worker, Event::Open(Box::new(submission)))?;
        let name = self.parts().models[model].name.clone();
        let stream = TokenStream::begin(reader, name.clone(), self.clone()).await;
        let stream = stream.map_err(|reject| self.explained(who, reject))?;
        self.metrics().generations_accepted.with_label_values(&[&name]).inc();
        Ok(stream)
    }

    /// The worker that is to go on with a session: the one that has it; or, if all lanes of that are in use and another
    /// has some that are free, that one, to which the session is brought.
    async fn lighten(&self, who: Principal, id: SessionId, worker: WorkerId) -> WorkerId {
        let Some(lighter) = self.parts().router.lighter(worker) else { return worker };
        match self.bring(who, id, [worker, lighter], None, true).await {
            Ok(_) => lighter,
            // What is wrong is said where it is gone on with.
            Err(_) => worker,
        }
    }

    async fn open_reader(
        &self,
        who: Principal,
        request: &v1::AttachRequest,
    ) -> Result<TokenStream, Reject> {
        let (id, worker) = self.find(who, "session_id", &request.session_id)?;
        let permit = self.parts().admission.admit(who.tenant)?;
        let (sender, reader) = pipe(self.parts().pipe.events_max as usize);
        let from_position = request.from_position;
        let attachment = Attachment { who, id, from_position, pipe: sender, permit };
        self.send(worker, Event::Attach(Box::new(attachment)))?;
        let model = self.parts().router.worker(worker).model;
        let model = self.parts().models[model].name.clone();
        let stream = TokenStream::begin(reader, model, self.clone()).await;
        stream.map_err(|reject| self.explained(who, reject))
    }

    /// Has a worker make a change, and waits for its answer.
    async fn change(
        &self,
        who: Principal,
        worker: WorkerId,
        id: SessionId,
        expected_position: Option<u64>,
        what: What,
    ) -> Result<v1::Session, Reject> {
        let change =
            |reply| Event::Change(Box::new(Change { who, id, expected_position, what, reply }));
        let standing = self.answer(who, worker, change).await?;
        Ok(self.describe(worker, standing))
    }

    /// Asks a worker, and waits for its answer, which may be a refusal.
    async fn answer<T>(
        &self,
        who: Principal,
        worker: WorkerId,
        event: impl FnOnce(oneshot::Sender<Result<T, Reject>>) -> Event,
    ) -> Result<T, Reject> {
        let answer = self.ask(worker, event).await.and_then(|answer| answer);
        answer.map_err(|reject| self.explained(who, reject)).inspect_err(|it| self.count_reject(it))
    }

    /// Asks a worker, and waits for its answer.
    async fn ask<T>(
        &self,
        worker: WorkerId,
        event: impl FnOnce(oneshot::Sender<T>) -> Event,
    ) -> Result<T, Reject> {
        let (reply, answer) = oneshot::channel();
        self.send(worker, event(reply))?;
        answer.await.map_err(|_| self.worker_ended())
    }

    /// What becomes of a request that reached a worker which ended before it answered: with the server, as a rule. It
    /// may be sent again, and finds the server that comes next.
    fn worker_ended(&self) -> Reject {
        self.parts().admission.unavailable()
    }

    fn send(&self, worker: WorkerId, event: Event) -> Result<(), Reject> {
        self.parts().router.send(worker, event).map_err(|error| match error {
            SendError::Full => self.parts().admission.queue_full(),
            SendError::Gone => self.parts().admission.unavailable(),
        })
    }

    /// A worker's refusal, with why a session is not there that the worker does not know any more.
    fn explained(&self, who: Principal, reject: Reject) -> Reject {
        match reject {
            Reject::UnknownSession { id, gone: None } => self.unknown(who, id),
            reject => reject,
        }
    }

    fn unknown(&self, who: Principal, id: SessionId) -> Reject {
        Reject::UnknownSession { id, gone: self.parts().router.gone(who, id) }
    }

    /// What `start` goes on with: its model, and the worker if that is decided by a session.
    fn resolve(&self, who: Principal, start: &v1::Start) -> Result<Target, Reject> {
        let models = &self.parts().models;
        let named = models.iter().position(|it| it.name == start.model);
        if named.is_none() && (!start.model.is_empty() || models.is_empty()) {
            return Err(self.no_generator(&start.model));
        }
        let (origin, worker) = if !start.fork_of.is_empty() {
            let (of, worker) = self.find(who, "fork_of", &start.fork_of)?;
            (Origin::Fork { of, position: start.fork_position }, Some(worker))
        } else if start.session_id.is_empty() {
            (Origin::New, None)
        } else {
            let id = parse_session_id("session_id", &start.session_id)?;
            match self.locate(who, id) {
                Ok(worker) => (Origin::Session, Some(worker)),
                Err(_) if start.expected_position == Some(0) => (Origin::Session, None),
                Err(reject) => return Err(reject),
            }
        };
        let Some(worker) = worker else {
            return Ok(Target { model: named.unwrap_or(0), origin, beside: None });
        };
        let model = self.parts().router.worker(worker).model;
        if named.is_some_and(|named| named != model) {
            let problem = format!("is {:?}, but the session is of another", start.model);
            return Err(Reject::Invalid { field: "model", problem });
        }
        Ok(Target { model, origin, beside: Some(worker) })
    }

    /// The session that `field` means, by its id or its name, and the worker that knows of it.
    fn find(
        &self,
        who: Principal,
        field: &'static str,
        text: &str,
    ) -> Result<(SessionId, WorkerId), Reject> {
        let id = match SessionId::parse(text) {
            Some(id) => id,
            None => {
                let name = Name::parse(text).map_err(|error| Reject::Invalid {
                    field,
                    problem: format!("is neither a UUID nor a name: {error}"),
                })?;
                let named = self.parts().router.named(who.tenant, name);
                named.ok_or_else(|| Reject::UnknownName { name: text.to_owned() })?
            }
        };
        Ok((id, self.locate(who, id)?))
    }

    /// The worker that knows whether `who` has a session `id`.
    fn locate(&self, who: Principal, id: SessionId) -> Result<WorkerId, Reject> {
        self.parts().router.locate(id).ok_or_else(|| self.unknown(who, id))
    }

    fn check_request_id(&self, id: &str) -> Result<(), Reject> {
        let max = self.parts().request.request_id_bytes_max;
        if id.len() <= max as usize {
            return Ok(());
        }
        let problem = format!("has {} bytes; at most {max} are allowed", id.len());
        Err(Reject::Invalid { field: "request_id", problem })
    }

    async fn parse(
        &self,
        model: usize,
        who: Principal,
        start: v1::Start,
        origin: Origin,
    ) -> Result<Request, Reject> {
        let is_long = matches!(
            &start.prompt,
            Some(v1::start::Prompt::Text(text)) if INLINE_PROMPT_BYTES_MAX < text.len()
        );
        if !is_long {
            return self.parse_here(model, who, start, origin);
        }
        let service = self.clone();
        spawn_blocking(move || service.parse_here(model, who, start, origin))
            .await
            .unwrap_or(Err(Reject::Internal { what: "its prompt could not be tokenized" }))
    }

    fn parse_here(
        &self,
        model: usize,
        who: Principal,
        start: v1::Start,
        origin: Origin,
    ) -> Result<Request, Reject> {
        let Hosted { tokenizer, vocabulary, .. } = &self.parts().models[model];
        Request::parse(who, start, origin, &self.parts().request, tokenizer, vocabulary.len())
    }

    /// The refusal of a server that starts or drains.
    pub(crate) fn unavailable(&self) -> Reject {
        self.parts().admission.unavailable()
    }

    pub(crate) fn count_reject(&self, reject: &Reject) {
        let label = reject.kind().label();
        self.metrics().requests_rejected.with_label_values(&[label]).inc();
    }

    fn describe(&self, worker: WorkerId, standing: Standing) -> v1::Session {
        let worker = self.parts().router.worker(worker);
        let model = &self.parts().models[worker.model];
        let clock = &self.parts().clock;
        let idle_ms = clock.unix_ms(clock.now()).saturating_sub(standing.used_at);
        let residence = match standing.residence {
            Residence::Active => v1::SessionResidence::Active,
            Residence::Resident => v1::SessionResidence::Resident,
            Residence::Parked => v1::SessionResidence::Parked,
        };
        v1::Session {
            session_id: standing.id.to_string(),
            model: model.name.clone(),
            position: standing.position,
            residence: residence.into(),
            state_bytes: model.manifest.layout().bytes(),
            device: worker.device.clone(),
            idle_seconds: match residence {
                v1::SessionResidence::Active => 0.0,
                _ => Duration::from_millis(idle_ms).as_secs_f64(),
            },
            name: standing.name.map_or_else(String::new, |name| name.to_string()),
            position_min: standing.position_min,
        }
    }
}

/// What a request goes on with.
struct Target {
    model: usize,
    origin: Origin,
    /// The worker that has the session, or that which is forked.
    beside: Option<WorkerId>,
}

impl TokenStream {
    /// Asks to end the generation after the current step; `Finished` still comes.
    pub fn cancel(&self) {
        self.reader.cancel();
    }

    /// How long the generation waited for a lane; known once it has finished.
    pub fn queue(&self) -> Duration {
        self.queue
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
                Ok(Self { reader, next, model, service, queue: Duration::ZERO, is_over: false })
            }
            None => Err(service.worker_ended()),
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
                (Poll::Ready(None), None) => PipeEvent::Failed(this.service.worker_ended()),
            };
            this.is_over = !matches!(event, PipeEvent::Accepted(_) | PipeEvent::Attached(_));
            match &event {
                PipeEvent::Failed(reject) => this.service.count_reject(reject),
                PipeEvent::Finished(finished) => {
                    this.queue = Duration::from_micros(finished.queue_us.into());
                }
                _ => {}
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
                recomputed_tokens: accepted.recomputed_tokens,
                recompute_reason: recompute_reason(accepted.recompute_reason).into(),
                repeated: accepted.repeated,
                prefix_tokens: accepted.prefix_tokens,
                prefix_miss: prefix_miss(accepted.prefix_miss).into(),
            }),
            PipeEvent::Attached(attached) => TokenEvent::Attached(v1::Attached {
                session_id: attached.session.to_string(),
                model: self.model.clone(),
                position: attached.position,
                running: attached.running,
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

fn recompute_reason(reason: Option<RecomputeReason>) -> v1::RecomputeReason {
    match reason {
        None => v1::RecomputeReason::Unspecified,
        Some(RecomputeReason::Interrupted) => v1::RecomputeReason::Interrupted,
        Some(RecomputeReason::Rewound) => v1::RecomputeReason::Rewound,
        Some(RecomputeReason::StateLost) => v1::RecomputeReason::StateLost,
    }
}

fn prefix_miss(miss: Option<Miss>) -> v1::PrefixMiss {
    match miss {
        None => v1::PrefixMiss::Unspecified,
        Some(Miss::TooShort) => v1::PrefixMiss::TooShort,
        Some(Miss::Unseen) => v1::PrefixMiss::Unseen,
        Some(Miss::SeenOnce) => v1::PrefixMiss::SeenOnce,
        Some(Miss::Evicted) => v1::PrefixMiss::Evicted,
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
            Self::Interrupted => v1::FinishReason::Interrupted,
            Self::Prompt => v1::FinishReason::Prompt,
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
            classes: 0,
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

fn parse_session_id(field: &'static str, text: &str) -> Result<SessionId, Reject> {
    let problem = || Reject::Invalid { field, problem: "is not a UUID".to_owned() };
    SessionId::parse(text).ok_or_else(problem)
}

/// What tells a change from others, if its client gave it an id to know it by.
fn digest_of(request_id: &str, request: &impl prost::Message) -> Option<u128> {
    (!request_id.is_empty()).then(|| request::digest(request))
}
