//! QUIC: one bidirectional stream for each call, messages framed by [`aerie_proto::frame`].
//!
//! The first frame of a stream is a `Call`. A generation goes on with `GenerateRequest`s one way
//! and `GenerateResponse`s the other; any other call is answered by one `CallResponse`. Resetting
//! or stopping a stream cancels what runs on it.

use std::{
    io,
    marker::PhantomData,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{self, Poll, ready},
    time::Duration,
};

use aerie_proto::{
    ALPN,
    frame::{self, FRAME_BYTES_MAX, FrameError},
    v1::{self, call, call_response, generate_response},
};
use quinn::{
    Endpoint, IdleTimeout, Incoming, RecvStream, SendStream, ServerConfig, TransportConfig, VarInt,
    WriteError,
    crypto::rustls::{NoInitialCipherSuite, QuicServerConfig},
};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::{io::ReadBuf, task::JoinSet};
use tokio_stream::{Stream, StreamExt, iter};
use tracing::{debug, info};

use super::{
    call::Call,
    chunks, grpc, import_session, list_sessions, stopped,
    turns::{Broken, Turns},
};
use crate::{
    admission::Reject,
    server::{Listener, Shutdown},
    service::Service,
    telemetry::metrics::{Api, Metrics},
    tls::{Identity, TlsError},
};

/// Read from a stream at once; requests are a few hundred bytes.
const READ_BYTES: usize = 4096;
/// What a connection is closed with when the server stops.
const CLOSE_SHUTDOWN: VarInt = VarInt::from_u32(1);

/// Limits of the QUIC listener.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where to listen (UDP); port 0 lets the system choose.
    pub listen: SocketAddr,
    /// Connections at once; one more is refused. From half of it on, a client has to prove its
    /// address before the server keeps anything of it.
    pub connections_max: u32,
    /// Calls at once on one connection; more wait at the client.
    pub streams_max: u32,
    /// A connection over which nothing has come for this long is given up.
    pub idle_ms_max: u32,
    /// How often a silent connection is kept alive; less than `idle_ms_max`.
    pub keep_alive_ms: u32,
    /// Round trip that a new connection assumes before it has measured. A lost first flight is
    /// repeated after three of these; QUIC's own 333 ms is meant for the open Internet.
    pub initial_rtt_ms: u32,
}

/// What a connection needs of the server.
#[derive(Clone, Debug)]
struct Context {
    service: Service,
    shutdown: Shutdown,
}

/// Why the port could not be opened.
#[derive(Debug, Error)]
pub enum BindError {
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("quic.{field} = {found}: {problem}")]
    Config { field: &'static str, found: u32, problem: &'static str },
    #[error("no cipher suite that QUIC could begin with: {0}")]
    CipherSuite(#[from] NoInitialCipherSuite),
    #[error("quic.listen = {listen}: {source}")]
    Bind { listen: SocketAddr, source: io::Error },
}

/// Opens the port and serves until `shutdown`, then until the calls that were running have ended.
///
/// # Errors
/// See [`BindError`].
pub fn listen(
    config: &Config,
    identity: &Identity,
    service: Service,
    shutdown: Shutdown,
) -> Result<Listener, BindError> {
    let tls = QuicServerConfig::try_from(identity.server_config(ALPN)?)?;
    let mut server = ServerConfig::with_crypto(Arc::new(tls));
    server.transport_config(Arc::new(transport_config(config)?));
    let bind_error = |source| BindError::Bind { listen: config.listen, source };
    let endpoint = Endpoint::server(server, config.listen).map_err(bind_error)?;
    let addr = endpoint.local_addr().map_err(bind_error)?;
    info!(address = %format_args!("quic://{addr}"), fingerprint = %identity.fingerprint(), "listening");
    let connections_max = config.connections_max as usize;
    let task = tokio::spawn(serve(endpoint, connections_max, Context { service, shutdown }));
    Ok(Listener { addr, task })
}

