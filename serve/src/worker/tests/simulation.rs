//! Goal: whatever happens around it, a session's tokens are those of a run on its own, and no client loses one or is shown
//! one twice.
//!
//! Method: by seed, more sessions than lanes, few states, slow readers, requests that are sent again and crossed by
//! others, readers that come and go, forks, rewinds, deletions, processes killed at any write, losses of power. Every
//! client knows what a run on its own would have given it, so one wrong token, position, text or state shows.

use std::{ops::Range, panic::catch_unwind, sync::Arc};

use aerie_state_cache::{
    Config as CacheConfig, FaultyStorage, Fingerprint, StateCache, TapeConfig, Tapes,
};
use crossbeam::channel::bounded;
use rand::{Rng, SeedableRng, rngs::StdRng};
use tokio::sync::oneshot;

use super::{
    super::{generation::Text, *},
    dying::{Dying, Fuse},
    peers::{Peer, Reader},
};
use crate::{
    admission::Admission,
    auth::Auth,
    device::fake::FakeDevice,
    pipe::pipe,
    planted::{Bug, PLANTED},
    request::Origin,
    router::{Router, WorkerHandle, WorkerId},
    sampler::{Penalties, Sampling},
    scheduler,
    sessions::{Durability, row},
    store::{Files, Packing, state_record_bytes},
    telemetry::metrics::Metrics,
    text::{Tokenizer, Vocabulary},
};

const SCHEDULER: scheduler::Config = scheduler::Config { lanes_max: 2, step_tokens_max: 5 };
const FINGERPRINT: Fingerprint = Fingerprint([9; 32]);
const REQUESTS_MAX: u32 = 32;
const PEERS_MAX: usize = 7;
const DETACHED_MAX: Duration = Duration::from_millis(40);

/// Seeds by which a planted bug must have shown.
const SEEDS_TO_FIND: u64 = 500;

pub(super) type Disks = [FaultyStorage; 3];

struct World {
    rng: StdRng,
    context: String,
    worker: Worker<Dying, FakeDevice>,
    fuse: Fuse,
    durability: Durability,
    vocabulary: Arc<Vocabulary>,
    admission: Admission,
    router: Router,
    clock: Clock,
    now: Instant,
    peers: Vec<Peer>,
    n_requests: u64,
}

#[test]
fn nothing_is_lost_leaked_or_doubled() {
    let seeds = std::env::var("AERIE_SIMULATION_SEEDS").ok();
    let seeds: u64 = seeds.map_or(200, |it| it.parse().expect("a number of seeds"));
    let first = std::env::var("AERIE_SIMULATION_FIRST").ok();
    let first: u64 = first.map_or(0, |it| it.parse().expect("a seed"));
    for seed in first..first + seeds {
        World::new(seed).run(400);
    }
}

