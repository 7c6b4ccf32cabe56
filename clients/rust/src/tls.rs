//! Whom a client takes for its server.

#[cfg(test)]
mod tests;

use std::{
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
};

use ring::digest;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject as _},
};
use thiserror::Error;

use crate::ClientCertificate;

/// How the server proves who it is over `grpcs://` and `quic://`. Over `grpc://`, which has no encryption, it does not.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum Trust {
    /// Nobody is trusted: what is encrypted is refused.
    #[default]
    Nobody,
    /// Certificates that are, or that are signed by, one of those in this PEM file.
    Certificate(PathBuf),
    /// The one certificate with this SHA-256, whatever names it is for.
    Fingerprint(Fingerprint),
    /// Anybody. For development: whoever sits in between can read and change everything.
    Insecure,
}

/// SHA-256 of a certificate.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Fingerprint([u8; 32]);

/// Why there is nobody to trust.
#[derive(Clone, Debug, Error)]
pub enum TrustError {
    /// Encryption to an unknown peer protects nothing.
    #[error("grpcs:// and quic:// need to know whom to trust")]
    Nobody,
    /// The file cannot be read or holds no certificate that can be used.
    #[error("{}: {problem}", path.display())]
    Certificate {
        /// As it was given.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The text is not a SHA-256.
    #[error("fingerprint {found:?} is not 64 hexadecimal digits")]
    Fingerprint {
        /// As it was given.
        found: String,
    },
}

impl Trust {
    /// TLS 1.3, speaking `alpn` and nothing else, with a certificate for servers that ask for one.
    pub(crate) fn client_config(
        &self,
        alpn: &[u8],
        certificate: Option<&ClientCertificate>,
    ) -> Result<ClientConfig, TrustError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("ring has TLS 1.3");
        let builder = match self {
            Self::Nobody => return Err(TrustError::Nobody),
            Self::Certificate(path) => builder.with_root_certificates(roots(path)?),
            Self::Fingerprint(fingerprint) => builder
                .dangerous()
                .with_custom_certificate_verifier(Pinned::new(Some(*fingerprint), provider)),
            Self::Insecure => {
                builder.dangerous().with_custom_certificate_verifier(Pinned::new(None, provider))
            }
        };
        let mut config = match certificate {
            None => builder.with_no_client_auth(),
            Some(ClientCertificate { certificate, key }) => {
                let error = |path: &Path, problem: String| TrustError::Certificate {
                    path: path.to_owned(),
                    problem,
                };
                let chain = certificates(certificate)?;
                let private =
                    PrivateKeyDer::from_pem_file(key).map_err(|it| error(key, it.to_string()))?;
                builder
                    .with_client_auth_cert(chain, private)
                    .map_err(|it| error(certificate, it.to_string()))?
            }
        };
        config.alpn_protocols = vec![alpn.to_vec()];
        Ok(config)
    }
}

impl FromStr for Fingerprint {
    type Err = TrustError;

    /// Reads 64 hexadecimal digits, with or without colons between bytes.
    fn from_str(text: &str) -> Result<Self, TrustError> {
        let error = || TrustError::Fingerprint { found: text.to_owned() };
        let digits: Vec<u8> = text.bytes().filter(|it| *it != b':').collect();
        if digits.len() != 64 {
            return Err(error());
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            let nibble = |digit: u8| char::from(digit).to_digit(16).ok_or_else(error);
            let value = nibble(pair[0])? * 16 + nibble(pair[1])?;
            *byte = u8::try_from(value).map_err(|_| error())?;
        }
        Ok(Self(bytes))
    }
}

fn roots(path: &Path) -> Result<RootCertStore, TrustError> {
    let error = |problem| TrustError::Certificate { path: path.to_owned(), problem };
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|it| error(it.to_string()))?;
    }
    Ok(roots)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TrustError> {
    let error = |problem| TrustError::Certificate { path: path.to_owned(), problem };
    let certificates = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|it| error(it.to_string()))?;
    if certificates.is_empty() {
        return Err(error("holds no certificate".to_owned()));
    }
    Ok(certificates)
}

/// Takes one certificate, or any, and still has the peer prove that it holds the key.
#[derive(Debug)]
struct Pinned {
    fingerprint: Option<Fingerprint>,
    provider: Arc<CryptoProvider>,
}

impl Pinned {
    fn new(fingerprint: Option<Fingerprint>, provider: Arc<CryptoProvider>) -> Arc<Self> {
        Arc::new(Self { fingerprint, provider })
    }
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let found = digest::digest(&digest::SHA256, end_entity);
        match &self.fingerprint {
            Some(Fingerprint(pinned)) if found.as_ref() != pinned => {
                Err(CertificateError::ApplicationVerificationFailure.into())
            }
            _ => Ok(ServerCertVerified::assertion()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
