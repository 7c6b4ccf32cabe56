//! BLAKE3 of memory on all cores. It is the hash of a tree: pieces of a power of two are subtrees, which
//! are taken side by side and then joined (O'Connor et al. 2020, BLAKE3, §2.1 and §5.3).

#[cfg(test)]
mod tests;

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use blake3::{
    Hash, Hasher,
    hazmat::{ChainingValue, HasherExt as _, Mode, merge_subtrees_non_root, merge_subtrees_root},
};

/// Bytes of a subtree.
const PIECE: usize = 1 << 20;

/// The hash of `bytes`.
pub(super) fn hash(bytes: &[u8]) -> Hash {
    let pieces: Vec<&[u8]> = bytes.chunks(PIECE).collect();
    if pieces.len() < 2 {
        return blake3::hash(bytes);
    }
    let mut values = vec![ChainingValue::default(); pieces.len()];
    for (idx, value) in take(&pieces) {
        values[idx] = value;
    }
    let (left, right) = halves(&values);
    merge_subtrees_root(&join(left), &join(right), Mode::Hash)
}

/// The values of all pieces, each with its place.
fn take(pieces: &[&[u8]]) -> Vec<(usize, ChainingValue)> {
    let next = AtomicUsize::new(0);
    let work = || {
        let idx = || Some(next.fetch_add(1, Ordering::Relaxed)).filter(|it| *it < pieces.len());
        std::iter::from_fn(idx).map(|idx| (idx, piece(idx, pieces[idx]))).collect::<Vec<_>>()
    };
    let others = thread::available_parallelism().map_or(0, |cores| cores.get() - 1);
    thread::scope(|scope| {
        // A thread that is not to be had leaves more to the others.
        let spawn = |_| thread::Builder::new().spawn_scoped(scope, work).ok();
        let helpers: Vec<_> = (0..others.min(pieces.len() - 1)).filter_map(spawn).collect();
        let mut taken = work();
        for helper in helpers {
            taken.extend(helper.join().expect("hashing does not panic"));
        }
        taken
    })
}

/// The value of a piece.
fn piece(idx: usize, bytes: &[u8]) -> ChainingValue {
    let mut hasher = Hasher::new();
    hasher.set_input_offset((idx * PIECE) as u64);
    hasher.update(bytes);
    hasher.finalize_non_root()
}

/// The value of the subtree above `values`.
fn join(values: &[ChainingValue]) -> ChainingValue {
    match values {
        [value] => *value,
        _ => {
            let (left, right) = halves(values);
            merge_subtrees_non_root(&join(left), &join(right), Mode::Hash)
        }
    }
}

/// Cuts where the tree does: the left half is full, the largest power of two that leaves a right one.
fn halves(values: &[ChainingValue]) -> (&[ChainingValue], &[ChainingValue]) {
    values.split_at(1 << (values.len() - 1).ilog2())
}
