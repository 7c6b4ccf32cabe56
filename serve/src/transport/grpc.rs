//! gRPC: our services, `grpc.health.v1` and reflection, over HTTP/2, in plaintext or in TLS.
//!
//! Health and reflection tell nothing of sessions, and ask for no token.

use std::{collections::HashMap, io, net::SocketAddr, pin::Pin, time::Duration};

use aerie_proto::{
    FILE_DESCRIPTOR_SET,
    frame::FRAME_BYTES_MAX,
    inference::grpc_inference_service_server::GrpcInferenceServiceServer,
    v1::{
        self,
        inference_server::{Inference, InferenceServer},
        models_server::{Models, ModelsServer},
        sessions_server::{Sessions, SessionsServer},
    },
};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::net::TcpListener;
use tokio_stream::{Stream, StreamExt};
use tonic::{
    Code, Request, Response, Status, Streaming,
    metadata::MetadataValue,
    server::NamedService,
    service::interceptor::{InterceptedService, Interceptor},
    transport::{Server, server::Router},
};
use tonic_health::{ServingStatus, pb::FILE_DESCRIPTOR_SET as HEALTH, server::HealthReporter};
use tonic_types::{ErrorDetails, StatusExt};
use tracing::{error, info};

use super::{
    call::Call,
    chunks,
    door::{Door, Limits},
    import_session, list_sessions, oip, stopped,
    turns::{Broken, Turns},
};
use crate::{
    admission::Reject,
    auth::{Caller, Evidence, Principal, bearer},
    server::{Listener, Shutdown},
    service::{Readiness, Service},
    telemetry::metrics::Api,
    tls::{Identity, TlsError},
};

/// Whose reasons those of `google.rpc.ErrorInfo` are.
const DOMAIN: &str = "aerie";
/// Metadata that repeats the delay of `google.rpc.RetryInfo`, for clients that read no details.
const RETRY_AFTER: &str = "retry-after-ms";
/// Metadata with the caller's token: `Bearer TOKEN`.
const AUTHORIZATION: &str = "authorization";

/// Limits of the gRPC listener.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where to listen (TCP); port 0 lets the system choose.
    pub listen: SocketAddr,
    /// Whether connections are encrypted, with the certificate that QUIC has.
    pub tls: bool,
    /// Connections at once; one more is closed.
    pub connections_max: u32,
    /// A handshake of TLS that takes longer is given up.
    pub handshake_ms_max: u32,
    /// Bytes of a call's headers, as HTTP/2 counts them.
    pub header_bytes_max: u32,
    /// Calls at once on one connection; more wait at the client.
    pub streams_max: u32,
    /// A connection that is silent for this long is asked for a sign of life.
    pub keep_alive_ms: u32,
    /// How long it may take to give one.
    pub keep_alive_timeout_ms_max: u32,
}

/// Why the port could not be opened.
#[derive(Debug, Error)]
pub enum BindError {
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("grpc.listen = {listen}: {source}")]
    Bind { listen: SocketAddr, source: io::Error },
}

/// What TLS peers agree on for HTTP/2 (RFC 9113 §3.2).
pub(super) const ALPN: &[u8] = b"h2";

impl Config {
    /// Of addresses.
    pub fn scheme(&self) -> &'static str {
        if self.tls { "grpcs" } else { "grpc" }
    }
}

/// Opens the port and serves until `shutdown`, then until the calls that were running have ended.
///
/// # Errors
/// See [`BindError`].
pub async fn listen(
    config: &Config,
    identity: &Identity,
    service: Service,
    shutdown: Shutdown,
) -> Result<Listener, BindError> {
    let tls = if config.tls { Some(identity.server_config(ALPN)?) } else { None };
    let bind_error = |source| BindError::Bind { listen: config.listen, source };
    let listener = TcpListener::bind(config.listen).await.map_err(bind_error)?;
    let addr = listener.local_addr().map_err(bind_error)?;
    info!(address = %format_args!("{}://{addr}", config.scheme()), "listening");
    let &Config { connections_max, handshake_ms_max, .. } = config;
    let limits = Limits { connections_max, handshake_ms_max };
    let incoming = Door::new(limits, listener, tls).open(shutdown.clone());
    let server = router(config, &service);
    let (health, server) = server.await;
    let task = tokio::spawn(async move {
        let shutdown = follow(service, health, shutdown);
        if let Err(error) = server.serve_with_incoming_shutdown(incoming, shutdown).await {
            error!(%error, "grpc listener broke");
        }
    });
    Ok(Listener { addr, task })
}

