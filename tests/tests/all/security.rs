//! Who may call, and who is shown what: TLS, certificates of clients, tokens, over both wires.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use aerie_client::{
    Client, ClientCertificate, Code, Credentials, Error, Event, Retry, Trust, random_id, v1,
};
use aerie_tests::{
    server::{Server, program, tiny_bundle},
    turn::{greedy, run},
};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tokio_stream::StreamExt as _;

const PROMPT: &str = "Once upon a time";
const WIRES: [&str; 2] = ["grpcs", "quic"];

/// Goal: nobody is served who has no certificate of the right authority.
#[tokio::test]
async fn certificates_of_clients_are_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let bundle = tiny_bundle(folder.path());
    let [ours, theirs] = ["ours", "theirs"].map(|name| authority(folder.path(), name));
    let ca = ours.ca.to_str().unwrap();
    let server = Server::start(&bundle, &["--grpc-tls", "--client-ca", ca]);
    for wire in WIRES {
        for certificate in [None, Some(theirs.client.clone())] {
            let credentials = Credentials { certificate, token: None };
            let refused = models(&server, wire, &credentials).await.unwrap_err();
            assert_eq!(refused.code(), Code::Unavailable, "{wire}: {refused:?}");
        }
        let credentials = Credentials { certificate: Some(ours.client.clone()), token: None };
        assert_eq!(models(&server, wire, &credentials).await.unwrap(), 1, "{wire}");
    }
}

/// Goal: TLS is that of the server's own certificate, and plaintext is not spoken beside it.
#[tokio::test]
async fn encrypted_grpc_trusts_as_quic_does() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&tiny_bundle(folder.path()), &["--grpc-tls"]);
    let other = authority(folder.path(), "other");
    let nothing = Credentials::default();
    for wire in WIRES {
        assert_eq!(models(&server, wire, &nothing).await.unwrap(), 1, "{wire}");
        let insecure = Client::connect(server.address(wire), &Trust::Insecure).await.unwrap();
        assert_eq!(insecure.models().await.unwrap().len(), 1, "{wire}");
        let stranger = Trust::Certificate(other.ca.clone());
        let refused = Client::connect(server.address(wire), &stranger).await.unwrap_err();
        assert!(matches!(refused, Error::Unreachable { .. }), "{wire}: {refused:?}");
        let refused = Client::connect(server.address(wire), &Trust::Nobody).await.unwrap_err();
        assert!(matches!(refused, Error::Trust(_)), "{wire}: {refused:?}");
    }
    let plain = server.address("grpcs").replace("grpcs", "grpc");
    if let Ok(client) = Client::connect(&plain, &Trust::Nobody).await {
        client.with_retry(Retry::NEVER).models().await.unwrap_err();
    }
}

#[tokio::test]
async fn calls_without_a_known_token_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let bundle = tiny_bundle(folder.path());
    let (tokens, [tales, ..]) = tokens(folder.path());
    let server = Server::start(&bundle, &["--grpc-tls", "--tokens", tokens.to_str().unwrap()]);
    for wire in WIRES {
        for token in [None, Some("wrong".to_owned()), Some(tales[1..].to_owned())] {
            let client = client(&server, wire, token.as_deref()).await;
            let refused = client.models().await.unwrap_err();
            assert_eq!(refused.code(), Code::Unauthenticated, "{wire}: {refused}");
            let refused = run(&client, greedy(PROMPT, 2)).await.unwrap_err();
            assert_eq!(refused.code(), Code::Unauthenticated, "{wire}: {refused}");
            let Error::Rejected { reason, .. } = refused else { panic!("{refused:?}") };
            assert_eq!(reason, "UNAUTHENTICATED");
        }
        let client = client(&server, wire, Some(&tales)).await;
        assert_eq!(client.models().await.unwrap().len(), 1);
        assert_eq!(run(&client, greedy(PROMPT, 2)).await.unwrap().ids.len(), 2);
    }
}

