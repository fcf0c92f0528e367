//! Two and three servers on one Redis, and on a Redis Cluster of three nodes, are one server to their clients
//! (`protocol.md`, sections 1 and 8; `demo-server.md`).

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on fails"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;

use mesh_tests::fleet::{Fleet, id_set, servers, shut_down};
use mesh_tests::{Demo, RawClient, Redis, RedisCluster, until};
use serde_json::{Value, json};

fn room(name: &str) -> Value {
    json!({ "roomName": name })
}

fn channel(name: &str) -> Value {
    json!({ "channel": name })
}

fn event(room: &str, payload: impl Into<Value>) -> Value {
    json!({ "roomName": room, "command": "news", "payload": payload.into() })
}

fn ids(clients: &[&RawClient]) -> BTreeSet<String> {
    clients
        .iter()
        .map(|client| client.id().to_owned())
        .collect()
}

#[track_caller]
fn sent(client: &mut RawClient, command: &str, payload: impl Into<Value>) {
    assert_eq!(client.command(command, payload), json!({ "sent": true }));
}

#[track_caller]
fn subscribe(client: &mut RawClient, name: &str) {
    let granted = client.command("mesh/subscribe-channel", channel(name));
    assert_eq!(granted, json!({ "success": true, "history": [] }));
}

#[track_caller]
fn members(client: &mut RawClient, name: &str) -> BTreeSet<String> {
    id_set(&client.command("room-members", room(name))).unwrap()
}

/// Asserts that no event of this name is there, and that none is under way either: whoever sent it sends `fence` to the
/// same connection after it.
#[track_caller]
fn assert_none(client: &mut RawClient, name: &str, sender: &mut RawClient) {
    let fence = json!({ "connectionId": client.id(), "command": "fence", "payload": null });
    sent(sender, "send-to", fence);
    client.event("fence");
    assert_eq!(client.events_until_now(name), Vec::<Value>::new());
}

#[test]
fn health_names_redis_and_each_instance() {
    let redis = Redis::start();
    let demos: [Demo; 3] = servers(&redis.url());
    let mut instances = BTreeSet::new();
    for demo in &demos {
        let _client = RawClient::connect(demo);
        let health = demo.health();
        assert_eq!(health["backend"], "redis");
        assert_eq!(health["status"], "ok");
        assert_eq!(health["connections"], 1, "its own ones");
        instances.insert(health["instanceId"].as_str().unwrap().to_owned());
    }
    assert_eq!(instances.len(), 3);
}

#[test]
fn an_unreachable_redis_at_the_start_is_one_clear_line_and_exit_2_within_5_s() {
    // Nobody listens; nobody answers.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addresses = [&silent, &closed].map(|listener| listener.local_addr().unwrap());
    drop(closed);
    for url in addresses.map(|addr| format!("redis://{addr}")) {
        let outcome = Demo::fail(&["--redis", &url], "0");
        assert_eq!(outcome.status.code(), Some(2), "{outcome:?}");
        eprintln!("{:?} after {:?}", outcome.stderr.trim(), outcome.took);
        // And a little for a machine that is busy with other tests.
        assert!(outcome.took.as_millis() < 7_000, "{:?}", outcome.took);
        assert_eq!(outcome.stderr.trim().lines().count(), 1, "{outcome:?}");
        assert_eq!(outcome.stdout, "");
    }
    let outcome = Demo::fail(&["--redis", "no-such-scheme://x"], "0");
    assert_eq!(outcome.status.code(), Some(2), "{outcome:?}");
}

#[test]
fn room_members_are_those_of_all_instances() {
    let redis = Redis::start();
    let demos: [Demo; 3] = servers(&redis.url());
    let mut clients = demos.each_ref().map(RawClient::connect);
    assert_eq!(members(&mut clients[0], "r"), BTreeSet::new());
    let mut expected = BTreeSet::new();
    for at in 0..3 {
        clients[at].succeed("join-room", room("r"));
        expected.insert(clients[at].id().to_owned());
        for client in &mut clients {
            assert_eq!(members(client, "r"), expected);
        }
    }
    let [first, second, third] = &mut clients;
    let asked = json!({ "roomName": "r", "connectionId": second.id() });
    assert_eq!(first.command("is-in-room", asked.clone()), true);
    let granted = third.command("mesh/join-room", room("room:exposed"));
    assert_eq!(granted["present"], json!([third.id()]));
    let granted = first.command("mesh/join-room", room("room:exposed"));
    assert_eq!(id_set(&granted["present"]).unwrap(), ids(&[third, first]));
    second.succeed("leave-room", room("r"));
    assert_eq!(first.command("is-in-room", asked), false);
    assert_eq!(members(third, "r"), ids(&[first, third]));
    second.succeed("join-room", room("r"));
    second.succeed("join-room", room("s"));
    second.succeed("leave-all-rooms", Value::Null);
    assert_eq!(members(third, "r"), ids(&[first, third]));
    assert_eq!(members(third, "s"), BTreeSet::new());
    third.succeed("clear-room", room("r"));
    for client in &mut clients {
        assert_eq!(members(client, "r"), BTreeSet::new());
        let mine = client.id().to_owned();
        let asked = json!({ "roomName": "r", "connectionId": mine });
        assert_eq!(client.command("is-in-room", asked), false);
    }
}

