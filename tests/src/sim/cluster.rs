//! A cluster in a simulated world: servers that share a store, clients that use them, faults, and what must be true all the same.

use std::any::Any;
use std::collections::BTreeSet;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use futures_util::future::poll_fn;
use mesh_core::driver::{ByteStream, Payload};

use super::caller::{Caller, RECORDS, SILENCE_MAX};
use super::host::{DRAIN, Host, PING_INTERVAL, QUEUE_BYTES_MAX};
use super::judge::judge;
use super::schedule::{Fault, Plan, Schedule, TRAP_MAX};
use super::store::Trap;
use super::world::{DELIVERY_MAX, RECOVERY_MAX, VIOLATION, World};
use super::{Cable, Clock, Conditions, LEASE, Network, Node, Pipe, SharedStore};

/// How long clients work on behind the last fault, until everything must be as it should.
const REPAIR: Duration = Duration::from_secs(24);

/// How long what is under way has at the end.
const QUIET: Duration = Duration::from_secs(9);

/// How often everybody is looked into.
const LOOK: Duration = Duration::from_millis(300);

/// The latest that a server begins.
const LATE_MAX: Duration = Duration::from_secs(3);

/// How long nothing happens at the end, and how often an instance may ask the store meanwhile: for the versions of its records.
const IDLE: Duration = Duration::from_secs(3);
const IDLE_OPERATIONS_MAX: u64 = 12;

/// The longest that a server may keep a connection that is silent: an interval under way, one that is forgiven and one more, with its close.
const DEAD_MAX: Duration = Duration::from_secs(PING_INTERVAL.as_secs() * 3 + 2);

/// How many runs shrinking a schedule may take.
const SHRINK_MAX: usize = 200;

/// What became of a run.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Report {
    /// What broke.
    pub schedule: Schedule,
    /// What happened, in order: the last of it tells of a failure.
    pub log: Vec<String>,
    /// What should not have been. Empty: all is well.
    pub violations: Vec<String>,
    /// How many calls of clients were answered.
    pub answered: usize,
    /// The kinds of operations that the store was asked for.
    pub asked: BTreeSet<String>,
    /// Those of them that a wire broke over, before or after they took effect.
    pub trapped: BTreeSet<(String, Trap)>,
    /// How much time passed in the world.
    pub time: Duration,
}

impl Report {
    /// Where in the log that much stands of what came before the first violation, and it.
    pub fn last(&self, lines: usize) -> (usize, usize) {
        let is_first = |line: &String| line.contains(VIOLATION);
        let first = self.log.iter().position(is_first);
        let until = first.map_or(self.log.len(), |first| first + 1);
        (until.saturating_sub(lines), until)
    }

    /// What was broken first, without whom by and which.
    fn kind(&self) -> Option<String> {
        let words = self.violations.first()?.split_whitespace();
        let is_name = |word: &&str| !word.contains(|it: char| it.is_ascii_digit());
        Some(words.filter(is_name).collect())
    }

    /// Tells runs apart by all that happened in them.
    pub fn digest(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.log.hash(&mut hasher);
        hasher.finish()
    }
}

/// One run, which the seed tells wholly.
pub fn simulate(seed: u64, plan: Plan) -> Report {
    run(seed, plan, plan.schedule(seed))
}

/// The same seed with as few of its faults as it takes to break the same promise: of a run that breaks one.
pub fn shrink(seed: u64, plan: Plan) -> Report {
    let mut least = simulate(seed, plan);
    let kind = least.kind();
    let mut runs = 0;
    let mut size = least.schedule.len().div_ceil(2);
    while size > 0 && !least.violations.is_empty() {
        let mut from = 0;
        while from < least.schedule.len() && runs < SHRINK_MAX {
            let mut fewer = least.schedule.clone();
            let until = (from + size).min(fewer.len());
            fewer.drain(from..until);
            runs += 1;
            let report = run(seed, plan, fewer);
            if report.kind() == kind {
                least = report;
            } else {
                from += size;
            }
        }
        size /= 2;
    }
    least
}

/// One run of a seed under these faults.
fn run(seed: u64, plan: Plan, schedule: Schedule) -> Report {
    let clock = Clock::new(seed);
    let conditions = if clock.once_in(4) {
        Conditions::FAR
    } else {
        Conditions::default()
    };
    let network = Network::new(&clock, conditions);
    let store = SharedStore::new(&clock);
    let world = World::new(clock, network, store);
    let outcome = catch_unwind(AssertUnwindSafe(|| live(&world, plan, &schedule)));
    if let Err(panic) = outcome {
        world.violation(format_args!("panicked: {}", words(&*panic)));
    }
    let mut state = world.state();
    let ended = (
        std::mem::take(&mut state.hosts),
        std::mem::take(&mut state.seats),
    );
    drop(state);
    drop(ended);
    let time = world.now();
    world.clock.end();
    let (asked, trapped) = world.store.trapped();
    let mut state = world.state();
    Report {
        schedule,
        asked,
        trapped,
        log: world.clock.journal(),
        violations: std::mem::take(&mut state.violations),
        answered: state.answered,
        time,
    }
}

