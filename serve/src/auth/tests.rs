use aerie_fuzz::{Format, Fuzz};

use std::{fs, num::NonZeroU32};

use super::*;
use crate::tls::Fingerprint;

#[test]
fn a_token_tells_its_tenant() {
    let [tales, root] = [(); 2].map(|()| Token::random());
    let list = [("tales", &tales), ("root", &root)]
        .map(|(name, token)| token.to_toml(&Name::parse(name).unwrap()))
        .concat();
    let auth = Auth::with(Tokens::parse(&format!("{list}admin = true\n")).unwrap());
    let tenant = |name| TenantId::named(name);
    let who = who(&auth, Some(tales.as_str())).unwrap();
    assert_eq!(who, Principal { tenant: tenant("tales"), is_admin: false });
    assert!(who.sees(tenant("tales")) && !who.sees(tenant("root")));
    let refused = auth.admin(&Evidence::of(Some(tales.as_str()), None));
    assert_eq!(refused, Err(Reject::NotAdmin));
    let root = Evidence::of(Some(root.as_str()), None);
    let who = auth.caller(root.clone()).unwrap().who;
    assert!(!who.is_admin && !who.sees(tenant("tales")), "where clients call, it is one of them");
    let who = auth.admin(&root).unwrap();
    assert_eq!(who, Principal { tenant: tenant("root"), is_admin: true });
    assert!(who.sees(tenant("tales")) && !who.owns(tenant("tales")));
    for token in [None, Some(""), Some("x"), Some(&tales.as_str()[1..]), Some(&*"x".repeat(513))] {
        let evidence = Evidence::of(token, None);
        for reject in
            [auth.caller(evidence.clone()).unwrap_err(), auth.admin(&evidence).unwrap_err()]
        {
            assert!(matches!(reject, Reject::Unauthenticated { .. }), "{token:?}: {reject}");
        }
    }
}

/// Goal: a certificate is its tenant's by its fingerprint or one of its names; a token that is shown beside it decides.
#[test]
fn a_certificate_tells_its_tenant() {
    let [print, other] = ["ab", "cd"].map(|it| it.repeat(32));
    let token = Token::random();
    let list = format!(
        "{}certificates = ['{print}', 'Client.Example', 'spiffe://aerie/tales']\n\
         [[tenants]]\nname = 'verses'\ncertificates = ['verses.example']\n\
         [[tenants]]\nname = 'root'\ntokens = ['{}']\n",
        token
            .to_toml(&Name::parse("tales").unwrap())
            .replace(&blake3::hash(token.as_str().as_bytes()).to_string(), &"0".repeat(64),),
        blake3::hash(token.as_str().as_bytes()),
    );
    let auth = Auth::with(Tokens::parse(&list).unwrap());
    let check = |fingerprint: &str, names: &[&str], expected: Option<&str>| {
        let fingerprint = Fingerprint::parse(fingerprint).unwrap();
        let names = names.iter().map(|it| (*it).to_owned()).collect();
        let certificate = Arc::new(PeerCertificate { fingerprint, names });
        let found = auth.caller(Evidence::of(None, Some(&certificate))).ok();
        let expected = expected.map(TenantId::named);
        assert_eq!(found.map(|it| it.who.tenant), expected, "{certificate:?}");
        let root = auth.caller(Evidence::of(Some(token.as_str()), Some(&certificate))).unwrap();
        assert_eq!(root.who.tenant, TenantId::named("root"));
    };
    check(&print, &["verses.example"], Some("tales"));
    let colons: Vec<&str> = std::iter::repeat_n("AB", 32).collect();
    check(&colons.join(":"), &[], Some("tales"));
    check(&other, &["client.example"], Some("tales"));
    check(&other, &["else.example", "verses.example", "client.example"], Some("verses"));
    check(&other, &["spiffe://aerie/tales"], Some("tales"));
    check(&other, &["example", "*.example"], None);
    check(&other, &[], None);
}

/// Goal: a file that is read again holds for all calls from then on; one that cannot be read changes nothing.
#[test]
fn a_file_that_is_read_again_decides_who_calls() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tokens.toml");
    let [tales, verses] = [(); 2].map(|()| Token::random());
    let entry = |name, token: &Token| token.to_toml(&Name::parse(name).unwrap());
    let config = Config { tokens_file: Some(path.clone()), ..Config::default() };
    fs::write(&path, entry("tales", &tales)).unwrap();
    let auth = Auth::open(&config, false).unwrap();
    let caller = auth.caller(Evidence::of(Some(tales.as_str()), None)).unwrap();
    auth.check(&caller).unwrap();
    let changes = auth.changes();

    for wrong in ["", "[[tenants]", "[[tenants]]\nname = 'a'\ncertificates = ['a.example']"] {
        fs::write(&path, wrong).unwrap();
        auth.reload(|_| panic!("nothing is to be prepared")).unwrap_err();
        assert!(!changes.has_changed().unwrap());
        auth.check(&caller).unwrap();
    }
    fs::write(&path, entry("verses", &verses)).unwrap();
    let tenants = auth.reload(|_| ()).unwrap();
    assert_eq!(tenants.iter().map(|it| &*it.name).collect::<Vec<_>>(), ["verses"]);
    assert!(changes.has_changed().unwrap());
    let refused = auth.check(&caller).unwrap_err();
    assert!(matches!(refused, Reject::Unauthenticated { .. }), "{refused}");
    who(&auth, Some(tales.as_str())).unwrap_err();
    who(&auth, Some(verses.as_str())).unwrap();

    // The tenant is back, but not by this token.
    fs::write(&path, entry("tales", &verses)).unwrap();
    auth.reload(|_| ()).unwrap();
    auth.check(&caller).unwrap_err();
}