#[test]
fn broadcasts_reach_whom_they_are_for_on_every_instance_and_nobody_else() {
    let redis = Redis::start();
    let demos: [Demo; 3] = servers(&redis.url());
    let mut inside = demos.each_ref().map(RawClient::connect);
    let mut outside = demos.each_ref().map(RawClient::connect);
    for client in &mut inside {
        client.succeed("join-room", room("r"));
    }
    for from in 0..3 {
        // Members or not may speak.
        for (speaker, payload) in [(&mut inside[from], "in"), (&mut outside[from], "out")] {
            sent(speaker, "broadcast-room", event("r", payload));
        }
        for client in &mut inside {
            assert_eq!(client.event("news"), "in");
            assert_eq!(client.event("news"), "out");
        }
        sent(&mut inside[from], "broadcast-room-exclude", event("r", "x"));
        sent(&mut inside[from], "broadcast", json!({ "from": from }));
        sent(&mut inside[from], "broadcast-exclude", json!("others"));
        for (at, client) in inside.iter_mut().enumerate() {
            if at != from {
                assert_eq!(client.event("news"), "x");
            }
        }
        for (at, client) in inside.iter_mut().chain(&mut outside).enumerate() {
            assert_eq!(client.event("announcement"), json!({ "from": from }));
            if at != from {
                assert_eq!(client.event("announcement"), "others");
            }
        }
        for client in &mut outside {
            let payload = json!({ "connectionId": client.id(), "command": "to", "payload": from });
            sent(&mut inside[from], "send-to", payload);
            assert_eq!(client.event("to"), from);
        }
        let nobody = json!({ "connectionId": "no-such-connection", "command": "to", "payload": 1 });
        sent(&mut inside[from], "send-to", nobody);
        let (speaker, others) = inside.split_at_mut(from);
        let (speaker, others) = match others.split_first_mut() {
            Some((one, rest)) => (one, speaker.iter_mut().chain(rest)),
            None => unreachable!("there are three"),
        };
        for client in others.chain(&mut outside) {
            for name in ["news", "announcement", "to"] {
                assert_none(client, name, speaker);
            }
        }
        assert_eq!(speaker.events_until_now("news"), Vec::<Value>::new());
        assert_eq!(
            speaker.events_until_now("announcement"),
            Vec::<Value>::new()
        );
    }
}

#[test]
fn events_of_one_publisher_keep_its_order_on_another_instance() {
    const ROUNDS: u64 = 200;
    let redis = Redis::start();
    let demos: [Demo; 2] = servers(&redis.url());
    let [mut publisher, mut listener] = demos.each_ref().map(RawClient::connect);
    let mut neighbour = RawClient::connect(&demos[0]);
    for client in [&mut listener, &mut neighbour] {
        client.succeed("join-room", room("r"));
        subscribe(client, "chat:order");
    }
    for n in 0..ROUNDS {
        let to = |client: &RawClient| json!({ "connectionId": client.id(), "command": "news", "payload": n });
        sent(&mut publisher, "broadcast-room", event("r", n));
        sent(&mut publisher, "send-to", to(&listener));
        sent(&mut publisher, "send-to", to(&neighbour));
        sent(&mut publisher, "broadcast", n);
        let message = json!({ "channel": "chat:order", "message": n.to_string() });
        publisher.succeed("publish", message);
    }
    for client in [&mut listener, &mut neighbour] {
        let mut came = Vec::new();
        while came.len() < ROUNDS as usize * 4 {
            let frame = client.next_frame();
            if frame["command"] != "user-joined" {
                came.push(frame);
            }
        }
        // What goes by one way, such as a channel, is in order by itself.
        let mut messages = came
            .iter()
            .filter(|frame| frame["command"] == "mesh/subscription-message");
        for n in 0..ROUNDS {
            let frame = messages.next().unwrap();
            assert_eq!(frame["payload"]["message"], n.to_string());
        }
        let mut others = came
            .iter()
            .filter(|frame| frame["command"] != "mesh/subscription-message");
        for n in 0..ROUNDS {
            for command in ["news", "news", "announcement"] {
                let frame = others.next().unwrap();
                assert_eq!(frame, &json!({ "command": command, "payload": n }));
            }
        }
    }
}

