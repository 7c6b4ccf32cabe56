//! Bytes per second of writing and reading a record, beside `memcpy` and the checksum alone.

use std::{hint::black_box, time::Duration};

use aerie_state_cache::{Config, Fingerprint, Key, StateCache};
use criterion::{
    BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main, measurement::WallTime,
};

const KIB: usize = 1 << 10;
const RECORDS: u32 = 4;

criterion_group!(benches, throughput);
criterion_main!(benches);

fn throughput(criterion: &mut Criterion) {
    for (name, record_bytes) in [("64KiB", 64 * KIB), ("1MiB", 1024 * KIB), ("17MiB", 17408 * KIB)]
    {
        let mut group = criterion.benchmark_group(name);
        group
            .throughput(Throughput::Bytes(record_bytes as u64))
            .measurement_time(Duration::from_secs(2))
            .sample_size(20);
        bench(&mut group, record_bytes);
        group.finish();
    }
}

fn bench(group: &mut BenchmarkGroup<'_, WallTime>, record_bytes: usize) {
    let record: Vec<u8> = (0..=255).cycle().take(record_bytes).collect();
    let mut copies = vec![vec![0; record_bytes]; RECORDS as usize * 2];
    let mut turn = (0..copies.len()).cycle();
    group.bench_function("memcpy", |bencher| {
        bencher.iter(|| {
            let copy = &mut copies[turn.next().expect("the cycle has no end")];
            copy.copy_from_slice(black_box(&record));
        });
    });
    group.bench_function("checksum", |bencher| {
        bencher.iter(|| crc32fast::hash(black_box(&record)));
    });

    let dir = tempfile::tempdir().expect("there is a temporary directory");
    let config = Config {
        record_bytes: record_bytes as u64,
        records_max: RECORDS,
        fingerprint: Fingerprint([0; 32]),
    };
    let mut cache = StateCache::open(&dir.path().join("cache"), config).expect("the cache opens");
    let mut keys = (0..RECORDS.into()).map(Key).cycle();
    let mut turn = || keys.next().expect("the cycle has no end");
    for _ in 0..2 * RECORDS {
        cache.write(turn(), &[&record], 0).expect("the disk has room");
    }
    group.bench_function("write", |bencher| {
        bencher.iter(|| cache.write(turn(), &[black_box(&record)], 0).expect("the disk has room"));
    });
    group.bench_function("read", |bencher| {
        bencher.iter(|| black_box(cache.read(turn()).expect("the record is whole").bytes).len());
    });
}