async fn serve(endpoint: Endpoint, connections_max: usize, context: Context) {
    let mut connections = JoinSet::new();
    let mut stopped = Box::pin(stopped(&context.shutdown));
    loop {
        tokio::select! {
            () = &mut stopped => break,
            Some(_) = connections.join_next() => {}
            incoming = endpoint.accept() => match incoming {
                Some(incoming) => {
                    if let Some(incoming) =
                        admit(incoming, connections.len(), connections_max, &context.service)
                    {
                        connections.spawn(serve_connection(incoming, context.clone()));
                    }
                }
                None => break,
            },
        }
    }
    // Handshakes and connections hear of the shutdown themselves.
    while connections.join_next().await.is_some() {}
    endpoint.close(CLOSE_SHUTDOWN, b"shutdown");
    endpoint.wait_idle().await;
}

/// Turns a connection away if there are too many, and lets it prove its address if there are many.
fn admit(
    incoming: Incoming,
    n_connections: usize,
    connections_max: usize,
    service: &Service,
) -> Option<Incoming> {
    if connections_max <= n_connections {
        debug!(connections_max, "connection refused");
        count_handshake(service, "refused");
        incoming.refuse();
        None
    } else if connections_max / 2 <= n_connections && incoming.may_retry() {
        count_handshake(service, "retried");
        incoming.retry().expect("may_retry was asked");
        None
    } else {
        Some(incoming)
    }
}

/// Fits quinn to what flows here: frames of some tens of bytes, each awaited by a reader.
fn transport_config(config: &Config) -> Result<TransportConfig, BindError> {
    let millis = |ms: u32| Duration::from_millis(ms.into());
    let keep_alive_ms = config.keep_alive_ms;
    if config.idle_ms_max <= keep_alive_ms {
        let problem = "is not less than idle_ms_max";
        return Err(BindError::Config { field: "keep_alive_ms", found: keep_alive_ms, problem });
    }
    let frame_bytes_max = u32::try_from(FRAME_BYTES_MAX).expect("a frame's length is a u32");
    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(config.streams_max.into())
        .max_concurrent_uni_streams(0_u32.into())
        .datagram_receive_buffer_size(None)
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(config.idle_ms_max))))
        .keep_alive_interval(Some(millis(keep_alive_ms)))
        .initial_rtt(millis(config.initial_rtt_ms))
        // One frame of any size is on its way in without waiting; a connection has a few of them.
        .stream_receive_window(frame_bytes_max.into())
        .receive_window((4 * frame_bytes_max).into())
        // What a slow reader may leave here before its generation sits out.
        .send_window(frame_bytes_max.into());
    Ok(transport)
}

async fn serve_connection(incoming: Incoming, context: Context) {
    let Context { service, shutdown } = &context;
    let remote = incoming.remote_address();
    let handshake = async { incoming.accept()?.await };
    let connection = tokio::select! {
        () = stopped(shutdown) => return,
        connection = handshake => match connection {
            Ok(connection) => connection,
            Err(error) => {
                count_handshake(service, "failed");
                debug!(%remote, %error, "handshake failed");
                return;
            }
        },
    };
    count_handshake(service, "completed");
    let _open = Open::new(service.metrics());
    debug!(%remote, rtt_us = connection.rtt().as_micros(), "connected");
    let mut streams = JoinSet::new();
    let mut stopped = Box::pin(stopped(shutdown));
    loop {
        tokio::select! {
            () = &mut stopped => break,
            Some(_) = streams.join_next() => {}
            accepted = connection.accept_bi() => match accepted {
                Ok((send, receive)) => {
                    streams.spawn(serve_stream(send, receive, context.clone()));
                }
                Err(reason) => {
                    debug!(%remote, %reason, "disconnected");
                    break;
                }
            },
        }
    }
    while streams.join_next().await.is_some() {}
    // Every stream has waited until its last byte was acknowledged.
    connection.close(CLOSE_SHUTDOWN, b"shutdown");
}

fn count_handshake(service: &Service, result: &'static str) {
    service.metrics().quic_handshakes.with_label_values(&[result]).inc();
}

/// An open connection, for the gauge of them.
struct Open<'a>(&'a Metrics);

