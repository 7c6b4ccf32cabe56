use std::fs;

use clap::{CommandFactory as _, Parser as _};
use expect_test::expect_file;

use super::Args;
use crate::{
    auth::{Auth, Evidence, TenantId, Tokens},
    config::Config,
    sessions::Windows,
};

#[test]
fn help_is_as_recorded() {
    let help = Args::command().term_width(100).render_long_help().to_string();
    expect_file!["help.txt"].assert_eq(&help);
}

#[test]
fn flags_win_over_the_file_and_the_file_over_defaults() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("aerie.toml");
    fs::write(&file, "models = ['a', 'b']\n[admission]\nrequests_max = 7\nretry_after_ms = 8\n")
        .unwrap();
    let file = file.to_str().unwrap();
    let config = parse(&["--config", file, "--requests-max", "9", "--device", "cpu:1-2"]).unwrap();
    assert_eq!(config.models.len(), 2);
    assert_eq!(config.admission.requests_max, 9);
    assert_eq!(config.admission.retry_after_ms, 8);
    assert_eq!(config.devices[0].to_string(), "cpu:1-2");
    assert_eq!(config.pipe, Config::default().pipe);
    assert_eq!(config.sessions.parked_windows, Windows::Exact);
    let config = parse(&["--parked-windows", "q8"]).unwrap();
    assert_eq!(config.sessions.parked_windows, Windows::Q8);
}

#[test]
fn settings_that_contradict_each_other_are_named() {
    check(
        &["--lanes-max", "8", "--step-tokens-max", "8"],
        "scheduler.step_tokens_max = 8 leaves prompts no room beside scheduler.lanes_max = 8 \
         streams; it must be more",
    );
    check(&["--lanes-max", "0"], "scheduler.lanes_max = 0: no generation could run");
    check(
        &["--sessions-max", "0"],
        "sessions.sessions_max = 0: no generation could have a session",
    );
    check(
        &["--requests-max", "0"],
        "admission.requests_max = 0: every generation would be refused",
    );
}

/// Tokens and certificates are not to be asked for on one transport and forgotten on the other.
#[test]
fn plaintext_where_callers_have_to_prove_themselves_is_named() {
    let far = ["--tokens", "a.toml", "--grpc", "0.0.0.0:7447"];
    let error = parse(&far).unwrap_err().to_string();
    assert!(error.starts_with("grpc.tls = false: with auth.tokens_file"), "{error}");
    assert!(parse(&[&far[..], &["--grpc-tls"]].concat()).unwrap().grpc.tls);
    assert!(parse(&["--tokens", "a.toml"]).is_ok(), "loopback is as safe as the machine");
    check(
        &["--client-ca", "ca.pem"],
        "grpc.tls = false: gRPC would ask nobody for the certificate of tls.client_ca",
    );
}

/// Goal: nobody becomes an admin by being able to reach a port from afar.
#[test]
fn admins_are_listened_to_where_it_is_safe() {
    assert_eq!(parse(&[]).unwrap().admin.listen, None);
    let listen = |text: &str| parse(&["--admin-listen", text]).map(|it| it.admin.listen.unwrap());
    assert_eq!(listen("7449").unwrap().to_string(), "127.0.0.1:7449");
    assert_eq!(listen("[::1]:7449").unwrap().to_string(), "[::1]:7449");
    let error = listen("0.0.0.0:7449").unwrap_err().to_string();
    assert!(error.starts_with("admin.listen = 0.0.0.0:7449: without auth.tokens_file"), "{error}");
    let far = ["--admin-listen", "0.0.0.0:7449", "--tokens", "a.toml"];
    let error = parse(&far).unwrap_err().to_string();
    assert!(error.contains("in plaintext"), "{error}");
    assert!(parse(&[&far[..], &["--grpc-tls"]].concat()).is_ok());
}

#[test]
fn a_token_is_printed_with_lines_that_know_it() {
    let args = Args::try_parse_from(["aerie-serve", "token", "tales"]).unwrap();
    let text = args.new_token().unwrap().unwrap();
    let token = text.lines().next().unwrap().rsplit_once(' ').unwrap().1;
    let auth = Auth::with(Tokens::parse(&text).unwrap());
    let caller = auth.caller(Evidence::of(Some(token), None)).unwrap();
    assert_eq!(caller.who.tenant, TenantId::named("tales"));
    let args = Args::try_parse_from(["aerie-serve", "token", "a b"]).unwrap();
    assert!(args.new_token().is_err());
}

#[test]
fn half_a_certificate_and_odd_devices_are_refused_by_the_parser() {
    for args in [&["--certificate", "a.pem"][..], &["--device", "tpu"], &["--grpc", "localhost"]] {
        let all = ["aerie-serve"].iter().chain(args);
        let error = Args::try_parse_from(all).unwrap_err().to_string();
        assert!(error.contains(args[0]), "{error:?} lacks {:?}", args[0]);
    }
}

#[track_caller]
fn check(args: &[&str], expected: &str) {
    assert_eq!(parse(args).unwrap_err().to_string(), expected);
}

fn parse(args: &[&str]) -> anyhow::Result<Config> {
    Args::try_parse_from(["aerie-serve"].iter().chain(args)).unwrap().config()
}
