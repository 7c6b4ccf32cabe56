//! What operators may do with a running server; `transport/admin.rs` is how they ask.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::{sync::watch, task::spawn_blocking};
use tracing::{error, info, warn};

use crate::{
    auth::{self, TenantId, TokensError},
    quotas::{Usage, promised},
    service::{Readiness, Service},
};

/// Where operators ask.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where to listen (TCP), with the encryption and the limits of `grpc`; nowhere if it is not set. Port 0 lets the system
    /// choose.
    pub listen: Option<std::net::SocketAddr>,
}

/// The server as operators see it; cloning gives another handle to the same.
#[derive(Clone, Debug)]
pub struct Admin {
    service: Service,
    /// Sessions that a device keeps.
    sessions_max: u32,
    drain: watch::Sender<Option<Drain>>,
}

/// That the server is to drain.
#[derive(Clone, Copy, Debug)]
struct Drain {
    /// How long running generations may take; none for what the configuration says.
    grace: Option<Duration>,
}

/// A tenant, and what it has.
#[derive(Clone, Debug)]
pub struct TenantUsage {
    pub name: String,
    /// None of one that is not listed any more.
    pub listed: Option<auth::Tenant>,
    pub usage: Usage,
}

/// What came of reading the tenants' file again.
#[derive(Clone, Debug)]
pub struct Reloaded {
    pub n_tenants: usize,
    /// Names of those that are not listed any more.
    pub gone: Vec<String>,
}

impl Admin {
    /// Says as well if the tenants have been promised more than there is room for.
    pub fn new(service: Service, sessions_max: u32) -> Self {
        let admin = Self { service, sessions_max, drain: watch::Sender::new(None) };
        admin.warn_of_promises(&admin.auth().tenants());
        admin
    }

    pub fn service(&self) -> &Service {
        &self.service
    }

    /// Every tenant that is listed, in the order of the file, then those that only have sessions.
    pub fn tenants(&self) -> Vec<TenantUsage> {
        let quotas = self.service.parts().admission.quotas();
        let listed = self.auth().tenants();
        let mut others = quotas.all();
        others.retain(|(id, usage)| {
            *usage != Usage::default() && !listed.iter().any(|it| it.id == *id)
        });
        others.sort_by_key(|(id, _)| id.0);
        let others = others.into_iter().map(|(id, usage)| TenantUsage {
            name: self.name_of(id),
            listed: None,
            usage,
        });
        let named = listed.into_iter().map(|tenant| TenantUsage {
            name: tenant.name.clone(),
            usage: quotas.usage(tenant.id),
            listed: Some(tenant),
        });
        named.chain(others).collect()
    }

    /// What a tenant is called, be it listed or not.
    pub fn name_of(&self, id: TenantId) -> String {
        let listed = self.auth().tenants().into_iter().find(|it| it.id == id);
        match listed {
            Some(tenant) => tenant.name,
            None if id == TenantId::ANONYMOUS => String::new(),
            None => id.to_string(),
        }
    }

    /// The tenant that is called `name`, be there one or not.
    pub fn tenant(&self, name: &str) -> TenantId {
        match name {
            "" => TenantId::ANONYMOUS,
            name => TenantId::parse(name).unwrap_or_else(|| TenantId::named(name)),
        }
    }

    /// Reads the tenants' file again, and ends the streams of those that are not in it any more. Says in the log what came of
    /// it.
    ///
    /// # Errors
    /// See [`TokensError`]; nothing has changed then.
    pub async fn reload(&self) -> Result<Reloaded, TokensError> {
        let admin = self.clone();
        let reloaded = spawn_blocking(move || admin.reload_here()).await;
        let reloaded = reloaded.expect("it does not panic, and nobody aborts it");
        match &reloaded {
            Ok(Reloaded { n_tenants, gone }) => {
                info!(tenants = n_tenants, gone = gone.len(), "the tenants' file was read again");
            }
            Err(error) => {
                error!(%error, "the tenants' file cannot be read again: what it said before holds on");
            }
        }
        reloaded
    }

    fn reload_here(&self) -> Result<Reloaded, TokensError> {
        let parts = self.service.parts();
        let mut before = Vec::new();
        // Whoever is new finds its limits there with its first call.
        let tenants = parts.auth.reload(|tenants| {
            before = parts.auth.tenants();
            parts.admission.quotas().limit(tenants);
        })?;
        self.warn_of_promises(&tenants);
        let is_gone = |it: &auth::Tenant| !tenants.iter().any(|tenant| tenant.id == it.id);
        let gone: Vec<String> = before.into_iter().filter(is_gone).map(|it| it.name).collect();
        gone.iter().for_each(|name| parts.metrics.forget_tenant(name));
        Ok(Reloaded { n_tenants: tenants.len(), gone })
    }

    /// Asks whoever runs the server to drain it; says how many generations and classifications are to finish.
    pub fn drain(&self, grace: Option<Duration>) -> usize {
        self.drain.send_replace(Some(Drain { grace }));
        self.service.set_readiness(Readiness::Draining);
        self.service.in_flight() + self.service.parts().admission.classifying()
    }

    /// Resolves when the server is to drain.
    pub async fn drained(&self) {
        // This end stays open for as long as anybody waits at it.
        let _ = self.drain.subscribe().wait_for(Option::is_some).await;
    }

    /// How long generations may take if that was said with the drain.
    pub fn grace(&self) -> Option<Duration> {
        self.drain.borrow().and_then(|drain| drain.grace)
    }

    /// Room that a device shares among tenants is nobody's for certain if they have been promised more of it.
    fn warn_of_promises(&self, tenants: &[auth::Tenant]) {
        let (promised, sessions_max) = (promised(tenants), self.sessions_max);
        if u64::from(sessions_max) < promised {
            warn!(
                promised,
                sessions_max,
                "quotas come to more sessions than a device keeps: some tenants' will give way to others'"
            );
        }
    }

    fn auth(&self) -> &auth::Auth {
        &self.service.parts().auth
    }
}
