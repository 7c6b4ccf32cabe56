//! What many parked records cost: memory, writing, opening, reading, evicting.
//!
//! `cargo bench -p aerie-state-cache --bench parked -- RECORDS RECORD_BYTES [FOLDER]`: a program that
//! runs once and prints a table, since criterion would write the file again and again.

#![expect(clippy::print_stdout, reason = "its output is what it is for")]
#![expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

use std::{
    env, fs,
    hint::black_box,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use aerie_state_cache::{Config, Fingerprint, Key, StateCache, Verify};

const READS: usize = 200_000;
const EVICTIONS: usize = 20_000;

fn main() {
    let mut arguments = env::args().skip(1).filter(|it| !it.starts_with('-'));
    let mut number = |default| arguments.next().and_then(|it| it.parse().ok()).unwrap_or(default);
    let (records_max, record_bytes) = (number(10_000_u32), number(1024_u32));
    let folder = arguments.next().map_or_else(env::temp_dir, PathBuf::from);
    let folder = tempfile::tempdir_in(folder).expect("the folder can be written to");
    let path = folder.path().join("cache");
    let fingerprint = Fingerprint([0; 32]);
    let config = Config { record_bytes: record_bytes.into(), records_max, fingerprint };
    println!("{records_max} records of {record_bytes} bytes");
    let before = anonymous_bytes();
    fill(&path, config);
    for verify in [Verify::AtOpen, Verify::OnRead, Verify::OnRead] {
        let start = Instant::now();
        let cache = StateCache::open_with(&path, config, verify).expect("the cache opens");
        let seconds = start.elapsed().as_secs_f64();
        let each = per_record(anonymous_bytes().saturating_sub(before), config);
        println!("opened, {verify:?}: {seconds:.2} s, {each:.1} bytes of memory for each record");
        assert_eq!(cache.len(), records_max as usize, "every record is there");
    }
    let mut cache = StateCache::open_with(&path, config, Verify::OnRead).expect("the cache opens");
    measure(&mut cache, config);
}

/// Writes every record once, in the order of keys.
fn fill(path: &Path, config: Config) {
    let before = anonymous_bytes();
    let mut cache = StateCache::open(path, config).expect("the cache opens");
    let record = record(config);
    let start = Instant::now();
    for n in 0..config.records_max {
        cache.write(key(n), &[&record], n.into()).expect("the disk has room");
    }
    let seconds = start.elapsed().as_secs_f64();
    let each = per_record(anonymous_bytes().saturating_sub(before), config);
    println!(
        "written: {:.0} records/s, {each:.1} bytes of memory for each record",
        f64::from(config.records_max) / seconds
    );
    let start = Instant::now();
    cache.flush().expect("the disk works");
    println!("flushed: {:.1} s", start.elapsed().as_secs_f64());
}

/// Times single calls on a full cache.
fn measure(cache: &mut StateCache, config: Config) {
    let mut random = 1_u64;
    let mut any = || {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        u32::try_from((random >> 33) % u64::from(config.records_max)).expect("it is below")
    };
    // Twice: the first touches the pages of the map for the first time.
    for name in ["read, first", "read, warm"] {
        report(name, READS, || {
            black_box(cache.read(key(any())).expect("the record is whole").bytes);
        });
    }
    report("touch", READS, || {
        let n = any();
        cache.touch(key(n), n.into()).expect("the record is there");
    });
    report("look up what is not there", READS, || {
        assert!(black_box(cache.record(Key(any().into()))).is_none(), "keys are spread");
    });
    let record = record(config);
    let mut n = config.records_max;
    report("write and evict", EVICTIONS, || {
        let written = cache.write(key(n), &[&record], n.into()).expect("the disk has room");
        assert!(written.evicted.is_some(), "the cache is full");
        n += 1;
    });
}

fn report(name: &str, n: usize, mut call: impl FnMut()) {
    let mut times: Vec<Duration> = (0..n)
        .map(|_| {
            let start = Instant::now();
            call();
            start.elapsed()
        })
        .collect();
    times.sort_unstable();
    let at = |share: usize| times[(n * share / 100).min(n - 1)].as_secs_f64() * 1e6;
    println!("{name}: median {:.1} us, 99th of a hundred {:.1} us", at(50), at(99));
}

/// Keys like those of sessions: spread over all bits.
fn key(n: u32) -> Key {
    Key(u128::from(n).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835))
}

fn record(config: Config) -> Vec<u8> {
    (0..=255).cycle().take(usize::try_from(config.record_bytes).expect("it fits")).collect()
}

fn per_record(bytes: u64, config: Config) -> f64 {
    let kib = u32::try_from(bytes / 1024).expect("this takes less than a terabyte");
    f64::from(kib) * 1024.0 / f64::from(config.records_max)
}

/// Resident memory that is no file's: `VmRSS` without `RssFile`. 0 where the system does not tell.
fn anonymous_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = line.and_then(|it| it.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}
