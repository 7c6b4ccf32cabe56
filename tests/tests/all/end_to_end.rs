//! The real programs over loopback: export emits a bundle, serve serves it, clients stream from it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use aerie_client::{Code, Error, v1};
use aerie_tests::{
    server::{Server, Wire, random_bundle, tiny_bundle},
    turn::{Turn, greedy, run},
};
use tokio_stream::StreamExt as _;

const PROMPT: &str = "Once upon a time there was a little girl who lived in a wood.";

/// Tokens of a generation that is still running when the test has done what it came for: the most
/// that a server lets one ask for.
const ENDLESS: u32 = 65_536;

#[tokio::test]
async fn both_wires_stream_the_same_tokens() {
    let (_folder, bundle) = bundle();
    let server = Server::start(&bundle, &[]);
    let mut turns = Vec::new();
    for wire in Wire::BOTH {
        let turn = run(&server.client(wire).await, greedy(PROMPT, 40)).await.unwrap();
        assert_eq!(turn.finished.reason(), v1::FinishReason::Length, "{wire:?}");
        assert_eq!(turn.ids.len(), 40, "{wire:?}");
        turns.push(turn);
    }
    assert_eq!(turns[0].ids, turns[1].ids);
    assert_eq!(turns[0].text, turns[1].text);
}

/// Goal: what a session says depends on nothing but its own past.
/// Method: many sessions at once on two lanes, so that prompts are cut and states parked and moved,
/// each in several kept turns; every turn must equal the one on a server that has no other guest.
#[tokio::test]
async fn sessions_do_not_notice_each_other() {
    let (_folder, bundle) = bundle();
    let alone = Server::start(&bundle, &[]);
    let crowded = Server::start(&bundle, &["--lanes-max", "2", "--step-tokens-max", "5"]);

    let mut conversations = tokio::task::JoinSet::new();
    for number in 0..6 {
        let wire = Wire::BOTH[number % 2];
        let clients = [alone.client(wire).await, crowded.client(wire).await];
        conversations.spawn(async move {
            let [quiet, busy] = clients;
            assert_eq!(talk(&busy, number).await, talk(&quiet, number).await, "session {number}");
        });
    }
    while let Some(ended) = conversations.join_next().await {
        ended.unwrap();
    }
}

/// Weights of large models do not fit into the graph's own file.
#[tokio::test]
async fn weights_beside_the_graph_are_served() {
    let folder = tempfile::tempdir().unwrap();
    let bundle = random_bundle(folder.path(), "griffin-small-512", &["--precision", "bf16"]);
    assert!(bundle.join("model.onnx.data").exists(), "the weights are beside the graph");
    let server = Server::start(&bundle, &[]);
    let turn = run(&server.client(Wire::Grpc).await, greedy(PROMPT, 5)).await.unwrap();
    assert_eq!(turn.ids.len(), 5);
}

