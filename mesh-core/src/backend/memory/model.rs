//! The backend against a naive model: a heap of facts, searched from end to end.

use std::{
    cmp::Ordering,
    pin::Pin,
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use proptest::{
    collection::vec,
    option,
    prelude::*,
    sample::{select, subsequence},
};
use serde_json::Value;

use super::*;
use crate::backend::{ConnectionId, Document, Json, MetadataChange, Name, Topic};

/// Small enough that random merges reach it.
const METADATA_BYTES_MAX: usize = 24;

#[derive(Clone, Debug, PartialEq)]
enum Fact {
    Connection(ConnectionId, Document),
    Instance(InstanceId),
    Member(Name, ConnectionId),
    Message(Name, Bytes),
    /// A room that has a member or metadata, and how many clearings of any room it has behind it.
    Room(Name, u64),
    RoomMetadata(Name, Json),
    Subscribed(InstanceId, Topic),
}
use Fact::*;

/// Facts in the order in which they came true, and what each instance is to notice.
#[derive(Default)]
struct Model {
    facts: Vec<Fact>,
    notices: Vec<(InstanceId, Notice)>,
    clearings: u64,
}

impl Model {
    fn has(&self, fact: &Fact) -> bool {
        self.facts.contains(fact)
    }

    fn add(&mut self, fact: Fact) -> bool {
        let new = !self.has(&fact);
        if new {
            self.facts.push(fact);
        }
        new
    }

    fn remove(&mut self, fact: &Fact) -> bool {
        let had = self.has(fact);
        self.facts.retain(|it| it != fact);
        had
    }

    /// What the function makes of each fact it knows, sorted.
    fn all<T: Ord>(&self, of: impl Fn(&Fact) -> Option<T>) -> Vec<T> {
        let mut all: Vec<T> = self.facts.iter().filter_map(of).collect();
        all.sort();
        all
    }

    fn connections(&self) -> Vec<(ConnectionId, Option<Json>)> {
        self.all(|fact| {
            if let Connection(id, document) = fact {
                Some((id.clone(), document.json.clone()))
            } else {
                None
            }
        })
    }

    /// The room's generation; it comes to be if it is none yet.
    fn generation(&mut self, room: &Name) -> u64 {
        let known = self.facts.iter().find_map(|fact| match fact {
            Room(of, generation) if of == room => Some(*generation),
            _ => None,
        });
        known.unwrap_or_else(|| {
            self.facts.push(Room(room.clone(), self.clearings));
            self.clearings
        })
    }

    /// Forgets rooms that are nothing any more.
    fn tidy(&mut self) {
        let used = self.all(|fact| match fact {
            Member(room, _) | RoomMetadata(room, _) => Some(room.clone()),
            _ => None,
        });
        self.facts
            .retain(|fact| !matches!(fact, Room(room, _) if !used.contains(room)));
    }

    fn members(&self, room: &Name) -> Vec<ConnectionId> {
        self.all(|fact| {
            if let Member(of, id) = fact {
                (of == room).then(|| id.clone())
            } else {
                None
            }
        })
    }

    fn rooms(&self) -> Vec<(Name, Json)> {
        self.all(|fact| {
            if let RoomMetadata(room, json) = fact {
                Some((room.clone(), json.clone()))
            } else {
                None
            }
        })
    }

    fn open(&self, connection: &ConnectionId) -> Option<Document> {
        self.facts.iter().find_map(|fact| match fact {
            Connection(id, document) if id == connection => Some(document.clone()),
            _ => None,
        })
    }

    fn gone(&mut self, gone: impl Fn(&ConnectionId) -> bool) {
        self.facts
            .retain(|fact| !matches!(fact, Connection(id, _) | Member(_, id) if gone(id)));
    }

    fn tell(&mut self, topic: &Topic, notice: &Notice, except: Option<&InstanceId>) {
        let listening = self.all(|fact| {
            if let Subscribed(id, of) = fact {
                (of == topic).then(|| id.clone())
            } else {
                None
            }
        });
        for id in listening.into_iter().filter(|id| Some(id) != except) {
            self.notices.push((id, notice.clone()));
        }
    }

    fn publish(&mut self, topic: &Topic, message: Bytes, except: Option<&InstanceId>) {
        let notice = Notice::Message {
            topic: topic.clone(),
            message,
        };
        self.tell(topic, &notice, except);
    }

    /// What another instance did to a connection.
    fn tell_owner(&mut self, me: &InstanceId, connection: &ConnectionId, notice: &Notice) {
        let owner = connection.instance().unwrap();
        if owner != *me {
            self.tell(&Topic::Instance(owner), notice, Some(me));
        }
    }

    fn apply(&mut self, me: &InstanceId, op: Op) -> Result<Reply, BackendError> {
        let reply = self.carry_out(me, op);
        self.tidy();
        reply
    }

    fn carry_out(&mut self, me: &InstanceId, op: Op) -> Result<Reply, BackendError> {
        if let Op::OpenInstance { instance } = op {
            return if self.add(Instance(instance)) {
                Ok(Reply::Done)
            } else {
                Err(usage(""))
            };
        }
        if !self.has(&Instance(me.clone())) {
            return Err(usage(""));
        }
        let mine = |connection: &ConnectionId| connection.instance().as_ref() == Some(me);
        Ok(match op {
            Op::AllConnectionMetadata => Reply::ConnectionsMetadata(self.connections()),
            Op::AllRoomMetadata => Reply::RoomsMetadata(self.rooms()),
            Op::ClearRoom { room } => {
                self.facts.retain(
                    |fact| !matches!(fact, Member(of, _) | RoomMetadata(of, _) if *of == room),
                );
                self.clearings += 1;
                let generation = self.clearings;
                let topic = Topic::Room(room.clone());
                self.tell(&topic, &Notice::RoomCleared { room, generation }, Some(me));
                Reply::Cleared { generation }
            }
            Op::CloseConnection { connection } => {
                self.gone(|id| *id == connection && mine(id));
                Reply::Done
            }
            Op::CloseInstance => {
                self.gone(mine);
                self.facts
                    .retain(|fact| !matches!(fact, Instance(id) | Subscribed(id, _) if id == me));
                Reply::Done
            }
            Op::ConnectionMetadata { connection } => {
                Reply::Document(self.open(&connection).unwrap_or_default())
            }
            Op::Connections => {
                Reply::Connections(self.connections().into_iter().map(|(id, _)| id).collect())
            }
            Op::ForgetMembers { .. } => Reply::Done,
            Op::History {
                channel,
                limit,
                bytes_max,
            } => {
                let kept = self.facts.iter().filter_map(|fact| match fact {
                    Message(of, message) if *of == channel => Some(message.clone()),
                    _ => None,
                });
                let kept: Vec<_> = kept.rev().take(limit).collect();
                if kept.concat().len() > bytes_max {
                    return Err(BackendError::ReplyTooLong { max: bytes_max });
                }
                Reply::History(kept)
            }
            Op::IsInRoom { room, connection } => Reply::Flag(self.has(&Member(room, connection))),
            Op::JoinRoom { room, connection } => {
                if self.open(&connection).is_none() || !mine(&connection) {
                    return Err(BackendError::UnknownConnection);
                }
                let generation = self.generation(&room);
                let new = self.add(Member(room, connection));
                Reply::Joined { new, generation }
            }
            Op::KeepFor { instance, .. } => Reply::Flag(!self.has(&Instance(instance))),
            Op::LeaveRoom { room, connection } => {
                let left = self.remove(&Member(room.clone(), connection.clone()));
                if left {
                    let id = connection.clone();
                    self.tell_owner(me, &id, &Notice::MemberRemoved { room, connection });
                }
                Reply::Flag(left)
            }
            Op::OpenConnection {
                connection,
                metadata,
            } => {
                if !mine(&connection) {
                    return Err(usage(""));
                }
                if self.open(&connection).is_none() {
                    let json = metadata.filter(|json| &**json != "null");
                    self.add(Connection(connection, Document { json, revision: 1 }));
                }
                Reply::Done
            }
            Op::Publish { topic, message } => {
                if matches!(topic, Topic::Channel(_) | Topic::Record(_)) {
                    return Err(usage(""));
                }
                self.publish(&topic, message, Some(me));
                Reply::Done
            }
            Op::PublishChannel {
                channel,
                message,
                history,
            } => {
                if history > 0 {
                    self.facts.push(Message(channel.clone(), message.clone()));
                    let kept = self
                        .facts
                        .iter()
                        .filter(|fact| matches!(fact, Message(of, _) if *of == channel));
                    let mut surplus = kept.count().saturating_sub(history);
                    self.facts.retain(|fact| {
                        let drop = surplus > 0 && matches!(fact, Message(of, _) if *of == channel);
                        surplus -= usize::from(drop);
                        !drop
                    });
                }
                self.publish(&Topic::Channel(channel), message, None);
                Reply::Done
            }
            Op::RoomMembers { room } => Reply::Connections(self.members(&room)),
            Op::RoomMembersMetadata { room } => {
                let members = self.members(&room).into_iter();
                Reply::ConnectionsMetadata(
                    members
                        .map(|id| (id.clone(), self.open(&id).and_then(|it| it.json)))
                        .collect(),
                )
            }
            Op::RoomMetadata { room } => Reply::Metadata(
                self.rooms()
                    .into_iter()
                    .find(|(of, _)| *of == room)
                    .map(|(_, json)| json),
            ),
            Op::SetConnectionMetadata { connection, change } => {
                let Some(old) = self.open(&connection) else {
                    return Ok(Reply::Changed(None));
                };
                let new = change_of(old.json.as_ref(), change)?;
                let new = Document {
                    json: Some(new).filter(|json| &**json != "null"),
                    revision: old.revision + 1,
                };
                self.remove(&Connection(connection.clone(), old));
                self.add(Connection(connection.clone(), new.clone()));
                let notice = Notice::MetadataChanged {
                    connection: connection.clone(),
                    document: new.clone(),
                };
                self.tell_owner(me, &connection, &notice);
                Reply::Changed(Some(new))
            }
            Op::SetRoomMetadata { room, change } => {
                let old = self
                    .rooms()
                    .into_iter()
                    .find(|(of, _)| *of == room)
                    .map(|(_, json)| json);
                let new = change_of(old.as_ref(), change)?;
                self.facts
                    .retain(|fact| !matches!(fact, RoomMetadata(of, _) if *of == room));
                let json = Some(new).filter(|json| &**json != "null");
                if let Some(json) = json.clone() {
                    self.generation(&room);
                    self.add(RoomMetadata(room, json));
                }
                Reply::Changed(Some(Document { json, revision: 0 }))
            }
            Op::Restore {
                connections,
                members,
            } => {
                let mut stated = connections.iter().map(|(id, _)| id);
                if !stated.all(mine) || !members.iter().all(|(_, id, _)| mine(id)) {
                    return Err(usage(""));
                }
                let mut changed = Vec::new();
                for (id, document) in connections {
                    let stored = self.open(&id).unwrap_or_default();
                    self.remove(&Connection(id.clone(), stored.clone()));
                    let newest = match stored.revision.cmp(&document.revision) {
                        Ordering::Less => document.clone(),
                        Ordering::Equal if stored.json != document.json => Document {
                            revision: stored.revision + 1,
                            ..stored
                        },
                        Ordering::Equal | Ordering::Greater => stored,
                    };
                    self.add(Connection(id.clone(), newest.clone()));
                    if newest != document {
                        changed.push((id, newest));
                    }
                }
                let over = |(room, id, generation): &(Name, ConnectionId, u64)| {
                    let cleared = |fact: &Fact| matches!(fact, Room(of, now) if of == room && now > generation);
                    !self.has(&Member(room.clone(), id.clone())) || self.facts.iter().any(cleared)
                };
                let ended = members.into_iter().filter(over);
                let ended = ended.map(|(room, id, _)| (room, id)).collect();
                Reply::Restored { changed, ended }
            }
            Op::Settle { .. } => Reply::Done,
            Op::Subscribe { topics } => {
                for topic in topics {
                    self.add(Subscribed(me.clone(), topic));
                }
                Reply::Done
            }
            Op::Unsubscribe { topics } => {
                for topic in topics {
                    self.remove(&Subscribed(me.clone(), topic));
                }
                Reply::Done
            }
            Op::OpenInstance { .. } => unreachable!(),
            Op::DeleteRecord { .. }
            | Op::PublishRecord { .. }
            | Op::PurgeDeleted { .. }
            | Op::Record { .. }
            | Op::RecordVersions { .. } => unreachable!("records have a model of their own"),
        })
    }
}

fn change_of(old: Option<&Json>, change: MetadataChange) -> Result<Json, BackendError> {
    let old = old.map(|old| serde_json::from_str(old).unwrap());
    let changed = match change {
        MetadataChange::Replace(new) => return Ok(new),
        MetadataChange::Merge(new) => match (old, serde_json::from_str(&new).unwrap()) {
            (Some(Value::Object(mut old)), Value::Object(new)) => {
                old.extend(new);
                Json::from(Value::Object(old).to_string())
            }
            _ => new,
        },
        MetadataChange::ReplaceExcept { json, keys } => {
            let mut new = serde_json::from_str(&json).unwrap();
            if !matches!(new, Value::Object(_)) {
                new = Value::Object(serde_json::Map::new());
            }
            let new_keys = new.as_object_mut().unwrap();
            for key in keys {
                match old.as_ref().and_then(|old| old.get(&*key)) {
                    Some(kept) => new_keys.insert(key.to_string(), kept.clone()),
                    None => new_keys.remove(&*key),
                };
            }
            Json::from(new.to_string())
        }
    };
    let (len, max) = (changed.len(), METADATA_BYTES_MAX);
    if len > max {
        Err(BackendError::TooLong { len, max })
    } else {
        Ok(changed)
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// The instance dies without a word, and its successor has the same id.
    Die,
    Op(Op),
    /// The instance reads its notices.
    Read,
}

const INSTANCES: [&str; 3] = ["a", "aa", "b"];

fn name() -> impl Strategy<Value = Name> {
    select(vec!["r", "s"]).prop_map(Into::into)
}

fn connection() -> impl Strategy<Value = ConnectionId> {
    let ids = vec!["a.1", "a.2", "aa.1", "b.1", "b.2", "stray"];
    select(ids).prop_map(Into::into)
}

fn topic() -> impl Strategy<Value = Topic> {
    prop_oneof![
        Just(Topic::All),
        name().prop_map(Topic::Channel),
        name().prop_map(Topic::Record),
        name().prop_map(Topic::Room),
        select(&INSTANCES[..]).prop_map(|id| Topic::Instance(id.into())),
    ]
}

fn json() -> impl Strategy<Value = Json> {
    let documents = vec![
        "null",
        "7",
        "[]",
        "{}",
        r#"{"a":1}"#,
        r#"{"a":{"x":1}}"#,
        r#"{"b":null}"#,
        r#"{"c":"cccccccc"}"#,
    ];
    select(documents).prop_map(Into::into)
}

fn change() -> impl Strategy<Value = MetadataChange> {
    prop_oneof![
        json().prop_map(MetadataChange::Replace),
        json().prop_map(MetadataChange::Merge),
        (json(), subsequence(vec!["a", "b"], 0..=2)).prop_map(|(json, keys)| {
            let keys = keys.into_iter().map(Into::into).collect();
            MetadataChange::ReplaceExcept { json, keys }
        })
    ]
}

fn document() -> impl Strategy<Value = Document> {
    (json(), 1..5u64).prop_map(|(json, revision)| Document {
        json: Some(json).filter(|json| &**json != "null"),
        revision,
    })
}

fn restore() -> impl Strategy<Value = Op> {
    let connections = vec((connection(), document()), 0..2);
    let members = vec((name(), connection(), 0..5u64), 0..2);
    (connections, members).prop_map(|(connections, members)| Op::Restore {
        connections,
        members,
    })
}

fn message() -> impl Strategy<Value = Bytes> {
    (0..100u8).prop_map(|byte| Bytes::from(vec![byte]))
}

fn op() -> impl Strategy<Value = Op> {
    let open = (connection(), option::of(json()));
    prop_oneof![
        1 => Just(Op::AllConnectionMetadata),
        1 => Just(Op::AllRoomMetadata),
        1 => Just(Op::CloseInstance),
        1 => Just(Op::Connections),
        1 => name().prop_map(|room| Op::ClearRoom { room }),
        1 => connection().prop_map(|connection| Op::CloseConnection { connection }),
        1 => connection().prop_map(|connection| Op::ConnectionMetadata { connection }),
        1 => (name(), vec(connection(), 0..3))
            .prop_map(|(room, connections)| Op::ForgetMembers { room, connections }),
        1 => (select(&INSTANCES[..]), option::of(message()))
            .prop_map(|(id, message)| Op::KeepFor { instance: id.into(), message }),
        1 => (name(), 0..4usize, 0..4usize)
            .prop_map(|(channel, limit, bytes_max)| Op::History { channel, limit, bytes_max }),
        1 => (name(), connection()).prop_map(|(room, connection)| Op::IsInRoom { room, connection }),
        4 => (name(), connection()).prop_map(|(room, connection)| Op::JoinRoom { room, connection }),
        1 => (name(), connection()).prop_map(|(room, connection)| Op::LeaveRoom { room, connection }),
        6 => open.prop_map(|(connection, metadata)| Op::OpenConnection { connection, metadata }),
        2 => select(&INSTANCES[..]).prop_map(|id| Op::OpenInstance { instance: id.into() }),
        4 => (topic(), message()).prop_map(|(topic, message)| Op::Publish { topic, message }),
        4 => (name(), message(), 0..4usize)
            .prop_map(|(channel, message, history)| Op::PublishChannel { channel, message, history }),
        4 => restore(),
        1 => any::<u64>().prop_map(|number| Op::Settle { number }),
        1 => name().prop_map(|room| Op::RoomMembers { room }),
        1 => name().prop_map(|room| Op::RoomMembersMetadata { room }),
        1 => name().prop_map(|room| Op::RoomMetadata { room }),
        2 => (connection(), change())
            .prop_map(|(connection, change)| Op::SetConnectionMetadata { connection, change }),
        2 => (name(), change()).prop_map(|(room, change)| Op::SetRoomMetadata { room, change }),
        4 => vec(topic(), 0..4).prop_map(|topics| Op::Subscribe { topics }),
        1 => vec(topic(), 0..4).prop_map(|topics| Op::Unsubscribe { topics }),
    ]
}

fn steps() -> impl Strategy<Value = Vec<(usize, Step)>> {
    let step =
        prop_oneof![2 => Just(Step::Die), 40 => op().prop_map(Step::Op), 4 => Just(Step::Read)];
    vec((0..INSTANCES.len(), step), 0..120)
}

/// One instance: a backend, its notices, and whether it has been open and is closed.
struct Server {
    id: InstanceId,
    backend: MemoryBackend,
    notices: BoxStream<'static, Vec<Notice>>,
    closed: bool,
}

impl Server {
    fn new(cluster: &MemoryCluster, id: &str) -> Self {
        let backend = cluster.backend();
        let notices = backend.notices();
        Self {
            id: id.into(),
            backend,
            notices,
            closed: false,
        }
    }

    fn read(&mut self) -> Vec<Notice> {
        match self
            .notices
            .as_mut()
            .poll_next(&mut Context::from_waker(Waker::noop()))
        {
            Poll::Ready(batch) => batch.unwrap_or_default(),
            Poll::Pending => Vec::new(),
        }
    }
}

/// The futures of this backend are ready at their first poll.
pub(super) fn now<T>(mut future: Pin<Box<dyn Future<Output = T> + Send + '_>>) -> T {
    match future
        .as_mut()
        .poll(&mut Context::from_waker(Waker::noop()))
    {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("not ready"),
    }
}

/// The words of a usage error are nobody's business.
fn wordless(result: Result<Reply, BackendError>) -> Result<Reply, BackendError> {
    result.map_err(|error| {
        if let BackendError::Usage(_) = error {
            usage("")
        } else {
            error
        }
    })
}

proptest! {
    #[test]
    fn replies_and_notices_are_those_of_the_model(steps in steps()) {
        let cluster = MemoryCluster::with_metadata_bytes_max(METADATA_BYTES_MAX);
        let mut model = Model::default();
        let mut servers = INSTANCES.map(|id| Server::new(&cluster, id));
        let opening = (0..INSTANCES.len()).map(|at| (at, Step::Op(Op::OpenInstance { instance: INSTANCES[at].into() })));
        let reading = (0..INSTANCES.len()).map(|at| (at, Step::Read));
        for (at, step) in opening.chain(steps).chain(reading) {
            let server = &mut servers[at];
            let me = server.id.clone();
            match step {
                Step::Die => {
                    let _ = model.apply(&me, Op::CloseInstance);
                    model.notices.retain(|(to, _)| *to != me);
                    *server = Server::new(&cluster, INSTANCES[at]);
                }
                Step::Op(op) => {
                    // An instance opens itself only, and once in the life of a backend.
                    let foreign = matches!(&op, Op::OpenInstance { instance } if server.closed || *instance != me);
                    if foreign && (server.closed || model.has(&Instance(me.clone()))) {
                        prop_assert!(matches!(now(server.backend.execute(op)), Err(BackendError::Usage(_))));
                        continue;
                    } else if foreign {
                        continue;
                    }
                    let closes = op == Op::CloseInstance && model.has(&Instance(me.clone()));
                    let reply = now(server.backend.execute(op.clone()));
                    prop_assert_eq!(wordless(reply), wordless(model.apply(&me, op)));
                    if closes {
                        server.closed = true;
                        model.notices.retain(|(to, _)| *to != me);
                    }
                }
                Step::Read => {
                    let (mine, others) = std::mem::take(&mut model.notices).into_iter().partition(|(to, _)| *to == me);
                    model.notices = others;
                    let mine: Vec<_> = Vec::into_iter(mine).map(|(_, notice)| notice).collect();
                    prop_assert_eq!(server.read(), mine);
                }
            }
            lock(&cluster.shared).store.assert_consistent();
        }
    }
}