/// Goal: to another tenant a session is one that does not exist, also after `kill -9`.
#[tokio::test]
async fn sessions_are_their_tenants_own() {
    let folder = tempfile::tempdir().unwrap();
    let bundle = tiny_bundle(folder.path());
    let (tokens, [tales, verses, _]) = tokens(folder.path());
    let flags = ["--grpc-tls", "--tokens", tokens.to_str().unwrap()];
    let mut server = Server::start(&bundle, &flags);
    let owner = client(&server, "quic", Some(&tales)).await;
    let kept = v1::Start { keep: true, ..greedy(PROMPT, 4) };
    let turn = run(&owner, kept).await.unwrap();
    let id = turn.accepted.session_id;
    for restarts in 0..2 {
        for wire in WIRES {
            let at = format!("{wire} after {restarts} restarts");
            let owner = client(&server, wire, Some(&tales)).await;
            assert_eq!(owner.session(&id).await.unwrap().session_id, id, "{at}");
            assert_eq!(owner.sessions().await.unwrap().len(), 1, "{at}");
            expect_nothing(&client(&server, wire, Some(&verses)).await, &id).await;
        }
        server.kill_and_restart();
    }
    let owner = client(&server, "grpcs", Some(&tales)).await;
    assert_eq!(run(&owner, going_on(&id)).await.unwrap().ids.len(), 2);
    owner.delete_session(delete(&id)).await.unwrap();
    assert_eq!(owner.session(&id).await.unwrap_err().code(), Code::NotFound);
}

/// Goal: who keeps as many sessions as its quota makes no more, whichever way it asks, also after `kill -9`; it may do
/// all else, and nobody else is touched.
#[tokio::test]
async fn quotas_of_sessions_refuse_one_more() {
    let folder = tempfile::tempdir().unwrap();
    let bundle = tiny_bundle(folder.path());
    let limits = ["sessions_max = 2\n", "", "admin = true\n"];
    let (tokens, [tales, verses, _]) = tokens_with(folder.path(), limits);
    let mut server = Server::start(&bundle, &["--grpc-tls", "--tokens", tokens.to_str().unwrap()]);
    for wire in WIRES {
        let owner = client(&server, wire, Some(&tales)).await;
        let kept = |client| async move {
            let kept = v1::Start { keep: true, ..greedy(PROMPT, 2) };
            run(&client, kept).await.map(|turn| turn.accepted.session_id)
        };
        let ids = [kept(owner.clone()).await.unwrap(), kept(owner).await.unwrap()];
        for restarts in 0..2 {
            let owner = client(&server, wire, Some(&tales)).await;
            expect_full(kept(owner.clone()).await.map(drop));
            expect_full(run(&owner, forking(&ids[0])).await.map(drop));
            let (session_id, new_session_id) = (ids[0].clone(), random_id());
            let fork = v1::ForkSessionRequest { session_id, new_session_id, ..Default::default() };
            expect_full(owner.fork_session(fork).await.map(drop));
            let session_id = ids[0].clone();
            let export = v1::ExportSessionRequest { session_id, ..Default::default() };
            let file = owner.export_session(export).await.unwrap();
            let import = v1::ImportStart { session_id: random_id(), request_id: String::new() };
            expect_full(owner.import_session(import, file).await.map(drop));

            run(&owner, greedy(PROMPT, 2)).await.expect("it is not kept");
            run(&owner, going_on(&ids[1])).await.expect("it is there already");
            assert_eq!(owner.sessions().await.unwrap().len(), 2, "{wire}, {restarts} restarts");
            kept(client(&server, wire, Some(&verses)).await).await.expect("it has no quota");
            let metrics = server.metrics();
            assert!(metrics.contains("serve_tenant_sessions{tenant=\"tales\"} 2\n"), "{metrics}");
            server.kill_and_restart();
        }
        let owner = client(&server, wire, Some(&tales)).await;
        owner.delete_session(delete(&ids[0])).await.unwrap();
        kept(owner.clone()).await.expect("one has gone");
        for session in owner.sessions().await.unwrap() {
            owner.delete_session(delete(&session.session_id)).await.unwrap();
        }
    }
}

