//! A backend in the fewest lines: what it holds, and what an operation does to it.

use std::collections::{BTreeMap, BTreeSet};

use crate::backend::{
    BackendError, ConnectionId, Document, Json, MetadataChange, Name, Op, Reply, Topic,
};

type Member = (Name, ConnectionId);

#[derive(Debug, Default)]
pub(super) struct Store {
    pub(super) connections: BTreeMap<ConnectionId, Document>,
    pub(super) members: BTreeSet<Member>,
    pub(super) topics: BTreeSet<Topic>,
    generations: BTreeMap<Name, u64>,
    clearings: u64,
    /// Memberships that another instance ended.
    removed: BTreeSet<Member>,
    /// Connections whose end was asked for: even if that fails, a backend knows of its own that they are over.
    pub(super) closed: BTreeSet<ConnectionId>,
    /// What was written before the shard was told that the store is back, and not stated again since.
    stale_connections: BTreeSet<ConnectionId>,
    stale_members: BTreeSet<Member>,
}

impl Store {
    pub(super) fn execute(&mut self, op: &Op) -> Result<Reply, BackendError> {
        Ok(match op {
            Op::ClearRoom { room } => {
                let generation = self.clear(room);
                Reply::Cleared { generation }
            }
            Op::CloseConnection { connection } => {
                self.connections.remove(connection);
                self.members.retain(|(_, member)| member != connection);
                Reply::Done
            }
            // It has no notes.
            Op::ForgetMembers { .. } => Reply::Done,
            Op::IsInRoom { room, connection } => {
                Reply::Flag(self.members.contains(&(room.clone(), connection.clone())))
            }
            Op::History { limit, .. } => {
                let newest = (0..*limit).map(|number| number.to_string().into());
                Reply::History(newest.collect())
            }
            Op::JoinRoom { room, connection } => {
                if !self.connections.contains_key(connection) || self.closed.contains(connection) {
                    return Err(BackendError::UnknownConnection);
                }
                let member = (room.clone(), connection.clone());
                self.removed.remove(&member);
                self.stale_members.remove(&member);
                Reply::Joined {
                    new: self.members.insert(member),
                    generation: self.generation(room),
                }
            }
            Op::LeaveRoom { room, connection } => {
                Reply::Flag(self.members.remove(&(room.clone(), connection.clone())))
            }
            Op::OpenConnection {
                connection,
                metadata,
            } => {
                let document = Document {
                    json: metadata.clone(),
                    revision: 1,
                };
                self.connections.insert(connection.clone(), document);
                Reply::Done
            }
            Op::Restore {
                connections,
                members,
            } => self.restore(connections, members),
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

    /// Empties a room and tells its new generation.
    pub(super) fn clear(&mut self, room: &Name) -> u64 {
        self.members.retain(|(name, _)| name != room);
        self.clearings += 1;
        self.generations.insert(room.clone(), self.clearings);
        self.clearings
    }

    /// Another instance ends a membership.
    pub(super) fn remove(&mut self, room: &Name, id: &ConnectionId) {
        let member = (room.clone(), id.clone());
        self.members.remove(&member);
        self.removed.insert(member);
    }

    /// The store is back, without its data if they are lost.
    pub(super) fn come_back(&mut self, lost: bool) {
        if lost {
            self.connections.clear();
            self.members.clear();
            self.generations.clear();
            self.removed.clear();
        }
        self.stale_connections = self.connections.keys().cloned().collect();
        self.stale_members = self.members.clone();
    }

    /// Forgets what was not stated again.
    pub(super) fn settle(&mut self) {
        for id in std::mem::take(&mut self.stale_connections) {
            self.connections.remove(&id);
        }
        for member in std::mem::take(&mut self.stale_members) {
            self.members.remove(&member);
        }
    }

    fn restore(
        &mut self,
        connections: &[(ConnectionId, Document)],
        members: &[(Name, ConnectionId, u64)],
    ) -> Reply {
        let (mut changed, mut ended) = (Vec::new(), Vec::new());
        for (id, document) in connections {
            self.stale_connections.remove(id);
            let stored = self.connections.entry(id.clone()).or_default();
            if stored.revision > document.revision {
                changed.push((id.clone(), stored.clone()));
            } else {
                *stored = document.clone();
            }
        }
        for (room, id, generation) in members {
            let member = (room.clone(), id.clone());
            if self.generation(room) > *generation || self.removed.contains(&member) {
                ended.push(member);
            } else {
                self.stale_members.remove(&member);
                self.members.insert(member);
            }
        }
        Reply::Restored { changed, ended }
    }

    fn generation(&self, room: &Name) -> u64 {
        self.generations.get(room).copied().unwrap_or_default()
    }

    pub(super) fn members_of(&self, room: &Name) -> Vec<ConnectionId> {
        let members = self.members.iter().filter(|(name, _)| name == room);
        members.map(|(_, member)| member.clone()).collect()
    }

    /// What is stored after it; `None` where the connection is unknown.
    pub(super) fn set(&mut self, id: &ConnectionId, json: &Json) -> Option<Document> {
        let stored = self.connections.get_mut(id)?;
        stored.json = Some(json.clone()).filter(|json| &**json != "null");
        stored.revision += 1;
        Some(stored.clone())
    }
}