/// All services, and what their health is told to.
async fn router(config: &Config, service: &Service) -> (HealthReporter, Router) {
    let (health, health_server) = tonic_health::server::health_reporter();
    report(&health, ServingStatus::NotServing).await;
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(HEALTH)
    };
    let millis = |ms: u32| Some(Duration::from_millis(ms.into()));
    let front = Front { service: service.clone() };
    let guard = Guard { service: service.clone() };
    let server = Server::builder()
        .max_concurrent_streams(config.streams_max)
        .http2_max_header_list_size(config.header_bytes_max)
        .http2_keepalive_interval(millis(config.keep_alive_ms))
        .http2_keepalive_timeout(millis(config.keep_alive_timeout_ms_max))
        .add_service(health_server)
        .add_service(reflection().build_v1().expect("the descriptor sets were generated"))
        .add_service(reflection().build_v1alpha().expect("the descriptor sets were generated"))
        .add_service(InterceptedService::new(
            InferenceServer::new(front.clone())
                .max_decoding_message_size(FRAME_BYTES_MAX)
                .max_encoding_message_size(FRAME_BYTES_MAX),
            guard.clone(),
        ))
        .add_service(InterceptedService::new(
            SessionsServer::new(front.clone()).max_decoding_message_size(FRAME_BYTES_MAX),
            guard.clone(),
        ))
        .add_service(InterceptedService::new(
            ModelsServer::new(front).max_decoding_message_size(FRAME_BYTES_MAX),
            guard.clone(),
        ))
        .add_service(oip::grpc::service(service, guard));
    (health, server)
}

/// Maps a refusal to the status that gRPC has for it.
pub fn status(reject: &Reject) -> Status {
    let metadata = reject.metadata().into_iter().map(|(name, value)| (name.to_owned(), value));
    let mut details =
        ErrorDetails::with_error_info(reject.reason(), DOMAIN, metadata.collect::<HashMap<_, _>>());
    if let Reject::Invalid { field, problem } = reject {
        details.add_bad_request_violation(*field, problem);
    }
    if let Some(delay) = reject.retry_after() {
        details.set_retry_info(Some(delay));
    }
    let mut status = Status::with_error_details(code(reject), reject.to_string(), details);
    if let Some(delay) = reject.retry_after() {
        let delay_ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
        status.metadata_mut().insert(RETRY_AFTER, MetadataValue::from(delay_ms));
    }
    status
}

/// The number that gRPC has for a refusal; QUIC borrows it.
pub(super) fn code(reject: &Reject) -> Code {
    match reject {
        Reject::Invalid { .. } => Code::InvalidArgument,
        Reject::Unauthenticated { .. } => Code::Unauthenticated,
        Reject::NotAdmin | Reject::Forbidden { .. } => Code::PermissionDenied,
        Reject::UnknownModel { .. }
        | Reject::UnknownSession { .. }
        | Reject::UnknownName { .. } => Code::NotFound,
        Reject::SessionExists { .. } | Reject::NameTaken { .. } => Code::AlreadyExists,
        Reject::OutOfRange { .. } => Code::OutOfRange,
        Reject::StalePosition { .. } | Reject::SessionBusy { .. } => Code::FailedPrecondition,
        Reject::QueueFull { .. }
        | Reject::QuotaSessions { .. }
        | Reject::QuotaGenerations { .. }
        | Reject::Busy { .. }
        | Reject::TooManyNames { .. } => Code::ResourceExhausted,
        Reject::Expired { .. } => Code::DeadlineExceeded,
        Reject::Unavailable { .. } => Code::Unavailable,
        Reject::Internal { .. } => Code::Internal,
    }
}

