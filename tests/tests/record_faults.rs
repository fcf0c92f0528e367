//! Records on three servers that lose their way to Redis again and again (`protocol.md`, sections 6 and 9).

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on fails"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use mesh_client_core::apply_patch;
use mesh_tests::{Demo, Proxy, RawClient, Redis, until};
use serde_json::{Value, json};

const INSTANCES: usize = 3;
const PUBLISHERS: usize = 4;
const RECORDS: usize = 10;
const SUBSCRIBERS: usize = 50;

/// How long a subscriber may take to have what the store has, once all is whole.
const RECOVERY: Duration = Duration::from_secs(15);

/// Who published what: no two updates are equal.
type Update = (u64, u64);

/// A record and a version of it.
type Place = (usize, u64);

fn record(number: usize) -> String {
    format!("doc:contended-{number}")
}

fn value((by, seq): Update) -> Value {
    let pad = "so much that a patch is shorter than the value";
    json!({ "by": by, "seq": seq, "pad": pad })
}

fn update(value: &Value) -> Update {
    (
        value["by"].as_u64().unwrap(),
        value["seq"].as_u64().unwrap(),
    )
}

/// What all publishers and subscribers learned.
#[derive(Debug, Default)]
struct Learned {
    /// By the replies: which version an update became.
    accepted: BTreeMap<Update, Place>,
    /// Updates whose outcome nobody was told.
    unknown: usize,
    /// By the events.
    seen: BTreeMap<Place, Update>,
}

impl Learned {
    fn merge(&mut self, other: Self) {
        self.unknown += other.unknown;
        for (update, place) in other.accepted {
            let before = self.accepted.insert(update, place);
            assert_eq!(before, None, "{update:?} was accepted twice");
        }
        for (place, update) in other.seen {
            let before = self.seen.insert(place, update);
            assert!(
                before.is_none_or(|before| before == update),
                "{place:?} is two values"
            );
        }
    }
}

/// Publishes `updates` values, one after the other, to records in turn.
fn publish(addr: SocketAddr, by: u64, updates: u64, done: &AtomicUsize) -> Learned {
    let mut client = RawClient::open(addr);
    let mut learned = Learned::default();
    for seq in 0..updates {
        let number = ((by + seq) % RECORDS as u64) as usize;
        let payload = json!({ "recordId": record(number), "value": value((by, seq)) });
        let reply = client.command("publish-record", payload);
        if reply["success"] == true {
            let version = reply["version"].as_u64().unwrap();
            learned.accepted.insert((by, seq), (number, version));
        } else {
            assert_eq!(reply["code"], "EUNAVAILABLE", "{reply}");
            learned.unknown += 1;
        }
        done.fetch_add(1, Ordering::Relaxed);
    }
    learned
}

/// One subscription, and what it was told.
struct Subscriber {
    client: RawClient,
    number: usize,
    version: u64,
    value: Option<String>,
    learned: Learned,
}

