mod gone;
mod hostile;
mod model;
mod on_read;
mod short;

use std::mem;

use super::{
    Held, Key, LeaseError, Leased, ReadError, RemoveError, StateCache, TouchError, WriteError,
};
use crate::{
    index::Content,
    layout::{Config, Fingerprint, Place, SlabId},
    recovery::{Recovery, Verify},
    storage::faulty::{Fault, FaultyStorage},
};

const RECORD_BYTES: usize = 40;

#[test]
fn record_is_the_concatenation_of_its_parts() {
    let mut cache = cache(2);
    cache.write(Key(1), &[&[1; 10], &[], &[2; 30]], 5).unwrap();
    let record = cache.read(Key(1)).unwrap();
    assert_eq!(record.bytes, [vec![1; 10], vec![2; 30]].concat());
    assert_eq!((record.info.key, record.info.used_at), (Key(1), 5));
    assert!(!record.info.rolled_back);
}

#[test]
fn record_of_another_length_is_refused_before_anybody_is_evicted() {
    let mut cache = cache(1);
    cache.write(Key(1), &[&value(1)], 1).unwrap();
    for part in [vec![], vec![0; RECORD_BYTES - 1], vec![0; RECORD_BYTES + 1]] {
        let error = cache.write(Key(2), &[&part], 2).unwrap_err();
        let message = format!("a record of {} bytes, but `record_bytes` is 40", part.len());
        assert_eq!(error.to_string(), message);
    }
    assert_eq!(cache.read(Key(1)).unwrap().bytes, value(1));
}

#[test]
fn full_cache_evicts_the_least_recently_used() {
    let mut cache = cache(3);
    for key in 1..=3 {
        cache.write(Key(key), &[&value(1)], 10).unwrap();
    }
    cache.touch(Key(1), 11).unwrap();
    assert_eq!(cache.write(Key(4), &[&value(1)], 12).unwrap().evicted, Some(Key(2)));
    assert_eq!(cache.write(Key(5), &[&value(1)], 13).unwrap().evicted, Some(Key(3)));
    assert_eq!(cache.write(Key(6), &[&value(1)], 14).unwrap().evicted, Some(Key(1)));
    assert_eq!(cache.len(), 3);
}

#[test]
fn who_goes_next_is_known_before() {
    let mut cache = cache(2);
    assert_eq!((cache.oldest(), cache.is_full()), (None, false));
    cache.write(Key(1), &[&value(1)], 7).unwrap();
    cache.write(Key(2), &[&value(1)], 6).unwrap();
    assert!(cache.is_full());
    assert_eq!(cache.oldest().unwrap().key, Key(2));
    let lease = cache.lease(Key(2)).unwrap().lease;
    assert_eq!(cache.oldest().unwrap().key, Key(1), "a lease is a shield");
    cache.release(lease).unwrap();
    cache.remove(Key(2)).unwrap();
    assert!(!cache.is_full());
}

/// Goal: whoever goes through all in pieces sees each that is there all the while once.
#[test]
fn a_record_stays_in_its_place() {
    let mut cache = cache(5);
    for key in 1..=5 {
        cache.write(Key(key), &[&value(1)], 1).unwrap();
    }
    let (mut seen, mut place) = (Vec::new(), 0);
    loop {
        let Some((at, info)) = cache.records_from(place).next() else { break };
        seen.push(info.key.0);
        place = at + 1;
        for key in [2, 4] {
            cache.write(Key(key), &[&value(9)], 2).unwrap();
        }
        cache.remove(Key(5)).ok();
    }
    assert_eq!(seen, [1, 2, 3, 4]);
    assert_eq!(cache.records_from(6).next(), None, "there is no such place");
}

