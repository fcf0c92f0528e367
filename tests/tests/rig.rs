//! The suite's own Redis, Redis Cluster and proxy do what the tests of several servers rely on.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on fails"
)]

use std::net::TcpStream;
use std::thread;
use std::time::Duration;

use mesh_tests::{PATIENCE, Proxy, Redis, RedisClient, RedisCluster, Resp, until};

fn set(client: &mut RedisClient, key: &str, value: &str) {
    let reply = client.command(&["SET", key, value]);
    assert_eq!(reply, Resp::Simple("OK".to_owned()));
}

fn get(client: &mut RedisClient, key: &str) -> Resp {
    client.command(&["GET", key])
}

fn bulk(text: &str) -> Resp {
    Resp::Bulk(text.as_bytes().to_vec())
}

#[test]
fn a_redis_ends_with_its_test() {
    let redis = Redis::start();
    let addr = redis.addr();
    redis.freeze();
    drop(redis);
    assert!(
        TcpStream::connect(addr).is_err(),
        "a stopped one ends as well"
    );
    let panicked = thread::spawn(|| {
        let redis = Redis::start();
        std::panic::panic_any(redis.addr());
    })
    .join()
    .unwrap_err();
    let addr = *panicked.downcast::<std::net::SocketAddr>().unwrap();
    assert!(TcpStream::connect(addr).is_err());
}

#[test]
fn what_redis_keeps_over_a_kill_is_the_tests_choice() {
    let mut redis = Redis::durable();
    set(&mut redis.client(), "k", "v");
    redis.kill();
    assert!(TcpStream::connect(redis.addr()).is_err());
    redis.restart();
    assert_eq!(get(&mut redis.client(), "k"), bulk("v"));
    redis.restart_empty();
    assert_eq!(get(&mut redis.client(), "k"), Resp::Null);
    set(&mut redis.client(), "k", "w");
    redis.restart();
    assert_eq!(get(&mut redis.client(), "k"), bulk("w"));

    let mut forgetful = Redis::start();
    set(&mut forgetful.client(), "k", "v");
    forgetful.kill();
    forgetful.restart();
    assert_eq!(get(&mut forgetful.client(), "k"), Resp::Null);
}

#[test]
fn a_frozen_redis_answers_late() {
    let redis = Redis::start();
    let mut client = redis.client();
    redis.freeze();
    thread::scope(|scope| {
        let reply = scope.spawn(|| client.command(&["PING"]));
        thread::sleep(Duration::from_millis(200));
        assert!(!reply.is_finished());
        redis.thaw();
        assert_eq!(reply.join().unwrap(), Resp::Simple("PONG".to_owned()));
    });
}

#[test]
fn a_promoted_replica_lacks_what_came_later() {
    let redis = Redis::start();
    let mut client = redis.client();
    set(&mut client, "old", "1");
    let replica = redis.replica();
    let mut second = replica.client();
    assert_eq!(get(&mut second, "old"), bulk("1"));
    set(&mut client, "new", "1");
    until("the write is replicated", || {
        get(&mut second, "new") == bulk("1")
    });
    replica.promote();
    set(&mut client, "tail", "1");
    set(&mut second, "own", "1");
    assert_eq!(get(&mut second, "tail"), Resp::Null);
}

#[test]
fn the_client_sees_keys_costs_and_subscribers() {
    let redis = Redis::start();
    let mut client = redis.client();
    assert_eq!(client.keys(), []);
    let before = client.cost();
    let commands: [&[&str]; 5] = [
        &["SET", "s", "text", "PX", "60000"],
        &["HSET", "h", "field", "value"],
        &["SADD", "set", "member"],
        &["ZADD", "z", "1", "member"],
        &["RPUSH", "l", "a", "b"],
    ];
    for command in commands {
        client.command(command);
    }
    let cost = client.cost().since(&before);
    assert_eq!(cost.calls["rpush"], 1);
    assert!(cost.bytes_in > 100 && cost.bytes_out > 20, "{cost:?}");
    let keys = client.keys();
    let seen: Vec<_> = keys
        .iter()
        .map(|key| (&*key.name, &*key.kind, key.holds.len()))
        .collect();
    assert_eq!(
        seen,
        [
            ("h", "hash", 2),
            ("l", "list", 2),
            ("s", "string", 1),
            ("set", "set", 1),
            ("z", "zset", 2)
        ]
    );
    assert!(keys[2].expires_in.is_some() && keys[0].expires_in.is_none());
    assert!(keys[0].mentions("eld") && !keys[0].mentions("member"));
    for n in 0..5_000 {
        set(&mut client, &format!("many:{n}"), "x");
    }
    assert_eq!(client.keys().len(), 5_005);
    assert_eq!(client.publish("c", "m"), 0);
    assert_eq!(client.subscribers("c"), 0);
    assert_eq!(client.channels(), Vec::<String>::new());
    let error = client.try_command(&["GET", "h"]).unwrap();
    assert!(
        matches!(&error, Resp::Error(error) if error.starts_with("WRONGTYPE")),
        "{error:?}"
    );
}

