//! The gRPC half of the client.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use aerie_proto::{
    frame::FRAME_BYTES_MAX,
    v1::{
        self, call, call_response::Result as Answer, generate_request::Message,
        inference_client::InferenceClient, models_client::ModelsClient,
        sessions_client::SessionsClient,
    },
};
use tokio::sync::mpsc;
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::{Code, Status, Streaming, transport::Channel};
use tonic_types::StatusExt as _;

use crate::{Error, client::CONNECT_TIMEOUT, error::position};

/// Requests on their way to the wire: a generation has a start and at most a cancel.
const REQUESTS_MAX: usize = 2;
/// A server with a call open that is silent for this long is asked for a sign of life.
const KEEP_ALIVE: Duration = Duration::from_secs(20);

#[derive(Clone, Debug)]
pub(crate) struct Connection {
    channel: Channel,
}

/// The events of one generation. The stream of requests stays open with it, for `Cancel`.
#[derive(Debug)]
pub(crate) struct Responses {
    requests: mpsc::Sender<v1::GenerateRequest>,
    responses: Streaming<v1::GenerateResponse>,
}

impl Connection {
    pub(crate) async fn open(address: &str, authority: &str) -> Result<Self, Error> {
        let endpoint = Channel::from_shared(format!("http://{authority}")).map_err(|error| {
            Error::Address { address: address.to_owned(), problem: format!("is no URI: {error}") }
        })?;
        let channel = endpoint
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .connect()
            .await
            .map_err(|error| Error::Unreachable {
                address: address.to_owned(),
                reason: innermost(&error),
            })?;
        Ok(Self { channel })
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

    fn inference(&self) -> InferenceClient<Channel> {
        InferenceClient::new(self.channel.clone())
            .max_encoding_message_size(FRAME_BYTES_MAX)
            .max_decoding_message_size(FRAME_BYTES_MAX)
    }

    fn sessions(&self) -> SessionsClient<Channel> {
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

fn session(answer: Result<tonic::Response<v1::Session>, Status>) -> Result<Answer, Status> {
    answer.map(|it| Answer::Session(it.into_inner()))
}

fn rejected(status: Status) -> Error {
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
