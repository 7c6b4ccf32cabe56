//! The Open Inference Protocol: the real server, and Triton's own client as anyone installs it.

use std::{
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Command, Stdio},
};

use aerie_client::v1;
use aerie_tests::{
    server::{Server, Wire, tiny_bundle},
    turn::{greedy, run},
};

use super::python::{python, script};

const PROMPT: &str = "Once upon a time there was a little girl who lived in a wood.";
const TOKENS: u32 = 16;
/// As the scripts draw.
const SEED: u64 = 7;

/// Goal: what works with Triton works with us: a recurrent model over gRPC and HTTP, whole and streamed, as sequences; and
/// it says what our own client is told.
/// Method: see the script.
#[tokio::test]
async fn tritons_client_talks_to_a_recurrent_model() {
    let Some(python) = python("triton") else { return };
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&tiny_bundle(folder.path()), &["--rest", "127.0.0.1:0"]);
    let [grpc, rest] = authorities(&server);
    let tokens = TOKENS.to_string();
    let arguments = [&*grpc, &*rest, "tiny", PROMPT, &tokens];
    let output = script(&python, "triton_recurrent.py", &arguments);
    let sampling = v1::Sampling { temperature: 1.0, seed: Some(SEED), ..v1::Sampling::default() };
    let start = v1::Start { sampling: Some(sampling), ..greedy(PROMPT, TOKENS) };
    let ours = run(&server.client(Wire::Grpc).await, start).await.unwrap();
    let theirs: Vec<u32> = output.split_whitespace().map(|it| it.parse().unwrap()).collect();
    assert_eq!(theirs, ours.ids);
    let metrics = server.metrics();
    for series in [r#"serve_calls_total{api="oip",code="ok"}"#, r#"{api="rest",code="ok"}"#] {
        assert!(metrics.contains(series), "{series} is not in {metrics}");
    }
}

/// Goal: tenants have sequences of their own, which outlive the server; nobody else has any.
/// Method: see the script. It asks for `kill -9`, here, and goes on.
#[test]
fn sequences_are_their_tenants_and_survive_kill_9() {
    let Some(python) = python("triton") else { return };
    let folder = tempfile::tempdir().unwrap();
    let bundle = tiny_bundle(folder.path());
    let (file, [token, other, _]) = super::security::tokens(folder.path());
    let flags = ["--rest", "127.0.0.1:0", "--tokens", file.to_str().unwrap()];
    let mut server = Server::start(&bundle, &flags);
    let [grpc, rest] = authorities(&server);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("python/triton_tenants.py");
    let mut command = Command::new(python);
    command.arg(script).args([&*grpc, &*rest, "tiny", PROMPT, &token, &other]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut kills = 0;
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        assert_eq!(line.unwrap(), "kill");
        server.kill_and_restart();
        kills += 1;
    }
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(kills, 1);
}

/// Where gRPC and where HTTP is, without schemes.
fn authorities(server: &Server) -> [String; 2] {
    let grpc = server.address("grpc").trim_start_matches("grpc://").to_owned();
    [grpc, server.rest_authority().to_owned()]
}