fn words(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("without a word")
}

fn live(world: &World, plan: Plan, schedule: &Schedule) {
    for record in RECORDS {
        // What is first written while something is broken some servers have not heard of.
        if world.clock.once_in(2) {
            let begin = world.clock.between(Duration::ZERO, plan.time);
            world.state().begins.insert(record, begin);
        }
    }
    for n in 0..plan.instances {
        let host = Host::start(world, n);
        world.state().hosts.push(host);
    }
    if world.clock.once_in(3) {
        // Clients come before their server does.
        let late = world.clock.between(Duration::ZERO, LATE_MAX);
        die(world, 0, late);
    }
    for n in 0..plan.clients {
        Caller::begin(world, n, n % plan.instances, plan.time + REPAIR);
    }
    world.disturb(Duration::from_secs(1));
    look(world);
    for (at, fault) in schedule {
        world.clock.run_until(*at);
        happen(world, plan, fault);
    }
    world.clock.run_until(plan.time);
    world.log("no more faults");
    world.clock.run_until(plan.time + REPAIR + QUIET - IDLE);
    let before = world.store.operations();
    world.clock.run_until(plan.time + REPAIR + QUIET);
    let asked = world.store.operations() - before;
    if asked > IDLE_OPERATIONS_MAX * plan.instances as u64 {
        world.violation(format_args!(
            "nothing happens, and the store was asked {asked} times"
        ));
    }
    judge(world);
}

/// At any time the tables of every server agree with each other, and what servers and clients keep is within their limits.
fn look(world: &World) {
    let state = world.state();
    let servers: Vec<_> = state.hosts.iter().map(|host| host.server.clone()).collect();
    let clients: Vec<_> = state.seats.iter().map(|seat| seat.client.clone()).collect();
    drop(state);
    for server in servers {
        server.check();
    }
    for client in clients {
        client.check();
    }
    world.settle();
    let again = world.clone();
    world.clock.after(LOOK, move || look(&again));
}

fn happen(world: &World, plan: Plan, fault: &Fault) {
    world.log(format_args!("{fault:?}"));
    match *fault {
        Fault::CutClients { host } => {
            world.disturb_clients(host, Duration::from_secs(1));
            cables(world, host).iter().for_each(Cable::cut);
        }
        Fault::StallClients { host, pause } => stall(world, host, pause),
        Fault::Flood { host, pause } => {
            stall(world, host, pause);
            flood(world, host);
        }
        Fault::LoseStore { host, away } => {
            let wire = world.state().hosts[host].wire;
            world.store.cut(Some(wire), away);
        }
        Fault::LoseStoreEverywhere { away } => world.store.cut(None, away),
        Fault::FreezeStore { pause } => {
            world.disturb(pause + Duration::from_secs(1));
            world.store.freeze(pause);
        }
        Fault::Trap { trap, kind } => {
            let left = (plan.time + RECOVERY_MAX).saturating_sub(world.now());
            world.store.trap(trap, kind, left.min(TRAP_MAX));
        }
        Fault::LoseChange { host } => {
            let wire = world.state().hosts[host].wire;
            world.store.lose_change(wire);
        }
        Fault::FailOver { tail } => {
            world.store.replicate();
            world.disturb(tail + RECOVERY_MAX);
            let world = world.clone();
            let clock = world.clock.clone();
            clock.after(tail, move || fail_over(&world, Some(tail)));
        }
        Fault::LoseData => {
            world.disturb(RECOVERY_MAX);
            fail_over(world, None);
        }
        Fault::Crash { host, down } => {
            world.disturb(Duration::from_secs(1));
            die(world, host, down);
        }
        Fault::Restart { host, down } => restart(world, host, down),
        Fault::Garbage { host } => garbage(world, host),
        Fault::Visit { host, stay } => visit(world, host, stay),
    }
}

/// What was written last is lost, or everything, where there is no replica.
fn fail_over(world: &World, tail: Option<Duration>) {
    let now = world.now();
    let mut state = world.state();
    state.fail_over(now, tail);
    // Who was taken out may be in it again.
    state.dead_until = now + LEASE + RECOVERY_MAX;
    drop(state);
    world.log("the store fails over");
    world.store.fail_over();
}

fn cables(world: &World, host: usize) -> Vec<Cable> {
    let name = world.state().hosts[host].name.clone();
    world.network.cables(&name)
}

/// Nobody is told, and everybody finds out.
fn stall(world: &World, host: usize, pause: Duration) {
    world.disturb_clients(host, pause + Duration::from_secs(1));
    let state = world.state();
    let (server, node) = (state.hosts[host].server.clone(), state.hosts[host].node);
    let name = state.hosts[host].name.clone();
    let silent: Vec<_> = (state.seats.iter())
        .filter(|seat| seat.host == host)
        .filter_map(|seat| Some((seat.client.clone(), seat.client.connection_id()?)))
        .collect();
    drop(state);
    world.network.stall(&name);
    if pause > DEAD_MAX.max(SILENCE_MAX) {
        let world = world.clone();
        let clock = world.clock.clone();
        clock.after(DEAD_MAX.max(SILENCE_MAX), move || {
            for (client, id) in silent {
                if client.is_online() && client.connection_id() == Some(id.clone()) {
                    world.violation(format_args!("{id} is silent, and its client waits on"));
                }
                let is_held = server.connections().local(id.as_str()).is_some();
                if is_held && lives(&world, host, node) {
                    world.violation(format_args!("{id} is silent, and its server waits on"));
                }
            }
        });
    }
    let network = world.network.clone();
    world.clock.after(pause, move || network.go_on(&name));
}

