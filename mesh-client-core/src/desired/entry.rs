//! One thing that is wanted on the server, and the requests about it.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use mesh_core::protocol::builtin::RecordMode;

use super::{Out, record::Record};
use crate::{
    action::{Action, Refusal, SubscriptionId},
    shapes::{self, Grant},
};

/// What a request is about.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Target {
    Channel(String),
    Metadata,
    Record(String),
    Room(String),
}

/// What a subscription asks for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Wants {
    /// Messages, and this many of the last ones.
    History(u32),
    /// Versions, in this way.
    Record(RecordMode),
}

/// One request, waiting or on the wire.
#[derive(Debug)]
pub(crate) struct Op<T> {
    pub(crate) seq: u64,
    pub(crate) kind: OpKind<T>,
    pub(crate) timeout: Duration,
    pub(crate) deadline: Instant,
    pub(crate) bytes: usize,
    pub(crate) sent: bool,
}

#[derive(Debug)]
pub(crate) enum OpKind<T> {
    /// `None`: nobody asked, the room is left because a late reply granted it.
    Leave(Option<T>),
    Join(T),
    /// Puts back what was granted before the reconnect.
    Restore(Wants),
    SetMetadata {
        json: String,
        token: T,
    },
    Subscribe {
        subscription: SubscriptionId,
        wants: Wants,
        /// `None` once it was taken back.
        token: Option<T>,
    },
    Unsubscribe(Vec<T>),
}

#[derive(Debug)]
pub(super) struct Subscriber {
    pub(super) limit: u32,
    pub(super) granted: bool, // on this connection
}

/// What is put back after a reconnect.
#[derive(Debug)]
pub(super) enum Kept {
    Channel(BTreeMap<SubscriptionId, Subscriber>),
    Metadata(Option<String>),
    Record(Record),
    Room { joined: bool },
}

/// All about one target.
#[derive(Debug)]
pub(super) struct Entry<T> {
    pub(super) kept: Kept,
    pub(super) present: bool, // in force on this connection
    pub(super) waiting: VecDeque<Op<T>>,
    pub(super) in_flight: Option<u16>,
    pub(super) retry_at: Option<Instant>,
    pub(super) leaving: Vec<T>, // who waits for the subscription to be gone
}

impl<T> Entry<T> {
    pub(super) fn new(kept: Kept) -> Self {
        Self {
            kept,
            present: false,
            waiting: VecDeque::new(),
            in_flight: None,
            retry_at: None,
            leaving: Vec::new(),
        }
    }

    /// Whether something was granted on an earlier connection and is not on this one.
    pub(super) fn is_lost(&self) -> bool {
        match &self.kept {
            Kept::Channel(subscribers) => {
                subscribers.values().any(|subscriber| !subscriber.granted)
            }
            Kept::Metadata(value) => value.is_some() && !self.present,
            Kept::Record(record) => !record.is_empty() && !self.present,
            Kept::Room { joined } => *joined && !self.present,
        }
    }

    /// Whether to ask again for what was granted before: it is lost, or a record has a gap.
    pub(super) fn needs_restore(&self) -> bool {
        self.is_lost() || matches!(&self.kept, Kept::Record(record) if record.is_stale())
    }

    /// Whether the server has answered, and is only behind what is held.
    pub(super) fn is_ahead(&self) -> bool {
        matches!(&self.kept, Kept::Record(record) if record.is_ahead())
    }

    /// Whether the next in line need not wait until the server is asked again.
    pub(super) fn may_go_on(&self) -> bool {
        let next = self.waiting.front().map(|op| &op.kind);
        self.is_ahead() && matches!(next, Some(OpKind::Subscribe { .. }))
    }

    /// A request was refused.
    pub(super) fn refused(&mut self, refusal: &Refusal, now: Instant) {
        if let Kept::Record(record) = &mut self.kept
            && shapes::is_transient(refusal)
        {
            record.refused(shapes::is_without_store(refusal), now);
        }
    }

    /// Whether the entry says no more than its absence would.
    pub(super) fn is_void(&self) -> bool {
        let kept = match &self.kept {
            Kept::Channel(subscribers) => self.present || !subscribers.is_empty(),
            Kept::Metadata(_) => true,
            Kept::Record(record) => self.present || !record.is_empty(),
            Kept::Room { joined } => *joined,
        };
        !kept && self.waiting.is_empty() && self.in_flight.is_none() && self.leaving.is_empty()
    }

    pub(super) fn has_nobody(&self) -> bool {
        let nobody = match &self.kept {
            Kept::Channel(subscribers) => subscribers.is_empty(),
            Kept::Record(record) => record.is_empty(),
            Kept::Metadata(_) | Kept::Room { .. } => false,
        };
        nobody && self.waiting.is_empty()
    }

    /// What puts back what was granted before.
    pub(super) fn restore(&self) -> Wants {
        match &self.kept {
            Kept::Channel(subscribers) => {
                let limits = subscribers.values().map(|subscriber| subscriber.limit);
                Wants::History(limits.max().unwrap_or(0))
            }
            Kept::Record(record) => Wants::Record(record.wanted()),
            Kept::Metadata(_) | Kept::Room { .. } => Wants::History(0),
        }
    }

    /// What was granted before the reconnect is in force again, or a gap is over. Returns whether to ask again after a while.
    pub(super) fn restored(
        &mut self,
        grant: Grant,
        wants: Wants,
        times: (Instant, Duration),
        out: &mut Out<T>,
    ) -> bool {
        self.present = true;
        match (&mut self.kept, wants) {
            (Kept::Channel(subscribers), _) => {
                for (&subscription, subscriber) in subscribers
                    .iter_mut()
                    .filter(|(_, subscriber)| !subscriber.granted)
                {
                    subscriber.granted = true;
                    let history = grant
                        .history
                        .iter()
                        .take(subscriber.limit as usize)
                        .cloned()
                        .collect();
                    out.push_back(Action::Resubscribed {
                        subscription,
                        history,
                    });
                }
                false
            }
            (Kept::Record(record), Wants::Record(mode)) => {
                let wait = record.granted(grant.record, mode, times, out);
                record.forget();
                wait
            }
            (Kept::Metadata(_) | Kept::Record(_) | Kept::Room { .. }, _) => false,
        }
    }
}
