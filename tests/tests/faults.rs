//! Real faults behind servers whose clients stay connected all along (`protocol.md`, section 9): whatever happens to an
//! instance, to Redis or to the way between them, within 15 s of the repair every promise holds again.
//!
//! Most of the time these tests wait for leases and timeouts, so many of them may run at once.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on fails"
)]

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use mesh_tests::fleet::{ALL, ANSWERED, CHAT, FIRSTS, Fleet, REAPED, RECOVERY, ask, id_set};
use mesh_tests::prelude::*;
use mesh_tests::runtime::{self, Background};
use mesh_tests::{Proxy, RawClient, Redis, until, until_some};
use serde_json::{Value, json};

fn room(name: &str) -> Value {
    json!({ "roomName": name })
}

/// Two servers, each with three clients, that reach Redis by a proxy each.
fn by_proxies(redis: &Redis) -> ([Proxy; 2], Fleet) {
    let proxies = [(); 2].map(|()| Proxy::to(redis.addr()));
    let urls = proxies.each_ref().map(Proxy::url);
    (proxies, Fleet::on(&urls, 3))
}

/// So many servers, each with three clients, that reach Redis directly.
fn on(redis: &Redis, servers: usize) -> Fleet {
    Fleet::on(&vec![redis.url(); servers], 3)
}

/// The members of a room, as a server tells them now; `None` if it cannot tell.
fn members(client: &mut RawClient, name: &str) -> Option<BTreeSet<String>> {
    let list = ask(client, "room-members", room(name)).ok()?;
    Some(id_set(&list).unwrap())
}

/// Sleeps, for what must last so long; not for what must happen.
fn last(duration: Duration) {
    thread::sleep(duration);
}

#[test]
fn an_instance_that_is_killed_is_in_no_room_no_list_and_no_metadata_within_20_s() {
    let redis = Redis::start();
    let mut fleet = on(&redis, 3);
    let (gone, died) = fleet.kill(1);
    assert_eq!(gone.len(), 3);
    // The others do not notice.
    for home in [0, 2] {
        let at = fleet.first(home);
        let event = json!({ "roomName": ALL, "command": "meanwhile", "payload": home });
        let reply = fleet.raw(at).command("broadcast-room", event);
        assert_eq!(reply, json!({ "sent": true }));
    }
    for member in &mut fleet.clients {
        let mut came = [member.raw.event("meanwhile"), member.raw.event("meanwhile")];
        came.sort_by_key(Value::as_u64);
        assert_eq!(came, [0, 2]);
    }
    let at = fleet.first(0);
    loop {
        let all = fleet.raw(at).command("all-metadata", Value::Null);
        let all = all.to_string();
        let listed = [ALL, FIRSTS].map(|name| members(fleet.raw(at), name).unwrap());
        let there = |id: &String| all.contains(&**id) || listed.iter().any(|set| set.contains(id));
        if !gone.iter().any(there) {
            break;
        }
        assert!(died.elapsed() < REAPED, "still there: {all} {listed:?}");
        last(Duration::from_millis(100));
    }
    eprintln!("gone {:?} after the kill", died.elapsed());
    fleet.every_promise_holds(Instant::now());
    let ghosts: Vec<_> = redis
        .client()
        .keys()
        .into_iter()
        .filter(|key| key.expires_in.is_none() && gone.iter().any(|id| key.mentions(id)))
        .collect();
    assert!(ghosts.is_empty(), "{ghosts:#?}");
    fleet.shut_down(&mut [redis.client()]);
}

