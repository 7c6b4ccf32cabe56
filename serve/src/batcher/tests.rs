//! Scripts against a batcher, and what holds of every one of many random ones.

use std::collections::BTreeMap;

use expect_test::{Expect, expect};
use proptest::prelude::*;

use super::*;

const CONFIG: Config =
    Config { rows_max: 4, delay_us_max: 2_000, queue_rows_max: 8, patience_ms: 10 };

#[test]
fn a_request_waits_for_company_no_longer_than_the_delay() {
    check("1 ? @1 ? 2 ? @2 ?", expect!["wait 2 | wait 2 | wait 2 | run 1 2"]);
}

#[test]
fn a_full_batch_does_not_wait() {
    check("1x2 2 3 ? 4 ?", expect!["run 1 2 3 | wait 2"]);
}

#[test]
fn pictures_of_other_extents_run_by_themselves() {
    check("1 2b 3 4b @2 ? ? ?", expect!["run 1 3 | run 2 4 | idle"]);
    // The second extent is full, while the first waits for company.
    check("1 2bx4 ? ?", expect!["run 2 | wait 2"]);
}

#[test]
fn what_is_urgent_goes_first_and_the_rest_is_not_forgotten() {
    check("1lx2 2lx2 3x3 ? ? ?", expect!["run 3 | run 1 2 | idle"]);
    // What is left of the room goes to those that do not hurry.
    check("1lx1 2x3 ?", expect!["run 2 1"]);
    // After 10 ms of waiting, nobody goes ahead any more.
    check("1lx4 @10 2x4 ? ?", expect!["run 1 | run 2"]);
}

#[test]
fn one_that_does_not_fit_is_the_first_of_the_next_batch() {
    check("1 2x4 3x3 ? ? ?", expect!["run 1 3 | run 2 | idle"]);
}

#[test]
fn there_is_room_for_so_many_rows() {
    check("1x4 2x4 3 ? 3 ?", expect!["full | run 1 | run 2"]);
}

#[test]
fn who_has_gone_or_waited_too_long_is_not_run() {
    check("1 2 -1 @2 ?", expect!["run 2"]);
    check("1t1 2 ? @1 ? @2 ?", expect!["wait 1 | expired 1, wait 2 | run 2"]);
}

#[test]
fn nothing_waits_for_others_at_the_end() {
    check("1 2b drain ? ? ?", expect!["run 1 | run 2 | idle"]);
}

/// Goal: a run takes no longer for pictures that are larger, or of a shape for which a model is no quicker.
#[test]
fn pictures_count_by_their_pixels() {
    let weight = |[height, width]: [u32; 2], usual: u32| {
        Extent { height, width }.weight(Extent { height: usual, width: usual })
    };
    assert_eq!(
        [[224, 224], [1, 1], [225, 224], [448, 448]].map(|it| weight(it, 224)),
        [1, 1, 2, 4]
    );
    assert_eq!(weight([1, 224 * 224], 224), 32);
    assert_eq!(weight([1024, 1024], 32), 1024);
    assert_eq!(weight([u32::MAX, u32::MAX], 1), u32::MAX);
}

/// Plays `script` and compares what it says.
///
/// `7lbx3t5` pushes request 7 of low priority (`l`) of another extent (`b`) with three rows that expires at 5 ms; `-7` says
/// that its client has gone; `@5` lets it be 5 ms; `?` asks what to do.
#[track_caller]
fn check(script: &str, expected: Expect) {
    let start = at_start();
    let (mut batcher, mut now, mut said) = (Batcher::new(CONFIG), start, Vec::new());
    for word in script.split_whitespace() {
        if let Some(ms) = word.strip_prefix('@') {
            now = start + Duration::from_millis(ms.parse().unwrap());
        } else if let Some(ticket) = word.strip_prefix('-') {
            batcher.cancel(|it| it == Ticket(ticket.parse().unwrap()));
        } else if word == "drain" {
            batcher.drain();
        } else if word == "?" {
            said.push(answer(&mut batcher, now, start));
        } else if batcher.push(parse(word, now, start)).is_err() {
            said.push("full".to_owned());
        }
    }
    expected.assert_eq(&said.join(" | "));
}

