//! The protocol over HTTP: `/v2/…`, with Triton's extension for tensors in binary.
//!
//! `body` turns bodies into the messages that gRPC has, and back.

mod body;
#[cfg(test)]
mod tests;

use std::{convert::Infallible, io, net::SocketAddr, time::Duration};

use aerie_proto::inference::ModelInferRequest;
use axum::{
    Extension, Router,
    body::{Body, Bytes},
    extract::{FromRequestParts, Path, State},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use bytes::BytesMut;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto, graceful::GracefulShutdown},
    service::TowerToHyperService,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use thiserror::Error;
use tokio::{
    net::TcpListener,
    task::{JoinSet, spawn_blocking},
};
use tokio_stream::StreamExt as _;
use tonic::transport::server::Connected as _;
use tracing::{debug, info};

use super::{Oip, Place};
use crate::{
    admission::{Reject, Wait},
    auth::{Caller, Evidence, bearer},
    server::{Listener, Shutdown},
    service::Service,
    telemetry::metrics::Api,
    tls::{Identity, TlsError},
    transport::{
        call::Call,
        door::{Door, Limits, Peer},
        stopped,
        turns::Broken,
    },
};

/// Limits of the listener.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where to listen (TCP); port 0 lets the system choose. Without it, nowhere.
    pub listen: Option<SocketAddr>,
    /// Whether connections are encrypted, with the certificate that QUIC has.
    pub tls: bool,
    /// Connections at once; one more is closed.
    pub connections_max: u32,
    /// A handshake of TLS that takes longer is given up.
    pub handshake_ms_max: u32,
    /// Bytes of a request's headers.
    pub header_bytes_max: u32,
    /// A connection over which no whole headers have come for this long is closed.
    pub header_ms_max: u32,
}

/// Why the port could not be opened.
#[derive(Debug, Error)]
pub enum BindError {
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("rest.listen = {listen}: {source}")]
    Bind { listen: SocketAddr, source: io::Error },
}

/// What TLS peers agree on (RFC 7301 §6).
const ALPN: &[u8] = b"http/1.1";
/// Bytes of a body before its tensors in binary.
const HEADER_LENGTH: HeaderName = HeaderName::from_static("inference-header-content-length");
/// This takes less than a millisecond to read.
const INLINE_JSON_BYTES_MAX: usize = 32 << 10;
/// Bytes of a body that asks for the index.
const INDEX_BYTES_MAX: usize = 256;
/// hyper asks for no less.
const HEADER_BYTES_MIN: u32 = 8 << 10;

impl Config {
    /// Of addresses.
    pub fn scheme(&self) -> &'static str {
        if self.tls { "https" } else { "http" }
    }
}

/// Opens the port, if there is to be one, and serves until `shutdown`, then until the calls that were running have
/// ended.
///
/// # Errors
/// See [`BindError`].
pub async fn listen(
    config: &Config,
    identity: &Identity,
    service: Service,
    shutdown: Shutdown,
) -> Result<Option<Listener>, BindError> {
    let Some(listen) = config.listen else { return Ok(None) };
    let tls = if config.tls { Some(identity.server_config(ALPN)?) } else { None };
    let bind_error = |source| BindError::Bind { listen, source };
    let listener = TcpListener::bind(listen).await.map_err(bind_error)?;
    let addr = listener.local_addr().map_err(bind_error)?;
    info!(address = %format_args!("{}://{addr}/v2", config.scheme()), "listening");
    let &Config { connections_max, handshake_ms_max, .. } = config;
    let door = Door::new(Limits { connections_max, handshake_ms_max }, listener, tls);
    let front = Front { oip: Oip::new(service) };
    let task = tokio::spawn(serve(config.clone(), door, router(front), shutdown));
    Ok(Some(Listener { addr, task }))
}

