//! `pitfalls.md`: what went wrong before, as far as a single instance can show it and no other file does.
//! The README of this crate tells where each of the others is.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on fails"
)]

use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use mesh_tests::wire::{self, CLOSE, CONTINUATION, FIN, PING, TEXT};
use mesh_tests::{Demo, RawClient, Upgrade, assert_error, until};
use serde_json::{Value, json};

/// Pitfall 1: metadata was kept in the field that held the connection's instance.
#[test]
fn metadata_does_not_disturb_routing() {
    let demo = Demo::shared();
    let (mut client, mut other) = (RawClient::connect(&demo), RawClient::connect(&demo));
    assert_eq!(
        client.command("mesh/join-room", json!({ "roomName": "room:routing" }))["success"],
        true
    );
    let id = client.id().to_owned();
    for metadata in [
        json!({ "instanceId": "elsewhere", "instance": "elsewhere", "connectionId": "other", "id": 5 }),
        json!("elsewhere"),
        json!(["elsewhere"]),
        Value::Null,
    ] {
        client.succeed("set-metadata", metadata);
        let to = json!({ "connectionId": id, "command": "to", "payload": 1 });
        assert_eq!(other.command("send-to", to), json!({ "sent": true }));
        assert_eq!(client.event("to"), 1);
        other.command(
            "broadcast-room",
            json!({ "roomName": "room:routing", "command": "room", "payload": 2 }),
        );
        assert_eq!(client.event("room"), 2);
    }
}

/// Pitfall 2: local connections were never removed from the table.
#[test]
fn connections_that_went_are_not_kept() {
    let demo = Demo::start(&[]);
    let mut witness = RawClient::connect(&demo);
    for n in 0..60 {
        let mut client = RawClient::connect(&demo);
        client.succeed("set-metadata", json!(n));
        match n % 3 {
            0 => client.leave(),
            1 => client.vanish(),
            _ => drop(client),
        }
    }
    until("only the witness is left", || demo.connections() == 1);
    until("and its metadata", || {
        witness.command("all-metadata", json!({})) == json!([{ witness.id(): null }])
    });
}

/// Pitfall 6: a socket that closed in the middle of its registration stayed as a ghost.
#[test]
fn a_close_during_registration_leaves_no_ghost() {
    let demo = Demo::start(&[]);
    let mut witness = RawClient::connect(&demo);
    let request = Upgrade::new(demo.addr()).request;
    let join = r#"{"id":1,"command":"mesh/join-room","payload":{"roomName":"room:ghosts"}}"#;
    let metadata = r#"{"id":2,"command":"set-metadata","payload":"ghost"}"#;
    let subscribe =
        r#"{"id":3,"command":"mesh/subscribe-channel","payload":{"channel":"chat:ghosts"}}"#;
    let commands = [
        wire::text(join),
        wire::text(metadata),
        wire::text(subscribe),
    ]
    .concat();
    for n in 0..200_u64 {
        let mut socket = TcpStream::connect(demo.addr()).unwrap();
        let mut bytes = request.clone().into_bytes();
        match n % 4 {
            0 => {}
            1 => bytes.extend(&commands),
            2 => bytes.extend([&commands[..], &wire::close(1000, "")].concat()),
            _ => bytes.extend(wire::close(1000, "")),
        }
        std::io::Write::write_all(&mut socket, &bytes).unwrap();
        // At another moment of the registration each time.
        thread::sleep(Duration::from_micros(n % 50 * 40));
        drop(socket);
    }
    until("no ghost is connected", || demo.connections() == 1);
    until("no ghost is in the room", || {
        witness.command("room-members", json!({ "roomName": "room:ghosts" })) == json!([])
    });
    until("no ghost is listed", || {
        witness.command("all-metadata", json!({})) == json!([{ witness.id(): null }])
    });
    witness.succeed(
        "publish",
        json!({ "channel": "chat:ghosts", "message": "m" }),
    );
    assert_eq!(demo.connections(), 1);
}

/// Pitfall 7: cleanup was one chain, and its first error skipped the rest.
#[test]
fn who_was_everywhere_is_nowhere() {
    let demo = Demo::start(&[]);
    let mut witness = RawClient::connect(&demo);
    let mut client = RawClient::connect(&demo);
    let id = json!({ "connectionId": client.id() });
    let rooms: Vec<Value> = (0..20)
        .map(|n| json!({ "roomName": format!("room:everywhere-{n}") }))
        .collect();
    for (n, room) in rooms.iter().enumerate() {
        assert_eq!(
            client.command("mesh/join-room", room.clone())["success"],
            true
        );
        let channel = json!({ "channel": format!("chat:everywhere-{n}") });
        assert_eq!(
            client.command("mesh/subscribe-channel", channel)["success"],
            true
        );
    }
    client.succeed("set-metadata", json!("everywhere"));
    // One of its rooms is cleared under it, and commands are in flight while it goes.
    witness.succeed("clear-room", rooms[7].clone());
    client.send_command("never-responds", json!({}));
    client.send_command("sleep", json!({ "ms": 200 }));
    client.vanish();
    let gone = Instant::now();
    until("every room forgets it", || {
        rooms
            .iter()
            .all(|room| witness.command("room-members", room.clone()) == json!([]))
    });
    until("its metadata is gone", || {
        witness.command("get-metadata", id.clone()).is_null()
    });
    until("the list forgets it", || demo.connections() == 1);
    let took = gone.elapsed();
    assert!(
        took < Duration::from_secs(2),
        "commands in flight held its cleanup up for {took:?}"
    );
    for n in 0..20 {
        witness.succeed(
            "publish",
            json!({ "channel": format!("chat:everywhere-{n}"), "message": "m" }),
        );
    }
    witness.assert_quiet();
}