impl<'a> Open<'a> {
    fn new(metrics: &'a Metrics) -> Self {
        metrics.quic_connections.inc();
        Self(metrics)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.quic_connections.dec();
    }
}

async fn serve_stream(mut send: SendStream, receive: RecvStream, context: Context) {
    let Context { service, shutdown } = context;
    let mut frames = Frames::new(receive);
    let call = tokio::select! {
        () = stopped(&shutdown) => return,
        call = frames.next::<v1::Call>() => match call {
            Some(Ok(v1::Call { call })) => call,
            Some(Err(Broken::Refused(reject))) => {
                let _ = respond(&mut send, &refusal(&reject)).await;
                return finish(send).await;
            }
            Some(Err(Broken::Gone)) | None => return,
        },
    };
    let sent = match call {
        Some(call::Call::Generate(first)) => {
            let requests = iter([Ok(first)]).chain(Requests::new(frames));
            stream(&mut send, Turns::new(Api::Quic, service, requests)).await
        }
        Some(call::Call::Attach(request)) => {
            stream(&mut send, Turns::attached(Api::Quic, service, request)).await
        }
        Some(call::Call::ExportSession(request)) => export(&mut send, &service, &request).await,
        Some(call::Call::ImportSession(first)) => {
            let requests = iter([Ok(first)]).chain(Requests::new(frames));
            let mut call = Call::begin(Api::Quic, &service);
            let session = import_session(&service, requests).await;
            call.end(&session);
            let session = session.map(call_response::Result::Session);
            respond(&mut send, &response(session)).await
        }
        other => respond(&mut send, &answer(&service, other).await).await,
    };
    match sent {
        Ok(()) => finish(send).await,
        // The client stopped the stream or has gone: there is nobody to tell.
        Err(reason) => debug!(%reason, "stream ended early"),
    }
}

/// Runs the turns of one generation stream; returns early when the client no longer reads.
async fn stream(
    send: &mut SendStream,
    mut turns: Turns<impl Stream<Item = Result<v1::GenerateRequest, Broken>> + Unpin>,
) -> Result<(), WriteError> {
    loop {
        // `turns` is dropped, and so cancelled, as soon as the peer stops the stream: also while
        // a step is being waited for.
        let response = tokio::select! {
            response = turns.next() => response,
            _ = send.stopped() => return Err(WriteError::Stopped(VarInt::from_u32(0))),
        };
        match response {
            Some(Ok(response)) => respond(send, &response).await?,
            Some(Err(reject)) => {
                let event = Some(generate_response::Event::Error(error(&reject)));
                return respond(send, &v1::GenerateResponse { event }).await;
            }
            None => return Ok(()),
        }
    }
}

async fn answer(service: &Service, call: Option<call::Call>) -> v1::CallResponse {
    use call_response::Result as Answer;

    let mut metered = Call::begin(Api::Quic, service);
    let result = match call {
        Some(call::Call::ListSessions(request)) => {
            list_sessions(service, &request).map(Answer::ListSessions)
        }
        Some(call::Call::GetSession(request)) => {
            service.session(&request.session_id).map(Answer::Session)
        }
        Some(call::Call::DeleteSession(request)) => service
            .delete_session(&request)
            .await
            .map(|()| Answer::DeleteSession(v1::DeleteSessionResponse {})),
        Some(call::Call::ForkSession(request)) => {
            service.fork_session(&request).await.map(Answer::Session)
        }
        Some(call::Call::RewindSession(request)) => {
            service.rewind_session(&request).await.map(Answer::Session)
        }
        Some(call::Call::NameSession(request)) => {
            service.name_session(&request).await.map(Answer::Session)
        }
        Some(call::Call::ListModels(_)) => {
            Ok(Answer::ListModels(v1::ListModelsResponse { models: service.models() }))
        }
        Some(_) | None => {
            let problem = "is none that this server knows".to_owned();
            Err(Reject::Invalid { field: "call", problem })
        }
    };
    metered.end(&result);
    response(result)
}

