//! The Rust client, as a user has it, against a server that plays a script and breaks what rules it likes.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on fails"
)]

mod common;

use std::net::TcpListener;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use mesh_tests::prelude::*;
use mesh_tests::runtime::{self, Task, block_on, build_client, sleep, spawn, timeout, unblock};
use mesh_tests::wire::{self, BINARY, FIN, PING, PONG, TEXT};
use mesh_tests::{Incoming, PATIENCE, Peer, Scripted};
use serde_json::{Value, json};

use crate::common::{A_WHILE, SOON, connect, disconnected, patiently, reconnected, status, until};

/// A client that wastes no time between its attempts.
fn builder(server: &Scripted) -> ClientBuilder {
    MeshClient::builder(&server.url()).reconnect_interval(SOON)
}

async fn echo(client: &MeshClient, payload: &str) -> Result<String, ClientError> {
    patiently("a reply", client.command("echo", payload)).await
}

/// Replies to everything, until the client goes, after a first connection that is treated as `first` likes.
fn after(first: impl Fn(Peer) + Send + Sync + 'static) -> Scripted {
    Scripted::start(move |number, attempt| match number {
        0 => first(attempt.accept()),
        _ => attempt.accept().serve(),
    })
}

// Replies.

#[test]
fn a_late_reply_answers_no_other_call() {
    block_on(async {
        let server = Scripted::start(|_, attempt| {
            let mut peer = attempt.accept();
            let late = peer.request();
            let next = peer.request();
            assert_ne!(late.id, next.id, "an id whose reply may still come");
            peer.reply(&late, "late");
            peer.reply(&next, "in time");
            peer.serve();
        });
        let client = connect(builder(&server)).await;
        let allowed = Duration::from_millis(50);
        let slow = client.command::<_, String>("slow", ()).timeout(allowed);
        let slow = patiently("a timeout", slow).await;
        let (after, sent) = (allowed, true);
        assert_eq!(slow, Err(ClientError::Timeout { after, sent }));
        // The same name, so that only the id tells the replies apart.
        let next: String = patiently("a reply", client.command("slow", ()))
            .await
            .unwrap();
        assert_eq!(next, "in time");
        assert_eq!(client.stats().replies_late, 1);
        assert_eq!(echo(&client, "again").await.unwrap(), "again");
    });
}

#[test]
fn an_id_rests_until_its_late_reply_came() {
    block_on(async {
        // More commands than there are ids: the one that timed out is the only one left out.
        const COMMANDS: u64 = 70_000;
        let server = Scripted::start(|_, attempt| {
            let mut peer = attempt.accept();
            let late = peer.request();
            for _ in 0..COMMANDS {
                let request = peer.request();
                assert_ne!(request.id, late.id);
                peer.reply(&request, Value::Null);
            }
            peer.reply(&late, "late");
            let end = peer.request();
            peer.reply(&end, "the end");
            peer.serve();
        });
        let client = connect(builder(&server)).await;
        let slow = client
            .command::<_, Value>("x", ())
            .timeout(Duration::from_millis(20));
        let slow = patiently("a timeout", slow).await;
        assert_eq!(slow.unwrap_err().code(), Some("ETIMEOUT"));
        let mut left = COMMANDS;
        while left > 0 {
            let batch: Vec<_> = (0..left.min(500))
                .map(|_| client.command::<_, Value>("x", ()).into_future())
                .collect();
            left -= batch.len() as u64;
            for call in batch {
                patiently("a reply", call).await.unwrap();
            }
        }
        let end: String = patiently("a reply", client.command("x", ())).await.unwrap();
        assert_eq!(end, "the end");
        assert_eq!(client.stats().replies_late, 1);
    });
}

