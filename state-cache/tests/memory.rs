//! Counts what a cache takes of the heap for each record. A binary of its own, since an allocator is
//! the whole program's.

#![expect(unsafe_code, reason = "an allocator is unsafe to write")]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

use aerie_state_cache::{Config, Fingerprint, Key, StateCache, Verify};

/// The system's allocator, with a count of the bytes that are out, now and at most.
struct Counting;

static BYTES: AtomicUsize = AtomicUsize::new(0);
static BYTES_MAX: AtomicUsize = AtomicUsize::new(0);

// SAFETY: all calls go to the system's allocator as they come; counting needs no memory. What is
// not overridden goes through these two.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let bytes = BYTES.fetch_add(layout.size(), Relaxed) + layout.size();
        BYTES_MAX.fetch_max(bytes, Relaxed);
        // SAFETY: the caller's promises are those that the system's allocator asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        BYTES.fetch_sub(layout.size(), Relaxed);
        // SAFETY: `block` came from `System`, with the same layout.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const RECORDS: u32 = 100_000;
const RECORD: [u8; 64] = [7; 64];

/// Goal: a million parked sessions fit a small machine: no more than 24 bytes for each record, and
/// not a byte more while the file is opened, or when records have come and gone.
/// Method: fill a file, remove and evict some; then open it again in both ways.
#[test]
fn record_costs_at_most_24_bytes_of_heap() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cache");
    let config = Config {
        record_bytes: RECORD.len() as u64,
        records_max: RECORDS,
        fingerprint: Fingerprint([0; 32]),
    };
    let start = BYTES.load(Relaxed);
    let mut cache = StateCache::open(&path, config).unwrap();
    for key in 0..RECORDS + RECORDS / 4 {
        cache.write(Key(key.into()), &[&RECORD], 1).unwrap();
        if key % 10 == 0 {
            cache.remove(Key(key.into())).unwrap();
        }
    }
    assert_eq!(cache.len(), RECORDS as usize);
    check("of a file that was filled", start);
    drop(cache);
    for verify in [Verify::AtOpen, Verify::OnRead] {
        let start = BYTES.load(Relaxed);
        BYTES_MAX.store(start, Relaxed);
        let cache = StateCache::open_with(&path, config, verify).unwrap();
        check("of a file that was opened", start);
        drop(cache);
    }
}

/// Compares the most bytes that were out since there were `start`.
#[track_caller]
fn check(name: &str, start: usize) {
    let each = (BYTES_MAX.load(Relaxed) - start).div_ceil(RECORDS as usize);
    assert!(each <= 24, "{each} bytes for each record {name}");
}
