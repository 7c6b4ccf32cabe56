//! Threads of different speed, and some that do not end well.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use super::*;

#[test]
fn items_come_in_order_whatever_the_threads() {
    for threads_max in [1, 2, 3, 7] {
        let limits = AheadLimits { threads_max, ready_max: 2 };
        let ahead = Ahead::new(limits, |thread| (thread..20).step_by(threads_max));
        assert_eq!(ahead.collect::<Vec<_>>(), Vec::from_iter(0..20), "{threads_max} threads");
    }
}

#[test]
fn threads_keep_to_what_may_be_ready() {
    let made = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&made);
    let limits = AheadLimits { threads_max: 1, ready_max: 3 };
    let mut ahead = Ahead::new(limits, |_| {
        let counter = Arc::clone(&counter);
        (0..).inspect(move |_| {
            counter.fetch_add(1, Ordering::SeqCst);
        })
    });
    assert_eq!(ahead.next(), Some(0));
    drop(ahead);
    // One was taken, three may wait, and one is held by the thread that waits for its place.
    assert!(made.load(Ordering::SeqCst) <= 5);
}

#[test]
fn panic_of_a_thread_is_passed_on() {
    let limits = AheadLimits { threads_max: 2, ready_max: 1 };
    let mut ahead = Ahead::new(limits, |thread| {
        (0..2).inspect(move |it| assert!(*it == 0 || thread == 0, "nothing more"))
    });
    assert_eq!([ahead.next(), ahead.next(), ahead.next()], [Some(0), Some(0), Some(1)]);
    let caught = panic::catch_unwind(panic::AssertUnwindSafe(|| ahead.next()));
    assert!(caught.is_err());
    assert_eq!(ahead.next(), None);
}
