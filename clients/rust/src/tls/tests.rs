use std::fs;

use super::{Fingerprint, Trust};

#[test]
fn fingerprint_reads_digits_with_or_without_colons() {
    let plain = "0123456789abcdefABCDEF0123456789".repeat(2);
    let pairs: Vec<_> = plain.as_bytes().chunks(2).map(|it| str::from_utf8(it).unwrap()).collect();
    let parsed: Fingerprint = plain.parse().unwrap();
    assert_eq!(parsed, pairs.join(":").parse().unwrap());
    assert_eq!(parsed.0[..3], [0x01, 0x23, 0x45]);
}

#[test]
fn text_that_is_no_fingerprint_is_refused() {
    for text in ["", "ab", &"g".repeat(64), &"0".repeat(63), &"é".repeat(32)] {
        let error = text.parse::<Fingerprint>().unwrap_err().to_string();
        assert!(error.ends_with("is not 64 hexadecimal digits"), "{error}");
    }
}

#[test]
fn nobody_is_trusted_by_default() {
    let error = Trust::default().client_config(b"test", None).unwrap_err();
    assert_eq!(error.to_string(), "grpcs:// and quic:// need to know whom to trust");
}

#[test]
fn file_without_a_certificate_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let empty = dir.path().join("empty.pem");
    fs::write(&empty, "").unwrap();
    let error = Trust::Certificate(empty).client_config(b"test", None).unwrap_err().to_string();
    assert!(error.ends_with("empty.pem: holds no certificate"), "{error}");
    let error = Trust::Certificate(dir.path().join("absent.pem")).client_config(b"test", None);
    assert!(error.unwrap_err().to_string().contains("absent.pem"));
}
