//! Redis killed, emptied and frozen; instances that die.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may")]

mod support;

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::join_all;
use mesh_core::backend::{
    BackendError, ConnectionId, Document, MetadataChange, Name, Notice, Op, Reply, Topic,
};
use support::{Instance, RedisServer, run, run_both, stated, until};

fn restore(members: &[(&str, &str, u64)], connections: &[(&str, Option<&str>, u64)]) -> Op {
    Op::Restore {
        connections: connections
            .iter()
            .map(|(id, json, revision)| stated(id, *json, *revision))
            .collect(),
        members: members
            .iter()
            .map(|(room, id, number)| ((*room).into(), (*id).into(), *number))
            .collect(),
    }
}

fn leave(room: &str, id: &str) -> Op {
    Op::LeaveRoom {
        room: room.into(),
        connection: id.into(),
    }
}

fn set(id: &str, json: &str) -> Op {
    Op::SetConnectionMetadata {
        connection: id.into(),
        change: MetadataChange::Replace(json.into()),
    }
}

#[test]
fn a_dead_instance_is_cleaned_up_once_and_told() {
    run(async {
        let server = RedisServer::start();
        let (one, two) = (
            Instance::open(server.builder(), "one").await,
            Instance::open(server.builder(), "two").await,
        );
        let three = Instance::open(server.builder(), "three").await;
        for number in 0..30 {
            let id = format!("one.{number}");
            one.connect(&id).await;
            one.join(&format!("r{}", number % 7), &id).await;
        }
        two.connect("two.1").await;
        two.join("r1", "two.1").await;
        let began = Instant::now();
        drop(one);
        let mut told = Vec::new();
        while told.len() < 30 {
            for instance in [&two, &three] {
                match instance.notice_within(Duration::from_millis(50)).await {
                    Some(Notice::RoomsLeft(left)) => told.extend(left),
                    Some(other) => panic!("{other:?}"),
                    None => {}
                }
            }
            assert!(
                began.elapsed() < Duration::from_secs(8),
                "only {} memberships ended",
                told.len()
            );
        }
        told.sort();
        told.dedup();
        assert_eq!(told.len(), 30, "each is told once");
        until("the connections are gone", || async {
            two.connections().await == ["two.1"]
        })
        .await;
        assert_eq!(two.members("r1").await, ["two.1"]);
        until("the claim is given back", || async {
            server.ask(&["ZCARD", "mesh:{i}:dying"]).unwrap() == "0"
        })
        .await;
        two.close().await;
        three.close().await;
        assert_eq!(server.lasting_keys(), Vec::<String>::new());
    });
}

#[test]
fn a_reaper_that_dies_is_taken_over_from() {
    run(async {
        let server = RedisServer::start();
        let one = Instance::open(server.builder().lease(Duration::from_secs(60)), "one").await;
        one.connect("one.1").await;
        one.join("r", "one.1").await;
        drop(one);
        // Another began to clean up behind it and came no further.
        let member = server
            .ask(&["ZRANGE", "mesh:{i}:leases", "0", "-1"])
            .unwrap();
        server.ask(&["ZREM", "mesh:{i}:leases", &member]);
        server.ask(&["ZADD", "mesh:{i}:dying", "1", &member]);
        let two = Instance::open(server.builder(), "two").await;
        assert_eq!(
            two.notice().await,
            Notice::RoomsLeft(vec![("r".into(), "one.1".into())])
        );
        until("it is counted", || async {
            two.backend.stats().instances_reaped == 1
        })
        .await;
        two.close().await;
        assert_eq!(server.lasting_keys(), Vec::<String>::new());
    });
}

