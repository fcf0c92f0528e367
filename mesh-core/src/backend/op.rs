//! The vocabulary of a [`Backend`](super::Backend).

use std::{fmt, sync::Arc};

use bytes::Bytes;

/// The name of a room or channel: 1 to 512 bytes, checked where it comes in.
pub type Name = Arc<str>;

/// JSON text that is known to be valid.
pub type Json = Arc<str>;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Takes the id as it came over the wire or out of a generator.
            pub fn new(id: impl Into<Arc<str>>) -> Self {
                Self(id.into())
            }

            /// The id as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl From<&str> for $name {
            fn from(id: &str) -> Self {
                Self(id.into())
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
    };
}

id! {
    /// A connection, unique in the cluster: `<instance>.<random>`, so that its instance can be read from it.
    ConnectionId
}
id! {
    /// A server process, unique in the cluster; it holds no dot.
    InstanceId
}

impl ConnectionId {
    /// The instance that holds the connection, or `None` where the id was made by no server.
    pub fn instance(&self) -> Option<InstanceId> {
        let (instance, _) = self.0.split_once('.')?;
        (!instance.is_empty()).then(|| InstanceId::new(instance))
    }
}

/// One atomic operation on the shared state.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Op {
    /// Every connection's metadata, all instances. → [`Reply::ConnectionsMetadata`]
    AllConnectionMetadata,
    /// Every room's metadata, rooms without any left out. → [`Reply::RoomsMetadata`]
    AllRoomMetadata,
    /// Removes all members and the metadata of a room. → [`Reply::Done`]
    ClearRoom {
        /// The room.
        room: Name,
    },
    /// Removes a connection from every room and list, with its metadata. Harmless if it is unknown. → [`Reply::Done`]
    CloseConnection {
        /// The connection.
        connection: ConnectionId,
    },
    /// Removes all connections of this instance, and the instance. → [`Reply::Done`]
    CloseInstance,
    /// A connection's metadata. → [`Reply::Metadata`]
    ConnectionMetadata {
        /// The connection.
        connection: ConnectionId,
    },
    /// Every connection, all instances. → [`Reply::Connections`]
    Connections,
    /// The newest messages of a channel, newest first. → [`Reply::History`]
    History {
        /// The channel.
        channel: Name,
        /// How many at most.
        limit: usize,
    },
    /// Is the connection a member of the room? → [`Reply::Flag`]
    IsInRoom {
        /// The room.
        room: Name,
        /// The connection.
        connection: ConnectionId,
    },
    /// Makes a connection a member of a room; true if it was none. → [`Reply::Flag`]
    JoinRoom {
        /// The room.
        room: Name,
        /// The connection.
        connection: ConnectionId,
    },
    /// Ends a membership; true if there was one. → [`Reply::Flag`]
    LeaveRoom {
        /// The room.
        room: Name,
        /// The connection.
        connection: ConnectionId,
    },
    /// Registers a connection of this instance. → [`Reply::Done`]
    OpenConnection {
        /// The connection.
        connection: ConnectionId,
        /// Its initial metadata.
        metadata: Option<Json>,
    },
    /// Registers this instance; the first operation of every backend. → [`Reply::Done`]
    OpenInstance {
        /// The instance.
        instance: InstanceId,
    },
    /// Hands a message to every *other* instance that is subscribed to the topic. → [`Reply::Done`]
    Publish {
        /// The topic; never [`Topic::Channel`], whose messages are [`Op::PublishChannel`].
        topic: Topic,
        /// The encoded message.
        message: Bytes,
    },
    /// Hands a message to every instance that is subscribed to the channel, this one included, and keeps it
    /// in the channel's history, as one step. → [`Reply::Done`]
    PublishChannel {
        /// The channel.
        channel: Name,
        /// The message, byte for byte.
        message: Bytes,
        /// How many messages the history holds after this one; 0 leaves the history alone.
        history: usize,
    },
    /// A room's members, all instances, any order. → [`Reply::Connections`]
    RoomMembers {
        /// The room.
        room: Name,
    },
    /// The metadata of a room's members, all instances. → [`Reply::ConnectionsMetadata`]
    RoomMembersMetadata {
        /// The room.
        room: Name,
    },
    /// A room's metadata. → [`Reply::Metadata`]
    RoomMetadata {
        /// The room.
        room: Name,
    },
    /// Changes a connection's metadata, and tells the result. False where the connection is unknown. → [`Reply::Changed`]
    SetConnectionMetadata {
        /// The connection.
        connection: ConnectionId,
        /// The change.
        change: MetadataChange,
    },
    /// Changes a room's metadata. → [`Reply::Changed`]
    SetRoomMetadata {
        /// The room.
        room: Name,
        /// The change.
        change: MetadataChange,
    },
    /// Takes topics; the reply means in force. Taking one twice is harmless. → [`Reply::Done`]
    Subscribe {
        /// The topics.
        topics: Vec<Topic>,
    },
    /// Gives topics back. → [`Reply::Done`]
    Unsubscribe {
        /// The topics.
        topics: Vec<Topic>,
    },
}

/// What happens to a metadata document.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum MetadataChange {
    /// The keys of this object replace those of the stored one, one level deep and atomically; where either is no object, the new value replaces the old.
    Merge(Json),
    /// The value replaces what is stored.
    Replace(Json),
}

/// The answer to an [`Op`].
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Reply {
    /// The metadata after a change; `None` where the connection is unknown and nothing changed.
    Changed(Option<Json>),
    /// Connections, in any order.
    Connections(Vec<ConnectionId>),
    /// Connections with their metadata, in any order.
    ConnectionsMetadata(Vec<(ConnectionId, Option<Json>)>),
    /// Done, nothing to tell.
    Done,
    /// Yes or no.
    Flag(bool),
    /// Messages, newest first.
    History(Vec<Bytes>),
    /// A metadata document, or none.
    Metadata(Option<Json>),
    /// Rooms with their metadata, by name.
    RoomsMetadata(Vec<(Name, Json)>),
}

/// What an instance listens to.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
#[non_exhaustive]
pub enum Topic {
    /// Every instance: global broadcasts.
    All,
    /// A channel of the application; its name is the store's own (`protocol.md`, section 8).
    Channel(Name),
    /// One instance: what concerns one of its connections.
    Instance(InstanceId),
    /// A room with members here.
    Room(Name),
}

/// What a backend tells its instance unasked.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Notice {
    /// A message on a topic that is in force.
    Message {
        /// The topic.
        topic: Topic,
        /// The message as it was published.
        message: Bytes,
    },
}

/// An operation failed.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum BackendError {
    /// The store cannot be reached; whether the operation took effect is unknown. Wire code `EUNAVAILABLE`.
    #[error("the backend cannot be reached: {0}")]
    Unavailable(String),
    /// The operation is not one this backend may get, such as a second [`Op::OpenInstance`].
    #[error("the backend refuses the operation: {0}")]
    Usage(String),
}