#[test]
fn events_that_are_not_waited_for_keep_their_order_too() {
    const EVENTS: u64 = 2_000;
    let redis = Redis::start();
    let demos: [Demo; 2] = servers(&redis.url());
    let mut listeners = demos.each_ref().map(RawClient::connect);
    for client in &mut listeners {
        client.succeed("join-room", room("r"));
    }
    thread::scope(|scope| {
        for (from, demo) in demos.iter().enumerate() {
            scope.spawn(move || {
                let mut publisher = RawClient::connect(demo);
                let payload = |n: u64| event("r", json!([from, n]));
                for from in (0..EVENTS).step_by(500) {
                    let asked: Vec<u32> = (from..from + 500)
                        .map(|n| publisher.send_command("broadcast-room", payload(n)))
                        .collect();
                    for id in asked {
                        assert_eq!(publisher.reply(id), json!({ "sent": true }));
                    }
                }
            });
        }
        for client in &mut listeners {
            scope.spawn(move || {
                let mut next = [0; 2];
                while next != [EVENTS; 2] {
                    let came = client.event("news");
                    let from = came[0].as_u64().unwrap() as usize;
                    assert_eq!(came[1], next[from], "of server {from}");
                    next[from] += 1;
                }
            });
        }
    });
}

#[test]
fn what_is_published_after_the_reply_of_a_subscribe_or_join_is_delivered_from_any_instance() {
    let redis = Redis::start();
    let demos: [Demo; 2] = servers(&redis.url());
    let [mut client, mut publisher] = demos.each_ref().map(RawClient::connect);
    let mut outsider = redis.client();
    for n in 0..100 {
        let (chat, name) = (format!("chat:at-once-{n}"), format!("room:at-once-{n}"));
        subscribe(&mut client, &chat);
        if n % 2 == 0 {
            publisher.succeed("publish", json!({ "channel": chat, "message": "m" }));
        } else {
            assert_eq!(outsider.publish(&chat, "m"), 1);
        }
        let message = json!({ "channel": chat, "message": "m" });
        assert_eq!(client.event("mesh/subscription-message"), message);
        let granted = client.command("mesh/join-room", room(&name));
        assert_eq!(granted["success"], true);
        sent(&mut publisher, "broadcast-room", event(&name, n));
        assert_eq!(client.event("news"), n);
    }
}

/// Runs `watch` while someone on another instance repeats a command whose payload holds a number that counts up.
fn while_publishing(
    demo: &Demo,
    command: &str,
    payload: impl Fn(u64) -> Value + Sync,
    watch: impl FnOnce(),
) {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut publisher = RawClient::connect(demo);
            for n in 0.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                let reply = publisher.command(command, payload(n));
                assert!(reply["success"] == true || reply["sent"] == true, "{reply}");
            }
        });
        // A failure must not leave the publisher running for ever.
        let watched = std::panic::catch_unwind(std::panic::AssertUnwindSafe(watch));
        stop.store(true, Ordering::Relaxed);
        watched.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

#[test]
fn a_message_published_elsewhere_during_a_subscribe_is_in_history_or_live_or_both() {
    let redis = Redis::start();
    let demos: [Demo; 2] = servers(&redis.url());
    let payload =
        |n: u64| json!({ "channel": "chat:c", "message": n.to_string(), "history": 10_000 });
    while_publishing(&demos[0], "publish", payload, || {
        let number = |value: &Value| value.as_str().unwrap().parse::<i64>().unwrap();
        for round in 0..40 {
            let mut client = RawClient::connect(&demos[1]);
            let wanted = json!({ "channel": "chat:c", "historyLimit": 10_000 });
            let granted = client.command("mesh/subscribe-channel", wanted);
            let history: Vec<i64> = granted["history"]
                .as_array()
                .unwrap()
                .iter()
                .map(number)
                .collect();
            let newest = history.first().copied().unwrap_or(-1);
            let oldest = history.last().copied().unwrap_or(0);
            assert!(history.iter().copied().eq((oldest..=newest).rev()));
            let live = |client: &mut RawClient| {
                number(&client.event("mesh/subscription-message")["message"])
            };
            let first = live(&mut client);
            assert!(
                first <= newest + 1,
                "round {round}: history ends with {newest}, live begins with {first}"
            );
            for n in first + 1..first + 10 {
                assert_eq!(live(&mut client), n);
            }
        }
    });
}