#[test]
fn an_instance_that_is_stopped_for_40_s_in_the_middle_of_a_join_comes_back_with_all_its_members() {
    const JOINS: usize = 400;
    let redis = Redis::start();
    let mut fleet = on(&redis, 2);
    let stopped_at = fleet.first(1);
    let id = fleet.id(stopped_at);
    let joined: Vec<u32> = (0..JOINS)
        .map(|n| {
            let name = json!({ "roomName": format!("middle-{n}") });
            fleet.raw(stopped_at).send_command("join-room", name)
        })
        .collect();
    // Some of them have begun, and some have not.
    assert_eq!(fleet.raw(stopped_at).reply(joined[20])["success"], true);
    fleet.demo(1).signal("STOP");
    let stopped = Instant::now();
    let watcher = fleet.first(0);
    loop {
        let listed = members(fleet.raw(watcher), ALL).unwrap();
        if listed.len() == 3 {
            break;
        }
        assert!(stopped.elapsed() < REAPED, "still members: {listed:?}");
        last(Duration::from_millis(100));
    }
    eprintln!("reaped {:?} after the stop", stopped.elapsed());
    // Nothing that was under way makes a ghost.
    for n in 0..JOINS {
        let listed = members(fleet.raw(watcher), &format!("middle-{n}")).unwrap();
        assert_eq!(listed, BTreeSet::new(), "middle-{n}");
    }
    // What others do meanwhile counts.
    fleet.clear_room(watcher, FIRSTS);
    fleet.join(watcher, FIRSTS);
    last(Duration::from_secs(40).saturating_sub(stopped.elapsed()));
    fleet.demo(1).signal("CONT");
    let repaired = Instant::now();
    for (n, command) in joined.into_iter().enumerate() {
        if n == 20 {
            continue; // Its reply was read before.
        }
        let left = RECOVERY.saturating_sub(repaired.elapsed());
        let reply = fleet.raw(stopped_at).reply_within(command, left);
        let reply = reply.unwrap_or_else(|| panic!("join {n} hangs"));
        let known = reply["success"] == true || reply["code"] == "EUNAVAILABLE";
        assert!(known, "join {n}: {reply}");
        if reply["success"] == true {
            fleet.expect_in(&format!("middle-{n}"), id.clone());
        }
    }
    fleet.expect_in("middle-20", id);
    fleet.every_promise_holds_after(repaired, &[1], &[]);
}

#[test]
fn a_primary_killed_with_an_unreplicated_tail_is_replaced_by_its_replica() {
    let redis = Redis::start();
    let (proxies, mut fleet) = by_proxies(&redis);
    let replica = redis.replica();
    let [first, second] = [0, 1].map(|home| fleet.first(home));
    fleet.set_room_metadata(first, "room:kept", json!({ "before": "the failover" }));
    until("the replica has it", || {
        let keys = replica.client().keys();
        keys.iter().any(|key| key.mentions("the failover"))
    });
    for at in [first, second] {
        fleet.join(at, "room:cleared");
    }
    until("the replica has them", || {
        let room = |key: &mesh_tests::Key| key.mentions("room:cleared");
        let [theirs, mine] = [&redis, &replica].map(|redis| redis.client().keys());
        theirs.iter().filter(|key| room(key)).count() == mine.iter().filter(|key| room(key)).count()
    });
    // From here on nothing reaches the replica.
    replica.promote();
    fleet.join(first, "room:tail");
    fleet.join(second, "room:tail");
    fleet.leave(second, FIRSTS);
    fleet.set_metadata(first, json!("set in the tail"));
    fleet.clear_room(second, "room:cleared");
    fleet.join(second, "room:cleared");
    let came = fleet.connect(0);
    fleet.join(came, ALL);
    let granted = fleet
        .raw(came)
        .command("mesh/subscribe-channel", json!({ "channel": CHAT }));
    assert_eq!(granted["success"], true);
    let went = fleet.connect(1);
    let went = fleet.clients.remove(went).raw;
    fleet.forget(went.id());
    went.vanish();
    drop(redis);
    for proxy in &proxies {
        proxy.retarget(replica.addr());
    }
    let repaired = Instant::now();
    fleet.every_promise_holds_after(repaired, &[0, 1], &[]);
    fleet.clear_room(first, "room:kept");
    fleet.shut_down(&mut [replica.client()]);
}

/// Kills Redis under two servers, looks at how they do without, and starts it again.
fn killed_and_restarted(mut redis: Redis, restart: impl FnOnce(&mut Redis, &mut Fleet)) {
    let mut fleet = on(&redis, 2);
    redis.kill();
    let since = Instant::now();
    let doubts = fleet.goes_on_without(&[0, 1], since);
    restart(&mut redis, &mut fleet);
    let repaired = Instant::now();
    fleet.every_promise_holds_after(repaired, &[0, 1], &doubts);
    fleet.shut_down(&mut [redis.client()]);
}

#[test]
fn redis_killed_and_restarted_with_its_data() {
    killed_and_restarted(Redis::durable(), |redis, _| redis.restart());
}

#[test]
fn redis_killed_and_restarted_without_its_data() {
    killed_and_restarted(Redis::start(), |redis, fleet| {
        redis.restart_empty();
        fleet.data_lost();
    });
}

