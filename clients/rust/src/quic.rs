//! The QUIC half of the client.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use aerie_proto::{
    ALPN,
    frame::{self, FRAME_BYTES_MAX},
    v1::{self, call, call_response::Result as Answer, generate_request::Message},
};
use quinn::{
    ClientConfig, Endpoint, RecvStream, SendStream, TransportConfig, VarInt,
    crypto::rustls::QuicClientConfig,
};
use tokio::{io::ReadBuf, net::lookup_host, time::timeout};
use tokio_stream::Stream;
use tonic::Code;

use crate::{Error, Trust, TrustError, client::CONNECT_TIMEOUT, error::position};

/// Read from a stream at once: some tens of deltas.
const READ_BYTES: usize = 4096;
/// A connection over which nothing has come for this long is given up.
const IDLE_MAX: VarInt = VarInt::from_u32(30_000);
/// Often enough that neither the server nor a NAT gives the connection up.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// Assumed before the first measurement, so that a lost first flight is repeated soon.
const INITIAL_RTT: Duration = Duration::from_millis(50);
/// How long the server may take to hear that the client has left.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// What a connection is closed with: the client wants nothing more.
const CLOSE_DONE: VarInt = VarInt::from_u32(0);
/// What streams are reset with: the client does not want the rest.
const RESET_CANCELLED: VarInt = VarInt::from_u32(1);

#[derive(Clone, Debug)]
pub(crate) struct Connection {
    connection: quinn::Connection,
    /// Drives the connection; lives as long as it.
    endpoint: Endpoint,
}

/// The events of one generation; dropping them resets the stream, which cancels it.
#[derive(Debug)]
pub(crate) struct Responses {
    send: SendStream,
    frames: Frames,
    /// Read while waiting for the server's first word.
    first: Option<v1::GenerateResponse>,
}

impl Connection {
    pub(crate) async fn open(address: &str, authority: &str, trust: &Trust) -> Result<Self, Error> {
        let unreachable =
            |reason: String| Error::Unreachable { address: address.to_owned(), reason };
        let config = client_config(trust)?;
        let remote = lookup_host(authority)
            .await
            .map_err(|error| unreachable(error.to_string()))?
            .next()
            .ok_or_else(|| unreachable("the name has no address".to_owned()))?;
        let local: SocketAddr = match remote {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let endpoint = Endpoint::client(local).map_err(|error| unreachable(error.to_string()))?;
        let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let connecting = endpoint
            .connect_with(config, remote, host)
            .map_err(|error| unreachable(error.to_string()))?;
        let connection = timeout(CONNECT_TIMEOUT, connecting)
            .await
            .map_err(|_| unreachable("nobody answers".to_owned()))?
            .map_err(|error| unreachable(error.to_string()))?;
        Ok(Self { connection, endpoint })
    }

    pub(crate) async fn generate(&self, start: v1::Start) -> Result<Responses, Error> {
        let request = v1::GenerateRequest { message: Some(Message::Start(start)) };
        self.stream(call::Call::Generate(request)).await
    }

    pub(crate) async fn attach(&self, request: v1::AttachRequest) -> Result<Responses, Error> {
        self.stream(call::Call::Attach(request)).await
    }

    pub(crate) async fn export(&self, request: v1::ExportSessionRequest) -> Result<Vec<u8>, Error> {
        let (mut send, mut frames) = self.call(call::Call::ExportSession(request)).await?;
        let _ = send.finish();
        let mut file = Vec::new();
        while let Some(v1::CallResponse { result }) = frames.next().await? {
            match result {
                Some(Answer::Chunk(chunk)) => file.extend_from_slice(&chunk.data),
                Some(Answer::Error(error)) => return Err(rejected(error)),
                _ => return Err(Error::Answer),
            }
        }
        Ok(file)
    }

    pub(crate) async fn import(
        &self,
        mut messages: impl Iterator<Item = v1::ImportSessionRequest> + Send,
    ) -> Result<v1::Session, Error> {
        let first = messages.next().ok_or(Error::Answer)?;
        let (mut send, mut frames) = self.call(call::Call::ImportSession(first)).await?;
        for message in messages {
            // The server may have refused it already: then it says why.
            if send.write_chunk(frame::encode(&message)?).await.is_err() {
                break;
            }
        }
        let _ = send.finish();
        match answer(frames.next().await?)? {
            Answer::Session(session) => Ok(session),
            _ => Err(Error::Answer),
        }
    }

    /// Any call that is answered once.
    pub(crate) async fn unary(&self, call: call::Call) -> Result<Answer, Error> {
        let (mut send, mut frames) = self.call(call).await?;
        // Nothing more to say; an error would show in the answer.
        let _ = send.finish();
        answer(frames.next().await?)
    }

    async fn stream(&self, call: call::Call) -> Result<Responses, Error> {
        let (send, mut frames) = self.call(call).await?;
        let response: v1::GenerateResponse = frames.next().await?.ok_or(Error::Answer)?;
        if let Some(v1::generate_response::Event::Error(error)) = response.event {
            return Err(rejected(error));
        }
        Ok(Responses { send, frames, first: Some(response) })
    }

    pub(crate) async fn close(self) {
        self.connection.close(CLOSE_DONE, b"");
        // Whoever does not answer by then finds out by the silence.
        let _ = timeout(CLOSE_TIMEOUT, self.endpoint.wait_idle()).await;
    }

    async fn call(&self, call: call::Call) -> Result<(SendStream, Frames), Error> {
        let frame = frame::encode(&v1::Call { call: Some(call) })?;
        let (mut send, receive) = self.connection.open_bi().await.map_err(interrupted)?;
        send.write_chunk(frame).await.map_err(interrupted)?;
        Ok((send, Frames { receive, decoder: frame::Decoder::default() }))
    }
}

impl Responses {
    pub(crate) async fn cancel(&mut self) -> Result<(), Error> {
        let message = Some(Message::Cancel(v1::Cancel {}));
        let frame = frame::encode(&v1::GenerateRequest { message })?;
        self.send.write_chunk(frame).await.map_err(interrupted)
    }
}

impl Drop for Responses {
    fn drop(&mut self) {
        // Both fail only when the stream is over already.
        let _ = self.send.reset(RESET_CANCELLED);
        let _ = self.frames.receive.stop(RESET_CANCELLED);
    }
}

impl Stream for Responses {
    type Item = Result<v1::GenerateResponse, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(Ok(first)));
        }
        self.frames.poll_next(cx).map(Result::transpose)
    }
}

