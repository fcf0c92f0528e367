//! A cluster in a simulated world: servers that share a store, clients that use them, faults, and what must be true all the same.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mesh_client_core::driver::{ChannelEvent, MeshClient, RecordChange};
use mesh_core::driver::{Context, MeshServer, Pattern, Runtime};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Cable, Clock, Conditions, Network, Node, SharedStore};

/// How long a cluster has after its last fault until everything must be as it should.
const REPAIR: Duration = Duration::from_secs(90);

/// What a run is made of.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// How many servers.
    pub instances: usize,
    /// How many clients, dealt to the servers in turn.
    pub clients: usize,
    /// How long they work, with faults, in simulated time.
    pub time: Duration,
    /// The mean pause between two faults.
    pub calm: Duration,
}

impl Default for Plan {
    /// Small, and as broken as it gets.
    fn default() -> Self {
        Self {
            instances: 3,
            clients: 6,
            time: Duration::from_secs(120),
            calm: Duration::from_secs(6),
        }
    }
}

/// What became of a run.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Report {
    /// What happened, in order: the last of it tells of a failure.
    pub log: Vec<String>,
    /// What should not have been. Empty: all is well.
    pub violations: Vec<String>,
    /// How many calls of clients were answered.
    pub answered: usize,
}

/// A run under way. Clones are handles.
#[derive(Clone)]
struct World {
    clock: Clock,
    network: Network,
    store: SharedStore,
    report: Arc<Mutex<Report>>,
}

impl World {
    fn log(&self, what: impl fmt::Display) {
        let line = format!("{:>12.6} {what}", self.clock.now().as_secs_f64());
        self.report().log.push(line);
    }

    fn violation(&self, what: impl fmt::Display) {
        self.log(format!("VIOLATION {what}"));
        self.report().violations.push(what.to_string());
    }

    fn report(&self) -> std::sync::MutexGuard<'_, Report> {
        self.report.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A message of a channel, by which its reader knows what came before.
#[derive(Debug, Deserialize, Serialize)]
struct Numbered {
    from: usize,
    number: u64,
}

/// A server of the cluster, by its host's number.
struct Host {
    name: String,
    node: Node,
    server: MeshServer,
    wire: u64,
}

impl Host {
    fn start(world: &World, n: usize) -> Self {
        let node = world.clock.node();
        let drift = i32::try_from(world.clock.below(400)).unwrap_or_default() - 200;
        let backend = world.store.backend();
        let wire = backend.wire();
        let server = MeshServer::builder()
            .backend(backend)
            .build_on(world.clock.runtime(node, drift));
        server.register_command("double", async |ctx: Context<u64>| Ok(ctx.payload * 2));
        server.register_command("publish", async |ctx: Context<Numbered>| {
            let text = serde_json::to_string(&ctx.payload).unwrap_or_default();
            ctx.server.publish_to_channel("news", &text, 10).await?;
            Ok(true)
        });
        server.expose_channel("news");
        let any = Pattern::regex("^r[0-9]$").ok();
        any.map(|rooms| server.expose_room(rooms));
        server.expose_writable_record("doc");
        server.expose_record("doc");
        let name = format!("host{n}.test");
        world.network.listen(&name, node, &server);
        Self {
            name,
            node,
            server,
            wire,
        }
    }
}

/// What one client does until it is told to stop, and what it believes then.
struct Caller {
    n: usize,
    world: World,
    runtime: Arc<dyn Runtime>,
    client: MeshClient,
    rooms: Arc<Mutex<Beliefs>>,
}

/// By room, whether a client was told last that it is a member; nothing where it does not know.
type Beliefs = BTreeMap<&'static str, bool>;

const ROOMS: [&str; 3] = ["r0", "r1", "r2"];

impl Caller {
    async fn work(self, until: Duration) {
        let Self {
            n, world, client, ..
        } = &self;
        let mut number = 0;
        while world.clock.now() < until {
            let pause = world
                .clock
                .between(Duration::ZERO, Duration::from_millis(600));
            self.sleep(pause).await;
            let room = ROOMS[usize::try_from(world.clock.below(3)).unwrap_or_default()];
            let outcome = match world.clock.below(5) {
                0 => {
                    number += 1;
                    let doubled: Result<u64, _> = client.command("double", number).await;
                    if let Ok(doubled) = doubled
                        && doubled != number * 2
                    {
                        world.violation(format!("client {n}: twice {number} is {doubled}"));
                    }
                    doubled.map(drop)
                }
                1 => {
                    let joined = client.join_room::<Value>(room).await.map(drop);
                    self.believe(room, joined.as_ref().ok().map(|()| true));
                    joined
                }
                2 => {
                    let left = client.leave_room(room).await;
                    self.believe(room, left.as_ref().ok().map(|()| false));
                    left
                }
                3 => {
                    number += 1;
                    let message = Numbered { from: *n, number };
                    let published: Result<bool, _> = client.command("publish", message).await;
                    published.map(drop)
                }
                _ => {
                    number += 1;
                    let value = json!({ "by": n, "number": number });
                    client.publish_record_update("doc", &value).await.map(drop)
                }
            };
            match outcome {
                Ok(()) => world.report().answered += 1,
                Err(error) => world.log(format!("client {n}: {error}")),
            }
        }
    }

