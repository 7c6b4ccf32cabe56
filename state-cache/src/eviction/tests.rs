use super::{Evictable, Recency};
use crate::cache::Key;

#[test]
fn least_recently_used_goes_first() {
    check(&[(30, 1, 7), (10, 2, 8), (20, 3, 9)], &[8, 9, 7]);
}

#[test]
fn of_two_used_at_the_same_time_the_one_written_first_goes() {
    check(&[(10, 5, 7), (10, 4, 8)], &[8, 7]);
}

#[test]
fn nobody_can_go_when_nobody_is_evictable() {
    check(&[], &[]);
}

/// Enters records `(used_at, sequence, key)` and evicts until nobody is left.
#[track_caller]
fn check(records: &[(u64, u64, u128)], expected: &[u128]) {
    let recency = |&(used_at, sequence, key)| Recency { used_at, sequence, key: Key(key) };
    let mut evictable = Evictable::default();
    records.iter().map(recency).for_each(|recency| evictable.insert(recency));
    let mut victims = vec![];
    while let Some(Key(victim)) = evictable.victim() {
        victims.push(victim);
        evictable.remove(records.iter().map(recency).find(|it| it.key.0 == victim).unwrap());
    }
    assert_eq!(victims, expected);
}
