use std::time::Duration;

use aerie_client::{Code, Error};
use expect_test::expect;

use super::{Outcome, Report, Tally};

#[test]
fn report_reads_well() {
    let mut tally = Tally::default();
    for n in 1..=100 {
        tally.add(outcome(n, Ok(())));
    }
    for _ in 0..2 {
        let message = "256 generations are in flight, which is requests_max".to_owned();
        let code = Code::ResourceExhausted;
        tally.add(outcome(
            0,
            Err(Error::Rejected {
                code,
                message,
                retry_after: None,
                reason: String::new(),
                position: None,
            }),
        ));
    }
    let mode = "closed loop, 4 streams".to_owned();
    let report = Report::new("quic://127.0.0.1:7447", mode, tally, Duration::from_secs(10));
    expect![[r#"
        quic://127.0.0.1:7447, closed loop, 4 streams, 10.0 s

        requests   100 completed
                   2 failed with ResourceExhausted
                   the first with: 256 generations are in flight, which is requests_max
        tokens     200, 20.0 a second

                                     p50       p90       p99       max      mean
        time to first token      50.0 ms   90.0 ms   99.0 ms    100 ms   50.5 ms
        inter-token latency      5.00 ms   9.01 ms   9.90 ms   10.0 ms   5.05 ms
        whole request             500 ms    900 ms    990 ms    1.00 s    505 ms
    "#]]
    .assert_eq(&report.to_string());
}

#[test]
fn tokens_of_one_message_share_the_wait_for_it() {
    let mut tally = Tally::default();
    let gaps = vec![(Duration::from_millis(4), 4)];
    tally.add(Outcome { gaps, ..outcome(1, Ok(())) });
    assert_eq!(tally.inter_token.len(), 4);
    assert_eq!(tally.inter_token.max(), tally.inter_token.min());
    assert!(tally.inter_token.max().abs_diff(1000) <= 1, "three digits are kept");
}

#[test]
fn nothing_measured_is_a_dash() {
    let report = Report::new("", String::new(), Tally::default(), Duration::from_secs(1));
    assert!(report.to_string().contains("time to first token            -         -"));
}

/// A request of `n` milliseconds to the first token and ten times that in all.
fn outcome(n: u64, result: Result<(), Error>) -> Outcome {
    let millis = Duration::from_millis;
    Outcome {
        first_token: result.is_ok().then(|| millis(n)),
        gaps: if result.is_ok() { vec![(millis(n) / 10, 1)] } else { Vec::new() },
        tokens: if result.is_ok() { 2 } else { 0 },
        duration: millis(10 * n),
        result,
    }
}