/// Each connection is a task of its own, and all of them end with this.
async fn serve(config: Config, door: Door, router: Router, shutdown: Shutdown) {
    let mut incoming = door.open(shutdown.clone());
    let mut builder = auto::Builder::new(TokioExecutor::new()).http1_only();
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(Duration::from_millis(config.header_ms_max.into()))
        .max_buf_size(config.header_bytes_max.max(HEADER_BYTES_MIN) as usize);
    let graceful = GracefulShutdown::new();
    let mut connections = JoinSet::new();
    loop {
        let socket = tokio::select! {
            () = stopped(&shutdown) => break,
            Some(_) = connections.join_next() => continue,
            socket = incoming.next() => match socket {
                Some(Ok(socket)) => socket,
                Some(Err(_)) => continue,
                None => break,
            },
        };
        // Whoever is at the other end is told to each of its calls.
        let router = router.clone().layer(Extension(socket.connect_info()));
        let service = TowerToHyperService::new(router);
        let connection = builder.serve_connection(TokioIo::new(socket), service).into_owned();
        let connection = graceful.watch(connection);
        connections.spawn(async move {
            if let Err(error) = connection.await {
                debug!(%error, "connection broke");
            }
        });
    }
    drop(incoming);
    graceful.shutdown().await;
}

/// What answers a request.
#[derive(Clone, Debug)]
struct Front {
    oip: Oip,
}

fn router(front: Front) -> Router {
    Router::new()
        .route("/v2", get(server_metadata))
        .route("/v2/", get(server_metadata))
        .route("/v2/health/live", get(async || axum_json(&json!({ "live": true }))))
        .route("/v2/health/ready", get(ready))
        .route("/v2/repository/index", get(index).post(index))
        .route("/v2/models/stats", get(all_statistics))
        .route("/v2/models/{name}", get(model_metadata))
        .route("/v2/models/{name}/ready", get(model_ready))
        .route("/v2/models/{name}/stats", get(statistics))
        .route("/v2/models/{name}/infer", post(infer))
        .route("/v2/models/{name}/versions/{version}", get(model_metadata))
        .route("/v2/models/{name}/versions/{version}/ready", get(model_ready))
        .route("/v2/models/{name}/versions/{version}/stats", get(statistics))
        .route("/v2/models/{name}/versions/{version}/infer", post(infer))
        .fallback(async || failed(StatusCode::NOT_FOUND, "there is nothing at this path", None))
        .with_state(front)
}

/// Which model a path names; without a version, the one that there is.
#[derive(Deserialize)]
struct Named {
    name: String,
    #[serde(default)]
    version: String,
}

async fn server_metadata(State(front): State<Front>, shown: Shown) -> Response {
    front.tell(shown, |_| {
        let metadata = Oip::server_metadata();
        let (name, version, extensions) = (metadata.name, metadata.version, metadata.extensions);
        Ok(json!({ "name": name, "version": version, "extensions": extensions }))
    })
}

/// As `/readyz` does, without asking for a token.
async fn ready(State(front): State<Front>) -> Response {
    let ready = front.oip.is_ready();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    // Both words: the protocol's older and its newer form.
    (status, axum_json(&json!({ "live": true, "ready": ready }))).into_response()
}

async fn model_ready(
    State(front): State<Front>,
    Path(Named { name, version }): Path<Named>,
    shown: Shown,
) -> Response {
    front.tell(shown, |oip| {
        oip.model_metadata(&name, &version)?;
        if !oip.is_ready() {
            return Err(oip.service().unavailable());
        }
        Ok(json!({ "name": name, "ready": true }))
    })
}

async fn model_metadata(
    State(front): State<Front>,
    Path(Named { name, version }): Path<Named>,
    shown: Shown,
) -> Response {
    front.tell(shown, |oip| Ok(body::metadata(&oip.model_metadata(&name, &version)?)))
}

async fn statistics(
    State(front): State<Front>,
    Path(Named { name, version }): Path<Named>,
    shown: Shown,
) -> Response {
    front.tell(shown, |oip| Ok(body::statistics(&oip.statistics(&name, &version)?)))
}

async fn all_statistics(State(front): State<Front>, shown: Shown) -> Response {
    front.tell(shown, |oip| Ok(body::statistics(&oip.statistics("", "")?)))
}

async fn index(State(front): State<Front>, shown: Shown, body: Body) -> Response {
    let call = front.begin();
    let answered = async {
        let caller = front.caller(shown)?;
        let asked = front.read(&caller, body, INDEX_BYTES_MAX).await;
        let asked = asked.and_then(|it| Ok(body::asks_for_ready(&it)?));
        let ready = asked.inspect_err(|broken| front.oip.count(broken))?;
        Ok(body::index(&front.oip.index(ready)))
    };
    close(call, answered.await, |index| axum_json(&index))
}

