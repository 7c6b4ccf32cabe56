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

/// What comes up in the stead of a damaged copy stays, whatever becomes of the records that had it looked at.
///
/// Found by seed 863 of `flushed_values_survive_a_loss_of_power`: a loss of power left key 4 in two slabs. In one of them
/// its copy was damaged, and behind that lay key 1, which had given way to it and so came back. As soon as key 4 was removed
/// from the other slab, nothing was doubtful about the damaged copy any more: the next opening believed its stamp, and key 1,
/// which had been read and flushed meanwhile, was gone.
#[test]
fn record_that_came_back_does_not_vanish_at_the_next_opening() {
    let mut cache = cache(2);
    cache.write(Key(1), &[&value(1)], 1).unwrap();
    cache.write(Key(4), &[&value(2)], 2).unwrap();
    cache.flush().unwrap();
    cache.remove(Key(4)).unwrap();
    cache.remove(Key(1)).unwrap();
    // The slab of the last that was removed is taken first. Its first copy is written over the tombstone's other side.
    cache.write(Key(4), &[&value(3)], 3).unwrap();
    cache.write(Key(4), &[&value(4)], 4).unwrap();
    let n_writes = cache.storage.n_writes();
    let mut n = n_writes - 6;
    let storage = cache.storage.powerless(|n_bytes| {
        n += 1;
        // Of all that, the last stamp reached the disk.
        if n == n_writes { 0..n_bytes } else { 0..0 }
    });

    let mut cache = reopen_with(&storage, 2, Verify::OnRead);
    assert_eq!(cache.read(Key(4)).unwrap().bytes, value(2));
    let record = cache.read(Key(1)).unwrap();
    assert!(record.bytes == value(1) && record.info.rolled_back);
    cache.flush().unwrap();
    cache.remove(Key(4)).unwrap();
    for storage in [cache.storage.killed(), cache.storage.powerless(|_| 0..0)] {
        let mut cache = reopen_with(&storage, 2, Verify::OnRead);
        let record = cache.read(Key(1)).unwrap();
        assert!(record.bytes == value(1) && record.info.rolled_back);
    }
}
