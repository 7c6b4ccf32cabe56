use std::{fs, os::unix::fs::PermissionsExt as _};

use rcgen::KeyPair;
use rustls::pki_types::CertificateDer;

use super::{Config, Fingerprint, Identity, PeerCertificate};

#[test]
fn generated_certificate_is_kept_and_its_key_is_private() {
    let dir = tempfile::tempdir().unwrap();
    let first = Identity::open(&Config::default(), dir.path()).unwrap();
    let second = Identity::open(&Config::default(), dir.path()).unwrap();
    assert_eq!(first.fingerprint(), second.fingerprint());
    assert_eq!(first.secret(b"a"), second.secret(b"a"));
    assert_ne!(first.secret(b"a"), first.secret(b"b"));
    assert_eq!(first.fingerprint().len(), 64);

    let mode = fs::metadata(dir.path().join("tls/key.pem")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

/// A crash between the key and the certificate leaves a key without one.
#[test]
fn key_without_certificate_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("tls")).unwrap();
    for left_over in ["tls/key.pem", "tls/key.pem.new"] {
        fs::write(dir.path().join(left_over), "half a key").unwrap();
    }
    let identity = Identity::open(&Config::default(), dir.path()).unwrap();
    identity.server_config(b"test").unwrap();
}

#[test]
fn refusals_name_the_field_or_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| Some(dir.path().join(name));
    fs::write(dir.path().join("empty.pem"), "").unwrap();
    let check = |certificate, key, expected: &str| {
        let config = Config { certificate, key, ..Config::default() };
        let error = Identity::open(&config, dir.path()).unwrap_err().to_string();
        assert!(error.contains(expected), "{error:?} lacks {expected:?}");
    };
    check(path("a.pem"), None, "tls.certificate is set, so tls.key must be too");
    check(None, path("a.pem"), "tls.key is set, so tls.certificate must be too");
    check(path("a.pem"), path("b.pem"), "a.pem: ");
    check(path("empty.pem"), path("b.pem"), "empty.pem: holds no certificate");
}

#[test]
fn key_of_another_certificate_is_refused() {
    let [a, b] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    for dir in [&a, &b] {
        Identity::open(&Config::default(), dir.path()).unwrap();
    }
    let config = Config {
        certificate: Some(a.path().join("tls/certificate.pem")),
        key: Some(b.path().join("tls/key.pem")),
        ..Config::default()
    };
    let identity = Identity::open(&config, a.path()).unwrap();
    let error = identity.server_config(b"test").unwrap_err().to_string();
    assert!(error.starts_with("certificate and key do not fit together"), "{error}");
}

/// Goal: a client is known by its certificate's fingerprint, and by the names in it.
#[test]
fn a_certificate_tells_its_names() {
    let key = KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec!["Client.Example".to_owned()]).unwrap();
    let uri = "spiffe://aerie/Tales".try_into().unwrap();
    params.subject_alt_names.push(rcgen::SanType::URI(uri));
    let certificate = params.self_signed(&key).unwrap().der().clone();
    let peer = PeerCertificate::first(std::slice::from_ref(&certificate)).unwrap();
    assert_eq!(peer.names, ["client.example", "spiffe://aerie/tales"]);
    let text = peer.fingerprint.to_string();
    assert_eq!(Fingerprint::parse(&text), Some(peer.fingerprint));
    assert_eq!(text.len(), 64);
    let garbled = PeerCertificate::first(&[CertificateDer::from(vec![1, 2, 3])]).unwrap();
    assert!(garbled.names.is_empty() && garbled.fingerprint != peer.fingerprint);
    assert_eq!(PeerCertificate::first(&[]), None);
    for text in ["", "ab", &"g".repeat(64), &"a".repeat(63), &"a".repeat(65)] {
        assert_eq!(Fingerprint::parse(text), None, "{text:?}");
    }
}
