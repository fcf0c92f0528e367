//! Rooms, their members and their metadata.

use std::{collections::BTreeMap, sync::Arc};

use futures_util::{StreamExt as _, TryStreamExt as _, future::try_join_all, stream};
use mesh_core::backend::{
    BackendError, ConnectionId, Document, MetadataChange, Name, Reply, Topic,
};
use redis::Value;

use super::{
    ENTRIES_PER_CALL, MARK_SECONDS, Mark, change_parts,
    connections::{entry, too_long},
    json,
};
use crate::{
    connection::Failure,
    decode, envelope,
    keys::{PARTITIONS_AT_ONCE, Partition},
    scripts,
    shared::{Open, Shared},
    stats::Counters,
};

/// How many connections' metadata one command asks for.
const DOCUMENTS_PER_COMMAND: usize = 100;

impl Shared {
    pub(super) async fn join_room(
        self: &Arc<Self>,
        room: Name,
        connection: ConnectionId,
    ) -> Result<Reply, BackendError> {
        let open = self.open_instance();
        // An unknown connection is one while the store is lost, too.
        let Some(_under_way) = self.table.join(&connection, &room) else {
            return match open {
                Err(error @ BackendError::Usage(_)) => Err(error),
                _ => Err(BackendError::UnknownConnection),
            };
        };
        let open = open?;
        let at = Partition::of(&room);
        let keys = [
            self.keys.tombstone(at, &open.incarnation),
            self.keys.members(&room),
            self.keys.member_index(at, &open.incarnation),
            self.keys.generations(at),
            self.keys.cleared(&room),
            self.keys.foreign_leave(&room, &connection),
        ];
        let arguments = [open.incarnation.as_str(), connection.as_str(), &room];
        let call = scripts::ROOM_JOIN.call(keys, arguments.map(str::as_bytes));
        let reply = self.send(&open.session, &call).await;
        // A leave that was begun meanwhile may have come first.
        self.table.joined(&connection, &room);
        let read = |reply: Value| {
            let [new, generation] =
                <[Value; 2]>::try_from(decode::list(reply)?).map_err(|_| decode::unexpected())?;
            let (new, generation) = (decode::integer(&new)? == 1, decode::number(generation)?);
            Ok(Reply::Joined { new, generation })
        };
        read(reply?).map_err(|failure| self.failed(&open.session, failure))
    }

    pub(super) async fn leave_room(
        self: &Arc<Self>,
        room: &Name,
        connection: &ConnectionId,
    ) -> Result<Reply, BackendError> {
        let open = self.open_instance()?;
        self.table.leave(connection, room);
        let at = Partition::of(room);
        let keys = [
            self.keys.tombstone(at, &open.incarnation),
            self.keys.members(room),
            self.keys.generations(at),
            self.keys.room_documents(at),
            self.keys.foreign_leave(room, connection),
            self.keys.member_index(at, &open.incarnation),
        ];
        let mark = Mark::new(self, &open.instance, connection);
        let head = envelope::notice_head(&self.sender, self.config.cluster);
        let arguments = [
            connection.as_str().as_bytes(),
            room.as_bytes(),
            mark.seconds,
            mark.topic.as_bytes(),
            &head,
        ];
        let call = scripts::ROOM_LEAVE.call(keys, arguments);
        let reply = self.send(&open.session, &call).await;
        if reply.is_err() {
            // It may be a member still.
            self.table.joined(connection, room);
        }
        let left =
            decode::integer(&reply?).map_err(|failure| self.failed(&open.session, failure))?;
        Ok(Reply::Flag(left == 1))
    }

    pub(super) async fn clear_room(self: &Arc<Self>, room: &Name) -> Result<Reply, BackendError> {
        let open = self.open_instance()?;
        let keys = self.room_keys(&open, room);
        let topic = self.keys.topic(&Topic::Room(room.clone()));
        let scattered = self.config.cluster && self.keys.shard(&topic).is_none();
        let head = envelope::notice_head(&self.sender, scattered);
        let arguments = [
            room.as_bytes(),
            MARK_SECONDS.as_bytes(),
            self.keys.publish_command(&topic).as_bytes(),
            topic.as_bytes(),
            &head,
        ];
        let call = scripts::ROOM_CLEAR.call(keys, arguments);
        let reply = self.send(&open.session, &call).await?;
        let generation =
            decode::number(reply).map_err(|failure| self.failed(&open.session, failure))?;
        if scattered {
            // The script's notice came from the node of the room, and is taken for late. This one keeps its place among what this
            // instance publishes.
            let notice = envelope::seal_cleared(&self.sender, generation);
            Counters::add(&self.counters.commands, 1);
            let sent = open.session.publish(&topic, &notice).await;
            sent.map_err(|failure| self.failed(&open.session, failure))?;
        }
        Ok(Reply::Cleared { generation })
    }

    pub(super) async fn forget_members(
        self: &Arc<Self>,
        room: &Name,
        connections: &[ConnectionId],
    ) -> Result<Reply, BackendError> {
        let open = self.open_instance()?;
        let at = Partition::of(room);
        let keys = [
            self.keys.tombstone(at, &open.incarnation),
            self.keys.members(room),
            self.keys.member_index(at, &open.incarnation),
        ];
        // Before any of them is sent: what is noted from here on is another membership.
        let noted: Vec<_> = connections
            .iter()
            .map(|connection| self.table.noted(connection, room))
            .collect();
        let parts = connections.chunks(ENTRIES_PER_CALL);
        let sent = parts
            .zip(noted.chunks(ENTRIES_PER_CALL))
            .map(|(part, noted)| {
                let first = [open.incarnation.as_str(), room].map(str::as_bytes);
                let ids = part.iter().map(|id| id.as_str().as_bytes());
                let call = scripts::MEMBERS_FORGET.call(&keys, first.into_iter().chain(ids));
                let open = &open;
                async move {
                    let reply = self.send(&open.session, &call).await?;
                    let members = decode::list(reply)
                        .map_err(|failure| self.failed(&open.session, failure))?;
                    for ((id, noted), member) in part.iter().zip(noted).zip(members) {
                        if member == Value::Int(0) {
                            self.table.forget(id, room, *noted);
                        }
                    }
                    Ok::<_, BackendError>(())
                }
            });
        try_join_all(sent).await?;
        Ok(Reply::Done)
    }