#[test]
fn an_empty_redis_is_filled_again() {
    run_both(async |server| {
        let (one, two) = (
            Instance::open(server.builder(), "one").await,
            Instance::open(server.builder(), "two").await,
        );
        one.connect("one.1").await;
        let generation = one.join("r", "one.1").await;
        one.subscribe(&[Topic::Room("r".into()), Topic::Channel("c".into())])
            .await;
        server.kill();
        assert_eq!(one.notice().await, Notice::Lost);
        let began = Instant::now();
        let error = one.try_run(Op::Connections).await.unwrap_err();
        assert!(matches!(error, BackendError::Unavailable(_)), "{error:?}");
        assert!(
            began.elapsed() < Duration::from_millis(100),
            "it fails at once"
        );
        // It counts as open, and is stated again.
        let late = Op::OpenConnection {
            connection: "one.2".into(),
            metadata: None,
        };
        assert!(matches!(
            one.try_run(late).await,
            Err(BackendError::Unavailable(_))
        ));
        one.run(Op::Unsubscribe {
            topics: vec![Topic::Channel("c".into())],
        })
        .await;
        server.restart();
        assert_eq!(one.returned().await, Some(false));
        assert_eq!(two.outage().await, Some(false));
        assert_eq!(server.topics().len(), 1, "the room's");
        assert_eq!(one.connections().await, Vec::<String>::new());

        let connections = [("one.1", Some("{\"a\":1}"), 3), ("one.2", None, 1)];
        let reply = one
            .run(restore(&[("r", "one.1", generation)], &connections))
            .await;
        assert_eq!(
            reply,
            Reply::Restored {
                changed: vec![],
                ended: vec![]
            }
        );
        one.settle().await;
        assert_eq!(two.members("r").await, ["one.1"]);
        assert_eq!(two.connections().await, ["one.1", "one.2"]);
        two.run(Op::Publish {
            topic: Topic::Room("r".into()),
            message: "hi".into(),
        })
        .await;
        assert_eq!(
            one.message().await,
            (Topic::Room("r".into()), Bytes::from("hi"))
        );
        assert_eq!(one.join("r", "one.2").await, generation);

        one.close().await;
        two.close().await;
        assert_eq!(server.lasting_keys(), Vec::<String>::new());
        assert_eq!(one.backend.stats().reconnects, 1);
    });
}

#[test]
fn a_redis_that_kept_its_data_is_settled() {
    run(async {
        let server = RedisServer::start_durable();
        // Long leases: nobody is dead.
        let builder = || server.builder().lease(Duration::from_secs(30));
        let (one, two) = (
            Instance::open(builder(), "one").await,
            Instance::open(builder(), "two").await,
        );
        for id in ["one.1", "one.2", "one.3"] {
            one.connect(id).await;
            one.join("r", id).await;
        }
        one.join("s", "one.1").await;
        let generation = one.join("t", "one.1").await;
        server.kill();
        assert_eq!(one.notice().await, Notice::Lost);
        // One goes while Redis is away.
        let close = Op::CloseConnection {
            connection: "one.3".into(),
        };
        assert!(matches!(
            one.try_run(close).await,
            Err(BackendError::Unavailable(_))
        ));
        server.restart();
        assert_eq!(one.returned().await, Some(true));
        assert_eq!(two.outage().await, Some(true));
        // What happens before this instance states anything again.
        assert_eq!(two.run(leave("r", "one.2")).await, Reply::Flag(true));
        two.run(Op::ClearRoom { room: "t".into() }).await;
        two.run(set("one.1", "{\"by\":\"two\"}")).await;

        let members = [
            ("r", "one.1", 0),
            ("r", "one.2", 0),
            ("t", "one.1", generation),
            ("r", "one.3", 0),
        ];
        let reply = one
            .run(restore(&members, &[("one.1", None, 1), ("one.2", None, 1)]))
            .await;
        let Reply::Restored { changed, mut ended } = reply else {
            panic!("{reply:?}")
        };
        assert_eq!(changed, [stated("one.1", Some("{\"by\":\"two\"}"), 2)]);
        ended.sort();
        let over = [("r", "one.2"), ("r", "one.3"), ("t", "one.1")];
        assert_eq!(ended, over.map(|(room, id)| (room.into(), id.into())));
        // "s" was not stated again, and "one.3" neither.
        assert_eq!(two.members("s").await, ["one.1"]);
        one.settle().await;
        assert_eq!(two.members("s").await, Vec::<String>::new());
        assert_eq!(two.members("r").await, ["one.1"]);
        assert_eq!(two.connections().await, ["one.1", "one.2"]);
        // A join takes the mark of the foreign leave away.
        one.join("r", "one.2").await;
        assert_eq!(
            one.run(restore(&[("r", "one.2", 0)], &[])).await,
            Reply::Restored {
                changed: vec![],
                ended: vec![]
            }
        );
        one.close().await;
        two.close().await;
        assert_eq!(server.lasting_keys(), Vec::<String>::new());
    });
}

