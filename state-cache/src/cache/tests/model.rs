//! Random operations on a cache and on a map side by side, with faults and crashes in between.
//!
//! A value names its key and version and fills the rest of the record with bytes that follow from
//! the two, so that a mixture of two values, or a value under another key, is neither. Odd versions are short,
//! by as much as follows from the two as well.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, iter, mem,
    ops::Range,
};

use super::{RECORD_BYTES, n_slabs, reopen_with};
use crate::{
    cache::{Key, Lease, LeaseError, RecordInfo, StateCache, WriteError, Written},
    index::Content,
    layout::{Gone, STAMP_BYTES},
    recovery::Verify,
    storage::faulty::{Fault, FaultyStorage},
};

const SEEDS: u64 = 2_000;
const OPERATIONS: u32 = 200;
const KEYS: u64 = 8;

/// Goal: whatever fails and whenever the process is killed, each key holds its last acknowledged
/// value or, if a failure hit its write, that write's value or the one before.
/// Method: the model keeps, of each key, what a read must give now and what it may give after a
/// restart. One operation in eight meets a fault; every fault may be the last thing that happens.
#[test]
fn acknowledged_values_survive_faults_and_kills() {
    for seed in 0..SEEDS {
        let mut world = World::new(seed);
        for _ in 0..OPERATIONS {
            world.step();
        }
        world.restart();
    }
}

/// Goal: what was flushed survives a loss of power, and nothing older comes up without a mark.
/// Method: operate without faults, flush, operate on, lose power with any part of any write since
/// the flush surviving, compare each key with what it held at the flush, and go on from there.
#[test]
fn flushed_values_survive_a_loss_of_power() {
    for seed in 0..SEEDS {
        let mut world = World::new(seed);
        for _ in 0..8 {
            for _ in 0..world.random.below(20) {
                world.operate();
            }
            let flushed = world.flush();
            for _ in 0..world.random.below(12) {
                world.operate();
            }
            world.lose_power(&flushed);
        }
    }
}

/// A cache, and what it should hold.
struct World {
    seed: u64,
    random: Random,
    /// One seed in two each.
    verify: Verify,
    records_max: u32,
    cache: StateCache<FaultyStorage>,
    keys: BTreeMap<Key, Model>,
    /// Slabs lost to failures on top of failures, until the next opening.
    n_retired: usize,
    /// Number of failures before this step.
    n_failed: u64,
    /// Of the last value asked for, so that no two are alike.
    version: u64,
    now: u64,
}

/// What the world was like at a flush.
struct Flushed {
    keys: BTreeMap<Key, Model>,
    version: u64,
}