#[test]
fn no_event_of_a_room_from_elsewhere_precedes_the_join_or_follows_the_leave() {
    let redis = Redis::start();
    let demos: [Demo; 2] = servers(&redis.url());
    let mut client = RawClient::connect(&demos[1]);
    while_publishing(
        &demos[0],
        "broadcast-room",
        |n| event("room:f", n),
        || {
            for round in 0..40 {
                let id = client.send_command("mesh/join-room", room("room:f"));
                let granted = client.next_frame();
                assert_eq!(granted["id"], id, "round {round}: {granted}");
                let first = client.event("news").as_u64().unwrap();
                assert_eq!(client.event("news"), first + 1, "none is left out");
                let id = client.send_command("mesh/leave-room", room("room:f"));
                assert_eq!(client.reply(id), json!({ "success": true }));
                client.set_aside();
                client.assert_quiet();
            }
        },
    );
}

#[test]
fn a_channel_is_the_redis_channel_of_its_name_byte_for_byte() {
    let redis = Redis::start();
    let demos: [Demo; 2] = servers(&redis.url());
    let mut clients = demos.each_ref().map(RawClient::connect);
    let mut outsider = redis.client();
    for client in &mut clients {
        subscribe(client, "chat:bytes");
    }
    let messages = [
        "",
        "hi",
        "Grüße 🎈 \u{0} \u{7f} \u{2028}",
        "{\"json\": [1,  2]}",
        "line\r\nline\n",
        "\"quoted\\",
        &"x".repeat(200_000),
    ];
    for message in messages {
        assert_eq!(
            outsider.publish("chat:bytes", message),
            2,
            "one per instance"
        );
        let wanted = json!({ "channel": "chat:bytes", "message": message });
        for client in &mut clients {
            assert_eq!(client.event("mesh/subscription-message"), wanted);
        }
        // And back: what a client publishes is what Redis knows.
        let kept = json!({ "channel": "chat:bytes", "message": message, "history": 2 });
        clients[0].succeed("publish", kept);
        for client in &mut clients {
            assert_eq!(client.event("mesh/subscription-message"), wanted);
        }
        let newest = outsider.command(&["LINDEX", "history:chat:bytes", "0"]);
        assert_eq!(newest.bytes(), message.as_bytes());
    }
    // What is no UTF-8, or too long, harms nobody.
    outsider.publish("chat:bytes", b"\xff\xfe");
    outsider.publish("chat:bytes", vec![b'x'; 2 << 20]);
    outsider.publish("chat:bytes", "after");
    for client in &mut clients {
        let after = json!({ "channel": "chat:bytes", "message": "after" });
        while client.event("mesh/subscription-message") != after {}
    }
}

#[test]
fn a_history_is_the_list_of_its_channel_newest_first_exactly_the_last_n() {
    let redis = Redis::start();
    let demos: [Demo; 2] = servers(&redis.url());
    let mut clients = demos.each_ref().map(RawClient::connect);
    let mut outsider = redis.client();
    for n in 0..10 {
        let message = json!({ "channel": "chat:h", "message": n.to_string(), "history": 4 });
        clients[n % 2].succeed("publish", message);
        let list = outsider
            .command(&["LRANGE", "history:chat:h", "0", "-1"])
            .bytes_list();
        let from = n.saturating_sub(3);
        let wanted: Vec<Vec<u8>> = (from..=n)
            .rev()
            .map(|n| n.to_string().into_bytes())
            .collect();
        assert_eq!(list, wanted);
    }
    for client in &mut clients {
        let wanted = json!({ "channel": "chat:h", "limit": 3 });
        let reply = client.command("mesh/get-channel-history", wanted);
        assert_eq!(
            reply,
            json!({ "success": true, "history": ["9", "8", "7"] })
        );
    }
    // Other programs keep it too.
    outsider.command(&["LPUSH", "history:chat:h", "by another program"]);
    let wanted = json!({ "channel": "chat:h", "historyLimit": 2 });
    let granted = clients[0].command("mesh/subscribe-channel", wanted);
    assert_eq!(granted["history"], json!(["by another program", "9"]));
    let message = json!({ "channel": "chat:h", "message": "unkept" });
    clients[0].succeed("publish", message);
    let len = outsider.command(&["LLEN", "history:chat:h"]);
    assert_eq!(
        len.integer(),
        5,
        "a message without history leaves it alone"
    );
}

