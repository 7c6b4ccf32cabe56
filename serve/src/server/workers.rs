//! Worker threads: starting, pinning, joining.

use std::{sync::Arc, thread, time::Duration};

use aerie_state_cache::Storage;
use crossbeam::channel::{Receiver, Sender, bounded};
use tokio::{
    sync::{oneshot, watch},
    task::spawn_blocking,
};
use tracing::{error, info, warn};

use super::{LoadError, StartError, bundles::Draft};
use crate::{
    admission::Config as AdmissionConfig,
    batcher, classifier,
    config::Config,
    device::{Device, DeviceSpec},
    quotas::Quotas,
    residency::Residency,
    router::{Router, WorkerHandle, WorkerId},
    service::{Readiness, Service},
    sessions::Sessions,
    store::Store,
    telemetry::metrics::{ClassifierMetrics, Metrics, WorkerMetrics},
    text::Vocabulary,
    worker::{self, Clock, Event, Limits, Notice, Worker, generation::Text},
};

/// Notices that one generation gives rise to at most: it opens, another session is evicted for it,
/// it closes. Doubled, because the directory is read only when somebody asks.
const NOTICES_PER_REQUEST: usize = 6;

/// The workers of a server.
#[derive(Debug)]
pub(crate) struct Crew {
    threads: Vec<thread::JoinHandle<()>>,
    starting: Vec<Starting>,
    classifiers: Vec<StartingClassifier>,
    readiness: watch::Sender<Readiness>,
}

/// A worker that loads its device.
#[derive(Debug)]
struct Starting {
    model: String,
    device: String,
    handle: WorkerHandle,
    start: oneshot::Receiver<Result<Vec<Notice>, LoadError>>,
}

/// A classifier's worker that loads its device.
#[derive(Debug)]
struct StartingClassifier {
    model: usize,
    name: String,
    handle: classifier::Handle,
    start: oneshot::Receiver<Result<(), LoadError>>,
}

/// What a worker is hired for.
#[derive(Debug)]
pub(crate) struct Post {
    model: usize,
    name: String,
    /// Gives it once it has been read.
    vocabulary: Receiver<Arc<Vocabulary>>,
    device: DeviceSpec,
    scheduler: crate::scheduler::Config,
    stop_bytes_max: u32,
    limits: Limits,
    quotas: Quotas,
    metrics: WorkerMetrics,
    clock: Clock,
}

/// What the worker of a classifier is hired for.
#[derive(Clone, Debug)]
pub(crate) struct ClassifierPost {
    batcher: batcher::Config,
    requests_max: u32,
    retry_after: Duration,
    metrics: ClassifierMetrics,
    clock: Clock,
}

impl ClassifierPost {
    pub(crate) fn new(config: &Config, metrics: ClassifierMetrics, clock: Clock) -> Self {
        let AdmissionConfig { requests_max, retry_after_ms } = config.admission;
        let retry_after = Duration::from_millis(retry_after_ms.into());
        Self { batcher: config.batcher, requests_max, retry_after, metrics, clock }
    }
}

impl Post {
    pub(crate) fn new(
        model: usize,
        draft: &Draft,
        device: &DeviceSpec,
        config: &Config,
        quotas: &Quotas,
        metrics: &Metrics,
        clock: Clock,
    ) -> Self {
        Self {
            model,
            name: draft.manifest.name.clone(),
            vocabulary: draft.vocabulary.clone(),
            device: device.clone(),
            scheduler: config.scheduler,
            stop_bytes_max: config.request.stop_bytes_max,
            limits: limits(config),
            quotas: quotas.clone(),
            metrics: metrics.worker(&draft.manifest.name, &device.to_string()),
            clock,
        }
    }
}

impl Crew {
    /// A crew without workers. If one dies, `readiness` says that the server drains.
    pub(crate) fn new(readiness: watch::Sender<Readiness>) -> Self {
        Self { threads: Vec::new(), starting: Vec::new(), classifiers: Vec::new(), readiness }
    }

