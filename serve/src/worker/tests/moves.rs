//! Goal: a session may be brought to another device at any time, and neither it nor anybody who reads it notices.
//!
//! Method: by seed, two workers of one process whose sessions go back and forth, idle and amid turns, while requests are sent
//! again, readers come and go, calls go to where a session was, and the process is killed at any write. Every client
//! knows what a run on its own would have given it.

use std::{panic::catch_unwind, sync::Arc};

use aerie_state_cache::FaultyStorage;
use crossbeam::channel::{Receiver, bounded};
use rand::{Rng, SeedableRng, rngs::StdRng};
use tokio::sync::oneshot;

use super::{
    super::*,
    dying::{Dying, Fuse},
    peers::{Peer, Reader},
    simulation::SHAPE,
    world::{Disks, Shape, files, start_with, vocabulary},
};
use crate::{
    admission::Admission,
    auth::TenantId,
    device::fake::FakeDevice,
    pipe::pipe,
    planted::{Bug, PLANTED},
    request::{Origin, Request},
    router::{Router, WorkerHandle, WorkerId},
    sampler::Sampling,
    server::stores::keep_later,
    sessions::Durability,
    text::Vocabulary,
};

/// Nobody has to give way.
const ROOMY: Shape = Shape { sessions: 32, names_max: 4, ..SHAPE };
const DEVICES: usize = 2;
const PEERS: usize = 5;
const REQUESTS_MAX: u32 = 64;

struct World {
    rng: StdRng,
    context: String,
    workers: Vec<Worker<Dying, FakeDevice>>,
    inboxes: Vec<Receiver<Event>>,
    /// Who is in the midst of a long step.
    is_late: [bool; DEVICES],
    router: Router,
    fuse: Fuse,
    vocabulary: Arc<Vocabulary>,
    admission: Admission,
    clock: Clock,
    now: Instant,
    peers: Vec<Client>,
    n_requests: u64,
    n_moved: u64,
}

struct Client {
    peer: Peer,
    /// Where its session is, as far as it was told, and where it was before.
    home: usize,
    before: usize,
    /// Where it is being brought, maybe by several at a time.
    moving: Vec<(usize, oneshot::Receiver<Result<Standing, Reject>>)>,
}

#[test]
fn a_session_that_moves_is_the_same() {
    let seeds = std::env::var("AERIE_SIMULATION_SEEDS").ok();
    let seeds: u64 = seeds.map_or(100, |it| it.parse().expect("a number of seeds"));
    let mut moved = 0;
    for seed in 0..seeds {
        let mut world = World::new(seed);
        world.run(300);
        moved += world.n_moved;
    }
    assert!(3 * seeds < moved, "{moved} moves in {seeds} seeds");
}

/// Goal: calls for a session on its way wait for it, but not any number of them.
#[test]
fn who_comes_for_a_session_on_its_way_waits_if_there_is_room() {
    let mut world = World::new(3);
    world.ask();
    while world.peers.iter().all(|it| !it.peer.is_known || it.peer.turn.is_some()) {
        world.advance();
    }
    let client = world.peers.iter().find(|it| it.peer.is_known).unwrap();
    let (id, home, now) = (client.peer.id, client.home, world.now);
    let (there, (reply, _answer)) = (1 - home, oneshot::channel());
    let departure = Move {
        who: Principal::ANONYMOUS,
        id,
        expected_position: None,
        only_idle: false,
        from: world.router.peer(WorkerId(home)),
        to: world.router.peer(WorkerId(there)),
        load: world.router.load(WorkerId(there)),
        reply,
    };
    world.workers[home].handle(Event::Move(Box::new(departure)), now);
    let held_max = world.workers[home].parts.limits.held_calls_max as usize;
    let look = |world: &mut World| {
        let (reply, answer) = oneshot::channel();
        let look = Event::Look(Look { who: Principal::ANONYMOUS, id, reply });
        world.workers[home].handle(look, now);
        answer
    };
    let mut answers: Vec<_> = (0..held_max + 2).map(|_| look(&mut world)).collect();
    for answer in answers.split_off(held_max) {
        let refused = answer.blocking_recv().unwrap().unwrap_err();
        assert!(matches!(refused, Reject::Unavailable { .. }), "{refused}");
    }
    for _ in 0..100 {
        world.advance();
    }
    // It has left, and there is room again.
    answers.push(look(&mut world));
    for _ in 0..100 {
        world.advance();
    }
    for answer in answers {
        assert_eq!(answer.blocking_recv().unwrap().unwrap().id, id);
    }
}

/// Goal: of two rows of a session the right one is taken.
#[test]
fn taking_the_wrong_epoch_is_found() {
    PLANTED.set(Some(Bug::IgnoreEpoch));
    let found = (0..300).find(|&seed| catch_unwind(|| World::new(seed).run(300)).is_err());
    PLANTED.set(None);
    assert!(found.is_some());
}