#[test]
fn leased_record_is_never_evicted() {
    let mut cache = cache(2);
    cache.write(Key(1), &[&value(1)], 1).unwrap();
    cache.write(Key(2), &[&value(2)], 2).unwrap();
    let Leased { lease, evicted } = cache.lease(Key(1)).unwrap();
    assert_eq!(evicted, None);
    assert_eq!(cache.write(Key(3), &[&value(3)], 3).unwrap().evicted, Some(Key(2)));
    assert_eq!(cache.read(Key(1)).unwrap().bytes, value(1));
    cache.release(lease).unwrap();
    assert_eq!(cache.write(Key(4), &[&value(4)], 4).unwrap().evicted, Some(Key(1)));
}

#[test]
fn key_has_one_lease_at_most() {
    let mut cache = cache(2);
    cache.write(Key(1), &[&value(1)], 1).unwrap();
    let lease = cache.lease(Key(1)).unwrap().lease;
    assert!(matches!(cache.lease(Key(1)), Err(LeaseError::Leased { key: Key(1) })));
    assert!(matches!(cache.remove(Key(1)), Err(RemoveError::Leased { key: Key(1) })));
    let error = cache.write(Key(1), &[&value(2)], 2).unwrap_err();
    assert!(matches!(error, WriteError::Lease(LeaseError::Leased { key: Key(1) })));
    assert_eq!(cache.read(Key(1)).unwrap().bytes, value(1), "reading needs no lease");
    cache.release(lease).unwrap();
    cache.lease(Key(1)).unwrap();
}

#[test]
fn stale_lease_is_an_error_and_changes_nothing() {
    let mut cache = cache(2);
    let stale = cache.lease(Key(1)).unwrap().lease;
    cache.write_leased(stale, &[&value(1)], 1).unwrap();
    cache.release(stale).unwrap();
    let message = "the lease on 00000000000000000000000000000001 is stale";
    assert_eq!(cache.release(stale).unwrap_err().to_string(), message);

    let fresh = cache.lease(Key(1)).unwrap().lease;
    let error = cache.write_leased(stale, &[&value(2)], 2).unwrap_err();
    assert_eq!(error.to_string(), message);
    assert_eq!(cache.release(stale).unwrap_err().to_string(), message);
    assert_eq!(cache.read(Key(1)).unwrap().bytes, value(1));
    cache.write_leased(fresh, &[&value(3)], 3).unwrap();
    assert_eq!(cache.read(Key(1)).unwrap().bytes, value(3));
}

#[test]
fn full_cache_with_every_record_leased_says_so() {
    let mut cache = cache(2);
    let lease = cache.lease(Key(1)).unwrap().lease;
    cache.lease(Key(2)).unwrap();
    let message = "all of `records_max` = 2 records are under a lease";
    assert_eq!(cache.lease(Key(3)).unwrap_err().to_string(), message);
    assert_eq!(cache.write(Key(3), &[&value(3)], 3).unwrap_err().to_string(), message);
    // Whoever has a lease can still write.
    cache.write_leased(lease, &[&value(1)], 1).unwrap();
    cache.release(lease).unwrap();
    assert_eq!(cache.lease(Key(3)).unwrap().evicted, Some(Key(1)));
}

#[test]
fn reserved_slab_is_no_record_and_becomes_free() {
    let mut cache = cache(1);
    let lease = cache.lease(Key(1)).unwrap().lease;
    assert!(cache.is_empty());
    assert!(matches!(cache.read(Key(1)), Err(ReadError::Absent { key: Key(1) })));
    assert!(matches!(cache.touch(Key(1), 1), Err(TouchError::Absent { key: Key(1) })));
    cache.release(lease).unwrap();
    assert!(matches!(cache.remove(Key(1)), Err(RemoveError::Absent { key: Key(1) })));
    assert_eq!(cache.write(Key(2), &[&value(2)], 2).unwrap().evicted, None);
}

