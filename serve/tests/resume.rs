//! Goal: wherever a generation is cut, parked, forked or killed, what comes after is what would have come: the same
//! tokens, text and end.
//!
//! Method: the bundled model on the real device, with the real store. What a long generation is to give is computed by the
//! model alone, without a worker; then workers are cut off at every position, in each of five ways. Tokens are drawn with
//! temperature, nucleus and penalties; states of attention have gone round their window; tokens that the model likes are
//! respelt as parts of characters, so that many positions lie within one; and stop strings hold text back, until one is met.

#![expect(clippy::unwrap_used, reason = "all of it is a test")]

use std::{
    cell::RefCell,
    collections::BTreeSet,
    fs,
    iter::repeat_with,
    path::Path,
    rc::Rc,
    sync::{Arc, LazyLock},
    time::Duration,
};

use aerie_models::{Manifest, bundle::TOKENIZER_FILE};
use aerie_serve::{
    admission::{self, Admission},
    auth::{Principal, TenantId},
    device::{
        Batch, Device, DeviceDims, DeviceError, DeviceSpec, Lane, files::BundleFiles, ort as onnx,
    },
    pipe::{FinishReason, PipeEvent, PipeReader, pipe},
    quotas::Quotas,
    request::{Origin, Request},
    residency::Residency,
    router::{Router, WorkerHandle, WorkerId},
    sampler::{Draw, Penalties, Sampler, Sampling},
    scheduler,
    sessions::{Durability, SessionId, Windows},
    store::{Files, LOGS, Packing, ROWS, STATES, Sizes, Store},
    telemetry::metrics::Metrics,
    text::{StopMatcher, Tokenizer, Utf8Tail, Vocabulary},
    worker::{
        Change, Clock, Event, Fork, Limits, Parts, Progress, Submission, What, Worker,
        generation::Text,
    },
};
use aerie_state_cache::MappedFile;
use crossbeam::channel::bounded;
use tempfile::TempDir;
use tokio::sync::oneshot;

const LANES: u32 = 8;
const STEP_TOKENS: u32 = 32;
/// Of the prompt: so many that the window of attention, 256 tokens, is left behind while tokens are drawn.
const PROMPT: u32 = 200;
/// Tokens that a generation may draw.
const TOKENS_MAX: u32 = 150;
/// About where the stop string is met.
const STOP_AT: usize = 120;
const SEED: u64 = 7;
const SAMPLING: Sampling = Sampling {
    temperature: 0.9,
    top_k: 0,
    top_p: 0.95,
    penalties: Penalties { repetition: 1.1, presence: 0.1, frequency: 0.1, window: 64 },
};
/// What tokens are respelt as, each with the place of the first in what is drawn.
const CHARACTERS: [(usize, char); 3] = [(20, '\u{1F600}'), (50, '\u{20AC}'), (80, 'é')];
/// Steps after which a test gives up.
const STEPS_MAX: u32 = 20_000;

/// A process can have one.
static RUNTIME: LazyLock<onnx::Runtime> = LazyLock::new(|| onnx::Runtime::load().unwrap());

/// The model, and what it says on its own.
struct Fixture {
    device: Rc<RefCell<onnx::OrtDevice>>,
    fingerprint: [u8; 32],
    packing: Packing,
    prompt: Vec<u32>,
    drawn: Vec<u32>,
    vocabulary: Arc<Vocabulary>,
    stops: Vec<String>,
    folder: TempDir,
}

/// What a request is answered.
#[derive(Debug, Default, PartialEq)]
struct Answer {
    tokens: Vec<u32>,
    text: String,
    end: Option<FinishReason>,
}

/// A process, as far as sessions go.
struct Process {
    worker: Worker<MappedFile, Lent>,
    admission: Admission,
    router: Router,
    clock: Clock,
    metrics: Metrics,
    /// Of a pipe: as small as can be, so that who does not read holds up its generation at once.
    events_max: usize,
}

/// The device in the hands of one process after the other, with as many of its lanes as that one has.
#[derive(Clone)]
struct Lent {
    device: Rc<RefCell<onnx::OrtDevice>>,
    lanes: u32,
    logits: Vec<f32>,
}

