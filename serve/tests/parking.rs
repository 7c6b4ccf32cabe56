//! Sessions of the bundled model that are parked, each by the server's own device, store and file.

#![expect(clippy::unwrap_used, reason = "all of it is a test")]

use std::{
    path::Path,
    sync::{Arc, OnceLock},
};

use aerie_models::Manifest;
use aerie_serve::{
    device::{Batch, Device as _, DeviceSpec, Lane, files::BundleFiles, ort as onnx},
    scheduler,
    sessions::{Durability, Session, SessionId, Sessions, Windows},
    store::{Files, Packing, Sizes, Store},
};
use aerie_state_cache::MappedFile;
use tempfile::TempDir;

/// Its window is full after 256 tokens and its ring after 257, so this is once round and more.
const TOKENS: u64 = 600;
/// In which the session stays, and in which it goes on after it was parked.
const STAYS: Lane = Lane(0);
const PARKED: Lane = Lane(1);

/// A device, and a store with one session.
struct Fixture {
    device: onnx::OrtDevice,
    store: Store<MappedFile>,
    session: Session,
    batch: Batch,
    _folder: TempDir,
}

/// Goal: whether and when a session was parked cannot be told from what it says.
/// Method: a session stays in its lane. At every position it is parked as well, and resumed in another lane, which was full
/// of what is not a number, and is still where the state is void; both take the next token, and bits are compared, of logits
/// and of the state as far as it is not void.
#[test]
fn a_session_parked_anywhere_goes_on_bit_for_bit() {
    let mut it = Fixture::new(Windows::Exact);
    it.step(0, &[STAYS]);
    for position in 1..TOKENS {
        it.park(position);
        let [stays, parked] = it.step(position, &[STAYS, PARKED]).try_into().unwrap();
        assert!(bits(&stays) == bits(&parked), "logits, parked at {position}");
        let state = it.seen(position + 1, STAYS);
        assert!(state == it.seen(position + 1, PARKED), "state, parked at {position}");
    }
}

/// Goal: rounded windows are no others than those that were parked: what a session says next is near to what it would
/// have said.
/// Method: as above, now and then; distributions are compared. The bound is ten times what was seen, which a
/// mistake would be far beyond.
#[test]
fn a_session_with_rounded_windows_goes_on_near_to_where_it_was() {
    let mut it = Fixture::new(Windows::Q8);
    it.step(0, &[STAYS]);
    for position in 1..TOKENS {
        if !position.is_multiple_of(13) {
            it.step(position, &[STAYS]);
            continue;
        }
        it.park(position);
        let [stays, parked] = it.step(position, &[STAYS, PARKED]).try_into().unwrap();
        let divergence = divergence(&stays, &parked);
        assert!(divergence < DIVERGENCE_MAX, "{divergence} nats, parked at {position}");
        let state = it.seen(position + 1, STAYS);
        assert!(state != it.seen(position + 1, PARKED), "nothing was rounded at {position}");
    }
}

/// Ten times 1.3e-5.
const DIVERGENCE_MAX: f64 = 1.3e-4;

impl Fixture {
    fn new(windows: Windows) -> Self {
        let bundle = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/bundles/tales");
        let version = |op: &str| aerie_ops::schema::schema(op).map(|schema| schema.version);
        let manifest: Manifest = Manifest::read(&bundle, version).unwrap();
        assert_eq!(manifest.model.window, 256);
        let files = Arc::new(BundleFiles::open(&bundle, &manifest).unwrap());
        let config = scheduler::Config { lanes_max: 2, step_tokens_max: 4 };
        // One for the whole process, or two tests would bring the operators at once.
        static RUNTIME: OnceLock<onnx::Runtime> = OnceLock::new();
        let runtime = RUNTIME.get_or_init(|| onnx::Runtime::load().unwrap());
        let spec = DeviceSpec { cores: Some((0, 0)) };
        let device = onnx::OrtDevice::load(runtime, &files, &manifest, &spec, config).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let sizes = Sizes {
            sessions: 1,
            states: 3,
            log_tokens: 16,
            packing: Packing::new(&manifest.layout(), windows),
            fingerprint: manifest.fingerprint(),
        };
        let files = Files::open(&folder.path().join("cpu"), &sizes).unwrap();
        let (store, _): (_, Sessions) = Store::recover(files, Durability::Fast, 2);
        let session = Session::new(SessionId(1), true, 1);
        Self { device, store, session, batch: Batch::with_capacity(4, 2), _folder: folder }
    }

    /// Parks the session that stays, and resumes it in the other lane.
    fn park(&mut self, position: u64) {
        let Self { device, store, session, .. } = self;
        let mut state = vec![0xFF; store.packing().state_bytes()];
        device.write_lane(PARKED, &state);
        for seen in store.packing().seen(position) {
            device.read_part(STAYS, seen.start, &mut state[seen]);
        }
        session.record.position = position;
        store.keep_state(session, position, &state).unwrap();
        let show = |at: usize, part: &[u8]| device.write_part(PARKED, at, part);
        assert_eq!(store.find_state(session, position, show).unwrap(), Some(position));
    }

    /// Feeds the token at `position` to sessions; returns the logits of each.
    fn step(&mut self, position: u64, lanes: &[Lane]) -> Vec<Vec<f32>> {
        let vocab = self.device.dims().vocab;
        let token = u32::try_from(position * 7919 % u64::from(vocab)).unwrap();
        self.batch.clear();
        for &lane in lanes {
            self.batch.push(lane, position, [token].into_iter());
        }
        let logits = self.device.step(&self.batch).unwrap();
        logits.chunks(vocab as usize).map(<[f32]>::to_vec).collect()
    }

    /// What is not void of a state that has seen `tokens`.
    fn seen(&self, tokens: u64, lane: Lane) -> Vec<u8> {
        let mut state = vec![0; self.store.packing().state_bytes()];
        self.device.read_lane(lane, &mut state);
        self.store.packing().seen(tokens).flat_map(|it| state[it].to_vec()).collect()
    }
}

fn bits(logits: &[f32]) -> Vec<u32> {
    logits.iter().map(|it| it.to_bits()).collect()
}

/// Of Kullback and Leibler, of the distribution that `b` has logits of from that of `a`.
fn divergence(a: &[f32], b: &[f32]) -> f64 {
    let log_probabilities = |logits: &[f32]| {
        let greatest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = logits.iter().map(|it| f64::from(it - greatest).exp()).sum();
        logits.iter().map(move |it| f64::from(it - greatest) - sum.ln()).collect::<Vec<_>>()
    };
    let pairs = log_probabilities(a).into_iter().zip(log_probabilities(b));
    pairs.map(|(a, b)| a.exp() * (a - b)).sum()
}
