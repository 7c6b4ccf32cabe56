use std::{collections::BTreeMap, path::Path, sync::Arc};

use aerie_state_cache::{Config as CacheConfig, Fingerprint, StateCache};
use crossbeam::channel::bounded;
use rand::{Rng, SeedableRng, rngs::StdRng};

use super::{generation::Text, *};
use crate::{
    admission::Admission,
    device::fake::FakeDevice,
    pipe::{PipeReader, pipe},
    residency::record_bytes,
    router::{Router, WorkerHandle, WorkerId},
    sampler::Sampling,
    scheduler,
    telemetry::metrics::Metrics,
    text::Tokenizer,
};

const SCHEDULER: scheduler::Config = scheduler::Config { lanes_max: 2, step_tokens_max: 5 };
const FINGERPRINT: [u8; 32] = [9; 32];
const REQUESTS_MAX: u32 = 6;

/// A generation as its client sees it.
struct Reading {
    reader: PipeReader,
    /// The state that the session's log so far leads to, in a solo run.
    state: u64,
    generated: u32,
    prompt: u32,
}

/// Goal: whatever happens around it, a session's tokens are those of a run on its own.
/// Method: more sessions than lanes, slow readers, cancellations and restarts by seed; the device's
/// logits are a hash of the log, so one wrong token or state shows in all that follow.
#[test]
fn sessions_get_the_tokens_of_a_solo_run() {
    for seed in 0..100 {
        let folder = tempfile::tempdir().unwrap();
        simulate(seed, &folder.path().join("sessions"));
    }
}

fn simulate(seed: u64, path: &Path) {
    let mut rng = StdRng::seed_from_u64(seed);
    let clock = Clock::start();
    let now = clock.now();
    let admission =
        Admission::new(crate::admission::Config { requests_max: REQUESTS_MAX, retry_after_ms: 1 });
    let (events, _inbox) = bounded(1);
    let (_outbox, notices) = bounded(1);
    let router = Router::new(vec![WorkerHandle::new(0, "fake".to_owned(), events, notices)]);
    let mut worker = open(path, clock);
    // By session: the state of its log, once its generation has ended.
    let mut idle: BTreeMap<SessionId, (u64, u64)> = BTreeMap::new();
    let mut running: BTreeMap<SessionId, Reading> = BTreeMap::new();
    for step in 0..300 {
        let context = format!("seed {seed}, step {step}");
        if running.len() < REQUESTS_MAX as usize && rng.random_bool(0.3) {
            let resumed = idle.keys().next().copied().filter(|_| rng.random_bool(0.6));
            let id = resumed.unwrap_or_else(|| SessionId(rng.random()));
            let (state, position) = idle.remove(&id).unwrap_or_default();
            let prompt: Vec<u32> =
                (0..rng.random_range(1..12)).map(|_| rng.random_range(1..50)).collect();
            let state = prompt.iter().fold(state, |it, &t| FakeDevice::absorb(it, t.into()));
            let n_prompt = u32::try_from(prompt.len()).unwrap();
            let (sender, reader) = pipe(worker.parts.text.events_per_step_max() + 3);
            let submission = Submission {
                id,
                request: request(resumed, prompt, position, rng.random_range(1..9)),
                pipe: sender,
                permit: admission.admit().expect("places are given back"),
                load: router.load(WorkerId(0)),
                arrived: now,
            };
            worker.handle(Event::Open(Box::new(submission)), now);
            running.insert(id, Reading { reader, state, generated: 0, prompt: n_prompt });
        }
        let ids: Vec<SessionId> = running.keys().copied().collect();
        for id in ids {
            if rng.random_bool(0.01) {
                // Its client goes: what was computed and not read is unknown, so it is not resumed.
                running.remove(&id);
            } else if rng.random_bool(0.6)
                && let Some(ended) = read(running.get_mut(&id).unwrap(), &context)
            {
                idle.insert(id, ended);
                running.remove(&id);
            }
        }
        worker.step(&|| now);
        if running.is_empty() && rng.random_bool(0.3) {
            worker.handle(Event::Drain { deadline: now }, now);
            while worker.step(&|| now) != Progress::Done {}
            drop(worker);
            worker = open(path, clock);
        }
    }
}

/// Reads what there is; at the end, gives the state and position of the session's log.
fn read(reading: &mut Reading, context: &str) -> Option<(u64, u64)> {
    while let Ok(event) = reading.reader.receiver.try_recv() {
        match event {
            PipeEvent::Token { token, .. } => {
                assert_eq!(token, FakeDevice::next(reading.state), "{context}");
                reading.state = FakeDevice::absorb(reading.state, token.into());
                reading.generated += 1;
            }
            PipeEvent::Finished(finished) => {
                assert_eq!(finished.generated_tokens, reading.generated, "{context}");
                assert_eq!(finished.prompt_tokens, reading.prompt, "{context}");
                return Some((reading.state, finished.position));
            }
            PipeEvent::Failed(reject) => panic!("{context}: {reject}"),
            PipeEvent::Accepted(_) | PipeEvent::Text(_) => {}
        }
    }
    None
}

fn request(
    session: Option<SessionId>,
    prompt: Vec<u32>,
    position: u64,
    tokens_max: u32,
) -> Request {
    Request {
        session,
        keep: true,
        prompt,
        sampling: Sampling::GREEDY,
        seed: None,
        tokens_max,
        stop: Vec::new(),
        expected_position: Some(position),
        request_id: String::new(),
    }
}

fn open(path: &Path, clock: Clock) -> Worker<aerie_state_cache::MappedFile, FakeDevice> {
    let device = FakeDevice::new(SCHEDULER);
    let config = CacheConfig {
        record_bytes: record_bytes(device.dims().state_bytes),
        records_max: 256,
        fingerprint: Fingerprint(FINGERPRINT),
    };
    let cache = StateCache::open(path, config).unwrap();
    let tokenizer = Tokenizer::parse(crate::testing::TOKENIZER_JSON.as_bytes()).unwrap();
    let vocabulary = Arc::new(tokenizer.vocabulary(FakeDevice::VOCAB).unwrap());
    Worker::new(Parts {
        residency: Residency::new(cache, FINGERPRINT, device.dims()),
        device,
        scheduler: SCHEDULER,
        text: Text::new(vocabulary, 8),
        // A directory that has gone needs no notices.
        notices: bounded(1).0,
        metrics: Metrics::new().worker("fake", "fake"),
        clock,
        requests_max: REQUESTS_MAX,
        retry_after: Duration::from_millis(1),
    })
}
