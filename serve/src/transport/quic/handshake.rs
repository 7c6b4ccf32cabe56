//! A handshake under way, and those who wait for its end.

use std::time::Duration;

use quinn::{Connection, ConnectionError, TransportErrorCode, ZeroRttAccepted};
use thiserror::Error;
use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};

use super::door::Attempt;

/// The handshake of a connection that is in use already, for early data.
pub(super) struct Handshake {
    /// Resolves when the handshake has ended, well or not.
    ended: ZeroRttAccepted,
    deadline: Instant,
    attempt: Attempt,
    confirmed: watch::Sender<bool>,
}

/// Tells a call that came early when it may be run.
#[derive(Clone, Debug)]
pub(super) struct Confirmation(watch::Receiver<bool>);

/// Why a handshake did not end well.
#[derive(Debug, Error)]
pub(super) enum HandshakeError {
    #[error("it took too long")]
    TimedOut,
    #[error(transparent)]
    Lost(ConnectionError),
}

impl Handshake {
    pub(super) fn new(ended: ZeroRttAccepted, time_max: Duration, attempt: Attempt) -> Self {
        let deadline = Instant::now() + time_max;
        Self { ended, deadline, attempt, confirmed: watch::Sender::new(false) }
    }

    pub(super) fn confirmation(&self) -> Confirmation {
        Confirmation(self.confirmed.subscribe())
    }

    /// Takes the handshake of `connection` out when it has ended, and tells those who wait for it.
    ///
    /// May be dropped and called again until it returns.
    pub(super) async fn end(
        this: &mut Option<Self>,
        connection: &Connection,
    ) -> Result<(), HandshakeError> {
        let Some(handshake) = this else { return Ok(()) };
        let in_time = timeout_at(handshake.deadline, &mut handshake.ended).await.is_ok();
        let Some(mut handshake) = this.take() else { return Ok(()) };
        if !in_time {
            handshake.attempt.result = "timed_out";
            return Err(HandshakeError::TimedOut);
        }
        // A client may have completed it and gone within the same moment.
        let is_complete = 0 < connection.stats().frame_tx.handshake_done;
        match connection.close_reason() {
            Some(reason) if !is_complete => {
                if is_farewell(&reason) {
                    handshake.attempt.result = "abandoned";
                }
                Err(HandshakeError::Lost(reason))
            }
            _ => {
                handshake.attempt.result = "completed";
                handshake.confirmed.send_replace(true);
                Ok(())
            }
        }
    }
}

impl Confirmation {
    /// Waits for the end of the handshake; false if it does not end well.
    pub(super) async fn confirmed(mut self) -> bool {
        self.0.wait_for(|is_confirmed| *is_confirmed).await.is_ok()
    }
}

/// Whether the client has just left, perhaps because its early calls were answered already.
fn is_farewell(reason: &ConnectionError) -> bool {
    match reason {
        ConnectionError::ApplicationClosed(_) => true,
        // What stands for it in packets that anybody could read (RFC 9000 §10.2.3).
        ConnectionError::ConnectionClosed(close) => {
            close.error_code == TransportErrorCode::APPLICATION_ERROR
        }
        _ => false,
    }
}
