//! `protocol.md`, sections 4 and 5: the built-in commands and events.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on fails"
)]

use std::collections::BTreeSet;

use mesh_tests::{Demo, RawClient, assert_invalid, error};
use serde_json::{Value, json};

/// Publishes `count` messages, "1" first, to a channel whose history keeps `history`.
#[track_caller]
fn publish(client: &mut RawClient, channel: &str, count: u32, history: u32) {
    for n in 1..=count {
        let message = json!({ "channel": channel, "message": n.to_string(), "history": history });
        client.succeed("publish", message);
    }
}

/// The numbers from `newest` down to `oldest`, as messages.
fn numbers(newest: u32, oldest: u32) -> Value {
    (oldest..=newest).rev().map(|n| n.to_string()).collect()
}

fn denied() -> Value {
    json!({ "success": false, "history": [] })
}

#[test]
fn subscribe_channel_grants_what_is_exposed() {
    let demo = Demo::shared();
    let mut client = RawClient::connect(&demo);
    for channel in [
        "notifications:global",
        "chat:granted",
        "chat:with spaces and ü",
    ] {
        let reply = client.command("mesh/subscribe-channel", json!({ "channel": channel }));
        assert_eq!(
            reply,
            json!({ "success": true, "history": [] }),
            "{channel}"
        );
    }
}

#[test]
fn subscribe_channel_denies_what_is_not_exposed_like_what_does_not_exist() {
    let demo = Demo::shared();
    let mut client = RawClient::connect(&demo);
    publish(&mut client, "secret:plans", 2, 10);
    for channel in [
        "secret:plans",
        "no-such-channel",
        "chat:",
        "xchat:a",
        "notifications:global2",
        "Notifications:global",
        "user:123",
    ] {
        for payload in [
            json!({ "channel": channel }),
            json!({ "channel": channel, "historyLimit": 10 }),
        ] {
            assert_eq!(
                client.command("mesh/subscribe-channel", payload),
                denied(),
                "{channel}"
            );
        }
        assert_eq!(
            client.command("mesh/unsubscribe-channel", json!({ "channel": channel })),
            false
        );
    }
    client.succeed(
        "publish",
        json!({ "channel": "secret:plans", "message": "m" }),
    );
    client.assert_quiet();
}

#[test]
fn subscribe_channel_asks_the_guard() {
    let demo = Demo::shared();
    let mut client = RawClient::connect(&demo);
    let wanted = json!({ "channel": "private:chat:guarded", "historyLimit": 10 });
    publish(&mut client, "private:chat:guarded", 1, 10);
    assert_eq!(
        client.command("mesh/subscribe-channel", wanted.clone()),
        denied()
    );
    for metadata in [
        json!({ "premium": false }),
        json!({ "premium": "true" }),
        json!({ "premium": 1 }),
        json!([true]),
    ] {
        client.succeed("set-metadata", metadata.clone());
        assert_eq!(
            client.command("mesh/subscribe-channel", wanted.clone()),
            denied(),
            "{metadata}"
        );
    }
    client.succeed("set-metadata", json!({ "premium": true }));
    assert_eq!(
        client.command("mesh/subscribe-channel", wanted),
        json!({ "success": true, "history": ["1"] })
    );
}

#[test]
fn history_comes_with_a_subscription_only_if_wanted() {
    let demo = Demo::shared();
    let mut client = RawClient::connect(&demo);
    publish(&mut client, "chat:wanted", 3, 10);
    for payload in [
        json!({ "channel": "chat:wanted" }),
        json!({ "channel": "chat:wanted", "historyLimit": 0 }),
    ] {
        let reply = client.command("mesh/subscribe-channel", payload);
        assert_eq!(reply, json!({ "success": true, "history": [] }));
    }
}