/// Goal: the simulation would find what it is for.
/// Method: bugs that others have had, planted one at a time; some seed of a few must fail.
#[test]
fn planted_bugs_are_found() {
    for bug in [
        Bug::IgnorePosition,
        Bug::RunAgain,
        Bug::OneBranch,
        Bug::SkipFlush,
        Bug::AliasLane,
        Bug::ResetHalf,
        Bug::LongPrefix,
        Bug::ShareForever,
    ] {
        PLANTED.set(Some(bug));
        let is_found = |seed| catch_unwind(|| World::new(seed).run(400)).is_err();
        let found = (0..SEEDS_TO_FIND).find(|&seed| is_found(seed));
        PLANTED.set(None);
        assert!(found.is_some(), "{bug:?} is not found by {SEEDS_TO_FIND} seeds");
    }
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let clock = Clock::start();
        let durability = [Durability::Fast, Durability::Durable][rng.random_range(0..2)];
        let config = crate::admission::Config { requests_max: REQUESTS_MAX, retry_after_ms: 1 };
        let (events, _inbox) = bounded(1);
        let (_outbox, notices) = bounded(1);
        let router = Router::new(vec![WorkerHandle::new(0, "fake".to_owned(), 2, events, notices)]);
        let vocabulary = vocabulary();
        let fuse = Fuse::new();
        let disks = [(); 3].map(|()| FaultyStorage::default());
        let worker = start(disks, &fuse, durability, &vocabulary, clock);
        Self {
            rng,
            context: format!("seed {seed}"),
            worker,
            fuse,
            durability,
            vocabulary,
            admission: Admission::new(config),
            router,
            clock,
            now: clock.now(),
            peers: Vec::new(),
            n_requests: 0,
        }
    }

    fn run(&mut self, steps: u32) {
        let seed = self.context.clone();
        for step in 0..steps {
            self.context = format!("{seed}, step {step}");
            self.act();
            self.now += Duration::from_millis(self.rng.random_range(0..4));
            let now = self.now;
            self.worker.step(&|| now);
            if self.fuse.is_dead() {
                self.crash();
                continue;
            }
            self.count_sessions();
            let Self { peers, rng, context, .. } = self;
            for peer in peers {
                if rng.random_bool(0.6) {
                    peer.read(rng, context);
                }
            }
        }
        self.context = format!("{seed}, at the end");
        self.settle();
    }

    /// While nothing runs, the sessions that count for their tenant are those that there are.
    fn count_sessions(&self) {
        let worker = &self.worker;
        if worker.n_generations == 0 {
            let counted = worker.parts.quotas.n_sessions(TenantId::ANONYMOUS);
            assert_eq!(counted as usize, worker.n_sessions(), "{}", self.context);
        }
    }

    /// Lets every turn come to its end, once nothing goes wrong any more.
    fn settle(&mut self) {
        self.fuse.light(u64::MAX);
        for _ in 0..2000 {
            if self.peers.iter().all(|peer| peer.turn.is_none()) {
                return;
            }
            for i in 0..self.peers.len() {
                if self.peers[i].turn.as_ref().is_some_and(|turn| turn.readers.is_empty()) {
                    self.send(i);
                }
            }
            let now = self.now;
            self.worker.step(&|| now);
            let Self { peers, rng, context, .. } = self;
            peers.iter_mut().for_each(|peer| peer.read(rng, context));
        }
        let stuck = self.peers.iter().find(|peer| peer.turn.is_some());
        panic!("{}: a turn does not end: {stuck:?}", self.context);
    }

    fn act(&mut self) {
        match self.rng.random_range(0..100) {
            0..25 => self.ask(),
            25..40 => self.ask_again(),
            40..48 => self.lose_a_reader(),
            48..52 => self.cancel(),
            52..60 => self.observe(),
            60..66 => self.fork(),
            66..71 => self.rewind(),
            71..73 => self.delete(),
            73..77 => self.fuse.light(self.rng.random_range(1..40)),
            77..79 => self.crash(),
            79..80 => self.restart(),
            _ => {}
        }
    }

    /// A client begins a turn, in a new session or in an idle one.
    fn ask(&mut self) {
        let idle: Vec<usize> =
            (0..self.peers.len()).filter(|&i| self.peers[i].turn.is_none()).collect();
        let i = if self.peers.len() < PEERS_MAX && (idle.is_empty() || self.rng.random_bool(0.3)) {
            self.peers.push(Peer::new(SessionId(self.rng.random())));
            self.peers.len() - 1
        } else if idle.is_empty() {
            return;
        } else {
            idle[self.rng.random_range(0..idle.len())]
        };
        let rng = &mut self.rng;
        let is_empty = !self.peers[i].log.is_empty() && rng.random_bool(0.2);
        let n_prompt = if is_empty { 0 } else { rng.random_range(1..12) };
        let stops = ["e", "ab", "the"];
        self.n_requests += 1;
        let request = Request {
            who: Principal::ANONYMOUS,
            origin: Origin::Session,
            keep: true,
            prompt: prompt(n_prompt, rng),
            prompt_only: n_prompt > 0 && rng.random_bool(0.1),
            sampling: Sampling {
                temperature: [0.0, 1.5][rng.random_range(0..2)],
                penalties: Penalties {
                    repetition: [1.0, 1.5][rng.random_range(0..2)],
                    presence: 0.1,
                    frequency: 0.3,
                    window: [0, 5, 40][rng.random_range(0..3)],
                },
                ..Sampling::GREEDY
            },
            seed: (self.peers[i].is_fork || rng.random_bool(0.3)).then(|| rng.random()),
            tokens_max: rng.random_range(1..30),
            stop: if rng.random_bool(0.4) {
                vec![stops[rng.random_range(0..3)].to_owned()]
            } else {
                Vec::new()
            },
            expected_position: Some(self.peers[i].log.len() as u64),
            request_id: self.n_requests.to_string(),
            digest: Some(self.n_requests.into()),
        };
        self.peers[i].ask(request, &self.vocabulary);
        self.send(i);
    }

    /// Sends the running request of a client.
    fn send(&mut self, i: usize) {
        let events = self.worker.parts.text.events_per_step_max() + self.rng.random_range(0..6);
        let Ok(permit) = self.admission.admit(TenantId::ANONYMOUS) else { return };
        let (sender, reader) = pipe(events);
        let turn = self.peers[i].turn.as_mut().expect("it was asked");
        let drawn_from = turn.base + turn.request.prompt.len();
        turn.readers.push(Reader::new(reader, drawn_from));
        let submission = Submission {
            id: self.peers[i].id,
            request: self.peers[i].turn.as_ref().expect("as before").request.clone(),
            pipe: sender,
            permit,
            load: self.router.load(WorkerId(0)),
            is_placed: false,
            arrived: self.now,
        };
        self.worker.handle(Event::Open(Box::new(submission)), self.now);
    }

    /// A request is sent again: one that runs, or the last one, whose answer must be the same.
    fn ask_again(&mut self) {
        let Some(i) = self.any_peer() else { return };
        let peer = &mut self.peers[i];
        if peer.turn.is_none() {
            let Some(last) = peer.last.take().filter(|last| !last.is_cancelled) else { return };
            peer.truncate(last.base);
            peer.turn = Some(last);
        }
        if self.peers[i].turn.as_ref().is_some_and(|turn| turn.readers.len() < 3) {
            self.send(i);
        }
    }

    fn lose_a_reader(&mut self) {
        let Some(i) = self.any_peer() else { return };
        let Self { rng, peers, .. } = self;
        if let Some(turn) = &mut peers[i].turn
            && !turn.readers.is_empty()
        {
            turn.readers.remove(rng.random_range(0..turn.readers.len()));
        }
    }

    fn cancel(&mut self) {
        let Some(i) = self.any_peer() else { return };
        if let Some(turn) = &mut self.peers[i].turn
            && let Some(reader) = turn.readers.first()
        {
            turn.is_cancelled = true;
            reader.reader.cancel();
        }
    }

    fn observe(&mut self) {
        let Some(i) = self.any_peer() else { return };
        let peer = &mut self.peers[i];
        // What the client was told of, the server stands by.
        if !peer.is_known || peer.observers.len() == 2 {
            return;
        }
        let Ok(permit) = self.admission.admit(TenantId::ANONYMOUS) else { return };
        let from = self.rng.random_range(0..=peer.log.len());
        let (sender, reader) = pipe(self.worker.parts.text.events_per_step_max() + 2);
        peer.observers.push(Reader::new(reader, from));
        let attachment = Attachment {
            who: Principal::ANONYMOUS,
            id: peer.id,
            from_position: from as u64,
            pipe: sender,
            permit,
        };
        self.worker.handle(Event::Attach(Box::new(attachment)), self.now);
    }

    fn fork(&mut self) {
        let Some(i) = self.any_peer() else { return };
        let peer = &self.peers[i];
        if !peer.is_known || peer.log.is_empty() || PEERS_MAX <= self.peers.len() {
            return;
        }
        let at = self.rng.random_range(1..=peer.log.len());
        let mut child = Peer::new(SessionId(self.rng.random()));
        child.log = peer.log[..at].to_vec();
        // Which turn of its origin it has the seed of is not for its client to know.
        child.is_fork = true;
        child.is_known = true;
        child.prompts.clone_from(&peer.prompts);
        child.truncate(at);
        let fork =
            Fork { new: child.id, position: Some(at as u64), digest: Some(self.rng.random()) };
        let id = peer.id;
        let n = if self.rng.random_bool(0.2) { 2 } else { 1 };
        for _ in 0..n {
            match self.change(id, None, What::Fork(fork)) {
                Some(Ok(standing)) => {
                    assert_eq!((standing.id, standing.position), (fork.new, at as u64));
                }
                Some(Err(reject)) => panic!("{}: {reject}", self.context),
                // It may be there, and nobody knows.
                None => return,
            }
        }
        self.peers.push(child);
    }

    fn rewind(&mut self) {
        let Some(i) = self.any_peer() else { return };
        let peer = &self.peers[i];
        if peer.turn.is_some() || !peer.is_known {
            return;
        }
        let to = self.rng.random_range(0..=peer.log.len());
        let (id, expected) = (peer.id, peer.log.len() as u64);
        let stale = self.change(id, Some(expected + 1), rewind_to(to, None));
        if let Some(stale) = stale {
            let expect =
                Err(Reject::StalePosition { id, position: expected, expected: expected + 1 });
            assert_eq!(stale.map(|it| it.position), expect, "{}", self.context);
        }
        let digest = Some(self.rng.random());
        match self.change(id, Some(expected), rewind_to(to, digest)) {
            Some(Ok(standing)) => assert_eq!(standing.position, to as u64, "{}", self.context),
            Some(Err(reject)) => panic!("{}: {reject}", self.context),
            None => {
                // Whether it was done is unknown: the session is given up.
                self.peers.remove(i);
                return;
            }
        }
        let peer = &mut self.peers[i];
        peer.truncate(to);
        peer.last = None;
        peer.observers.clear();
    }

    fn delete(&mut self) {
        let Some(i) = self.any_peer() else { return };
        if self.peers[i].turn.is_some() || !self.peers[i].is_known {
            return;
        }
        let peer = self.peers.remove(i);
        if self.change(peer.id, Some(peer.log.len() as u64), What::Delete).is_some() {
            self.crash();
            let gone = self.change(peer.id, None, What::Delete);
            assert!(matches!(gone, Some(Err(Reject::UnknownSession { .. }))), "{}", self.context);
        }
    }

    /// Has the worker change a session; none if it died over it.
    fn change(
        &mut self,
        id: SessionId,
        expected_position: Option<u64>,
        what: What,
    ) -> Option<Result<Standing, Reject>> {
        let (reply, mut answer) = oneshot::channel();
        let change = Change { who: Principal::ANONYMOUS, id, expected_position, what, reply };
        self.worker.handle(Event::Change(Box::new(change)), self.now);
        if self.fuse.is_dead() {
            self.crash();
            return None;
        }
        Some(answer.try_recv().expect("it is answered at once"))
    }

    /// The process is killed, or the machine loses power.
    fn crash(&mut self) {
        let power = self.durability == Durability::Durable && self.rng.random_bool(0.5);
        let Self { worker, rng, .. } = self;
        let survives = |n: usize, rng: &mut StdRng| -> Range<usize> {
            match rng.random_range(0..3) {
                0 => 0..0,
                1 => 0..n,
                _ => 0..rng.random_range(0..=n),
            }
        };
        let disks = worker.parts.store.storages_mut().map(|disk| {
            let disk = disk.inner();
            if power { disk.powerless(|n| survives(n, rng)) } else { disk.killed() }
        });
        self.peers.iter_mut().for_each(Peer::disconnect);
        self.boot(disks);
    }

    /// The server is stopped, and starts again.
    fn restart(&mut self) {
        let now = self.now;
        self.worker.handle(Event::Drain { deadline: now }, now);
        for _ in 0..1000 {
            if self.worker.step(&|| now) == Progress::Done {
                break;
            }
        }
        let Self { peers, rng, context, .. } = self;
        // What they were told before is theirs.
        for _ in 0..20 {
            peers.iter_mut().for_each(|peer| peer.read(rng, context));
        }
        peers.iter_mut().for_each(Peer::disconnect);
        let disks = self.worker.parts.store.storages_mut().map(|disk| disk.inner().killed());
        self.boot(disks);
    }

    fn boot(&mut self, disks: Disks) {
        self.fuse = Fuse::new();
        self.worker = start(disks, &self.fuse, self.durability, &self.vocabulary, self.clock);
    }

    fn any_peer(&mut self) -> Option<usize> {
        (!self.peers.is_empty()).then(|| self.rng.random_range(0..self.peers.len()))
    }
}

