//! What operators want to know.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// Counts since the backend was made, for a metrics page; see [`RedisBackend::stats`](crate::RedisBackend::stats).
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct Stats {
    /// Commands sent, but for pings.
    pub commands: u64,
    /// Commands that failed, because Redis refused them or could not be reached.
    pub errors: u64,
    /// Incarnations of dead instances that this one cleaned up behind.
    pub instances_reaped: u64,
    /// The last round trip of a ping to all connections; zero before the first.
    pub last_round_trip: Duration,
    /// Messages of taken topics that came in, own ones not counted.
    pub messages_in: u64,
    /// Messages that were passed over: of an unknown format, or of a topic that is not taken.
    pub messages_ignored: u64,
    /// Notices that were dropped because the server did not read them in time.
    pub notices_dropped: u64,
    /// How often the way to Redis was lost and found again.
    pub reconnects: u64,
    /// Topics that were taken again after an outage.
    pub resubscriptions: u64,
    /// Is the way to Redis open?
    pub up: bool,
}

#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) commands: AtomicU64,
    pub(crate) errors: AtomicU64,
    pub(crate) instances_reaped: AtomicU64,
    pub(crate) round_trip_micros: AtomicU64,
    pub(crate) messages_in: AtomicU64,
    pub(crate) messages_ignored: AtomicU64,
    pub(crate) reconnects: AtomicU64,
    pub(crate) resubscriptions: AtomicU64,
}

impl Counters {
    pub(crate) fn add(counter: &AtomicU64, number: u64) {
        counter.fetch_add(number, Ordering::Relaxed);
    }

    pub(crate) fn read(&self, notices_dropped: u64, up: bool) -> Stats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Stats {
            commands: read(&self.commands),
            errors: read(&self.errors),
            instances_reaped: read(&self.instances_reaped),
            last_round_trip: Duration::from_micros(read(&self.round_trip_micros)),
            messages_in: read(&self.messages_in),
            messages_ignored: read(&self.messages_ignored),
            notices_dropped,
            reconnects: read(&self.reconnects),
            resubscriptions: read(&self.resubscriptions),
            up,
        }
    }
}
