//! A worker, its clients, and all that may befall them. What the clients do is in `acts.rs`.

use std::{collections::HashMap, ops::Range, sync::Arc};

use aerie_state_cache::{
    Config as CacheConfig, FaultyStorage, Fingerprint, StateCache, TapeConfig, Tapes,
};
use crossbeam::channel::bounded;
use rand::{Rng, SeedableRng, rngs::StdRng};

use super::{
    super::{generation::Text, *},
    dying::{Dying, Fuse},
    peers::{Kept, Peer, TENANTS},
};
use crate::{
    admission::Admission,
    auth::{Auth, TenantId, Tokens},
    device::{Lane, fake::FakeDevice},
    quotas::Quotas,
    router::{Router, WorkerHandle, WorkerId},
    scheduler,
    sessions::{Durability, row},
    store::{Files, Packing, state_record_bytes},
    telemetry::metrics::Metrics,
    text::{Tokenizer, Vocabulary},
};

const FINGERPRINT: Fingerprint = Fingerprint([9; 32]);
const REQUESTS_MAX: u32 = 32;
const DETACHED_MAX: Duration = Duration::from_millis(40);

pub(super) type Disks = [FaultyStorage; 3];

/// How large a world is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) scheduler: scheduler::Config,
    pub(super) peers_max: usize,
    /// Sessions that the worker keeps.
    pub(super) sessions: u32,
    pub(super) states: u32,
    pub(super) names_max: u32,
    /// Tokens beyond which a client asks no more of a session, until it goes back.
    pub(super) log_tokens_max: usize,
    /// Whether processes are killed and machines lose power.
    pub(super) has_crashes: bool,
}

pub(super) struct World {
    pub(super) rng: StdRng,
    pub(super) context: String,
    pub(super) shape: Shape,
    pub(super) worker: Worker<Dying, FakeDevice>,
    pub(super) fuse: Fuse,
    durability: Durability,
    pub(super) vocabulary: Arc<Vocabulary>,
    pub(super) admission: Admission,
    pub(super) router: Router,
    notices: Receiver<Notice>,
    clock: Clock,
    pub(super) now: Instant,
    pub(super) peers: Vec<Peer>,
    pub(super) n_requests: u64,
    /// Files of sessions.
    pub(super) kept: Vec<Kept>,
    /// Sessions that gave way, and in which life of the server.
    evicted: HashMap<SessionId, u32>,
    life: u32,
    /// Rows were damaged on purpose.
    pub(super) is_spoilt: bool,
    /// What has happened, to see that it does.
    pub(super) counts: Counts,
}

/// How often some things have happened.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    pub(super) evicted: u64,
    pub(super) lost_by_eviction: u64,
    pub(super) intrusions: u64,
    pub(super) forks: u64,
    pub(super) imports: u64,
    pub(super) named: u64,
    pub(super) turns: u64,
}

