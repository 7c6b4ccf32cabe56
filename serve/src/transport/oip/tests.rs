//! The protocol over loopback, in front of a worker that only counts.

use std::{
    future::pending,
    num::NonZeroU32,
    path::Path,
    sync::atomic::{AtomicUsize, Ordering},
};

use aerie_proto::inference::{
    InferTensorContents, ModelStreamInferResponse, RepositoryIndexRequest, ServerReadyRequest,
    grpc_inference_service_client::GrpcInferenceServiceClient, infer_parameter::ParameterChoice,
    model_infer_request::InferInputTensor,
};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, pem::PemObject as _};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
    sync::{mpsc, watch},
    task::yield_now,
};
use tokio_rustls::TlsConnector;
use tonic::{Code, Status, transport::Channel};

use super::*;
use crate::{
    auth::{self, Auth, Evidence, TenantId, Tokens},
    oip::{self, sequence::SequenceName, tensor},
    router::WorkerId,
    server::Listener,
    sessions::Name,
    telemetry::metrics::Api,
    tls::{self, Identity},
    transport::{grpc, tests::service},
    worker::Notice,
};

/// Goal: a message is refused for what it holds before memory is taken for it, and that is counted.
#[tokio::test]
async fn requests_that_hold_too_much_are_refused() {
    let fixture = Fixture::start(oip::Config::default()).await;
    let mut client = fixture.client().await;
    let answer = client.model_infer(request(3)).await.unwrap().into_inner();
    assert_eq!(answer.outputs[1].shape, [3]);
    let mut crowded = request(3);
    crowded.inputs = vec![InferInputTensor::default(); 17];
    let refused = client.model_infer(crowded.clone()).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().contains("inputs are more than 16"), "{refused}");
    let responses = client.model_stream_infer(tokio_stream::iter([crowded])).await.unwrap();
    let refused = responses.into_inner().message().await.unwrap_err();
    assert!(refused.message().contains("inputs are more than 16"), "{refused}");
    let large = ModelInferRequest { id: "x".repeat(20 << 20), ..request(3) };
    let refused = client.model_infer(large).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    assert_eq!((fixture.calls("invalid_argument"), fixture.rejected("invalid")), (3, 3));
    let asked = RepositoryIndexRequest { repository_name: "other".to_owned(), ready: false };
    assert_eq!(client.repository_index(asked).await.unwrap_err().code(), Code::InvalidArgument);
}

/// Goal: the longest prompt that may be is taken, also where its tokens come one by one and not in raw form.
#[tokio::test]
async fn the_longest_prompt_is_taken() {
    let fixture = Fixture::start(oip::Config::default()).await;
    let n = fixture.service.parts().request.prompt_tokens_max;
    let mut client = fixture.client().await;
    for (more, code) in [(0, Code::Ok), (1, Code::InvalidArgument)] {
        let ids = vec![1; n as usize + more];
        let shape = vec![i64::try_from(ids.len()).unwrap()];
        let contents = Some(InferTensorContents { int64_contents: ids, ..<_>::default() });
        let (name, datatype) = ("tokens".to_owned(), "INT64".to_owned());
        let tokens = InferInputTensor { name, datatype, shape, contents, ..<_>::default() };
        let asked =
            ModelInferRequest { inputs: vec![tokens], raw_input_contents: vec![], ..request(1) };
        let answer = client.model_infer(asked).await;
        assert_eq!(answer.map_or_else(|it| it.code(), |_| Code::Ok), code);
    }
}

/// A finished answer was replaced by the refusal to forget its sequence.
#[tokio::test]
async fn an_answer_is_told_though_its_sequence_stays() {
    let fixture = Fixture::start(oip::Config::default()).await;
    let oip::Setup { key, .. } = &fixture.service.parts().oip;
    let id = key.session(TenantId::ANONYMOUS, "tiny", &SequenceName::Number(7));
    // Its worker answers to nothing but generations.
    fixture.service.parts().router.adopt(WorkerId(0), [Notice::Made { id }]);
    let mut asked = request(2);
    let name = tensor::parameter(ParameterChoice::Int64Param(7));
    asked.parameters.insert("sequence_id".to_owned(), name);
    for flag in ["sequence_start", "sequence_end"] {
        let yes = tensor::parameter(ParameterChoice::BoolParam(true));
        asked.parameters.insert(flag.to_owned(), yes);
    }
    let mut client = fixture.client().await;
    let answer = client.model_infer(asked.clone()).await.unwrap().into_inner();
    assert_eq!(answer.outputs[1].shape, [2]);
    let responses = client.model_stream_infer(tokio_stream::iter([asked])).await.unwrap();
    let responses: Vec<_> = responses.into_inner().collect().await;
    assert!(responses.iter().all(|it| it.as_ref().unwrap().error_message.is_empty()));
    assert_eq!(fixture.rejected("unavailable"), 2, "it was tried");
}

