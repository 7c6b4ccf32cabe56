//! What the store makes of sessions: parking, resuming, forking, going back, carrying away; beside a copy of as many bytes.
//!
//! States of 0.6 MB, as a Hawk of a few hundred million parameters has, and of 17 MB, half of what RecurrentGemma 2B has; logs of
//! 4096 tokens. Files lie where temporary files do.

#![expect(clippy::unwrap_used, reason = "a benchmark that cannot go on fails")]

use std::{hint::black_box, time::Duration};

use aerie_models::{Carry, Manifest, presets};
use aerie_serve::{
    router::Gone,
    sealed,
    sessions::{Durability, Session, SessionId, Sessions, Windows, Word},
    store::{Files, Packing, Sizes, Store},
};
use aerie_state_cache::MappedFile;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

const ORIGIN: SessionId = SessionId(1);
const TOKENS: u64 = 4096;
const SIZES: [(&str, u64); 2] = [("0.6MB", 600_000), ("17MB", 17 << 20)];

struct Fixture {
    store: Store<MappedFile>,
    sessions: Sessions,
    /// Of the next session.
    next: u128,
    _folder: tempfile::TempDir,
}

impl Fixture {
    /// A store with one session, which has a state at its end and one before.
    fn new(state: &[u8], packing: Packing) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let sizes =
            Sizes { sessions: 64, states: 64, log_tokens: 1 << 16, packing, fingerprint: [1; 32] };
        let files = Files::open(&folder.path().join("cpu"), &sizes).unwrap();
        let (store, sessions) = Store::recover(files, Durability::Fast, 4);
        let mut it = Self { store, sessions, next: 2, _folder: folder };
        it.sessions.insert(ORIGIN, Session::new(ORIGIN, true, 1));
        it.store.reserve(&mut it.sessions, ORIGIN).unwrap();
        it.store.own_tape(&mut it.sessions, ORIGIN).unwrap();
        for end in [TOKENS / 2, TOKENS] {
            let log: Vec<Word> = (end - TOKENS / 2..end).map(|_| Word::drawn(7)).collect();
            it.store.append(&mut it.sessions, ORIGIN, log.into_iter()).unwrap();
            it.store.keep_state(it.sessions.expect(ORIGIN), end, state).unwrap();
        }
        it.store.write(ORIGIN, it.sessions.expect(ORIGIN)).unwrap();
        it
    }

    /// A fork, with its row.
    fn fork(&mut self) -> SessionId {
        let id = SessionId(self.next);
        self.next += 1;
        self.store.fork(&mut self.sessions, ORIGIN, TOKENS, id);
        self.store.reserve(&mut self.sessions, id).unwrap();
        self.store.write(id, self.sessions.expect(id)).unwrap();
        id
    }

    fn forget(&mut self, id: SessionId) {
        self.store.forget(&mut self.sessions, id, Some(Gone::Deleted));
    }
}

fn sessions(criterion: &mut Criterion) {
    for (name, state_bytes) in SIZES {
        let state = vec![3_u8; usize::try_from(state_bytes).unwrap()];
        let whole = Packing::opaque(state_bytes);
        let mut it = Fixture::new(&state, whole.clone());
        let mut group = criterion.benchmark_group(name);
        group.measurement_time(Duration::from_secs(3)).sample_size(20);
        group.throughput(Throughput::Bytes(state_bytes));
        let mut lane = state.clone();
        group.bench_function("memcpy", |b| b.iter(|| lane.copy_from_slice(black_box(&state))));
        group.bench_function("park", |b| {
            let mut computed = TOKENS;
            b.iter(|| {
                computed += 1;
                let session = it.sessions.expect(ORIGIN);
                session.record.position = computed;
                it.store.keep_state(session, computed, &state).unwrap();
                it.store.write(ORIGIN, session).unwrap();
            });
        });
        let mut it = Fixture::new(&state, whole);
        group.bench_function("resume", |b| {
            b.iter(|| {
                let session = it.sessions.expect(ORIGIN);
                it.store.find_state(session, TOKENS, |at, part| copy(&mut lane, at, part)).unwrap()
            });
        });
        let manifest = manifest();
        let mut file = Vec::new();
        group.bench_function("export", |b| {
            b.iter(|| {
                let parcel = it.store.pack(&mut it.sessions, ORIGIN).unwrap();
                file = sealed::seal(&manifest, ORIGIN, &parcel);
            });
        });
        let parcel = it.store.pack(&mut it.sessions, ORIGIN).unwrap();
        group.bench_function("import", |b| {
            b.iter(|| {
                let id = SessionId(it.next);
                it.next += 1;
                it.store.unpack(&mut it.sessions, id, &parcel).unwrap();
                it.store.forget(&mut it.sessions, id, Some(Gone::Deleted));
            });
        });
        group.finish();
        moves_nothing(criterion, name, &mut it);
    }
}

