//! The clock of the benchmarks.

use std::time::Instant;

/// Runs `body`; gives what it does and the seconds that it took.
#[expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]
pub(super) fn timed<T>(body: impl FnOnce() -> T) -> (T, f64) {
    let begun = Instant::now();
    let done = body();
    (done, begun.elapsed().as_secs_f64())
}