/// The frames that come on one stream.
#[derive(Debug)]
struct Frames {
    receive: RecvStream,
    decoder: frame::Decoder,
}

impl Frames {
    async fn next<M: prost::Message + Default>(&mut self) -> Result<Option<M>, Error> {
        std::future::poll_fn(|cx| self.poll_next(cx)).await
    }

    fn poll_next<M>(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<M>, Error>>
    where
        M: prost::Message + Default,
    {
        loop {
            if let Some(message) = self.decoder.message()? {
                return Poll::Ready(Ok(Some(message)));
            }
            let mut bytes = [0; READ_BYTES];
            let mut buffer = ReadBuf::new(&mut bytes);
            ready!(self.receive.poll_read_buf(cx, &mut buffer)).map_err(interrupted)?;
            if buffer.filled().is_empty() {
                self.decoder.finish()?;
                return Poll::Ready(Ok(None));
            }
            self.decoder.push(buffer.filled());
        }
    }
}

/// What a call came to.
fn answer(response: Option<v1::CallResponse>) -> Result<Answer, Error> {
    match response.ok_or(Error::Answer)?.result {
        Some(Answer::Error(error)) => Err(rejected(error)),
        Some(answer) => Ok(answer),
        None => Err(Error::Answer),
    }
}

/// What the server says in an error of its own.
pub(crate) fn rejected(error: v1::Error) -> Error {
    let v1::Error { code, message, retry_after_ms, reason, metadata } = error;
    Error::Rejected {
        code: i32::try_from(code).map_or(Code::Unknown, Code::from_i32),
        message,
        retry_after: retry_after_ms.map(Duration::from_millis),
        reason,
        position: position(&metadata),
    }
}

fn interrupted(error: impl ToString) -> Error {
    Error::Interrupted { reason: error.to_string() }
}

fn client_config(trust: &Trust) -> Result<ClientConfig, TrustError> {
    let tls = QuicClientConfig::try_from(trust.client_config(ALPN)?)
        .expect("ring has the suite that QUIC begins with");
    let mut transport = TransportConfig::default();
    let frame_bytes_max = u32::try_from(FRAME_BYTES_MAX).expect("a frame's length is a u32");
    transport
        .max_concurrent_bidi_streams(0_u32.into())
        .max_concurrent_uni_streams(0_u32.into())
        .datagram_receive_buffer_size(None)
        .max_idle_timeout(Some(IDLE_MAX.into()))
        .keep_alive_interval(Some(KEEP_ALIVE))
        .initial_rtt(INITIAL_RTT)
        .stream_receive_window(frame_bytes_max.into());
    let mut config = ClientConfig::new(Arc::new(tls));
    config.transport_config(Arc::new(transport));
    Ok(config)
}