#[test]
fn last_use_survives_reopening_and_decides_who_goes() {
    let mut cache = cache(2);
    cache.write(Key(1), &[&value(1)], 1).unwrap();
    cache.write(Key(2), &[&value(2)], 2).unwrap();
    cache.touch(Key(1), 3).unwrap();
    let mut cache = reopen(&cache.storage.killed(), 2);
    assert_eq!(cache.write(Key(3), &[&value(3)], 4).unwrap().evicted, Some(Key(2)));
}

#[test]
fn sequence_goes_on_after_reopening() {
    let mut cache = cache(2);
    let first = cache.write(Key(1), &[&value(1)], 1).unwrap().sequence;
    cache.remove(Key(1)).unwrap();
    let mut cache = reopen(&cache.storage.killed(), 2);
    let second = cache.write(Key(2), &[&value(2)], 2).unwrap().sequence;
    assert!(first + 1 < second, "{first}, a tombstone, {second}");
}

/// Goal: a write that is cut short costs only itself.
/// Method: overwrite, add, evict, remove and touch with the process dying at every byte of every
/// write to the storage; after reopening there is the state before or the state after.
#[test]
fn process_may_die_at_every_byte_of_every_operation() {
    type Operation = fn(&mut StateCache<FaultyStorage>) -> bool;
    let operations: [(&str, Operation); 6] = [
        ("overwrite", |cache| cache.write(Key(1), &[&[9; 10], &[9; 30]], 9).is_ok()),
        ("shorten", |cache| cache.write_short(Key(1), &[&[9; 10], &[9; 7]], 9).is_ok()),
        ("add", |cache| cache.write(Key(3), &[&[9; 10], &[9; 30]], 9).is_ok()),
        ("evict", |cache| cache.lease(Key(4)).is_ok() && cache.lease(Key(5)).is_ok()),
        ("remove", |cache| cache.remove(Key(1)).is_ok()),
        ("touch", |cache| cache.touch(Key(1), 9).is_ok()),
    ];
    let mut start = cache(3);
    for (key, used_at) in [(1, 1), (2, 2), (1, 3), (2, 4)] {
        start.write(Key(key), &[&value(used_at)], used_at.into()).unwrap();
    }
    let before = contents(&mut start);
    for (name, operation) in operations {
        let mut dry = reopen(&start.storage, 3);
        assert!(operation(&mut dry), "{name}");
        let after = contents(&mut reopen(&dry.storage.killed(), 3));
        assert_ne!(before, after, "{name} does something");
        for write in 0..dry.storage.n_writes() {
            for torn_at in 0..64 {
                let mut cache = reopen(&start.storage, 3);
                cache.storage.set_fault(Some(Fault { write, torn_at, is_last: true }));
                operation(&mut cache);
                let found = contents(&mut reopen(&cache.storage.killed(), 3));
                assert!(
                    found == before || found == after,
                    "{name}, write {write} torn at {torn_at}: {found:?}"
                );
            }
        }
    }
}

#[test]
fn failed_write_leaves_the_record_before_and_can_be_repeated() {
    for write in 0..3 {
        for torn_at in [0, 5, 64] {
            let mut cache = cache(1);
            cache.write(Key(1), &[&value(1)], 1).unwrap();
            let write = cache.storage.n_writes() + write;
            cache.storage.set_fault(Some(Fault { write, torn_at, is_last: false }));
            let error = cache.write(Key(1), &[&[2; 10], &[2; 30]], 2).unwrap_err();
            assert_eq!(error.to_string(), "scripted fault");
            assert_eq!(cache.read(Key(1)).unwrap().bytes, value(1));
            cache.write(Key(1), &[&value(3)], 3).unwrap();
            assert_eq!(contents(&mut cache), contents(&mut reopen(&cache.storage.killed(), 1)));
            assert_eq!(cache.read(Key(1)).unwrap().bytes, value(3));
        }
    }
}

