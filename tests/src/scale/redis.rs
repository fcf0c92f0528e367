//! How many commands `mesh-redis` sends for what an instance asks, as its documentation tells, on a Redis that is no cluster. A script is one.

use std::collections::BTreeMap;

use mesh_core::backend::{ConnectionId, Name, Op};

/// Partitions of the key space. They are a part of its format, as what lives in which is.
const PARTITIONS: usize = 128;

/// How many entries of one partition a script takes, and how many topics a command.
const BATCH: usize = 512;

/// How many entries a page of an index has.
const PAGE: usize = 1_000;

/// The partition of a room, connection or record.
pub fn partition(name: &str) -> u64 {
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    (hash ^ (hash >> 32)) % PARTITIONS as u64
}

/// How many of these names each partition has, where it has any.
fn partitions<'a>(names: impl Iterator<Item = &'a str>) -> BTreeMap<u64, usize> {
    let mut partitions = BTreeMap::new();
    for name in names {
        *partitions.entry(partition(name)).or_default() += 1;
    }
    partitions
}

/// One script for up to 512 entries of a partition.
fn batched<'a>(names: impl Iterator<Item = &'a str>) -> usize {
    let partitions = partitions(names);
    partitions.values().map(|many| many.div_ceil(BATCH)).sum()
}

/// The commands of an operation; those of [`Op::CloseConnection`] without the [rooms](rooms_left) that the connection is in.
///
/// # Panics
/// Where nothing here asks for it.
pub fn commands(op: &Op) -> usize {
    match op {
        Op::ClearRoom { .. }
        | Op::CloseConnection { .. }
        | Op::JoinRoom { .. }
        | Op::LeaveRoom { .. }
        | Op::OpenConnection { .. }
        | Op::Publish { .. }
        | Op::PublishChannel { .. }
        | Op::PublishRecord { .. }
        | Op::Record { .. } => 1,
        Op::ForgetMembers { connections, .. } => connections.len().div_ceil(BATCH),
        Op::RecordVersions { records } => batched(records.iter().map(|it| &**it)),
        Op::Restore {
            connections,
            members,
        } => {
            batched(connections.iter().map(|(id, _)| id.as_str()))
                + batched(members.iter().map(|(room, ..)| &**room))
        }
        // What it finds are the traces of operations under way: nothing, where there were none.
        Op::Settle { .. } => cleaning_up(&[], &[]),
        Op::Subscribe { topics } | Op::Unsubscribe { topics } => topics.len().div_ceil(BATCH),
        other => panic!("nobody here asks for {other:?}"),
    }
}

/// What the end of a connection costs for the rooms that it is in.
pub fn rooms_left(rooms: &[Name]) -> usize {
    batched(rooms.iter().map(|room| &**room))
}

/// What it costs to clean up behind an incarnation that had these: the indexes of each partition are read, what they name is removed, and
/// where there was anything they are read once more.
///
/// A page of a large index is only about a thousand entries: there it is a little more.
pub fn cleaning_up(members: &[(Name, ConnectionId)], connections: &[ConnectionId]) -> usize {
    let members = partitions(members.iter().map(|(room, _)| &**room));
    let connections = partitions(connections.iter().map(ConnectionId::as_str));
    let read = 2 * PARTITIONS;
    let removed = members.values().chain(connections.values());
    let let_go = 1;
    read + removed.map(|many| 2 * many.div_ceil(PAGE)).sum::<usize>() + let_go
}

/// What an instance that is dead costs the one that cleans up: all its partitions are entombed before.
pub fn reaping(members: &[(Name, ConnectionId)], connections: &[ConnectionId]) -> usize {
    PARTITIONS + cleaning_up(members, connections)
}

/// In how many pages it is told which memberships ended.
pub fn pages(members: &[(Name, ConnectionId)]) -> usize {
    let members = partitions(members.iter().map(|(room, _)| &**room));
    members.values().map(|many| many.div_ceil(PAGE)).sum()
}

/// What it costs to register anew after an outage, with so many topics: the incarnation before is entombed.
pub fn registering(topics: usize) -> usize {
    1 + PARTITIONS + topics.div_ceil(BATCH)
}
