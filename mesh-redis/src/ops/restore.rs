//! Stating again what an instance holds.

use std::{collections::BTreeMap, sync::Arc};

use futures_util::future::try_join_all;
use mesh_core::backend::{BackendError, ConnectionId, Document, Name, Reply};

use super::{ENTRIES_PER_CALL, holds, json, text};
use crate::{
    connection::Failure,
    decode,
    keys::Partition,
    scripts,
    shared::{Open, Shared, usage},
    table::RestoredMembers,
};

type Stated = (ConnectionId, Document);
type Member = (Name, ConnectionId, u64);

impl Shared {
    pub(super) async fn restore(
        self: &Arc<Self>,
        connections: Vec<Stated>,
        members: Vec<Member>,
    ) -> Result<Reply, BackendError> {
        let open = self.open_instance()?;
        let stated = connections.iter().map(|(id, _)| id);
        if !stated
            .chain(members.iter().map(|(_, id, _)| id))
            .all(|id| holds(&open.instance, id))
        {
            return Err(usage("an instance restores its own connections"));
        }
        let (_connections, connections) = self.table.restore(connections);
        let RestoredMembers {
            under_way: _members,
            open: members,
            gone: mut ended,
        } = self.table.restore_members(members);

        let mut partitions = BTreeMap::<_, (Vec<Stated>, Vec<Member>)>::new();
        for stated in connections {
            partitions
                .entry(Partition::of(stated.0.as_str()))
                .or_default()
                .0
                .push(stated);
        }
        for member in members {
            partitions
                .entry(Partition::of(&member.0))
                .or_default()
                .1
                .push(member);
        }
        let (mut first, mut second) = (Vec::new(), Vec::new());
        for (at, (connections, members)) in &partitions {
            for part in connections.chunks(ENTRIES_PER_CALL) {
                first.push(self.restore_connections(&open, *at, part));
            }
            for part in members.chunks(ENTRIES_PER_CALL) {
                second.push(self.restore_members(&open, *at, part));
            }
        }
        let work = futures_util::future::try_join(try_join_all(first), try_join_all(second));
        let (changed, over) = work.await?;
        ended.extend(over.into_iter().flatten());
        for (room, connection) in &ended {
            self.table.leave(connection, room);
        }
        Ok(Reply::Restored {
            changed: changed.into_iter().flatten().collect(),
            ended,
        })
    }

    async fn restore_connections(
        &self,
        open: &Open,
        at: Partition,
        part: &[Stated],
    ) -> Result<Vec<Stated>, BackendError> {
        let mut keys = vec![
            self.keys.tombstone(at, &open.incarnation),
            self.keys.connections(at),
            self.keys.connection_index(at, &open.incarnation),
        ];
        keys.extend(part.iter().map(|(id, _)| self.keys.foreign_document(id)));
        let revisions: Vec<_> = part.iter().map(|(_, it)| it.revision.to_string()).collect();
        let mut arguments = vec![open.incarnation.as_str().as_bytes()];
        for ((id, document), revision) in part.iter().zip(&revisions) {
            let document = text(document.json.as_ref());
            arguments.extend([id.as_str(), revision, document].map(str::as_bytes));
        }
        let call = scripts::CONNECTIONS_RESTORE.call(keys, arguments);
        let reply = self.send(&open.session, &call).await?;
        let read = || -> Result<Vec<_>, Failure> {
            let texts = decode::texts(reply)?;
            let (triples, []) = texts.as_chunks::<3>() else {
                return Err(decode::unexpected());
            };
            triples
                .iter()
                .map(|[id, revision, text]| {
                    let revision = revision.parse().map_err(|_| decode::unexpected())?;
                    Ok((
                        ConnectionId::new(id.as_str()),
                        Document {
                            json: json(text),
                            revision,
                        },
                    ))
                })
                .collect()
        };
        read().map_err(|failure| self.failed(&open.session, failure))
    }

    async fn restore_members(
        &self,
        open: &Open,
        at: Partition,
        part: &[Member],
    ) -> Result<Vec<(Name, ConnectionId)>, BackendError> {
        let mut keys = vec![
            self.keys.tombstone(at, &open.incarnation),
            self.keys.generations(at),
            self.keys.member_index(at, &open.incarnation),
        ];
        let generations: Vec<_> = part
            .iter()
            .map(|(_, _, number)| number.to_string())
            .collect();
        let mut arguments = vec![open.incarnation.as_str().as_bytes()];
        for ((room, id, _), generation) in part.iter().zip(&generations) {
            keys.push(self.keys.members(room));
            keys.push(self.keys.cleared(room));
            keys.push(self.keys.foreign_leave(room, id));
            arguments.extend([room, id.as_str(), generation].map(str::as_bytes));
        }
        let call = scripts::MEMBERS_RESTORE.call(keys, arguments);
        let reply = self.send(&open.session, &call).await?;
        let read = || -> Result<Vec<_>, Failure> {
            let positions = decode::list(reply)?;
            positions
                .iter()
                .map(|position| {
                    let position = usize::try_from(decode::integer(position)?).ok();
                    let member = position.and_then(|position| part.get(position));
                    let (room, id, _) = member.ok_or_else(decode::unexpected)?;
                    Ok((room.clone(), id.clone()))
                })
                .collect()
        };
        read().map_err(|failure| self.failed(&open.session, failure))
    }
}