#[test]
fn an_instance_subscribes_while_it_has_a_local_subscriber_and_no_longer() {
    let redis = Redis::start();
    let demos: [Demo; 2] = servers(&redis.url());
    let mut outsider = redis.client();
    let mut first = RawClient::connect(&demos[0]);
    let mut second = RawClient::connect(&demos[0]);
    let mut elsewhere = RawClient::connect(&demos[1]);
    assert_eq!(outsider.subscribers("chat:n"), 0);
    subscribe(&mut first, "chat:n");
    assert_eq!(outsider.subscribers("chat:n"), 1);
    subscribe(&mut second, "chat:n");
    assert_eq!(outsider.subscribers("chat:n"), 1, "one for both");
    subscribe(&mut elsewhere, "chat:n");
    assert_eq!(outsider.subscribers("chat:n"), 2);
    let unsubscribe = |client: &mut RawClient| {
        let ended = client.command("mesh/unsubscribe-channel", channel("chat:n"));
        assert_eq!(ended, true);
    };
    unsubscribe(&mut first);
    assert_eq!(outsider.subscribers("chat:n"), 2);
    unsubscribe(&mut elsewhere);
    until("one has let go", || outsider.subscribers("chat:n") == 1);
    second.vanish();
    until("nobody is left", || outsider.subscribers("chat:n") == 0);
    subscribe(&mut first, "chat:n");
    assert_eq!(outsider.publish("chat:n", "again"), 1);
    assert_eq!(first.event("mesh/subscription-message")["message"], "again");
    // Coming and going at once ends where it must.
    for _ in 0..50 {
        first.send_command("mesh/unsubscribe-channel", channel("chat:n"));
        let id = first.send_command("mesh/subscribe-channel", channel("chat:n"));
        assert_eq!(first.reply(id)["success"], true);
        assert_eq!(outsider.publish("chat:n", "again"), 1);
        assert_eq!(first.event("mesh/subscription-message")["message"], "again");
    }
    // Rooms are topics too: only instances with a member listen.
    let before: BTreeSet<String> = outsider.channels().into_iter().collect();
    first.succeed("join-room", room("listening"));
    let with: BTreeSet<String> = outsider.channels().into_iter().collect();
    assert_eq!(with.difference(&before).count(), 1, "{before:?} {with:?}");
    first.succeed("leave-room", room("listening"));
    until("the room's topic is let go", || {
        outsider.channels().into_iter().collect::<BTreeSet<_>>() == before
    });
}

#[test]
fn names_match_nothing_but_themselves() {
    let redis = Redis::start();
    let demos: [Demo; 2] = servers(&redis.url());
    let [mut one, mut two] = demos.each_ref().map(RawClient::connect);
    let mut outsider = redis.client();
    let long = format!("chat:{}", "é".repeat(253));
    assert_eq!(long.len(), 511);
    let long = format!("{long}x");
    let names = [
        "chat:*",
        "chat:?",
        "chat:[a-z]",
        "chat:a",
        "chat:\\*",
        "chat:a b",
        "chat: ",
        "chat:a\0b",
        "chat:a\tb",
        "chat:{p1}",
        "chat:{}x",
        "chat:history:a",
        "chat:Ünï🎈",
        &long,
    ];
    for name in names {
        subscribe(&mut one, name);
        assert_eq!(outsider.subscribers(name), 1, "{name:?}");
    }
    for name in names {
        let message = json!({ "channel": name, "message": name, "history": 5 });
        two.succeed("publish", message);
        assert_eq!(outsider.publish(name, "raw"), 1, "{name:?}");
        let wanted = json!({ "channel": name, "message": name });
        assert_eq!(one.event("mesh/subscription-message"), wanted);
        let wanted = json!({ "channel": name, "message": "raw" });
        assert_eq!(one.event("mesh/subscription-message"), wanted);
        let history = one.command("mesh/get-channel-history", channel(name));
        assert_eq!(history["history"], json!([name]));
        let key = format!("history:{name}");
        let list = outsider.command(&["LRANGE", &key, "0", "-1"]).bytes_list();
        assert_eq!(list, [name.as_bytes()]);
    }
    one.assert_quiet();
    // The demo exposes no name with a newline, but publishes to it.
    let (plain, broken) = ("chat:a", "chat:a\nb");
    for name in [plain, broken] {
        let message = json!({ "channel": name, "message": "last", "history": 2 });
        two.succeed("publish", message);
        let key = format!("history:{name}");
        let newest = outsider.command(&["LINDEX", &key, "0"]).bytes();
        assert_eq!(newest, b"last");
    }
    let wanted = json!({ "channel": plain, "message": "last" });
    assert_eq!(one.event("mesh/subscription-message"), wanted);
    one.assert_quiet();
    // And rooms.
    let names = [&names[..], &["a\nb", "a\r\nb", "\n"]].concat();
    let names: Vec<String> = names
        .iter()
        .map(|name| name.replacen("chat:", "", 1))
        .collect();
    for (at, name) in names.iter().enumerate() {
        one.succeed("join-room", room(name));
        let metadata = json!({ "roomName": name, "metadata": at });
        one.succeed("set-room-metadata", metadata);
    }
    for (at, name) in names.iter().enumerate() {
        sent(&mut two, "broadcast-room", event(name, at));
        assert_eq!(one.event("news"), at);
        assert_eq!(members(&mut two, name), ids(&[&one]));
        assert_eq!(two.command("get-room-metadata", room(name)), at);
        two.succeed("clear-room", room(name));
        let left = two.command("all-room-metadata", Value::Null);
        assert_eq!(left.as_object().unwrap().len(), names.len() - at - 1);
    }
    assert_none(&mut one, "news", &mut two);
}

