use std::collections::BTreeSet;

use super::Evictable;
use crate::layout::SlabId;

#[test]
fn least_recently_used_goes_first() {
    check(&[(30, 1), (10, 2), (20, 3)], &[1, 2, 0]);
}

#[test]
fn of_two_used_at_the_same_time_the_one_written_first_goes() {
    check(&[(10, 5), (10, 4)], &[1, 0]);
}

#[test]
fn nobody_can_go_when_nobody_is_evictable() {
    check(&[], &[]);
}

#[test]
fn slab_freed_last_is_taken_first() {
    let mut evictable = Evictable::new(2);
    evictable.push_free(SlabId(0));
    evictable.push_free(SlabId(1));
    assert_eq!(evictable.pop_free(), Some(SlabId(1)));
    evictable.insert(SlabId(1), &|_| 1);
    assert_eq!(evictable.pop_free(), Some(SlabId(0)));
    assert_eq!((evictable.pop_free(), evictable.n_free()), (None, 0));
}

/// Goal: the heap is the ordered set that it stands for, whichever way times go.
/// Method: change both at random, by a generator with a fixed seed, and compare the next victim.
#[test]
fn victim_is_the_least_of_an_ordered_set() {
    const SLABS: u32 = 50;
    let mut evictable = Evictable::new(SLABS);
    let mut sequences = [0_u64; SLABS as usize];
    let mut expected = BTreeSet::new();
    let mut random = 1_u64;
    for sequence in 1..20_000 {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let slab = u32::try_from((random >> 33) % u64::from(SLABS)).unwrap();
        let (i, used_at) = (slab as usize, random >> 60);
        let entry = (evictable.used_at(SlabId(slab)), sequences[i], slab);
        let was_there = expected.remove(&entry);
        if was_there && random >> 59 & 1 == 0 {
            evictable.set_used_at(SlabId(slab), used_at, &|it| sequences[it.0 as usize]);
            expected.insert((used_at, sequences[i], slab));
        } else if was_there {
            evictable.remove(SlabId(slab), &|it| sequences[it.0 as usize]);
        } else {
            sequences[i] = sequence;
            evictable.set_used_at(SlabId(slab), used_at, &|it| sequences[it.0 as usize]);
            evictable.insert(SlabId(slab), &|it| sequences[it.0 as usize]);
            expected.insert((used_at, sequence, slab));
        }
        let victim = expected.first().map(|(_, _, slab)| SlabId(*slab));
        assert_eq!(evictable.victim(), victim, "after {sequence} changes");
    }
}

/// Enters records `(used_at, sequence)` of slabs 0, 1, … and evicts until nobody is left.
#[track_caller]
fn check(records: &[(u64, u64)], expected: &[u32]) {
    let sequence = |slab: SlabId| records[slab.0 as usize].1;
    let mut evictable = Evictable::new(u32::try_from(records.len()).unwrap());
    for (slab, (used_at, _)) in (0..).map(SlabId).zip(records) {
        evictable.set_used_at(slab, *used_at, &sequence);
    }
    evictable.fill((0..).map(SlabId).take(records.len()), &sequence);
    let mut victims = vec![];
    while let Some(victim) = evictable.victim() {
        victims.push(victim.0);
        evictable.remove(victim, &sequence);
    }
    assert_eq!(victims, expected);
}