/// Tokens to append: half of the time they begin as others do.
fn prompt(n: usize, rng: &mut StdRng) -> Vec<u32> {
    let alike = if rng.random_bool(0.5) { rng.random_range(0..=n) } else { 0 };
    let common = [3, 17, 29, 5, 41, 2, 8, 33, 12, 7, 21];
    let rest = (alike..n).map(|_| rng.random_range(1..50));
    common.into_iter().take(alike).chain(rest).collect()
}

fn rewind_to(to: usize, digest: Option<u128>) -> What {
    What::Rewind(Rewind { position: to as u64, digest })
}

/// A vocabulary in which two tokens are the halves of an é.
pub(super) fn vocabulary() -> Arc<Vocabulary> {
    let json =
        crate::testing::TOKENIZER_JSON.replacen("\"5\"", "\"Ã\"", 1).replacen("\"6\"", "\"©\"", 1);
    let tokenizer = Tokenizer::parse(json.as_bytes()).unwrap();
    Arc::new(tokenizer.vocabulary(FakeDevice::VOCAB).unwrap())
}

fn start(
    disks: Disks,
    fuse: &Fuse,
    durability: Durability,
    vocabulary: &Arc<Vocabulary>,
    clock: Clock,
) -> Worker<Dying, FakeDevice> {
    start_with(Store::recover(files(disks, fuse), durability, 3), vocabulary, clock)
}

