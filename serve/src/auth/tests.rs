use aerie_fuzz::{Format, Fuzz};

use super::*;

#[test]
fn a_token_tells_its_tenant() {
    let [tales, root] = [(); 2].map(|()| Token::random());
    let list = [("tales", &tales), ("root", &root)]
        .map(|(name, token)| token.to_toml(&Name::parse(name).unwrap()))
        .concat();
    let auth = Auth::with(Tokens::parse(&format!("{list}admin = true\n")).unwrap());
    let tenant = |name| TenantId::named(name);
    let who = auth.principal(Some(tales.as_str())).unwrap();
    assert_eq!(who, Principal { tenant: tenant("tales"), is_admin: false });
    assert!(who.sees(tenant("tales")) && !who.sees(tenant("root")));
    let who = auth.principal(Some(root.as_str())).unwrap();
    assert_eq!(who, Principal { tenant: tenant("root"), is_admin: true });
    assert!(who.sees(tenant("tales")) && !who.owns(tenant("tales")));
    for token in [None, Some(""), Some("x"), Some(&tales.as_str()[1..]), Some(&*"x".repeat(513))] {
        let reject = auth.principal(token).unwrap_err();
        assert!(matches!(reject, Reject::Unauthenticated { .. }), "{token:?}: {reject}");
    }
}

#[test]
fn without_a_file_everybody_is_one_tenant() {
    let auth = Auth::open(&Config::default()).unwrap();
    for token in [None, Some("any")] {
        assert_eq!(auth.principal(token), Ok(Principal::ANONYMOUS));
    }
    assert_ne!(TenantId::named(""), TenantId::ANONYMOUS);
}

#[test]
fn lists_that_cannot_be_meant_are_refused() {
    let a = "a".repeat(64);
    let tenant =
        |name: &str, token: &str| format!("[[tenants]]\nname = {name:?}\ntokens = [{token:?}]\n");
    check("", "nobody could call");
    check("[[tenants]]\nname = 'a'\ntokens = []", "nobody could call");
    check("[[tenants]]\nname = 'a'", "missing field `tokens`");
    check("[[tenants]]\nname = 'a'\ntokens = []\nroot = true", "unknown field `root`");
    check(&tenant("a b", &a), "the name \"a b\" of a tenant has ' '");
    check(&tenant("a", &a[1..]), "not the 64 hexadecimal digits");
    check(&(tenant("a", &a) + &tenant("a", &"b".repeat(64))), "two tenants have the name");
    check(&(tenant("a", &a) + &tenant("b", &a)), "is listed twice");
    let many = format!("[[tenants]]\nname = 'a'\ntokens = [{}]", "'x',".repeat(1025));
    check(&many, "1025 tokens; at most 1024");
    for (field, found) in [
        ("sessions_max", "0"),
        ("generations_max", "0"),
        ("sessions_max", "-3"),
        ("generations_max", "4294967296"),
    ] {
        let list = format!("{}{field} = {found}\n", tenant("a", &a));
        check(&list, &format!("tenant \"a\": {field} = {found}; it must be from 1 to 4294967295"));
    }
    check(&format!("{}sessions_max = '3'", tenant("a", &a)), "expected i64");
}

/// Goal: what a tenant's entry says goes before what is said for all.
#[test]
fn quotas_are_each_tenants_own_or_those_of_all() {
    let limit = NonZeroU32::new;
    let list = format!(
        "[[tenants]]\nname = 'a'\ntokens = ['{}']\nsessions_max = 7\n\
         [[tenants]]\nname = 'b'\ntokens = []\nsessions_max = 8\ngenerations_max = 2\n",
        "a".repeat(64),
    );
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tokens.toml");
    fs::write(&path, list).unwrap();
    let quota = Quota { sessions_max: limit(5), generations_max: limit(6) };
    let auth = Auth::open(&Config { tokens_file: Some(path), quota }).unwrap();
    let of = |sessions_max, generations_max| Quota {
        sessions_max: limit(sessions_max),
        generations_max: limit(generations_max),
    };
    let expected = [("a", TenantId::named("a"), of(7, 6)), ("b", TenantId::named("b"), of(8, 2))];
    assert_eq!(auth.tenants().collect::<Vec<_>>(), expected);
    let auth = Auth::open(&Config { tokens_file: None, quota }).unwrap();
    let anonymous = [("", TenantId::ANONYMOUS, quota)];
    assert_eq!(auth.tenants().collect::<Vec<_>>(), anonymous);
}

#[test]
fn a_file_that_is_absent_is_named() {
    let tokens_file = Some(PathBuf::from("/nonexistent/tokens.toml"));
    let error = Auth::open(&Config { tokens_file, ..Config::default() }).unwrap_err().to_string();
    assert!(error.starts_with("auth.tokens_file = /nonexistent/tokens.toml: No such"), "{error}");
}

#[test]
fn the_header_holds_a_bearer_token_or_none() {
    for (value, expected) in [
        ("Bearer abc", Some("abc")),
        ("bearer  abc=", Some("abc=")),
        ("Bearer", None),
        ("Bearer ", None),
        ("Basic abc", None),
        ("Bearer a b", None),
        ("Bearer a\"", None),
    ] {
        assert_eq!(bearer(value.as_bytes()), expected, "{value:?}");
    }
    assert_eq!(bearer(format!("Bearer {}", "a".repeat(513)).as_bytes()), None);
}

#[test]
fn fuzzed_lists_of_tokens_are_sound_or_refused() {
    let token = Token(String::from("known"));
    let list = token.to_toml(&Name::parse("tales").unwrap());
    let fuzz = Fuzz {
        name: "tokens",
        format: Format::Text,
        seeds: vec![list.clone().into_bytes(), format!("{list}admin = true\n").into_bytes()],
        words: &[b"[[tenants]]", b"name", b"tokens", b"admin", b"true"],
    };
    fuzz.run(|bytes| {
        let Ok(text) = str::from_utf8(bytes) else { return false };
        let Ok(tokens) = Tokens::parse(text) else { return false };
        assert!((1..=TOKENS_MAX).contains(&tokens.known.len()));
        let is_anonymous = |it: &(blake3::Hash, Principal)| it.1.tenant == TenantId::ANONYMOUS;
        assert!(!tokens.known.iter().any(is_anonymous));
        assert_eq!(tokens.principal("unknown"), None);
        true
    });
}

#[test]
fn fuzzed_headers_hold_a_token_or_none() {
    let fuzz = Fuzz {
        name: "authorization",
        format: Format::Text,
        seeds: vec![b"Bearer 0123456789abcdef".to_vec()],
        words: &[b"bearer", b"Basic", b" ", b"\0", b"\xff"],
    };
    fuzz.run(|bytes| {
        let Some(token) = bearer(bytes) else { return false };
        assert!((1..=TOKEN_BYTES_MAX).contains(&token.len()));
        assert!(token.bytes().all(|byte| byte.is_ascii_graphic()));
        true
    });
}

#[track_caller]
fn check(text: &str, expected: &str) {
    let error = Tokens::parse(text).unwrap_err().to_string();
    assert!(error.contains(expected), "{error:?} lacks {expected:?}");
}
