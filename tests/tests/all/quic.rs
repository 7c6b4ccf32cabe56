//! Our client over QUIC against the real server: coming back, moving, finding the server restarted.

use std::{fs, path::PathBuf};

use aerie_client::{Code, Event, v1};
use aerie_tests::{
    server::{Server, Wire, tiny_bundle},
    turn::{greedy, run},
};
use tokio_stream::StreamExt as _;

const PROMPT: &str = "Once upon a time there was a little girl who lived in a wood.";

/// Goal: who comes back says what it wants with its first packet, and it is done once.
/// Method: a second connection to the server asks a question and goes on with a session; the server
/// counts calls that it ran before the handshake had ended.
#[tokio::test]
async fn client_that_comes_back_is_answered_before_the_handshake_has_ended() {
    let (_folder, bundle) = bundle();
    let server = Server::start(&bundle, &[]);
    let client = server.client(Wire::Quic).await;
    let turn = run(&client, kept(v1::Start::default())).await.unwrap();
    client.close().await;

    let client = server.client(Wire::Quic).await;
    assert_eq!(client.sessions().await.unwrap().len(), 1);
    client.close().await;
    assert_eq!(counter(&server, "serve_quic_early_calls_total{run=\"at_once\"}"), 1);

    let client = server.client(Wire::Quic).await;
    let next = v1::Start {
        session_id: turn.accepted.session_id,
        expected_position: Some(turn.finished.position),
        request_id: "second".to_owned(),
        ..v1::Start::default()
    };
    let second = run(&client, kept(next.clone())).await.unwrap();
    assert_eq!(second.accepted.position, turn.finished.position);
    assert_eq!(counter(&server, "serve_quic_early_calls_total{run=\"at_once\"}"), 2);
    // It is known by its id, and any other finds that the session has moved on: so it did no harm to be early.
    let again = run(&client, kept(next.clone())).await.unwrap();
    assert!(again.accepted.repeated && again.ids == second.ids);
    let other = v1::Start { request_id: "third".to_owned(), ..next };
    let error = run(&client, kept(other)).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
}

/// Goal: a ticket that is worth nothing any more costs a round trip, and no call.
/// Method: the server is killed and starts where it was. A new client shows a ticket that the server
/// does not know; one that stayed is told that its connection is, and shows what the new one was given.
#[tokio::test]
async fn client_finds_a_restarted_server_again() {
    let (_folder, bundle) = bundle();
    let mut server = Server::start(&bundle, &[]);
    let stayed = server.client(Wire::Quic).await;
    let turn = run(&stayed, kept(v1::Start::default())).await.unwrap();
    server.kill_and_restart();

    assert_eq!(server.client(Wire::Quic).await.sessions().await.unwrap().len(), 1);
    assert_eq!(counter(&server, "serve_quic_tickets_total{result=\"unknown\"}"), 1);
    assert_eq!(counter(&server, "serve_quic_early_calls_total{run=\"at_once\"}"), 0);

    let session = stayed.session(&turn.accepted.session_id).await.unwrap();
    assert_eq!(session.position, turn.finished.position);
    assert_eq!(counter(&server, "serve_quic_early_calls_total{run=\"at_once\"}"), 1);
}

/// Goal: a phone that changes networks gets every token once.
/// Method: the client goes on from another port again and again while it reads.
#[tokio::test]
async fn generation_survives_changes_of_address() {
    const TOKENS: u32 = 600;
    let (_folder, bundle) = bundle();
    let server = Server::start(&bundle, &[]);
    let client = server.client(Wire::Quic).await;
    let undisturbed = run(&client, greedy(PROMPT, TOKENS)).await.unwrap();

    let mut generation = client.generate(greedy(PROMPT, TOKENS)).await.unwrap();
    let (mut ids, mut rebinds) = (Vec::new(), 0);
    while let Some(event) = generation.next().await {
        if let Event::Delta(delta) = event.unwrap() {
            ids.extend(delta.ids);
        }
        if rebinds < ids.len() / 100 {
            client.rebind().await.unwrap();
            rebinds += 1;
        }
    }
    assert_eq!(ids, undisturbed.ids);
    assert!(4 <= rebinds, "{rebinds}");
}

#[tokio::test]
async fn client_that_has_left_does_not_come_back() {
    let (_folder, bundle) = bundle();
    let server = Server::start(&bundle, &[]);
    let client = server.client(Wire::Quic).await;
    client.clone().close().await;
    let error = client.models().await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable, "{error}");
}

/// Goal: what QUIC promises is kept to others as well: early data once, other addresses and keys amid a
/// stream, more streams than at once, proofs of address.
/// Method: a QUIC stack that shares no code with ours; see the script.
#[test]
fn stack_not_of_ours_finds_all_that_quic_promises() {
    const CONNECTIONS: u32 = 4;
    let Some(python) = super::python::python("venv") else { return };
    let (folder, bundle) = bundle();
    let config = folder.path().join("aerie.toml");
    fs::write(&config, format!("[quic]\nconnections_max = {}\n", 2 * CONNECTIONS)).unwrap();
    let server = Server::start(&bundle, &["--config", config.to_str().unwrap()]);
    let arguments = [server.address("quic").into(), server.certificate()];
    let arguments = [arguments.as_slice(), &[CONNECTIONS.to_string().into()]].concat();
    super::python::run(&python, "quic_conventions.py", &arguments);
    assert_eq!(counter(&server, "serve_quic_early_calls_total{run=\"at_once\"}"), 1);
    assert_eq!(counter(&server, "serve_quic_tickets_total{result=\"resumed\"}"), 1);
    assert_eq!(counter(&server, "serve_quic_handshakes_total{result=\"retried\"}"), 1);
    assert!(0 < counter(&server, "serve_quic_migrations_total"));
}

/// `start` with our prompt, greedy, in a session that is kept.
fn kept(start: v1::Start) -> v1::Start {
    let v1::Start { prompt, max_tokens, sampling, .. } = greedy(PROMPT, 12);
    v1::Start { prompt, max_tokens, sampling, keep: true, ..start }
}

/// A series of the server's metrics.
fn counter(server: &Server, series: &str) -> u64 {
    let metrics = server.metrics();
    let value = metrics.lines().find_map(|line| line.strip_prefix(series));
    let value = value.unwrap_or_else(|| panic!("no {series} in\n{metrics}"));
    value.trim().parse().unwrap()
}

/// A bundle for one test, in a folder that goes with it.
fn bundle() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let bundle = tiny_bundle(folder.path());
    (folder, bundle)
}