/// Goal: a token that is taken out while a request is on its way is worth nothing when it has come.
#[tokio::test]
async fn a_request_has_to_be_its_tenants_when_it_has_come() {
    let listed = Listed::new();
    let oip = Oip::new(service(listed.auth.clone(), oip::Config::default(), mpsc::channel(1).0));
    let caller = listed.caller(&oip);
    oip.receive(&caller, async { Ok(()) }).await.unwrap();
    let revoked = async {
        listed.revoke();
        Ok(())
    };
    let refused = oip.receive(&caller, revoked).await.unwrap_err();
    assert!(matches!(refused, Broken::Refused(Reject::Unauthenticated { .. })), "{refused:?}");
}

/// Goal: a server with no place left says so, counts it, and is alive for those who look after it.
#[tokio::test]
async fn a_full_server_answers_probes() {
    let fixture = Fixture::start(oip::Config { calls_max: 1, ..<_>::default() }).await;
    let mut client = fixture.client().await;
    let (requests, outgoing) = mpsc::channel(1);
    requests.send(request(1)).await.unwrap();
    let outgoing = tokio_stream::wrappers::ReceiverStream::new(outgoing);
    let mut stream = client.model_stream_infer(outgoing).await.unwrap().into_inner();
    stream.message().await.unwrap().unwrap();
    assert!(fixture.service.render_metrics().contains("serve_oip_calls 1"));
    assert_eq!(client.model_infer(request(1)).await.unwrap_err().code(), Code::ResourceExhausted);
    let asked = client.model_stream_infer(tokio_stream::empty()).await;
    assert_eq!(asked.unwrap_err().code(), Code::ResourceExhausted);
    let body = r#"{"inputs":[]}"#;
    assert!(fixture.http("POST /v2/models/tiny/infer", body).await.starts_with("HTTP/1.1 429"));
    assert_eq!((fixture.calls("resource_exhausted"), fixture.rejected("busy")), (2, 3));

    assert!(client.server_ready(ServerReadyRequest {}).await.unwrap().into_inner().ready);
    assert!(fixture.http("GET /v2/models/tiny", "").await.starts_with("HTTP/1.1 200"));
    drop(requests);
    assert!(stream.message().await.unwrap().is_none());
}

/// Goal: a call holds its place no longer than it may take to say what it is for.
#[tokio::test]
async fn who_says_nothing_is_not_waited_for() {
    let at_once = NonZeroU32::MIN;
    let config = oip::Config { request_ms_max: at_once, idle_ms_max: at_once, ..<_>::default() };
    let fixture = Fixture::start(config).await;
    let mut client = fixture.client().await;
    let stream = client.model_stream_infer(tokio_stream::pending()).await.unwrap();
    let ended: Result<Option<ModelStreamInferResponse>, Status> =
        stream.into_inner().message().await;
    let ended = ended.unwrap_err();
    assert_eq!(ended.code(), Code::DeadlineExceeded, "{ended}");
    assert!(ended.message().contains("oip.idle_ms_max"), "{ended}");
    assert_eq!(fixture.calls("deadline_exceeded"), 1);

    let oip = Oip::new(fixture.service.clone());
    let caller = fixture.service.caller(Evidence::Nothing).unwrap();
    let late = oip.receive(&caller, pending::<Result<(), Broken>>()).await.unwrap_err();
    let Broken::Refused(late) = late else { panic!("it was waited for") };
    assert!(matches!(late, Reject::Expired { wait: Wait::Request, .. }), "{late}");
    assert_eq!(rest::status(&late).as_u16(), 408);
}

