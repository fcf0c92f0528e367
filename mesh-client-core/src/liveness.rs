//! Whether the server is still there.

use std::time::{Duration, Instant};

use crate::time::{TICK, after};

/// Counts the intervals without a server's ping (`protocol.md`, section 3).
#[derive(Debug)]
pub(crate) struct Liveness {
    ping_timeout: Duration,
    missed_max: u32,
    missed: u32,
    deadline: Option<Instant>, // `None` once the server is declared gone
}

impl Liveness {
    pub(crate) fn new(ping_timeout: Duration, missed_max: u32, now: Instant) -> Self {
        let ping_timeout = ping_timeout.max(TICK);
        Self {
            ping_timeout,
            missed_max,
            missed: 0,
            deadline: Some(after(now, ping_timeout)),
        }
    }

    pub(crate) fn handle_ping(&mut self, now: Instant) {
        self.missed = 0;
        self.deadline = Some(after(now, self.ping_timeout));
    }

    /// Whether the server is gone as of `now`.
    pub(crate) fn handle_timeout(&mut self, now: Instant) -> bool {
        if self.deadline.is_none_or(|deadline| now < deadline) {
            return false;
        }
        self.missed += 1;
        let gone = self.missed > self.missed_max;
        // From `now`, not the old deadline: a suspended process must not count the time it slept through more than once.
        self.deadline = (!gone).then(|| after(now, self.ping_timeout));
        gone
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.deadline
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::time::origin;

    const TIMEOUT: Duration = Duration::from_secs(30);

    proptest! {
        /// The model: intervals since the last ping, counted one by one.
        #[test]
        fn silence_is_forgiven_then_fatal(max in 0..4u32, steps in vec(prop_oneof![Just(None), (0..90_000u64).prop_map(Some)], 0..50)) {
            let mut now = origin();
            let mut liveness = Liveness::new(TIMEOUT, max, now);
            let (mut since, mut missed) = (now, 0);
            let silence = std::iter::repeat_n(Some(30_000), max as usize + 1);
            let mut gone = false;
            for step in steps.into_iter().chain(silence) {
                match step {
                    None => { liveness.handle_ping(now); since = now; missed = 0; }
                    Some(ms) => {
                        now += Duration::from_millis(ms);
                        gone = liveness.handle_timeout(now);
                        if now >= since + TIMEOUT { missed += 1; since = now; }
                        prop_assert_eq!(gone, missed > max);
                    }
                }
                if gone { break; }
                prop_assert!(liveness.poll_timeout().is_some_and(|at| at > now), "the driver would spin");
            }
            prop_assert!(gone, "a silent server was never given up");
        }
    }
}
