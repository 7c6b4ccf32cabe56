//! Both transports over loopback, in front of a worker that only counts.

use std::{sync::Arc, thread, time::Duration};

use aerie_proto::{
    ALPN, frame,
    v1::{self, generate_request::Message, generate_response, inference_client::InferenceClient},
};
use crossbeam::channel::{Receiver, bounded};
use quinn::crypto::rustls::QuicClientConfig;
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use tokio::sync::{mpsc, watch};
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tonic::{Code, transport::Channel};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};

use super::{grpc, quic};
use crate::{
    admission::{self, Admission, Reject},
    auth::Auth,
    oip,
    pipe::{self, Accepted, FinishReason, Finished, PipeEvent},
    request,
    router::{Router, WorkerHandle},
    server::Listener,
    service::{Parts, Readiness, Service},
    telemetry::metrics::Metrics,
    testing::hosted,
    tls::{self, Identity},
    worker::{Clock, Event, Submission},
};

#[tokio::test]
async fn grpc_runs_several_turns_on_one_stream() {
    let fixture = Fixture::start().await;
    let (requests, outgoing) = mpsc::channel(2);
    requests.send(start(3)).await.unwrap();
    let mut client = InferenceClient::new(fixture.channel().await);
    let mut responses = client.generate(ReceiverStream::new(outgoing)).await.unwrap().into_inner();
    assert_eq!(tokens_of_turn(&mut responses).await, (3, v1::FinishReason::Length));
    requests.send(start(2)).await.unwrap();
    assert_eq!(tokens_of_turn(&mut responses).await, (2, v1::FinishReason::Length));
    drop(requests);
    assert!(responses.next().await.is_none(), "half-closing ends the stream after its turn");
}

#[tokio::test]
async fn grpc_cancel_ends_the_turn_and_keeps_the_stream() {
    let fixture = Fixture::start().await;
    let (requests, outgoing) = mpsc::channel(2);
    requests.send(start(u32::MAX)).await.unwrap();
    requests.send(cancel()).await.unwrap();
    let mut client = InferenceClient::new(fixture.channel().await);
    let mut responses = client.generate(ReceiverStream::new(outgoing)).await.unwrap().into_inner();
    assert_eq!(tokens_of_turn(&mut responses).await.1, v1::FinishReason::Cancelled);
    requests.send(start(1)).await.unwrap();
    assert_eq!(tokens_of_turn(&mut responses).await, (1, v1::FinishReason::Length));
}

#[tokio::test]
async fn grpc_client_that_goes_cancels_its_generation() {
    let mut fixture = Fixture::start().await;
    let (requests, outgoing) = mpsc::channel(2);
    requests.send(start(u32::MAX)).await.unwrap();
    let mut client = InferenceClient::new(fixture.channel().await);
    let mut responses = client.generate(ReceiverStream::new(outgoing)).await.unwrap().into_inner();
    responses.next().await.unwrap().unwrap();
    drop((responses, requests));
    assert_eq!(fixture.ended.recv().await, Some(FinishReason::Cancelled));
}

#[tokio::test]
async fn start_before_the_end_of_a_turn_is_refused() {
    let fixture = Fixture::start().await;
    let requests = tokio_stream::iter([start(u32::MAX), start(1)]);
    let mut client = InferenceClient::new(fixture.channel().await);
    let mut responses = client.generate(requests).await.unwrap().into_inner();
    let error = loop {
        if let Err(status) = responses.next().await.unwrap() {
            break status;
        }
    };
    assert_eq!(error.code(), Code::InvalidArgument);
    assert!(error.message().starts_with("start came before"), "{error}");
}

/// Method: one status of each kind of refusal with a delay and without.
#[test]
fn status_carries_when_to_try_again() {
    use tonic_types::StatusExt as _;

    let retry_after = Duration::from_millis(250);
    let full = grpc::status(&Reject::QueueFull { requests_max: 1, retry_after });
    assert_eq!(full.code(), Code::ResourceExhausted);
    assert_eq!(full.metadata().get("retry-after-ms").unwrap(), "250");
    let details = full.get_error_details();
    assert_eq!(details.retry_info().unwrap().retry_delay, Some(retry_after));

    let quota = grpc::status(&Reject::QuotaGenerations { generations_max: 3, retry_after });
    assert_eq!(quota.code(), Code::ResourceExhausted);
    assert_eq!(quota.metadata().get("retry-after-ms").unwrap(), "250");
    let quota = grpc::status(&Reject::QuotaSessions { sessions_max: 3 });
    assert_eq!((quota.code(), quota.metadata().get("retry-after-ms")), (full.code(), None));
    let details = quota.get_error_details();
    assert!(details.retry_info().is_none());
    let info = details.error_info().unwrap();
    assert_eq!((&*info.reason, &*info.metadata["sessions_max"]), ("QUOTA_SESSIONS", "3"));
    let error = quic::error(&Reject::QuotaSessions { sessions_max: 3 });
    assert_eq!((error.retry_after_ms, &*error.metadata["sessions_max"]), (None, "3"));

    let problem = "is too long".to_owned();
    let invalid = grpc::status(&Reject::Invalid { field: "prompt", problem });
    assert_eq!(invalid.code(), Code::InvalidArgument);
    let details = invalid.get_error_details();
    assert_eq!(details.bad_request().unwrap().field_violations[0].field, "prompt");
}

