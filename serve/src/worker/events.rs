//! What the async side and a worker tell each other.

use std::time::Instant;

use tokio::sync::oneshot;

use super::{Arrival, Arrived, Change, Fork, List, Look, Move, Pack, Unpack, What};
use crate::{
    admission::{Permit, Reject},
    auth::{Principal, TenantId, TenantMark},
    pipe::{Pipe, PipeEvent},
    request::{Origin, Request},
    router::{Gone, Load, Residence, WorkerId},
    sessions::{Name, SessionId},
};

/// What the async side tells a worker.
#[derive(Debug)]
pub enum Event {
    Open(Box<Submission>),
    Attach(Box<Attachment>),
    Look(Look),
    List(List),
    Change(Box<Change>),
    Pack(Pack),
    Unpack(Box<Unpack>),
    Move(Box<Move>),
    /// From one worker to another.
    Arrive(Box<Arrival>),
    /// And back.
    Arrived(Arrived),
    /// Finish what runs until `deadline`, park everything, end.
    Drain {
        deadline: Instant,
    },
}

impl Event {
    /// The session that may come of it, if the directory waits to hear of that.
    pub fn placed(&self) -> Option<SessionId> {
        match self {
            Self::Open(submission) => submission.is_placed.then_some(submission.id),
            Self::Change(change) => match change.what {
                What::Fork(Fork { new, .. }) => Some(new),
                _ => None,
            },
            Self::Unpack(unpack) => Some(unpack.id),
            _ => None,
        }
    }

    /// Answers a call with a refusal; what workers tell each other has none.
    pub(super) fn refuse(self, reject: Reject) {
        // Whoever asked may have gone.
        match self {
            Self::Open(submission) => {
                let Submission { pipe, permit, load, .. } = *submission;
                drop((permit, load));
                pipe.send(PipeEvent::Failed(reject));
            }
            Self::Attach(attachment) => {
                let Attachment { pipe, permit, .. } = *attachment;
                drop(permit);
                pipe.send(PipeEvent::Failed(reject));
            }
            Self::Look(Look { reply, .. }) => _ = reply.send(Err(reject)),
            Self::Change(change) => _ = change.reply.send(Err(reject)),
            Self::Pack(pack) => _ = pack.reply.send(Err(reject)),
            Self::Unpack(unpack) => _ = unpack.reply.send(Err(reject)),
            Self::Move(departure) => _ = departure.reply.send(Err(reject)),
            Self::List(_) | Self::Arrive(_) | Self::Arrived(_) | Self::Drain { .. } => {}
        }
    }

    /// The sessions that it is about, but for those that move.
    pub(super) fn sessions(&self) -> [Option<SessionId>; 2] {
        match self {
            Self::Open(submission) => match submission.request.origin {
                Origin::Fork { of, .. } => [Some(submission.id), Some(of)],
                Origin::New | Origin::Session => [Some(submission.id), None],
            },
            Self::Attach(attachment) => [Some(attachment.id), None],
            Self::Look(look) => [Some(look.id), None],
            Self::Change(change) => [Some(change.id), self.placed()],
            Self::Pack(pack) => [Some(pack.id), None],
            Self::Unpack(unpack) => [Some(unpack.id), None],
            Self::Move(departure) => [Some(departure.id), None],
            Self::List(_) | Self::Arrive(_) | Self::Arrived(_) | Self::Drain { .. } => [None; 2],
        }
    }
}

/// A generation on its way to a worker.
#[derive(Debug)]
pub struct Submission {
    pub id: SessionId,
    pub request: Request,
    pub pipe: Pipe,
    pub permit: Permit,
    pub load: Load,
    /// It may make the session, and the directory waits to hear of it.
    pub is_placed: bool,
    pub arrived: Instant,
}

/// A reader on its way to a session.
#[derive(Debug)]
pub struct Attachment {
    pub who: Principal,
    pub id: SessionId,
    /// Position of the first token to show.
    pub from_position: u64,
    pub pipe: Pipe,
    pub permit: Permit,
}

/// How a unary call is answered: with how the session stands.
pub type Reply = oneshot::Sender<Result<Standing, Reject>>;

/// How a session stands, as far as others may know.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Standing {
    pub id: SessionId,
    pub tenant: TenantId,
    pub position: u64,
    /// The lowest position to which it can be taken back.
    pub position_min: u64,
    pub residence: Residence,
    pub name: Option<Name>,
    /// In the clock of the state cache.
    pub used_at: u64,
}

/// What a worker tells the directory.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Notice {
    /// There is a session more.
    Made {
        id: SessionId,
    },
    Named {
        id: SessionId,
        tenant: TenantId,
        name: Name,
    },
    Unnamed {
        id: SessionId,
        tenant: TenantId,
        name: Name,
    },
    /// What was to be done about a session that was placed here has been done.
    Settled {
        id: SessionId,
    },
    /// It is on another worker now.
    Moved {
        id: SessionId,
        to: WorkerId,
    },
    /// There is one less.
    Gone {
        id: SessionId,
        tenant: TenantMark,
        why: Gone,
    },
    /// Why one had gone before the server started.
    Recalled {
        id: SessionId,
        tenant: TenantMark,
        why: Gone,
    },
}
