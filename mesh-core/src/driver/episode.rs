//! Trouble that comes in series, of which an operator is told once.

use std::time::{Duration, Instant};

/// A series is over once there was nothing of it for so long.
const CALM: Duration = Duration::from_secs(60);

/// One kind of trouble.
#[derive(Debug, Default)]
pub(super) struct Episode {
    last: Option<Instant>,
}

impl Episode {
    /// There is trouble. Is it the first of its series?
    pub(super) fn begins(&mut self, now: Instant) -> bool {
        let last = self.last.replace(now);
        last.is_none_or(|last| now.saturating_duration_since(last) >= CALM)
    }
}
