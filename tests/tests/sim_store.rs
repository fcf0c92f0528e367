//! The store of simulated clusters is held to Redis in what it has a reading of its own of: what is lost, stated again and settled. Compared are
//! the replies, what is stored and who is told that it is back; no lease ends meanwhile, and no operation breaks in the middle.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on fails"
)]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::StreamExt as _;
use mesh_core::backend::{
    Backend, BackendError, BoxStream, ConnectionId, Document, MetadataChange, Name, Notice, Op,
    Reply,
};
use mesh_tests::sim::{Clock, Node, SharedStore, SimBackend};
use mesh_tests::{Proxy, Redis};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

const INSTANCES: usize = 3;
const ROOMS: [&str; 2] = ["r", "s"];

/// Nobody is held for dead.
const LEASE: Duration = Duration::from_secs(3_600);

/// What happens on both sides.
#[derive(Clone, Debug)]
enum Step {
    /// A connection of this instance opens.
    Connect(usize),
    /// One of the open ones closes, even while its instance is away.
    Disconnect(Index),
    Join(&'static str, Index),
    /// An instance ends a membership, its own or another's.
    Leave(usize, Index),
    Clear(usize, &'static str),
    Change(usize, Index, u8),
    /// What has happened so far outlives the next loss of data.
    Save,
    /// An instance loses its way to the store.
    Lose(usize),
    /// It is back, and states again what it has: all but what it does not know of, whose outcome was unknown to it.
    Return(usize, Vec<Index>),
    /// Everybody loses his way, and the store its data since they were saved. All are back.
    FailOver,
}

fn step() -> impl Strategy<Value = Step> {
    let instance = || 0..INSTANCES;
    let room = || proptest::sample::select(&ROOMS[..]);
    let connection = any::<Index>;
    prop_oneof![
        3 => instance().prop_map(Step::Connect),
        1 => connection().prop_map(Step::Disconnect),
        6 => (room(), connection()).prop_map(|(room, id)| Step::Join(room, id)),
        4 => (instance(), connection()).prop_map(|(by, member)| Step::Leave(by, member)),
        3 => (instance(), room()).prop_map(|(by, room)| Step::Clear(by, room)),
        4 => (instance(), connection(), any::<u8>()).prop_map(|(by, id, json)| Step::Change(by, id, json)),
        1 => Just(Step::Save),
        4 => instance().prop_map(Step::Lose),
        2 => (instance(), vec(connection(), 0..3)).prop_map(|(who, unknown)| Step::Return(who, unknown)),
        1 => Just(Step::FailOver),
    ]
}

/// Where the instances run, and by what they reach their store.
enum World {
    Redis {
        server: Redis,
        proxies: Vec<Proxy>,
        runtime: tokio::runtime::Runtime,
    },
    Simulated {
        clock: Clock,
        node: Node,
        store: SharedStore,
        wires: Vec<u64>,
    },
}

impl World {
    fn wait<T: Send + 'static>(&self, future: impl Future<Output = T> + Send + 'static) -> T {
        match self {
            Self::Redis { runtime, .. } => runtime
                .block_on(async { tokio::time::timeout(mesh_tests::PATIENCE, future).await })
                .expect("an answer in time"),
            Self::Simulated { clock, node, .. } => {
                let done = Arc::new(Mutex::new(None));
                let slot = Arc::clone(&done);
                clock.spawn(*node, async move {
                    let output = future.await;
                    *slot.lock().unwrap() = Some(output);
                });
                let end = clock.now() + mesh_tests::PATIENCE;
                loop {
                    clock.run_until(clock.now() + Duration::from_millis(1));
                    if let Some(output) = done.lock().unwrap().take() {
                        return output;
                    }
                    assert!(clock.now() < end, "no answer");
                }
            }
        }
    }

    fn save(&self) {
        match self {
            Self::Redis { server, .. } => drop(server.client().command(&["SAVE"])),
            Self::Simulated { store, .. } => store.replicate(),
        }
    }

    fn lose(&self, instance: usize) {
        match self {
            Self::Redis { proxies, .. } => {
                proxies[instance].partition();
                proxies[instance].cut();
            }
            Self::Simulated { store, wires, .. } => store.cut(Some(wires[instance]), LEASE),
        }
    }

    fn find(&self, instance: usize) {
        match self {
            Self::Redis { proxies, .. } => proxies[instance].heal(),
            Self::Simulated { store, wires, .. } => store.heal(wires[instance]),
        }
    }

    fn fail_over(&mut self) {
        match self {
            Self::Redis { server, .. } => server.restart(),
            Self::Simulated { store, .. } => {
                store.fail_over();
                // What was saved still is.
                store.replicate();
            }
        }
    }
}

/// An instance, and what it holds.
struct Instance {
    backend: Arc<dyn Backend>,
    /// Lent to who waits for one.
    notices: Option<Notices>,
    is_away: bool,
    connections: BTreeMap<ConnectionId, Document>,
    members: BTreeMap<(Name, ConnectionId), u64>,
}

struct Notices {
    stream: BoxStream<'static, Vec<Notice>>,
    waiting: VecDeque<Notice>,
}

/// One of the two stores with its instances.
struct Side {
    world: World,
    instances: Vec<Instance>,
    opened: usize,
}

impl Side {
    fn redis() -> Self {
        // What is written down is what is saved.
        let server = Redis::start_with(&["--appendonly", "no", "--save", ""]);
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(1).enable_all().build().unwrap();
        let proxies = (0..INSTANCES).map(|_| Proxy::to(server.addr()));
        let proxies: Vec<_> = proxies.collect();
        let builders = proxies
            .iter()
            .map(|proxy| mesh_redis::builder(proxy.url()).lease(LEASE));
        let backends = builders.map(|builder| {
            let backend = runtime.block_on(builder.connect()).unwrap();
            Arc::new(backend) as Arc<dyn Backend>
        });
        let backends = backends.collect();
        let world = World::Redis {
            server,
            proxies,
            runtime,
        };
        Self::new(world, backends)
    }

