//! The gRPC half of the client.

mod tls;

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use aerie_proto::{
    frame::FRAME_BYTES_MAX,
    inference::{
        ModelInferRequest, ModelInferResponse,
        grpc_inference_service_client::GrpcInferenceServiceClient,
    },
    v1::{
        self, call, call_response::Result as Answer, generate_request::Message,
        inference_client::InferenceClient, models_client::ModelsClient,
        sessions_client::SessionsClient,
    },
};
use tokio::sync::mpsc;
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::{
    Code, Request, Status, Streaming,
    metadata::{Ascii, MetadataValue},
    service::interceptor::{InterceptedService, Interceptor},
    transport::Channel,
};
use tonic_types::StatusExt as _;

use crate::{Credentials, Error, Trust, client::CONNECT_TIMEOUT, error::position, quic::Place};

/// Requests on their way to the wire: a generation has a start and at most a cancel.
const REQUESTS_MAX: usize = 2;
/// A server with a call open that is silent for this long is asked for a sign of life.
const KEEP_ALIVE: Duration = Duration::from_secs(20);

#[derive(Clone, Debug)]
pub(crate) struct Connection {
    channel: Secured,
}

/// What every call goes through.
pub(crate) type Secured = InterceptedService<Channel, Bearer>;

/// Adds the token, if there is one.
#[derive(Clone)]
pub(crate) struct Bearer(Option<MetadataValue<Ascii>>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(value) = &self.0 {
            request.metadata_mut().insert("authorization", value.clone());
        }
        Ok(request)
    }
}

/// Says nothing of the token.
impl fmt::Debug for Bearer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bearer").field("has_token", &self.0.is_some()).finish()
    }
}

/// The events of one generation. The stream of requests stays open with it, for `Cancel`.
#[derive(Debug)]
pub(crate) struct Responses {
    requests: mpsc::Sender<v1::GenerateRequest>,
    responses: Streaming<v1::GenerateResponse>,
}