    fn believe(&self, room: &'static str, is_member: Option<bool>) {
        let mut rooms = self.rooms.lock().unwrap_or_else(PoisonError::into_inner);
        match is_member {
            Some(is_member) => drop(rooms.insert(room, is_member)),
            None => drop(rooms.remove(room)),
        }
    }

    /// Messages of one publisher come in its order, none of them twice.
    async fn listen(world: World, n: usize, client: MeshClient) {
        let Ok(mut news) = client.subscribe("news").await else {
            return;
        };
        let mut last = BTreeMap::<usize, u64>::new();
        while let Some(event) = news.next().await {
            match event {
                ChannelEvent::Message(text) => {
                    let Ok(message) = serde_json::from_str::<Numbered>(&text) else {
                        world.violation(format!("client {n}: {text:?} is no message"));
                        continue;
                    };
                    let before = last.insert(message.from, message.number);
                    if before.is_some_and(|before| before >= message.number) {
                        world.violation(format!("client {n}: {message:?} behind {before:?}"));
                    }
                }
                other => world.log(format!("client {n}: {other:?}")),
            }
        }
    }

    async fn follow(world: World, n: usize, client: MeshClient, held: Arc<Mutex<Held>>) {
        let Ok(mut record) = client.subscribe_record::<Value>("doc").patch().await else {
            return;
        };
        let mut version = record.version();
        *held.lock().unwrap_or_else(PoisonError::into_inner) = Held {
            version,
            value: record.value().cloned(),
        };
        while let Some(update) = record.next().await {
            match update {
                Ok(update) => {
                    if update.version <= version && update.change != RecordChange::Reset {
                        let told = update.version;
                        world.violation(format!("client {n}: version {told} behind {version}"));
                    }
                    version = update.version;
                    let mut held = held.lock().unwrap_or_else(PoisonError::into_inner);
                    *held = Held {
                        version,
                        value: update.value,
                    };
                }
                Err(error) => world.log(format!("client {n}: {error}")),
            }
        }
    }

    async fn sleep(&self, pause: Duration) {
        let runtime = &self.runtime;
        runtime.sleep_until(runtime.now() + pause).await;
    }
}

/// What a client holds of the record.
#[derive(Clone, Debug, Default, PartialEq)]
struct Held {
    version: u64,
    value: Option<Value>,
}

/// One run, which the seed tells wholly.
pub fn simulate(seed: u64, plan: Plan) -> Report {
    let clock = Clock::new(seed);
    let world = World {
        network: Network::new(&clock, Conditions::default()),
        store: SharedStore::new(&clock),
        clock,
        report: Arc::default(),
    };
    let mut hosts: Vec<_> = (0..plan.instances)
        .map(|n| Host::start(&world, n))
        .collect();
    let mut clients = Vec::new();
    for n in 0..plan.clients {
        clients.push(begin(&world, n, &hosts[n % hosts.len()].name, plan.time));
    }
    disturb(&world, &mut hosts, &plan);
    world.log("no more faults");
    world.clock.run_until(plan.time + REPAIR);
    judge(&world, &hosts, &clients);
    drop((hosts, clients));
    world.clock.end();
    std::mem::take(&mut *world.report())
}

type Client = (MeshClient, Arc<Mutex<Beliefs>>, Arc<Mutex<Held>>);

fn begin(world: &World, n: usize, host: &str, until: Duration) -> Option<Client> {
    let node = world.clock.node();
    let runtime = world.clock.runtime(node, 0);
    let built = MeshClient::builder(&format!("ws://{host}/"))
        .reconnect_interval(Duration::from_millis(500))
        .build_on(Arc::clone(&runtime), world.network.connector());
    let client = match built {
        Ok(client) => client,
        Err(error) => {
            world.violation(format!("client {n} cannot be built: {error}"));
            return None;
        }
    };
    let held = Arc::new(Mutex::new(Held::default()));
    let (opening, failed) = (client.clone(), world.clone());
    world.clock.spawn(node, async move {
        if let Err(error) = opening.open().await {
            failed.log(format!("client {n}: {error}"));
        }
    });
    let listening = Caller::listen(world.clone(), n, client.clone());
    world.clock.spawn(node, listening);
    let following = Caller::follow(world.clone(), n, client.clone(), Arc::clone(&held));
    world.clock.spawn(node, following);
    let rooms = Arc::new(Mutex::new(Beliefs::new()));
    let caller = Caller {
        n,
        rooms: Arc::clone(&rooms),
        world: world.clone(),
        runtime,
        client: client.clone(),
    };
    world.clock.spawn(node, caller.work(until));
    Some((client, rooms, held))
}

/// Lets time pass, with faults, until the plan's time is over.
fn disturb(world: &World, hosts: &mut [Host], plan: &Plan) {
    loop {
        let calm = world.clock.between(Duration::ZERO, plan.calm * 2);
        let next = world.clock.now() + calm;
        if next >= plan.time {
            return world.clock.run_until(plan.time);
        }
        world.clock.run_until(next);
        let n = usize::try_from(world.clock.below(hosts.len() as u64)).unwrap_or_default();
        let host = &mut hosts[n];
        match world.clock.below(6) {
            0 => {
                world.log(format!("the clients of {} are cut off", host.name));
                let cables = world.network.cables(&host.name);
                cables.iter().for_each(Cable::cut);
            }
            1 => {
                let pause = world.clock.between(Duration::ZERO, Duration::from_secs(20));
                world.log(format!(
                    "the clients of {} hear nothing for {pause:?}",
                    host.name
                ));
                let cables = world.network.cables(&host.name);
                cables.iter().for_each(Cable::stall);
                world
                    .clock
                    .after(pause, move || cables.iter().for_each(Cable::go_on));
            }
            2 | 3 => {
                world.log(format!("{} loses the store", host.name));
                world.store.cut(Some(host.wire));
            }
            4 => {
                world.log("everybody loses the store");
                world.store.cut(None);
            }
            _ => {
                world.log(format!("{} dies and starts again", host.name));
                world.clock.kill(host.node);
                *host = Host::start(world, n);
            }
        }
    }
}

/// Runs this in the world, for it needs time to pass.
fn ask<T: Send + 'static>(
    world: &World,
    question: impl Future<Output = T> + Send + 'static,
) -> Option<T> {
    let answer = Arc::new(Mutex::new(None));
    let slot = Arc::clone(&answer);
    world.clock.spawn(world.clock.node(), async move {
        let value = question.await;
        *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(value);
    });
    world
        .clock
        .run_until(world.clock.now() + Duration::from_secs(10));
    let mut answer = answer.lock().unwrap_or_else(PoisonError::into_inner);
    answer.take()
}

