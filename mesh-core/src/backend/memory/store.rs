//! The shared state itself, as a plain value.

use std::collections::{BTreeMap, BTreeSet, VecDeque, btree_map::Entry};

use bytes::Bytes;

use super::{
    super::{
        BackendError, ConnectionId, Document, InstanceId, Json, MetadataChange, Name, Notice, Op,
        Reply, Topic,
    },
    merge::{is_null, merge, replace_except},
    records::Records,
    usage,
};
use crate::protocol::Limits;

/// What a cluster shares: operations go in, replies and notices come out.
///
/// It has no lock and no waiting, and equal operations give equal answers, so that it can be the model that other
/// backends are compared with. Every list in a reply is sorted.
///
/// It holds what it is told to hold: connections, rooms and names are bounded by the servers' own
/// [limits](crate::protocol::Limits), a channel's history by the number that each [`Op::PublishChannel`] names.
///
/// ```
/// use mesh_core::backend::{Notice, Op, Store, Topic};
///
/// let (one, two) = ("one".into(), "two".into());
/// let mut store = Store::new();
/// store.apply(&one, Op::OpenInstance { instance: one.clone() })?;
/// store.apply(&two, Op::OpenInstance { instance: two.clone() })?;
/// store.apply(&one, Op::Subscribe { topics: vec![Topic::All] })?;
///
/// store.apply(&two, Op::Publish { topic: Topic::All, message: "hi".into() })?;
/// let notice = Notice::Message { topic: Topic::All, message: "hi".into() };
/// assert_eq!(store.poll_notice(), Some((one, notice)));
/// # Ok::<(), mesh_core::backend::BackendError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Store {
    metadata_bytes_max: usize,
    /// The open instances, with the topics that each has taken: the reverse of `subscribers`.
    instances: BTreeMap<InstanceId, BTreeSet<Topic>>,
    subscribers: BTreeMap<Topic, BTreeSet<InstanceId>>,
    connections: BTreeMap<ConnectionId, Connection>,
    rooms: BTreeMap<Name, Room>,
    records: Records,
    /// Newest first; no entry is empty.
    histories: BTreeMap<Name, VecDeque<Bytes>>,
    notices: VecDeque<(InstanceId, Notice)>,
    /// How often rooms were cleared, all together.
    clearings: u64,
}

#[derive(Clone, Debug)]
struct Connection {
    document: Document,
    /// The reverse of `Room::members`.
    rooms: BTreeSet<Name>,
}

/// Has a member or metadata, or is not in the table.
#[derive(Clone, Debug, Default)]
struct Room {
    /// The number of the last clearing of any room when this one came to be: behind its own last one, and ahead of its next.
    generation: u64,
    members: BTreeSet<ConnectionId>,
    metadata: Option<Json>,
}

impl Default for Store {
    fn default() -> Self {
        Self::new()
    }
}

impl Store {
    /// An empty store, with the default limit for metadata.
    pub fn new() -> Self {
        Self::with_metadata_bytes_max(Limits::default().metadata_bytes_max)
    }

    /// An empty store, in which no change key by key makes a metadata document longer than this, in bytes.
    pub fn with_metadata_bytes_max(bytes: usize) -> Self {
        Self {
            metadata_bytes_max: bytes,
            instances: BTreeMap::new(),
            subscribers: BTreeMap::new(),
            connections: BTreeMap::new(),
            rooms: BTreeMap::new(),
            records: Records::default(),
            histories: BTreeMap::new(),
            notices: VecDeque::new(),
            clearings: 0,
        }
    }

