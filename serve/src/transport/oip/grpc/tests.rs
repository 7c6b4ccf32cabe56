//! Clients that go away before they have said all.

use aerie_proto::inference::ModelInferRequest;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    client,
    codegen::http::uri::PathAndQuery,
    transport::{Channel, Endpoint},
};

use super::*;
use crate::{
    oip,
    transport::oip::tests::{Fixture, request},
};

/// It was refused as `internal` or `invalid`, and counted as such.
#[tokio::test]
async fn who_goes_before_its_request_has_come_is_refused_nothing() {
    let fixture = Fixture::start(oip::Config::default()).await;
    let address = format!("http://{}", fixture.grpc.addr);
    let channel: Channel = Endpoint::from_shared(address).unwrap().connect().await.unwrap();
    let mut client = client::Grpc::new(channel);
    client.ready().await.unwrap();
    let limits = Oip::new(fixture.service.clone()).limits();
    let codec = Counting::<ModelInferRequest>::new(limits);
    let nothing = Request::new(tokio_stream::pending::<ModelInferRequest>());
    let mut asking =
        Box::pin(client.client_streaming(nothing, PathAndQuery::from_static(INFER), codec));
    tokio::select! {
        _ = &mut asking => panic!("nothing was asked"),
        () = fixture.in_flight(Api::Oip, 1) => {}
    }
    drop(asking);
    fixture.in_flight(Api::Oip, 0).await;
    assert_eq!(fixture.calls_of(Api::Oip, "cancelled"), 1);

    let (requests, outgoing) = mpsc::channel(1);
    requests.send(request(i64::from(u32::MAX))).await.unwrap();
    let mut client = fixture.client().await;
    let asked = client.model_stream_infer(ReceiverStream::new(outgoing));
    let mut stream = asked.await.unwrap().into_inner();
    stream.message().await.unwrap().unwrap();
    drop((requests, stream));
    fixture.in_flight(Api::Oip, 0).await;
    assert_eq!(fixture.calls_of(Api::Oip, "cancelled"), 2);
    assert_eq!((fixture.rejected("invalid"), fixture.rejected("internal")), (0, 0));
}