    /// Starts a worker on a thread of its own, which begins with loading its device. Then it waits for its
    /// sessions, which are to be sent to it.
    ///
    /// # Errors
    /// [`StartError::Io`] if there is no thread to be had.
    pub(crate) fn hire<S: Storage + Send + 'static, D: Device>(
        &mut self,
        post: Post,
        load: impl FnOnce() -> Result<D, LoadError> + Send + 'static,
    ) -> Result<Sender<(Store<S>, Sessions)>, StartError> {
        let requests_max = post.limits.requests_max as usize;
        // Room for every generation that is let in, and for deletions and a drain beside them.
        let (events, inbox) = bounded(requests_max + 16);
        let (outbox, notices) = bounded(requests_max * NOTICES_PER_REQUEST + 16);
        let (started, start) = oneshot::channel();
        let (sender, stored) = bounded(1);
        let (model, device) = (post.name.clone(), post.device.to_string());
        let lanes_max = post.scheduler.lanes_max;
        let handle = WorkerHandle::new(post.model, device.clone(), lanes_max, events, notices);
        let alarm = Alarm { readiness: self.readiness.clone() };
        let thread = thread::Builder::new()
            .name(format!("worker {device}"))
            .spawn(move || {
                let _alarm = alarm;
                pin(&post.device);
                let began = post.clock.now();
                let device = match load() {
                    Ok(device) => device,
                    Err(source) => return drop(started.send(Err(source))),
                };
                let elapsed = post.clock.now() - began;
                post.metrics.model_load.observe(elapsed.as_secs_f64());
                // Who was to read them says why there are none.
                let Ok(vocabulary) = post.vocabulary.recv() else { return };
                let Ok((store, sessions)) = stored.recv() else { return };
                let parts = worker::Parts {
                    residency: Residency::new(device.dims()),
                    device,
                    store,
                    sessions,
                    scheduler: post.scheduler,
                    limits: post.limits,
                    text: Text::new(vocabulary, post.stop_bytes_max),
                    notices: outbox,
                    quotas: post.quotas,
                    metrics: post.metrics,
                    clock: post.clock,
                };
                work(Worker::new(parts), &inbox, started);
            })
            .map_err(|source| StartError::Io { path: "thread".into(), source })?;
        self.threads.push(thread);
        self.starting.push(Starting { model, device, handle, start });
        Ok(sender)
    }

    /// Starts the worker of classifier number `model`, which is called `name`, as [`Crew::hire`] does.
    ///
    /// # Errors
    /// [`StartError::Io`] if there is no thread to be had.
    pub(crate) fn hire_classifier<D: classifier::Device>(
        &mut self,
        (model, name): (usize, &str),
        device: &DeviceSpec,
        post: ClassifierPost,
        load: impl FnOnce() -> Result<D, LoadError> + Send + 'static,
    ) -> Result<(), StartError> {
        let (events, inbox) = bounded(post.requests_max as usize + 16);
        let (started, start) = oneshot::channel();
        let handle = classifier::Handle::new(device.to_string(), events);
        let board = Arc::clone(handle.board());
        let alarm = Alarm { readiness: self.readiness.clone() };
        let spec = device.clone();
        let thread = thread::Builder::new()
            .name(format!("worker {device}"))
            .spawn(move || {
                let _alarm = alarm;
                pin(&spec);
                let ClassifierPost { batcher, retry_after, metrics, clock, .. } = post;
                let began = clock.now();
                let device = match load() {
                    Ok(device) => device,
                    Err(source) => return drop(started.send(Err(source))),
                };
                metrics.model_load.observe((clock.now() - began).as_secs_f64());
                let parts =
                    classifier::Parts { device, batcher, retry_after, metrics, clock, board };
                if started.send(Ok(())).is_ok() {
                    classifier::run(classifier::Worker::new(parts), &inbox);
                }
            })
            .map_err(|source| StartError::Io { path: "thread".into(), source })?;
        self.threads.push(thread);
        let name = name.to_owned();
        self.classifiers.push(StartingClassifier { model, name, handle, start });
        Ok(())
    }

    /// The ends of classifiers' workers, by number of the classifier. Waits until every device is loaded.
    ///
    /// # Errors
    /// [`StartError::Load`] if one cannot be.
    pub(crate) async fn classifiers(&mut self) -> Result<Vec<Vec<classifier::Handle>>, StartError> {
        let mut handles: Vec<Vec<_>> = Vec::new();
        for StartingClassifier { model, name, handle, start } in self.classifiers.drain(..) {
            let device = handle.device.clone();
            match start.await {
                Ok(Ok(())) => info!(model = name, device, "worker started"),
                Ok(Err(source)) => return Err(StartError::Load { model: name, device, source }),
                Err(_) => return Err(StartError::WorkerEnded { model: name, device }),
            }
            handles.resize(handles.len().max(model + 1), Vec::new());
            handles[model].push(handle);
        }
        Ok(handles)
    }

    /// The router to all workers, which knows the sessions that they recovered. Waits until every
    /// device is loaded.
    ///
    /// # Errors
    /// [`StartError::Load`] if one cannot be.
    pub(crate) async fn complete(mut self) -> Result<(Self, Router), StartError> {
        let (mut handles, mut recovered) = (Vec::new(), Vec::new());
        for Starting { model, device, handle, start } in self.starting.drain(..) {
            let notices = match start.await {
                Ok(Ok(notices)) => notices,
                Ok(Err(source)) => return Err(StartError::Load { model, device, source }),
                Err(_) => return Err(StartError::WorkerEnded { model, device }),
            };
            let is_made = |notice: &&Notice| matches!(notice, Notice::Made { .. });
            let sessions = notices.iter().filter(is_made).count();
            info!(model, device, sessions, "worker started");
            recovered.push((WorkerId(handles.len()), notices));
            handles.push(handle);
        }
        let router = Router::new(handles);
        for (worker, notices) in recovered {
            router.adopt(worker, notices);
        }
        Ok((self, router))
    }

    /// Drains every worker and joins its thread.
    pub(crate) async fn drain(self, service: &Service, grace: Duration) {
        let parts = service.parts();
        let deadline = parts.clock.now() + grace;
        let inboxes: Vec<_> =
            parts.router.workers().iter().map(|worker| worker.events.clone()).collect();
        let classifiers: Vec<_> =
            parts.classifiers.iter().flat_map(|it| it.workers.clone()).collect();
        let threads = self.threads;
        let joined = spawn_blocking(move || {
            classifiers.iter().for_each(|it| it.drain(deadline));
            for inbox in inboxes {
                // A worker takes its events between two steps; one that has ended needs none.
                inbox.send(Event::Drain { deadline }).ok();
            }
            threads.into_iter().map(thread::JoinHandle::join).filter(Result::is_err).count()
        });
        match joined.await {
            Ok(0) => {}
            Ok(n) => error!(workers = n, "workers had panicked"),
            Err(error) => error!(%error, "workers could not be joined"),
        }
    }
}