#[tokio::test]
async fn health_follows_readiness_and_its_watch_ends_with_the_server() {
    let fixture = Fixture::start().await;
    let mut client = HealthClient::new(fixture.channel().await);
    let request = HealthCheckRequest { service: "aerie.v1.Inference".to_owned() };
    let mut watch = client.watch(request.clone()).await.unwrap().into_inner();
    let mut seen = vec![watch.next().await.unwrap().unwrap().status().as_str_name()];
    if seen == ["NOT_SERVING"] {
        seen = vec![watch.next().await.unwrap().unwrap().status().as_str_name()];
    }
    fixture.service.set_readiness(Readiness::Draining);
    seen.push(watch.next().await.unwrap().unwrap().status().as_str_name());
    assert_eq!(seen, ["SERVING", "NOT_SERVING"]);
    let status = client.check(request).await.unwrap().into_inner().status();
    assert_eq!(status.as_str_name(), "NOT_SERVING");

    fixture.shutdown.send_replace(true);
    while watch.next().await.is_some_and(|it| it.is_ok()) {}
    fixture.grpc.task.await.unwrap();
}

#[tokio::test]
async fn reflection_lists_every_service() {
    let fixture = Fixture::start().await;
    let mut client = ServerReflectionClient::new(fixture.channel().await);
    let message_request = Some(MessageRequest::ListServices(String::new()));
    let request = ServerReflectionRequest { host: String::new(), message_request };
    let answer = client.server_reflection_info(tokio_stream::iter([request])).await.unwrap();
    let answer = answer.into_inner().next().await.unwrap().unwrap().message_response;
    let Some(MessageResponse::ListServicesResponse(list)) = answer else {
        panic!("{answer:?} is no list");
    };
    let names: Vec<_> = list.service.into_iter().map(|it| it.name).collect();
    for service in ["Inference", "Sessions", "Models"].map(|it| format!("aerie.v1.{it}")) {
        assert!(names.contains(&service), "{names:?} lack {service}");
    }
    assert!(names.contains(&"grpc.health.v1.Health".to_owned()), "{names:?}");
}

#[tokio::test]
async fn quic_streams_a_generation() {
    let fixture = Fixture::start().await;
    let mut stream = QuicStream::open(&fixture).await;
    stream
        .send(&v1::Call { call: Some(v1::call::Call::Generate(start(3))), ..v1::Call::default() })
        .await;
    assert_eq!(stream.turn().await, (3, v1::FinishReason::Length));
    stream.send(&start(2)).await;
    assert_eq!(stream.turn().await, (2, v1::FinishReason::Length));
    stream.send.finish().unwrap();
    assert!(stream.next::<v1::GenerateResponse>().await.is_none());
}

#[tokio::test]
async fn quic_stream_that_is_stopped_cancels_its_generation() {
    let mut fixture = Fixture::start().await;
    let mut stream = QuicStream::open(&fixture).await;
    stream
        .send(&v1::Call {
            call: Some(v1::call::Call::Generate(start(u32::MAX))),
            ..v1::Call::default()
        })
        .await;
    stream.next::<v1::GenerateResponse>().await.unwrap();
    stream.receive.stop(1_u32.into()).unwrap();
    assert_eq!(fixture.ended.recv().await, Some(FinishReason::Cancelled));
}

#[tokio::test]
async fn quic_answers_unary_calls() {
    let fixture = Fixture::start().await;
    let mut stream = QuicStream::open(&fixture).await;
    let call = v1::call::Call::ListModels(v1::ListModelsRequest {});
    stream.send(&v1::Call { call: Some(call), ..v1::Call::default() }).await;
    let answer: v1::CallResponse = stream.next().await.unwrap();
    let Some(v1::call_response::Result::ListModels(models)) = answer.result else {
        panic!("{answer:?} lists no models");
    };
    assert_eq!(models.models[0].name, "tiny");
}

#[tokio::test]
async fn oversized_quic_frame_is_refused_with_both_sizes() {
    let fixture = Fixture::start().await;
    let mut stream = QuicStream::open(&fixture).await;
    stream.send.write_all(&u32::MAX.to_be_bytes()).await.unwrap();
    let answer: v1::CallResponse = stream.next().await.unwrap();
    let Some(v1::call_response::Result::Error(error)) = answer.result else {
        panic!("{answer:?} is no error");
    };
    assert_eq!(error.code, Code::InvalidArgument as u32);
    assert!(
        error.message.ends_with("frame of 4294967295 bytes, but a frame has at most 1048576"),
        "{error:?}"
    );
}

