//! What clients do in a simulation, and what they are to be told.

use rand::{Rng, rngs::StdRng};
use tokio::sync::oneshot;

use super::{
    super::*,
    peers::{Kept, Peer, Reader},
    world::World,
};
use crate::{
    auth::Principal,
    device::fake::FakeDevice,
    pipe::pipe,
    request::{Origin, Request},
    router::WorkerId,
    sampler::{Penalties, Sampling},
    sessions::Name,
    store::Parcel,
};

const NAMES: [&str; 4] = ["ant", "bee", "cat", "dog"];
/// Files of sessions that clients keep.
const KEPT_MAX: usize = 6;

impl World {
    pub(super) fn act(&mut self) {
        match self.rng.random_range(0..100) {
            0..25 => self.ask(),
            25..40 => self.ask_again(),
            40..48 => self.lose_a_reader(),
            48..52 => self.cancel(),
            52..60 => self.observe(),
            60..66 => self.fork(),
            66..71 => self.rewind(),
            71..73 => self.delete(),
            73..77 if self.shape.has_crashes => self.fuse.light(self.rng.random_range(1..40)),
            77..79 if self.shape.has_crashes => self.crash(),
            79..80 if self.shape.has_crashes => self.restart(),
            80..83 => self.rename(),
            83..85 => self.export(),
            85..88 => self.import(),
            88..94 => self.intrude(),
            _ => {}
        }
    }

    /// A client begins a turn, in a new session or in an idle one.
    fn ask(&mut self) {
        let is_idle =
            |peer: &Peer| peer.turn.is_none() && peer.log.len() <= self.shape.log_tokens_max;
        let idle: Vec<usize> = (0..self.peers.len()).filter(|&i| is_idle(&self.peers[i])).collect();
        let has_room = self.peers.len() < self.shape.peers_max;
        let i = if has_room && (idle.is_empty() || self.rng.random_bool(0.3)) {
            let id = SessionId(self.rng.random());
            self.peers.push(Peer::new(id, self.rng.random_range(0..2)));
            self.peers.len() - 1
        } else if idle.is_empty() {
            return;
        } else {
            idle[self.rng.random_range(0..idle.len())]
        };
        self.n_requests += 1;
        self.counts.turns += 1;
        let request = self.request(i);
        self.peers[i].ask(request, &self.vocabulary);
        self.send(i);
    }

    fn request(&mut self, i: usize) -> Request {
        let rng = &mut self.rng;
        let is_empty = !self.peers[i].log.is_empty() && rng.random_bool(0.2);
        let n_prompt = if is_empty { 0 } else { rng.random_range(1..12) };
        let stops = ["e", "ab", "the"];
        Request {
            who: self.peers[i].who,
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
        }
    }

    /// Sends the running request of a client.
    pub(super) fn send(&mut self, i: usize) {
        let turn = self.peers[i].turn.as_ref().expect("it was asked");
        if self.router.locate(self.peers[i].id).is_none() {
            // If it has given way, it is made again where it may be, and the answer begins anew.
            if !turn.is_made_anew(self.peers[i].id) {
                self.locate(i);
                return;
            }
            if !turn.readers.is_empty() {
                return;
            }
            self.peers[i].turn.as_mut().expect("as before").shown = 0;
        }
        let events = self.worker.parts.text.events_per_step_max() + self.rng.random_range(0..6);
        let Ok(permit) = self.admission.admit(self.peers[i].who.tenant) else { return };
        let (sender, reader) = pipe(events);
        let peer = &mut self.peers[i];
        let turn = peer.turn.as_mut().expect("as before");
        let drawn_from = turn.base + turn.request.prompt.len();
        turn.readers.push(Reader::new(reader, drawn_from));
        let submission = Submission {
            id: peer.id,
            request: turn.request.clone(),
            pipe: sender,
            permit,
            load: self.router.load(WorkerId(0)),
            is_placed: false,
            arrived: self.now,
        };
        self.worker.handle(Event::Open(Box::new(submission)), self.now);
        self.hear();
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
        // What the client was told of, the server stands by.
        if !self.peers[i].is_known || self.peers[i].observers.len() == 2 || !self.locate(i) {
            return;
        }
        let Ok(permit) = self.admission.admit(self.peers[i].who.tenant) else { return };
        let peer = &mut self.peers[i];
        let from = self.rng.random_range(0..=peer.log.len());
        let (sender, reader) = pipe(self.worker.parts.text.events_per_step_max() + 2);
        peer.observers.push(Reader::new(reader, from));
        let (who, id) = (peer.who, peer.id);
        let attachment = Attachment { who, id, from_position: from as u64, pipe: sender, permit };
        self.worker.handle(Event::Attach(Box::new(attachment)), self.now);
    }

