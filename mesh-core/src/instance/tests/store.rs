//! A backend in the fewest lines: what it holds, and what an operation does to it.

use std::collections::{BTreeMap, BTreeSet};

use crate::backend::{BackendError, ConnectionId, Json, MetadataChange, Name, Op, Reply, Topic};

#[derive(Debug, Default)]
pub(super) struct Store {
    pub(super) connections: BTreeMap<ConnectionId, Option<Json>>,
    pub(super) members: BTreeSet<(Name, ConnectionId)>,
    pub(super) topics: BTreeSet<Topic>,
}

impl Store {
    pub(super) fn execute(&mut self, op: &Op) -> Result<Reply, BackendError> {
        Ok(match op {
            Op::ClearRoom { room } => {
                self.clear(room);
                Reply::Done
            }
            Op::CloseConnection { connection } => {
                self.connections.remove(connection);
                self.members.retain(|(_, member)| member != connection);
                Reply::Done
            }
            Op::ConnectionMetadata { connection } => {
                Reply::Metadata(self.connections.get(connection).cloned().flatten())
            }
            Op::History { limit, .. } => {
                let newest = (0..*limit).map(|number| number.to_string().into());
                Reply::History(newest.collect())
            }
            Op::JoinRoom { room, connection } => {
                if !self.connections.contains_key(connection) {
                    return Err(BackendError::UnknownConnection);
                }
                Reply::Flag(self.members.insert((room.clone(), connection.clone())))
            }
            Op::LeaveRoom { room, connection } => {
                Reply::Flag(self.members.remove(&(room.clone(), connection.clone())))
            }
            Op::OpenConnection {
                connection,
                metadata,
            } => {
                self.connections
                    .insert(connection.clone(), metadata.clone());
                Reply::Done
            }
            Op::RoomMembers { room } => Reply::Connections(self.members_of(room)),
            Op::SetConnectionMetadata { connection, change } => {
                let MetadataChange::Replace(json) = change else {
                    panic!("{change:?}");
                };
                Reply::Changed(self.set(connection, json))
            }
            Op::Subscribe { topics } => {
                self.topics.extend(topics.iter().cloned());
                Reply::Done
            }
            Op::Unsubscribe { topics } => {
                for topic in topics {
                    self.topics.remove(topic);
                }
                Reply::Done
            }
            op => panic!("{op:?}"),
        })
    }

    pub(super) fn clear(&mut self, room: &Name) {
        self.members.retain(|(name, _)| name != room);
    }

    pub(super) fn members_of(&self, room: &Name) -> Vec<ConnectionId> {
        let members = self.members.iter().filter(|(name, _)| name == room);
        members.map(|(_, member)| member.clone()).collect()
    }

    /// What is stored after it, `null` included; `None` where the connection is unknown.
    pub(super) fn set(&mut self, id: &ConnectionId, json: &Json) -> Option<Json> {
        let stored = self.connections.get_mut(id)?;
        *stored = Some(json.clone()).filter(|json| &**json != "null");
        Some(json.clone())
    }
}
