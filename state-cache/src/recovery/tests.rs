use std::{fs, mem};

use expect_test::{Expect, expect};
use tempfile::TempDir;

use crate::{Config, FaultyStorage, Fingerprint, Key, MappedFile, Recovery, StateCache, Storage};

#[test]
fn file_of_another_shape_or_owner_is_refused_by_the_field() {
    check(
        Config { record_bytes: 101, ..CONFIG },
        expect!["header field `record_bytes` is 100, 101 is expected"],
    );
    check(
        Config { record_bytes: 5000, ..CONFIG },
        expect!["header field `record_bytes` is 100, 5000 is expected"],
    );
    check(
        Config { records_max: 5, ..CONFIG },
        expect!["header field `records_max` is 4, 5 is expected"],
    );
    check(
        Config { fingerprint: Fingerprint([2; 32]), ..CONFIG },
        expect![
            "header field `fingerprint` is \
             0101010101010101010101010101010101010101010101010101010101010101, \
             0202020202020202020202020202020202020202020202020202020202020202 is expected"
        ],
    );
}

#[test]
fn damaged_or_foreign_header_is_refused_by_the_field() {
    check_bytes(
        |bytes| bytes[..8].copy_from_slice(b"SQLite f"),
        expect![
            "header field `magic` is [53, 51, 4c, 69, 74, 65, 20, 66], \
             [41, 65, 72, 69, 65, 52, 65, 63] is expected: another kind of file"
        ],
    );
    check_bytes(
        |bytes| bytes[8] = 3,
        expect!["header field `format` is 3; this build reads up to 2"],
    );
    check_bytes(
        |bytes| bytes[30] ^= 1,
        expect!["header field `checksum` is af56a043, but the header has 484b06d4"],
    );
}

#[test]
fn file_of_another_size_is_refused() {
    check_bytes(
        |bytes| bytes.truncate(bytes.len() - 1),
        expect!["the file has 45055 bytes, 45056 are expected"],
    );
    check_bytes(|bytes| bytes.truncate(60), expect!["the file has 60 bytes, 45056 are expected"]);
    check_bytes(|bytes| bytes.truncate(59), expect!["the file has 59 bytes, 45056 are expected"]);
    check_bytes(|bytes| bytes.push(0), expect!["the file has 45057 bytes, 45056 are expected"]);
}

#[test]
fn header_lost_from_under_records_is_not_taken_for_a_new_file() {
    check_bytes(
        |bytes| bytes[..4096].fill(0),
        expect![
            "header field `magic` is [00, 00, 00, 00, 00, 00, 00, 00], \
             [41, 65, 72, 69, 65, 52, 65, 63] is expected: another kind of file"
        ],
    );
}

#[test]
fn making_a_file_can_be_cut_short_at_every_byte() {
    let whole = StateCache::open_on(FaultyStorage::default(), CONFIG).unwrap().into_storage();
    for torn_at in 0..=60 {
        let mut storage = FaultyStorage::default();
        storage.grow(whole.size().unwrap()).unwrap();
        storage.write(0, whole.read(0, torn_at).unwrap()).unwrap();
        let cache = StateCache::open_on(storage, CONFIG)
            .unwrap_or_else(|error| panic!("torn at {torn_at}: {error}"));
        assert!(cache.is_empty());
    }
}

#[test]
fn new_file_survives_a_loss_of_power_whatever_becomes_of_its_records() {
    let mut cache = StateCache::open_on(FaultyStorage::default(), CONFIG).unwrap();
    cache.write(Key(1), &[&[1; 100]], 1).unwrap();
    cache.write(Key(2), &[&[2; 100]], 1).unwrap();
    let mut is_first = true;
    let storage = cache.into_storage().powerless(|n_bytes| {
        let n_survive = if mem::take(&mut is_first) { 0 } else { n_bytes };
        0..n_survive
    });
    let cache = StateCache::open_on(storage, CONFIG).unwrap();
    assert_eq!(cache.recovery(), Recovery { records: 1, lost: 1, ..Recovery::default() });
}