/// Our three services.
#[derive(Clone, Debug)]
struct Front {
    service: Service,
}

/// Lets in who has a token or a certificate, and notes who it is.
#[derive(Clone, Debug)]
pub(super) struct Guard {
    service: Service,
}

impl Interceptor for Guard {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let caller = self.service.caller(evidence(&request)).map_err(|reject| status(&reject))?;
        request.extensions_mut().insert(caller);
        Ok(request)
    }
}

/// What a call shows of who makes it.
pub(super) fn evidence(request: &Request<()>) -> Evidence {
    let token = request.metadata().get(AUTHORIZATION).and_then(|it| bearer(it.as_bytes()));
    let peer: Option<&super::door::Peer> = request.extensions().get();
    Evidence::of(token, peer.and_then(|peer| peer.0.as_ref()))
}

/// Who makes a call, as [`Guard`] has noted.
pub(super) fn caller<T>(request: &Request<T>) -> Caller {
    request.extensions().get().cloned().expect("no call comes past its guard")
}

pub(super) fn principal<T>(request: &Request<T>) -> Principal {
    caller(request).who
}

type Chunks = Pin<Box<dyn Stream<Item = Result<v1::Chunk, Status>> + Send>>;
type Responses = Pin<Box<dyn Stream<Item = Result<v1::GenerateResponse, Status>> + Send>>;

#[tonic::async_trait]
impl Inference for Front {
    type GenerateStream = Responses;

    async fn generate(
        &self,
        request: Request<Streaming<v1::GenerateRequest>>,
    ) -> Result<Response<Responses>, Status> {
        let caller = caller(&request);
        let requests = request.into_inner().map(|it| it.map_err(|status| broken(&status)));
        let responses = Turns::new(Api::Grpc, self.service.clone(), caller, requests)
            .map(|it| it.map_err(|reject| status(&reject)));
        Ok(Response::new(Box::pin(responses)))
    }

    type AttachStream = Responses;

    async fn attach(
        &self,
        request: Request<v1::AttachRequest>,
    ) -> Result<Response<Responses>, Status> {
        let (caller, service) = (caller(&request), self.service.clone());
        let responses = Turns::attached(Api::Grpc, service, caller, request.into_inner())
            .map(|it| it.map_err(|reject| status(&reject)));
        Ok(Response::new(Box::pin(responses)))
    }
}

#[tonic::async_trait]
impl Sessions for Front {
    async fn list_sessions(
        &self,
        request: Request<v1::ListSessionsRequest>,
    ) -> Result<Response<v1::ListSessionsResponse>, Status> {
        let call = Call::begin(Api::Grpc, &self.service);
        answer(call, list_sessions(&self.service, principal(&request), request.get_ref()).await)
    }

    async fn get_session(
        &self,
        request: Request<v1::GetSessionRequest>,
    ) -> Result<Response<v1::Session>, Status> {
        let call = Call::begin(Api::Grpc, &self.service);
        answer(call, self.service.session(principal(&request), &request.get_ref().session_id).await)
    }

    async fn delete_session(
        &self,
        request: Request<v1::DeleteSessionRequest>,
    ) -> Result<Response<v1::DeleteSessionResponse>, Status> {
        let call = Call::begin(Api::Grpc, &self.service);
        let deleted = self.service.delete_session(principal(&request), request.get_ref()).await;
        answer(call, deleted.map(|()| v1::DeleteSessionResponse {}))
    }

    async fn move_session(
        &self,
        request: Request<v1::MoveSessionRequest>,
    ) -> Result<Response<v1::Session>, Status> {
        let call = Call::begin(Api::Grpc, &self.service);
        answer(call, self.service.move_session(principal(&request), request.get_ref()).await)
    }

    async fn fork_session(
        &self,
        request: Request<v1::ForkSessionRequest>,
    ) -> Result<Response<v1::Session>, Status> {
        let call = Call::begin(Api::Grpc, &self.service);
        answer(call, self.service.fork_session(principal(&request), request.get_ref()).await)
    }