impl World {
    fn new(seed: u64) -> Self {
        let clock = Clock::start();
        let vocabulary = vocabulary();
        let config = crate::admission::Config { requests_max: REQUESTS_MAX, retry_after_ms: 1 };
        let disks = [(); DEVICES].map(|()| [(); 3].map(|()| FaultyStorage::default()));
        let mut rng = StdRng::seed_from_u64(seed);
        let peers = (0..PEERS).map(|_| Client::new(&mut rng)).collect();
        let mut world = Self {
            rng,
            context: format!("seed {seed}"),
            workers: Vec::new(),
            inboxes: Vec::new(),
            is_late: [false; DEVICES],
            router: Router::new(Vec::new()),
            fuse: Fuse::new(),
            vocabulary,
            admission: Admission::new(config),
            clock,
            now: clock.now(),
            peers,
            n_requests: 0,
            n_moved: 0,
        };
        world.boot(disks.into());
        world
    }

    fn boot(&mut self, disks: Vec<Disks>) {
        self.fuse = Fuse::new();
        let recover =
            |disks: Disks| Store::recover(files(disks, &self.fuse, ROOMY), Durability::Fast, 3);
        let mut stores: Vec<_> = disks.into_iter().map(recover).collect();
        let [one, other] = &mut stores[..] else { unreachable!("there are two") };
        keep_later(one, other);
        for client in &mut self.peers {
            let home = stores.iter().position(|(store, _)| store.has(client.peer.id));
            client.home = home.unwrap_or(client.home);
            client.before = client.home;
            client.moving.clear();
        }
        let start = |store| start_with(store, &self.vocabulary, self.clock, ROOMY).0;
        self.workers = stores.into_iter().map(start).collect();
        let mut handles = Vec::new();
        self.inboxes.clear();
        for i in 0..DEVICES {
            // So few places that they are full now and then.
            let (events, inbox) = bounded(3);
            let (_, notices) = bounded(1);
            self.inboxes.push(inbox);
            handles.push(WorkerHandle::new(0, format!("cpu:{i}"), 2, events, notices));
        }
        self.router = Router::new(handles);
    }

    fn run(&mut self, steps: u32) {
        let seed = self.context.clone();
        for step in 0..steps {
            self.context = format!("{seed}, step {step}");
            match self.rng.random_range(0..100) {
                0..30 => self.ask(),
                30..40 => self.ask_again(),
                40..46 => self.lose_a_reader(),
                46..70 => self.move_one(),
                70..74 => self.fuse.light(self.rng.random_range(1..40)),
                74..77 => self.crash(),
                77..84 => {
                    let i = self.rng.random_range(0..DEVICES);
                    self.is_late[i] ^= true;
                }
                _ => {}
            }
            self.advance();
        }
        self.context = format!("{seed}, at the end");
        self.fuse.light(u64::MAX);
        self.is_late = [false; DEVICES];
        for _ in 0..1000 {
            if self.peers.iter().all(|it| it.peer.turn.is_none() && it.moving.is_empty()) {
                return self.one_home_each();
            }
            for i in 0..self.peers.len() {
                if self.peers[i].peer.turn.as_ref().is_some_and(|turn| turn.readers.is_empty()) {
                    self.send(i);
                }
            }
            self.advance();
        }
        panic!("{}: a turn or a move does not end", self.context);
    }

    /// Every session is on one worker, the one that its client was told of.
    fn one_home_each(&self) {
        for Client { peer, home, .. } in self.peers.iter().filter(|it| it.peer.is_known) {
            let has = |worker: &Worker<_, _>| worker.parts.store.has(peer.id);
            let homes: Vec<usize> = (0..DEVICES).filter(|&i| has(&self.workers[i])).collect();
            assert_eq!(homes, [*home], "{}, {}", self.context, peer.id);
        }
    }

    fn advance(&mut self) {
        self.now += Duration::from_millis(self.rng.random_range(0..4));
        let now = self.now;
        for (i, worker) in self.workers.iter_mut().enumerate().filter(|(i, _)| !self.is_late[*i]) {
            let inbox = &self.inboxes[i];
            for event in inbox.try_iter().take(self.rng.random_range(0..4)) {
                worker.handle(event, now);
            }
            worker.step(&|| now);
        }
        if self.fuse.is_dead() {
            return self.crash();
        }
        let Self { peers, rng, context, n_moved, .. } = self;
        for client in peers {
            client.hear(n_moved, context);
            if rng.random_bool(0.6) {
                client.peer.read(rng, context);
                assert_eq!(client.peer.refused, None, "{context}: {}", client.peer.id);
            }
        }
    }