#[test]
fn a_negative_history_limit_is_invalid() {
    let demo = Demo::shared();
    let mut client = RawClient::connect(&demo);
    for limit in [json!(-1), json!(-1_000_000_000_000_i64)] {
        assert_invalid(&client.command(
            "mesh/subscribe-channel",
            json!({ "channel": "chat:neg", "historyLimit": limit }),
        ));
    }
    assert_eq!(
        client.command("mesh/unsubscribe-channel", json!({ "channel": "chat:neg" })),
        false
    );
}

#[test]
fn history_is_newest_first_and_never_longer_than_asked_for() {
    let demo = Demo::shared();
    let mut client = RawClient::connect(&demo);
    publish(&mut client, "chat:limit", 5, 100);
    for (limit, history) in [
        (0, json!([])),
        (1, numbers(5, 5)),
        (2, numbers(5, 4)),
        (4, numbers(5, 2)),
        (5, numbers(5, 1)),
        (6, numbers(5, 1)),
        (1_000_000, numbers(5, 1)),
    ] {
        let wanted = json!({ "channel": "chat:limit", "historyLimit": limit });
        let reply = client.command("mesh/subscribe-channel", wanted);
        assert_eq!(
            reply,
            json!({ "success": true, "history": history }),
            "historyLimit {limit}"
        );
        if limit > 0 {
            let reply = client.command(
                "mesh/get-channel-history",
                json!({ "channel": "chat:limit", "limit": limit }),
            );
            assert_eq!(
                reply,
                json!({ "success": true, "history": history }),
                "limit {limit}"
            );
        }
    }
}

#[test]
fn a_history_keeps_exactly_its_newest() {
    let demo = Demo::shared();
    let mut client = RawClient::connect(&demo);
    for (channel, keep) in [("chat:keep-1", 1), ("chat:keep-3", 3)] {
        publish(&mut client, channel, 5, keep);
        let reply = client.command("mesh/get-channel-history", json!({ "channel": channel }));
        assert_eq!(
            reply,
            json!({ "success": true, "history": numbers(5, 6 - keep) })
        );
    }
}

#[test]
fn what_is_published_without_history_is_not_kept() {
    let demo = Demo::shared();
    let mut client = RawClient::connect(&demo);
    client.succeed(
        "publish",
        json!({ "channel": "chat:unkept", "message": "m" }),
    );
    let reply = client.command(
        "mesh/get-channel-history",
        json!({ "channel": "chat:unkept" }),
    );
    assert_eq!(reply, json!({ "success": true, "history": [] }));
}

#[test]
fn get_channel_history_answers_50_where_no_limit_is_given() {
    let demo = Demo::shared();
    let mut client = RawClient::connect(&demo);
    publish(&mut client, "chat:fifty", 60, 100);
    let reply = client.command(
        "mesh/get-channel-history",
        json!({ "channel": "chat:fifty" }),
    );
    assert_eq!(
        reply,
        json!({ "success": true, "history": numbers(60, 11) })
    );
    let reply = client.command(
        "mesh/get-channel-history",
        json!({ "channel": "chat:fifty", "limit": 55 }),
    );
    assert_eq!(reply, json!({ "success": true, "history": numbers(60, 6) }));
}

#[test]
fn get_channel_history_subscribes_nobody() {
    let demo = Demo::shared();
    let mut client = RawClient::connect(&demo);
    client.command(
        "mesh/get-channel-history",
        json!({ "channel": "chat:only-looking" }),
    );
    client.succeed(
        "publish",
        json!({ "channel": "chat:only-looking", "message": "m" }),
    );
    client.assert_quiet();
}

#[test]
fn get_channel_history_denies_what_is_not_exposed_like_what_does_not_exist() {
    let demo = Demo::shared();
    let mut client = RawClient::connect(&demo);
    publish(&mut client, "secret:history", 2, 10);
    publish(&mut client, "private:chat:history", 2, 10);
    for channel in ["secret:history", "no-such-channel", "private:chat:history"] {
        let reply = client.command("mesh/get-channel-history", json!({ "channel": channel }));
        assert_eq!(reply, denied(), "{channel}");
    }
    client.succeed("set-metadata", json!({ "premium": true }));
    let reply = client.command(
        "mesh/get-channel-history",
        json!({ "channel": "private:chat:history" }),
    );
    assert_eq!(reply, json!({ "success": true, "history": ["2", "1"] }));
}