#[test]
fn refused_file_is_left_as_it_was() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("notes.txt");
    fs::write(
        &path,
        "not a state cache, but somebody's notes of a hundred bytes or so; ".repeat(2),
    )
    .unwrap();
    let before = fs::read(&path).unwrap();
    StateCache::open(&path, CONFIG).unwrap_err();
    assert_eq!(fs::read(&path).unwrap(), before);
}

#[test]
fn second_opening_is_refused_while_the_first_lasts() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("cache");
    let first = StateCache::open(&path, CONFIG).unwrap();
    let error = StateCache::open(&path, CONFIG).unwrap_err();
    assert_eq!(error.to_string(), "the file is open elsewhere");
    drop(first);
    StateCache::open(&path, CONFIG).unwrap();
}

#[test]
fn impossible_configuration_leaves_no_file() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("cache");
    StateCache::open(&path, Config { records_max: 0, ..CONFIG }).unwrap_err();
    assert!(!path.exists());
}

#[test]
fn records_come_back_from_a_file() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("cache");
    let mut cache = StateCache::<MappedFile>::open(&path, CONFIG).unwrap();
    for key in 1..=3 {
        cache.write(Key(key), &[&[u8::try_from(key).unwrap(); 100]], 10).unwrap();
    }
    cache.remove(Key(2)).unwrap();
    cache.touch(Key(1), 99).unwrap();
    drop(cache);

    let mut cache = StateCache::open(&path, CONFIG).unwrap();
    assert_eq!(cache.recovery(), Recovery { records: 2, ..Recovery::default() });
    assert_eq!(cache.read(Key(1)).unwrap().bytes, [1; 100]);
    assert_eq!(cache.read(Key(3)).unwrap().bytes, [3; 100]);
    assert_eq!(cache.record(Key(2)), None);
    assert_eq!(cache.record(Key(1)).unwrap().used_at, 99);
}

/// A loss of power can keep the new home of a record and lose the tombstone in the old one.
#[test]
fn later_of_two_records_of_one_key_wins_for_good() {
    let mut cache = StateCache::open_on(FaultyStorage::default(), CONFIG).unwrap();
    cache.write(Key(1), &[&[1; 100]], 1).unwrap();
    cache.flush().unwrap();
    cache.remove(Key(1)).unwrap();
    // Slabs are reused last in, first out: this one takes the slab of the removed record.
    cache.write(Key(2), &[&[2; 100]], 2).unwrap();
    cache.write(Key(1), &[&[3; 100]], 3).unwrap();
    // Tombstone and key 2 (two writes) are lost.
    let mut n_lost = 0;
    let storage = cache.into_storage().powerless(|n_bytes| {
        n_lost += 1;
        if n_lost <= 3 { 0..0 } else { 0..n_bytes }
    });

    let mut cache = StateCache::open_on(storage, CONFIG).unwrap();
    assert_eq!(cache.recovery(), Recovery { records: 1, superseded: 1, ..Recovery::default() });
    assert_eq!(cache.read(Key(1)).unwrap().bytes, [3; 100]);
    cache.remove(Key(1)).unwrap();
    let cache = StateCache::open_on(cache.into_storage(), CONFIG).unwrap();
    assert!(cache.is_empty(), "the earlier record is buried");
}

const CONFIG: Config =
    Config { record_bytes: 100, records_max: 4, fingerprint: Fingerprint([1; 32]) };

/// Opens a file of [`CONFIG`] as another.
#[track_caller]
fn check(config: Config, expected: Expect) {
    let storage = StateCache::open_on(FaultyStorage::default(), CONFIG).unwrap().into_storage();
    expected.assert_eq(&StateCache::open_on(storage, config).unwrap_err().to_string());
}

/// Opens a file of [`CONFIG`] with a record after changing its bytes.
#[track_caller]
fn check_bytes(change: impl FnOnce(&mut Vec<u8>), expected: Expect) {
    let mut cache = StateCache::open_on(FaultyStorage::default(), CONFIG).unwrap();
    cache.write(Key(1), &[&[1; 100]], 1).unwrap();
    change(cache.storage_mut().bytes_mut());
    let storage = cache.into_storage();
    expected.assert_eq(&StateCache::open_on(storage, CONFIG).unwrap_err().to_string());
}
