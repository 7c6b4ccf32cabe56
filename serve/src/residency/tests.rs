use aerie_state_cache::{Config, Fault, FaultyStorage};

use super::*;
use crate::{device::fake::FakeDevice, scheduler, sessions::Decoder};

const FINGERPRINT: Fingerprint = [3; 32];

/// A device with lanes and a cache with records, and the sessions that share them.
struct Fixture {
    residency: Residency<FaultyStorage>,
    sessions: Sessions,
    device: FakeDevice,
}

/// Goal: a state that was parked and resumed is the same to the last bit, whatever its bits are.
#[test]
fn a_state_comes_back_bit_for_bit() {
    let nan_with_payload = 0x7FF8_0000_DEAD_BEEF_u64;
    for state in [0, 1, u64::MAX, nan_with_payload, 0x0123_4567_89AB_CDEF] {
        let mut it = Fixture::new(1, 4);
        it.turn(1, state, 7);
        it.turn(2, !state, 9);
        assert_eq!(it.sessions.expect(SessionId(1)).lane, None, "{state:#x} has lost its lane");
        let seat = it.seat(1).unwrap();
        assert_eq!(seat.origin, Origin::Parked);
        assert_eq!(it.state(seat.lane), state, "{state:#x}");
    }
}

#[test]
fn a_session_whose_lane_nobody_needed_is_still_there() {
    let mut it = Fixture::new(2, 4);
    it.turn(1, 11, 3);
    it.turn(2, 22, 3);
    let seat = it.seat(1).unwrap();
    assert_eq!((seat.origin, it.state(seat.lane)), (Origin::Resident, 11));
}

#[test]
fn the_lane_that_was_idle_longest_goes_first() {
    let mut it = Fixture::new(2, 4);
    for id in [1, 2, 1, 3] {
        it.turn(id, 11, 3);
    }
    let has_lane = |id| it.sessions.get(SessionId(id)).unwrap().lane.is_some();
    assert_eq!([1, 2, 3].map(has_lane), [true, false, true]);
}

#[test]
fn a_pinned_lane_is_taken_from_nobody() {
    let mut it = Fixture::new(1, 4);
    let lane = it.open(1).lane;
    it.compute(lane, 1, 11, 3);
    it.reserve(2);
    assert!(matches!(it.seat(2), Err(SeatError::NoLane)));
    // A slow reader unpins it: its state is parked for the other, though its turn goes on.
    it.residency.unpin(&mut it.sessions, SessionId(1));
    let lane = it.seat(2).unwrap().lane;
    it.compute(lane, 2, 22, 3);
    it.residency.unpin(&mut it.sessions, SessionId(2));
    let seat = it.seat(1).unwrap();
    assert_eq!((seat.origin, it.state(seat.lane)), (Origin::Parked, 11));
}

/// Goal: what a client was told of between two turns outlives the process, and nothing else does.
#[test]
fn a_killed_process_leaves_the_kept_sessions() {
    let mut it = Fixture::new(1, 4);
    it.turn(1, 11, 3);
    it.reserve(2);
    it.sessions.expect(SessionId(2)).keep = false;
    let lane = it.seat(2).unwrap().lane;
    it.compute(lane, 2, 22, 3);
    assert_eq!(it.close(2), Closed::Gone);
    let decoder = it.sessions.expect(SessionId(1)).decoder;

    let mut it = Fixture::on(it.residency.cache.storage_mut().killed(), 1, 4);
    let found: Vec<_> = it.sessions.iter().map(|(id, session)| (id, session.decoder)).collect();
    assert_eq!(found, [(SessionId(1), decoder)]);
    let seat = it.seat(1).unwrap();
    assert_eq!((seat.origin, it.state(seat.lane)), (Origin::Parked, 11));
}

#[test]
fn a_failed_step_takes_a_session_back_to_its_record() {
    let mut it = Fixture::new(1, 4);
    it.turn(1, 11, 3);
    let lane = it.open(1).lane;
    it.compute(lane, 1, 0xBAD, 5);
    let Fixture { residency, sessions, device } = &mut it;
    assert_eq!(residency.revert(sessions, device, SessionId(1)), Closed::Kept);
    assert_eq!(it.sessions.expect(SessionId(1)).decoder.position, 3);
    let seat = it.seat(1).unwrap();
    assert_eq!((seat.origin, it.state(seat.lane)), (Origin::Parked, 11));
}