/// What one key should hold.
///
/// A version is the number of the write that asked for the value.
#[derive(Clone, Debug, Default)]
struct Model {
    /// What a read gives.
    held: Option<u64>,
    /// What a read may give after a restart.
    after: BTreeSet<Option<u64>>,
    used_at: u64,
    /// What the last use may be after a restart.
    used_after: BTreeSet<u64>,
    /// When the value was written: a torn touch falls back to it.
    written_at: u64,
    sequence: u64,
    /// What was refused, and may come up after a restart whatever happens to the key before: it
    /// could not be buried either.
    ghosts: BTreeSet<Option<u64>>,
    lease: Option<Lease>,
    /// Everything that was ever said of it when it was removed or evicted.
    goners: Vec<Gone>,
    /// Writes, evictions and removals since the last flush.
    n_writes: u32,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = Random(seed);
        let records_max = 1 + u32::try_from(random.below(6)).unwrap();
        let verify = if seed.is_multiple_of(2) { Verify::AtOpen } else { Verify::OnRead };
        let cache = reopen_with(&FaultyStorage::default(), records_max, verify);
        let held_nothing = || Model { after: [None].into(), ..Model::default() };
        let keys = (0..KEYS).map(|key| (Key(key.into()), held_nothing())).collect();
        Self {
            seed,
            random,
            verify,
            records_max,
            cache,
            keys,
            n_retired: 0,
            n_failed: 0,
            version: 0,
            now: 0,
        }
    }

    /// One operation, perhaps with a fault, perhaps followed by a restart.
    fn step(&mut self) {
        let fault = (self.random.below(8) == 0).then(|| Fault {
            write: self.cache.storage.n_writes() + self.random.below(4),
            torn_at: usize::try_from(self.random.below(70)).unwrap(),
            is_last: self.random.below(2) == 0,
        });
        self.cache.storage.set_fault(fault);
        self.n_failed = self.cache.storage.n_failed();
        self.operate();
        self.cache.storage.set_fault(None);
        let is_dead = self.has_failed() && fault.is_some_and(|fault| fault.is_last);
        if is_dead || self.random.below(40) == 0 {
            self.restart();
        }
    }

    fn operate(&mut self) {
        self.now += self.random.below(2);
        let key = Key(self.random.below(KEYS).into());
        match self.random.below(10) {
            0..4 => self.write(key),
            4 => self.lease(key),
            5 => self.release(key),
            6 => self.touch(key),
            7 => self.remove(key),
            _ => self.read(key),
        }
        self.check();
    }

    /// About now, so that times go backwards too.
    fn time(&mut self) -> u64 {
        self.now.saturating_sub(self.random.below(4))
    }

    fn write(&mut self, key: Key) {
        // Under a lease, records are as long as they can be.
        let is_short = self.keys[&key].lease.is_none() && self.random.below(2) == 0;
        self.version = (self.version / 2 + 1) * 2 + u64::from(is_short);
        let (version, now) = (self.version, self.time());
        let value = value(key, version);
        let cut = usize::try_from(self.random.below(value.len() as u64)).unwrap();
        let (head, tail) = value.split_at(cut);
        let victim = self.expected_victim(key);
        let written = match self.keys[&key].lease {
            Some(lease) => self
                .cache
                .write_leased(lease, &[head, tail], now)
                .map(|sequence| Written { sequence, evicted: None }),
            None if is_short => self.cache.write_short(key, &[head, tail], now),
            None => self.cache.write(key, &[head, tail], now),
        };
        self.settle_eviction(victim);
        match written {
            Ok(Written { sequence, evicted }) => {
                assert_eq!(evicted, victim, "{self}");
                let model = self.model(key);
                model.n_writes += 1;
                model.hold(Some(version), now, sequence);
            }
            Err(WriteError::Lease(LeaseError::Full { .. })) => {
                assert!(self.lacks_room(key) && victim.is_none(), "{self}");
            }
            // The victim could not be removed; the key itself was not touched.
            Err(WriteError::Lease(LeaseError::Io(_))) => assert!(victim.is_some(), "{self}"),
            Err(WriteError::Io(_)) => {
                assert!(self.has_failed(), "{self}");
                let is_retired = self.settle_retirement();
                let model = self.model(key);
                let is_buried = model.held.is_none() && model.lease.is_none() && !is_retired;
                if is_retired {
                    model.ghosts.insert(Some(version));
                } else if !is_buried {
                    model.after.insert(Some(version));
                }
            }
            Err(error) => panic!("{error}: {self}"),
        }
    }

    fn lease(&mut self, key: Key) {
        let victim = self.expected_victim(key);
        let leased = self.cache.lease(key);
        match leased {
            Ok(leased) => {
                assert!(self.keys[&key].lease.is_none(), "{self}");
                assert_eq!(leased.evicted, victim, "{self}");
                self.settle_eviction(victim);
                self.model(key).lease = Some(leased.lease);
            }
            Err(LeaseError::Leased { .. }) => assert!(self.keys[&key].lease.is_some(), "{self}"),
            Err(LeaseError::Full { .. }) => {
                assert!(self.lacks_room(key) && victim.is_none(), "{self}");
            }
            Err(LeaseError::Io(_)) => self.settle_eviction(victim),
        }
    }

    fn release(&mut self, key: Key) {
        let Some(lease) = self.model(key).lease.take() else { return };
        self.cache.release(lease).unwrap();
        self.cache.release(lease).unwrap_err();
        let is_retired = self.settle_retirement();
        let model = self.model(key);
        if model.held.is_none() {
            // Whatever was refused under the lease is buried now, or nobody can.
            let refused = mem::replace(&mut model.after, [None].into());
            if is_retired {
                model.ghosts.extend(refused);
            }
        }
    }

    fn touch(&mut self, key: Key) {
        let now = self.time();
        let is_touched = self.cache.touch(key, now).is_ok();
        let has_failed = self.has_failed();
        let model = self.model(key);
        assert_eq!(is_touched, model.held.is_some() && !has_failed);
        if is_touched {
            model.used_at = now;
            model.used_after = [now].into();
        } else if model.held.is_some() {
            model.used_after.extend([now, model.written_at]);
        }
    }

    fn remove(&mut self, key: Key) {
        let gone = Gone { reason: u32::try_from(self.random.below(3)).unwrap(), at: self.now };
        let is_removed = self.cache.remove_as(key, gone).is_ok();
        self.model(key).goners.push(gone);
        let has_failed = self.has_failed();
        let model = self.model(key);
        let is_removable = model.held.is_some() && model.lease.is_none();
        assert_eq!(is_removed, is_removable && !has_failed);
        if is_removed {
            model.n_writes += 1;
            model.hold(None, 0, 0);
            let said = (gone.reason != 0).then_some(gone);
            let found = self.cache.gone(key);
            assert!(found == said || said.is_none(), "{key}: {found:?}, {said:?}: {self}");
        } else if is_removable {
            model.after.insert(None);
        }
    }

    fn read(&mut self, key: Key) {
        let found = self.cache.read(key).ok().map(|record| version(key, record.bytes));
        assert_eq!(found, self.keys[&key].held, "{key}: {self}");
    }

    /// Kills the process; compares what comes up with what may.
    fn restart(&mut self) {
        self.reopen(self.cache.storage.killed());
        for key in self.keys.keys().copied().collect::<Vec<_>>() {
            let (found, info) = self.find(key);
            let model = &self.keys[&key];
            let may_be = &model.after | &model.ghosts;
            assert!(may_be.contains(&found), "{key}: {found:?}, {model:?}: {self}");
            let used_at = info.map_or(0, |info| info.used_at);
            let mut written_at = used_at;
            if found.is_some() && found == model.held {
                assert!(model.used_after.contains(&used_at), "{key}: {used_at}: {self}");
                written_at = model.written_at;
            }
            let model = self.model(key);
            model.hold(found, used_at, info.map_or(0, |info| info.sequence));
            model.written_at = written_at;
            model.ghosts.clear();
        }
    }

    fn flush(&mut self) -> Flushed {
        self.cache.flush().unwrap();
        self.keys.values_mut().for_each(|model| model.n_writes = 0);
        Flushed { keys: self.keys.clone(), version: self.version }
    }

    /// Loses power; compares what comes up with what was flushed and what was written since.
    fn lose_power(&mut self, flushed: &Flushed) {
        let random = &mut self.random;
        let storage = self.cache.storage.powerless(|n_bytes| survivor(random, n_bytes));
        self.reopen(storage);
        for key in self.keys.keys().copied().collect::<Vec<_>>() {
            let (found, info) = self.find(key);
            let before = flushed.keys[&key].held;
            let model = &self.keys[&key];
            let context = format!("{key}: {found:?}, {before:?} flushed, {model:?}: {self}");
            if before.is_some() && model.n_writes == 0 {
                assert_eq!(found, before, "{context}");
            }
            if before.is_some() && model.held.is_some() && model.n_writes == 1 {
                assert!(found == before || found == model.held, "{context}");
            }
            let is_marked = info.is_some_and(|info| info.rolled_back);
            let is_older = |version| Some(version) != before && version <= flushed.version;
            if found.is_some_and(is_older) {
                assert!(is_marked, "{context}");
            }
            let (used_at, sequence) = info.map_or((0, 0), |info| (info.used_at, info.sequence));
            self.model(key).hold(found, used_at, sequence);
        }
    }

    fn reopen(&mut self, storage: FaultyStorage) {
        self.cache = reopen_with(&storage, self.records_max, self.verify);
        self.n_retired = 0;
        self.n_failed = 0;
        self.keys.values_mut().for_each(|model| model.lease = None);
    }

    /// The version that comes up after reopening, and what is known of it without reading.
    fn find(&mut self, key: Key) -> (Option<u64>, Option<RecordInfo>) {
        let found = self.cache.read(key).ok().map(|record| version(key, record.bytes));
        let info = self.cache.record(key);
        if self.verify == Verify::OnRead && found.is_none() && info.is_some() {
            // Its only copy is damaged, as reading it has just shown.
            self.cache.remove(key).unwrap();
            return (None, None);
        }
        assert_eq!(found.is_some(), info.is_some(), "{key}: {self}");
        (found, info)
    }

    /// Compares what can be seen without reading.
    fn check(&self) {
        let n_held = self.keys.values().filter(|model| model.held.is_some()).count();
        assert_eq!(self.cache.len(), n_held, "{self}");
        assert_eq!(n_slabs(&self.cache), self.records_max as usize - self.n_retired, "{self}");
        for (key, model) in &self.keys {
            let info = self.cache.record(*key);
            assert_eq!(info.is_some(), model.held.is_some(), "{key}: {self}");
            if let Some(info) = info {
                assert_eq!(info.used_at, model.used_at, "{key}: {self}");
                assert_eq!(info.sequence, model.sequence, "{key}: {self}");
            }
            let gone = self.cache.gone(*key);
            let may_be = |gone| info.is_none() && model.goners.contains(&gone);
            assert!(gone.is_none_or(may_be), "{key}: {gone:?}, {model:?}: {self}");
        }
    }

    /// Who gives way if `key` needs a slab: the least recently used, the first written of several.
    fn expected_victim(&self, key: Key) -> Option<Key> {
        if !self.lacks_room(key) {
            return None;
        }
        let evictable = |(_, model): &(&Key, &Model)| model.held.is_some() && model.lease.is_none();
        let recency = |(_, model): &(&Key, &Model)| (model.used_at, model.sequence);
        self.keys.iter().filter(evictable).min_by_key(recency).map(|(key, _)| *key)
    }

    fn lacks_room(&self, key: Key) -> bool {
        let has_slab = self.cache.find(key, Content::Record).unwrap().is_some();
        let is_leased = self.cache.leases.contains_key(&key);
        !has_slab && !is_leased && self.cache.order.n_free() == 0
    }

    /// The victim is gone, or its tombstone has met a fault.
    fn settle_eviction(&mut self, victim: Option<Key>) {
        let Some(key) = victim else { return };
        let is_gone = self.cache.record(key).is_none();
        assert!(is_gone || self.has_failed(), "{key} was to be evicted: {self}");
        let model = self.model(key);
        model.goners.push(Gone { reason: Gone::EVICTED, at: model.used_at });
        model.n_writes += 1;
        if is_gone {
            model.hold(None, 0, 0);
        } else {
            model.after.insert(None);
        }
    }

    /// Whether a slab went out of use in this operation.
    fn settle_retirement(&mut self) -> bool {
        let n_retired = self.records_max as usize - n_slabs(&self.cache);
        let is_retired = self.n_retired < n_retired;
        assert!(!is_retired || self.has_failed(), "{self}");
        self.n_retired = n_retired;
        is_retired
    }

    fn has_failed(&self) -> bool {
        self.n_failed < self.cache.storage.n_failed()
    }

    fn model(&mut self, key: Key) -> &mut Model {
        self.keys.get_mut(&key).unwrap()
    }
}

