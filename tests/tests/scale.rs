//! How costs grow: what the table of `tests/README.md`, "Scale", has in its last column.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on fails"
)]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use mesh_core::backend::{Backend, ConnectionId, Document, Name, Op};
use mesh_redis::RedisBackend;
use mesh_tests::scale::{Case, Cluster, Cost, Plan, measure, redis};
use mesh_tests::{PATIENCE, Redis};

/// How many entries one operation of a shard states again.
const ENTRIES_PER_OPERATION: usize = 4_096;

/// How many machines an instance has.
const SHARDS: u64 = 16;

/// Partitions of Redis' keys.
const PARTITIONS: u64 = 128;

/// A cluster with so many instances, of which the first few have so many members of a room each.
fn with_members(instances: usize, holders: usize, each: usize) -> (Cluster, Vec<ConnectionId>) {
    let mut cluster = Cluster::new(instances);
    let room = room();
    let members = (0..holders * each).map(|number| {
        let id = cluster.connect(number % holders);
        cluster.join(&room, &id);
        id
    });
    let members = members.collect();
    (cluster, members)
}

fn room() -> Name {
    "room".into()
}

fn operations<const N: usize>(counts: [(&'static str, u64); N]) -> BTreeMap<&'static str, u64> {
    counts.into()
}

/// The costs of everything in a cluster.
fn costs(instances: usize, connections: usize) -> BTreeMap<Case, Cost> {
    let plan = Plan {
        instances,
        connections,
    };
    measure(plan).into_iter().collect()
}

#[test]
fn a_broadcast_is_one_operation_and_a_message_to_each_other_instance_with_members() {
    let mut costs = Vec::new();
    for (holders, each) in [(1, 1), (1, 50), (7, 1), (7, 50), (20, 50)] {
        let (mut cluster, _) = with_members(20, holders, each);
        // By one with members, which is the first to have some, and by one without.
        for (sender, others) in [(0, holders - 1), (19, holders.min(19))] {
            let cost = cluster.cost(|cluster| cluster.broadcast_room(&room(), sender));
            let case = format!("{holders} instances with {each} members each, by {sender}");
            assert_eq!(cost.operations, operations([("Publish", 1)]), "{case}");
            assert_eq!(cost.commands_of, [(sender, 1)].into(), "{case}");
            assert_eq!(cost.messages, others as u64, "{case}");
            assert_eq!(cost.events, (holders * each) as u64, "{case}");
            // Nothing comes back but the event itself, as it was sent.
            assert_eq!(cost.received, cost.sent * others as u64, "{case}");
            costs.push(cost.sent);
        }
    }
    assert!(costs.iter().all(|sent| *sent == costs[0]), "{costs:?}");
}

#[test]
fn what_one_thing_costs_does_not_grow_with_instances_or_connections() {
    let small = costs(10, 1_000);
    let (wide, crowded) = (costs(100, 1_000), costs(10, 6_000));
    let constant = [
        Case::Connect,
        Case::Join,
        Case::JoinFirst,
        Case::Leave,
        Case::LeaveLast,
        Case::Disconnect,
        Case::BroadcastOne,
    ];
    for case in constant {
        assert_eq!(small[&case], crowded[&case], "{case:?}");
        assert_eq!(small[&case], wide[&case], "{case:?}");
    }
    // With fewer connections an instance has fewer members, and that is all.
    for case in [Case::BroadcastSome, Case::Channel, Case::Record] {
        assert_eq!(small[&case], crowded[&case], "{case:?}");
        let events = wide[&case].events;
        assert_eq!((small[&case].events, events), (500, 50), "{case:?}");
        let cost = Cost {
            events: 500,
            ..wide[&case].clone()
        };
        assert_eq!(small[&case], cost, "{case:?}");
    }
    let count = |case, expected: &[(&'static str, u64)]| {
        let expected = expected.iter().copied().collect();
        assert_eq!(small[&case].operations, expected, "{case:?}");
    };
    count(Case::Connect, &[("OpenConnection", 1)]);
    count(Case::Join, &[("JoinRoom", 1)]);
    count(Case::JoinFirst, &[("Subscribe", 1), ("JoinRoom", 1)]);
    count(Case::Leave, &[("LeaveRoom", 1)]);
    count(Case::LeaveLast, &[("LeaveRoom", 1), ("Unsubscribe", 1)]);
    count(
        Case::Disconnect,
        &[("CloseConnection", 1), ("Unsubscribe", 1)],
    );
    count(Case::BroadcastOne, &[("Publish", 1)]);
    count(Case::BroadcastSome, &[("Publish", 1)]);
    count(Case::Channel, &[("PublishChannel", 1)]);
    count(Case::Record, &[("PublishRecord", 1)]);
    // Who listens is told, once each, and whoever published hears its own versions and channels.
    for (case, messages) in [
        (Case::Connect, 0),
        (Case::Join, 0),
        (Case::Leave, 0),
        (Case::Disconnect, 0),
        (Case::BroadcastOne, 1),
        (Case::BroadcastSome, 5),
        (Case::Channel, 5),
        (Case::Record, 5),
    ] {
        assert_eq!(small[&case].messages, messages, "{case:?}");
    }
    // The value goes to the store once; to the instances go patches.
    let record = &small[&Case::Record];
    assert!(
        record.sent > 1_000 && record.received < 5 * 200,
        "{record:?}"
    );
    for (costs, instances, connections) in [
        (&small, 10, 1_000),
        (&wide, 100, 1_000),
        (&crowded, 10, 6_000),
    ] {
        for case in [Case::Broadcast, Case::BroadcastEverybody] {
            let cost = &costs[&case];
            assert_eq!(cost.operations, operations([("Publish", 1)]), "{case:?}");
            assert_eq!(cost.messages, instances - 1, "{case:?}");
            assert_eq!(cost.events, connections, "{case:?}");
            assert_eq!(cost.sent, small[&case].sent, "{case:?}");
        }
        let clear = &costs[&Case::Clear];
        let counts = operations([("ClearRoom", 1), ("ForgetMembers", 5), ("Unsubscribe", 5)]);
        assert_eq!((&clear.operations, clear.messages), (&counts, 5));
    }
}

#[test]
fn a_crash_costs_each_survivor_a_heartbeat_and_one_of_them_the_cleaning_up() {
    let mut heirs = Vec::new();
    for (instances, each) in [(3, 1), (3, 100), (30, 100)] {
        let (mut cluster, members) = with_members(instances, instances, each);
        let victim = cluster.place_of(members.last().unwrap());
        let (lost, kept): (Vec<_>, Vec<_>) = members
            .into_iter()
            .partition(|id| cluster.place_of(id) == victim);
        let mut heir = None;
        let mut cost = cluster.cost(|cluster| heir = Some(cluster.crash(victim)));
        let case = format!("{instances} instances with {each} members each: {cost:?}");
        // No machine has anything to do.
        assert_eq!(cost.operations, operations([]), "{case}");
        let heir = cost.commands_of.remove(&heir.unwrap()).unwrap();
        assert_eq!(cost.commands_of.len(), instances - 2, "{case}");
        assert!(cost.commands_of.values().all(|one| *one == 1), "{case}");
        // Its memberships are of one room, and so a page. Connections are in as many partitions as chance has it.
        assert_eq!(cost.messages, 1, "{case}");
        let at_least = 1 + 128 + 256 + 1 + 2;
        assert!(
            heir > at_least && heir <= at_least + 2 * each as u64,
            "{case}"
        );
        let entries: usize = lost
            .iter()
            .map(|id| 2 * id.as_str().len() + "room".len())
            .sum();
        assert_eq!(cost.sent, entries as u64, "{case}");
        heirs.push(heir);
        assert_eq!(cluster.members(&room()), kept.iter().cloned().collect());
        assert!(
            cluster
                .connections()
                .keys()
                .eq(cluster.members(&room()).iter())
        );
        // And it listens no more.
        let cost = cluster.cost(|cluster| cluster.broadcast_room(&room(), 0));
        assert_eq!(cost.messages, instances as u64 - 2, "{case}");
        assert_eq!(cost.events, kept.len() as u64, "{case}");
    }
    assert!(heirs[0] < heirs[1], "{heirs:?}");
    assert!(heirs[1].abs_diff(heirs[2]) < 60, "{heirs:?}");
}

#[test]
fn after_a_loss_of_data_each_instance_states_its_own_in_batches() {
    const LARGE: usize = ENTRIES_PER_OPERATION + 1_000;
    // One instance whose share of the room needs two operations, and two with a little.
    let (mut cluster, mut members) = with_members(3, 1, LARGE);
    for server in [1, 2] {
        let id = cluster.connect(server);
        cluster.join(&room(), &id);
        members.push(id);
    }
    let (before, connections) = (cluster.members(&room()), cluster.connections());
    assert_eq!(before.len(), LARGE + 2);
    let cost = cluster.cost(Cluster::lose_data);
    // Nobody hears of another's.
    assert_eq!((cost.messages, cost.events), (0, 0));
    // The shard of the room has more than one operation takes, and the others what chance gave them.
    assert_eq!(cost.operations_of[&0], SHARDS + 1 + 1, "{cost:?}");
    // Those of one connection are in two shards at most.
    for server in [1, 2] {
        assert!((2..=3).contains(&cost.operations_of[&server]), "{cost:?}");
    }
    assert_eq!(cost.operations["Settle"], 3);
    // Each entry once: connections with metadata, and memberships.
    let metadata: usize = connections.values().flatten().map(|json| json.len()).sum();
    let ids: usize = members.iter().map(|id| id.as_str().len()).sum();
    let number = size_of::<u64>();
    let stated = 2 * ids + metadata + members.len() * (2 * number + "room".len());
    let topics = 3 * (16 + "room".len());
    assert_eq!(cost.sent, (stated + topics + 3 * number) as u64);
    // The store is as it was, and tells whoever listened.
    assert_eq!(cluster.members(&room()), before);
    assert_eq!(cluster.connections(), connections);
    let cost = cluster.cost(|cluster| cluster.broadcast_room(&room(), 0));
    assert_eq!((cost.messages, cost.events), (2, before.len() as u64));
}

#[test]
fn what_an_instance_states_again_does_not_depend_on_the_others() {
    let loss = |instances| {
        let (mut cluster, _) = with_members(instances, instances, 20);
        let cost = cluster.cost(Cluster::lose_data);
        assert_eq!(cost.operations_of.len(), instances);
        (cost.commands(), cost.sent, cost.received)
    };
    let (few, many) = (loss(4), loss(40));
    // As many more instances, as much more of all: but for how chance spreads their connections over partitions.
    assert_eq!((many.1, many.2), (10 * few.1, 10 * few.2));
    assert!(few.0.abs_diff(many.0 / 10) < few.0 / 20, "{few:?} {many:?}");
}

#[test]
fn what_an_instance_states_again_is_few_commands_however_much_it_is() {
    const EACH: usize = 8_000;
    let (mut cluster, members) = with_members(2, 2, EACH);
    for (number, id) in members.iter().enumerate() {
        cluster.join(&format!("room:{}", number / 4).into(), id);
    }
    let cost = cluster.cost(Cluster::lose_data);
    // To register, with a thousand rooms to listen to; what it had, connections and memberships; and to settle.
    let topics = (EACH / 2).div_ceil(512) as u64;
    let registering = 1 + PARTITIONS + topics + 1;
    // The shard of the large room takes two operations more, each of which may touch all of its partitions.
    let room = EACH.div_ceil(512) as u64;
    let more = 2 * (PARTITIONS / SHARDS + 1);
    let stating = 2 * PARTITIONS + room + more;
    let settling = 2 * PARTITIONS + 1;
    for (instance, commands) in &cost.commands_of {
        let most = registering + stating + settling;
        assert!(
            *commands <= most,
            "{instance}: {commands} commands, {most} at most"
        );
    }
}

#[test]
fn commands_are_counted_as_mesh_redis_sends_them() {
    const CONNECTIONS: usize = 700;
    let redis = Redis::start();
    runtime().block_on(async {
        // No heartbeat comes in between.
        let builder = mesh_redis::builder(redis.url()).lease(Duration::from_secs(600));
        let backend = builder.connect().await.unwrap();
        let instance = "a".into();
        backend
            .execute(Op::OpenInstance { instance })
            .await
            .unwrap();
        let connections: Vec<_> = (0..CONNECTIONS)
            .map(|number| ConnectionId::new(format!("a.{number}")))
            .collect();
        for id in &connections {
            let partition = redis::partition(id.as_str());
            assert_eq!(backend.partition(id.as_str()), Some(partition), "{id}");
        }
        let rooms = |number: usize| [room(), format!("room:{}", number % 40).into()];
        let members: Vec<(Name, ConnectionId)> = connections
            .iter()
            .enumerate()
            .flat_map(|(number, id)| rooms(number).map(|room| (room, id.clone())))
            .collect();
        for connection in connections.iter().cloned() {
            let metadata = None;
            let open = Op::OpenConnection {
                connection,
                metadata,
            };
            backend.execute(open).await.unwrap();
        }
        let document = |id: &ConnectionId| {
            let document = Document {
                json: None,
                revision: 1,
            };
            (id.clone(), document)
        };
        let restore = Op::Restore {
            connections: connections.iter().map(document).collect(),
            members: members
                .iter()
                .map(|(room, id)| (room.clone(), id.clone(), 0))
                .collect(),
        };
        let forget = Op::ForgetMembers {
            room: room(),
            connections: connections.clone(),
        };
        let close = Op::CloseConnection {
            connection: connections[0].clone(),
        };
        let (left, still) = (&members[2..], &connections[1..]);
        for (op, more) in [
            (restore, 0),
            (forget, 0),
            (close, redis::rooms_left(&rooms(0))),
        ] {
            let expected = redis::commands(&op) + more;
            let asked: String = format!("{op:?}").chars().take(40).collect();
            let before = backend.stats().commands;
            backend.execute(op).await.unwrap();
            let sent = backend.stats().commands - before;
            assert_eq!(sent, expected as u64, "{asked}");
        }
        let before = backend.stats().commands;
        backend.execute(Op::CloseInstance).await.unwrap();
        let sent = backend.stats().commands - before;
        assert_eq!(sent, redis::cleaning_up(left, still) as u64);
    });
}

#[test]
fn a_death_costs_one_survivor_on_redis_the_cleaning_up_and_the_other_next_to_nothing() {
    const CONNECTIONS: usize = 300;
    /// Of two leases at most, a third of one apart; and at each end of one.
    const HEARTBEATS: u64 = 12;
    let redis = Redis::start();
    runtime().block_on(async {
        let lease = Duration::from_secs(4);
        let mut backends = Vec::new();
        for instance in ["a", "b", "c"] {
            let backend = mesh_redis::builder(redis.url()).lease(lease).connect();
            let backend = backend.await.unwrap();
            let instance = instance.into();
            let opened = backend.execute(Op::OpenInstance { instance }).await;
            opened.unwrap();
            backends.push(backend);
        }
        let dead = backends.pop().unwrap();
        let (mut connections, mut members) = (Vec::new(), Vec::new());
        for number in 0..CONNECTIONS {
            let connection = ConnectionId::new(format!("c.{number}"));
            connections.push(connection.clone());
            members.push((room(), connection.clone()));
            let open = Op::OpenConnection {
                connection: connection.clone(),
                metadata: None,
            };
            dead.execute(open).await.unwrap();
            let room = room();
            let joined = dead.execute(Op::JoinRoom { room, connection }).await;
            joined.unwrap();
        }
        let before: Vec<_> = backends.iter().map(RedisBackend::stats).collect();
        drop(dead);
        let reaped = || backends.iter().map(|it| it.stats().instances_reaped);
        let patience = Instant::now() + PATIENCE;
        while reaped().sum::<u64>() == 0 {
            assert!(Instant::now() < patience, "nobody cleans up");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let reaping = redis::reaping(&members, &connections) as u64;
        for (backend, before) in backends.iter().zip(before) {
            let stats = backend.stats();
            let least = reaping * stats.instances_reaped;
            let sent = stats.commands - before.commands;
            assert!(
                (least + 1..=least + HEARTBEATS).contains(&sent),
                "{sent} commands, {least} of them to clean up"
            );
        }
    });
}

fn runtime() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.enable_all().build().unwrap()
}
