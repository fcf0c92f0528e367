//! How many updates a second one record takes from many publishers: `cargo run --release -p mesh-tests --bin contention`, with the seconds
//! behind it if not five.
//!
//! Eight publishers on two servers that share a Redis of their own, each with one update under way, and one subscriber of patches. What
//! counts are the versions that the subscriber sees, which has to see all of them.

#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "its output is its purpose, and one that cannot go on ends"
)]

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use mesh_tests::{Demo, RawClient, Redis};
use serde_json::json;

const PUBLISHERS: u64 = 8;
const RECORD: &str = "doc:contention";

fn publish(addr: SocketAddr, by: u64, over: &AtomicBool) -> u64 {
    let mut client = RawClient::open(addr);
    let mut accepted = 0;
    while !over.load(Ordering::Relaxed) {
        let value = json!({ "by": by, "seq": accepted, "pad": "so much that a patch is shorter" });
        let reply = client.command(
            "publish-record",
            json!({ "recordId": RECORD, "value": value }),
        );
        assert_eq!(reply["success"], true, "{reply}");
        accepted += 1;
    }
    accepted
}

fn main() {
    let seconds = std::env::args()
        .nth(1)
        .map_or(5, |arg| arg.parse().expect("seconds"));
    let redis = Redis::start();
    let demos = [(); 2].map(|()| Demo::start_on(&redis.url(), &[]));
    let over = AtomicBool::new(false);
    let mut subscriber = RawClient::open(demos[0].addr());
    let payload = json!({ "recordId": RECORD, "mode": "patch" });
    let reply = subscriber.command("mesh/subscribe-record", payload);
    let mut version = reply["version"].as_u64().expect("a version");

    thread::scope(|scope| {
        let publishers: Vec<_> = (0..PUBLISHERS)
            .map(|by| {
                let (addr, over) = (demos[by as usize % 2].addr(), &over);
                scope.spawn(move || publish(addr, by, over))
            })
            .collect();
        let start = Instant::now();
        let time = Duration::from_secs(seconds);
        while start.elapsed() < time {
            let update = subscriber.event("mesh/record-update");
            let next = update["version"].as_u64().expect("a version");
            assert_eq!(next, version + 1, "the subscriber missed a version");
            version = next;
        }
        let took = start.elapsed();
        over.store(true, Ordering::Relaxed);
        let accepted: u64 = publishers.into_iter().map(|it| it.join().unwrap()).sum();
        let resyncs: Vec<String> = demos
            .iter()
            .filter_map(|demo| {
                let metrics = demo.get("/metrics").body;
                let mut lines = metrics.lines();
                let line = lines.find(|line| line.starts_with("mesh_record_resyncs_total "))?;
                line.split(' ').next_back().map(str::to_owned)
            })
            .collect();
        assert_eq!(
            resyncs,
            ["0", "0"],
            "records were read again without a fault"
        );
        let rate = version as f64 / took.as_secs_f64();
        println!("{rate:.0} versions/s seen, {accepted} updates accepted in all, no resync");
    });
}