    fn fork(&mut self) {
        let Some(i) = self.any_peer() else { return };
        let peer = &self.peers[i];
        let has_room = self.peers.len() < self.shape.peers_max;
        if !peer.is_known || peer.log.is_empty() || !has_room {
            return;
        }
        let at = self.rng.random_range(1..=peer.log.len());
        let mut child = Peer::new(SessionId(self.rng.random()), 0);
        child.who = peer.who;
        child.log = peer.log[..at].to_vec();
        // Which turn of its origin it has the seed of is not for its client to know.
        child.is_fork = true;
        child.is_known = true;
        child.prompts.clone_from(&peer.prompts);
        child.truncate(at);
        let fork =
            Fork { new: child.id, position: Some(at as u64), digest: Some(self.rng.random()) };
        let n = if self.rng.random_bool(0.2) { 2 } else { 1 };
        let mut is_made = false;
        for _ in 0..n {
            // Sent again, it is answered, whatever has become of the origin.
            let Some(answer) = self.change(i, None, What::Fork(fork)) else { return };
            match answer {
                Ok(standing) => {
                    assert_eq!((standing.id, standing.position), (fork.new, at as u64));
                    is_made = true;
                }
                Err(Reject::QueueFull { .. }) if !is_made && self.all_rows_are_held() => return,
                Err(reject) => panic!("{}: {reject}", self.context),
            }
        }
        self.counts.forks += 1;
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
        let rewind = |digest| What::Rewind(Rewind { position: to as u64, digest });
        let Some(stale) = self.change(i, Some(expected + 1), rewind(None)) else { return };
        let expect = Err(Reject::StalePosition { id, position: expected, expected: expected + 1 });
        assert_eq!(stale.map(|it| it.position), expect, "{}", self.context);
        let digest = Some(self.rng.random());
        match self.change(i, Some(expected), rewind(digest)) {
            Some(Ok(standing)) => assert_eq!(standing.position, to as u64, "{}", self.context),
            Some(Err(reject)) => panic!("{}: {reject}", self.context),
            None => return,
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
        let expected = Some(self.peers[i].log.len() as u64);
        let Some(deleted) = self.change(i, expected, What::Delete) else { return };
        let peer = self.peers.swap_remove(i);
        match deleted {
            Ok(_) => {}
            // It was done before the process died.
            Err(Reject::UnknownSession { .. }) => {}
            Err(reject) => panic!("{}: {reject}: {peer:?}", self.context),
        }
        if self.shape.has_crashes {
            self.crash();
        }
        assert!(self.router.locate(peer.id).is_none(), "{}: {peer:?}", self.context);
        assert!(!self.worker.parts.store.has(peer.id), "{}: {peer:?}", self.context);
    }

    /// A session gets a name, as the service goes about it, or loses it.
    fn rename(&mut self) {
        let Some(i) = self.any_peer() else { return };
        if self.peers[i].turn.is_some() || !self.peers[i].is_known || !self.locate(i) {
            return;
        }
        let names = NAMES.map(|name| Name::parse(name).expect("it is one"));
        let name = self.rng.random_bool(0.6).then(|| names[self.rng.random_range(0..4)]);
        let Peer { id, who, .. } = self.peers[i];
        if let Some(name) = name
            && let Err(reject) = self.router.reserve_name(who.tenant, name, id)
        {
            let holder = |it: &Peer| it.who == who && it.name == Some(name) && it.id != id;
            let is_taken = matches!(reject, Reject::NameTaken { .. });
            assert!(is_taken && self.peers.iter().any(holder), "{}: {reject}", self.context);
            return;
        }
        let rename = What::Name(Rename { name });
        let Some(renamed) = self.change(i, None, rename) else { return };
        match renamed {
            Ok(standing) => {
                assert_eq!(standing.name, name, "{}", self.context);
                self.peers[i].name = name;
                self.counts.named += 1;
            }
            Err(reject) => {
                let n_named = self.peers.iter().filter(|peer| peer.name.is_some()).count();
                let is_full = n_named == self.shape.names_max as usize;
                let is_refused = matches!(reject, Reject::TooManyNames { .. });
                assert!(is_refused && is_full, "{}: {reject}", self.context);
                self.router.release_name(who.tenant, name.expect("or it were not"), id);
            }
        }
        for (tenant, name) in [who, self.peers[i].stranger()].iter().zip([name; 2]) {
            let Some(name) = name else { continue };
            let holder = self.peers.iter().find(|it| it.who == *tenant && it.name == Some(name));
            let found = self.router.named(tenant.tenant, name);
            assert_eq!(found, holder.map(|it| it.id), "{}: {name}", self.context);
        }
    }

    /// A client takes its session home.
    fn export(&mut self) {
        let Some(i) = self.any_peer() else { return };
        let peer = &self.peers[i];
        if peer.turn.is_some() || !peer.is_known || !self.locate(i) {
            return;
        }
        let peer = &self.peers[i];
        let Peer { id, who, .. } = *peer;
        let (reply, mut answer) = oneshot::channel();
        let expected_position = Some(peer.log.len() as u64);
        self.worker.handle(Event::Pack(Pack { who, id, expected_position, reply }), self.now);
        if self.fuse.is_dead() {
            return self.crash();
        }
        let packed = answer.try_recv().expect("it is answered at once");
        let parcel = packed.unwrap_or_else(|reject| panic!("{}: {reject}", self.context));
        let peer = &self.peers[i];
        let tokens: Vec<u32> = parcel.log.iter().map(|word| word.token()).collect();
        assert_eq!(tokens, peer.log, "{}", self.context);
        if let Some((computed, state)) = &parcel.state {
            let owed = FakeDevice::absorb_all(&peer.log[..usize::try_from(*computed).unwrap()]);
            assert_eq!(*state, owed.to_le_bytes(), "{}", self.context);
        }
        let kept = Kept { parcel, peer: peer.copied(id, who) };
        if self.kept.len() == KEPT_MAX {
            self.kept.swap_remove(self.rng.random_range(0..KEPT_MAX));
        }
        self.kept.push(kept);
    }

    /// A session is made of a file: under a new id, or its own if that is free, of either tenant.
    fn import(&mut self) {
        if self.kept.is_empty() || self.shape.peers_max <= self.peers.len() {
            return;
        }
        let Kept { parcel, peer } = &self.kept[self.rng.random_range(0..self.kept.len())];
        let is_taken =
            self.peers.iter().any(|it| it.id == peer.id) || self.worker.parts.store.has(peer.id);
        let is_same = !is_taken && self.rng.random_bool(0.5);
        let id = if is_same { peer.id } else { SessionId(self.rng.random()) };
        let copy = peer.copied(id, Peer::tenant(self.rng.random_range(0..2)));
        let parcel = parcel.clone();
        let digest = Some(self.rng.random());
        let n = if self.rng.random_bool(0.2) { 2 } else { 1 };
        for _ in 0..n {
            match self.unpack(copy.who, id, &parcel, digest) {
                Ok(standing) => {
                    let found = (standing.id, standing.position, standing.name);
                    assert_eq!(found, (id, copy.log.len() as u64, None), "{}", self.context);
                }
                Err(Reject::Internal { .. }) if self.all_rows_are_held() => return,
                Err(reject) => panic!("{}: {reject}", self.context),
            }
        }
        self.counts.imports += 1;
        self.peers.push(copy);
    }

    fn unpack(
        &mut self,
        who: Principal,
        id: SessionId,
        parcel: &Parcel,
        digest: Option<u128>,
    ) -> Result<Standing, Reject> {
        loop {
            let (reply, mut answer) = oneshot::channel();
            let unpack = Unpack { who, id, parcel: parcel.clone(), digest, reply };
            self.worker.handle(Event::Unpack(Box::new(unpack)), self.now);
            if !self.fuse.is_dead() {
                self.hear();
                return answer.try_recv().expect("it is answered at once");
            }
            self.crash();
        }
    }

    /// Somebody of another tenant tries all there is on a session, of which that is to be told nothing.
    fn intrude(&mut self) {
        let Some(i) = self.any_peer() else { return };
        let id = self.peers[i].id;
        if self.fuse.is_dead() || !self.worker.parts.store.has(id) {
            return;
        }
        self.counts.intrusions += 1;
        let is_admin = self.rng.random_bool(0.3);
        let who = Principal { is_admin, ..self.peers[i].stranger() };
        let position = self.peers[i].log.len() as u64;
        let owed = match is_admin {
            true => Reject::Forbidden { id },
            false => Reject::UnknownSession { id, gone: None },
        };
        let digest = Some(self.rng.random());
        let new = SessionId(self.rng.random());
        let answer = match self.rng.random_range(0..8) {
            0 => self.intrude_by_request(i, who),
            1 => self.intrude_by_reading(i, who),
            2 => return self.intrude_by_looking(i, who),
            3 => return self.intrude_by_listing(who),
            4 => {
                let fork = Fork { new, position: Some(position), digest };
                self.try_change(who, id, None, What::Fork(fork))
            }
            5 => self.try_change(who, id, None, What::Rewind(Rewind { position: 0, digest })),
            6 => self.try_change(who, id, None, What::Name(Rename { name: None })),
            _ if is_admin => return,
            _ => self.try_change(who, id, None, What::Delete),
        };
        if let Some(answer) = answer {
            assert_eq!(answer.map(drop), Err(owed), "{}: session {id}", self.context);
        }
    }

    /// Sends a request that the session knows, or one that would fit.
    fn intrude_by_request(&mut self, i: usize, who: Principal) -> Answer {
        let peer = &self.peers[i];
        let known = peer.turn.as_ref().or(peer.last.as_ref()).map(|turn| turn.request.clone());
        let request = known.unwrap_or_else(|| self.request(i));
        let permit = self.admission.admit(who.tenant).ok()?;
        let (pipe, mut reader) = pipe(self.worker.parts.text.events_per_step_max());
        let submission = Submission {
            id: self.peers[i].id,
            request: Request { who, ..request },
            pipe,
            permit,
            load: self.router.load(WorkerId(0)),
            is_placed: false,
            arrived: self.now,
        };
        self.worker.handle(Event::Open(Box::new(submission)), self.now);
        self.refusal(reader.receiver.try_recv().ok())
    }

    fn intrude_by_reading(&mut self, i: usize, who: Principal) -> Answer {
        let permit = self.admission.admit(who.tenant).ok()?;
        let (pipe, mut reader) = pipe(self.worker.parts.text.events_per_step_max());
        let id = self.peers[i].id;
        let attachment = Attachment { who, id, from_position: 0, pipe, permit };
        self.worker.handle(Event::Attach(Box::new(attachment)), self.now);
        self.refusal(reader.receiver.try_recv().ok())
    }

    fn refusal(&self, event: Option<PipeEvent>) -> Answer {
        match event {
            Some(PipeEvent::Failed(reject)) => Some(Err(reject)),
            event => panic!("{}: let in, {event:?}", self.context),
        }
    }

    /// An admin may look at it, nobody else.
    fn intrude_by_looking(&mut self, i: usize, who: Principal) {
        let (reply, mut answer) = oneshot::channel();
        let id = self.peers[i].id;
        self.worker.handle(Event::Look(Look { who, id, reply }), self.now);
        let looked = answer.try_recv().expect("it is answered at once");
        let seen = looked.map(|it| (it.id, it.tenant));
        let owed = match who.is_admin {
            true => Ok((id, self.peers[i].who.tenant)),
            false => Err(Reject::UnknownSession { id, gone: None }),
        };
        assert_eq!(seen, owed, "{}", self.context);
    }

    /// A list has what is the tenant's own, and for an admin all.
    fn intrude_by_listing(&mut self, who: Principal) {
        let (mut listed, mut place) = (0, Some(0));
        while let Some(from) = place {
            let (reply, mut answer) = oneshot::channel();
            let list = List { who, place: from, sessions_max: 3, reply };
            self.worker.handle(Event::List(list), self.now);
            let page = answer.try_recv().expect("it is answered at once");
            let may = |it: &Standing| who.is_admin || it.tenant == who.tenant;
            assert!(page.sessions.iter().all(may), "{}: {:?}", self.context, page.sessions);
            listed += page.sessions.len();
            place = page.next;
        }
        if who.is_admin {
            assert_eq!(listed, self.worker.n_sessions(), "{}", self.context);
        }
    }

    /// Whether a new session finds no row: each is one's that runs, has a name, or waits to be written; but for one, which
    /// may be that of a fork's origin.
    fn all_rows_are_held(&self) -> bool {
        let held = self.worker.sessions.iter().filter(|(_, session)| session.lease.is_some());
        self.shape.sessions as usize <= held.count() + 1
    }

    /// Has the worker change the session of a client, who asks until there is an answer; none if the session has given way.
    fn change(&mut self, i: usize, expected: Option<u64>, what: What) -> Answer {
        let Peer { who, id, .. } = self.peers[i];
        let mut is_again = false;
        loop {
            let is_done = is_again && matches!(what, What::Delete);
            if self.router.locate(id).is_none() {
                if is_done {
                    return Some(Err(Reject::UnknownSession { id, gone: None }));
                }
                if !matches!(what, What::Fork(Fork { new, .. }) if self.router.locate(new).is_some())
                {
                    self.locate(i);
                    return None;
                }
            }
            match self.try_change(who, id, expected, what) {
                None => is_again = true,
                answer => return answer,
            }
        }
    }

    /// Has the worker change a session; none if it died over it.
    fn try_change(
        &mut self,
        who: Principal,
        id: SessionId,
        expected_position: Option<u64>,
        what: What,
    ) -> Answer {
        let (reply, mut answer) = oneshot::channel();
        let change = Change { who, id, expected_position, what, reply };
        self.worker.handle(Event::Change(Box::new(change)), self.now);
        if self.fuse.is_dead() {
            self.crash();
            return None;
        }
        self.hear();
        Some(answer.try_recv().expect("it is answered at once"))
    }
}

/// What a client is told; none if nobody answers.
type Answer = Option<Result<Standing, Reject>>;

/// Tokens to append: half of the time they begin as others do, and part from them where others did.
fn prompt(n: usize, rng: &mut StdRng) -> Vec<u32> {
    let alike = if rng.random_bool(0.5) { rng.random_range(3..7).min(n) } else { 0 };
    let common = [3, 17, 29, 5, 41, 2, 8, 33, 12, 7, 21];
    let rest = (alike..n).map(|_| rng.random_range(1..50));
    common.into_iter().take(alike).chain(rest).collect()
}
