//! `protocol.md`, section 7: each limit that can be seen from outside, at its edge, and that the rest goes on.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on fails"
)]

use std::io::Write;
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use mesh_tests::wire::{self, BINARY, CONTINUATION, FIN, MASK, TEXT};
use mesh_tests::{
    Demo, Incoming, PATIENCE, RawClient, Upgrade, assert_error, assert_invalid, until, until_some,
};
use serde_json::{Value, json};

const MIB: usize = 1 << 20;

/// An `echo` of exactly so many bytes.
fn echo_of(bytes: usize) -> String {
    let frame = r#"{"id":1,"command":"echo","payload":""}"#;
    frame.replace(r#""""#, &format!("\"{}\"", "x".repeat(bytes - frame.len())))
}

#[test]
fn a_message_may_hold_exactly_one_mib() {
    let demo = Demo::shared();
    let mut client = RawClient::connect(&demo);
    client.send_text(&echo_of(MIB));
    assert_eq!(
        client.reply(1).as_str().unwrap().len(),
        MIB - r#"{"id":1,"command":"echo","payload":""}"#.len() + 6
    );
    // The server need not read it to its end.
    drop(client.try_send_raw(&wire::text(&echo_of(MIB + 1))));
    client.assert_closed(1009);
}

#[test]
fn the_size_of_a_message_is_an_option() {
    let demo = Demo::start(&["--max-message-bytes", "1000"]);
    let mut client = RawClient::connect(&demo);
    client.send_text(&echo_of(1_000));
    assert!(client.reply(1).is_string());
    client.send_text(&echo_of(1_001));
    client.assert_closed(1009);
}

#[test]
fn fragments_and_binary_messages_count_too() {
    let demo = Demo::start(&["--max-message-bytes", "1000"]);
    let mut client = RawClient::connect(&demo);
    client.send_frame(TEXT, &[b'x'; 600]);
    client.send_frame(CONTINUATION, &[b'x'; 400]);
    client.send_frame(CONTINUATION, b"x");
    client.assert_closed(1009);
    let mut client = RawClient::connect(&demo);
    client.send_frame(FIN | BINARY, &[0; 1_001]);
    client.assert_closed(1009);
}

#[test]
fn an_announced_length_is_refused_before_its_bytes_come() {
    let demo = Demo::shared();
    for len in [(MIB + 1) as u64, 1 << 32, (1 << 63) - 1] {
        let mut client = RawClient::connect(&demo);
        client.send_raw(&wire::header(FIN | TEXT, len, Some(MASK)));
        client.assert_closed(1009);
    }
}

#[test]
fn eight_malformed_frames_in_a_row_are_forgiven() {
    let demo = Demo::shared();
    let mut client = RawClient::connect(&demo);
    for _ in 0..3 {
        for _ in 0..8 {
            client.send_text("rubbish");
            assert_error(&client.event("mesh/error"), "EPARSE", "ProtocolError");
        }
        // A good frame ends the row.
        client.assert_quiet();
    }
    for _ in 0..9 {
        client.send_text("rubbish");
    }
    client.assert_closed(1008);
    let told = client.set_aside();
    assert!(
        (8..=9).contains(&told.len()),
        "{} events for 9 malformed frames",
        told.len()
    );
}

#[test]
fn binary_messages_are_malformed_frames_of_the_row() {
    let demo = Demo::shared();
    let mut client = RawClient::connect(&demo);
    for n in 0..9 {
        client.send_frame(FIN | if n % 2 == 0 { BINARY } else { TEXT }, b"[]");
    }
    client.assert_closed(1008);
}

#[test]
fn a_frame_without_id_is_no_malformed_frame() {
    let demo = Demo::shared();
    let mut client = RawClient::connect(&demo);
    for _ in 0..20 {
        client.send_event("anything", &json!({}));
    }
    client.assert_quiet();
}

#[test]
fn commands_in_flight_are_limited_to_1024() {
    let demo = Demo::shared();
    let mut client = RawClient::connect(&demo);
    for _ in 0..1_024 {
        client.send_command("never-responds", json!({}));
    }
    let refused = client.send_command("never-responds", json!({}));
    assert_error(&client.reply(refused), "EOVERLOAD", "OverloadError");
    assert_error(
        &client.command("mesh/noop", json!({})),
        "EOVERLOAD",
        "OverloadError",
    );
    assert_eq!(
        RawClient::connect(&demo).command("echo", "others go on"),
        "echo: others go on"
    );
}

#[test]
fn a_reply_makes_room_for_another_command() {
    let demo = Demo::start(&["--max-in-flight", "2"]);
    let mut client = RawClient::connect(&demo);
    client.send_command("never-responds", json!({}));
    let sleep = client.send_command("sleep", json!({ "ms": 150 }));
    assert_error(&client.command("echo", "x"), "EOVERLOAD", "OverloadError");
    assert_eq!(client.reply(sleep), json!({ "slept": 150 }));
    for _ in 0..10 {
        assert_eq!(client.command("echo", "x"), "echo: x");
    }
}

#[test]
fn reading_pauses_over_8_mib_of_commands_in_flight() {
    let demo = Demo::shared();
    let (mut client, mut other) = (RawClient::connect(&demo), RawClient::connect(&demo));
    let pad = "x".repeat(1_000_000);
    let begun = Instant::now();
    // Nine megabytes are over the limit, so the rest waits for the first sleeper; at most what came in one read with the
    // end of the ninth is handled before, and that is much less than the tenth.
    let mut socket = client.socket();
    let writer = thread::spawn(move || {
        for id in 1..=10 {
            let sleep =
                json!({ "id": id, "command": "sleep", "payload": { "ms": 2_000, "pad": pad } });
            socket.write_all(&wire::text(&sleep.to_string())).unwrap();
        }
        socket
            .write_all(&wire::text(r#"{"id":11,"command":"mesh/noop"}"#))
            .unwrap();
    });
    assert_eq!(other.command("echo", "others go on"), "echo: others go on");
    let mut order: Vec<u64> = Vec::new();
    while order.len() < 11 {
        order.push(client.next_frame()["id"].as_u64().unwrap());
    }
    writer.join().unwrap();
    assert_ne!(
        order[0], 11,
        "the command after ten megabytes was read at once"
    );
    assert!(begun.elapsed() >= Duration::from_secs(2));
    order.sort();
    assert!(
        order.into_iter().eq(1..=11),
        "each command is answered once"
    );
}

#[test]
fn metadata_is_limited_to_64_kib() {
    let demo = Demo::shared();
    let mut client = RawClient::connect(&demo);
    let (fits, too_long) = ("x".repeat((64 << 10) - 2), "x".repeat((64 << 10) - 1));
    client.succeed("set-metadata", json!(fits));
    assert_invalid(&client.command("set-metadata", json!(too_long)));
    let metadata = client.command("mesh/get-my-connection-metadata", json!({}));
    assert_eq!(
        metadata,
        json!({ "metadata": fits }),
        "the refused value changed nothing"
    );
    let room = |metadata: Value| json!({ "roomName": "limits-metadata", "metadata": metadata });
    client.succeed("set-room-metadata", room(json!(fits)));
    assert_invalid(&client.command("set-room-metadata", room(json!(too_long))));
    client.succeed(
        "set-room-metadata",
        room(json!({ "a": "x".repeat(40_000) })),
    );
    assert_invalid(&client.command(
        "update-room-metadata",
        room(json!({ "b": "x".repeat(40_000) })),
    ));
    assert_invalid(&client.command("update-room-metadata", room(json!({ "b": too_long }))));
    let metadata = client.command(
        "get-room-metadata",
        json!({ "roomName": "limits-metadata" }),
    );
    assert_eq!(metadata, json!({ "a": "x".repeat(40_000) }));
}

#[test]
fn a_history_is_limited_to_10_000() {
    let demo = Demo::shared();
    let mut client = RawClient::connect(&demo);
    let publish = |history: u64| json!({ "channel": "chat:limits-history", "message": "m", "history": history });
    client.succeed("publish", publish(10_000));
    for history in [10_001, 1 << 40] {
        let reply = client.command("publish", publish(history));
        assert!(
            reply["error"].is_string() && reply["code"].is_string(),
            "{history}: {reply}"
        );
    }
    let reply = client.command(
        "mesh/get-channel-history",
        json!({ "channel": "chat:limits-history" }),
    );
    assert_eq!(reply, json!({ "success": true, "history": ["m"] }));
}

#[test]
fn a_reply_is_limited_to_16_mib_and_a_long_one_always_fits_an_empty_queue() {
    let demo = Demo::shared();
    let mut client = RawClient::connect(&demo);
    let message = "x".repeat(1_000_000);
    for _ in 0..18 {
        client.succeed(
            "publish",
            json!({ "channel": "chat:long", "message": message, "history": 20 }),
        );
    }
    let wanted = |limit: u32| json!({ "channel": "chat:long", "limit": limit });
    // 10 MB are more than the queue of 4 MiB holds, and one message.
    let reply = client.command("mesh/get-channel-history", wanted(10));
    assert_eq!(reply["history"].as_array().unwrap().len(), 10);
    let id = client.send_command("mesh/get-channel-history", wanted(18));
    let reply = client.reply(id);
    assert_eq!(
        reply["code"],
        "EOVERLOAD",
        "18 MB are answered with {} bytes",
        reply.to_string().len()
    );
    client.assert_quiet();
}

/// A connection that holds all that it may: 2 048 channels with even numbers and 2 048 rooms with odd ones.
fn full(demo: &Demo) -> RawClient {
    let mut client = RawClient::connect(demo);
    // In eight parts: the limit of commands in flight is another one.
    for part in 0..8 {
        let ids: Vec<u32> = (part * 512..(part + 1) * 512)
            .map(|n| match n % 2 {
                0 => client.send_command(
                    "mesh/subscribe-channel",
                    json!({ "channel": format!("chat:many-{n}") }),
                ),
                _ => client.send_command(
                    "mesh/join-room",
                    json!({ "roomName": format!("room:many-{n}") }),
                ),
            })
            .collect();
        for id in ids {
            let reply = client.reply(id);
            assert_eq!(reply["success"], true, "{reply}");
        }
    }
    client
}

#[test]
fn one_connection_holds_4096_channels_records_and_rooms_together() {
    let demo = Demo::shared();
    let mut client = full(&demo);
    let channel = json!({ "channel": "chat:one-too-many" });
    let room = json!({ "roomName": "room:one-too-many" });
    let record = json!({ "recordId": "doc:one-too-many" });
    assert_error(
        &client.command("mesh/subscribe-record", record.clone()),
        "EOVERLOAD",
        "OverloadError",
    );
    assert_error(
        &client.command("mesh/subscribe-channel", channel.clone()),
        "EOVERLOAD",
        "OverloadError",
    );
    assert_error(
        &client.command("mesh/join-room", room.clone()),
        "EOVERLOAD",
        "OverloadError",
    );
    // What is given back makes room.
    assert_eq!(
        client.command(
            "mesh/unsubscribe-channel",
            json!({ "channel": "chat:many-0" })
        ),
        true
    );
    assert_eq!(
        client.command("mesh/subscribe-record", record.clone())["success"],
        true
    );
    assert_error(
        &client.command("mesh/join-room", room.clone()),
        "EOVERLOAD",
        "OverloadError",
    );
    assert_eq!(client.command("mesh/unsubscribe-record", record), true);
    assert_eq!(client.command("mesh/join-room", room)["success"], true);
    assert_error(
        &client.command("mesh/subscribe-channel", channel),
        "EOVERLOAD",
        "OverloadError",
    );
}

#[test]
fn what_is_held_already_needs_no_more_room() {
    let demo = Demo::shared();
    let mut client = full(&demo);
    for (command, held) in [
        (
            "mesh/subscribe-channel",
            json!({ "channel": "chat:many-0" }),
        ),
        ("mesh/join-room", json!({ "roomName": "room:many-1" })),
    ] {
        let reply = client.command(command, held);
        assert_eq!(reply["success"], true, "{command} of what is held: {reply}");
    }
}

#[test]
fn names_are_1_to_512_bytes_long() {
    let demo = Demo::shared();
    let mut client = RawClient::connect(&demo);
    assert_error(
        &client.command(&"x".repeat(512), json!({})),
        "ENOTFOUND",
        "CommandError",
    );
    assert_error(
        &client.command(&"é".repeat(256), json!({})),
        "ENOTFOUND",
        "CommandError",
    );
    for name in [
        String::new(),
        "x".repeat(513),
        "é".repeat(257),
        "x".repeat(100_000),
    ] {
        assert_invalid(&client.command(&name, json!({})));
    }
    let named = |prefix: &str, len: usize| format!("{prefix}{}", "x".repeat(len - prefix.len()));
    let channel = |command: &str, name: &str| {
        (
            command.to_owned(),
            json!({ "channel": name, "message": "m" }),
        )
    };
    let room = |command: &str, name: &str| {
        (
            command.to_owned(),
            json!({ "roomName": name, "command": "c", "payload": 1, "metadata": {} }),
        )
    };
    let channels = [
        "mesh/subscribe-channel",
        "mesh/get-channel-history",
        "mesh/unsubscribe-channel",
        "publish",
    ];
    let rooms = [
        "mesh/join-room",
        "mesh/get-room-metadata",
        "mesh/leave-room",
        "join-room",
        "set-room-metadata",
        "update-room-metadata",
        "get-room-metadata",
        "is-in-room",
        "room-members",
        "room-members-metadata",
        "broadcast-room",
        "broadcast-room-exclude",
        "clear-room",
        "leave-room",
    ];
    for (len, valid) in [(512, true), (513, false), (2_000, false)] {
        let all = channels
            .iter()
            .map(|command| channel(command, &named("chat:", len)));
        for (command, payload) in all.chain(
            rooms
                .iter()
                .map(|command| room(command, &named("room:", len))),
        ) {
            let reply = client.command(&command, payload);
            assert_eq!(
                reply["code"] == "EINVALID",
                !valid,
                "{command} with a name of {len} bytes: {reply}"
            );
        }
    }
    let all = channels.iter().map(|command| channel(command, ""));
    for (command, payload) in all.chain(rooms.iter().map(|command| room(command, ""))) {
        let reply = client.command(&command, payload);
        assert_eq!(
            reply["code"], "EINVALID",
            "{command} with an empty name: {reply}"
        );
    }
}

#[test]
fn what_other_instances_would_not_take_is_invalid_and_reaches_nobody() {
    let demo = Demo::start(&[]);
    let [mut one, mut two] = [RawClient::connect(&demo), RawClient::connect(&demo)];
    // The event's name is longer than the command's, so the longest command that is read makes too long an event.
    let frame = r#"{"id":1,"command":"broadcast","payload":""}"#;
    for (bytes, valid) in [(MIB - 100, true), (MIB, false)] {
        let text = "x".repeat(bytes - frame.len());
        one.send_text(&frame.replace(r#""""#, &format!("\"{text}\"")));
        let reply = one.reply(1);
        if valid {
            assert_eq!(reply, json!({ "sent": true }));
            assert_eq!(one.event("announcement"), text);
            assert_eq!(two.event("announcement"), text);
        } else {
            assert_invalid(&reply);
            one.assert_quiet();
            two.assert_quiet();
        }
    }
    assert_eq!(
        one.command("broadcast", json!("short")),
        json!({ "sent": true })
    );
    assert_eq!(two.event("announcement"), "short");
}

/// A client that is in a room, subscribed, and about to read nothing.
fn slow(demo: &Demo) -> RawClient {
    let mut slow = RawClient::connect(demo);
    assert_eq!(
        slow.command("mesh/join-room", json!({ "roomName": "room:slow" }))["success"],
        true
    );
    assert_eq!(
        slow.command("mesh/subscribe-channel", json!({ "channel": "chat:slow" }))["success"],
        true
    );
    slow
}

/// A frame that publishes so many bytes to the channel of the slow client, made once: the publisher is to be fast.
fn publication(message_bytes: usize) -> Vec<u8> {
    let message = json!({ "channel": "chat:slow", "message": "x".repeat(message_bytes) });
    let frame = json!({ "id": 7_000_000, "command": "publish", "payload": message });
    wire::text(&frame.to_string())
}

/// Publishes; the publisher never waits.
fn publish_to_slow(publisher: &mut RawClient, publication: &[u8]) {
    let begun = Instant::now();
    publisher.send_raw(publication);
    assert_eq!(publisher.reply(7_000_000), json!({ "success": true }));
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(1), "a publish took {took:?}");
}

#[test]
fn a_slow_client_is_closed_with_1013_and_the_publisher_never_waits() {
    for args in [&["--max-queue-bytes", "100000"][..], &[]] {
        let demo = Demo::start(args);
        let (mut publisher, mut slow) = (RawClient::connect(&demo), slow(&demo));
        // More than the queue and the buffers of two sockets hold, and less than 2 s of work.
        let message = publication(250_000);
        let begun = Instant::now();
        for _ in 0..60 {
            publish_to_slow(&mut publisher, &message);
        }
        // It wakes up within the 2 s that the close is given, unless this machine is too busy to tell.
        let code = slow.close_code_or_end();
        assert!(
            code == Some(1013) || begun.elapsed() > Duration::from_secs(2),
            "{code:?}"
        );
        drop(slow);
        until("the connection is cleaned up", || demo.connections() == 1);
        let members = publisher.command("room-members", json!({ "roomName": "room:slow" }));
        assert_eq!(members, json!([]));
    }
}

#[test]
fn clients_that_do_not_take_the_close_either_are_dropped() {
    let demo = Demo::start(&[]);
    let mut publisher = RawClient::connect(&demo);
    // Several, since whether the overflow meets a server that waits for the socket is luck.
    let all: Vec<RawClient> = (0..16).map(|_| slow(&demo)).collect();
    let message = publication(50_000);
    let (begun, mut overflown) = (Instant::now(), None);
    let room = json!({ "roomName": "room:slow" });
    for published in 1.. {
        publish_to_slow(&mut publisher, &message);
        if published == 300 {
            // More than sockets and queues hold: from here on at most the 2 s run, though more keeps coming.
            overflown = Some(Instant::now());
        }
        let members = publisher.command("room-members", room.clone());
        if members == json!([]) {
            break;
        }
        let late = overflown.is_some_and(|at: Instant| at.elapsed() > Duration::from_secs(4));
        let took = begun.elapsed();
        assert!(
            !late,
            "after {published} messages and {took:?} still there: {members}"
        );
    }
    let left = Instant::now();
    until("the sockets are dropped", || demo.connections() == 1);
    assert!(
        left.elapsed() < Duration::from_secs(4),
        "dropped {:?} later",
        left.elapsed()
    );
    drop(all);
}

#[test]
fn one_message_is_always_admitted_to_an_empty_queue() {
    let demo = Demo::start(&["--max-queue-bytes", "1000"]);
    let mut client = RawClient::connect(&demo);
    let long = "x".repeat(200_000);
    for _ in 0..5 {
        assert_eq!(client.command("reflect", json!(long)), json!(long));
    }
}

#[test]
fn connections_over_the_limit_get_503_at_the_upgrade() {
    let demo = Demo::start(&["--max-connections", "2"]);
    let first = RawClient::connect(&demo);
    let mut second = RawClient::connect(&demo);
    for _ in 0..3 {
        let refused = Upgrade::new(demo.addr()).send(demo.addr()).unwrap_err();
        assert_eq!(refused.status, 503, "{refused:?}");
    }
    assert_eq!(
        demo.get("/health").status,
        200,
        "a plain request is no connection"
    );
    assert_eq!(second.command("echo", "x"), "echo: x");
    first.vanish();
    let mut third = until_some("a place becomes free", || {
        Upgrade::new(demo.addr()).send(demo.addr()).ok()
    });
    third.assigned();
    assert_eq!(third.command("echo", "x"), "echo: x");
}

#[test]
fn a_client_that_went_gives_its_place_back_at_once() {
    let demo = Demo::start(&["--max-connections", "1"]);
    for command in [
        ("mesh/noop", json!({})),
        ("sleep", json!({ "ms": 60_000 })),
        ("never-responds", json!({})),
    ] {
        let mut client = RawClient::connect(&demo);
        client.send_command(command.0, command.1.clone());
        client.send_command("mesh/noop", json!({}));
        assert_eq!(client.reply(2), true);
        client.vanish();
        let gone = Instant::now();
        until("its place is free", || {
            Upgrade::new(demo.addr()).send(demo.addr()).is_ok()
        });
        let took = gone.elapsed();
        let (name, bound) = (command.0, Duration::from_secs(2));
        assert!(
            took < bound,
            "with {name} in flight its place was free after {took:?}"
        );
        until("the one who tried has gone", || demo.connections() == 0);
    }
}

#[test]
fn a_handshake_has_10_seconds() {
    let demo = Demo::shared();
    let request = Upgrade::new(demo.addr()).request;
    let starts = ["", "G", &request[..request.len() - 2]];
    let dripping = thread::spawn({
        let (addr, request) = (demo.addr(), request.clone());
        move || {
            let mut socket = TcpStream::connect(addr).unwrap();
            let begun = Instant::now();
            // A byte now and then earns no more time.
            for byte in request.bytes().take_while(|_| begun.elapsed() < PATIENCE) {
                if socket.write_all(&[byte]).is_err() {
                    break;
                }
                thread::sleep(Duration::from_millis(100));
            }
            begun.elapsed()
        }
    });
    let begun = Instant::now();
    let mut sockets: Vec<TcpStream> = starts
        .iter()
        .map(|_| TcpStream::connect(demo.addr()).unwrap())
        .collect();
    for (socket, start) in sockets.iter_mut().zip(starts) {
        socket.write_all(start.as_bytes()).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
    }
    for (socket, start) in sockets.iter_mut().zip(starts) {
        let mut answer = Vec::new();
        let ended = std::io::Read::read_to_end(socket, &mut answer);
        let took = begun.elapsed();
        assert!(
            !matches!(&ended, Err(error) if error.kind() == std::io::ErrorKind::WouldBlock),
            "a handshake that stops after {start:?} is still open after {took:?}"
        );
        assert!(
            took > Duration::from_secs(9),
            "closed after {took:?}, not 10 s"
        );
        assert!(!answer.starts_with(b"HTTP/1.1 101"));
    }
    let took = dripping.join().unwrap();
    assert!(
        took < PATIENCE,
        "a dripping handshake is still open after {took:?}"
    );
    assert_eq!(
        RawClient::connect(&demo).command("echo", "others go on"),
        "echo: others go on"
    );
}

#[test]
fn a_message_that_is_not_whole_holds_nobody_up() {
    let demo = Demo::shared();
    let (mut stalled, mut other) = (RawClient::connect(&demo), RawClient::connect(&demo));
    let whole = wire::text(&echo_of(100_000));
    stalled.send_raw(&whole[..50_000]);
    assert_eq!(other.command("echo", "x"), "echo: x");
    assert_eq!(
        stalled.receive_within(Duration::from_millis(50)),
        None::<Incoming>
    );
    stalled.send_raw(&whole[50_000..]);
    assert!(stalled.reply(1).is_string());
}