impl Model {
    fn hold(&mut self, version: Option<u64>, used_at: u64, sequence: u64) {
        self.held = version;
        self.after = [version].into();
        (self.used_at, self.written_at, self.sequence) = (used_at, used_at, sequence);
        self.used_after = [used_at].into();
    }
}

/// What a failed assertion says.
impl fmt::Display for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "seed {}, after {} values", self.seed, self.version)
    }
}

/// SplitMix64: the tests of this crate need no better.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

/// Which bytes of a write survive: all, none, or some from either end.
///
/// A stamp lies in a sector, which the disk writes whole or not at all: there are tombstones that would
/// mend what is left of half a stamp of the same key.
fn survivor(random: &mut Random, n_bytes: usize) -> Range<usize> {
    let cut = usize::try_from(random.next()).unwrap() % (n_bytes + 1);
    match random.below(4) {
        0 => 0..n_bytes,
        1 => 0..0,
        2 | 3 if n_bytes == STAMP_BYTES => 0..n_bytes * (cut % 2),
        2 => 0..cut,
        _ => cut..n_bytes,
    }
}

/// The only bytes that are version `version` of `key`.
fn value(key: Key, version: u64) -> Vec<u8> {
    let mut random = Random(version.wrapping_mul(KEYS) + u64::try_from(key.0).unwrap());
    let n_bytes = match version % 2 {
        0 => RECORD_BYTES,
        _ => 8 + usize::try_from(random.below(RECORD_BYTES as u64 - 8)).unwrap(),
    };
    let filler = iter::repeat_with(|| random.next().to_le_bytes()).flatten();
    version.to_le_bytes().into_iter().chain(filler).take(n_bytes).collect()
}

/// The version of `key` that `bytes` are; panics if they are none.
#[track_caller]
fn version(key: Key, bytes: &[u8]) -> u64 {
    let version = u64::from_le_bytes(bytes[..8].try_into().unwrap());
    assert_eq!(bytes, value(key, version), "{key} holds garbage");
    version
}
