//! What networks and attackers do to connections: early data, replays, floods, other addresses.

use std::{
    collections::BTreeMap,
    net::UdpSocket,
    sync::{Arc, Mutex},
    time::Duration,
};

use aerie_proto::{
    ALPN,
    v1::{self, call::Call, call_response::Result as Answer, generate_response::Event},
};
use quinn::{ClientConfig, Connection, Endpoint, ZeroRttAccepted};

use super::{
    super::tests::{Fixture, QuicStream, quic_client, start},
    Config,
    settings::transport_config,
};

#[tokio::test]
async fn read_is_answered_within_the_first_flight() {
    let fixture = Fixture::start().await;
    let client = acquainted(&fixture, fixture.tls_client(ALPN)).await;
    let (connection, accepted) = come_back(&fixture, &client);
    assert!(lists_models(&connection).await);
    assert!(accepted.await, "early data was accepted");
    assert_eq!(early_calls(&fixture), [1, 0]);
    assert_eq!(tickets(&fixture), [1, 0]);
}

#[tokio::test]
async fn write_that_comes_early_waits_and_is_run() {
    let fixture = Fixture::start().await;
    let client = acquainted(&fixture, fixture.tls_client(ALPN)).await;
    let (connection, accepted) = come_back(&fixture, &client);
    let mut stream = QuicStream::on(&connection).await;
    stream.send(&call(delete())).await;
    let answer: v1::CallResponse = stream.next().await.unwrap();
    assert!(matches!(answer.result, Some(Answer::Error(error)) if error.code == 5), "not found");
    assert!(accepted.await, "early data was accepted");
    assert_eq!(early_calls(&fixture), [0, 1]);
}

/// Goal: what came early and may not be repeated is not run for whoever cannot end the handshake.
/// Method: the server's answers never arrive. A delete waits in vain; so does the second generation on
/// a stream whose first one was harmless.
#[tokio::test]
async fn write_is_never_run_without_the_end_of_the_handshake() {
    let fixture = Fixture::with(Config { handshake_ms_max: 300, ..Config::default() }).await;
    let client = acquainted(&fixture, fixture.tls_client(ALPN)).await;
    let calls_before = calls(&fixture);
    let session = known_session(&fixture).await;

    let relay = Relay::start(&fixture, Answers::Lost);
    let (connection, _) = Relay::connect(&relay, &client);
    let mut deletes = QuicStream::on(&connection).await;
    deletes.send(&call(delete())).await;
    let mut generates = QuicStream::on(&connection).await;
    generates.send(&call(Call::Generate(checked(&session)))).await;
    generates.send(&start(1)).await;

    until(|| handshakes(&fixture, "timed_out") == 1).await;
    assert_eq!(early_calls(&fixture), [1, 1]);
    let accepted = &fixture.service.metrics().generations_accepted;
    assert_eq!(
        accepted.with_label_values(&["tiny"]).get(),
        2,
        "the session's first, and the checked"
    );
    // What is in flight ends with the connection; the delete never began.
    until(|| calls(&fixture) == calls_before + 2).await;
    assert_eq!(handshakes(&fixture, "timed_out"), 1);
}

/// Goal: a recorded first flight is worth nothing.
/// Method: all that a client sent is sent again from elsewhere, after its connection has gone.
#[tokio::test]
async fn replayed_first_flight_is_not_run_again() {
    let fixture = Fixture::start().await;
    let client = acquainted(&fixture, fixture.tls_client(ALPN)).await;
    let relay = Relay::start(&fixture, Answers::Forwarded);
    let (connection, accepted) = Relay::connect(&relay, &client);
    assert!(lists_models(&connection).await);
    assert!(accepted.await, "early data was accepted");
    connection.close(0_u32.into(), b"");
    until(|| fixture.service.metrics().quic.connections.get() == 0).await;

    let (calls_before, elsewhere) = (calls(&fixture), UdpSocket::bind("127.0.0.1:0").unwrap());
    let recorded = relay.recorded.lock().unwrap().clone();
    // Until the server has forgotten the connection, it takes its packets for late ones.
    until(|| {
        for datagram in &recorded {
            elsewhere.send_to(datagram, fixture.quic.addr).unwrap();
        }
        tickets(&fixture) == [1, 1]
    })
    .await;
    assert_eq!(early_calls(&fixture), [1, 0]);
    assert_eq!(calls(&fixture), calls_before);
}