#[test]
fn the_backends_own_names_are_out_of_reach() {
    let redis = Redis::start();
    let demos: [Demo; 2] = servers(&redis.url());
    let [mut one, mut two] = demos.each_ref().map(RawClient::connect);
    two.succeed("join-room", room("r"));
    let topics = redis.client().channels();
    assert!(!topics.is_empty());
    for topic in topics
        .iter()
        .chain(&["mesh:".to_owned(), "mesh:x".to_owned()])
    {
        assert!(
            topic.starts_with("mesh:"),
            "a topic outside the prefix: {topic}"
        );
        let granted = one.command("mesh/subscribe-channel", channel(topic));
        assert_eq!(
            granted,
            json!({ "success": false, "history": [] }),
            "{topic}"
        );
        let message = json!({ "channel": topic, "message": "m" });
        let reply = one.command("publish", message);
        assert!(reply.get("error").is_some(), "{topic}: {reply}");
        // What others publish there by mistake is counted and ignored.
        for bytes in [&b""[..], b"x", b"\xff\0\xff", b"{}", b"[1]"] {
            redis.client().publish(topic, bytes);
        }
    }
    sent(&mut one, "broadcast-room", event("r", "still"));
    assert_eq!(two.event("news"), "still");
}

#[test]
fn metadata_is_known_everywhere_and_disturbs_no_routing() {
    let redis = Redis::start();
    let demos: [Demo; 2] = servers(&redis.url());
    let [mut one, mut two] = demos.each_ref().map(RawClient::connect);
    two.succeed("join-room", room("r"));
    let of_two = json!({ "connectionId": two.id() });
    assert_eq!(one.command("get-metadata", of_two.clone()), Value::Null);
    let to_two = json!({ "connectionId": two.id(), "command": "to", "payload": 1 });
    let values = [
        json!({ "instance": "x", "instanceId": "y" }),
        json!("a string"),
        json!(5),
        json!([1, { "deep": [null] }]),
        Value::Null,
        json!({ "last": "Ünï 🎈" }),
    ];
    for value in values {
        two.succeed("set-metadata", value.clone());
        assert_eq!(one.command("get-metadata", of_two.clone()), value);
        sent(&mut one, "send-to", to_two.clone());
        assert_eq!(two.event("to"), 1);
        sent(&mut one, "broadcast-room", event("r", 2));
        assert_eq!(two.event("news"), 2);
        let map = json!([{ two.id(): value }]);
        assert_eq!(one.command("room-members-metadata", room("r")), map);
    }
    let all = one.command("all-metadata", Value::Null);
    let all: BTreeMap<String, Value> = all
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|one| one.as_object().unwrap().clone())
        .collect();
    let wanted = [
        (one.id().to_owned(), Value::Null),
        (two.id().to_owned(), json!({ "last": "Ünï 🎈" })),
    ];
    assert_eq!(all, BTreeMap::from(wanted));
    // It goes with its connection.
    let id = two.id().to_owned();
    two.vanish();
    until("it is gone", || {
        !one.command("all-metadata", Value::Null)
            .to_string()
            .contains(&id)
    });
    assert_eq!(one.command("get-metadata", of_two), Value::Null);
    assert_eq!(members(&mut one, "r"), BTreeSet::new());
}

