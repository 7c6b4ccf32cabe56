//! Who is let in: permits for generations, and the closed list of reasons to refuse one.

#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{
    auth::TenantId,
    quotas::{Quotas, Share, TooMany},
    router::Gone,
    sessions::SessionId,
};

/// Grants [`Permit`]s up to a limit, and to each tenant up to its own.
#[derive(Clone, Debug)]
pub struct Admission {
    config: Config,
    slots: Arc<Semaphore>,
    /// Of classifications, so that neither of the two takes the other's places.
    classifications: Arc<Semaphore>,
    quotas: Quotas,
}

/// Limits of an [`Admission`].
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Generations in flight, those that wait for a lane included; and as many classifications beside them.
    pub requests_max: u32,
    /// What a client that is turned away for want of room is told to wait.
    pub retry_after_ms: u32,
}

/// The right to read one generation or to run it, or to have something classified; dropping it gives the place back.
#[derive(Debug)]
pub struct Permit {
    _slot: OwnedSemaphorePermit,
    share: Share,
    retry_after: Duration,
}

/// Why a request is refused or a generation fails.
#[derive(Clone, Debug, Error, PartialEq)]
pub enum Reject {
    #[error("{field} {problem}")]
    Invalid { field: &'static str, problem: String },
    /// Nobody knows who asks.
    #[error("the call {problem}")]
    Unauthenticated { problem: &'static str },
    #[error("the call is for admins")]
    NotAdmin,
    /// Who asks may know of it, but not do this.
    #[error("session {id} belongs to another tenant")]
    Forbidden { id: SessionId },
    #[error("model {name:?} is not served here")]
    UnknownModel { name: String },
    #[error("session {id} {}", gone.map_or("does not exist", Gone::describe))]
    UnknownSession { id: SessionId, gone: Option<Gone> },
    #[error("no session has the name {name:?}")]
    UnknownName { name: String },
    #[error("session {id} exists already, at position {position}")]
    SessionExists { id: SessionId, position: u64 },
    #[error("session {id} has the name {name} already")]
    NameTaken { id: SessionId, name: String },
    #[error("{names_max} sessions have a name, which is names_max")]
    TooManyNames { names_max: u32 },
    #[error("session {id} cannot be taken to position {found}: it reaches from {min} to {max}")]
    OutOfRange { id: SessionId, found: u64, min: u64, max: u64 },
    #[error("session {id} is at position {position}, but expected_position is {expected}")]
    StalePosition { id: SessionId, position: u64, expected: u64 },
    #[error("session {id} has a generation running")]
    SessionBusy { id: SessionId },
    #[error("{requests_max} generations are in flight, which is requests_max")]
    QueueFull { requests_max: u32, retry_after: Duration },
    #[error(
        "the tenant keeps as many sessions as its sessions_max = {sessions_max} allows; delete some"
    )]
    QuotaSessions { sessions_max: u32 },
    #[error(
        "the tenant has as many generations in flight, calls or classifications, as its \
         generations_max = {generations_max} allows"
    )]
    QuotaGenerations { generations_max: u32, retry_after: Duration },
    /// There is no room for more of something else.
    #[error("{max} {}", room.describe())]
    Busy { room: Room, max: u32, retry_after: Duration },
    /// Somebody waited for as long as that may take.
    #[error("the {} {} ms, which is {}", wait.describe(), max.as_secs_f64() * 1e3, wait.limit())]
    Expired { wait: Wait, max: Duration },
    #[error("the server is not ready to take requests")]
    Unavailable { retry_after: Duration },
    /// A device or the state cache failed; the log has the details.
    #[error("the server could not go on with this generation: {what}")]
    Internal { what: &'static str },
}

/// What there is no more room for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Room {
    /// Of the Open Inference Protocol.
    Calls,
    Classifications,
    /// Pictures, at one device.
    Rows,
}

/// What somebody waited for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Wait {
    /// A request, for a device: as long as its client wanted it to.
    Device,
    /// The server, for a request that had begun to come.
    Request,
    /// The server, for another request on a stream.
    Stream,
    /// A response on a stream, for its client to read.
    Reader,
}

/// The variants of [`Reject`] without what they hold: a label.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum RejectKind {
    Invalid,
    Unauthenticated,
    NotAdmin,
    Forbidden,
    UnknownModel,
    UnknownSession,
    UnknownName,
    SessionExists,
    NameTaken,
    TooManyNames,
    OutOfRange,
    StalePosition,
    SessionBusy,
    QueueFull,
    QuotaSessions,
    QuotaGenerations,
    Busy,
    Expired,
    Unavailable,
    Internal,
}