#[test]
fn an_instance_whose_return_a_failover_forgot_is_no_other() {
    run(async {
        let server = RedisServer::start();
        // It would end long after this test's patience.
        let builder = server.builder().lease(Duration::from_secs(600));
        let one = Instance::open(builder, "one").await;
        for id in ["one.1", "one.2"] {
            one.connect(id).await;
            one.join("r", id).await;
        }
        let restore = |id| restore(&[("r", id, 0)], &[(id, None, 1)]);
        // What a restart goes back to.
        server.ask(&["SAVE"]).unwrap();
        for _ in 0..3 {
            server.ask(&["CLIENT", "KILL", "TYPE", "normal"]);
            assert_eq!(one.outage().await, Some(true));
            one.run(restore("one.1")).await;
            one.settle().await;
            assert_eq!(one.members("r").await, ["one.1"]);
        }
        server.kill();
        assert_eq!(one.notice().await, Notice::Lost);
        server.restart();
        assert_eq!(one.returned().await, Some(true));
        assert_eq!(one.members("r").await, ["one.1", "one.2"], "as it was");
        one.run(restore("one.1")).await;
        one.settle().await;
        assert_eq!(one.members("r").await, ["one.1"]);
        assert_eq!(one.connections().await, ["one.1"]);
        one.close().await;
        assert_eq!(server.lasting_keys(), Vec::<String>::new());
    });
}

#[test]
fn a_frozen_redis_is_known_in_time_and_nobody_is_reaped() {
    run_both(async |server| {
        let (one, two) = (
            Instance::open(server.builder(), "one").await,
            Instance::open(server.builder(), "two").await,
        );
        one.connect("one.1").await;
        let generation = one.join("r", "one.1").await;
        one.subscribe(&[Topic::Channel("c".into())]).await;
        server.signal("-STOP");
        let began = Instant::now();
        let message = Bytes::from("doubtful");
        let doubtful = Op::PublishChannel {
            channel: "c".into(),
            message,
            history: 1,
        };
        let waiting = one.try_run(Op::JoinRoom {
            room: "s".into(),
            connection: "one.1".into(),
        });
        let (join, publish) = tokio::join!(waiting, one.try_run(doubtful));
        assert!(
            matches!(join, Err(BackendError::Unavailable(_))),
            "{join:?}"
        );
        assert!(
            matches!(publish, Err(BackendError::Unavailable(_))),
            "{publish:?}"
        );
        let took = began.elapsed();
        assert!(took < Duration::from_secs(4), "it took {took:?}");
        assert_eq!(one.notice().await, Notice::Lost);
        // Longer than a lease: on its return everybody looks dead.
        tokio::time::sleep(Duration::from_secs(5)).await;
        server.signal("-CONT");
        let began = Instant::now();
        assert_eq!(one.returned().await, Some(true));
        assert_eq!(two.outage().await, Some(true));
        assert!(began.elapsed() < Duration::from_secs(10));
        one.run(restore(
            &[("r", "one.1", generation)],
            &[("one.1", None, 1)],
        ))
        .await;
        one.settle().await;
        // The doubtful join came to nothing, or is settled.
        assert_eq!(two.members("s").await, Vec::<String>::new());
        assert_eq!(two.members("r").await, ["one.1"]);
        // Both go on as before for longer than a lease.
        assert_eq!(one.notice_within(Duration::from_secs(4)).await, None);
        assert_eq!(two.notice_within(Duration::ZERO).await, None);
        assert_eq!(two.members("r").await, ["one.1"]);
    });
}