/// Sends clients that hear nothing more than is kept for them.
fn flood(world: &World, host: usize) {
    const PIECE: usize = 16 << 10;
    let state = world.state();
    let (server, node) = (state.hosts[host].server.clone(), state.hosts[host].node);
    let ids: Vec<_> = (state.seats.iter())
        .filter(|seat| seat.host == host)
        .filter_map(|seat| seat.client.connection_id())
        .collect();
    drop(state);
    let piece = Payload::new(&"x".repeat(PIECE));
    for id in ids {
        let Some(connection) = server.connections().local(id.as_str()) else {
            continue;
        };
        // Beside what is kept here, what is under way is kept elsewhere.
        for _ in 0..QUEUE_BYTES_MAX / PIECE + 8 {
            if let Ok(piece) = &piece {
                let _ = connection.send("flood", piece);
            }
        }
        let world = world.clone();
        let clock = world.clock.clone();
        clock.after(DELIVERY_MAX * 2, move || {
            if connection.is_open() && lives(&world, host, node) {
                world.violation(format_args!(
                    "{id} reads nothing, and everything is kept for it"
                ));
            }
        });
    }
}

/// Whether the process that ran there then still does.
fn lives(world: &World, host: usize, node: Node) -> bool {
    let state = world.state();
    let host = &state.hosts[host];
    host.node == node && !host.is_down
}

fn die(world: &World, n: usize, down: Duration) {
    let mut state = world.state();
    let host = &mut state.hosts[n];
    if std::mem::replace(&mut host.is_down, true) {
        return;
    }
    let (node, wire) = (host.node, host.wire);
    state.dead_until = world.now() + LEASE + RECOVERY_MAX;
    drop(state);
    world.clock.kill(node);
    world.expect_departures(n);
    // Whoever judges holds the server still, and its backend with it.
    world.store.die(wire);
    let world = world.clone();
    let clock = world.clock.clone();
    clock.after(down, move || {
        let host = Host::start(&world, n);
        world.log(format_args!(
            "{} starts as {}",
            host.name,
            host.server.instance_id()
        ));
        let before = std::mem::replace(&mut world.state().hosts[n], host);
        drop(before);
    });
}

/// A process that is told to stop closes its connections, and is gone when it has done so.
fn restart(world: &World, n: usize, down: Duration) {
    let time = DRAIN + Duration::from_secs(3);
    let now = world.now();
    let mut state = world.state();
    let host = &mut state.hosts[n];
    if host.is_down || host.stopping_since.is_some() {
        return;
    }
    host.stopping_since = Some(now);
    let (server, node) = (host.server.clone(), host.node);
    drop(state);
    world.clock.spawn(node, async move {
        let _ = server.shutdown().await;
    });
    let world = world.clone();
    let clock = world.clock.clone();
    clock.after(time, move || {
        if lives(&world, n, node) {
            die(&world, n, down);
        }
    });
}

const HANDSHAKE: &[u8] =
    b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

/// A cable to a host, if anybody listens there.
fn dial(world: &World, host: usize) -> Option<Pipe> {
    let name = world.state().hosts[host].name.clone();
    world.network.dial(&name).ok()
}

/// Says this and hears whatever comes, until the end.
async fn say(mut pipe: Pipe, said: Vec<u8>) {
    let _ = poll_fn(|cx| pipe.poll_write(cx, &said)).await;
    let mut buffer = [0; 1024];
    while matches!(poll_fn(|cx| pipe.poll_read(cx, &mut buffer)).await, Ok(1..)) {}
}

/// Speaks no WebSocket in the packet of the handshake; the server says no more to it, and lives.
fn garbage(world: &World, host: usize) {
    let Some(pipe) = dial(world, host) else {
        return;
    };
    let (world, began) = (world.clone(), world.now());
    world.clone().clock.spawn(world.clock.node(), async move {
        say(pipe, [HANDSHAKE, &[0xff; 4]].concat()).await;
        if world.now() > began + LEASE && world.is_whole_since(began) {
            world.violation("who speaks no WebSocket is kept");
        }
    });
}

/// Comes, and is gone without a word before long.
fn visit(world: &World, host: usize, stay: Duration) {
    let Some(pipe) = dial(world, host) else {
        return;
    };
    let node = world.clock.node();
    world.clock.spawn(node, say(pipe, HANDSHAKE.to_vec()));
    let clock = world.clock.clone();
    world.clock.after(stay, move || clock.kill(node));
}
