//! The operations, one after the other.

mod connections;
mod messages;
mod pages;
pub(crate) mod records;
mod restore;
mod rooms;

use std::sync::Arc;

use mesh_core::backend::{
    BackendError, ConnectionId, Document, InstanceId, Json, MetadataChange, Op, Reply, Topic,
};

use crate::{
    keys::Partition,
    shared::{Shared, usage},
};

/// How long the marks of what was ended or set by others stand, in seconds: an instance that was cut off for longer
/// finds only what is stored.
pub(crate) const MARK_SECONDS: &str = "3600";

/// How many entries one script call restores or removes.
const ENTRIES_PER_CALL: usize = 512;

/// Carries out one operation.
pub(crate) async fn execute(shared: &Arc<Shared>, op: Op) -> Result<Reply, BackendError> {
    match op {
        Op::AllConnectionMetadata => shared.all_connection_metadata().await,
        Op::AllRoomMetadata => shared.all_room_metadata().await,
        Op::ClearRoom { room } => shared.clear_room(&room).await,
        Op::CloseConnection { connection } => shared.close_connection(&connection).await,
        Op::CloseInstance => shared.close().await,
        Op::ConnectionMetadata { connection } => shared.connection_metadata(&connection).await,
        Op::Connections => shared.connections().await,
        Op::ForgetMembers { room, connections } => shared.forget_members(&room, &connections).await,
        Op::DeleteRecord { record, stamp, .. } => shared.delete_record(&record, stamp).await,
        Op::History {
            channel,
            limit,
            bytes_max,
        } => shared.history(&channel, limit, bytes_max).await,
        Op::IsInRoom { room, connection } => shared.is_in_room(&room, &connection).await,
        Op::JoinRoom { room, connection } => shared.join_room(room, connection).await,
        Op::KeepFor { instance, message } => shared.keep_for(&instance, message.as_ref()).await,
        Op::LeaveRoom { room, connection } => shared.leave_room(&room, &connection).await,
        Op::OpenConnection {
            connection,
            metadata,
        } => shared.open_connection(&connection, metadata).await,
        Op::OpenInstance { instance } => shared.open(instance).await,
        Op::Publish { topic, message } => shared.publish(&topic, &message).await,
        Op::PublishChannel {
            channel,
            message,
            history,
        } => shared.publish_channel(&channel, message, history).await,
        Op::PublishRecord {
            record,
            base,
            updates,
            ..
        } => shared.publish_record(&record, base, &updates).await,
        Op::PurgeDeleted { older_than, .. } => shared.purge_deleted(older_than).await,
        Op::Record { record } => shared.record(&record).await,
        Op::RecordVersions { records } => shared.record_versions(&records).await,
        Op::Restore {
            connections,
            members,
        } => shared.restore(connections, members).await,
        Op::RoomMembers { room } => shared.room_members(&room).await,
        Op::RoomMembersMetadata { room } => shared.room_members_metadata(&room).await,
        Op::RoomMetadata { room } => shared.room_metadata(&room).await,
        Op::SetConnectionMetadata { connection, change } => {
            shared.set_connection_metadata(&connection, &change).await
        }
        Op::SetRoomMetadata { room, change } => shared.set_room_metadata(&room, &change).await,
        Op::Settle { number } => shared.settle(number).await,
        Op::Subscribe { topics } => shared.subscribe(topics).await,
        Op::Unsubscribe { topics } => shared.unsubscribe(&topics).await,
        _ => Err(usage(
            "this version of mesh-redis does not know the operation",
        )),
    }
}

