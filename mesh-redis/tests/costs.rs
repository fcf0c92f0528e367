//! What operations cost, counted by Redis itself.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may")]

mod support;

use std::{collections::BTreeMap, time::Instant};

use mesh_core::backend::{Document, MetadataChange, Op, RecordUpdate, Reply, Topic, Version};
use support::{Instance, RedisServer, run};

/// The commands that `op` costs, scripts' own ones included; without pings and heartbeats.
async fn cost(server: &RedisServer, instance: &Instance, op: Op) -> BTreeMap<String, u64> {
    let before = server.command_stats();
    instance.run(op).await;
    let mut after = server.command_stats();
    for (name, calls) in &mut after {
        *calls -= before.get(name).copied().unwrap_or(0);
    }
    after.retain(|name, calls| *calls > 0 && !["ping", "info"].contains(&&**name));
    after
}

async fn costs(members: u32) -> Vec<BTreeMap<String, u64>> {
    let server = RedisServer::start();
    // Its heartbeats do not come in between.
    let builder = server.builder().lease(std::time::Duration::from_secs(60));
    let instance = Instance::open(builder, "a").await;
    let ids: Vec<_> = (0..members).map(|number| format!("a.{number}")).collect();
    for id in &ids {
        instance.connect(id).await;
        instance.join("r", id).await;
    }
    instance
        .subscribe(&[Topic::Room("r".into()), Topic::Channel("c".into())])
        .await;
    let new = "a.new";
    let mut costs = Vec::new();
    for op in [
        Op::OpenConnection {
            connection: new.into(),
            metadata: Some("{}".into()),
        },
        Op::JoinRoom {
            room: "r".into(),
            connection: new.into(),
        },
        Op::IsInRoom {
            room: "r".into(),
            connection: new.into(),
        },
        Op::LeaveRoom {
            room: "r".into(),
            connection: new.into(),
        },
        Op::JoinRoom {
            room: "r".into(),
            connection: new.into(),
        },
        Op::CloseConnection {
            connection: new.into(),
        },
        Op::Publish {
            topic: Topic::Room("r".into()),
            message: "hi".into(),
        },
        Op::PublishChannel {
            channel: "c".into(),
            message: "hi".into(),
            history: 0,
        },
        Op::PublishChannel {
            channel: "c".into(),
            message: "hi".into(),
            history: 5,
        },
        Op::History {
            channel: "c".into(),
            limit: 5,
            bytes_max: 99,
        },
        Op::ClearRoom { room: "r".into() },
        Op::ForgetMembers {
            room: "r".into(),
            connections: vec!["a.1".into()],
        },
        Op::SetConnectionMetadata {
            connection: "a.1".into(),
            change: MetadataChange::Merge("{}".into()),
        },
        Op::SetRoomMetadata {
            room: "s".into(),
            change: MetadataChange::Merge("{}".into()),
        },
        Op::KeepFor {
            instance: "gone".into(),
            message: Some("hi".into()),
        },
        Op::Restore {
            connections: vec![("a.1".into(), Document::default())],
            members: vec![("r".into(), "a.1".into(), 0)],
        },
        Op::PublishRecord {
            record: "v".into(),
            base: Version::default(),
            updates: vec![RecordUpdate {
                stamp: 1,
                value: "1".into(),
                patch: None,
            }],
            now: Instant::now(),
        },
        Op::Record { record: "v".into() },
        Op::DeleteRecord {
            record: "v".into(),
            stamp: 2,
            now: Instant::now(),
        },
        Op::Subscribe {
            topics: (0..512)
                .map(|number| Topic::Room(format!("s{number}").as_str().into()))
                .collect(),
        },
    ] {
        costs.push(cost(&server, &instance, op).await);
    }
    // What another instance does to a connection of this one.
    let builder = server.builder().lease(std::time::Duration::from_secs(60));
    let other = Instance::open(builder, "b").await;
    instance.join("t", "a.1").await;
    for op in [
        Op::SetConnectionMetadata {
            connection: "a.1".into(),
            change: MetadataChange::Merge("{}".into()),
        },
        Op::LeaveRoom {
            room: "t".into(),
            connection: "a.1".into(),
        },
    ] {
        costs.push(cost(&server, &other, op).await);
    }
    costs
}

