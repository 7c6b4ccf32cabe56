//! The tenants' file: who is known by what.

use std::{collections::HashMap, fs, num::NonZeroU32, path::Path};

use serde::Deserialize;
use thiserror::Error;

use super::{Principal, Tenant, TenantId, TokensError};
use crate::{
    quotas::Quota,
    sessions::{Name, NameError},
    tls::{Fingerprint, PeerCertificate},
};

/// The tokens and certificates that are taken.
#[derive(Debug)]
pub struct Tokens {
    known: Vec<(blake3::Hash, Principal)>,
    /// No secrets: looking for one need not take the same time for each.
    fingerprints: HashMap<Fingerprint, Principal>,
    names: HashMap<String, Principal>,
    tenants: Vec<Tenant>,
}

/// Why a text lists no [`Tokens`].
#[derive(Debug, Error)]
pub enum ListError {
    /// The source tells the line and the field.
    #[error(transparent)]
    Parse(#[from] toml::de::Error),
    #[error("no tenant has a token or a certificate: nobody could call")]
    Empty,
    #[error("the tenants have {found} tokens and certificates; at most {KNOWN_MAX} are allowed")]
    TooMany { found: usize },
    #[error("the name {name:?} of a tenant {source}")]
    Name { name: String, source: NameError },
    #[error("two tenants have the name {name:?}")]
    DuplicateName { name: String },
    #[error("a token of tenant {name:?} is not the 64 hexadecimal digits of a BLAKE3 hash")]
    Hash { name: String },
    #[error("a token of tenant {name:?} is listed twice")]
    DuplicateToken { name: String },
    #[error(
        "a certificate of tenant {name:?} is neither the 64 hexadecimal digits of a SHA-256 fingerprint nor a name"
    )]
    Certificate { name: String },
    #[error("the certificate {certificate:?} of tenant {name:?} is listed twice")]
    DuplicateCertificate { name: String, certificate: String },
    #[error("tenant {name:?}: {field} = {found}; it must be from 1 to {}", u32::MAX)]
    Quota { name: String, field: &'static str, found: i64 },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct List {
    #[serde(default)]
    tenants: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    #[serde(default)]
    tokens: Vec<String>,
    #[serde(default)]
    certificates: Vec<String>,
    #[serde(default)]
    admin: bool,
    sessions_max: Option<i64>,
    generations_max: Option<i64>,
}

/// A list of [`KNOWN_MAX`] tokens has a quarter of it.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Every call compares its token with all that are known.
pub(super) const KNOWN_MAX: usize = 1024;
/// Of a name that a certificate is for.
const NAME_BYTES_MAX: usize = 255;

impl Tokens {
    /// Reads a file.
    ///
    /// # Errors
    /// See [`TokensError`].
    pub fn open(path: &Path) -> Result<Self, TokensError> {
        let io_error = |source| TokensError::Io { path: path.to_owned(), source };
        let found_bytes = fs::metadata(path).map_err(io_error)?.len();
        if FILE_BYTES_MAX < found_bytes {
            let (path, max_bytes) = (path.to_owned(), FILE_BYTES_MAX);
            return Err(TokensError::TooLarge { path, found_bytes, max_bytes });
        }
        let text = fs::read_to_string(path).map_err(io_error)?;
        Self::parse(&text).map_err(|source| TokensError::List { path: path.to_owned(), source })
    }

    /// Reads a list in TOML.
    ///
    /// # Errors
    /// See [`ListError`].
    pub fn parse(text: &str) -> Result<Self, ListError> {
        let List { tenants } = toml::from_str(text)?;
        let found = tenants.iter().map(|it| it.tokens.len() + it.certificates.len()).sum();
        match found {
            0 => return Err(ListError::Empty),
            _ if KNOWN_MAX < found => return Err(ListError::TooMany { found }),
            _ => {}
        }
        let mut list = Self {
            known: Vec::with_capacity(found),
            fingerprints: HashMap::new(),
            names: HashMap::new(),
            tenants: Vec::with_capacity(tenants.len()),
        };
        for entry in &tenants {
            list.enter(entry)?;
        }
        Ok(list)
    }

