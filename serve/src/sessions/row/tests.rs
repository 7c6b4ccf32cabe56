use proptest::prelude::*;

use super::*;

fn record() -> impl Strategy<Value = Record> {
    let turn = (any::<Option<u128>>(), 0..=50_u64, 50..=100_u64, any::<u64>(), 0..=7_usize)
        .prop_map(|(digest, base, drawn_from, text_bytes, end)| {
            let end = end.checked_sub(1).map(|i| FinishReason::ALL[i]);
            Turn { digest, base, drawn_from, text_bytes, end }
        });
    let states = prop::collection::btree_map(1..=100_u64, any::<u64>(), 0..=STATES_MAX)
        .prop_map(|it| it.into_iter().map(|(computed, key)| StateRef { key, computed }).collect());
    let lineage =
        (any::<u128>(), 0..=100_u64).prop_map(|(of, until)| Lineage { of: SessionId(of), until });
    let name = "[a-zA-Z0-9._-]{1,64}".prop_map(|it| Name::parse(&it).ok());
    let rest = (
        any::<bool>(),
        100..u64::MAX,
        any::<u32>(),
        any::<u64>(),
        any::<(Option<u128>, u128, u32)>(),
    );
    (name, prop::option::of(turn), states, prop::option::of(lineage), any::<Option<u32>>(), rest)
        .prop_map(|(name, turn, states, lineage, tape, rest)| {
            let (keep, position, branch, seed, (moved_by, tenant, epoch)) = rest;
            let tenant = TenantId(tenant);
            Record {
                tenant,
                keep,
                name,
                position,
                epoch,
                branch,
                seed,
                turn,
                moved_by,
                tape,
                lineage,
                states,
            }
        })
}

proptest! {
    #[test]
    fn a_record_survives_its_row(record in record()) {
        prop_assert_eq!(decode(&encode(&record)), Ok(record));
    }

    /// Method: the checksum that the cache keeps beside a row.
    #[test]
    fn different_rows_have_different_checksums(a in record(), b in record()) {
        let [a, b] = [a, b].map(|it| encode(&it));
        prop_assert_eq!(a == b, crc32fast::hash(&a) == crc32fast::hash(&b));
    }

    #[test]
    fn damaged_rows_do_no_harm(record in record(), at in 0..BYTES, byte: u8) {
        let mut row = encode(&record);
        row[at] = byte;
        let _ = decode(&row);
    }
}

/// A row may be well-formed and yet say what no session can be.
#[test]
fn impossible_fields_are_named() {
    let turn = Turn { digest: None, base: 3, drawn_from: 5, text_bytes: 0, end: None };
    let states = vec![StateRef { key: 1, computed: 4 }, StateRef { key: 2, computed: 6 }];
    let record = Record { position: 9, turn: Some(turn), states, ..Record::default() };
    let patched = |at: usize, bytes: &[u8]| {
        let mut row = encode(&record);
        row[at..at + bytes.len()].copy_from_slice(bytes);
        decode(&row).unwrap_err()
    };
    assert_eq!(patched(0, b"x"), RowError::Magic);
    assert_eq!(patched(8, &[9]), RowError::Version { found: 9 });
    for (at, bytes, field) in [
        (12, &[0x80][..], "flags"),
        (17, &[99], "turn.end"),
        (18, &[33], "states"),
        (19, &[65], "name"),
        (19, &[1], "name"),
        (24, &[4], "turn"),
        (56, &[6], "turn"),
        (STATES_AT + 8, &[7], "states"),
        (STATES_AT + 24, &[10], "states"),
    ] {
        assert_eq!(patched(at, bytes), RowError::Field { field }, "{at}");
    }
    assert_eq!(decode(&[0; 5]), Err(RowError::Length { found_bytes: 5 }));
}
