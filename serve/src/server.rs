//! Starting and stopping the whole: bundles, caches, workers, listeners.
//!
//! A transport is a function from its part of the configuration and a [`Service`] to a
//! [`Listener`]; it stops accepting and winds up its calls when its [`Shutdown`] says so.

mod bundles;
pub(crate) mod stores;
#[cfg(test)]
mod tests;
pub(crate) mod workers;

use std::{io, mem, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use aerie_models::BundleError;
use aerie_state_cache::OpenError;
use crossbeam::channel::Sender;
use thiserror::Error;
use tokio::{
    sync::watch,
    task::{JoinHandle, spawn_blocking},
    time::timeout,
};
use tracing::warn;

use self::{
    bundles::Drafts,
    workers::{ClassifierPost, Crew, Post},
};
use crate::{
    admin::Admin,
    admission::Admission,
    auth::{Auth, TokensError},
    config::Config,
    device::DeviceSpec,
    device::classifier::OrtClassifier,
    device::ort::{LoadError, OrtDevice, Runtime},
    oip::{
        self,
        sequence::{KeyError, SequenceKey},
    },
    quotas::Quotas,
    router::Router,
    service::{Classifier, Parts, Readiness, Service},
    telemetry::{http, metrics::Metrics},
    text::TokenizerError,
    tls::{Identity, TlsError},
    transport::{admin, grpc, oip::rest, quic},
    worker::Clock,
};

/// A running server.
#[derive(Debug)]
pub struct Server {
    service: Service,
    crew: Crew,
    drain_grace: Duration,
    grpc: Listener,
    grpc_scheme: &'static str,
    quic: Listener,
    rest: Option<Listener>,
    rest_scheme: &'static str,
    http: Listener,
    admin: Admin,
    admins: Option<Listener>,
    /// For the transports that carry generations.
    stop_calls: watch::Sender<bool>,
    /// For those that tell of the drain, and so outlast it.
    stop_http: watch::Sender<bool>,
}

/// A transport that runs: where it listens, and the task that ends once it has shut down.
#[derive(Debug)]
pub struct Listener {
    pub addr: SocketAddr,
    pub task: JoinHandle<()>,
}

/// Becomes true when transports are to stop.
pub type Shutdown = watch::Receiver<bool>;

/// Why a server does not start.
#[derive(Debug, Error)]
pub enum StartError {
    #[error("no model is given; name a bundle with --model DIR")]
    NoModel,
    #[error("no device is given; name one with --device")]
    NoDevice,
    #[error("bundle {}: {source}", path.display())]
    Bundle { path: PathBuf, source: BundleError },
    #[error("bundle {}: {source}", path.display())]
    Tokenizer { path: PathBuf, source: TokenizerError },
    #[error(
        "bundle {}: model {name:?} has no state lanes, as it was exported with --portable \
         (manifest field `ops` is empty); export it without",
        path.display()
    )]
    Portable { path: PathBuf, name: String },
    #[error("two bundles have the name {name:?}")]
    DuplicateModel { name: String },
    #[error("device {device} is given twice")]
    DuplicateDevice { device: String },
    #[error(transparent)]
    Runtime(LoadError),
    #[error("model {model:?} on {device}: {source}")]
    Load { model: String, device: String, source: LoadError },
    #[error("the worker of {model:?} on {device} ended while it started")]
    WorkerEnded { model: String, device: String },
    #[error("{}: {source}", path.display())]
    Cache { path: PathBuf, source: OpenError },
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Grpc(#[from] grpc::BindError),
    #[error(transparent)]
    Admin(#[from] admin::BindError),
    #[error(transparent)]
    Quic(#[from] quic::BindError),
    #[error(transparent)]
    Rest(#[from] rest::BindError),
    #[error("http.listen = {listen}: {source}")]
    Http { listen: SocketAddr, source: io::Error },
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(transparent)]
    Tokens(#[from] TokensError),
    #[error(transparent)]
    Sequences(#[from] KeyError),
}

/// What transports get, once all workers have drained, to send their last messages.
const WIND_UP_MAX: Duration = Duration::from_secs(2);

impl Server {
    /// Loads the bundles, recovers sessions, spawns workers and listeners.
    ///
    /// # Errors
    /// See [`StartError`]; what had been started is stopped again.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        check_lists(&config)?;
        let auth = Auth::open(&config.auth, config.tls.client_ca.is_some())?;
        let mut drafts = bundles::read(&config).await?;
        let senders = mem::take(&mut drafts.senders);
        let (readiness, _) = watch::channel(Readiness::Starting);
        let (metrics, clock, quotas) = (Metrics::new(), Clock::start(), Quotas::new(&auth));
        // Side by side, as each takes about as long as the others.
        let (verified, hosted, hired) = tokio::join!(
            bundles::verify(&drafts),
            bundles::host(&drafts.models, senders),
            hire(&config, &drafts, &quotas, &metrics, clock, readiness.clone()),
        );
        // What is not the bundle that it says to be may fail in any other way, too.
        verified?;
        let (models, (crew, posts)) = (hosted?, hired?);
        // Only now, as nothing is written for a bundle that is refused.
        let (crew, router, classifiers) = begin(&config, &drafts, crew, posts).await?;
        let service = Service::new(Parts {
            auth,
            models,
            classifiers,
            router,
            admission: Admission::new(config.admission).with_quotas(quotas),
            request: config.request,
            log_tokens_max: config.sessions.log_tokens_max,
            rows_max: config.batcher.rows_max,
            pipe: config.pipe,
            oip: oip::Setup::new(config.oip, SequenceKey::open(&config.data_dir)?),
            metrics,
            readiness,
            clock,
        });

        let [(stop_calls, calls), (stop_http, http)] = [(); 2].map(|()| watch::channel(false));
        let identity = Identity::open(&config.tls, &config.data_dir)?;
        let listen = config.http.listen;
        let admin = Admin::new(service.clone(), config.sessions.sessions_max);
        let admins = match config.admin.listen {
            None => None,
            Some(at) => {
                Some(admin::listen(at, &config.grpc, &identity, admin.clone(), http.clone()).await?)
            }
        };
        let http = http::listen(&config.http, service.clone(), http)
            .await
            .map_err(|source| StartError::Http { listen, source })?;
        let grpc_scheme = config.grpc.scheme();
        let grpc = grpc::listen(&config.grpc, &identity, service.clone(), calls.clone()).await?;
        let rest_scheme = config.rest.scheme();
        let rest = rest::listen(&config.rest, &identity, service.clone(), calls.clone()).await?;
        let quic = quic::listen(&config.quic, &identity, service.clone(), calls)?;
        service.set_readiness(Readiness::Ready);
        let drain_grace = Duration::from_millis(config.drain_grace_ms.into());
        Ok(Self {
            service,
            crew,
            drain_grace,
            grpc,
            grpc_scheme,
            quic,
            rest,
            rest_scheme,
            http,
            admin,
            admins,
            stop_calls,
            stop_http,
        })
    }

    /// `grpcs` or `grpc`.
    pub fn grpc_scheme(&self) -> &'static str {
        self.grpc_scheme
    }

    pub fn grpc_addr(&self) -> SocketAddr {
        self.grpc.addr
    }

    pub fn quic_addr(&self) -> SocketAddr {
        self.quic.addr
    }

    /// `https` or `http`.
    pub fn rest_scheme(&self) -> &'static str {
        self.rest_scheme
    }

    /// Where the Open Inference Protocol is spoken over HTTP, if it is.
    pub fn rest_addr(&self) -> Option<SocketAddr> {
        self.rest.as_ref().map(|it| it.addr)
    }

    pub fn http_addr(&self) -> SocketAddr {
        self.http.addr
    }

    /// Where operators are listened to, if they are.
    pub fn admin_addr(&self) -> Option<SocketAddr> {
        self.admins.as_ref().map(|it| it.addr)
    }

    /// What operators may do.
    pub fn admin(&self) -> &Admin {
        &self.admin
    }

    pub fn service(&self) -> &Service {
        &self.service
    }

    /// Stops accepting, lets generations finish or parks their sessions, flushes, joins everything.
    pub async fn drain(self) {
        let Self { service, crew, drain_grace, grpc, quic, rest, http, .. } = self;
        let Self { admin, admins, stop_calls, stop_http, .. } = self;
        service.set_readiness(Readiness::Draining);
        stop_calls.send_replace(true);
        crew.drain(&service, admin.grace().unwrap_or(drain_grace)).await;
        for (listener, what) in [(Some(grpc), "grpc"), (Some(quic), "quic"), (rest, "rest")] {
            if let Some(listener) = listener {
                wind_up(listener, what).await;
            }
        }
        stop_http.send_replace(true);
        wind_up(http, "http").await;
        if let Some(admins) = admins {
            wind_up(admins, "admin").await;
        }
    }
}

/// Waits for a listener that was told to stop, but not for clients that do not let go.
async fn wind_up(mut listener: Listener, what: &'static str) {
    if timeout(WIND_UP_MAX, &mut listener.task).await.is_err() {
        warn!(transport = what, "calls were cut off");
        listener.task.abort();
    }
}

fn check_lists(config: &Config) -> Result<(), StartError> {
    if config.models.is_empty() {
        return Err(StartError::NoModel);
    }
    if config.devices.is_empty() {
        return Err(StartError::NoDevice);
    }
    for (i, device) in config.devices.iter().enumerate() {
        if config.devices[..i].contains(device) {
            return Err(StartError::DuplicateDevice { device: device.to_string() });
        }
    }
    Ok(())
}

/// One worker for each model on each device, and where each of those that generate waits for its sessions: of each
/// model, of each device.
async fn hire(
    config: &Config,
    drafts: &Drafts,
    quotas: &Quotas,
    metrics: &Metrics,
    clock: Clock,
    readiness: watch::Sender<Readiness>,
) -> Result<(Crew, Vec<Vec<Sender<stores::Open>>>), StartError> {
    let runtime = blocking(Runtime::load).await.map_err(StartError::Runtime)?;
    let mut crew = Crew::new(readiness);
    let mut posts = Vec::new();
    for (i, draft) in drafts.models.iter().enumerate() {
        let mut hire = |device: &DeviceSpec| {
            let post = Post::new(i, draft, device, config, quotas, metrics, clock);
            let (runtime, files) = (runtime.clone(), Arc::clone(&draft.files));
            let (manifest, spec) = (draft.manifest.clone(), device.clone());
            let scheduler = config.scheduler;
            let load = move || OrtDevice::load(&runtime, &files, &manifest, &spec, scheduler);
            crew.hire(post, load)
        };
        posts.push(config.devices.iter().map(&mut hire).collect::<Result<_, StartError>>()?);
    }
    for (i, draft) in drafts.classifiers.iter().enumerate() {
        let name = &draft.manifest.name;
        for device in &config.devices {
            let metrics = metrics.classifier(name, &device.to_string());
            let post = ClassifierPost::new(config, metrics, clock);
            let (runtime, files) = (runtime.clone(), Arc::clone(&draft.files));
            let (classes, spec) = (draft.manifest.model.classes, device.clone());
            let load = move || OrtClassifier::load(&runtime, &files, &spec, classes);
            crew.hire_classifier((i, name), device, post, load)?;
        }
    }
    Ok((crew, posts))
}

/// Opens the sessions of each model, sends them to the workers that wait for them, and waits until all work.
async fn begin(
    config: &Config,
    drafts: &Drafts,
    mut crew: Crew,
    posts: Vec<Vec<Sender<stores::Open>>>,
) -> Result<(Crew, Router, Vec<Classifier>), StartError> {
    for (draft, posts) in drafts.models.iter().zip(posts) {
        let stores = blocking({
            let lanes_max = config.scheduler.lanes_max;
            let owner = stores::Owner::new(&config.data_dir, draft, &config.sessions, lanes_max);
            let devices = config.devices.clone();
            move || stores::open_all(&owner, &devices)
        })
        .await?;
        for (store, post) in stores.into_iter().zip(posts) {
            // A worker whose device does not load has gone, and says so where it is waited for.
            let _ = post.send(store);
        }
    }
    let hosts = drafts.classifiers.iter().zip(crew.classifiers().await?);
    let classifiers = hosts.map(|(draft, workers)| draft.host(workers)).collect();
    let (crew, router) = crew.complete().await?;
    Ok((crew, router, classifiers))
}

/// Runs what takes long or reads files away from the threads that serve sockets.
async fn blocking<T: Send + 'static>(f: impl FnOnce() -> T + Send + 'static) -> T {
    spawn_blocking(f).await.expect("it does not panic, and nobody aborts it")
}
