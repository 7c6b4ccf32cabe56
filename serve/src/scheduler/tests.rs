use std::{collections::BTreeSet, fmt::Write as _};

use expect_test::{Expect, expect};
use rand::{Rng, SeedableRng, rngs::StdRng};

use super::*;

#[test]
fn long_prompt_does_not_stall_a_live_stream() {
    check(
        Config { lanes_max: 2, step_tokens_max: 4 },
        "+1:1 | +2:7 | | ",
        expect![[r#"
            seat 1; 1 prefill 1 and draw
            seat 2; 1 decode, 2 prefill 3
            1 decode, 2 prefill 3
            1 decode, 2 prefill 1 and draw
        "#]],
    );
}

#[test]
fn older_prompt_is_prefilled_first() {
    check(
        Config { lanes_max: 2, step_tokens_max: 4 },
        "+1:4 +2:9 | -1 +3:4 | |",
        expect![[r#"
            seat 1, seat 2; 1 prefill 4 and draw
            seat 3; 2 prefill 4
            2 prefill 4
            2 prefill 1 and draw, 3 prefill 3
        "#]],
    );
}

#[test]
fn a_prompt_stops_where_it_is_told_to() {
    check(
        Config { lanes_max: 2, step_tokens_max: 4 },
        "+1:6/5 | +2:3/3 | | ",
        expect![[r#"
            seat 1; 1 prefill 1
            seat 2; 1 prefill 4
            1 prefill 1 and draw, 2 prefill 3 and draw
            1 decode, 2 decode
        "#]],
    );
}

#[test]
fn who_finds_no_seat_waits_in_order() {
    check(
        Config { lanes_max: 1, step_tokens_max: 4 },
        "+1:1 +2:1 +3:1 | -1 | -2 | -3 |",
        expect![[r#"
            seat 1; 1 prefill 1 and draw
            seat 2; 2 prefill 1 and draw
            seat 3; 3 prefill 1 and draw
            idle
            idle
        "#]],
    );
}

#[test]
fn a_slow_reader_keeps_its_seat_while_nobody_wants_it() {
    check(
        Config { lanes_max: 2, step_tokens_max: 4 },
        "+1:1 +2:1 | ~1 | | !1",
        expect![[r#"
            seat 1, seat 2; 1 prefill 1 and draw, 2 prefill 1 and draw
            2 decode
            2 decode
            1 decode, 2 decode
        "#]],
    );
}

#[test]
fn a_slow_reader_gives_its_seat_to_who_can_run_and_comes_back() {
    check(
        Config { lanes_max: 1, step_tokens_max: 4 },
        "+1:1 | ~1 +2:1 | | !1 | -2 |",
        expect![[r#"
            seat 1; 1 prefill 1 and draw
            unseat 1, seat 2; 2 prefill 1 and draw
            2 decode
            2 decode
            seat 1; 1 decode
            1 decode
        "#]],
    );
}

/// Goal: the invariants of [`Scheduler`] under anything that a worker does.
/// Method: random pushes, finishes and slow readers by seed; a mirror of who is where.
#[test]
fn invariants_hold_under_random_use() {
    for seed in 0..200 {
        let mut rng = StdRng::seed_from_u64(seed);
        let lanes_max = rng.random_range(1..5);
        let config = Config { lanes_max, step_tokens_max: lanes_max + rng.random_range(1..8) };
        let mut scheduler = Scheduler::new(config);
        let mut left: Vec<(SequenceId, u32)> = Vec::new();
        let mut seated = BTreeSet::new();
        for n in 0..100 {
            if rng.random_bool(0.3) {
                let (prompt_left, stop_at) = (rng.random_range(1..20), rng.random_range(0..8));
                let sequence = Sequence { id: SequenceId(n), prompt_left, stop_at };
                left.push((sequence.id, sequence.prompt_left));
                scheduler.push(sequence);
            }
            if rng.random_bool(0.2) && !left.is_empty() {
                let (id, _) = left.remove(rng.random_range(0..left.len()));
                seated.remove(&id);
                scheduler.finish(id);
            }
            let slow: BTreeSet<_> =
                left.iter().map(|it| it.0).filter(|_| rng.random_bool(0.3)).collect();
            let plan = scheduler.step(|id| slow.contains(&id));

            plan.unseat.iter().for_each(|id| assert!(seated.remove(id), "seed {seed}"));
            plan.seat.iter().for_each(|id| assert!(seated.insert(*id), "seed {seed}"));
            assert!(seated.len() <= lanes_max as usize, "seed {seed}");
            let mut tokens = 0;
            for work in &plan.work {
                assert!(seated.contains(&work.id) && !slow.contains(&work.id), "seed {seed}");
                let (_, left) = left.iter_mut().find(|it| it.0 == work.id).unwrap();
                tokens += match work.phase {
                    Phase::Decode => {
                        assert_eq!(*left, 0, "seed {seed}");
                        1
                    }
                    Phase::Prefill { tokens, is_last } => {
                        *left -= tokens;
                        assert_eq!(is_last, *left == 0, "seed {seed}");
                        tokens
                    }
                };
            }
            assert!(tokens <= config.step_tokens_max, "seed {seed}");
            for (id, left) in &left {
                let decodes = *left == 0 && seated.contains(id) && !slow.contains(id);
                let works = plan.work.iter().any(|it| it.id == *id);
                assert!(works || !decodes, "seed {seed}: {id:?} is left out");
            }
        }
    }
}

/// Plays `script` against a fresh scheduler and compares its plans, one line for each step.
///
/// `|` separates steps. Before a step, `+7:3` pushes sequence 7 with a prompt of three tokens, `+7:3/2` one
/// that stops where two of them are left, `-7` finishes it, `~7` makes its reader slow and `!7` fast again.
#[track_caller]
fn check(config: Config, script: &str, expected: Expect) {
    let mut scheduler = Scheduler::new(config);
    let mut slow = BTreeSet::new();
    let mut trace = String::new();
    for step in script.split('|') {
        for command in step.split_whitespace() {
            let (verb, rest) = command.split_at(1);
            let (id, prompt) = rest.split_once(':').unwrap_or((rest, "0"));
            let id = SequenceId(id.parse().unwrap());
            match verb {
                "+" => {
                    let (prompt, stop_at) = prompt.split_once('/').unwrap_or((prompt, "0"));
                    let [prompt_left, stop_at] = [prompt, stop_at].map(|it| it.parse().unwrap());
                    scheduler.push(Sequence { id, prompt_left, stop_at });
                }
                "-" => scheduler.finish(id),
                "~" => _ = slow.insert(id),
                "!" => _ = slow.remove(&id),
                _ => panic!("{command}"),
            }
        }
        writeln!(trace, "{}", describe(scheduler.step(|id| slow.contains(&id)))).unwrap();
    }
    expected.assert_eq(&trace);
}

fn describe(plan: &Plan) -> String {
    let unseat = plan.unseat.iter().map(|id| format!("unseat {}", id.0));
    let seat = plan.seat.iter().map(|id| format!("seat {}", id.0));
    let seats: Vec<String> = unseat.chain(seat).collect();
    let work: Vec<String> = plan
        .work
        .iter()
        .map(|work| match work.phase {
            Phase::Decode => format!("{} decode", work.id.0),
            Phase::Prefill { tokens, is_last } => {
                format!("{} prefill {tokens}{}", work.id.0, if is_last { " and draw" } else { "" })
            }
        })
        .collect();
    let parts = [seats.join(", "), work.join(", ")];
    let parts: Vec<&str> = parts.iter().map(String::as_str).filter(|it| !it.is_empty()).collect();
    if parts.is_empty() { "idle".to_owned() } else { parts.join("; ") }
}
