//! Sessions that cannot be lost, leaked or doubled, as clients of the real server see them.

use std::{env, path::PathBuf, time::Duration};

use aerie_client::{Code, Error, Event, v1};
use aerie_tests::{
    server::{Server, Wire, seeded_bundle, tiny_bundle},
    turn::{Turn, follow, greedy, run},
};
use tokio_stream::StreamExt as _;

const PROMPT: &str = "Once upon a time there was a little girl who lived in a wood.";
const TOKENS: u32 = 60;

/// Goal: who heard no answer may ask again, before the end and after it, and is never run twice.
#[tokio::test]
async fn the_same_request_gets_the_same_answer() {
    let (_folder, bundle) = bundle();
    let server = Server::start(&bundle, &[]);
    for wire in Wire::BOTH {
        let client = server.client(wire).await;
        let start = request(1, 0, PROMPT, TOKENS);
        let (first, second) =
            tokio::join!(run(&client, start.clone()), run(&client, start.clone()));
        let (first, second) = (first.unwrap(), second.unwrap());
        let third = run(&client, start.clone()).await.unwrap();
        assert!(first.accepted.repeated != second.accepted.repeated && third.accepted.repeated);
        for again in [&second, &third] {
            assert_eq!((&again.ids, &again.text), (&first.ids, &first.text), "{wire:?}");
            assert_eq!(again.finished.position, first.finished.position);
        }
        let other = v1::Start { max_tokens: 7, ..start.clone() };
        let refused = run(&client, other).await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition, "it is another request: {refused}");
        let Error::Rejected { reason, position, .. } = refused else { panic!("{refused:?}") };
        assert_eq!((&*reason, position), ("STALE_POSITION", Some(first.finished.position)));
        client.delete_session(delete(&start.session_id)).await.unwrap();
        let gone = client.session(&start.session_id).await.unwrap_err();
        let Error::Rejected { reason, .. } = gone else { panic!("{gone:?}") };
        assert_eq!(reason, "DELETED");
    }
}

/// Goal: a generation outlives its connection, and any number of readers may follow it from anywhere.
#[tokio::test]
async fn a_lost_stream_is_found_again() {
    let (_folder, bundle) = bundle();
    let server = Server::start(&bundle, &[]);
    for wire in Wire::BOTH {
        let start = request(2, 0, PROMPT, 1500);
        let client = server.client(wire).await;
        let mut lost = client.generate(start.clone()).await.unwrap();
        let mut heard = Vec::new();
        while heard.len() < 20 {
            if let Event::Delta(delta) = lost.next().await.unwrap().unwrap() {
                heard.extend(delta.ids);
            }
        }
        drop((lost, client));

        let client = server.client(wire).await;
        let prompt_tokens =
            run(&client, request(3, 0, PROMPT, 1)).await.unwrap().accepted.prompt_tokens;
        let mut whole = Turn::default();
        follow(client.attach(&start.session_id, 0).await.unwrap(), &mut whole, 0).await.unwrap();
        let from = u64::from(prompt_tokens) + heard.len() as u64;
        let mut rest = Turn::default();
        let stream = client.attach(&start.session_id, from).await.unwrap();
        follow(stream, &mut rest, from).await.unwrap();
        let alone = run(&client, request(4, 0, PROMPT, 1500)).await.unwrap();
        assert_eq!(whole.ids[prompt_tokens as usize..], alone.ids, "{wire:?}");
        assert_eq!(heard[..], alone.ids[..heard.len()], "{wire:?}");
        assert_eq!(rest.ids[..], alone.ids[heard.len()..], "{wire:?}");
        assert_eq!(whole.text, format!("{PROMPT}{}", alone.text), "{wire:?}");
        let beyond =
            async { follow(client.attach(&start.session_id, 1 << 40).await?, &mut rest, 0).await };
        let beyond = beyond.await.unwrap_err();
        assert_eq!(beyond.code(), Code::OutOfRange);
        for number in 2..=4 {
            client.delete_session(delete(&id(number))).await.unwrap();
        }
    }
}