/// Pitfall 19: an unsubscribe raced a subscribe and killed it.
#[test]
fn one_connections_coming_and_going_does_not_disturb_another() {
    let demo = Demo::shared();
    let mut steady = RawClient::connect(&demo);
    let channel = json!({ "channel": "chat:race" });
    assert_eq!(
        steady.command("mesh/subscribe-channel", channel.clone())["success"],
        true
    );
    let (mut restless, mut publisher) = (RawClient::connect(&demo), RawClient::connect(&demo));
    for n in 0..100 {
        let entering = restless.send_command("mesh/subscribe-channel", channel.clone());
        publisher.succeed(
            "publish",
            json!({ "channel": "chat:race", "message": n.to_string() }),
        );
        assert_eq!(restless.reply(entering)["success"], true);
        let leaving = restless.send_command("mesh/unsubscribe-channel", channel.clone());
        assert_eq!(
            steady.event("mesh/subscription-message")["message"],
            n.to_string()
        );
        assert_eq!(restless.reply(leaving), true);
    }
    steady.assert_quiet();
}

/// Pitfall 22: a malformed WebSocket frame in the handshake's packet ended the process, without login.
#[test]
fn a_malformed_frame_in_the_packet_of_the_handshake_closes_one_connection() {
    let mut demo = Demo::start(&[]);
    let mut healthy = RawClient::connect(&demo);
    for (bytes, code) in [
        (wire::frame(0xF1, b"reserved bits"), 1002),
        (wire::frame(FIN | 0x3, b"reserved opcode"), 1002),
        (wire::frame(FIN | CONTINUATION, b"of nothing"), 1002),
        (wire::frame(PING, b"fragmented"), 1002),
        (wire::frame(FIN | CLOSE, b"x"), 1002),
        (wire::header(FIN | TEXT, 5, None), 1002),
        (wire::header(FIN | TEXT, 1 << 40, Some(wire::MASK)), 1009),
        (wire::frame(FIN | TEXT, b"\xff\xfe"), 1007),
        (vec![0xff; 2_000], 1002),
    ] {
        let mut client = Upgrade::new(demo.addr())
            .trailing(&bytes)
            .send(demo.addr())
            .unwrap();
        assert_eq!(
            client.close_code(),
            Some(code),
            "{:?}",
            &bytes[..bytes.len().min(16)]
        );
        drop(client);
        assert!(demo.runs(), "the server ended");
        assert_eq!(healthy.command("echo", "x"), "echo: x");
    }
    until("their connections are gone", || demo.connections() == 1);
}

/// Pitfall 25: an error resolved like a result, and a result that could not be serialised was never answered.
#[test]
fn a_payload_that_looks_like_an_error_is_reflected_as_it_is() {
    let demo = Demo::shared();
    let mut client = RawClient::connect(&demo);
    let payload = json!({ "error": "m", "code": "C", "name": "N" });
    assert_eq!(client.command("reflect", payload.clone()), payload);
}

/// The names that every object of the original language has.
const INHERITED: [&str; 8] = [
    "constructor",
    "__proto__",
    "prototype",
    "toString",
    "valueOf",
    "hasOwnProperty",
    "isPrototypeOf",
    "__defineGetter__",
];

/// Pitfall 26: command look-up found inherited names.
#[test]
fn inherited_names_are_no_commands() {
    let demo = Demo::shared();
    let mut client = RawClient::connect(&demo);
    for name in INHERITED {
        let message = assert_error(
            &client.command(name, json!({})),
            "ENOTFOUND",
            "CommandError",
        );
        assert_eq!(message, format!("Command \"{name}\" not found"));
        assert_error(
            &client.command(&format!("mesh/{name}"), json!({})),
            "ENOTFOUND",
            "CommandError",
        );
    }
}