impl World {
    pub(super) fn new(seed: u64, shape: Shape) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let clock = Clock::start();
        let durability = match shape.has_crashes {
            true => [Durability::Fast, Durability::Durable][rng.random_range(0..2)],
            false => Durability::Fast,
        };
        let config = crate::admission::Config { requests_max: REQUESTS_MAX, retry_after_ms: 1 };
        let vocabulary = vocabulary();
        let fuse = Fuse::new();
        let disks = [(); 3].map(|()| FaultyStorage::default());
        let (worker, notices) = start(disks, &fuse, durability, &vocabulary, clock, shape);
        Self {
            rng,
            context: format!("seed {seed}"),
            shape,
            worker,
            fuse,
            durability,
            vocabulary,
            admission: Admission::new(config),
            router: directory(),
            notices,
            clock,
            now: clock.now(),
            peers: Vec::new(),
            n_requests: 0,
            kept: Vec::new(),
            evicted: HashMap::new(),
            life: 0,
            is_spoilt: false,
            counts: Counts::default(),
        }
    }

    pub(super) fn run(&mut self, steps: u32) {
        let seed = self.context.clone();
        for step in 0..steps {
            self.context = format!("{seed}, step {step}");
            self.turn();
        }
        self.context = format!("{seed}, at the end");
        self.settle();
    }

    /// Something happens, the worker takes a step, and clients read.
    pub(super) fn turn(&mut self) {
        self.act();
        self.hear();
        self.now += Duration::from_millis(self.rng.random_range(0..4));
        self.step();
        if self.fuse.is_dead() {
            return self.crash();
        }
        let Self { peers, rng, context, .. } = self;
        for peer in peers.iter_mut().filter(|peer| peer.has_readers()) {
            if rng.random_bool(0.6) {
                peer.read(rng, context);
            }
        }
        self.take_refusals();
    }

    fn step(&mut self) {
        let now = self.now;
        self.worker.step(&|| now);
        self.hear();
        self.count_sessions();
    }

    /// While nothing runs, the sessions that count for tenants are those that there are.
    fn count_sessions(&self) {
        let worker = &self.worker;
        if worker.n_generations == 0 && !self.fuse.is_dead() {
            let of = |name: &str| worker.parts.quotas.usage(TenantId::named(name)).sessions;
            let counted: u32 = TENANTS.into_iter().map(of).sum();
            assert_eq!(counted as usize, worker.n_sessions(), "{}", self.context);
        }
    }

    /// Lets every turn come to its end, once nothing goes wrong any more.
    pub(super) fn settle(&mut self) {
        self.fuse.light(u64::MAX);
        let rounds = 2000 + 30 * self.peers.len();
        for _ in 0..rounds {
            if self.peers.iter().all(|peer| peer.turn.is_none()) {
                return self.audit();
            }
            for i in (0..self.peers.len()).rev() {
                if self.peers[i].turn.as_ref().is_some_and(|turn| turn.readers.is_empty()) {
                    self.send(i);
                }
            }
            self.step();
            let Self { peers, rng, context, .. } = self;
            peers.iter_mut().for_each(|peer| peer.read(rng, context));
            self.take_refusals();
        }
        let stuck = self.peers.iter().find(|peer| peer.turn.is_some());
        panic!("{}: a turn does not end: {stuck:?}", self.context);
    }

    /// Takes in what the worker tells the directory.
    pub(super) fn hear(&mut self) {
        for notice in self.notices.try_iter() {
            if let Notice::Gone { id, why, .. } = notice
                && !self.fuse.is_dead()
            {
                let is_known = match why {
                    Gone::Lost => self.is_spoilt,
                    why => why != Gone::Expired,
                };
                assert!(is_known, "{}: {id} is gone, {why:?}", self.context);
                if why == Gone::Evicted {
                    self.counts.evicted += 1;
                    let named = self.peers.iter().find(|it| it.id == id && it.name.is_some());
                    assert!(named.is_none(), "{}: it had a name: {named:?}", self.context);
                    let mut running = self.worker.generations.iter().flatten();
                    assert!(running.all(|it| it.session != id), "{}: {id} ran", self.context);
                }
            }
            if let Notice::Gone { id, why: Gone::Evicted, .. } = notice {
                self.evicted.insert(id, self.life);
            }
            self.router.adopt(WorkerId(0), [notice]);
        }
    }

    /// Whether the directory has a session; if not, its client is told why, and gives it up.
    pub(super) fn locate(&mut self, i: usize) -> bool {
        let Peer { id, .. } = self.peers[i];
        if self.router.locate(id).is_some() {
            return true;
        }
        // Nobody hears from a process that is dead.
        if !self.fuse.is_dead() {
            self.lose(i);
        }
        false
    }

    /// A client is told that its session is not there: it must have given way, and be told so.
    pub(super) fn lose(&mut self, i: usize) {
        let peer = self.peers.swap_remove(i);
        let context = &self.context;
        let gone = self.router.gone(peer.who, peer.id);
        let when = self.evicted.get(&peer.id);
        let Some(&when) = when else { panic!("{context}: it is gone, {gone:?}: {peer:?}") };
        // Why is forgotten where its place was taken; and its row may have come back, with a log that is another's.
        let is_told = match gone {
            Some(Gone::Evicted) => true,
            // It was to be made anew since, and there was no room.
            Some(Gone::Ended) => peer.turn.as_ref().is_some_and(|turn| turn.base == 0),
            None | Some(Gone::Lost) => when < self.life,
            _ => false,
        };
        assert!(is_told, "{context}: it gave way, but its client is told {gone:?}: {peer:?}");
        assert_eq!(self.router.gone(peer.stranger(), peer.id), None, "{context}: {peer:?}");
        self.counts.lost_by_eviction += 1;
    }

    /// Takes in the refusals that readers were sent.
    fn take_refusals(&mut self) {
        for i in (0..self.peers.len()).rev() {
            let Some(reject) = self.peers[i].refused.take() else { continue };
            match reject {
                Reject::UnknownSession { .. } => self.lose(i),
                reject => panic!("{}: refused, {reject}: {:?}", self.context, self.peers[i]),
            }
        }
    }

    /// Compares all that is kept of the sessions with what their clients know: logs, and states.
    pub(super) fn audit(&mut self) {
        self.audit_lanes();
        for peer in &self.peers {
            let Worker { parts, sessions, .. } = &mut self.worker;
            if !parts.store.wake(sessions, peer.id) {
                continue;
            }
            let context = format!("{}, {}", self.context, peer.id);
            let log = peer.owed_log();
            let position = sessions.expect(peer.id).record.position;
            let mut words = Vec::new();
            parts.store.log(sessions, peer.id, 0..position, &mut words).unwrap();
            let words: Vec<u32> = words.into_iter().map(Word::token).collect();
            assert!(log.starts_with(&words), "{context}: {words:?} is not {log:?}");
            let session = sessions.expect(peer.id);
            assert_eq!(session.record.tenant, peer.who.tenant, "{context}");
            assert_eq!(session.record.name, peer.name, "{context}");
            let mut max = session.record.states.last().map(|it| it.computed);
            while let Some(computed) = max {
                let owed = FakeDevice::absorb_all(&log[..usize::try_from(computed).unwrap()]);
                let show = |at, state: &[u8]| {
                    assert_eq!((at, state), (0, &owed.to_le_bytes()[..]), "{context}");
                };
                let session = sessions.expect(peer.id);
                // One that is lost is forgotten, and an earlier one shown.
                if session.record.states.iter().any(|it| it.computed == computed)
                    && parts.store.has_state(session.record.state_within(computed).unwrap().key)
                {
                    parts.store.find_state(session, computed, show).unwrap();
                }
                max = session.record.states.iter().map(|it| it.computed).rfind(|it| *it < computed);
            }
            parts.store.sleep(sessions, peer.id);
        }
    }

    /// Compares the states in the lanes with what they should have seen.
    pub(super) fn audit_lanes(&mut self) {
        let Worker { parts, sessions, .. } = &self.worker;
        for (id, session) in sessions.iter() {
            let Some(seat) = session.seat else { continue };
            let Some(peer) = self.peers.iter().find(|peer| peer.id == id) else { continue };
            let mut state = [0; 8];
            parts.device.read_lane(Lane(seat.ticket.lane.0), &mut state);
            if seat.computed == 0 {
                continue;
            }
            let owed = peer.owed_state(usize::try_from(seat.computed).unwrap());
            assert_eq!(u64::from_le_bytes(state), owed, "{}: {id}'s lane", self.context);
        }
    }

    /// The process is killed, or the machine loses power.
    pub(super) fn crash(&mut self) {
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
    pub(super) fn restart(&mut self) {
        let now = self.now;
        self.worker.handle(Event::Drain { deadline: now }, now);
        for _ in 0..1000 {
            if self.worker.step(&|| now) == Progress::Done {
                break;
            }
        }
        self.hear();
        let Self { peers, rng, context, .. } = self;
        // What they were told before is theirs.
        for _ in 0..20 {
            peers.iter_mut().for_each(|peer| peer.read(rng, context));
        }
        self.take_refusals();
        self.peers.iter_mut().for_each(Peer::disconnect);
        let disks = self.worker.parts.store.storages_mut().map(|disk| disk.inner().killed());
        self.boot(disks);
    }

    fn boot(&mut self, disks: Disks) {
        self.hear();
        for Peer { id, .. } in &self.peers {
            // A process that dies over an import has told nobody who gave way to it.
            if self.router.locate(*id).is_some() && !self.worker.parts.store.has(*id) {
                self.evicted.insert(*id, self.life);
            }
        }
        self.life += 1;
        self.fuse = Fuse::new();
        let Self { durability, vocabulary, clock, shape, .. } = self;
        let (worker, notices) = start(disks, &self.fuse, *durability, vocabulary, *clock, *shape);
        self.router = directory();
        let recalled = worker.notices();
        for notice in &recalled {
            // A process that died over it told nobody.
            if let Notice::Recalled { id, why: Gone::Evicted, .. } = notice {
                self.evicted.entry(*id).or_insert(self.life - 1);
            }
        }
        self.router.adopt(WorkerId(0), recalled);
        (self.worker, self.notices) = (worker, notices);
        for peer in &self.peers {
            // The process may have died when it had just deleted it.
            let Some(name) = peer.name.filter(|_| self.worker.parts.store.has(peer.id)) else {
                continue;
            };
            let found = self.router.named(peer.who.tenant, name);
            assert_eq!(found, Some(peer.id), "{}: {peer:?}", self.context);
        }
    }

    pub(super) fn any_peer(&mut self) -> Option<usize> {
        (!self.peers.is_empty()).then(|| self.rng.random_range(0..self.peers.len()))
    }
}