/// Freezes Redis under three servers; nobody alive is reaped.
fn frozen(duration: Duration) {
    let redis = Redis::start();
    let mut fleet = on(&redis, 3);
    redis.freeze();
    let since = Instant::now();
    let doubts = fleet.goes_on_without(&[0, 1, 2], since);
    last(duration.saturating_sub(since.elapsed()));
    redis.thaw();
    let repaired = Instant::now();
    // Whenever anybody can say who is there, everybody is.
    let everybody = fleet.members_of(ALL);
    while repaired.elapsed() < Duration::from_secs(8) {
        for home in fleet.living() {
            let at = fleet.first(home);
            if let Some(is) = members(fleet.raw(at), ALL) {
                assert_eq!(is, everybody, "someone alive was reaped");
            }
        }
        last(Duration::from_millis(20));
    }
    fleet.every_promise_holds_after(repaired, &[0, 1, 2], &doubts);
    fleet.shut_down(&mut [redis.client()]);
}

#[test]
fn redis_frozen_for_10_s_and_nobody_alive_is_reaped() {
    frozen(Duration::from_secs(10));
}

#[test]
fn redis_frozen_for_20_s_and_nobody_alive_is_reaped() {
    frozen(Duration::from_secs(20));
}

#[test]
fn after_a_stall_nobody_is_reaped_before_redis_has_answered_for_a_full_lease() {
    let redis = Redis::start();
    let (proxies, mut fleet) = by_proxies(&redis);
    let everybody = fleet.members_of(ALL);
    redis.freeze();
    last(Duration::from_secs(18));
    // One server finds the way back later than the other, to which it looks dead.
    proxies[1].partition();
    redis.thaw();
    let thawed = Instant::now();
    let at = fleet.first(0);
    let mut seen = 0;
    while thawed.elapsed() < Duration::from_secs(13) {
        if let Some(is) = members(fleet.raw(at), ALL) {
            let after = thawed.elapsed();
            assert_eq!(is, everybody, "{after:?} after the stall");
            seen += 1;
        }
        last(Duration::from_millis(50));
    }
    assert!(seen > 20, "the first server found the way back");
    proxies[1].heal();
    fleet.every_promise_holds_after(Instant::now(), &[0, 1], &[]);
    fleet.shut_down(&mut [redis.client()]);
}

/// Cuts the second of two servers off, does to its clients what makes a return interesting, and lets it return.
fn changed_while_partitioned(partition: Duration) {
    let redis = Redis::start();
    let (proxies, mut fleet) = by_proxies(&redis);
    let [here, there] = [0, 1].map(|home| fleet.first(home));
    let second = there + 1;
    for name in ["room:cleared", "room:refilled", "room:removed", "room:kept"] {
        for at in [here, there, second] {
            fleet.join(at, name);
        }
        fleet.set_room_metadata(here, name, json!({ "of": name }));
    }
    proxies[1].partition();
    let since = Instant::now();
    let doubts = fleet.goes_on_without(&[1], since);
    // The others go on undisturbed.
    assert_eq!(fleet.demo(0).get("/health").status, 200);
    fleet.clear_room(here, "room:cleared");
    fleet.clear_room(here, "room:refilled");
    fleet.join(here, "room:refilled");
    fleet.set_room_metadata(here, "room:refilled", json!("new"));
    fleet.set_room_metadata(here, "room:kept", json!("changed meanwhile"));
    fleet.set_metadata(here, json!("changed meanwhile"));
    fleet.leave(here, "room:removed");
    // One of its clients goes while nobody can be told.
    let went = fleet.clients.remove(second).raw;
    fleet.forget(went.id());
    went.vanish();
    last(partition.saturating_sub(since.elapsed()));
    proxies[1].heal();
    fleet.every_promise_holds_after(Instant::now(), &[1], &doubts);
    for name in ["room:refilled", "room:removed", "room:kept"] {
        fleet.clear_room(here, name);
    }
    fleet.shut_down(&mut [redis.client()]);
}

#[test]
fn what_is_cleared_removed_or_changed_during_a_short_partition_is_not_resurrected() {
    changed_while_partitioned(Duration::from_secs(8));
}

#[test]
fn what_is_cleared_removed_or_changed_during_a_partition_that_outlives_the_lease_is_not_resurrected()
 {
    changed_while_partitioned(Duration::from_secs(30));
}

