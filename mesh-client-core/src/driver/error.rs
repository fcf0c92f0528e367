//! What can go wrong with a call.

use std::time::Duration;

use mesh_core::protocol::{CommandError, EncodeError, codes};

use crate::action::{Outcome, Refusal};

/// Why a call has no result.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The client is closed, or gave up. Nothing was sent.
    #[error("the client is closed")]
    Closed,
    /// The server's error reply.
    #[error("{} ({})", .0.message(), .0.code())]
    Command(CommandError),
    /// The reply does not fit the type that was asked for.
    #[error("the reply does not fit: {0}")]
    Decode(String),
    /// It was sent and the connection went before a reply: whether it was carried out is unknown.
    #[error("the connection was lost before the reply")]
    Disconnected,
    /// The payload does not serialise.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// The server does not expose it to this connection, or it does not exist.
    #[error("{0:?} is not exposed to this connection")]
    NotExposed(String),
    /// There is no connection, and the call asked not to wait for one. Nothing was sent.
    #[error("there is no connection")]
    Offline,
    /// The offline queue's limit of commands or bytes is reached. Nothing was sent.
    #[error("too much waits to be sent")]
    QueueFull,
    /// No reply in time.
    #[error("Command timed out after {}ms.", .after.as_millis())]
    Timeout {
        /// The time that was allowed.
        after: Duration,
        /// Whether it was sent; if so the server may still carry it out.
        sent: bool,
    },
    /// The frame would be over the limit of what is sent. Nothing was sent.
    #[error("a frame of {len} bytes is over the limit of {max}")]
    TooLarge {
        /// Bytes that the frame would have.
        len: usize,
        /// The limit.
        max: usize,
    },
    /// The limit of subscriptions, or of channels, records and rooms, is reached. Nothing was sent.
    #[error("too many subscriptions, channels, records or rooms")]
    TooMany,
    /// The call is wrong where it stands; the text says what to do instead.
    #[error("{0}")]
    Usage(&'static str),
}

impl ClientError {
    /// The code of `protocol.md`, section 2: the server's own, or `ETIMEOUT`; `None` where the protocol names none.
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::Command(error) => Some(error.code()),
            Self::Timeout { .. } => Some(codes::ETIMEOUT),
            _ => None,
        }
    }

    /// What an outcome without a result means, for a request about `name`.
    pub(crate) fn of(outcome: Outcome, name: &str) -> Self {
        match outcome {
            Outcome::Disconnected => Self::Disconnected,
            Outcome::Offline => Self::Offline,
            Outcome::QueueFull => Self::QueueFull,
            Outcome::Refused(refusal) => Self::refused(refusal, name),
            Outcome::Timeout { after, sent } => Self::Timeout { after, sent },
            Outcome::TooLarge { len, max } => Self::TooLarge { len, max },
            Outcome::TooMany => Self::TooMany,
            // The rest are results, and what only happens to who asked for it.
            Outcome::Cancelled
            | Outcome::Closed
            | Outcome::Connected
            | Outcome::ConnectFailed(_)
            | Outcome::Joined { .. }
            | Outcome::Left
            | Outcome::MetadataSet
            | Outcome::RecordSubscribed { .. }
            | Outcome::Reply(_)
            | Outcome::Subscribed { .. }
            | Outcome::Unsubscribed => Self::Closed,
        }
    }

    pub(crate) fn refused(refusal: Refusal, name: &str) -> Self {
        match refusal {
            Refusal::Error(error) => Self::Command(error),
            Refusal::Malformed => Self::Decode("the server's answer has no known shape".to_owned()),
            Refusal::NotExposed => Self::NotExposed(name.to_owned()),
        }
    }
}

/// Why an event did not come through.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum EventError {
    /// Its payload does not fit the type of the stream.
    #[error("the payload does not fit: {0}")]
    Decode(String),
    /// The stream was not read in time, and this many of its oldest events were dropped.
    #[error("{0} events were dropped")]
    Lagged(u64),
}