#[test]
fn unsubscribe_channel_is_true_for_a_subscriber_and_false_for_anyone_else() {
    let demo = Demo::shared();
    let (mut subscriber, mut stranger) = (RawClient::connect(&demo), RawClient::connect(&demo));
    let channel = json!({ "channel": "chat:unsubscribe" });
    assert_eq!(
        subscriber.command("mesh/unsubscribe-channel", channel.clone()),
        false
    );
    assert_eq!(
        subscriber.command("mesh/subscribe-channel", channel.clone())["success"],
        true
    );
    assert_eq!(
        stranger.command("mesh/unsubscribe-channel", channel.clone()),
        false
    );
    // The stranger's try took nothing from the subscriber.
    stranger.succeed(
        "publish",
        json!({ "channel": "chat:unsubscribe", "message": "m" }),
    );
    let message = json!({ "channel": "chat:unsubscribe", "message": "m" });
    assert_eq!(subscriber.event("mesh/subscription-message"), message);
    assert_eq!(
        subscriber.command("mesh/unsubscribe-channel", channel.clone()),
        true
    );
    assert_eq!(
        subscriber.command("mesh/unsubscribe-channel", channel),
        false
    );
    stranger.succeed("publish", message);
    subscriber.assert_quiet();
}

#[test]
fn subscribing_twice_is_one_subscription() {
    let demo = Demo::shared();
    let mut client = RawClient::connect(&demo);
    let channel = json!({ "channel": "chat:twice" });
    for _ in 0..2 {
        assert_eq!(
            client.command("mesh/subscribe-channel", channel.clone())["success"],
            true
        );
    }
    client.succeed(
        "publish",
        json!({ "channel": "chat:twice", "message": "m" }),
    );
    assert_eq!(
        client.events_until_now("mesh/subscription-message").len(),
        1
    );
    assert_eq!(
        client.command("mesh/unsubscribe-channel", channel.clone()),
        true
    );
    assert_eq!(client.command("mesh/unsubscribe-channel", channel), false);
}

#[test]
fn join_room_tells_who_is_present() {
    let demo = Demo::shared();
    let mut clients: Vec<RawClient> = (0..3).map(|_| RawClient::connect(&demo)).collect();
    let mut before: BTreeSet<String> = BTreeSet::new();
    for client in &mut clients {
        let reply = client.command("mesh/join-room", json!({ "roomName": "room:present" }));
        let keys = reply.as_object().unwrap();
        assert!(keys.len() == 2 && reply["success"] == true, "{reply}");
        let listed = reply["present"].as_array().unwrap();
        let mut present: BTreeSet<String> = listed
            .iter()
            .map(|id| id.as_str().unwrap().to_owned())
            .collect();
        assert_eq!(
            present.len(),
            listed.len(),
            "someone is there twice: {reply}"
        );
        // Whether the newcomer counts itself is its own business; the others are there.
        present.remove(client.id());
        assert_eq!(present, before);
        before.insert(client.id().to_owned());
    }
}

#[test]
fn join_room_makes_a_member_and_leave_room_ends_it() {
    let demo = Demo::shared();
    let mut client = RawClient::connect(&demo);
    let room = json!({ "roomName": "room:membership" });
    let event = json!({ "roomName": "room:membership", "command": "e", "payload": 1 });
    assert_eq!(
        client.command("mesh/join-room", room.clone())["success"],
        true
    );
    assert_eq!(
        client.command("room-members", room.clone()),
        json!([client.id()])
    );
    assert_eq!(
        client.command("broadcast-room", event.clone()),
        json!({ "sent": true })
    );
    assert_eq!(client.event("e"), 1);
    client.succeed("mesh/leave-room", room.clone());
    assert_eq!(client.command("room-members", room), json!([]));
    assert_eq!(
        client.command("broadcast-room", event),
        json!({ "sent": true })
    );
    client.assert_quiet();
}

