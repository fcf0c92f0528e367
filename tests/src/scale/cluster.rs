//! Many instances' machines over one store.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use mesh_core::backend::{
    BackendError, ConnectionId, Document, InstanceId, Json, Name, Notice, Op, Reply, Store, Topic,
};
use mesh_core::instance::{Action, Instance, OpToken, Options, RecordWrite, Seeded};
use mesh_core::protocol::builtin::RecordMode;
use mesh_core::protocol::{Dialect, Limits, encode, names};
use mesh_core::record;
use mesh_core::relay::Relay;
use mesh_core::websocket::TextFrame;
use rand_chacha::ChaCha12Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use super::cost::{self, Cost};
use super::redis;

/// As many machines as a server has of them.
const SHARDS: usize = 16;

/// How many messages a channel keeps here.
const HISTORY: usize = 10;

/// A user that has signed in, for example.
const METADATA: &str = r#"{"user":"0123456789","name":"Ada Lovelace"}"#;

/// The payload of every event and message.
const PAYLOAD: &str = r#"{"from":"0123456789","text":"How many of you are there?"}"#;

type Machine = Instance<(), ()>;

/// One server without what does nothing for its costs: sockets, tasks, time.
struct Server {
    id: InstanceId,
    shards: Vec<Machine>,
    /// What the backend has taken for it, and takes again when the store is back.
    topics: BTreeSet<Topic>,
}

impl Server {
    fn new(random: &mut ChaCha12Rng) -> Self {
        let hasher = Seeded::new(&seed(random));
        let limits = Limits::default();
        let shards = (0..SHARDS).map(|_| {
            Instance::new(&Options {
                hasher,
                seed: seed(random),
                dialect: Dialect::MESH,
                kept_bytes_max: limits.queue_bytes_max,
                listed_bytes_max: limits.reply_bytes_max,
                record_bytes_max: limits.record_bytes_max,
                // No time passes.
                record_check_interval: Duration::from_secs(10),
            })
        });
        Self {
            shards: shards.collect(),
            id: InstanceId::new(format!("{:016x}", random.next_u64())),
            topics: BTreeSet::new(),
        }
    }

    fn connections(&self) -> Vec<ConnectionId> {
        let shards = self.shards.iter();
        let all = shards.flat_map(|shard| shard.connections().ids().cloned());
        all.collect()
    }

    fn rooms_of(&self, id: &ConnectionId) -> Vec<Name> {
        let shards = self.shards.iter();
        shards.flat_map(|shard| shard.rooms_of(id)).collect()
    }
}

/// The shard of a key, as a server has it whose backend is `mesh-redis`.
fn shard_of(key: &str) -> usize {
    redis::partition(key) as usize % SHARDS
}

fn seed(random: &mut ChaCha12Rng) -> [u8; 32] {
    let mut seed = [0; 32];
    random.fill_bytes(&mut seed);
    seed
}

/// An operation under way.
struct Asked {
    server: usize,
    shard: usize,
    token: OpToken,
    op: Op,
}

/// Servers that share a store. One thing happens after the other: each method returns when nobody has anything left to do.
///
/// Every operation has to succeed, and every request; what does not, panics.
pub struct Cluster {
    store: Store,
    /// By their place; that of one that died stays empty.
    servers: BTreeMap<usize, Server>,
    places: BTreeMap<InstanceId, usize>,
    asked: VecDeque<Asked>,
    cost: Cost,
    random: ChaCha12Rng,
    now: Instant,
    nobody: Arc<[ConnectionId]>,
    returns: u64,
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster")
            .field("servers", &self.servers.len())
            .finish_non_exhaustive()
    }
}

impl Cluster {
    /// So many instances, without connections. The same ids each time.
    pub fn new(instances: usize) -> Self {
        let mut random = ChaCha12Rng::seed_from_u64(1);
        let mut store = Store::new();
        let (mut servers, mut places) = (BTreeMap::new(), BTreeMap::new());
        for place in 0..instances {
            let mut server = Server::new(&mut random);
            server.topics = [Topic::All, Topic::Instance(server.id.clone())].into();
            register(&mut store, &server);
            places.insert(server.id.clone(), place);
            servers.insert(place, server);
        }
        Self {
            store,
            servers,
            places,
            asked: VecDeque::new(),
            cost: Cost::default(),
            random,
            now: Instant::now(),
            nobody: Arc::new([]),
            returns: 0,
        }
    }

