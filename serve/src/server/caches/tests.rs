use aerie_state_cache::Key;

use super::*;

const RECORD_BYTES: usize = 300;

/// Goal: whoever takes a device out of the configuration loses no session.
#[test]
fn sessions_of_a_device_that_is_gone_move_in_with_the_others() {
    let dir = tempfile::tempdir().unwrap();
    let owner = owner(dir.path(), 8);
    let mut caches = open_all(&owner, &devices(&["cpu:0", "cpu:1", "cpu:2"])).unwrap();
    for (i, cache) in (0_u32..).zip(&mut caches) {
        write(cache, i.into(), i.into());
        write(cache, (10 + i).into(), i.into());
    }
    drop(caches);

    let mut caches = open_all(&owner, &devices(&["cpu:0", "cpu:2"])).unwrap();
    let mut found = Vec::new();
    for cache in &mut caches {
        let infos: Vec<_> = cache.records().collect();
        assert_eq!(infos.len(), 3, "they are shared out");
        for info in infos {
            assert_eq!(cache.read(info.key).unwrap().bytes, record(info.key.0), "{}", info.key);
            found.push((info.key.0, info.used_at));
        }
    }
    found.sort_unstable();
    assert_eq!(found, [(0, 0), (1, 1), (2, 2), (10, 0), (11, 1), (12, 2)]);
    assert_eq!(files(dir.path()), ["cpu-0-0.sessions", "cpu-2-2.sessions"]);
}

#[test]
fn sessions_that_find_no_room_wait_in_their_file() {
    let dir = tempfile::tempdir().unwrap();
    let owner = owner(dir.path(), 2);
    let both = devices(&["cpu:0", "cpu:1"]);
    let mut caches = open_all(&owner, &both).unwrap();
    for (cache, keys) in caches.iter_mut().zip([&[1][..], &[2, 3]]) {
        keys.iter().for_each(|&key| write(cache, key, 0));
    }
    drop(caches);

    let caches = open_all(&owner, &both[..1]).unwrap();
    assert_eq!(caches[0].len(), 2, "nobody is evicted");
    drop(caches);
    let caches = open_all(&owner, &both).unwrap();
    let mut keys: Vec<_> =
        caches.iter().flat_map(StateCache::records).map(|info| info.key.0).collect();
    keys.sort_unstable();
    keys.dedup();
    assert_eq!(keys, [1, 2, 3]);
}

#[test]
fn files_that_are_not_ours_are_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("notes.txt"), "mine").unwrap();
    open_all(&owner(dir.path(), 2), &devices(&["cpu"])).unwrap();
    assert_eq!(files(dir.path()), ["cpu.sessions", "notes.txt"]);
}

#[test]
fn sessions_of_another_model_are_refused_by_field() {
    let dir = tempfile::tempdir().unwrap();
    let mut owner = owner(dir.path(), 2);
    open_all(&owner, &devices(&["cpu"])).unwrap();
    owner.config.fingerprint = Fingerprint([9; 32]);
    let error = open_all(&owner, &devices(&["cpu"])).unwrap_err().to_string();
    assert!(error.contains("cpu.sessions") && error.contains("fingerprint"), "{error}");
}

fn owner(dir: &Path, records_max: u32) -> Owner {
    let fingerprint = Fingerprint([7; 32]);
    let config = Config { record_bytes: RECORD_BYTES as u64, records_max, fingerprint };
    Owner { dir: dir.to_owned(), config }
}

fn devices(names: &[&str]) -> Vec<DeviceSpec> {
    names.iter().map(|name| name.parse().unwrap()).collect()
}

fn write(cache: &mut StateCache, key: u128, used_at: u64) {
    cache.write(Key(key), &[&record(key)], used_at).unwrap();
}

fn record(key: u128) -> Vec<u8> {
    key.to_le_bytes().into_iter().cycle().take(RECORD_BYTES).collect()
}

fn files(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}