async fn infer(
    State(front): State<Front>,
    Path(Named { name, version }): Path<Named>,
    shown: Shown,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let call = front.begin();
    let answered = front.infer([name, version], shown, &headers, body).await;
    close(call, answered, |body::Answer { bytes, json_bytes }| match json_bytes {
        None => ([(header::CONTENT_TYPE, "application/json")], bytes).into_response(),
        Some(length) => {
            let kind = HeaderValue::from_static("application/octet-stream");
            let headers = [(header::CONTENT_TYPE, kind), (HEADER_LENGTH, length.into())];
            (headers, bytes).into_response()
        }
    })
}

/// Ends a call, and answers it.
fn close<T>(
    mut call: Call,
    answered: Result<T, Broken>,
    tell: impl FnOnce(T) -> Response,
) -> Response {
    match answered {
        Ok(answer) => {
            call.succeed();
            tell(answer)
        }
        Err(Broken::Refused(reject)) => {
            call.refuse(&reject);
            refused(&reject)
        }
        // Nobody is there to read it.
        Err(Broken::Gone) => failed(StatusCode::BAD_REQUEST, "the body broke off", None),
    }
}

/// What a call shows of who makes it: its token, or its connection's certificate.
struct Shown(Evidence);

impl<S: Sync> FromRequestParts<S> for Shown {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        let token = parts.headers.get(header::AUTHORIZATION);
        let peer = parts.extensions.get::<Peer>().and_then(|it| it.0.as_ref());
        Ok(Self(Evidence::of(token.and_then(|it| bearer(it.as_bytes())), peer)))
    }
}

impl Front {
    fn begin(&self) -> Call {
        Call::begin(Api::Rest, self.oip.service())
    }

    fn caller(&self, Shown(evidence): Shown) -> Result<Caller, Reject> {
        self.oip.service().caller(evidence)
    }

    /// Answers a request without a body, in JSON.
    fn tell(&self, shown: Shown, answer: impl FnOnce(&Oip) -> Result<Value, Reject>) -> Response {
        let mut call = self.begin();
        let answered = self.caller(shown).and_then(|_| answer(&self.oip));
        call.end(&answered);
        answered.map_or_else(|reject| refused(&reject), |value| axum_json(&value))
    }

    async fn infer(
        &self,
        named: [String; 2],
        shown: Shown,
        headers: &HeaderMap,
        body: Body,
    ) -> Result<body::Answer, Broken> {
        let caller = self.caller(shown)?;
        let received = self.receive(named, &caller, headers, body).await;
        let (request, binary, _place) = received.inspect_err(|broken| self.oip.count(broken))?;
        let response = self.oip.infer(caller.who, request).await?;
        Ok(body::Answer::new(&response, &binary))
    }

    /// A request for which there is a place, and how it is to be answered.
    async fn receive(
        &self,
        [name, version]: [String; 2],
        caller: &Caller,
        headers: &HeaderMap,
        body: Body,
    ) -> Result<(ModelInferRequest, body::Binary, Place), Broken> {
        let place = self.oip.enter(caller.who)?;
        if let Some(encoding) = headers.get(header::CONTENT_ENCODING) {
            let problem = format!("is compressed ({encoding:?}), which is not offered");
            return Err(Broken::Refused(Reject::Invalid { field: "body", problem }));
        }
        let json_bytes = match headers.get(HEADER_LENGTH) {
            None => None,
            Some(length) => {
                let length = length.to_str().ok().and_then(|it| it.parse().ok());
                let problem = || "is not a number of bytes".to_owned();
                let field = "Inference-Header-Content-Length";
                Some(length.ok_or_else(|| Reject::Invalid { field, problem: problem() })?)
            }
        };
        let bytes_max = self.oip.setup().config.message_bytes_max as usize;
        let bytes = self.read(caller, body, bytes_max).await?;
        let (mut request, binary, place) = self.parse(bytes, json_bytes, place).await?;
        body::name(&mut request, name, version)?;
        Ok((request, binary, place))
    }

