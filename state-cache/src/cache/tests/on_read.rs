//! What differs when records are verified as they are read, and not when the file is opened.

use super::{RECORD_BYTES, cache, damage, next, reopen_with, value};
use crate::{
    cache::{Key, ReadError},
    recovery::{Recovery, Verify},
};

/// Goal: a latest copy whose bytes were lost gives way to the one before, when it is read.
/// Method: lose power after the stamp of a second version reached the disk and any of its bytes did.
#[test]
fn torn_latest_copy_gives_way_when_it_is_read() {
    for n_kept in 0..RECORD_BYTES {
        let mut cache = cache(1);
        cache.write(Key(1), &[&value(1)], 10).unwrap();
        cache.flush().unwrap();
        let sequence = cache.write(Key(1), &[&value(2)], 20).unwrap().sequence;
        let kept = |n_bytes| if n_bytes == RECORD_BYTES { 0..n_kept } else { 0..n_bytes };
        let storage = cache.storage.powerless(kept);

        let mut cache = reopen_with(&storage, 1, Verify::OnRead);
        let info = cache.record(Key(1)).unwrap();
        assert_eq!((info.sequence, info.used_at), (sequence, 20), "as the stamp says");
        let record = cache.read(Key(1)).unwrap();
        assert_eq!(record.bytes, value(1), "{n_kept} bytes kept");
        assert!(record.info.rolled_back);
        assert_eq!(record.info.used_at, 10);
        assert_eq!(cache.record(Key(1)).unwrap().used_at, 10);
        cache.write(Key(1), &[&value(3)], 30).unwrap();
        assert_eq!(cache.read(Key(1)).unwrap().bytes, value(3));
    }
}

#[test]
fn record_without_a_whole_copy_is_damaged_until_it_is_removed() {
    let mut cache = cache(1);
    cache.write(Key(1), &[&value(1)], 1).unwrap();
    let latest = next(&cache, Key(1)).other();
    damage(&mut cache, latest);
    let mut cache = reopen_with(&cache.storage, 1, Verify::OnRead);
    assert_eq!(cache.recovery(), Recovery { records: 1, ..Recovery::default() });
    assert!(matches!(cache.read(Key(1)), Err(ReadError::Damaged { key: Key(1) })));
    cache.remove(Key(1)).unwrap();
    assert!(cache.is_empty());
}

/// The earlier of two records of one key is buried for good, so the later has to be whole: that much
/// is verified when the file is opened.
#[test]
fn damaged_later_record_does_not_bury_the_earlier_one() {
    let mut cache = cache(2);
    cache.write(Key(1), &[&value(1)], 1).unwrap();
    cache.flush().unwrap();
    cache.remove(Key(1)).unwrap();
    cache.write(Key(2), &[&value(2)], 2).unwrap();
    cache.write(Key(1), &[&value(3)], 3).unwrap();
    let latest = next(&cache, Key(1)).other();
    for (is_damaged, expected) in [(false, value(3)), (true, value(1))] {
        // The tombstone and key 2, two writes, are lost.
        let mut n_lost = 0;
        let mut storage = cache.storage.powerless(|n_bytes| {
            n_lost += 1;
            if n_lost <= 3 { 0..0 } else { 0..n_bytes }
        });
        if is_damaged {
            let offset = usize::try_from(cache.layout.record(latest)).unwrap();
            storage.bytes_mut()[offset] ^= 1;
        }
        let mut cache = reopen_with(&storage, 2, Verify::OnRead);
        assert_eq!(cache.read(Key(1)).unwrap().bytes, expected);
        assert_eq!(cache.len(), 1);
    }
}
