//! Connections and their metadata.

use std::{collections::BTreeMap, sync::Arc};

use futures_util::future::join_all;
use mesh_core::backend::{BackendError, ConnectionId, Document, Json, MetadataChange, Name, Reply};

use super::{ENTRIES_PER_CALL, Mark, change_parts, document, holds, json, text};
use crate::{
    decode, envelope,
    keys::Partition,
    scripts,
    shared::{Open, Shared, usage},
};

/// What stands before the document in a connection's entry: the incarnation and a space.
const OWNER: usize = 17;

/// Reads a connection's entry.
pub(super) fn entry(stored: &str) -> Option<Document> {
    document(stored.get(OWNER..)?)
}

impl Shared {
    pub(super) async fn open_connection(
        self: &Arc<Self>,
        connection: &ConnectionId,
        metadata: Option<Json>,
    ) -> Result<Reply, BackendError> {
        let is_own = crate::lock(&self.identity)
            .instance
            .as_ref()
            .is_some_and(|it| holds(it, connection));
        if !is_own {
            self.open_instance()?;
            return Err(usage("a connection's id names the instance that opens it"));
        }
        // It counts as open even where the store cannot be reached: it will be stated again.
        let Some(_under_way) = self.table.open(connection) else {
            return Err(BackendError::UnknownConnection);
        };
        let open = self.open_instance()?;
        let at = Partition::of(connection.as_str());
        let keys = [
            self.keys.tombstone(at, &open.incarnation),
            self.keys.connections(at),
            self.keys.connection_index(at, &open.incarnation),
        ];
        let arguments = [
            open.incarnation.as_str(),
            connection.as_str(),
            text(metadata.as_ref()),
        ];
        let call = scripts::CONNECTION_OPEN.call(keys, arguments.map(str::as_bytes));
        self.send(&open.session, &call).await?;
        Ok(Reply::Done)
    }

    pub(super) async fn close_connection(
        self: &Arc<Self>,
        connection: &ConnectionId,
    ) -> Result<Reply, BackendError> {
        let Some(rooms) = self.table.close(connection).await else {
            self.open_instance()?;
            return Ok(Reply::Done);
        };
        let open = self.open_instance()?;
        let at = Partition::of(connection.as_str());
        let keys = [
            self.keys.tombstone(at, &open.incarnation),
            self.keys.connections(at),
            self.keys.connection_index(at, &open.incarnation),
            self.keys.foreign_document(connection),
        ];
        let mut calls =
            vec![scripts::CONNECTION_CLOSE.call(keys, [connection.as_str().as_bytes()])];
        let mut partitions = BTreeMap::<_, Vec<Name>>::new();
        for room in rooms {
            partitions
                .entry(Partition::of(&room))
                .or_default()
                .push(room);
        }
        for (at, rooms) in &partitions {
            for rooms in rooms.chunks(ENTRIES_PER_CALL) {
                calls.push(self.remove_members(&open, *at, connection, rooms));
            }
        }
        // All are sent, whatever comes of one of them.
        let sent = calls.iter().map(|call| self.send(&open.session, call));
        join_all(sent)
            .await
            .into_iter()
            .try_for_each(|result| result.map(drop))?;
        Ok(Reply::Done)
    }

    fn remove_members(
        &self,
        open: &Open,
        at: Partition,
        connection: &ConnectionId,
        rooms: &[Name],
    ) -> redis::Cmd {
        let keys = &self.keys;
        let mut names = vec![
            keys.tombstone(at, &open.incarnation),
            keys.member_index(at, &open.incarnation),
            keys.generations(at),
            keys.room_documents(at),
        ];
        for room in rooms {
            names.extend([keys.members(room), keys.foreign_leave(room, connection)]);
        }
        let first = std::iter::once(connection.as_str().as_bytes());
        let arguments = first.chain(rooms.iter().map(|room| room.as_bytes()));
        scripts::MEMBERS_REMOVE.call(names, arguments)
    }

    pub(super) async fn connections(self: &Arc<Self>) -> Result<Reply, BackendError> {
        let open = self.open_instance()?;
        let ids = self
            .all_fields(&open.session, |at| self.keys.connections(at))
            .await?;
        Ok(Reply::Connections(
            ids.into_iter().map(ConnectionId::new).collect(),
        ))
    }

    pub(super) async fn all_connection_metadata(self: &Arc<Self>) -> Result<Reply, BackendError> {
        let open = self.open_instance()?;
        let entries = self
            .all_entries(&open.session, |at| self.keys.connections(at))
            .await?;
        let read =
            |(id, stored): (String, String)| Some((ConnectionId::new(id), entry(&stored)?.json));
        Ok(Reply::ConnectionsMetadata(
            entries.into_iter().filter_map(read).collect(),
        ))
    }

    pub(super) async fn connection_metadata(
        self: &Arc<Self>,
        connection: &ConnectionId,
    ) -> Result<Reply, BackendError> {
        let open = self.open_instance()?;
        let mut cmd = redis::cmd("HGET");
        cmd.arg(self.keys.connections(Partition::of(connection.as_str())))
            .arg(connection.as_str());
        let reply = self.send(&open.session, &cmd).await?;
        let stored =
            decode::maybe_text(reply).map_err(|failure| self.failed(&open.session, failure))?;
        let document = stored.and_then(|stored| entry(&stored)).unwrap_or_default();
        Ok(Reply::Document(document))
    }

    pub(super) async fn set_connection_metadata(
        self: &Arc<Self>,
        connection: &ConnectionId,
        change: &MetadataChange,
    ) -> Result<Reply, BackendError> {
        let open = self.open_instance()?;
        let at = Partition::of(connection.as_str());
        let keys = [
            self.keys.tombstone(at, &open.incarnation),
            self.keys.connections(at),
            self.keys.foreign_document(connection),
        ];
        let (kind, document, except) = change_parts(change);
        let max = self.config.metadata_bytes_max;
        let longest = max.to_string();
        let mark = Mark::new(self, &open.instance, connection);
        let head = envelope::notice_head(&self.sender, false);
        let mut arguments = vec![
            connection.as_str().as_bytes(),
            kind,
            document.as_bytes(),
            longest.as_bytes(),
            mark.seconds,
            mark.topic.as_bytes(),
            &head,
        ];
        arguments.extend(except.iter().map(|key| key.as_bytes()));
        let reply = self
            .send(
                &open.session,
                &scripts::CONNECTION_CHANGE.call(keys, arguments),
            )
            .await?;
        let reply = decode::texts(reply).map_err(|failure| self.failed(&open.session, failure))?;
        match &*reply.iter().map(String::as_str).collect::<Vec<_>>() {
            ["none"] => Ok(Reply::Changed(None)),
            ["long", len] => Err(too_long(len, max)),
            [revision, text] => Ok(Reply::Changed(Some(Document {
                json: json(text),
                revision: revision.parse().unwrap_or_default(),
            }))),
            _ => Err(self.failed(&open.session, decode::unexpected())),
        }
    }
}

pub(super) fn too_long(len: &str, max: usize) -> BackendError {
    let len = len.parse().unwrap_or(usize::MAX);
    BackendError::TooLong { len, max }
}