fn limits(config: &Config) -> Limits {
    let millis = |ms: u32| Duration::from_millis(ms.into());
    Limits {
        requests_max: config.admission.requests_max,
        retry_after: millis(config.admission.retry_after_ms),
        state_interval_tokens: config.sessions.state_interval_tokens.max(1),
        detached_max: millis(config.sessions.detached_ms_max),
        replay_tokens_max: config.sessions.log_tokens_max,
        idle_max: match config.sessions.idle_s_max {
            0 => None,
            seconds => Some(Duration::from_secs(seconds.into())),
        },
        prefix_bytes_max: config.sessions.prefix_bytes_max,
        prefix_tokens_min: config.sessions.prefix_tokens_min.max(1),
        prefix_tokens_max: config.sessions.prefix_tokens_max,
        held_calls_max: config.sessions.held_calls_max,
        names_max: config.sessions.names_max.min(config.sessions.sessions_max / 2),
    }
}

/// Tells of the sessions, then works until drained.
fn work<S: Storage, D: Device>(
    worker: Worker<S, D>,
    inbox: &Receiver<Event>,
    started: oneshot::Sender<Result<Vec<Notice>, LoadError>>,
) {
    if started.send(Ok(worker.notices())).is_ok() {
        worker::run(worker, inbox);
    }
}

/// Keeps the calling thread on the first core of a device.
fn pin(device: &DeviceSpec) {
    if let Some((first, _)) = device.cores {
        let core = core_affinity::CoreId { id: first as usize };
        if !core_affinity::set_for_current(core) {
            warn!(%device, "the worker could not be pinned to its core");
        }
    }
}

/// Rings when the thread that owns it panics.
struct Alarm {
    readiness: watch::Sender<Readiness>,
}

impl Drop for Alarm {
    fn drop(&mut self) {
        if thread::panicking() {
            self.readiness.send_replace(Readiness::Draining);
        }
    }
}
