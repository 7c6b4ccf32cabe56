use super::*;

const FINGERPRINT: Fingerprint = [7; 32];

#[test]
fn a_snapshot_survives_its_encoding() {
    for pending in [None, Some(0), Some(u32::MAX)] {
        for tail in [&b""[..], b"\xC3", b"\xF0\x9F\xA6"] {
            let decoder = Decoder {
                position: 1 << 40,
                pending,
                utf8_tail: Utf8Tail::from_bytes(tail).unwrap(),
                seed: u64::MAX - 3,
            };
            for keep in [false, true] {
                let snapshot = Snapshot { decoder, keep, fingerprint: FINGERPRINT };
                assert_eq!(Snapshot::decode(&snapshot.encode(), &FINGERPRINT), Ok(snapshot));
            }
        }
    }
}

#[test]
fn every_flipped_bit_is_noticed() {
    let block = snapshot().encode();
    for bit in 0..Snapshot::BYTES * 8 {
        let mut flipped = block;
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert!(Snapshot::decode(&flipped, &FINGERPRINT).is_err(), "bit {bit}");
    }
}

#[test]
fn a_snapshot_of_another_model_is_refused() {
    let refused = Snapshot::decode(&snapshot().encode(), &[8; 32]);
    assert_eq!(refused, Err(SnapshotError::Fingerprint));
}

/// A block may be well-formed and yet say what no decoder can be in.
#[test]
fn impossible_fields_are_named() {
    let patched = |at: usize, byte: u8| {
        let mut block = snapshot().encode();
        block[at] = byte;
        let checksum = crc32fast::hash(&block[..CHECKSUM_AT]);
        block[CHECKSUM_AT..].copy_from_slice(&checksum.to_le_bytes());
        Snapshot::decode(&block, &FINGERPRINT)
    };
    assert_eq!(patched(0, b'x'), Err(SnapshotError::Magic));
    assert_eq!(patched(8, 9), Err(SnapshotError::Version { found: 9 }));
    assert_eq!(patched(12, 0x80), Err(SnapshotError::Field { field: "flags" }));
    assert_eq!(patched(13, 200), Err(SnapshotError::Field { field: "utf8_tail" }));
    assert_eq!(patched(14, b'a'), Err(SnapshotError::Field { field: "utf8_tail" }));
    assert_eq!(patched(24, 0), Err(SnapshotError::Field { field: "position" }));
}

#[test]
fn session_ids_are_uuids() {
    let id = SessionId::random();
    assert_eq!(SessionId::parse(&id.to_string()), Some(id));
    assert_eq!(SessionId(10).to_string(), "00000000-0000-0000-0000-00000000000a");
    assert_eq!(SessionId::parse("../../etc"), None);
}

fn snapshot() -> Snapshot {
    let utf8_tail = Utf8Tail::from_bytes(b"\xC3").unwrap();
    let decoder = Decoder { position: 12, pending: Some(5), utf8_tail, seed: 3 };
    Snapshot { decoder, keep: true, fingerprint: FINGERPRINT }
}