/// The name of an operation and its partition, for its span.
pub(crate) fn describe(op: &Op) -> (&'static str, Option<u16>) {
    let room = |name: &str| Some(Partition::of(name).number());
    let connection = |id: &ConnectionId| room(id.as_str());
    match op {
        Op::AllConnectionMetadata => ("all_connection_metadata", None),
        Op::AllRoomMetadata => ("all_room_metadata", None),
        Op::ClearRoom { room: name } => ("clear_room", room(name)),
        Op::CloseConnection { connection: id } => ("close_connection", connection(id)),
        Op::CloseInstance => ("close_instance", None),
        Op::ConnectionMetadata { connection: id } => ("connection_metadata", connection(id)),
        Op::Connections => ("connections", None),
        Op::ForgetMembers { room: name, .. } => ("forget_members", room(name)),
        Op::DeleteRecord { record, .. } => ("delete_record", room(record)),
        Op::History { .. } => ("history", None),
        Op::IsInRoom { room: name, .. } => ("is_in_room", room(name)),
        Op::JoinRoom { room: name, .. } => ("join_room", room(name)),
        Op::KeepFor { .. } => ("keep_for", None),
        Op::LeaveRoom { room: name, .. } => ("leave_room", room(name)),
        Op::OpenConnection { connection: id, .. } => ("open_connection", connection(id)),
        Op::OpenInstance { .. } => ("open_instance", None),
        Op::Publish {
            topic: Topic::Room(name),
            ..
        } => ("publish", room(name)),
        Op::Publish { .. } => ("publish", None),
        Op::PublishChannel { .. } => ("publish_channel", None),
        Op::PublishRecord { record, .. } => ("publish_record", room(record)),
        Op::PurgeDeleted { .. } => ("purge_deleted", None),
        Op::Record { record } => ("record", room(record)),
        Op::RecordVersions { .. } => ("record_versions", None),
        Op::Restore { .. } => ("restore", None),
        Op::RoomMembers { room: name } => ("room_members", room(name)),
        Op::RoomMembersMetadata { room: name } => ("room_members_metadata", room(name)),
        Op::RoomMetadata { room: name } => ("room_metadata", room(name)),
        Op::SetConnectionMetadata { connection: id, .. } => {
            ("set_connection_metadata", connection(id))
        }
        Op::SetRoomMetadata { room: name, .. } => ("set_room_metadata", room(name)),
        Op::Settle { .. } => ("settle", None),
        Op::Subscribe { .. } => ("subscribe", None),
        Op::Unsubscribe { .. } => ("unsubscribe", None),
        _ => ("unknown", None),
    }
}

/// Does the instance hold the connection, by its id?
fn holds(instance: &InstanceId, connection: &ConnectionId) -> bool {
    connection
        .as_str()
        .strip_prefix(instance.as_str())
        .is_some_and(|rest| rest.starts_with('.'))
}

/// What a script does about the owner of a connection that it changes.
struct Mark {
    /// How long the change is marked for it, in seconds: not at all for what is one's own.
    seconds: &'static [u8],
    /// Where it is told.
    topic: String,
}

impl Mark {
    fn new(shared: &Shared, instance: &InstanceId, connection: &ConnectionId) -> Self {
        match connection.instance().filter(|owner| owner != instance) {
            Some(owner) => Self {
                seconds: MARK_SECONDS.as_bytes(),
                topic: shared.keys.owner_topic(&owner),
            },
            None => Self {
                seconds: b"0",
                topic: String::new(),
            },
        }
    }
}

/// Stored text as a document: nothing is kept as nothing.
fn json(text: &str) -> Option<Json> {
    (!text.is_empty()).then(|| text.into())
}

/// A document to store. The JSON document `null` is none.
fn text(json: Option<&Json>) -> &str {
    json.map_or("", |json| if json.trim() == "null" { "" } else { json })
}

/// "revision document", as scripts and hashes hold it.
pub(crate) fn document(stored: &str) -> Option<Document> {
    let (revision, text) = stored.split_once(' ')?;
    Some(Document {
        json: json(text),
        revision: revision.parse().ok()?,
    })
}

/// The kind of a change, its document and the keys it spares, as the scripts want them.
fn change_parts(change: &MetadataChange) -> (&'static [u8], &Json, &[mesh_core::backend::Name]) {
    match change {
        MetadataChange::Merge(json) => (b"merge", json, &[]),
        MetadataChange::Replace(json) => (b"replace", json, &[]),
        MetadataChange::ReplaceExcept { json, keys } => (b"except", json, keys),
    }
}
