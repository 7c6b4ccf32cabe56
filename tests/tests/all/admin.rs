//! What is for operators alone, and what they may change while the server runs: over a port of its own.

use std::{fs, time::Duration};

use aerie_client::{Admin, Client, Code, Credentials, Event, Retry, Trust, v1};
use aerie_tests::{
    server::{Server, tiny_bundle},
    turn::{greedy, run},
};
use tokio_stream::StreamExt as _;

use super::security::{Authority, authority, tokens};

const PROMPT: &str = "Once upon a time";
const WIRES: [&str; 2] = ["grpcs", "quic"];
const DEVICES: [&str; 2] = ["cpu:0-0", "cpu:1-1"];
const ADMIN: [&str; 3] = ["--grpc-tls", "--admin-listen", "0"];

/// Goal: what is for admins is nowhere but where admins are listened to, and only for them.
#[tokio::test]
async fn admins_have_a_port_of_their_own() {
    let folder = tempfile::tempdir().unwrap();
    let bundle = tiny_bundle(folder.path());
    let (list, [tales, verses, root]) = tokens(folder.path());
    let devices = ["--device", DEVICES[0], "--device", DEVICES[1]];
    let flags = [&ADMIN[..], &devices, &["--tokens", list.to_str().unwrap()]].concat();
    let server = Server::start(&bundle, &flags);
    let owner = client(&server, "quic", Some(&tales)).await;
    let kept = v1::Start { keep: true, ..greedy(PROMPT, 4) };
    let id = run(&owner, kept).await.unwrap().accepted.session_id;
    for wire in WIRES {
        let root = client(&server, wire, Some(&root)).await;
        assert_eq!(root.sessions().await.unwrap(), [], "{wire}");
        assert_eq!(root.session(&id).await.unwrap_err().code(), Code::NotFound, "{wire}");
        let refused = root.delete_session(delete(&id)).await.unwrap_err();
        assert_eq!(refused.code(), Code::NotFound, "{wire}");
    }
    for (token, expected) in [
        (None, Code::Unauthenticated),
        (Some("wrong"), Code::Unauthenticated),
        (Some(&*verses), Code::PermissionDenied),
    ] {
        let refused = admin(&server, token).await.tenants().await.unwrap_err();
        assert_eq!(refused.code(), expected, "{token:?}: {refused}");
    }
    let public = connect(server.address("grpcs"), &server, Some(&root)).await;
    assert_eq!(public.tenants().await.unwrap_err().code(), Code::Unimplemented);

    let admin = admin(&server, Some(&root)).await;
    let tenants = admin.tenants().await.unwrap();
    let counts: Vec<_> = tenants.iter().map(|it| (&*it.name, it.sessions, it.admin)).collect();
    assert_eq!(counts, [("tales", 1, false), ("verses", 0, false), ("root", 0, true)]);
    let all = admin.sessions(None).await.unwrap();
    assert_eq!(all.iter().map(|it| &*it.tenant).collect::<Vec<_>>(), ["tales"]);
    assert_eq!(admin.sessions(Some("tales")).await.unwrap().len(), 1);
    assert_eq!(admin.sessions(Some("verses")).await.unwrap(), []);
    let session = admin.session(&id).await.unwrap().session.unwrap();
    let device = DEVICES[usize::from(session.device == DEVICES[0])].to_owned();
    let session_id = id.clone();
    let there =
        v1::MoveSessionRequest { session_id, device: device.clone(), expected_position: None };
    assert_eq!(admin.move_session(there).await.unwrap().session.unwrap().device, device);
    admin.delete_session(delete(&id)).await.unwrap();
    assert_eq!(owner.session(&id).await.unwrap_err().code(), Code::NotFound);
}