/// Sends a session as a file, piece by piece.
async fn export(
    send: &mut SendStream,
    service: &Service,
    request: &v1::ExportSessionRequest,
) -> Result<(), WriteError> {
    let mut call = Call::begin(Api::Quic, service);
    let file = service.export_session(request).await;
    call.end(&file);
    match file {
        Ok(file) => {
            for chunk in chunks(&file) {
                respond(send, &response(Ok(call_response::Result::Chunk(chunk)))).await?;
            }
            Ok(())
        }
        Err(reject) => respond(send, &refusal(&reject)).await,
    }
}

fn response(result: Result<call_response::Result, Reject>) -> v1::CallResponse {
    match result {
        Ok(result) => v1::CallResponse { result: Some(result) },
        Err(reject) => refusal(&reject),
    }
}

fn refusal(reject: &Reject) -> v1::CallResponse {
    v1::CallResponse { result: Some(call_response::Result::Error(error(reject))) }
}

/// Maps a refusal to what QUIC clients get; the numbers are gRPC's.
pub fn error(reject: &Reject) -> v1::Error {
    let retry_after_ms =
        reject.retry_after().map(|it| u64::try_from(it.as_millis()).unwrap_or(u64::MAX));
    let metadata = reject.metadata().into_iter().map(|(name, value)| (name.to_owned(), value));
    v1::Error {
        code: grpc::code(reject) as u32,
        message: reject.to_string(),
        retry_after_ms,
        reason: reject.reason(),
        metadata: metadata.collect(),
    }
}

async fn respond(send: &mut SendStream, response: &impl prost::Message) -> Result<(), WriteError> {
    let frame = frame::encode(response).expect("pages and deltas are far smaller than a frame");
    send.write_chunk(frame).await
}

/// Ends the stream and waits until the peer has it all.
async fn finish(mut send: SendStream) {
    if send.finish().is_ok() {
        let _ = send.stopped().await;
    }
}

/// The frames of one stream.
struct Frames {
    receive: RecvStream,
    decoder: frame::Decoder,
}

impl Frames {
    fn new(receive: RecvStream) -> Self {
        Self { receive, decoder: frame::Decoder::default() }
    }

    async fn next<M: prost::Message + Default>(&mut self) -> Option<Result<M, Broken>> {
        std::future::poll_fn(|cx| self.poll_next(cx)).await
    }

    fn poll_next<M>(&mut self, cx: &mut task::Context<'_>) -> Poll<Option<Result<M, Broken>>>
    where
        M: prost::Message + Default,
    {
        loop {
            match self.decoder.message() {
                Ok(Some(message)) => return Poll::Ready(Some(Ok(message))),
                Ok(None) => {}
                Err(error) => return Poll::Ready(Some(Err(refused(&error)))),
            }
            let mut bytes = [0; READ_BYTES];
            let mut buffer = ReadBuf::new(&mut bytes);
            if ready!(self.receive.poll_read_buf(cx, &mut buffer)).is_err() {
                return Poll::Ready(Some(Err(Broken::Gone)));
            }
            if buffer.filled().is_empty() {
                let end = self.decoder.finish().map_err(|error| refused(&error));
                return Poll::Ready(end.err().map(Err));
            }
            self.decoder.push(buffer.filled());
        }
    }
}

/// The messages of a stream after the first.
struct Requests<M> {
    frames: Frames,
    message: PhantomData<fn() -> M>,
}

impl<M> Requests<M> {
    fn new(frames: Frames) -> Self {
        Self { frames, message: PhantomData }
    }
}

impl<M: prost::Message + Default> Stream for Requests<M> {
    type Item = Result<M, Broken>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<Option<Self::Item>> {
        self.frames.poll_next(cx)
    }
}

fn refused(error: &FrameError) -> Broken {
    Broken::Refused(Reject::Invalid { field: "frame", problem: format!("is refused: {error}") })
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: ([127, 0, 0, 1], 7447).into(),
            connections_max: 1024,
            streams_max: 256,
            idle_ms_max: 30_000,
            keep_alive_ms: 10_000,
            initial_rtt_ms: 50,
        }
    }
}
