use aerie_models::{BlockCarry, Carry, Dtype, TensorSpec};

use super::*;
use crate::{
    auth::TenantId,
    sessions::{Record, Session, SessionId, Windows, Word},
    store::{Parcel, ROWS},
};

const STATE_BYTES: usize = 300;

/// Goal: whoever takes a device out of the configuration loses no session.
#[test]
fn sessions_of_a_device_that_is_gone_move_in_with_the_others() {
    let dir = tempfile::tempdir().unwrap();
    let owner = owner(dir.path(), 8);
    let mut stores = open_all(&owner, &devices(&["cpu:0", "cpu:1", "cpu:2"])).unwrap();
    for (i, store) in (0_u32..).zip(&mut stores) {
        put(store, i.into());
        put(store, (10 + i).into());
    }
    drop(stores);

    let mut stores = open_all(&owner, &devices(&["cpu:0", "cpu:2"])).unwrap();
    let mut found = Vec::new();
    for (store, sessions) in &mut stores {
        assert_eq!(store.len(), 3, "they are shared out");
        let ids: Vec<SessionId> = store.ids().collect();
        for id in ids {
            assert!(store.wake(sessions, id), "{id}");
            assert_eq!(store.pack(sessions, id).unwrap(), parcel(id.0), "{id}");
            found.push(id.0);
        }
    }
    found.sort_unstable();
    assert_eq!(found, [0, 1, 2, 10, 11, 12]);
    assert_eq!(devices_on_disk(dir.path()).unwrap().len(), 2, "the files of the third are gone");
}

/// A device that went took its sessions from their tenants: what was moved was nobody's.
#[test]
fn who_moves_stays_its_tenants_own() {
    let dir = tempfile::tempdir().unwrap();
    let owner = owner(dir.path(), 8);
    let tenant = TenantId::named("tales");
    let mut stores = open_all(&owner, &devices(&["cpu:0", "cpu:1"])).unwrap();
    let (store, sessions) = &mut stores[1];
    let mut parcel = parcel(1);
    parcel.record.tenant = tenant;
    store.unpack(sessions, SessionId(1), &parcel).unwrap();
    drop(stores);

    let mut stores = open_all(&owner, &devices(&["cpu:0"])).unwrap();
    let (store, sessions) = &mut stores[0];
    assert!(store.wake(sessions, SessionId(1)));
    assert_eq!(sessions.expect(SessionId(1)).record.tenant, tenant);
    assert_eq!(store.take_tenants(), [(tenant, 1)].into(), "and counts for it");
}

#[test]
fn sessions_that_find_no_room_wait_in_their_files() {
    let dir = tempfile::tempdir().unwrap();
    let owner = owner(dir.path(), 2);
    let both = devices(&["cpu:0", "cpu:1"]);
    let mut stores = open_all(&owner, &both).unwrap();
    for (store, ids) in stores.iter_mut().zip([&[1][..], &[2, 3]]) {
        ids.iter().for_each(|&id| put(store, id));
    }
    drop(stores);

    let stores = open_all(&owner, &both[..1]).unwrap();
    assert_eq!(stores[0].0.len(), 2, "nobody is evicted");
    drop(stores);
    let stores = open_all(&owner, &both).unwrap();
    let mut ids: Vec<_> = stores.iter().flat_map(|(store, _)| store.ids()).map(|id| id.0).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids, [1, 2, 3]);
}

#[test]
fn files_that_are_not_ours_are_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("notes.txt"), "mine").unwrap();
    open_all(&owner(dir.path(), 2), &devices(&["cpu"])).unwrap();
    let mut names: Vec<_> = fs::read_dir(dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["cpu.logs", "cpu.rows", "cpu.states", "notes.txt"]);
}

#[test]
fn sessions_of_another_model_are_refused_by_field() {
    let dir = tempfile::tempdir().unwrap();
    let mut owner = owner(dir.path(), 2);
    open_all(&owner, &devices(&["cpu"])).unwrap();
    owner.sizes.fingerprint = [9; 32];
    let error = open_all(&owner, &devices(&["cpu"])).unwrap_err().to_string();
    assert!(error.contains(&format!("cpu.{ROWS}")) && error.contains("fingerprint"), "{error}");
}

/// Goal: states of one packing are never read as those of another, and whoever changes it loses no session.
/// Method: a session, then the files opened under other packings and sizes of the same model, forth and back.
#[test]
fn states_of_another_packing_or_size_are_forgotten_and_sessions_stay() {
    let dir = tempfile::tempdir().unwrap();
    let mut owner = owner(dir.path(), 2);
    let spec =
        |width| TensorSpec { path: String::new(), dtype: Dtype::F32, shape: vec![25, width] };
    let layout = Carry { blocks: vec![BlockCarry::Attention { keys: spec(2), values: spec(1) }] };
    assert_eq!(layout.bytes(), STATE_BYTES as u64);
    let packings = [Windows::Exact, Windows::Q8].map(|it| Packing::new(&layout, it));
    let find = |opened: &mut [Open]| {
        let (store, sessions) = &mut opened[0];
        assert!(store.wake(sessions, SessionId(1)));
        store.find_state(sessions.expect(SessionId(1)), 100, |_, _| ()).unwrap()
    };
    owner.sizes.packing = packings[0].clone();
    put(&mut open_all(&owner, &devices(&["cpu"])).unwrap()[0], 1);
    assert_eq!(find(&mut open_all(&owner, &devices(&["cpu"])).unwrap()), Some(5), "as it was");

    for (packing, states) in [(1, 16), (0, 16), (0, 12), (1, 12)] {
        owner.sizes.packing = packings[packing].clone();
        owner.sizes.states = states;
        let mut opened = open_all(&owner, &devices(&["cpu"])).unwrap();
        assert_eq!(find(&mut opened), None, "{packing}, {states}");
        let (store, sessions) = &mut opened[0];
        store.keep_state(sessions.expect(SessionId(1)), 6, &parcel(1).state.unwrap().1).unwrap();
        assert_eq!(find(&mut opened), Some(6), "{packing}, {states}");
    }
}

fn owner(dir: &Path, sessions_max: u32) -> Owner {
    let sizes = Sizes {
        sessions: sessions_max,
        states: 16,
        log_tokens: 64,
        packing: Packing::opaque(STATE_BYTES as u64),
        fingerprint: [7; 32],
    };
    let config = sessions::Config { sessions_max, ..sessions::Config::default() };
    Owner { dir: dir.to_owned(), sizes, config }
}

fn devices(names: &[&str]) -> Vec<DeviceSpec> {
    names.iter().map(|name| name.parse().unwrap()).collect()
}

fn put((store, sessions): &mut Open, id: u128) {
    store.unpack(sessions, SessionId(id), &parcel(id)).unwrap();
    assert!(store.take_evicted().is_empty());
}

/// A session that nothing else is like.
fn parcel(id: u128) -> Parcel {
    let position = 5 + u64::try_from(id).unwrap();
    let record = Record { keep: true, position, seed: position, ..Record::default() };
    let log = (0..position).map(|at| Word::drawn(u32::try_from(100 * position + at).unwrap()));
    let state = id.to_le_bytes().into_iter().cycle().take(STATE_BYTES).collect();
    Parcel {
        used_at: Session::parked(record.clone(), position).used_at,
        record,
        state: Some((position - 1, state)),
        log_from: 0,
        log: log.collect(),
    }
}