/// Goal: a tenant has no more generations at once than its quota, and may come back to each; who is patient gets its turn.
#[tokio::test]
async fn quotas_of_generations_leave_lanes_to_others() {
    let folder = tempfile::tempdir().unwrap();
    let bundle = tiny_bundle(folder.path());
    let (tokens, [tales, verses, _]) =
        tokens_with(folder.path(), ["generations_max = 1\n", "", "admin = true\n"]);
    let server = Server::start(&bundle, &["--grpc-tls", "--tokens", tokens.to_str().unwrap()]);
    for wire in WIRES {
        let owner = client(&server, wire, Some(&tales)).await;
        let (session_id, request_id) = (random_id(), random_id());
        let expected_position = Some(0);
        let long =
            v1::Start { session_id, request_id, expected_position, ..greedy(PROMPT, 1 << 16) };
        let long = v1::Start { keep: true, ..long };
        let mut running = owner.generate(long.clone()).await.unwrap();
        let refused = run(&owner, greedy(PROMPT, 2)).await.unwrap_err();
        assert_eq!(refused.code(), Code::ResourceExhausted, "{wire}: {refused}");
        assert!(refused.retry_after().is_some(), "{wire}: {refused:?}");
        let Error::Rejected { reason, .. } = refused else { panic!("{refused:?}") };
        assert_eq!(reason, "QUOTA_GENERATIONS", "{wire}");

        let mut again = owner.generate(long).await.expect("it runs already");
        let Some(Ok(Event::Accepted(accepted))) = again.next().await else { panic!("{wire}") };
        assert!(accepted.repeated, "{wire}");
        let other = client(&server, wire, Some(&verses)).await;
        assert_eq!(run(&other, greedy(PROMPT, 2)).await.unwrap().ids.len(), 2, "{wire}");

        let patient = owner.clone().with_retry(Retry::default());
        let stop = async {
            drop(again);
            running.cancel().await.unwrap();
            while let Some(event) = running.next().await {
                event.unwrap();
            }
        };
        let (turn, ()) = tokio::join!(run(&patient, greedy(PROMPT, 2)), stop);
        assert_eq!(turn.unwrap().ids.len(), 2, "{wire}");
    }
}

#[test]
fn a_quota_that_cannot_be_meant_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let (tokens, _) = tokens_with(folder.path(), ["sessions_max = 0\n", "", ""]);
    let (bundle, tokens) = (tiny_bundle(folder.path()), tokens.to_str().unwrap().to_owned());
    let mut serve = Command::new(program("aerie-serve"));
    serve.args(["--tokens", &tokens, "--grpc", "127.0.0.1:0", "--model"]).arg(bundle);
    let output = serve.arg("--data").arg(folder.path()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    let expected = "tenant \"tales\": sessions_max = 0; it must be from 1 to 4294967295";
    assert!(!output.status.success() && text.contains(expected), "{text}");
}

#[test]
fn tokens_are_not_taken_in_plaintext_from_a_network() {
    let refused = |flags: &[&str], expected: &str| {
        let output = Command::new(program("aerie-serve")).args(flags).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && text.contains(expected), "{text}");
    };
    refused(&["--grpc", "0.0.0.0:0", "--tokens", "tokens.toml"], "error: grpc.tls = false");
    refused(&["--client-ca", "ca.pem"], "error: grpc.tls = false");
}