/// Pitfall 26 again: such names are ordinary names of rooms, channels, keys and connections.
#[test]
fn inherited_names_are_ordinary_elsewhere() {
    let demo = Demo::shared();
    let mut client = RawClient::connect(&demo);
    for name in INHERITED {
        let room = json!({ "roomName": name });
        assert_eq!(
            client.command("get-room-metadata", room.clone()),
            Value::Null
        );
        assert_eq!(client.command("room-members", room.clone()), json!([]));
        assert_eq!(
            client.command("get-metadata", json!({ "connectionId": name })),
            Value::Null
        );
        client.succeed("join-room", room.clone());
        client.succeed(
            "update-room-metadata",
            json!({ "roomName": name, "metadata": { name: 1 } }),
        );
        assert_eq!(
            client.command("get-room-metadata", room.clone()),
            json!({ name: 1 })
        );
        assert_eq!(
            client.command("room-members", room.clone()),
            json!([client.id()])
        );
        client.succeed("clear-room", room);
        let channel = json!({ "channel": name });
        assert_eq!(
            client.command("mesh/subscribe-channel", channel)["success"],
            false
        );
    }
}

/// Pitfall 30: nothing bounded the names, the calls, the queue. The bounds are in `limits.rs`; here they are met at once.
#[test]
fn limits_hold_together() {
    let demo = Demo::start(&[
        "--max-in-flight",
        "8",
        "--max-message-bytes",
        "2000",
        "--max-queue-bytes",
        "100000",
    ]);
    let mut client = RawClient::connect(&demo);
    for _ in 0..8 {
        client.send_command("never-responds", "x".repeat(1_500));
    }
    let refused: Vec<u32> = (0..100).map(|_| client.send_command("echo", "x")).collect();
    for id in refused {
        assert_error(&client.reply(id), "EOVERLOAD", "OverloadError");
    }
    drop(client.try_send_raw(&wire::text(&"x".repeat(2_001))));
    client.assert_closed(1009);
}

/// Pitfall 33: any client read any connection's and room's metadata, and joined any room.
#[test]
fn a_stranger_reaches_nothing_that_is_not_exposed() {
    let demo = Demo::shared();
    let (mut owner, mut stranger) = (RawClient::connect(&demo), RawClient::connect(&demo));
    owner.succeed("join-room", json!({ "roomName": "vault" }));
    owner.succeed("set-metadata", json!({ "secret": true }));
    owner.succeed(
        "set-room-metadata",
        json!({ "roomName": "vault", "metadata": { "secret": true } }),
    );
    owner.succeed(
        "publish",
        json!({ "channel": "vault", "message": "secret", "history": 5 }),
    );
    owner.set_aside();
    let asked = [
        ("mesh/join-room", json!({ "roomName": "vault" })),
        ("mesh/get-room-metadata", json!({ "roomName": "vault" })),
        (
            "mesh/get-connection-metadata",
            json!({ "connectionId": owner.id() }),
        ),
        (
            "mesh/subscribe-channel",
            json!({ "channel": "vault", "historyLimit": 5 }),
        ),
        ("mesh/get-channel-history", json!({ "channel": "vault" })),
        ("mesh/unsubscribe-channel", json!({ "channel": "vault" })),
        ("mesh/leave-room", json!({ "roomName": "vault" })),
    ];
    for (command, payload) in asked {
        let mut absent = payload.clone();
        for value in absent
            .as_object_mut()
            .unwrap()
            .values_mut()
            .filter(|value| value.is_string())
        {
            *value = json!("no-such-thing");
        }
        let (there, not_there) = (
            stranger.command(command, payload),
            stranger.command(command, absent),
        );
        assert_eq!(there, not_there, "{command} tells what exists");
        assert!(!there.to_string().contains("secret"), "{command}: {there}");
    }
    assert_eq!(
        owner.command("room-members", json!({ "roomName": "vault" })),
        json!([owner.id()])
    );
}

/// Pitfall 34: a client command overwrote metadata that was not its own to set.
#[test]
fn no_built_in_overwrites_what_the_server_set() {
    let demo = Demo::shared();
    let mut client = RawClient::connect(&demo);
    client.succeed("authenticate", json!({ "userId": "u" }));
    let before = client.command("mesh/get-my-connection-metadata", json!({}));
    let attempt = json!({ "metadata": { "userId": "root" }, "options": { "strategy": "merge" } });
    assert_eq!(
        client.command("mesh/set-my-connection-metadata", attempt),
        json!({ "success": false })
    );
    assert_eq!(
        client.command("mesh/get-my-connection-metadata", json!({})),
        before
    );
    assert_eq!(
        client.command("admin-only", json!({})),
        json!({ "user": { "id": "u" } })
    );
}

/// Pitfall 35: guards ran once. Each subscribe and each read asks again.
#[test]
fn a_guard_is_asked_each_time() {
    let demo = Demo::shared();
    let mut client = RawClient::connect(&demo);
    let channel = json!({ "channel": "private:chat:each-time" });
    for premium in [true, false, true, false] {
        client.succeed("set-metadata", json!({ "premium": premium }));
        assert_eq!(
            client.command("mesh/get-channel-history", channel.clone())["success"],
            premium
        );
        client.command("mesh/unsubscribe-channel", channel.clone());
        assert_eq!(
            client.command("mesh/subscribe-channel", channel.clone())["success"],
            premium
        );
    }
}
