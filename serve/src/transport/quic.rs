//! QUIC: one bidirectional stream for each call, messages framed by [`aerie_proto::frame`].
//!
//! The first frame of a stream is a `Call`. A generation goes on with `GenerateRequest`s one way
//! and `GenerateResponse`s the other; any other call is answered by one `CallResponse`. Resetting
//! or stopping a stream cancels what runs on it. A call may come before its handshake is complete;
//! [`early`] tells whether it is run before, too.

mod door;
mod frames;
mod handshake;
mod priority;
mod settings;
#[cfg(test)]
mod tests;
mod tickets;
mod traffic;

use std::{
    io,
    net::{SocketAddr, UdpSocket},
    sync::Arc,
};

use aerie_proto::{
    early::{self, Early},
    frame::{self, FRAME_BYTES_MAX},
    v1::{self, call, call_response, generate_response},
};
use quinn::{
    Connection, Endpoint, RecvStream, SendStream, TokioRuntime, VarInt, WriteError,
    crypto::rustls::NoInitialCipherSuite,
};
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::{
    task::JoinSet,
    time::{MissedTickBehavior, interval},
};
use tokio_stream::{Stream, StreamExt, iter};
use tracing::{debug, info};

use self::{
    door::{Door, Visit},
    frames::{Frames, Requests},
    handshake::{Confirmation, Handshake},
    priority::Urgent,
    settings::{endpoint_config, server_config},
    traffic::{SAMPLE_INTERVAL, Traffic},
};
use super::{
    call::Call,
    chunks, grpc, import_session, list_sessions, stopped,
    turns::{Broken, Turns},
};
use crate::{
    admission::Reject,
    auth::{Evidence, Principal},
    server::{Listener, Shutdown},
    service::Service,
    telemetry::metrics::{Api, QuicMetrics},
    tls::{Identity, PeerCertificate, TlsError},
};

/// What a connection is closed with when the server stops.
const CLOSE_SHUTDOWN: VarInt = VarInt::from_u32(1);
/// What a connection is closed with whose handshake takes too long.
const CLOSE_HANDSHAKE: VarInt = VarInt::from_u32(2);
/// What may lie on one stream: a frame of any size.
#[expect(clippy::cast_possible_truncation, reason = "a frame's length is a u32")]
const FRAME_WINDOW: u32 = FRAME_BYTES_MAX as u32;
/// What may lie on all streams of a connection that clients write to.
const RECEIVE_WINDOW: u32 = 4 * FRAME_WINDOW;

/// Limits of the QUIC listener.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where to listen (UDP); port 0 lets the system choose.
    pub listen: SocketAddr,
    /// Connections at once; one more is refused. From half of it on, a client has to prove its
    /// address before the server keeps anything of it.
    pub connections_max: u32,
    /// Handshakes at once, each of them a connection too. From half of it on, addresses have to be
    /// proved; beyond it a client is not answered until its next try.
    pub handshakes_max: u32,
    /// A handshake that takes longer is given up.
    pub handshake_ms_max: u32,
    /// Calls at once on one connection; more wait at the client.
    pub streams_max: u32,
    /// A connection over which nothing has come for this long is given up. Keeping it alive is the
    /// client's business, who knows whether it still waits for something; ours says so every 10 s,
    /// so that this is longer.
    pub idle_ms_max: u32,
    /// Round trip that a new connection assumes before it has measured. A lost first flight is
    /// repeated after three of these; QUIC's own 333 ms is meant for the open Internet.
    pub initial_rtt_ms: u32,
    /// How long a client may hold an acknowledgement back; a lost token is sent again this much
    /// later. Asked of clients that know how to be asked.
    pub ack_delay_ms_max: u32,
    /// Bytes of calls on one connection before its handshake is complete.
    pub early_bytes_max: u32,
    /// Tickets kept for clients that come back, each good for one connection that begins with a
    /// call; with 0 there are none.
    pub tickets_max: u32,
    /// How long a ticket is good, and a client's proof of its address.
    pub ticket_s_max: u32,
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
    let server = server_config(config, identity, &service)?;
    let bind_error = |source| BindError::Bind { listen: config.listen, source };
    let socket = UdpSocket::bind(config.listen).map_err(bind_error)?;
    let runtime = Arc::new(TokioRuntime);
    let endpoint = Endpoint::new(endpoint_config(identity), Some(server), socket, runtime)
        .map_err(bind_error)?;
    let addr = endpoint.local_addr().map_err(bind_error)?;
    info!(address = %format_args!("quic://{addr}"), fingerprint = %identity.fingerprint(), "listening");
    let door = Door::new(config, service.metrics().quic.clone());
    let task = tokio::spawn(serve(endpoint, door, Context { service, shutdown }));
    Ok(Listener { addr, task })
}