    fn simulated() -> Self {
        let clock = Clock::new(0);
        let (node, store) = (clock.node(), SharedStore::with_lease(&clock, LEASE));
        let backends: Vec<_> = (0..INSTANCES).map(|_| store.backend()).collect();
        let wires = backends.iter().map(SimBackend::wire).collect();
        let backends = backends
            .into_iter()
            .map(|backend| Arc::new(backend) as Arc<dyn Backend>);
        let backends = backends.collect();
        let world = World::Simulated {
            clock,
            node,
            store,
            wires,
        };
        Self::new(world, backends)
    }

    fn new(world: World, backends: Vec<Arc<dyn Backend>>) -> Self {
        let instances = backends.into_iter().map(|backend| Instance {
            notices: Some(Notices {
                stream: backend.notices(),
                waiting: VecDeque::new(),
            }),
            backend,
            is_away: false,
            connections: BTreeMap::new(),
            members: BTreeMap::new(),
        });
        let side = Self {
            world,
            instances: instances.collect(),
            opened: 0,
        };
        for number in 0..INSTANCES {
            let instance = number.to_string().as_str().into();
            side.run(number, Op::OpenInstance { instance }).unwrap();
        }
        side
    }

    fn run(&self, instance: usize, op: Op) -> Result<Reply, BackendError> {
        let backend = Arc::clone(&self.instances[instance].backend);
        self.world.wait(async move { backend.execute(op).await })
    }

    /// Waits for a notice of a loss or of a return.
    fn notice(&mut self, instance: usize) -> Notice {
        let mut notices = self.instances[instance].notices.take().unwrap();
        let (notice, notices) = self.world.wait(async move {
            loop {
                while let Some(notice) = notices.waiting.pop_front() {
                    if matches!(notice, Notice::Lost | Notice::Restored { .. }) {
                        return (notice, notices);
                    }
                }
                let more = notices.stream.next().await.expect("an open stream");
                notices.waiting.extend(more);
            }
        });
        self.instances[instance].notices = Some(notices);
        notice
    }

    fn owner(id: &ConnectionId) -> usize {
        id.instance().unwrap().as_str().parse().unwrap()
    }

    /// One of the connections that their instances hold.
    fn choose(&self, index: Index) -> Option<ConnectionId> {
        let ids = self.instances.iter().flat_map(|it| it.connections.keys());
        let ids: Vec<_> = ids.collect();
        (!ids.is_empty()).then(|| index.get(&ids).to_owned().clone())
    }

