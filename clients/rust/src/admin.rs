//! What operators ask of a server, at its admin listener.

use aerie_proto::v1::{self, admin_client::AdminClient};

use crate::{
    Credentials, Error, Trust,
    client::{Address, parse_address},
    grpc::{self, Secured},
    quic::Place,
};

/// A connection to the admin listener of a server; cloning gives another handle to the same.
#[derive(Clone, Debug)]
pub struct Admin {
    calls: AdminClient<Secured>,
}

/// Sessions asked for at once.
const PAGE_SESSIONS: u32 = 1000;

impl Admin {
    /// Connects to `grpc://HOST:PORT` or `grpcs://HOST:PORT`.
    ///
    /// # Errors
    /// If the address has another form, `trust` or `credentials` cannot be used, or nobody answers within 10 s.
    pub async fn connect(
        address: &str,
        trust: &Trust,
        credentials: &Credentials,
    ) -> Result<Self, Error> {
        let (authority, trust) = match parse_address(address)? {
            Address::Grpc(authority) => (authority, None),
            Address::Grpcs(authority) => (authority, Some(trust)),
            Address::Quic(_) => {
                let problem =
                    "is not what admins are listened to: that is grpc or grpcs".to_owned();
                return Err(Error::Address { address: address.to_owned(), problem });
            }
        };
        let place = Place { address: address.to_owned(), authority: authority.to_owned() };
        let connection = grpc::Connection::open(&place, trust, credentials).await?;
        Ok(Self { calls: AdminClient::new(connection.channel()) })
    }

    /// Every tenant that is listed or keeps sessions.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn tenants(&self) -> Result<Vec<v1::Tenant>, Error> {
        let answer = self.calls.clone().list_tenants(v1::ListTenantsRequest {}).await;
        Ok(answer.map_err(grpc::rejected)?.into_inner().tenants)
    }

    /// Every session of a tenant, or of all.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn sessions(&self, tenant: Option<&str>) -> Result<Vec<v1::OwnedSession>, Error> {
        let mut sessions = Vec::new();
        let mut page_token = String::new();
        loop {
            let tenant = tenant.map(str::to_owned);
            let page_size = PAGE_SESSIONS;
            let request = v1::ListAllSessionsRequest { tenant, page_size, page_token };
            let answer = self.calls.clone().list_all_sessions(request).await;
            let page = answer.map_err(grpc::rejected)?.into_inner();
            sessions.extend(page.sessions);
            if page.next_page_token.is_empty() {
                return Ok(sessions);
            }
            page_token = page.next_page_token;
        }
    }

    /// A session of any tenant, by its id.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn session(&self, id: &str) -> Result<v1::OwnedSession, Error> {
        let request = v1::GetSessionRequest { session_id: id.to_owned() };
        let answer = self.calls.clone().get_session(request).await;
        Ok(answer.map_err(grpc::rejected)?.into_inner())
    }

    /// Has the server forget an idle session of any tenant.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn delete_session(&self, request: v1::DeleteSessionRequest) -> Result<(), Error> {
        let answer = self.calls.clone().delete_session(request).await;
        answer.map(drop).map_err(grpc::rejected)
    }

    /// Brings a session of any tenant to another device of the server; nobody notices who reads it.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn move_session(
        &self,
        request: v1::MoveSessionRequest,
    ) -> Result<v1::OwnedSession, Error> {
        let answer = self.calls.clone().move_session(request).await;
        Ok(answer.map_err(grpc::rejected)?.into_inner())
    }

    /// Has the server read its tenants' file again.
    ///
    /// # Errors
    /// [`Error::Rejected`] with [`Code::FailedPrecondition`](crate::Code::FailedPrecondition) if that cannot be read; what it
    /// said before holds on.
    pub async fn reload(&self) -> Result<v1::ReloadResponse, Error> {
        let answer = self.calls.clone().reload(v1::ReloadRequest {}).await;
        Ok(answer.map_err(grpc::rejected)?.into_inner())
    }

    /// Has the server finish what runs, park all sessions and end; tells how many generations and classifications
    /// are to finish.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn drain(&self, grace_ms: Option<u32>) -> Result<u32, Error> {
        let answer = self.calls.clone().drain(v1::DrainRequest { grace_ms }).await;
        Ok(answer.map_err(grpc::rejected)?.into_inner().generations)
    }
}
