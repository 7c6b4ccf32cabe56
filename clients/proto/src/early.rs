//! What may be done with a call that came before its handshake was complete.
//!
//! Such a call is early data of TLS (RFC 8446 §2.3, RFC 9001 §9.2): whoever saw it pass can send it
//! again. Both ends ask here, so that a client sends early what a server runs early.

#[cfg(test)]
mod tests;

use crate::v1::{GenerateRequest, call::Call, generate_request::Message};

/// When a call that came early is run.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Early {
    /// At once: run twice, it does no more than run once.
    Run,
    /// When the handshake is complete, which only the client itself can bring about.
    Wait,
}

/// When `call` is run if it comes early. A call that is not named here waits.
pub fn policy(call: &Call) -> Early {
    match call {
        Call::ListSessions(_) | Call::GetSession(_) | Call::ListModels(_) | Call::Attach(_) => {
            Early::Run
        }
        Call::Generate(request) if is_position_checked(request) => Early::Run,
        _ => Early::Wait,
    }
}

/// Whether a second run would find that its session has moved on, and so be refused.
///
/// A new session stands where every new session stands, so that a generation without one is none.
fn is_position_checked(request: &GenerateRequest) -> bool {
    matches!(&request.message, Some(Message::Start(start))
        if !start.session_id.is_empty()
            && start.expected_position.is_some()
            && !start.request_id.is_empty())
}
