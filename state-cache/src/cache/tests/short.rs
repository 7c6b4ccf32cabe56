//! Records that are shorter than others.

use std::num::NonZeroU64;

use super::*;
use crate::{
    layout::{Kind, Stamp},
    storage::{MappedFile, Storage as _},
};

#[test]
fn short_record_is_read_as_it_was_written() {
    let mut cache = cache(2);
    cache.write(Key(1), &[&value(1)], 1).unwrap();
    cache.write(Key(1), &[&value(2)], 2).unwrap();
    // Over a longer one of the same slab and plane.
    cache.write_short(Key(1), &[&[3; 4], &[], &[4; 5]], 3).unwrap();
    cache.write_short(Key(2), &[&value(5)], 4).unwrap();
    let expected = vec![(Key(1), 3, vec![3, 3, 3, 3, 4, 4, 4, 4, 4]), (Key(2), 4, value(5).into())];
    assert_eq!(contents(&mut cache), expected);
    assert_eq!(contents(&mut reopen(&cache.storage.killed(), 2)), expected);

    // The copy before is as long as it was.
    let latest = next(&cache, Key(1)).other();
    damage(&mut cache, latest);
    let record = cache.read(Key(1)).unwrap();
    assert_eq!((record.bytes, record.info.rolled_back), (&value(2)[..], true));
}

#[test]
fn length_that_no_record_has_is_refused_before_anybody_is_evicted() {
    let mut cache = cache(1);
    cache.write(Key(1), &[&value(1)], 1).unwrap();
    for part in [vec![], vec![0; RECORD_BYTES + 1]] {
        let error = cache.write_short(Key(2), &[&part], 2).unwrap_err();
        let message = format!("a record of {} bytes, but 1 to 40 are expected", part.len());
        assert_eq!(error.to_string(), message);
    }
    assert_eq!(cache.read(Key(1)).unwrap().bytes, value(1));
}

#[test]
fn what_is_behind_a_short_record_stays_a_hole() {
    use std::os::unix::fs::MetadataExt;
    const LARGE: u64 = 16 << 20;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("cache");
    let config = Config { record_bytes: LARGE, records_max: 4, fingerprint: Fingerprint([3; 32]) };
    let mut cache = StateCache::<MappedFile>::open(&path, config).unwrap();
    for key in 1..=4 {
        cache.write_short(Key(key), &[&[7; 5000]], 1).unwrap();
    }
    cache.flush().unwrap();
    let on_disk = path.metadata().unwrap().blocks() * 512;
    assert!(on_disk < 4 * LARGE / 10, "{on_disk} bytes for four records of 5000");
}

/// Goal: files of before can be used on, and nobody who knows only their format is misled.
#[test]
fn file_of_the_format_before_is_used_as_it_is_and_gets_no_short_records() {
    let mut before = cache(2);
    before.write(Key(1), &[&value(1)], 1).unwrap();
    let mut storage = before.into_storage();
    let header = storage.bytes_mut();
    header[8] = 1;
    let checksum = crc32fast::hash(&header[..56]);
    header[56..60].copy_from_slice(&checksum.to_le_bytes());

    let mut cache = reopen(&storage, 2);
    cache.write(Key(2), &[&value(2)], 2).unwrap();
    assert!(matches!(cache.write_short(Key(1), &[&[9; 9]], 3), Err(WriteError::NoShort)));
    cache.write_short(Key(1), &[&value(3)], 3).unwrap();
    assert_eq!(cache.storage.read(8, 1).unwrap(), [1]);
    let expected = vec![(Key(1), 3, value(3).into()), (Key(2), 2, value(2).into())];
    assert_eq!(contents(&mut reopen(&cache.storage.killed(), 2)), expected);
}

/// Only a forged stamp can tell of more bytes than a slab has.
#[test]
fn stamp_that_tells_of_too_much_is_a_damaged_copy() {
    for n_bytes in [RECORD_BYTES as u64 + 1, 1 << 47] {
        let mut cache = cache(1);
        cache.write(Key(1), &[&value(1)], 1).unwrap();
        let place = next(&cache, Key(1)).other();
        let kind = Kind::Record { checksum: 1, short: NonZeroU64::new(n_bytes) };
        let stamp = Stamp { key: Key(1), sequence: 9, used_at: 1, kind };
        let at = usize::try_from(cache.layout.stamp(place)).unwrap();
        cache.storage.bytes_mut()[at..][..64].copy_from_slice(&stamp.to_bytes());
        assert!(matches!(cache.read(Key(1)), Err(ReadError::Damaged { .. })), "{n_bytes}");
        assert!(reopen(&cache.storage.killed(), 1).is_empty(), "{n_bytes}");
    }
}
