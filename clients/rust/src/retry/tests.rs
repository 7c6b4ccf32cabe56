use super::*;

fn lost() -> Error {
    Error::Interrupted { reason: String::new() }
}

fn refused(code: Code, retry_after: Option<Duration>) -> Error {
    let (message, reason) = (String::new(), String::new());
    Error::Rejected { code, message, retry_after, reason, position: None }
}

#[expect(clippy::disallowed_methods, reason = "any instant will do")]
fn start() -> Instant {
    Instant::now()
}

#[test]
fn waits_double_up_to_a_limit() {
    let patience = Some(Duration::from_secs(3600));
    let mut backoff = Backoff::new(Retry { patience });
    let now = start();
    let waits: Vec<_> =
        (0..9).map(|_| backoff.wait(&lost(), now, 1.0).unwrap().as_millis()).collect();
    assert_eq!(waits, [50, 100, 200, 400, 800, 1600, 3200, 5000, 5000]);
    backoff.progressed();
    assert_eq!(backoff.wait(&lost(), now, 0.5), Some(Duration::from_millis(25)));
}

#[test]
fn what_the_server_asks_for_is_the_least() {
    let mut backoff = Backoff::new(Retry::default());
    let busy = refused(Code::ResourceExhausted, Some(Duration::from_millis(250)));
    assert_eq!(backoff.wait(&busy, start(), 0.0), Some(Duration::from_millis(250)));
}

#[test]
fn patience_ends_and_progress_renews_it() {
    let mut backoff = Backoff::new(Retry { patience: Some(Duration::from_secs(2)) });
    let now = start();
    assert!(backoff.wait(&lost(), now, 0.0).is_some());
    assert!(backoff.wait(&lost(), now + Duration::from_millis(1999), 0.0).is_some());
    assert!(backoff.wait(&lost(), now + Duration::from_secs(2), 0.0).is_none());
    backoff.progressed();
    assert!(backoff.wait(&lost(), now + Duration::from_secs(2), 0.0).is_some());
    let endless = Retry { patience: Some(Duration::MAX) };
    assert!(Backoff::new(endless).wait(&lost(), now, 0.0).is_some());
    assert!(Backoff::new(Retry::NEVER).wait(&lost(), now, 0.0).is_none());
}

#[test]
fn what_would_fail_again_is_not_asked_again() {
    for (error, helps) in [
        (refused(Code::InvalidArgument, None), false),
        (refused(Code::FailedPrecondition, None), false),
        (refused(Code::NotFound, None), false),
        (refused(Code::Internal, None), false),
        // A quota of sessions is there until some are deleted, one of generations until one ends.
        (refused(Code::ResourceExhausted, None), false),
        (refused(Code::ResourceExhausted, Some(Duration::from_millis(250))), true),
        (refused(Code::Unavailable, None), true),
        (Error::Answer, false),
        (Error::Contradiction { position: 3 }, false),
        (Error::Unreachable { address: String::new(), reason: String::new() }, true),
    ] {
        let wait = Backoff::new(Retry::default()).wait(&error, start(), 0.0);
        assert_eq!(wait.is_some(), helps, "{error:?}");
    }
}
