use std::time::Duration;

use aerie_client::{Code, Error, TrustError};
use clap::{CommandFactory as _, Parser as _};
use expect_test::expect_file;

use super::{Args, Seconds, hint};

#[test]
fn help_is_as_recorded() {
    let mut command = Args::command().term_width(100);
    let mut help = command.render_help().to_string();
    command.build();
    for subcommand in command.get_subcommands_mut().filter(|it| it.get_name() != "help") {
        help.push_str(&format!("\n==== {}\n", subcommand.get_name()));
        help.push_str(&subcommand.render_help().to_string());
    }
    expect_file!["help.txt"].assert_eq(&help);
}

#[test]
fn flags_that_contradict_each_other_are_refused() {
    check(&["models", "--insecure", "--fingerprint", "00"], "--insecure");
    check(&["bench", "--rate", "3", "--streams", "2"], "--streams");
    check(&["bench", "--rate", "-3"], "-3");
    check(&["bench", "--duration", "inf"], "not a number of seconds");
    check(&["sessions", "rm"], "<IDS>");
}

#[test]
fn errors_come_with_what_to_do() {
    let unreachable =
        |reason: &str| Error::Unreachable { address: String::new(), reason: reason.to_owned() };
    let rejected = |code, retry_after_ms: Option<u64>| Error::Rejected {
        code,
        message: String::new(),
        retry_after: retry_after_ms.map(Duration::from_millis),
        reason: String::new(),
        position: None,
    };
    for (error, expected) in [
        (Error::Trust(TrustError::Nobody), "--certificate"),
        (unreachable("connection refused"), "aerie-serve --model"),
        (unreachable("invalid peer certificate"), "fingerprint"),
        (rejected(Code::ResourceExhausted, Some(250)), "try again in 250 ms"),
        (rejected(Code::NotFound, None), "aerie sessions ls"),
    ] {
        let hint = hint(&error).unwrap();
        assert!(hint.contains(expected), "{hint:?} lacks {expected:?}");
    }
    assert_eq!(hint(&rejected(Code::Internal, None)), None);
}

#[test]
fn durations_have_three_digits_and_a_unit() {
    for (nanos, expected) in [
        (0, "0.00 us"),
        (1_500, "1.50 us"),
        (12_345_678, "12.3 ms"),
        (123_456_789, "123 ms"),
        (61_000_000_000, "61.0 s"),
    ] {
        assert_eq!(Seconds(Duration::from_nanos(nanos)).to_string(), expected);
    }
}

#[track_caller]
fn check(args: &[&str], expected: &str) {
    let error = Args::try_parse_from(["aerie"].iter().chain(args)).unwrap_err().to_string();
    assert!(error.contains(expected), "{error:?} lacks {expected:?}");
}
