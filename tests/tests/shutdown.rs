//! `demo-server.md`: SIGTERM and SIGINT close every connection with 1001 and end with status 0 within 5 s, under load.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on fails"
)]

use std::collections::BTreeSet;
use std::net::TcpStream;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use mesh_tests::{Demo, RawClient};
use serde_json::json;

/// How long the server may take to end.
const END: Duration = Duration::from_secs(5);

/// Ends a server that has `clients` clients with commands in flight, and checks how each of them sees it.
fn end_under_load(signal: &str, clients: usize) {
    let demo = Demo::start(&[]);
    let addr = demo.addr();
    let line = format!("listening on ws://{addr}\n");
    let (loaded, told) = (Barrier::new(clients + 1), Barrier::new(clients + 1));
    let ended = thread::scope(|scope| {
        let (demo, loaded, told) = (&demo, &loaded, &told);
        let handles: Vec<_> = (0..clients)
            .map(|n| {
                scope.spawn(move || {
                    let mut client = RawClient::connect(demo);
                    assert_eq!(client.command("mesh/join-room", json!({ "roomName": "room:load" }))["success"], true);
                    let mut asked = BTreeSet::new();
                    for round in 0..20 {
                        asked.insert(client.send_command("sleep", json!({ "ms": (n * 20 + round) % 300 })));
                        asked.insert(client.send_command("echo", "x"));
                    }
                    loaded.wait();
                    // Commands go on arriving while the signal does.
                    let event = json!({ "roomName": "room:load", "command": "load", "payload": n });
                    for _ in 0..20 {
                        asked.insert(client.send_command("broadcast-room", event.clone()));
                    }
                    told.wait();
                    assert_eq!(client.close_code(), Some(1001), "client {n}");
                    drop(client.try_send_raw(&mesh_tests::wire::close(1001, "")));
                    client.assert_ended();
                    let mut replied = BTreeSet::new();
                    for frame in client.set_aside() {
                        if let Some(id) = frame["id"].as_u64() {
                            let id = id as u32;
                            assert!(asked.contains(&id), "a reply to nothing: {frame}");
                            assert!(replied.insert(id), "a second reply: {frame}");
                            let reply = &frame["payload"];
                            let kept = reply["slept"].is_u64() || reply == "echo: x" || reply["sent"] == true;
                            assert!(kept || reply["error"].is_string(), "{frame}");
                        }
                    }
                    replied.len()
                })
            })
            .collect();
        loaded.wait();
        let signalled = Instant::now();
        demo.signal(signal);
        told.wait();
        let replies: usize = handles
            .into_iter()
            .map(|handle| handle.join().unwrap())
            .sum();
        assert!(replies > 0, "nobody got a reply");
        signalled
    });
    let outcome = demo.end(ended);
    assert_eq!(outcome.status.code(), Some(0), "{outcome:?}");
    assert!(outcome.took < END, "{:?}", outcome.took);
    assert_eq!(outcome.stdout, line);
    assert!(TcpStream::connect(addr).is_err(), "someone still listens");
}

#[test]
fn sigterm_under_load_closes_everyone_with_1001() {
    end_under_load("TERM", 20);
}

#[test]
fn sigint_under_load_closes_everyone_with_1001() {
    end_under_load("INT", 20);
}

#[test]
fn a_server_without_connections_ends_at_once() {
    let demo = Demo::start(&[]);
    let signalled = Instant::now();
    demo.signal("TERM");
    let outcome = demo.end(signalled);
    assert_eq!(outcome.status.code(), Some(0), "{outcome:?}");
    assert!(outcome.took < Duration::from_secs(2), "{:?}", outcome.took);
}

#[test]
fn short_commands_in_flight_are_answered_before_the_close() {
    let demo = Demo::start(&[]);
    let mut client = RawClient::connect(&demo);
    let sleep = client.send_command("sleep", json!({ "ms": 300 }));
    assert_eq!(client.command("echo", "x"), "echo: x");
    let signalled = Instant::now();
    demo.signal("TERM");
    assert_eq!(client.close_code(), Some(1001));
    let replies = client.set_aside();
    assert_eq!(
        replies,
        [json!({ "id": sleep, "command": "sleep", "payload": { "slept": 300 } })]
    );
    drop(client);
    assert_eq!(demo.end(signalled).status.code(), Some(0));
}

#[test]
fn commands_that_never_end_and_peers_that_never_answer_hold_nothing_up() {
    let demo = Demo::start(&[]);
    let mut endless = RawClient::connect(&demo);
    endless.send_command("never-responds", json!({}));
    endless.send_command("sleep", json!({ "ms": 60_000 }));
    // Does not read, and has much to read.
    let mut deaf = RawClient::connect(&demo);
    for _ in 0..4 {
        deaf.send_command("reflect", "x".repeat(900_000));
    }
    // Half a handshake; a plain connection that stays open.
    let mut half = TcpStream::connect(demo.addr()).unwrap();
    std::io::Write::write_all(&mut half, b"GET / HTTP/1.1\r\nHost: x\r\n").unwrap();
    let idle = TcpStream::connect(demo.addr()).unwrap();
    assert_eq!(RawClient::connect(&demo).command("echo", "x"), "echo: x");
    let signalled = Instant::now();
    demo.signal("TERM");
    assert_eq!(endless.close_code(), Some(1001));
    // It does not answer the close either.
    let outcome = demo.end(signalled);
    assert_eq!(outcome.status.code(), Some(0), "{outcome:?}");
    assert!(outcome.took < END, "{:?}", outcome.took);
    drop((half, idle, deaf));
}

#[test]
fn a_second_signal_changes_nothing_for_the_worse() {
    let demo = Demo::start(&[]);
    let mut client = RawClient::connect(&demo);
    client.send_command("never-responds", json!({}));
    assert_eq!(client.command("echo", "x"), "echo: x");
    let signalled = Instant::now();
    demo.signal("TERM");
    demo.signal("TERM");
    client.assert_closed(1001);
    let outcome = demo.end(signalled);
    assert!(outcome.took < END, "{:?}", outcome.took);
    assert_eq!(outcome.status.code(), Some(0), "{outcome:?}");
}
