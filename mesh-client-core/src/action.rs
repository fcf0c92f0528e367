//! What the client machine hands out.

use std::{sync::Arc, time::Duration};

use mesh_core::{
    protocol::CommandError,
    websocket::{CloseCode, TextFrame},
};

use crate::failure::{ConnectError, Loss};

/// One subscription of a channel or a record. Several of one channel or record share one subscription on the wire.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct SubscriptionId(pub(crate) u64);

/// What the driver has to do, oldest first.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Action<T> {
    /// A message of a channel, as published, byte for byte.
    ChannelMessage {
        /// Whom it is for.
        subscription: SubscriptionId,
        /// The message.
        message: String,
    },
    /// Close this attempt's socket, or abandon the attempt if it is still under way. Its later events are ignored.
    CloseSocket {
        /// Which attempt.
        attempt: u64,
        /// The status code for the close frame.
        code: CloseCode,
    },
    /// The one outcome of what was asked with this token.
    Complete {
        /// The token, back again.
        token: T,
        /// What came of it.
        outcome: Outcome,
    },
    /// Connect a socket. Its events carry this number.
    Connect {
        /// Which attempt, counted from 1.
        attempt: u64,
    },
    /// An event that the server pushed.
    Event {
        /// The event's name.
        name: String,
        /// Its payload as JSON, as it came.
        payload: String,
    },
    /// An attempt came to nothing or the connection was lost: worth a line in the log. What follows from it is told by a
    /// [`Status`].
    Failed {
        /// Why.
        error: ConnectError,
        /// Whether it is the first of a series; the others are more of the same. A series ends with a connection that is up
        /// for `stable_after`, so that a server that accepts and drops at once does not fill the log.
        is_first: bool,
    },
    /// The server lost touch with its backend: messages of the channel may be missing here.
    Gap {
        /// Whom it is for.
        subscription: SubscriptionId,
    },
    /// The round trip that the server measured last.
    Latency(Duration),
    /// A version of a record.
    Record {
        /// Whom it is for.
        subscription: SubscriptionId,
        /// What there is now.
        event: RecordEvent,
    },
    /// The connection is up for `stable_after`, after an [`Action::Failed`] that was the first of its series: worth a line in the
    /// log. Each such failure is followed by at most one.
    Recovered,
    /// The subscription is in force again after a reconnect. What was missed, as far as it is kept, is in the history.
    Resubscribed {
        /// Whom it is for.
        subscription: SubscriptionId,
        /// Newest first, as many as were asked for when subscribing. Some may have been delivered before.
        history: Vec<String>,
    },
    /// Send a frame on this attempt's socket.
    Send {
        /// Which attempt.
        attempt: u64,
        /// The frame.
        frame: TextFrame,
    },
    /// The connection's state changed.
    Status(Status),
    /// The subscription is over, and not because anybody unsubscribed.
    SubscriptionEnded {
        /// Which one.
        subscription: SubscriptionId,
        /// Why; `None` where the client itself ended.
        refusal: Option<Refusal>,
    },
}

/// What a record has become.
///
/// From one event of a subscription to the next, and from its snapshot to the first, the version rises, except in a
/// [`RecordChange::Reset`].
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct RecordEvent {
    /// How it came to that.
    pub change: RecordChange,
    /// The version that it has now.
    pub version: u64,
    /// The whole value as JSON; `None` where nothing is stored, or `null`.
    pub value: Option<Arc<str>>,
    /// The RFC 6902 patch that made the value out of that of the event or snapshot before, for who subscribed in
    /// [`RecordMode::Patch`](mesh_core::protocol::builtin::RecordMode::Patch); `None` where the server sent the value itself.
    pub patch: Option<Arc<str>>,
}

/// How a record came to a version.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum RecordChange {
    /// It was deleted. A deletion that was missed, while the connection was down for one, is an [`Updated`](Self::Updated) without a value.
    Deleted,
    /// The server's store lost the record or some of its history, and this is what there is now. The version may be lower than before,
    /// or the same with another value; version 0 and no value say that the record is gone with the store. After a reconnect it is told
    /// once a server that answers has been behind for 11 s (`protocol.md`, section 6.5): until then that may be one that has yet to catch
    /// up. What it publishes meanwhile below the version that is held is not told.
    Reset,
    /// It has a newer value. Versions in between may be missing, where the subscription was interrupted or somebody was too slow for them.
    Updated,
}