#[test]
fn an_instance_that_is_held_for_dead_registers_anew() {
    run_both(async |server| {
        let one = Instance::open(server.builder(), "one").await;
        one.connect("one.1").await;
        one.join("r", "one.1").await;
        // As if another had judged so.
        let member = server
            .ask(&["ZRANGE", "mesh:{i}:leases", "0", "-1"])
            .unwrap();
        server.ask(&["ZREM", "mesh:{i}:leases", &member]).unwrap();
        assert_eq!(one.notice().await, Notice::Lost);
        assert!(matches!(one.notice().await, Notice::Restored { .. }));
        assert_ne!(
            server
                .ask(&["ZRANGE", "mesh:{i}:leases", "0", "-1"])
                .unwrap(),
            member
        );
        one.run(restore(&[("r", "one.1", 0)], &[("one.1", None, 1)]))
            .await;
        one.settle().await;
        assert_eq!(one.members("r").await, ["one.1"]);

        // A tombstone alone does the same: what an entombed incarnation writes is refused.
        let member = server
            .ask(&["ZRANGE", "mesh:{i}:leases", "0", "-1"])
            .unwrap();
        for partition in 0..128 {
            server.ask(&[
                "SET",
                &format!("mesh:{{p{partition}}}:t:{}", &member[..16]),
                "1",
            ]);
        }
        let join = one
            .try_run(Op::JoinRoom {
                room: "s".into(),
                connection: "one.1".into(),
            })
            .await;
        assert!(
            matches!(join, Err(BackendError::Unavailable(_))),
            "{join:?}"
        );
        assert_eq!(one.outage().await, Some(true));
        assert_eq!(one.members("s").await, Vec::<String>::new());
    });
}

#[test]
fn what_others_changed_outlives_being_held_for_dead() {
    run(async {
        let server = RedisServer::start();
        let builder = || server.builder().lease(Duration::from_secs(60));
        let one = Instance::open(builder(), "one").await;
        let two = Instance::open(builder(), "two").await;
        one.connect("one.1").await;
        one.join("r", "one.1").await;
        two.run(set("one.1", "{\"by\":\"two\"}")).await;
        two.run(leave("r", "one.1")).await;
        // As if others had cleaned up behind it.
        for key in server.lasting_keys() {
            if key.ends_with("}:c") {
                server.ask(&["DEL", &key]);
            }
        }
        assert_eq!(two.connections().await, Vec::<String>::new());
        let reply = one
            .run(restore(&[("r", "one.1", 0)], &[("one.1", Some("1"), 1)]))
            .await;
        let changed = vec![stated("one.1", Some("{\"by\":\"two\"}"), 2)];
        let ended = vec![("r".into(), "one.1".into())];
        assert_eq!(reply, Reply::Restored { changed, ended });
        let reply = two
            .run(Op::ConnectionMetadata {
                connection: "one.1".into(),
            })
            .await;
        assert_eq!(
            reply,
            Reply::Document(stated("", Some("{\"by\":\"two\"}"), 2).1)
        );
        // Where the instance knows a newer one, it counts.
        let reply = one.run(restore(&[], &[("one.1", Some("3"), 3)])).await;
        assert_eq!(
            reply,
            Reply::Restored {
                changed: vec![],
                ended: vec![]
            }
        );
        let reply = two
            .run(Op::ConnectionMetadata {
                connection: "one.1".into(),
            })
            .await;
        assert_eq!(reply, Reply::Document(stated("", Some("3"), 3).1));
    });
}

