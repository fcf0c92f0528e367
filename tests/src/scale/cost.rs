//! What is counted where an instance meets its backend.

use std::collections::BTreeMap;

use mesh_core::backend::{
    ConnectionId, Document, Json, Name, Notice, Op, Record, RecordChangeKind, Reply, Topic,
};

/// A number, as bytes are counted.
const NUMBER: usize = size_of::<u64>();

/// A yes or no, as bytes are counted.
const FLAG: usize = 1;

/// Number and stamp of a version.
const VERSION: usize = 2 * NUMBER;

/// What something cost, all instances together. Instances are named by their place.
///
/// Bytes are those of names, ids, documents and messages as they travel, an event as [`Relay`](mesh_core::relay::Relay) encodes it, with
/// eight for a number and one for a flag. What a store's own protocol has around them is not counted.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Cost {
    /// How often each kind of operation was asked for.
    pub operations: BTreeMap<&'static str, u64>,
    /// How many operations each instance asked for.
    pub operations_of: BTreeMap<usize, u64>,
    /// How many commands `mesh-redis` would send for each instance.
    pub commands_of: BTreeMap<usize, u64>,
    /// Bytes that went to the store.
    pub sent: u64,
    /// Bytes that came from it: replies and messages.
    pub received: u64,
    /// Messages that the store handed to instances unasked.
    pub messages: u64,
    /// Events that instances handed to connections of theirs.
    pub events: u64,
}

impl Cost {
    /// All operations.
    pub fn operations(&self) -> u64 {
        self.operations.values().sum()
    }

    /// All commands.
    pub fn commands(&self) -> u64 {
        self.commands_of.values().sum()
    }

    pub(super) fn ask(&mut self, instance: usize, op: &Op) {
        let (name, bytes) = asked(op);
        *self.operations.entry(name).or_default() += 1;
        *self.operations_of.entry(instance).or_default() += 1;
        self.send(bytes);
    }

    pub(super) fn command(&mut self, instance: usize, commands: usize) {
        *self.commands_of.entry(instance).or_default() += commands as u64;
    }

    pub(super) fn send(&mut self, bytes: usize) {
        self.sent += bytes as u64;
    }

    pub(super) fn receive(&mut self, bytes: usize) {
        self.received += bytes as u64;
    }

    pub(super) fn answer(&mut self, reply: &Reply) {
        self.receive(answered(reply));
    }

    pub(super) fn tell(&mut self, notice: &Notice) {
        self.messages += 1;
        self.receive(told(notice));
    }

    pub(super) fn deliver(&mut self, connections: usize) {
        self.events += connections as u64;
    }
}

/// The name of an operation, and the bytes that it takes to the store.
fn asked(op: &Op) -> (&'static str, usize) {
    match op {
        Op::ClearRoom { room } => ("ClearRoom", room.len()),
        Op::CloseConnection { connection } => ("CloseConnection", id(connection)),
        Op::ForgetMembers { room, connections } => (
            "ForgetMembers",
            room.len() + connections.iter().map(id).sum::<usize>(),
        ),
        Op::JoinRoom { room, connection } => ("JoinRoom", room.len() + id(connection)),
        Op::LeaveRoom { room, connection } => ("LeaveRoom", room.len() + id(connection)),
        Op::OpenConnection {
            connection,
            metadata,
        } => ("OpenConnection", id(connection) + json(metadata.as_ref())),
        Op::Publish { topic, message } => ("Publish", name_of(topic) + message.len()),
        Op::PublishChannel {
            channel, message, ..
        } => ("PublishChannel", channel.len() + message.len() + NUMBER),
        Op::PublishRecord {
            record, updates, ..
        } => {
            let update = updates
                .iter()
                .map(|it| NUMBER + it.value.len() + json(it.patch.as_ref()));
            (
                "PublishRecord",
                record.len() + VERSION + update.sum::<usize>(),
            )
        }
        Op::Record { record } => ("Record", record.len()),
        Op::RecordVersions { records } => {
            ("RecordVersions", records.iter().map(|it| it.len()).sum())
        }
        Op::Restore {
            connections,
            members,
        } => (
            "Restore",
            connections.iter().map(stated).sum::<usize>()
                + members
                    .iter()
                    .map(|(room, of, _)| room.len() + id(of) + NUMBER)
                    .sum::<usize>(),
        ),
        Op::Settle { .. } => ("Settle", NUMBER),
        Op::Subscribe { topics } => ("Subscribe", topics.iter().map(name_of).sum()),
        Op::Unsubscribe { topics } => ("Unsubscribe", topics.iter().map(name_of).sum()),
        other => panic!("nobody here asks for {other:?}"),
    }
}

/// The bytes of an answer.
fn answered(reply: &Reply) -> usize {
    match reply {
        Reply::Cleared { .. } | Reply::Published { .. } => NUMBER,
        Reply::Done => 0,
        Reply::Flag(_) => FLAG,
        Reply::Joined { .. } => FLAG + NUMBER,
        Reply::Record(Record { value, .. }) => VERSION + json(value.as_ref()),
        Reply::RecordVersions(versions) => VERSION * versions.len(),
        Reply::Restored { changed, ended } => {
            changed.iter().map(stated).sum::<usize>() + memberships(ended)
        }
        other => panic!("nobody here is answered {other:?}"),
    }
}

/// The bytes of what an instance is told unasked.
fn told(notice: &Notice) -> usize {
    match notice {
        Notice::Message { topic, message } => name_of(topic) + message.len(),
        Notice::RecordChanged {
            record, changes, ..
        } => {
            let changes = changes.iter().map(|change| {
                NUMBER
                    + match &change.kind {
                        RecordChangeKind::Full(json) | RecordChangeKind::Patch(json) => json.len(),
                        _ => 0,
                    }
            });
            record.len() + VERSION + changes.sum::<usize>()
        }
        Notice::RoomCleared { room, .. } => room.len() + NUMBER,
        other => panic!("nobody here is told {other:?}"),
    }
}

/// The bytes of memberships.
pub(super) fn memberships(members: &[(Name, ConnectionId)]) -> usize {
    members.iter().map(|(room, of)| room.len() + id(of)).sum()
}

fn stated((connection, document): &(ConnectionId, Document)) -> usize {
    id(connection) + json(document.json.as_ref()) + NUMBER
}

fn id(connection: &ConnectionId) -> usize {
    connection.as_str().len()
}

fn json(json: Option<&Json>) -> usize {
    json.map_or(0, |json| json.len())
}

/// The bytes of what names a topic.
pub(super) fn name_of(topic: &Topic) -> usize {
    match topic {
        Topic::Channel(name) | Topic::Record(name) | Topic::Room(name) => name.len(),
        Topic::Instance(instance) => instance.as_str().len(),
        _ => 0,
    }
}
