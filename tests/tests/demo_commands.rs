//! `demo-server.md`: each command by name; those of records are in `records.rs`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on fails"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::thread;
use std::time::{Duration, Instant};

use mesh_tests::{Demo, RawClient, assert_invalid, error, until};
use serde_json::{Value, json};

fn connect<const N: usize>(demo: &Demo) -> [RawClient; N] {
    std::array::from_fn(|_| RawClient::connect(demo))
}

/// A list of strings, in any order, none twice.
#[track_caller]
fn set(list: &Value) -> BTreeSet<String> {
    let strings = list
        .as_array()
        .unwrap_or_else(|| panic!("not a list: {list}"))
        .iter();
    let set: BTreeSet<String> = strings.map(|id| id.as_str().unwrap().to_owned()).collect();
    assert_eq!(
        set.len(),
        list.as_array().unwrap().len(),
        "something is there twice: {list}"
    );
    set
}

fn ids(clients: &[&RawClient]) -> BTreeSet<String> {
    clients
        .iter()
        .map(|client| client.id().to_owned())
        .collect()
}

fn room(name: &str) -> Value {
    json!({ "roomName": name })
}

fn event(name: &str, payload: &Value) -> Value {
    json!({ "roomName": name, "command": "news", "payload": payload })
}

#[test]
fn echo() {
    let demo = Demo::shared();
    let mut client = RawClient::connect(&demo);
    for (payload, reply) in [
        (json!("hello"), "echo: hello"),
        (json!(""), "echo: "),
        (json!(5), "echo: 5"),
        (json!(true), "echo: true"),
        (Value::Null, "echo: null"),
        (json!({}), "echo: {}"),
        (json!({ "a": [1, "x"] }), r#"echo: {"a":[1,"x"]}"#),
        (json!("{\"a\": 1}"), "echo: {\"a\": 1}"),
    ] {
        assert_eq!(client.command("echo", payload), reply);
    }
    client.send_text(r#"{"id":1,"command":"echo"}"#);
    assert_eq!(client.reply(1), "echo: null");
}

#[test]
fn reflect() {
    let demo = Demo::shared();
    let mut client = RawClient::connect(&demo);
    // Each has a single form as JSON text.
    for payload in [
        "null",
        "true",
        "false",
        "0",
        "-1",
        "18446744073709551615",
        "-9223372036854775808",
        r#""""#,
        r#""x""#,
        r#""Grüße 🎈""#,
        r#""a\"b\\c\n""#,
        "[]",
        "{}",
        r#"[1,[2,["x"]],null]"#,
        r#"{"a":{"b":[true]}}"#,
    ] {
        client.send_text(&format!(
            r#"{{"id":1,"command":"reflect","payload":{payload}}}"#
        ));
        let text = client.next_text();
        assert!(
            text.contains(&format!(r#""payload":{payload}"#)),
            "{payload} came back as {text}"
        );
    }
    for payload in [
        json!({ "z": 1, "a": { "y": 1.5, "b": [] } }),
        json!([1.25, -3e300, 0.1]),
    ] {
        assert_eq!(client.command("reflect", payload.clone()), payload);
    }
}

#[test]
fn this_command_throws() {
    let demo = Demo::shared();
    let mut client = RawClient::connect(&demo);
    for payload in [Value::Null, json!({}), json!("x")] {
        assert_eq!(
            client.command("this-command-throws", payload),
            error("Something went wrong", "ESERVER", "Error")
        );
    }
}

#[test]
fn fails_with() {
    let demo = Demo::shared();
    let mut client = RawClient::connect(&demo);
    let wanted = json!({ "message": "m", "code": "EOWN", "name": "OwnError" });
    assert_eq!(
        client.command("fails-with", wanted),
        error("m", "EOWN", "OwnError")
    );
}

#[test]
fn never_responds() {
    let demo = Demo::shared();
    let mut client = RawClient::connect(&demo);
    client.send_command("never-responds", json!({}));
    let slept = client.send_command("sleep", json!({ "ms": 500 }));
    assert_eq!(
        client.next_frame(),
        json!({ "id": slept, "command": "sleep", "payload": { "slept": 500 } })
    );
    client.assert_quiet();
}

#[test]
fn sleep() {
    let demo = Demo::shared();
    let mut client = RawClient::connect(&demo);
    let begun = Instant::now();
    let long = client.send_command("sleep", json!({ "ms": 1_500 }));
    let sleeps: Vec<u32> = (0..50)
        .map(|_| client.send_command("sleep", json!({ "ms": 1_000 })))
        .collect();
    let echo = client.send_command("echo", "meanwhile");
    assert_eq!(
        client.next_frame(),
        json!({ "id": echo, "command": "echo", "payload": "echo: meanwhile" }),
        "other commands wait for no sleeper"
    );
    for id in sleeps {
        assert_eq!(client.reply(id), json!({ "slept": 1_000 }));
    }
    assert!(begun.elapsed() >= Duration::from_secs(1));
    assert_eq!(client.reply(long), json!({ "slept": 1_500 }));
    let took = begun.elapsed();
    // One after the other they would take 51.5 s.
    assert!(
        (1_500..10_000).contains(&took.as_millis()),
        "51 sleepers at once took {took:?}"
    );
    assert_eq!(
        client.command("sleep", json!({ "ms": 0 })),
        json!({ "slept": 0 })
    );
}

#[test]
fn panics() {
    let demo = Demo::shared();
    let mut client = RawClient::connect(&demo);
    assert_eq!(
        client.command("panics", json!({})),
        error("Internal error", "EINTERNAL", "Error")
    );
    assert_eq!(client.command("echo", "x"), "echo: x");
}

#[test]
fn whoami() {
    let demo = Demo::shared();
    let [mut one, mut two] = connect(&demo);
    let health = demo.health();
    let mut seen = Vec::new();
    for client in [&mut one, &mut two] {
        let reply = client.command("whoami", json!({}));
        assert_eq!(reply["connectionId"], client.id());
        assert_eq!(reply["instanceId"], health["instanceId"]);
        assert!(
            reply["instanceId"]
                .as_str()
                .is_some_and(|id| !id.is_empty())
        );
        assert_eq!(reply["remoteAddress"], client.local_addr().to_string());
        assert_eq!(reply.as_object().unwrap().len(), 3, "{reply}");
        seen.push(reply["connectionId"].clone());
    }
    assert_ne!(seen[0], seen[1]);
}

#[test]
fn join_room() {
    let demo = Demo::shared();
    let [mut one, mut two, mut outside] = connect(&demo);
    one.succeed("join-room", room("join-room"));
    let joined = |client: &RawClient| json!({ "roomName": "join-room", "id": client.id() });
    assert_eq!(
        one.event("user-joined"),
        joined(&one),
        "the caller hears of itself too"
    );
    two.succeed("join-room", room("join-room"));
    assert_eq!(two.event("user-joined"), joined(&two));
    assert_eq!(one.event("user-joined"), joined(&two));
    for client in [&mut one, &mut two, &mut outside] {
        client.assert_quiet();
    }
}

#[test]
fn leave_room() {
    let demo = Demo::shared();
    let [mut one, mut two] = connect(&demo);
    for client in [&mut one, &mut two] {
        client.succeed("join-room", room("leave-room"));
    }
    one.succeed("leave-room", room("leave-room"));
    assert_eq!(
        two.command("room-members", room("leave-room")),
        json!([two.id()])
    );
    one.events_until_now("user-joined");
    two.command("broadcast-room", event("leave-room", &json!(1)));
    one.assert_quiet();
    one.succeed("leave-room", room("leave-room"));
    one.succeed("leave-room", room("leave-room-never-joined"));
}

#[test]
fn leave_all_rooms() {
    let demo = Demo::shared();
    let [mut one, mut two] = connect(&demo);
    let rooms = ["leave-all-1", "leave-all-2", "leave-all-3"];
    for name in rooms {
        one.succeed("join-room", room(name));
        two.succeed("join-room", room(name));
    }
    one.succeed("leave-all-rooms", json!({}));
    for name in rooms {
        assert_eq!(two.command("room-members", room(name)), json!([two.id()]));
        assert_eq!(one.command("is-in-room", room(name)), false);
    }
    one.succeed("leave-all-rooms", Value::Null);
}

#[test]
fn is_in_room() {
    let demo = Demo::shared();
    let [mut one, mut two] = connect(&demo);
    one.succeed("join-room", room("is-in-room"));
    let (this, that) = (one.id().to_owned(), two.id().to_owned());
    let ask = |id: &str| json!({ "roomName": "is-in-room", "connectionId": id });
    assert_eq!(one.command("is-in-room", room("is-in-room")), true);
    assert_eq!(two.command("is-in-room", room("is-in-room")), false);
    assert_eq!(two.command("is-in-room", ask(&this)), true);
    assert_eq!(one.command("is-in-room", ask(&that)), false);
    assert_eq!(one.command("is-in-room", ask("no-such-connection")), false);
    assert_eq!(one.command("is-in-room", room("no-such-room")), false);
}

#[test]
fn room_members() {
    let demo = Demo::shared();
    let [mut one, mut two, mut three] = connect(&demo);
    assert_eq!(one.command("room-members", room("members")), json!([]));
    for client in [&mut one, &mut two, &mut three] {
        client.succeed("join-room", room("members"));
    }
    assert_eq!(
        set(&one.command("room-members", room("members"))),
        ids(&[&one, &two, &three])
    );
    three.vanish();
    until("who has gone is no member", || {
        set(&one.command("room-members", room("members"))) == ids(&[&one, &two])
    });
    two.leave();
    until("who has left is no member", || {
        one.command("room-members", room("members")) == json!([one.id()])
    });
}

#[test]
fn clear_room() {
    let demo = Demo::shared();
    let [mut one, mut two] = connect(&demo);
    for client in [&mut one, &mut two] {
        client.succeed("join-room", room("clear"));
        client.succeed("join-room", room("clear-not"));
    }
    one.succeed(
        "set-room-metadata",
        json!({ "roomName": "clear", "metadata": { "a": 1 } }),
    );
    one.succeed("clear-room", room("clear"));
    assert_eq!(one.command("room-members", room("clear")), json!([]));
    assert_eq!(one.command("get-room-metadata", room("clear")), Value::Null);
    assert_eq!(two.command("is-in-room", room("clear")), false);
    two.events_until_now("user-joined");
    one.command("broadcast-room", event("clear", &json!(1)));
    two.assert_quiet();
    assert_eq!(
        set(&one.command("room-members", room("clear-not"))),
        ids(&[&one, &two])
    );
    one.succeed("clear-room", room("clear"));
    two.succeed("join-room", room("clear"));
    assert_eq!(
        one.command("room-members", room("clear")),
        json!([two.id()])
    );
}

#[test]
fn broadcast() {
    // Everyone hears it, so nobody else may be there.
    let demo = Demo::start(&[]);
    let mut clients: [RawClient; 3] = connect(&demo);
    for payload in [
        json!({ "text": "hi", "n": [1] }),
        json!("hi"),
        json!(5),
        Value::Null,
        json!([]),
    ] {
        assert_eq!(
            clients[0].command("broadcast", payload.clone()),
            json!({ "sent": true })
        );
        for client in &mut clients {
            assert_eq!(client.event("announcement"), payload);
        }
    }
    for client in &mut clients {
        client.assert_quiet();
    }
}

#[test]
fn broadcast_exclude() {
    let demo = Demo::start(&[]);
    let mut clients: [RawClient; 3] = connect(&demo);
    for payload in [json!({ "text": "hi" }), json!("hi"), Value::Null] {
        assert_eq!(
            clients[0].command("broadcast-exclude", payload.clone()),
            json!({ "sent": true })
        );
        for client in &mut clients[1..] {
            assert_eq!(client.event("announcement"), payload);
        }
    }
    for client in &mut clients {
        client.assert_quiet();
    }
}

#[test]
fn broadcast_room() {
    let demo = Demo::shared();
    let [mut one, mut two, mut outside] = connect(&demo);
    for client in [&mut one, &mut two] {
        client.succeed("join-room", room("broadcast-room"));
    }
    one.events_until_now("user-joined");
    two.events_until_now("user-joined");
    for payload in [json!({ "a": 1 }), json!("x"), Value::Null, json!(1.5)] {
        assert_eq!(
            one.command("broadcast-room", event("broadcast-room", &payload)),
            json!({ "sent": true })
        );
        assert_eq!(one.event("news"), payload);
        assert_eq!(two.event("news"), payload);
    }
    // Whoever is outside may send, and hears nothing.
    assert_eq!(
        outside.command("broadcast-room", event("broadcast-room", &json!(2))),
        json!({ "sent": true })
    );
    assert_eq!(two.event("news"), 2);
    outside.assert_quiet();
    assert_eq!(
        one.command("broadcast-room", event("no-such-room", &json!(2))),
        json!({ "sent": true })
    );
}

#[test]
fn broadcast_room_exclude() {
    let demo = Demo::shared();
    let [mut one, mut two, mut outside] = connect(&demo);
    for client in [&mut one, &mut two] {
        client.succeed("join-room", room("room-exclude"));
    }
    one.events_until_now("user-joined");
    let sent = json!({ "sent": true });
    assert_eq!(
        one.command("broadcast-room-exclude", event("room-exclude", &json!(1))),
        sent
    );
    assert_eq!(two.event("news"), 1);
    one.assert_quiet();
    assert_eq!(
        outside.command("broadcast-room-exclude", event("room-exclude", &json!(2))),
        sent
    );
    assert_eq!(one.event("news"), 2);
    assert_eq!(two.event("news"), 2);
    outside.assert_quiet();
}

#[test]
fn send_to() {
    let demo = Demo::shared();
    let [mut one, mut two] = connect(&demo);
    let (this, that) = (one.id().to_owned(), two.id().to_owned());
    let to = |id: &str, payload: Value| json!({ "connectionId": id, "command": "news", "payload": payload });
    for payload in [json!({ "a": 1 }), json!("x"), Value::Null] {
        assert_eq!(
            one.command("send-to", to(&that, payload.clone())),
            json!({ "sent": true })
        );
        assert_eq!(two.event("news"), payload);
        one.assert_quiet();
    }
    assert_eq!(
        one.command("send-to", to(&this, json!("myself"))),
        json!({ "sent": true })
    );
    assert_eq!(one.event("news"), "myself");
    for nobody in [
        "no-such-connection",
        "",
        "a:b:c",
        &format!("{that}x"),
        &that[1..],
    ] {
        assert_eq!(
            one.command("send-to", to(nobody, json!(1))),
            json!({ "sent": true }),
            "{nobody}"
        );
    }
    two.assert_quiet();
    two.leave();
    assert_eq!(
        one.command("send-to", to(&that, json!(1))),
        json!({ "sent": true })
    );
    one.assert_quiet();
}

#[test]
fn events_have_no_name_of_the_protocols_own() {
    let demo = Demo::shared();
    let [mut one, mut two] = connect(&demo);
    two.succeed("join-room", room("forged"));
    two.event("user-joined");
    let long = "x".repeat(513);
    for name in ["", &long, "mesh/assign-id", "ping", "latency:request"] {
        let to = json!({ "connectionId": two.id(), "command": name, "payload": 1 });
        let event = json!({ "roomName": "forged", "command": name, "payload": 1 });
        for (command, payload) in [
            ("send-to", to),
            ("broadcast-room", event.clone()),
            ("broadcast-room-exclude", event),
        ] {
            assert_invalid(&one.command(command, payload));
            two.assert_quiet();
        }
    }
    let to = json!({ "connectionId": two.id(), "command": "mesh", "payload": 1 });
    assert_eq!(one.command("send-to", to), json!({ "sent": true }));
    assert_eq!(two.event("mesh"), 1);
}

#[test]
fn set_metadata_and_get_metadata() {
    let demo = Demo::shared();
    let [mut one, mut two] = connect(&demo);
    let id = json!({ "connectionId": one.id() });
    assert_eq!(two.command("get-metadata", id.clone()), Value::Null);
    // Each replaces the one before.
    for metadata in [
        json!({ "a": 1, "b": { "c": 2 } }),
        json!({ "a": 2 }),
        json!("x"),
        json!([1]),
        json!({}),
    ] {
        one.succeed("set-metadata", metadata.clone());
        assert_eq!(one.command("get-metadata", id.clone()), metadata);
        assert_eq!(two.command("get-metadata", id.clone()), metadata);
    }
    assert_eq!(
        one.command("get-metadata", json!({ "connectionId": two.id() })),
        Value::Null
    );
    assert_eq!(
        one.command(
            "get-metadata",
            json!({ "connectionId": "no-such-connection" })
        ),
        Value::Null
    );
}

/// A list of objects with one key each, as one map.
#[track_caller]
fn by_id(list: &Value) -> BTreeMap<String, Value> {
    let mut map = BTreeMap::new();
    for entry in list
        .as_array()
        .unwrap_or_else(|| panic!("not a list: {list}"))
    {
        let entry = entry
            .as_object()
            .filter(|entry| entry.len() == 1)
            .expect("an object with one key");
        for (id, metadata) in entry {
            assert_eq!(
                map.insert(id.clone(), metadata.clone()),
                None,
                "{id} is there twice: {list}"
            );
        }
    }
    map
}

#[test]
fn all_metadata() {
    let demo = Demo::start(&[]);
    let [mut one, two] = connect(&demo);
    one.succeed("set-metadata", json!({ "a": 1 }));
    let all = by_id(&one.command("all-metadata", json!({})));
    let both = [
        (one.id().to_owned(), json!({ "a": 1 })),
        (two.id().to_owned(), Value::Null),
    ];
    assert_eq!(all, BTreeMap::from(both.clone()));
    two.vanish();
    until("who has gone is not listed", || {
        by_id(&one.command("all-metadata", json!({}))) == both[..1].iter().cloned().collect()
    });
}

#[test]
fn room_members_metadata() {
    let demo = Demo::shared();
    let [mut one, mut two, mut outside] = connect(&demo);
    assert_eq!(
        one.command("room-members-metadata", room("members-metadata")),
        json!([])
    );
    for client in [&mut one, &mut two] {
        client.succeed("join-room", room("members-metadata"));
    }
    one.succeed("set-metadata", json!({ "a": 1 }));
    outside.succeed("set-metadata", json!({ "b": 1 }));
    let all = by_id(&outside.command("room-members-metadata", room("members-metadata")));
    let both = [
        (one.id().to_owned(), json!({ "a": 1 })),
        (two.id().to_owned(), Value::Null),
    ];
    assert_eq!(all, BTreeMap::from(both));
}

#[test]
fn set_room_metadata_and_get_room_metadata() {
    let demo = Demo::shared();
    let [mut one, mut two] = connect(&demo);
    assert_eq!(
        one.command("get-room-metadata", room("set-room")),
        Value::Null
    );
    for metadata in [
        json!({ "a": 1, "b": { "c": 2 } }),
        json!({ "a": 2 }),
        json!("x"),
        json!([1]),
        json!({}),
    ] {
        one.succeed(
            "set-room-metadata",
            json!({ "roomName": "set-room", "metadata": metadata }),
        );
        assert_eq!(two.command("get-room-metadata", room("set-room")), metadata);
    }
}

#[test]
fn update_room_metadata_merges_one_level_deep() {
    let demo = Demo::shared();
    let mut client = RawClient::connect(&demo);
    for (update, whole) in [
        (
            json!({ "a": 1, "b": { "c": 2 } }),
            json!({ "a": 1, "b": { "c": 2 } }),
        ),
        (
            json!({ "b": { "d": 3 } }),
            json!({ "a": 1, "b": { "d": 3 } }),
        ),
        (json!({}), json!({ "a": 1, "b": { "d": 3 } })),
        (
            json!({ "a": null, "e": [1] }),
            json!({ "a": null, "b": { "d": 3 }, "e": [1] }),
        ),
    ] {
        client.succeed(
            "update-room-metadata",
            json!({ "roomName": "merge", "metadata": update }),
        );
        assert_eq!(client.command("get-room-metadata", room("merge")), whole);
    }
}

#[test]
fn update_room_metadata_is_atomic() {
    let demo = Demo::shared();
    thread::scope(|scope| {
        for writer in 0..10 {
            let demo = &demo;
            scope.spawn(move || {
                let mut client = RawClient::connect(demo);
                for n in 0..20 {
                    let update = json!({ format!("{writer}-{n}"): n });
                    client.succeed(
                        "update-room-metadata",
                        json!({ "roomName": "merge-race", "metadata": update }),
                    );
                }
            });
        }
    });
    let merged = RawClient::connect(&demo).command("get-room-metadata", room("merge-race"));
    assert_eq!(
        merged.as_object().unwrap().len(),
        200,
        "no merge is lost: {merged}"
    );
}

#[test]
fn all_room_metadata() {
    let demo = Demo::start(&[]);
    let mut client = RawClient::connect(&demo);
    assert_eq!(client.command("all-room-metadata", json!({})), json!({}));
    client.succeed(
        "set-room-metadata",
        json!({ "roomName": "a", "metadata": { "x": 1 } }),
    );
    client.succeed(
        "set-room-metadata",
        json!({ "roomName": "b", "metadata": [2] }),
    );
    assert_eq!(
        client.command("all-room-metadata", json!({})),
        json!({ "a": { "x": 1 }, "b": [2] })
    );
    client.succeed("clear-room", room("a"));
    assert_eq!(
        client.command("all-room-metadata", json!({})),
        json!({ "b": [2] })
    );
}

#[test]
fn publish() {
    let demo = Demo::shared();
    let [mut one, mut two] = connect(&demo);
    let channel = json!({ "channel": "chat:demo-publish" });
    assert_eq!(
        two.command("mesh/subscribe-channel", channel.clone())["success"],
        true
    );
    one.succeed(
        "publish",
        json!({ "channel": "chat:demo-publish", "message": "a" }),
    );
    one.succeed(
        "publish",
        json!({ "channel": "chat:demo-publish", "message": "b", "history": 5 }),
    );
    for message in ["a", "b"] {
        let event = json!({ "channel": "chat:demo-publish", "message": message });
        assert_eq!(two.event("mesh/subscription-message"), event);
    }
    assert_eq!(
        two.command("mesh/get-channel-history", channel)["history"],
        json!(["b"])
    );
    one.succeed(
        "publish",
        json!({ "channel": "nobody-listens", "message": "a" }),
    );
    one.assert_quiet();
}

#[test]
fn authenticate() {
    let demo = Demo::shared();
    let mut client = RawClient::connect(&demo);
    client.succeed("authenticate", json!({ "userId": "u1" }));
    let metadata = client.command("get-metadata", json!({ "connectionId": client.id() }));
    assert_eq!(metadata["userId"], "u1");
    assert!(
        metadata["token"]
            .as_str()
            .is_some_and(|token| !token.is_empty()),
        "{metadata}"
    );
    assert_eq!(metadata.as_object().unwrap().len(), 2, "{metadata}");
}

#[test]
fn admin_only() {
    let demo = Demo::shared();
    let mut client = RawClient::connect(&demo);
    let refused = |reply: Value| assert_eq!(reply["error"], "Unauthorized", "{reply}");
    refused(client.command("admin-only", json!({})));
    client.succeed("set-metadata", json!({ "name": "nobody" }));
    refused(client.command("admin-only", json!({})));
    client.succeed("authenticate", json!({ "userId": "u1" }));
    assert_eq!(
        client.command("admin-only", json!({})),
        json!({ "user": { "id": "u1" } })
    );
    client.succeed("set-metadata", json!({}));
    refused(client.command("admin-only", json!({})));
}

#[test]
fn update_profile() {
    let demo = Demo::shared();
    let mut client = RawClient::connect(&demo);
    client.succeed(
        "update-profile",
        json!({ "name": "Ada", "email": "ada@example.org" }),
    );
    for name in [json!(""), json!(1), Value::Null, json!(["Ada"])] {
        let reply = client.command(
            "update-profile",
            json!({ "name": name, "email": "ada@example.org" }),
        );
        assert_eq!(reply["error"], "Invalid name", "{reply}");
    }
    for email in [
        json!(""),
        json!("ada.example.org"),
        json!(1),
        Value::Null,
        json!(["@"]),
    ] {
        let reply = client.command("update-profile", json!({ "name": "Ada", "email": email }));
        assert_eq!(reply["error"], "Invalid email", "{reply}");
    }
    assert_eq!(
        client.command("update-profile", json!({ "email": "a@b" }))["error"],
        "Invalid name"
    );
    assert_eq!(
        client.command("update-profile", json!({ "name": "Ada" }))["error"],
        "Invalid email"
    );
}

#[test]
fn typed_commands_refuse_what_does_not_fit() {
    let demo = Demo::shared();
    let mut client = RawClient::connect(&demo);
    // A payload that fits, and fields that must be there and be what they are in it.
    let commands = [
        (
            "fails-with",
            json!({ "message": "m", "code": "c", "name": "n" }),
            &["message", "code", "name"][..],
        ),
        ("sleep", json!({ "ms": 1 }), &["ms"]),
        ("join-room", room("typed"), &["roomName"]),
        ("leave-room", room("typed"), &["roomName"]),
        ("is-in-room", room("typed"), &["roomName"]),
        ("room-members", room("typed"), &["roomName"]),
        ("clear-room", room("typed"), &["roomName"]),
        (
            "broadcast-room",
            event("typed", &json!(1)),
            &["roomName", "command"],
        ),
        (
            "broadcast-room-exclude",
            event("typed", &json!(1)),
            &["roomName", "command"],
        ),
        (
            "send-to",
            json!({ "connectionId": "x", "command": "c", "payload": 1 }),
            &["connectionId", "command"],
        ),
        (
            "get-metadata",
            json!({ "connectionId": "x" }),
            &["connectionId"],
        ),
        ("room-members-metadata", room("typed"), &["roomName"]),
        (
            "set-room-metadata",
            json!({ "roomName": "typed", "metadata": {} }),
            &["roomName"],
        ),
        (
            "update-room-metadata",
            json!({ "roomName": "typed", "metadata": {} }),
            &["roomName"],
        ),
        ("get-room-metadata", room("typed"), &["roomName"]),
        (
            "publish",
            json!({ "channel": "chat:typed", "message": "m" }),
            &["channel", "message"],
        ),
        ("authenticate", json!({ "userId": "u" }), &["userId"]),
    ];
    for (command, fits, fields) in commands {
        for payload in [
            Value::Null,
            json!("x"),
            json!(1),
            json!(true),
            json!([]),
            json!({}),
            json!([fits]),
        ] {
            let reply = client.command(command, payload.clone());
            assert_eq!(reply["code"], "EINVALID", "{command} {payload}: {reply}");
            assert_invalid(&reply);
        }
        for field in fields {
            for value in [Value::Null, json!([]), json!({}), json!(true), json!(-1.5)] {
                let mut payload = fits.clone();
                payload[*field] = value;
                let reply = client.command(command, payload.clone());
                assert_eq!(reply["code"], "EINVALID", "{command} {payload}: {reply}");
                let message = assert_invalid(&reply);
                assert!(
                    message.contains(field),
                    "{command} {payload}: {message:?} does not name {field}"
                );
            }
        }
        let reply = client.command(command, fits);
        assert_ne!(reply["code"], "EINVALID", "{command}: {reply}");
    }
    assert_invalid(&client.command("sleep", json!({ "ms": "1" })));
    assert_invalid(&client.command("sleep", json!({ "ms": -1 })));
    assert_invalid(&client.command(
        "is-in-room",
        json!({ "roomName": "typed", "connectionId": 5 }),
    ));
    for history in [json!("5"), json!(-1), json!(1.5)] {
        let payload = json!({ "channel": "chat:typed", "message": "m", "history": history });
        assert_invalid(&client.command("publish", payload));
    }
}

#[test]
fn who_goes_is_cleaned_up_at_once() {
    let demo = Demo::start(&[]);
    let mut witness = RawClient::connect(&demo);
    for (n, vanish) in [(0, false), (1, true)] {
        let mut client = RawClient::connect(&demo);
        let id = client.id().to_owned();
        client.succeed("join-room", room("cleaned"));
        client.succeed("set-metadata", json!(n));
        assert_eq!(
            witness.command("room-members", room("cleaned")),
            json!([id])
        );
        if vanish {
            client.vanish();
        } else {
            client.leave();
        }
        let gone = Instant::now();
        until("room, list and metadata forget it", || {
            witness.command("room-members", room("cleaned")) == json!([])
                && witness.command("get-metadata", json!({ "connectionId": id })) == Value::Null
                && by_id(&witness.command("all-metadata", json!({}))).len() == 1
                && demo.connections() == 1
        });
        assert!(
            gone.elapsed() < Duration::from_secs(2),
            "after {:?}",
            gone.elapsed()
        );
    }
}