#[test]
fn costs_do_not_grow_with_members() {
    run(async {
        let (few, many) = (costs(3).await, costs(1_500).await);
        assert_eq!(few, many);
        // open, join, is in room, leave, join
        assert_eq!(few[0]["evalsha"], 1, "{few:?}");
        assert_eq!(few[1]["evalsha"], 1);
        assert_eq!(few[2], BTreeMap::from([("hexists".to_owned(), 1)]));
        // close: the connection, and one partition of rooms
        assert_eq!(few[5]["evalsha"], 2);
        assert_eq!(few[6], BTreeMap::from([("publish".to_owned(), 1)]));
        assert_eq!(few[7], BTreeMap::from([("publish".to_owned(), 1)]));
        assert_eq!((few[9]["evalsha"], few[9]["lrange"]), (1, 1));
        // clear, forget, metadata of a connection and of a room, keep
        assert_eq!((few[10]["evalsha"], few[10]["publish"]), (1, 1));
        for own in &few[11..=14] {
            assert_eq!(own["evalsha"], 1, "{own:?}");
            assert!(!own.contains_key("publish"), "{own:?}");
        }
        // restore: the connection's partition, and the room's; subscribe
        assert_eq!(few[15]["evalsha"], 2);
        for record in [&few[16], &few[18]] {
            assert_eq!((record["evalsha"], record["publish"]), (1, 1));
        }
        assert_eq!(few[17], BTreeMap::from([("hmget".to_owned(), 1)]));
        assert_eq!(few[19], BTreeMap::from([("subscribe".to_owned(), 1)]));
        for foreign in &few[20..] {
            assert_eq!((foreign["evalsha"], foreign["publish"]), (1, 1));
        }
        assert!(few.iter().all(|cost| !cost.contains_key("keys")
            && !cost.contains_key("scan")
            && !cost.contains_key("config|set")));
    });
}

#[test]
fn large_rooms_are_read_page_by_page() {
    run(async {
        let server = RedisServer::start();
        let instance = Instance::open(server.builder(), "a").await;
        let number = 3_500;
        let ids: Vec<_> = (0..number).map(|number| format!("a.{number}")).collect();
        let opened = ids.iter().map(|id| async {
            instance
                .run(Op::OpenConnection {
                    connection: id.as_str().into(),
                    metadata: Some("{\"a\":1}".into()),
                })
                .await;
            instance.join("r", id).await;
        });
        futures_util::future::join_all(opened).await;
        assert_eq!(instance.members("r").await.len(), number);
        assert_eq!(instance.connections().await.len(), number);
        let reply = instance
            .run(Op::RoomMembersMetadata { room: "r".into() })
            .await;
        let Reply::ConnectionsMetadata(all) = reply else {
            panic!("{reply:?}")
        };
        assert_eq!(all.len(), number);
        assert!(
            all.iter()
                .all(|(_, json)| json.as_deref() == Some("{\"a\":1}"))
        );
        let before = server.command_stats();
        instance.run(Op::RoomMembers { room: "r".into() }).await;
        let scans = server.command_stats()["hscan"] - before["hscan"];
        assert!((3..8).contains(&scans), "{scans} pages");
        instance.close().await;
        assert_eq!(server.lasting_keys(), Vec::<String>::new());
    });
}

#[test]
fn what_was_cleared_leaves_nothing_behind() {
    run(async {
        let server = RedisServer::start();
        let builder = || server.builder().lease(std::time::Duration::from_secs(60));
        let one = Instance::open(builder(), "one").await;
        let two = Instance::open(builder(), "two").await;
        let ids: Vec<_> = (0..600).map(|number| format!("one.{number}")).collect();
        for id in &ids {
            one.connect(id).await;
            one.join("r", id).await;
            one.join("s", id).await;
        }
        let forget = |room: &str| Op::ForgetMembers {
            room: room.into(),
            connections: ids.iter().map(|id| id.as_str().into()).collect(),
        };
        for room in ["r", "s"] {
            two.run(Op::ClearRoom { room: room.into() }).await;
        }
        // Behind the clearing, and before the word of it.
        one.join("s", "one.7").await;
        let forgetting = cost(&server, &one, forget("r")).await;
        assert_eq!(forgetting["evalsha"], 2, "{forgetting:?}");
        one.run(forget("s")).await;
        let indexes = server.keys().into_iter().filter(|key| key.contains(":i:"));
        let indexes: Vec<_> = indexes.collect();
        assert_eq!(indexes.len(), 1, "{indexes:?}");
        let noted = server.ask(&["SMEMBERS", &indexes[0]]).unwrap();
        assert_eq!(noted, "one.7\0s");
        for (id, scripts) in [("one.1", 1), ("one.7", 2)] {
            let connection = id.into();
            let closing = cost(&server, &one, Op::CloseConnection { connection }).await;
            assert_eq!(closing["evalsha"], scripts, "{id}: {closing:?}");
        }
        assert_eq!(two.members("s").await, Vec::<String>::new());
    });
}
