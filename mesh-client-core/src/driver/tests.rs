//! The client over a scripted network and a simulated clock.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
        mpsc,
    },
    time::Duration,
};

use futures_util::FutureExt;
use mesh_core::{
    driver::SocketError,
    protocol::{CommandError, parse},
    websocket::{CloseCode, DecodeError},
};
use proptest::prelude::*;
use serde::Deserialize;

use super::{
    ChannelEvent, ClientBuilder, ClientError, ConnectError, EventError, Loss, MeshClient,
    SubscriptionEnd,
    hub::panic_message,
    shared::CLOSE_WAITERS_MAX,
    testing::{Log, Meets, Net, Sim, Wire, connect},
};
use crate::Status;

const SECOND: Duration = Duration::from_secs(1);

fn builder() -> ClientBuilder {
    MeshClient::builder("ws://localhost:1")
}

fn id(frame: &str) -> u32 {
    parse(frame, 64).unwrap().id.unwrap()
}

fn refused(status: u16) -> Meets {
    Meets::Failure(ConnectError::Refused {
        status,
        body: "go away".to_owned(),
    })
}

/// Replies to nothing.
fn mute() -> Net {
    Net::new(|_, _| {})
}

#[test]
fn a_command_is_called_and_its_reply_typed() {
    let net = Net::kind();
    let (sim, client) = connect(&net);
    let reply: Vec<u32> = sim
        .block_on(client.command("echo", [1, 2]).into_future())
        .unwrap();
    assert_eq!(reply, [1, 2]);
    assert_eq!(
        net.wire(0).sent(),
        [r#"{"id":0,"command":"echo","payload":[1,2]}"#]
    );
    let misfit: Result<u32, _> = sim.block_on(async { client.command("echo", "a").await });
    assert!(matches!(misfit, Err(ClientError::Decode(_))), "{misfit:?}");
    let unserialisable = std::collections::BTreeMap::from([(vec![1], 1)]);
    let error: Result<u32, _> =
        sim.block_on(async { client.command("echo", unserialisable).await });
    assert!(matches!(error, Err(ClientError::Encode(_))), "{error:?}");
}

#[test]
fn an_error_reply_is_an_error_unless_it_is_asked_for_raw() {
    let net = Net::kind();
    let (sim, client) = connect(&net);
    let error = CommandError::new("no").with_code("ENO").with_name("No");
    let json = serde_json::to_string(&error).unwrap();
    let reply: Result<u32, _> = sim.block_on(async { client.command("x", &error).await });
    assert_eq!(reply, Err(ClientError::Command(error.clone())));
    assert_eq!(reply.unwrap_err().code(), Some("ENO"));
    assert_eq!(
        sim.block_on(async { client.command_raw("x", &error).await }),
        Ok(json)
    );
}

#[test]
fn late_duplicate_and_unknown_replies_reach_nobody() {
    let net = mute();
    let (sim, client) = connect(&net);
    let wire = net.wire(0);
    let first: Result<u32, _> =
        sim.block_on(async { client.command("x", 1).timeout(SECOND).await });
    let after = SECOND;
    assert_eq!(first, Err(ClientError::Timeout { after, sent: true }));
    assert_eq!(
        first.as_ref().unwrap_err().to_string(),
        "Command timed out after 1000ms."
    );
    assert_eq!(first.unwrap_err().code(), Some("ETIMEOUT"));
    let second = client.command::<_, u32>("x", 2).into_future();
    sim.settle();
    let used = id(&wire.sent()[1]);
    assert_ne!(used, 0);
    for (id, payload) in [(0, 10), (7, 11), (99_999, 12), (used, 2), (used, 13)] {
        wire.text(format!(
            r#"{{"id":{id},"command":"x","payload":{payload}}}"#
        ));
    }
    assert_eq!(sim.block_on(second), Ok(2));
    sim.settle();
    let stats = client.stats();
    assert_eq!((stats.replies_late, stats.replies_unknown), (1, 3));
}

#[test]
fn a_cut_mid_reply_ends_the_command_at_once() {
    let net = Net::new(|wire, _| wire.cut());
    let (sim, client) = connect(&net);
    let start = sim.now();
    let reply: Result<u32, _> = sim.block_on(async { client.command("x", 1).await });
    assert_eq!(reply, Err(ClientError::Disconnected));
    assert_eq!(sim.now(), start);
}

#[test]
fn an_idempotent_command_survives_a_cut() {
    let tries = AtomicU32::new(0);
    let net = Net::new(
        move |wire, text| match tries.fetch_add(1, Ordering::Relaxed) {
            0..3 => wire.cut(),
            _ => wire.grant(text),
        },
    );
    let (sim, client) = connect(&net);
    assert_eq!(
        sim.block_on(async { client.command("x", 1).idempotent().await }),
        Ok(1)
    );
    assert_eq!(net.wires(), 4);
}

#[test]
fn a_server_that_never_answers_costs_the_timeout_and_no_more() {
    let net = mute();
    let (sim, client) = connect(&net);
    let start = sim.now();
    let reply: Result<u32, _> = sim.block_on(async { client.command("x", 1).await });
    let after = 30 * SECOND;
    assert_eq!(reply, Err(ClientError::Timeout { after, sent: true }));
    assert_eq!(sim.now() - start, after);
}

#[test]
fn ping_silence_drops_the_socket_and_reconnects() {
    let net = mute();
    let (sim, client) = connect(&net);
    let mut status = client.on_status();
    sim.sleep(20 * SECOND);
    net.wire(0).text(r#"{"command":"ping","payload":{}}"#);
    sim.sleep(59 * SECOND);
    assert_eq!(net.wire(0).sent(), [r#"{"command":"pong","payload":{}}"#]);
    assert_eq!(net.wires(), 1);
    let start = sim.now();
    loop {
        if sim.block_on(status.next()) == Some(Status::Reconnected) {
            break;
        }
    }
    assert!(sim.now() - start <= SECOND + Duration::from_millis(500));
    assert!(net.wire(0).is_gone());
    assert_eq!(net.wires(), 2);
}

#[test]
fn a_restart_with_a_hundred_commands_queued_loses_none() {
    let net = Net::kind();
    let (sim, client) = connect(&net);
    net.otherwise(Meets::Failure(ConnectError::Handshake("down".into())));
    net.wire(0).close(CloseCode::GOING_AWAY);
    sim.settle();
    let calls: Vec<_> = (0..100)
        .map(|n| client.command::<_, u32>("x", n).into_future())
        .collect();
    sim.sleep(5 * SECOND);
    assert_eq!(net.wires(), 1);
    net.otherwise(Meets::Server);
    for (n, call) in (0..).zip(calls) {
        assert_eq!(sim.block_on(call), Ok(n));
    }
    assert_eq!(
        net.wire(0).closed(),
        Some(CloseCode::NORMAL),
        "the close was answered"
    );
}

#[test]
fn the_queue_is_bounded_and_whoever_asks_fails_offline() {
    let net = Net::kind();
    net.otherwise(Meets::Nothing);
    let sim = Sim::new();
    let client = builder()
        .offline_queue(2, 100, 3 * SECOND)
        .build_on(sim.runtime(), net.connector())
        .unwrap();
    let calls: Vec<_> = (0..3)
        .map(|n| client.command::<_, u32>("x", n).into_future())
        .collect();
    let results: Vec<_> = calls.into_iter().map(|call| sim.block_on(call)).collect();
    let after = 3 * SECOND;
    let expired = Err(ClientError::Timeout { after, sent: false });
    assert_eq!(
        results,
        [expired.clone(), expired, Err(ClientError::QueueFull)]
    );
    let offline: Result<u32, _> =
        sim.block_on(async { client.command("x", 1).fail_offline().await });
    assert_eq!(offline, Err(ClientError::Offline));
}

#[test]
fn forbidden_ends_with_the_body_and_overload_is_retried() {
    for status in [401, 403] {
        let net = Net::kind();
        net.script([refused(500), refused(status)]);
        let sim = Sim::new();
        let result = sim.block_on(builder().connect_on(sim.runtime(), net.connector()));
        let body = "go away".to_owned();
        assert_eq!(result.unwrap_err(), ConnectError::Refused { status, body });
    }
    let net = Net::kind();
    net.script([refused(503), Meets::Nothing, refused(503)]);
    let (sim, client) = connect(&net);
    assert!(client.is_online());
    assert_eq!(net.requests().len(), 4);
    drop((sim, client));
}

#[test]
fn fail_fast_and_bounded_attempts_end_with_the_last_error() {
    let net = Net::kind();
    net.script([Meets::Nothing]);
    let sim = Sim::new();
    let result = sim.block_on(
        builder()
            .fail_fast(true)
            .connect_on(sim.runtime(), net.connector()),
    );
    assert_eq!(result.unwrap_err(), ConnectError::Timeout(10 * SECOND));
    let net = Net::kind();
    net.otherwise(refused(502));
    let result = sim.block_on(
        builder()
            .max_reconnect_attempts(3)
            .connect_on(sim.runtime(), net.connector()),
    );
    assert!(
        matches!(result, Err(ConnectError::Refused { status: 502, .. })),
        "{result:?}"
    );
    assert_eq!(net.requests().len(), 4);
    sim.settle();
    assert_eq!(
        sim.tasks(),
        0,
        "a client that is dropped leaves nothing behind"
    );
}

#[test]
fn a_client_that_cannot_connect_says_why_and_when_it_tries_again() {
    let net = Net::kind();
    let failure = ConnectError::Tls("no".into());
    net.script([
        refused(503),
        Meets::Failure(failure.clone()),
        Meets::Nothing,
    ]);
    let sim = Sim::new();
    let client = builder().build_on(sim.runtime(), net.connector()).unwrap();
    let mut status = client.on_status();
    assert_eq!(client.last_error(), None);
    let opening = sim.runtime();
    let theirs = client.clone();
    opening.spawn(Box::pin(async move { theirs.open().await.unwrap() }));
    let overloaded = ConnectError::Refused {
        status: 503,
        body: "go away".to_owned(),
    };
    for error in [overloaded, failure, ConnectError::Timeout(10 * SECOND)] {
        let attempt = sim.block_on(status.next());
        assert!(
            matches!(attempt, Some(Status::Connecting { .. })),
            "{attempt:?}"
        );
        let waiting = sim.block_on(status.next());
        let Some(Status::Waiting { delay, error: told }) = waiting else {
            panic!("{waiting:?}");
        };
        assert!(delay <= 2 * SECOND);
        assert_eq!(told, error);
        assert_eq!(client.last_error(), Some(error));
    }
    while sim.block_on(status.next()) != Some(Status::Connected) {}
    assert_eq!(client.last_error(), None);

    let code = CloseCode::GOING_AWAY;
    net.otherwise(refused(502));
    net.wire(0).close(code);
    let Some(Status::Disconnected { loss }) = sim.block_on(status.next()) else {
        panic!("it goes on");
    };
    assert_eq!(loss.code(), Some(code));
    assert_eq!(client.last_error(), Some(loss.into()));
    net.otherwise(Meets::Server);
    while sim.block_on(status.next()) != Some(Status::Reconnected) {}
    net.wire(1).cut();
    sim.settle();
    assert_eq!(client.last_error(), Some(Loss::Gone.into()));
    sim.block_on(client.close());
    let (opened, closed) = sim.block_on(async {
        let closing = async { client.close().await };
        net.otherwise(Meets::Nothing);
        futures_util::join!(client.open(), closing)
    });
    assert_eq!((opened, closed), (Err(ConnectError::Closed), ()));
    assert_eq!(client.last_error(), None, "a close is no failure");
}

#[test]
fn reasons_that_nobody_reads_do_not_pile_up() {
    let net = Net::kind();
    net.otherwise(Meets::Failure(ConnectError::Refused {
        status: 500,
        body: "x".repeat(1 << 20),
    }));
    let sim = Sim::new();
    let client = builder()
        .reconnect_interval(SECOND)
        .build_on(sim.runtime(), net.connector())
        .unwrap();
    let mut status = client.on_status();
    let theirs = client.clone();
    sim.runtime()
        .spawn(Box::pin(async move { drop(theirs.open().await) }));
    sim.sleep(100 * SECOND);
    let mut kept = 0;
    while let Some(Some(status)) = status.next().now_or_never() {
        kept += usize::from(matches!(status, Status::Waiting { .. }));
    }
    assert!((1..=4).contains(&kept), "{kept} MiB of bodies wait");
}

#[test]
fn the_first_failure_of_a_series_is_a_warning_and_the_rest_is_for_debugging() {
    let (log, _guard) = Log::start();
    let net = Net::kind();
    net.otherwise(refused(502));
    let sim = Sim::new();
    let client = MeshClient::builder("ws://user:secret@localhost:1/secret?token=secret")
        .build_on(sim.runtime(), net.connector())
        .unwrap();
    let theirs = client.clone();
    sim.runtime()
        .spawn(Box::pin(async move { theirs.open().await.unwrap() }));
    sim.sleep(600 * SECOND);
    let tries = net.requests().len();
    assert!(tries > 10);
    let warnings = log.take(tracing::Level::WARN);
    let [warning] = &warnings[..] else {
        panic!("{warnings:?}");
    };
    for part in ["localhost:1", "the server refused with 502: go away"] {
        assert!(warning.contains(part), "{warning}");
    }
    let others = log.take(tracing::Level::DEBUG);
    let failures = others
        .iter()
        .filter(|line| line.contains("still no connection"));
    assert_eq!(failures.count(), tries - 1);
    for line in others.iter().chain(&warnings) {
        assert!(!line.contains("secret"), "{line}");
    }

    net.otherwise(Meets::Server);
    sim.sleep(60 * SECOND);
    assert!(client.is_online());
    assert_eq!(log.take(tracing::Level::WARN), [""; 0]);
    net.wire(0).cut();
    sim.settle();
    let warnings = log.take(tracing::Level::WARN);
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].contains("the connection was lost"));
    let told = log.take(tracing::Level::INFO);
    assert_eq!(told.len(), 1, "{told:?}");
    for part in ["localhost:1", "the connection is up again"] {
        assert!(told[0].contains(part), "{told:?}");
    }
    // Not before it is stable, so that the last line never says that a connection is up that is not.
    sim.sleep(9 * SECOND);
    net.wire(1).cut();
    sim.sleep(9 * SECOND);
    assert_eq!(log.take(tracing::Level::INFO), [""; 0]);
    sim.sleep(60 * SECOND);
    assert_eq!(log.take(tracing::Level::INFO).len(), 1);
}

#[test]
fn what_can_never_work_is_said_at_once() {
    let (sim, net) = (Sim::new(), Net::kind());
    let build = |builder: ClientBuilder| {
        builder
            .build_on(sim.runtime(), net.connector())
            .unwrap_err()
    };
    assert_eq!(
        build(MeshClient::builder("http://a")),
        ConnectError::InvalidUrl("http://a".into())
    );
    assert_eq!(
        build(builder().header("a b", "c")),
        ConnectError::InvalidHeader("a b".into())
    );
    for name in ["Sec-WebSocket-Protocol", "sec-websocket-extensions"] {
        assert_eq!(
            build(builder().header(name, "chat")),
            ConnectError::InvalidHeader(name.into())
        );
    }
    assert!(matches!(
        build(builder().dedicated_thread()),
        ConnectError::Thread(_)
    ));
}

#[test]
fn the_limits_can_be_changed_and_no_value_breaks_the_client() {
    let (sim, net) = (Sim::new(), mute());
    let connecting = builder()
        .config(|config| {
            config.in_flight_max = 1;
            config.subscriptions_max = 0;
        })
        .connect_on(sim.runtime(), net.connector());
    let client = sim.block_on(connecting).unwrap();
    let calls: Vec<_> = (0..3)
        .map(|n| client.command::<_, u32>("x", n).into_future())
        .collect();
    sim.settle();
    assert_eq!(net.wire(0).sent().len(), 1, "the others wait");
    drop(calls);
    let subscribed = sim.block_on(client.subscribe("a").into_future());
    assert!(matches!(subscribed, Err(ClientError::TooMany)));

    for (number, duration) in [(0, Duration::ZERO), (usize::MAX, Duration::MAX)] {
        let net = Net::kind();
        let connecting = builder()
            .config(|config| {
                for max in [
                    &mut config.in_flight_max,
                    &mut config.in_flight_bytes_max,
                    &mut config.abandoned_max,
                    &mut config.backlog_bytes_max,
                ] {
                    *max = number;
                }
                config.stable_after = duration;
                config.restore_retry = duration;
            })
            .ping_timeout(Duration::MAX)
            .connect_on(sim.runtime(), net.connector());
        let client = sim.block_on(connecting).unwrap();
        let reply = sim.block_on(client.command::<_, u32>("x", 7).into_future());
        assert_eq!(reply, Ok(7));
        net.wire(0).cut();
        sim.sleep(5 * SECOND);
        assert!(client.is_online());
    }
}

#[test]
fn one_open_too_many_fails_and_the_client_goes_on() {
    let (sim, net) = (Sim::new(), Net::kind());
    net.script([Meets::Nothing]);
    let client = builder().build_on(sim.runtime(), net.connector()).unwrap();
    let mut opening: Vec<_> = (0..1_000).map(|_| Box::pin(client.open())).collect();
    for open in &mut opening {
        assert_eq!(open.now_or_never(), None);
    }
    let error = sim.block_on(client.open()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "too many calls wait for the connection already"
    );
    for open in opening {
        assert_eq!(sim.block_on(open), Ok(()));
    }
}

#[test]
fn secrets_stay_out_of_the_log_and_out_of_debug() {
    let (log, _guard) = Log::start();
    let (sim, net) = (Sim::new(), Net::kind());
    let url = "ws://user:secret@localhost:1/?token=secret";
    let of = |url| MeshClient::builder(url).header("x-key", "secret");
    let error = of("http://user:secret@localhost:1/?token=secret")
        .build_on(sim.runtime(), net.connector())
        .unwrap_err();
    // What an adapter says of a URL goes to the log, with the status that follows.
    net.script([Meets::Failure(error.clone())]);
    let ended = sim.block_on(of(url).connect_on(sim.runtime(), net.connector()));
    assert_eq!(ended.unwrap_err(), error);
    sim.settle();
    let mut texts = log.take(tracing::Level::WARN);
    assert_eq!(texts.len(), 1, "{texts:?}");
    texts.extend(log.take(tracing::Level::DEBUG));
    let request = net.requests().remove(0);
    let seed = format!("{:?}", request.seed);
    let request = format!("{request:?}");
    assert!(request.contains("localhost:1") && request.contains("x-key"));
    assert!(!request.contains(&seed), "{request}");
    let target = super::Target::of(url).unwrap();
    texts.extend([request, format!("{error:?} {error}")]);
    texts.extend([format!("{:?}", of(url)), format!("{target:?}")]);
    for text in texts {
        assert!(!text.contains("secret"), "{text}");
    }
}

#[test]
fn a_token_is_asked_for_at_every_attempt_and_the_options_travel() {
    let net = Net::kind();
    net.script([refused(500)]);
    let asked = Arc::new(AtomicU32::new(0));
    let sim = Sim::new();
    let provider = {
        let asked = Arc::clone(&asked);
        move || {
            let n = asked.fetch_add(1, Ordering::Relaxed);
            async move {
                match n {
                    0 => Err("not yet"),
                    1 => panic!("a provider may panic"),
                    _ => Ok(format!("token-{n}")),
                }
            }
        }
    };
    let client = builder()
        .header("x-a", "1")
        .token_provider(provider)
        .tls_root([1, 2])
        .message_bytes_max(77)
        .connect_on(sim.runtime(), net.connector());
    sim.block_on(client).unwrap();
    let requests = net.requests();
    let tokens: Vec<_> = requests
        .iter()
        .map(|request| request.headers["authorization"].to_str().unwrap())
        .collect();
    assert_eq!(tokens, ["Bearer token-2", "Bearer token-3"]);
    let request = &requests[1];
    assert_eq!(
        (request.headers["x-a"].to_str().unwrap(), &*request.url),
        ("1", "ws://localhost:1")
    );
    assert_eq!(
        (&request.tls_roots[..], request.message_bytes_max),
        (&[vec![1, 2]][..], 77)
    );
    assert_ne!(request.seed, requests[0].seed);
}

#[test]
fn events_are_typed_and_a_slow_reader_is_told_what_it_missed() {
    #[derive(Debug, Deserialize, PartialEq)]
    struct Joined {
        id: String,
    }
    let (net, n) = (Net::kind(), 1_030);
    let (sim, client) = connect(&net);
    let mut joined = client.on::<Joined>("user-joined");
    let mut numbers = client.on::<u32>("number");
    let wire = net.wire(0);
    wire.text(r#"{"command":"user-joined","payload":{"id":"a"}}"#);
    wire.text(r#"{"command":"user-joined","payload":7}"#);
    wire.text(r#"{"command":"another","payload":7}"#);
    wire.text(r#"{"command":"user-joined","payload":{"id":"b"}}"#);
    wire.binary();
    let id = |id: &str| Some(Ok(Joined { id: id.to_owned() }));
    assert_eq!(sim.block_on(joined.next()), id("a"));
    assert!(matches!(
        sim.block_on(joined.next()),
        Some(Err(EventError::Decode(_)))
    ));
    assert_eq!(sim.block_on(joined.next()), id("b"));
    for number in 0..n {
        wire.text(format!(r#"{{"command":"number","payload":{number}}}"#));
    }
    sim.settle();
    assert_eq!(
        sim.block_on(numbers.next()),
        Some(Err(EventError::Lagged(6)))
    );
    assert_eq!(sim.block_on(numbers.next()), Some(Ok(6)));
    drop(client);
    while sim.block_on(numbers.next()).is_some() {}
    assert_eq!(sim.block_on(joined.next()), None);
}

#[test]
fn callbacks_come_until_their_guard_goes_and_may_panic() {
    let net = Net::kind();
    let (sim, client) = connect(&net);
    let (sender, receiver) = mpsc::channel();
    let bad = client.on_with("e", |_: u32| panic!("a callback may panic"));
    let guard = client.on_with("e", move |n: u32| sender.send(n).unwrap());
    let wire = net.wire(0);
    wire.text(r#"{"command":"e","payload":1}"#);
    wire.text(r#"{"command":"e","payload":"no number"}"#);
    sim.settle();
    drop(guard);
    wire.text(r#"{"command":"e","payload":2}"#);
    sim.settle();
    assert_eq!(receiver.try_iter().collect::<Vec<_>>(), [1]);
    assert_eq!(sim.block_on(async { client.command("x", 1).await }), Ok(1));
    drop(bad);
}

#[test]
fn a_callback_may_drop_any_guard_and_what_it_holds() {
    let net = Net::kind();
    let (sim, client) = connect(&net);
    let held = Arc::new(Mutex::new(None));
    let first = {
        let (held, also) = (Arc::clone(&held), client.on::<u32>("e"));
        client.on_with("e", move |_: u32| {
            let _ = &also;
            drop(held.lock().unwrap().take());
        })
    };
    let calls = Arc::new(AtomicU32::new(0));
    let second = {
        let calls = Arc::clone(&calls);
        client.on_with("e", move |_: u32| {
            calls.fetch_add(100, Ordering::Relaxed);
        })
    };
    let third = {
        let calls = Arc::clone(&calls);
        client.on_with("e", move |_: u32| {
            calls.fetch_add(1, Ordering::Relaxed);
        })
    };
    *held.lock().unwrap() = Some(second);
    net.wire(0).text(r#"{"command":"e","payload":1}"#);
    sim.settle();
    assert!(held.lock().unwrap().is_none());
    assert_eq!(calls.load(Ordering::Relaxed), 1);
    drop((first, third));
}

#[test]
fn a_slow_reader_of_a_channel_is_told_of_the_gap() {
    let net = Net::kind();
    let (sim, client) = connect(&net);
    let mut chat = sim
        .block_on(async { client.subscribe("chat").await })
        .unwrap();
    for n in 0..1_025 {
        message(&net.wire(0), "chat", &n.to_string());
    }
    sim.settle();
    assert_eq!(sim.block_on(chat.next()), Some(ChannelEvent::Gap));
    assert_eq!(
        sim.block_on(chat.next()),
        Some(ChannelEvent::Message("1".into()))
    );
}

#[test]
fn latency_and_the_connections_id_come_through() {
    let net = Net::kind();
    let (sim, client) = connect(&net);
    let mut latency = client.on_latency();
    let calls = Arc::new(AtomicU32::new(0));
    let guard = {
        let calls = Arc::clone(&calls);
        client.on_latency_with(move |_| {
            calls.fetch_add(1, Ordering::Relaxed);
        })
    };
    assert_eq!(client.connection_id(), None);
    net.wire(0)
        .text(r#"{"command":"mesh/assign-id","payload":"me"}"#);
    net.wire(0).text(r#"{"command":"latency","payload":2}"#);
    assert_eq!(sim.block_on(latency.next()), Some(Duration::from_millis(2)));
    assert_eq!(client.connection_id().as_deref(), Some("me"));
    assert_eq!(calls.load(Ordering::Relaxed), 1);
    drop(guard);
}

fn message(wire: &Wire, channel: &str, message: &str) {
    wire.text(format!(
        r#"{{"command":"mesh/subscription-message","payload":{{"channel":"{channel}","message":"{message}"}}}}"#
    ));
}

#[test]
fn a_subscription_lives_through_a_reconnect_and_says_so() {
    let net = Net::kind();
    let (sim, client) = connect(&net);
    let mut chat = sim
        .block_on(async { client.subscribe("chat").history(3).await })
        .unwrap();
    assert_eq!(chat.history(), ["b", "a"]);
    message(&net.wire(0), "chat", "c");
    net.wire(0)
        .text(r#"{"command":"mesh/gap","payload":{"channel":"chat"}}"#);
    net.wire(0).cut();
    let mut status = client.on_status();
    let history = vec!["b".to_owned(), "a".to_owned()];
    for event in [
        ChannelEvent::Message("c".into()),
        ChannelEvent::Gap,
        ChannelEvent::Resubscribed { history },
    ] {
        assert_eq!(sim.block_on(chat.next()), Some(event));
    }
    message(&net.wire(1), "chat", "d");
    assert_eq!(
        sim.block_on(chat.next()),
        Some(ChannelEvent::Message("d".into()))
    );
    while sim.block_on(status.next()) != Some(Status::Reconnected) {}
    sim.block_on(chat.unsubscribe()).unwrap();
    let sent = net.wire(1).sent();
    assert!(sent[1].contains("mesh/unsubscribe-channel"), "{sent:?}");
}

#[test]
fn a_refused_subscription_is_an_error_and_a_refused_resubscription_an_end() {
    let tries = AtomicU32::new(0);
    let net = Net::new(move |wire, text| {
        match tries.fetch_add(1, Ordering::Relaxed) {
        1 => wire.grant(text),
        _ => wire.text(format!(
            r#"{{"id":{},"command":"mesh/subscribe-channel","payload":{{"success":false,"history":[]}}}}"#,
            id(text)
        )),
    }
    });
    let (sim, client) = connect(&net);
    let error = sim
        .block_on(async { client.subscribe("chat").await })
        .unwrap_err();
    assert_eq!(error, ClientError::NotExposed("chat".into()));
    let mut chat = sim
        .block_on(async { client.subscribe("chat").await })
        .unwrap();
    assert_eq!(chat.end(), None);
    net.wire(0).cut();
    assert_eq!(sim.block_on(chat.next()), None);
    assert_eq!(
        chat.end(),
        Some(SubscriptionEnd::Refused(ClientError::NotExposed(
            "chat".into()
        )))
    );
}

#[test]
fn dropping_a_subscription_or_its_future_unsubscribes() {
    let net = Net::kind();
    let (sim, client) = connect(&net);
    let wire = net.wire(0);
    let first = sim.block_on(async { client.subscribe("a").await }).unwrap();
    let second = sim.block_on(async { client.subscribe("a").await }).unwrap();
    drop(first);
    sim.settle();
    assert_eq!(wire.sent().len(), 2, "the other one still needs it");
    drop(second);
    sim.settle();
    assert!(
        wire.sent()[2].contains("mesh/unsubscribe-channel"),
        "{:?}",
        wire.sent()
    );
    // A subscribe that nobody waits for any more.
    let mut subscribe = client.subscribe("b").into_future();
    let waker = std::task::Waker::noop();
    assert!(
        subscribe
            .as_mut()
            .poll(&mut std::task::Context::from_waker(waker))
            .is_pending()
    );
    drop(subscribe);
    sim.settle();
    assert!(
        wire.sent().len() == 3 || wire.sent()[4].contains("mesh/unsubscribe-channel"),
        "{:?}",
        wire.sent()
    );
}

#[test]
fn rooms_and_metadata_are_put_back() {
    let net = Net::kind();
    let (sim, client) = connect(&net);
    let present: Vec<String> = sim.block_on(client.join_room("a")).unwrap();
    assert_eq!(present, ["me"]);
    let _: Vec<String> = sim.block_on(client.join_room("b")).unwrap();
    sim.block_on(client.leave_room("b")).unwrap();
    sim.block_on(client.set_metadata(&[1])).unwrap();
    net.wire(0).cut();
    sim.settle();
    assert_eq!(sim.block_on(async { client.command("x", 1).await }), Ok(1));
    let sent = net.wire(1).sent();
    assert_eq!(sent.len(), 3, "{sent:?}");
    let put_back = |text: &str| sent[..2].iter().any(|sent| sent.contains(text));
    assert!(
        put_back(r#"{"roomName":"a"}"#) && put_back(r#"{"metadata":[1]}"#),
        "{sent:?}"
    );
}

#[test]
fn the_last_handle_takes_the_socket_and_the_task_with_it() {
    let net = Net::kind();
    let (sim, client) = connect(&net);
    let clone = client.clone();
    let mut status = client.on_status();
    let mut chat = sim.block_on(async { client.subscribe("a").await }).unwrap();
    drop(client);
    sim.settle();
    assert_eq!((sim.tasks(), net.wire(0).closed()), (1, None));
    let pending = clone.command::<_, u32>("x", 1).into_future();
    drop(clone);
    let result = sim.block_on(pending);
    assert!(
        matches!(result, Err(ClientError::Disconnected | ClientError::Closed)),
        "{result:?}"
    );
    sim.settle();
    assert_eq!(
        (sim.tasks(), net.wire(0).closed()),
        (0, Some(CloseCode::NORMAL))
    );
    assert!(net.wire(0).is_gone());
    assert_eq!(sim.block_on(chat.next()), None);
    assert_eq!(chat.end(), Some(SubscriptionEnd::Closed));
    assert_eq!(sim.block_on(status.next()), Some(Status::Closed));
    assert_eq!(sim.block_on(status.next()), None);
}

#[test]
fn the_task_ends_with_a_close_that_took_its_time() {
    let net = Net::kind();
    let (sim, client) = connect(&net);
    net.wire(0).block(true);
    drop(client);
    sim.settle();
    assert_eq!(sim.tasks(), 1);
    let start = sim.now();
    net.wire(0).block(false);
    sim.settle();
    assert_eq!((sim.tasks(), sim.now()), (0, start));
}

#[test]
fn close_waits_for_the_socket_at_most_two_seconds_and_the_client_can_come_back() {
    let net = Net::kind();
    let (sim, client) = connect(&net);
    net.wire(0).block(true);
    let start = sim.now();
    sim.block_on(client.close());
    assert_eq!(sim.now() - start, 2 * SECOND);
    assert!(net.wire(0).is_gone());
    let closed: Result<u32, _> = sim.block_on(async { client.command("x", 1).await });
    assert_eq!(closed, Err(ClientError::Closed));
    sim.block_on(client.open()).unwrap();
    assert_eq!(sim.block_on(async { client.command("x", 1).await }), Ok(1));
    let start = sim.now();
    sim.block_on(client.close());
    assert_eq!(
        (sim.now(), net.wire(1).closed()),
        (start, Some(CloseCode::NORMAL))
    );
}

#[test]
fn close_does_not_wait_for_a_socket_that_was_opened_since() {
    let net = Net::kind();
    let (sim, client) = connect(&net);
    net.wire(0).block(true);
    let start = sim.now();
    let mut closing = Box::pin(client.close());
    assert!(closing.as_mut().now_or_never().is_none());
    sim.settle();
    sim.block_on(client.open()).unwrap();
    sim.block_on(closing);
    assert_eq!(sim.now() - start, 2 * SECOND);
    assert!(net.wire(0).is_gone() && client.is_online());
}

#[test]
fn a_socket_that_takes_nothing_holds_a_bounded_backlog() {
    let net = Net::kind();
    let (sim, client) = connect(&net);
    net.wire(0).block(true);
    let payload = "x".repeat(1 << 19);
    let calls: Vec<_> = (0..40)
        .map(|_| {
            client
                .command::<_, String>("x", &payload)
                .timeout(20 * SECOND)
                .into_future()
        })
        .collect();
    sim.settle();
    let mut full = 0;
    net.wire(0).block(false);
    for call in calls {
        match sim.block_on(call) {
            Ok(reply) => assert_eq!(reply.len(), payload.len()),
            Err(error) => {
                assert_eq!(error, ClientError::QueueFull);
                full += 1;
            }
        }
    }
    assert!(
        (20..30).contains(&full),
        "8 in flight and 7 in the queue fit, {full} did not"
    );
}

#[test]
fn an_attempt_ends_with_a_close() {
    let net = Net::kind();
    let (sim, client) = connect(&net);
    net.otherwise(Meets::Nothing);
    net.wire(0).cut();
    sim.sleep(10 * SECOND);
    assert_eq!((net.requests().len(), net.attempts()), (2, 1));
    sim.block_on(client.close());
    assert_eq!(net.attempts(), 0);
}

#[test]
fn so_many_may_wait_for_a_close_and_no_more() {
    let net = Net::kind();
    let (_sim, client) = connect(&net);
    let mut closing: Vec<_> = (0..=CLOSE_WAITERS_MAX)
        .map(|_| Box::pin(client.close()))
        .collect();
    let waits = closing
        .iter_mut()
        .map(|close| close.as_mut().now_or_never().is_none());
    assert_eq!(waits.filter(|waits| *waits).count(), CLOSE_WAITERS_MAX);
}

#[test]
fn an_event_takes_as_much_of_a_buffer_as_its_name_and_payload() {
    let net = Net::kind();
    let (sim, client) = connect(&net);
    let name = "n".repeat(1_000);
    let mut events = client.on::<String>(&name);
    let payload = "p".repeat(1_000);
    for _ in 0..100 {
        net.wire(0)
            .text(format!(r#"{{"command":"{name}","payload":"{payload}"}}"#));
    }
    sim.settle();
    assert_eq!(sim.block_on(events.next()), Some(Ok(payload)));
}

#[test]
fn a_runtime_that_goes_ends_everything() {
    let net = mute();
    let (sim, client) = connect(&net);
    let call = client.command::<_, u32>("x", 1).into_future();
    let mut events = client.on::<u32>("e");
    sim.settle();
    sim.drop_tasks();
    assert_eq!(sim.block_on(call), Err(ClientError::Disconnected));
    assert_eq!(sim.block_on(events.next()), None);
    assert_eq!(sim.block_on(client.on::<u32>("e").next()), None);
    assert_eq!(sim.block_on(client.open()), Err(ConnectError::Closed));
    assert_eq!(
        sim.block_on(async { client.command::<_, u32>("x", 1).await }),
        Err(ClientError::Closed)
    );
    sim.block_on(client.close());
}

#[test]
#[expect(clippy::disallowed_methods, reason = "what blocks a thread needs one")]
fn a_blocking_call_gets_its_reply_or_its_timeout_and_fails_inside_mesh() {
    let net = Net::kind();
    let (sim, client) = connect(&net);
    let thread = {
        let client = client.clone();
        std::thread::spawn(move || client.command_blocking::<_, u32>("x", 5, 20 * SECOND))
    };
    while !thread.is_finished() {
        sim.settle();
        std::thread::yield_now();
    }
    assert_eq!(thread.join().unwrap(), Ok(5));
    // Nobody runs the client's task, and simulated time stands still.
    let after = Duration::from_millis(20);
    let held_up = client.command_blocking::<_, u32>("x", 5, after);
    assert_eq!(held_up, Err(ClientError::Timeout { after, sent: true }));
    let result = Arc::new(Mutex::new(None));
    let guard = {
        let (handle, result) = (client.clone(), Arc::clone(&result));
        client.on_with("e", move |n: u32| {
            *result.lock().unwrap() = Some(handle.command_blocking::<_, u32>("x", n, SECOND));
        })
    };
    net.wire(0).text(r#"{"command":"e","payload":1}"#);
    sim.settle();
    let result = result.lock().unwrap().take();
    assert!(
        matches!(result, Some(Err(ClientError::Usage(_)))),
        "{result:?}"
    );
    drop(guard);
}

#[derive(Clone, Debug)]
enum Step {
    Block(bool),
    Close,
    Command { idempotent: bool },
    Cut,
    DropSubscription,
    Fails,
    Hangs,
    Reopen,
    Sleep(u64),
    Subscribe(u8),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        2 => any::<bool>().prop_map(Step::Block),
        1 => Just(Step::Close),
        6 => any::<bool>().prop_map(|idempotent| Step::Command { idempotent }),
        3 => Just(Step::Cut),
        2 => Just(Step::DropSubscription),
        2 => Just(Step::Fails),
        1 => Just(Step::Hangs),
        2 => Just(Step::Reopen),
        4 => (0..20_000u64).prop_map(Step::Sleep),
        3 => (0..3u8).prop_map(Step::Subscribe),
    ];
    proptest::collection::vec(step, 0..60)
}

proptest! {
    /// Whatever the network does, every future ends in time, and nothing is left once the client is dropped.
    #[test]
    fn every_future_ends_and_nothing_is_left(steps in steps()) {
        let net = Net::kind();
        let (sim, client) = connect(&net);
        let (mut calls, mut subscribing, mut subscriptions) = (Vec::new(), Vec::new(), Vec::new());
        let last = |net: &Net| net.wire(net.wires() - 1);
        for step in steps {
            match step {
                Step::Block(blocked) => last(&net).block(blocked),
                Step::Close => last(&net).close(CloseCode::TRY_AGAIN_LATER),
                Step::Command { idempotent: true } => calls.push(client.command::<_, u32>("x", 1).idempotent().into_future()),
                Step::Command { idempotent: false } => calls.push(client.command::<_, u32>("x", 1).into_future()),
                Step::Cut => last(&net).cut(),
                Step::DropSubscription => drop(subscriptions.pop()),
                Step::Fails => net.script([refused(503)]),
                Step::Hangs => net.script([Meets::Nothing]),
                Step::Reopen => {
                    sim.block_on(client.close());
                    drop(client.open().now_or_never());
                }
                Step::Sleep(ms) => sim.sleep(Duration::from_millis(ms)),
                Step::Subscribe(channel) => {
                    let mut call = client.subscribe(&format!("c{channel}")).history(1).into_future();
                    match (&mut call).now_or_never() {
                        Some(result) => subscriptions.extend(result),
                        None => subscribing.push(call),
                    }
                }
            }
            sim.settle();
        }
        let start = sim.now();
        for call in calls {
            let result = sim.block_on(call);
            let fits = matches!(
                result,
                Ok(1) | Err(ClientError::Timeout { .. } | ClientError::Disconnected | ClientError::Closed)
            );
            prop_assert!(fits, "{result:?}");
        }
        for call in subscribing {
            subscriptions.extend(sim.block_on(call));
        }
        prop_assert!(sim.now() - start <= 31 * SECOND, "{:?}", sim.now() - start);
        if client.is_online() && !last(&net).is_gone() {
            let answer: Result<u32, _> = sim.block_on(async { client.command("x", 1).await });
            prop_assert!(matches!(answer, Ok(1) | Err(ClientError::Timeout { .. } | ClientError::Disconnected)), "{answer:?}");
        }
        drop(client);
        sim.sleep(3 * SECOND);
        prop_assert_eq!(sim.tasks(), 0, "the task outlived its client");
        for n in 0..net.wires() {
            prop_assert!(net.wire(n).is_gone(), "socket {n} is left");
        }
        for mut subscription in subscriptions {
            while sim.block_on(subscription.next()).is_some() {}
        }
    }
}

#[test]
fn who_listens_no_more_is_forgotten_and_the_others_are_not() {
    let net = Net::kind();
    let (sim, client) = connect(&net);
    let [first, second] = [(); 2].map(|()| Arc::new(AtomicU32::new(0)));
    let count = |calls: &Arc<AtomicU32>| {
        let calls = Arc::clone(calls);
        client.on_with("e", move |n: u32| {
            calls.fetch_add(n, Ordering::Relaxed);
        })
    };
    let (guard, other) = (count(&first), count(&second));
    assert_eq!(Arc::strong_count(&first), 2);
    drop(guard);
    assert_eq!(Arc::strong_count(&first), 1, "what it held is let go");
    net.wire(0).text(r#"{"command":"e","payload":1}"#);
    sim.settle();
    let calls = [first, second].map(|calls| calls.load(Ordering::Relaxed));
    assert_eq!(calls, [0, 1]);
    drop(other);
}

#[test]
fn a_client_is_online_while_it_is_connected() {
    let net = Net::kind();
    let (sim, client) = connect(&net);
    assert!(client.is_online());
    net.otherwise(Meets::Nothing);
    net.wire(0).cut();
    sim.settle();
    assert!(!client.is_online());
}

#[test]
fn a_subscription_knows_its_channel() {
    let net = Net::kind();
    let (sim, client) = connect(&net);
    let subscription = sim
        .block_on(async { client.subscribe("chat").await })
        .unwrap();
    assert_eq!(subscription.channel(), "chat");
}

#[test]
fn why_a_socket_ended_is_told_and_a_fault_of_the_server_is_answered() {
    let io = std::io::Error::new(std::io::ErrorKind::ConnectionReset, "reset");
    for (error, lost, answer) in [
        (
            SocketError::Io(io),
            Loss::Io {
                kind: std::io::ErrorKind::ConnectionReset,
                message: "reset".to_owned(),
            },
            None,
        ),
        (
            SocketError::Protocol(DecodeError::TextNotUtf8),
            Loss::Protocol(DecodeError::TextNotUtf8),
            Some(CloseCode::PROTOCOL_ERROR),
        ),
        (SocketError::Gone, Loss::Gone, None),
    ] {
        let net = Net::kind();
        let (sim, client) = connect(&net);
        net.otherwise(Meets::Nothing);
        net.wire(0).fail(error);
        sim.settle();
        assert_eq!(client.last_error(), Some(ConnectError::Lost(lost)));
        assert_eq!(net.wire(0).closed(), answer);
    }
}

#[test]
fn what_was_sent_before_a_close_goes_out_before_it() {
    let net = Net::kind();
    let (sim, client) = connect(&net);
    net.wire(0).block(true);
    let _last = client.command::<_, u32>("last", 1).into_future();
    sim.settle();
    let mut closing = Box::pin(client.close());
    assert!(closing.as_mut().now_or_never().is_none());
    sim.settle();
    net.wire(0).block(false);
    sim.block_on(closing);
    let sent = net.wire(0).sent();
    assert!(
        sent.iter().any(|frame| frame.contains("\"last\"")),
        "{sent:?}"
    );
    assert_eq!(net.wire(0).closed(), Some(CloseCode::NORMAL));
}

#[test]
fn a_panic_of_a_callback_is_told_with_its_words() {
    for (panic, words) in [
        (
            Box::new("static") as Box<dyn std::any::Any + Send>,
            "static",
        ),
        (Box::new("owned".to_owned()), "owned"),
        (Box::new(7), "no message"),
    ] {
        assert_eq!(panic_message(&*panic), words);
    }
}

#[test]
fn sockets_that_close_slowly_close_beside_each_other() {
    let net = Net::kind();
    let (sim, client) = connect(&net);
    for n in 0..2 {
        if n > 0 {
            sim.block_on(client.open()).unwrap();
        }
        net.wire(n).block(true);
        let mut closing = Box::pin(client.close());
        assert!(closing.as_mut().now_or_never().is_none());
        sim.settle();
    }
    for n in 0..2 {
        net.wire(n).block(false);
        sim.settle();
        assert_eq!(net.wire(n).closed(), Some(CloseCode::NORMAL), "{n}");
    }
}