/// Goal: what a turn had said when the server was killed can be read, tokens and text, also if nobody asks for it again.
/// The soak found readers that were shown the tokens of such a turn and none of its text.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_turn_that_was_cut_off_can_be_read() {
    let (_folder, bundle) = bundle();
    let mut server = Server::start(&bundle, &[]);
    for (wire, number) in Wire::BOTH.into_iter().zip([1, 11]) {
        let client = server.client(wire).await;
        let alone = run(&client, request(number + 1, 0, PROMPT, 3000)).await.unwrap();
        let mut cut = client.generate(request(number, 0, PROMPT, 3000)).await.unwrap();
        let mut n_heard = 0;
        while n_heard < 20 {
            if let Event::Delta(delta) = cut.next().await.unwrap().unwrap() {
                n_heard += delta.ids.len();
            }
        }
        tokio::task::block_in_place(|| server.kill_and_restart());
        let client = server.client(wire).await;
        let mut read = Turn::default();
        let from = u64::from(alone.accepted.prompt_tokens);
        follow(client.attach(&id(number), from).await.unwrap(), &mut read, from).await.unwrap();
        assert!(n_heard <= read.ids.len(), "{wire:?}");
        assert_eq!(read.ids, alone.ids[..read.ids.len()], "{wire:?}");
        assert!(!read.text.is_empty() && alone.text.starts_with(&read.text), "{wire:?}");
    }
}

/// Goal: wherever a session is taken back to or forked, it goes on as if it had never been further.
#[tokio::test]
async fn forks_and_rewinds_are_exact() {
    let (_folder, bundle) = bundle();
    let server = Server::start(&bundle, &[]);
    for wire in Wire::BOTH {
        let client = server.client(wire).await;
        let trunk = run(&client, request(1, 0, PROMPT, TOKENS)).await.unwrap();
        let drawn_from = trunk.finished.position - u64::from(TOKENS);
        for (number, back) in [(10, 0), (11, 1), (12, 17), (13, TOKENS - 1)] {
            let at = trunk.finished.position - u64::from(back);
            let fork = v1::ForkSessionRequest {
                session_id: id(1),
                position: Some(at),
                new_session_id: id(number),
                request_id: "fork".to_owned(),
                ..Default::default()
            };
            let session = client.fork_session(fork.clone()).await.unwrap();
            assert_eq!((session.position, &session.session_id), (at, &id(number)));
            assert_eq!(client.fork_session(fork).await.unwrap().position, at, "it is the same one");
            let rest = run(&client, request(number, at, "", back.max(1))).await.unwrap();
            let i = usize::try_from(at - drawn_from).unwrap();
            let ids = if back == 0 { &rest.ids[..0] } else { &trunk.ids[i..] };
            assert_eq!(&rest.ids[..ids.len()], ids, "{wire:?}, {back} back");
        }
        for back in [1, 25] {
            let to = trunk.finished.position - back;
            let rewind = v1::RewindSessionRequest {
                session_id: id(1),
                position: to,
                expected_position: Some(trunk.finished.position),
                request_id: format!("back {back}"),
            };
            let session = client.rewind_session(rewind.clone()).await.unwrap();
            assert_eq!(session.position, to);
            assert_eq!(client.rewind_session(rewind).await.unwrap().position, to, "once is enough");
            let n = u32::try_from(back).unwrap();
            let again = run(&client, request(1, to, "", n)).await.unwrap();
            let i = usize::try_from(to - drawn_from).unwrap();
            assert_eq!(again.ids, trunk.ids[i..], "{wire:?}, {back} back");
        }
        for number in [1, 10, 11, 12, 13] {
            client.delete_session(delete(&id(number))).await.unwrap();
        }
    }
}

