use super::{Crowd, Limits, Verdict};

const LIMITS: Limits = Limits { connections_max: 100, handshakes_max: 8 };

#[test]
fn address_is_to_be_proved_from_half_of_either_limit_on() {
    check(49, 3, false, Verdict::Accept);
    check(50, 0, false, Verdict::Retry);
    check(10, 4, false, Verdict::Retry);
    check(50, 4, true, Verdict::Accept);
}

/// Goal: whoever proves nothing takes at most half of the places for handshakes.
#[test]
fn proved_address_has_places_that_others_cannot_take() {
    check(10, 7, false, Verdict::Retry);
    check(10, 7, true, Verdict::Accept);
    check(10, 8, true, Verdict::Ignore);
    check(10, 8, false, Verdict::Retry);
}

#[test]
fn full_house_refuses_everyone() {
    check(100, 0, true, Verdict::Refuse);
    check(100, 0, false, Verdict::Refuse);
}

#[track_caller]
fn check(connections: usize, handshakes: usize, is_validated: bool, expected: Verdict) {
    let crowd = Crowd { connections, handshakes };
    assert_eq!(LIMITS.verdict(crowd, is_validated), expected, "{crowd:?}");
}
