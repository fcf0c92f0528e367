//! The vocabulary of a [`Backend`](super::Backend).

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;

/// The name of a room, channel or record: 1 to 512 bytes, checked where it comes in.
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
///
/// What the variants leave unsaid:
/// - Every operation but [`OpenInstance`](Self::OpenInstance) needs an instance that is open; without one it fails
///   with [`BackendError::Usage`].
/// - A connection belongs to the instance that its id names. Its own instance opens it, closes it and joins it to
///   rooms; every instance may read it, set its metadata and end its memberships.
/// - A room exists while it has a member or metadata; a room that does not exist reads as an empty one. The same
///   holds for connections and channels that are unknown.
/// - The JSON document `null` is no metadata: setting it removes what was there.
/// - Clearing a room begins its next generation, a number that every clearing raises and that only a store that lost its data
///   begins anew. A membership belongs to the generation it was made in, so that one that was cleared is told from one that was lost.
/// - Every change of a connection's metadata raises its revision by one; a connection opens with revision 1.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Op {
    /// Every connection's metadata, all instances. → [`Reply::ConnectionsMetadata`]
    AllConnectionMetadata,
    /// Every room's metadata, by name, rooms without any left out. → [`Reply::RoomsMetadata`]
    AllRoomMetadata,
    /// Removes all members and the metadata of a room, and begins its next generation. Every other instance that is subscribed to
    /// [`Topic::Room`] is told, as part of the operation, by [`Notice::RoomCleared`]. → [`Reply::Cleared`]
    ClearRoom {
        /// The room.
        room: Name,
    },
    /// Removes a connection of this instance from every room and list, with its metadata. Harmless if it is unknown;
    /// a [`JoinRoom`](Self::JoinRoom) that comes later is refused. → [`Reply::Done`]
    CloseConnection {
        /// The connection.
        connection: ConnectionId,
    },
    /// Removes all connections and subscriptions of this instance, and the instance. It is the last operation of a
    /// backend. → [`Reply::Done`]
    CloseInstance,
    /// Takes a record's value away. The deletion is the next version; where nothing is stored there is none. Every subscriber of
    /// [`Topic::Record`], this instance included, is told, as part of the operation, by [`Notice::RecordChanged`]. → [`Reply::Deleted`]
    ///
    /// As with [`PublishRecord`](Self::PublishRecord), repeating it with the same stamp answers what it answered.
    DeleteRecord {
        /// The record.
        record: Name,
        /// Random; it becomes the deletion's.
        stamp: u64,
        /// The time, for a store that has no clock.
        now: Instant,
    },
    /// A connection's metadata; where the connection is unknown there is none, of revision 0. → [`Reply::Document`]
    ConnectionMetadata {
        /// The connection.
        connection: ConnectionId,
    },
    /// Every connection, all instances. → [`Reply::Connections`]
    Connections,
    /// Memberships of this instance's connections in a room have ended by another's doing, or by clearing the room. A backend that keeps
    /// notes of its own about them lets go of those; a connection that is a member again stays one. → [`Reply::Done`]
    ForgetMembers {
        /// The room.
        room: Name,
        /// The connections.
        connections: Vec<ConnectionId>,
    },
    /// The newest messages of a channel's history, newest first. → [`Reply::History`]
    History {
        /// The channel.
        channel: Name,
        /// How many at most.
        limit: usize,
        /// How long they may be together, in bytes. What is longer is a [`BackendError::ReplyTooLong`] and not read as a whole.
        bytes_max: usize,
    },
    /// Is the connection a member of the room? → [`Reply::Flag`]
    IsInRoom {
        /// The room.
        room: Name,
        /// The connection.
        connection: ConnectionId,
    },
    /// Makes an open connection of this instance a member of a room. → [`Reply::Joined`]
    ///
    /// Any other connection fails with [`BackendError::UnknownConnection`], so that a join that loses the race with
    /// its connection's end leaves no ghost. It is an error and not a kind of reply, because every reply means a member.
    JoinRoom {
        /// The room.
        room: Name,
        /// The connection.
        connection: ConnectionId,
    },
    /// Is an instance away, as far as the store knows? It may be dead, or cut off and come back: a message is kept for it until
    /// [`Notice::Restored`] there. One that died is there until its lease ends. → [`Reply::Flag`]
    ///
    /// Where too many wait for it already, it is a [`BackendError::Full`].
    KeepFor {
        /// The instance.
        instance: InstanceId,
        /// The encoded message, if there is one to keep.
        message: Option<Bytes>,
    },
    /// Ends a membership; true if there was one. Where the connection is another instance's, that one is told, as part of the operation,
    /// by [`Notice::MemberRemoved`], if it is subscribed to its [`Topic::Instance`]. → [`Reply::Flag`]
    LeaveRoom {
        /// The room.
        room: Name,
        /// The connection.
        connection: ConnectionId,
    },
    /// Makes consecutive versions of a record, one for each update and none skipped, if its version is still the one that the first of them
    /// starts from. Every subscriber of [`Topic::Record`], this instance included, is told, as part of the operation, by
    /// [`Notice::RecordChanged`]. → [`Reply::Published`], or [`Reply::Conflict`] and nothing changed
    ///
    /// Repeated with the same stamp of its first update, within [`REPEAT_TIME_MAX`], it answers what it answered: so one whose reply was
    /// lost is sent again, and is one version all the same.
    ///
    /// What the updates are of each other is the caller's business: the store takes a patch for what turns one value into the next.
    PublishRecord {
        /// The record.
        record: Name,
        /// What the first update starts from.
        base: Version,
        /// In the order of their versions; none is a [`BackendError::Usage`].
        updates: Vec<RecordUpdate>,
        /// The time, for a store that has no clock.
        now: Instant,
    },
    /// Forgets records that were deleted longer ago than this: their versions begin at 1 again. → [`Reply::Count`]
    PurgeDeleted {
        /// How long ago.
        older_than: Duration,
        /// The time, for a store that has no clock.
        now: Instant,
    },
    /// A record as it is stored; one that is unknown has version 0. → [`Reply::Record`]
    Record {
        /// The record.
        record: Name,
    },
    /// The versions of records, without their values. → [`Reply::RecordVersions`], in the order of the question
    RecordVersions {
        /// The records.
        records: Vec<Name>,
    },
    /// Registers a connection of this instance. One that is open stays as it is, so that the operation can be
    /// repeated when its outcome is unknown. → [`Reply::Done`]
    ///
    /// An id that names another instance is a [`BackendError::Usage`].
    OpenConnection {
        /// The connection.
        connection: ConnectionId,
        /// Its initial metadata.
        metadata: Option<Json>,
    },
    /// Registers this instance; the first operation of every backend. → [`Reply::Done`]
    ///
    /// A second one on the same backend, an id that is in use, empty or has a dot is a [`BackendError::Usage`].
    OpenInstance {
        /// The instance.
        instance: InstanceId,
    },
    /// Hands a message to every *other* instance that is subscribed to the topic. → [`Reply::Done`]
    Publish {
        /// The topic; [`Topic::Channel`], whose messages are [`Op::PublishChannel`], and [`Topic::Record`] are a [`BackendError::Usage`].
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
        /// How many messages the history holds at most after this one, itself included; older ones are
        /// dropped. 0 leaves the history alone: the message is not in it.
        history: usize,
    },
    /// States again what this instance holds, in any number of parts, after [`Notice::Restored`]. → [`Reply::Restored`]
    ///
    /// It writes what the store lacks or holds in an older revision, and tells what the store knows better: newer
    /// metadata, and memberships that were ended by others meanwhile, by clearing the room or removing the member. An ended
    /// membership is not written. Of two documents of one revision that differ, which only a store that lost changes holds, its own counts, in
    /// the next revision.
    Restore {
        /// Connections with their metadata and its revision.
        connections: Vec<(ConnectionId, Document)>,
        /// Memberships: the room, the connection, the generation.
        members: Vec<(Name, ConnectionId, u64)>,
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
    /// Changes the metadata of a connection, of whatever instance, and tells the result; where the connection is
    /// unknown nothing is changed and the answer is `None`. Where it is another instance's, that one is told, as part of the operation,
    /// by [`Notice::MetadataChanged`], if it is subscribed to its [`Topic::Instance`]. → [`Reply::Changed`]
    ///
    /// Anything but a replacement as a whole can fail with [`BackendError::TooLong`].
    SetConnectionMetadata {
        /// The connection.
        connection: ConnectionId,
        /// The change.
        change: MetadataChange,
    },
    /// Changes a room's metadata, and tells the result. The room need not exist. → [`Reply::Changed`]
    ///
    /// Anything but a replacement as a whole can fail with [`BackendError::TooLong`].
    SetRoomMetadata {
        /// The room.
        room: Name,
        /// The change.
        change: MetadataChange,
    },
    /// Removes everything of this instance that was written before [`Notice::Restored`] of this number and not stated again by
    /// [`Restore`](Self::Restore) since: the traces of operations whose outcome was unknown. → [`Reply::Done`]
    ///
    /// Where another loss came behind that return it fails with [`BackendError::Unavailable`]: nothing was stated since.
    Settle {
        /// The number of the return.
        number: u64,
    },
    /// Takes topics, until they are given back: they outlive an outage. Taking one twice is harmless, and one [`Unsubscribe`](Self::Unsubscribe) gives it back.
    /// → [`Reply::Done`]
    ///
    /// The reply means in force: what is published before is not noticed, everything after it is.
    Subscribe {
        /// The topics.
        topics: Vec<Topic>,
    },
    /// Gives topics back; one that was not taken is passed over. Nothing published after the reply is noticed, but
    /// what was published before it may still be on its way. → [`Reply::Done`]
    Unsubscribe {
        /// The topics.
        topics: Vec<Topic>,
    },
}