    /// Carries out an operation of `instance`.
    ///
    /// # Errors
    /// [`BackendError::Usage`] for an operation that the instance may not ask for now,
    /// [`BackendError::UnknownConnection`] and [`BackendError::TooLong`] as [`Op`] tells. Nothing is changed then.
    pub fn apply(&mut self, instance: &InstanceId, op: Op) -> Result<Reply, BackendError> {
        if let Op::OpenInstance { instance: named } = op {
            return self.open_instance(instance, named);
        }
        if !self.instances.contains_key(instance) {
            return Err(usage("the instance is not open"));
        }
        Ok(match op {
            Op::AllConnectionMetadata => Reply::ConnectionsMetadata(
                self.connections
                    .iter()
                    .map(|(id, connection)| (id.clone(), connection.document.json.clone()))
                    .collect(),
            ),
            Op::AllRoomMetadata => Reply::RoomsMetadata(
                self.rooms
                    .iter()
                    .filter_map(|(name, room)| Some((name.clone(), room.metadata.clone()?)))
                    .collect(),
            ),
            Op::ClearRoom { room } => self.clear_room(instance, &room),
            Op::CloseConnection { connection } => {
                if holds(instance, &connection) {
                    self.close_connection(&connection);
                }
                Reply::Done
            }
            Op::CloseInstance => self.close_instance(instance),
            Op::DeleteRecord { record, stamp, now } => {
                let deleted = self.records.delete(record, stamp, now);
                self.tell_of_record(deleted)
            }
            Op::ConnectionMetadata { connection } => Reply::Document(
                self.connections
                    .get(&connection)
                    .map(|it| it.document.clone())
                    .unwrap_or_default(),
            ),
            Op::Connections => Reply::Connections(self.connections.keys().cloned().collect()),
            // There are none but the memberships themselves.
            Op::ForgetMembers { .. } => Reply::Done,
            Op::History {
                channel,
                limit,
                bytes_max,
            } => {
                let history = self.histories.get(&channel);
                let newest = || history.into_iter().flatten().take(limit);
                if newest().map(Bytes::len).sum::<usize>() > bytes_max {
                    return Err(BackendError::ReplyTooLong { max: bytes_max });
                }
                Reply::History(newest().cloned().collect())
            }
            Op::IsInRoom { room, connection } => Reply::Flag(
                self.connections
                    .get(&connection)
                    .is_some_and(|it| it.rooms.contains(&room)),
            ),
            // Who is gone from here does not come back.
            Op::KeepFor { instance, .. } => Reply::Flag(!self.instances.contains_key(&instance)),
            Op::JoinRoom { room, connection } => self.join_room(instance, room, connection)?,
            Op::LeaveRoom { room, connection } => self.leave_room(instance, room, connection),
            Op::OpenConnection {
                connection,
                metadata,
            } => self.open_connection(instance, connection, metadata)?,
            Op::OpenInstance { .. } => return Err(usage("handled above")),
            Op::Publish {
                topic: Topic::Channel(_) | Topic::Record(_),
                ..
            } => {
                return Err(usage(
                    "channels and records are published by operations of their own",
                ));
            }
            Op::Publish { topic, message } => {
                self.publish(Some(instance), &topic, message);
                Reply::Done
            }
            Op::PublishChannel {
                channel,
                message,
                history,
            } => self.publish_channel(channel, message, history),
            Op::PublishRecord { updates, .. } if updates.is_empty() => {
                return Err(usage("there is nothing to publish"));
            }
            Op::PublishRecord {
                record,
                base,
                updates,
                now,
            } => {
                let published = self.records.publish(record, base, updates, now);
                self.tell_of_record(published)
            }
            Op::PurgeDeleted { older_than, now } => {
                Reply::Count(self.records.purge(older_than, now))
            }
            Op::Record { record } => Reply::Record(self.records.record(&record)),
            Op::RecordVersions { records } => {
                let versions = records.iter().map(|record| self.records.version(record));
                Reply::RecordVersions(versions.collect())
            }
            Op::Restore {
                connections,
                members,
            } => self.restore(instance, connections, members)?,
            Op::RoomMembers { room } => Reply::Connections(self.members(&room).cloned().collect()),
            Op::RoomMembersMetadata { room } => Reply::ConnectionsMetadata(
                self.members(&room)
                    .map(|id| (id.clone(), self.metadata(id)))
                    .collect(),
            ),
            Op::RoomMetadata { room } => {
                Reply::Metadata(self.rooms.get(&room).and_then(|room| room.metadata.clone()))
            }
            Op::SetConnectionMetadata { connection, change } => {
                self.set_connection_metadata(instance, &connection, change)?
            }
            Op::SetRoomMetadata { room, change } => self.set_room_metadata(room, change)?,
            // Nothing is lost in memory, so nothing is left over.
            Op::Settle { .. } => Reply::Done,
            Op::Subscribe { topics } => self.subscribe(instance, topics),
            Op::Unsubscribe { topics } => self.unsubscribe(instance, &topics),
        })
    }

