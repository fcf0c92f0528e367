//! The Rust client, as a user has it, against the demo, which comes and goes.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on fails"
)]

mod common;

use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use mesh_tests::prelude::*;
use mesh_tests::runtime::{self, block_on, sleep, spawn};
use mesh_tests::{Demo, PATIENCE, RawClient};
use serde_json::{Value, json};

use crate::common::{SOON, connect, disconnected, patiently, reconnected, until};

fn builder(demo: &Demo) -> ClientBuilder {
    MeshClient::builder(&format!("ws://{}", demo.addr())).reconnect_interval(SOON)
}

/// A demo that dies and comes back, and a gate that lets clients back in only when the test says so.
struct Restart {
    demo: Demo,
    is_open: Arc<AtomicBool>,
}

impl Restart {
    fn new() -> Self {
        Self {
            demo: Demo::start(&[]),
            is_open: Arc::new(AtomicBool::new(true)),
        }
    }

    /// A client that has to pass the gate at each of its attempts.
    fn builder(&self) -> ClientBuilder {
        let is_open = Arc::clone(&self.is_open);
        builder(&self.demo).token_provider(move || {
            let is_open = Arc::clone(&is_open);
            async move {
                while !is_open.load(Ordering::Acquire) {
                    sleep(SOON).await;
                }
                Ok::<_, Infallible>("token".to_owned())
            }
        })
    }

    /// Kills the demo and starts another on its port. The gate is shut.
    fn restart(self) -> Self {
        let Self { demo, is_open } = self;
        is_open.store(false, Ordering::Release);
        let port = demo.addr().port();
        drop(demo);
        let demo = Demo::start_at(port, &[]);
        Self { demo, is_open }
    }

    fn open_the_gate(&self) {
        self.is_open.store(true, Ordering::Release);
    }
}

#[test]
fn a_hundred_commands_wait_for_a_server_that_is_down() {
    block_on(async {
        let demo = Demo::start(&[]);
        let port = demo.addr().port();
        let client = connect(builder(&demo)).await;
        let mut statuses = client.on_status();
        drop(demo);
        disconnected(&mut statuses).await;
        let calls: Vec<_> = (0..100)
            .map(|n| {
                let payload =
                    json!({ "channel": "chat:queue", "message": n.to_string(), "history": 100 });
                let publish = client.command::<_, Value>("publish", payload);
                publish.into_future()
            })
            .collect();
        let demo = Demo::start_at(port, &[]);
        for call in calls {
            let reply = patiently("a reply", call).await;
            assert_eq!(reply, Ok(json!({ "success": true })));
        }
        // Each once.
        let payload = json!({ "channel": "chat:queue", "limit": 200 });
        let history: Value = client
            .command("mesh/get-channel-history", payload)
            .await
            .unwrap();
        let mut history: Vec<u32> = history["history"]
            .as_array()
            .unwrap()
            .iter()
            .map(|message| message.as_str().unwrap().parse().unwrap())
            .collect();
        history.sort_unstable();
        assert_eq!(history, (0..100).collect::<Vec<_>>());
        drop(demo);
    });
}

#[test]
fn a_killed_server_ends_what_is_pending_at_once() {
    block_on(async {
        let demo = Demo::start(&[]);
        let client = connect(builder(&demo)).await;
        let started = Instant::now();
        let calls: Vec<_> = (0..10)
            .map(|_| {
                client
                    .command::<_, Value>("never-responds", ())
                    .into_future()
            })
            .collect();
        let reply: String = patiently("a reply", client.command("echo", "x"))
            .await
            .unwrap();
        assert_eq!(reply, "echo: x");
        drop(demo);
        for call in calls {
            let result = patiently("the end", call).await;
            assert_eq!(result, Err(ClientError::Disconnected));
        }
        assert!(started.elapsed() < PATIENCE);
    });
}

#[test]
fn a_server_that_shuts_down_says_so() {
    block_on(async {
        let demo = Demo::start(&[]);
        let port = demo.addr().port();
        let client = connect(builder(&demo)).await;
        let mut statuses = client.on_status();
        let since = Instant::now();
        demo.signal("TERM");
        assert_eq!(disconnected(&mut statuses).await, Some(1001));
        assert_eq!(demo.end(since).status.code(), Some(0));
        let _demo = Demo::start_at(port, &[]);
        reconnected(&mut statuses).await;
        let reply: String = patiently("a reply", client.command("echo", "x"))
            .await
            .unwrap();
        assert_eq!(reply, "echo: x");
    });
}

