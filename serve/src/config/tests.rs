use std::fs;

use super::Config;

#[test]
fn defaults_survive_a_round_trip() {
    let config = Config::default();
    assert_eq!(toml::from_str::<Config>(&config.to_toml()).unwrap(), config);
}

#[test]
fn empty_file_is_the_default() {
    assert_eq!(toml::from_str::<Config>("").unwrap(), Config::default());
}

#[test]
fn refusals_name_the_field() {
    check("model = []", "unknown field `model`");
    check("[grpc]\nport = 1", "unknown field `port`");
    check("[grpc]\nlisten = \"localhost\"", "listen = \"localhost\"");
    check("devices = [\"tpu\"]", "device \"tpu\" is not of the form");
    check("[quic]\nstreams_max = -1", "streams_max = -1");
    check("[auth.quota]\nsessions_max = 0", "expected a nonzero u32");
    check("[auth.quota]\ntokens_max = 1", "unknown field `tokens_max`");
    check("[oip]\ntensors_max = 257", "`257`, expected a number from 1 to 256");
    check("[oip]\ntensors_max = 0", "tensors_max = 0");
    check("[oip]\nrequest_ms_max = 0", "request_ms_max = 0");
    check("[oip]\nidle_ms_max = 0", "expected a nonzero u32");
    check("[admission", "aerie.toml");
}

#[test]
fn file_that_is_absent_or_too_large_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("aerie.toml");
    let error = Config::open(&path).unwrap_err().to_string();
    assert!(error.contains("aerie.toml: No such file"), "{error}");
    fs::write(&path, " ".repeat((1 << 20) + 1)).unwrap();
    let error = Config::open(&path).unwrap_err().to_string();
    assert!(error.ends_with("1048577 bytes, but a configuration has at most 1048576"), "{error}");
}

#[track_caller]
fn check(text: &str, expected: &str) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("aerie.toml");
    fs::write(&path, text).unwrap();
    let error = Config::open(&path).unwrap_err().to_string();
    assert!(error.contains(expected), "{error:?} lacks {expected:?}");
}
