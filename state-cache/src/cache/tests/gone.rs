//! What a cache tells of keys that it no longer has a record of.

use super::{cache, next, reopen, value};
use crate::{
    cache::{Key, StateCache},
    layout::Gone,
    storage::faulty::{Fault, FaultyStorage},
};

const EXPIRED: Gone = Gone { reason: 7, at: 70 };

#[test]
fn reason_is_told_until_the_slab_is_used_again_and_survives_reopening() {
    let mut cache = cache(2);
    cache.write(Key(1), &[&value(1)], 1).unwrap();
    assert_eq!(cache.gone(Key(1)), None, "it is there");
    cache.remove_as(Key(1), EXPIRED).unwrap();
    assert_eq!(cache.gone(Key(2)), None, "it never was");
    check(&cache, Key(1), Some(EXPIRED));

    // A lease alone uses no slab.
    let lease = cache.lease(Key(2)).unwrap().lease;
    check(&cache, Key(1), Some(EXPIRED));
    cache.write_leased(lease, &[&value(2)], 2).unwrap();
    assert_eq!(cache.gone(Key(1)), None);
}

#[test]
fn removal_without_a_reason_tells_nothing() {
    let mut cache = cache(1);
    cache.write(Key(1), &[&value(1)], 1).unwrap();
    cache.remove(Key(1)).unwrap();
    check(&cache, Key(1), None);
}

#[test]
fn record_written_anew_is_not_gone() {
    let mut cache = cache(3);
    cache.write(Key(1), &[&value(1)], 1).unwrap();
    cache.write(Key(2), &[&value(1)], 1).unwrap();
    cache.remove_as(Key(1), EXPIRED).unwrap();
    cache.remove(Key(2)).unwrap();
    // Takes the slab that was freed last, so the tombstone stays.
    cache.write(Key(1), &[&value(2)], 2).unwrap();
    check(&cache, Key(1), None);
    cache.remove_as(Key(1), Gone { reason: 8, at: 80 }).unwrap();
    check(&cache, Key(1), Some(Gone { reason: 8, at: 80 }));
}

#[test]
fn evicted_record_says_so_while_its_slab_is_but_reserved() {
    let mut cache = cache(1);
    cache.write(Key(1), &[&value(1)], 5).unwrap();
    let lease = cache.lease(Key(2)).unwrap().lease;
    check(&cache, Key(1), Some(Gone { reason: Gone::EVICTED, at: 5 }));
    cache.release(lease).unwrap();
    check(&cache, Key(1), Some(Gone { reason: Gone::EVICTED, at: 5 }));
    cache.write(Key(3), &[&value(3)], 6).unwrap();
    assert_eq!(cache.gone(Key(1)), None);
}

#[test]
fn refused_record_is_not_gone_and_takes_the_tombstone_of_its_slab() {
    let mut cache = cache(1);
    cache.write(Key(1), &[&value(1)], 1).unwrap();
    cache.remove_as(Key(1), EXPIRED).unwrap();
    let write = cache.storage.n_writes() + 1;
    cache.storage.set_fault(Some(Fault { write, torn_at: 64, is_last: false }));
    cache.write(Key(2), &[&value(2)], 2).unwrap_err();
    check(&cache, Key(2), None);
    check(&cache, Key(1), None);
}

/// A tombstone may rot as anything else: then nobody knows why.
#[test]
fn damaged_tombstone_tells_nothing() {
    let mut cache = cache(1);
    cache.write(Key(1), &[&value(1)], 1).unwrap();
    let place = next(&cache, Key(1));
    cache.remove_as(Key(1), EXPIRED).unwrap();
    let offset = usize::try_from(cache.layout.stamp(place)).unwrap();
    cache.storage.bytes_mut()[offset + 40] ^= 1;
    assert_eq!(cache.gone(Key(1)), None);
    cache.write(Key(2), &[&value(2)], 2).unwrap();
    assert_eq!(cache.read(Key(2)).unwrap().bytes, value(2));
    assert_eq!(cache.len(), 1);
}

/// What is said of `key`, now and after reopening.
#[track_caller]
fn check(cache: &StateCache<FaultyStorage>, key: Key, expected: Option<Gone>) {
    let reopened = reopen(&cache.storage, cache.layout.config().records_max);
    assert_eq!(cache.gone(key), expected);
    assert_eq!(reopened.gone(key), expected, "after reopening");
    let all: Vec<_> = reopened.all_gone().filter(|(it, _)| *it == key).collect();
    assert_eq!(all, expected.map(|gone| (key, gone)).into_iter().collect::<Vec<_>>());
}
