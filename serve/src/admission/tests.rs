use super::*;

#[test]
fn a_dropped_permit_makes_room() {
    let admission = Admission::new(Config { requests_max: 2, retry_after_ms: 40 });
    let first = admission.admit().unwrap();
    let _second = admission.admit().unwrap();
    let refused = admission.admit().unwrap_err();
    assert_eq!(refused.kind(), RejectKind::QueueFull);
    assert_eq!(refused.retry_after(), Some(Duration::from_millis(40)));
    assert_eq!(admission.in_flight(), 2);

    drop(first);
    admission.admit().unwrap();
}

#[test]
fn labels_are_distinct() {
    let mut labels = RejectKind::ALL.map(RejectKind::label);
    labels.sort_unstable();
    assert!(labels.is_sorted_by(|a, b| a < b), "{labels:?}");
}
