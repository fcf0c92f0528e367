//! What can go wrong for an application that uses the server's handles.

use crate::{
    backend::BackendError,
    connection::MembershipsFull,
    instance::InstanceError,
    protocol::{CommandError, EncodeError},
    record::ValueError,
};

/// An operation on the server failed.
///
/// In a handler `?` turns it into the reply: each variant has one wire code.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ServerError {
    /// The backend failed. Wire code as [`BackendError`] tells: `EUNAVAILABLE` where it cannot be reached.
    #[error(transparent)]
    Backend(BackendError),
    /// The value is no JSON. Wire code `ESERVER`.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// The connection is closed, or not one of this server's. Wire code `ESERVER`.
    #[error("the connection is closed")]
    Gone,
    /// A channel's history is longer than the server keeps. Wire code `ESERVER`.
    #[error("a history of {len} messages is over the limit of {max}")]
    HistoryTooLong {
        /// What was asked for.
        len: usize,
        /// The limit.
        max: usize,
    },
    /// The backend failed behind the delivery: connections of this instance were served, those of others were not, or nobody knows. Wire code
    /// as for [`Backend`](Self::Backend).
    #[error("only connections of this instance were served: {0}")]
    LocalOnly(BackendError),
    /// The connection holds as many rooms, channels and records as it may. Wire code `EOVERLOAD`.
    #[error(transparent)]
    MembershipsFull(#[from] MembershipsFull),
    /// A message is longer than other instances take from the backend, and was sent to nobody. Wire code `EINVALID`.
    #[error("a message of {len} bytes is over the limit of {max}")]
    MessageTooLong {
        /// Its length in bytes: a channel's message as it is; an event as it travels between instances, which is its frame, the ids of
        /// the connections that it is for or not for, and a few bytes.
        len: usize,
        /// The limit: [`backend_message_bytes_max`](crate::protocol::Limits::backend_message_bytes_max).
        max: usize,
    },
    /// A metadata document is too large. Wire code `EINVALID`.
    #[error("metadata of {len} bytes is over the limit of {max}")]
    MetadataTooLong {
        /// Its size in bytes.
        len: usize,
        /// The limit.
        max: usize,
    },
    /// A name is empty or too long. Wire code `EINVALID`.
    #[error("a {what} name has 1 to {max} bytes, this one has {len}")]
    Name {
        /// `"channel"`, `"event"`, `"record"` or `"room"`.
        what: &'static str,
        /// Its length in bytes.
        len: usize,
        /// The limit.
        max: usize,
    },
    /// More arrived while a subscription was under way than is kept for it. Wire code `EOVERLOAD`.
    #[error("more than {max} bytes arrived while the subscription was under way")]
    Overflow {
        /// The limit in bytes.
        max: usize,
    },
    /// The function given to `try_update_record` said no; the record is as it was. On the wire it is what it said.
    #[error("the update was refused: {0}")]
    Refused(CommandError),
    /// A history or a list of members is more than one reply may hold. Wire code `EOVERLOAD`.
    #[error("the reply would be over the limit of {max} bytes")]
    ReplyTooLong {
        /// The limit in bytes.
        max: usize,
    },
    /// The name is not the application's to use: an event with the prefix of the built-ins (`mesh/`), `ping`, `latency` or
    /// `latency:request`, which clients take for the server's word; a channel that is the backend's own. Wire code `EINVALID`.
    #[error("the name {name:?} is reserved")]
    ReservedName {
        /// The name.
        name: String,
    },
    /// The stored metadata or record is not of the type that was asked for. Wire code `ESERVER`.
    #[error("what is stored is not of the type that was asked for: {0}")]
    Shape(String),
    /// Too many changes of one record wait for each other. Wire code `EOVERLOAD`.
    #[error("too many changes of the record are under way")]
    TooManyWrites,
    /// The function given to `update_record` panicked; the record is as it was. Wire code `EINTERNAL`.
    #[error("the update of the record panicked")]
    UpdatePanicked,
    /// The value is none that a record can have. Wire code `EINVALID`.
    #[error("no value for a record: {0}")]
    Value(#[from] ValueError),
    /// A record's value is too large. Wire code `EINVALID`.
    #[error("a record of {len} bytes is over the limit of {max}")]
    ValueTooLong {
        /// Its size in bytes.
        len: usize,
        /// The limit: [`record_bytes_max`](crate::protocol::Limits::record_bytes_max).
        max: usize,
    },
}

impl From<BackendError> for ServerError {
    fn from(error: BackendError) -> Self {
        match error {
            BackendError::ReplyTooLong { max } => Self::ReplyTooLong { max },
            BackendError::TooLong { len, max } => Self::MetadataTooLong { len, max },
            BackendError::UnknownConnection => Self::Gone,
            other => Self::Backend(other),
        }
    }
}

impl From<InstanceError> for ServerError {
    fn from(error: InstanceError) -> Self {
        match error {
            InstanceError::Backend(error) => error.into(),
            InstanceError::Gone => Self::Gone,
            InstanceError::Overflow { max } => Self::Overflow { max },
            InstanceError::TooLong { max } => Self::ReplyTooLong { max },
            InstanceError::TooManyWrites => Self::TooManyWrites,
            InstanceError::ValueTooLong { len, max } => Self::ValueTooLong { len, max },
        }
    }
}

impl From<ServerError> for CommandError {
    fn from(error: ServerError) -> Self {
        let message = error.to_string();
        match error {
            ServerError::Backend(BackendError::Full(_) | BackendError::Unavailable(_))
            | ServerError::LocalOnly(BackendError::Full(_) | BackendError::Unavailable(_)) => {
                Self::unavailable(message)
            }
            ServerError::MembershipsFull(_)
            | ServerError::Overflow { .. }
            | ServerError::ReplyTooLong { .. }
            | ServerError::TooManyWrites => Self::overload(message),
            ServerError::MessageTooLong { .. }
            | ServerError::MetadataTooLong { .. }
            | ServerError::Name { .. }
            | ServerError::ReservedName { .. }
            | ServerError::Value(_)
            | ServerError::ValueTooLong { .. } => Self::invalid(message),
            ServerError::Refused(error) => error,
            ServerError::UpdatePanicked => Self::internal(),
            ServerError::Backend(_)
            | ServerError::Encode(_)
            | ServerError::Gone
            | ServerError::HistoryTooLong { .. }
            | ServerError::LocalOnly(_)
            | ServerError::Shape(_) => Self::new(message),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{BackendError, CommandError, ServerError};

    #[test]
    fn a_backend_error_has_the_code_that_it_tells() {
        for (error, code) in [
            (BackendError::Full(String::new()), "EUNAVAILABLE"),
            (BackendError::ReplyTooLong { max: 1 }, "EOVERLOAD"),
            (BackendError::TooLong { len: 2, max: 1 }, "EINVALID"),
            (BackendError::Unavailable(String::new()), "EUNAVAILABLE"),
            (BackendError::UnknownConnection, "ESERVER"),
            (BackendError::Usage(String::new()), "ESERVER"),
        ] {
            assert_eq!(CommandError::from(ServerError::from(error)).code(), code);
        }
    }

    #[test]
    fn what_the_caller_got_wrong_is_invalid() {
        for error in [
            ServerError::MessageTooLong { len: 2, max: 1 },
            ServerError::MetadataTooLong { len: 2, max: 1 },
            ServerError::Name {
                what: "room",
                len: 2,
                max: 1,
            },
            ServerError::ReservedName {
                name: "ping".to_owned(),
            },
        ] {
            assert_eq!(CommandError::from(error).code(), "EINVALID");
        }
    }
}
