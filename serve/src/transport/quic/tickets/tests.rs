use std::time::{Duration, SystemTime};

use quinn::TokenLog as _;

use super::{Kept, Shown, UsedTokens};
use crate::worker::Clock;

const HOUR: Duration = Duration::from_secs(3600);

#[test]
fn ticket_is_taken_once() {
    let now = Clock::start().now();
    let mut kept = Kept::new(2, HOUR);
    assert!(kept.put(vec![1], vec![10], now));
    assert_eq!(kept.take(&[1], now), Shown::Resumed(vec![10]));
    assert_eq!(kept.take(&[1], now), Shown::Unknown);
}

#[test]
fn ticket_expires() {
    let now = Clock::start().now();
    let mut kept = Kept::new(2, HOUR);
    kept.put(vec![1], vec![10], now);
    kept.put(vec![2], vec![20], now);
    assert_eq!(kept.take(&[1], now + HOUR), Shown::Resumed(vec![10]));
    assert_eq!(kept.take(&[2], now + HOUR + Duration::from_millis(1)), Shown::Expired);
}

/// Goal: memory is bounded, and what was taken makes room.
#[test]
fn oldest_ticket_makes_room_for_a_new_one() {
    let now = Clock::start().now();
    let mut kept = Kept::new(2, HOUR);
    for id in 0..3 {
        kept.put(vec![id], vec![id], now);
    }
    assert_eq!(kept.take(&[0], now), Shown::Unknown);
    assert_eq!(kept.take(&[1], now), Shown::Resumed(vec![1]));
    kept.put(vec![3], vec![3], now);
    assert_eq!(kept.take(&[2], now), Shown::Resumed(vec![2]));
    assert_eq!((kept.secrets.len(), kept.ages.len()), (1, 1));
}

#[test]
fn no_room_for_tickets_means_none() {
    let now = Clock::start().now();
    assert!(!Kept::new(0, HOUR).put(vec![1], vec![10], now));
}

/// Method: tokens by the hour in which they were issued; one that is two hours younger shows that
/// the first ones have expired, which makes room.
#[test]
fn token_counts_once_and_the_log_is_bounded() {
    let tokens = UsedTokens::new(2);
    let use_at = |hours: u32, nonce| {
        let issued = SystemTime::UNIX_EPOCH + hours * HOUR;
        tokens.check_and_insert(nonce, issued, HOUR).is_ok()
    };
    assert!(use_at(10, 1));
    assert!(!use_at(10, 1), "used before");
    assert!(use_at(10, 2));
    assert!(!use_at(10, 3), "no room");
    assert!(use_at(12, 4), "the others have expired");
    assert!(!use_at(12, 4), "used before");
}