    /// The next notice and who gets it, in the order of publishing. Drain it after every [`apply`](Self::apply).
    pub fn poll_notice(&mut self) -> Option<(InstanceId, Notice)> {
        self.notices.pop_front()
    }

    fn open_instance(
        &mut self,
        instance: &InstanceId,
        named: InstanceId,
    ) -> Result<Reply, BackendError> {
        if *instance != named {
            return Err(usage("the instance is another's"));
        }
        if named.as_str().is_empty() || named.as_str().contains('.') {
            return Err(usage("an instance's id is not empty and has no dot"));
        }
        match self.instances.entry(named) {
            Entry::Occupied(_) => Err(usage("the instance is open already")),
            Entry::Vacant(entry) => {
                entry.insert(BTreeSet::new());
                Ok(Reply::Done)
            }
        }
    }

    fn close_instance(&mut self, instance: &InstanceId) -> Reply {
        // An id begins with its instance, so they stand together.
        let first = ConnectionId::new(format!("{instance}."));
        let connections: Vec<_> = self
            .connections
            .range(first..)
            .map(|(id, _)| id.clone())
            .take_while(|id| holds(instance, id))
            .collect();
        for connection in &connections {
            self.close_connection(connection);
        }
        for topic in self.instances.remove(instance).unwrap_or_default() {
            self.remove_subscriber(instance, &topic);
        }
        Reply::Done
    }

    fn open_connection(
        &mut self,
        instance: &InstanceId,
        connection: ConnectionId,
        metadata: Option<Json>,
    ) -> Result<Reply, BackendError> {
        if !holds(instance, &connection) {
            return Err(usage("a connection's id names the instance that opens it"));
        }
        self.connections
            .entry(connection)
            .or_insert_with(|| Connection {
                document: Document {
                    json: metadata.filter(|json| !is_null(json)),
                    revision: 1,
                },
                rooms: BTreeSet::new(),
            });
        Ok(Reply::Done)
    }

    /// What is stated and missing is written, what is known better is told.
    fn restore(
        &mut self,
        instance: &InstanceId,
        connections: Vec<(ConnectionId, Document)>,
        members: Vec<(Name, ConnectionId, u64)>,
    ) -> Result<Reply, BackendError> {
        let stated = connections.iter().map(|(id, _)| id);
        if !stated
            .chain(members.iter().map(|(_, id, _)| id))
            .all(|id| holds(instance, id))
        {
            return Err(usage("an instance restores its own connections"));
        }
        let (mut changed, mut ended) = (Vec::new(), Vec::new());
        for (id, document) in connections {
            match self.connections.entry(id) {
                Entry::Vacant(entry) => {
                    entry.insert(Connection {
                        document,
                        rooms: BTreeSet::new(),
                    });
                }
                Entry::Occupied(mut entry) => {
                    let stored = &mut entry.get_mut().document;
                    if stored.revision < document.revision {
                        *stored = document;
                        continue;
                    }
                    let differs = stored.json != document.json;
                    if stored.revision == document.revision && differs {
                        stored.revision += 1;
                    }
                    if stored.revision > document.revision {
                        changed.push((entry.key().clone(), entry.get().document.clone()));
                    }
                }
            }
        }
        for (room, id, generation) in members {
            // In memory nothing is lost, so a membership that is not there was ended.
            let is_member = self
                .rooms
                .get(&room)
                .is_some_and(|it| it.generation <= generation && it.members.contains(&id));
            if !is_member {
                ended.push((room, id));
            }
        }
        Ok(Reply::Restored { changed, ended })
    }

    fn close_connection(&mut self, connection: &ConnectionId) {
        let Some(Connection { rooms, .. }) = self.connections.remove(connection) else {
            return;
        };
        for room in rooms {
            self.remove_member(&room, connection);
        }
    }

    fn join_room(
        &mut self,
        instance: &InstanceId,
        room: Name,
        connection: ConnectionId,
    ) -> Result<Reply, BackendError> {
        let known = self
            .connections
            .get_mut(&connection)
            .filter(|_| holds(instance, &connection));
        let known = known.ok_or(BackendError::UnknownConnection)?;
        let new = known.rooms.insert(room.clone());
        let room = self.room_entry(room);
        room.members.insert(connection);
        let generation = room.generation;
        Ok(Reply::Joined { new, generation })
    }