async fn serve(endpoint: Endpoint, door: Door, context: Context) {
    let mut connections = JoinSet::new();
    let mut stopped = Box::pin(stopped(&context.shutdown));
    loop {
        tokio::select! {
            () = &mut stopped => break,
            Some(_) = connections.join_next() => {}
            incoming = endpoint.accept() => match incoming {
                Some(incoming) => {
                    if let Some(visit) = door.admit(incoming, connections.len()) {
                        connections.spawn(serve_connection(visit, context.clone()));
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

async fn serve_connection(visit: Visit, context: Context) {
    let Context { service, shutdown } = &context;
    let (remote, metrics) = (visit.remote_address(), &service.metrics().quic);
    let (connection, handshake) = match visit.begin() {
        Ok(begun) => begun,
        Err(error) => return debug!(%remote, %error, "handshake failed"),
    };
    let (mut handshake, mut open, mut certificate) = (Some(handshake), None, None);
    let mut traffic = Traffic::new(&connection);
    let mut samples = interval(SAMPLE_INTERVAL);
    samples.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut streams = JoinSet::new();
    let mut stopped = Box::pin(stopped(shutdown));
    loop {
        tokio::select! {
            // A handshake that has ended well is known to have before what came with it.
            biased;
            () = &mut stopped => break,
            end = Handshake::end(&mut handshake, &connection), if handshake.is_some() => match end {
                Ok(()) => {
                    connection.set_receive_window(RECEIVE_WINDOW.into());
                    open = Some(Open::new(metrics));
                    debug!(%remote, rtt_us = connection.rtt().as_micros(), "connected");
                }
                Err(error) => {
                    debug!(%remote, %error, "handshake failed");
                    connection.close(CLOSE_HANDSHAKE, b"handshake");
                    break;
                }
            },
            Some(_) = streams.join_next() => traffic.follow(&connection, metrics),
            accepted = connection.accept_bi() => match accepted {
                // Who the client is does not change from here on: either the handshake is complete, or
                // its ticket has told.
                Ok((send, receive)) => {
                    let early = handshake.as_ref().filter(|_| receive.is_0rtt());
                    let early = early.map(Handshake::confirmation);
                    certificate = certificate.or_else(|| peer(&connection));
                    let visitor = Visitor { early, certificate: certificate.clone() };
                    streams.spawn(serve_stream(send, receive, visitor, context.clone()));
                }
                Err(reason) => {
                    debug!(%remote, %reason, "disconnected");
                    break;
                }
            },
            _ = samples.tick() => traffic.sample(&connection, metrics),
        }
    }
    // Calls that wait for its end wait in vain.
    drop(handshake);
    while streams.join_next().await.is_some() {}
    traffic.sample(&connection, metrics);
    drop(open);
    // Every stream has waited until its last byte was acknowledged.
    connection.close(CLOSE_SHUTDOWN, b"shutdown");
}

/// An open connection, for the gauge of them.
struct Open<'a>(&'a QuicMetrics);

impl<'a> Open<'a> {
    fn new(metrics: &'a QuicMetrics) -> Self {
        metrics.connections.inc();
        Self(metrics)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.connections.dec();
    }
}

/// The certificate of whoever is at the other end.
fn peer(connection: &Connection) -> Option<Arc<PeerCertificate>> {
    let chain = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    PeerCertificate::first(&chain).map(Arc::new)
}

/// Whose stream it is, as far as its connection tells.
struct Visitor {
    /// It came before the handshake was complete.
    early: Option<Confirmation>,
    certificate: Option<Arc<PeerCertificate>>,
}

/// Serves one call.
async fn serve_stream(
    mut send: SendStream,
    receive: RecvStream,
    Visitor { early, certificate }: Visitor,
    context: Context,
) {
    let Context { service, shutdown } = context;
    let mut frames = Frames::new(receive);
    let call = tokio::select! {
        () = stopped(&shutdown) => return,
        call = frames.next::<v1::Call>() => match call {
            Some(Ok(call)) => call,
            Some(Err(Broken::Refused(reject))) => {
                let _ = respond(&mut send, &refusal(&reject)).await;
                return finish(send).await;
            }
            Some(Err(Broken::Gone)) | None => return,
        },
    };
    let v1::Call { call, token } = call;
    let token = Some(&*token).filter(|it| !it.is_empty());
    let caller = match service.caller(Evidence::of(token, certificate.as_ref())) {
        Ok(caller) => caller,
        Err(reject) => {
            let _ = refuse(&mut send, call.as_ref(), &reject).await;
            return finish(send).await;
        }
    };
    if let Some(confirmation) = early {
        let policy = call.as_ref().map_or(Early::Wait, early::policy);
        let metrics = &service.metrics().quic;
        metrics.early_calls.with_label_values(&[early_label(policy)]).inc();
        match policy {
            // What else comes on the stream is not what was looked at.
            Early::Run => frames.hold(confirmation),
            Early::Wait if confirmation.confirmed().await => {}
            Early::Wait => return,
        }
    }
    let who = caller.who;
    let sent = match call {
        Some(call::Call::Generate(first)) => {
            let requests = iter([Ok(first)]).chain(Requests::new(frames));
            stream(&mut send, Turns::new(Api::Quic, service, caller, requests)).await
        }
        Some(call::Call::Attach(request)) => {
            stream(&mut send, Turns::attached(Api::Quic, service, caller, request)).await
        }
        Some(call::Call::ExportSession(request)) => {
            let mut call = Call::begin(Api::Quic, &service);
            let file = service.export_session(who, &request).await;
            call.end(&file);
            export(&mut send, file).await
        }
        Some(call::Call::ImportSession(first)) => {
            let requests = iter([Ok(first)]).chain(Requests::new(frames));
            let mut call = Call::begin(Api::Quic, &service);
            let session = import_session(&service, who, requests).await;
            call.end(&session);
            let session = session.map(call_response::Result::Session);
            respond(&mut send, &response(session)).await
        }
        other => respond(&mut send, &answer(&service, who, other).await).await,
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

async fn answer(service: &Service, who: Principal, call: Option<call::Call>) -> v1::CallResponse {
    use call_response::Result as Answer;

    let mut metered = Call::begin(Api::Quic, service);
    let result = match call {
        Some(call::Call::ListSessions(request)) => {
            list_sessions(service, who, &request).await.map(Answer::ListSessions)
        }
        Some(call::Call::GetSession(request)) => {
            service.session(who, &request.session_id).await.map(Answer::Session)
        }
        Some(call::Call::DeleteSession(request)) => service
            .delete_session(who, &request)
            .await
            .map(|()| Answer::DeleteSession(v1::DeleteSessionResponse {})),
        Some(call::Call::ForkSession(request)) => {
            service.fork_session(who, &request).await.map(Answer::Session)
        }
        Some(call::Call::MoveSession(request)) => {
            service.move_session(who, &request).await.map(Answer::Session)
        }
        Some(call::Call::RewindSession(request)) => {
            service.rewind_session(who, &request).await.map(Answer::Session)
        }
        Some(call::Call::NameSession(request)) => {
            service.name_session(who, &request).await.map(Answer::Session)
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
async fn export(send: &mut SendStream, file: Result<Vec<u8>, Reject>) -> Result<(), WriteError> {
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

/// Answers a call that is not run, in the form that its client expects.
async fn refuse(
    send: &mut SendStream,
    call: Option<&call::Call>,
    reject: &Reject,
) -> Result<(), WriteError> {
    match call {
        Some(call::Call::Generate(_) | call::Call::Attach(_)) => {
            let event = Some(generate_response::Event::Error(error(reject)));
            respond(send, &v1::GenerateResponse { event }).await
        }
        _ => respond(send, &refusal(reject)).await,
    }
}

fn response(result: Result<call_response::Result, Reject>) -> v1::CallResponse {
    match result {
        Ok(result) => v1::CallResponse { result: Some(result) },
        Err(reject) => refusal(&reject),
    }
}

fn early_label(policy: Early) -> &'static str {
    match policy {
        Early::Run => "at_once",
        Early::Wait => "confirmed",
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

async fn respond<M>(send: &mut SendStream, response: &M) -> Result<(), WriteError>
where
    M: prost::Message + Urgent,
{
    let frame = frame::encode(response).expect("pages and deltas are far smaller than a frame");
    // A stream that is closed says so when it is written to.
    let _ = send.set_priority(response.priority() as i32);
    send.write_chunk(frame).await
}

/// Ends the stream and waits until the peer has it all.
async fn finish(mut send: SendStream) {
    if send.finish().is_ok() {
        let _ = send.stopped().await;
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: ([127, 0, 0, 1], 7447).into(),
            connections_max: 1024,
            handshakes_max: 64,
            handshake_ms_max: 10_000,
            streams_max: 256,
            idle_ms_max: 30_000,
            initial_rtt_ms: 50,
            ack_delay_ms_max: 5,
            early_bytes_max: 64 << 10,
            tickets_max: 4096,
            ticket_s_max: 24 * 60 * 60,
        }
    }
}
