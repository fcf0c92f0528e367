//! What the parts of an instance want done, in one queue, and which answer belongs to which part.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use bytes::Bytes;

use super::members::{KEPT_CAPACITY, Members};
use crate::{
    backend::{BackendError, ConnectionId, Json, Name, Op, Record, Version},
    websocket::TextFrame,
};

/// Names one backend operation of one instance; its answer comes back exactly once.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct OpToken(u64);

/// What the driver is to do, in this order.
///
/// `C` is the driver's handle of a connection and `T` what it correlates requests with.
#[derive(Debug)]
pub enum Action<C, T> {
    /// Ask the backend, and bring the answer to [`Instance::handle_backend`](super::Instance::handle_backend).
    Backend {
        /// Comes back with the answer.
        token: OpToken,
        /// The operation.
        op: Op,
    },
    /// A request is answered. Exactly once for each.
    Complete {
        /// The request.
        token: T,
        /// Its outcome.
        result: Result<Outcome, InstanceError>,
    },
    /// Hand an event to many.
    Deliver {
        /// To whom.
        to: Members<C>,
        /// But not to these.
        except: Arc<[ConnectionId]>,
        /// The event.
        frame: TextFrame,
    },
    /// Hand a version of a record to its subscribers. One that is too slow may be handed a later one in place of it, which
    /// [`Instance::refresh_record`](super::Instance::refresh_record) tells.
    DeliverRecord {
        /// The record.
        record: Name,
        /// To whom.
        to: Members<C>,
        /// The event.
        frame: TextFrame,
    },
    /// Hand events to one, in this order.
    DeliverOne {
        /// To whom.
        to: C,
        /// The events.
        frames: Vec<TextFrame>,
    },
    /// A local membership is over.
    Left {
        /// Of this room.
        room: Name,
        /// Whose it was.
        connection: ConnectionId,
        /// Why.
        reason: LeaveReason,
    },
    /// A subscriber of a record is told how it is now, or it is none any more.
    RecordRefreshed {
        /// Who asked.
        to: C,
        /// The record.
        record: Name,
        /// The event; `None` where there is no subscription, or another event will tell.
        frame: Option<TextFrame>,
    },
    /// The room that a join or subscription took in its connection's limit is free again.
    Release(C),
}

/// Why a connection is no member of a room any more.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum LeaveReason {
    /// The room was cleared.
    Cleared,
    /// The connection is over.
    Disconnected,
    /// The connection's instance died, and another one cleaned up behind it.
    InstanceLost,
    /// It left, or was removed.
    Left,
}

/// What a request came to.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Outcome {
    /// A room is empty, everywhere.
    Cleared {
        /// The generation that began.
        generation: u64,
    },
    /// A connection is closed: it is in no room and no list.
    Closed,
    /// The number of a deletion's version; `None` where nothing was stored.
    Deleted(Option<u64>),
    /// A connection is a member, and events reach it from here on.
    Joined {
        /// It was none before.
        new: bool,
        /// The members, all instances, where the request asked for them.
        present: Vec<ConnectionId>,
    },
    /// A connection is no member; true if it was one.
    Left(bool),
    /// Metadata after a change.
    Metadata(Json),
    /// A connection is registered, or will be once the store is back.
    Opened,
    /// A connection is subscribed to a record that is this, and later versions reach it from here on.
    RecordSubscribed(Record),
    /// The store has all that this shard holds.
    Restored,
    /// A connection is subscribed, and messages reach it from here on.
    Subscribed {
        /// Newest first, as many as were asked for.
        history: Vec<Bytes>,
    },
    /// A connection is not subscribed; true if it was.
    Unsubscribed(bool),
    /// A request to change a record was withdrawn by its own function.
    Withdrawn,
    /// A record has this value.
    Written {
        /// Its version.
        version: u64,
        /// This made the version; otherwise the value was the same before.
        changed: bool,
    },
}

/// Why a request failed.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum InstanceError {
    /// The backend failed; what it did of the request is unknown.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// The connection is gone, or was never here.
    #[error("the connection is closed")]
    Gone,
    /// More arrived during a subscription than is kept for it.
    #[error("more than {max} bytes arrived while the subscription was under way")]
    Overflow {
        /// The limit in bytes.
        max: usize,
    },
    /// Too many writes of one record wait for each other.
    #[error("too many changes of the record are under way")]
    TooManyWrites,
    /// The history or the members are more than one answer may hold.
    #[error("the answer would be over the limit of {max} bytes")]
    TooLong {
        /// The limit in bytes.
        max: usize,
    },
    /// What a merge makes of a record is too long.
    #[error("the record would be {len} bytes long, more than {max}")]
    ValueTooLong {
        /// The length it would have, in bytes.
        len: usize,
        /// The longest allowed, in bytes.
        max: usize,
    },
}

/// Whose operation it is.
#[derive(Clone, Debug)]
pub(super) enum Origin {
    ChannelHistory {
        channel: Name,
        grant: u64,
    },
    ChannelTopic(Name),
    Connection(ConnectionId),
    /// Nothing depends on the answer.
    Nobody,
    RecordCheck {
        /// The versions that are held against the store's.
        asked: Vec<(Name, Version)>,
        /// How often the store had come back.
        returns: u64,
    },
    RecordFetch {
        record: Name,
        fetch: u64,
    },
    RecordTopic(Name),
    RecordWrite {
        record: Name,
        /// How often the store had come back.
        returns: u64,
    },
    /// A part of the restoration of this number.
    Restore(u64),
    RoomRequest {
        room: Name,
        request: u64,
    },
    RoomTopic(Name),
}

/// The queue that the parts write to.
#[derive(Debug)]
pub(super) struct Actions<C, T> {
    queue: VecDeque<Action<C, T>>,
    in_flight: BTreeMap<OpToken, Origin>,
    last: u64,
}

impl<C, T> Actions<C, T> {
    pub(super) fn new() -> Self {
        Self {
            queue: VecDeque::new(),
            in_flight: BTreeMap::new(),
            last: 0,
        }
    }

    pub(super) fn push(&mut self, action: Action<C, T>) {
        self.queue.push_back(action);
    }

    pub(super) fn pop(&mut self) -> Option<Action<C, T>> {
        let action = self.queue.pop_front();
        // A connection that leaves thousands of rooms fills it once; each of its actions has paid for this.
        if action.is_none() && self.queue.capacity() > KEPT_CAPACITY {
            self.queue = VecDeque::new();
        }
        action
    }

    #[cfg(test)]
    pub(super) fn origin(&self, token: OpToken) -> Option<&Origin> {
        self.in_flight.get(&token)
    }

    #[cfg(test)]
    pub(super) fn capacity(&self) -> usize {
        self.queue.capacity()
    }

    /// Starts an operation.
    pub(super) fn ask(&mut self, origin: Origin, op: Op) {
        self.last += 1;
        let token = OpToken(self.last);
        self.in_flight.insert(token, origin);
        self.queue.push_back(Action::Backend { token, op });
    }

    pub(super) fn complete(&mut self, token: T, result: Result<Outcome, InstanceError>) {
        self.queue.push_back(Action::Complete { token, result });
    }

    /// Whose operation ended; `None` for a token that was never given out or came back before.
    pub(super) fn answered(&mut self, token: OpToken) -> Option<Origin> {
        self.in_flight.remove(&token)
    }
}