    async fn rewind_session(
        &self,
        request: Request<v1::RewindSessionRequest>,
    ) -> Result<Response<v1::Session>, Status> {
        let call = Call::begin(Api::Grpc, &self.service);
        answer(call, self.service.rewind_session(principal(&request), request.get_ref()).await)
    }

    async fn name_session(
        &self,
        request: Request<v1::NameSessionRequest>,
    ) -> Result<Response<v1::Session>, Status> {
        let call = Call::begin(Api::Grpc, &self.service);
        answer(call, self.service.name_session(principal(&request), request.get_ref()).await)
    }

    type ExportSessionStream = Chunks;

    async fn export_session(
        &self,
        request: Request<v1::ExportSessionRequest>,
    ) -> Result<Response<Chunks>, Status> {
        let call = Call::begin(Api::Grpc, &self.service);
        let file = self.service.export_session(principal(&request), request.get_ref()).await;
        let chunks = |file: Vec<u8>| {
            let chunks: Vec<_> = chunks(&file).map(Ok).collect();
            Box::pin(tokio_stream::iter(chunks)) as Chunks
        };
        answer(call, file.map(chunks))
    }

    async fn import_session(
        &self,
        request: Request<Streaming<v1::ImportSessionRequest>>,
    ) -> Result<Response<v1::Session>, Status> {
        let call = Call::begin(Api::Grpc, &self.service);
        let who = principal(&request);
        let requests = request.into_inner().map(|it| it.map_err(|status| broken(&status)));
        answer(call, import_session(&self.service, who, requests).await)
    }
}

#[tonic::async_trait]
impl Models for Front {
    async fn list_models(
        &self,
        _: Request<v1::ListModelsRequest>,
    ) -> Result<Response<v1::ListModelsResponse>, Status> {
        let call = Call::begin(Api::Grpc, &self.service);
        answer(call, Ok(v1::ListModelsResponse { models: self.service.models() }))
    }
}

pub(super) fn answer<T>(mut call: Call, result: Result<T, Reject>) -> Result<Response<T>, Status> {
    call.end(&result);
    result.map(Response::new).map_err(|reject| status(&reject))
}

/// Tells a request that cannot be read from a client that has gone.
pub(super) fn broken(status: &Status) -> Broken {
    match status.code() {
        Code::OutOfRange | Code::Internal | Code::Unimplemented | Code::InvalidArgument => {
            let problem = format!("cannot be read: {}", status.message());
            Broken::Refused(Reject::Invalid { field: "request", problem })
        }
        _ => Broken::Gone,
    }
}

/// Keeps health in step with readiness; resolves when the server is to stop.
async fn follow(service: Service, mut health: HealthReporter, shutdown: Shutdown) {
    let mirrored = async {
        let mut readiness = service.readiness();
        loop {
            let status = match *readiness.borrow_and_update() {
                Readiness::Ready => ServingStatus::Serving,
                Readiness::Starting | Readiness::Draining => ServingStatus::NotServing,
            };
            report(&health, status).await;
            if readiness.changed().await.is_err() {
                break;
            }
        }
    };
    tokio::select! {
        () = stopped(&shutdown) => {}
        () = mirrored => {}
    }
    report(&health, ServingStatus::NotServing).await;
    // A `Watch` would outlive every shutdown. Without its sender it ends after the last status.
    for name in reported() {
        health.clear_service_status(name).await;
    }
}

async fn report(health: &HealthReporter, status: ServingStatus) {
    for name in reported() {
        health.set_service_status(name, status).await;
    }
}

/// Names whose health is reported; the empty one stands for the whole server.
fn reported() -> [&'static str; 5] {
    [
        "",
        InferenceServer::<Front>::NAME,
        SessionsServer::<Front>::NAME,
        ModelsServer::<Front>::NAME,
        GrpcInferenceServiceServer::<oip::grpc::Grpc>::NAME,
    ]
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: ([127, 0, 0, 1], 7447).into(),
            tls: false,
            connections_max: 1024,
            handshake_ms_max: 10_000,
            header_bytes_max: 16 << 10,
            streams_max: 256,
            keep_alive_ms: 30_000,
            keep_alive_timeout_ms_max: 20_000,
        }
    }
}