#[tokio::test]
async fn restarted_server_rejects_early_data_and_takes_the_connection() {
    let fixture = Fixture::start().await;
    let client = acquainted(&fixture, fixture.tls_client(ALPN)).await;
    let fixture = fixture.restart_quic().await;
    let (connection, accepted) = come_back(&fixture, &client);
    assert!(!accepted.await);
    assert!(lists_models(&connection).await);
    assert_eq!(tickets(&fixture), [0, 1]);
}

#[tokio::test]
async fn expired_ticket_is_no_ticket() {
    let fixture = Fixture::with(Config { ticket_s_max: 0, ..Config::default() }).await;
    let client = acquainted(&fixture, fixture.tls_client(ALPN)).await;
    let (connection, accepted) = come_back(&fixture, &client);
    assert!(!accepted.await);
    assert!(lists_models(&connection).await);
    let expired = fixture.service.metrics().quic.tickets.with_label_values(&["expired"]).get();
    assert_eq!(expired, 1);
}

/// Goal: a client that changes its address gets every token once.
/// Method: the client's socket is replaced several times while tokens flow; they are numbered.
#[tokio::test]
async fn stream_survives_changes_of_address() {
    const TOKENS: u32 = 3000;
    let fixture = Fixture::start().await;
    let endpoint = Endpoint::client(([127, 0, 0, 1], 0).into()).unwrap();
    let config = quic_client(fixture.tls_client(ALPN));
    let connecting = endpoint.connect_with(config, fixture.quic.addr, "localhost").unwrap();
    let connection = connecting.await.unwrap();
    let mut stream = QuicStream::on(&connection).await;
    stream.send(&call(Call::Generate(start(TOKENS)))).await;

    let (mut position, mut rebinds) = (0, 0);
    let last = loop {
        let response: v1::GenerateResponse = stream.next().await.unwrap();
        match response.event.unwrap() {
            Event::Accepted(_) => {}
            Event::Delta(delta) => {
                assert_eq!(delta.position, position, "after {rebinds} changes of address");
                position += delta.ids.len() as u64;
            }
            other => break other,
        }
        if rebinds < position / 500 && rebinds < 5 {
            endpoint.rebind(UdpSocket::bind("127.0.0.1:0").unwrap()).unwrap();
            rebinds += 1;
        }
    };
    assert!(matches!(last, Event::Finished(_)), "{last:?}");
    assert_eq!((position, rebinds), (TOKENS.into(), 5));
    connection.close(0_u32.into(), b"");
    until(|| fixture.service.metrics().quic.connections.get() == 0).await;
    assert!(0 < fixture.service.metrics().quic.migrations.get());
}

/// Goal: a flood of first packets takes neither all places nor answers that it pays nothing for.
/// Method: Initials of many clients, recorded where nobody answered them, are sent from an address
/// that does not answer either; then somebody comes who does.
#[tokio::test]
async fn flood_is_asked_to_prove_its_address_and_others_get_in() {
    const INITIALS: usize = 40;
    let config = Config { handshakes_max: 8, ..Config::default() };
    let fixture = Fixture::with(config).await;
    let flood = UdpSocket::bind("127.0.0.1:0").unwrap();
    flood.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    for initial in initials(&fixture, INITIALS).await {
        flood.send_to(&initial, fixture.quic.addr).unwrap();
    }
    until(|| handshakes(&fixture, "retried") == INITIALS as u64 - 4).await;
    // RFC 9000 §17.2.5: a long header of type 3.
    let mut datagram = [0; 2048];
    let is_retry = |first: u8| first >> 4 == 0b1111;
    while !is_retry({
        flood.recv(&mut datagram).unwrap();
        datagram[0]
    }) {}

    let client = quic_client(fixture.tls_client(ALPN));
    let endpoint = Endpoint::client(([127, 0, 0, 1], 0).into()).unwrap();
    let connecting = endpoint.connect_with(client.clone(), fixture.quic.addr, "localhost");
    assert!(lists_models(&connecting.unwrap().await.unwrap()).await);
    assert_eq!(handshakes(&fixture, "retried"), INITIALS as u64 - 3);
    assert_eq!(handshakes(&fixture, "completed"), 1);

    // It was given a proof for the next time, which spares the round trip.
    let (connection, _) = come_back(&fixture, &client);
    assert!(lists_models(&connection).await);
    assert_eq!(handshakes(&fixture, "retried"), INITIALS as u64 - 3);
}

