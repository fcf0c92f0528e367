//! The names of built-in commands and events.
//!
//! Those of sections 4 and 5 of `protocol.md` are bare: the [`Dialect`](super::Dialect) puts its prefix before them. Those of section 3
//! ([`PING`], [`PONG`], [`LATENCY`], [`LATENCY_REQUEST`] and [`LATENCY_RESPONSE`]) are whole.
//!
//! ```
//! use mesh_core::protocol::{Dialect, names};
//!
//! assert_eq!(Dialect::MESH.name(names::JOIN_ROOM), "mesh/join-room");
//! ```

/// Command: the history of a channel.
pub const GET_CHANNEL_HISTORY: &str = "get-channel-history";
/// Command: another connection's metadata.
pub const GET_CONNECTION_METADATA: &str = "get-connection-metadata";
/// Command: the connection's own metadata.
pub const GET_MY_CONNECTION_METADATA: &str = "get-my-connection-metadata";
/// Command: a room's metadata.
pub const GET_ROOM_METADATA: &str = "get-room-metadata";
/// Command: become a member of a room.
pub const JOIN_ROOM: &str = "join-room";
/// Command: end a membership.
pub const LEAVE_ROOM: &str = "leave-room";
/// Command: nothing, answered with `true`.
pub const NOOP: &str = "noop";
/// Command: change a record.
pub const PUBLISH_RECORD_UPDATE: &str = "publish-record-update";
/// Command: change the connection's own metadata.
pub const SET_MY_CONNECTION_METADATA: &str = "set-my-connection-metadata";
/// Command: receive a channel's messages.
pub const SUBSCRIBE_CHANNEL: &str = "subscribe-channel";
/// Command: receive a record's value, and its versions from then on.
pub const SUBSCRIBE_RECORD: &str = "subscribe-record";
/// Command: receive a channel's messages no longer.
pub const UNSUBSCRIBE_CHANNEL: &str = "unsubscribe-channel";
/// Command: receive a record's versions no longer.
pub const UNSUBSCRIBE_RECORD: &str = "unsubscribe-record";

/// Event: the connection's id, its first frame.
pub const ASSIGN_ID: &str = "assign-id";
/// Event: the peer sent a malformed frame.
pub const ERROR: &str = "error";
/// Event: messages of a channel may have been lost.
pub const GAP: &str = "gap";
/// Event: a record is deleted.
pub const RECORD_DELETED: &str = "record-deleted";
/// Event: a version of a record.
pub const RECORD_UPDATE: &str = "record-update";
/// Event: a message of a channel.
pub const SUBSCRIPTION_MESSAGE: &str = "subscription-message";

/// Event, whole: the last measured round trip in ms.
pub const LATENCY: &str = "latency";
/// Event, whole: answer with [`LATENCY_RESPONSE`] at once.
pub const LATENCY_REQUEST: &str = "latency:request";
/// Command without a reply, whole: closes the round trip.
pub const LATENCY_RESPONSE: &str = "latency:response";
/// Event, whole: answer with [`PONG`].
pub const PING: &str = "ping";
/// Command without a reply, whole: the client is alive.
pub const PONG: &str = "pong";