impl Admission {
    /// Nobody has a quota.
    pub fn new(config: Config) -> Self {
        let room = || Arc::new(Semaphore::new(config.requests_max as usize));
        Self { config, slots: room(), classifications: room(), quotas: Quotas::default() }
    }

    /// Holds tenants to `quotas` as well.
    pub fn with_quotas(self, quotas: Quotas) -> Self {
        Self { quotas, ..self }
    }

    /// What tenants have and may have.
    pub fn quotas(&self) -> &Quotas {
        &self.quotas
    }

    /// Takes a place for a tenant.
    ///
    /// # Errors
    /// [`Reject::QuotaGenerations`] if it has all of its own, [`Reject::QueueFull`] if all are taken.
    pub fn admit(&self, tenant: TenantId) -> Result<Permit, Reject> {
        let retry_after = self.retry_after();
        let share = self.quotas.begin_call(tenant).map_err(|it| it.reject(retry_after))?;
        let slot = Arc::clone(&self.slots).try_acquire_owned().map_err(|_| self.queue_full())?;
        Ok(Permit { _slot: slot, share, retry_after })
    }

    /// Takes a place for a classification.
    ///
    /// # Errors
    /// [`Reject::QuotaGenerations`] if the tenant has all of its own, [`Reject::Busy`] if all are taken.
    pub fn classify(&self, tenant: TenantId) -> Result<Permit, Reject> {
        let retry_after = self.retry_after();
        let share = self.quotas.classify(tenant).map_err(|it| it.reject(retry_after))?;
        let slot = Arc::clone(&self.classifications).try_acquire_owned();
        let max = self.config.requests_max;
        let busy = |_| Reject::Busy { room: Room::Classifications, max, retry_after };
        Ok(Permit { _slot: slot.map_err(busy)?, share, retry_after })
    }

    /// Takes one of the tenant's places for calls of the Open Inference Protocol.
    ///
    /// # Errors
    /// [`Reject::QuotaGenerations`] if it has all of its own.
    pub fn enter(&self, tenant: TenantId) -> Result<Share, Reject> {
        self.quotas.enter(tenant).map_err(|it| it.reject(self.retry_after()))
    }

    /// The refusal for want of room.
    pub fn queue_full(&self) -> Reject {
        let Config { requests_max, .. } = self.config;
        Reject::QueueFull { requests_max, retry_after: self.retry_after() }
    }

    /// The refusal of a server that starts or drains.
    pub fn unavailable(&self) -> Reject {
        Reject::Unavailable { retry_after: self.retry_after() }
    }

    /// Places of generations that are taken.
    pub fn in_flight(&self) -> usize {
        self.config.requests_max as usize - self.slots.available_permits()
    }

    /// Places of classifications that are taken.
    pub fn classifying(&self) -> usize {
        self.config.requests_max as usize - self.classifications.available_permits()
    }

    /// What a client is told to wait.
    pub fn retry_after(&self) -> Duration {
        Duration::from_millis(self.config.retry_after_ms.into())
    }
}

impl Permit {
    /// Makes it the right to run a generation.
    ///
    /// # Errors
    /// [`Reject::QuotaGenerations`] if the tenant runs as many as it may.
    pub fn generate(&mut self) -> Result<(), Reject> {
        self.share.generate().map_err(|it| it.reject(self.retry_after))
    }
}

impl TooMany {
    fn reject(self, retry_after: Duration) -> Reject {
        Reject::QuotaGenerations { generations_max: self.generations_max, retry_after }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self { requests_max: 256, retry_after_ms: 250 }
    }
}

impl Reject {
    /// Which of them it is.
    pub fn kind(&self) -> RejectKind {
        match self {
            Self::Invalid { .. } => RejectKind::Invalid,
            Self::Unauthenticated { .. } => RejectKind::Unauthenticated,
            Self::NotAdmin => RejectKind::NotAdmin,
            Self::Forbidden { .. } => RejectKind::Forbidden,
            Self::UnknownModel { .. } => RejectKind::UnknownModel,
            Self::UnknownSession { .. } => RejectKind::UnknownSession,
            Self::UnknownName { .. } => RejectKind::UnknownName,
            Self::SessionExists { .. } => RejectKind::SessionExists,
            Self::NameTaken { .. } => RejectKind::NameTaken,
            Self::TooManyNames { .. } => RejectKind::TooManyNames,
            Self::OutOfRange { .. } => RejectKind::OutOfRange,
            Self::StalePosition { .. } => RejectKind::StalePosition,
            Self::SessionBusy { .. } => RejectKind::SessionBusy,
            Self::QueueFull { .. } => RejectKind::QueueFull,
            Self::QuotaSessions { .. } => RejectKind::QuotaSessions,
            Self::QuotaGenerations { .. } => RejectKind::QuotaGenerations,
            Self::Busy { .. } => RejectKind::Busy,
            Self::Expired { .. } => RejectKind::Expired,
            Self::Unavailable { .. } => RejectKind::Unavailable,
            Self::Internal { .. } => RejectKind::Internal,
        }
    }