    /// What it costs.
    pub fn cost<T>(&mut self, doing: impl FnOnce(&mut Self) -> T) -> Cost {
        self.cost = Cost::default();
        doing(self);
        std::mem::take(&mut self.cost)
    }

    /// A connection opens.
    pub fn connect(&mut self, server: usize) -> ConnectionId {
        let (high, low) = (self.random.next_u64(), self.random.next_u32());
        let id = ConnectionId::new(format!("{}.{high:016x}{low:08x}", self.servers[&server].id));
        let metadata = Some(Json::from(METADATA));
        self.act(server, id.as_str(), |shard, _| {
            shard.handle_open(&id, (), metadata, ());
        });
        self.settle();
        id
    }

    /// A connection is over.
    pub fn disconnect(&mut self, id: &ConnectionId) {
        let server = self.place_of(id);
        let rooms = self.servers[&server].rooms_of(id);
        for shard in 0..SHARDS {
            self.act_on(server, shard, |shard, now| shard.handle_gone(id, now));
        }
        self.act(server, id.as_str(), |shard, _| shard.handle_close(id, ()));
        self.cost.command(server, redis::rooms_left(&rooms));
        self.settle();
    }

    /// A connection becomes a member of a room.
    pub fn join(&mut self, room: &Name, id: &ConnectionId) {
        let connection = id.clone();
        self.act(self.place_of(id), room, |shard, _| {
            shard.join(room, connection, (), false, ());
        });
        self.settle();
    }

    /// A connection leaves a room.
    pub fn leave(&mut self, room: &Name, id: &ConnectionId) {
        self.act(self.place_of(id), room, |shard, _| {
            shard.leave(room, id.clone(), ());
        });
        self.settle();
    }

    /// An instance removes all members of a room.
    pub fn clear(&mut self, room: &Name, server: usize) {
        self.act(server, room, |shard, _| shard.clear(room, ()));
        self.settle();
    }

    /// A connection subscribes to a channel.
    pub fn subscribe(&mut self, channel: &Name, id: &ConnectionId) {
        let connection = id.clone();
        self.act(self.place_of(id), channel, |shard, _| {
            shard.subscribe(channel, connection, (), 0, ());
        });
        self.settle();
    }

    /// A connection subscribes to a record, by patches.
    pub fn subscribe_record(&mut self, record: &Name, id: &ConnectionId) {
        let connection = id.clone();
        self.act(self.place_of(id), record, |shard, now| {
            shard.subscribe_record(record, connection, (), RecordMode::Patch, (), now);
        });
        self.settle();
    }

    /// An instance sends an event to the members of a room.
    pub fn broadcast_room(&mut self, room: &Name, server: usize) {
        let (frame, nobody) = (event(), Arc::clone(&self.nobody));
        self.act(server, room, |shard, _| {
            shard.deliver_room(room, &nobody, &frame);
        });
        self.publish(server, Topic::Room(room.clone()), &frame);
    }

    /// An instance sends an event to all connections.
    pub fn broadcast(&mut self, server: usize) {
        let frame = event();
        self.deliver_all(server, &frame);
        self.publish(server, Topic::All, &frame);
    }

    /// An instance publishes to a channel that keeps a history.
    pub fn publish_channel(&mut self, channel: &Name, server: usize) {
        let op = Op::PublishChannel {
            channel: channel.clone(),
            message: Bytes::from_static(PAYLOAD.as_bytes()),
            history: HISTORY,
        };
        self.ask(server, op);
    }

    /// An instance replaces the value of a record.
    pub fn write_record(&mut self, record: &Name, value: &str, server: usize) {
        let value = record::normalize(value, Limits::default().nesting_max).expect("a value");
        self.act(server, record, |shard, now| {
            shard.write_record(record, RecordWrite::Replace(value.into()), (), now);
        });
        self.settle();
    }