/// Parking and resuming by what a session has said, of the bundled model and of one as large as RecurrentGemma 2B: whole states
/// as they were kept before, what is filled of them, and windows of 8 bits.
fn windows(criterion: &mut Criterion) {
    let large = presets::preset("recurrentgemma-2b").unwrap();
    for (name, layout) in [("tales", manifest().layout()), ("2b", Carry::layout(&large))] {
        let bytes = usize::try_from(layout.bytes()).unwrap();
        let numbers = (0_u32..).map(|it| (it.wrapping_mul(0x9E37_79B9) >> 8) as f32 - 8e6);
        let state: Vec<u8> = numbers.flat_map(f32::to_le_bytes).take(bytes).collect();
        for tokens in [40, 500, 4000] {
            let packings = [
                ("whole", Packing::opaque(layout.bytes())),
                ("exact", Packing::new(&layout, Windows::Exact)),
                ("q8", Packing::new(&layout, Windows::Q8)),
            ];
            for (packing_name, packing) in packings {
                let bytes = packing.bytes(tokens);
                let group = format!("{name}, {tokens} tokens, {packing_name}, {bytes} bytes");
                park_and_resume(criterion, &group, &state, tokens, packing);
            }
        }
    }
}

fn park_and_resume(
    criterion: &mut Criterion,
    group: &str,
    state: &[u8],
    tokens: u64,
    packing: Packing,
) {
    let mut group = criterion.benchmark_group(group);
    group.warm_up_time(Duration::from_millis(300));
    group.measurement_time(Duration::from_secs(1)).sample_size(20);
    let mut it = Fixture::new(state, packing);
    let mut park = || {
        let session = it.sessions.expect(ORIGIN);
        // Its states are dropped, so that the next is of as many tokens again.
        it.store.rewind(session, 0);
        session.record.position = tokens;
        it.store.keep_state(session, tokens, black_box(state)).unwrap();
        it.store.write(ORIGIN, session).unwrap();
    };
    group.bench_function("park", |b| b.iter(&mut park));
    park();
    let mut lane = state.to_vec();
    group.bench_function("resume", |b| {
        b.iter(|| {
            let session = it.sessions.expect(ORIGIN);
            let show = |at: usize, part: &[u8]| copy(&mut lane, at, part);
            assert_eq!(it.store.find_state(session, tokens, show).unwrap(), Some(tokens));
        });
    });
    group.finish();
}

fn copy(lane: &mut [u8], at: usize, part: &[u8]) {
    lane[at..][..part.len()].copy_from_slice(part);
}

/// What does not look at the state.
fn moves_nothing(criterion: &mut Criterion, name: &str, it: &mut Fixture) {
    let mut group = criterion.benchmark_group(format!("{name}, no bytes of the state"));
    group.measurement_time(Duration::from_secs(2)).sample_size(20);
    group.bench_function("fork and forget", |b| {
        b.iter(|| {
            let id = it.fork();
            it.forget(id);
        });
    });
    group.bench_function("fork, rewind and forget", |b| {
        b.iter(|| {
            let id = it.fork();
            let session = it.sessions.expect(id);
            it.store.rewind(session, TOKENS / 2 + 100);
            it.store.write(id, session).unwrap();
            it.forget(id);
        });
    });
    group.bench_function("log a token", |b| {
        b.iter(|| {
            it.store.append(&mut it.sessions, ORIGIN, [Word::drawn(7)].into_iter()).unwrap();
            // On the same page each time, as a session's next tokens are.
            it.sessions.expect(ORIGIN).record.position = TOKENS;
        });
    });
    group.finish();
}

/// That of the bundled model: its header is in every file.
fn manifest() -> Manifest {
    let bundle = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/bundles/tales");
    let version = |op: &str| aerie_ops::schema::schema(op).map(|schema| schema.version);
    Manifest::read(bundle.as_ref(), version).unwrap()
}

criterion_group!(benches, sessions, windows);
criterion_main!(benches);