impl Subscriber {
    /// Subscribes; while Redis is out of reach again and again.
    fn subscribe(mut client: RawClient, number: usize, patches: bool, learned: Learned) -> Self {
        let mode = if patches { "patch" } else { "full" };
        loop {
            let payload = json!({ "recordId": record(number), "mode": mode });
            let reply = client.command("mesh/subscribe-record", payload);
            if reply["success"] == true {
                let stored = &reply["record"];
                let mut subscriber = Self {
                    client,
                    number,
                    version: reply["version"].as_u64().unwrap(),
                    value: (!stored.is_null()).then(|| stored.to_string()),
                    learned,
                };
                subscriber.learn();
                return subscriber;
            }
            assert_eq!(reply["code"], "EUNAVAILABLE", "{reply}");
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn learn(&mut self) {
        if let Some(value) = &self.value {
            let update = update(&serde_json::from_str(value).unwrap());
            let before = self
                .learned
                .seen
                .insert((self.number, self.version), update);
            assert!(
                before.is_none_or(|before| before == update),
                "one version, two values"
            );
        }
    }

    /// Takes an event, if one comes in this time.
    fn follow(&mut self, patience: Duration) -> bool {
        let Some(event) = self.client.event_within("mesh/record-update", patience) else {
            return false;
        };
        assert_eq!(event["recordId"], record(self.number));
        let version = event["version"].as_u64().unwrap();
        let value = match (event.get("full"), event.get("patch")) {
            // Where something was missed it is whole, and may skip versions.
            (Some(full), None) => {
                assert!(version > self.version, "{version} after {}", self.version);
                full.to_string()
            }
            (None, Some(patch)) => {
                assert_eq!(version, self.version + 1, "a patch that does not fit");
                apply_patch(self.value.as_deref(), &patch.to_string()).unwrap()
            }
            _ => panic!("{event}"),
        };
        (self.version, self.value) = (version, Some(value));
        self.learn();
        true
    }

    fn unsubscribe(mut self) -> (RawClient, Learned) {
        let payload = json!({ "recordId": record(self.number) });
        let ended = self.client.command("mesh/unsubscribe-record", payload);
        assert_eq!(ended, true);
        // What came before the reply was on its way.
        self.client.set_aside();
        self.client.assert_quiet();
        (self.client, self.learned)
    }
}

/// Comes and goes while publishers publish, then follows one record until it has what is stored.
fn follow(addr: SocketAddr, at: usize, published: &AtomicBool, watch: SocketAddr) -> Learned {
    let mut client = RawClient::open(addr);
    let mut learned = Learned::default();
    for round in 0.. {
        // As good as random, and the same each time.
        let dice = (at * 7_919 + round * 104_729) % 9_973;
        let patches = (dice / RECORDS).is_multiple_of(2);
        let mut subscriber = Subscriber::subscribe(client, dice % RECORDS, patches, learned);
        let last = published.load(Ordering::Acquire);
        for _ in 0..dice % 120 {
            subscriber.follow(Duration::from_millis(50));
        }
        if !last {
            (client, learned) = subscriber.unsubscribe();
            continue;
        }
        let mut watcher = RawClient::open(watch);
        let named = json!({ "recordId": record(subscriber.number) });
        let stored = watcher.command("get-record", named);
        let since = std::time::Instant::now();
        while subscriber.version < stored["version"].as_u64().unwrap() {
            assert!(since.elapsed() < RECOVERY, "{at} is left behind {stored}");
            subscriber.follow(Duration::from_millis(100));
        }
        assert_eq!(subscriber.version, stored["version"]);
        let value: Value = serde_json::from_str(&subscriber.value.unwrap()).unwrap();
        assert_eq!(value, stored["record"]);
        return subscriber.learned;
    }
    unreachable!("it ends with the publishers");
}

fn metric(demo: &Demo, name: &str) -> u64 {
    let text = demo.get("/metrics").body;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.expect(name).trim().parse().unwrap()
}

/// Everybody publishes and follows, while the way to Redis is cut so many times. Tells how often records were read again.
fn contend(updates: u64, cuts: usize) -> u64 {
    let redis = Redis::start();
    let proxies = [(); INSTANCES].map(|()| Proxy::to(redis.addr()));
    let demos = proxies
        .each_ref()
        .map(|proxy| Demo::start_on(&proxy.url(), &[]));
    let (done, published) = (AtomicUsize::new(0), AtomicBool::new(false));
    let all = updates as usize * INSTANCES * PUBLISHERS;
    let watch = demos[0].addr();
    let mut learned = Learned::default();
    thread::scope(|scope| {
        let publishers: Vec<_> = (0..INSTANCES * PUBLISHERS)
            .map(|by| {
                let (addr, done) = (demos[by % INSTANCES].addr(), &done);
                scope.spawn(move || publish(addr, by as u64, updates, done))
            })
            .collect();
        let subscribers: Vec<_> = (0..SUBSCRIBERS)
            .map(|at| {
                let (addr, published) = (demos[at % INSTANCES].addr(), &published);
                scope.spawn(move || follow(addr, at, published, watch))
            })
            .collect();
        let before = proxies.each_ref().map(Proxy::accepted);
        for cut in 1..=cuts {
            until("publishers go on", || {
                done.load(Ordering::Relaxed) >= all * cut / (cuts + 1)
            });
            proxies.iter().for_each(Proxy::cut);
            // Each comes back on a new connection.
            let back = |(proxy, before): (&Proxy, &u64)| proxy.accepted() >= before + cut as u64;
            until("all are back", || proxies.iter().zip(&before).all(back));
        }
        for publisher in publishers {
            learned.merge(publisher.join().unwrap());
        }
        published.store(true, Ordering::Release);
        for subscriber in subscribers {
            learned.merge(subscriber.join().unwrap());
        }
    });

    // Every accepted update is exactly one version, and every version is one update.
    let places: BTreeSet<_> = learned.accepted.values().collect();
    assert_eq!(
        places.len(),
        learned.accepted.len(),
        "two updates are one version"
    );
    for (update, place) in &learned.accepted {
        let seen = learned.seen.get(place);
        assert!(
            seen.is_none_or(|seen| seen == update),
            "{place:?}: {seen:?}, not {update:?}"
        );
    }
    let mut versions = 0;
    let mut client = RawClient::open(watch);
    for number in 0..RECORDS {
        let stored = client.command("get-record", json!({ "recordId": record(number) }));
        versions += stored["version"].as_u64().unwrap() as usize;
    }
    assert!(
        learned.seen.len() > versions / 2,
        "most are seen by somebody"
    );
    let accepted = learned.accepted.len();
    assert_eq!(accepted + learned.unknown, all);
    assert!(
        (accepted..=all).contains(&versions),
        "{versions} versions of {accepted} accepted updates"
    );
    let resyncs = demos
        .iter()
        .map(|demo| metric(demo, "mesh_record_resyncs_total"))
        .sum();
    eprintln!(
        "{versions} versions, {accepted} of {all} updates accepted, {} seen, {resyncs} read again",
        learned.seen.len()
    );
    resyncs
}

#[test]
fn every_accepted_update_is_one_version_while_redis_is_cut_off_five_times() {
    contend(2_000, 5);
}

#[test]
fn without_faults_no_record_is_ever_read_again() {
    assert_eq!(contend(200, 0), 0);
}