#[test]
fn metadata_of_rooms_is_one_for_all_and_merges_are_atomic() {
    let redis = Redis::start();
    let demos: [Demo; 2] = servers(&redis.url());
    let mut clients = demos.each_ref().map(RawClient::connect);
    let with = |name: &str, metadata: Value| json!({ "roomName": name, "metadata": metadata });
    clients[0].succeed("set-room-metadata", with("m", json!({ "a": 1, "b": 1 })));
    clients[1].succeed(
        "update-room-metadata",
        with("m", json!({ "b": { "x": 1 } })),
    );
    clients[0].succeed("set-room-metadata", with("n", json!("text")));
    for client in &mut clients {
        let metadata = client.command("get-room-metadata", room("m"));
        assert_eq!(metadata, json!({ "a": 1, "b": { "x": 1 } }));
        let all = client.command("all-room-metadata", Value::Null);
        assert_eq!(
            all,
            json!({ "m": { "a": 1, "b": { "x": 1 } }, "n": "text" })
        );
    }
    // Merges from both sides at once: none is lost.
    thread::scope(|scope| {
        for (from, client) in clients.iter_mut().enumerate() {
            scope.spawn(move || {
                for n in 0..100 {
                    let key = format!("{from}-{n}");
                    client.succeed("update-room-metadata", with("merged", json!({ key: n })));
                }
            });
        }
    });
    let merged = clients[0].command("get-room-metadata", room("merged"));
    assert_eq!(merged.as_object().unwrap().len(), 200);
    for name in ["m", "n", "merged"] {
        clients[1].succeed("clear-room", room(name));
        let metadata = clients[0].command("get-room-metadata", room(name));
        assert_eq!(metadata, Value::Null);
    }
    let all = clients[0].command("all-room-metadata", Value::Null);
    assert_eq!(all, json!({}));
}

#[test]
fn a_connection_that_goes_is_gone_everywhere() {
    let redis = Redis::start();
    let demos: [Demo; 2] = servers(&redis.url());
    let mut watcher = RawClient::connect(&demos[1]);
    for leave in [RawClient::leave, RawClient::vanish] {
        let mut client = RawClient::connect(&demos[0]);
        let id = client.id().to_owned();
        for name in ["a", "b", "c"] {
            client.succeed("join-room", room(name));
        }
        client.succeed("set-metadata", json!({ "user": 1 }));
        assert_eq!(members(&mut watcher, "b"), ids(&[&client]));
        leave(client);
        until("it is in no room and no list", || {
            let rooms = ["a", "b", "c"].map(|name| members(&mut watcher, name));
            let all = watcher.command("all-metadata", Value::Null).to_string();
            rooms.iter().all(BTreeSet::is_empty) && !all.contains(&id)
        });
        // One that goes in the middle of its joins leaves nothing behind.
        let mut client = RawClient::connect(&demos[0]);
        let id = client.id().to_owned();
        for n in 0..100 {
            client.send_command("join-room", room(&format!("middle-{n}")));
        }
        client.vanish();
        until("it is nowhere", || {
            let keys = redis.client().keys();
            !keys
                .iter()
                .any(|key| key.expires_in.is_none() && key.mentions(&id))
        });
        for n in 0..100 {
            assert_eq!(
                members(&mut watcher, &format!("middle-{n}")),
                BTreeSet::new()
            );
        }
    }
}

#[test]
fn a_server_that_shuts_down_leaves_nothing_behind() {
    let redis = Redis::start();
    let demos: [Demo; 2] = servers(&redis.url());
    let mut clients: Vec<RawClient> = (0..40).map(|n| RawClient::connect(&demos[n % 2])).collect();
    for client in &mut clients {
        client.succeed("join-room", room("r"));
        client.succeed("set-metadata", json!({ "x": 1 }));
        subscribe(client, "chat:c");
    }
    let [first, second] = demos;
    let signalled = Instant::now();
    first.signal("TERM");
    assert_eq!(first.end(signalled).status.code(), Some(0));
    let left: Vec<&RawClient> = clients.iter().skip(1).step_by(2).collect();
    let left = ids(&left);
    let watcher = &mut clients[1];
    assert_eq!(members(watcher, "r"), left, "the rest goes on");
    let all = watcher.command("all-metadata", Value::Null);
    assert_eq!(all.as_array().unwrap().len(), left.len());
    shut_down(vec![second], &mut [redis.client()]);
    assert_eq!(redis.client().channels(), Vec::<String>::new());
}

