//! What Redis has to do: nothing that grows with the members of a room, the connections or the instances
//! (`design.md`, section 4), counted by Redis itself.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on fails"
)]

use std::collections::BTreeMap;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use mesh_tests::fleet::servers;
use mesh_tests::{Cost, Demo, RawClient, Redis, RedisClient, until};
use serde_json::{Value, json};

fn room(name: &str) -> Value {
    json!({ "roomName": name })
}

/// Asserts that this process may hold so many sockets.
fn need_sockets(count: u64) {
    let mut shell = std::process::Command::new("sh");
    let limit = shell.args(["-c", "ulimit -n"]).output().unwrap().stdout;
    let limit = String::from_utf8(limit).unwrap();
    let enough = limit
        .trim()
        .parse()
        .map_or(true, |limit: u64| limit > count);
    assert!(
        enough,
        "{count} sockets are needed, try `ulimit -n`: {limit}"
    );
}

/// How many threads look after a crowd.
const THREADS: usize = 8;

/// Connects many clients, and has all of them join a room.
fn crowd(demos: &[Demo], count: usize, name: &str) -> Vec<RawClient> {
    let mut clients: Vec<RawClient> = thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|first| {
                scope.spawn(move || {
                    let mine = (first..count).step_by(THREADS);
                    mine.map(|n| RawClient::connect(&demos[n % demos.len()]))
                        .collect::<Vec<_>>()
                })
            })
            .collect();
        let joined = threads.into_iter().map(|thread| thread.join().unwrap());
        joined.flatten().collect()
    });
    at_once(&mut clients, |some| {
        for client in some {
            // The demo tells it to all who are there: that is not looked at.
            let id = client.send_command("join-room", room(name));
            assert_eq!(client.skip_to_reply(id), json!({ "success": true }));
        }
    });
    clients
}

/// Has several threads do something with a part of the clients each.
fn at_once(clients: &mut [RawClient], each: impl Fn(&mut [RawClient]) + Sync) {
    let share = clients.len().div_ceil(THREADS);
    thread::scope(|scope| {
        for some in clients.chunks_mut(share) {
            scope.spawn(|| each(some));
        }
    });
}

/// Commands that come by the clock, not by what clients do: they are measured by their absence elsewhere.
const BY_THE_CLOCK: [&str; 4] = ["ping", "time", "zrangebyscore", "info"];

/// What `doing` costs, without what comes by the clock. The names of commands are joined with those of their scripts.
fn cost(redis: &mut RedisClient, doing: impl FnOnce()) -> Cost {
    let before = redis.cost();
    doing();
    let mut cost = redis.cost().since(&before);
    for name in BY_THE_CLOCK {
        cost.calls.remove(name);
    }
    cost
}

/// The cheapest of several tries: one in which nothing came by the clock.
fn least(redis: &mut RedisClient, mut doing: impl FnMut()) -> Cost {
    let tries = (0..7).map(|_| cost(redis, &mut doing));
    tries
        .min_by_key(|cost| {
            (
                cost.calls.values().sum::<u64>(),
                cost.bytes_in + cost.bytes_out,
            )
        })
        .unwrap()
}

fn total(cost: &Cost) -> u64 {
    cost.calls.values().sum()
}

#[test]
fn a_broadcast_to_10_000_members_on_two_instances_costs_as_many_commands_and_bytes_as_to_10() {
    const MEMBERS: usize = 10_000;
    need_sockets(MEMBERS as u64 + 500);
    let redis = Redis::start();
    // Servers that tell no join to 10 000 members.
    let quiet = Path::new(env!("CARGO_BIN_EXE_quiet"));
    let args = ["--redis", &redis.url()];
    let demos = [(); 2].map(|()| Demo::start_program(quiet, 0, &args));
    let mut outsider = redis.client();
    let mut speaker = RawClient::connect(&demos[0]);
    let begun = Instant::now();
    let mut members = crowd(&demos, MEMBERS, "large");
    for client in members.iter_mut().step_by(MEMBERS / 10) {
        client.succeed("join-room", room("small"));
    }
    eprintln!("{MEMBERS} members after {:?}", begun.elapsed());
    let listed = speaker.command("room-members", room("large"));
    assert_eq!(listed.as_array().unwrap().len(), MEMBERS);

    let mut measured = BTreeMap::new();
    for name in ["small", "large", "empty"] {
        let event = json!({ "roomName": name, "command": "news", "payload": name });
        let cost = least(&mut outsider, || {
            let reply = speaker.command("broadcast-room", event.clone());
            assert_eq!(reply, json!({ "sent": true }));
            // Every instance has got it, and has no more to do with Redis.
            thread::sleep(Duration::from_millis(100));
        });
        eprintln!("a broadcast to the room {name} costs {cost:?}");
        measured.insert(name, cost);
    }
    let (small, large) = (&measured["small"], &measured["large"]);
    assert_eq!(small.calls, large.calls, "the same commands");
    assert!(total(small) <= 2, "one publish: {small:?}");
    assert!(
        small
            .calls
            .keys()
            .all(|name| name.contains("publish") || name.contains("eval")),
        "{small:?}"
    );
    let bytes = |cost: &Cost| cost.bytes_in + cost.bytes_out;
    // Both were measured with the same commands of this test; what is left to differ is a ping.
    let difference = bytes(small).abs_diff(bytes(large));
    assert!(
        difference < 200,
        "{} and {} bytes",
        bytes(small),
        bytes(large)
    );
    // And everybody got all of them.
    at_once(&mut members, |some| {
        for client in some {
            for _ in 0..7 {
                while client.event("news") != "large" {}
            }
        }
    });
    // Lists are paged: no command of them answers without bound.
    let paged = cost(&mut outsider, || {
        let listed = speaker.command("room-members", room("large"));
        assert_eq!(listed.as_array().unwrap().len(), MEMBERS);
    });
    eprintln!("the list of 10 000 members costs {paged:?}");
    assert!((8..200).contains(&total(&paged)), "{paged:?}");
}