/// A write that reports failure may have reached the disk in full. Were its slab simply free again,
/// the refused record would come up at the next opening, after the key was written elsewhere and
/// removed.
#[test]
fn refused_record_does_not_haunt_its_key() {
    let mut cache = cache(3);
    let write = cache.storage.n_writes() + 1;
    cache.storage.set_fault(Some(Fault { write, torn_at: 64, is_last: false }));
    cache.write(Key(1), &[&value(1)], 1).unwrap_err();
    assert!(reopen(&cache.storage.killed(), 3).is_empty());
    assert_eq!(cache.order.n_free(), 3, "its slab is free again");
}

#[test]
fn slab_that_cannot_be_buried_is_out_of_use_until_the_next_opening() {
    let mut cache = cache(2);
    let write = cache.storage.n_writes() + 1;
    cache.storage.set_fault(Some(Fault { write, torn_at: 64, is_last: true }));
    cache.write(Key(1), &[&value(1)], 1).unwrap_err();
    assert_eq!(cache.order.n_free(), 1);
    cache.storage.set_fault(None);
    let mut cache = reopen(&cache.storage.killed(), 2);
    assert_eq!(cache.read(Key(1)).unwrap().bytes, value(1), "not acknowledged, but whole");
    assert_eq!(cache.order.n_free(), 1);
}

/// Goal: damage is found, and never costs more than the latest copy.
/// Method: flip every bit of every copy, stamp and record, one at a time; read at once, and after
/// reopening.
#[test]
fn every_flipped_bit_is_noticed_at_the_next_read() {
    let mut start = cache(2);
    start.write(Key(1), &[&value(1)], 1).unwrap();
    start.write(Key(1), &[&value(2)], 2).unwrap();
    // Behind a short record, there is nothing to notice.
    start.write_short(Key(2), &[&value(3)[..9]], 3).unwrap();
    let layout = start.layout;
    let one = next(&start, Key(1));
    let two = next(&start, Key(2));
    for place in [one, one.other(), two, two.other()] {
        for (offset, n_bytes) in [(layout.stamp(place), 64), (layout.record(place), RECORD_BYTES)] {
            for bit in 0..n_bytes * 8 {
                let mut storage = start.storage.killed();
                let byte = usize::try_from(offset).unwrap() + bit / 8;
                storage.bytes_mut()[byte] ^= 1 << (bit % 8);
                let mut cache = reopen(&storage, 2);
                let record = cache.read(Key(1)).unwrap();
                if record.bytes != value(2) {
                    assert_eq!(record.bytes, value(1), "bit {bit} of {place:?}");
                    assert!(record.info.rolled_back, "bit {bit} of {place:?}");
                    assert_eq!(place, one.other(), "damage to its latest copy");
                }
                match cache.read(Key(2)) {
                    Ok(record) => {
                        assert_eq!(record.bytes, &value(3)[..9], "bit {bit} of {place:?}")
                    }
                    Err(_) => assert_eq!(place, two.other(), "the only copy of key 2"),
                }
            }
        }
    }
}

#[test]
fn damage_while_open_brings_back_the_copy_before() {
    let mut cache = cache(1);
    cache.write(Key(1), &[&value(1)], 1).unwrap();
    cache.write(Key(1), &[&value(2)], 2).unwrap();
    let latest = next(&cache, Key(1)).other();
    damage(&mut cache, latest);
    let record = cache.read(Key(1)).unwrap();
    assert_eq!(record.bytes, value(1));
    assert!(record.info.rolled_back);

    // The next write replaces the damaged copy, not the one just read.
    let write = cache.storage.n_writes();
    cache.storage.set_fault(Some(Fault { write, torn_at: 3, is_last: false }));
    cache.write(Key(1), &[&value(3)], 3).unwrap_err();
    assert_eq!(cache.read(Key(1)).unwrap().bytes, value(1));
    damage(&mut cache, latest.other());
    assert!(matches!(cache.read(Key(1)), Err(ReadError::Damaged { key: Key(1) })));
}

