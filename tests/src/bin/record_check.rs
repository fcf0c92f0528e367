//! What the periodic check of 100 000 records costs: `cargo run --release -p mesh-tests --bin record_check`, with the seconds behind it that it
//! watches if not thirty.
//!
//! One server follows all of them, for clients that subscribed and say no more, and holds their versions against those in a Redis of its own every ten
//! seconds. What counts is the processor time that Redis takes meanwhile, less what it takes when nobody is subscribed.

#![allow(
    clippy::print_stdout,
    clippy::expect_used,
    reason = "its output is its purpose, and one that cannot go on ends"
)]

use std::{
    thread,
    time::{Duration, Instant},
};

use mesh_tests::{Demo, RawClient, Redis, RedisClient, Resp};
use serde_json::json;

const CLIENTS: usize = 25;
const EACH: usize = 4_000;

/// Under the limit of commands in flight.
const AT_ONCE: usize = 500;

fn main() {
    let seconds = std::env::args().nth(1);
    let time = Duration::from_secs(seconds.map_or(30, |arg| arg.parse().expect("seconds")));
    let redis = Redis::start();
    let demo = Demo::start_on(&redis.url(), &[]);
    let mut watch = redis.client();
    let mut writer = RawClient::open(demo.addr());
    let idle = share(&mut watch, time.min(Duration::from_secs(10)));

    let mut clients: Vec<_> = (0..CLIENTS).map(|_| RawClient::open(demo.addr())).collect();
    for (number, client) in clients.iter_mut().enumerate() {
        for first in (0..EACH).step_by(AT_ONCE) {
            let names = (first..first + AT_ONCE).map(|n| format!("doc:{number}-{n}"));
            let names: Vec<String> = names.collect();
            let publish = |name: &String| json!({ "recordId": name, "value": { "of": name } });
            let asked: Vec<u32> = names
                .iter()
                .map(|name| writer.send_command("publish-record", publish(name)))
                .collect();
            for id in asked {
                assert_eq!(writer.reply(id)["success"], true);
            }
            let asked: Vec<u32> = names
                .iter()
                .map(|name| {
                    client.send_command("mesh/subscribe-record", json!({ "recordId": name }))
                })
                .collect();
            for id in asked {
                assert_eq!(client.reply(id)["version"], 1);
            }
        }
    }
    // Behind the first check, which may come early.
    thread::sleep(Duration::from_secs(10));
    let checking = share(&mut watch, time);
    println!(
        "{} records: {:.2} % of a core of Redis, {:.2} % without any",
        CLIENTS * EACH,
        100.0 * checking,
        100.0 * idle
    );
}

/// The share of a core that Redis takes in this time.
fn share(redis: &mut RedisClient, time: Duration) -> f64 {
    let (before, start) = (processor_seconds(redis), Instant::now());
    thread::sleep(time);
    (processor_seconds(redis) - before) / start.elapsed().as_secs_f64()
}

fn processor_seconds(redis: &mut RedisClient) -> f64 {
    let Resp::Bulk(info) = redis.command(&["INFO", "cpu"]) else {
        panic!("Redis tells of its processor time");
    };
    let info = String::from_utf8_lossy(&info).into_owned();
    let of = |name: &str| -> f64 {
        let line = info.lines().find_map(|line| line.strip_prefix(name));
        line.expect("a line of it").trim().parse().expect("seconds")
    };
    of("used_cpu_sys:") + of("used_cpu_user:")
}
