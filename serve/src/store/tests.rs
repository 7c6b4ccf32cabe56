use aerie_state_cache::{Fault, FaultyStorage, Fingerprint as Mark};

use super::*;
use crate::{
    pipe::FinishReason,
    sessions::{Name, Turn},
};

type Disks = [FaultyStorage; 3];

const STATE_BYTES: u64 = 8;
const MARK: Mark = Mark([5; 32]);
const A: SessionId = SessionId(0xA);
const B: SessionId = SessionId(0xB);

/// A store and its sessions.
struct Fixture {
    store: Store<FaultyStorage>,
    sessions: Sessions,
}

#[test]
fn a_fork_shares_until_one_of_the_two_writes() {
    let mut it = Fixture::new();
    it.write(A, 10);
    it.keep(A, 6);
    let tapes = it.store.free_tapes.len();
    it.store.fork(&mut it.sessions, A, 8, B);
    assert_eq!(it.store.free_tapes.len(), tapes, "no log was copied");
    assert_eq!(it.log(B), (0..8).map(word).collect::<Vec<_>>());
    assert_eq!(it.state(B, 8), Some((6, state(6))));

    it.write(A, 3);
    assert_eq!(it.store.free_tapes.len(), tapes, "what they share was not touched");
    let session = it.sessions.expect(A);
    it.store.rewind(session, 4);
    it.write(A, 1);
    assert_eq!(it.store.free_tapes.len(), tapes - 1, "the fork has its own now");
    assert_eq!(it.log(B), (0..8).map(word).collect::<Vec<_>>());
    assert_eq!(it.state(B, 8), Some((6, state(6))), "the origin has dropped it, the fork has not");
    assert_eq!(it.state(A, 4), None);

    it.store.forget(&mut it.sessions, A, Some(Gone::Deleted));
    assert_eq!(it.log(B), (0..8).map(word).collect::<Vec<_>>());
}

#[test]
fn who_forgets_the_origin_leaves_the_fork_whole() {
    let mut it = Fixture::new();
    it.write(A, 10);
    it.keep(A, 6);
    it.store.fork(&mut it.sessions, A, 10, B);
    it.row(B);
    it.store.forget(&mut it.sessions, A, Some(Gone::Deleted));
    let it = &mut it.killed();
    assert_eq!(it.log(B), (0..10).map(word).collect::<Vec<_>>());
    assert_eq!(it.state(B, 10), Some((6, state(6))));
    it.store.forget(&mut it.sessions, B, Some(Gone::Deleted));
    assert_eq!(it.store.states.len(), 0, "nobody refers to it any more");
    assert_eq!(it.store.free_tapes.len(), 8);
}

#[test]
fn a_state_that_is_lost_gives_way_to_one_before() {
    let mut it = Fixture::new();
    it.write(A, 20);
    for computed in [5, 10, 15] {
        it.keep(A, computed);
    }
    assert_eq!(it.state(A, 20), Some((15, state(15))));
    assert_eq!(it.state(A, 14), Some((10, state(10))));
    let latest = it.sessions.expect(A).record.states[2];
    it.store.states.remove(Key(latest.key.into())).unwrap();
    assert_eq!(it.state(A, 20), Some((10, state(10))));
    assert_eq!(it.sessions.expect(A).record.kept(), 10);
}

/// Goal: where there are too many states, the latest of each session are what stays.
#[test]
fn early_states_give_way_first() {
    let mut it = Fixture::new();
    for id in [A, B] {
        it.write(id, 40);
        // Eight in all, for which the file has four places.
        for computed in [10, 20, 30, 40] {
            it.keep(id, computed);
        }
    }
    for id in [A, B] {
        assert_eq!(it.state(id, 40), Some((40, state(40))), "{id}");
    }
}