#[tokio::test]
async fn quic_peer_of_another_protocol_is_refused() {
    let fixture = Fixture::start().await;
    let error = fixture.connect(b"h3").await.unwrap_err().to_string();
    // The alert `no_application_protocol` of RFC 7301.
    assert!(error.contains("error 120"), "{error}");
}

#[tokio::test]
async fn listeners_end_at_shutdown_though_clients_stay() {
    let fixture = Fixture::start().await;
    let _idle = QuicStream::open(&fixture).await;
    let _channel = fixture.channel().await;
    fixture.service.set_readiness(Readiness::Draining);
    fixture.shutdown.send_replace(true);
    fixture.quic.task.await.unwrap();
    fixture.grpc.task.await.unwrap();
}

/// Both listeners on ports of the system's choice.
pub(super) struct Fixture {
    pub(super) service: Service,
    pub(super) shutdown: watch::Sender<bool>,
    grpc: Listener,
    pub(super) quic: Listener,
    /// How each generation ended, as the worker sees it.
    pub(super) ended: mpsc::Receiver<FinishReason>,
    /// Holds the generated certificate.
    dir: tempfile::TempDir,
}

impl Fixture {
    pub(super) async fn start() -> Self {
        Self::with(quic::Config::default()).await
    }

    /// `config` but for the port.
    pub(super) async fn with(config: quic::Config) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (ended_sender, ended) = mpsc::channel(8);
        let service = service(Auth::default(), oip::Config::default(), ended_sender);
        let (shutdown, stop) = watch::channel(false);
        let listen = ([127, 0, 0, 1], 0).into();
        let grpc = grpc::Config { listen, ..grpc::Config::default() };
        let identity = Identity::open(&tls::Config::default(), dir.path()).unwrap();
        let grpc = grpc::listen(&grpc, &identity, service.clone(), stop.clone()).await.unwrap();
        let config = quic::Config { listen, ..config };
        let quic = quic::listen(&config, &identity, service.clone(), stop).unwrap();
        Self { service, shutdown, grpc, quic, ended, dir }
    }

    /// Stops QUIC and has it listen where it did; what it kept in memory is gone.
    pub(super) async fn restart_quic(mut self) -> Self {
        self.shutdown.send_replace(true);
        self.quic.task.await.unwrap();
        let (shutdown, stop) = watch::channel(false);
        let identity = Identity::open(&tls::Config::default(), self.dir.path()).unwrap();
        let config = quic::Config { listen: self.quic.addr, ..quic::Config::default() };
        self.quic = quic::listen(&config, &identity, self.service.clone(), stop).unwrap();
        self.shutdown = shutdown;
        self
    }

    async fn channel(&self) -> Channel {
        let address = format!("http://{}", self.grpc.addr);
        Channel::from_shared(address).unwrap().connect().await.unwrap()
    }

    async fn connect(&self, alpn: &[u8]) -> Result<quinn::Connection, quinn::ConnectionError> {
        let endpoint = quinn::Endpoint::client(([127, 0, 0, 1], 0).into()).unwrap();
        let config = quic_client(self.tls_client(alpn));
        endpoint.connect_with(config, self.quic.addr, "localhost").unwrap().await
    }

    /// Trusts the server's certificate.
    pub(super) fn tls_client(&self, alpn: &[u8]) -> rustls::ClientConfig {
        let mut roots = rustls::RootCertStore::empty();
        let path = self.dir.path().join("tls/certificate.pem");
        roots.add(CertificateDer::from_pem_file(path).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        tls.alpn_protocols = vec![alpn.to_vec()];
        tls.enable_early_data = true;
        tls
    }
}

pub(super) fn quic_client(tls: rustls::ClientConfig) -> quinn::ClientConfig {
    quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()))
}

/// A service in front of a worker that counts, and says how each generation ended.
pub(super) fn service(
    auth: Auth,
    config: oip::Config,
    ended: mpsc::Sender<FinishReason>,
) -> Service {
    let (events_sender, events) = bounded(8);
    let (_, notices) = bounded(1);
    thread::spawn(move || count(&events, &ended));
    let worker = WorkerHandle::new(0, "cpu".to_owned(), 2, events_sender, notices);
    Service::new(Parts {
        auth,
        models: vec![hosted()],
        classifiers: Vec::new(),
        router: Router::new(vec![worker]),
        admission: Admission::new(admission::Config::default()),
        log_tokens_max: 64,
        rows_max: 16,
        request: request::Config { tokens_max: u32::MAX, ..request::Config::default() },
        pipe: pipe::Config::default(),
        oip: oip::Setup::new(config, oip::sequence::SequenceKey::default()),
        metrics: Metrics::new(),
        readiness: watch::channel(Readiness::Ready).0,
        clock: Clock::start(),
    })
}

