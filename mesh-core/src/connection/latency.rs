//! How long does a message take to the peer and back?

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// Probes without an answer that are remembered; a peer that never answers costs no more.
const UNANSWERED_MAX: usize = 8;

/// Measures round trips with probes of its own (`protocol.md`, section 3).
///
/// Probes carry no number on the wire, but both directions keep their order, so an answer belongs to the oldest
/// probe that has none. A peer that skipped some would shift that by one for ever; its next pong mends it, because it
/// answers a ping that was sent behind them.
#[derive(Debug)]
pub(super) struct Latency {
    /// When the unanswered probes left, oldest first.
    unanswered: VecDeque<Instant>,
    /// The last measured round trip.
    measured: Option<Duration>,
    /// The next probe.
    deadline: Instant,
}

impl Latency {
    pub(super) fn new(interval: Duration, now: Instant) -> Self {
        Self {
            unanswered: VecDeque::new(),
            measured: None,
            deadline: now + interval,
        }
    }

    /// An answer arrived. One that answers nothing is ignored.
    pub(super) fn handle_response(&mut self, now: Instant) {
        if let Some(sent) = self.unanswered.pop_front() {
            self.measured = Some(now.saturating_duration_since(sent));
        }
        if self.unanswered.is_empty() {
            self.unanswered = VecDeque::new();
        }
    }

    /// The peer answered a ping that left at `sent`: what it left unanswered before that stays so.
    pub(super) fn handle_pong(&mut self, sent: Instant) {
        while self.unanswered.front().is_some_and(|probe| *probe < sent) {
            self.unanswered.pop_front();
        }
    }

    /// True if a probe is due now. The last measurement, if any, travels with it.
    pub(super) fn handle_timeout(&mut self, now: Instant, interval: Duration) -> bool {
        if now < self.deadline {
            return false;
        }
        if self.unanswered.len() == UNANSWERED_MAX {
            self.unanswered.pop_front();
        }
        self.unanswered.push_back(now);
        self.deadline = now + interval;
        true
    }

    /// The last measured round trip.
    pub(super) fn measured(&self) -> Option<Duration> {
        self.measured
    }

    pub(super) fn poll_timeout(&self) -> Instant {
        self.deadline
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::Latency;
    use crate::testing::origin;

    const INTERVAL: Duration = Duration::from_secs(5);

    #[test]
    fn a_round_trip_longer_than_the_interval_is_measured_right() {
        let start = origin();
        let mut latency = Latency::new(INTERVAL, start);
        assert!(latency.handle_timeout(start + INTERVAL, INTERVAL));
        assert!(latency.handle_timeout(start + 2 * INTERVAL, INTERVAL));
        latency.handle_response(start + INTERVAL + Duration::from_secs(6));
        assert_eq!(latency.measured(), Some(Duration::from_secs(6)));
        latency.handle_response(start + 2 * INTERVAL + Duration::from_secs(7));
        assert_eq!(latency.measured(), Some(Duration::from_secs(7)));
        latency.handle_response(start + 9 * INTERVAL);
        assert_eq!(
            latency.measured(),
            Some(Duration::from_secs(7)),
            "nothing was asked"
        );
    }

    #[test]
    fn a_peer_that_skipped_probes_is_measured_right_after_its_next_pong() {
        let start = origin();
        let mut latency = Latency::new(INTERVAL, start);
        for round in 1..=20 {
            assert!(latency.handle_timeout(start + round * INTERVAL, INTERVAL));
        }
        let ping = start + 20 * INTERVAL + Duration::from_secs(1);
        latency.handle_pong(ping);
        assert!(latency.handle_timeout(start + 21 * INTERVAL, INTERVAL));
        latency.handle_response(start + 21 * INTERVAL + Duration::from_millis(3));
        assert_eq!(latency.measured(), Some(Duration::from_millis(3)));
    }
}