#[test]
fn a_restart_finds_what_was_written_and_no_more() {
    let mut it = Fixture::new();
    it.write(A, 10);
    it.keep(A, 7);
    it.row(A);
    it.sessions.expect(A).record.turn =
        Some(Turn { digest: None, base: 3, drawn_from: 10, text_bytes: 0, end: None });
    it.row(A);
    it.write(A, 5);
    let orphan = it.store.next_state;
    it.keep(A, 14);
    it.write(B, 4);
    it.sessions.expect(B).record.keep = false;
    it.row(B);

    let mut it = it.killed();
    assert_eq!(it.store.len(), 1, "the other was not to be kept");
    assert!(it.sessions.is_empty(), "its row is up to date, so it sleeps");
    let record = it.awake(A).record.clone();
    assert_eq!(record.position, 15, "its log says more than its row");
    assert_eq!(record.turn.unwrap().end, Some(FinishReason::Interrupted));
    assert_eq!(it.state(A, 15), Some((7, state(7))), "no row told of the other");
    assert!(it.store.states.record(Key(orphan.into())).is_none(), "and it is gone");
}

/// Goal: a session never goes on from a state of another, even if that once had the same place, and a loss of power brings
/// it back where the session's own had not reached the disk.
/// Method: one is forgotten, the process ends, another comes to the same place in the next one. Keys that began again with
/// each process were the same then.
#[test]
fn a_state_that_comes_back_is_nobodys() {
    let mut it = Fixture::new();
    it.write(A, 10);
    it.keep(A, 5);
    it.row(A);
    it.store.flush().unwrap();
    it.store.forget(&mut it.sessions, A, Some(Gone::Deleted));
    it.store.flush_logs_and_rows().unwrap();
    let mut it = it.killed();
    it.write(B, 10);
    it.store.keep_state(it.sessions.expect(B), 5, &state(77)).unwrap();
    it.row(B);
    it.store.flush_logs_and_rows().unwrap();
    assert_eq!(it.state(B, 10), Some((5, state(77))));
    let mut it = Fixture::on(it.store.storages_mut().map(|disk| disk.powerless(|_| 0..0)));
    assert_eq!(it.log(B).len(), 10);
    assert_eq!(it.state(B, 10), None, "its own is lost");
}

/// Goal: in durable mode a session is there as a whole or not at all.
/// Method: one is forgotten, and another begins at once; then the power fails, which takes back that the first is gone. Had
/// the other been given its tape, it would come back without its beginning.
#[test]
fn a_session_that_comes_back_has_its_log() {
    let mut it = Fixture::new();
    it.store.durability = Durability::Durable;
    it.write(A, 10);
    it.row(A);
    it.store.commit().unwrap();
    it.store.forget(&mut it.sessions, A, Some(Gone::Evicted));
    it.write(B, 3);
    it.row(B);
    let mut it = Fixture::on(it.store.storages_mut().map(|disk| disk.powerless(|_| 0..0)));
    assert_eq!(it.log(A), (0..10).map(word).collect::<Vec<_>>());

    it.store.durability = Durability::Durable;
    it.store.forget(&mut it.sessions, A, Some(Gone::Evicted));
    for id in 1..=8 {
        it.write(SessionId(id), 1);
    }
    assert_eq!(it.store.free_tapes.len(), 0, "what it had is used once the disk knows");
}

#[test]
fn a_full_disk_leaves_a_session_where_it_stood() {
    let mut it = Fixture::new();
    it.write(A, 10);
    let write = it.store.tapes.storage_mut().n_writes();
    it.store.tapes.storage_mut().set_fault(Some(Fault { write, torn_at: 3, is_last: false }));
    let log = [Word::drawn(1)].into_iter();
    assert!(it.store.append(&mut it.sessions, A, log).is_err());
    assert_eq!(it.sessions.expect(A).record.position, 10);
    it.write(A, 2);
    assert_eq!(it.log(A), (0..12).map(word).collect::<Vec<_>>());
}

