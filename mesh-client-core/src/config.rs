//! What the client is told at its start, with safe defaults.

use std::time::Duration;

use mesh_core::protocol::Dialect;

use crate::patch::RECORD_BYTES_MAX;

/// How long the client waits before it connects again.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Reconnect {
    /// Exponential with full jitter: before the n-th attempt in a row a random time between zero and
    /// `base × 2ⁿ`, at most `cap`. A server that says it is overloaded (HTTP 503, close 1013) is given at least half of that.
    Exponential {
        /// The longest first wait.
        base: Duration,
        /// The longest wait of all.
        cap: Duration,
    },
    /// The same wait each time, as the original library has it. Many clients that lost one server come back as one.
    Fixed(Duration),
}

impl Default for Reconnect {
    /// Exponential from 500 ms up to 30 s.
    fn default() -> Self {
        Self::Exponential {
            base: Duration::from_millis(500),
            cap: Duration::from_secs(30),
        }
    }
}

/// The options of a [`Client`](crate::Client), to be changed with `ClientBuilder::config` where a driver is in use.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct ClientConfig {
    /// The prefix of built-in names. Default `mesh/`.
    pub dialect: Dialect,
    /// The time that one attempt to connect may take, token and handshake included. Default 10 s.
    pub connect_timeout: Duration,
    /// The time from a command's call to its outcome, waiting in the queue included. Default 30 s.
    pub command_timeout: Duration,
    /// The time without a server's ping that counts as one missed ping. Default 30 s.
    pub ping_timeout: Duration,
    /// Missed pings that are forgiven. Default 1; over it the socket is dropped.
    pub max_missed_pings: u32,
    /// Whether a lost connection is made again. Default yes.
    pub should_reconnect: bool,
    /// Whether a failure of the very first attempt ends the client. Default no: it is retried like any other.
    pub fail_fast: bool,
    /// The wait between attempts. Default exponential with full jitter, 500 ms to 30 s.
    pub reconnect: Reconnect,
    /// Attempts in a row to connect again before the client gives up. Default without end.
    pub max_reconnect_attempts: Option<u32>,
    /// The time that a connection must have been online for its loss to start the backoff anew. Default 10 s: a server
    /// that accepts and drops at once is not hammered.
    pub stable_after: Duration,
    /// Commands that wait to be sent. Default 1 000; over it: [`Outcome::QueueFull`](crate::Outcome::QueueFull).
    pub queue_commands_max: usize,
    /// Bytes of the commands that wait to be sent. Default 4 MiB; over it: [`Outcome::QueueFull`](crate::Outcome::QueueFull).
    pub queue_bytes_max: usize,
    /// The time that a command may wait to be sent. Default 30 s; over it: [`Outcome::Timeout`](crate::Outcome::Timeout).
    pub queue_expiry: Duration,
    /// Commands whose reply is awaited. Default 1 000, below the server's 1 024, at least 1 and at most 32 768; over it commands
    /// wait in the queue.
    pub in_flight_max: usize,
    /// Bytes of the commands whose reply is awaited. Default 4 MiB, below the server's 8 MiB; over it commands wait in the
    /// queue. One command is always admitted.
    pub in_flight_bytes_max: usize,
    /// Commands that timed out and whose late reply may still come, so that their ids are reserved. Default 8 192, at
    /// most 32 767; over it the client drops the connection, which frees them all.
    pub abandoned_max: usize,
    /// The longest frame that is sent, in bytes. Default 1 MiB, the server's limit, over which it would close the
    /// connection; over it: [`Outcome::TooLarge`](crate::Outcome::TooLarge).
    pub command_bytes_max: usize,
    /// Bytes that wait at a socket that takes nothing. Default 4 MiB, at least 1; over it commands wait in the queue and pings go unanswered.
    pub backlog_bytes_max: usize,
    /// Subscriptions, of all channels and records together. Default 4 096; over it: [`Outcome::TooMany`](crate::Outcome::TooMany).
    pub subscriptions_max: usize,
    /// Channels, records and rooms together. Default 4 096, the server's limit; over it: [`Outcome::TooMany`](crate::Outcome::TooMany).
    pub memberships_max: usize,
    /// The longest value of a record that patches may make, in bytes. Default 16 MiB, the server's largest reply; over it the value is
    /// asked for. One that comes whole is bounded by the longest message.
    pub record_bytes_max: usize,
    /// The wait before a subscription, room or metadata is put back again after the server answered `EUNAVAILABLE` or
    /// `EOVERLOAD`, and before a record's value is asked for again if no patch fitted since it was asked for last, or if the server was
    /// behind what an earlier connection told. Default 1 s.
    pub restore_retry: Duration,
    /// The deepest nesting of a frame from the server. Default 1 024; over it the frame is ignored and counted.
    pub nesting_max: usize,
}

impl Default for ClientConfig {
    fn default() -> Self {
        Self {
            dialect: Dialect::MESH,
            connect_timeout: Duration::from_secs(10),
            command_timeout: Duration::from_secs(30),
            ping_timeout: Duration::from_secs(30),
            max_missed_pings: 1,
            should_reconnect: true,
            fail_fast: false,
            reconnect: Reconnect::default(),
            max_reconnect_attempts: None,
            stable_after: Duration::from_secs(10),
            queue_commands_max: 1_000,
            queue_bytes_max: 4 << 20,
            queue_expiry: Duration::from_secs(30),
            in_flight_max: 1_000,
            in_flight_bytes_max: 4 << 20,
            abandoned_max: 8_192,
            command_bytes_max: 1 << 20,
            backlog_bytes_max: 4 << 20,
            subscriptions_max: 4_096,
            memberships_max: 4_096,
            record_bytes_max: RECORD_BYTES_MAX,
            restore_retry: Duration::from_secs(1),
            nesting_max: 1_024,
        }
    }
}
