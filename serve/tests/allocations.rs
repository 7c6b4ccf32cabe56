//! Counts what a warm step of the worker allocates in Rust, which is nothing, and what a session that sleeps holds of
//! memory. A binary of its own, since an allocator is the whole program's.
//!
//! The step is the server's from end to end: the scheduler plans it, the batch is filled and bound, ONNX
//! Runtime runs the bundled model with our kernels on the calling thread, a token is drawn, made text of,
//! sent, and observed. ONNX Runtime's own memory is C++'s and not counted, nor is what the transports
//! do with a token afterwards.

#![expect(unsafe_code, reason = "an allocator is unsafe to write")]
#![expect(clippy::unwrap_used, reason = "all of it is a test")]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    path::Path,
    sync::Arc,
    time::Duration,
};

use aerie_models::{Manifest, bundle::TOKENIZER_FILE};
use aerie_serve::{
    admission::{self, Admission},
    auth::{Principal, TenantId},
    device::{Device as _, DeviceSpec, files::BundleFiles, ort as onnx},
    pipe::{PipeEvent, PipeReader, pipe},
    quotas::Quotas,
    request::{Origin, Request},
    residency::Residency,
    router::{Router, WorkerHandle, WorkerId},
    sampler::{Penalties, Sampling},
    scheduler,
    sessions::{Durability, Record, SessionId, Windows, Word},
    store::{Files, Packing, Parcel, Sizes, Store},
    telemetry::metrics::Metrics,
    text::Tokenizer,
    worker::{Clock, Event, Limits, Notice, Parts, Progress, Submission, Worker, generation::Text},
};
use aerie_state_cache::MappedFile;
use crossbeam::channel::bounded;

/// The system's allocator, with a count of each thread's calls, and of the bytes that it holds.
struct Counting;

thread_local! {
    static CALLS: Cell<u64> = const { Cell::new(0) };
    static BYTES: Cell<isize> = const { Cell::new(0) };
}

// SAFETY: all calls go to the system's allocator as they come; counting needs no memory, as the
// counters are constant at first and have nothing to drop. What is not overridden goes through these two.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        CALLS.set(CALLS.get() + 1);
        BYTES.set(BYTES.get() + layout.size().cast_signed());
        // SAFETY: the caller's promises are those that the system's allocator asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        BYTES.set(BYTES.get() - layout.size().cast_signed());
        // SAFETY: `block` came from `System`, with the same layout.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const SESSIONS: u32 = 3;
const SCHEDULER: scheduler::Config = scheduler::Config { lanes_max: SESSIONS, step_tokens_max: 32 };
/// After prompts, and after the first of everything that is kept: a pipe's channel has blocks of 32
/// events, and two that take turns once it has met its second.
const WARM_STEPS: u32 = 40;
const STEPS: u32 = 400;

/// Goal: a stream of tokens costs no memory, however long it gets.
/// Method: sessions that draw in three ways, until windows are full and rings turn; allocations are
/// counted once the first steps are over.
#[test]
fn a_warm_step_allocates_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut worker = worker(&folder.path().join("sessions"));
    let admission = Admission::new(admission::Config { requests_max: SESSIONS, retry_after_ms: 1 });
    let (events, _inbox) = bounded(1);
    let (_outbox, notices) = bounded(1);
    let router = Router::new(vec![WorkerHandle::new(0, "cpu".to_owned(), 2, events, notices)]);
    let clock = Clock::start();
    let mut readers: Vec<PipeReader> = (0..SESSIONS)
        .map(|session| {
            let (pipe, reader) = pipe(64);
            let submission = Submission {
                id: SessionId(u128::from(session)),
                request: request(session),
                pipe,
                permit: admission.admit(TenantId::ANONYMOUS).unwrap(),
                load: router.load(WorkerId(0)),
                is_placed: false,
                arrived: clock.now(),
            };
            worker.handle(Event::Open(Box::new(submission)), clock.now());
            reader
        })
        .collect();

    let now = || clock.now();
    let (mut tokens, mut allocating) = (0, Vec::new());
    for step in 0..WARM_STEPS + STEPS {
        let before = CALLS.get();
        assert_eq!(worker.step(&now), Progress::Stepped, "step {step}");
        let calls = CALLS.get() - before;
        if WARM_STEPS <= step && 0 < calls {
            allocating.push((step, calls));
        }
        tokens += readers.iter_mut().map(read).sum::<u32>();
    }
    assert_eq!(allocating, [], "steps that allocated, and how often");
    assert_eq!(tokens, (WARM_STEPS + STEPS) * SESSIONS, "every step gave each session a token");
}