/// Goal: a system prompt is read once, and every session begins where it ends.
#[tokio::test]
async fn a_named_state_is_forked_by_its_name() {
    let (_folder, bundle) = bundle();
    let mut server = Server::start(&bundle, &[]);
    let client = server.client(Wire::Grpc).await;
    let read = v1::Start { prompt_only: true, ..request(1, 0, PROMPT, 0) };
    let read = run(&client, read).await.unwrap();
    assert_eq!(read.finished.reason(), v1::FinishReason::Prompt);
    assert!(read.ids.is_empty());
    let name = |session: &str, name: &str| v1::NameSessionRequest {
        session_id: session.to_owned(),
        name: name.to_owned(),
        expected_position: None,
    };
    client.name_session(name(&id(1), "wood")).await.unwrap();
    let taken = run(&client, request(2, 0, PROMPT, 1)).await.unwrap().accepted.session_id;
    let taken = client.name_session(name(&taken, "wood")).await.unwrap_err();
    assert_eq!(taken.code(), Code::AlreadyExists, "{taken}");

    server.kill_and_restart();
    for wire in Wire::BOTH {
        let client = server.client(wire).await;
        assert_eq!(client.session("wood").await.unwrap().session_id, id(1));
        let whole = run(&client, greedy(&format!("{PROMPT} She"), TOKENS)).await.unwrap();
        let fork = v1::Start { fork_of: "wood".to_owned(), ..greedy(" She", TOKENS) };
        let forked = run(&client, fork).await.unwrap();
        assert_eq!(forked.ids, whole.ids, "{wire:?}");
        assert_eq!(forked.accepted.resumed_tokens, read.finished.position - 1, "{wire:?}");
        assert_eq!(forked.accepted.recomputed_tokens, 0, "{wire:?}");
        assert_eq!(client.session("wood").await.unwrap().position, read.finished.position);
    }
}

/// Goal: what several prompts begin with is read once, unasked, and nothing that is said shows it.
#[tokio::test]
async fn what_prompts_have_in_common_is_read_once() {
    use v1::PrefixMiss;
    let (folder, bundle) = bundle();
    let config = folder.path().join("without.toml");
    std::fs::write(&config, "[sessions]\nprefix_bytes_max = 0\n").unwrap();
    let without = Server::start(&bundle, &["--config", config.to_str().unwrap()]);
    let server = Server::start(&bundle, &[]);
    for (wire, common) in [(Wire::Grpc, PROMPT), (Wire::Quic, "The wolf and the seven kids were")] {
        let common = common.repeat(2);
        let (client, other) = (server.client(wire).await, without.client(wire).await);
        let mut spared = Vec::new();
        for end in ["She", "He", "A fox", "They all"] {
            let start = greedy(&format!("{common}{end}"), TOKENS);
            let turn = run(&client, start.clone()).await.unwrap();
            let alone = run(&other, start).await.unwrap();
            assert_eq!((&turn.ids, &turn.text), (&alone.ids, &alone.text), "{wire:?}, {end}");
            assert_eq!(alone.accepted.prefix_miss(), PrefixMiss::Unspecified, "nobody looked");
            spared.push((turn.accepted.prefix_tokens, turn.accepted.prefix_miss()));
        }
        assert_eq!(spared[..2], [(0, PrefixMiss::Unseen), (0, PrefixMiss::SeenOnce)], "{wire:?}");
        assert!(32 <= spared[2].0 && spared[2] == spared[3], "{wire:?}: {spared:?}");
        assert_eq!(spared[2].1, PrefixMiss::Unspecified);
    }
    let metrics = server.metrics();
    let has = |line: &str| assert!(metrics.contains(line), "{line} is not in {metrics}");
    has("serve_prefix_lookups_total{device=\"cpu\",model=\"tiny\",result=\"hit\"} 4");
    has("result=\"seen_once\"} 2");
}

