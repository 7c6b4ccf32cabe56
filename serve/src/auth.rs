//! Who asks: bearer tokens, the tenants that they belong to, and what a tenant is shown.
//!
//! Tokens are random, so that a hash of each is all that a server has to keep:
//!
//! ```toml
//! [[tenants]]
//! name = "tales"
//! tokens = ["<BLAKE3 of a token, 64 hexadecimal digits>"]
//! admin = false
//! sessions_max = 100
//! generations_max = 4
//! ```

#[cfg(test)]
mod tests;

use std::{
    fmt, fs, io,
    num::NonZeroU32,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{
    admission::Reject,
    quotas::Quota,
    service::Hex,
    sessions::{Name, NameError},
};

/// Whose tokens are taken.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Tenants and the hashes of their tokens; without it everybody is one anonymous tenant.
    pub tokens_file: Option<PathBuf>,
    /// What a tenant may have at once whose entry in that file does not say; and the anonymous one.
    pub quota: Quota,
}

/// What tells tenants apart, in memory and on disk: a hash of the name, or 0 for the anonymous one.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct TenantId(pub u128);

/// What is left of a [`TenantId`] where there is little room: 24 of its bits, which tell most tenants apart.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct TenantMark(pub u32);

/// Who makes a call.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Principal {
    pub tenant: TenantId,
    /// Whether it may see and delete the sessions of all tenants.
    pub is_admin: bool,
}

/// Tells who makes a call from the token that came with it; cloning gives another handle.
#[derive(Clone, Debug, Default)]
pub struct Auth {
    /// None lets everybody in.
    tokens: Option<Arc<Tokens>>,
    /// Of tenants that have none of their own.
    quota: Quota,
}

/// The tokens that are taken.
#[derive(Debug)]
pub struct Tokens {
    known: Vec<(blake3::Hash, Principal)>,
    /// Their names, and what their entries say of quotas.
    tenants: Vec<(String, Quota)>,
}

/// A token as its owner has it, who alone is told.
pub struct Token(String);

/// Why a file lists no [`Tokens`].
#[derive(Debug, Error)]
pub enum TokensError {
    #[error("auth.tokens_file = {}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error(
        "auth.tokens_file = {}: {found_bytes} bytes, but it has at most {FILE_BYTES_MAX}",
        path.display()
    )]
    TooLarge { path: PathBuf, found_bytes: u64 },
    #[error("auth.tokens_file = {}: {source}", path.display())]
    List { path: PathBuf, source: ListError },
}

