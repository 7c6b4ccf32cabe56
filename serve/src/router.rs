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
    auth::{Principal, TenantId},
    sessions::{Name, SessionId},
    worker::{Event, Notice, Standing},
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

/// What is known of a session without asking its worker.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Entry {
    pub worker: WorkerId,
    pub standing: Standing,
}

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

/// Sessions by id. Bounded, because every worker's sessions are.
#[derive(Debug, Default)]
struct Directory {
    entries: HashMap<SessionId, Entry>,
    /// Each tenant has names of its own.
    names: HashMap<(TenantId, Name), SessionId>,
    /// Who has gone lately, and why: the last [`GONE_MAX`].
    gone: HashMap<SessionId, (TenantId, Gone)>,
    gone_order: VecDeque<SessionId>,
    /// Sessions of each worker.
    n_sessions: Vec<u32>,
}

impl WorkerHandle {
    pub fn new(
        model: usize,
        device: String,
        events: Sender<Event>,
        notices: Receiver<Notice>,
    ) -> Self {
        Self { model, device, events, notices, load: Arc::default() }
    }
}

impl Router {
    /// A router to `workers`, whose sessions it does not know yet.
    pub fn new(workers: Vec<WorkerHandle>) -> Self {
        let n_sessions = vec![0; workers.len()];
        let directory = Directory { n_sessions, ..Directory::default() };
        Self { workers, directory: Mutex::new(directory) }
    }

    /// Notes the sessions that a worker has recovered.
    pub fn adopt(&self, worker: WorkerId, notices: Vec<Notice>) {
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

    /// The session `id`, as far as `who` is shown it.
    ///
    /// # Errors
    /// [`Reject::UnknownSession`], with why it is not there, if that is known. A session that `who` is
    /// not shown has never been there.
    pub fn session(&self, who: Principal, id: SessionId) -> Result<Entry, Reject> {
        let directory = self.directory();
        if let Some(entry) = directory.entries.get(&id)
            && who.sees(entry.standing.tenant)
        {
            return Ok(*entry);
        }
        let gone = directory.gone.get(&id).filter(|(tenant, _)| who.sees(*tenant));
        Err(Reject::UnknownSession { id, gone: gone.map(|(_, why)| *why) })
    }

    /// The session of a tenant that has a name.
    pub fn named(&self, tenant: TenantId, name: Name) -> Option<SessionId> {
        self.directory().names.get(&(tenant, name)).copied()
    }

    /// Holds a name for a session, until a notice tells what has become of that.
    ///
    /// # Errors
    /// [`Reject::NameTaken`] if another has it.
    pub fn reserve_name(&self, tenant: TenantId, name: Name, id: SessionId) -> Result<(), Reject> {
        match *self.directory().names.entry((tenant, name)).or_insert(id) {
            other if other != id => Err(Reject::NameTaken { id: other, name: name.to_string() }),
            _ => Ok(()),
        }
    }

    /// Every session that `who` is shown, in the order of their ids.
    pub fn sessions(&self, who: Principal) -> Vec<(SessionId, Entry)> {
        let directory = self.directory();
        let shown = directory.entries.iter().filter(|(_, it)| who.sees(it.standing.tenant));
        let mut sessions: Vec<_> = shown.map(|(&id, &entry)| (id, entry)).collect();
        sessions.sort_unstable_by_key(|&(id, _)| id);
        sessions
    }

    /// Gives up a name that was held for a session which did not get it.
    pub fn release_name(&self, tenant: TenantId, name: Name, id: SessionId) {
        let mut directory = self.directory();
        let has_it = directory.entries.get(&id).is_some_and(|it| it.standing.name == Some(name));
        if !has_it && directory.names.get(&(tenant, name)) == Some(&id) {
            directory.names.remove(&(tenant, name));
        }
    }

    /// Finds a place for a session of `model`, which is new unless it is there: the worker with the least load,
    /// of those the one with the fewest sessions. A new one is noted; says whether it was.
    ///
    /// # Errors
    /// [`Reject::UnknownSession`] if another tenant has it.
    pub fn place(&self, standing: Standing, model: usize) -> Result<(WorkerId, bool), Reject> {
        let mut directory = self.directory();
        if let Some(entry) = directory.entries.get(&standing.id) {
            return entry.of(standing.tenant).map(|it| (it.worker, false));
        }
        let worker = (0..self.workers.len())
            .filter(|&i| self.workers[i].model == model)
            .min_by_key(|&i| {
                (self.workers[i].load.load(Ordering::Relaxed), directory.n_sessions[i], i)
            })
            .map(WorkerId)
            .expect("every model has a worker");
        directory.insert(standing.id, Entry { worker, standing });
        Ok((worker, true))
    }

    /// Notes a new session on the worker that has its origin; says whether it was not there yet.
    ///
    /// # Errors
    /// As [`Router::place`].
    pub fn place_beside(&self, standing: Standing, worker: WorkerId) -> Result<bool, Reject> {
        let mut directory = self.directory();
        if let Some(entry) = directory.entries.get(&standing.id) {
            return entry.of(standing.tenant).map(|_| false);
        }
        directory.insert(standing.id, Entry { worker, standing });
        Ok(true)
    }

    /// Takes back a [`Router::place`] that came to nothing.
    pub fn unplace(&self, id: SessionId) {
        self.directory().remove(id);
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
        self.worker(worker).events.try_send(event).map_err(|error| match error {
            TrySendError::Full(_) => SendError::Full,
            TrySendError::Disconnected(_) => SendError::Gone,
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

impl Entry {
    /// The entry, if the session is `tenant`'s own.
    fn of(self, tenant: TenantId) -> Result<Self, Reject> {
        let id = self.standing.id;
        let is_own = self.standing.tenant == tenant;
        is_own.then_some(self).ok_or(Reject::UnknownSession { id, gone: None })
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
            Notice::Session(standing) => self.insert(standing.id, Entry { worker, standing }),
            Notice::Gone { id, why } => {
                let tenant = self.remove(id).map(|it| it.standing.tenant).unwrap_or_default();
                if self.gone.insert(id, (tenant, why)).is_none() {
                    self.gone_order.push_back(id);
                }
                if GONE_MAX < self.gone_order.len()
                    && let Some(oldest) = self.gone_order.pop_front()
                {
                    self.gone.remove(&oldest);
                }
            }
        }
    }

    fn insert(&mut self, id: SessionId, entry: Entry) {
        self.remove(id);
        self.n_sessions[entry.worker.0] += 1;
        if let Some(name) = entry.standing.name {
            self.names.insert((entry.standing.tenant, name), id);
        }
        self.entries.insert(id, entry);
    }

    fn remove(&mut self, id: SessionId) -> Option<Entry> {
        let old = self.entries.remove(&id)?;
        self.n_sessions[old.worker.0] -= 1;
        if let Some(name) = old.standing.name {
            self.names.remove(&(old.standing.tenant, name));
        }
        Some(old)
    }
}

impl Gone {
    /// What is said of a session that is not there.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Ended => "was not to be kept",
            Self::Deleted => "was deleted",
            Self::Evicted => "gave way to others that were used later",
            Self::Expired => "was not used for too long",
        }
    }

    /// For programs.
    pub fn label(self) -> &'static str {
        match self {
            Self::Ended => "ENDED",
            Self::Deleted => "DELETED",
            Self::Evicted => "EVICTED",
            Self::Expired => "EXPIRED",
        }
    }
}

/// Sessions that are remembered for having gone.
const GONE_MAX: usize = 1 << 14;