    fn leave_room(&mut self, by: &InstanceId, room: Name, connection: ConnectionId) -> Reply {
        let left = self
            .connections
            .get_mut(&connection)
            .is_some_and(|it| it.rooms.remove(&room));
        if left {
            self.remove_member(&room, &connection);
            let id = connection.clone();
            self.tell_owner(by, &id, &Notice::MemberRemoved { room, connection });
        }
        Reply::Flag(left)
    }

    fn clear_room(&mut self, by: &InstanceId, room: &Name) -> Reply {
        for member in self.rooms.remove(room).unwrap_or_default().members {
            if let Some(connection) = self.connections.get_mut(&member) {
                connection.rooms.remove(room);
            }
        }
        self.clearings += 1;
        let generation = self.clearings;
        let room = room.clone();
        let notice = Notice::RoomCleared {
            room: room.clone(),
            generation,
        };
        self.tell(Some(by), &Topic::Room(room), &notice);
        Reply::Cleared { generation }
    }

    /// The room, which comes to be if it is none yet.
    fn room_entry(&mut self, name: Name) -> &mut Room {
        let generation = self.clearings;
        self.rooms.entry(name).or_insert_with(|| Room {
            generation,
            ..Room::default()
        })
    }

    /// Ends one half of a membership: the room's.
    fn remove_member(&mut self, name: &Name, connection: &ConnectionId) {
        if let Some(room) = self.rooms.get_mut(name) {
            room.members.remove(connection);
            if room.members.is_empty() && room.metadata.is_none() {
                self.rooms.remove(name);
            }
        }
    }

    fn members(&self, room: &Name) -> impl Iterator<Item = &ConnectionId> {
        self.rooms
            .get(room)
            .into_iter()
            .flat_map(|room| &room.members)
    }

    fn metadata(&self, connection: &ConnectionId) -> Option<Json> {
        self.connections.get(connection)?.document.json.clone()
    }

    fn set_connection_metadata(
        &mut self,
        by: &InstanceId,
        connection: &ConnectionId,
        change: MetadataChange,
    ) -> Result<Reply, BackendError> {
        let Some(stored) = self.connections.get_mut(connection) else {
            return Ok(Reply::Changed(None));
        };
        let document = &mut stored.document;
        let result = changed(document.json.as_ref(), change, self.metadata_bytes_max)?;
        document.json = (!is_null(&result)).then_some(result);
        document.revision += 1;
        let document = document.clone();
        let notice = Notice::MetadataChanged {
            connection: connection.clone(),
            document: document.clone(),
        };
        self.tell_owner(by, connection, &notice);
        Ok(Reply::Changed(Some(document)))
    }

    fn set_room_metadata(
        &mut self,
        name: Name,
        change: MetadataChange,
    ) -> Result<Reply, BackendError> {
        let old = self
            .rooms
            .get(&name)
            .and_then(|room| room.metadata.as_ref());
        let result = changed(old, change, self.metadata_bytes_max)?;
        let json = (!is_null(&result)).then_some(result);
        if json.is_some() {
            self.room_entry(name).metadata = json.clone();
        } else if let Some(room) = self.rooms.get_mut(&name) {
            room.metadata = None;
            if room.members.is_empty() {
                self.rooms.remove(&name);
            }
        }
        Ok(Reply::Changed(Some(Document { json, revision: 0 })))
    }

    fn subscribe(&mut self, instance: &InstanceId, topics: Vec<Topic>) -> Reply {
        if let Some(taken) = self.instances.get_mut(instance) {
            for topic in topics {
                self.subscribers
                    .entry(topic.clone())
                    .or_default()
                    .insert(instance.clone());
                taken.insert(topic);
            }
        }
        Reply::Done
    }

    fn unsubscribe(&mut self, instance: &InstanceId, topics: &[Topic]) -> Reply {
        for topic in topics {
            if self
                .instances
                .get_mut(instance)
                .is_some_and(|taken| taken.remove(topic))
            {
                self.remove_subscriber(instance, topic);
            }
        }
        Reply::Done
    }

