use expect_test::expect;

use super::*;

#[test]
fn median_is_the_middle() {
    let check = |values: &[f64], expected: f64| {
        assert_eq!(median(values.iter().copied()), expected, "{values:?}");
    };
    check(&[], 0.0);
    check(&[3.0], 3.0);
    check(&[9.0, 1.0, 2.0], 2.0);
    check(&[9.0, 1.0, 2.0, 4.0], 3.0);
}

fn figures(seconds: &[f64], read_bytes_per_s: &[f64]) -> Figures {
    let turns = seconds.iter().zip(read_bytes_per_s);
    let turns = turns.map(|(&seconds, &read_bytes_per_s)| Turn { seconds, read_bytes_per_s });
    let work = Work { bytes: 1_000_000_000, multiply_adds: 4_000_000_000 };
    Figures::new(work, 80e9, turns.collect())
}

/// A machine that slows down by half slows reading and steps alike: the shares tell that nothing else
/// has changed.
#[test]
fn share_is_that_of_the_turn_and_not_of_the_medians() {
    let found = figures(&[0.2, 0.4, 0.8], &[10e9, 5e9, 2.5e9]);
    assert_eq!(found.seconds, 0.4);
    assert_eq!(found.read_bytes_per_s, 5e9);
    assert_eq!(found.bound, Bound::Memory);
    assert_eq!(found.of_limit, 0.5);
}

#[test]
fn nearer_limit_is_the_one_that_takes_longer() {
    // 4e9 multiply-adds take 50 ms, and reading 1e9 bytes 40 ms.
    let found = figures(&[0.1], &[25e9]);
    assert_eq!(found.bound, Bound::MultiplyAdds);
    assert_eq!(found.of_limit, 0.5);
}

#[test]
fn ratio_is_the_median_of_rounds() {
    let (a, b) = (figures(&[1.0, 2.0, 4.0], &[1e9; 3]), figures(&[2.0, 2.0, 16.0], &[1e9; 3]));
    assert_eq!(a.times_as_fast_as(&b), 2.0);
    assert_eq!(a.times_as_fast_as(&a), 1.0);
}

fn report() -> Report {
    let peak = |arithmetic: &str, one_per_s| Peak {
        arithmetic: arithmetic.to_owned(),
        one_per_s,
        all_per_s: 2.0 * one_per_s,
    };
    let step = |system: &str, task, seconds| Step {
        system: system.to_owned(),
        precision: "q4".to_owned(),
        task,
        position: Some(0),
        figures: figures(&[seconds], &[10e9]),
    };
    let decode = Task::Decode { sessions: 8 };
    Report {
        machine: Machine { cpu: "some CPU".to_owned(), cores: 2 },
        limits: Some(Limits {
            threads: 2,
            read: Read { one_bytes_per_s: 10e9, all_bytes_per_s: 15e9 },
            multiply_adds: vec![peak("f32", 50e9), peak("i8", 200e9), peak("bf16 tiles", 80e9)],
        }),
        kernels: vec![Kernel {
            name: "down_proj".to_owned(),
            format: "q8".to_owned(),
            groups: 1,
            inputs: 1536,
            outputs: 512,
            rows: 8,
            figures: figures(&[0.2], &[10e9]),
        }],
        bundles: vec![Bundle {
            system: "small".to_owned(),
            precision: "q4".to_owned(),
            weights_bytes: 1_500_000,
            state_bytes: 2_000_000,
            verify_seconds: 0.5,
            load_seconds: 0.01,
            first_step_seconds: 0.1,
            resident: Some(Resident { file_bytes: 1_500_000, anonymous_bytes: 300_000 }),
        }],
        steps: vec![
            step("small", decode, 0.2),
            step("small", Task::Prompt { tokens: 128 }, 0.8),
            step("other", decode, 0.1),
        ],
        profiles: vec![Profile {
            step: step("small", decode, 0.2),
            traced_seconds: 0.25,
            dispatch_seconds: 0.01,
            trace_scale: 1.5,
            parts: vec![
                Part { kind: Kind::Products, nodes: 3, seconds: 0.15 },
                Part { kind: Kind::HandOvers, nodes: 3, seconds: 0.05 },
            ],
        }],
    }
}

