//! Which worker gets which request: sessions stick to the worker that has their state, new ones go
//! where the load is least.

#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};

use crossbeam::channel::{Receiver, Sender, TrySendError};

use crate::{
    sessions::SessionId,
    worker::{Event, Notice},
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
    pub position: u64,
    pub residence: Residence,
    /// In the clock of the state cache.
    pub used_at: u64,
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
        let directory = Directory { entries: HashMap::new(), n_sessions };
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

    pub fn session(&self, id: SessionId) -> Option<Entry> {
        self.directory().entries.get(&id).copied()
    }

    /// Every session, in the order of their ids.
    pub fn sessions(&self) -> Vec<(SessionId, Entry)> {
        let mut sessions: Vec<_> =
            self.directory().entries.iter().map(|(&id, &entry)| (id, entry)).collect();
        sessions.sort_unstable_by_key(|&(id, _)| id);
        sessions
    }

    /// Finds a place for a new session of `model` and notes it: the worker with the least load, of
    /// those the one with the fewest sessions.
    pub fn place(&self, id: SessionId, model: usize, used_at: u64) -> WorkerId {
        let mut directory = self.directory();
        let worker = (0..self.workers.len())
            .filter(|&i| self.workers[i].model == model)
            .min_by_key(|&i| {
                (self.workers[i].load.load(Ordering::Relaxed), directory.n_sessions[i], i)
            })
            .map(WorkerId)
            .expect("every model has a worker");
        let residence = Residence::Active;
        directory.insert(id, Entry { worker, position: 0, residence, used_at });
        worker
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

impl Drop for Load {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Directory {
    fn apply(&mut self, worker: WorkerId, notice: Notice) {
        match notice {
            Notice::Session { id, position, residence, used_at } => {
                self.insert(id, Entry { worker, position, residence, used_at });
            }
            Notice::Gone { id } => self.remove(id),
        }
    }

    fn insert(&mut self, id: SessionId, entry: Entry) {
        self.remove(id);
        self.n_sessions[entry.worker.0] += 1;
        self.entries.insert(id, entry);
    }

    fn remove(&mut self, id: SessionId) {
        if let Some(old) = self.entries.remove(&id) {
            self.n_sessions[old.worker.0] -= 1;
        }
    }
}