#[test]
fn joining_twice_is_one_membership() {
    let demo = Demo::shared();
    let mut client = RawClient::connect(&demo);
    let room = json!({ "roomName": "room:joined-twice" });
    for _ in 0..2 {
        assert_eq!(
            client.command("mesh/join-room", room.clone())["success"],
            true
        );
    }
    assert_eq!(
        client.command("room-members", room.clone()),
        json!([client.id()])
    );
    client.command(
        "broadcast-room",
        json!({ "roomName": "room:joined-twice", "command": "e", "payload": 1 }),
    );
    assert_eq!(client.events_until_now("e").len(), 1);
    client.succeed("mesh/leave-room", room.clone());
    assert_eq!(client.command("is-in-room", room), false);
}

#[test]
fn join_room_denies_what_is_not_exposed_like_what_does_not_exist() {
    let demo = Demo::shared();
    let (mut client, mut other) = (RawClient::connect(&demo), RawClient::connect(&demo));
    other.succeed("join-room", json!({ "roomName": "secret-room" }));
    for room in ["secret-room", "no-such-room", "room:", "xroom:a", "Room:a"] {
        let reply = client.command("mesh/join-room", json!({ "roomName": room }));
        assert_eq!(reply, json!({ "success": false, "present": [] }), "{room}");
        assert_eq!(
            client.command("is-in-room", json!({ "roomName": room })),
            false
        );
    }
}

#[test]
fn leave_room_succeeds_for_a_stranger_too() {
    let demo = Demo::shared();
    let mut client = RawClient::connect(&demo);
    for room in ["room:never-joined", "secret-never-joined"] {
        client.succeed("mesh/leave-room", json!({ "roomName": room }));
    }
}

#[test]
fn room_metadata_is_readable_where_exposed_and_null_elsewhere() {
    let demo = Demo::shared();
    let mut client = RawClient::connect(&demo);
    let read = |client: &mut RawClient, room: &str| {
        client.command("mesh/get-room-metadata", json!({ "roomName": room }))
    };
    assert_eq!(read(&mut client, "room:meta"), json!({ "metadata": null }));
    client.succeed(
        "set-room-metadata",
        json!({ "roomName": "room:meta", "metadata": { "topic": "x" } }),
    );
    client.succeed(
        "set-room-metadata",
        json!({ "roomName": "secret-meta", "metadata": { "topic": "x" } }),
    );
    assert_eq!(
        read(&mut client, "room:meta"),
        json!({ "metadata": { "topic": "x" } })
    );
    assert_eq!(
        read(&mut client, "secret-meta"),
        read(&mut client, "no-such-room")
    );
    assert_eq!(
        read(&mut client, "secret-meta"),
        json!({ "metadata": null })
    );
}

#[test]
fn connection_metadata_of_others_is_for_admins() {
    let demo = Demo::shared();
    let (mut client, mut other) = (RawClient::connect(&demo), RawClient::connect(&demo));
    other.succeed("set-metadata", json!({ "secret": 1 }));
    let read = |client: &mut RawClient, id: &str| {
        client.command(
            "mesh/get-connection-metadata",
            json!({ "connectionId": id }),
        )
    };
    let nothing = json!({ "metadata": null });
    assert_eq!(read(&mut client, other.id()), nothing);
    assert_eq!(read(&mut client, "no-such-connection"), nothing);
    for metadata in [
        json!({ "admin": false }),
        json!({ "admin": "true" }),
        json!({ "admin": 1 }),
        json!("admin"),
    ] {
        client.succeed("set-metadata", metadata.clone());
        assert_eq!(read(&mut client, other.id()), nothing, "{metadata}");
    }
    client.succeed("set-metadata", json!({ "admin": true }));
    assert_eq!(
        read(&mut client, other.id()),
        json!({ "metadata": { "secret": 1 } })
    );
    assert_eq!(read(&mut client, "no-such-connection"), nothing);
}