    /// Does it, if it can be done now, and tells what came of it.
    fn take(&mut self, step: &Step) -> String {
        match step {
            Step::Connect(who) => self.connect(*who),
            Step::Disconnect(index) => self.with(*index, Self::disconnect),
            Step::Join(room, index) => self.with(*index, |side, id| side.join(room, id)),
            Step::Leave(by, index) => self.leave(*by, *index),
            Step::Clear(by, room) => self.clear(*by, room),
            Step::Change(by, index, json) => {
                self.with(*index, |side, id| side.change(*by, id, *json))
            }
            Step::Save => {
                self.world.save();
                String::new()
            }
            Step::Lose(who) if !self.instances[*who].is_away => {
                self.world.lose(*who);
                self.lost(*who);
                String::new()
            }
            Step::Return(who, unknown) if self.instances[*who].is_away => {
                self.world.find(*who);
                let told = self.returned(*who, unknown);
                told + &self.contents()
            }
            Step::FailOver => {
                let whole = (0..INSTANCES).filter(|who| !self.instances[*who].is_away);
                let whole: Vec<_> = whole.collect();
                self.world.fail_over();
                whole.into_iter().for_each(|who| self.lost(who));
                (0..INSTANCES).for_each(|who| self.world.find(who));
                let told = (0..INSTANCES).map(|who| self.returned(who, &[]));
                let told: String = told.collect();
                told + &self.contents()
            }
            Step::Lose(_) | Step::Return(..) => String::new(),
        }
    }

    fn with(
        &mut self,
        index: Index,
        act: impl FnOnce(&mut Self, ConnectionId) -> String,
    ) -> String {
        match self.choose(index) {
            Some(id) => act(self, id),
            None => String::new(),
        }
    }

    fn connect(&mut self, who: usize) -> String {
        if self.instances[who].is_away {
            return String::new();
        }
        self.opened += 1;
        let connection: ConnectionId = format!("{who}.{}", self.opened).as_str().into();
        let metadata = self.opened.is_multiple_of(2).then(|| "{\"a\":1}".into());
        let open = Op::OpenConnection {
            connection: connection.clone(),
            metadata,
        };
        self.run(who, open).unwrap();
        let read = Op::ConnectionMetadata {
            connection: connection.clone(),
        };
        let Ok(Reply::Document(document)) = self.run(who, read) else {
            panic!("no document of {connection}");
        };
        let told = format!("{document:?}");
        self.instances[who].connections.insert(connection, document);
        told
    }

    fn disconnect(&mut self, connection: ConnectionId) -> String {
        let instance = &mut self.instances[Self::owner(&connection)];
        instance.connections.remove(&connection);
        instance.members.retain(|(_, id), _| *id != connection);
        if instance.is_away {
            return String::new();
        }
        let owner = Self::owner(&connection);
        told(self.run(owner, Op::CloseConnection { connection }))
    }

    fn join(&mut self, room: &str, connection: ConnectionId) -> String {
        let owner = Self::owner(&connection);
        if self.instances[owner].is_away {
            return String::new();
        }
        let (room, id) = (Name::from(room), connection.clone());
        let join = Op::JoinRoom {
            room: Arc::clone(&room),
            connection,
        };
        match self.run(owner, join) {
            Ok(Reply::Joined { new, generation }) => {
                self.instances[owner].members.insert((room, id), generation);
                format!("joined {new}")
            }
            other => format!("{other:?}"),
        }
    }

    fn leave(&mut self, by: usize, index: Index) -> String {
        let members = self.instances.iter().flat_map(|it| it.members.keys());
        let members: Vec<_> = members.collect();
        if members.is_empty() || self.instances[by].is_away {
            return String::new();
        }
        let (room, id) = index.get(&members).to_owned().clone();
        let connection = id.clone();
        let leave = Op::LeaveRoom {
            room: Arc::clone(&room),
            connection,
        };
        let told = told(self.run(by, leave));
        let owner = Self::owner(&id);
        if by == owner {
            self.instances[by].members.remove(&(room, id));
        } else {
            self.forget(owner, &room, &|(name, of)| *name == room && *of == id);
        }
        told
    }

    fn clear(&mut self, by: usize, room: &str) -> String {
        if self.instances[by].is_away {
            return String::new();
        }
        let room = Name::from(room);
        let told = told(self.run(by, Op::ClearRoom { room: room.clone() }));
        for who in 0..INSTANCES {
            self.forget(who, &room, &|(name, _)| *name == room);
        }
        told
    }

    /// An instance that is there hears that memberships of its own are over.
    fn forget(&mut self, who: usize, room: &Name, over: &dyn Fn(&(Name, ConnectionId)) -> bool) {
        let instance = &mut self.instances[who];
        if instance.is_away {
            return;
        }
        let over: Vec<_> = instance
            .members
            .extract_if(.., |member, _| over(member))
            .map(|((_, id), _)| id)
            .collect();
        if !over.is_empty() {
            let forget = Op::ForgetMembers {
                room: room.clone(),
                connections: over,
            };
            assert_eq!(self.run(who, forget).unwrap(), Reply::Done);
        }
    }