/// What came of a command, a subscription or a request to connect. Each gets exactly one.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Outcome {
    /// A subscribe was taken back by an unsubscribe before its reply.
    Cancelled,
    /// The client was closed or gave up; nothing was sent.
    Closed,
    /// The connection is up, subscriptions, rooms and metadata included.
    Connected,
    /// The client ended before it was connected, because of this.
    ConnectFailed(ConnectError),
    /// It was sent and the connection went before a reply: whether it was carried out is unknown.
    Disconnected,
    /// The room was joined.
    Joined {
        /// Who is there, as JSON. Its shape differs between dialects.
        present: String,
    },
    /// The room was left.
    Left,
    /// The metadata was set.
    MetadataSet,
    /// There is no connection and the command asked not to wait for one.
    Offline,
    /// The queue's limit of commands or bytes is reached; nothing was sent. Or too many wait for the connection.
    QueueFull,
    /// The subscription of a record is in force.
    RecordSubscribed {
        /// The record's version: 0 where there never was one, a deletion's where it is deleted.
        version: u64,
        /// Its value as JSON; `None` where nothing is stored, or `null`.
        value: Option<Arc<str>>,
    },
    /// The server said no.
    Refused(Refusal),
    /// The reply's payload as JSON, as it came. `CommandError::from_reply` tells whether it is an error object.
    Reply(String),
    /// The subscription is in force.
    Subscribed {
        /// Newest first, at most as many as were asked for.
        history: Vec<String>,
    },
    /// No reply in time.
    Timeout {
        /// The time that was allowed.
        after: Duration,
        /// Whether it was sent; if so the server may still carry it out.
        sent: bool,
    },
    /// The frame would be over `command_bytes_max`; nothing was sent.
    TooLarge {
        /// Bytes that the frame would have.
        len: usize,
        /// The limit.
        max: usize,
    },
    /// The limit of subscriptions, or of channels, records and rooms, is reached; nothing was sent.
    TooMany,
    /// The subscription is gone.
    Unsubscribed,
}

/// Why a subscription, a room or metadata was not granted.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Refusal {
    /// An error reply.
    Error(CommandError),
    /// A reply of a shape that the protocol does not know.
    Malformed,
    /// `{"success": false}`: not exposed, or the guard said no.
    NotExposed,
}

/// A change of the connection's state.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Status {
    /// The client was closed, or lost its connection and should not reconnect.
    Closed,
    /// Connected for the first time.
    Connected,
    /// An attempt began.
    Connecting {
        /// Which attempt, counted from 1.
        attempt: u64,
    },
    /// The connection is gone.
    Disconnected {
        /// What it was lost to.
        loss: Loss,
    },
    /// The server did not take the metadata back after a reconnect; it is no longer put back.
    MetadataRefused(Refusal),
    /// Connected again, subscriptions, rooms and metadata included.
    Reconnected,
    /// The client gave up: `max_reconnect_attempts` were in vain, the very first attempt was with `fail_fast`, or
    /// no attempt can ever succeed.
    ReconnectFailed {
        /// Why the last attempt failed, or the connection was lost.
        error: ConnectError,
    },
    /// The server refused the upgrade with 401 or 403. The client does not try again by itself.
    Refused {
        /// The HTTP status.
        status: u16,
        /// The answer's body, cut at a length that the adapter names.
        body: String,
    },
    /// The server did not let the client back into a room after a reconnect; the room is no longer joined again.
    RoomRefused {
        /// The room.
        room: String,
        /// Why.
        refusal: Refusal,
    },
    /// Waiting before the next attempt.
    Waiting {
        /// How long.
        delay: Duration,
        /// Why there is no connection: what the last attempt failed for, or what the connection was lost to.
        error: ConnectError,
    },
}

/// How a command is to be treated.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct CommandOptions {
    /// The time until its outcome; `None` for the client's `command_timeout`.
    pub timeout: Option<Duration>,
    /// Whether it may be sent again after a disconnect that left its outcome unknown. Default no.
    pub idempotent: bool,
    /// What to do without a connection. Default: wait for one.
    pub offline: OfflinePolicy,
}

/// What becomes of a command while there is no connection.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub enum OfflinePolicy {
    /// It fails at once with [`Outcome::Offline`].
    Fail,
    /// It waits for a connection, within the queue's limits.
    #[default]
    Queue,
}

/// What was ignored, counted.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct Stats {
    /// Binary messages and texts that are no frame.
    pub frames_malformed: u64,
    /// Messages of channels, and events of records, that nobody here is subscribed to (any more).
    pub messages_unclaimed: u64,
    /// Gaps between the versions of records. Each is answered by asking for the whole value.
    pub record_gaps: u64,
    /// Replies that came after their command's timeout.
    pub replies_late: u64,
    /// Replies that nothing waits for: unknown and duplicate ids, and names that do not fit.
    pub replies_unknown: u64,
    /// Events of sockets that were given up.
    pub stale_events: u64,
}
