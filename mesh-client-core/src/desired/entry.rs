//! One thing that is wanted on the server, and the requests about it.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use super::Out;
use crate::{
    action::{Action, SubscriptionId},
    shapes::Grant,
};

/// What a request is about.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Target {
    Channel(String),
    Metadata,
    Room(String),
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
    Restore {
        limit: u32,
    },
    SetMetadata {
        json: String,
        token: T,
    },
    Subscribe {
        subscription: SubscriptionId,
        limit: u32,
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
    pub(super) fn needs_restore(&self) -> bool {
        match &self.kept {
            Kept::Channel(subscribers) => {
                subscribers.values().any(|subscriber| !subscriber.granted)
            }
            Kept::Metadata(value) => value.is_some() && !self.present,
            Kept::Room { joined } => *joined && !self.present,
        }
    }

    /// Whether the entry says no more than its absence would.
    pub(super) fn is_void(&self) -> bool {
        let kept = match &self.kept {
            Kept::Channel(subscribers) => self.present || !subscribers.is_empty(),
            Kept::Metadata(_) => true,
            Kept::Room { joined } => *joined,
        };
        !kept && self.waiting.is_empty() && self.in_flight.is_none() && self.leaving.is_empty()
    }

    pub(super) fn has_nobody(&self) -> bool {
        matches!(&self.kept, Kept::Channel(subscribers) if subscribers.is_empty())
            && self.waiting.is_empty()
    }

    /// What was granted before the reconnect is in force again.
    pub(super) fn restored(&mut self, grant: &Grant, out: &mut Out<T>) {
        self.present = true;
        let Kept::Channel(subscribers) = &mut self.kept else {
            return;
        };
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
    }
}
