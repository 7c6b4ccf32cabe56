use std::num::NonZeroU64;

use super::{
    Config, Fingerprint, Kind, Layout, PAGE_BYTES, Place, Plane, STAMP_BYTES, SlabId, Stamp,
    StampRead,
};
use crate::{cache::Key, recovery::OpenError};

#[test]
fn places_tile_the_file_without_overlap() {
    for (record_bytes, records_max) in [(1, 1), (4096, 64), (4097, 65), (200_000, 3)] {
        let layout = Layout::new(config(record_bytes, records_max)).unwrap();
        let mut spans = vec![(0, PAGE_BYTES)];
        for plane in [Plane::A, Plane::B] {
            for slab in (0..records_max).map(SlabId) {
                let place = Place { slab, plane };
                spans.push((layout.stamp(place), STAMP_BYTES as u64));
                spans.push((layout.record(place), record_bytes));
                assert_eq!(layout.stamp(place) % STAMP_BYTES as u64, 0, "{place:?}");
                assert_eq!(layout.record(place) % PAGE_BYTES, 0, "{place:?}");
            }
        }
        spans.sort_unstable();
        for pair in spans.windows(2) {
            assert!(pair[0].0 + pair[0].1 <= pair[1].0, "{pair:?} of {layout:?}");
        }
        let (start, bytes) = spans[spans.len() - 1];
        assert_eq!((start + bytes).next_multiple_of(PAGE_BYTES), layout.file_bytes());
    }
}

#[test]
fn copies_of_one_record_share_no_page() {
    let layout = Layout::new(config(100, 1000)).unwrap();
    for slab in (0..1000).map(SlabId) {
        let a = Place { slab, plane: Plane::A };
        assert_ne!(layout.stamp(a) / PAGE_BYTES, layout.stamp(a.other()) / PAGE_BYTES);
        assert_ne!(layout.record(a) / PAGE_BYTES, layout.record(a.other()) / PAGE_BYTES);
    }
}

#[test]
fn impossible_sizes_are_refused() {
    let refused = |record_bytes, records_max| {
        Layout::new(config(record_bytes, records_max)).unwrap_err().to_string()
    };
    assert_eq!(refused(0, 1), "config field `record_bytes` is 0");
    assert_eq!(refused(1, 0), "config field `records_max` is 0");
    for (record_bytes, records_max) in [(u64::MAX, 1), (1 << 48, 1), (1 << 40, u32::MAX)] {
        let message = refused(record_bytes, records_max);
        assert!(message.contains("more than a file can hold"), "{message}");
    }
}

#[test]
fn stamps_read_as_they_were_written() {
    let record = |short| Kind::Record { checksum: 0xdead_beef, short: NonZeroU64::new(short) };
    for kind in [record(0), record(1), record((1 << 48) - 1), Kind::Tombstone { reason: 9 }] {
        let stamp = Stamp { kind, ..STAMP };
        assert_eq!(Stamp::from_bytes(&stamp.to_bytes()), StampRead::Whole(stamp));
    }
    assert_eq!(Stamp::from_bytes(&[0; STAMP_BYTES]), StampRead::Blank);
}

#[test]
fn no_flipped_bit_makes_another_stamp() {
    for bit in 0..STAMP_BYTES * 8 {
        let mut bytes = STAMP.to_bytes();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let expected = match bit / 8 {
            0..48 => StampRead::Damaged,
            // The padding at the end says nothing.
            _ => StampRead::Whole(STAMP),
        };
        assert_eq!(Stamp::from_bytes(&bytes), expected, "bit {bit}");
    }
}

#[test]
fn torn_renewal_of_the_last_use_falls_back_to_the_write() {
    for n_bytes in 0..=12 {
        let mut bytes = STAMP.to_bytes();
        let renewal = super::used_bytes(STAMP.sequence, 0x1111_1111_1111_1111);
        bytes[48..][..n_bytes].copy_from_slice(&renewal[..n_bytes]);
        let used_at = if n_bytes == 12 { 0x1111_1111_1111_1111 } else { STAMP.used_at };
        let expected = StampRead::Whole(Stamp { used_at, ..STAMP });
        assert_eq!(Stamp::from_bytes(&bytes), expected, "after {n_bytes} bytes");
    }
}

#[test]
fn every_flipped_bit_of_a_header_is_noticed() {
    let config = config(100, 10);
    config.expect(&config.to_bytes()).unwrap();
    for bit in 0..config.to_bytes().len() * 8 {
        let mut bytes = config.to_bytes();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let error = config.expect(&bytes).unwrap_err();
        let is_named = match bit / 8 {
            0..8 => matches!(error, OpenError::Magic { .. }),
            8..12 => matches!(error, OpenError::Format { .. }),
            _ => matches!(error, OpenError::Checksum { .. }),
        };
        assert!(is_named, "bit {bit}: {error}");
    }
}

const STAMP: Stamp = Stamp {
    key: Key(0x0123_4567_89ab_cdef),
    sequence: 42,
    used_at: 1_700_000_000_000,
    kind: Kind::Record { checksum: 0xdead_beef, short: NonZeroU64::new(0x1234) },
};

fn config(record_bytes: u64, records_max: u32) -> Config {
    Config { record_bytes, records_max, fingerprint: Fingerprint([7; 32]) }
}
