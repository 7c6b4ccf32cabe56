//! Which worker gets which request: sessions stick to the worker that has their state, new ones go
//! where the load is least.

#[cfg(test)]
mod tests;

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};

use crossbeam::channel::{Receiver, Sender, TrySendError};

use crate::{
    admission::Reject,
    auth::{Principal, TenantId, TenantMark},
    sessions::{Name, SessionId},
    worker::{Event, Notice, Peer},
};

/// The way from requests to workers, and the directory of sessions.
#[derive(Debug)]
pub struct Router {
    workers: Vec<WorkerHandle>,
    directory: Mutex<Directory>,
}

/// The async side's end of one worker.
#[derive(Debug)]
pub struct WorkerHandle {
    /// Which of the server's models it runs.
    pub model: usize,
    /// As in `--device`.
    pub device: String,
    /// Generations that it can run at once.
    pub lanes_max: u32,
    pub events: Sender<Event>,
    pub notices: Receiver<Notice>,
    load: Arc<AtomicU32>,
}

/// Which worker, in the order of their start.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct WorkerId(pub usize);

/// A generation that counts as load of its worker until this is dropped.
#[derive(Debug)]
pub struct Load(Arc<AtomicU32>);

/// Why a session is not there any more.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Gone {
    /// It was not to be kept.
    Ended,
    Deleted,
    /// It gave way to others.
    Evicted,
    /// Nobody used it for too long.
    Expired,
    /// What the disk has of it cannot be read.
    Lost,
}

/// Where a session's state is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Residence {
    /// A generation is running.
    Active,
    /// Idle, in the device's arena.
    Resident,
    /// In the state cache alone.
    Parked,
}

/// Why an event did not reach its worker.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum SendError {
    Full,
    /// The worker has ended.
    Gone,
}

/// Where sessions are, and names and what is gone beside that. Bounded, because every worker's sessions are.
///
/// A session takes 7 bytes of a table: there may be millions, nearly all of them asleep.
#[derive(Debug, Default)]
struct Directory {
    /// Where the sessions are whose ids have a tag.
    tags: HashMap<Tag, Homes>,
    /// Sessions that are not where their tag says, as another session's tag is the same: a few.
    strays: HashMap<SessionId, WorkerId>,
    /// Sessions in the making, and how often.
    pending: HashMap<SessionId, (WorkerId, u32)>,
    /// Each tenant has names of its own.
    names: HashMap<(TenantId, Name), Named>,
    /// Who has gone lately, and why: the last [`GONE_MAX`].
    gone: HashMap<SessionId, (TenantMark, Gone)>,
    gone_order: VecDeque<SessionId>,
    /// Sessions of each worker.
    n_sessions: Vec<u32>,
}

/// Forty bits of a session's id, mixed: of a million sessions, hardly two have the same.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
struct Tag([u8; 5]);

/// Where the sessions with a tag are, and how many they are.
#[derive(Clone, Copy, Debug)]
struct Homes {
    worker: u8,
    n: u8,
}

/// Who has a name.
#[derive(Clone, Copy, Debug)]
struct Named {
    id: SessionId,
    /// Its worker has written it down.
    is_written: bool,
}

/// Workers of one server, at most.
pub const WORKERS_MAX: usize = 256;

impl WorkerHandle {
    pub fn new(
        model: usize,
        device: String,
        lanes_max: u32,
        events: Sender<Event>,
        notices: Receiver<Notice>,
    ) -> Self {
        Self { model, device, lanes_max, events, notices, load: Arc::default() }
    }
}

impl Router {
    /// A router to `workers`, at most [`WORKERS_MAX`], whose sessions it does not know yet.
    pub fn new(workers: Vec<WorkerHandle>) -> Self {
        assert!(workers.len() <= WORKERS_MAX, "{} workers", workers.len());
        let n_sessions = vec![0; workers.len()];
        let directory = Directory { n_sessions, ..Directory::default() };
        Self { workers, directory: Mutex::new(directory) }
    }

    /// Notes what a worker has recovered.
    pub fn adopt(&self, worker: WorkerId, notices: impl IntoIterator<Item = Notice>) {
        let mut directory = self.directory();
        notices.into_iter().for_each(|notice| directory.apply(worker, notice));
    }

    /// The workers, in the order of their ids.
    pub fn workers(&self) -> &[WorkerHandle] {
        &self.workers
    }

    pub fn worker(&self, id: WorkerId) -> &WorkerHandle {
        &self.workers[id.0]
    }

    /// The worker that knows whether there is a session `id`; none if nobody has it.
    pub fn locate(&self, id: SessionId) -> Option<WorkerId> {
        self.directory().locate(id)
    }