    /// An instance dies. Its lease ends, which each of the others sees at its next heartbeat; the first one cleans up behind it.
    ///
    /// Returns the place of that one.
    pub fn crash(&mut self, server: usize) -> usize {
        let dead = self.servers.remove(&server).expect("it is alive");
        self.places.remove(&dead.id);
        let connections = dead.connections();
        let rooms = |id: &ConnectionId| {
            let rooms = dead.rooms_of(id).into_iter();
            rooms.map(|room| (room, id.clone())).collect::<Vec<_>>()
        };
        let members: Vec<_> = connections.iter().flat_map(rooms).collect();
        for survivor in self.servers.keys() {
            self.cost.command(*survivor, 1);
        }
        let (&heir, _) = self.servers.first_key_value().expect("somebody is left");
        self.cost
            .command(heir, redis::reaping(&members, &connections));
        // What it had is read, and named to be removed.
        let names = connections.iter().map(|id| id.as_str().len());
        let found = cost::memberships(&members) + names.sum::<usize>();
        self.cost.receive(found);
        self.cost.send(found);
        self.store
            .apply(&dead.id, Op::CloseInstance)
            .expect("it was open");
        // The application is told page by page; no machine has to do with it, and nothing travels that was not read.
        self.cost.messages += redis::pages(&members) as u64;
        self.settle();
        heir
    }

    /// The store comes back without its data, and every instance states again what it has.
    pub fn lose_data(&mut self) {
        let now = self.now;
        for server in self.servers.values_mut() {
            for shard in &mut server.shards {
                shard.handle_lost(now);
            }
        }
        self.store = Store::new();
        self.returns += 1;
        let number = self.returns;
        let gap = encode::event_raw(&Dialect::MESH.name(names::GAP), "null");
        for place in self.servers.keys().copied().collect::<Vec<_>>() {
            let server = &self.servers[&place];
            register(&mut self.store, server);
            self.cost
                .command(place, redis::registering(server.topics.len()));
            self.cost
                .send(server.topics.iter().map(cost::name_of).sum());
            for shard in 0..SHARDS {
                self.act_on(place, shard, |shard, now| {
                    shard.handle_restored(|_| gap.clone(), (), now);
                });
            }
            self.settle();
            self.ask(place, Op::Settle { number });
        }
    }

    /// The members of a room, as the store has them.
    pub fn members(&mut self, room: &Name) -> BTreeSet<ConnectionId> {
        let op = Op::RoomMembers { room: room.clone() };
        let Ok(Reply::Connections(members)) = self.apply_for_anyone(op) else {
            panic!("no members");
        };
        members.into_iter().collect()
    }

    /// All connections, as the store has them, with their metadata.
    pub fn connections(&mut self) -> BTreeMap<ConnectionId, Option<Json>> {
        let op = Op::AllConnectionMetadata;
        let Ok(Reply::ConnectionsMetadata(all)) = self.apply_for_anyone(op) else {
            panic!("no connections");
        };
        all.into_iter().collect()
    }

    /// An operation that is not counted.
    fn apply_for_anyone(&mut self, op: Op) -> Result<Reply, BackendError> {
        let (_, server) = self.servers.first_key_value().expect("somebody is left");
        self.store.apply(&server.id, op)
    }

    /// Where a connection lives.
    pub fn place_of(&self, id: &ConnectionId) -> usize {
        let instance = id.instance().expect("an instance made it");
        self.places[&instance]
    }

    fn publish(&mut self, server: usize, topic: Topic, frame: &TextFrame) {
        let event = Relay::Event {
            except: Vec::new(),
            text: frame.text().to_owned(),
        };
        let message = event.encode();
        self.ask(server, Op::Publish { topic, message });
    }

    /// An operation that no machine asks for.
    fn ask(&mut self, server: usize, op: Op) {
        self.execute(server, op);
        self.settle();
    }

    /// Lets the shard of a key do something.
    fn act(&mut self, server: usize, key: &str, act: impl FnOnce(&mut Machine, Instant)) {
        self.act_on(server, shard_of(key), act);
    }

    fn act_on(&mut self, server: usize, shard: usize, act: impl FnOnce(&mut Machine, Instant)) {
        let machine = self
            .servers
            .get_mut(&server)
            .map(|it| &mut it.shards[shard]);
        let machine = machine.expect("it is alive");
        act(machine, self.now);
        while let Some(action) = machine.poll_action() {
            match action {
                Action::Backend { token, op } => self.asked.push_back(Asked {
                    server,
                    shard,
                    token,
                    op,
                }),
                Action::Complete { result, .. } => drop(result.expect("nothing is in the way")),
                Action::Deliver { to, except, .. } => {
                    self.cost.deliver(to.handles_except(&except).count());
                }
                Action::DeliverOne { frames, .. } => self.cost.deliver(frames.len()),
                Action::DeliverRecord { to, .. } => self.cost.deliver(to.len()),
                Action::Left { .. } | Action::RecordRefreshed { .. } | Action::Release(()) => {}
            }
        }
    }

