//! Topics and channels.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may")]

mod support;

use std::{
    io::{self, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    thread,
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::join_all;
use mesh_core::backend::{Backend as _, BackendError, Name, Notice, Op, Reply, Topic};
use support::{Instance, RedisServer, run, run_both, until};

fn publish(topic: Topic, message: &str) -> Op {
    Op::Publish {
        topic,
        message: Bytes::copy_from_slice(message.as_bytes()),
    }
}

fn publish_channel(channel: &str, message: &str, history: usize) -> Op {
    Op::PublishChannel {
        channel: channel.into(),
        message: Bytes::copy_from_slice(message.as_bytes()),
        history,
    }
}

#[test]
fn names_match_nothing_but_themselves() {
    run_both(async |server| {
        let (one, two) = (
            Instance::open(server.builder(), "one").await,
            Instance::open(server.builder(), "two").await,
        );
        let long = "x".repeat(512);
        let names = [
            "*", "h?llo", "hello", "[a-z]", "a b", "a\nb\r\n", "\\", &long, "{p1}", "a\0b", "é",
        ];
        let topics: Vec<_> = names
            .iter()
            .map(|name| Topic::Channel((*name).into()))
            .collect();
        one.subscribe(&topics).await;
        for (name, topic) in names.iter().zip(&topics) {
            two.run(publish_channel(name, name, 1)).await;
            assert_eq!(
                one.message().await,
                (topic.clone(), Bytes::copy_from_slice(name.as_bytes()))
            );
            let history = two
                .run(Op::History {
                    channel: (*name).into(),
                    limit: 5,
                    bytes_max: 600,
                })
                .await;
            assert_eq!(
                history,
                Reply::History(vec![Bytes::copy_from_slice(name.as_bytes())])
            );
        }
        for name in names {
            one.connect("one.1").await;
            one.join(name, "one.1").await;
            one.subscribe(&[Topic::Room(name.into())]).await;
            two.run(publish(Topic::Room(name.into()), "hi")).await;
            assert_eq!(one.message().await, (Topic::Room(name.into()), "hi".into()));
            assert_eq!(two.members(name).await, ["one.1"]);
        }
        assert_eq!(one.backend.stats().messages_ignored, 0);
    });
}

#[test]
fn what_others_publish_arrives_byte_for_byte() {
    run_both(async |server| {
        let one = Instance::open(server.builder(), "one").await;
        let topic = Topic::Channel("chat:room1".into());
        one.subscribe(std::slice::from_ref(&topic)).await;
        let mut client = redis::Client::open(server.url())
            .unwrap()
            .get_connection()
            .unwrap();
        let message: Vec<u8> = (0..=255).collect();
        let heard: i64 = redis::cmd("PUBLISH")
            .arg("chat:room1")
            .arg(&message)
            .query(&mut client)
            .unwrap();
        assert_eq!(heard, 1);
        assert_eq!(one.message().await, (topic, message.into()));
        // Of a format that is not known yet.
        one.subscribe(&[Topic::All]).await;
        let _: i64 = redis::cmd("PUBLISH")
            .arg("mesh:all")
            .arg("\u{4}12345678future")
            .query(&mut client)
            .unwrap();
        until("the message is counted", || async {
            one.backend.stats().messages_ignored == 1
        })
        .await;
    });
}

#[test]
fn a_subscription_lasts_from_reply_to_reply() {
    run_both(async |server| {
        let (one, two) = (
            Instance::open(server.builder(), "one").await,
            Instance::open(server.builder(), "two").await,
        );
        // Many at once, so that orders are put together.
        let topics: Vec<_> = (0..2_000)
            .map(|number| Topic::Room(format!("r{number}").as_str().into()))
            .collect();
        let taking = topics.chunks(7).map(|topics| one.subscribe(topics));
        join_all(taking).await;
        for topic in topics.iter().step_by(97) {
            two.run(publish(topic.clone(), "in force")).await;
            assert_eq!(one.message().await.0, *topic);
        }
        // Its own do not come back, and what was given back neither.
        one.run(publish(topics[0].clone(), "own")).await;
        one.run(Op::Unsubscribe {
            topics: topics[1..].to_vec(),
        })
        .await;
        two.run(publish(topics[1].clone(), "late")).await;
        two.run(publish(topics[0].clone(), "last")).await;
        assert_eq!(one.message().await, (topics[0].clone(), "last".into()));
        let heard = server.topics();
        assert_eq!(heard.len(), 1, "{heard:?}");
    });
}

#[test]
fn taking_and_giving_back_at_once_ends_with_the_last_word() {
    run_both(async |server| {
        let one = Instance::open(server.builder(), "one").await;
        for round in 0..50 {
            let topics = vec![Topic::Room("r".into())];
            let take = || {
                one.try_run(Op::Subscribe {
                    topics: topics.clone(),
                })
            };
            let give = || {
                one.try_run(Op::Unsubscribe {
                    topics: topics.clone(),
                })
            };
            let (_, _, _) = tokio::join!(take(), give(), take());
            let heard = server.topics();
            assert_eq!(heard.len(), 1, "round {round}");
            assert_eq!(server.listeners(&heard[0]), 1, "round {round}");
            give().await.unwrap();
        }
        assert_eq!(server.topics(), Vec::<String>::new());
    });
}

#[test]
fn only_what_has_a_partition_is_sharded() {
    run(async {
        let server = RedisServer::start().sharded(true);
        let (one, two) = (
            Instance::open(server.builder(), "one").await,
            Instance::open(server.builder(), "two").await,
        );
        let topics = [
            Topic::All,
            Topic::Channel("c".into()),
            Topic::Instance("one".into()),
            Topic::Room("r".into()),
        ];
        one.subscribe(&topics).await;
        let classic = server.ask(&["PUBSUB", "CHANNELS"]).unwrap();
        let mut classic: Vec<_> = classic.lines().collect();
        classic.sort_unstable();
        assert_eq!(classic, ["c", "mesh:all", "mesh:n:one"]);
        assert_eq!(server.topics().len(), 2, "{:?}", server.topics());
        let before = server.command_stats();
        for topic in topics {
            if topic == Topic::Channel("c".into()) {
                two.run(publish_channel("c", "hi", 0)).await;
            } else {
                two.run(publish(topic.clone(), "hi")).await;
            }
            assert_eq!(one.message().await, (topic, "hi".into()));
        }
        let after = server.command_stats();
        let calls = |name| after[name] - before.get(name).unwrap_or(&0);
        assert_eq!((calls("publish"), calls("spublish")), (2, 2));
    });
}

#[test]
fn topics_of_a_partition_share_commands() {
    run_both(async |server| {
        let one = Instance::open(server.builder(), "one").await;
        let topics: Vec<_> = (0..20_000)
            .map(|number| Topic::Room(format!("r{number}").as_str().into()))
            .collect();
        one.subscribe(&topics).await;
        let heard = server.topics();
        assert_eq!(heard.len(), topics.len());
        let stats = server.command_stats();
        let calls = |name| stats.get(name).copied().unwrap_or(0);
        if calls("ssubscribe") == 0 {
            assert_eq!(calls("subscribe"), 40);
        } else {
            // One ahead for each of 128 partitions, and the others of it.
            assert_eq!((calls("subscribe"), calls("ssubscribe")), (0, 256));
        }
        one.run(Op::Unsubscribe { topics }).await;
        assert_eq!(server.topics(), Vec::<String>::new());
    });
}

#[test]
fn one_publishers_order_holds_between_channels_and_events() {
    run_both(async |server| {
        let one = Instance::open(server.builder(), "one").await;
        one.subscribe(&[Topic::Channel("c".into())]).await;
        for number in 0..500 {
            one.run(publish_channel("c", &number.to_string(), number % 3))
                .await;
            // It stands among the notices before its reply.
            let heard = one.notice_within(Duration::ZERO).await;
            let message = number.to_string().into();
            assert_eq!(
                heard,
                Some(Notice::Message {
                    topic: Topic::Channel("c".into()),
                    message
                })
            );
        }
    });
}

#[test]
fn a_thousand_messages_keep_their_order() {
    run_both(async |server| {
        let (one, two) = (
            Instance::open(server.builder(), "one").await,
            Instance::open(server.builder(), "two").await,
        );
        let (room, channel) = (Topic::Room("r".into()), Topic::Channel("c".into()));
        two.subscribe(&[room.clone(), channel.clone()]).await;
        let rooms =
            (0..1_000).map(|number| one.run(publish(Topic::Room("r".into()), &number.to_string())));
        let channels =
            (0..1_000).map(|number| one.run(publish_channel("c", &number.to_string(), 10)));
        tokio::join!(join_all(rooms), join_all(channels));
        let mut next = [0, 0];
        for _ in 0..2_000 {
            let (topic, message) = two.message().await;
            let next = &mut next[usize::from(topic == channel)];
            assert_eq!(message, next.to_string());
            *next += 1;
        }
    });
}

#[test]
fn a_history_is_exactly_the_newest() {
    run(async {
        let server = RedisServer::start();
        let one = Instance::open(server.builder(), "one").await;
        for number in 0..10 {
            one.run(publish_channel("c", &number.to_string(), 3)).await;
        }
        one.run(publish_channel("c", "passing", 0)).await;
        let history = |limit, bytes_max| Op::History {
            channel: "c".into(),
            limit,
            bytes_max,
        };
        let read = async |limit| one.run(history(limit, 3)).await;
        let expected = |list: &[&'static str]| {
            Reply::History(list.iter().map(|it| Bytes::from(*it)).collect())
        };
        assert_eq!(read(10).await, expected(&["9", "8", "7"]));
        assert_eq!(read(2).await, expected(&["9", "8"]));
        assert_eq!(read(0).await, expected(&[]));
        assert_eq!(
            one.try_run(history(10, 2)).await,
            Err(BackendError::ReplyTooLong { max: 2 })
        );
        for number in 0..100 {
            one.run(publish_channel("long", &number.to_string(), 99))
                .await;
        }
        for limit in [31, 32, 33, 64, 99, 100] {
            let read = one
                .run(Op::History {
                    channel: "long".into(),
                    limit,
                    bytes_max: 999,
                })
                .await;
            let newest = (1..100).rev().take(limit);
            let newest = newest.map(|number: u32| number.to_string().into());
            assert_eq!(read, Reply::History(newest.collect()));
        }
        assert_eq!(
            server.ask(&["LRANGE", "history:c", "0", "-1"]).unwrap(),
            "9\n8\n7"
        );
    });
}

#[test]
fn the_prefix_is_no_channel() {
    run_both(async |server| {
        let one = Instance::open(server.builder(), "one").await;
        let topics = vec![Topic::Channel("mesh:all".into())];
        for op in [
            publish_channel("mesh:all", "x", 0),
            publish_channel("mesh:all", "x", 1),
            Op::Subscribe { topics },
            publish(Topic::Channel("c".into()), "x"),
        ] {
            assert!(matches!(one.try_run(op).await, Err(BackendError::Usage(_))));
        }
        // With another prefix it is one.
        let two = Instance::open(server.builder().prefix("other:"), "two").await;
        two.run(publish_channel("mesh:all", "x", 0)).await;
        assert_eq!(two.backend.name(), "redis");
        let _: Name = "x".into();
    });
}

/// Passes bytes on to a server, and back only as many as it may.
fn throttle(server: &RedisServer) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("redis://{}", listener.local_addr().unwrap());
    let allowed = Arc::new(AtomicUsize::new(usize::MAX / 2));
    let (port, rest) = (server.port, Arc::clone(&allowed));
    thread::spawn(move || {
        for client in listener.incoming() {
            let mut client = client.unwrap();
            let mut server = TcpStream::connect(("127.0.0.1", port)).unwrap();
            let mut up = (client.try_clone().unwrap(), server.try_clone().unwrap());
            thread::spawn(move || io::copy(&mut up.0, &mut up.1));
            let rest = Arc::clone(&rest);
            thread::spawn(move || {
                let mut byte = [0];
                while server.read_exact(&mut byte).is_ok() {
                    let less = |rest: usize| rest.checked_sub(1);
                    while rest.fetch_update(SeqCst, SeqCst, less).is_err() {
                        thread::sleep(Duration::from_millis(1));
                    }
                    if client.write_all(&byte).is_err() {
                        return;
                    }
                }
            });
        }
    });
    (url, allowed)
}

#[test]
fn a_reply_waits_for_the_last_confirmation() {
    run(async {
        let server = RedisServer::start().sharded(true);
        // Three topics that share a partition.
        let one = Instance::open(server.builder(), "one").await;
        let rooms =
            (0..600).map(|number| Topic::Room(format!("r{}", 100 + number).as_str().into()));
        one.subscribe(&rooms.collect::<Vec<_>>()).await;
        let mut channels = server.topics();
        channels.sort();
        let tag = |channel: &str| channel.split('}').next().unwrap().to_owned();
        let three = channels
            .windows(3)
            .find(|three| tag(&three[0]) == tag(&three[2]))
            .unwrap();
        let room = |channel: &String| channel.split_once(":r:").unwrap().1.to_owned();
        let topics: Vec<_> = three
            .iter()
            .map(|channel| Topic::Room(room(channel).as_str().into()))
            .collect();

        let (url, allowed) = throttle(&server);
        let patient = mesh_redis::builder(url)
            .sharded(true)
            .lease(Duration::from_secs(60))
            .response_timeout(Duration::from_secs(60));
        let two = Instance::open(patient, "two").await;
        // Two confirmations come through, and a part of the third.
        let confirmation = ">3\r\n$10\r\nssubscribe\r\n$15\r\n\r\n:1\r\n".len() + three[0].len();
        allowed.store(2 * confirmation + 10, SeqCst);
        let mut taking = std::pin::pin!(two.subscribe(&topics));
        let early = tokio::time::timeout(Duration::from_millis(500), taking.as_mut()).await;
        assert!(early.is_err(), "before the last confirmation");
        assert_eq!(allowed.load(SeqCst), 0, "some came through");
        allowed.store(usize::MAX / 2, SeqCst);
        taking.await;
        one.run(publish(topics[2].clone(), "in force")).await;
        assert_eq!(two.message().await, (topics[2].clone(), "in force".into()));
    });
}

#[test]
fn a_topic_that_is_refused_harms_no_other() {
    run_both(async |server| {
        server.ask(&[
            "ACL",
            "SETUSER",
            "u",
            "on",
            ">p",
            "~*",
            "+@all",
            "resetchannels",
            "&mesh:*",
            "&ok*",
        ]);
        let builder = server.builder().username("u").password("p");
        let one = Instance::open(builder, "one").await;
        let two = Instance::open(server.builder(), "two").await;
        let channel = |name: &str| Topic::Channel(name.into());
        for round in 0..5 {
            // The first goes ahead, the others share an order.
            let names = ["ok", "ok-1", "forbidden", "ok-2"].map(|name| format!("{name}{round}"));
            let taking = names.iter().map(|name| {
                one.try_run(Op::Subscribe {
                    topics: vec![channel(name)],
                })
            });
            for (name, result) in names.iter().zip(join_all(taking).await) {
                if name.starts_with("ok") {
                    assert_eq!(result, Ok(Reply::Done), "{name}");
                } else {
                    let refused = matches!(result, Err(BackendError::Usage(_)));
                    assert!(refused, "{name}: {result:?}");
                }
            }
            two.run(publish_channel(&names[3], "hi", 0)).await;
            assert_eq!(one.message().await, (channel(&names[3]), "hi".into()));
        }
        // All or nothing for what is taken by one operation.
        let topics = vec![channel("ok-alone"), channel("forbidden")];
        let result = one.try_run(Op::Subscribe { topics }).await;
        assert!(matches!(result, Err(BackendError::Usage(_))), "{result:?}");
        until("what was taken beside it is given back", || async {
            server.ask(&["PUBSUB", "NUMSUB", "ok-alone"]).unwrap() == "ok-alone\n0"
        })
        .await;
        // What was refused does not stand in the way of a return.
        server.ask(&["CLIENT", "KILL", "TYPE", "pubsub"]);
        assert_eq!(one.outage().await, Some(true));
        two.run(publish_channel("ok-24", "hi", 0)).await;
        assert_eq!(one.message().await, (channel("ok-24"), "hi".into()));
    });
}