/// A metadata document as it is stored.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Document {
    /// The document, or none.
    pub json: Option<Json>,
    /// How often a connection's was changed; 0 for a room's, which is not counted.
    pub revision: u64,
}

/// A version of a record. Two of the same number and another stamp belong to different histories, as only a store that lost changes has
/// them.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Version {
    /// Counts the accepted updates and deletions; 0 for a record that never was.
    pub number: u64,
    /// Random, drawn by whoever made the version; 0 where the number is.
    pub stamp: u64,
}

/// A record as it is stored.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Record {
    /// The value, or none: it was never stored, or is deleted.
    pub value: Option<Json>,
    /// Its version; of one that is deleted, the deletion's.
    pub version: Version,
}

/// An update that is to become a version of a record.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RecordUpdate {
    /// Random; it becomes the version's.
    pub stamp: u64,
    /// The value.
    pub value: Json,
    /// What turns the version before it into this one, as RFC 6902 has it; `None` where that would not be shorter than the value.
    pub patch: Option<Json>,
}

/// What a version made of the one before it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RecordChange {
    /// The version's stamp.
    pub stamp: u64,
    /// The change.
    pub kind: RecordChangeKind,
}

/// What became of a record's value.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum RecordChangeKind {
    /// It is deleted.
    Deleted,
    /// It is this one.
    Full(Json),
    /// It is what this patch (RFC 6902) makes of the one before.
    Patch(Json),
}