/// Somebody who reads an answer.
struct Reader {
    reader: PipeReader,
    /// Position of the next token.
    next: u64,
    answer: Answer,
}

/// Method: two generations on one lane, whose readers take turns: nobody reads on before the other has gone on, so each
/// token is drawn by a session that was parked and comes back.
#[test]
fn parked_at_every_position() {
    let it = Fixture::load();
    let mut process = it.start("parked", 1);
    let owed = it.answer(0, TOKENS_MAX);
    let mut readers = [1, 2].map(|id| process.open(SessionId(id), it.request()));
    for _ in 0..STEPS_MAX {
        for reader in &mut readers {
            reader.read();
            // One may be spent on planning it again.
            (0..3).for_each(|_| process.step());
        }
        if readers.iter().all(|reader| reader.answer.end.is_some()) {
            break;
        }
    }
    readers.into_iter().for_each(|reader| assert_eq!(reader.answer, owed));
    let resumed = process.metrics.worker("tales", "cpu").session_resume.get_sample_count();
    let tokens = owed.tokens.len() as u64;
    // The second may draw twice at first, while the other's turn is to come.
    assert!(2 * (tokens - 2) <= resumed, "{resumed} resumptions for {tokens} tokens each");
}

/// Method: as many turns as tokens, of two sessions in turns, on one lane.
#[test]
fn idle_at_every_position() {
    let it = Fixture::load();
    let mut process = it.start("idle", 1);
    for from in 0..STOP_AT {
        let owed = it.answer(from, 1);
        for id in [SessionId(1), SessionId(2)] {
            let mut reader = process.open(id, it.request_from(from, 1));
            process.finish([&mut reader]);
            assert_eq!(reader.answer, owed, "session {id}, turn {from}");
        }
    }
}

/// Method: every process shows one token more than the one before, and is stopped; so each position is one that a server is
/// stopped at. The last one's answer is asked for again.
#[test]
fn stopped_at_every_position() {
    let it = Fixture::load();
    let owed = it.answer(0, TOKENS_MAX);
    for shown in 1..=owed.tokens.len() {
        let mut process = it.start("stopped", LANES);
        let mut reader = process.open(SessionId(1), it.request());
        process.read_until(&mut reader, shown);
        process.stop(&mut reader);
        let Answer { tokens, text, .. } = reader.answer;
        assert_eq!(tokens, owed.tokens[..shown], "stopped after {shown} tokens");
        assert!(owed.text.starts_with(&text), "stopped after {shown} tokens: {text:?}");
    }
    for _ in 0..2 {
        let mut process = it.start("stopped", LANES);
        let mut reader = process.open(SessionId(1), it.request());
        process.finish([&mut reader]);
        assert_eq!(reader.answer, owed);
    }
}

/// Method: generations that follow each other at equal distances are killed together, so that a few kills meet every
/// position of one. What a kill leaves are the files as they are at that moment; each of these is gone on with to the end.
#[test]
fn killed_at_every_position() {
    let it = Fixture::load();
    let owed = it.answer(0, TOKENS_MAX);
    let distance = owed.tokens.len().div_ceil(LANES as usize);
    let ids: Vec<SessionId> = (1..=LANES).map(|id| SessionId(id.into())).collect();
    let mut process = it.start("alive", LANES);
    let mut readers: Vec<Reader> = ids.iter().map(|&id| process.open(id, it.request())).collect();
    for (n, reader) in readers.iter_mut().enumerate() {
        // The others wait: nobody reads what they say.
        process.read_until(reader, n * distance);
    }
    let mut met = BTreeSet::new();
    for kill in 0.. {
        met.extend(readers.iter().map(|reader| reader.answer.tokens.len()));
        let name = format!("killed-{kill}");
        for kind in [ROWS, STATES, LOGS] {
            let path = |name: &str| it.folder.path().join(name).with_extension(kind);
            fs::copy(path("alive"), path(&name)).unwrap();
        }
        it.go_on(&name, &ids, &owed);
        if owed.tokens.len() < met.len() {
            break;
        }
        assert!(kill < 2 * distance, "some position is not met: {met:?}");
        readers.iter_mut().for_each(Reader::read);
        process.step();
        readers.iter_mut().for_each(Reader::read);
    }
}

