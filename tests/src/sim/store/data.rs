//! What is in the store of a simulated world, and what becomes of it when an instance dies, comes back and states again what it has.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use mesh_core::backend::{
    BackendError, ConnectionId, Document, InstanceId, Name, Op, Reply, Store,
};

/// A membership, as the store keeps it.
pub(super) type Member = (Name, ConnectionId);

/// What a failover may lose the end of.
#[derive(Clone, Default)]
pub(super) struct Data {
    pub(super) store: Store,
    pub(super) members: BTreeSet<Member>,
    /// Memberships that another instance ended, whose owner may not have heard of it.
    pub(super) removed: BTreeSet<Member>,
    /// The generation that each room's last clearing began.
    pub(super) cleared: BTreeMap<Name, u64>,
    /// What is kept for those who are away.
    pub(super) kept: BTreeMap<InstanceId, Vec<Bytes>>,
    pub(super) registered: BTreeMap<InstanceId, Registration>,
}

/// An instance, as the store knows it.
#[derive(Clone)]
pub(super) struct Registration {
    /// Its wire.
    pub(super) wire: u64,
    /// Written, or stated again, since it came back.
    pub(super) connections: BTreeSet<ConnectionId>,
    pub(super) members: BTreeSet<Member>,
}

impl Data {
    /// An instance is there, from now on by this wire. What it wrote before is from its life before.
    pub(super) fn register(&mut self, instance: &InstanceId, wire: u64) {
        let opened = Op::OpenInstance {
            instance: instance.clone(),
        };
        let _ = self.store.apply(instance, opened); // It may be open still.
        let registration = Registration {
            wire,
            connections: BTreeSet::new(),
            members: BTreeSet::new(),
        };
        self.registered.insert(instance.clone(), registration);
    }

    /// Takes an instance out, with all that it has; the memberships that are over.
    pub(super) fn reap(&mut self, instance: &InstanceId) -> Vec<Member> {
        self.registered.remove(instance);
        let _ = self.store.apply(instance, Op::CloseInstance);
        let theirs = |(_, id): &Member| id.instance().as_ref() == Some(instance);
        self.members
            .extract_if(.., |member| theirs(member))
            .collect()
    }

    /// The generation of a room: of its own last clearing, as Redis has it. The model, which loses nothing, has one count for all rooms.
    pub(super) fn generation(&self, room: &Name) -> u64 {
        self.cleared.get(room).copied().unwrap_or_default()
    }

    pub(super) fn apply(
        &mut self,
        instance: &InstanceId,
        op: Op,
        now: Duration,
    ) -> Result<Reply, BackendError> {
        match op {
            Op::Restore {
                connections,
                members,
            } => self.restore(instance, connections, members),
            Op::Settle { .. } => Ok(self.settle(instance)),
            op => {
                let mut reply = self.store.apply(instance, op.clone())?;
                match (&op, &mut reply) {
                    (Op::ClearRoom { room }, Reply::Cleared { generation }) => {
                        // By the time, so that it goes up even if the last one was lost.
                        let time = u64::try_from(now.as_micros()).unwrap_or(u64::MAX);
                        *generation = time.max(self.generation(room) + 1);
                        self.cleared.insert(Arc::clone(room), *generation);
                    }
                    (Op::JoinRoom { room, .. }, Reply::Joined { generation, .. }) => {
                        *generation = self.generation(room);
                    }
                    _ => {}
                }
                self.note(instance, op);
                Ok(reply)
            }
        }
    }

    /// Keeps up with what the store was told.
    fn note(&mut self, instance: &InstanceId, op: Op) {
        let registration = self.registered.get_mut(instance);
        match op {
            Op::OpenConnection { connection, .. } => {
                if let Some(registration) = registration {
                    registration.connections.insert(connection);
                }
            }
            Op::CloseConnection { connection } => {
                self.members.retain(|(_, id)| *id != connection);
            }
            Op::JoinRoom { room, connection } => {
                let member = (room, connection);
                self.removed.remove(&member);
                self.members.insert(member.clone());
                if let Some(registration) = registration {
                    registration.members.insert(member);
                }
            }
            Op::LeaveRoom { room, connection } => {
                let is_foreign = connection.instance().as_ref() != Some(instance);
                let member = (room, connection);
                self.members.remove(&member);
                if is_foreign {
                    self.removed.insert(member);
                }
            }
            Op::ClearRoom { room } => self.members.retain(|(name, _)| *name != room),
            Op::CloseInstance => drop(self.reap(instance)),
            _ => {}
        }
    }

    /// As [`Op::Restore`] tells: what is missing is written, what others ended is told.
    fn restore(
        &mut self,
        instance: &InstanceId,
        connections: Vec<(ConnectionId, Document)>,
        members: Vec<(Name, ConnectionId, u64)>,
    ) -> Result<Reply, BackendError> {
        let ids: Vec<_> = connections.iter().map(|(id, _)| id.clone()).collect();
        let restored = self.store.apply(
            instance,
            Op::Restore {
                connections,
                members: Vec::new(),
            },
        )?;
        let Reply::Restored { changed, mut ended } = restored else {
            return Ok(restored);
        };
        if let Some(registration) = self.registered.get_mut(instance) {
            registration.connections.extend(ids);
        }
        for (room, connection, stated) in members {
            let member = (room.clone(), connection.clone());
            let join = Op::JoinRoom {
                room: room.clone(),
                connection: connection.clone(),
            };
            // It may be stated before its connection, which then has more to say.
            let unknown = Op::Restore {
                connections: vec![(connection.clone(), Document::default())],
                members: Vec::new(),
            };
            self.store.apply(instance, unknown)?;
            let is_over = self.removed.contains(&member)
                || self.generation(&room) > stated
                || self.store.apply(instance, join).is_err();
            if is_over {
                let leave = Op::LeaveRoom { room, connection };
                let _ = self.store.apply(instance, leave);
                self.members.remove(&member);
                ended.push(member);
            } else {
                self.members.insert(member.clone());
                if let Some(registration) = self.registered.get_mut(instance) {
                    registration.members.insert(member);
                }
            }
        }
        Ok(Reply::Restored { changed, ended })
    }

    /// Whatever an instance wrote in its life before and did not state again is over.
    fn settle(&mut self, instance: &InstanceId) -> Reply {
        let Some(registration) = self.registered.get(instance).cloned() else {
            return Reply::Done;
        };
        let theirs = |id: &ConnectionId| id.instance().as_ref() == Some(instance);
        let over = |member: &Member| theirs(&member.1) && !registration.members.contains(member);
        for (room, connection) in self.members.extract_if(.., |member| over(member)) {
            let _ = self
                .store
                .apply(instance, Op::LeaveRoom { room, connection });
        }
        if let Ok(Reply::Connections(all)) = self.store.apply(instance, Op::Connections) {
            for connection in all {
                if theirs(&connection) && !registration.connections.contains(&connection) {
                    self.members.retain(|(_, id)| *id != connection);
                    let _ = self
                        .store
                        .apply(instance, Op::CloseConnection { connection });
                }
            }
        }
        Reply::Done
    }
}