    /// Reads JSON, away from the threads that serve sockets if it is long. As that goes on though its client has gone, the
    /// place goes along, and comes back with what was read.
    async fn parse(
        &self,
        bytes: Bytes,
        json_bytes: Option<usize>,
        place: Place,
    ) -> Result<(ModelInferRequest, body::Binary, Place), Reject> {
        let limits = self.oip.limits();
        let is_short = json_bytes.unwrap_or(bytes.len()) <= INLINE_JSON_BYTES_MAX;
        let parse = move || {
            let (request, binary) = body::Asked::parse(&bytes, json_bytes)?.request(&limits)?;
            Ok((request, binary, place))
        };
        if is_short {
            return parse();
        }
        let failed = Reject::Internal { what: "its body could not be read" };
        spawn_blocking(parse).await.unwrap_or(Err(failed))
    }

    async fn read(&self, caller: &Caller, body: Body, bytes_max: usize) -> Result<Bytes, Broken> {
        let read = async {
            let (mut parts, mut bytes) = (body.into_data_stream(), BytesMut::new());
            while let Some(part) = parts.next().await {
                let part = part.map_err(|_| Broken::Gone)?;
                if bytes_max - bytes.len() < part.len() {
                    let problem = format!("has more than {bytes_max} bytes");
                    return Err(Broken::Refused(Reject::Invalid { field: "body", problem }));
                }
                bytes.extend_from_slice(&part);
            }
            Ok(bytes.freeze())
        };
        self.oip.receive(caller, read).await
    }
}

fn axum_json(value: &Value) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], value.to_string()).into_response()
}

/// Maps a refusal to the status that HTTP has for it.
pub(in crate::transport) fn status(reject: &Reject) -> StatusCode {
    match reject {
        Reject::Invalid { .. } | Reject::OutOfRange { .. } => StatusCode::BAD_REQUEST,
        Reject::Unauthenticated { .. } => StatusCode::UNAUTHORIZED,
        Reject::Forbidden { .. } | Reject::NotAdmin => StatusCode::FORBIDDEN,
        Reject::UnknownModel { .. }
        | Reject::UnknownSession { .. }
        | Reject::UnknownName { .. } => StatusCode::NOT_FOUND,
        Reject::SessionExists { .. }
        | Reject::NameTaken { .. }
        | Reject::StalePosition { .. }
        | Reject::SessionBusy { .. } => StatusCode::CONFLICT,
        Reject::QueueFull { .. }
        | Reject::QuotaSessions { .. }
        | Reject::QuotaGenerations { .. }
        | Reject::Busy { .. }
        | Reject::TooManyNames { .. } => StatusCode::TOO_MANY_REQUESTS,
        Reject::Expired { wait: Wait::Request | Wait::Stream | Wait::Reader, .. } => {
            StatusCode::REQUEST_TIMEOUT
        }
        Reject::Expired { wait: Wait::Device, .. } => StatusCode::GATEWAY_TIMEOUT,
        Reject::Unavailable { .. } => StatusCode::SERVICE_UNAVAILABLE,
        Reject::Internal { .. } => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

fn refused(reject: &Reject) -> Response {
    let mut response = failed(status(reject), &reject.to_string(), Some(&reject.reason()));
    let headers = response.headers_mut();
    if let Some(delay) = reject.retry_after() {
        // HTTP counts whole seconds (RFC 9110 §10.2.3).
        let seconds = delay.as_millis().div_ceil(1000);
        headers.insert(header::RETRY_AFTER, u64::try_from(seconds).unwrap_or(u64::MAX).into());
    }
    if matches!(reject, Reject::Unauthenticated { .. }) {
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}

fn failed(status: StatusCode, error: &str, reason: Option<&str>) -> Response {
    let mut value = json!({ "error": error });
    if let Some(reason) = reason {
        value["reason"] = reason.into();
    }
    (status, axum_json(&value)).into_response()
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: None,
            tls: false,
            connections_max: 256,
            handshake_ms_max: 10_000,
            header_bytes_max: 16 << 10,
            header_ms_max: 60_000,
        }
    }
}