#[test]
fn scripts_that_were_flushed_are_brought_again() {
    run(async {
        let server = RedisServer::start();
        let one = Instance::open(server.builder(), "one").await;
        one.connect("one.1").await;
        server.ask(&["SCRIPT", "FLUSH"]);
        one.join("r", "one.1").await;
        assert_eq!(one.members("r").await, ["one.1"]);
    });
}

#[test]
fn a_join_that_races_with_its_connections_end_leaves_no_ghost() {
    run(async {
        let server = RedisServer::start();
        let one = std::sync::Arc::new(Instance::open(server.builder(), "one").await);
        for round in 0..200 {
            let id = format!("one.{round}");
            one.connect(&id).await;
            let joins = (0..8).map(|number| {
                let (one, id) = (one.clone(), id.clone());
                tokio::spawn(async move {
                    let op = Op::JoinRoom {
                        room: format!("r{number}").as_str().into(),
                        connection: id.as_str().into(),
                    };
                    one.try_run(op).await
                })
            });
            let joins: Vec<_> = joins.collect();
            if round % 3 == 0 {
                tokio::task::yield_now().await;
            }
            if round % 20 == 0 {
                server.ask(&["SCRIPT", "FLUSH"]);
            }
            one.run(Op::CloseConnection {
                connection: id.as_str().into(),
            })
            .await;
            for join in joins {
                let result = join.await.unwrap();
                assert!(
                    matches!(
                        result,
                        Ok(Reply::Joined { .. }) | Err(BackendError::UnknownConnection)
                    ),
                    "{result:?}"
                );
            }
        }
        let mut keys = server.lasting_keys();
        keys.retain(|key| !key.starts_with("mesh:{i}:"));
        assert_eq!(keys, Vec::<String>::new());
    });
}

#[test]
fn a_dropped_backend_leaves_no_connection() {
    run_both(async |server| {
        let clients = || {
            server.ask(&["CLIENT", "LIST"]).map_or(0, |text| {
                text.matches("lib-name=mesh-redis")
                    .count()
                    .max(text.lines().count() - 1)
            })
        };
        for _ in 0..5 {
            let one = Instance::open(server.builder(), "one").await;
            one.subscribe(&[Topic::All]).await;
            assert!(clients() >= 2);
            one.close().await;
            drop(one);
        }
        let two = Instance::open(server.builder(), "two").await;
        drop(two);
        until("all connections are closed", || async { clients() == 0 }).await;
    });
}

#[test]
fn a_restoration_begins_no_generation() {
    run(async {
        let server = RedisServer::start();
        let builder = || server.builder().lease(Duration::from_secs(6));
        let one = Instance::open(builder(), "one").await;
        let two = Instance::open(builder(), "two").await;
        one.connect("one.1").await;
        two.connect("two.1").await;
        one.run(Op::ClearRoom { room: "r".into() }).await;
        let cleared = one.join("r", "one.1").await;
        server.ask(&["FLUSHALL"]);
        let lost = two.join("r", "two.1").await;
        assert!(lost < cleared);
        assert_eq!(one.outage().await, Some(false));
        assert_eq!(two.outage().await, Some(false));
        let nothing = Reply::Restored {
            changed: vec![],
            ended: vec![],
        };
        for (instance, id, number) in [(&one, "one.1", cleared), (&two, "two.1", lost)] {
            let reply = instance
                .run(restore(&[("r", id, number)], &[(id, None, 1)]))
                .await;
            assert_eq!(reply, nothing, "{id}");
            instance.settle().await;
        }
        assert_eq!(one.members("r").await, ["one.1", "two.1"]);
        assert_eq!(two.join("r", "two.1").await, lost, "nobody cleared it");
        // A clearing is newer than all of them.
        let Reply::Cleared { generation } = two.run(Op::ClearRoom { room: "r".into() }).await
        else {
            panic!()
        };
        assert!(generation > cleared);
        let reply = one.run(restore(&[("r", "one.1", cleared)], &[])).await;
        let ended = vec![("r".into(), "one.1".into())];
        let changed = vec![];
        assert_eq!(reply, Reply::Restored { changed, ended });
    });
}