#[tokio::test]
async fn handshake_that_does_not_end_gives_its_place_back() {
    let config = Config { handshakes_max: 2, handshake_ms_max: 100, ..Config::default() };
    let fixture = Fixture::with(config).await;
    let flood = UdpSocket::bind("127.0.0.1:0").unwrap();
    for initial in initials(&fixture, 1).await {
        flood.send_to(&initial, fixture.quic.addr).unwrap();
    }
    until(|| handshakes(&fixture, "timed_out") == 1).await;
    let client = quic_client(fixture.tls_client(ALPN));
    let endpoint = Endpoint::client(([127, 0, 0, 1], 0).into()).unwrap();
    let connecting = endpoint.connect_with(client, fixture.quic.addr, "localhost").unwrap();
    assert!(lists_models(&connecting.await.unwrap()).await);
    assert_eq!(handshakes(&fixture, "retried"), 0);
}

/// Goal: statistics of connections arrive in the metrics of all of them.
#[tokio::test]
async fn closed_connection_has_been_counted() {
    let fixture = Fixture::start().await;
    acquainted(&fixture, fixture.tls_client(ALPN)).await;
    until(|| fixture.service.metrics().quic.connections.get() == 0).await;
    let metrics = &fixture.service.metrics().quic;
    assert!(0 < metrics.rtt.get_sample_count());
    assert!(1200 <= metrics.sent_bytes.get(), "an Initial alone has 1200 bytes");
    assert!(1200 <= metrics.received_bytes.get());
    assert!(0 < metrics.sent_packets.get());
}

#[test]
fn settings_that_keep_clients_out_are_refused() {
    let check = |config: Config, expected: &str| {
        let error = transport_config(&config).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{error:?} is not {expected:?}");
    };
    let default = Config::default;
    check(Config { handshakes_max: 0, ..default() }, "quic.handshakes_max = 0: lets nobody in");
    check(
        Config { idle_ms_max: 10_000, ..default() },
        "quic.idle_ms_max = 10000: cuts off clients",
    );
}

/// Passes datagrams on, and keeps those of the client.
struct Relay {
    addr: std::net::SocketAddr,
    recorded: Mutex<Vec<Vec<u8>>>,
}

#[derive(Clone, Copy, Eq, PartialEq)]
enum Answers {
    Forwarded,
    Lost,
}

impl Relay {
    fn start(fixture: &Fixture, answers: Answers) -> Arc<Self> {
        let bind = || {
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            socket.set_nonblocking(true).unwrap();
            tokio::net::UdpSocket::from_std(socket).unwrap()
        };
        let (front, back, server) = (bind(), bind(), fixture.quic.addr);
        let relay =
            Arc::new(Self { addr: front.local_addr().unwrap(), recorded: Mutex::default() });
        let this = Arc::clone(&relay);
        tokio::spawn(async move {
            let (mut request, mut answer) = ([0; 2048], [0; 2048]);
            let mut client = None;
            loop {
                tokio::select! {
                    received = front.recv_from(&mut request) => {
                        let (n, from) = received.unwrap();
                        client = Some(from);
                        this.recorded.lock().unwrap().push(request[..n].to_vec());
                        back.send_to(&request[..n], server).await.unwrap();
                    }
                    received = back.recv_from(&mut answer) => {
                        let (n, _) = received.unwrap();
                        if let (Answers::Forwarded, Some(client)) = (answers, client) {
                            front.send_to(&answer[..n], client).await.unwrap();
                        }
                    }
                }
            }
        });
        relay
    }

    fn connect(&self, client: &ClientConfig) -> (Connection, ZeroRttAccepted) {
        begin(self.addr, client)
    }
}

/// A client that has been to the server once, and so has tickets.
async fn acquainted(fixture: &Fixture, tls: rustls::ClientConfig) -> ClientConfig {
    let client = quic_client(tls);
    let endpoint = Endpoint::client(([127, 0, 0, 1], 0).into()).unwrap();
    let connecting = endpoint.connect_with(client.clone(), fixture.quic.addr, "localhost").unwrap();
    let connection = connecting.await.unwrap();
    // Tickets come before what is answered after the handshake.
    assert!(lists_models(&connection).await);
    connection.close(0_u32.into(), b"");
    endpoint.wait_idle().await;
    client
}

fn come_back(fixture: &Fixture, client: &ClientConfig) -> (Connection, ZeroRttAccepted) {
    begin(fixture.quic.addr, client)
}