    /// Why session `id`, which is not there, is not, as far as `who` is told. A session that `who` was
    /// not shown has never been there.
    pub fn gone(&self, who: Principal, id: SessionId) -> Option<Gone> {
        let directory = self.directory();
        directory.gone.get(&id).filter(|(tenant, _)| who.may_see(*tenant)).map(|(_, why)| *why)
    }

    /// The session of a tenant that has a name.
    pub fn named(&self, tenant: TenantId, name: Name) -> Option<SessionId> {
        self.directory().names.get(&(tenant, name)).map(|it| it.id)
    }

    /// Holds a name for a session, until a notice tells what has become of that.
    ///
    /// # Errors
    /// [`Reject::NameTaken`] if another has it.
    pub fn reserve_name(&self, tenant: TenantId, name: Name, id: SessionId) -> Result<(), Reject> {
        let reserved = Named { id, is_written: false };
        match *self.directory().names.entry((tenant, name)).or_insert(reserved) {
            other if other.id != id => {
                Err(Reject::NameTaken { id: other.id, name: name.to_string() })
            }
            _ => Ok(()),
        }
    }

    /// Gives up a name that was held for a session which did not get it.
    pub fn release_name(&self, tenant: TenantId, name: Name, id: SessionId) {
        let mut directory = self.directory();
        let held = directory.names.get(&(tenant, name));
        if held.is_some_and(|it| it.id == id && !it.is_written) {
            directory.names.remove(&(tenant, name));
        }
    }

    /// Finds a place for a session of `model`, which is new unless it is there: the worker with the least load,
    /// of those the one with the fewest sessions. Until that has settled what becomes of the session, whoever asks
    /// for it is sent there as well.
    pub fn place(&self, id: SessionId, model: usize) -> WorkerId {
        let mut directory = self.directory();
        let known = directory.locate(id).filter(|it| self.workers[it.0].model == model);
        let worker = known.unwrap_or_else(|| {
            (0..self.workers.len())
                .filter(|&i| self.workers[i].model == model)
                .min_by_key(|&i| {
                    let load = self.workers[i].load.load(Ordering::Relaxed);
                    (load, directory.n_sessions_on(WorkerId(i)), i)
                })
                .map(WorkerId)
                .expect("every model has a worker")
        });
        directory.place(id, worker);
        worker
    }

    /// As [`Router::place`], for a session that has its origin on `worker`.
    pub fn place_beside(&self, id: SessionId, worker: WorkerId) -> WorkerId {
        let mut directory = self.directory();
        let worker = directory.locate(id).unwrap_or(worker);
        directory.place(id, worker);
        worker
    }

    /// The worker of the same model as `worker` that runs on `device`.
    pub fn beside(&self, worker: WorkerId, device: &str) -> Option<WorkerId> {
        let model = self.worker(worker).model;
        let is_it = |it: &WorkerHandle| it.model == model && it.device == device;
        self.workers.iter().position(is_it).map(WorkerId)
    }

    /// A worker of the same model that has free lanes, if `worker` has none.
    pub fn lighter(&self, worker: WorkerId) -> Option<WorkerId> {
        let load = |it: &WorkerHandle| it.load.load(Ordering::Relaxed);
        let busy = self.worker(worker);
        if load(busy) < busy.lanes_max {
            return None;
        }
        let beside = |i: &usize| self.workers[*i].model == busy.model;
        let lightest =
            (0..self.workers.len()).filter(beside).min_by_key(|&i| load(&self.workers[i]))?;
        (load(&self.workers[lightest]) < self.workers[lightest].lanes_max)
            .then_some(WorkerId(lightest))
    }

    /// A worker as others reach it.
    pub fn peer(&self, worker: WorkerId) -> Peer {
        Peer { worker, events: self.worker(worker).events.clone() }
    }

    /// Counts a generation on `worker`.
    pub fn load(&self, worker: WorkerId) -> Load {
        let load = Arc::clone(&self.worker(worker).load);
        load.fetch_add(1, Ordering::Relaxed);
        Load(load)
    }

    /// Hands an event to a worker, without waiting.
    ///
    /// # Errors
    /// See [`SendError`].
    pub fn send(&self, worker: WorkerId, event: Event) -> Result<(), SendError> {
        let placed = event.placed();
        self.worker(worker).events.try_send(event).map_err(|error| {
            if let Some(id) = placed {
                self.directory().settle(id);
            }
            match error {
                TrySendError::Full(_) => SendError::Full,
                TrySendError::Disconnected(_) => SendError::Gone,
            }
        })
    }