    /// What kind of refusal it is, for programs.
    pub fn reason(&self) -> String {
        match self {
            Self::UnknownSession { gone, .. } => {
                gone.map_or("NEVER_EXISTED", Gone::label).to_owned()
            }
            _ => self.kind().label().to_uppercase(),
        }
    }

    /// What a program needs to react, by name.
    pub fn metadata(&self) -> Vec<(&'static str, String)> {
        match self {
            Self::Invalid { field, .. } => vec![("field", (*field).to_owned())],
            Self::StalePosition { id, position, .. } | Self::SessionExists { id, position } => {
                vec![("session_id", id.to_string()), ("position", position.to_string())]
            }
            Self::OutOfRange { id, min, max, .. } => vec![
                ("session_id", id.to_string()),
                ("position_min", min.to_string()),
                ("position", max.to_string()),
            ],
            Self::UnknownSession { id, .. }
            | Self::Forbidden { id }
            | Self::SessionBusy { id }
            | Self::NameTaken { id, .. } => {
                vec![("session_id", id.to_string())]
            }
            Self::QuotaSessions { sessions_max } => {
                vec![("sessions_max", sessions_max.to_string())]
            }
            Self::QuotaGenerations { generations_max, .. } => {
                vec![("generations_max", generations_max.to_string())]
            }
            _ => Vec::new(),
        }
    }

    /// When trying again may help; none if it will not.
    pub fn retry_after(&self) -> Option<Duration> {
        match *self {
            Self::QueueFull { retry_after, .. }
            | Self::QuotaGenerations { retry_after, .. }
            | Self::Busy { retry_after, .. }
            | Self::Unavailable { retry_after } => Some(retry_after),
            _ => None,
        }
    }
}

impl Room {
    fn describe(self) -> &'static str {
        match self {
            Self::Calls => "calls of the Open Inference Protocol are open, which is oip.calls_max",
            Self::Classifications => "classifications are in flight, which is requests_max",
            Self::Rows => "pictures wait for this device, which is batcher.queue_rows_max",
        }
    }
}

impl Wait {
    fn describe(self) -> &'static str {
        match self {
            Self::Device => "request waited for",
            Self::Request => "request took more than",
            Self::Stream => "stream was idle for",
            Self::Reader => "client read nothing for",
        }
    }

    /// What says how long that may take.
    fn limit(self) -> &'static str {
        match self {
            Self::Device => "its timeout",
            Self::Request => "oip.request_ms_max",
            Self::Stream | Self::Reader => "oip.idle_ms_max",
        }
    }
}

impl RejectKind {
    /// Every kind, so that each has its series from the start.
    pub const ALL: [Self; 20] = [
        Self::Invalid,
        Self::Unauthenticated,
        Self::NotAdmin,
        Self::Forbidden,
        Self::UnknownModel,
        Self::UnknownSession,
        Self::UnknownName,
        Self::SessionExists,
        Self::NameTaken,
        Self::TooManyNames,
        Self::OutOfRange,
        Self::StalePosition,
        Self::SessionBusy,
        Self::QueueFull,
        Self::QuotaSessions,
        Self::QuotaGenerations,
        Self::Busy,
        Self::Expired,
        Self::Unavailable,
        Self::Internal,
    ];

    /// The label of metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Invalid => "invalid",
            Self::Unauthenticated => "unauthenticated",
            Self::NotAdmin => "not_admin",
            Self::Forbidden => "forbidden",
            Self::UnknownModel => "unknown_model",
            Self::UnknownSession => "unknown_session",
            Self::UnknownName => "unknown_name",
            Self::SessionExists => "session_exists",
            Self::NameTaken => "name_taken",
            Self::TooManyNames => "too_many_names",
            Self::OutOfRange => "out_of_range",
            Self::StalePosition => "stale_position",
            Self::SessionBusy => "session_busy",
            Self::QueueFull => "queue_full",
            Self::QuotaSessions => "quota_sessions",
            Self::QuotaGenerations => "quota_generations",
            Self::Busy => "busy",
            Self::Expired => "expired",
            Self::Unavailable => "unavailable",
            Self::Internal => "internal",
        }
    }
}
