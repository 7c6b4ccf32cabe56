//! What a client shows of itself: a token, a certificate, or nothing.

use std::{fmt, path::PathBuf};

/// What a client shows of itself. The default is nothing, which is enough for a server that asks for nothing.
#[derive(Clone, Default, Eq, PartialEq)]
pub struct Credentials {
    /// Goes with every call. Over `grpc://`, which has no encryption, whoever listens can read it.
    pub token: Option<String>,
    /// Shown to servers that ask for one, over `grpcs://` and `quic://`.
    pub certificate: Option<ClientCertificate>,
}

/// A certificate that proves who a client is, and its private key.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ClientCertificate {
    /// Chain of certificates in PEM.
    pub certificate: PathBuf,
    /// Private key of the first, in PEM.
    pub key: PathBuf,
}

/// Says nothing of the token.
impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("has_token", &self.token.is_some())
            .field("certificate", &self.certificate)
            .finish()
    }
}