/// A server of this process, which can do to others' connections what no command of the demo does.
fn server(background: &Background, redis: &str) -> (MeshServer, SocketAddr) {
    background.block_on(async {
        let backend = mesh_redis::connect(redis).await.unwrap();
        let builder = MeshServer::builder()
            .backend(backend)
            .ping_interval(Duration::from_secs(300));
        let server = runtime::build(builder);
        server.start().await.unwrap();
        let addr = runtime::serve(&server);
        (server, addr)
    })
}

/// Does to the connections of a server that is cut off what others may do to them; true if that is over already.
fn done_by_others_while_away(partition: Duration) -> bool {
    let (redis, background) = (Redis::start(), Background::start());
    let proxy = Proxy::to(redis.addr());
    let (here, _) = server(&background, &redis.url());
    let (away, addr) = server(&background, &proxy.url());
    let mut clients: Vec<_> = (0..4).map(|_| RawClient::open(addr)).collect();
    let ids: Vec<_> = clients
        .iter_mut()
        .map(|client| client.assigned().to_owned())
        .collect();
    for (id, room) in [(0, "removed"), (0, "kept"), (1, "revoked"), (3, "all")] {
        let joined = background.block_on(away.add_to_room(room, &ids[id]));
        assert_eq!(joined, Ok(true));
    }
    proxy.partition();
    last(partition);
    let revoked = Membership::Room("revoked".into());
    let policy = CloseCode::POLICY_VIOLATION;
    let outcomes: [_; 4] = background
        .block_on(async {
            futures_util::join!(
                async { here.remove_from_room("removed", &ids[0]).await.map(drop) },
                here.revoke(&ids[1], revoked),
                here.disconnect(&ids[2], policy, "banned"),
                here.remove_from_all_rooms(&ids[3]),
            )
        })
        .into();
    let done = outcomes.iter().all(Result::is_ok);
    assert!(done || outcomes.iter().all(Result::is_err), "{outcomes:?}");
    let healed = Instant::now();
    proxy.heal();
    until("the first room is left here", || {
        !background
            .block_on(away.is_in_room("removed", &ids[0]))
            .unwrap_or(true)
    });
    if done {
        assert_eq!(clients[2].close_code(), Some(1008));
        for (id, room) in [(1, "revoked"), (3, "all")] {
            until("the room is left here", || {
                !background
                    .block_on(away.is_in_room(room, &ids[id]))
                    .unwrap_or(true)
            });
        }
    }
    assert!(healed.elapsed() < RECOVERY, "{:?}", healed.elapsed());
    until("the others know who is there", || {
        background
            .block_on(here.room_members("kept"))
            .is_ok_and(|members| members.len() == 1)
    });
    for server in [away, here] {
        background.block_on(server.shutdown()).unwrap();
    }
    done
}

#[test]
fn what_others_do_to_a_connection_whose_instance_is_cut_off_fails_or_is_done_on_its_return() {
    assert!(!done_by_others_while_away(Duration::from_secs(5)));
}

#[test]
fn what_others_do_to_a_connection_whose_instance_counts_as_dead_is_done_on_its_return() {
    assert!(done_by_others_while_away(Duration::from_secs(30)));
}

#[test]
fn the_connection_to_redis_is_cut_in_the_middle_of_a_reply() {
    let redis = Redis::start();
    let (proxies, mut fleet) = by_proxies(&redis);
    let here = fleet.first(0);
    let id = fleet.id(here);
    // A list of members, and a message, end in the middle.
    for round in 0..5 {
        let cut_off = fleet.first(1);
        let asked = Instant::now();
        if round % 2 == 0 {
            proxies[1].cut_in_reply(&id);
            let reply = fleet.raw(cut_off).command("room-members", room(ALL));
            assert!(
                reply.is_array() || reply["code"] == "EUNAVAILABLE",
                "{reply}"
            );
        } else {
            proxies[1].cut_in_reply("cut in here");
            let message = json!({ "channel": CHAT, "message": "cut in here" });
            fleet.raw(here).succeed("publish", message);
        }
        proxies[1].wait_for_cut();
        assert!(asked.elapsed() < ANSWERED, "{:?}", asked.elapsed());
        let repaired = Instant::now();
        fleet.every_promise_holds_after(repaired, &[1], &[]);
    }
    fleet.shut_down(&mut [redis.client()]);
}