/// Why a text lists no [`Tokens`].
#[derive(Debug, Error)]
pub enum ListError {
    /// The source tells the line and the field.
    #[error(transparent)]
    Parse(#[from] toml::de::Error),
    #[error("no tenant has a token: nobody could call")]
    Empty,
    #[error("the tenants have {found} tokens; at most {TOKENS_MAX} are allowed")]
    TooMany { found: usize },
    #[error("the name {name:?} of a tenant {source}")]
    Name { name: String, source: NameError },
    #[error("two tenants have the name {name:?}")]
    DuplicateName { name: String },
    #[error("a token of tenant {name:?} is not the 64 hexadecimal digits of a BLAKE3 hash")]
    Hash { name: String },
    #[error("a token of tenant {name:?} is listed twice")]
    DuplicateToken { name: String },
    #[error("tenant {name:?}: {field} = {found}; it must be from 1 to {}", u32::MAX)]
    Quota { name: String, field: &'static str, found: i64 },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct List {
    #[serde(default)]
    tenants: Vec<Tenant>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Tenant {
    name: String,
    tokens: Vec<String>,
    #[serde(default)]
    admin: bool,
    sessions_max: Option<i64>,
    generations_max: Option<i64>,
}

/// A list of [`TOKENS_MAX`] tokens has a quarter of it.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Every call compares its token with all that are known.
const TOKENS_MAX: usize = 1024;
/// Ours have 64; those that another program has made may be longer.
pub const TOKEN_BYTES_MAX: usize = 512;

impl Auth {
    /// Reads the tokens that `config` names.
    ///
    /// # Errors
    /// See [`TokensError`].
    pub fn open(config: &Config) -> Result<Self, TokensError> {
        let tokens = config.tokens_file.as_deref().map(Tokens::open).transpose()?;
        Ok(Self { tokens: tokens.map(Arc::new), quota: config.quota })
    }

    /// Takes the tokens of `tokens` and no others.
    pub fn with(tokens: Tokens) -> Self {
        Self { tokens: Some(Arc::new(tokens)), quota: Quota::default() }
    }

    /// Everybody who may call: names, and what each may have at once. The anonymous tenant has no name.
    pub fn tenants(&self) -> impl Iterator<Item = (&str, TenantId, Quota)> {
        let anonymous = self.tokens.is_none().then_some(("", TenantId::ANONYMOUS, self.quota));
        let named = self.tokens.iter().flat_map(|tokens| &tokens.tenants);
        let named = named.map(|(name, own)| (&**name, TenantId::named(name), own.or(self.quota)));
        anonymous.into_iter().chain(named)
    }

    /// Who has `token`.
    ///
    /// # Errors
    /// [`Reject::Unauthenticated`], unless everybody is let in.
    pub fn principal(&self, token: Option<&str>) -> Result<Principal, Reject> {
        match (&self.tokens, token) {
            (None, _) => Ok(Principal::ANONYMOUS),
            (Some(_), None) => Err(Reject::Unauthenticated { problem: "needs a token" }),
            (Some(tokens), Some(token)) => {
                let problem = "has a token that this server does not know";
                tokens.principal(token).ok_or(Reject::Unauthenticated { problem })
            }
        }
    }
}

impl Tokens {
    /// Reads a file.
    ///
    /// # Errors
    /// See [`TokensError`].
    pub fn open(path: &Path) -> Result<Self, TokensError> {
        let io_error = |source| TokensError::Io { path: path.to_owned(), source };
        let found_bytes = fs::metadata(path).map_err(io_error)?.len();
        if FILE_BYTES_MAX < found_bytes {
            return Err(TokensError::TooLarge { path: path.to_owned(), found_bytes });
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
        let found = tenants.iter().map(|it| it.tokens.len()).sum();
        match found {
            0 => return Err(ListError::Empty),
            _ if TOKENS_MAX < found => return Err(ListError::TooMany { found }),
            _ => {}
        }
        let mut known: Vec<(blake3::Hash, Principal)> = Vec::with_capacity(found);
        let mut quotas = Vec::with_capacity(tenants.len());
        for (i, tenant) in tenants.iter().enumerate() {
            let Tenant { name, tokens, admin, .. } = tenant;
            Name::parse(name).map_err(|source| ListError::Name { name: name.clone(), source })?;
            if tenants[..i].iter().any(|it| it.name == *name) {
                return Err(ListError::DuplicateName { name: name.clone() });
            }
            quotas.push((name.clone(), tenant.quota()?));
            let principal = Principal { tenant: TenantId::named(name), is_admin: *admin };
            for token in tokens {
                let hash = blake3::Hash::from_hex(token)
                    .map_err(|_| ListError::Hash { name: name.clone() })?;
                if known.iter().any(|(other, _)| *other == hash) {
                    return Err(ListError::DuplicateToken { name: name.clone() });
                }
                known.push((hash, principal));
            }
        }
        Ok(Self { known, tenants: quotas })
    }

    /// Who has `token`. How long it takes does not depend on which of them it is.
    fn principal(&self, token: &str) -> Option<Principal> {
        if TOKEN_BYTES_MAX < token.len() {
            return None;
        }
        let hash = blake3::hash(token.as_bytes());
        let mut found = None;
        for (known, principal) in &self.known {
            // Hashes of BLAKE3 are compared in constant time.
            if *known == hash {
                found = Some(*principal);
            }
        }
        found
    }
}

impl Tenant {
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

/// The token in the value of an `authorization` header (RFC 6750 §2.1); none if it holds another.
pub fn bearer(value: &[u8]) -> Option<&str> {
    let (scheme, token) = str::from_utf8(value).ok()?.split_once(' ')?;
    let token = token.trim_matches(' ');
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~+/=".contains(&byte);
    let is_sound = !token.is_empty() && token.len() <= TOKEN_BYTES_MAX;
    (scheme.eq_ignore_ascii_case("bearer") && is_sound && token.bytes().all(is_token))
        .then_some(token)
}

impl TenantId {
    /// The tenant of a server that asks for no tokens.
    pub const ANONYMOUS: Self = Self(0);

    pub fn named(name: &str) -> Self {
        let hash = blake3::derive_key("aerie 2026 tenant of a session", name.as_bytes());
        Self(u128::from_le_bytes(*hash.first_chunk().expect("a hash has 32 bytes")).max(1))
    }

    #[expect(clippy::cast_possible_truncation, reason = "some bits of it are what is asked for")]
    pub fn mark(self) -> TenantMark {
        TenantMark(self.0 as u32 & 0xFF_FFFF)
    }
}

impl Principal {
    pub const ANONYMOUS: Self = Self { tenant: TenantId::ANONYMOUS, is_admin: false };

    /// Whether what belongs to `tenant` is its own.
    pub fn owns(self, tenant: TenantId) -> bool {
        self.tenant == tenant
    }

    /// Whether what belongs to `tenant` is there for it at all.
    pub fn sees(self, tenant: TenantId) -> bool {
        self.is_admin || self.owns(tenant)
    }

    /// As [`Principal::sees`], as far as a mark tells.
    pub fn may_see(self, tenant: TenantMark) -> bool {
        self.is_admin || self.tenant.mark() == tenant
    }
}

impl Token {
    /// A new token of 256 random bits.
    pub fn random() -> Self {
        Self(Hex(&rand::random::<[u8; 32]>()).to_string())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The lines for the tokens file that give it to tenant `name`.
    pub fn to_toml(&self, name: &Name) -> String {
        let hash = blake3::hash(self.0.as_bytes());
        format!("[[tenants]]\nname = \"{name}\"\ntokens = [\"{hash}\"]\n")
    }
}

/// Says nothing of the token.
impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}