    /// The directory, up to date: a worker's notice of a session is sent before its client hears,
    /// so what a client was told is in here.
    fn directory(&self) -> MutexGuard<'_, Directory> {
        // Every change of the directory is complete in itself, so a panic elsewhere spoils nothing.
        let mut directory = self.directory.lock().unwrap_or_else(PoisonError::into_inner);
        for (i, worker) in self.workers.iter().enumerate() {
            for notice in worker.notices.try_iter() {
                directory.apply(WorkerId(i), notice);
            }
        }
        directory
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Directory {
    fn apply(&mut self, worker: WorkerId, notice: Notice) {
        match notice {
            Notice::Made { id } => self.insert(id, worker),
            Notice::Named { id, tenant, name } => {
                self.names.insert((tenant, name), Named { id, is_written: true });
            }
            Notice::Unnamed { id, tenant, name } => {
                if self.names.get(&(tenant, name)).is_some_and(|it| it.id == id) {
                    self.names.remove(&(tenant, name));
                }
            }
            Notice::Gone { id, tenant, why } => {
                self.remove(id, worker);
                self.remember(id, tenant, why);
            }
            Notice::Settled { id } => self.settle(id),
            Notice::Moved { id, to } => {
                self.remove(id, worker);
                self.insert(id, to);
            }
            Notice::Recalled { id, tenant, why } => self.remember(id, tenant, why),
        }
    }

    fn locate(&self, id: SessionId) -> Option<WorkerId> {
        if let Some((worker, _)) = self.pending.get(&id) {
            return Some(*worker);
        }
        let by_tag = || self.tags.get(&Tag::of(id)).map(|homes| WorkerId(homes.worker.into()));
        self.strays.get(&id).copied().or_else(by_tag)
    }

    fn place(&mut self, id: SessionId, worker: WorkerId) {
        self.pending.entry(id).or_insert((worker, 0)).1 += 1;
    }

    fn settle(&mut self, id: SessionId) {
        if let Some((_, n)) = self.pending.get_mut(&id) {
            *n -= 1;
            if *n == 0 {
                self.pending.remove(&id);
            }
        }
    }

    fn insert(&mut self, id: SessionId, worker: WorkerId) {
        self.n_sessions[worker.0] += 1;
        let number = u8::try_from(worker.0).expect("there are at most WORKERS_MAX");
        let homes = self.tags.entry(Tag::of(id)).or_insert(Homes { worker: number, n: 0 });
        if homes.worker == number && homes.n < u8::MAX {
            homes.n += 1;
        } else {
            self.strays.insert(id, worker);
        }
    }

    fn remove(&mut self, id: SessionId, worker: WorkerId) {
        self.n_sessions[worker.0] -= 1;
        if self.strays.get(&id) == Some(&worker) {
            self.strays.remove(&id);
        } else if let Some(homes) = self.tags.get_mut(&Tag::of(id)) {
            homes.n -= 1;
            if homes.n == 0 {
                self.tags.remove(&Tag::of(id));
            }
        }
    }

    fn remember(&mut self, id: SessionId, tenant: TenantMark, why: Gone) {
        if self.gone.insert(id, (tenant, why)).is_none() {
            self.gone_order.push_back(id);
        }
        if GONE_MAX < self.gone_order.len()
            && let Some(oldest) = self.gone_order.pop_front()
        {
            self.gone.remove(&oldest);
        }
    }

    fn n_sessions_on(&self, worker: WorkerId) -> usize {
        let pending = self.pending.values().filter(|(it, _)| *it == worker);
        self.n_sessions[worker.0] as usize + pending.count()
    }
}

impl Tag {
    fn of(id: SessionId) -> Self {
        // Ids are random bits, unless a client has made up its own.
        let mixed = id.0 ^ (id.0 >> 61) ^ (id.0 << 47);
        let [a, b, c, d, e, ..] =
            mixed.wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835).to_be_bytes();
        Self([a, b, c, d, e])
    }
}

impl Gone {
    pub const ALL: [Self; 5] =
        [Self::Ended, Self::Deleted, Self::Evicted, Self::Expired, Self::Lost];

    /// What is said of a session that is not there.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Ended => "was not to be kept",
            Self::Deleted => "was deleted",
            Self::Evicted => "gave way to others that were used later",
            Self::Expired => "was not used for too long",
            Self::Lost => "was damaged on the disk",
        }
    }

    /// For programs.
    pub fn label(self) -> &'static str {
        match self {
            Self::Ended => "ENDED",
            Self::Deleted => "DELETED",
            Self::Evicted => "EVICTED",
            Self::Expired => "EXPIRED",
            Self::Lost => "LOST",
        }
    }
}

/// Sessions that are remembered for having gone.
const GONE_MAX: usize = 1 << 14;
