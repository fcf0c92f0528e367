//! What a peer may ask of a server, with safe defaults.

use std::time::Duration;

/// The limits of `protocol.md`, section 7. What exceeds one gets a clear answer and harms nobody else.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Limits {
    /// The longest message that is read, in bytes. Default 1 MiB; over it: close 1009.
    pub message_bytes_max: usize,
    /// The deepest nesting of a frame's JSON, its own object being level 1. Default 128; over it: malformed.
    pub nesting_max: usize,
    /// Malformed frames in a row that are forgiven. Default 8; over it: close 1008.
    pub malformed_max: u32,
    /// Commands in flight on one connection. Default 1 024; over it: `EOVERLOAD`.
    pub in_flight_max: usize,
    /// Payload bytes of the commands in flight on one connection. Default 8 MiB; over it reading from the connection pauses.
    pub in_flight_bytes_max: usize,
    /// The largest metadata document, in bytes. Default 64 KiB; over it: `EINVALID`.
    pub metadata_bytes_max: usize,
    /// The largest value of a record, in bytes. Default 1 MiB; over it: `EINVALID`. It is no more than a reply can tell. Give all instances the same.
    pub record_bytes_max: usize,
    /// The most messages that a channel's history keeps. Default 10 000; over it: a usage error.
    pub history_max: usize,
    /// The largest message between instances, in bytes: a channel's message, or an event with the ids that it is for or not for. Default
    /// 1 MiB; over it: `EINVALID` for who publishes it, sent to nobody. One that the backend brings all the same is dropped and counted,
    /// so give all instances the same.
    pub backend_message_bytes_max: usize,
    /// The largest reply, in bytes. Default 16 MiB; over it: `EOVERLOAD`.
    pub reply_bytes_max: usize,
    /// Channels, records and rooms of one connection, together. Default 4 096; over it: `EOVERLOAD`.
    pub memberships_max: usize,
    /// The longest name of a command, event, channel, record or room, in bytes. Default 512; over it or empty: `EINVALID`.
    pub name_bytes_max: usize,
    /// Bytes queued to one client. Default 4 MiB; over it: close 1013. One message is always admitted to an empty queue.
    pub queue_bytes_max: usize,
    /// Connections of this instance. Default none; over it: HTTP 503 at the upgrade.
    pub connections_max: Option<usize>,
    /// Connections of one listener that are not upgraded, at once: opening handshakes and plain HTTP requests. Default 4 096; over it
    /// the one that has been quiet for longest is closed, or while none has been for 1 s the newcomer waits. Who waits for
    /// `authenticate` or a page is not quiet and keeps its place, for `handshake_time_max` at most: divided by the time that
    /// `authenticate` takes, this is how many a listener can let in per second. Where 7 of 8 are in use, plain requests are answered
    /// with `Connection: close`.
    pub handshakes_max: usize,
    /// The time that a handshake may take, and `authenticate` or the answer to a plain request with it. Default 10 s; over it the socket
    /// is closed: with 503 or 1013 where another server accepted it.
    pub handshake_time_max: Duration,
    /// The time that a peer has to answer a close frame. Default 2 s; then the socket is dropped.
    pub close_time_max: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            message_bytes_max: 1 << 20,
            nesting_max: 128,
            malformed_max: 8,
            in_flight_max: 1_024,
            in_flight_bytes_max: 8 << 20,
            metadata_bytes_max: 64 << 10,
            record_bytes_max: 1 << 20,
            history_max: 10_000,
            backend_message_bytes_max: 1 << 20,
            reply_bytes_max: 16 << 20,
            memberships_max: 4_096,
            name_bytes_max: 512,
            queue_bytes_max: 4 << 20,
            connections_max: None,
            handshakes_max: 4_096,
            handshake_time_max: Duration::from_secs(10),
            close_time_max: Duration::from_secs(2),
        }
    }
}
