use std::{cell::Cell, future::pending};

use super::*;

/// Goal: a connection is kept alive as long as somebody waits for something, and no longer.
/// Method: time stands still but for what is slept; words are counted after each hour.
#[tokio::test(start_paused = true)]
async fn client_speaks_up_only_while_a_call_is_open() {
    const HOUR: Duration = Duration::from_secs(3600);
    let (calls, words) = (watch::Sender::new(0), Cell::new(0_u128));
    let script = async {
        let hour = async || {
            let before = words.get();
            sleep(HOUR).await;
            words.get() - before
        };
        let expected = HOUR.as_nanos() / KEEP_ALIVE.as_nanos();
        assert_eq!(hour().await, 0);
        for (n, words) in [(1, expected), (2, expected), (0, 0), (1, expected)] {
            calls.send_replace(n);
            let found = hour().await;
            assert!(found.abs_diff(words) <= 1, "{found} words with {n} calls");
        }
    };
    tokio::select! {
        () = keep_alive(calls.clone(), pending::<()>(), || words.set(words.get() + 1)) => {}
        () = script => {}
    }
}

#[tokio::test(start_paused = true)]
async fn client_is_silent_on_a_closed_connection() {
    let calls = watch::Sender::new(1);
    keep_alive(calls, sleep(KEEP_ALIVE / 2), || panic!("nobody listens")).await;
}