/// Goal: requests that wait for another of their sequence come to no more than two messages.
/// Method: messages of 600 bytes, of which the first never ends: the second is taken in, the third waits outside.
#[tokio::test]
async fn a_stream_holds_no_more_than_two_messages() {
    let fixture = Fixture::start(oip::Config { message_bytes_max: 1000, ..<_>::default() }).await;
    let sequence = tensor::parameter(ParameterChoice::Int64Param(7));
    let asked = ModelInferRequest { id: "x".repeat(60), ..request(i64::from(u32::MAX)) };
    let mut asked = ModelInferRequest { model_name: "tiny".to_owned(), ..asked };
    asked.parameters.insert("sequence_id".to_owned(), sequence);
    let flag = tensor::parameter(ParameterChoice::BoolParam(true));
    asked.parameters.insert("sequence_start".to_owned(), flag);
    asked.raw_input_contents = vec![tensor::encode_strings([&*vec![b'a'; 400]])];
    let taken = Arc::new(AtomicUsize::new(0));
    let requests = tokio_stream::iter(vec![asked; 8]).map({
        let taken = Arc::clone(&taken);
        move |it| {
            taken.fetch_add(1, Ordering::Relaxed);
            Ok(it)
        }
    });
    let caller = fixture.service.caller(Evidence::Nothing).unwrap();
    let oip = Oip::new(fixture.service.clone());
    let mut exchange = exchange::Exchange::new(oip, caller, requests, false);
    for _ in 0..3 {
        let response = exchange.next().await.unwrap().unwrap();
        assert!(response.error_message.is_empty(), "{response:?}");
    }
    assert_eq!(taken.load(Ordering::Relaxed), 2);
}