/// What a process finds on its disks.
pub(super) fn files(disks: Disks, fuse: &Fuse) -> Files<Dying> {
    let [rows, states, tapes] = disks.map(|disk| Dying::new(disk, fuse));
    let cache = |storage, record_bytes, records_max| {
        let config = CacheConfig { record_bytes, records_max, fingerprint: FINGERPRINT };
        StateCache::open_on(storage, config).unwrap()
    };
    let packing = Packing::opaque(FakeDevice::new(SCHEDULER).dims().state_bytes);
    let tape = TapeConfig { tapes_max: 32, cells_max: 4096, fingerprint: FINGERPRINT };
    Files {
        rows: cache(rows, row::BYTES as u64, 32),
        // So few that they give way all the time.
        states: cache(states, state_record_bytes(&packing), 9),
        packing,
        tapes: Tapes::open_on(tapes, tape).unwrap(),
    }
}

pub(super) fn start_with(
    (store, sessions): (Store<Dying>, Sessions),
    vocabulary: &Arc<Vocabulary>,
    clock: Clock,
) -> Worker<Dying, FakeDevice> {
    let device = FakeDevice::new(SCHEDULER);
    let metrics = Metrics::new();
    Worker::new(Parts {
        residency: Residency::new(device.dims()),
        device,
        store,
        sessions,
        scheduler: SCHEDULER,
        limits: Limits {
            requests_max: REQUESTS_MAX,
            retry_after: Duration::from_millis(1),
            state_interval_tokens: 4,
            detached_max: DETACHED_MAX,
            replay_tokens_max: 4096,
            idle_max: None,
            names_max: 4,
            prefix_bytes_max: 1 << 20,
            prefix_tokens_min: 2,
            prefix_tokens_max: 200,
        },
        text: Text::new(Arc::clone(vocabulary), 8),
        // A directory that has gone needs no notices.
        notices: bounded(1).0,
        quotas: Quotas::new(&Auth::default(), &metrics),
        metrics: metrics.worker("fake", "fake"),
        clock,
    })
}