    fn ask(&mut self) {
        let i = self.rng.random_range(0..PEERS);
        let peer = &mut self.peers[i].peer;
        if peer.turn.is_some() {
            return;
        }
        let rng = &mut self.rng;
        let n_prompt = rng.random_range(1..8);
        self.n_requests += 1;
        let stop = if rng.random_bool(0.4) { vec!["ab".to_owned()] } else { Vec::new() };
        let request = Request {
            who: Principal::ANONYMOUS,
            origin: Origin::Session,
            keep: true,
            prompt: (0..n_prompt).map(|_| rng.random_range(1..50)).collect(),
            prompt_only: rng.random_bool(0.1),
            sampling: Sampling { temperature: 1.5, ..Sampling::GREEDY },
            seed: None,
            tokens_max: rng.random_range(1..40),
            stop,
            expected_position: Some(peer.log.len() as u64),
            request_id: self.n_requests.to_string(),
            digest: Some(self.n_requests.into()),
        };
        peer.ask(request, &self.vocabulary);
        self.send(i);
    }

    /// Sends the running request of a client, now and then to where its session was.
    fn send(&mut self, i: usize) {
        let events = self.workers[0].parts.text.events_per_step_max() + self.rng.random_range(0..6);
        let client = &mut self.peers[i];
        let is_late = client.peer.is_known && self.rng.random_bool(0.2);
        let to = WorkerId(if is_late { client.before } else { client.home });
        let Ok(permit) = self.admission.admit(TenantId::ANONYMOUS) else { return };
        let (sender, reader) = pipe(events);
        let turn = client.peer.turn.as_mut().expect("it was asked");
        let drawn_from = turn.base + turn.request.prompt.len();
        let submission = Submission {
            id: client.peer.id,
            request: turn.request.clone(),
            pipe: sender,
            permit,
            load: self.router.load(to),
            is_placed: false,
            arrived: self.now,
        };
        if self.router.send(to, Event::Open(Box::new(submission))).is_ok() {
            turn.readers.push(Reader::new(reader, drawn_from));
        }
    }

    fn ask_again(&mut self) {
        let i = self.rng.random_range(0..PEERS);
        if self.peers[i].peer.turn.as_ref().is_some_and(|turn| turn.readers.len() < 3) {
            self.send(i);
        }
    }

    fn lose_a_reader(&mut self) {
        let i = self.rng.random_range(0..PEERS);
        if let Some(turn) = &mut self.peers[i].peer.turn {
            turn.readers.pop();
        }
    }

    fn move_one(&mut self) {
        let i = self.rng.random_range(0..PEERS);
        let client = &mut self.peers[i];
        let from = if self.rng.random_bool(0.2) { client.before } else { client.home };
        let to = self.rng.random_range(0..DEVICES);
        if 2 <= client.moving.len() || !client.peer.is_known {
            return;
        }
        let (reply, answer) = oneshot::channel();
        let departure = Move {
            who: Principal::ANONYMOUS,
            id: client.peer.id,
            expected_position: None,
            only_idle: self.rng.random_bool(0.2),
            from: self.router.peer(WorkerId(from)),
            to: self.router.peer(WorkerId(to)),
            load: self.router.load(WorkerId(to)),
            reply,
        };
        if self.router.send(WorkerId(from), Event::Move(Box::new(departure))).is_ok() {
            client.moving.push((to, answer));
        }
    }

    /// The process is killed.
    fn crash(&mut self) {
        let killed = |worker: &mut Worker<Dying, FakeDevice>| {
            worker.parts.store.storages_mut().map(|disk| disk.inner().killed())
        };
        let disks = self.workers.iter_mut().map(killed).collect();
        self.peers.iter_mut().for_each(|it| it.peer.disconnect());
        self.boot(disks);
    }
}

impl Client {
    fn new(rng: &mut StdRng) -> Self {
        let home = rng.random_range(0..DEVICES);
        let peer = Peer::new(SessionId(rng.random()), 0);
        Self { peer, home, before: home, moving: Vec::new() }
    }

    /// Takes in what came of a move.
    fn hear(&mut self, n_moved: &mut u64, context: &str) {
        let Self { peer, home, before, moving } = self;
        moving.retain_mut(|(to, answer)| {
            match answer.try_recv() {
                Ok(Ok(standing)) => {
                    assert_eq!(standing.id, peer.id, "{context}");
                    if home != to {
                        (*before, *home) = (*home, *to);
                        *n_moved += 1;
                    }
                }
                Ok(Err(reject)) => {
                    let expected = matches!(
                        reject,
                        Reject::SessionBusy { .. }
                            | Reject::Internal { .. }
                            | Reject::QueueFull { .. }
                            | Reject::Unavailable { .. }
                    );
                    assert!(expected, "{context}: {reject}");
                }
                Err(oneshot::error::TryRecvError::Empty) => return true,
                Err(oneshot::error::TryRecvError::Closed) => panic!("{context}: nobody answers"),
            }
            false
        });
    }
}