#[test]
fn two_documents_of_one_revision_become_one() {
    run(async {
        let server = RedisServer::start();
        let one = Instance::open(server.builder(), "one").await;
        let two = Instance::open(server.builder(), "two").await;
        one.connect("one.1").await;
        // The owner's change was lost with the tail, and another's has its revision.
        two.run(set("one.1", "\"two\"")).await;
        let reply = one
            .run(restore(&[], &[("one.1", Some("\"one\""), 2)]))
            .await;
        let (changed, ended) = (vec![stated("one.1", Some("\"two\""), 3)], vec![]);
        assert_eq!(reply, Reply::Restored { changed, ended });
        let reply = two
            .run(Op::ConnectionMetadata {
                connection: "one.1".into(),
            })
            .await;
        assert_eq!(reply, Reply::Document(stated("", Some("\"two\""), 3).1));
        // Equal bytes are nothing to tell.
        let reply = one
            .run(restore(&[], &[("one.1", Some("\"two\""), 3)]))
            .await;
        let (changed, ended) = (vec![], vec![]);
        assert_eq!(reply, Reply::Restored { changed, ended });
    });
}

#[test]
fn a_restoration_brings_no_closed_connection_back() {
    run(async {
        let server = RedisServer::start();
        let one = Instance::open(server.builder(), "one").await;
        one.connect("one.1").await;
        one.connect("one.2").await;
        one.run(Op::CloseConnection {
            connection: "one.1".into(),
        })
        .await;
        let members = [("r", "one.1", 0), ("r", "one.2", 0)];
        let reply = one
            .run(restore(&members, &[("one.1", None, 1), ("one.2", None, 1)]))
            .await;
        let (changed, ended) = (vec![], vec![("r".into(), "one.1".into())]);
        assert_eq!(reply, Reply::Restored { changed, ended });
        assert_eq!(one.connections().await, ["one.2"]);
        assert_eq!(one.members("r").await, ["one.2"]);
        let join = one
            .try_run(Op::JoinRoom {
                room: "s".into(),
                connection: "one.1".into(),
            })
            .await;
        assert_eq!(join, Err(BackendError::UnknownConnection));
    });
}

#[test]
fn a_heartbeat_that_is_refused_is_an_outage() {
    run(async {
        let server = RedisServer::start();
        server.ask(&["ACL", "SETUSER", "u", "on", ">p", "~*", "&*", "+@all"]);
        let builder = server.builder().username("u").password("p");
        let one = Instance::open(builder, "one").await;
        one.connect("one.1").await;
        server.ask(&["ACL", "SETUSER", "u", "-evalsha"]).unwrap();
        let lost = one.notice_within(Duration::from_secs(5)).await;
        assert_eq!(lost, Some(Notice::Lost));
        server.ask(&["ACL", "SETUSER", "u", "+evalsha"]).unwrap();
        assert!(matches!(one.notice().await, Notice::Restored { .. }));
    });
}

#[test]
fn what_is_under_way_at_the_close_leaves_nothing() {
    run(async {
        let server = RedisServer::start();
        for round in 0..10 {
            let one = Instance::open(server.builder(), "one").await;
            one.connect("one.0").await;
            // Each is brought its script in a second step, behind the close.
            server.ask(&["SCRIPT", "FLUSH"]);
            let joins = (0..20).map(|number| {
                one.try_run(Op::JoinRoom {
                    room: format!("r{number}").as_str().into(),
                    connection: "one.0".into(),
                })
            });
            let opens = (1..20).map(|number| {
                one.try_run(Op::OpenConnection {
                    connection: format!("one.{number}").as_str().into(),
                    metadata: None,
                })
            });
            let all = futures_util::future::join_all(joins.chain(opens));
            let (_, closed) = tokio::join!(all, one.try_run(Op::CloseInstance));
            assert_eq!(closed, Ok(Reply::Done), "round {round}");
            assert_eq!(server.lasting_keys(), Vec::<String>::new(), "round {round}");
        }
    });
}