/// Goal: the tenants' file holds as it is from the moment it is read again: new calls see it at once, streams of who is not
/// in it any more end. A file that cannot be read changes nothing and is told of.
#[tokio::test]
async fn tenants_come_and_go_while_the_server_runs() {
    let folder = tempfile::tempdir().unwrap();
    let bundle = tiny_bundle(folder.path());
    let (list, [tales, verses, root]) = tokens(folder.path());
    let server =
        Server::start(&bundle, &[&ADMIN[..], &["--tokens", list.to_str().unwrap()]].concat());
    let before = fs::read_to_string(&list).unwrap();
    let admin = admin(&server, Some(&root)).await;
    for wire in WIRES {
        let at = format!("over {wire}");
        let [owner, other] = [&tales, &verses].map(|it| client(&server, wire, Some(it)));
        let (owner, other) = (owner.await, other.await);
        let mut stream = owner.generate(greedy(PROMPT, 1 << 16)).await.unwrap();
        let mut others = other.generate(greedy(PROMPT, 1 << 16)).await.unwrap();

        fs::write(&list, "[[tenants]").unwrap();
        let refused = admin.reload().await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition, "{at}: {refused}");
        assert!(refused.to_string().contains("tokens.toml: TOML parse error"), "{at}: {refused}");
        assert!(server.log().contains("what it said before holds on"), "{at}");
        expect_deltas(&mut stream).await;
        owner.models().await.unwrap();

        let (_, without) = before.split_once("[[tenants]]\nname = \"verses\"").unwrap();
        fs::write(&list, format!("[[tenants]]\nname = \"verses\"{without}")).unwrap();
        let reloaded = admin.reload().await.unwrap();
        assert_eq!((reloaded.tenants, &*reloaded.gone), (2, &["tales".to_owned()][..]), "{at}");
        let refused = loop {
            match stream.next().await.unwrap() {
                Ok(Event::Finished(it)) => panic!("{at}: {it:?}"),
                Ok(_) => {}
                Err(error) => break error,
            }
        };
        assert_eq!(refused.code(), Code::Unauthenticated, "{at}: {refused}");
        assert_eq!(owner.models().await.unwrap_err().code(), Code::Unauthenticated, "{at}");
        expect_deltas(&mut others).await;
        others.cancel().await.unwrap();

        fs::write(&list, &before).unwrap();
        server.signal("HUP");
        server.until("the tenant is back", async || owner.models().await.is_ok()).await;
        assert_eq!(run(&owner, greedy(PROMPT, 2)).await.unwrap().ids.len(), 2, "{at}");
    }
}

/// Goal: what a tenant may have changes with the file, and what it has is counted all the while.
#[tokio::test]
async fn quotas_change_with_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let bundle = tiny_bundle(folder.path());
    let (list, [tales, _, root]) = tokens(folder.path());
    let server = Server::start(
        &bundle,
        &[&ADMIN[..], &["--tokens", list.to_str().unwrap(), "--sessions-max", "9"]].concat(),
    );
    let before = fs::read_to_string(&list).unwrap();
    let (_, without) = before.split_once("[[tenants]]\nname = \"verses\"").unwrap();
    let without = format!("[[tenants]]\nname = \"verses\"{without}");
    let admin = admin(&server, Some(&root)).await;
    let owner = client(&server, "quic", Some(&tales)).await;
    let kept = || run(&owner, v1::Start { keep: true, ..greedy(PROMPT, 2) });
    kept().await.unwrap();
    kept().await.unwrap();

    fs::write(&list, &without).unwrap();
    admin.reload().await.unwrap();
    let tenants = admin.tenants().await.unwrap();
    let [.., gone] = &tenants[..] else { panic!("{tenants:?}") };
    assert!(!gone.listed && gone.sessions == 2 && gone.name.starts_with('#'), "{tenants:?}");
    assert_eq!(admin.sessions(Some(&gone.name)).await.unwrap().len(), 2);
    assert!(!server.metrics().contains("tenant=\"tales\""));

    fs::write(&list, format!("{without}{}sessions_max = 3\n", entry_of(&before, "tales"))).unwrap();
    admin.reload().await.unwrap();
    kept().await.unwrap();
    assert_eq!(kept().await.unwrap_err().code(), Code::ResourceExhausted);
    assert!(!server.log().contains("quotas come to more sessions"));
    let many = format!("{without}{}sessions_max = 10\n", entry_of(&before, "tales"));
    fs::write(&list, many).unwrap();
    admin.reload().await.unwrap();
    assert!(server.log().contains("quotas come to more sessions"), "{}", server.log());
    assert!(server.metrics().contains("serve_tenant_sessions{tenant=\"tales\"} 3\n"));
}