#[test]
fn damage_to_a_leased_record_brings_back_the_copy_before_and_keeps_the_lease() {
    let mut cache = cache(1);
    cache.write(Key(1), &[&value(1)], 1).unwrap();
    cache.write(Key(1), &[&value(2)], 2).unwrap();
    let lease = cache.lease(Key(1)).unwrap().lease;
    let latest = next(&cache, Key(1)).other();
    damage(&mut cache, latest);
    assert_eq!(cache.read(Key(1)).unwrap().bytes, value(1));
    assert!(matches!(cache.lease(Key(2)), Err(LeaseError::Full { .. })));
    cache.release(lease).unwrap();
    assert_eq!(cache.lease(Key(2)).unwrap().evicted, Some(Key(1)));
}

/// A loss of power can lose the tombstone of an evicted record and keep its successor, so that the
/// two planes of a slab hold records of two keys.
#[test]
fn damage_does_not_bring_back_a_record_of_another_key() {
    let mut cache = cache(1);
    cache.write(Key(1), &[&value(1)], 1).unwrap();
    cache.write(Key(1), &[&value(2)], 2).unwrap();
    cache.flush().unwrap();
    cache.write(Key(2), &[&value(3)], 3).unwrap();
    let mut is_tombstone = true;
    let storage = cache.storage.powerless(|n_bytes| {
        let n_lost = if mem::take(&mut is_tombstone) { n_bytes } else { 0 };
        n_lost..n_bytes
    });
    let mut cache = reopen(&storage, 1);
    assert_eq!(cache.read(Key(2)).unwrap().bytes, value(3));
    let latest = next(&cache, Key(2)).other();
    damage(&mut cache, latest);
    assert!(matches!(cache.read(Key(2)), Err(ReadError::Damaged { key: Key(2) })));

    // Without its stamp nobody knows whose it is: not the other key's, at least.
    let offset = usize::try_from(cache.layout.stamp(latest)).unwrap();
    let open = |_| {
        let mut cache = reopen(&storage, 1);
        cache.storage.bytes_mut()[offset] ^= 1;
        cache
    };
    // Each opening draws a hash, and in a table of one chain, one in sixteen confuses the two.
    let tells_apart =
        |cache: &StateCache<_>| matches!(cache.find(Key(1), Content::Record), Ok(None));
    let mut cache = (0..100).map(open).find(tells_apart).unwrap();
    assert_eq!(cache.records().count(), 0);
    assert_eq!(cache.write(Key(3), &[&value(3)], 3).unwrap().evicted, None);
}

#[test]
fn lowest_slabs_are_taken_first() {
    let mut cache = cache(100);
    for key in 0..3 {
        cache.write(Key(key.into()), &[&value(1)], 1).unwrap();
        assert_eq!(next(&cache, Key(key.into())).slab, SlabId(key));
    }
}

#[test]
fn recovery_counts_what_it_found() {
    let mut cache = cache(3);
    for (key, version) in [(1, 1), (1, 2), (2, 3)] {
        cache.write(Key(key), &[&value(version)], 1).unwrap();
    }
    for key in [1, 2] {
        let latest = next(&cache, Key(key)).other();
        damage(&mut cache, latest);
    }
    let cache = reopen(&cache.storage.killed(), 3);
    let expected = Recovery { records: 1, rolled_back: 1, lost: 1, superseded: 0 };
    assert_eq!(cache.recovery(), expected);
}