    fn change(&mut self, by: usize, connection: ConnectionId, json: u8) -> String {
        if self.instances[by].is_away {
            return String::new();
        }
        let owner = Self::owner(&connection);
        let id = connection.clone();
        let json = format!("{{\"b\":{json}}}").as_str().into();
        let change = Op::SetConnectionMetadata {
            connection,
            change: MetadataChange::Merge(json),
        };
        let reply = self.run(by, change);
        let told = format!("{reply:?}");
        if let Ok(Reply::Changed(Some(document))) = reply
            && !self.instances[owner].is_away
        {
            self.instances[owner].connections.insert(id, document);
        }
        told
    }

    fn lost(&mut self, who: usize) {
        assert_eq!(self.notice(who), Notice::Lost);
        self.instances[who].is_away = true;
    }

    /// An instance is back, states what it has but what it does not know of, and settles the rest.
    fn returned(&mut self, who: usize, unknown: &[Index]) -> String {
        let Notice::Restored { number, .. } = self.notice(who) else {
            panic!("no return");
        };
        let instance = &mut self.instances[who];
        instance.is_away = false;
        for index in unknown {
            let keys: Vec<_> = instance.members.keys().cloned().collect();
            if !keys.is_empty() {
                instance.members.remove(index.get(&keys));
            }
        }
        let connections: Vec<_> = instance.connections.clone().into_iter().collect();
        let members = instance.members.iter();
        let members: Vec<_> = members
            .map(|((room, id), generation)| (room.clone(), id.clone(), *generation))
            .collect();
        // In two parts, the first of which may have members whose connections are in the second.
        let (first, second) = connections.split_at(connections.len() / 2);
        let (many, few) = members.split_at(members.len() * 2 / 3);
        let mut out = String::new();
        for (connections, members) in [(first, many), (second, few)] {
            let restore = Op::Restore {
                connections: connections.to_vec(),
                members: members.to_vec(),
            };
            let Reply::Restored { mut changed, ended } = self.run(who, restore).unwrap() else {
                panic!("nothing restored");
            };
            changed.sort_by(|(one, _), (other, _)| one.cmp(other));
            let ended: BTreeSet<_> = ended.into_iter().collect();
            out += &format!("{changed:?} {ended:?}\n");
            let instance = &mut self.instances[who];
            instance.connections.extend(changed);
            instance.members.retain(|member, _| !ended.contains(member));
        }
        let settled = self.run(who, Op::Settle { number });
        assert_eq!(settled.unwrap(), Reply::Done);
        out
    }

    /// All that the store knows, as one that is there reads it.
    fn contents(&self) -> String {
        let Some(reader) = self.instances.iter().position(|it| !it.is_away) else {
            return String::new();
        };
        let rooms = ROOMS.map(|room| Op::RoomMembersMetadata { room: room.into() });
        let mut out = String::new();
        for op in rooms.into_iter().chain([Op::AllConnectionMetadata]) {
            let Ok(Reply::ConnectionsMetadata(mut all)) = self.run(reader, op) else {
                panic!("no metadata");
            };
            all.sort_by(|(one, _), (other, _)| one.cmp(other));
            out += &format!("{all:?}\n");
        }
        out
    }
}

/// A reply without what each store chooses for itself.
fn told(reply: Result<Reply, BackendError>) -> String {
    match reply {
        Ok(Reply::Cleared { .. }) => "cleared".to_owned(),
        other => format!("{other:?}"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 24,
        failure_persistence: None,
        // A case may wait for Redis as long as patience lasts.
        max_shrink_time: 60_000,
        ..ProptestConfig::default()
    })]

    #[test]
    fn what_is_lost_and_stated_again_is_as_in_redis(steps in vec(step(), 1..120)) {
        let (mut redis, mut simulated) = (Side::redis(), Side::simulated());
        for (number, step) in steps.iter().enumerate() {
            prop_assert_eq!(redis.take(step), simulated.take(step), "step {}: {:?}", number, step);
        }
        // Whoever is away comes back, and all see the same.
        for who in 0..INSTANCES {
            let back = Step::Return(who, Vec::new());
            prop_assert_eq!(redis.take(&back), simulated.take(&back), "{:?}", back);
        }
        prop_assert_eq!(redis.contents(), simulated.contents());
    }
}
