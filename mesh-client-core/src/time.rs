//! Adding a duration to an instant without a panic.

use std::time::{Duration, Instant};

/// A hundred years: beyond any deadline that matters, and small enough for every platform's clock.
const FAR: Duration = Duration::from_secs(3_153_600_000);

/// The shortest wait. A deadline that is set while time is handled must lie after it, or a driver would spin.
pub(crate) const TICK: Duration = Duration::from_millis(1);

/// `now + duration`, however long that is.
pub(crate) fn after(now: Instant, duration: Duration) -> Instant {
    now.checked_add(duration.min(FAR)).unwrap_or(now)
}

/// An arbitrary origin for tests; every later instant is simulated.
#[cfg(test)]
#[expect(
    clippy::disallowed_methods,
    reason = "simulated time has to start somewhere"
)]
pub(crate) fn origin() -> Instant {
    Instant::now()
}