/// What one client's life costs, step by step.
fn life(redis: &mut RedisClient, demo: &Demo, name: &str) -> BTreeMap<&'static str, Cost> {
    let mut steps: BTreeMap<&'static str, Vec<Cost>> = BTreeMap::new();
    for _ in 0..9 {
        let mut one = |step, doing: &mut dyn FnMut()| {
            let cost = cost(redis, || {
                doing();
                // What follows the reply belongs to it.
                thread::sleep(Duration::from_millis(50));
            });
            steps.entry(step).or_default().push(cost);
        };
        let mut client = None;
        one("1 connect", &mut || client = Some(RawClient::connect(demo)));
        let mut client = client.unwrap();
        one("2 join", &mut || {
            client.succeed("join-room", room(name));
        });
        one("3 set metadata", &mut || {
            client.succeed("set-metadata", json!({ "x": 1 }));
        });
        one("4 leave", &mut || {
            client.succeed("leave-room", room(name));
        });
        client.succeed("join-room", room(name));
        let connections = demo.connections();
        let mut client = Some(client);
        one("5 disconnect in one room", &mut || {
            client.take().unwrap().vanish();
            until("it is gone", || demo.connections() < connections);
        });
    }
    let least = |costs: Vec<Cost>| costs.into_iter().min_by_key(total).unwrap();
    steps
        .into_iter()
        .map(|(step, costs)| (step, least(costs)))
        .collect()
}

#[test]
fn joining_leaving_connecting_and_disconnecting_cost_a_constant_number_of_commands() {
    const CROWD: usize = 2_000;
    need_sockets(CROWD as u64 + 500);
    let redis = Redis::start();
    let mut outsider = redis.client();
    let alone: [Demo; 1] = servers(&redis.url());
    // The room has a member on this instance already, as it has later: a topic is taken once.
    let mut first = RawClient::connect(&alone[0]);
    first.succeed("join-room", room("r"));
    let small = life(&mut outsider, &alone[0], "r");
    let more: [Demo; 2] = servers(&redis.url());
    let [alone] = alone;
    let [second, third] = more;
    let demos = [alone, second, third];
    let members = crowd(&demos, CROWD, "r");
    let large = life(&mut outsider, &demos[0], "r");
    for (step, cost) in &small {
        eprintln!("{step}: {} commands: {:?}", total(cost), cost.calls);
        eprintln!("{step}, in a crowd: {} commands", total(&large[step]));
    }
    for (step, cost) in &small {
        assert_eq!(cost.calls, large[step].calls, "{step}");
        assert!(total(cost) <= 40, "{step}: {cost:?}");
    }
    drop(members);
}

#[test]
fn idle_servers_and_idle_clients_cost_redis_nearly_nothing() {
    let redis = Redis::start();
    let mut outsider = redis.client();
    let demos: [Demo; 2] = servers(&redis.url());
    let clients = crowd(&demos, 500, "r");
    let before = outsider.cost();
    let time = Duration::from_secs(12);
    thread::sleep(time);
    let cost = outsider.cost().since(&before);
    eprintln!("two idle servers with 500 clients cost {cost:?} in {time:?}");
    let per_second = total(&cost) as f64 / time.as_secs_f64() / 2.0;
    assert!(per_second < 20.0, "{per_second} commands a second each");
    drop(clients);
}