/// How long a [`Op::PublishRecord`] or [`Op::DeleteRecord`] may be repeated.
pub const REPEAT_TIME_MAX: Duration = Duration::from_secs(60);

/// What happens to a metadata document.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum MetadataChange {
    /// The keys of this object replace those of the stored one, one level deep and atomically; where either is no
    /// object, the new value replaces the old. A key whose new value is `null` is kept as `null`. Keys are equal
    /// if they are without their escapes; an escape of half a surrogate pair (`"\ud800"`) equals its like and nothing else. The
    /// values keep their bytes, the order of the keys is not kept.
    Merge(Json),
    /// The value replaces what is stored.
    Replace(Json),
    /// The object replaces what is stored, but under these keys stays what is stored there, or nothing, whatever the object says;
    /// as one step. A value that is no object counts as an empty one.
    ReplaceExcept {
        /// The object.
        json: Json,
        /// The keys.
        keys: Vec<Name>,
    },
}

/// The answer to an [`Op`].
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Reply {
    /// The metadata after a change; `None` where the connection is unknown and nothing changed.
    Changed(Option<Document>),
    /// A room is empty.
    Cleared {
        /// The generation that began.
        generation: u64,
    },
    /// A record has another version than the updates start from.
    Conflict(Record),
    /// Connections, in any order.
    Connections(Vec<ConnectionId>),
    /// Connections with their metadata, in any order.
    ConnectionsMetadata(Vec<(ConnectionId, Option<Json>)>),
    /// How many.
    Count(u64),
    /// The number of a deletion's version; `None` where nothing was stored.
    Deleted(Option<u64>),
    /// A connection's metadata.
    Document(Document),
    /// Done, nothing to tell.
    Done,
    /// Yes or no.
    Flag(bool),
    /// Messages, newest first.
    History(Vec<Bytes>),
    /// A connection is a member of a room.
    Joined {
        /// It was none before.
        new: bool,
        /// The room's generation, which the membership belongs to.
        generation: u64,
    },
    /// A metadata document, or none.
    Metadata(Option<Json>),
    /// The updates are accepted.
    Published {
        /// The number of the first one's version.
        first: u64,
    },
    /// A record.
    Record(Record),
    /// Versions of records.
    RecordVersions(Vec<Version>),
    /// What the store knew better than the instance that restored it.
    Restored {
        /// Metadata of a newer revision than was stated.
        changed: Vec<(ConnectionId, Document)>,
        /// Memberships that are over.
        ended: Vec<(Name, ConnectionId)>,
    },
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
    /// A record with subscribers here.
    Record(Name),
    /// A room with members here.
    Room(Name),
}