fn answer(batcher: &mut Batcher, now: Instant, start: Instant) -> String {
    let mut said = String::new();
    while let Some(Ticket(ticket)) = batcher.expired(now) {
        said.push_str(&format!("expired {ticket}, "));
    }
    let mut batch = Vec::new();
    said + &match batcher.next(now, &mut batch) {
        Next::Idle => "idle".to_owned(),
        Next::Wait(until) => format!("wait {}", (until - start).as_millis()),
        Next::Run => {
            let tickets: Vec<_> = batch.iter().map(|it| it.0.to_string()).collect();
            format!("run {}", tickets.join(" "))
        }
    }
}

fn parse(word: &str, now: Instant, start: Instant) -> Job {
    let number = |mark: char| {
        let (_, rest) = word.split_once(mark)?;
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        digits.parse::<u64>().ok()
    };
    let ticket: String = word.chars().take_while(char::is_ascii_digit).collect();
    let side = if word.contains('b') { 64 } else { 32 };
    Job {
        ticket: Ticket(ticket.parse().unwrap()),
        rows: u32::try_from(number('x').unwrap_or(1)).unwrap(),
        extent: Extent { height: side, width: side },
        priority: if word.contains('l') { Priority::Low } else { Priority::High },
        arrived: now,
        expires: number('t').map(|ms| start + Duration::from_millis(ms)),
    }
}

proptest! {
    /// Goal: whatever comes, each request is run once, in time, in a batch that may be.
    #[test]
    fn every_request_is_run_once_and_in_time(
        jobs in prop::collection::vec((1_u32..=4, 0_u32..3, any::<bool>(), 0_u64..3), 1..60),
    ) {
        let start = at_start();
        let (mut batcher, mut now, mut batch) = (Batcher::new(CONFIG), start, Vec::new());
        let (mut waiting, mut ran) = (BTreeMap::new(), 0);
        for (i, &(rows, side, is_low, pause_ms)) in jobs.iter().enumerate() {
            let priority = if is_low { Priority::Low } else { Priority::High };
            let extent = Extent { height: side, width: side };
            let ticket = Ticket(i as u64);
            let job = Job { ticket, rows, extent, priority, arrived: now, expires: None };
            while batcher.push(job).is_err() {
                ran += run(&mut batcher, now, &mut batch, &mut waiting);
            }
            waiting.insert(ticket, job);
            now += Duration::from_millis(pause_ms);
            while batcher.next(now, &mut batch) == Next::Run {
                ran += settle(&batch, now, &mut waiting);
            }
            // Whatever waits now is younger than the delay.
            let delay = Duration::from_micros(CONFIG.delay_us_max.into());
            prop_assert!(waiting.values().all(|job| now < job.arrived + delay));
        }
        batcher.drain();
        while batcher.next(now, &mut batch) == Next::Run {
            ran += settle(&batch, now, &mut waiting);
        }
        prop_assert_eq!(ran, jobs.len());
        prop_assert!(waiting.is_empty() && batcher.rows_waiting() == 0);
    }
}

/// Lets time pass until there is a batch.
fn run(
    batcher: &mut Batcher,
    now: Instant,
    batch: &mut Vec<Ticket>,
    waiting: &mut BTreeMap<Ticket, Job>,
) -> usize {
    let now = match batcher.next(now, batch) {
        Next::Wait(until) => until,
        _ => now,
    };
    if batch.is_empty() {
        assert_eq!(batcher.next(now, batch), Next::Run);
    }
    settle(batch, now, waiting)
}

/// Takes out who ran, and checks that they may have.
fn settle(batch: &[Ticket], _: Instant, waiting: &mut BTreeMap<Ticket, Job>) -> usize {
    let jobs: Vec<Job> = batch.iter().map(|it| waiting.remove(it).expect("it waited")).collect();
    assert!(jobs.iter().map(|it| it.rows).sum::<u32>() <= CONFIG.rows_max);
    assert!(jobs.iter().all(|it| it.extent == jobs[0].extent));
    jobs.len()
}

#[expect(clippy::disallowed_methods, reason = "some instant has to be the first")]
fn at_start() -> Instant {
    Instant::now()
}
