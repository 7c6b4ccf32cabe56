//! What one tenant may have at once, so that it leaves room for others: sessions that are kept, generations, readers.
//!
//! The workers count sessions, as they alone know when one is made and when it is gone; admission and the workers count
//! generations. A count is one number that all threads share. Nobody waits for it, but for the moment in which a tenant is
//! met for the first time or limits are changed.

#[cfg(test)]
mod tests;

use std::{
    collections::{HashMap, HashSet},
    mem,
    num::NonZeroU32,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU32, Ordering},
    },
};

use serde::{Deserialize, Serialize};

use crate::{
    admission::Reject,
    auth::{self, Auth, TenantId},
};

/// Limits of one tenant; what is none is limited by the server alone.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Quota {
    /// Sessions that are kept, of all models and on all devices together.
    pub sessions_max: Option<NonZeroU32>,
    /// Generations at once, those included that wait for a lane or run without a reader; and as many classifications
    /// beside them.
    pub generations_max: Option<NonZeroU32>,
}

/// What each tenant has, and may have; cloning gives another handle to the same. Tenants that are not listed have no
/// limits, and are counted as well: they may be listed one day.
#[derive(Clone, Debug, Default)]
pub struct Quotas {
    /// Those that are listed, and those that have something.
    tenants: Arc<RwLock<HashMap<TenantId, Arc<Tenant>>>>,
}

/// What a worker keeps of each tenant, as its part of what they have.
#[derive(Debug)]
pub struct Ledger {
    quotas: Quotas,
    kept: HashMap<TenantId, u32>,
}

/// What one call has of its tenant's share; dropping it gives it back.
#[derive(Debug)]
pub struct Share {
    tenant: Arc<Tenant>,
    of: What,
}

/// What a share is of.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum What {
    /// Calls: a reader's place, until it is a generation's.
    Read,
    /// Calls and generations.
    Generation,
    Classification,
    /// A call of the Open Inference Protocol, whatever it comes to.
    Place,
}

/// The tenant has as many as it may of generations, or of what is limited by them.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct TooMany {
    pub generations_max: u32,
}

/// What a tenant has.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Usage {
    pub sessions: u32,
    pub generations: u32,
}

#[derive(Debug, Default)]
struct Tenant {
    sessions: Count,
    generations: Count,
    /// Generations and readers together.
    calls: Count,
    classifications: Count,
    /// Of the Open Inference Protocol.
    places: Count,
}

/// How many there are of something that is limited.
#[derive(Debug)]
struct Count {
    n: AtomicU32,
    max: AtomicU32,
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

/// What the quotas of all tenants come to that have one: sessions that are kept, and one for each generation.
pub fn promised(tenants: &[auth::Tenant]) -> u64 {
    let limits = tenants.iter().flat_map(|it| [it.quota.sessions_max, it.quota.generations_max]);
    limits.flatten().map(|limit| u64::from(limit.get())).sum()
}

impl Quotas {
    /// Those of the tenants that `auth` knows, who have nothing yet.
    pub fn new(auth: &Auth) -> Self {
        let quotas = Self::default();
        quotas.limit(&auth.tenants());
        quotas
    }

    /// Holds tenants to other limits from now on, and those that are not among them to none. Who has more keeps it, and
    /// gets no more.
    pub fn limit(&self, tenants: &[auth::Tenant]) {
        let mut map = self.tenants.write().unwrap_or_else(PoisonError::into_inner);
        let mut listed = HashSet::new();
        for tenant in tenants {
            map.entry(tenant.id).or_default().limit(tenant.quota);
            listed.insert(tenant.id);
        }
        map.retain(|id, tenant| {
            let is_listed = listed.contains(id);
            if !is_listed {
                tenant.limit(Quota::default());
            }
            // Whoever is about to count something has another handle.
            is_listed || !tenant.has_nothing() || 1 < Arc::strong_count(tenant)
        });
    }

    /// Counts a session that is going to be made.
    ///
    /// # Errors
    /// [`Reject::QuotaSessions`] if the tenant has as many as it may.
    fn take_session(&self, tenant: TenantId) -> Result<(), Reject> {
        let Tenant { sessions, .. } = &*self.tenant(tenant);
        match sessions.take() {
            true => Ok(()),
            false => Err(Reject::QuotaSessions { sessions_max: sessions.max() }),
        }
    }

    /// What a tenant has.
    pub fn usage(&self, tenant: TenantId) -> Usage {
        let map = self.tenants.read().unwrap_or_else(PoisonError::into_inner);
        map.get(&tenant).map_or_else(Usage::default, |tenant| tenant.usage())
    }

    /// Every tenant that is listed or has something.
    pub fn all(&self) -> Vec<(TenantId, Usage)> {
        let map = self.tenants.read().unwrap_or_else(PoisonError::into_inner);
        map.iter().map(|(id, tenant)| (*id, tenant.usage())).collect()
    }

    /// Counts a call, as a reader's at first.
    ///
    /// # Errors
    /// If the tenant has as many calls as it may.
    pub fn begin_call(&self, tenant: TenantId) -> Result<Share, TooMany> {
        self.share(tenant, What::Read, |it| &it.calls)
    }

    /// Counts a classification.
    ///
    /// # Errors
    /// If the tenant has as many as it may.
    pub fn classify(&self, tenant: TenantId) -> Result<Share, TooMany> {
        self.share(tenant, What::Classification, |it| &it.classifications)
    }