impl Connection {
    /// Connects in plaintext, or in TLS if there is somebody to trust.
    pub(crate) async fn open(
        place: &Place,
        trust: Option<&Trust>,
        credentials: &Credentials,
    ) -> Result<Self, Error> {
        let Place { address, authority } = place;
        let refused = |problem| Error::Address { address: address.clone(), problem };
        let scheme = if trust.is_some() { "https" } else { "http" };
        let endpoint = Channel::from_shared(format!("{scheme}://{authority}"))
            .map_err(|error| refused(format!("is no URI: {error}")))?
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEP_ALIVE);
        let connected = match trust {
            None => endpoint.connect().await,
            Some(trust) => {
                let config = trust.client_config(tls::ALPN, credentials.certificate.as_ref())?;
                let connector = tls::Connector::new(config, authority)
                    .ok_or_else(|| refused("has no name that a certificate is for".to_owned()))?;
                endpoint.connect_with_connector(connector).await
            }
        };
        let channel = connected.map_err(|error| Error::Unreachable {
            address: address.clone(),
            reason: innermost(&error),
        })?;
        let bearer = bearer(credentials.token.as_deref()).ok_or(Error::Token)?;
        Ok(Self { channel: InterceptedService::new(channel, bearer) })
    }

    /// For calls that are not of the API of clients.
    pub(crate) fn channel(&self) -> Secured {
        self.channel.clone()
    }

    pub(crate) async fn generate(&self, start: v1::Start) -> Result<Responses, Error> {
        let (requests, outgoing) = mpsc::channel(REQUESTS_MAX);
        let start = v1::GenerateRequest { message: Some(Message::Start(start)) };
        requests.try_send(start).expect("the channel is new and has room");
        let responses = self.inference().generate(ReceiverStream::new(outgoing)).await;
        Ok(Responses { requests, responses: responses.map_err(rejected)?.into_inner() })
    }

    pub(crate) async fn attach(&self, request: v1::AttachRequest) -> Result<Responses, Error> {
        let (requests, _) = mpsc::channel(REQUESTS_MAX);
        let responses = self.inference().attach(request).await;
        Ok(Responses { requests, responses: responses.map_err(rejected)?.into_inner() })
    }

    /// Any call that is answered once.
    pub(crate) async fn unary(&self, call: call::Call) -> Result<Answer, Error> {
        use call::Call;

        let mut sessions = self.sessions();
        let answer = match call {
            Call::ListSessions(request) => sessions
                .list_sessions(request)
                .await
                .map(|it| Answer::ListSessions(it.into_inner())),
            Call::GetSession(request) => session(sessions.get_session(request).await),
            Call::DeleteSession(request) => sessions
                .delete_session(request)
                .await
                .map(|it| Answer::DeleteSession(it.into_inner())),
            Call::ForkSession(request) => session(sessions.fork_session(request).await),
            Call::MoveSession(request) => session(sessions.move_session(request).await),
            Call::RewindSession(request) => session(sessions.rewind_session(request).await),
            Call::NameSession(request) => session(sessions.name_session(request).await),
            Call::ListModels(request) => {
                let mut models = ModelsClient::new(self.channel.clone());
                models.list_models(request).await.map(|it| Answer::ListModels(it.into_inner()))
            }
            Call::Generate(_)
            | Call::Attach(_)
            | Call::ExportSession(_)
            | Call::ImportSession(_) => return Err(Error::Answer),
        };
        answer.map_err(rejected)
    }

    pub(crate) async fn infer(
        &self,
        request: ModelInferRequest,
    ) -> Result<ModelInferResponse, Error> {
        let mut client = GrpcInferenceServiceClient::new(self.channel.clone());
        Ok(client.model_infer(request).await.map_err(rejected)?.into_inner())
    }

    pub(crate) async fn export(&self, request: v1::ExportSessionRequest) -> Result<Vec<u8>, Error> {
        let mut chunks =
            self.sessions().export_session(request).await.map_err(rejected)?.into_inner();
        let mut file = Vec::new();
        while let Some(chunk) = chunks.message().await.map_err(rejected)? {
            file.extend_from_slice(&chunk.data);
        }
        Ok(file)
    }

    pub(crate) async fn import(
        &self,
        messages: impl Iterator<Item = v1::ImportSessionRequest> + Send + 'static,
    ) -> Result<v1::Session, Error> {
        let messages = tokio_stream::iter(messages);
        Ok(self.sessions().import_session(messages).await.map_err(rejected)?.into_inner())
    }

    fn inference(&self) -> InferenceClient<Secured> {
        InferenceClient::new(self.channel.clone())
            .max_encoding_message_size(FRAME_BYTES_MAX)
            .max_decoding_message_size(FRAME_BYTES_MAX)
    }

    fn sessions(&self) -> SessionsClient<Secured> {
        SessionsClient::new(self.channel.clone())
    }
}

impl Responses {
    pub(crate) async fn cancel(&mut self) -> Result<(), Error> {
        let cancel = v1::GenerateRequest { message: Some(Message::Cancel(v1::Cancel {})) };
        self.requests
            .send(cancel)
            .await
            .map_err(|_| Error::Interrupted { reason: "the call has ended".to_owned() })
    }
}

impl Stream for Responses {
    type Item = Result<v1::GenerateResponse, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Pin::new(&mut self.responses).poll_next(cx).map_err(rejected)
    }
}

/// None if the token has what no header may have.
fn bearer(token: Option<&str>) -> Option<Bearer> {
    let Some(token) = token else { return Some(Bearer(None)) };
    let mut value: MetadataValue<Ascii> = format!("Bearer {token}").parse().ok()?;
    value.set_sensitive(true);
    Some(Bearer(Some(value)))
}

fn session(answer: Result<tonic::Response<v1::Session>, Status>) -> Result<Answer, Status> {
    answer.map(|it| Answer::Session(it.into_inner()))
}

pub(crate) fn rejected(status: Status) -> Error {
    // What did not come from the server has a cause; a status off the wire has none.
    if std::error::Error::source(&status).is_some() {
        let code = status.code();
        if matches!(code, Code::Unavailable | Code::Unknown | Code::Cancelled | Code::Internal) {
            return Error::Interrupted { reason: innermost(&status) };
        }
    }
    let retry_after = status
        .metadata()
        .get("retry-after-ms")
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.parse().ok())
        .map(Duration::from_millis);
    let info = status.get_details_error_info();
    let (reason, metadata) = info.map(|it| (it.reason, it.metadata)).unwrap_or_default();
    Error::Rejected {
        code: status.code(),
        message: status.message().to_owned(),
        retry_after,
        reason,
        position: position(&metadata),
    }
}

/// The words of the first cause: those around it say little.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}
