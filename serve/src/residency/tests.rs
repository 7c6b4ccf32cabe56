use aerie_state_cache::{Config, Fault, FaultyStorage, Fingerprint, StateCache, TapeConfig, Tapes};

use super::*;
use crate::{
    device::fake::FakeDevice,
    scheduler,
    sessions::{Durability, Word, row},
    store::{Files, Packing, state_record_bytes},
};

/// A device with lanes and a store, and the sessions that share them.
struct Fixture {
    residency: Residency,
    store: Store<FaultyStorage>,
    sessions: Sessions,
    device: FakeDevice,
}

/// Goal: a state that was parked and resumed is the same to the last bit, whatever its bits are.
#[test]
fn a_state_comes_back_bit_for_bit() {
    let nan_with_payload = 0x7FF8_0000_DEAD_BEEF_u64;
    for state in [0, 1, u64::MAX, nan_with_payload, 0x0123_4567_89AB_CDEF] {
        let mut it = Fixture::new(1);
        it.turn(1, state);
        it.turn(2, !state);
        assert!(
            it.sessions.get(SessionId(1)).is_none(),
            "{state:#x} has lost its lane, and sleeps"
        );
        it.open_row(1);
        assert_eq!(it.seat(1).unwrap(), Origin::Parked);
        assert_eq!(it.state(1), state, "{state:#x}");
    }
}

#[test]
fn a_session_whose_lane_nobody_needed_is_still_there() {
    let mut it = Fixture::new(2);
    it.turn(1, 11);
    it.turn(2, 22);
    assert_eq!((it.seat(1).unwrap(), it.state(1)), (Origin::Resident, 11));
}

#[test]
fn the_lane_that_was_idle_longest_goes_first() {
    let mut it = Fixture::new(2);
    for id in [1, 2, 1, 3] {
        it.turn(id, 11);
    }
    let has_lane = |id| it.sessions.get(SessionId(id)).is_some_and(|it| it.seat.is_some());
    assert_eq!([1, 2, 3].map(has_lane), [true, false, true]);
}

#[test]
fn a_pinned_lane_is_taken_from_nobody() {
    let mut it = Fixture::new(1);
    it.open(1);
    it.compute(1, 11);
    it.open_row(2);
    assert!(matches!(it.seat(2), Err(SeatError::NoLane)));
    // A slow reader unpins it: its state is parked for the other, though its turn goes on.
    it.residency.unpin(&mut it.sessions, SessionId(1));
    it.seat(2).unwrap();
    it.compute(2, 22);
    it.residency.unpin(&mut it.sessions, SessionId(2));
    assert_eq!((it.seat(1).unwrap(), it.state(1)), (Origin::Parked, 11));
}

/// Goal: whoever has to draw again what was drawn already gets a state from before that.
#[test]
fn a_state_that_has_seen_too_much_is_left() {
    let mut it = Fixture::new(1);
    it.turn(1, 11);
    it.open(1);
    it.compute(1, 33);
    let computed = it.sessions.expect(SessionId(1)).seat.unwrap().computed;
    it.residency.unpin(&mut it.sessions, SessionId(1));
    let mut place =
        Place { store: &mut it.store, sessions: &mut it.sessions, device: &mut it.device };
    let origin = it.residency.seat(&mut place, SessionId(1), computed - 1).unwrap();
    assert_eq!((origin, it.state(1)), (Origin::Parked, 11));
}

/// Goal: a session that cannot be parked is not lost: it keeps its lane, and others do without.
#[test]
fn a_session_that_cannot_be_parked_keeps_its_lane() {
    let mut it = Fixture::new(1);
    it.open(1);
    it.compute(1, 11);
    it.open_row(2);
    it.residency.unpin(&mut it.sessions, SessionId(1));
    let [_, states, _] = it.store.storages_mut();
    let write = states.n_writes();
    states.set_fault(Some(Fault { write, torn_at: 0, is_last: true }));
    assert!(matches!(it.seat(2), Err(SeatError::NoLane)));
    assert_eq!(it.residency.park_failures(), 1);

    let [_, states, _] = it.store.storages_mut();
    states.set_fault(None);
    it.seat(2).unwrap();
    it.compute(2, 22);
    it.residency.unpin(&mut it.sessions, SessionId(2));
    assert_eq!((it.seat(1).unwrap(), it.state(1)), (Origin::Parked, 11));
}

impl Fixture {
    fn new(lanes_max: u32) -> Self {
        let config = scheduler::Config { lanes_max, step_tokens_max: lanes_max + 1 };
        let device = FakeDevice::new(config);
        let fingerprint = Fingerprint([3; 32]);
        let cache = |record_bytes| {
            let config = Config { record_bytes, records_max: 8, fingerprint };
            StateCache::open_on(FaultyStorage::default(), config).unwrap()
        };
        let packing = Packing::opaque(device.dims().state_bytes);
        let tape = TapeConfig { tapes_max: 8, cells_max: 64, fingerprint };
        let files = Files {
            rows: cache(row::BYTES as u64),
            states: cache(state_record_bytes(&packing)),
            packing,
            tapes: Tapes::open_on(FaultyStorage::default(), tape).unwrap(),
        };
        let (store, sessions) = Store::recover(files, Durability::Fast, 4);
        Self { residency: Residency::new(device.dims()), store, sessions, device }
    }

    /// A whole turn of a session, after which its lane is for others to take.
    fn turn(&mut self, id: u128, state: u64) {
        self.open(id);
        self.compute(id, state);
        self.residency.unpin(&mut self.sessions, SessionId(id));
        let id = SessionId(id);
        let (store, sessions) = (&mut self.store, &mut self.sessions);
        let mut place = Place { store, sessions, device: &mut self.device };
        assert!(self.residency.keep(&mut place, id).unwrap());
        self.sessions.expect(id).active = false;
        self.store.write(id, self.sessions.expect(id)).unwrap();
        self.store.release(self.sessions.expect(id));
    }

    fn open(&mut self, id: u128) {
        self.open_row(id);
        self.sessions.expect(SessionId(id)).active = true;
        self.seat(id).unwrap();
    }

    fn open_row(&mut self, id: u128) {
        let id = SessionId(id);
        if !self.store.wake(&mut self.sessions, id) {
            self.sessions.insert(id, Session::new(id, true, 0));
        }
        self.store.reserve(&mut self.sessions, id).unwrap();
        self.store.own_tape(&mut self.sessions, id).unwrap();
    }

    fn seat(&mut self, id: u128) -> Result<Origin, SeatError> {
        let (store, sessions) = (&mut self.store, &mut self.sessions);
        let mut place = Place { store, sessions, device: &mut self.device };
        self.residency.seat(&mut place, SessionId(id), u64::MAX)
    }

    /// What a step does to a session in its lane.
    fn compute(&mut self, id: u128, state: u64) {
        let id = SessionId(id);
        self.store.append(&mut self.sessions, id, [Word::drawn(1)].into_iter()).unwrap();
        let session = self.sessions.expect(id);
        let seat = session.seat.as_mut().unwrap();
        seat.computed = session.record.position;
        self.device.write_lane(seat.ticket.lane, &state.to_le_bytes());
    }

    fn state(&self, id: u128) -> u64 {
        let seat = self.sessions.get(SessionId(id)).unwrap().seat.unwrap();
        let mut bytes = [0; 8];
        self.device.read_lane(seat.ticket.lane, &mut bytes);
        u64::from_le_bytes(bytes)
    }
}
