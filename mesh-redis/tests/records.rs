//! Records: many publishers, and what is forgotten.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may")]

mod support;

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use mesh_core::backend::{
    Json, Name, Notice, Op, Record, RecordChangeKind, RecordUpdate, Reply, Topic, Version,
};
use support::{Instance, RedisServer, run, run_both};

fn publish(record: &str, base: Version, stamp: u64, value: &str) -> Op {
    let update = RecordUpdate {
        stamp,
        value: value.into(),
        patch: None,
    };
    Op::PublishRecord {
        record: record.into(),
        base,
        updates: vec![update],
        now: Instant::now(),
    }
}

fn purge(older_than: Duration) -> Op {
    let now = Instant::now();
    Op::PurgeDeleted { older_than, now }
}

#[test]
fn publishers_at_once_make_one_version_each() {
    const PUBLISHERS: u64 = 8;
    const UPDATES: u64 = 40;
    run_both(async |server| {
        let (one, two) = (
            Instance::open(server.builder(), "one").await,
            Instance::open(server.builder(), "two").await,
        );
        let topic = Topic::Record("v".into());
        one.subscribe(std::slice::from_ref(&topic)).await;
        let stamps = AtomicU64::new(1);
        let publishers = (0..PUBLISHERS).map(|publisher| {
            let instance = if publisher % 2 == 0 { &one } else { &two };
            let stamps = &stamps;
            async move {
                let mut base = Version::default();
                for number in 0..UPDATES {
                    let value = format!("[{publisher},{number}]");
                    loop {
                        let stamp = stamps.fetch_add(1, Relaxed);
                        match instance.run(publish("v", base, stamp, &value)).await {
                            Reply::Conflict(record) => base = record.version,
                            Reply::Published { first } => {
                                base = Version {
                                    number: first,
                                    stamp,
                                };
                                break;
                            }
                            other => panic!("{other:?}"),
                        }
                    }
                }
            }
        });
        join_all(publishers).await;
        let (mut version, mut values) = (Version::default(), Vec::<Json>::new());
        while version.number < PUBLISHERS * UPDATES {
            let Notice::RecordChanged { base, changes, .. } = one.notice().await else {
                panic!("a change was to come");
            };
            assert_eq!(base, version);
            for change in changes {
                let RecordChangeKind::Full(value) = change.kind else {
                    panic!("{change:?}");
                };
                values.push(value);
                version = Version {
                    number: version.number + 1,
                    stamp: change.stamp,
                };
            }
        }
        let value = values.last().cloned();
        let stored = two.run(Op::Record { record: "v".into() }).await;
        assert_eq!(stored, Reply::Record(Record { value, version }));
        values.sort();
        values.dedup();
        assert_eq!(values.len() as u64, PUBLISHERS * UPDATES, "each once");
    });
}

#[test]
fn what_was_deleted_is_forgotten_on_demand() {
    run(async {
        let server = RedisServer::start();
        let one = Instance::open(server.builder(), "one").await;
        let names: Vec<_> = (0..1_500).map(|number| format!("v{number}")).collect();
        let nothing = Version::default();
        let published = names
            .iter()
            .map(|name| one.run(publish(name, nothing, 1, "{}")));
        join_all(published).await;
        let deleted = names.iter().map(|name| {
            one.run(Op::DeleteRecord {
                record: name.as_str().into(),
                stamp: 2,
                now: Instant::now(),
            })
        });
        join_all(deleted).await;
        // One has a value again.
        let deletion = Version {
            number: 2,
            stamp: 2,
        };
        let again = one.run(publish("v7", deletion, 3, "{}")).await;
        assert_eq!(again, Reply::Published { first: 3 });
        let hour = Duration::from_secs(3_600);
        assert_eq!(one.run(purge(hour)).await, Reply::Count(0));
        tokio::time::sleep(Duration::from_millis(5)).await;
        let count = one.run(purge(Duration::ZERO)).await;
        assert_eq!(count, Reply::Count(1_499));
        let records: Vec<_> = names.iter().map(|name| Name::from(name.as_str())).collect();
        let Reply::RecordVersions(versions) = one.run(Op::RecordVersions { records }).await else {
            panic!("versions were asked for");
        };
        let kept = versions.iter().filter(|version| **version != nothing);
        assert_eq!(kept.count(), 1);
        assert_eq!(versions[7].number, 3);
        one.close().await;
        assert_eq!(server.lasting_keys().len(), 1);
    });
}
