use super::{Address, parse_address};

#[test]
fn scheme_chooses_the_transport() {
    assert_eq!(parse_address("grpc://a.example:1").unwrap(), Address::Grpc("a.example:1"));
    assert_eq!(parse_address("http://[::1]:7447/").unwrap(), Address::Grpc("[::1]:7447"));
    assert_eq!(parse_address("grpcs://a.example:1").unwrap(), Address::Grpcs("a.example:1"));
    assert_eq!(parse_address("quic://127.0.0.1:7447").unwrap(), Address::Quic("127.0.0.1:7447"));
}

#[test]
fn refusals_say_what_is_wrong_with_an_address() {
    check(
        "127.0.0.1:7447",
        "is not of the form grpc://HOST:PORT, grpcs://HOST:PORT or quic://HOST:PORT",
    );
    check("quic://localhost", "lacks a host or a port");
    check("quic://:7447", "lacks a host or a port");
    check("grpc://localhost:http", "lacks a host or a port");
    check("ftp://localhost:21", "has a scheme that is neither grpc nor grpcs nor quic");
}

#[track_caller]
fn check(address: &str, expected: &str) {
    let error = parse_address(address).unwrap_err().to_string();
    assert_eq!(error, format!("address {address:?} {expected}"));
}