#[test]
fn a_subscription_is_put_back_and_tells_what_it_missed() {
    block_on(async {
        let server = Restart::new();
        let client = connect(server.builder()).await;
        let mut statuses = client.on_status();
        let publish = |raw: &mut RawClient, message: &str| {
            let payload = json!({ "channel": "chat:room1", "message": message, "history": 10 });
            raw.succeed("publish", payload);
        };
        let mut raw = RawClient::connect(&server.demo);
        publish(&mut raw, "1");
        let subscribe = client.subscribe("chat:room1").history(2);
        let mut chat = patiently("a subscription", subscribe).await.unwrap();
        assert_eq!(chat.history(), ["1"]);
        publish(&mut raw, "2");
        let message = |text: &str| Some(ChannelEvent::Message(text.to_owned()));
        assert_eq!(patiently("an event", chat.next()).await, message("2"));

        let server = server.restart();
        disconnected(&mut statuses).await;
        let mut raw = RawClient::connect(&server.demo);
        for missed in ["3", "4", "5"] {
            publish(&mut raw, missed);
        }
        server.open_the_gate();
        reconnected(&mut statuses).await;
        publish(&mut raw, "6");
        let history = vec!["5".to_owned(), "4".to_owned()];
        let resubscribed = Some(ChannelEvent::Resubscribed { history });
        assert_eq!(patiently("an event", chat.next()).await, resubscribed);
        assert_eq!(patiently("an event", chat.next()).await, message("6"));

        patiently("the end", chat.unsubscribe()).await.unwrap();
        publish(&mut raw, "7");
        assert_eq!(raw.command("echo", "x"), "echo: x");
        let _: String = client.command("echo", "x").await.unwrap();
        assert_eq!(client.stats().messages_unclaimed, 0);
    });
}

#[test]
fn rooms_are_joined_again_before_it_says_reconnected() {
    block_on(async {
        let server = Restart::new();
        let client = connect(server.builder()).await;
        let mut statuses = client.on_status();
        let mut news = client.on::<Value>("news");
        let present: Vec<String> = patiently("the room", client.join_room("room:a"))
            .await
            .unwrap();
        let id = client.connection_id().unwrap();
        assert_eq!(present, [&*id]);
        let left: Vec<String> = patiently("the room", client.join_room("room:left"))
            .await
            .unwrap();
        assert_eq!(left, [&*id]);
        patiently("leaving", client.leave_room("room:left"))
            .await
            .unwrap();

        let server = server.restart();
        disconnected(&mut statuses).await;
        assert_eq!(client.connection_id(), None);
        server.open_the_gate();
        reconnected(&mut statuses).await;
        let mut raw = RawClient::connect(&server.demo);
        let members = raw.command("room-members", json!({ "roomName": "room:a" }));
        let now = client.connection_id().unwrap();
        assert_ne!(now, id);
        assert_eq!(members, json!([now]));
        let members = raw.command("room-members", json!({ "roomName": "room:left" }));
        assert_eq!(members, json!([]));
        let broadcast = json!({ "roomName": "room:a", "command": "news", "payload": { "n": 1 } });
        assert_eq!(
            raw.command("broadcast-room", broadcast),
            json!({ "sent": true })
        );
        let event = patiently("an event", news.next()).await.unwrap();
        assert_eq!(event, Ok(json!({ "n": 1 })));
    });
}

#[test]
fn what_is_not_exposed_is_an_error() {
    block_on(async {
        let demo = Demo::shared();
        let client = connect(builder(&demo)).await;
        let denied = patiently("an answer", client.subscribe("secret")).await;
        let not_exposed = |name: &str| ClientError::NotExposed(name.to_owned());
        assert_eq!(denied.unwrap_err(), not_exposed("secret"));
        let denied = patiently("an answer", client.join_room::<Value>("secret")).await;
        assert_eq!(denied, Err(not_exposed("secret")));
        let denied = patiently("an answer", client.set_metadata(&json!({ "admin": true }))).await;
        assert_eq!(denied, Err(not_exposed("metadata")));
    });
}