#[test]
fn a_failed_step_ends_a_session_without_a_record() {
    let mut it = Fixture::new(1, 4);
    let lane = it.open(1).lane;
    it.compute(lane, 1, 0xBAD, 5);
    let Fixture { residency, sessions, device } = &mut it;
    assert_eq!(residency.revert(sessions, device, SessionId(1)), Closed::Gone);
    assert!(it.sessions.is_empty());
    assert_eq!(it.residency.n_free(), 1);
}

#[test]
fn the_least_recently_used_session_gives_its_record_to_a_new_one() {
    let mut it = Fixture::new(1, 2);
    it.turn(1, 11, 3);
    it.turn(2, 22, 3);
    assert_eq!(it.reserve(3), Some(SessionId(1)));
    assert!(it.sessions.get(SessionId(1)).is_none());
}

/// Goal: a session that cannot be parked is not lost: it keeps its lane, and others do without.
#[test]
fn a_session_that_cannot_be_parked_keeps_its_lane() {
    let mut it = Fixture::new(1, 4);
    let lane = it.open(1).lane;
    it.compute(lane, 1, 11, 3);
    it.reserve(2);
    let storage = it.residency.cache.storage_mut();
    let write = storage.n_writes();
    storage.set_fault(Some(Fault { write, torn_at: 0, is_last: true }));
    assert_eq!(it.close(1), Closed::Kept);
    assert_eq!(it.residency.park_failures(), 1);
    assert!(matches!(it.seat(2), Err(SeatError::NoLane)));

    it.residency.cache.storage_mut().set_fault(None);
    let lane = it.seat(2).unwrap().lane;
    it.compute(lane, 2, 22, 3);
    assert_eq!(it.close(2), Closed::Parked);
    let seat = it.seat(1).unwrap();
    assert_eq!((seat.origin, it.state(seat.lane)), (Origin::Parked, 11));
}

impl Fixture {
    fn new(lanes_max: u32, records_max: u32) -> Self {
        Self::on(FaultyStorage::default(), lanes_max, records_max)
    }

    fn on(storage: FaultyStorage, lanes_max: u32, records_max: u32) -> Self {
        let config = scheduler::Config { lanes_max, step_tokens_max: lanes_max + 1 };
        let device = FakeDevice::new(config);
        let record_bytes = record_bytes(device.dims().state_bytes);
        let fingerprint = aerie_state_cache::Fingerprint(FINGERPRINT);
        let config = Config { record_bytes, records_max, fingerprint };
        let cache = StateCache::open_on(storage, config).unwrap();
        let mut residency = Residency::new(cache, FINGERPRINT, device.dims());
        let sessions = residency.recover();
        Self { residency, sessions, device }
    }

    /// A whole turn of a session, kept at its end.
    fn turn(&mut self, id: u128, state: u64, position: u64) {
        let lane = self.open(id).lane;
        self.compute(lane, id, state, position);
        assert_eq!(self.close(id), Closed::Parked);
    }

    fn open(&mut self, id: u128) -> Seat {
        self.reserve(id);
        self.seat(id).unwrap()
    }

    fn reserve(&mut self, id: u128) -> Option<SessionId> {
        let id = SessionId(id);
        if self.sessions.get(id).is_none() {
            self.sessions.insert(id, Session::new(true, 0));
        }
        let Self { residency, sessions, device } = self;
        sessions.expect(id).active = true;
        sessions.expect(id).used_at = residency.seats;
        residency.reserve(sessions, device, id).unwrap()
    }

    fn seat(&mut self, id: u128) -> Result<Seat, SeatError> {
        self.residency.seat(&mut self.sessions, &mut self.device, SessionId(id))
    }

    /// What a step does to a session in its lane.
    fn compute(&mut self, lane: Lane, id: u128, state: u64, position: u64) {
        self.device.write_lane(lane, &state.to_le_bytes());
        let session = self.sessions.expect(SessionId(id));
        session.decoder = Decoder { position, pending: Some(5), ..Decoder::default() };
        session.recorded = false;
    }

    fn close(&mut self, id: u128) -> Closed {
        self.residency.close(&mut self.sessions, &mut self.device, SessionId(id))
    }

    fn state(&self, lane: Lane) -> u64 {
        let mut bytes = [0; 8];
        self.device.read_lane(lane, &mut bytes);
        u64::from_le_bytes(bytes)
    }
}