fn begin(addr: std::net::SocketAddr, client: &ClientConfig) -> (Connection, ZeroRttAccepted) {
    let endpoint = Endpoint::client(([127, 0, 0, 1], 0).into()).unwrap();
    let connecting = endpoint.connect_with(client.clone(), addr, "localhost").unwrap();
    connecting.into_0rtt().unwrap_or_else(|_| panic!("the client has no ticket"))
}

/// First packets of `n` clients.
async fn initials(fixture: &Fixture, n: usize) -> Vec<Vec<u8>> {
    let trap = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let addr = trap.local_addr().unwrap();
    let endpoint = Endpoint::client(([127, 0, 0, 1], 0).into()).unwrap();
    let client = quic_client(fixture.tls_client(ALPN));
    let connect = |_| endpoint.connect_with(client.clone(), addr, "localhost").unwrap();
    let _connecting: Vec<_> = (0..n).map(connect).collect();
    // A packet that is sent again has the same identifier of its connection, which lies after a
    // byte of flags, four of the version and one of its length.
    let mut initials = BTreeMap::new();
    while initials.len() < n {
        let mut datagram = [0; 2048];
        let n = trap.recv(&mut datagram).await.unwrap();
        let id = datagram[6..][..usize::from(datagram[5])].to_vec();
        initials.entry(id).or_insert_with(|| datagram[..n].to_vec());
    }
    initials.into_values().collect()
}

/// A session that the server knows, because a generation runs in it.
async fn known_session(fixture: &Fixture) -> String {
    let endpoint = Endpoint::client(([127, 0, 0, 1], 0).into()).unwrap();
    let client = quic_client(fixture.tls_client(ALPN));
    let connecting = endpoint.connect_with(client, fixture.quic.addr, "localhost").unwrap();
    let connection = connecting.await.unwrap();
    let mut stream = QuicStream::on(&connection).await;
    stream.send(&call(Call::Generate(start(1)))).await;
    let response: v1::GenerateResponse = stream.next().await.unwrap();
    let Some(Event::Accepted(accepted)) = response.event else { panic!("{response:?}") };
    connection.close(0_u32.into(), b"");
    accepted.session_id
}

async fn lists_models(connection: &Connection) -> bool {
    let mut stream = QuicStream::on(connection).await;
    stream.send(&call(models())).await;
    let answer: v1::CallResponse = stream.next().await.unwrap();
    matches!(answer.result, Some(Answer::ListModels(_)))
}

fn call(call: Call) -> v1::Call {
    v1::Call { call: Some(call), ..v1::Call::default() }
}

fn models() -> Call {
    Call::ListModels(v1::ListModelsRequest {})
}

fn delete() -> Call {
    let session_id = "00000000-0000-4000-8000-000000000000".to_owned();
    Call::DeleteSession(v1::DeleteSessionRequest {
        session_id,
        ..v1::DeleteSessionRequest::default()
    })
}

/// A generation of one token that may be run early.
fn checked(session: &str) -> v1::GenerateRequest {
    let mut request = start(1);
    let Some(v1::generate_request::Message::Start(start)) = &mut request.message else {
        panic!("{request:?}")
    };
    start.session_id = session.to_owned();
    start.expected_position = Some(0);
    start.request_id = "1".to_owned();
    request
}

/// Early calls that were run at once, and that waited.
fn early_calls(fixture: &Fixture) -> [u64; 2] {
    let family = &fixture.service.metrics().quic.early_calls;
    ["at_once", "confirmed"].map(|label| family.with_label_values(&[label]).get())
}

/// Tickets with which connections were resumed, and unknown ones.
fn tickets(fixture: &Fixture) -> [u64; 2] {
    let family = &fixture.service.metrics().quic.tickets;
    ["resumed", "unknown"].map(|label| family.with_label_values(&[label]).get())
}

fn handshakes(fixture: &Fixture, result: &str) -> u64 {
    fixture.service.metrics().quic.handshakes.with_label_values(&[result]).get()
}

/// Calls over QUIC that have ended.
fn calls(fixture: &Fixture) -> u64 {
    fixture.service.metrics().call_duration.with_label_values(&["quic"]).get_sample_count()
}

/// Waits for what the server does in its own time.
#[track_caller]
fn until(mut is_so: impl FnMut() -> bool) -> impl Future<Output = ()> {
    let caller = std::panic::Location::caller();
    async move {
        for _ in 0..1000 {
            if is_so() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("waited in vain at {caller}");
    }
}