    /// Counts a call of the Open Inference Protocol, before it is known what it comes to.
    ///
    /// # Errors
    /// If the tenant has as many as it may.
    pub fn enter(&self, tenant: TenantId) -> Result<Share, TooMany> {
        self.share(tenant, What::Place, |it| &it.places)
    }

    fn share(
        &self,
        tenant: TenantId,
        of: What,
        count: fn(&Tenant) -> &Count,
    ) -> Result<Share, TooMany> {
        let tenant = self.tenant(tenant);
        if count(&tenant).take() { Ok(Share { tenant, of }) } else { Err(tenant.too_many()) }
    }

    fn tenant(&self, id: TenantId) -> Arc<Tenant> {
        let known = self.tenants.read().unwrap_or_else(PoisonError::into_inner).get(&id).cloned();
        known.unwrap_or_else(|| {
            let mut map = self.tenants.write().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(map.entry(id).or_default())
        })
    }
}

impl Ledger {
    /// That of a worker which keeps nothing yet.
    pub fn new(quotas: Quotas) -> Self {
        Self { quotas, kept: HashMap::new() }
    }

    /// Counts a session that is going to be made.
    ///
    /// # Errors
    /// [`Reject::QuotaSessions`] if the tenant has as many as it may.
    pub fn take(&mut self, tenant: TenantId) -> Result<(), Reject> {
        self.quotas.take_session(tenant)?;
        self.arrive(tenant);
        Ok(())
    }

    /// Counts `n` sessions that are there, be they more than the tenant may have.
    pub fn add(&mut self, tenant: TenantId, n: u32) {
        self.quotas.tenant(tenant).sessions.add(n);
        *self.kept.entry(tenant).or_default() += n;
    }

    /// Counts a session less.
    pub fn give_back(&mut self, tenant: TenantId) {
        self.quotas.tenant(tenant).sessions.give_back(1);
        self.depart(tenant);
    }

    /// Notes a session that comes from another worker: its tenant has no more than before.
    pub fn arrive(&mut self, tenant: TenantId) {
        *self.kept.entry(tenant).or_default() += 1;
    }

    /// Notes one that goes to another.
    pub fn depart(&mut self, tenant: TenantId) {
        if let Some(kept) = self.kept.get_mut(&tenant) {
            *kept = kept.saturating_sub(1);
            if *kept == 0 {
                self.kept.remove(&tenant);
            }
        }
    }

    /// Corrects the counts: what is kept is `found`, as somebody has looked.
    pub fn correct(&mut self, found: HashMap<TenantId, u32>) {
        for (&tenant, &n) in &found {
            self.quotas.tenant(tenant).sessions.add(n);
        }
        for (tenant, n) in mem::replace(&mut self.kept, found) {
            self.quotas.tenant(tenant).sessions.give_back(n);
        }
    }
}

impl Share {
    /// Makes a reader's a generation's.
    ///
    /// # Errors
    /// If the tenant has as many generations as it may.
    pub fn generate(&mut self) -> Result<(), TooMany> {
        if self.of == What::Read {
            if !self.tenant.generations.take() {
                return Err(self.tenant.too_many());
            }
            self.of = What::Generation;
        }
        Ok(())
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let Tenant { generations, calls, classifications, places, .. } = &*self.tenant;
        match self.of {
            What::Read => calls.give_back(1),
            What::Generation => {
                calls.give_back(1);
                generations.give_back(1);
            }
            What::Classification => classifications.give_back(1),
            What::Place => places.give_back(1),
        }
    }
}

impl Tenant {
    fn limit(&self, quota: Quota) {
        let max = |limit: Option<NonZeroU32>| limit.map_or(u32::MAX, NonZeroU32::get);
        let generations_max = max(quota.generations_max);
        self.sessions.limit(max(quota.sessions_max));
        self.generations.limit(generations_max);
        self.classifications.limit(generations_max);
        let calls_max = generations_max.saturating_mul(CALLS_PER_GENERATION);
        self.calls.limit(calls_max);
        self.places.limit(calls_max);
    }

    fn usage(&self) -> Usage {
        Usage { sessions: self.sessions.n(), generations: self.generations.n() }
    }

    fn has_nothing(&self) -> bool {
        let others = [&self.calls, &self.classifications, &self.places];
        self.usage() == Usage::default() && others.iter().all(|it| it.n() == 0)
    }

    fn too_many(&self) -> TooMany {
        TooMany { generations_max: self.generations.max() }
    }
}

/// Numbers that stand on their own: nothing else is read or written on the strength of them.
impl Count {
    /// One more, unless there are as many as there may be; says whether there was room.
    fn take(&self) -> bool {
        let max = self.max();
        let more = |n: u32| (n < max).then(|| n + 1);
        self.n.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }

    fn add(&self, n: u32) {
        self.n.fetch_add(n, Ordering::Relaxed);
    }

    fn give_back(&self, n: u32) {
        let before = self.n.fetch_sub(n, Ordering::Relaxed);
        debug_assert!(n <= before, "more was given back than was taken");
    }

    fn limit(&self, max: u32) {
        self.max.store(max, Ordering::Relaxed);
    }

    fn n(&self) -> u32 {
        self.n.load(Ordering::Relaxed)
    }

    fn max(&self) -> u32 {
        self.max.load(Ordering::Relaxed)
    }
}

/// None yet, of as many as there may ever be.
impl Default for Count {
    fn default() -> Self {
        Self { n: AtomicU32::new(0), max: AtomicU32::new(u32::MAX) }
    }
}