#[tokio::test]
async fn session_goes_on_after_kill_9() {
    let (_folder, bundle) = bundle();
    let mut server = Server::start(&bundle, &[]);
    for wire in Wire::BOTH {
        let client = server.client(wire).await;
        let first = run(&client, kept("", PROMPT)).await.unwrap();
        let undisturbed = run(&client, kept("", PROMPT)).await.unwrap();
        assert_eq!(first.ids, undisturbed.ids);
        let id = &first.accepted.session_id;
        let expected = run(&client, kept(&undisturbed.accepted.session_id, " And")).await.unwrap();

        server.kill_and_restart();
        let client = server.client(wire).await;
        let session = client.session(id).await.unwrap();
        assert_eq!(session.position, first.finished.position);
        assert_eq!(session.residence(), v1::SessionResidence::Parked);
        let second = run(&client, kept(id, " And")).await.unwrap();
        assert_eq!(second.accepted.position, first.finished.position);
        assert_eq!(second.ids, expected.ids, "{wire:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_parks_what_runs_and_exits_with_0() {
    let (folder, bundle) = bundle();
    let config = folder.path().join("aerie.toml");
    fs::write(&config, "drain_grace_ms = 0\n").unwrap();
    let mut server = Server::start(&bundle, &["--config", config.to_str().unwrap()]);
    let client = server.client(Wire::Quic).await;
    let start = v1::Start { max_tokens: ENDLESS, ..kept("", PROMPT) };
    let mut generation = client.generate(start).await.unwrap();
    let accepted = generation.next().await.unwrap().unwrap();
    let aerie_client::Event::Accepted(accepted) = accepted else { panic!("{accepted:?}") };
    generation.next().await.unwrap().unwrap();
    let reader = tokio::spawn(async move {
        let mut last = None;
        while let Some(event) = generation.next().await {
            last = Some(event.unwrap());
        }
        last
    });

    let status = tokio::task::block_in_place(|| server.terminate());
    assert!(status.success(), "{status}: {}", server.log());
    let last = reader.await.unwrap();
    let Some(aerie_client::Event::Finished(finished)) = last else { panic!("{last:?}") };
    assert_eq!(finished.reason(), v1::FinishReason::Shutdown);

    server.restart();
    let client = server.client(Wire::Grpc).await;
    let session = client.session(&accepted.session_id).await.unwrap();
    assert_eq!(session.position, finished.position);
}

#[tokio::test]
async fn full_house_refuses_with_a_hint() {
    let (_folder, bundle) = bundle();
    let server = Server::start(&bundle, &["--requests-max", "1"]);
    for wire in Wire::BOTH {
        let client = server.client(wire).await;
        let endless = greedy(PROMPT, ENDLESS);
        let mut running = client.generate(endless).await.unwrap();
        running.next().await.unwrap().unwrap();

        let error = run(&client, greedy(PROMPT, 1)).await.unwrap_err();
        assert_eq!(error.code(), Code::ResourceExhausted, "{wire:?}: {error}");
        assert!(error.retry_after().is_some(), "{wire:?}: {error}");

        running.cancel().await.unwrap();
        while let Some(event) = running.next().await {
            event.unwrap();
        }
    }
}

/// Goal: a client that goes away frees its place within a step, and costs others nothing.
#[tokio::test]
async fn client_that_leaves_frees_its_place() {
    let (_folder, bundle) = bundle();
    let server = Server::start(&bundle, &["--requests-max", "1"]);
    for wire in Wire::BOTH {
        let client = server.client(wire).await;
        let endless = greedy(PROMPT, ENDLESS);
        let mut running = client.generate(endless).await.unwrap();
        running.next().await.unwrap().unwrap();
        drop(running);
        // The news travels; until it is there the server says when to ask again.
        let mut tries = 0;
        loop {
            match run(&client, greedy(PROMPT, 1)).await {
                Ok(_) => break,
                Err(error) if error.code() == Code::ResourceExhausted && tries < 100 => {
                    tries += 1;
                    tokio::time::sleep(error.retry_after().unwrap()).await;
                }
                Err(error) => panic!("{wire:?}: {error}"),
            }
        }
    }
}

/// Goal: whoever reads slowly waits alone.
/// Method: one generation is not read at all while another runs to its end; then the first is read,
/// and nothing of it is missing.
#[tokio::test]
async fn slow_reader_does_not_stall_others() {
    const TOKENS: u32 = 3000;
    let (_folder, bundle) = bundle();
    let server = Server::start(&bundle, &[]);
    for wire in Wire::BOTH {
        let [slow, quick] = [server.client(wire).await, server.client(wire).await];
        let mut unread = slow.generate(greedy(PROMPT, TOKENS)).await.unwrap();
        let turn = run(&quick, greedy(PROMPT, TOKENS)).await.unwrap();

        let mut ids = Vec::new();
        while let Some(event) = unread.next().await {
            if let aerie_client::Event::Delta(delta) = event.unwrap() {
                ids.extend(delta.ids);
            }
        }
        assert_eq!(ids, turn.ids, "{wire:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_four_streams_at_once_all_end_well() {
    let (_folder, bundle) = bundle();
    let server = Server::start(
        &bundle,
        &["--device", "cpu:0-0", "--device", "cpu:1-1", "--lanes-max", "16"],
    );
    for wire in Wire::BOTH {
        let client = server.client(wire).await;
        let expected = run(&client, greedy(PROMPT, 64)).await.unwrap();
        let mut streams = tokio::task::JoinSet::new();
        for _ in 0..64 {
            let client = client.clone();
            streams.spawn(async move { run(&client, greedy(PROMPT, 64)).await });
        }
        while let Some(ended) = streams.join_next().await {
            assert_eq!(ended.unwrap().unwrap().ids, expected.ids, "{wire:?}");
        }
    }
}

#[tokio::test]
async fn bad_requests_are_refused_by_field() {
    let (_folder, bundle) = bundle();
    let server = Server::start(&bundle, &[]);
    for wire in Wire::BOTH {
        let client = server.client(wire).await;
        let check = async |start: v1::Start, code: Code, field: &str| {
            let error: Error = run(&client, start).await.unwrap_err();
            assert_eq!(error.code(), code, "{wire:?}: {error}");
            assert!(error.to_string().contains(field), "{wire:?}: {error}");
        };
        let hot = v1::Sampling { temperature: -1.0, ..v1::Sampling::default() };
        let unknown = "00000000-0000-4000-8000-000000000000".to_owned();
        check(
            v1::Start { sampling: Some(hot), ..greedy(PROMPT, 1) },
            Code::InvalidArgument,
            "temperature",
        )
        .await;
        check(v1::Start { prompt: None, ..greedy(PROMPT, 1) }, Code::InvalidArgument, "prompt")
            .await;
        check(v1::Start { model: "gpt".to_owned(), ..greedy(PROMPT, 1) }, Code::NotFound, "gpt")
            .await;
        check(v1::Start { session_id: unknown, ..greedy(PROMPT, 1) }, Code::NotFound, "session")
            .await;
        let first = run(&client, kept("", PROMPT)).await.unwrap();
        let stale =
            v1::Start { expected_position: Some(1), ..kept(&first.accepted.session_id, PROMPT) };
        let position = first.finished.position.to_string();
        check(stale, Code::FailedPrecondition, &position).await;
    }
}

/// Goal: the wires are what their documents say, not what our own code on both ends agrees on.
/// Method: Python's gRPC with reflection and health, and a QUIC stack written by others.
#[test]
fn clients_not_of_ours_stream_the_same_tokens() {
    let Some(python) = python() else { return };
    let (_folder, bundle) = bundle();
    let server = Server::start(&bundle, &[]);
    let certificate = server.certificate();
    let grpc = server.address("grpc").trim_start_matches("grpc://");
    let grpc = script(&python, "grpc_conventions.py", &[grpc.as_ref()]);
    let quic = script(&python, "quic_client.py", &[server.address("quic").as_ref(), &certificate]);
    assert_eq!(grpc, quic);
    assert_eq!(grpc.split(' ').count(), 20);
}

/// Runs a script of `tests/python` for 20 greedy tokens and returns the ids it prints.
fn script(python: &Path, name: &str, arguments: &[&Path]) -> String {
    let output = Command::new(python)
        .arg(repository().join("tests/python").join(name))
        .args(arguments)
        .args([PROMPT, "20"])
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name}: {errors}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// The Python of the tests; without it a test says that it is skipped.
fn python() -> Option<PathBuf> {
    let python = repository().join(".deps/venv/bin/python");
    if !python.exists() {
        eprintln!("skipped: {} is not there; `make python` puts it there", python.display());
    }
    python.exists().then_some(python)
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Three kept turns of conversation `number`, sampled, so that draws are compared as well.
async fn talk(client: &aerie_client::Client, number: usize) -> Vec<Vec<u32>> {
    let mut session = String::new();
    let mut turns = Vec::new();
    for turn in 0..3 {
        let sampling = v1::Sampling { temperature: 0.8, seed: Some(7), ..v1::Sampling::default() };
        let prompt = PROMPT.repeat(1 + (number + turn) % 3);
        let start = v1::Start { sampling: Some(sampling), ..kept(&session, &prompt) };
        let Turn { accepted, ids, .. } = run(client, start).await.unwrap();
        session = accepted.session_id;
        turns.push(ids);
    }
    turns
}

/// A greedy turn of a session that is kept; an empty `session` begins one.
fn kept(session: &str, prompt: &str) -> v1::Start {
    v1::Start { session_id: session.to_owned(), keep: true, ..greedy(prompt, 12) }
}

/// A bundle for one test, in a folder that goes with it.
fn bundle() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let bundle = tiny_bundle(Path::new(folder.path()));
    (folder, bundle)
}