#[test]
fn a_full_redis_is_emptied_by_leaving() {
    run(async {
        let server = RedisServer::start();
        let one = Instance::open(server.builder(), "one").await;
        let two = Instance::open(server.builder(), "two").await;
        for id in ["one.1", "one.2"] {
            one.connect(id).await;
            one.join("r", id).await;
            one.join("s", id).await;
        }
        two.connect("two.1").await;
        two.join("r", "two.1").await;
        server.ask(&["CONFIG", "SET", "maxmemory", "1"]);
        assert_eq!(one.run(leave("s", "one.1")).await, Reply::Flag(true));
        let connection = "one.1".into();
        one.run(Op::CloseConnection { connection }).await;
        one.run(Op::ClearRoom { room: "s".into() }).await;
        // Heartbeats go on, and with them the cleaning.
        drop(two);
        let left = vec![("r".into(), "two.1".into())];
        assert_eq!(one.notice().await, Notice::RoomsLeft(left));
        until("it is cleaned up behind", || async {
            one.backend.stats().instances_reaped == 1
        })
        .await;
        // What adds to it is refused, and is no outage.
        let join = Op::JoinRoom {
            room: "t".into(),
            connection: "one.2".into(),
        };
        let full = one.try_run(join.clone()).await;
        assert!(matches!(full, Err(BackendError::Full(_))), "{full:?}");
        assert_eq!(one.notice_within(Duration::from_secs(3)).await, None);
        // What is there can be stated again.
        server.ask(&["CLIENT", "KILL", "TYPE", "pubsub"]);
        server.ask(&["CLIENT", "KILL", "TYPE", "normal"]);
        assert_eq!(one.outage().await, Some(true));
        let nothing = Reply::Restored {
            changed: vec![],
            ended: vec![],
        };
        let stated = restore(&[("r", "one.2", 0)], &[("one.2", None, 1)]);
        assert_eq!(one.run(stated).await, nothing);
        one.settle().await;
        assert_eq!(one.members("r").await, ["one.2"]);
        // And who comes anew finds the way in.
        let three = Instance::open(server.builder(), "three").await;
        three.close().await;
        server.ask(&["CONFIG", "SET", "maxmemory", "0"]);
        one.run(join).await;
        one.close().await;
        assert_eq!(server.lasting_keys(), Vec::<String>::new());
    });
}

#[test]
fn a_crowd_is_stated_again_without_another_outage() {
    const CROWD: usize = 30_000;
    const ROOMS: usize = 3;
    // As the server does: one part of each of its shards at a time.
    const SHARDS: usize = 16;
    const PART: usize = 4_096;
    run(async {
        let server = RedisServer::start();
        let one = Instance::open(server.builder(), "one").await;
        let ids: Vec<_> = (0..CROWD)
            .map(|number| ConnectionId::new(format!("one.{number:024x}")))
            .collect();
        for part in ids.chunks(1_000) {
            let opened = part.iter().map(|id| {
                one.run(Op::OpenConnection {
                    connection: id.clone(),
                    metadata: None,
                })
            });
            join_all(opened).await;
        }
        server.kill();
        server.restart();
        assert_eq!(one.outage().await, Some(false));
        let document = Document {
            json: Some("{\"name\":\"somebody\"}".into()),
            revision: 1,
        };
        let room = |at: usize, number: usize| Name::from(format!("room {}", at % 99 * 9 + number));
        let shards = ids.chunks(CROWD.div_ceil(SHARDS)).map(|shard| {
            let (one, document) = (&one, &document);
            async move {
                let parts = shard.chunks(PART).map(|part| Op::Restore {
                    connections: part
                        .iter()
                        .map(|id| (id.clone(), document.clone()))
                        .collect(),
                    members: Vec::new(),
                });
                let members: Vec<_> = shard
                    .iter()
                    .enumerate()
                    .flat_map(|(at, id)| {
                        (0..ROOMS).map(move |number| (room(at, number), id.clone(), 0))
                    })
                    .collect();
                let more = members.chunks(PART).map(|part| Op::Restore {
                    connections: Vec::new(),
                    members: part.to_vec(),
                });
                for op in parts.chain(more) {
                    one.run(op).await;
                }
            }
        });
        join_all(shards).await;
        one.settle().await;
        assert_eq!(one.connections().await.len(), CROWD);
        let listed = (0..99 * 9).map(|at| format!("room {at}"));
        let mut members = 0;
        for name in listed {
            members += one.members(&name).await.len();
        }
        assert_eq!(members, CROWD * ROOMS);
        assert_eq!(one.notice_within(Duration::from_secs(3)).await, None);
        one.close().await;
        assert_eq!(server.lasting_keys(), Vec::<String>::new());
    });
}