/// An instance of a later version is in the cluster: what it says in a way of its own is passed over, and counted.
#[test]
fn instances_of_two_versions_work_side_by_side() {
    let redis = Redis::start();
    let demos: [Demo; 2] = servers(&redis.url());
    let [mut ann, mut bob] = demos.each_ref().map(RawClient::connect);
    for client in [&mut ann, &mut bob] {
        client.succeed("join-room", room("r"));
    }
    let health = demos[0].health();
    let instance = health["instanceId"].as_str().unwrap();
    let mut newer = redis.client();
    let topics = newer.channels();
    let topic = |end: &str| {
        let mut found = topics.iter().filter(|topic| topic.ends_with(end));
        found.next().expect("a topic").clone()
    };
    let sender = b"of later";
    for topic in [topic("all"), topic(instance), topic(":r:r")] {
        // Another envelope, another notice, another message, another kind of message.
        for (kind, content) in [
            (9, &b"sealed"[..]),
            (2, b"moved r"),
            (1, b"\x09\x01"),
            (1, b"\x01\xff"),
        ] {
            let sealed = [&[kind], &sender[..], content].concat();
            assert!(newer.publish(&topic, sealed) > 0, "{topic}");
        }
    }
    sent(&mut ann, "broadcast-room", event("r", "to the room"));
    sent(&mut bob, "broadcast", "to all");
    for client in [&mut ann, &mut bob] {
        assert_eq!(client.event("news"), "to the room");
        assert_eq!(client.event("announcement"), "to all");
    }
    let counted = |name: &str, demo: &Demo| {
        let metrics = demo.get("/metrics").body;
        let number = metrics.lines().find_map(|line| line.strip_prefix(name));
        number.unwrap().trim().parse::<u64>().unwrap()
    };
    assert_eq!(counted("mesh_redis_messages_ignored_total ", &demos[0]), 6);
    assert_eq!(
        counted("mesh_backend_messages_dropped_total ", &demos[0]),
        6
    );
}

#[test]
fn three_servers_keep_every_promise() {
    let redis = Redis::start();
    let urls = [(); 3].map(|()| redis.url());
    let mut fleet = Fleet::on(&urls, 3);
    for _ in 0..3 {
        fleet.every_promise_holds(Instant::now());
    }
    fleet.shut_down(&mut [redis.client()]);
}

#[test]
fn three_servers_on_a_redis_cluster_keep_every_promise() {
    let cluster = RedisCluster::start();
    let urls = [(); 3].map(|()| cluster.url());
    let mut fleet = Fleet::on(&urls, 3);
    for _ in 0..3 {
        fleet.every_promise_holds(Instant::now());
    }
    fleet.shut_down(&mut cluster.clients());
}

#[test]
fn on_a_redis_cluster_rooms_and_channels_reach_over_its_nodes() {
    let cluster = RedisCluster::start();
    let demos: [Demo; 2] = servers(&cluster.url());
    let [mut one, mut two] = demos.each_ref().map(RawClient::connect);
    let mut outsiders = cluster.clients();
    // Enough names for every node.
    for n in 0..60 {
        let (name, chat) = (format!("room:{n}"), format!("chat:{n}"));
        let granted = one.command("mesh/join-room", room(&name));
        assert_eq!(granted["success"], true);
        subscribe(&mut one, &chat);
        let metadata = json!({ "roomName": name, "metadata": { "n": n } });
        two.succeed("update-room-metadata", metadata);
        assert_eq!(members(&mut two, &name), ids(&[&one]));
        sent(&mut two, "broadcast-room", event(&name, n));
        assert_eq!(one.event("news"), n);
        let message = json!({ "channel": chat, "message": n.to_string(), "history": 3 });
        two.succeed("publish", message);
        assert_eq!(
            one.event("mesh/subscription-message")["message"],
            n.to_string()
        );
        outsiders[n % 3].publish(&chat, "from any node");
        let message = one.event("mesh/subscription-message");
        assert_eq!(
            message,
            json!({ "channel": chat, "message": "from any node" })
        );
    }
    let all = two.command("all-room-metadata", Value::Null);
    assert_eq!(all.as_object().unwrap().len(), 60);
    let id = one.id().to_owned();
    one.vanish();
    until("it is nowhere", || {
        (0..60).all(|n| members(&mut two, &format!("room:{n}")).is_empty())
            && !two
                .command("all-metadata", Value::Null)
                .to_string()
                .contains(&id)
    });
    for n in 0..60 {
        two.succeed("clear-room", room(&format!("room:{n}")));
    }
    drop(two);
    shut_down(demos.into(), &mut outsiders);
}