/// Goal: damage to a stamp while the file is open costs no more than the copy that it is of, and
/// nothing is ever shown under the key of somebody else.
/// Method: spoil the latest stamp, then the other, of an open cache; read, list and evict.
#[test]
fn damage_to_stamps_while_open_brings_back_the_copy_before() {
    for n_damaged in [1, 2] {
        let mut cache = cache(2);
        cache.write(Key(1), &[&value(1)], 1).unwrap();
        cache.write(Key(1), &[&value(2)], 2).unwrap();
        cache.write(Key(2), &[&value(3)], 3).unwrap();
        let latest = next(&cache, Key(1)).other();
        for place in [latest, latest.other()].into_iter().take(n_damaged) {
            let offset = usize::try_from(cache.layout.stamp(place)).unwrap();
            cache.storage.bytes_mut()[offset + 3] ^= 1;
        }
        let listed: Vec<_> = cache.records().map(|info| (info.key, info.rolled_back)).collect();
        let read = cache.read(Key(1)).map(|record| record.bytes.to_vec());
        if n_damaged == 1 {
            assert_eq!(listed, [(Key(1), true), (Key(2), false)]);
            assert_eq!(read.unwrap(), value(1));
            assert_eq!(cache.write(Key(3), &[&value(4)], 4).unwrap().evicted, Some(Key(1)));
        } else {
            assert_eq!(listed, [(Key(2), false)]);
            assert!(matches!(read, Err(ReadError::Absent { key: Key(1) })));
            assert_eq!(cache.write(Key(3), &[&value(4)], 4).unwrap().evicted, None);
        }
        assert_eq!(cache.read(Key(2)).unwrap().bytes, value(3));
        assert_eq!(cache.read(Key(3)).unwrap().bytes, value(4));
        assert_eq!(cache.len(), 2);
    }
}

#[test]
fn times_may_go_backwards() {
    let mut cache = cache(3);
    for (key, used_at) in [(1, 10), (2, 20), (3, 30)] {
        cache.write(Key(key), &[&value(1)], used_at).unwrap();
    }
    cache.touch(Key(3), 0).unwrap();
    cache.touch(Key(2), 0).unwrap();
    // Of those used at the same time, the one written first goes, whichever was touched first.
    for expected in [2, 3, 1] {
        let evicted = cache.write(Key(10 + expected), &[&value(1)], 40).unwrap().evicted;
        assert_eq!(evicted, Some(Key(expected)));
    }
}

/// Where the next write of `key`, which has a record, goes.
#[track_caller]
fn next(cache: &StateCache<FaultyStorage>, key: Key) -> Place {
    cache.index.next(cache.find(key, Content::Record).unwrap().unwrap())
}

/// Slabs that are free, have a record or are reserved.
fn n_slabs(cache: &StateCache<FaultyStorage>) -> usize {
    let is_reserved = |held: &&Held| cache.index.slab(held.slab).content != Content::Record;
    let n_reserved = cache.leases.values().filter(is_reserved).count();
    cache.order.n_free() + cache.len() + n_reserved
}

/// Flips a bit of the record at `place`.
fn damage(cache: &mut StateCache<FaultyStorage>, place: Place) {
    let offset = usize::try_from(cache.layout.record(place)).unwrap();
    cache.storage.bytes_mut()[offset + 7] ^= 1;
}

/// Everything one can see of a cache: key, last use and bytes of every record.
fn contents(cache: &mut StateCache<FaultyStorage>) -> Vec<(Key, u64, Vec<u8>)> {
    let mut keys: Vec<_> = cache.records().map(|info| (info.key, info.used_at)).collect();
    keys.sort_unstable();
    keys.into_iter()
        .map(|(key, used_at)| (key, used_at, cache.read(key).unwrap().bytes.to_vec()))
        .collect()
}

fn value(version: u8) -> [u8; RECORD_BYTES] {
    [version; RECORD_BYTES]
}

fn cache(records_max: u32) -> StateCache<FaultyStorage> {
    reopen(&FaultyStorage::default(), records_max)
}

fn reopen(storage: &FaultyStorage, records_max: u32) -> StateCache<FaultyStorage> {
    reopen_with(storage, records_max, Verify::AtOpen)
}

fn reopen_with(
    storage: &FaultyStorage,
    records_max: u32,
    verify: Verify,
) -> StateCache<FaultyStorage> {
    let fingerprint = Fingerprint([3; 32]);
    let config = Config { record_bytes: RECORD_BYTES as u64, records_max, fingerprint };
    StateCache::open_on_with(storage.killed(), config, verify).unwrap()
}