    /// What a room as a whole consists of.
    fn room_keys(&self, open: &Open, room: &Name) -> [String; 5] {
        let at = Partition::of(room);
        [
            self.keys.tombstone(at, &open.incarnation),
            self.keys.members(room),
            self.keys.generations(at),
            self.keys.room_documents(at),
            self.keys.cleared(room),
        ]
    }

    pub(super) async fn is_in_room(
        self: &Arc<Self>,
        room: &Name,
        connection: &ConnectionId,
    ) -> Result<Reply, BackendError> {
        let open = self.open_instance()?;
        let mut cmd = redis::cmd("HEXISTS");
        cmd.arg(self.keys.members(room)).arg(connection.as_str());
        let reply = self.send(&open.session, &cmd).await?;
        let found =
            decode::integer(&reply).map_err(|failure| self.failed(&open.session, failure))?;
        Ok(Reply::Flag(found == 1))
    }

    pub(super) async fn room_members(self: &Arc<Self>, room: &Name) -> Result<Reply, BackendError> {
        let open = self.open_instance()?;
        let ids = self.fields(&open.session, self.keys.members(room)).await?;
        Ok(Reply::Connections(
            ids.into_iter().map(ConnectionId::new).collect(),
        ))
    }

    pub(super) async fn room_members_metadata(
        self: &Arc<Self>,
        room: &Name,
    ) -> Result<Reply, BackendError> {
        let open = self.open_instance()?;
        let ids = self.fields(&open.session, self.keys.members(room)).await?;
        let mut partitions = BTreeMap::<_, Vec<String>>::new();
        for id in ids {
            partitions.entry(Partition::of(&id)).or_default().push(id);
        }
        let mut asked = Vec::new();
        for (at, ids) in &partitions {
            for ids in ids.chunks(DOCUMENTS_PER_COMMAND) {
                let mut cmd = redis::cmd("HMGET");
                cmd.arg(self.keys.connections(*at)).arg(ids);
                let session = &open.session;
                asked.push(async move {
                    let reply = self.send(session, &cmd).await?;
                    let read = || -> Result<Vec<_>, Failure> {
                        let stored = decode::list(reply)?.into_iter().map(decode::maybe_text);
                        stored.collect()
                    };
                    let stored = read().map_err(|failure| self.failed(session, failure))?;
                    let pairs = ids.iter().zip(stored).map(|(id, stored)| {
                        let document = stored.and_then(|stored| entry(&stored));
                        (
                            ConnectionId::new(id.as_str()),
                            document.and_then(|it| it.json),
                        )
                    });
                    Ok::<_, BackendError>(pairs.collect::<Vec<_>>())
                });
            }
        }
        let found = stream::iter(asked).buffer_unordered(PARTITIONS_AT_ONCE);
        Ok(Reply::ConnectionsMetadata(found.try_concat().await?))
    }

    pub(super) async fn room_metadata(
        self: &Arc<Self>,
        room: &Name,
    ) -> Result<Reply, BackendError> {
        let open = self.open_instance()?;
        let mut cmd = redis::cmd("HGET");
        cmd.arg(self.keys.room_documents(Partition::of(room)))
            .arg(&**room);
        let reply = self.send(&open.session, &cmd).await?;
        let stored =
            decode::maybe_text(reply).map_err(|failure| self.failed(&open.session, failure))?;
        Ok(Reply::Metadata(stored.map(Into::into)))
    }

    pub(super) async fn all_room_metadata(self: &Arc<Self>) -> Result<Reply, BackendError> {
        let open = self.open_instance()?;
        let entries = self
            .all_entries(&open.session, |at| self.keys.room_documents(at))
            .await?;
        let entries = entries
            .into_iter()
            .map(|(room, json)| (room.into(), json.into()));
        Ok(Reply::RoomsMetadata(entries.collect()))
    }

    pub(super) async fn set_room_metadata(
        self: &Arc<Self>,
        room: &Name,
        change: &MetadataChange,
    ) -> Result<Reply, BackendError> {
        let open = self.open_instance()?;
        let keys = self.room_keys(&open, room);
        let (kind, document, except) = change_parts(change);
        let max = self.config.metadata_bytes_max;
        let longest = max.to_string();
        let mut arguments = vec![
            room.as_bytes(),
            kind,
            document.as_bytes(),
            longest.as_bytes(),
        ];
        arguments.extend(except.iter().map(|key| key.as_bytes()));
        let reply = self
            .send(&open.session, &scripts::ROOM_CHANGE.call(keys, arguments))
            .await?;
        let reply = decode::texts(reply).map_err(|failure| self.failed(&open.session, failure))?;
        match &*reply.iter().map(String::as_str).collect::<Vec<_>>() {
            ["long", len] => Err(too_long(len, max)),
            [text] => Ok(Reply::Changed(Some(Document {
                json: json(text),
                revision: 0,
            }))),
            _ => Err(self.failed(&open.session, decode::unexpected())),
        }
    }
}