    fn enter(&mut self, entry: &Entry) -> Result<(), ListError> {
        let name = || entry.name.clone();
        Name::parse(&entry.name).map_err(|source| ListError::Name { name: name(), source })?;
        if self.tenants.iter().any(|it| it.name == entry.name) {
            return Err(ListError::DuplicateName { name: name() });
        }
        let id = TenantId::named(&entry.name);
        let principal = Principal { tenant: id, is_admin: entry.admin };
        for token in &entry.tokens {
            let hash =
                blake3::Hash::from_hex(token).map_err(|_| ListError::Hash { name: name() })?;
            if self.known.iter().any(|(other, _)| *other == hash) {
                return Err(ListError::DuplicateToken { name: name() });
            }
            self.known.push((hash, principal));
        }
        for certificate in &entry.certificates {
            let before = match Fingerprint::parse(certificate) {
                Some(fingerprint) => self.fingerprints.insert(fingerprint, principal),
                None if is_name(certificate) => {
                    self.names.insert(certificate.to_ascii_lowercase(), principal)
                }
                None => return Err(ListError::Certificate { name: name() }),
            };
            if before.is_some() {
                let certificate = certificate.clone();
                return Err(ListError::DuplicateCertificate { name: name(), certificate });
            }
        }
        self.tenants.push(Tenant {
            name: name(),
            id,
            is_admin: entry.admin,
            n_tokens: entry.tokens.len(),
            n_certificates: entry.certificates.len(),
            quota: entry.quota()?,
        });
        Ok(())
    }

    /// The tenants, who have `quota` where their entries do not say.
    pub(super) fn tenants(&self, quota: Quota) -> Vec<Tenant> {
        let tenants = self.tenants.iter().cloned();
        tenants.map(|it| Tenant { quota: it.quota.or(quota), ..it }).collect()
    }

    /// The first tenant that is known by a certificate.
    pub(super) fn certified(&self) -> Option<&str> {
        self.tenants.iter().find(|it| 0 < it.n_certificates).map(|it| &*it.name)
    }

    /// Who has the token with this hash. How long it takes does not depend on which of them it is.
    pub(super) fn of_token(&self, hash: blake3::Hash) -> Option<Principal> {
        let mut found = None;
        for (known, principal) in &self.known {
            // Hashes of BLAKE3 are compared in constant time.
            if *known == hash {
                found = Some(*principal);
            }
        }
        found
    }

    /// Who has a certificate: by its fingerprint, or else by the first of its names that is listed.
    pub(super) fn of_certificate(&self, certificate: &PeerCertificate) -> Option<Principal> {
        let by_name = || certificate.names.iter().find_map(|name| self.names.get(name));
        self.fingerprints.get(&certificate.fingerprint).or_else(by_name).copied()
    }

    #[cfg(test)]
    pub(super) fn known(&self) -> impl Iterator<Item = Principal> {
        let tokens = self.known.iter().map(|(_, who)| *who);
        tokens.chain(self.fingerprints.values().chain(self.names.values()).copied())
    }
}

impl Entry {
    fn quota(&self) -> Result<Quota, ListError> {
        let limit = |field, limit: Option<i64>| {
            let Some(found) = limit else { return Ok(None) };
            match u32::try_from(found).ok().and_then(NonZeroU32::new) {
                Some(limit) => Ok(Some(limit)),
                None => Err(ListError::Quota { name: self.name.clone(), field, found }),
            }
        };
        Ok(Quota {
            sessions_max: limit("sessions_max", self.sessions_max)?,
            generations_max: limit("generations_max", self.generations_max)?,
        })
    }
}

/// Whether a certificate may be for it: a host, or a URI. Wildcards are compared as they are written.
fn is_name(text: &str) -> bool {
    (1..=NAME_BYTES_MAX).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
}
