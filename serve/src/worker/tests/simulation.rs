//! Goal: whatever happens around it, a session's tokens are those of a run on its own, no client loses one or is shown
//! one twice, and no tenant learns of another's.
//!
//! Method: by seed, more sessions than lanes and than there are rows, few states, slow readers, requests that are sent again
//! and crossed by others, readers that come and go, forks, rewinds, deletions, names, sessions carried away and brought
//! back, two tenants who try each other's, processes killed at any write, losses of power. Every client knows what a run
//! on its own would have given it, so one wrong token, position, text or state shows.

use std::panic::catch_unwind;

use super::world::{Shape, World};
use crate::{
    planted::{Bug, PLANTED},
    scheduler,
};

pub(super) const SHAPE: Shape = Shape {
    scheduler: scheduler::Config { lanes_max: 2, step_tokens_max: 5 },
    peers_max: 9,
    sessions: 7,
    // So few that they give way all the time.
    states: 9,
    names_max: 3,
    log_tokens_max: 1000,
    has_crashes: true,
};

/// Seeds by which a planted bug must have shown.
const SEEDS_TO_FIND: u64 = 500;

#[test]
fn nothing_is_lost_leaked_or_doubled() {
    let seeds = std::env::var("AERIE_SIMULATION_SEEDS").ok();
    let seeds: u64 = seeds.map_or(200, |it| it.parse().expect("a number of seeds"));
    let first = std::env::var("AERIE_SIMULATION_FIRST").ok();
    let first: u64 = first.map_or(0, |it| it.parse().expect("a seed"));
    for seed in first..first + seeds {
        World::new(seed, SHAPE).run(400);
    }
}

/// Goal: the simulation would find what it is for.
/// Method: bugs that others have had, planted one at a time; some seed of a few must fail.
#[test]
fn planted_bugs_are_found() {
    for bug in [
        Bug::IgnorePosition,
        Bug::RunAgain,
        Bug::OneBranch,
        Bug::SkipFlush,
        Bug::AliasLane,
        Bug::ResetHalf,
        Bug::LongPrefix,
        Bug::ShareForever,
        Bug::SleepEarly,
        Bug::SkipTenant,
        Bug::EvictNamed,
        Bug::EvictSilently,
        Bug::MoveState,
    ] {
        PLANTED.set(Some(bug));
        let is_found = |seed| catch_unwind(|| World::new(seed, SHAPE).run(400)).is_err();
        let found = (0..SEEDS_TO_FIND).find(|&seed| is_found(seed));
        PLANTED.set(None);
        assert!(found.is_some(), "{bug:?} is not found by {SEEDS_TO_FIND} seeds");
    }
}
