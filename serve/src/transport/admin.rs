//! gRPC for operators: `aerie.v1.Admin` on a port of its own, to callers who are admins.
//!
//! It has the encryption and the limits of the gRPC that clients call, and outlasts that when the server drains.

use std::{io, net::SocketAddr, time::Duration};

use aerie_proto::{
    ADMIN_DESCRIPTOR_SET,
    frame::FRAME_BYTES_MAX,
    v1::{
        self,
        admin_server::{Admin as AdminCalls, AdminServer},
    },
};
use thiserror::Error;
use tokio::net::TcpListener;
use tonic::{
    Request, Response, Status,
    service::interceptor::{InterceptedService, Interceptor},
    transport::Server,
};
use tracing::{error, info};

use super::{
    call::Call,
    door::{Door, Limits},
    grpc::{self, answer, evidence, status},
    page, stopped,
};
use crate::{
    admin::{Admin, Reloaded, TenantUsage},
    admission::Reject,
    auth::{Principal, TenantId, TokensError},
    server::{Listener, Shutdown},
    telemetry::metrics::Api,
    tls::{Identity, TlsError},
};

/// Why the port could not be opened.
#[derive(Debug, Error)]
pub enum BindError {
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("admin.listen = {listen}: {source}")]
    Bind { listen: SocketAddr, source: io::Error },
}

/// Opens the port and serves until `shutdown`; `config` is that of the clients' gRPC.
///
/// # Errors
/// See [`BindError`].
pub async fn listen(
    listen: SocketAddr,
    config: &grpc::Config,
    identity: &Identity,
    admin: Admin,
    shutdown: Shutdown,
) -> Result<Listener, BindError> {
    let tls = if config.tls { Some(identity.server_config(grpc::ALPN)?) } else { None };
    let bind_error = |source| BindError::Bind { listen, source };
    let listener = TcpListener::bind(listen).await.map_err(bind_error)?;
    let addr = listener.local_addr().map_err(bind_error)?;
    info!(address = %format_args!("{}://{addr}", config.scheme()), "listening to admins");
    let &grpc::Config { connections_max, handshake_ms_max, .. } = config;
    let limits = Limits { connections_max, handshake_ms_max };
    let incoming = Door::new(limits, listener, tls).open(shutdown.clone());
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(ADMIN_DESCRIPTOR_SET)
        .build_v1()
        .expect("the descriptor set was generated");
    let guard = Guard { admin: admin.clone() };
    let calls = AdminServer::new(Front { admin }).max_decoding_message_size(FRAME_BYTES_MAX);
    let millis = |ms: u32| Some(Duration::from_millis(ms.into()));
    let server = Server::builder()
        .max_concurrent_streams(config.streams_max)
        .http2_max_header_list_size(config.header_bytes_max)
        .http2_keepalive_interval(millis(config.keep_alive_ms))
        .http2_keepalive_timeout(millis(config.keep_alive_timeout_ms_max))
        .add_service(reflection)
        .add_service(InterceptedService::new(calls, guard));
    let task = tokio::spawn(async move {
        let stop = async move { stopped(&shutdown).await };
        if let Err(error) = server.serve_with_incoming_shutdown(incoming, stop).await {
            error!(%error, "admin listener broke");
        }
    });
    Ok(Listener { addr, task })
}

#[derive(Clone, Debug)]
struct Front {
    admin: Admin,
}

/// Lets in admins alone, and notes who it is.
#[derive(Clone, Debug)]
struct Guard {
    admin: Admin,
}

impl Interceptor for Guard {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let who = self.admin.service().admin(&evidence(&request));
        let who: Principal = who.map_err(|reject| status(&reject))?;
        request.extensions_mut().insert(who);
        Ok(request)
    }
}

/// Who makes a call, as [`Guard`] has noted.
fn principal<T>(request: &Request<T>) -> Principal {
    *request.extensions().get().expect("no call comes past its guard")
}

impl Front {
    fn begin(&self) -> Call {
        Call::begin(Api::Grpc, self.admin.service())
    }

    fn owned(&self, (tenant, session): (TenantId, v1::Session)) -> v1::OwnedSession {
        v1::OwnedSession { session: Some(session), tenant: self.admin.name_of(tenant) }
    }

