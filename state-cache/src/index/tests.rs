use std::{
    collections::{BTreeMap, btree_map::Entry},
    io,
};

use super::{Content, Index, Packed, Slab};
use crate::{
    cache::Key,
    layout::{Plane, SlabId},
};

const RECORD: Slab = Slab { next: Plane::B, content: Content::Record, rolled_back: false };

#[test]
fn slabs_unpack_as_they_were_packed() {
    for next in [Plane::A, Plane::B] {
        for content in [Content::Nothing, Content::Tombstone, Content::Record] {
            for (rolled_back, tag) in [(false, 0), (true, 0), (false, 15), (true, 9)] {
                let slab = Slab { next, content, rolled_back };
                let packed = Packed::new(slab, tag);
                assert_eq!((packed.unpack(), packed.tag()), (slab, tag));
            }
        }
    }
}

/// Goal: the index finds what a map finds.
/// Method: link and unlink slabs at random, by a generator with a fixed seed, one in four without
/// telling the key.
#[test]
fn keys_are_found_as_in_a_map() {
    const SLABS: u32 = 40;
    let mut index = Index::new(SLABS);
    let mut slabs = [None; SLABS as usize];
    let mut expected = BTreeMap::new();
    let mut random = 1_u64;
    for step in 0..5_000 {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let (key, slab) = (Key(u128::from(random >> 58)), SlabId(step % SLABS));
        if let Some(held) = slabs[slab.0 as usize].take() {
            expected.remove(&held);
            index.unlink((random >> 40 & 3 != 0).then_some(held), slab);
        } else if let Entry::Vacant(vacant) = expected.entry(key) {
            slabs[slab.0 as usize] = Some(key);
            vacant.insert(slab);
            index.link(key, slab, RECORD);
        }
        assert_eq!(index.n_records(), expected.len());
        for key in (0..64).map(Key) {
            let found = index.find(key, |slab| Ok(slabs[slab.0 as usize])).unwrap();
            assert_eq!(found, expected.get(&key).copied(), "{key} after {step} steps");
        }
    }
}

#[test]
fn error_in_reading_a_key_is_not_taken_for_its_absence() {
    let mut index = Index::new(1);
    index.link(Key(1), SlabId(0), RECORD);
    let broken = |_| Err(io::ErrorKind::UnexpectedEof.into());
    assert_eq!(index.find(Key(1), broken).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
}