#[test]
fn a_connection_always_reads_its_own_metadata() {
    let demo = Demo::shared();
    let mut client = RawClient::connect(&demo);
    let id = json!({ "connectionId": client.id() });
    assert_eq!(
        client.command("mesh/get-my-connection-metadata", json!({})),
        json!({ "metadata": null })
    );
    assert_eq!(
        client.command("mesh/get-connection-metadata", id.clone()),
        json!({ "metadata": null })
    );
    client.succeed("set-metadata", json!({ "name": "me" }));
    let metadata = json!({ "metadata": { "name": "me" } });
    assert_eq!(
        client.command("mesh/get-my-connection-metadata", json!({})),
        metadata
    );
    assert_eq!(
        client.command("mesh/get-my-connection-metadata", Value::Null),
        metadata
    );
    assert_eq!(client.command("mesh/get-connection-metadata", id), metadata);
}

#[test]
fn a_client_sets_its_metadata_only_where_the_application_allows_it() {
    let demo = Demo::shared();
    let mut client = RawClient::connect(&demo);
    client.succeed("set-metadata", json!({ "name": "me" }));
    for payload in [
        json!({ "metadata": { "admin": true } }),
        json!({ "metadata": { "admin": true }, "options": { "strategy": "merge" } }),
        json!({ "metadata": { "admin": true }, "options": { "strategy": "deepMerge" } }),
    ] {
        let reply = client.command("mesh/set-my-connection-metadata", payload);
        assert_eq!(reply, json!({ "success": false }));
    }
    let metadata = client.command("mesh/get-my-connection-metadata", json!({}));
    assert_eq!(metadata, json!({ "metadata": { "name": "me" } }));
}

#[test]
fn noop_is_true() {
    let demo = Demo::shared();
    let mut client = RawClient::connect(&demo);
    for payload in [json!({}), Value::Null, json!({ "more": 1 })] {
        assert_eq!(client.command("mesh/noop", payload), true);
    }
}

#[test]
fn presence_and_unknown_names_of_the_prefix_are_not_found() {
    let demo = Demo::shared();
    let mut client = RawClient::connect(&demo);
    for command in [
        "mesh/subscribe-presence",
        "mesh/unsubscribe-presence",
        "mesh/publish-presence-state",
        "mesh/clear-presence-state",
        "mesh/get-presence-state",
        "mesh/",
        "mesh/no-such-command",
        "mesh/Noop",
        "mesh/assign-id",
        "rt/noop",
        "noop",
    ] {
        let wanted = error(
            &format!("Command \"{command}\" not found"),
            "ENOTFOUND",
            "CommandError",
        );
        assert_eq!(
            client.command(command, json!({ "roomName": "room:x" })),
            wanted
        );
    }
}

#[test]
fn built_in_commands_refuse_what_does_not_fit() {
    let demo = Demo::shared();
    let mut client = RawClient::connect(&demo);
    for (command, field) in [
        ("mesh/subscribe-channel", "channel"),
        ("mesh/unsubscribe-channel", "channel"),
        ("mesh/get-channel-history", "channel"),
        ("mesh/join-room", "roomName"),
        ("mesh/leave-room", "roomName"),
        ("mesh/get-room-metadata", "roomName"),
        ("mesh/get-connection-metadata", "connectionId"),
        ("mesh/subscribe-record", "recordId"),
        ("mesh/unsubscribe-record", "recordId"),
        ("mesh/publish-record-update", "recordId"),
    ] {
        for payload in [
            Value::Null,
            json!("x"),
            json!(1),
            json!([]),
            json!(["x"]),
            json!({}),
            json!({ "x": "y" }),
        ] {
            let reply = client.command(command, payload.clone());
            assert_eq!(reply["code"], "EINVALID", "{command} {payload}: {reply}");
            assert_invalid(&reply);
        }
        for value in [Value::Null, json!(1), json!(true), json!(["x"]), json!({})] {
            let reply = client.command(command, json!({ field: value }));
            assert_eq!(
                reply["code"], "EINVALID",
                "{command} with {field} {value}: {reply}"
            );
            assert_invalid(&reply);
        }
    }
    for limit in [json!("1"), json!(1.5), json!([1]), json!(true)] {
        let payload = json!({ "channel": "chat:x", "historyLimit": limit });
        assert_invalid(&client.command("mesh/subscribe-channel", payload));
        let payload = json!({ "channel": "chat:x", "limit": limit });
        assert_invalid(&client.command("mesh/get-channel-history", payload));
    }
    assert_eq!(
        client.command("mesh/unsubscribe-channel", json!({ "channel": "chat:x" })),
        false
    );
}