/// Goal: KServe's client is served, which names the model once more and reads what health says.
#[tokio::test]
async fn bodies_are_those_of_the_protocol() {
    let fixture = Fixture::start(oip::Config::default()).await;
    for (path, expected) in [
        ("/v2/health/live", r#"{"live":true}"#),
        ("/v2/health/ready", r#"{"live":true,"ready":true}"#),
        ("/v2/models/tiny/ready", r#"{"name":"tiny","ready":true}"#),
    ] {
        let answer = fixture.http(&format!("GET {path}"), "").await;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with(expected), "{answer}");
    }
    let body = r#"{"id":"7","model_name":"tiny","parameters":{"max_tokens":2},"inputs":[
        {"name":"text_input","shape":[1],"datatype":"BYTES","data":["a"]}]}"#;
    let answer = fixture.http("POST /v2/models/tiny/infer", body).await;
    assert!(answer.contains(r#""data":[0,1]"#), "{answer}");
    let body = body.replace("tiny", "other");
    let answer = fixture.http("POST /v2/models/tiny/infer", &body).await;
    assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("model_name"), "{answer}");

    let index = fixture.http("POST /v2/repository/index", r#"{"ready":true}"#).await;
    assert!(index.contains(r#""name":"tiny""#), "{index}");
    let long = format!(r#"{{"ready":true{}}}"#, " ".repeat(300));
    let answer = fixture.http("POST /v2/repository/index", &long).await;
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
}

/// Goal: over HTTP, too, a certificate says whose a call is.
/// Method: TLS with a certificate of the authority, whose name the tenants' file has, and with one that it has not.
#[tokio::test]
async fn certificates_tell_tenants_over_http() {
    let dir = tempfile::tempdir().unwrap();
    let list = "[[tenants]]\nname = 'tales'\ncertificates = ['client.example']\n";
    let auth = Auth::with(Tokens::parse(list).unwrap());
    let service = service(auth, oip::Config::default(), mpsc::channel(1).0);
    let (ca, issuer) = authority(dir.path());
    let identity =
        Identity::open(&tls::Config { client_ca: Some(ca), ..<_>::default() }, dir.path());
    let (_shutdown, stop) = watch::channel(false);
    let config = rest::Config { listen: Some(LOOPBACK.into()), tls: true, ..<_>::default() };
    let listener = rest::listen(&config, &identity.unwrap(), service, stop).await.unwrap().unwrap();
    for (name, status) in [("client.example", 200), ("other.example", 401)] {
        let tls = connector(dir.path(), &issuer, name);
        let socket = TcpStream::connect(listener.addr).await.unwrap();
        let socket = tls.connect(ServerName::try_from("localhost").unwrap(), socket).await.unwrap();
        let answer = ask(socket, "GET /v2", "").await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{name}: {answer}");
    }
}

const LOOPBACK: ([u8; 4], u16) = ([127, 0, 0, 1], 0);

/// A tenant with a token, who may be taken out of the tenants' file.
pub(super) struct Listed {
    pub(super) auth: Auth,
    token: auth::Token,
    dir: tempfile::TempDir,
}

impl Listed {
    const FILE: &str = "tokens.toml";

    pub(super) fn new() -> Self {
        let (dir, token) = (tempfile::tempdir().unwrap(), auth::Token::random());
        let path = dir.path().join(Self::FILE);
        std::fs::write(&path, token.to_toml(&Name::parse("tales").unwrap())).unwrap();
        let config = auth::Config { tokens_file: Some(path), ..<_>::default() };
        Self { auth: Auth::open(&config, false).unwrap(), token, dir }
    }

    pub(super) fn caller(&self, oip: &Oip) -> Caller {
        oip.service().caller(Evidence::of(Some(self.token.as_str()), None)).unwrap()
    }

    pub(super) fn revoke(&self) {
        let other = auth::Token::random().to_toml(&Name::parse("verses").unwrap());
        std::fs::write(self.dir.path().join(Self::FILE), other).unwrap();
        self.auth.reload(|_| ()).unwrap();
    }
}

/// Both listeners on ports of the system's choice.
pub(super) struct Fixture {
    pub(super) service: Service,
    pub(super) grpc: Listener,
    pub(super) rest: Listener,
    _shutdown: watch::Sender<bool>,
    _dir: tempfile::TempDir,
}

impl Fixture {
    pub(super) async fn start(config: oip::Config) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let service = service(Auth::default(), config, mpsc::channel(1).0);
        let identity = Identity::open(&tls::Config::default(), dir.path()).unwrap();
        let (shutdown, stop) = watch::channel(false);
        let grpc = grpc::Config { listen: LOOPBACK.into(), ..<_>::default() };
        let grpc = grpc::listen(&grpc, &identity, service.clone(), stop.clone()).await.unwrap();
        let rest = rest::Config { listen: Some(LOOPBACK.into()), ..<_>::default() };
        let rest = rest::listen(&rest, &identity, service.clone(), stop).await.unwrap().unwrap();
        Self { service, grpc, rest, _shutdown: shutdown, _dir: dir }
    }

    pub(super) async fn client(&self) -> GrpcInferenceServiceClient<Channel> {
        let address = format!("http://{}", self.grpc.addr);
        GrpcInferenceServiceClient::connect(address).await.unwrap()
    }

    /// Asks once over HTTP, with a method and a path as in `GET /v2`.
    async fn http(&self, asked: &str, body: &str) -> String {
        ask(TcpStream::connect(self.rest.addr).await.unwrap(), asked, body).await
    }

    /// Calls over gRPC that ended with `code`.
    fn calls(&self, code: &str) -> u64 {
        self.calls_of(Api::Oip, code)
    }

    pub(super) fn calls_of(&self, api: Api, code: &str) -> u64 {
        self.service.metrics().calls.with_label_values(&[api.label(), code]).get()
    }

    /// Waits until so many calls are open.
    pub(super) async fn in_flight(&self, api: Api, n: i64) {
        let gauge = self.service.metrics().calls_in_flight.with_label_values(&[api.label()]);
        while gauge.get() != n {
            yield_now().await;
        }
    }

    pub(super) fn rejected(&self, reason: &str) -> u64 {
        self.service.metrics().requests_rejected.with_label_values(&[reason]).get()
    }
}

async fn ask(mut socket: impl AsyncRead + AsyncWrite + Unpin, asked: &str, body: &str) -> String {
    let length = body.len();
    let head = format!(
        "{asked} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n"
    );
    socket.write_all([head.as_bytes(), body.as_bytes()].concat().as_slice()).await.unwrap();
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer).await.unwrap();
    String::from_utf8(answer).unwrap()
}

/// A request for so many tokens.
pub(super) fn request(max_tokens: i64) -> ModelInferRequest {
    let text = InferInputTensor {
        name: "text_input".to_owned(),
        datatype: "BYTES".to_owned(),
        shape: vec![1],
        ..InferInputTensor::default()
    };
    let max_tokens = tensor::parameter(ParameterChoice::Int64Param(max_tokens));
    ModelInferRequest {
        model_name: "tiny".to_owned(),
        inputs: vec![text],
        raw_input_contents: vec![tensor::encode_strings([&b"a"[..]])],
        parameters: [("max_tokens".to_owned(), max_tokens)].into(),
        ..ModelInferRequest::default()
    }
}

/// An authority, and where its certificate lies.
fn authority(dir: &Path) -> (std::path::PathBuf, Issuer<'static, KeyPair>) {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let path = dir.join("ca.pem");
    std::fs::write(&path, params.self_signed(&key).unwrap().pem()).unwrap();
    (path, Issuer::new(params, key))
}

/// A client that trusts the server in `dir` and has a certificate for `name`.
fn connector(dir: &Path, issuer: &Issuer<'static, KeyPair>, name: &str) -> TlsConnector {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    let certificate = params.signed_by(&key, issuer).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(dir.join("tls/certificate.pem")).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(
            vec![certificate.der().clone()],
            PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
        );
    TlsConnector::from(Arc::new(config.unwrap()))
}