#[test]
fn commands_under_way_when_the_connection_is_cut_end_as_the_store_has_them() {
    let redis = Redis::start();
    let (proxies, mut fleet) = by_proxies(&redis);
    let (here, cut_off) = (fleet.first(0), fleet.first(1));
    let id = fleet.id(cut_off);
    for round in 0..10 {
        let names: Vec<String> = (0..40).map(|n| format!("room:cut-{round}-{n}")).collect();
        let asked: Vec<u32> = names
            .iter()
            .map(|name| fleet.raw(cut_off).send_command("join-room", room(name)))
            .collect();
        // At another place each time.
        if round > 0 {
            fleet.raw(cut_off).reply(asked[round * 4 - 1]);
        }
        proxies[1].cut();
        let cut = Instant::now();
        for (n, (name, command)) in names.iter().zip(asked).enumerate() {
            if round > 0 && n == round * 4 - 1 {
                continue;
            }
            let reply = fleet.raw(cut_off).reply(command);
            assert!(cut.elapsed() < ANSWERED);
            let known = reply["success"] == true || reply["code"] == "EUNAVAILABLE";
            assert!(known, "{name}: {reply}");
        }
        // In doubt or not: when it is back, the instance and the store agree about each.
        fleet.gaps_are_told(&[1]);
        until("the server is back", || {
            fleet.demo(1).get("/health").status == 200
        });
        for name in &names {
            let asked = json!({ "roomName": name, "connectionId": id });
            let own = until_some("the instance and the store agree", || {
                let own = fleet.raw(cut_off).command("is-in-room", asked.clone());
                let listed = members(fleet.raw(here), name)?;
                (listed.contains(&id) == (own == true)).then_some(own)
            });
            let event = json!({ "roomName": name, "command": name, "payload": 1 });
            fleet.raw(here).command("broadcast-room", event);
            if own == true {
                assert_eq!(fleet.raw(cut_off).event(name), 1);
            }
            fleet.raw(cut_off).succeed("leave-room", room(name));
        }
        fleet.every_promise_holds(cut);
    }
    fleet.shut_down(&mut [redis.client()]);
}

#[test]
fn two_instances_are_partitioned_from_redis_in_turn() {
    let redis = Redis::start();
    let (proxies, mut fleet) = by_proxies(&redis);
    for (round, duration) in [6, 6, 18, 18].into_iter().enumerate() {
        let home = round % 2;
        proxies[home].partition();
        let since = Instant::now();
        let doubts = fleet.goes_on_without(&[home], since);
        last(Duration::from_secs(duration).saturating_sub(since.elapsed()));
        proxies[home].heal();
        let repaired = Instant::now();
        // The other one may go while this one returns.
        if round == 1 {
            proxies[0].partition();
            last(Duration::from_secs(6));
            proxies[0].heal();
            fleet.every_promise_holds_after(Instant::now(), &[0, 1], &doubts);
        } else {
            fleet.every_promise_holds_after(repaired, &[home], &doubts);
        }
    }
    fleet.shut_down(&mut [redis.client()]);
}

#[test]
fn both_instances_are_partitioned_from_redis_at_once_for_longer_than_a_lease() {
    let redis = Redis::start();
    let (proxies, mut fleet) = by_proxies(&redis);
    for proxy in &proxies {
        proxy.partition();
    }
    let since = Instant::now();
    let doubts = fleet.goes_on_without(&[0, 1], since);
    last(Duration::from_secs(20).saturating_sub(since.elapsed()));
    for proxy in &proxies {
        proxy.heal();
    }
    fleet.every_promise_holds_after(Instant::now(), &[0, 1], &doubts);
    fleet.shut_down(&mut [redis.client()]);
}

#[test]
fn connections_that_come_and_go_while_redis_is_away_are_registered_or_forgotten_on_its_return() {
    let mut redis = Redis::start();
    let mut fleet = on(&redis, 2);
    redis.kill();
    let since = Instant::now();
    until("both know", || {
        [0, 1]
            .iter()
            .all(|&home| fleet.demo(home).get("/health").status == 503)
    });
    let stay: Vec<usize> = (0..20).map(|n| fleet.connect(n % 2)).collect();
    let mut gone = Vec::new();
    for home in [0, 1, 0, 1] {
        let mut guest = RawClient::connect(fleet.demo(home));
        assert_eq!(guest.command("echo", "x"), "echo: x");
        gone.push(guest.id().to_owned());
        guest.vanish();
    }
    // Old ones go as well.
    for home in [0, 1] {
        let at = fleet.first(home) + 1;
        let went = fleet.clients.remove(at).raw;
        fleet.forget(went.id());
        gone.push(went.id().to_owned());
        went.vanish();
    }
    assert!(since.elapsed() < Duration::from_secs(30));
    redis.restart();
    fleet.data_lost();
    let repaired = Instant::now();
    fleet.every_promise_holds_after(repaired, &[0, 1], &[]);
    assert_eq!(fleet.clients.len(), 4 + stay.len());
    let keys = redis.client().keys();
    let ghost = |id: &String| {
        keys.iter()
            .any(|key| key.expires_in.is_none() && key.mentions(id))
    };
    assert!(!gone.iter().any(ghost), "{keys:#?}");
    fleet.shut_down(&mut [redis.client()]);
}