#[test]
fn a_redis_cluster_shares_its_slots() {
    let cluster = RedisCluster::start();
    let mut clients = cluster.clients();
    for n in 0..30 {
        let key = format!("k{n}");
        let mut taken = 0;
        for client in &mut clients {
            match client.try_command(&["SET", &key, "v"]).unwrap() {
                Resp::Simple(_) => taken += 1,
                Resp::Error(error) => assert!(error.starts_with("MOVED "), "{error}"),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(taken, 1, "one node has {key}");
    }
    let keys: usize = clients.iter_mut().map(|client| client.keys().len()).sum();
    assert_eq!(keys, 30);
    assert!(
        clients.iter_mut().all(|client| !client.keys().is_empty()),
        "each node has some"
    );
}

/// A client that goes through the proxy, with a short patience.
fn through(proxy: &Proxy) -> RedisClient {
    let addr = proxy.url().trim_start_matches("redis://").parse().unwrap();
    RedisClient::connect(addr).unwrap()
}

#[test]
fn a_proxy_cuts_and_leads_elsewhere() {
    let (first, second) = (Redis::start(), Redis::start());
    set(&mut first.client(), "who", "first");
    set(&mut second.client(), "who", "second");
    let proxy = Proxy::to(first.addr());
    let mut client = through(&proxy);
    assert_eq!(get(&mut client, "who"), bulk("first"));
    proxy.cut();
    client.try_command(&["GET", "who"]).unwrap_err();
    let mut client = through(&proxy);
    assert_eq!(get(&mut client, "who"), bulk("first"));
    proxy.retarget(second.addr());
    client.try_command(&["GET", "who"]).unwrap_err();
    assert_eq!(get(&mut through(&proxy), "who"), bulk("second"));
    assert_eq!(proxy.accepted(), 3);
    drop(second);
    through(&proxy).try_command(&["GET", "who"]).unwrap_err();
    let addr = proxy.url().trim_start_matches("redis://").parse().unwrap();
    drop(proxy);
    until("nobody listens", || RedisClient::connect(addr).is_err());
}

#[test]
fn a_proxy_cuts_in_the_middle_of_a_reply() {
    let redis = Redis::start();
    let proxy = Proxy::to(redis.addr());
    let mut client = through(&proxy);
    let long = "x".repeat(100_000);
    set(&mut client, "long", &long);
    set(&mut client, "k", "needle");
    assert_eq!(get(&mut client, "long"), bulk(&long));
    proxy.cut_in_reply("needle");
    assert_eq!(get(&mut client, "long"), bulk(&long));
    client.try_command(&["GET", "k"]).unwrap_err();
    proxy.wait_for_cut();
    assert_eq!(get(&mut through(&proxy), "k"), bulk("needle"));
}

#[test]
fn a_partition_lets_nothing_pass_until_it_heals() {
    let redis = Redis::start();
    let proxy = Proxy::to(redis.addr());
    let mut old = through(&proxy);
    set(&mut old, "k", "v");
    proxy.partition();
    let mut new = through(&proxy);
    thread::scope(|scope| {
        let replies = [
            scope.spawn(|| old.try_command(&["SET", "k", "late"]).unwrap()),
            scope.spawn(|| new.try_command(&["PING"]).unwrap()),
        ];
        thread::sleep(Duration::from_millis(300));
        assert!(replies.iter().all(|reply| !reply.is_finished()));
        assert_eq!(get(&mut redis.client(), "k"), bulk("v"));
        proxy.heal();
        for reply in replies {
            assert!(matches!(reply.join().unwrap(), Resp::Simple(_)));
        }
    });
    assert_eq!(get(&mut redis.client(), "k"), bulk("late"));
    proxy.partition();
    proxy.cut();
    let cut = std::time::Instant::now();
    old.try_command(&["PING"]).unwrap_err();
    assert!(cut.elapsed() < PATIENCE, "a cut is seen in a partition too");
}