/// After the repair everything agrees.
fn judge(world: &World, hosts: &[Host], clients: &[Option<Client>]) {
    let mut ids = BTreeSet::new();
    for (n, (client, ..)) in clients.iter().flatten().enumerate() {
        match client.connection_id() {
            Some(id) if client.is_online() => {
                ids.insert(id);
            }
            _ => world.violation(format!("client {n} is not connected")),
        }
    }
    let stored = world.store.members();
    for (n, (client, rooms, _)) in clients.iter().flatten().enumerate() {
        let id = client.connection_id().unwrap_or_default();
        let rooms = rooms.lock().unwrap_or_else(PoisonError::into_inner);
        for (room, believed) in rooms.iter() {
            let is_member = stored
                .iter()
                .any(|(name, member)| **name == **room && member.as_str() == id);
            if is_member != *believed {
                world.violation(format!(
                    "client {n} in {room}: {is_member}, and it was told {believed}"
                ));
            }
        }
    }
    for host in hosts {
        let name = &host.name;
        let server = host.server.clone();
        let known = ask(world, async move { server.connections().ids().await });
        let known = known.and_then(Result::ok).map(|all| {
            let all = all.iter().map(|id| id.as_str().to_owned());
            all.collect::<BTreeSet<_>>()
        });
        if known.as_ref() != Some(&ids) {
            world.violation(format!("{name} knows {known:?}, and there are {ids:?}"));
        }
        let local: BTreeSet<_> = stored
            .iter()
            .filter(|(_, id)| host.server.connections().local(id).is_some())
            .cloned()
            .collect();
        for room in ROOMS {
            let server = host.server.clone();
            let members = ask(world, async move { server.room_members(room).await });
            let members: Option<BTreeSet<_>> = members
                .and_then(Result::ok)
                .map(|all| all.into_iter().collect());
            let expected: BTreeSet<_> = stored
                .iter()
                .filter(|(name, _)| **name == *room)
                .map(|(_, id)| id.clone())
                .collect();
            if members.as_ref() != Some(&expected) {
                world.violation(format!(
                    "{name} has {members:?} in {room}, not {expected:?}"
                ));
            }
        }
        for (room, id) in local {
            let server = host.server.clone();
            let asked = (room.clone(), id.clone());
            let is_member = ask(
                world,
                async move { server.is_in_room(&asked.0, &asked.1).await },
            );
            if is_member != Some(Ok(true)) {
                world.violation(format!("{name} says {is_member:?} of {id} in {room}"));
            }
        }
    }
    if let Some(host) = hosts.first() {
        let server = host.server.clone();
        let record = ask(
            world,
            async move { server.get_record::<Value>("doc").await },
        );
        for (n, (.., held)) in clients.iter().flatten().enumerate() {
            let held = held.lock().unwrap_or_else(PoisonError::into_inner).clone();
            match &record {
                Some(Ok(record)) if record.version == held.version => {
                    if record.value != held.value {
                        world.violation(format!("client {n} holds {held:?}, not {record:?}"));
                    }
                }
                record => world.violation(format!("client {n} holds {held:?}, not {record:?}")),
            }
        }
    }
}