#[test]
fn without_a_file_everybody_is_one_tenant() {
    let auth = Auth::open(&Config::default(), false).unwrap();
    for token in [None, Some("any")] {
        assert_eq!(who(&auth, token), Ok(Principal::ANONYMOUS));
        let admin = auth.admin(&Evidence::of(token, None));
        assert_eq!(admin, Ok(Principal { is_admin: true, ..Principal::ANONYMOUS }));
    }
    assert!(matches!(auth.reload(|_| ()), Err(TokensError::NoFile)));
    assert_ne!(TenantId::named(""), TenantId::ANONYMOUS);
}

#[test]
fn lists_that_cannot_be_meant_are_refused() {
    let a = "a".repeat(64);
    let tenant =
        |name: &str, token: &str| format!("[[tenants]]\nname = {name:?}\ntokens = [{token:?}]\n");
    check("", "nobody could call");
    check("[[tenants]]\nname = 'a'\ntokens = []", "nobody could call");
    check("[[tenants]]\nname = 'a'", "nobody could call");
    for wrong in ["", "a b", &"x".repeat(256)] {
        let list = format!("[[tenants]]\nname = 'a'\ncertificates = [{wrong:?}]");
        check(&list, "neither the 64 hexadecimal digits of a SHA-256 fingerprint nor a name");
    }
    let twice = "[[tenants]]\nname = 'a'\ncertificates = ['a.b', 'A.B']";
    check(twice, "the certificate \"A.B\" of tenant \"a\" is listed twice");
    check("[[tenants]]\nname = 'a'\ntokens = []\nroot = true", "unknown field `root`");
    check(&tenant("a b", &a), "the name \"a b\" of a tenant has ' '");
    check(&tenant("a", &a[1..]), "not the 64 hexadecimal digits");
    check(&(tenant("a", &a) + &tenant("a", &"b".repeat(64))), "two tenants have the name");
    check(&(tenant("a", &a) + &tenant("b", &a)), "is listed twice");
    let many = format!("[[tenants]]\nname = 'a'\ntokens = [{}]", "'x',".repeat(1025));
    check(&many, "1025 tokens and certificates; at most 1024");
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
    let auth = Auth::open(&Config { tokens_file: Some(path), quota }, false).unwrap();
    let of = |sessions_max, generations_max| Quota {
        sessions_max: limit(sessions_max),
        generations_max: limit(generations_max),
    };
    let expected = [("a", TenantId::named("a"), of(7, 6)), ("b", TenantId::named("b"), of(8, 2))];
    let found = |auth: &Auth| {
        let tenants = auth.tenants().into_iter();
        tenants.map(|it| (it.name, it.id, it.quota)).collect::<Vec<_>>()
    };
    assert_eq!(found(&auth), expected.map(|(name, id, quota)| (name.to_owned(), id, quota)));
    let auth = Auth::open(&Config { tokens_file: None, quota }, false).unwrap();
    assert_eq!(found(&auth), [(String::new(), TenantId::ANONYMOUS, quota)]);
}

#[test]
fn a_file_that_is_absent_is_named() {
    let tokens_file = Some(PathBuf::from("/nonexistent/tokens.toml"));
    let error =
        Auth::open(&Config { tokens_file, ..Config::default() }, false).unwrap_err().to_string();
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
        seeds: vec![
            list.clone().into_bytes(),
            format!("{list}admin = true\ncertificates = ['a.example']\n").into_bytes(),
        ],
        words: &[b"[[tenants]]", b"name", b"tokens", b"certificates", b"admin", b"true"],
    };
    fuzz.run(|bytes| {
        let Ok(text) = str::from_utf8(bytes) else { return false };
        let Ok(tokens) = Tokens::parse(text) else { return false };
        assert!((1..=list::KNOWN_MAX).contains(&tokens.known().count()));
        assert!(tokens.known().all(|it| it.tenant != TenantId::ANONYMOUS));
        assert_eq!(tokens.of_token(blake3::hash(b"unknown")), None);
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

fn who(auth: &Auth, token: Option<&str>) -> Result<Principal, Reject> {
    auth.caller(Evidence::of(token, None)).map(|it| it.who)
}

#[track_caller]
fn check(text: &str, expected: &str) {
    let error = Tokens::parse(text).unwrap_err().to_string();
    assert!(error.contains(expected), "{error:?} lacks {expected:?}");
}
