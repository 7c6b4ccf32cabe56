//! Responses that nobody reads.

use std::num::NonZeroU32;

use super::*;
use crate::{
    admission::Wait,
    auth::{Auth, Caller, Evidence},
    oip::Config,
    service::Service,
    telemetry::metrics::Api,
    transport::{
        oip::{
            Oip,
            tests::{Listed, request},
        },
        tests::service,
    },
};

/// A stream that its client did not read was polled no more, and kept its place for ever.
#[tokio::test]
async fn who_reads_nothing_loses_its_place() {
    let config = Config { idle_ms_max: NonZeroU32::MIN, ..Config::default() };
    let service = service(Auth::default(), config, mpsc::channel(1).0);
    let caller = service.caller(Evidence::Nothing).unwrap();
    let ended = ended_unread(&service, caller, || ()).await;
    assert!(matches!(ended, Reject::Expired { wait: Wait::Reader, .. }), "{ended}");
    assert!(ended.to_string().contains("oip.idle_ms_max"), "{ended}");
    let metrics = service.metrics();
    let label = Api::Oip.label();
    assert_eq!(metrics.calls.with_label_values(&[label, "deadline_exceeded"]).get(), 1);
    assert_eq!(metrics.requests_rejected.with_label_values(&["expired"]).get(), 1);
}

/// Goal: whose token is taken out has no stream any more, be it read or not.
#[tokio::test]
async fn who_reads_nothing_has_to_be_a_tenant_still() {
    let listed = Listed::new();
    let service = service(listed.auth.clone(), Config::default(), mpsc::channel(1).0);
    let caller = listed.caller(&Oip::new(service.clone()));
    let ended = ended_unread(&service, caller, || listed.revoke()).await;
    assert!(matches!(ended, Reject::Unauthenticated { .. }), "{ended}");
}

/// How a generation without end ends, of which nothing is read; `then` comes once there is something to read.
async fn ended_unread(service: &Service, caller: Caller, then: impl FnOnce()) -> Reject {
    let oip = Oip::new(service.clone());
    let place = oip.enter(caller.who).unwrap();
    let requests = tokio_stream::iter([Ok(request(i64::from(u32::MAX)))]);
    let exchange = Exchange::new(oip.clone(), caller, requests, false);
    let mut responses = Responses::new(exchange, Call::begin(Api::Oip, service), place);
    while responses.told.is_empty() {
        yield_now().await;
    }
    then();
    while oip.setup().calls() != 0 {
        yield_now().await;
    }
    responses.next().await.unwrap().unwrap();
    let ended = responses.next().await.unwrap().unwrap_err();
    assert!(responses.next().await.is_none());
    ended
}
