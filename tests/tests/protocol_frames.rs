//! `protocol.md`, section 1: what a frame is, and in which order frames come.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on fails"
)]

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use mesh_tests::wire::{BINARY, FIN};
use mesh_tests::{Demo, Incoming, RawClient, assert_error, assert_invalid};
use serde_json::{Value, json};

/// Asserts that this text is a malformed frame, and that the connection lives on.
#[track_caller]
fn assert_malformed(client: &mut RawClient, text: &str) {
    client.send_text(text);
    let frame = client.next_frame();
    let shown: String = text.chars().take(80).collect();
    assert_eq!(
        frame["command"], "mesh/error",
        "{shown} is malformed; it was answered with {frame}"
    );
    assert_eq!(frame.get("id"), None, "{frame}");
    assert_error(&frame["payload"], "EPARSE", "ProtocolError");
    client.assert_quiet();
}

#[test]
fn a_reply_repeats_id_and_name_and_holds_nothing_else() {
    let demo = Demo::shared();
    let mut client = RawClient::connect(&demo);
    client.send_text(r#"{"id":7,"command":"echo","payload":"x"}"#);
    assert_eq!(
        client.next_frame(),
        json!({ "id": 7, "command": "echo", "payload": "echo: x" })
    );
}

#[test]
fn every_unsigned_32_bit_id_comes_back_as_it_came() {
    let demo = Demo::shared();
    let mut client = RawClient::connect(&demo);
    for id in [0, 1, 65_535, 65_536, 2_147_483_648, u32::MAX] {
        client.send_text(&format!(
            r#"{{"id":{id},"command":"reflect","payload":"x"}}"#
        ));
        assert_eq!(
            client.next_frame(),
            json!({ "id": id, "command": "reflect", "payload": "x" })
        );
    }
}

#[test]
fn an_id_is_used_again_after_its_reply() {
    let demo = Demo::shared();
    let mut client = RawClient::connect(&demo);
    for round in 0..3 {
        client.send_text(&format!(
            r#"{{"id":3,"command":"reflect","payload":{round}}}"#
        ));
        assert_eq!(
            client.next_frame(),
            json!({ "id": 3, "command": "reflect", "payload": round })
        );
    }
}

#[test]
fn ids_belong_to_one_connection() {
    let demo = Demo::shared();
    let (mut one, mut other) = (RawClient::connect(&demo), RawClient::connect(&demo));
    one.send_text(r#"{"id":9,"command":"reflect","payload":"one"}"#);
    other.send_text(r#"{"id":9,"command":"reflect","payload":"other"}"#);
    assert_eq!(one.reply(9), "one");
    assert_eq!(other.reply(9), "other");
}

#[test]
fn two_commands_in_flight_with_one_id_are_both_answered() {
    let demo = Demo::shared();
    let mut client = RawClient::connect(&demo);
    client.send_text(r#"{"id":5,"command":"sleep","payload":{"ms":50}}"#);
    client.send_text(r#"{"id":5,"command":"sleep","payload":{"ms":51}}"#);
    let mut slept = [
        client.reply(5)["slept"].as_u64(),
        client.reply(5)["slept"].as_u64(),
    ];
    slept.sort();
    assert_eq!(slept, [Some(50), Some(51)]);
    client.assert_quiet();
}

#[test]
fn replies_may_overtake_each_other() {
    let demo = Demo::shared();
    let mut client = RawClient::connect(&demo);
    let slow = client.send_command("sleep", json!({ "ms": 200 }));
    let quick = client.send_command("echo", "x");
    assert_eq!(client.next_frame()["id"], quick);
    assert_eq!(client.next_frame()["id"], slow);
}

#[test]
fn a_frame_without_id_gets_no_reply_and_does_nothing() {
    let demo = Demo::shared();
    let mut client = RawClient::connect(&demo);
    let room = json!({ "roomName": "frames-no-id" });
    for _ in 0..10 {
        client.send_event("echo", &json!("x"));
        client.send_event("no-such-command", &json!("x"));
        client.send_event("join-room", &room);
        client.send_event("mesh/noop", &json!({}));
        client.send_text(r#"{"command":"this-command-throws"}"#);
    }
    client.assert_quiet();
    assert_eq!(client.command("is-in-room", room), false);
}

#[test]
fn pong_and_latency_response_get_no_reply_with_an_id_either() {
    let demo = Demo::shared();
    let mut client = RawClient::connect(&demo);
    for _ in 0..10 {
        client.send_event("pong", &json!({}));
        client.send_event("latency:response", &json!({}));
        client.send_command("pong", json!({}));
        client.send_command("latency:response", json!({}));
    }
    client.assert_quiet();
}

#[test]
fn an_absent_payload_means_null() {
    let demo = Demo::shared();
    let mut client = RawClient::connect(&demo);
    client.send_text(r#"{"id":1,"command":"reflect"}"#);
    assert_eq!(
        client.next_frame(),
        json!({ "id": 1, "command": "reflect", "payload": null })
    );
    client.send_text(r#"{"id":1,"command":"reflect","payload":null}"#);
    assert_eq!(
        client.next_frame(),
        json!({ "id": 1, "command": "reflect", "payload": null })
    );
}

#[test]
fn no_payload_may_be_written_in_three_ways() {
    let demo = Demo::shared();
    let mut client = RawClient::connect(&demo);
    for (id, payload) in ["", r#","payload":null"#, r#","payload":{}"#]
        .iter()
        .enumerate()
    {
        for (command, is_it) in [("whoami", "connectionId"), ("leave-all-rooms", "success")] {
            client.send_text(&format!(r#"{{"id":{id},"command":"{command}"{payload}}}"#));
            let reply = client.reply(id as u32);
            assert!(
                reply.get(is_it).is_some(),
                "{command} with {payload:?}: {reply}"
            );
        }
    }
}

#[test]
fn the_order_of_keys_unknown_keys_white_space_and_escapes_carry_no_meaning() {
    let demo = Demo::shared();
    let mut client = RawClient::connect(&demo);
    for text in [
        r#"{"payload":"x","command":"echo","id":4}"#,
        r#"{"command":"echo","id":4,"payload":"x"}"#,
        r#"{"id":4,"command":"echo","payload":"x","time":1.5e300,"more":{"a":[{},null,true]}}"#,
        r#"{"z":0,"z":1,"id":4,"Id":5,"ID":null,"command":"echo","payload":"x","Payload":2}"#,
        " \t\r\n{ \"id\" : 4 ,\n\"command\"\t: \"echo\" , \"payload\" :\r \"x\" } \n",
        r#"{"\u0069d":4,"comm\u0061nd":"ech\u006f","p\u0061yload":"\u0078"}"#,
    ] {
        client.send_text(text);
        assert_eq!(
            client.next_frame(),
            json!({ "id": 4, "command": "echo", "payload": "echo: x" }),
            "{text}"
        );
    }
}

#[test]
fn frames_are_utf_8() {
    let demo = Demo::shared();
    let mut client = RawClient::connect(&demo);
    assert_eq!(
        client.command("echo", "Grüße, 世界 🎈\u{0}"),
        "echo: Grüße, 世界 🎈\u{0}"
    );
    let reply = client.command("größe-🎈", json!({}));
    assert_eq!(reply["error"], r#"Command "größe-🎈" not found"#);
    client.send_text(r#"{"id":1,"command":"echo","payload":"\ud83c\udf88\u00e9"}"#);
    assert_eq!(client.reply(1), "echo: 🎈é");
}

#[test]
fn what_is_not_json_is_malformed() {
    let demo = Demo::shared();
    let mut client = RawClient::connect(&demo);
    for text in [
        "",
        " ",
        "hello",
        "{",
        r#"{"id":1,"command":"echo","payload":"x""#,
        r#"{"id":1,"command":"echo","payload":"x"}}"#,
        r#"{"id":1,"command":"echo","payload":"x"} {}"#,
        r#"{"id":1,"command":"echo","payload":"x"},"#,
        r#"{"id":1,"command":"echo","payload":"x",}"#,
        r#"{"id":1,"command":"echo","payload":}"#,
        r#"{"id":1,"command":"echo","payload":[1,]}"#,
        r#"{"id":1,"command":"echo","payload":{"a"}}"#,
        r#"{"id":1,"command":"echo","payload":NaN}"#,
        r#"{"id":1,"command":"echo","payload":01}"#,
        r#"{"id":1,"command":"echo","payload":+1}"#,
        r#"{"id":1,"command":"echo","payload":1.}"#,
        r#"{"id":1,"command":"echo","payload":tru}"#,
        r#"{"id":1,"command":"echo","payload":"\x"}"#,
        r#"{"id":1,"command":"echo","payload":"\u12"}"#,
        r#"{"id":1,"command":"echo","payload":'x'}"#,
        r#"{'id':1,"command":"echo"}"#,
        r#"{id:1,"command":"echo"}"#,
        r#"{"id":1,"command":"echo","other":[}"#,
        "{\"id\":1,\"command\":\"echo\",\"payload\":\"\n\"}",
        "{\"id\":1,\"command\":\"echo\",\"payload\":\"\u{1}\"}",
        "{\"id\":1,\"command\":\"echo\"}\u{0}",
        r#"{"id":1 "command":"echo"}"#,
        r#"{"id":1,"command":"echo" /* comment */}"#,
    ] {
        assert_malformed(&mut client, text);
    }
}

#[test]
fn what_is_not_an_object_is_malformed() {
    let demo = Demo::shared();
    let mut client = RawClient::connect(&demo);
    for text in [
        "null",
        "true",
        "1",
        r#""echo""#,
        "[]",
        r#"[1,"echo","x"]"#,
        r#"[{"id":1,"command":"echo"}]"#,
    ] {
        assert_malformed(&mut client, text);
    }
}

#[test]
fn a_command_that_is_no_string_is_malformed() {
    let demo = Demo::shared();
    let mut client = RawClient::connect(&demo);
    for text in [
        "{}",
        r#"{"id":1}"#,
        r#"{"id":1,"payload":"x"}"#,
        r#"{"id":1,"command":null}"#,
        r#"{"id":1,"command":1}"#,
        r#"{"id":1,"command":["echo"]}"#,
        r#"{"id":1,"command":{"name":"echo"}}"#,
        r#"{"id":1,"Command":"echo"}"#,
        r#"{"command":true}"#,
    ] {
        assert_malformed(&mut client, text);
    }
}

#[test]
fn an_id_that_is_no_unsigned_32_bit_integer_is_malformed() {
    let demo = Demo::shared();
    let mut client = RawClient::connect(&demo);
    for id in [
        "null",
        "-1",
        "1.5",
        "4294967296",
        "18446744073709551616",
        "1e99",
        r#""1""#,
        "true",
        "[]",
        "{}",
        "[1]",
    ] {
        assert_malformed(
            &mut client,
            &format!(r#"{{"id":{id},"command":"echo","payload":"x"}}"#),
        );
    }
}

#[test]
fn a_key_of_the_frame_given_twice_is_malformed() {
    let demo = Demo::shared();
    let mut client = RawClient::connect(&demo);
    for text in [
        r#"{"id":1,"id":1,"command":"echo","payload":"x"}"#,
        r#"{"id":1,"command":"echo","payload":"x","id":2}"#,
        r#"{"id":1,"command":"echo","command":"echo","payload":"x"}"#,
        r#"{"id":1,"command":"echo","payload":"x","payload":"x"}"#,
        r#"{"id":1,"command":"echo","payload":null,"payload":null}"#,
        r#"{"id":1,"\u0069d":2,"command":"echo","payload":"x"}"#,
        r#"{"id":1,"command":"echo","c\u006fmmand":"reflect"}"#,
        r#"{"id":1,"command":"echo","payload":"x","paylo\u0061d":"y"}"#,
    ] {
        assert_malformed(&mut client, text);
    }
}

#[test]
fn nesting_counts_the_object_of_the_frame_as_level_1() {
    let demo = Demo::shared();
    let mut client = RawClient::connect(&demo);
    let arrays = |levels: usize| "[".repeat(levels) + &"]".repeat(levels);
    let objects = |levels: usize| r#"{"a":"#.repeat(levels) + "1" + &"}".repeat(levels);
    for payload in [arrays(127), objects(127)] {
        client.send_text(&format!(
            r#"{{"id":1,"command":"reflect","payload":{payload}}}"#
        ));
        assert_eq!(
            client.next_text().matches(['[', '{']).count(),
            128,
            "128 levels are allowed"
        );
    }
    for payload in [
        arrays(128),
        objects(128),
        arrays(100_000),
        "[".repeat(100_000),
    ] {
        assert_malformed(
            &mut client,
            &format!(r#"{{"id":1,"command":"reflect","payload":{payload}}}"#),
        );
    }
    // Brackets in a string are no levels; an unknown key is a part of the frame.
    client.send_text(&format!(
        r#"{{"id":1,"command":"echo","payload":"{}\"["}}"#,
        "[".repeat(200)
    ));
    assert!(client.reply(1).as_str().unwrap().ends_with("[\"["));
    assert_malformed(
        &mut client,
        &format!(r#"{{"id":1,"command":"echo","other":{}}}"#, arrays(128)),
    );
}

#[test]
fn half_a_surrogate_pair_is_malformed_in_a_command() {
    let demo = Demo::shared();
    let mut client = RawClient::connect(&demo);
    for half in [
        r"\ud800",
        r"\udc00",
        r"\ud800\ud800",
        r"\udc00\ud800",
        r"\ud800x",
        r"\uD83C",
    ] {
        assert_malformed(
            &mut client,
            &format!(r#"{{"id":1,"command":"{half}","payload":"x"}}"#),
        );
    }
}

#[test]
fn half_a_surrogate_pair_travels_in_a_payload_that_nobody_parses() {
    let demo = Demo::shared();
    let mut client = RawClient::connect(&demo);
    client.send_text(r#"{"id":1,"command":"reflect","payload":"\ud800"}"#);
    let text = client.next_text();
    assert!(text.contains(r#""payload":"\ud800""#), "{text}");
    client.assert_quiet();
}

#[test]
fn half_a_surrogate_pair_is_invalid_in_a_payload_that_is_parsed() {
    let demo = Demo::shared();
    let mut client = RawClient::connect(&demo);
    for command in [
        "room-members",
        "is-in-room",
        "mesh/join-room",
        "mesh/get-room-metadata",
    ] {
        client.send_text(&format!(
            r#"{{"id":1,"command":"{command}","payload":{{"roomName":"room:\udc00"}}}}"#
        ));
        assert_invalid(&client.reply(1));
    }
}

#[test]
fn a_binary_message_is_malformed() {
    let demo = Demo::shared();
    let mut client = RawClient::connect(&demo);
    for payload in [
        &b""[..],
        b"\x00\xff",
        br#"{"id":1,"command":"echo","payload":"x"}"#,
    ] {
        client.send_frame(FIN | BINARY, payload);
        let frame = client.next_frame();
        assert_eq!(frame["command"], "mesh/error", "{frame}");
        assert_error(&frame["payload"], "EPARSE", "ProtocolError");
        client.assert_quiet();
    }
}

#[test]
fn the_server_speaks_in_text_messages() {
    let demo = Demo::shared();
    let mut client = RawClient::open(demo.addr());
    client.send_command("echo", "x");
    for _ in 0..2 {
        let incoming = client.receive();
        assert!(matches!(incoming, Incoming::Text(_)), "{incoming:?}");
    }
}

/// Two connections; the second is in a room and subscribed to a channel of this name.
fn publisher_and_listener(demo: &Demo, name: &str) -> (RawClient, RawClient) {
    let (publisher, mut listener) = (RawClient::connect(demo), RawClient::connect(demo));
    let (room, channel) = (format!("room:{name}"), format!("chat:{name}"));
    for (command, payload) in [
        ("mesh/join-room", json!({ "roomName": room })),
        ("mesh/subscribe-channel", json!({ "channel": channel })),
    ] {
        assert_eq!(listener.command(command, payload)["success"], true);
    }
    (publisher, listener)
}

#[test]
fn events_of_one_publisher_keep_its_order() {
    let demo = Demo::shared();
    let (mut publisher, mut listener) = publisher_and_listener(&demo, "order");
    for n in 0..100 {
        let message = json!({ "channel": "chat:order", "message": n.to_string() });
        publisher.succeed("publish", message);
    }
    for n in 0..100 {
        let event = json!({ "channel": "chat:order", "message": n.to_string() });
        assert_eq!(listener.next_frame()["payload"], event);
    }
    let to_room = |n: u32| json!({ "roomName": "room:order", "command": "n", "payload": n });
    let to_one = json!({ "connectionId": listener.id(), "command": "n", "payload": 0 });
    for (command, payload) in [("broadcast-room", to_room(0)), ("send-to", to_one)] {
        for n in 0..100 {
            let mut payload = payload.clone();
            payload["payload"] = json!(n);
            assert_eq!(publisher.command(command, payload), json!({ "sent": true }));
        }
        for n in 0..100 {
            assert_eq!(
                listener.next_frame(),
                json!({ "command": "n", "payload": n })
            );
        }
    }
}

#[test]
fn events_of_one_publisher_keep_its_order_over_channels_rooms_and_connections() {
    let demo = Demo::shared();
    let (mut publisher, mut listener) = publisher_and_listener(&demo, "mixed");
    for n in 0..100 {
        let message = json!({ "channel": "chat:mixed", "message": n.to_string() });
        publisher.succeed("publish", message);
        let event = json!({ "roomName": "room:mixed", "command": "room", "payload": n });
        assert_eq!(
            publisher.command("broadcast-room", event),
            json!({ "sent": true })
        );
        let event = json!({ "connectionId": listener.id(), "command": "to", "payload": n });
        assert_eq!(publisher.command("send-to", event), json!({ "sent": true }));
    }
    let came: Vec<Value> = (0..300).map(|_| listener.next_frame()).collect();
    for (at, frame) in came.iter().enumerate() {
        let (n, kind) = (at / 3, ["mesh/subscription-message", "room", "to"][at % 3]);
        assert_eq!(frame["command"], kind, "event {at}, of round {n}: {frame}");
    }
}

/// Runs `watch` while another connection repeats `command` with a payload that holds the number of the repetition.
fn while_publishing(
    demo: &Demo,
    command: &str,
    payload: impl Fn(u64) -> Value + Sync,
    watch: impl FnOnce(),
) -> u64 {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let publishing = scope.spawn(|| {
            let mut publisher = RawClient::connect(demo);
            let mut n = 0;
            while !stop.load(Ordering::Relaxed) {
                let reply = publisher.command(command, payload(n));
                assert!(
                    reply == json!({ "success": true }) || reply == json!({ "sent": true }),
                    "{reply}"
                );
                n += 1;
            }
            n
        });
        // A failure of `watch` must not leave the publisher running for ever.
        let watched = std::panic::catch_unwind(std::panic::AssertUnwindSafe(watch));
        stop.store(true, Ordering::Relaxed);
        let published = publishing.join().unwrap();
        watched.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        published
    })
}

/// Enters and leaves 50 times while events come; none may precede the reply that granted or follow the one that ended.
fn assert_fenced(
    client: &mut RawClient,
    enter: (&str, &Value),
    leave: (&str, &Value),
    event: &str,
) {
    let mut seen = 0;
    for round in 0..50 {
        let entering = client.send_command(enter.0, enter.1.clone());
        let granted = client.next_frame();
        assert_eq!(
            granted["id"], entering,
            "round {round}: an event before the reply that grants it: {granted}"
        );
        assert_eq!(granted["payload"]["success"], true);
        let first = client.next_frame();
        assert_eq!(first["command"], event, "{first}");
        let leaving = client.send_command(leave.0, leave.1.clone());
        loop {
            let frame = client.next_frame();
            seen += 1;
            if frame["id"] == leaving {
                break;
            }
            assert_eq!(frame["command"], event);
        }
        client.assert_quiet();
    }
    assert!(seen >= 50);
}

#[test]
fn no_message_precedes_its_subscription_or_follows_its_end() {
    let demo = Demo::shared();
    let mut client = RawClient::connect(&demo);
    let channel = json!({ "channel": "chat:fence" });
    let message = |n: u64| json!({ "channel": "chat:fence", "message": n.to_string() });
    while_publishing(&demo, "publish", message, || {
        let (enter, leave) = ("mesh/subscribe-channel", "mesh/unsubscribe-channel");
        assert_fenced(
            &mut client,
            (enter, &channel),
            (leave, &channel),
            "mesh/subscription-message",
        );
    });
}

#[test]
fn no_event_of_a_room_precedes_the_join_or_follows_the_leave() {
    let demo = Demo::shared();
    let mut client = RawClient::connect(&demo);
    let room = json!({ "roomName": "room:fence" });
    let event = |n: u64| json!({ "roomName": "room:fence", "command": "n", "payload": n });
    while_publishing(&demo, "broadcast-room", event, || {
        assert_fenced(
            &mut client,
            ("mesh/join-room", &room),
            ("mesh/leave-room", &room),
            "n",
        );
    });
}

#[test]
fn a_message_published_during_a_subscribe_is_in_history_or_live_or_both() {
    let demo = Demo::shared();
    let message = |n: u64| json!({ "channel": "chat:never-neither", "message": n.to_string(), "history": 10_000 });
    while_publishing(&demo, "publish", message, || {
        for round in 0..20 {
            let mut client = RawClient::connect(&demo);
            let wanted = json!({ "channel": "chat:never-neither", "historyLimit": 10_000 });
            let granted = client.command("mesh/subscribe-channel", wanted);
            let number = |value: &Value| value.as_str().unwrap().parse::<i64>().unwrap();
            let history: Vec<i64> = granted["history"]
                .as_array()
                .unwrap()
                .iter()
                .map(number)
                .collect();
            let newest = history.first().copied().unwrap_or(-1);
            let oldest = history.last().copied().unwrap_or(0);
            assert!(
                history.iter().copied().eq((oldest..=newest).rev()),
                "round {round}: history {history:?}"
            );
            let first = number(&client.event("mesh/subscription-message")["message"]);
            assert!(
                first <= newest + 1,
                "round {round}: history ends with {newest}, live begins with {first}"
            );
            for n in first + 1..first + 10 {
                assert_eq!(
                    number(&client.event("mesh/subscription-message")["message"]),
                    n
                );
            }
        }
    });
}

#[test]
fn what_is_published_after_the_reply_of_a_subscribe_or_join_is_delivered() {
    let demo = Demo::shared();
    let (mut publisher, mut client) = (RawClient::connect(&demo), RawClient::connect(&demo));
    for n in 0..50 {
        let (channel, room) = (format!("chat:at-once-{n}"), format!("room:at-once-{n}"));
        assert_eq!(
            client.command("mesh/subscribe-channel", json!({ "channel": channel }))["success"],
            true
        );
        publisher.succeed("publish", json!({ "channel": channel, "message": "m" }));
        assert_eq!(
            client.event("mesh/subscription-message"),
            json!({ "channel": channel, "message": "m" })
        );
        assert_eq!(
            client.command("mesh/join-room", json!({ "roomName": room }))["success"],
            true
        );
        publisher.command(
            "broadcast-room",
            json!({ "roomName": room, "command": "e", "payload": n }),
        );
        assert_eq!(client.event("e"), n);
    }
}