/// Goal: a session goes from server to server as a file, and to no server where it does not belong.
#[tokio::test]
async fn a_session_is_carried_to_another_server() {
    let (folder, bundle) = bundle();
    let [here, there] = [Server::start(&bundle, &[]), Server::start(&bundle, &[])];
    let other = folder.path().join("other");
    std::fs::create_dir(&other).unwrap();
    let stranger = Server::start(&seeded_bundle(&other, 7), &[]);
    for wire in Wire::BOTH {
        let [from, to, nobody] =
            [here.client(wire).await, there.client(wire).await, stranger.client(wire).await];
        let first = run(&from, request(1, 0, PROMPT, TOKENS)).await.unwrap();
        let export = v1::ExportSessionRequest { session_id: id(1), expected_position: None };
        let file = from.export_session(export).await.unwrap();
        let start = v1::ImportStart { session_id: String::new(), request_id: "carry".to_owned() };
        let session = to.import_session(start.clone(), file.clone()).await.unwrap();
        assert_eq!((session.session_id, session.position), (id(1), first.finished.position));
        let again = to.import_session(start.clone(), file.clone()).await.unwrap();
        assert_eq!(again.position, first.finished.position, "it was the same request");
        let position = first.finished.position;
        let [a, b] = [&from, &to].map(|it| run(it, request(1, position, " And", TOKENS)));
        let (a, b) = (a.await.unwrap(), b.await.unwrap());
        assert_eq!((&a.ids, &a.text), (&b.ids, &b.text), "{wire:?}");
        assert_eq!(b.accepted.recomputed_tokens, 0);

        let refused = nobody.import_session(start.clone(), file.clone()).await.unwrap_err();
        assert!(refused.to_string().contains("fingerprint"), "{refused}");
        let mut damaged = file.clone();
        damaged[file.len() / 2] ^= 1;
        let refused = nobody.import_session(start.clone(), damaged).await.unwrap_err();
        assert!(refused.to_string().contains("seal"), "{refused}");
        let refused = nobody.import_session(start, file[..100].to_vec()).await.unwrap_err();
        assert!(refused.to_string().contains("ends within"), "{refused}");
        for client in [&from, &to] {
            client.delete_session(delete(&id(1))).await.unwrap();
        }
    }
}

/// Goal: a session is brought from device to device while it is generating, and nobody notices who reads it; what has
/// moved is found where it is, also after `kill -9`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_moves_while_it_speaks() {
    const DEVICES: [&str; 2] = ["cpu:0-0", "cpu:1-1"];
    let (_folder, bundle) = bundle();
    let mut server = Server::start(&bundle, &["--device", DEVICES[0], "--device", DEVICES[1]]);
    let to = |device: &str| v1::MoveSessionRequest {
        session_id: id(1),
        device: device.to_owned(),
        expected_position: None,
    };
    for wire in Wire::BOTH {
        let client = server.client(wire).await;
        let n_tokens = 1500;
        let alone = run(&client, greedy(PROMPT, n_tokens)).await.unwrap();
        let speaker = client.clone();
        let speaks =
            tokio::spawn(async move { run(&speaker, request(1, 0, PROMPT, n_tokens)).await });
        let mut moved = 0;
        while !speaks.is_finished() {
            // It may not have begun yet, or may have ended.
            let device = DEVICES[moved % 2];
            if let Ok(session) = client.move_session(to(device)).await {
                let position = session.position;
                assert_eq!(session.device, device, "{wire:?}, at {position}");
                moved += 1;
            }
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
        let turn = speaks.await.unwrap().unwrap();
        assert_eq!((&turn.ids, &turn.text), (&alone.ids, &alone.text), "{wire:?}");
        assert!(3 < moved, "{wire:?}: it moved {moved} times");

        for device in DEVICES {
            assert_eq!(client.move_session(to(device)).await.unwrap().device, device);
            let session = client.session(&id(1)).await.unwrap();
            assert_eq!(
                (session.device.as_str(), session.position),
                (device, turn.finished.position)
            );
        }
        let refused = client.move_session(to("gpu")).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
        drop(client);
        server.kill_and_restart();
        let client = server.client(wire).await;
        assert_eq!(client.session(&id(1)).await.unwrap().device, DEVICES[1]);
        let position = turn.finished.position;
        let more = run(&client, request(1, position, " And", 20)).await.unwrap();
        assert_eq!(more.accepted.resumed_tokens + more.accepted.recomputed_tokens, position - 1);
        client.delete_session(delete(&id(1))).await.unwrap();
    }
}