#[test]
fn what_is_kept_for_an_instance_is_told_on_its_return_and_once() {
    run(async {
        let server = RedisServer::start();
        // So long that nobody's own heartbeat tells it before the test does.
        let builder = || server.builder().lease(Duration::from_secs(60));
        let one = Instance::open(builder(), "one").await;
        let two = Instance::open(builder(), "two").await;
        let keep = |message: Option<&'static str>| Op::KeepFor {
            instance: "one".into(),
            message: message.map(Bytes::from),
        };
        let end_lease = || {
            let leases = server.ask(&["ZRANGE", "mesh:{i}:leases", "0", "-1"]);
            let leases = leases.unwrap();
            let member = leases.lines().find(|it| it.ends_with(" one")).unwrap();
            server.ask(&["ZREM", "mesh:{i}:leases", member]).unwrap();
        };
        let back = async || {
            server.ask(&["CLIENT", "KILL", "TYPE", "normal"]);
            assert_eq!(two.outage().await, Some(true));
            assert_eq!(one.notice().await, Notice::Lost);
            match one.notice().await {
                Notice::Restored { kept, .. } => kept,
                other => panic!("{other:?}"),
            }
        };
        let there = two.run(keep(Some("it is there"))).await;
        assert_eq!(there, Reply::Flag(false));
        end_lease();
        for message in [Some("first"), None, Some("second")] {
            assert_eq!(two.run(keep(message)).await, Reply::Flag(true));
        }
        assert_eq!(back().await, ["first", "second"]);
        let list = "mesh:{i}:kept:one";
        until("they are let go of", || async {
            !server.keys().iter().any(|key| key == list)
        })
        .await;
        assert_eq!(back().await, [""; 0]);

        // They are not let go of before the next return, as if that had failed.
        end_lease();
        two.run(keep(Some("third"))).await;
        let third = server.ask(&["LINDEX", list, "0"]).unwrap();
        assert_eq!(back().await, ["third"]);
        until("it is let go of", || async {
            !server.keys().iter().any(|key| key == list)
        })
        .await;
        server.ask(&["RPUSH", list, &third]).unwrap();
        end_lease();
        two.run(keep(Some("fourth"))).await;
        assert_eq!(back().await, ["fourth"]);

        // Nothing that was accepted goes for what comes later.
        end_lease();
        for _ in 0..1_000 {
            assert_eq!(two.run(keep(Some("more"))).await, Reply::Flag(true));
        }
        let full = two.try_run(keep(Some("too many"))).await;
        assert!(matches!(full, Err(BackendError::Full(_))), "{full:?}");
        assert_eq!(two.run(keep(None)).await, Reply::Flag(true));
        assert_eq!(back().await.len(), 1_000);
    });
}
