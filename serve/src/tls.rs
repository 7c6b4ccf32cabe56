//! Who the server is, and who its clients have to be: a certificate from files, or one generated for development.
//!
//! ```text
//! <data>/tls/certificate.pem   what clients may trust as it is
//! <data>/tls/key.pem           mode 0600
//! ```

#[cfg(test)]
mod tests;

use std::{
    fmt, fs, io,
    io::Write as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use rcgen::{CertifiedKey, KeyPair};
use ring::{digest, hmac};
use rustls::{
    RootCertStore,
    pki_types::{
        CertificateDer, PrivateKeyDer,
        pem::{self, PemObject as _},
    },
    server::{VerifierBuilderError, WebPkiClientVerifier},
};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Where the certificate comes from.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Certificate chain in PEM; without it one is generated and kept in the data directory.
    pub certificate: Option<PathBuf>,
    /// Private key of `certificate`, in PEM.
    pub key: Option<PathBuf>,
    /// Host names and addresses, besides those of this machine's loopback, that a generated
    /// certificate is for.
    pub names: Vec<String>,
    /// Certificates in PEM of who signs those of clients; with it, clients without one are refused.
    pub client_ca: Option<PathBuf>,
}

/// A certificate chain with its private key.
#[derive(Debug)]
pub struct Identity {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    /// Who signs the certificates of clients; none if they need none.
    client_ca: Option<Arc<RootCertStore>>,
}

/// The certificate that a client has shown, as far as it tells who that is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PeerCertificate {
    pub fingerprint: Fingerprint,
    /// Hosts and URIs that it is for, in lower case.
    pub names: Vec<String>,
}

/// SHA-256 of a certificate.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Fingerprint([u8; 32]);

/// Why there is no [`Identity`].
#[derive(Debug, Error)]
pub enum TlsError {
    #[error("tls.{given} is set, so tls.{missing} must be too")]
    Half { given: &'static str, missing: &'static str },
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{}: {source}", path.display())]
    Pem { path: PathBuf, source: pem::Error },
    #[error("{}: holds no certificate", path.display())]
    Empty { path: PathBuf },
    #[error("tls.names: {source}")]
    Generate { source: rcgen::Error },
    #[error("tls.client_ca = {}: {source}", path.display())]
    ClientCa { path: PathBuf, source: rustls::Error },
    #[error("tls.client_ca: {source}")]
    Verifier { source: VerifierBuilderError },
    #[error("certificate and key do not fit together: {source}")]
    Mismatch { source: rustls::Error },
}

impl Identity {
    /// Reads the certificate that `config` names, or else the generated one in `data_dir`, which is
    /// generated if it is not there yet.
    ///
    /// # Errors
    /// See [`TlsError`].
    pub fn open(config: &Config, data_dir: &Path) -> Result<Self, TlsError> {
        let identity = match (&config.certificate, &config.key) {
            (Some(certificate), Some(key)) => Self::read(certificate, key),
            (Some(_), None) => Err(TlsError::Half { given: "certificate", missing: "key" }),
            (None, Some(_)) => Err(TlsError::Half { given: "key", missing: "certificate" }),
            (None, None) => {
                let dir = data_dir.join("tls");
                let (certificate, key) = (dir.join("certificate.pem"), dir.join("key.pem"));
                if !certificate.exists() {
                    generate(&config.names, &certificate, &key)?;
                }
                Self::read(&certificate, &key)
            }
        }?;
        let client_ca = config.client_ca.as_deref().map(roots).transpose()?.map(Arc::new);
        Ok(Self { client_ca, ..identity })
    }

    fn read(certificate: &Path, key: &Path) -> Result<Self, TlsError> {
        let pem_error = |source| TlsError::Pem { path: key.to_owned(), source };
        let chain = certificates(certificate)?;
        let key = PrivateKeyDer::from_pem_file(key).map_err(pem_error)?;
        Ok(Self { chain, key, client_ca: None })
    }

    /// SHA-256 of the certificate, in hexadecimal: what a client may pin.
    pub fn fingerprint(&self) -> String {
        Fingerprint::of(&self.chain[0]).to_string()
    }

