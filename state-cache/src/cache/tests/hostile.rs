//! Files that nobody wrote: stamps that are whole but contradict each other, and garbage.

use std::num::NonZeroU64;

use super::{RECORD_BYTES, cache, reopen_with};
use crate::{
    cache::Key,
    layout::{Gone, Kind, Place, Plane, SlabId, Stamp},
    recovery::Verify,
};

const SEEDS: u64 = 2_000;
const RECORDS_MAX: u32 = 6;

/// Goal: whatever a file holds, it opens, and what it shows is whole; nothing panics.
/// Method: fill it with stamps of few keys, sequences and kinds, some of whose records are whole, and
/// some of which are spoilt; then spoil more while it is open, between operations.
#[test]
fn contradictory_file_is_taken_without_a_panic() {
    for seed in 0..SEEDS {
        let mut random = seed;
        let mut below = |end: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(seed | 1);
            (random >> 33) % end
        };
        let mut empty = cache(RECORDS_MAX);
        let layout = empty.layout;
        let offset = |it: u64| usize::try_from(it).unwrap();
        for slab in (0..RECORDS_MAX).map(SlabId) {
            for place in [Plane::A, Plane::B].map(|plane| Place { slab, plane }) {
                let short = if below(2) == 0 { below(RECORD_BYTES as u64 + 3) } else { 0 };
                let n_bytes = if short == 0 { RECORD_BYTES } else { offset(short) };
                let checksum = crc32fast::hash(&[0; RECORD_BYTES + 3][..n_bytes]);
                let checksum = checksum ^ u32::from(below(3) == 0);
                let kind = match below(4) {
                    0 => Kind::Tombstone { reason: u32::try_from(below(3)).unwrap() },
                    _ => Kind::Record { checksum, short: NonZeroU64::new(short) },
                };
                let key = Key(below(3).into());
                // Even such as no file would live to see.
                let sequence = if below(20) == 0 { u64::MAX } else { below(5) };
                let stamp = Stamp { key, sequence, used_at: below(3), kind }.to_bytes();
                let n_bytes = if below(4) == 0 { offset(below(64)) } else { 64 };
                let at = offset(layout.stamp(place));
                empty.storage.bytes_mut()[at..][..n_bytes].copy_from_slice(&stamp[..n_bytes]);
            }
        }
        let verify = if seed.is_multiple_of(2) { Verify::AtOpen } else { Verify::OnRead };
        let mut cache = reopen_with(&empty.storage, RECORDS_MAX, verify);
        for _ in 0..40 {
            let key = Key(below(8).into());
            match below(9) {
                8 => _ = cache.write_short(key, &[&[0; 7]], below(3)).unwrap(),
                0 => _ = cache.write(key, &[&[0; RECORD_BYTES]], below(3)).unwrap(),
                1 => _ = cache.remove_as(key, Gone { reason: 1, at: 1 }),
                2 => _ = cache.touch(key, below(3)),
                3 => _ = cache.lease(key).map(|it| cache.release(it.lease).unwrap()),
                4 => _ = cache.gone(key),
                5 => assert!(cache.records().count() <= cache.len(), "seed {seed}"),
                6 => {
                    let plane = if below(2) == 0 { Plane::A } else { Plane::B };
                    let slab = SlabId(u32::try_from(below(RECORDS_MAX.into())).unwrap());
                    let at = layout.stamp(Place { slab, plane }) + below(64);
                    cache.storage.bytes_mut()[offset(at)] ^= 1 << below(8);
                }
                _ => {
                    if let Ok(record) = cache.read(key) {
                        assert!(record.bytes.iter().all(|it| *it == 0), "seed {seed}");
                        assert!((1..=RECORD_BYTES).contains(&record.bytes.len()), "seed {seed}");
                        assert_eq!(record.info.key, key, "seed {seed}");
                    }
                }
            }
        }
    }
}
