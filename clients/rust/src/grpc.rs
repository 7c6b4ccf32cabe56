//! The gRPC half of the client.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use aerie_proto::{
    frame::FRAME_BYTES_MAX,
    v1::{
        self, generate_request::Message, inference_client::InferenceClient,
        models_client::ModelsClient, sessions_client::SessionsClient,
    },
};
use tokio::sync::mpsc;
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::{Code, Status, Streaming, transport::Channel};

use crate::{Error, client::CONNECT_TIMEOUT};

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
        let mut client = InferenceClient::new(self.channel.clone())
            .max_encoding_message_size(FRAME_BYTES_MAX)
            .max_decoding_message_size(FRAME_BYTES_MAX);
        let responses = client.generate(ReceiverStream::new(outgoing)).await;
        Ok(Responses { requests, responses: responses.map_err(rejected)?.into_inner() })
    }

    pub(crate) async fn list_sessions(
        &self,
        request: v1::ListSessionsRequest,
    ) -> Result<v1::ListSessionsResponse, Error> {
        let page = self.sessions().list_sessions(request).await.map_err(rejected)?;
        Ok(page.into_inner())
    }

    pub(crate) async fn session(
        &self,
        request: v1::GetSessionRequest,
    ) -> Result<v1::Session, Error> {
        Ok(self.sessions().get_session(request).await.map_err(rejected)?.into_inner())
    }

    pub(crate) async fn delete_session(
        &self,
        request: v1::DeleteSessionRequest,
    ) -> Result<(), Error> {
        self.sessions().delete_session(request).await.map_err(rejected)?;
        Ok(())
    }

    pub(crate) async fn models(&self) -> Result<Vec<v1::Model>, Error> {
        let mut client = ModelsClient::new(self.channel.clone());
        let models = client.list_models(v1::ListModelsRequest {}).await.map_err(rejected)?;
        Ok(models.into_inner().models)
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
    Error::Rejected { code: status.code(), message: status.message().to_owned(), retry_after }
}

/// The words of the first cause: those around it say little.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}
