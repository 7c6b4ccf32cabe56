//! Who asks: bearer tokens and certificates, the tenants that they belong to, and what a tenant is shown.
//!
//! Tokens are random, so that a hash of each is all that a server has to keep:
//!
//! ```toml
//! [[tenants]]
//! name = "tales"
//! tokens = ["<BLAKE3 of a token, 64 hexadecimal digits>"]
//! certificates = ["<SHA-256 of a certificate>", "<a name that a certificate is for>"]
//! admin = false
//! sessions_max = 100
//! generations_max = 4
//! ```
//!
//! The file may be read again while the server runs. What is in it holds for all calls from then on.

mod list;
#[cfg(test)]
mod tests;

use std::{
    fmt, io,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::sync::watch;

pub use self::list::{ListError, Tokens};
use crate::{admission::Reject, quotas::Quota, service::Hex, sessions::Name, tls::PeerCertificate};

/// Whose tokens and certificates are taken.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Tenants and what they are known by; without it everybody is one anonymous tenant.
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
    /// Whether it may see, delete and move the sessions of all tenants; only calls to the admin listener may.
    pub is_admin: bool,
}

/// Who makes a call, and what tells so.
#[derive(Clone, Debug)]
pub struct Caller {
    pub who: Principal,
    evidence: Evidence,
}

/// What a call shows of who makes it.
#[derive(Clone, Debug, Default)]
pub enum Evidence {
    #[default]
    Nothing,
    /// The hash of its token.
    Token(blake3::Hash),
    Certificate(Arc<PeerCertificate>),
}

/// Tells who makes a call from what it shows; cloning gives another handle.
#[derive(Clone, Debug)]
pub struct Auth {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: Config,
    /// Whether clients are asked for certificates at all.
    asks_certificates: bool,
    /// None lets everybody in.
    tokens: watch::Sender<Option<Arc<Tokens>>>,
    /// Taken while the file is read again: of two at a time, the later one counts.
    reading: Mutex<()>,
}

/// A tenant of the file, or the anonymous one, who has no name.
#[derive(Clone, Debug, PartialEq)]
pub struct Tenant {
    pub name: String,
    pub id: TenantId,
    pub is_admin: bool,
    pub n_tokens: usize,
    pub n_certificates: usize,
    /// Its own, and for the rest that of all.
    pub quota: Quota,
}

/// A token as its owner has it, who alone is told.
pub struct Token(String);

/// Why a file lists no [`Tokens`].
#[derive(Debug, Error)]
pub enum TokensError {
    #[error("auth.tokens_file is not set: there is nothing to read")]
    NoFile,
    #[error("auth.tokens_file = {}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error(
        "auth.tokens_file = {}: {found_bytes} bytes, but it has at most {max_bytes}",
        path.display()
    )]
    TooLarge { path: PathBuf, found_bytes: u64, max_bytes: u64 },
    #[error("auth.tokens_file = {}: {source}", path.display())]
    List { path: PathBuf, source: ListError },
    #[error(
        "auth.tokens_file = {}: tenant {name:?} has certificates, but without tls.client_ca nobody is asked for one",
        path.display()
    )]
    NoClientCa { path: PathBuf, name: String },
}

/// Ours have 64; those that another program has made may be longer.
pub const TOKEN_BYTES_MAX: usize = 512;