/// One stream, and a handle to its connection.
pub(super) struct QuicStream {
    _connection: quinn::Connection,
    send: quinn::SendStream,
    receive: quinn::RecvStream,
    decoder: frame::Decoder,
}

impl QuicStream {
    /// A stream of a connection of its own.
    async fn open(fixture: &Fixture) -> Self {
        Self::on(&fixture.connect(ALPN).await.unwrap()).await
    }

    pub(super) async fn on(connection: &quinn::Connection) -> Self {
        let (send, receive) = connection.open_bi().await.unwrap();
        Self { _connection: connection.clone(), send, receive, decoder: frame::Decoder::default() }
    }

    pub(super) async fn send(&mut self, message: &impl prost::Message) {
        self.send.write_all(&frame::encode(message).unwrap()).await.unwrap();
    }

    pub(super) async fn next<M: prost::Message + Default>(&mut self) -> Option<M> {
        loop {
            if let Some(message) = self.decoder.message().unwrap() {
                return Some(message);
            }
            let mut bytes = [0; 64];
            match self.receive.read(&mut bytes).await.unwrap() {
                Some(n) => self.decoder.push(&bytes[..n]),
                None => return None,
            }
        }
    }

    pub(super) async fn turn(&mut self) -> (usize, v1::FinishReason) {
        let mut n_tokens = 0;
        loop {
            let response: v1::GenerateResponse = self.next().await.unwrap();
            if let Some(reason) = advance(response, &mut n_tokens) {
                return (n_tokens, reason);
            }
        }
    }
}

async fn tokens_of_turn(
    responses: &mut tonic::Streaming<v1::GenerateResponse>,
) -> (usize, v1::FinishReason) {
    let mut n_tokens = 0;
    loop {
        let response = responses.next().await.unwrap().unwrap();
        if let Some(reason) = advance(response, &mut n_tokens) {
            return (n_tokens, reason);
        }
    }
}

fn advance(response: v1::GenerateResponse, n_tokens: &mut usize) -> Option<v1::FinishReason> {
    match response.event.unwrap() {
        generate_response::Event::Accepted(_) | generate_response::Event::Attached(_) => None,
        generate_response::Event::Delta(delta) => {
            *n_tokens += delta.ids.len();
            None
        }
        generate_response::Event::Finished(finished) => Some(finished.reason()),
        generate_response::Event::Error(error) => panic!("{error:?}"),
    }
}

pub(super) fn start(max_tokens: u32) -> v1::GenerateRequest {
    let prompt = Some(v1::start::Prompt::Text("a".to_owned()));
    let start = v1::Start { prompt, max_tokens, ..v1::Start::default() };
    v1::GenerateRequest { message: Some(Message::Start(start)) }
}

fn cancel() -> v1::GenerateRequest {
    v1::GenerateRequest { message: Some(Message::Cancel(v1::Cancel {})) }
}

/// A worker whose generations are the numbers from 0, as fast as they are read.
fn count(events: &Receiver<Event>, ended: &mpsc::Sender<FinishReason>) {
    for event in events {
        let Event::Open(submission) = event else { continue };
        let Submission { id, request, pipe, .. } = *submission;
        let (session, seed) = (id, 0);
        pipe.send(PipeEvent::Accepted(Box::new(Accepted {
            session,
            position: 0,
            resumed_tokens: 0,
            prompt_tokens: 1,
            seed,
            recomputed_tokens: 0,
            recompute_reason: None,
            prefix_tokens: 0,
            prefix_miss: None,
            repeated: false,
        })));
        let mut generated_tokens = 0;
        let reason = loop {
            if generated_tokens == request.tokens_max {
                break FinishReason::Length;
            }
            if pipe.is_cancelled() || pipe.is_closed() {
                break FinishReason::Cancelled;
            }
            if pipe.has_room(2) {
                pipe.send_token(generated_tokens % 60, generated_tokens.into(), "a");
                generated_tokens += 1;
            } else {
                thread::yield_now();
            }
        };
        while !pipe.has_room(1) && !pipe.is_closed() {
            thread::yield_now();
        }
        pipe.send(PipeEvent::Finished(Finished {
            reason,
            position: generated_tokens.into(),
            prompt_tokens: 1,
            generated_tokens,
            queue_us: 0,
            time_to_first_token: Duration::ZERO,
            duration: Duration::ZERO,
        }));
        // Whoever does not look at how generations ended has gone or does not care.
        let _ = ended.try_send(reason);
    }
}
