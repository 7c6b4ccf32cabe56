//! Goal: in a long life of a worker, no session is ever given anything of another's.
//!
//! Method: a million steps of one worker (fewer unless `AERIE_ISOLATION_STEPS` asks for them) without a crash; hundreds of
//! sessions, most of them asleep, on three lanes, with room for fewer than are wanted, and for few states. They are opened,
//! cancelled, parked, resumed, forked, taken back, carried away and brought back at random, by two tenants. Each is held to
//! what a run on its own gives: every token and every text as it is shown, the state in each lane after each step, and
//! from time to time every log and every state that is kept.

use super::world::{Shape, World};
use crate::scheduler;

const SHAPE: Shape = Shape {
    scheduler: scheduler::Config { lanes_max: 3, step_tokens_max: 12 },
    peers_max: 320,
    sessions: 256,
    states: 400,
    names_max: 8,
    log_tokens_max: 300,
    has_crashes: false,
};
/// Steps after which all that is kept is compared.
const AUDIT_STEPS: u64 = 5000;

#[test]
fn nobody_is_given_anything_of_another() {
    let steps = std::env::var("AERIE_ISOLATION_STEPS").ok();
    let steps: u64 = steps.map_or(30_000, |it| it.parse().expect("a number of steps"));
    let seed = std::env::var("AERIE_ISOLATION_SEED").ok();
    let seed: u64 = seed.map_or(1, |it| it.parse().expect("a seed"));
    let mut world = World::new(seed, SHAPE);
    for step in 0..steps {
        world.context = format!("seed {seed}, step {step}");
        world.turn();
        world.audit_lanes();
        if step % AUDIT_STEPS == AUDIT_STEPS - 1 {
            world.audit();
            // Or the storage would remember all that was ever written.
            world.worker.parts.store.flush().unwrap();
        }
    }
    world.settle();
    let counts = world.counts;
    let metrics = &world.worker.parts.metrics;
    println!(
        "{steps} steps: {} tokens, {} parked states brought back, {counts:?}",
        metrics.generated_tokens.get(),
        metrics.session_resume.get_sample_count(),
    );
    // It is not by idleness that nothing happened.
    let least = steps / 1000;
    for n in [counts.evicted, counts.forks, counts.imports, counts.named, counts.intrusions] {
        assert!(least <= n, "{counts:?}");
    }
    assert!(steps / 5 < metrics.session_resume.get_sample_count(), "{counts:?}");
}
