use super::*;

const RAW: RawSegments<'_> =
    RawSegments { cuts: &[0, 2, 3], lanes: &[4, 0], fresh: &[true, false] };

#[test]
fn a_sound_step_is_read() {
    let segments = read(RAW).unwrap();
    assert_eq!((segments.count(), segments.tokens(), segments.lanes_extent()), (2, 3, 5));
    assert_eq!((segments.range(0), segments.range(1)), (0..2, 2..3));
    assert_eq!((segments.lane(0), segments.lane(1)), (4, 0));
    assert_eq!((segments.fresh(0), segments.fresh(1)), (true, false));
    assert_eq!([0, 1, 2].map(|token| segments.of_token(token)), [0, 0, 1]);
}

#[test]
fn a_step_without_segments_is_sound() {
    let raw = RawSegments { cuts: &[0], lanes: &[], fresh: &[] };
    let segments = SegmentsReader::default().read(raw, 0, 5).unwrap();
    assert_eq!((segments.count(), segments.tokens()), (0, 0));
}

#[test]
fn cuts_that_do_not_hold_together_are_refused() {
    for (cuts, message) in [
        (&[][..], "segments has 0 entries; 3 are needed, one more than lanes"),
        (&[0, 3], "segments has 2 entries; 3 are needed, one more than lanes"),
        (&[1, 2, 3], "segments[0] is 1; it must be 0"),
        (&[0, 0, 3], "segment 0 is tokens 0..0; it must hold at least one"),
        (&[0, 4, 3], "segment 1 is tokens 4..3; it must hold at least one"),
        (&[0, i32::MIN, 3], "segment 0 is tokens 0..-2147483648; it must hold at least one"),
        (&[0, 1, 2], "segments end at 2, but the step has 3 tokens"),
        (&[0, 1, i32::MAX], "segments end at 2147483647, but the step has 3 tokens"),
    ] {
        refuses(RawSegments { cuts, ..RAW }, message);
    }
}

#[test]
fn lanes_that_do_not_exist_or_are_shared_are_refused() {
    for (lanes, message) in [
        (&[0, 5][..], "lanes[1] is 5; lanes are 0..5"),
        (&[-1, 0], "lanes[0] is -1; lanes are 0..5"),
        (&[3, 3], "lanes[1] is 3, which an earlier segment already has"),
    ] {
        refuses(RawSegments { lanes, ..RAW }, message);
    }
    let fresh = &[true];
    let message = "fresh has 1 entries; 2 are needed, one for each segment";
    refuses(RawSegments { fresh, ..RAW }, message);
}

#[test]
fn a_refused_step_leaves_no_trace_in_the_reader() {
    let mut reader = SegmentsReader::default();
    for lanes in [&[4, 4], &[0, 9], &[70, 0]] {
        assert!(reader.read(RawSegments { lanes, ..RAW }, 3, 5).is_err());
        assert!(reader.read(RAW, 3, 5).is_ok(), "after lanes {lanes:?}");
    }
}

#[test]
fn positions_that_cannot_be_are_refused() {
    let segments = read(RAW).unwrap();
    assert_eq!(segments.positions(&[0, POSITION_MAX - 1]).unwrap().start(1), 9007199254740991);
    for (starts, message) in [
        (&[0][..], "positions has 1 entries; 2 are needed, one for each segment"),
        (&[7, 0], "positions[0] is 7; a fresh segment begins at 0"),
        (&[0, -1], "segment 1 is at positions -1..-1+1; positions are 0..9007199254740992"),
        (
            &[0, POSITION_MAX],
            "segment 1 is at positions 9007199254740992..9007199254740992+1; positions are \
             0..9007199254740992",
        ),
    ] {
        assert_eq!(segments.positions(starts).unwrap_err().to_string(), message);
    }
}

fn read(raw: RawSegments<'_>) -> Result<Segments<'_>, SegmentsError> {
    SegmentsReader::default().read(raw, 3, 5)
}

#[track_caller]
fn refuses(raw: RawSegments<'_>, message: &str) {
    assert_eq!(read(raw).unwrap_err().to_string(), message);
}