#[test]
fn events_and_latency_arrive_as_streams_and_callbacks() {
    block_on(async {
        #[derive(Debug, serde::Deserialize, PartialEq)]
        #[serde(rename_all = "camelCase")]
        struct UserJoined {
            room_name: String,
            id: String,
        }
        let demo = Demo::start(&["--latency-interval", "20"]);
        let client = connect(builder(&demo)).await;
        let mut joined = client.on::<UserJoined>("user-joined");
        let mut latencies = client.on_latency();
        let (send, called) = mpsc::channel();
        let _guard = client.on_with("user-joined", move |joined: UserJoined| {
            send.send(joined).unwrap();
        });
        let mut raw = RawClient::connect(&demo);
        let room = json!({ "roomName": "lobby" });
        let reply: Value = client.command("join-room", &room).await.unwrap();
        assert_eq!(reply, json!({ "success": true }));
        raw.succeed("join-room", room);
        for id in [client.connection_id().unwrap(), raw.id().to_owned()] {
            let event = patiently("an event", joined.next()).await.unwrap().unwrap();
            let room_name = "lobby".to_owned();
            assert_eq!(event, UserJoined { room_name, id });
            assert_eq!(called.recv_timeout(PATIENCE).unwrap(), event);
        }
        let latency = patiently("a latency", latencies.next()).await.unwrap();
        assert!(latency > Duration::ZERO);
        assert!(latency < PATIENCE);
    });
}

#[test]
fn errors_are_the_servers_and_typed() {
    block_on(async {
        let demo = Demo::shared();
        let client = connect(builder(&demo)).await;
        let error = async |name: &str, payload: Value| {
            let call = client.command::<_, Value>(name, payload);
            match patiently("an answer", call).await {
                Err(ClientError::Command(error)) => [error.message(), error.code(), error.name()]
                    .map(ToOwned::to_owned)
                    .join(" | "),
                other => panic!("not the server's error: {other:?}"),
            }
        };
        assert_eq!(
            error("no-such", json!({})).await,
            r#"Command "no-such" not found | ENOTFOUND | CommandError"#
        );
        assert_eq!(
            error("this-command-throws", json!({})).await,
            "Something went wrong | ESERVER | Error"
        );
        let payload = json!({ "message": "m", "code": "c", "name": "n" });
        assert_eq!(error("fails-with", payload).await, "m | c | n");
        assert_eq!(
            error("panics", json!({})).await,
            "Internal error | EINTERNAL | Error"
        );
        let invalid = error("sleep", json!({ "ms": "long" })).await;
        assert!(
            invalid.ends_with(" | EINVALID | ValidationError"),
            "{invalid}"
        );
        assert!(invalid.contains("ms"), "{invalid}");

        let allowed = Duration::from_millis(50);
        let never = client.command::<_, Value>("never-responds", ());
        let error = patiently("a timeout", never.timeout(allowed)).await;
        assert_eq!(error.unwrap_err().code(), Some("ETIMEOUT"));
    });
}

#[test]
fn a_program_without_async_calls_commands_too() {
    let demo = Demo::shared();
    let client = runtime::connect_blocking(builder(&demo)).unwrap();
    let reply: String = client.command_blocking("echo", "x", PATIENCE).unwrap();
    assert_eq!(reply, "echo: x");
    let failed = client.command_blocking::<_, Value>("this-command-throws", (), PATIENCE);
    assert_eq!(failed.unwrap_err().code(), Some("ESERVER"));
    let allowed = Duration::from_millis(50);
    let never = client.command_blocking::<_, Value>("never-responds", (), allowed);
    assert_eq!(never.unwrap_err().code(), Some("ETIMEOUT"));
}

#[test]
fn a_blocking_command_inside_the_runtime_fails_at_once() {
    block_on(async {
        let demo = Demo::shared();
        let client = connect(builder(&demo)).await;
        let started = Instant::now();
        let result =
            spawn(
                async move { client.command_blocking::<_, Value>("never-responds", (), PATIENCE) },
            );
        let result = result.await;
        assert!(matches!(result, Err(ClientError::Usage(_))), "{result:?}");
        assert!(started.elapsed() < PATIENCE);
    });
}

#[test]
fn pings_of_the_server_keep_the_connection() {
    block_on(async {
        let demo = Demo::start(&["--ping-interval", "100", "--max-missed-pongs", "3"]);
        let impatient = builder(&demo)
            .ping_timeout(Duration::from_millis(500))
            .max_missed_pings(3);
        let client = connect(impatient).await;
        until("an id", || client.connection_id().is_some()).await;
        let id = client.connection_id();
        // Longer than either side forgives.
        let over = Instant::now() + Duration::from_millis(2_500);
        until("time goes by", || Instant::now() > over).await;
        let _: String = client.command("echo", "x").await.unwrap();
        assert_eq!(client.connection_id(), id);
    });
}
