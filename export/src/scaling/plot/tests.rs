use super::*;

#[test]
fn ticks_are_round_and_can_be_told_apart() {
    let check = |range: Range<f64>, expected: &[&str]| {
        let found: Vec<String> = ticks(&range, 8).iter().map(short).collect();
        assert_eq!(found, expected, "{range:?}");
    };
    check(0.68..1.1, &["0.7", "0.8", "0.9", "1", "1.1"]);
    check(0.15..2.5, &["0.2", "0.5", "1", "2"]);
    check(2e-4..3e-4, &["2e-4", "2.2e-4", "2.4e-4", "2.6e-4", "2.8e-4", "3e-4"]);
    check(3e12..4e16, &["1e13", "1e14", "1e15", "1e16"]);
    check(1e10..2e22, &["1e10", "1e12", "1e14", "1e16", "1e18", "1e20", "1e22"]);
}

#[test]
fn spans_of_one_number_have_room() {
    assert_eq!(span([].into_iter()), 1.0..10.0);
    let room = widened(span([2.0].into_iter()));
    assert!(room.start < 2.0 && 2.0 < room.end, "{room:?}");
}