/// What a backend tells its instance unasked.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Notice {
    /// The store cannot be reached, or holds this instance for dead. From here on operations fail at once with
    /// [`BackendError::Unavailable`], until [`Restored`](Self::Restored), which always follows in the end.
    Lost,
    /// A message on a topic that is in force.
    Message {
        /// The topic.
        topic: Topic,
        /// The message as it was published.
        message: Bytes,
    },
    /// The store can be reached again, this instance is registered anew and every topic it had taken is in force; messages
    /// published meanwhile are lost. What the instance holds wants to be stated again, by [`Op::Restore`] and then
    /// [`Op::Settle`].
    ///
    /// Nothing subscribed before [`Lost`](Self::Lost) arrives after this, and no operation begun before takes effect after it.
    Restored {
        /// Did the store keep its data? `None` where that is not known.
        data_kept: Option<bool>,
        /// Another one with each return.
        number: u64,
        /// What others [kept](Op::KeepFor) for this instance meanwhile, oldest first; each once. It is to be done before anything is stated.
        kept: Vec<Bytes>,
    },
    /// Another instance changed the metadata of a connection of this one.
    MetadataChanged {
        /// The connection.
        connection: ConnectionId,
        /// What it is now.
        document: Document,
    },
    /// Another instance ended a membership of a connection of this one, as it was then: the connection may have joined again since, so that
    /// only the store knows whether it is a member.
    MemberRemoved {
        /// The room.
        room: Name,
        /// The connection.
        connection: ConnectionId,
    },
    /// A record has new versions.
    RecordChanged {
        /// The record.
        record: Name,
        /// What the first of them starts from.
        base: Version,
        /// The versions behind it, in order.
        changes: Vec<RecordChange>,
    },
    /// Another instance cleared a room.
    RoomCleared {
        /// The room.
        room: Name,
        /// The generation that began.
        generation: u64,
    },
    /// An instance died, and this one cleaned up behind it: memberships that are over. Told once in the cluster.
    RoomsLeft(Vec<(Name, ConnectionId)>),
}

/// An operation failed. Unless the variant says otherwise, it changed nothing.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum BackendError {
    /// The store has no room for more. Wire code `EUNAVAILABLE`.
    #[error("the backend is full: {0}")]
    Full(String),
    /// What was asked for is longer than the caller allows. Wire code `EOVERLOAD`.
    #[error("the answer would be over the limit of {max} bytes")]
    ReplyTooLong {
        /// The limit in bytes.
        max: usize,
    },
    /// A merged document would be longer than the store allows. Wire code `EINVALID`.
    #[error("the metadata would be {len} bytes long, more than {max}")]
    TooLong {
        /// The length it would have, in bytes.
        len: usize,
        /// The longest allowed, in bytes.
        max: usize,
    },
    /// The store cannot be reached; whether the operation took effect is unknown. [`Notice::Lost`] tells the same, and
    /// behind [`Notice::Restored`] the outcome is settled. Wire code `EUNAVAILABLE`.
    #[error("the backend cannot be reached: {0}")]
    Unavailable(String),
    /// The connection is not, or no longer, an open one of this instance. Wire code `ESERVER`.
    #[error("no such connection of this instance")]
    UnknownConnection,
    /// The operation is not one this backend may get, such as a second [`Op::OpenInstance`]. Wire code `ESERVER`.
    #[error("the backend refuses the operation: {0}")]
    Usage(String),
}