    async fn list(
        &self,
        who: Principal,
        request: &v1::ListAllSessionsRequest,
    ) -> Result<v1::ListAllSessionsResponse, Reject> {
        let v1::ListAllSessionsRequest { tenant, page_size, page_token } = request;
        // What a tenant is shown is what it has.
        let who = tenant
            .as_ref()
            .map_or(who, |name| Principal { tenant: self.admin.tenant(name), is_admin: false });
        let (sessions, next_page_token) =
            page(self.admin.service(), who, *page_size, page_token).await?;
        let sessions = sessions.into_iter().map(|it| self.owned(it)).collect();
        Ok(v1::ListAllSessionsResponse { sessions, next_page_token })
    }
}

#[tonic::async_trait]
impl AdminCalls for Front {
    async fn list_tenants(
        &self,
        _: Request<v1::ListTenantsRequest>,
    ) -> Result<Response<v1::ListTenantsResponse>, Status> {
        let tenants = self.admin.tenants().into_iter().map(tenant).collect();
        answer(self.begin(), Ok(v1::ListTenantsResponse { tenants }))
    }

    async fn list_all_sessions(
        &self,
        request: Request<v1::ListAllSessionsRequest>,
    ) -> Result<Response<v1::ListAllSessionsResponse>, Status> {
        let call = self.begin();
        answer(call, self.list(principal(&request), request.get_ref()).await)
    }

    async fn get_session(
        &self,
        request: Request<v1::GetSessionRequest>,
    ) -> Result<Response<v1::OwnedSession>, Status> {
        let (call, service) = (self.begin(), self.admin.service());
        let found = service.owned_session(principal(&request), &request.get_ref().session_id);
        answer(call, found.await.map(|it| self.owned(it)))
    }

    async fn delete_session(
        &self,
        request: Request<v1::DeleteSessionRequest>,
    ) -> Result<Response<v1::DeleteSessionResponse>, Status> {
        let (call, service) = (self.begin(), self.admin.service());
        let deleted = service.delete_session(principal(&request), request.get_ref()).await;
        answer(call, deleted.map(|()| v1::DeleteSessionResponse {}))
    }

    async fn move_session(
        &self,
        request: Request<v1::MoveSessionRequest>,
    ) -> Result<Response<v1::OwnedSession>, Status> {
        let (call, who, service) = (self.begin(), principal(&request), self.admin.service());
        let moved = match service.move_session(who, request.get_ref()).await {
            Ok(session) => service.owned_session(who, &session.session_id).await,
            Err(reject) => Err(reject),
        };
        answer(call, moved.map(|it| self.owned(it)))
    }

    async fn reload(
        &self,
        _: Request<v1::ReloadRequest>,
    ) -> Result<Response<v1::ReloadResponse>, Status> {
        let mut call = self.begin();
        match self.admin.reload().await {
            Ok(Reloaded { n_tenants, gone }) => {
                let tenants = count(n_tenants);
                answer(call, Ok(v1::ReloadResponse { tenants, gone }))
            }
            Err(error) => {
                let field = "auth.tokens_file";
                call.refuse(&Reject::Invalid { field, problem: String::new() });
                Err(unreadable(&error))
            }
        }
    }

    async fn drain(
        &self,
        request: Request<v1::DrainRequest>,
    ) -> Result<Response<v1::DrainResponse>, Status> {
        let call = self.begin();
        let grace = request.get_ref().grace_ms.map(|ms| Duration::from_millis(ms.into()));
        answer(call, Ok(v1::DrainResponse { generations: count(self.admin.drain(grace)) }))
    }
}

/// Why the tenants' file was not taken, whose text operators see in the server's log as well.
fn unreadable(error: &TokensError) -> Status {
    Status::failed_precondition(error.to_string())
}

fn tenant(it: TenantUsage) -> v1::Tenant {
    let TenantUsage { name, listed, usage } = it;
    let quota = listed.as_ref().map(|it| it.quota).unwrap_or_default();
    v1::Tenant {
        name,
        listed: listed.is_some(),
        admin: listed.as_ref().is_some_and(|it| it.is_admin),
        tokens: listed.as_ref().map_or(0, |it| count(it.n_tokens)),
        certificates: listed.as_ref().map_or(0, |it| count(it.n_certificates)),
        sessions: usage.sessions,
        sessions_max: quota.sessions_max.map(Into::into),
        generations: usage.generations,
        generations_max: quota.generations_max.map(Into::into),
    }
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}