/// Method: forks at every position, every other one while the origin is drawing there, the others once it has ended; the
/// latter begin with their request. Then all go on together.
#[test]
fn forked_at_every_position() {
    let it = Fixture::load();
    let owed = it.answer(0, TOKENS_MAX);
    let mut process = it.start("forked", LANES);
    let origin = SessionId(1);
    let fork_at = |from: usize| SessionId(1000 + from as u128);
    let mut reader = process.open(origin, it.request());
    for from in (0..owed.tokens.len()).step_by(2) {
        process.read_until(&mut reader, from);
        process.fork(origin, fork_at(from), it.position(from));
    }
    process.finish([&mut reader]);
    assert_eq!(reader.answer, owed);

    let mut forks: Vec<(usize, Reader)> = (0..owed.tokens.len())
        .map(|from| {
            let tokens_max = TOKENS_MAX - u32::try_from(from).unwrap();
            let mut request = it.request_from(from, tokens_max);
            if from % 2 == 1 {
                request.origin = Origin::Fork { of: origin, position: Some(it.position(from)) };
            } else if from == 0 {
                // Nothing was drawn, and the prompt is there.
                request = Request {
                    prompt: Vec::new(),
                    expected_position: Some(it.position(0)),
                    ..request
                };
            }
            // Forks draw as their origin does, unless they are told otherwise.
            request.seed = request.seed.filter(|_| from % 3 == 0);
            (from, process.open(fork_at(from), request))
        })
        .collect();
    process.finish(forks.iter_mut().map(|(_, reader)| reader));
    for (from, reader) in forks {
        let owed = it.answer(from, TOKENS_MAX - u32::try_from(from).unwrap());
        assert_eq!(reader.answer, owed, "a fork after {from} tokens");
    }
}

impl Fixture {
    fn load() -> Self {
        let bundle = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/bundles/tales");
        let version = |op: &str| aerie_ops::schema::schema(op).map(|schema| schema.version);
        let manifest: Manifest = Manifest::read(&bundle, version).unwrap();
        let files = Arc::new(BundleFiles::open(&bundle, &manifest).unwrap());
        let spec = DeviceSpec { cores: Some((0, 0)) };
        let config = scheduler::Config { lanes_max: LANES, step_tokens_max: STEP_TOKENS };
        let mut device = onnx::OrtDevice::load(&RUNTIME, &files, &manifest, &spec, config).unwrap();
        let prompt: Vec<u32> = (0..PROMPT).map(|i| 300 + i * 37 % 1000).collect();
        let drawn = solo(&mut device, &prompt);
        let json = respell(files.bytes(TOKENIZER_FILE), &drawn);
        let vocabulary = Tokenizer::parse(&json).unwrap().vocabulary(manifest.model.vocab).unwrap();
        assert!(!drawn.contains(&vocabulary.end_of_text().unwrap()), "another seed is needed");
        let mut it = Self {
            device: Rc::new(RefCell::new(device)),
            fingerprint: manifest.fingerprint(),
            packing: Packing::new(&manifest.layout(), Windows::Exact),
            prompt,
            drawn,
            vocabulary: Arc::new(vocabulary),
            stops: Vec::new(),
            folder: tempfile::tempdir().unwrap(),
        };
        it.choose_stops();
        it
    }

    /// A stop string that is met about [`STOP_AT`], and one that begins with what is said all the time and never is.
    fn choose_stops(&mut self) {
        let all = self.answer(0, TOKENS_MAX).text;
        let until = self.answer(0, u32::try_from(STOP_AT).unwrap()).text;
        for (_, character) in CHARACTERS {
            assert!(until.contains(character), "{until:?}");
        }
        let from = until.char_indices().rev().nth(9).unwrap().0;
        assert_eq!(all.find(&until[from..]), Some(from), "{until:?}");
        self.stops = vec!["e\n\nnever".to_owned(), " ~".to_owned(), until[from..].to_owned()];
        let owed = self.answer(0, TOKENS_MAX);
        assert_eq!(owed.end, Some(FinishReason::Stop), "{owed:?}");
        assert!(100 < owed.tokens.len(), "{owed:?}");
    }