    /// Ends one half of a subscription: the topic's.
    fn remove_subscriber(&mut self, instance: &InstanceId, topic: &Topic) {
        if let Some(subscribers) = self.subscribers.get_mut(topic) {
            subscribers.remove(instance);
            if subscribers.is_empty() {
                self.subscribers.remove(topic);
            }
        }
    }

    fn publish(&mut self, except: Option<&InstanceId>, topic: &Topic, message: Bytes) {
        let notice = Notice::Message {
            topic: topic.clone(),
            message,
        };
        self.tell(except, topic, &notice);
    }

    fn publish_channel(&mut self, channel: Name, message: Bytes, length: usize) -> Reply {
        if length > 0 {
            let history = self.histories.entry(channel.clone()).or_default();
            // A copy: a slice that is kept for long would keep all of the frame it came in.
            history.push_front(Bytes::copy_from_slice(&message));
            history.truncate(length);
        }
        self.publish(None, &Topic::Channel(channel), message);
        Reply::Done
    }

    fn tell_of_record(&mut self, (reply, notice): (Reply, Option<Notice>)) -> Reply {
        if let Some(notice) = notice
            && let Notice::RecordChanged { record, .. } = &notice
        {
            self.tell(None, &Topic::Record(record.clone()), &notice);
        }
        reply
    }

    /// Tells who is subscribed. Costs one look-up where nobody is.
    fn tell(&mut self, except: Option<&InstanceId>, topic: &Topic, notice: &Notice) {
        let Some(subscribers) = self.subscribers.get(topic) else {
            return;
        };
        let others = subscribers.iter().filter(|id| Some(*id) != except);
        self.notices
            .extend(others.map(|id| (id.clone(), notice.clone())));
    }

    /// Tells the instance of a connection what another one did to it. A subscriber that is neither hears it, too.
    fn tell_owner(&mut self, by: &InstanceId, connection: &ConnectionId, notice: &Notice) {
        if let Some(owner) = connection.instance().filter(|owner| owner != by) {
            self.tell(Some(by), &Topic::Instance(owner), notice);
        }
    }
}

/// Does the instance hold the connection, by its id?
fn holds(instance: &InstanceId, connection: &ConnectionId) -> bool {
    connection
        .as_str()
        .strip_prefix(instance.as_str())
        .is_some_and(|rest| rest.starts_with('.'))
}

/// What a document becomes.
fn changed(old: Option<&Json>, change: MetadataChange, max: usize) -> Result<Json, BackendError> {
    let result = match change {
        MetadataChange::Replace(new) => return Ok(new),
        MetadataChange::Merge(new) => merge(old, new),
        MetadataChange::ReplaceExcept { json, keys } => replace_except(old, &json, &keys),
    };
    let len = result.len();
    if len > max {
        Err(BackendError::TooLong { len, max })
    } else {
        Ok(result)
    }
}

#[cfg(test)]
impl Store {
    /// Forward and reverse index agree, and nothing empty is kept.
    pub(super) fn assert_consistent(&self) {
        let members = self
            .rooms
            .iter()
            .flat_map(|(name, room)| room.members.iter().map(move |id| (name, id)));
        let joined = self
            .connections
            .iter()
            .flat_map(|(id, it)| it.rooms.iter().map(move |name| (name, id)));
        assert_eq!(members.collect::<BTreeSet<_>>(), joined.collect());
        let listed = self
            .subscribers
            .iter()
            .flat_map(|(topic, ids)| ids.iter().map(move |id| (topic, id)));
        let taken = self
            .instances
            .iter()
            .flat_map(|(id, topics)| topics.iter().map(move |topic| (topic, id)));
        assert_eq!(listed.collect::<BTreeSet<_>>(), taken.collect());
        assert!(
            self.rooms
                .values()
                .all(|room| !room.members.is_empty() || room.metadata.is_some())
        );
        assert!(self.subscribers.values().all(|ids| !ids.is_empty()));
        assert!(self.histories.values().all(|history| !history.is_empty()));
        assert!(self.notices.is_empty());
    }

    /// How many rooms there are.
    pub(super) fn rooms(&self) -> usize {
        self.rooms.len()
    }
}
