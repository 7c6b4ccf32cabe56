//! The Open Inference Protocol: what its two wires do alike.
//!
//! `grpc` and `rest` decode and encode; `exchange` is a stream of requests, and `responses` what its client reads of it.
//! What requests mean is in [`crate::oip`].

mod exchange;
pub(super) mod grpc;
mod responses;
pub mod rest;
#[cfg(test)]
mod tests;

use std::{
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use aerie_proto::{
    inference::{
        ModelInferRequest, ModelInferResponse, ModelMetadataResponse, ModelStatistics,
        RepositoryIndexResponse, ServerMetadataResponse, repository_index_response::ModelIndex,
    },
    v1,
};
use tokio::{sync::OwnedSemaphorePermit, time::timeout};
use tokio_stream::StreamExt as _;
use tracing::warn;

use crate::{
    admission::{Reject, Room, Wait},
    auth::{Caller, Principal},
    oip::{
        EXTENSIONS, Setup, TENSORS_MAX, VERSION,
        classify::{self, Classification},
        recurrent::{self, Generation, Said},
        statistics::{Answered, Runs},
        wire::Limits,
    },
    quotas::Share,
    service::{Classified, Parts, Readiness, Service, TokenEvent, TokenStream},
    transport::turns::Broken,
};

/// A service as the protocol sees it.
#[derive(Clone, Debug)]
pub(super) struct Oip {
    service: Service,
}

/// A place among the calls that are let in at once, of all and of its tenant's.
#[derive(Debug)]
pub(super) struct Place {
    _permit: OwnedSemaphorePermit,
    _share: Share,
}

/// What serves models that generate, and what those that classify.
const RECURRENT: &str = "aerie_recurrent";
const CLASSIFIER: &str = "aerie_classifier";
/// Of a name that is told in an error.
const NAME_CHARS_MAX: usize = 128;

/// A model that somebody asks.
#[derive(Clone, Copy, Debug)]
enum Model {
    Recurrent,
    /// Its number.
    Classifier(usize),
}

/// A request that has been read.
#[derive(Clone, Debug)]
enum Asked {
    Generation(Box<Generation>),
    Classification(Box<Classification>, usize),
}

impl Asked {
    /// The session that its sequence is, if it is part of one.
    fn sequence(&self) -> Option<&str> {
        match self {
            Self::Generation(it) => it.sequence.as_ref().map(|_| it.start.session_id.as_str()),
            Self::Classification(..) => None,
        }
    }
}

impl Oip {
    pub(super) fn new(service: Service) -> Self {
        Self { service }
    }

    pub(super) fn service(&self) -> &Service {
        &self.service
    }

    /// Lets a call in that infers, before what it says is read. Others say little and are answered at once: a server that is
    /// full tells so.
    pub(super) fn enter(&self, who: Principal) -> Result<Place, Reject> {
        let Setup { config, room, .. } = self.setup();
        let admission = &self.service.parts().admission;
        let busy = |_| Reject::Busy {
            room: Room::Calls,
            max: config.calls_max,
            retry_after: admission.retry_after(),
        };
        let share = admission.enter(who.tenant)?;
        let permit = Arc::clone(room).try_acquire_owned().map_err(busy)?;
        Ok(Place { _permit: permit, _share: share })
    }

    /// Waits for the one request of a call, no longer than that may take. Its caller has to be who it was when that is there.
    pub(super) async fn receive<T>(
        &self,
        caller: &Caller,
        request: impl Future<Output = Result<T, Broken>>,
    ) -> Result<T, Broken> {
        let max = Duration::from_millis(self.setup().config.request_ms_max.get().into());
        let late = |_| Reject::Expired { wait: Wait::Request, max };
        let request = timeout(max, request).await.map_err(late)??;
        self.service.parts().auth.check(caller)?;
        Ok(request)
    }

    /// Counts a refusal. Who has gone was refused nothing.
    pub(super) fn count(&self, broken: &Broken) {
        match broken {
            Broken::Gone => {}
            Broken::Refused(reject) => self.service.count_reject(reject),
        }
    }

    pub(super) fn setup(&self) -> &Setup {
        &self.service.parts().oip
    }

    /// How much a request may hold: as many elements as the longest prompt has, or a batch of pictures, beside a few shapes.
    pub(super) fn limits(&self) -> Limits {
        let Parts { request, rows_max, oip, .. } = self.service.parts();
        let elements_max = request.prompt_tokens_max.max(*rows_max).saturating_add(TENSORS_MAX);
        Limits { tensors_max: oip.config.tensors_max, elements_max }
    }

    pub(super) fn is_ready(&self) -> bool {
        *self.service.readiness().borrow() == Readiness::Ready
    }

    /// Whether a model takes requests; one that is not there does not.
    pub(super) fn is_model_ready(&self, name: &str, version: &str) -> bool {
        self.find(name, version).is_ok() && self.is_ready()
    }

    pub(super) fn server_metadata() -> ServerMetadataResponse {
        ServerMetadataResponse {
            name: "aerie-serve".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            extensions: EXTENSIONS.iter().map(|it| (*it).to_owned()).collect(),
        }
    }

    pub(super) fn model_metadata(
        &self,
        name: &str,
        version: &str,
    ) -> Result<ModelMetadataResponse, Reject> {
        let (inputs, outputs, platform) = match self.find(name, version)? {
            Model::Recurrent => (recurrent::inputs(), recurrent::outputs(), RECURRENT),
            Model::Classifier(idx) => {
                let classes = self.service.parts().classifiers[idx].classes();
                (classify::inputs(), classify::outputs(classes), CLASSIFIER)
            }
        };
        Ok(ModelMetadataResponse {
            name: name.to_owned(),
            versions: vec![VERSION.to_owned()],
            platform: platform.to_owned(),
            inputs: inputs.iter().map(|it| it.describe()).collect(),
            outputs: outputs.iter().map(|it| it.describe()).collect(),
        })
    }

    /// Every model; `ready` leaves out those that take no requests.
    pub(super) fn index(&self, ready: bool) -> RepositoryIndexResponse {
        let is_ready = self.is_ready();
        let (state, reason) =
            if is_ready { ("READY", "") } else { ("UNAVAILABLE", "the server starts or drains") };
        let models = self.names().into_iter().filter(|_| is_ready || !ready);
        let describe = |name| ModelIndex {
            name,
            version: VERSION.to_owned(),
            state: state.to_owned(),
            reason: reason.to_owned(),
        };
        RepositoryIndexResponse { models: models.map(describe).collect() }
    }

    /// Of one model, or of all if `name` is empty.
    pub(super) fn statistics(
        &self,
        name: &str,
        version: &str,
    ) -> Result<Vec<ModelStatistics>, Reject> {
        let names = match name {
            "" => self.names(),
            name => {
                self.find(name, version)?;
                vec![name.to_owned()]
            }
        };
        let statistics = &self.setup().statistics;
        let describe = |name: String| match self.service.classifier(&name) {
            Some((_, it)) => statistics.describe(&name, &Runs::Batches(it.runs())),
            None => statistics.describe(&name, &Runs::Steps(self.steps(&name))),
        };
        Ok(names.into_iter().map(describe).collect())
    }

    /// Runs one request and gathers all that comes of it.
    pub(super) async fn infer(
        &self,
        who: Principal,
        request: ModelInferRequest,
    ) -> Result<ModelInferResponse, Reject> {
        match self.parse(who, request)? {
            Asked::Generation(generation) => {
                let arrived = self.now();
                let answer = self.run(who, &generation, arrived).await;
                if answer.is_err() {
                    self.failed(&generation.start.model, arrived);
                }
                answer
            }
            Asked::Classification(classification, idx) => {
                self.classify(who, *classification, idx).await
            }
        }
    }

    /// What a request is for, in our own words.
    fn parse(&self, who: Principal, request: ModelInferRequest) -> Result<Asked, Reject> {
        let Setup { config, key, .. } = self.setup();
        let parsed = match self.find(&request.model_name, &request.model_version) {
            Ok(Model::Recurrent) => {
                let limits = &self.service.parts().request;
                Generation::parse(request, who.tenant, key, config, limits)
                    .map(|it| Asked::Generation(Box::new(it)))
            }
            Ok(Model::Classifier(idx)) => {
                let parts = self.service.parts();
                let takes = parts.classifiers[idx].takes(parts.rows_max);
                Classification::parse(request, &takes, config)
                    .map(|it| Asked::Classification(Box::new(it), idx))
            }
            Err(reject) => Err(reject),
        };
        parsed.inspect_err(|reject| self.service.count_reject(reject))
    }

    async fn classify(
        &self,
        who: Principal,
        classification: Classification,
        idx: usize,
    ) -> Result<ModelInferResponse, Reject> {
        let began = self.now();
        let classifier = &self.service.parts().classifiers[idx];
        let classified = self.service.classify(who, idx, classification).await;
        let classified = classified.inspect_err(|_| self.failed(&classifier.name, began))?;
        let Classified { logits, reply, arrived, waited, decoded } = classified;
        let now = self.now();
        let rows = logits.values.len() / classifier.labels.len();
        let answered = Answered {
            unix_ms: self.service.parts().clock.unix_ms(now),
            rows: rows as u64,
            total: now - arrived,
            queue: waited,
            input: decoded,
            infer: logits.run,
        };
        self.setup().statistics.succeed(&classifier.name, &answered);
        Ok(reply.respond(&classifier.name, &logits.values, &classifier.labels))
    }

    async fn run(
        &self,
        who: Principal,
        generation: &Generation,
        arrived: Instant,
    ) -> Result<ModelInferResponse, Reject> {
        let mut tokens = self.open(who, generation).await?;
        let mut said = Said::default();
        let finished = loop {
            match tokens.next().await {
                Some(TokenEvent::Accepted(_) | TokenEvent::Attached(_)) => {}
                Some(TokenEvent::Delta(delta)) => {
                    said.text.push_str(&delta.text);
                    said.tokens.extend(delta.ids);
                }
                Some(TokenEvent::Finished(finished)) => break finished,
                Some(TokenEvent::Failed(reject)) => return Err(reject),
                None => return Err(Reject::Internal { what: "its worker has gone" }),
            }
        };
        self.close(who, generation, &finished).await;
        self.succeeded(generation, arrived, tokens.queue());
        Ok(generation.whole(&generation.start.model, &said, &finished))
    }

    /// Begins a generation. A sequence that starts leaves what was of its name behind.
    async fn open(&self, who: Principal, generation: &Generation) -> Result<TokenStream, Reject> {
        let starts = generation.sequence.as_ref().is_some_and(|it| it.starts);
        let start = &generation.start;
        match self.service.generate(who, start.clone()).await {
            // The request that made what is there was another than this.
            Err(Reject::StalePosition { .. }) if starts => {
                self.forget(who, start).await?;
                self.service.generate(who, start.clone()).await
            }
            opened => opened,
        }
    }

    /// A sequence that ends is forgotten, but for one that was cut off: its client may want to go on. What was said is
    /// told, whatever becomes of that.
    async fn close(&self, who: Principal, generation: &Generation, finished: &v1::Finished) {
        use v1::FinishReason::{Cancelled, Interrupted, Shutdown};

        let ends = generation.sequence.as_ref().is_some_and(|it| it.ends);
        if !ends || matches!(finished.reason(), Cancelled | Interrupted | Shutdown) {
            return;
        }
        if let Err(reject) = self.forget(who, &generation.start).await {
            warn!(session = generation.start.session_id, %reject, "a sequence that ended stays");
        }
    }

    async fn forget(&self, who: Principal, start: &v1::Start) -> Result<(), Reject> {
        let session_id = start.session_id.clone();
        let request = v1::DeleteSessionRequest { session_id, expected_position: None };
        match self.service.delete_session(who, &request).await {
            // Somebody else was faster.
            Ok(()) | Err(Reject::UnknownSession { .. }) => Ok(()),
            Err(reject) => Err(reject),
        }
    }

    fn succeeded(&self, generation: &Generation, arrived: Instant, queue: Duration) {
        let now = self.now();
        let total = now - arrived;
        let answered = Answered {
            unix_ms: self.service.parts().clock.unix_ms(now),
            rows: 1,
            total,
            // One that was running already when it was asked for again has waited for longer than that.
            queue: queue.min(total),
            infer: total.saturating_sub(queue),
            ..Answered::default()
        };
        self.setup().statistics.succeed(&generation.start.model, &answered);
    }

    fn failed(&self, model: &str, arrived: Instant) {
        self.setup().statistics.fail(model, self.now() - arrived);
    }

    fn now(&self) -> Instant {
        self.service.parts().clock.now()
    }

    /// The model that somebody asks.
    fn find(&self, name: &str, version: &str) -> Result<Model, Reject> {
        let parts = self.service.parts();
        // Told again as far as a name may be long.
        let unknown =
            |name: &str| Reject::UnknownModel { name: name.chars().take(NAME_CHARS_MAX).collect() };
        let model = match self.service.classifier(name) {
            Some((idx, _)) => Model::Classifier(idx),
            None if parts.models.iter().any(|it| it.name == name) => Model::Recurrent,
            None => return Err(unknown(name)),
        };
        match version {
            "" | VERSION => Ok(model),
            _ => Err(unknown(&format!("{name} version {version}"))),
        }
    }

    fn names(&self) -> Vec<String> {
        let parts = self.service.parts();
        let classifiers = parts.classifiers.iter().map(|it| it.name.clone());
        parts.models.iter().map(|it| it.name.clone()).chain(classifiers).collect()
    }

    /// Steps that the workers of a model have run.
    fn steps(&self, name: &str) -> u64 {
        let parts = self.service.parts();
        let is_of = |worker: &&crate::router::WorkerHandle| parts.models[worker.model].name == name;
        let workers = parts.router.workers().iter().filter(is_of);
        workers.map(|worker| parts.metrics.steps(name, &worker.device)).sum()
    }
}
