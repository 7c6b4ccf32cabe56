//! Who makes a call that lasts, for as long as that holds: the tenants' file may be read again meanwhile.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use tokio_stream::{Stream, wrappers::WatchStream};

use crate::{
    admission::Reject,
    auth::{Auth, Caller, Principal, Tokens},
    service::Service,
};

/// A caller, and what tells when the tenants' file has been read again.
pub(super) struct Standing {
    caller: Caller,
    auth: Auth,
    changes: WatchStream<Option<Arc<Tokens>>>,
}

impl Standing {
    pub(super) fn new(caller: Caller, service: &Service) -> Self {
        let auth = service.parts().auth.clone();
        let changes = WatchStream::from_changes(auth.changes());
        Self { caller, auth, changes }
    }

    pub(super) fn who(&self) -> Principal {
        self.caller.who
    }

    /// Whether the caller is still who it was when the call began; has `cx` woken when that may change.
    ///
    /// # Errors
    /// [`Reject::Unauthenticated`] if it is not.
    pub(super) fn check(&mut self, cx: &mut Context<'_>) -> Result<(), Reject> {
        while let Poll::Ready(Some(_)) = Pin::new(&mut self.changes).poll_next(cx) {
            self.auth.check(&self.caller)?;
        }
        Ok(())
    }
}
