//! What one tenant may have at once, so that it leaves room for others: sessions that are kept, generations, readers.
//!
//! The workers count sessions, as they alone know when one is made and when it is gone; admission and the workers count
//! generations. A count is one number that all threads share, and nobody ever waits for it.

#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use serde::{Deserialize, Serialize};

use crate::{
    admission::Reject,
    auth::{Auth, TenantId},
    telemetry::metrics::{Metrics, TenantMetrics},
};

/// Limits of one tenant; what is none is limited by the server alone.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Quota {
    /// Sessions that are kept, of all models and on all devices together.
    pub sessions_max: Option<NonZeroU32>,
    /// Generations at once, those included that wait for a lane or run without a reader.
    pub generations_max: Option<NonZeroU32>,
}

/// What each tenant has, and may have; cloning gives another handle to the same. Tenants that it does not know have no
/// limits.
#[derive(Clone, Debug, Default)]
pub struct Quotas {
    tenants: Arc<HashMap<TenantId, Arc<Tenant>>>,
}

/// What one call has of its tenant's share: a reader's place until it is a generation's; dropping it gives it back.
#[derive(Debug)]
pub struct Share {
    /// None of a tenant without limits.
    tenant: Option<Arc<Tenant>>,
    generates: bool,
}

/// The tenant has as many generations, or readers, as it may.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct TooMany {
    pub generations_max: u32,
}

#[derive(Debug)]
struct Tenant {
    sessions: Count,
    generations: Count,
    /// Generations and readers together.
    calls: Count,
    metrics: TenantMetrics,
}

/// How many there are of something that is limited.
#[derive(Debug)]
struct Count {
    n: AtomicU32,
    max: u32,
}

/// Calls for each generation that a tenant may have: itself, and somebody who reads it. Without room for the
/// latter, whoever lost the stream of its only generation could not come back to it.
const CALLS_PER_GENERATION: u32 = 2;

impl Quota {
    /// What is limited here, and for the rest what is limited by `other`.
    pub fn or(self, other: Self) -> Self {
        Self {
            sessions_max: self.sessions_max.or(other.sessions_max),
            generations_max: self.generations_max.or(other.generations_max),
        }
    }
}

impl Quotas {
    /// Those of the tenants that `auth` knows, who have nothing yet.
    pub fn new(auth: &Auth, metrics: &Metrics) -> Self {
        let tenants = auth
            .tenants()
            .map(|(name, id, quota)| (id, Arc::new(Tenant::new(quota, metrics.tenant(name)))));
        Self { tenants: Arc::new(tenants.collect()) }
    }

    /// Counts a session that is going to be made.
    ///
    /// # Errors
    /// [`Reject::QuotaSessions`] if the tenant has as many as it may.
    pub fn take_session(&self, tenant: TenantId) -> Result<(), Reject> {
        let Some(tenant) = self.tenants.get(&tenant) else { return Ok(()) };
        if !tenant.sessions.take() {
            return Err(Reject::QuotaSessions { sessions_max: tenant.sessions.max });
        }
        tenant.metrics.sessions.inc();
        Ok(())
    }

    /// Counts `n` sessions that are there, be they more than the tenant may have.
    pub fn add_sessions(&self, tenant: TenantId, n: u32) {
        if let Some(tenant) = self.tenants.get(&tenant) {
            tenant.sessions.n.fetch_add(n, Ordering::Relaxed);
            tenant.metrics.sessions.add(n.into());
        }
    }

    /// Counts a session less.
    pub fn give_back_session(&self, tenant: TenantId) {
        if let Some(tenant) = self.tenants.get(&tenant) {
            tenant.sessions.give_back();
            tenant.metrics.sessions.dec();
        }
    }

    /// Sessions of a tenant; 0 of one that is not known.
    pub fn n_sessions(&self, tenant: TenantId) -> u32 {
        self.tenants.get(&tenant).map_or(0, |tenant| tenant.sessions.n.load(Ordering::Relaxed))
    }

    /// Counts a call, as a reader's at first.
    ///
    /// # Errors
    /// If the tenant has as many calls as it may.
    pub fn begin_call(&self, tenant: TenantId) -> Result<Share, TooMany> {
        let tenant = self.tenants.get(&tenant).map(Arc::clone);
        match tenant {
            Some(tenant) if !tenant.calls.take() => Err(tenant.too_many()),
            tenant => Ok(Share { tenant, generates: false }),
        }
    }
}

impl Share {
    /// Makes it a generation's.
    ///
    /// # Errors
    /// If the tenant has as many generations as it may.
    pub fn generate(&mut self) -> Result<(), TooMany> {
        let Some(tenant) = self.tenant.as_ref().filter(|_| !self.generates) else { return Ok(()) };
        if !tenant.generations.take() {
            return Err(tenant.too_many());
        }
        tenant.metrics.generations.inc();
        self.generates = true;
        Ok(())
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let Some(tenant) = &self.tenant else { return };
        tenant.calls.give_back();
        if self.generates {
            tenant.generations.give_back();
            tenant.metrics.generations.dec();
        }
    }
}

impl Tenant {
    fn new(quota: Quota, metrics: TenantMetrics) -> Self {
        let max = |limit: Option<NonZeroU32>| limit.map_or(u32::MAX, NonZeroU32::get);
        let generations_max = max(quota.generations_max);
        Self {
            sessions: Count::up_to(max(quota.sessions_max)),
            generations: Count::up_to(generations_max),
            calls: Count::up_to(generations_max.saturating_mul(CALLS_PER_GENERATION)),
            metrics,
        }
    }

    fn too_many(&self) -> TooMany {
        TooMany { generations_max: self.generations.max }
    }
}

impl Count {
    fn up_to(max: u32) -> Self {
        Self { n: AtomicU32::new(0), max }
    }

    /// One more, unless there are as many as there may be; says whether there was room.
    fn take(&self) -> bool {
        let more = |n: u32| (n < self.max).then(|| n + 1);
        // Nothing else is read or written on the strength of it.
        self.n.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }

    fn give_back(&self) {
        let before = self.n.fetch_sub(1, Ordering::Relaxed);
        debug_assert!(0 < before, "more was given back than was taken");
    }
}
