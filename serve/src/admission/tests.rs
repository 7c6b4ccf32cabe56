use super::*;
use crate::auth::{Auth, Tokens};

const NOBODY: TenantId = TenantId::ANONYMOUS;

#[test]
fn a_dropped_permit_makes_room() {
    let admission = Admission::new(Config { requests_max: 2, retry_after_ms: 40 });
    let first = admission.admit(NOBODY).unwrap();
    let _second = admission.admit(NOBODY).unwrap();
    let refused = admission.admit(NOBODY).unwrap_err();
    assert_eq!(refused.kind(), RejectKind::QueueFull);
    assert_eq!(refused.retry_after(), Some(Duration::from_millis(40)));
    assert_eq!(admission.in_flight(), 2);

    drop(first);
    admission.admit(NOBODY).unwrap();
}

/// Goal: a tenant's generations are limited, and each may be read by whoever comes back to it.
#[test]
fn a_tenant_has_its_own_limit_beside_the_server() {
    let tenants = "[[tenants]]\nname = 'tales'\ntokens = []\ngenerations_max = 1\n\
                   [[tenants]]\nname = 'verses'\ntokens = ['TOKEN']\n";
    let auth = Auth::with(Tokens::parse(&tenants.replace("TOKEN", &"a".repeat(64))).unwrap());
    let config = Config { requests_max: 4, retry_after_ms: 40 };
    let admission = Admission::new(config).with_quotas(Quotas::new(&auth));
    let [tales, verses] = ["tales", "verses"].map(TenantId::named);
    let retry_after = Duration::from_millis(40);
    let too_many = Reject::QuotaGenerations { generations_max: 1, retry_after };

    let mut running = admission.admit(tales).unwrap();
    running.generate().unwrap();
    let mut second = admission.admit(tales).unwrap();
    assert_eq!(second.generate(), Err(too_many.clone()), "it may only read");
    assert_eq!(admission.admit(tales).unwrap_err(), too_many);
    let mut others: Vec<_> = (0..2).map(|_| admission.admit(verses).unwrap()).collect();
    assert!(others.iter_mut().all(|it| it.generate().is_ok()));
    assert_eq!(admission.admit(verses).unwrap_err().kind(), RejectKind::QueueFull);
    drop(others);

    drop(running);
    second.generate().expect("the first is over");
    drop(second);
    assert_eq!(admission.in_flight(), 0);
    let refused = too_many;
    assert_eq!(refused.retry_after(), Some(retry_after));
    assert_eq!(refused.metadata(), [("generations_max", "1".to_owned())]);
    let refused = Reject::QuotaSessions { sessions_max: 3 };
    assert_eq!((refused.retry_after(), &*refused.reason()), (None, "QUOTA_SESSIONS"));
    assert_eq!(refused.metadata(), [("sessions_max", "3".to_owned())]);
}

/// Goal: however many pictures are classified, there is room for generations, and the other way round.
#[test]
fn classifications_take_no_place_of_a_generation() {
    let admission = Admission::new(Config { requests_max: 1, retry_after_ms: 40 });
    let classification = admission.classify(NOBODY).unwrap();
    let refused = admission.classify(NOBODY).unwrap_err();
    assert!(matches!(refused, Reject::Busy { room: Room::Classifications, max: 1, .. }));
    let _generation = admission.admit(NOBODY).unwrap();
    drop(classification);
    admission.classify(NOBODY).unwrap();
    assert_eq!((admission.in_flight(), admission.classifying()), (1, 0));
}

#[test]
fn labels_are_distinct() {
    let mut labels = RejectKind::ALL.map(RejectKind::label);
    labels.sort_unstable();
    assert!(labels.is_sorted_by(|a, b| a < b), "{labels:?}");
}
