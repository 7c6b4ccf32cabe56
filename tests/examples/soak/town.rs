//! Who is there: the sessions as their clients know them, what was counted, what went wrong.

use std::{
    collections::VecDeque,
    fmt::Write as _,
    io::{self, Write as _},
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use rand::Rng as _;
use rand_chacha::ChaCha8Rng;
use tokio::time::Instant;

use crate::{script::Script, surprise::Surprise};

/// What happened last to a session, for whoever looks for the cause of a surprise.
const HISTORY_MAX: usize = 24;
/// With more surprises than this there is no need for others.
const SURPRISES_MAX: usize = 20;

/// What all visitors share.
#[derive(Debug)]
pub(crate) struct Town {
    pub(crate) scripts: Vec<Script>,
    pub(crate) limits: Limits,
    pub(crate) counts: Counts,
    idle: Mutex<Vec<Guest>>,
    surprises: Mutex<Vec<String>>,
    /// Sessions used since the beginning, each time counted.
    uses: AtomicU64,
    next_number: AtomicU64,
    /// Sessions that have a name, or are about to have one.
    names: AtomicU64,
    is_over: AtomicBool,
}

/// How the server was told to forget.
#[derive(Clone, Debug)]
pub(crate) struct Limits {
    pub(crate) seed: u32,
    pub(crate) sessions_max: u64,
    /// Where sessions are brought.
    pub(crate) devices: Vec<String>,
    pub(crate) idle_max: Duration,
    pub(crate) visitors: u64,
    pub(crate) names_max: u64,
    /// Sessions that visitors keep.
    pub(crate) guests_max: usize,
}

/// Sums over the run.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) sessions: AtomicU64,
    pub(crate) turns: AtomicU64,
    pub(crate) readers: AtomicU64,
    pub(crate) tokens: AtomicU64,
    pub(crate) forks: AtomicU64,
    pub(crate) moves: AtomicU64,
    pub(crate) rewinds: AtomicU64,
    pub(crate) names: AtomicU64,
    pub(crate) carried: AtomicU64,
    pub(crate) deleted: AtomicU64,
    pub(crate) forgotten: AtomicU64,
    pub(crate) cancelled: AtomicU64,
    pub(crate) dropped: AtomicU64,
    pub(crate) repeated: AtomicU64,
    pub(crate) refused: AtomicU64,
    pub(crate) knocks: AtomicU64,
}

/// A session, as its client knows it.
#[derive(Debug)]
pub(crate) struct Guest {
    pub(crate) id: String,
    pub(crate) script: usize,
    pub(crate) position: usize,
    pub(crate) name: Option<String>,
    pub(crate) used: Use,
    history: VecDeque<String>,
}

/// When a session was used, and how many uses of any session there were before.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Use {
    at: Instant,
    number: u64,
}

impl Town {
    pub(crate) fn new(scripts: Vec<Script>, limits: Limits) -> Self {
        Self {
            scripts,
            limits,
            counts: Counts::default(),
            idle: Mutex::default(),
            surprises: Mutex::default(),
            uses: AtomicU64::new(0),
            next_number: AtomicU64::new(1),
            names: AtomicU64::new(0),
            is_over: AtomicBool::new(false),
        }
    }

    /// A session that is yet to be made.
    pub(crate) fn newcomer(&self, script: usize, position: usize) -> Guest {
        self.counts.sessions.fetch_add(1, Ordering::Relaxed);
        let id = format!("{:08x}-0000-4000-8000-{:012x}", self.limits.seed, self.number());
        let used = self.use_now();
        Guest { id, script, position, name: None, used, history: VecDeque::new() }
    }

    /// A number that nothing else has.
    pub(crate) fn number(&self) -> u64 {
        self.next_number.fetch_add(1, Ordering::Relaxed)
    }

    /// Whether another session may have a name, which it must then be given or [`Town::unname`]d.
    pub(crate) fn may_name(&self) -> bool {
        let has_room = self.names.fetch_add(1, Ordering::Relaxed) < self.limits.names_max;
        if !has_room {
            self.unname();
        }
        has_room
    }

    /// A session has lost its name, or is gone.
    pub(crate) fn unname(&self) {
        self.names.fetch_sub(1, Ordering::Relaxed);
    }

    /// Takes an idle session out, so that nobody else uses it meanwhile.
    pub(crate) fn take(&self, rng: &mut ChaCha8Rng) -> Option<Guest> {
        let mut idle = self.idle.lock().expect("no holder panics");
        if idle.is_empty() {
            return None;
        }
        let at = rng.random_range(0..idle.len());
        Some(idle.swap_remove(at))
    }

    pub(crate) fn put_back(&self, guest: Guest) {
        self.idle.lock().expect("no holder panics").push(guest);
    }

    pub(crate) fn n_idle(&self) -> usize {
        self.idle.lock().expect("no holder panics").len()
    }

    /// Every idle session, at the end.
    pub(crate) fn take_all(&self) -> Vec<Guest> {
        std::mem::take(&mut *self.idle.lock().expect("no holder panics"))
    }

    /// A session is being used.
    pub(crate) fn use_now(&self) -> Use {
        Use { at: Instant::now(), number: self.uses.fetch_add(1, Ordering::Relaxed) }
    }

    /// Whether the server may have forgotten a session that was last used so: it was idle for long, or enough others
    /// were used since.
    pub(crate) fn may_be_forgotten(&self, name: Option<&str>, used: Use) -> bool {
        let Limits { sessions_max, idle_max, visitors, .. } = self.limits;
        let slack = Duration::from_secs(2);
        let n_used_since = self.uses.load(Ordering::Relaxed) - used.number;
        let is_expired = idle_max <= used.at.elapsed() + slack;
        let is_evicted = sessions_max <= n_used_since + 4 * visitors;
        name.is_none() && (is_expired || is_evicted)
    }

    /// Notes what went wrong with a session.
    pub(crate) fn surprised(&self, guest: Option<&Guest>, surprise: &Surprise) {
        let mut text = surprise.to_string();
        if let Some(guest) = guest {
            let Guest { id, script, position, .. } = guest;
            write!(text, "\n  session {id} of script {script}, last known at {position}")
                .expect("a string takes everything");
            for line in &guest.history {
                write!(text, "\n    {line}").expect("a string takes everything");
            }
        }
        // At once, for whoever watches; the end of the run tells them all.
        writeln!(io::stderr(), "SURPRISE: {text}").ok();
        let mut surprises = self.surprises.lock().expect("no holder panics");
        surprises.push(text);
        if SURPRISES_MAX <= surprises.len() {
            self.end();
        }
    }

    pub(crate) fn surprises(&self) -> Vec<String> {
        self.surprises.lock().expect("no holder panics").clone()
    }

    pub(crate) fn end(&self) {
        self.is_over.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }
}

impl Guest {
    /// Writes down what is done to the session.
    pub(crate) fn note(&mut self, line: String) {
        if self.history.len() == HISTORY_MAX {
            self.history.pop_front();
        }
        self.history.push_back(line);
    }
}

impl Counts {
    pub(crate) fn one(count: &AtomicU64) {
        count.fetch_add(1, Ordering::Relaxed);
    }
}
