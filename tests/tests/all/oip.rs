//! The Open Inference Protocol: the real server, and Triton's own client as anyone installs it.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use aerie_client::{Code, Error, v1};
use aerie_tests::{
    server::{Server, Wire, program, tiny_bundle},
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

/// Goal: a classifier is served beside a recurrent model; Triton's client is told the same over both wires, in whatever form a
/// picture comes, and the same bits alone and in a batch; our client and its command are told that as well.
/// Method: see the script; it leaves a picture behind.
#[tokio::test]
async fn tritons_client_has_pictures_classified() {
    let Some(python) = python("triton") else { return };
    let folder = tempfile::tempdir().unwrap();
    let (bundle, picture) = (classifier(folder.path()), folder.path().join("picture.png"));
    let (bundle, picture) = (bundle.to_str().unwrap(), picture.to_str().unwrap());
    let flags = ["--model", bundle, "--rest", "127.0.0.1:0"];
    let server = Server::start(&tiny_bundle(folder.path()), &flags);
    let [grpc, rest] = authorities(&server);
    let [mean, std] = ["0.485,0.456,0.406", "0.229,0.224,0.225"];
    let arguments = [&*grpc, &*rest, "pictures", "32", mean, std, "16", picture];
    let output = script(&python, "triton_pictures.py", &arguments);
    let [label, difference] = output.split_whitespace().collect::<Vec<_>>()[..] else {
        panic!("{output}");
    };
    assert_eq!(difference.parse(), Ok(0.0), "ONNX Runtime computes rows alike in any batch");

    let client = server.client(Wire::Grpc).await;
    let models = client.models().await.unwrap();
    let listed: Vec<_> = models.iter().map(|it| (&*it.name, it.classes, it.vocab)).collect();
    assert!(matches!(listed[..], [("tiny", 0, 1..), ("pictures", 10, 0)]), "{listed:?}");
    let classes = client.classify("pictures", &[fs::read(picture).unwrap()], 3).await.unwrap();
    assert_eq!((classes[0].len(), &*classes[0][0].label), (3, label));
    let quic = server.client(Wire::Quic).await;
    assert!(matches!(quic.classify("pictures", &[], 1).await, Err(Error::Wire)));
    let output = Command::new(program("aerie"))
        .args(["--server", server.address("grpc"), "classify", picture, "--top", "3"])
        .output()
        .unwrap();
    let told = String::from_utf8(output.stdout).unwrap();
    let first = told.lines().next().and_then(|it| it.split_once(" %  "));
    assert_eq!((told.lines().count(), first.map(|it| it.1)), (3, Some(label)), "{told}");

    // It generates nothing, and a recurrent model classifies nothing.
    let start = v1::Start { model: "pictures".to_owned(), ..greedy(PROMPT, 1) };
    for wire in Wire::BOTH {
        let error = run(&server.client(wire).await, start.clone()).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument);
        assert!(error.to_string().contains("classifies pictures"), "{error}");
    }
    let error = client.classify("tiny", &[Vec::new()], 1).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument, "{error}");
}

/// Goal: the bundled classifier is the one that was trained, preprocessing and labels included: it knows what `make demo` shows it.
#[tokio::test]
async fn the_bundled_classifier_sees_a_ship() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let server = Server::start(&root.join("models/bundles/pictures"), &[]);
    let client = server.client(Wire::Grpc).await;
    let picture = fs::read(root.join("docs/ship.jpg")).unwrap();
    let classes = client.classify("pictures", &[picture], 10).await.unwrap();
    let best = &classes[0][0];
    assert!(best.label == "ship" && 0.5 < best.probability, "{classes:?}");
    let sum: f32 = classes[0].iter().map(|it| it.probability).sum();
    assert!((sum - 1.0).abs() < 1e-5, "{sum}");
}

/// Goal: tenants have sequences of their own, which outlive the server; nobody else has any.
/// Method: see the script. It asks for `kill -9`, here, and goes on; and to have a tenant taken away amid a stream.
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
    let mut asked = Vec::new();
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        match &*line {
            "kill" => server.kill_and_restart(),
            "revoke" => {
                let text = fs::read_to_string(&file).unwrap();
                let (_, others) = text.split_once("[[tenants]]\nname = \"verses\"").unwrap();
                fs::write(&file, format!("[[tenants]]\nname = \"verses\"{others}")).unwrap();
                server.signal("HUP");
            }
            other => panic!("{other:?} is asked for"),
        }
        asked.push(line);
    }
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(asked, ["kill", "revoke"]);
}

/// A bundle of a small classifier of ten classes with random weights, for pictures of 32 pixels.
fn classifier(folder: &Path) -> PathBuf {
    let bundle = folder.join("pictures");
    let output = Command::new(program("aerie-export"))
        .args(["emit", "--random", "nf-wrn-10-1", "--seed", "1", "--name", "pictures", "--out"])
        .arg(&bundle)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    bundle
}

/// Where gRPC and where HTTP is, without schemes.
fn authorities(server: &Server) -> [String; 2] {
    let grpc = server.address("grpc").trim_start_matches("grpc://").to_owned();
    [grpc, server.rest_authority().to_owned()]
}