/// Checks that `client` is told nothing of the session `id`, whatever it asks.
async fn expect_nothing(client: &Client, id: &str) {
    const NEVER: &str = "00000000-0000-4000-8000-000000000000";
    let words = |error: Error| {
        assert_eq!(error.code(), Code::NotFound, "{error:?}");
        let Error::Rejected { message, reason, .. } = error else { panic!("{error:?}") };
        (message.replace(id, NEVER), reason)
    };
    assert_eq!(client.sessions().await.unwrap(), []);
    let mut answers = Vec::new();
    for id in [id, NEVER] {
        answers.push([
            words(client.session(id).await.unwrap_err()),
            words(client.delete_session(delete(id)).await.unwrap_err()),
            words(run(client, going_on(id)).await.unwrap_err()),
            words(
                run(client, v1::Start { fork_of: id.to_owned(), ..greedy("", 2) })
                    .await
                    .unwrap_err(),
            ),
        ]);
    }
    assert_eq!(answers[0], answers[1]);
}

/// Checks that one session more was refused, as trying again would be.
#[track_caller]
fn expect_full(made: Result<(), Error>) {
    let refused = made.unwrap_err();
    assert_eq!((refused.code(), refused.retry_after()), (Code::ResourceExhausted, None));
    let Error::Rejected { reason, message, .. } = refused else { panic!("{refused:?}") };
    assert_eq!(reason, "QUOTA_SESSIONS", "{message}");
}

fn forking(id: &str) -> v1::Start {
    v1::Start { fork_of: id.to_owned(), ..greedy(" And", 2) }
}

fn going_on(id: &str) -> v1::Start {
    v1::Start { session_id: id.to_owned(), keep: true, ..greedy(" And", 2) }
}

fn delete(id: &str) -> v1::DeleteSessionRequest {
    v1::DeleteSessionRequest { session_id: id.to_owned(), ..v1::DeleteSessionRequest::default() }
}

async fn client(server: &Server, wire: &str, token: Option<&str>) -> Client {
    let credentials = Credentials { token: token.map(str::to_owned), certificate: None };
    connect(server, wire, &credentials).await.unwrap()
}

async fn connect(server: &Server, wire: &str, credentials: &Credentials) -> Result<Client, Error> {
    let trust = Trust::Certificate(server.certificate());
    let client = Client::connect_as(server.address(wire), &trust, credentials).await?;
    Ok(client.with_retry(Retry::NEVER))
}

async fn models(server: &Server, wire: &str, credentials: &Credentials) -> Result<usize, Error> {
    Ok(connect(server, wire, credentials).await?.models().await?.len())
}

/// A file of three tenants, and the token of each; the last is an admin.
pub(super) fn tokens(folder: &Path) -> (PathBuf, [String; 3]) {
    tokens_with(folder, ["", "", "admin = true\n"])
}

/// As [`tokens`], with what is said of each tenant beside its tokens.
fn tokens_with(folder: &Path, more: [&str; 3]) -> (PathBuf, [String; 3]) {
    let mut file = String::new();
    let mut more = more.into_iter();
    let tokens = ["tales", "verses", "root"].map(|name| {
        let output = Command::new(program("aerie-serve")).args(["token", name]).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        file.push_str(&text);
        file.push_str(more.next().unwrap());
        let first = text.lines().next().unwrap();
        first.rsplit_once(' ').unwrap().1.to_owned()
    });
    let path = folder.join("tokens.toml");
    fs::write(&path, file).unwrap();
    (path, tokens)
}

/// Who signs certificates, and a client that has one.
pub(super) struct Authority {
    pub ca: PathBuf,
    pub client: ClientCertificate,
}

pub(super) fn authority(folder: &Path, name: &str) -> Authority {
    let path = |what: &str| folder.join(format!("{name}.{what}.pem"));
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let root = params.self_signed(&key).unwrap();
    fs::write(path("ca"), root.pem()).unwrap();
    let client_key = KeyPair::generate().unwrap();
    let client = CertificateParams::new(vec!["client.example".to_owned()]).unwrap();
    let client = client.signed_by(&client_key, &Issuer::new(params, key)).unwrap();
    fs::write(path("client"), client.pem()).unwrap();
    fs::write(path("key"), client_key.serialize_pem()).unwrap();
    let client = ClientCertificate { certificate: path("client"), key: path("key") };
    Authority { ca: path("ca"), client }
}
