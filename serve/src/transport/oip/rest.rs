//! The protocol over HTTP: `/v2/…`, with Triton's extension for tensors in binary.
//!
//! `body` turns bodies into the messages that gRPC has, and back.

mod body;

use std::{io, net::SocketAddr, time::Duration};

use axum::{
    Router,
    body::{Body, Bytes, to_bytes},
    extract::{Path, State},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto, graceful::GracefulShutdown},
    service::TowerToHyperService,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use thiserror::Error;
use tokio::{net::TcpListener, task::JoinSet, time::timeout};
use tokio_stream::StreamExt as _;
use tracing::{debug, info};

use super::Oip;
use crate::{
    admission::Reject,
    auth::{Evidence, Principal, bearer},
    server::{Listener, Shutdown},
    service::Service,
    telemetry::metrics::Api,
    tls::{Identity, TlsError},
    transport::{
        call::Call,
        door::{Door, Limits},
        stopped,
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
    /// How long it may take until a request's body has come.
    pub body_ms_max: u32,
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
    let front = Front {
        oip: Oip::new(service),
        body_max: Duration::from_millis(config.body_ms_max.into()),
    };
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
        let service = TowerToHyperService::new(router.clone());
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
    body_max: Duration,
}

fn router(front: Front) -> Router {
    Router::new()
        .route("/v2", get(server_metadata))
        .route("/v2/", get(server_metadata))
        .route("/v2/health/live", get(async || StatusCode::OK))
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

async fn server_metadata(State(front): State<Front>, headers: HeaderMap) -> Response {
    front.tell(&headers, |_| {
        let metadata = Oip::server_metadata();
        let (name, version, extensions) = (metadata.name, metadata.version, metadata.extensions);
        Ok(json!({ "name": name, "version": version, "extensions": extensions }))
    })
}

/// As `/readyz` does, without asking for a token.
async fn ready(State(front): State<Front>) -> StatusCode {
    if front.oip.is_ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}

async fn model_ready(
    State(front): State<Front>,
    Path(Named { name, version }): Path<Named>,
    headers: HeaderMap,
) -> Response {
    front.tell(&headers, |oip| {
        oip.model_metadata(&name, &version)?;
        if oip.is_ready() { Ok(json!({})) } else { Err(oip.service().unavailable()) }
    })
}

async fn model_metadata(
    State(front): State<Front>,
    Path(Named { name, version }): Path<Named>,
    headers: HeaderMap,
) -> Response {
    front.tell(&headers, |oip| Ok(body::metadata(&oip.model_metadata(&name, &version)?)))
}

async fn statistics(
    State(front): State<Front>,
    Path(Named { name, version }): Path<Named>,
    headers: HeaderMap,
) -> Response {
    front.tell(&headers, |oip| Ok(body::statistics(&oip.statistics(&name, &version)?)))
}

async fn all_statistics(State(front): State<Front>, headers: HeaderMap) -> Response {
    front.tell(&headers, |oip| Ok(body::statistics(&oip.statistics("", "")?)))
}

async fn index(State(front): State<Front>, headers: HeaderMap, body: Body) -> Response {
    let mut call = front.begin();
    let answered = async {
        front.principal(&headers)?;
        let asked = front.read(body).await?;
        Ok(body::index(&front.oip.index(body::asks_for_ready(&asked)?)))
    };
    let answered = answered.await;
    call.end(&answered);
    answered.map_or_else(|reject| refused(&reject), |index| axum_json(&index))
}

async fn infer(
    State(front): State<Front>,
    Path(Named { name, version }): Path<Named>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let mut call = front.begin();
    let answered = front.infer([name, version], &headers, body).await;
    call.end(&answered);
    match answered {
        Err(reject) => refused(&reject),
        Ok(body::Answer { bytes, json_bytes: None }) => {
            ([(header::CONTENT_TYPE, "application/json")], bytes).into_response()
        }
        Ok(body::Answer { bytes, json_bytes: Some(length) }) => {
            let kind = HeaderValue::from_static("application/octet-stream");
            let headers = [(header::CONTENT_TYPE, kind), (HEADER_LENGTH, length.into())];
            (headers, bytes).into_response()
        }
    }
}

impl Front {
    fn begin(&self) -> Call {
        Call::begin(Api::Rest, self.oip.service())
    }

    fn principal(&self, headers: &HeaderMap) -> Result<Principal, Reject> {
        let token = headers.get(header::AUTHORIZATION).and_then(|it| bearer(it.as_bytes()));
        Ok(self.oip.service().caller(Evidence::of(token, None))?.who)
    }

    /// Answers a request without a body, in JSON.
    fn tell(
        &self,
        headers: &HeaderMap,
        answer: impl FnOnce(&Oip) -> Result<Value, Reject>,
    ) -> Response {
        let mut call = self.begin();
        let answered = self.principal(headers).and_then(|_| answer(&self.oip));
        call.end(&answered);
        answered.map_or_else(|reject| refused(&reject), |value| axum_json(&value))
    }

    async fn infer(
        &self,
        [name, version]: [String; 2],
        headers: &HeaderMap,
        body: Body,
    ) -> Result<body::Answer, Reject> {
        let who = self.principal(headers)?;
        let _place = self.oip.enter()?;
        if let Some(encoding) = headers.get(header::CONTENT_ENCODING) {
            let problem = format!("is compressed ({encoding:?}), which is not offered");
            return Err(Reject::Invalid { field: "body", problem });
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
        let bytes = self.read(body).await?;
        let asked = body::Asked::parse(&bytes, json_bytes)?;
        let (mut request, binary) = asked.request()?;
        (request.model_name, request.model_version) = (name, version);
        let response = self.oip.infer(who, request).await?;
        Ok(body::Answer::new(&response, &binary))
    }

    async fn read(&self, body: Body) -> Result<Bytes, Reject> {
        let bytes_max = self.oip.setup().config.message_bytes_max as usize;
        let invalid = |problem: String| Reject::Invalid { field: "body", problem };
        match timeout(self.body_max, to_bytes(body, bytes_max)).await {
            Ok(Ok(bytes)) => Ok(bytes),
            Ok(Err(_)) => Err(invalid(format!("has more than {bytes_max} bytes, or broke off"))),
            Err(_) => Err(invalid("took too long to come".to_owned())),
        }
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
        Reject::Expired { .. } => StatusCode::GATEWAY_TIMEOUT,
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
            body_ms_max: 60_000,
        }
    }
}