#[test]
fn unknown_and_duplicate_replies_answer_nothing() {
    block_on(async {
        let server = Scripted::start(|_, attempt| {
            let mut peer = attempt.accept();
            peer.send_text(r#"{"id":0,"command":"echo","payload":"before any was asked"}"#);
            let request = peer.request();
            for id in [request.id + 1, request.id + 65_536, 4_294_967_295] {
                let frame = json!({ "id": id, "command": "echo", "payload": "unknown" });
                peer.send_text(&frame.to_string());
            }
            let frame = json!({ "id": request.id, "command": "other", "payload": "another name" });
            peer.send_text(&frame.to_string());
            peer.reply(&request, "mine");
            peer.reply(&request, "twice");
            peer.reply(&request, "thrice");
            peer.serve();
        });
        let client = connect(builder(&server)).await;
        // The one that came before any was asked is to be read first, or it would be an answer.
        until("the first is ignored", || {
            client.stats().replies_unknown == 1
        })
        .await;
        assert_eq!(echo(&client, "x").await.unwrap(), "mine");
        assert_eq!(echo(&client, "next").await.unwrap(), "next");
        assert_eq!(client.stats().replies_unknown, 7);
    });
}

#[test]
fn replies_find_their_calls_in_any_order() {
    block_on(async {
        let server = Scripted::start(|_, attempt| {
            let mut peer = attempt.accept();
            let requests: Vec<_> = (0..10).map(|_| peer.request()).collect();
            for request in requests.iter().rev() {
                peer.reply(request, request.payload.clone());
            }
            peer.serve();
        });
        let client = connect(builder(&server)).await;
        let calls: Vec<_> = (0..10)
            .map(|n| client.command::<_, u32>("x", n).into_future())
            .collect();
        for (n, call) in (0..).zip(calls) {
            assert_eq!(patiently("a reply", call).await.unwrap(), n);
        }
    });
}

#[test]
fn replies_are_typed_and_errors_are_errors() {
    block_on(async {
        let server = Scripted::start(|_, attempt| {
            let mut peer = attempt.accept();
            for payload in [
                json!({ "n": 1 }),
                json!("not a number"),
                json!({ "error": "No", "code": "ENO", "name": "NoError" }),
                json!({ "error": "No", "code": "ENO", "name": "NoError" }),
                json!({ "error": "No", "code": "ENO", "name": "NoError", "more": 1 }),
            ] {
                let request = peer.request();
                peer.reply(&request, payload);
            }
            peer.serve();
        });
        #[derive(Debug, serde::Deserialize, PartialEq)]
        struct Counted {
            n: u32,
        }
        let client = connect(builder(&server)).await;
        let typed = client.command::<_, Counted>("x", ()).await;
        assert_eq!(typed, Ok(Counted { n: 1 }));
        let unfit = client.command::<_, Counted>("x", ()).await;
        assert!(matches!(unfit, Err(ClientError::Decode(_))), "{unfit:?}");
        let failed = client.command::<_, Counted>("x", ()).await;
        let Err(ClientError::Command(error)) = failed else {
            panic!("not the server's error: {failed:?}");
        };
        assert_eq!(
            (error.message(), error.code(), error.name()),
            ("No", "ENO", "NoError")
        );
        let raw = client.command_raw("x", ()).await.unwrap();
        let raw: Value = serde_json::from_str(&raw).unwrap();
        assert_eq!(raw, mesh_tests::error("No", "ENO", "NoError"));
        // With another key it is a value like any other.
        let value: Value = client.command("x", ()).await.unwrap();
        assert_eq!(value["more"], 1);
    });
}

// Timeouts.

#[test]
fn a_command_without_a_reply_ends_at_its_own_deadline() {
    block_on(async {
        let server = Scripted::start(|_, attempt| {
            let mut peer = attempt.accept();
            peer.end();
        });
        let client = connect(builder(&server).command_timeout(Duration::from_millis(200))).await;
        let started = Instant::now();
        let by_default = client.command::<_, Value>("x", ()).into_future();
        let allowed = Duration::from_millis(50);
        let sooner = client.command::<_, Value>("x", ()).timeout(allowed);
        let (after, sent) = (allowed, true);
        assert_eq!(
            patiently("a timeout", sooner).await,
            Err(ClientError::Timeout { after, sent })
        );
        assert!(started.elapsed() >= allowed);
        let error = patiently("a timeout", by_default).await.unwrap_err();
        assert!(started.elapsed() >= Duration::from_millis(200));
        assert_eq!(error.code(), Some("ETIMEOUT"));
        assert_eq!(error.to_string(), "Command timed out after 200ms.");
    });
}

#[test]
fn a_blocking_command_ends_in_a_timeout() {
    let server = Scripted::start(|_, attempt| {
        let mut peer = attempt.accept();
        peer.end();
    });
    let client = runtime::connect_blocking(builder(&server)).unwrap();
    let allowed = Duration::from_millis(100);
    let started = Instant::now();
    let result = client.command_blocking::<_, Value>("x", (), allowed);
    assert!(started.elapsed() >= allowed);
    assert_eq!(result.unwrap_err().code(), Some("ETIMEOUT"));
    assert!(started.elapsed() < PATIENCE);
}

#[test]
fn a_blocking_command_ends_even_if_the_clients_runtime_stands_still() {
    let server = Scripted::start(|_, attempt| {
        let mut peer = attempt.accept();
        let request = peer.request();
        peer.event("news", 1);
        peer.reply(&request, "x");
        peer.serve();
    });
    let client = runtime::connect_blocking(builder(&server)).unwrap();
    let (send, stands_still) = mpsc::channel();
    let (go_on, wait) = mpsc::channel::<()>();
    let wait = Mutex::new(wait);
    // It blocks the thread that the client runs on, as no callback may.
    let _guard = client.on_with("news", move |_: Value| {
        send.send(()).unwrap();
        let _ = wait.lock().unwrap().recv();
    });
    drop(client.command::<_, Value>("x", ()).into_future());
    stands_still.recv_timeout(PATIENCE).unwrap();
    let result = client.command_blocking::<_, Value>("x", (), Duration::from_millis(100));
    assert_eq!(result.unwrap_err().code(), Some("ETIMEOUT"));
    drop(go_on);
}

#[test]
fn a_blocking_command_in_async_code_or_a_callback_fails_at_once() {
    block_on(async {
        let server = Scripted::start(|_, attempt| {
            let mut peer = attempt.accept();
            let request = peer.request();
            peer.event("news", 1);
            peer.reply(&request, "x");
            peer.serve();
        });
        let is_usage = |result: Result<Value, ClientError>| match result {
            Err(ClientError::Usage(advice)) => advice.contains("await"),
            _ => false,
        };
        // On a thread of its own the callback is not inside this test's runtime.
        let client = connect(builder(&server).dedicated_thread()).await;
        let started = Instant::now();
        let theirs = client.clone();
        let in_a_task = async move { is_usage(theirs.command_blocking("x", (), PATIENCE)) };
        assert!(spawn(in_a_task).await);
        let (send, received) = mpsc::sync_channel(1);
        let theirs = client.clone();
        let _guard = client.on_with("news", move |_: Value| {
            send.send(is_usage(theirs.command_blocking("x", (), PATIENCE)))
                .unwrap();
        });
        assert_eq!(echo(&client, "x").await.unwrap(), "x");
        let in_callback = unblock(move || received.recv_timeout(PATIENCE));
        assert!(in_callback.await.unwrap());
        assert!(started.elapsed() < PATIENCE, "it blocked");
    });
}

// Loss.

#[test]
fn a_connection_cut_in_a_reply_ends_what_is_pending_at_once() {
    block_on(async {
        let server = after(|mut peer| {
            let requests: Vec<_> = (0..10).map(|_| peer.request()).collect();
            let frame =
                json!({ "id": requests[0].id, "command": "x", "payload": "mine" }).to_string();
            let bytes = [
                wire::header(FIN | TEXT, frame.len() as u64, None),
                frame.into_bytes(),
            ]
            .concat();
            peer.send_raw(&bytes[..bytes.len() - 1]);
            peer.cut();
        });
        let client = connect(builder(&server)).await;
        let mut statuses = client.on_status();
        let started = Instant::now();
        let calls: Vec<_> = (0..10)
            .map(|_| client.command::<_, Value>("x", ()).into_future())
            .collect();
        for call in calls {
            let result = patiently("the end", call).await;
            assert_eq!(result, Err(ClientError::Disconnected));
        }
        assert!(started.elapsed() < PATIENCE);
        assert_eq!(disconnected(&mut statuses).await, None);
        reconnected(&mut statuses).await;
        assert_eq!(echo(&client, "again").await.unwrap(), "again");
    });
}

#[test]
fn only_what_is_idempotent_is_sent_again() {
    block_on(async {
        let server = Scripted::start(|number, attempt| {
            let mut peer = attempt.accept();
            if number == 0 {
                let (once, twice) = (peer.request(), peer.request());
                assert_eq!((&*once.command, &*twice.command), ("once", "twice"));
                peer.cut();
            } else {
                let request = peer.request();
                assert_eq!(
                    (&*request.command, &request.payload),
                    ("twice", &json!("x"))
                );
                peer.reply(&request, "done");
                peer.serve();
            }
        });
        let client = connect(builder(&server)).await;
        let once = client.command::<_, String>("once", "x").into_future();
        let twice = client
            .command::<_, String>("twice", "x")
            .idempotent()
            .into_future();
        assert_eq!(
            patiently("the end", once).await,
            Err(ClientError::Disconnected)
        );
        assert_eq!(patiently("a reply", twice).await.unwrap(), "done");
    });
}

#[test]
fn a_silent_server_is_dropped_and_connected_to_again() {
    block_on(async {
        let timeout = Duration::from_millis(200);
        let server = Scripted::start(move |number, attempt| {
            let mut peer = attempt.accept();
            if number > 0 {
                return peer.serve();
            }
            let pinged = Instant::now();
            peer.event("ping", json!({}));
            assert_eq!(peer.frame(), json!({ "command": "pong", "payload": {} }));
            // It is still there, but that is not what counts.
            peer.event("latency:request", json!({}));
            assert_eq!(peer.frame()["command"], "latency:response");
            assert_eq!(peer.end(), Some(1001));
            assert!(
                pinged.elapsed() >= timeout * 2,
                "one missed ping is forgiven"
            );
        });
        let client = connect(builder(&server).ping_timeout(timeout).max_missed_pings(1)).await;
        let mut statuses = client.on_status();
        assert_eq!(disconnected(&mut statuses).await, None);
        reconnected(&mut statuses).await;
        // The second connection has no pings either, so it may be over in the middle of this.
        let again = client.command::<_, String>("echo", "again").idempotent();
        let again = patiently("a reply", again).await.unwrap();
        assert_eq!(again, "again");
    });
}

#[test]
fn a_server_that_goes_away_is_connected_to_again() {
    block_on(async {
        let server = after(|peer| assert_eq!(peer.close(1001), Some(1001)));
        let client = build_client(builder(&server)).unwrap();
        let mut statuses = client.on_status();
        patiently("a connection", client.open()).await.unwrap();
        assert_eq!(disconnected(&mut statuses).await, Some(1001));
        reconnected(&mut statuses).await;
        assert_eq!(echo(&client, "again").await.unwrap(), "again");
    });
}

#[test]
fn a_client_that_shall_not_reconnect_does_not() {
    block_on(async {
        let server = after(|mut peer| {
            peer.request();
            peer.cut();
        });
        let client = connect(builder(&server).should_reconnect(false)).await;
        assert_eq!(echo(&client, "x").await, Err(ClientError::Disconnected));
        assert_eq!(echo(&client, "x").await, Err(ClientError::Closed));
        assert_eq!(server.attempts().len(), 1);
    });
}

#[test]
fn a_closed_client_says_goodbye_and_may_open_again() {
    block_on(async {
        let (send, codes) = mpsc::channel();
        let server = Scripted::start(move |number, attempt| {
            let mut peer = attempt.accept();
            if number > 0 {
                return peer.serve();
            }
            let request = peer.request();
            assert_eq!(request.command, "never");
            let code = peer.end();
            peer.send_frame(FIN | wire::CLOSE, &1000_u16.to_be_bytes());
            send.send(code).unwrap();
        });
        let client = connect(builder(&server)).await;
        let never = client.command::<_, Value>("never", ()).into_future();
        patiently("the end", client.close()).await;
        assert_eq!(
            patiently("the end", never).await,
            Err(ClientError::Disconnected)
        );
        assert_eq!(codes.recv_timeout(PATIENCE).unwrap(), Some(1000));
        assert_eq!(echo(&client, "x").await, Err(ClientError::Closed));
        patiently("a connection", client.open()).await.unwrap();
        assert_eq!(echo(&client, "again").await.unwrap(), "again");
    });
}

// Connecting.

#[test]
fn a_refusal_is_final_and_says_why() {
    block_on(async {
        for status in [401, 403] {
            let server = Scripted::start(move |_, attempt| attempt.refuse(status, "not you"));
            let client = build_client(builder(&server)).unwrap();
            let mut statuses = client.on_status();
            let waiting = client.command::<_, Value>("x", ()).into_future();
            let refused = patiently("an answer", client.open()).await;
            let body = "not you".to_owned();
            let expected = ConnectError::Refused {
                status,
                body: body.clone(),
            };
            assert_eq!(refused, Err(expected));
            assert_eq!(
                patiently("the end", waiting).await,
                Err(ClientError::Closed)
            );
            assert_eq!(
                statuses.next().await,
                Some(Status::Connecting { attempt: 1 })
            );
            assert_eq!(
                statuses.next().await,
                Some(Status::Refused { status, body })
            );
            let more = timeout(A_WHILE, statuses.next()).await;
            assert!(more.is_err(), "it goes on with {more:?}");
            assert_eq!(server.attempts().len(), 1);
        }
    });
}

#[test]
fn a_refusal_is_final_after_a_connection_too() {
    block_on(async {
        let server = Scripted::start(|number, attempt| match number {
            0 => attempt.accept().cut(),
            _ => attempt.refuse(401, "not any more"),
        });
        let client = build_client(builder(&server)).unwrap();
        let mut statuses = client.on_status();
        let _ = patiently("an outcome", client.open()).await;
        status(&mut statuses, |status| {
            let refused = Status::Refused {
                status: 401,
                body: "not any more".to_owned(),
            };
            (status == refused).then_some(())
        })
        .await;
        let more = timeout(A_WHILE, statuses.next()).await;
        assert!(more.is_err(), "it goes on with {more:?}");
        assert_eq!(server.attempts().len(), 2);
        assert_eq!(echo(&client, "x").await, Err(ClientError::Closed));
    });
}

/// Asserts that the attempts came at least so long after one another.
#[track_caller]
fn assert_waits(server: &Scripted, waits: &[u64]) {
    let attempts = server.attempts();
    assert_eq!(attempts.len(), waits.len() + 1);
    for (pair, wait) in attempts.windows(2).zip(waits) {
        let waited = pair[1] - pair[0];
        assert!(
            waited >= Duration::from_millis(*wait),
            "{waited:?}, not {wait} ms"
        );
    }
}

#[test]
fn an_overloaded_server_is_given_time() {
    block_on(async {
        let server = Scripted::start(|number, attempt| match number {
            0..3 => attempt.refuse(503, "full"),
            _ => attempt.accept().serve(),
        });
        let backoff = (Duration::from_millis(100), PATIENCE);
        let builder = MeshClient::builder(&server.url()).backoff(backoff.0, backoff.1);
        let client = connect(builder).await;
        assert_eq!(echo(&client, "x").await.unwrap(), "x");
        // At least half of 100, 200, 400.
        assert_waits(&server, &[50, 100, 200]);
    });
}

#[test]
fn a_server_that_closes_with_try_again_later_is_given_time() {
    block_on(async {
        let server = Scripted::start(|number, attempt| match number {
            0..2 => assert_eq!(attempt.accept().close(1013), Some(1013)),
            _ => attempt.accept().serve(),
        });
        let builder =
            MeshClient::builder(&server.url()).backoff(Duration::from_millis(200), PATIENCE);
        let client = build_client(builder).unwrap();
        let mut statuses = client.on_status();
        let _ = patiently("an outcome", client.open()).await;
        for longest in [200, 400] {
            assert_eq!(disconnected(&mut statuses).await, Some(1013));
            let delay = status(&mut statuses, |status| match status {
                Status::Waiting { delay, .. } => Some(delay.as_millis()),
                _ => None,
            })
            .await;
            assert!((longest / 2..=longest).contains(&delay), "{delay} ms");
        }
        reconnected(&mut statuses).await;
        assert_eq!(echo(&client, "x").await.unwrap(), "x");
        assert_waits(&server, &[100, 200]);
    });
}

/// The next wait: how long, and why.
async fn waiting(statuses: &mut Notices<Status>) -> (Duration, ConnectError) {
    status(statuses, |status| match status {
        Status::Waiting { delay, error } => Some((delay, error)),
        _ => None,
    })
    .await
}

/// Opens a client in the background.
fn open(client: &MeshClient) -> Task<Result<(), ConnectError>> {
    let client = client.clone();
    spawn(async move { client.open().await })
}

/// Accepts a client that did not ask for it.
const ANOTHER_KEY: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\
    Connection: Upgrade\r\nSec-WebSocket-Accept: bm9uc2Vuc2U=\r\n\r\n";

#[test]
fn each_failed_attempt_says_why_until_one_succeeds() {
    block_on(async {
        let server = Scripted::start(|number, attempt| match number {
            0 => attempt.refuse(503, "full"),
            1 => attempt.answer(b"\x15\x03\x01\x00\x02\x02\x16 this is no HTTP\r\n\r\n"),
            2 => attempt.answer(ANOTHER_KEY),
            3 => attempt.answer(b""),
            4 => attempt.ignore(),
            _ => {
                let mut peer = attempt.accept();
                let request = peer.request();
                peer.reply(&request, "up");
                assert_eq!(peer.close(1001), Some(1001));
            }
        });
        let allowed = Duration::from_millis(500);
        let client = build_client(builder(&server).connect_timeout(allowed)).unwrap();
        let mut statuses = client.on_status();
        assert_eq!(client.last_error(), None);
        let opening = open(&client);

        let (delay, error) = waiting(&mut statuses).await;
        assert_eq!(delay, SOON);
        let (status, body) = (503, "full".to_owned());
        assert_eq!(error, ConnectError::Refused { status, body });
        assert_eq!(error.to_string(), "the server refused with 503: full");
        for nonsense in ["no HTTP", "a wrong key", "nothing"] {
            let (_, error) = waiting(&mut statuses).await;
            let is_handshake = matches!(error, ConnectError::Handshake(_));
            assert!(is_handshake, "{nonsense} is {error:?}");
        }
        let (_, error) = waiting(&mut statuses).await;
        assert_eq!(error, ConnectError::Timeout(allowed));

        patiently("a connection", opening).await.unwrap();
        assert_eq!(client.last_error(), None);
        assert_eq!(echo(&client, "x").await.unwrap(), "up");
        let (_, error) = waiting(&mut statuses).await;
        let ConnectError::Lost(loss) = error else {
            panic!("not a lost connection: {error:?}");
        };
        assert_eq!(loss.code().map(CloseCode::as_u16), Some(1001));
    });
}

#[test]
fn a_port_where_nobody_listens_is_told_as_such() {
    block_on(async {
        let closed = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("ws://{}", closed.local_addr().unwrap());
        drop(closed);
        let builder = MeshClient::builder(&url).reconnect_interval(PATIENCE);
        let client = build_client(builder).unwrap();
        let mut statuses = client.on_status();
        let opening = open(&client);
        let (delay, error) = waiting(&mut statuses).await;
        assert_eq!(delay, PATIENCE);
        let ConnectError::Io { kind, .. } = error else {
            panic!("not the network's error: {error:?}");
        };
        assert_eq!(kind, std::io::ErrorKind::ConnectionRefused);
        // For who did not listen, as long as there is no connection.
        assert_eq!(client.last_error(), Some(error));
        patiently("the end", client.close()).await;
        let opened = patiently("an outcome", opening).await;
        assert_eq!(opened, Err(ConnectError::Closed));
    });
}

#[test]
fn what_ends_a_client_stays_to_be_read() {
    block_on(async {
        let server = Scripted::start(|number, attempt| match number {
            0 => attempt.accept().cut(),
            _ => attempt.refuse(502, "down"),
        });
        let builder = builder(&server).max_reconnect_attempts(2);
        let client = build_client(builder).unwrap();
        let mut statuses = client.on_status();
        let _ = patiently("an outcome", client.open()).await;
        let ended = status(&mut statuses, |status| match status {
            Status::ReconnectFailed { error } => Some(error),
            _ => None,
        });
        let (status, body) = (502, "down".to_owned());
        let error = ConnectError::Refused { status, body };
        assert_eq!(ended.await, error);
        assert_eq!(client.last_error(), Some(error));
    });
}

#[test]
fn the_token_is_asked_for_at_every_attempt() {
    block_on(async {
        let (send, seen) = mpsc::channel();
        let server = Scripted::start(move |number, mut attempt| {
            send.send((attempt.header("authorization"), attempt.header("x-app")))
                .unwrap();
            match number {
                0 => attempt.refuse(500, "not yet"),
                1 => attempt.accept().cut(),
                _ => attempt.accept().serve(),
            }
        });
        let asked = AtomicUsize::new(0);
        let builder = builder(&server)
            .header("x-app", "mesh")
            .token_provider(move || {
                let asked = asked.fetch_add(1, Ordering::Relaxed);
                async move {
                    match asked {
                        1 => Err("none at the moment"),
                        _ => Ok(format!("token-{asked}")),
                    }
                }
            });
        let client = build_client(builder).unwrap();
        let mut statuses = client.on_status();
        let _ = patiently("an outcome", client.open()).await;
        reconnected(&mut statuses).await;
        assert_eq!(echo(&client, "x").await.unwrap(), "x");
        // The one that was not to be had is an attempt that the server does not see.
        for number in [0, 2, 3] {
            let (token, header) = seen.recv_timeout(PATIENCE).unwrap();
            assert_eq!(token, Some(format!("Bearer token-{number}")));
            assert_eq!(header.as_deref(), Some("mesh"));
        }
    });
}

#[test]
fn a_first_attempt_that_fails_is_retried_unless_it_shall_not() {
    block_on(async {
        let server = Scripted::start(|number, attempt| match number {
            0 => attempt.refuse(500, "no"),
            _ => attempt.accept().serve(),
        });
        let client = connect(builder(&server)).await;
        assert_eq!(echo(&client, "x").await.unwrap(), "x");
        assert_eq!(server.attempts().len(), 2);

        let server = Scripted::start(|_, attempt| attempt.refuse(500, "no"));
        let connecting = runtime::connect(builder(&server).fail_fast(true));
        let error = patiently("an outcome", connecting).await.unwrap_err();
        let (status, body) = (500, "no".to_owned());
        assert_eq!(error, ConnectError::Refused { status, body });
        sleep(A_WHILE).await;
        assert_eq!(server.attempts().len(), 1);

        let closed = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("ws://{}", closed.local_addr().unwrap());
        drop(closed);
        let connecting = runtime::connect(MeshClient::builder(&url).fail_fast(true));
        let error = patiently("an outcome", connecting).await.unwrap_err();
        let ConnectError::Io { kind, .. } = error else {
            panic!("not the network's error: {error:?}");
        };
        assert_eq!(kind, std::io::ErrorKind::ConnectionRefused);
    });
}

#[test]
fn fail_fast_is_about_the_first_connection_only() {
    block_on(async {
        let server = Scripted::start(|number, attempt| match number {
            0 => {
                let mut peer = attempt.accept();
                let request = peer.request();
                peer.reply(&request, "first");
                peer.cut();
            }
            1 => attempt.refuse(500, "no"),
            _ => attempt.accept().serve(),
        });
        let client = connect(builder(&server).fail_fast(true)).await;
        let mut statuses = client.on_status();
        assert_eq!(echo(&client, "x").await.unwrap(), "first");
        reconnected(&mut statuses).await;
        assert_eq!(echo(&client, "x").await.unwrap(), "x");
        assert_eq!(server.attempts().len(), 3);
    });
}

#[test]
fn a_server_that_accepts_and_says_nothing_is_given_up() {
    block_on(async {
        let allowed = Duration::from_millis(100);
        let server = Scripted::start(|number, attempt| match number {
            0 => attempt.ignore(),
            _ => attempt.accept().serve(),
        });
        let started = Instant::now();
        let client = connect(builder(&server).connect_timeout(allowed)).await;
        assert!(started.elapsed() >= allowed);
        assert_eq!(echo(&client, "x").await.unwrap(), "x");
        assert_eq!(server.attempts().len(), 2);

        let server = Scripted::start(|_, attempt| attempt.ignore());
        let connecting = builder(&server)
            .connect_timeout(allowed)
            .max_reconnect_attempts(2);
        let error = patiently("an outcome", runtime::connect(connecting))
            .await
            .unwrap_err();
        assert_eq!(error, ConnectError::Timeout(allowed));
        assert_eq!(server.attempts().len(), 3);
    });
}

#[test]
fn what_is_called_before_the_connection_waits_for_it_or_not() {
    block_on(async {
        let (open, opened) = mpsc::channel();
        let opened = Mutex::new(opened);
        let server = Scripted::start(move |_, attempt| {
            opened.lock().unwrap().recv_timeout(PATIENCE).unwrap();
            attempt.accept().serve();
        });
        let queueing = builder(&server).offline_queue(2, 1 << 20, Duration::from_secs(30));
        let client = build_client(queueing).unwrap();
        let opening = spawn({
            let client = client.clone();
            async move { client.open().await }
        });
        let waiting: Vec<_> = (0..2)
            .map(|n| client.command::<_, u32>("x", n).into_future())
            .collect();
        let one_too_many = client.command::<_, u32>("x", 2).await;
        assert_eq!(one_too_many, Err(ClientError::QueueFull));
        let now_or_never = client.command::<_, u32>("x", 3).fail_offline().await;
        assert_eq!(now_or_never, Err(ClientError::Offline));
        open.send(()).unwrap();
        for (n, call) in (0..).zip(waiting) {
            assert_eq!(patiently("a reply", call).await.unwrap(), n);
        }
        patiently("a connection", opening).await.unwrap();
    });
}

#[test]
fn what_waits_for_a_connection_expires() {
    block_on(async {
        let server = Scripted::start(|_, attempt| attempt.ignore());
        let allowed = Duration::from_millis(100);
        let queueing = builder(&server).offline_queue(10, 1 << 20, allowed);
        let client = build_client(queueing).unwrap();
        let started = Instant::now();
        let (after, sent) = (allowed, false);
        assert_eq!(
            echo(&client, "x").await,
            Err(ClientError::Timeout { after, sent })
        );
        assert!(started.elapsed() >= allowed);
    });
}

// What a server must not send.

#[test]
fn a_message_over_the_clients_maximum_costs_the_connection() {
    block_on(async {
        let server = after(|mut peer| {
            let request = peer.request();
            let around = json!({ "id": request.id, "command": "x", "payload": "" })
                .to_string()
                .len();
            peer.reply(&request, "x".repeat(1_000 - around));
            let request = peer.request();
            peer.reply(&request, "x".repeat(1_001 - around));
            assert_eq!(peer.end(), Some(1009));
        });
        let client = connect(builder(&server).message_bytes_max(1_000)).await;
        let mut statuses = client.on_status();
        let call = async || {
            let call = client.command::<_, String>("x", ()).into_future();
            patiently("the end", call).await
        };
        assert!(call().await.unwrap().len() > 900);
        assert_eq!(call().await, Err(ClientError::Disconnected));
        reconnected(&mut statuses).await;
        assert_eq!(echo(&client, "again").await.unwrap(), "again");
    });
}

#[test]
fn malformed_frames_harm_nothing() {
    block_on(async {
        let malformed = [
            "",
            "rubbish",
            "[]",
            "{",
            r#"{"id":0,"payload":"no command"}"#,
            r#"{"id":"0","command":"echo","payload":"an id in quotes"}"#,
            r#"{"id":-1,"command":"echo","payload":"below zero"}"#,
            r#"{"id":null,"command":"echo","payload":null}"#,
            r#"{"id":0,"id":0,"command":"echo","payload":"twice"}"#,
            r#"{"command":7,"payload":{}}"#,
            r#"{"command":"mesh/subscription-message","payload":{"channel":1}}"#,
            r#"{"command":"mesh/assign-id","payload":{}}"#,
            r#"{"command":"latency","payload":"soon"}"#,
        ];
        let nested = format!(
            r#"{{"command":"x","payload":{}{}}}"#,
            "[".repeat(100_000),
            "]".repeat(100_000)
        );
        let count = malformed.len() as u64 + 3;
        let server = Scripted::start(move |_, attempt| {
            let mut peer = attempt.accept();
            let request = peer.request();
            for text in malformed {
                peer.send_text(text);
            }
            peer.send_text(&nested);
            peer.send_frame(
                FIN | BINARY,
                br#"{"id":0,"command":"echo","payload":"binary"}"#,
            );
            peer.send_frame(FIN | BINARY, b"");
            peer.send_frame(FIN | PING, b"still there?");
            assert_eq!(peer.receive(), Incoming::Pong(b"still there?".into()));
            peer.send_frame(FIN | PONG, b"unasked");
            peer.reply(&request, "well");
            peer.serve();
        });
        let client = connect(builder(&server)).await;
        assert_eq!(echo(&client, "x").await.unwrap(), "well");
        assert_eq!(client.stats().frames_malformed, count);
        assert_eq!(echo(&client, "again").await.unwrap(), "again");
        assert_eq!(server.attempts().len(), 1);
    });
}

#[test]
fn a_reply_may_come_in_fragments_with_control_frames_between() {
    block_on(async {
        let server = Scripted::start(|_, attempt| {
            let mut peer = attempt.accept();
            loop {
                let request = peer.request();
                let frame = json!({ "id": request.id, "command": "echo", "payload": "Grüße 🎈" });
                // A byte each, so that every character of more is in several.
                for (n, byte) in frame.to_string().bytes().enumerate() {
                    peer.send_frame(if n == 0 { TEXT } else { 0 }, &[byte]);
                    if n % 16 == 0 {
                        peer.send_frame(FIN | PING, b"in between");
                        assert_eq!(peer.receive(), Incoming::Pong(b"in between".into()));
                    }
                    peer.send_frame(FIN | PONG, b"");
                }
                peer.send_frame(FIN, b"");
            }
        });
        let client = connect(builder(&server)).await;
        for _ in 0..2 {
            assert_eq!(echo(&client, "x").await.unwrap(), "Grüße 🎈");
        }
        assert_eq!(client.stats().frames_malformed, 0);
        assert_eq!(server.attempts().len(), 1);
    });
}

#[test]
fn broken_websocket_frames_cost_the_connection_and_nothing_more() {
    block_on(async {
        // The frames of RFC 6455, sections 5 and 7.4, as a server must not send them.
        let close = |code: u16| [[0x88, 2], code.to_be_bytes()].concat();
        let mut faults: Vec<(String, Vec<u8>, u16)> = [
            ("masked", wire::text("{}"), 1002),
            ("a masked ping", vec![0x89, 0x80, 1, 2, 3, 4], 1002),
            ("the first reserved bit", vec![0xC1, 0], 1002),
            ("the second reserved bit", vec![0xA1, 0], 1002),
            ("the third reserved bit", vec![0x91, 0], 1002),
            ("a continuation of nothing", vec![0x80, 0], 1002),
            ("a text in a text", vec![0x01, 1, b'"', 0x81, 0], 1002),
            ("a binary in a text", vec![0x01, 1, b'"', 0x82, 0], 1002),
            ("a fragmented ping", vec![0x09, 0], 1002),
            ("a fragmented close", vec![0x08, 0], 1002),
            ("a long ping", vec![0x89, 126, 0, 126], 1002),
            ("a long close", vec![0x88, 126, 0, 126], 1002),
            (
                "a length in 16 bits too many",
                vec![0x82, 126, 0, 1, 0],
                1002,
            ),
            (
                "a length in 48 bits too many",
                [vec![0x82, 127], vec![0; 7], vec![1, 0]].concat(),
                1002,
            ),
            (
                "a length of 2^63",
                [vec![0x81, 127, 0x80], vec![0; 7]].concat(),
                1002,
            ),
            ("half a close code", vec![0x88, 1, 3], 1002),
            ("text that is no UTF-8", vec![0x81, 2, 0xC3, 0x28], 1007),
            ("text that ends in a character", vec![0x81, 1, 0xC3], 1007),
            (
                "a surrogate, in two fragments",
                vec![0x01, 1, 0xED, 0x80, 2, 0xA0, 0x80],
                1007,
            ),
            (
                "a reason that is no UTF-8",
                vec![0x88, 3, 0x03, 0xE8, 0xFF],
                1007,
            ),
        ]
        .map(|(what, bytes, code)| (what.to_owned(), bytes, code))
        .into();
        for opcode in (0x3..=0x7).chain(0xB..=0xF) {
            faults.push((format!("opcode {opcode:x}"), vec![0x80 | opcode, 0], 1002));
        }
        for code in [0, 999, 1004, 1005, 1006, 1015, 2999, 5000, u16::MAX] {
            faults.push((format!("close code {code}"), close(code), 1002));
        }
        for (what, bytes, code) in faults {
            let (send, codes) = mpsc::channel();
            let server = after(move |mut peer| {
                peer.request();
                peer.send_raw(&bytes);
                send.send(peer.end()).unwrap();
            });
            let client = connect(builder(&server)).await;
            let mut statuses = client.on_status();
            let call = echo(&client, "x").await;
            assert_eq!(call, Err(ClientError::Disconnected), "{what}");
            assert_eq!(codes.recv_timeout(PATIENCE).unwrap(), Some(code), "{what}");
            reconnected(&mut statuses).await;
            assert_eq!(echo(&client, "again").await.unwrap(), "again", "{what}");
        }
    });
}

#[test]
fn a_dead_sockets_late_end_does_not_touch_its_successor() {
    block_on(async {
        // The first socket is given up for its silence and stays half open while the second one serves.
        let (send, buried) = mpsc::channel();
        let server = Scripted::start(move |number, attempt| {
            let mut peer = attempt.accept();
            if number == 0 {
                peer.end();
                thread::sleep(A_WHILE);
                peer.event("news", "from the grave");
                peer.cut();
                return send.send(()).unwrap();
            }
            loop {
                match peer.receive() {
                    Incoming::Text(text) if text.contains("ping?") => {
                        peer.event("ping", json!({}));
                        peer.send_text(&text);
                    }
                    Incoming::End => return,
                    _ => {}
                }
            }
        });
        let forgiving = builder(&server)
            .ping_timeout(Duration::from_secs(1))
            .max_missed_pings(0);
        let client = connect(forgiving).await;
        let mut news = client.on::<String>("news");
        let mut statuses = client.on_status();
        reconnected(&mut statuses).await;
        let mut done = false;
        while !done {
            done = buried.try_recv().is_ok();
            sleep(SOON).await;
            assert_eq!(echo(&client, "ping?").await.unwrap(), "ping?");
        }
        assert_eq!(server.attempts().len(), 2);
        let unheard = timeout(SOON, news.next()).await;
        assert!(unheard.is_err(), "{unheard:?}");
    });
}

// Events and subscriptions.

#[test]
fn events_come_typed_and_in_order() {
    block_on(async {
        let server = Scripted::start(|_, attempt| {
            let mut peer = attempt.accept();
            let request = peer.request();
            for payload in [json!(1), json!("two"), json!(3)] {
                peer.event("count", payload);
            }
            peer.event("other", 4);
            peer.event("latency", 12.5);
            peer.reply(&request, "x");
            peer.serve();
        });
        let client = connect(builder(&server)).await;
        let mut counts = client.on::<u32>("count");
        let mut latencies = client.on_latency();
        let (send, called) = mpsc::channel();
        let guard = client.on_with("count", move |n: u32| send.send(n).unwrap());
        assert_eq!(echo(&client, "x").await.unwrap(), "x");
        let mut next = async || patiently("an event", counts.next()).await.unwrap();
        assert_eq!(next().await, Ok(1));
        assert!(next().await.is_err(), "a string is no number");
        assert_eq!(next().await, Ok(3));
        assert_eq!(called.try_iter().collect::<Vec<_>>(), [1, 3]);
        drop(guard);
        let latency = patiently("a latency", latencies.next()).await.unwrap();
        assert_eq!(latency, Duration::from_micros(12_500));
    });
}

/// Takes a subscribe of `channel` and grants it with this history.
#[track_caller]
fn grant(peer: &mut Peer, channel: &str, history: &[&str]) {
    let request = peer.request();
    assert_eq!(request.command, "mesh/subscribe-channel");
    assert_eq!(request.payload["channel"], channel);
    peer.reply(&request, json!({ "success": true, "history": history }));
}

fn publish(peer: &mut Peer, channel: &str, message: &str) {
    let payload = json!({ "channel": channel, "message": message });
    peer.event("mesh/subscription-message", payload);
}

#[test]
fn a_subscription_lives_through_gaps_and_reconnects() {
    block_on(async {
        let server = Scripted::start(|number, attempt| {
            let mut peer = attempt.accept();
            if number == 0 {
                grant(&mut peer, "a", &["2", "1"]);
                publish(&mut peer, "a", "3 \"\u{1F980}\"");
                publish(&mut peer, "nobody's", "lost");
                peer.event("mesh/gap", json!({ "channel": "a" }));
                publish(&mut peer, "a", "5");
                return peer.cut();
            }
            // What is put back comes before what the application asks for.
            grant(&mut peer, "a", &["7", "6"]);
            publish(&mut peer, "a", "8");
            peer.serve();
        });
        let client = connect(builder(&server)).await;
        let subscribe = client.subscribe("a").history(2);
        let mut subscription = patiently("a subscription", subscribe).await.unwrap();
        assert_eq!(subscription.history(), ["2", "1"]);
        let message = |text: &str| ChannelEvent::Message(text.to_owned());
        for expected in [
            message("3 \"\u{1F980}\""),
            ChannelEvent::Gap,
            message("5"),
            ChannelEvent::Resubscribed {
                history: vec!["7".to_owned(), "6".to_owned()],
            },
            message("8"),
        ] {
            let event = patiently("an event", subscription.next()).await;
            assert_eq!(event, Some(expected));
        }
        assert_eq!(client.stats().messages_unclaimed, 1);
        assert_eq!(echo(&client, "x").await.unwrap(), "x");
    });
}

#[test]
fn a_subscription_that_is_not_granted_again_ends_and_says_why() {
    block_on(async {
        let server = Scripted::start(|number, attempt| {
            let mut peer = attempt.accept();
            if number == 0 {
                grant(&mut peer, "a", &[]);
                return peer.cut();
            }
            let request = peer.request();
            peer.reply(&request, json!({ "success": false, "history": [] }));
            peer.serve();
        });
        let client = connect(builder(&server)).await;
        let mut subscription = patiently("a subscription", client.subscribe("a"))
            .await
            .unwrap();
        assert_eq!(patiently("the end", subscription.next()).await, None);
        let refused = ClientError::NotExposed("a".to_owned());
        assert_eq!(subscription.end(), Some(SubscriptionEnd::Refused(refused)));
        assert_eq!(echo(&client, "x").await.unwrap(), "x");
    });
}
