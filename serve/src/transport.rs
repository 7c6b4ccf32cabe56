//! What clients speak: gRPC and QUIC, the same messages over both, and the Open Inference Protocol; and what operators
//! speak, gRPC on a port of its own.
//!
//! A transport decodes, calls [`Service`] and encodes. What both do alike (the turns of a
//! generation stream, the pages of a list) lives here and in [`turns`]; what a wire makes of a
//! `Reject` lives in its own file, in one function.

pub mod admin;
mod call;
mod door;
pub mod grpc;
pub mod oip;
pub mod quic;
mod standing;
mod turns;

#[cfg(test)]
mod tests;

use std::fmt;

use aerie_proto::v1::{self, import_session_request::Message};
use tokio_stream::{Stream, StreamExt};

use self::turns::Broken;
use crate::{
    admission::Reject,
    auth::{Principal, TenantId},
    server::Shutdown,
    service::{ListPlace, Service},
};

/// Sessions in one page of a list: well within a frame.
const PAGE_SESSIONS_MAX: usize = 1000;
/// One page of the sessions; the token of a page is where the one before ended.
async fn list_sessions(
    service: &Service,
    who: Principal,
    request: &v1::ListSessionsRequest,
) -> Result<v1::ListSessionsResponse, Reject> {
    let v1::ListSessionsRequest { page_size, page_token } = request;
    let (sessions, next_page_token) = page(service, who, *page_size, page_token).await?;
    let sessions = sessions.into_iter().map(|(_, session)| session).collect();
    Ok(v1::ListSessionsResponse { sessions, next_page_token })
}

/// One page of the sessions that `who` is shown, and the token of the next.
async fn page(
    service: &Service,
    who: Principal,
    page_size: u32,
    page_token: &str,
) -> Result<(Vec<(TenantId, v1::Session)>, String), Reject> {
    let page_size = match usize::try_from(page_size).unwrap_or(usize::MAX) {
        0 => PAGE_SESSIONS_MAX,
        page_size => page_size.min(PAGE_SESSIONS_MAX),
    };
    let from = match page_token {
        "" => ListPlace::default(),
        token => ListPlace::parse(token).ok_or_else(|| {
            let problem = "is none that this server gave".to_owned();
            Reject::Invalid { field: "page_token", problem }
        })?,
    };
    let (sessions, next) = service.sessions(who, from, page_size).await?;
    Ok((sessions, next.map_or_else(String::new, |it| it.to_string())))
}

impl ListPlace {
    fn parse(token: &str) -> Option<Self> {
        let (worker, place) = token.split_once('.')?;
        Some(Self { worker: worker.parse().ok()?, place: place.parse().ok()? })
    }
}

impl fmt::Display for ListPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.worker, self.place)
    }
}

/// Bytes of a piece of a session's file.
const CHUNK_BYTES: usize = 256 << 10;

/// A session's file in pieces.
fn chunks(file: &[u8]) -> impl Iterator<Item = v1::Chunk> {
    file.chunks(CHUNK_BYTES).map(|piece| v1::Chunk { data: piece.to_vec() })
}

/// Takes in a session's file piece by piece, and makes the session.
async fn import_session(
    service: &Service,
    who: Principal,
    mut requests: impl Stream<Item = Result<v1::ImportSessionRequest, Broken>> + Unpin,
) -> Result<v1::Session, Reject> {
    let bytes_max = service.sealed_bytes_max();
    let invalid = |field, problem: String| Reject::Invalid { field, problem };
    let mut start = None;
    let mut file = Vec::new();
    while let Some(request) = requests.next().await {
        let request = match request {
            Ok(request) => request,
            Err(Broken::Refused(reject)) => return Err(reject),
            Err(Broken::Gone) => return Err(Reject::Internal { what: "its client has gone" }),
        };
        match (request.message, &start) {
            (Some(Message::Start(first)), None) => start = Some(first),
            (Some(Message::Chunk(chunk)), Some(_)) => {
                if bytes_max < file.len() as u64 + chunk.data.len() as u64 {
                    let problem = format!("makes the file longer than {bytes_max} bytes");
                    return Err(invalid("chunk", problem));
                }
                file.extend_from_slice(&chunk.data);
            }
            _ => {
                let problem = "is not a start followed by chunks".to_owned();
                return Err(invalid("message", problem));
            }
        }
    }
    let start = start.ok_or_else(|| invalid("message", "is not there".to_owned()))?;
    service.import_session(who, start, file).await
}

/// Resolves when transports are to stop, or nobody is left to tell them.
async fn stopped(shutdown: &Shutdown) {
    let _ = shutdown.clone().wait_for(|stop| *stop).await;
}
