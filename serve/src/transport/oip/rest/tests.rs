//! Clients that go away before they have said all.

use std::{
    future::{Future as _, poll_fn},
    task::Poll,
};

use crossbeam::channel::bounded;
use tokio::{io::AsyncWriteExt as _, net::TcpStream, runtime, sync::mpsc, task::yield_now};

use super::*;
use crate::{
    auth::Auth,
    oip,
    transport::{oip::tests::Fixture, tests::service},
};

/// It was refused as `invalid`, and counted as such.
#[tokio::test]
async fn who_goes_amid_a_body_is_refused_nothing() {
    let fixture = Fixture::start(oip::Config::default()).await;
    let mut socket = TcpStream::connect(fixture.rest.addr).await.unwrap();
    let head =
        "POST /v2/models/tiny/infer HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9\r\n\r\n{";
    socket.write_all(head.as_bytes()).await.unwrap();
    fixture.in_flight(Api::Rest, 1).await;
    drop(socket);
    fixture.in_flight(Api::Rest, 0).await;
    assert_eq!(fixture.calls_of(Api::Rest, "cancelled"), 1);
    assert_eq!((fixture.rejected("invalid"), fixture.rejected("internal")), (0, 0));
}

/// A body was read on though its client had gone, and took no place any more: so there could be any number of them.
/// Method: one thread for what takes long, which is busy.
#[test]
fn a_body_keeps_its_place_until_it_is_read() {
    let mut builder = runtime::Builder::new_current_thread();
    builder.enable_all().max_blocking_threads(1).build().unwrap().block_on(async {
        let service = service(Auth::default(), oip::Config::default(), mpsc::channel(1).0);
        let front = Front { oip: Oip::new(service) };
        let caller = front.caller(Shown(Evidence::Nothing)).unwrap();
        let place = front.oip.enter(caller.who).unwrap();
        let (release, held_up) = bounded::<()>(1);
        let busy = spawn_blocking(move || held_up.recv().unwrap());
        let body = Bytes::from(vec![b' '; INLINE_JSON_BYTES_MAX + 1]);
        let mut reading = Box::pin(front.parse(body, None, place));
        assert!(poll_fn(|cx| Poll::Ready(reading.as_mut().poll(cx).is_pending())).await);
        drop(reading);
        assert_eq!(front.oip.setup().calls(), 1);
        release.send(()).unwrap();
        busy.await.unwrap();
        while front.oip.setup().calls() != 0 {
            yield_now().await;
        }
    });
}