#[test]
fn redis_comes_and_goes_again_and_again() {
    let mut redis = Redis::durable();
    let mut fleet = on(&redis, 2);
    for _ in 0..6 {
        redis.kill();
        last(Duration::from_millis(300));
        redis.restart();
        last(Duration::from_millis(700));
    }
    let repaired = Instant::now();
    fleet.every_promise_holds_after(repaired, &[0, 1], &[]);
    fleet.shut_down(&mut [redis.client()]);
}

#[test]
fn a_server_shuts_down_in_time_while_redis_is_away() {
    let mut redis = Redis::start();
    let fleet = on(&redis, 2);
    redis.freeze();
    let mut demos = fleet.demos;
    for (at, demo) in demos.iter_mut().enumerate() {
        let demo = demo.take().unwrap();
        if at == 1 {
            redis.kill();
        }
        let signalled = Instant::now();
        demo.signal("TERM");
        let outcome = demo.end(signalled);
        assert_eq!(outcome.status.code(), Some(0), "{outcome:?}");
        let took = outcome.took;
        assert!(took < Duration::from_millis(5_500), "{took:?}");
    }
}

#[test]
fn nothing_hangs_while_clients_work_and_redis_is_killed_frozen_and_cut_off() {
    let mut redis = Redis::durable();
    let (proxies, mut fleet) = by_proxies(&redis);
    let stop = AtomicBool::new(false);
    let addresses = [0, 1].map(|home| fleet.demo(home).addr());
    thread::scope(|scope| {
        let stop = &stop;
        let workers: Vec<_> = (0..8)
            .map(|n| {
                scope.spawn(move || {
                    let mut client = RawClient::open(addresses[n % 2]);
                    client.assigned();
                    let name = format!("work-{}", n / 2);
                    let mut unavailable = 0;
                    while !stop.load(Ordering::Relaxed) {
                        let commands = [
                            ("join-room", room(&name)),
                            ("room-members", room(&name)),
                            (
                                "broadcast-room",
                                json!({ "roomName": name, "command": "c", "payload": n }),
                            ),
                            (
                                "publish",
                                json!({ "channel": "chat:work", "message": "m", "history": 5 }),
                            ),
                            ("set-metadata", json!({ "n": n })),
                            ("leave-room", room(&name)),
                        ];
                        for (command, payload) in commands {
                            let asked = Instant::now();
                            let reply = client.command(command, payload);
                            let took = asked.elapsed();
                            assert!(took < ANSWERED, "{command} took {took:?}");
                            if reply.get("error").is_some() {
                                assert_eq!(reply["code"], "EUNAVAILABLE", "{command}: {reply}");
                                unavailable += 1;
                            }
                        }
                        client.set_aside();
                    }
                    client.vanish();
                    unavailable
                })
            })
            .collect();
        // A failure must not leave the workers running for ever.
        let faults = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            last(Duration::from_secs(1));
            redis.kill();
            last(Duration::from_secs(6));
            redis.restart();
            last(Duration::from_secs(4));
            redis.freeze();
            last(Duration::from_secs(6));
            redis.thaw();
            last(Duration::from_secs(4));
            for proxy in &proxies {
                proxy.cut();
                last(Duration::from_secs(2));
            }
        }));
        stop.store(true, Ordering::Relaxed);
        let unavailable: Vec<u64> = workers
            .into_iter()
            .map(|worker| worker.join().unwrap())
            .collect();
        faults.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        eprintln!("EUNAVAILABLE by client: {unavailable:?}");
    });
    fleet.every_promise_holds_after(Instant::now(), &[0, 1], &[]);
    fleet.shut_down(&mut [redis.client()]);
}