/// Goal: who does not come back makes room, unless it has a name; and is told so if it does.
#[tokio::test]
async fn idle_sessions_expire() {
    let (folder, bundle) = bundle();
    let config = folder.path().join("aerie.toml");
    std::fs::write(&config, "[sessions]\nidle_s_max = 1\n").unwrap();
    let server = Server::start(&bundle, &["--config", config.to_str().unwrap()]);
    let client = server.client(Wire::Grpc).await;
    for number in [1, 2] {
        run(&client, request(number, 0, PROMPT, 1)).await.unwrap();
    }
    let name = "kept".to_owned();
    let rename = v1::NameSessionRequest { session_id: id(2), name, expected_position: None };
    client.name_session(rename).await.unwrap();
    tokio::time::sleep(Duration::from_millis(3500)).await;
    let gone = client.session(&id(1)).await.unwrap_err();
    let Error::Rejected { reason, .. } = gone else { panic!("{gone:?}") };
    assert_eq!(reason, "EXPIRED");
    client.session("kept").await.unwrap();
}

/// Goal: `kill -9` under load costs no token and doubles none, and clients do not even notice.
/// Method: streams on both wires and a server that is killed again and again while they run; tokens are checked as
/// they come. `AERIE_KILLS` sets how often; 6 by default.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_9_loses_no_token_and_doubles_none() {
    const STREAMS: u128 = 4;
    let kills: u32 = env::var("AERIE_KILLS").map_or(6, |it| it.parse().unwrap());
    let (_folder, bundle) = bundle();
    let n_tokens = 3000;
    let alone = Server::start(&bundle, &[]);
    let expected = run(&alone.client(Wire::Grpc).await, greedy(PROMPT, n_tokens)).await.unwrap();
    let mut server = Server::start(&bundle, &["--durability", "durable"]);
    for round in 0..kills.div_ceil(2) {
        let mut streams = tokio::task::JoinSet::new();
        for number in 0..STREAMS {
            let wire = Wire::BOTH[usize::from(number % 2 == 1)];
            let client = server.patient_client(wire).await;
            let start = request(1000 * u128::from(round) + number, 0, PROMPT, n_tokens);
            streams.spawn(async move { (wire, run(&client, start).await) });
        }
        for kill in 0..2 {
            tokio::time::sleep(Duration::from_millis(60 + 37 * u64::from((round + kill) % 5)))
                .await;
            tokio::task::block_in_place(|| server.kill_and_restart());
        }
        while let Some(ended) = streams.join_next().await {
            let (wire, turn) = ended.unwrap();
            let turn = turn.unwrap_or_else(|error| panic!("{wire:?}, round {round}: {error}"));
            assert_eq!(turn.ids, expected.ids, "{wire:?}, round {round}");
            assert_eq!(turn.text, expected.text, "{wire:?}, round {round}");
        }
    }
}

/// A greedy turn of a session that is kept, which may be sent again.
fn request(session: u128, position: u64, prompt: &str, max_tokens: u32) -> v1::Start {
    v1::Start {
        session_id: id(session),
        keep: true,
        expected_position: Some(position),
        request_id: format!("at {position}"),
        ..greedy(prompt, max_tokens)
    }
}

fn delete(id: &str) -> v1::DeleteSessionRequest {
    v1::DeleteSessionRequest { session_id: id.to_owned(), expected_position: None }
}

fn id(number: u128) -> String {
    format!("00000000-0000-4000-8000-{number:012x}")
}

/// A bundle for one test, in a folder that goes with it.
fn bundle() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let bundle = tiny_bundle(folder.path());
    (folder, bundle)
}