#[test]
fn assign_id_is_the_first_frame_and_the_id_is_the_connections() {
    let demo = Demo::shared();
    let mut ids = BTreeSet::new();
    for _ in 0..10 {
        let mut client = RawClient::open(demo.addr());
        let first = client.next_frame();
        assert_eq!(
            first,
            json!({ "command": "mesh/assign-id", "payload": first["payload"] })
        );
        let id = first["payload"].as_str().expect("a string").to_owned();
        assert_eq!(client.command("whoami", json!({}))["connectionId"], id);
        assert!(!id.is_empty() && ids.insert(id), "an id is given once");
        client.assert_quiet();
    }
}

#[test]
fn assign_id_can_be_left_out() {
    let demo = Demo::start(&["--no-assign-id"]);
    let mut client = RawClient::open(demo.addr());
    client.assert_quiet();
    assert!(client.command("whoami", json!({}))["connectionId"].is_string());
}

#[test]
fn a_message_arrives_as_it_was_published_byte_for_byte() {
    let demo = Demo::shared();
    let mut client = RawClient::connect(&demo);
    let wanted = json!({ "channel": "chat:bytes" });
    assert_eq!(
        client.command("mesh/subscribe-channel", wanted)["success"],
        true
    );
    let long = "long ".repeat(20_000);
    let messages = [
        "",
        " ",
        "hi",
        r#"{"a": 1, "b":[ ]}"#,
        "\"quoted\" \\ back/slash",
        "\u{0}\u{1}\u{1f}\u{7f}\r\n\t",
        "Grüße 世界 🎈 \u{2028}\u{2029}\u{feff}",
        "null",
        &long,
    ];
    for message in messages {
        let published = json!({ "channel": "chat:bytes", "message": message, "history": 100 });
        client.succeed("publish", published);
        let event = client.event("mesh/subscription-message");
        assert_eq!(
            event,
            json!({ "channel": "chat:bytes", "message": message })
        );
    }
    let history: Vec<&str> = messages.into_iter().rev().collect();
    let reply = client.command(
        "mesh/get-channel-history",
        json!({ "channel": "chat:bytes" }),
    );
    assert_eq!(reply, json!({ "success": true, "history": history }));
}

#[test]
fn a_message_reaches_the_subscribers_of_its_channel_and_nobody_else() {
    let demo = Demo::shared();
    let mut clients: Vec<RawClient> = (0..4).map(|_| RawClient::connect(&demo)).collect();
    for (n, client) in clients.iter_mut().enumerate().take(3) {
        let channel = if n < 2 { "chat:these" } else { "chat:those" };
        assert_eq!(
            client.command("mesh/subscribe-channel", json!({ "channel": channel }))["success"],
            true
        );
    }
    clients[3].succeed(
        "publish",
        json!({ "channel": "chat:these", "message": "m" }),
    );
    for client in &mut clients[..2] {
        let event = client.event("mesh/subscription-message");
        assert_eq!(event, json!({ "channel": "chat:these", "message": "m" }));
    }
    for client in &mut clients {
        client.assert_quiet();
    }
}
