//! A connection that floods, stalls, sends rubbish or never reads harms no other connection.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on fails"
)]

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use mesh_tests::wire::{self, BINARY, CONTINUATION, FIN, MASK, PING, TEXT};
use mesh_tests::{Demo, RawClient, Upgrade, until};
use serde_json::json;

/// How long the abuse goes on.
const DURATION: Duration = Duration::from_secs(5);
/// It goes on longer where the machine is slow: until the healthy clients have had so many rounds.
const ROUNDS_MIN: u32 = 20;

/// What an abuser knows: where to go, when to stop, and where to count what it did.
struct Abuse<'a> {
    addr: SocketAddr,
    stop: &'a AtomicBool,
    done: AtomicU64,
}

impl Abuse<'_> {
    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    /// A connection, as soon as the server grants one; its writes give up soon, so that the abuser can stop.
    fn connect(&self) -> Option<RawClient> {
        // The ports of this machine are no part of the contest.
        thread::sleep(Duration::from_millis(5));
        let client = Upgrade::new(self.addr).send(self.addr).ok()?;
        client
            .socket()
            .set_write_timeout(Some(Duration::from_millis(100)))
            .ok()?;
        Some(client)
    }

    /// Writes `bytes` over and over without reading, on a new connection whenever the server ends one.
    fn flood(&self, bytes: &[u8]) {
        while self.goes_on() {
            let Some(client) = self.connect() else {
                continue;
            };
            let mut socket = client.socket();
            // A write that times out has written something: go on, as rubbish, which is as well.
            while self.goes_on() && write(&mut socket, bytes) {
                self.done.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Does `what` on one new connection after the other.
    fn again(&self, what: impl Fn(&mut RawClient)) {
        while self.goes_on() {
            let Some(mut client) = self.connect() else {
                continue;
            };
            what(&mut client);
            self.done.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn pause(&self) {
        while self.goes_on() {
            thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Whether the socket is still of use.
fn write(socket: &mut TcpStream, bytes: &[u8]) -> bool {
    use std::io::ErrorKind::{TimedOut, WouldBlock};
    match socket.write_all(bytes) {
        Ok(()) => true,
        Err(error) => matches!(error.kind(), TimedOut | WouldBlock),
    }
}

fn command(name: &str, payload: &serde_json::Value) -> Vec<u8> {
    wire::text(&json!({ "id": 1, "command": name, "payload": payload }).to_string())
}

type Abuser = (&'static str, fn(&Abuse<'_>));

/// Twenty ways to be a bad neighbour.
const ABUSERS: [Abuser; 20] = [
    ("floods commands and never reads", |abuse| {
        abuse.flood(&command("echo", &json!("x")).repeat(100));
    }),
    ("asks for long replies and never reads", |abuse| {
        abuse.flood(&command("reflect", &json!("x".repeat(100_000))));
    }),
    ("floods commands that fail", |abuse| {
        abuse.flood(&command("no-such-command", &json!({})).repeat(100));
    }),
    ("floods commands that panic", |abuse| {
        abuse.flood(&command("panics", &json!({})));
    }),
    ("floods commands that never end", |abuse| {
        abuse.flood(&command("never-responds", &json!({})).repeat(100));
    }),
    ("floods sleepers with long payloads", |abuse| {
        abuse.flood(&command(
            "sleep",
            &json!({ "ms": 60_000, "pad": "x".repeat(500_000) }),
        ));
    }),
    ("floods pings and never reads", |abuse| {
        abuse.flood(&wire::frame(FIN | PING, &[b'p'; 125]).repeat(100));
    }),
    ("floods empty fragments", |abuse| {
        if let Some(mut client) = abuse.connect() {
            drop(client.try_send_raw(&wire::frame(TEXT, b"")));
            let mut socket = client.socket();
            while abuse.goes_on() && write(&mut socket, &wire::frame(CONTINUATION, b"").repeat(100))
            {
                abuse.done.fetch_add(1, Ordering::Relaxed);
            }
        }
        abuse.done.fetch_add(1, Ordering::Relaxed);
    }),
    ("floods rubbish text", |abuse| {
        abuse.flood(&wire::text("rubbish"));
    }),
    ("floods rubbish bytes", |abuse| {
        abuse.flood(&[0xff, 0x13, 0x37, 0x00].repeat(1_000));
    }),
    ("floods deep nesting", |abuse| {
        abuse.flood(&wire::text(&format!(
            "{{\"payload\":{}",
            "[".repeat(500_000)
        )));
    }),
    ("floods binary messages", |abuse| {
        abuse.flood(&wire::frame(FIN | BINARY, &[0; 10_000]));
    }),
    ("announces huge messages", |abuse| {
        abuse.again(|client| {
            drop(client.try_send_raw(&wire::header(FIN | TEXT, u64::MAX >> 1, Some(MASK))));
        });
    }),
    ("stalls within messages", |abuse| {
        let mut held = Vec::new();
        while abuse.goes_on() && held.len() < 50 {
            let Some(mut client) = abuse.connect() else {
                continue;
            };
            let message = command("echo", &json!("x".repeat(1_000_000)));
            drop(client.try_send_raw(&message[..message.len() - 1]));
            held.push(client);
            abuse.done.fetch_add(1, Ordering::Relaxed);
        }
        abuse.pause();
    }),
    ("never reads what a busy room says", |abuse| {
        abuse.again(|client| {
            drop(client.try_send_raw(&command(
                "mesh/join-room",
                &json!({ "roomName": "room:busy" }),
            )));
            drop(client.try_send_raw(&command(
                "mesh/subscribe-channel",
                &json!({ "channel": "chat:busy" }),
            )));
            for _ in 0..25 {
                if abuse.goes_on() {
                    thread::sleep(Duration::from_millis(20));
                }
            }
        });
    }),
    ("makes a busy room busy", |abuse| {
        let payload =
            json!({ "roomName": "room:busy", "command": "noise", "payload": "x".repeat(10_000) });
        abuse.flood(&command("broadcast-room", &payload));
    }),
    ("joins, subscribes and leaves without end", |abuse| {
        let turn: Vec<u8> = (0..50)
            .flat_map(|n| {
                let (room, channel) = (
                    json!({ "roomName": "room:busy" }),
                    json!({ "channel": format!("chat:{n}") }),
                );
                [
                    command("mesh/join-room", &room),
                    command("mesh/subscribe-channel", &channel),
                    command("mesh/unsubscribe-channel", &channel),
                    command("mesh/leave-room", &room),
                ]
                .concat()
            })
            .collect();
        abuse.flood(&turn);
    }),
    ("connects and vanishes", |abuse| {
        while abuse.goes_on() {
            if let Some(client) = abuse.connect() {
                client.vanish();
            }
            abuse.done.fetch_add(1, Ordering::Relaxed);
        }
    }),
    ("stalls in handshakes", |abuse| {
        let request = Upgrade::new(abuse.addr).request;
        let mut held = Vec::new();
        while abuse.goes_on() && held.len() < 200 {
            let Ok(mut socket) = TcpStream::connect(abuse.addr) else {
                continue;
            };
            drop(socket.write_all(&request.as_bytes()[..held.len() % request.len()]));
            held.push(socket);
            abuse.done.fetch_add(1, Ordering::Relaxed);
        }
        abuse.pause();
    }),
    ("writes byte by byte", |abuse| {
        abuse.again(|client| {
            let mut socket = client.socket();
            for byte in command("echo", &json!("x")) {
                if !write(&mut socket, &[byte]) {
                    break;
                }
            }
        });
    }),
];

#[test]
fn twenty_abusers_harm_no_healthy_client() {
    let demo = Demo::start(&[]);
    // On a server of its own: what the machine takes for a round trip, loaded as it is.
    let elsewhere = Demo::start(&[]);
    let mut undisturbed = RawClient::connect(&elsewhere);
    undisturbed.auto_pong = true;
    let mut listener = RawClient::connect(&demo);
    let mut client = RawClient::connect(&demo);
    for healthy in [&mut listener, &mut client] {
        healthy.auto_pong = true;
        assert_eq!(
            healthy.command("mesh/join-room", json!({ "roomName": "room:healthy" }))["success"],
            true
        );
    }
    assert_eq!(
        listener.command(
            "mesh/subscribe-channel",
            json!({ "channel": "chat:healthy" })
        )["success"],
        true
    );

    let stop = AtomicBool::new(false);
    let abuses: Vec<Abuse<'_>> = ABUSERS
        .iter()
        .map(|_| Abuse {
            addr: demo.addr(),
            stop: &stop,
            done: AtomicU64::new(0),
        })
        .collect();
    let (mut took, mut control, mut rounds, mut resident) = (Vec::new(), Vec::new(), 0_u32, 0);
    thread::scope(|scope| {
        for ((_, abuser), abuse) in ABUSERS.iter().zip(&abuses) {
            scope.spawn(move || abuser(abuse));
        }
        let healthy = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let begun = Instant::now();
            while begun.elapsed() < DURATION || rounds < ROUNDS_MIN {
                let asked = Instant::now();
                assert_eq!(undisturbed.command("reflect", rounds), rounds);
                control.push(asked.elapsed());
                let asked = Instant::now();
                assert_eq!(client.command("reflect", rounds), rounds);
                took.push(asked.elapsed());
                let asked = Instant::now();
                client.succeed(
                    "publish",
                    json!({ "channel": "chat:healthy", "message": rounds.to_string() }),
                );
                let event =
                    json!({ "roomName": "room:healthy", "command": "round", "payload": rounds });
                assert_eq!(
                    client.command("broadcast-room", event),
                    json!({ "sent": true })
                );
                // Nothing is lost and nothing overtakes, for whoever reads.
                let message = listener.event("mesh/subscription-message");
                assert_eq!(
                    message,
                    json!({ "channel": "chat:healthy", "message": rounds.to_string() })
                );
                assert_eq!(listener.event("round"), rounds);
                assert_eq!(client.event("round"), rounds);
                took.push(asked.elapsed());
                rounds += 1;
                if rounds.is_multiple_of(16) {
                    resident = resident.max(demo.resident_bytes());
                }
            }
            // A newcomer is served too.
            assert_eq!(RawClient::connect(&demo).command("echo", "x"), "echo: x");
        }));
        stop.store(true, Ordering::Relaxed);
        healthy.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });

    for ((name, _), abuse) in ABUSERS.iter().zip(&abuses) {
        assert!(
            abuse.done.load(Ordering::Relaxed) > 0,
            "the abuser that {name} never came to it"
        );
    }
    took.sort();
    control.sort();
    eprintln!(
        "{rounds} rounds; median {:?}, longest {:?}; elsewhere {:?}, {:?}; {} MiB",
        took[took.len() / 2],
        took[took.len() - 1],
        control[control.len() / 2],
        control[control.len() - 1],
        resident >> 20
    );
    let p99 = |sorted: &[Duration]| sorted[sorted.len() * 99 / 100];
    let (p99, elsewhere) = (p99(&took), p99(&control));
    assert!(
        p99 < Duration::from_secs(2) + 20 * elsewhere,
        "p99 of {} round trips: {p99:?}, elsewhere {elsewhere:?}",
        took.len()
    );
    assert!(resident < 400 << 20, "{} MiB resident", resident >> 20);
    until("the abusers are forgotten", || demo.connections() == 2);
    assert_eq!(
        client.command("room-members", json!({ "roomName": "room:busy" })),
        json!([])
    );
    listener.assert_quiet();
    client.assert_quiet();
}

#[test]
fn memory_shrinks_again_after_long_messages() {
    let demo = Demo::start(&[]);
    let mut clients: Vec<RawClient> = (0..50).map(|_| RawClient::connect(&demo)).collect();
    let before = demo.resident_bytes();
    let long = "x".repeat(1_000_000);
    for client in &mut clients {
        assert_eq!(client.command("reflect", long.as_str()), long.as_str());
    }
    // 50 connections that kept a buffer of a megabyte would hold 50 MiB, and twice that both ways.
    until("the buffers are given back", || {
        for client in &mut clients {
            assert_eq!(client.command("echo", "x"), "echo: x");
        }
        demo.resident_bytes() < before + (25 << 20)
    });
}

#[cfg(target_os = "linux")]
#[test]
fn without_file_descriptors_whoever_speaks_is_served() {
    const FILES: u32 = 48;
    let demo = Demo::start(&[]);
    let mut old = RawClient::connect(&demo);
    demo.limit_files(FILES);
    // More than there are descriptors for; the kernel holds the rest of them.
    let silent: Vec<_> = (0..2 * FILES)
        .map(|_| TcpStream::connect(demo.addr()).unwrap())
        .collect();
    assert_eq!(old.command("echo", "x"), "echo: x");
    let mut new = RawClient::connect(&demo);
    assert_eq!(new.command("echo", "x"), "echo: x");
    let metrics = demo.get("/metrics").body;
    let counted = |name: &str| {
        let line = metrics.lines().find_map(|line| line.strip_prefix(name));
        let number: u64 = line.unwrap().trim().parse().unwrap();
        assert!(number > 0, "{name}: {metrics}");
    };
    counted("mesh_accept_errors_total ");
    counted("mesh_handshakes_evicted_total ");
    assert_eq!(old.command("echo", "x"), "echo: x");
    drop(silent);
}