/// A directory without a worker that it could ask.
fn directory() -> Router {
    let (events, _inbox) = bounded(1);
    let (_outbox, notices) = bounded(1);
    Router::new(vec![WorkerHandle::new(0, "fake".to_owned(), 2, events, notices)])
}

/// The two tenants, who may have as many sessions as they like.
fn tenants() -> Auth {
    let tenant = |name: &str| {
        let token = blake3::hash(name.as_bytes());
        format!("[[tenants]]\nname = {name:?}\ntokens = [\"{token}\"]\n")
    };
    Auth::with(Tokens::parse(&TENANTS.map(tenant).concat()).unwrap())
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
    shape: Shape,
) -> (Worker<Dying, FakeDevice>, Receiver<Notice>) {
    start_with(Store::recover(files(disks, fuse, shape), durability, 3), vocabulary, clock, shape)
}

/// What a process finds on its disks.
pub(super) fn files(disks: Disks, fuse: &Fuse, shape: Shape) -> Files<Dying> {
    let [rows, states, tapes] = disks.map(|disk| Dying::new(disk, fuse));
    let cache = |storage, record_bytes, records_max| {
        let config = CacheConfig { record_bytes, records_max, fingerprint: FINGERPRINT };
        StateCache::open_on(storage, config).unwrap()
    };
    let packing = Packing::opaque(FakeDevice::new(shape.scheduler).dims().state_bytes);
    let state_bytes = state_record_bytes(&packing);
    // As many as sessions, as in a server.
    let tape = TapeConfig { tapes_max: shape.sessions, cells_max: 4096, fingerprint: FINGERPRINT };
    Files {
        rows: cache(rows, row::BYTES as u64, shape.sessions),
        states: cache(states, state_bytes, shape.states),
        packing,
        tapes: Tapes::open_on(tapes, tape).unwrap(),
    }
}

pub(super) fn start_with(
    (store, sessions): (Store<Dying>, Sessions),
    vocabulary: &Arc<Vocabulary>,
    clock: Clock,
    shape: Shape,
) -> (Worker<Dying, FakeDevice>, Receiver<Notice>) {
    let device = FakeDevice::new(shape.scheduler);
    let (notices, heard) = bounded(4096);
    let metrics = Metrics::new();
    let worker = Worker::new(Parts {
        residency: Residency::new(device.dims()),
        device,
        store,
        sessions,
        scheduler: shape.scheduler,
        limits: Limits {
            requests_max: REQUESTS_MAX,
            retry_after: Duration::from_millis(1),
            state_interval_tokens: 4,
            detached_max: DETACHED_MAX,
            replay_tokens_max: 4096,
            idle_max: None,
            names_max: shape.names_max,
            held_calls_max: 3,
            prefix_bytes_max: 1 << 20,
            prefix_tokens_min: 2,
            prefix_tokens_max: 200,
        },
        text: Text::new(Arc::clone(vocabulary), 8),
        notices,
        quotas: Quotas::new(&tenants()),
        metrics: metrics.worker("fake", "fake"),
        clock,
    });
    (worker, heard)
}