/// Goal: a session that nobody uses costs no more than 64 bytes of memory: with its row, its log and a state, and its
/// entry in the directory.
/// Method: many sessions are made, and let sleep; then a second process finds them.
#[test]
fn a_session_that_sleeps_holds_64_bytes_at_most() {
    const SLEEPERS: u32 = 1 << 14;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cpu");
    let (log_tokens, state_bytes) = (16, 64);
    let packing = Packing::opaque(state_bytes);
    let fingerprint = [0; 32];
    let sizes = Sizes { sessions: SLEEPERS, states: SLEEPERS, log_tokens, packing, fingerprint };
    let (events, _inbox) = bounded(1);
    let (_outbox, notices) = bounded(1);
    for process in ["that made them", "that found them"] {
        let before = BYTES.get();
        let files = Files::open(&path, &sizes).unwrap();
        let (mut store, mut sessions) = Store::recover(files, Durability::Fast, 4);
        let (events, notices) = (events.clone(), notices.clone());
        let router = Router::new(vec![WorkerHandle::new(0, "cpu".to_owned(), 2, events, notices)]);
        for id in 0..SLEEPERS {
            let id =
                SessionId(u128::from(id).wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835));
            if !store.has(id) {
                store.unpack(&mut sessions, id, &parcel(state_bytes)).unwrap();
                store.sleep(&mut sessions, id);
            }
            router.adopt(WorkerId(0), [Notice::Made { id }]);
        }
        assert_eq!((store.len(), sessions.len()), (SLEEPERS as usize, 0));
        let each = (BYTES.get() - before).unsigned_abs().div_ceil(SLEEPERS as usize);
        assert!(each <= 64, "{each} bytes for each session, in the process {process}");
    }
}

/// A session of a few tokens.
fn parcel(state_bytes: u64) -> Parcel {
    let record = Record { keep: true, position: 8, ..Record::default() };
    let state = vec![1; usize::try_from(state_bytes).unwrap()];
    let log = (0..8).map(Word::prompt).collect();
    Parcel { record, used_at: 1, state: Some((7, state)), log_from: 0, log }
}

/// The tokens that have come.
fn read(reader: &mut PipeReader) -> u32 {
    let events = std::iter::from_fn(|| reader.receiver.try_recv().ok());
    let tokens = events.filter(|event| match event {
        PipeEvent::Token { .. } => true,
        PipeEvent::Finished(_) | PipeEvent::Failed(_) => panic!("{event:?}"),
        PipeEvent::Accepted(_) | PipeEvent::Attached(_) | PipeEvent::Text(_) => false,
    });
    u32::try_from(tokens.count()).unwrap()
}

fn request(session: u32) -> Request {
    let sampling = [
        Sampling::GREEDY,
        Sampling { temperature: 0.8, ..Sampling::GREEDY },
        Sampling {
            temperature: 0.8,
            top_k: 40,
            top_p: 0.9,
            penalties: Penalties { repetition: 1.1, presence: 0.1, frequency: 0.1, window: 64 },
        },
    ];
    Request {
        who: Principal::ANONYMOUS,
        origin: Origin::New,
        keep: false,
        prompt: vec![300, 301, 302],
        prompt_only: false,
        sampling: sampling[session as usize],
        seed: Some(u64::from(session)),
        tokens_max: 10_000,
        stop: vec!["never said".to_owned()],
        expected_position: None,
        request_id: String::new(),
        digest: None,
    }
}

fn worker(sessions: &Path) -> Worker<MappedFile, onnx::OrtDevice> {
    let bundle = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/bundles/tales");
    let version = |op: &str| aerie_ops::schema::schema(op).map(|schema| schema.version);
    let manifest: Manifest = Manifest::read(&bundle, version).unwrap();
    let files = Arc::new(BundleFiles::open(&bundle, &manifest).unwrap());
    let tokenizer = Tokenizer::parse(files.bytes(TOKENIZER_FILE)).unwrap();
    let vocabulary = Arc::new(tokenizer.vocabulary(manifest.model.vocab).unwrap());
    let runtime = onnx::Runtime::load().unwrap();
    // One core: ONNX Runtime runs every kernel on the thread that counts.
    let spec = DeviceSpec { cores: Some((0, 0)) };
    let device = onnx::OrtDevice::load(&runtime, &files, &manifest, &spec, SCHEDULER).unwrap();
    let sizes = Sizes {
        sessions: SESSIONS,
        states: SESSIONS,
        log_tokens: 1024,
        packing: Packing::new(&manifest.layout(), Windows::Exact),
        fingerprint: manifest.fingerprint(),
    };
    let files = Files::open(sessions, &sizes).unwrap();
    let (store, sessions) = Store::recover(files, Durability::Fast, 1);
    Worker::new(Parts {
        residency: Residency::new(device.dims()),
        device,
        store,
        sessions,
        limits: Limits {
            requests_max: SESSIONS,
            retry_after: Duration::ZERO,
            state_interval_tokens: 64,
            detached_max: Duration::ZERO,
            replay_tokens_max: 1024,
            idle_max: None,
            names_max: 4,
            held_calls_max: 64,
            prefix_bytes_max: 1 << 20,
            prefix_tokens_min: 32,
            prefix_tokens_max: 200,
        },
        scheduler: SCHEDULER,
        text: Text::new(vocabulary, 64),
        // A directory that has gone needs no notices.
        notices: bounded(1).0,
        quotas: Quotas::default(),
        metrics: Metrics::new().worker("tales", "cpu:0-0"),
        clock: Clock::start(),
    })
}
