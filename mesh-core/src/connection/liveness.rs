//! Is the peer still there?

use std::time::{Duration, Instant};

/// What [`Liveness`] wants done.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum LivenessAction {
    Close,
    SendPing,
}

/// Decides, from pongs and time alone, whether the peer is still there (`protocol.md`, section 3).
#[derive(Debug)]
pub(super) struct Liveness {
    /// Pings sent since the last pong.
    unanswered: u32,
    /// The next ping, or the verdict; `None` once the peer is declared gone.
    deadline: Option<Instant>,
}

impl Liveness {
    pub(super) fn new(ping_interval: Duration, now: Instant) -> Self {
        Self {
            unanswered: 0,
            deadline: Some(now + ping_interval),
        }
    }

    /// Only a pong counts as an answer.
    pub(super) fn handle_pong(&mut self) {
        self.unanswered = 0;
    }

    /// How many pings have no answer yet.
    pub(super) fn unanswered(&self) -> u32 {
        self.unanswered
    }

    /// Advances time to `now`. Calling it early is harmless.
    ///
    /// `excused`: the peer's pong may be waiting unread behind a pause of ours while it takes what we send, so this interval is
    /// not held against it.
    pub(super) fn handle_timeout(
        &mut self,
        now: Instant,
        ping_interval: Duration,
        missed_pongs_max: u32,
        excused: bool,
    ) -> Option<LivenessAction> {
        if self.deadline.is_none_or(|deadline| now < deadline) {
            return None;
        }
        if excused {
            self.unanswered = 0;
        }
        if self.unanswered > missed_pongs_max {
            self.deadline = None;
            return Some(LivenessAction::Close);
        }
        self.unanswered += 1;
        // From `now`, not the old deadline: a suspended process must not burst on resume.
        self.deadline = Some(now + ping_interval);
        Some(LivenessAction::SendPing)
    }

    /// When [`handle_timeout`](Self::handle_timeout) is next wanted, if ever.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.deadline
    }
}