    /// A secret for `purpose`, which stays the same as long as the private key does.
    pub fn secret(&self, purpose: &[u8]) -> [u8; 32] {
        let key = hmac::Key::new(hmac::HMAC_SHA256, self.key.secret_der());
        let tag = hmac::sign(&key, purpose);
        tag.as_ref().try_into().expect("SHA-256 has 32 bytes")
    }

    /// TLS 1.3, speaking `alpn` and nothing else, to clients whose certificates are signed as they have
    /// to be, if they need one.
    ///
    /// # Errors
    /// [`TlsError::Mismatch`] if the key is not the certificate's.
    pub fn server_config(&self, alpn: &[u8]) -> Result<rustls::ServerConfig, TlsError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("ring has TLS 1.3");
        let builder = match &self.client_ca {
            None => builder.with_no_client_auth(),
            Some(roots) => {
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(Arc::clone(roots), provider)
                        .build()
                        .map_err(|source| TlsError::Verifier { source })?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let mut config = builder
            .with_single_cert(self.chain.clone(), self.key.clone_key())
            .map_err(|source| TlsError::Mismatch { source })?;
        config.alpn_protocols = vec![alpn.to_vec()];
        Ok(config)
    }
}

impl PeerCertificate {
    /// The first certificate of a chain that has been verified; none if the client has shown none.
    pub fn first(chain: &[CertificateDer<'_>]) -> Option<Self> {
        let certificate = chain.first()?;
        let fingerprint = Fingerprint::of(certificate);
        let names = match webpki::EndEntityCert::try_from(certificate) {
            Ok(parsed) => {
                let names = parsed.valid_dns_names().chain(parsed.valid_uri_names());
                names.map(str::to_ascii_lowercase).collect()
            }
            // Whoever verified it was less strict; its fingerprint is one all the same.
            Err(_) => Vec::new(),
        };
        Some(Self { fingerprint, names })
    }
}

impl Fingerprint {
    fn of(certificate: &[u8]) -> Self {
        let digest = digest::digest(&digest::SHA256, certificate);
        Self(digest.as_ref().try_into().expect("SHA-256 has 32 bytes"))
    }

    /// Reads 64 hexadecimal digits, which may have colons between them.
    pub fn parse(text: &str) -> Option<Self> {
        let digits: Vec<u8> = text.bytes().filter(|byte| *byte != b':').collect();
        if digits.len() != 64 {
            return None;
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            let digit = |digit: u8| char::from(digit).to_digit(16);
            *byte = u8::try_from(digit(pair[0])? << 4 | digit(pair[1])?).ok()?;
        }
        Some(Self(bytes))
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let chain = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|source| TlsError::Pem { path: path.to_owned(), source })?;
    if chain.is_empty() {
        return Err(TlsError::Empty { path: path.to_owned() });
    }
    Ok(chain)
}

fn roots(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots
            .add(certificate)
            .map_err(|source| TlsError::ClientCa { path: path.to_owned(), source })?;
    }
    Ok(roots)
}

/// Writes a new self-signed certificate; last, since its presence tells that the key is complete.
fn generate(names: &[String], certificate: &Path, key: &Path) -> Result<(), TlsError> {
    let loopback = ["localhost", "127.0.0.1", "::1"].map(str::to_owned);
    let names = [loopback.as_slice(), names].concat();
    let CertifiedKey::<KeyPair> { cert, signing_key } =
        rcgen::generate_simple_self_signed(names)
            .map_err(|source| TlsError::Generate { source })?;
    let dir = key.parent().expect("both lie in the tls directory");
    fs::create_dir_all(dir).map_err(|source| TlsError::Io { path: dir.to_owned(), source })?;
    write(key, &signing_key.serialize_pem(), 0o600)?;
    write(certificate, &cert.pem(), 0o644)
}

/// Puts `text` at `path` at once or not at all.
fn write(path: &Path, text: &str, mode: u32) -> Result<(), TlsError> {
    use std::os::unix::fs::OpenOptionsExt as _;

    let io_error = |source| TlsError::Io { path: path.to_owned(), source };
    let new = path.with_extension("pem.new");
    // A left-over of a crash may have another mode.
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io_error(error)),
        _ => {}
    }
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&new)
        .map_err(io_error)?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(io_error)?;
    fs::rename(&new, path).map_err(io_error)
}