#[test]
fn tables_show_it_all() {
    expect![[r#"
        some CPU, 2 cores

        limit                          1 thread  all threads
        read                     GB/s      10.0         15.0
        multiply-add f32          G/s      50.0        100.0
        multiply-add i8           G/s     200.0        400.0
        multiply-add bf16 tiles   G/s      80.0        160.0

        product                 weights  rows        us  GB/s  GMAC/s  read GB/s   bound  of limit
        1536 to 512: down_proj  q8          8  200000.0   5.0    20.0       10.0  memory      50 %

        bundle  weights   MB  hash s  load s  first step s  resident MB: file  other  session MB
        small   q4       1.5    0.50   0.010         0.100                1.5    0.3         2.0

        step        bundle  weights       ms  tokens/s  to the first  read GB/s   bound  of limit
        decode 8    small   q4       200.000      40.0          1.00       10.0  memory      50 %
        decode 8    other   q4       100.000      80.0          2.00       10.0  memory     100 %
        prompt 128  small   q4       800.000     160.0          1.00       10.0  memory      12 %

        step      bundle  weights  part             nodes        us  of the step
        decode 8  small   q4       matrix products      3  150000.0         75 %
        decode 8  small   q4       hand-overs               50000.0         25 %

        step      bundle  weights  nodes       ms  ms with a trace  empty nodes us  of the step  parts scaled by
        decode 8  small   q4           3  200.000          250.000         10000.0        5.0 %         1 / 1.50
    "#]]
    .assert_eq(&report().to_string());
}

/// The bundle `long` loses half its pace between two lengths; `small` none.
#[test]
fn lengths_are_held_against_the_first_one_and_the_first_bundle() {
    let task = Task::Decode { sessions: 2 };
    let step = |system: &str, position, seconds| Step {
        system: system.to_owned(),
        precision: "q4".to_owned(),
        task,
        position,
        figures: figures(&[seconds], &[10e9]),
    };
    let steps = vec![
        step("small", Some(128), 0.2),
        step("small", Some(4096), 0.2),
        step("long", Some(128), 0.1),
        step("long", Some(4096), 0.2),
    ];
    let machine = Machine { cpu: "some CPU".to_owned(), cores: 2 };
    expect![[r#"
        some CPU, 2 cores

        step      bundle  weights  after       ms  tokens/s  to the first  to its first length  read GB/s
        decode 2  small   q4         128  200.000      10.0          1.00                1.000       10.0
        decode 2  long    q4         128  100.000      20.0          2.00                1.000       10.0
        decode 2  small   q4        4096  200.000      10.0          1.00                1.000       10.0
        decode 2  long    q4        4096  200.000      10.0          1.00                0.500       10.0
    "#]]
    .assert_eq(&Report { machine, steps, ..Report::default() }.to_string());
}

#[test]
fn file_is_read_as_it_was_written() {
    let text = serde_json::to_string(&report()).unwrap();
    let again: Report = serde_json::from_str(&text).unwrap();
    assert_eq!(serde_json::to_string(&again).unwrap(), text);
    assert_eq!(again.to_string(), report().to_string());
}

#[test]
fn limit_of_multiply_adds_follows_from_the_weights() {
    let limits = report().limits.unwrap();
    let check = |precision, threads, expected| {
        assert_eq!(limits.multiply_adds_per_s(precision, threads), expected, "{precision}");
    };
    check("q4", 1, 200e9);
    check("q8", 2, 400e9);
    check("bf16", 1, 80e9);
    check("f16", 1, 50e9);
    check("f32", 2, 100e9);
}