impl Auth {
    /// Reads the file that `config` names. Clients show certificates if the server `asks_certificates`.
    ///
    /// # Errors
    /// See [`TokensError`].
    pub fn open(config: &Config, asks_certificates: bool) -> Result<Self, TokensError> {
        let inner = Inner {
            config: config.clone(),
            asks_certificates,
            tokens: watch::Sender::new(None),
            reading: Mutex::new(()),
        };
        if config.tokens_file.is_some() {
            inner.tokens.send_replace(Some(Arc::new(inner.read()?)));
        }
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Takes what is in `tokens` and nothing else.
    pub fn with(tokens: Tokens) -> Self {
        let auth = Self::default();
        auth.inner.tokens.send_replace(Some(Arc::new(tokens)));
        auth
    }

    /// Reads the file again; `prepare` sees its tenants before the first call is told by them.
    ///
    /// # Errors
    /// See [`TokensError`]; what was read before holds on.
    pub fn reload(&self, prepare: impl FnOnce(&[Tenant])) -> Result<Vec<Tenant>, TokensError> {
        let _reading = self.inner.reading.lock().unwrap_or_else(PoisonError::into_inner);
        let tokens = self.inner.read()?;
        let tenants = tokens.tenants(self.inner.config.quota);
        prepare(&tenants);
        self.inner.tokens.send_replace(Some(Arc::new(tokens)));
        Ok(tenants)
    }

    /// Everybody who may call.
    pub fn tenants(&self) -> Vec<Tenant> {
        let quota = self.inner.config.quota;
        match &*self.inner.tokens.borrow() {
            Some(tokens) => tokens.tenants(quota),
            None => vec![Tenant {
                name: String::new(),
                id: TenantId::ANONYMOUS,
                is_admin: false,
                n_tokens: 0,
                n_certificates: 0,
                quota,
            }],
        }
    }

    /// Changes each time that the file has been read again.
    pub fn changes(&self) -> watch::Receiver<Option<Arc<Tokens>>> {
        self.inner.tokens.subscribe()
    }

    /// Who makes a call that shows `evidence`.
    ///
    /// # Errors
    /// [`Reject::Unauthenticated`], unless everybody is let in.
    pub fn caller(&self, evidence: Evidence) -> Result<Caller, Reject> {
        let who = self.principal(&evidence)?;
        Ok(Caller { who: Principal { is_admin: false, ..who }, evidence })
    }

    /// Who makes a call to the admin listener. Without a file that is everybody who reaches it.
    ///
    /// # Errors
    /// [`Reject::Unauthenticated`], and [`Reject::NotAdmin`] for other tenants.
    pub fn admin(&self, evidence: &Evidence) -> Result<Principal, Reject> {
        let who = self.principal(evidence)?;
        let is_open = self.inner.tokens.borrow().is_none();
        if !who.is_admin && !is_open {
            return Err(Reject::NotAdmin);
        }
        Ok(Principal { is_admin: true, ..who })
    }

    /// Whether a call is still its caller's, by the file as it is now.
    ///
    /// # Errors
    /// [`Reject::Unauthenticated`] if it is not.
    pub fn check(&self, caller: &Caller) -> Result<(), Reject> {
        let problem = "was its tenant's, who is not known by that any more";
        match self.principal(&caller.evidence) {
            Ok(who) if who.tenant == caller.who.tenant => Ok(()),
            _ => Err(Reject::Unauthenticated { problem }),
        }
    }

    fn principal(&self, evidence: &Evidence) -> Result<Principal, Reject> {
        let tokens = self.inner.tokens.borrow();
        let Some(tokens) = &*tokens else { return Ok(Principal::ANONYMOUS) };
        let (found, problem) = match evidence {
            Evidence::Nothing => (None, "needs a token, or a certificate"),
            Evidence::Token(hash) => {
                (tokens.of_token(*hash), "has a token that this server does not know")
            }
            Evidence::Certificate(certificate) => (
                tokens.of_certificate(certificate),
                "needs a token, as its certificate is of no tenant",
            ),
        };
        found.ok_or(Reject::Unauthenticated { problem })
    }
}

/// Lets everybody in.
impl Default for Auth {
    fn default() -> Self {
        Self::open(&Config::default(), false).expect("there is no file to read")
    }
}

impl Inner {
    fn read(&self) -> Result<Tokens, TokensError> {
        let path = self.config.tokens_file.as_deref().ok_or(TokensError::NoFile)?;
        let tokens = Tokens::open(path)?;
        match tokens.certified() {
            Some(name) if !self.asks_certificates => {
                Err(TokensError::NoClientCa { path: path.to_owned(), name: name.to_owned() })
            }
            _ => Ok(tokens),
        }
    }
}

impl Evidence {
    /// What a call shows: its token, or if it has none the certificate of its connection.
    pub fn of(token: Option<&str>, certificate: Option<&Arc<PeerCertificate>>) -> Self {
        match (token, certificate) {
            // One that is too long is none, and no more than its beginning need be looked at.
            (Some(token), _) => {
                Self::Token(blake3::hash(&token.as_bytes()[..token.len().min(TOKEN_BYTES_MAX + 1)]))
            }
            (None, Some(certificate)) => Self::Certificate(Arc::clone(certificate)),
            (None, None) => Self::Nothing,
        }
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

    /// The tenant that [`TenantId`]'s `Display` tells of.
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.strip_prefix('#').filter(|it| it.len() == 32)?;
        u128::from_str_radix(digits, 16).ok().map(Self)
    }

    pub fn named(name: &str) -> Self {
        let hash = blake3::derive_key("aerie 2026 tenant of a session", name.as_bytes());
        Self(u128::from_le_bytes(*hash.first_chunk().expect("a hash has 32 bytes")).max(1))
    }

    #[expect(clippy::cast_possible_truncation, reason = "some bits of it are what is asked for")]
    pub fn mark(self) -> TenantMark {
        TenantMark(self.0 as u32 & 0xFF_FFFF)
    }
}

/// For one whose name is not known: no name looks like that.
impl fmt::Display for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{:032x}", self.0)
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