/// Goal: a certificate is enough to be a tenant, over both wires, for as long as it is in the file.
#[tokio::test]
async fn certificates_are_mapped_to_tenants() {
    let folder = tempfile::tempdir().unwrap();
    let bundle = tiny_bundle(folder.path());
    let (list, [_, verses, root]) = tokens(folder.path());
    let before = fs::read_to_string(&list).unwrap();
    fs::write(&list, format!("{before}certificates = ['admin.example']\n")).unwrap();
    let Authority { ca, client: certificate } = authority(folder.path(), "ours");
    let (ca, path) = (ca.to_str().unwrap(), list.to_str().unwrap());
    let flags = [&ADMIN[..], &["--client-ca", ca, "--tokens", path]].concat();
    let server = Server::start(&bundle, &flags);
    let show = |token: Option<&String>| Credentials {
        token: token.cloned(),
        certificate: Some(certificate.clone()),
    };
    let trust = Trust::Certificate(server.certificate());
    let address = server.address("admin+grpcs").trim_start_matches("admin+");
    let admin = Admin::connect(address, &trust, &show(Some(&root))).await.unwrap();
    let certified =
        before.replace("name = \"tales\"", "name = \"tales\"\ncertificates = ['client.example']");
    for wire in WIRES {
        let connect = async |token| {
            let client = Client::connect_as(server.address(wire), &trust, &show(token)).await;
            client.unwrap().with_retry(Retry::NEVER)
        };
        let owner = connect(None).await;
        let refused = owner.models().await.unwrap_err();
        assert_eq!(refused.code(), Code::Unauthenticated, "{wire}: {refused}");
        fs::write(&list, &certified).unwrap();
        admin.reload().await.unwrap();
        let kept = v1::Start { keep: true, ..greedy(PROMPT, 2) };
        let id = run(&owner, kept).await.unwrap().accepted.session_id;
        // Once more, with what QUIC remembers of the first time.
        let again = connect(None).await;
        assert_eq!(again.session(&id).await.unwrap().session_id, id, "{wire}");
        assert_eq!(admin.session(&id).await.unwrap().tenant, "tales", "{wire}");
        let other = connect(Some(&verses)).await;
        assert_eq!(other.session(&id).await.unwrap_err().code(), Code::NotFound, "{wire}");

        let mut stream = owner.generate(greedy(PROMPT, 1 << 16)).await.unwrap();
        fs::write(&list, &before).unwrap();
        admin.reload().await.unwrap();
        while let Some(Ok(_)) = stream.next().await {}
        let refused = again.models().await.unwrap_err();
        assert_eq!(refused.code(), Code::Unauthenticated, "{wire}: {refused}");
    }
}

/// Goal: a server that is asked to drain finishes what runs and ends well, and its sessions are there at the next start.
#[tokio::test]
async fn a_drain_may_be_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = Server::start(&tiny_bundle(folder.path()), &ADMIN);
    let client = client(&server, "quic", None).await;
    let mut stream =
        client.generate(v1::Start { keep: true, ..greedy(PROMPT, 200) }).await.unwrap();
    let Some(Ok(Event::Accepted(accepted))) = stream.next().await else { panic!("not accepted") };
    let operator = admin(&server, None).await;
    let minute = u32::try_from(Duration::from_secs(60).as_millis()).unwrap();
    assert_eq!(operator.drain(Some(minute)).await.unwrap(), 1);
    let refused = run(&client, greedy(PROMPT, 2)).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    let mut end = None;
    while let Some(event) = stream.next().await {
        if let Event::Finished(finished) = event.unwrap() {
            end = Some(finished);
        }
    }
    assert_eq!(end.unwrap().generated_tokens, 200);
    assert!(server.ended().success());
    server.restart();
    let client = self::client(&server, "quic", None).await;
    assert!(200 <= client.session(&accepted.session_id).await.unwrap().position);
}

/// Waits for a few events.
async fn expect_deltas(stream: &mut aerie_client::Generation) {
    for _ in 0..5 {
        stream.next().await.unwrap().unwrap();
    }
}

/// The lines of a tenant.
fn entry_of(list: &str, name: &str) -> String {
    let start = list.find(&format!("[[tenants]]\nname = \"{name}\"")).unwrap();
    let lines: Vec<&str> = list[start..].lines().take(3).collect();
    lines.join("\n") + "\n"
}

fn delete(id: &str) -> v1::DeleteSessionRequest {
    v1::DeleteSessionRequest { session_id: id.to_owned(), ..v1::DeleteSessionRequest::default() }
}

async fn client(server: &Server, wire: &str, token: Option<&str>) -> Client {
    let credentials = Credentials { token: token.map(str::to_owned), certificate: None };
    let trust = Trust::Certificate(server.certificate());
    let client = Client::connect_as(server.address(wire), &trust, &credentials).await.unwrap();
    client.with_retry(Retry::NEVER)
}

async fn admin(server: &Server, token: Option<&str>) -> Admin {
    let address = server.address("admin+grpcs").trim_start_matches("admin+");
    connect(address, server, token).await
}

async fn connect(address: &str, server: &Server, token: Option<&str>) -> Admin {
    let credentials = Credentials { token: token.map(str::to_owned), certificate: None };
    let trust = Trust::Certificate(server.certificate());
    Admin::connect(address, &trust, &credentials).await.unwrap()
}