    /// What a generation is to give that begins after `from` tokens were drawn.
    fn answer(&self, from: usize, tokens_max: u32) -> Answer {
        let mut tail = Utf8Tail::default();
        for &token in &self.drawn[..from] {
            tail.push(self.vocabulary.bytes(token), &mut String::new());
        }
        let mut stop = StopMatcher::new(self.stops.clone());
        let mut answer = Answer::default();
        for &token in &self.drawn[from..][..tokens_max as usize] {
            let mut characters = String::new();
            tail.push(self.vocabulary.bytes(token), &mut characters);
            answer.tokens.push(token);
            if stop.push(&characters, &mut answer.text) {
                answer.end = Some(FinishReason::Stop);
                return answer;
            }
        }
        stop.flush(&mut answer.text);
        answer.end = Some(FinishReason::Length);
        answer
    }

    /// The request for all of it.
    fn request(&self) -> Request {
        self.request_from(0, TOKENS_MAX)
    }

    /// The request that goes on after `from` tokens were drawn, or begins.
    fn request_from(&self, from: usize, tokens_max: u32) -> Request {
        let is_first = from == 0;
        Request {
            who: Principal::ANONYMOUS,
            origin: Origin::Session,
            keep: true,
            prompt: if is_first { self.prompt.clone() } else { Vec::new() },
            prompt_only: false,
            sampling: SAMPLING,
            seed: Some(SEED),
            tokens_max,
            stop: self.stops.clone(),
            expected_position: Some(if is_first { 0 } else { self.position(from) }),
            request_id: from.to_string(),
            digest: Some(1 + from as u128),
        }
    }

    /// Where a session stands after `from` tokens were drawn.
    fn position(&self, from: usize) -> u64 {
        (self.prompt.len() + from) as u64
    }

    /// A process on the files `name`.
    fn start(&self, name: &str, lanes: u32) -> Process {
        let mut device = Lent { device: Rc::clone(&self.device), lanes, logits: Vec::new() };
        device.spoil();
        let dims = device.dims();
        let sizes = Sizes {
            sessions: 160,
            states: 160,
            log_tokens: 1024,
            packing: self.packing.clone(),
            fingerprint: self.fingerprint,
        };
        let files = Files::open(&self.folder.path().join(name), &sizes).unwrap();
        let (store, sessions) = Store::recover(files, Durability::Fast, 8);
        let text = Text::new(Arc::clone(&self.vocabulary), 64);
        let events_max = text.events_per_step_max();
        let (clock, metrics) = (Clock::start(), Metrics::new());
        let worker = Worker::new(Parts {
            residency: Residency::new(dims),
            device,
            store,
            sessions,
            limits: Limits {
                requests_max: 160,
                retry_after: Duration::ZERO,
                state_interval_tokens: 24,
                detached_max: Duration::MAX,
                replay_tokens_max: 1024,
                idle_max: None,
                names_max: 4,
                held_calls_max: 64,
                prefix_bytes_max: 1 << 30,
                prefix_tokens_min: 32,
                prefix_tokens_max: 1 << 16,
            },
            scheduler: scheduler::Config { lanes_max: lanes, step_tokens_max: STEP_TOKENS },
            text,
            // A directory that has gone needs no notices.
            notices: bounded(1).0,
            quotas: Quotas::default(),
            metrics: metrics.worker("tales", "cpu"),
            clock,
        });
        let (events, _) = bounded(1);
        let (_, notices) = bounded(1);
        let router =
            Router::new(vec![WorkerHandle::new(0, "cpu".to_owned(), LANES, events, notices)]);
        let config = admission::Config { requests_max: 160, retry_after_ms: 1 };
        let admission = Admission::new(config);
        Process { worker, admission, router, clock, metrics, events_max }
    }