    /// Answers operations and tells messages, in the order in which they came, until there are none.
    fn settle(&mut self) {
        loop {
            while let Some((to, notice)) = self.store.poll_notice() {
                self.cost.tell(&notice);
                self.tell(self.places[&to], notice);
            }
            let Some(asked) = self.asked.pop_front() else {
                return;
            };
            let Asked {
                server,
                shard,
                token,
                op,
            } = asked;
            let reply = self.execute(server, op);
            self.act_on(server, shard, |shard, now| {
                shard.handle_backend(token, Ok(reply), now);
            });
        }
    }

    /// The store carries out an operation.
    fn execute(&mut self, place: usize, op: Op) -> Reply {
        self.cost.ask(place, &op);
        self.cost.command(place, redis::commands(&op));
        let server = self.servers.get_mut(&place).expect("it is alive");
        match &op {
            Op::Subscribe { topics } => server.topics.extend(topics.iter().cloned()),
            Op::Unsubscribe { topics } => server.topics.retain(|topic| !topics.contains(topic)),
            _ => {}
        }
        let reply = match op {
            Op::Restore {
                connections,
                members,
            } => restore(&mut self.store, &server.id, connections, members),
            op => self.store.apply(&server.id, op),
        };
        let reply = reply.expect("the store does all that it is asked");
        self.cost.answer(&reply);
        reply
    }

    /// What a server does with a notice.
    fn tell(&mut self, server: usize, notice: Notice) {
        match notice {
            Notice::Message {
                topic: Topic::Channel(channel),
                ..
            } => self.act(server, &channel, |shard, _| {
                shard.handle_channel_message(&channel, event);
            }),
            Notice::Message { topic, message } => {
                let Some(Relay::Event { text, .. }) = Relay::decode(&message) else {
                    panic!("nobody sent {message:?}");
                };
                let frame = TextFrame::new(&text);
                match topic {
                    Topic::All => self.deliver_all(server, &frame),
                    Topic::Room(room) => {
                        let nobody = Arc::clone(&self.nobody);
                        self.act(server, &room, |shard, _| {
                            shard.deliver_room(&room, &nobody, &frame);
                        });
                    }
                    topic => panic!("nobody publishes to {topic:?}"),
                }
            }
            Notice::RecordChanged {
                record,
                base,
                changes,
            } => self.act(server, &record, |shard, now| {
                shard.handle_record_changed(&record, base, changes, now);
            }),
            Notice::RoomCleared { room, generation } => self.act(server, &room, |shard, _| {
                shard.handle_room_cleared(&room, generation);
            }),
            notice => panic!("nobody causes {notice:?}"),
        }
    }

    fn deliver_all(&mut self, server: usize, frame: &TextFrame) {
        for shard in 0..SHARDS {
            let nobody = Arc::clone(&self.nobody);
            self.act_on(server, shard, |shard, _| shard.deliver_all(&nobody, frame));
        }
    }
}

/// An instance is there, and hears its topics.
fn register(store: &mut Store, server: &Server) {
    let instance = server.id.clone();
    let topics = server.topics.iter().cloned().collect();
    for op in [Op::OpenInstance { instance }, Op::Subscribe { topics }] {
        store.apply(&server.id, op).expect("it was not there");
    }
}

/// The reference store loses nothing, so it takes a membership that it lacks for one that was ended. Here it was lost, and is written.
fn restore(
    store: &mut Store,
    instance: &InstanceId,
    connections: Vec<(ConnectionId, Document)>,
    members: Vec<(Name, ConnectionId, u64)>,
) -> Result<Reply, BackendError> {
    for (room, connection, _) in members {
        let join = Op::JoinRoom {
            room,
            connection: connection.clone(),
        };
        if store.apply(instance, join.clone()) == Err(BackendError::UnknownConnection) {
            // Another shard is yet to state it, in a revision that counts more than this one.
            let unstated = Op::Restore {
                connections: vec![(connection, Document::default())],
                members: Vec::new(),
            };
            store.apply(instance, unstated)?;
            store.apply(instance, join)?;
        }
    }
    let members = Vec::new();
    let stated = Op::Restore {
        connections,
        members,
    };
    store.apply(instance, stated)
}

fn event() -> TextFrame {
    encode::event_raw("news", PAYLOAD)
}