#[test]
fn the_least_recently_used_session_gives_its_row_to_a_new_one() {
    let mut it = Fixture::new();
    for id in 1..=8 {
        it.write(SessionId(id), 1);
        it.sessions.expect(SessionId(id)).used_at = u64::try_from(100 - id).unwrap();
        it.row(SessionId(id));
        let session = it.sessions.expect(SessionId(id));
        it.store.release(session);
        it.store.sleep(&mut it.sessions, SessionId(id));
    }
    assert!(it.sessions.is_empty());
    it.sessions.insert(A, Session::new(A, true, 200));
    it.store.reserve(&mut it.sessions, A).unwrap();
    let evicted: Vec<_> = it.store.take_evicted().into_iter().map(|(id, _)| id).collect();
    assert_eq!(evicted, [SessionId(8)]);
    assert!(!it.store.wake(&mut it.sessions, SessionId(8)));
}

/// Goal: a session that sleeps is nothing but its row, and wakes as it was.
#[test]
fn who_wakes_is_who_went_to_sleep() {
    let mut it = Fixture::new();
    it.write(A, 10);
    it.keep(A, 6);
    it.row(A);
    it.store.fork(&mut it.sessions, A, 8, B);
    it.row(B);
    let records = [A, B].map(|id| it.awake(id).record.clone());
    it.store.sleep(&mut it.sessions, A);
    assert!(it.sessions.get(A).is_some(), "it has a lease");
    for id in [A, B] {
        it.store.release(it.sessions.expect(id));
        it.store.sleep(&mut it.sessions, id);
    }
    assert!(it.sessions.is_empty());
    for (id, record) in [A, B].into_iter().zip(records) {
        assert_eq!(it.awake(id).record, record);
    }
    assert_eq!(it.log(B), (0..8).map(word).collect::<Vec<_>>(), "it knows whose log it shares");
    assert!(!it.store.wake(&mut it.sessions, SessionId(3)), "nobody");

    // What memory knows better is written down first.
    it.sessions.expect(A).record.seed = 99;
    it.store.sleep(&mut it.sessions, A);
    assert_eq!(it.awake(A).record.seed, 99);
}

#[test]
fn who_has_a_name_stays() {
    let mut it = Fixture::new();
    for id in 1..=8 {
        it.write(SessionId(id), 1);
        if id <= 2 {
            it.awake(SessionId(id)).record.name = Some(Name::parse(&format!("n{id}")).unwrap());
        }
        it.row(SessionId(id));
        it.store.release(it.sessions.expect(SessionId(id)));
    }
    let mut it = it.killed();
    assert_eq!(it.sessions.len(), 2, "who has a name is awake");
    it.sessions.insert(A, Session::new(A, true, 200));
    it.store.reserve(&mut it.sessions, A).unwrap();
    let evicted: Vec<_> = it.store.take_evicted().into_iter().map(|(id, _)| id).collect();
    assert_eq!(evicted, [SessionId(3)]);
}

/// Goal: who gave way is told, also if nothing came of that for which it did.
#[test]
fn an_eviction_in_vain_is_told() {
    let mut it = Fixture::new();
    for id in 1..=8 {
        it.write(SessionId(id), 1);
        it.row(SessionId(id));
        it.store.release(it.sessions.expect(SessionId(id)));
    }
    let parcel = it.store.pack(&mut it.sessions, SessionId(8)).unwrap();
    let write = it.store.tapes.storage_mut().n_writes() + 1;
    it.store.tapes.storage_mut().set_fault(Some(Fault { write, torn_at: 0, is_last: false }));
    assert!(it.store.unpack(&mut it.sessions, A, &parcel).is_err());
    let evicted: Vec<_> = it.store.take_evicted().into_iter().map(|(id, _)| id).collect();
    assert_eq!(evicted, [SessionId(1)]);
    assert!(!it.store.has(A) && it.store.len() == 7);
}

/// Goal: why a session has gone is told after a restart too.
#[test]
fn it_is_remembered_why_a_session_has_gone() {
    let tenant = TenantId::named("tales");
    let mut it = Fixture::new();
    for (id, why) in (1..).map(SessionId).zip(Gone::ALL) {
        it.write(id, 1);
        it.awake(id).record.tenant = tenant;
        it.row(id);
        it.store.forget(&mut it.sessions, id, Some(why));
        let gone: Vec<_> = it.killed().store.gone().collect();
        assert_eq!(gone, [(id, tenant.mark(), why)], "its slab is used again by the next");
    }
}