    /// Goes on with what a kill has left, to the end.
    fn go_on(&self, name: &str, ids: &[SessionId], owed: &Answer) {
        // What the lanes have is the other process's, which is to find it again.
        let lanes = self.lanes();
        let mut process = self.start(name, LANES);
        let mut readers: Vec<Reader> =
            ids.iter().map(|&id| process.open(id, self.request())).collect();
        process.finish(readers.iter_mut());
        for (reader, id) in readers.iter().zip(ids) {
            assert_eq!(reader.answer, *owed, "{name}, session {id}");
        }
        for (lane, state) in (0..).map(Lane).zip(lanes) {
            self.device.borrow_mut().write_lane(lane, &state);
        }
    }

    fn lanes(&self) -> Vec<Vec<u8>> {
        let device = self.device.borrow();
        let state_bytes = usize::try_from(device.dims().state_bytes).unwrap();
        let read = |lane| {
            let mut state = vec![0; state_bytes];
            device.read_lane(lane, &mut state);
            state
        };
        (0..LANES).map(Lane).map(read).collect()
    }
}

impl Process {
    fn open(&mut self, id: SessionId, request: Request) -> Reader {
        let (pipe, reader) = pipe(self.events_max);
        let submission = Submission {
            id,
            request,
            pipe,
            permit: self.admission.admit(TenantId::ANONYMOUS).unwrap(),
            load: self.router.load(WorkerId(0)),
            is_placed: false,
            arrived: self.clock.now(),
        };
        self.worker.handle(Event::Open(Box::new(submission)), self.clock.now());
        Reader { reader, next: 0, answer: Answer::default() }
    }

    fn fork(&mut self, id: SessionId, new: SessionId, position: u64) {
        let (reply, mut answer) = oneshot::channel();
        let what = What::Fork(Fork { new, position: Some(position), digest: None });
        let who = Principal::ANONYMOUS;
        let change = Change { who, id, expected_position: None, what, reply };
        self.worker.handle(Event::Change(Box::new(change)), self.clock.now());
        assert_eq!(answer.try_recv().unwrap().unwrap().position, position);
    }

    fn step(&mut self) {
        let clock = self.clock;
        self.worker.step(&|| clock.now());
    }

    /// Goes on until everybody has been told the end.
    fn finish<'a>(&mut self, readers: impl IntoIterator<Item = &'a mut Reader>) {
        let mut readers: Vec<&mut Reader> = readers.into_iter().collect();
        for _ in 0..STEPS_MAX {
            readers.iter_mut().for_each(|reader| reader.read());
            if readers.iter().all(|reader| reader.answer.end.is_some()) {
                return;
            }
            self.step();
        }
        panic!("it does not end");
    }

    /// Goes on until one has been shown `n` tokens, and not one more was drawn.
    fn read_until(&mut self, reader: &mut Reader, n: usize) {
        for _ in 0..STEPS_MAX {
            reader.read();
            if n <= reader.answer.tokens.len() {
                return;
            }
            self.step();
        }
        panic!("it does not come to {n} tokens");
    }

    /// Ends as a server does that is told to, at once.
    fn stop(mut self, reader: &mut Reader) {
        let clock = self.clock;
        self.worker.handle(Event::Drain { deadline: clock.now() }, clock.now());
        let ended = repeat_with(|| {
            reader.read();
            self.worker.step(&|| clock.now())
        });
        assert!(ended.take(100).any(|progress| progress == Progress::Done));
        reader.read();
    }
}

impl Lent {
    /// Leaves nothing of what another process had in its lanes.
    fn spoil(&mut self) {
        let state_bytes = usize::try_from(self.dims().state_bytes).unwrap();
        (0..LANES).for_each(|lane| self.write_lane(Lane(lane), &vec![0xFF; state_bytes]));
    }
}

impl Device for Lent {
    fn dims(&self) -> DeviceDims {
        DeviceDims { lanes: self.lanes, ..self.device.borrow().dims() }
    }

