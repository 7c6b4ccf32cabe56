//! What clients speak: gRPC and QUIC, the same messages over both.
//!
//! A transport decodes, calls [`Service`] and encodes. What both do alike (the turns of a
//! generation stream, the pages of a list) lives here and in [`turns`]; what a wire makes of a
//! `Reject` lives in its own file, in one function.

mod call;
pub mod grpc;
pub mod quic;
mod turns;

#[cfg(test)]
mod tests;

use aerie_proto::v1;

use crate::{admission::Reject, server::Shutdown, service::Service};

/// Sessions in one page of a list: well within a frame.
const PAGE_SESSIONS_MAX: usize = 1000;

/// One page of the sessions in the order of their ids; the token of a page is the id it follows.
fn list_sessions(
    service: &Service,
    request: &v1::ListSessionsRequest,
) -> Result<v1::ListSessionsResponse, Reject> {
    let page_size = match usize::try_from(request.page_size).unwrap_or(usize::MAX) {
        0 => PAGE_SESSIONS_MAX,
        page_size => page_size.min(PAGE_SESSIONS_MAX),
    };
    let mut sessions = service.sessions();
    sessions.retain(|it| request.page_token < it.session_id);
    sessions.sort_unstable_by(|a, b| a.session_id.cmp(&b.session_id));
    let has_more = page_size < sessions.len();
    sessions.truncate(page_size);
    let next_page_token = match sessions.last() {
        Some(last) if has_more => last.session_id.clone(),
        _ => String::new(),
    };
    Ok(v1::ListSessionsResponse { sessions, next_page_token })
}

/// Resolves when transports are to stop, or nobody is left to tell them.
async fn stopped(shutdown: &Shutdown) {
    let _ = shutdown.clone().wait_for(|stop| *stop).await;
}