#[test]
fn a_parcel_is_the_session() {
    let mut it = Fixture::new();
    it.write(A, 50);
    it.keep(A, 45);
    it.keep(A, 48);
    let parcel = it.store.pack(&mut it.sessions, A).unwrap();
    assert_eq!((parcel.log_from, parcel.log.len()), (18, 32), "the tape has no more");
    let mut other = Fixture::new();
    other.store.unpack(&mut other.sessions, A, &parcel).unwrap();
    assert_eq!(other.store.pack(&mut other.sessions, A).unwrap(), parcel);
    assert_eq!(other.state(A, 50), Some((48, state(48))));
    assert_eq!(other.store.position_min(other.sessions.expect(A)), 48);
}

impl Fixture {
    fn new() -> Self {
        Self::on([(); 3].map(|()| FaultyStorage::default()))
    }

    fn on([rows, states, tapes]: Disks) -> Self {
        let cache = |storage, record_bytes, records_max| {
            let config = CacheConfig { record_bytes, records_max, fingerprint: MARK };
            StateCache::open_on(storage, config).unwrap()
        };
        let packing = Packing::opaque(STATE_BYTES);
        let tape = TapeConfig { tapes_max: 8, cells_max: 32, fingerprint: MARK };
        let files = Files {
            rows: cache(rows, row::BYTES as u64, 8),
            states: cache(states, state_record_bytes(&packing), 4),
            packing,
            tapes: Tapes::open_on(tapes, tape).unwrap(),
        };
        let (store, sessions) = Store::recover(files, Durability::Fast, 4);
        Self { store, sessions }
    }

    /// What a new process finds.
    fn killed(&mut self) -> Self {
        Self::on(self.store.storages_mut().map(|disk| disk.killed()))
    }

    /// Appends `n` words to a session, which is made if need be.
    fn write(&mut self, id: SessionId, n: u64) {
        if !self.store.wake(&mut self.sessions, id) {
            self.sessions.insert(id, Session::new(id, true, 1));
        }
        self.store.reserve(&mut self.sessions, id).unwrap();
        self.store.own_tape(&mut self.sessions, id).unwrap();
        let from = self.sessions.expect(id).record.position;
        let log: Vec<Word> = (from..from + n).map(word).collect();
        self.store.append(&mut self.sessions, id, log.into_iter()).unwrap();
    }

    fn keep(&mut self, id: SessionId, computed: u64) {
        let session = self.sessions.expect(id);
        self.store.keep_state(session, computed, &state(computed)).unwrap();
    }

    fn row(&mut self, id: SessionId) {
        self.store.reserve(&mut self.sessions, id).unwrap();
        self.store.write(id, self.sessions.expect(id)).unwrap();
    }

    fn awake(&mut self, id: SessionId) -> &mut Session {
        assert!(self.store.wake(&mut self.sessions, id), "{id}");
        self.sessions.expect(id)
    }

    fn log(&mut self, id: SessionId) -> Vec<Word> {
        let position = self.awake(id).record.position;
        let mut log = Vec::new();
        self.store.log(&self.sessions, id, 0..position, &mut log).unwrap();
        log
    }

    fn state(&mut self, id: SessionId, max: u64) -> Option<(u64, Vec<u8>)> {
        let mut bytes = Vec::new();
        self.awake(id);
        let session = self.sessions.expect(id);
        let found = self.store.find_state(session, max, |_, it| bytes = it.to_vec()).unwrap()?;
        Some((found, bytes))
    }
}

fn word(at: u64) -> Word {
    Word::drawn(u32::try_from(at).unwrap() + 100)
}

fn state(computed: u64) -> Vec<u8> {
    (computed * 3).to_le_bytes().to_vec()
}