    fn step(&mut self, batch: &Batch) -> Result<&[f32], DeviceError> {
        self.logits.clear();
        self.logits.extend_from_slice(self.device.borrow_mut().step(batch)?);
        Ok(&self.logits)
    }

    fn read_part(&self, lane: Lane, at: usize, part: &mut [u8]) {
        self.device.borrow().read_part(lane, at, part);
    }

    fn write_part(&mut self, lane: Lane, at: usize, part: &[u8]) {
        self.device.borrow_mut().write_part(lane, at, part);
    }
}

impl Reader {
    /// Reads what there is.
    fn read(&mut self) {
        while let Ok(event) = self.reader.receiver.try_recv() {
            match event {
                PipeEvent::Accepted(it) => self.next = it.position + u64::from(it.prompt_tokens),
                PipeEvent::Attached(_) => {}
                PipeEvent::Token { token, position, text } => {
                    assert_eq!(position, self.next, "a token is lost or doubled");
                    self.next += 1;
                    self.answer.tokens.push(token);
                    self.answer.text.push_str(text.as_str());
                }
                PipeEvent::Text(text) => self.answer.text.push_str(text.as_str()),
                PipeEvent::Finished(finished) => self.answer.end = Some(finished.reason),
                PipeEvent::Failed(reject) => panic!("refused: {reject}"),
            }
        }
    }
}

/// What the model draws after `prompt`, alone on the device.
fn solo(device: &mut onnx::OrtDevice, prompt: &[u32]) -> Vec<u32> {
    let mut sampler = Sampler::new(device.dims().vocab);
    let mut batch = Batch::with_capacity(STEP_TOKENS as usize, 1);
    let mut log = prompt.to_vec();
    let mut computed = 0;
    while log.len() < prompt.len() + TOKENS_MAX as usize {
        let end = log.len().min(computed + STEP_TOKENS as usize);
        batch.clear();
        batch.push(Lane(0), computed as u64, log[computed..end].iter().copied());
        let logits = device.step(&batch).unwrap();
        computed = end;
        if computed == log.len() {
            let draw = Draw { seed: SEED, position: log.len() as u64 };
            let window = SAMPLING.penalties.window as usize;
            let recent = log[log.len().saturating_sub(window)..].iter().copied();
            log.push(sampler.draw_after(SAMPLING, logits, draw, recent).unwrap());
        }
    }
    log.split_off(prompt.len())
}

/// A tokenizer in which some of the tokens that are drawn have the bytes of [`CHARACTERS`], and those of these bytes theirs.
fn respell(tokenizer: &[u8], drawn: &[u32]) -> Vec<u8> {
    let mut json: serde_json::Value = serde_json::from_slice(tokenizer).unwrap();
    let vocab = json["model"]["vocab"].as_object_mut().unwrap();
    let mut respelt = BTreeSet::new();
    for (from, character) in CHARACTERS {
        let spelt = character.to_string();
        let n = spelt.len();
        let is_free = |tokens: &&[u32]| {
            let distinct: BTreeSet<u32> = tokens.iter().copied().collect();
            distinct.len() == n && distinct.is_disjoint(&respelt)
        };
        let tokens: Vec<u32> = drawn[from..].windows(n).find(is_free).unwrap().to_vec();
        for (byte, &token) in spelt.bytes().zip(&tokens) {
            let of_byte = vocab[&symbol(byte)].clone();
            let was = vocab.iter().find(|(_, id)| **id == token).unwrap().0.clone();
            vocab.insert(was, of_byte);
            vocab.insert(symbol(byte), token.into());
        }
        respelt.extend(tokens);
    }
    serde_json::to_vec(&json).unwrap()
}

/// The character by which a byte-level tokenizer writes a byte of no ASCII character.
fn symbol(byte: u8) -> String {
    let code = match byte {
        0xA1..=0xAC | 0xAE..=0xFF => u32::from(byte),
        // After the 33 of 0 to 32, that of 127.
        0x80..=0xA0 => 0x100 + 34 + u32::from(byte - 0x80),
        _ => 0x100 + 67,
    };
    char::from_u32(code).unwrap().to_string()
}
