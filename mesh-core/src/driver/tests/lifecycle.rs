//! How connections begin and end, and the server with them.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use serde_json::json;

use crate::{
    backend::{ConnectionId, MemoryCluster},
    driver::{
        Accept, CloseCode, Context, FrontDoor, MeshServer, MeshServerBuilder, ServerError, inside,
        testkit::{Client, Gate, Mood, Moody, Sim, Started},
        tests::front_door::upgrade,
    },
};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

macro_rules! on {
    ($sim:expr, $server:expr, |$name:ident| $body:expr) => {{
        let $name = $server.clone();
        $sim.wait(async move { $body.await })
    }};
}

/// A server on a moody backend, and another one on the same cluster that sees what it left behind.
fn moody(sim: &Sim, builder: MeshServerBuilder) -> (MeshServer, Mood, MeshServer) {
    let cluster = MemoryCluster::new();
    let (backend, mood) = Moody::new(&cluster);
    let witness = sim.build(MeshServer::builder().backend(cluster.backend()));
    (sim.build(builder.backend(backend)), mood, witness)
}

fn all_ids(sim: &Sim, server: &MeshServer) -> Vec<ConnectionId> {
    on!(sim, server, |s| s.connections().ids()).unwrap()
}

/// Registers `forever`, which never ends, and tells when it is dropped.
fn forever(server: &MeshServer) -> Arc<()> {
    let alive = Arc::new(());
    let held = Arc::clone(&alive);
    server.register_command("forever", move |_: Context| {
        let held = Arc::clone(&held);
        async move {
            std::future::pending::<()>().await;
            drop(held);
            Ok(())
        }
    });
    alive
}

/// Registers `waits`, which is done once the gate opens.
fn waits(server: &MeshServer) -> Gate {
    let gate = Gate::default();
    let wait = gate.clone();
    server.register_command("waits", move |_: Context| {
        let opened = wait.wait();
        async move {
            opened.await;
            Ok("done")
        }
    });
    gate
}

fn shut_down(sim: &Sim, server: &MeshServer) -> Started<Result<(), ServerError>> {
    let server = server.clone();
    let started = sim.start(async move { server.shutdown().await });
    sim.run();
    started
}

#[test]
fn the_future_of_a_connection_is_small() {
    let sim = Sim::new();
    let server = sim.server();
    let admission = server.admit(None).unwrap();
    let socket = sim.socket();
    let future = server.serve(admission, Box::new(socket));
    let size = std::mem::size_of_val(&future);
    assert!(size <= 3_072, "{size} bytes");
}

#[test]
fn a_silent_client_is_gone_after_three_intervals_and_nowhere() {
    let sim = Sim::new();
    let gone = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&gone);
    let server = sim.build(MeshServer::builder().on_disconnection(move |connection| {
        noted.lock().unwrap().push(connection.id().clone());
        async {}
    }));
    server.expose_room("r");
    server.expose_channel("c");
    let (mut silent, stuck, live) = (
        sim.connect(&server),
        sim.connect(&server),
        sim.connect(&server),
    );
    silent.call("mesh/join-room", json!({"roomName": "r"}));
    silent.call("mesh/subscribe-channel", json!({"channel": "c"}));
    stuck.block(true);
    for _ in 0..6 {
        sim.advance(14_990 * MS);
        live.send_text(r#"{"id":0,"command":"pong","payload":{}}"#);
    }
    assert_eq!((silent.close_code(), stuck.is_dropped()), (None, false));
    sim.advance(100 * MS);
    assert_eq!(silent.close_code(), Some(1001));
    assert!(
        silent.is_dropped() && !stuck.is_dropped(),
        "its socket takes no close frame"
    );
    sim.advance(2 * SECOND);
    assert!(stuck.is_dropped());
    assert_eq!((live.close_code(), live.is_dropped()), (None, false));
    assert_eq!(on!(sim, server, |s| s.room_members("r")), Ok(vec![]));
    assert_eq!(all_ids(&sim, &server), [ConnectionId::new(live.id.clone())]);
    assert_eq!(server.health().connections, 1);
    assert_eq!(gone.lock().unwrap().len(), 2);
    assert!(
        server
            .inner
            .memberships(&ConnectionId::new(silent.id.clone()))
            .is_empty()
    );
}

#[test]
fn hooks_run_before_the_first_command_and_after_the_last_membership() {
    let sim = Sim::new();
    let journal = Arc::new(Mutex::new(Vec::new()));
    let (begins, ends) = (Arc::clone(&journal), Arc::clone(&journal));
    let gate = Gate::default();
    let opened = gate.clone();
    let slot = Arc::new(Mutex::new(None::<MeshServer>));
    let seen = Arc::clone(&slot);
    let server = sim.build(
        MeshServer::builder()
            .on_connection(|_| -> std::future::Ready<()> { panic!("on purpose") })
            .on_connection(move |connection| {
                let (journal, opened) = (Arc::clone(&begins), opened.wait());
                async move {
                    opened.await;
                    connection.send("welcome", &1).unwrap();
                    journal.lock().unwrap().push("connected".to_owned());
                }
            })
            .on_disconnection(move |connection| {
                let journal = Arc::clone(&ends);
                let server = seen.lock().unwrap().clone();
                async move {
                    let members = server.unwrap().room_members("r").await.unwrap();
                    let open = connection.is_open();
                    journal
                        .lock()
                        .unwrap()
                        .push(format!("gone {} {open}", members.len()));
                }
            }),
    );
    *slot.lock().unwrap() = Some(server.clone());
    let noted = Arc::clone(&journal);
    server.register_command("x", move |ctx: Context| {
        noted.lock().unwrap().push("command".to_owned());
        async move {
            ctx.server.add_to_room("r", &ctx.connection).await?;
            Ok(())
        }
    });
    let mut client = sim.dial(&server);
    client.send("x", json!({}));
    sim.run();
    gate.open();
    sim.run();
    let names: Vec<_> = client
        .frames()
        .iter()
        .map(|frame| frame["command"].clone())
        .collect();
    assert_eq!(names, ["mesh/assign-id", "welcome", "x"]);
    client.close();
    sim.run();
    assert_eq!(
        client.close_code(),
        Some(1000),
        "the peer's close is answered"
    );
    assert_eq!(
        *journal.lock().unwrap(),
        ["connected", "command", "gone 0 false"]
    );
    *slot.lock().unwrap() = None;
}

#[test]
fn a_client_that_goes_during_its_registration_leaves_no_ghost() {
    for slow in ["OpenInstance", "Subscribe", "OpenConnection"] {
        for polite in [true, false] {
            let sim = Sim::new();
            let (server, mood, witness) = moody(&sim, MeshServer::builder());
            mood.slow.lock().unwrap().push(slow);
            let client = sim.dial(&server);
            sim.run();
            if polite {
                client.close();
            } else {
                client.vanish();
            }
            sim.advance(SECOND);
            assert_eq!(server.health().connections, 1, "its place is not free yet");
            mood.gate.open();
            sim.run();
            assert!(client.is_dropped());
            assert_eq!(all_ids(&sim, &witness), [], "{slow}");
            assert_eq!(server.health().connections, 0);
            assert!(server.inner.all_local().is_empty());
        }
    }
}

#[test]
fn a_close_whose_time_is_over_before_it_began_ends_the_connection() {
    let sim = Sim::new();
    let (server, mood, witness) = moody(&sim, MeshServer::builder());
    sim.connect(&server).close();
    sim.run();
    mood.slow.lock().unwrap().push("OpenConnection");
    let client = sim.dial(&server);
    // Nobody reads from it before it is registered, so it counts as silent, and then as gone.
    sim.advance(100 * SECOND);
    assert!(!client.is_dropped());
    mood.gate.open();
    sim.advance(SECOND);
    assert!(client.is_dropped());
    assert_eq!(server.health().connections, 0);
    assert_eq!(all_ids(&sim, &witness), []);
}

#[test]
fn a_server_that_cannot_start_turns_clients_away_until_it_can() {
    for failing in ["OpenInstance", "Subscribe"] {
        let sim = Sim::new();
        let (server, mood, witness) = moody(&sim, MeshServer::builder());
        mood.failing.lock().unwrap().push(failing);
        let client = sim.dial(&server);
        sim.run();
        assert_eq!(client.close_code(), Some(1013), "{failing}");
        assert!(client.is_dropped());
        mood.failing.lock().unwrap().clear();
        let mut client = sim.connect(&server);
        assert_eq!(client.call("mesh/noop", json!({})), true, "{failing}");
        assert_eq!(all_ids(&sim, &witness).len(), 1);
        // What concerns the instance as a whole works, too.
        on!(sim, witness, |s| s.broadcast("hi", 1)).unwrap();
        sim.run();
        assert_eq!(client.events(), ["hi 1"], "{failing}");
    }
}

#[test]
fn a_command_that_needs_the_backend_says_that_it_cannot_be_reached() {
    let sim = Sim::new();
    let (server, mood, _) = moody(&sim, MeshServer::builder());
    server.expose_channel("c");
    server.expose_room("r");
    let mut client = sim.connect(&server);
    let names = ["Subscribe", "JoinRoom", "History", "RoomMetadata"];
    mood.failing.lock().unwrap().extend(names);
    server.expose_room_metadata("r");
    for (command, payload) in [
        ("subscribe-channel", json!({"channel": "c"})),
        ("get-channel-history", json!({"channel": "c"})),
        ("join-room", json!({"roomName": "r"})),
        ("get-room-metadata", json!({"roomName": "r"})),
    ] {
        let command = format!("mesh/{command}");
        assert_eq!(client.code(&command, payload), "EUNAVAILABLE", "{command}");
    }
    mood.failing.lock().unwrap().clear();
    let granted = client.call("mesh/subscribe-channel", json!({"channel": "c"}));
    assert_eq!(granted["success"], true);
}

#[test]
fn rubbish_is_answered_and_then_closes() {
    let sim = Sim::new();
    let server = sim.server();
    let client = sim.connect(&server);
    for _ in 0..8 {
        client.send_text("rubbish");
    }
    sim.run();
    assert_eq!(client.events().len(), 8);
    assert_eq!(client.close_code(), None);
    client.send_text("{}");
    sim.run();
    assert_eq!(
        (client.close_code(), client.is_dropped()),
        (Some(1008), true)
    );
}

#[test]
fn reading_pauses_while_too_much_is_in_flight_and_goes_on() {
    let sim = Sim::new();
    let server = sim.build(MeshServer::builder().limits(|limits| limits.in_flight_bytes_max = 100));
    let gate = waits(&server);
    let mut client = sim.connect(&server);
    client.send("waits", json!("x".repeat(200)));
    sim.run();
    client.send("mesh/noop", json!({}));
    sim.run();
    assert_eq!(client.replies(), [] as [u64; 0], "not even read");
    gate.open();
    sim.run();
    assert_eq!(client.replies(), [1, 2]);
}

#[test]
fn a_client_that_does_not_read_is_closed_and_the_others_get_everything() {
    let sim = Sim::new();
    let server = sim.server();
    let (slow, gone, fast) = (
        sim.connect(&server),
        sim.connect(&server),
        sim.connect(&server),
    );
    slow.block(true);
    gone.block(true);
    let large = "x".repeat(64 << 10);
    for _ in 0..80 {
        let large = large.clone();
        on!(sim, server, |s| s.broadcast("large", large)).unwrap();
    }
    sim.run();
    assert_eq!(fast.events().len(), 80);
    assert_eq!(server.metrics().slow_consumers_total, 2);
    slow.block(false);
    sim.run();
    assert_eq!((slow.close_code(), slow.is_dropped()), (Some(1013), true));
    assert_eq!(
        slow.events(),
        Vec::<String>::new(),
        "what was queued is dropped"
    );
    assert!(!gone.is_dropped());
    sim.advance(2 * SECOND + 20 * MS);
    assert!(gone.is_dropped(), "it does not even take the close frame");
    assert_eq!(server.health().connections, 1);
    assert_eq!(all_ids(&sim, &server).len(), 1);
}

#[test]
fn a_client_is_sent_what_is_queued_and_then_disconnected() {
    let sim = Sim::new();
    let server = sim.server();
    let client = sim.connect(&server);
    client.ignore_close();
    let (s, id) = (server.clone(), client.id.clone());
    sim.wait(async move {
        s.send_to(&id, "last", 1).await?;
        s.disconnect(&id, CloseCode::POLICY_VIOLATION, "bye")
            .await?;
        s.send_to(&id, "too late", 2).await
    })
    .unwrap();
    assert_eq!(client.events(), ["last 1"]);
    assert_eq!(client.close_code(), Some(1008));
    sim.advance(1_900 * MS);
    assert!(!client.is_dropped(), "it has two seconds to answer");
    sim.advance(200 * MS);
    assert!(client.is_dropped());
    let (s, id) = (server.clone(), client.id.clone());
    // To nobody it is no error.
    sim.wait(async move { s.disconnect(&id, CloseCode::NORMAL, "").await })
        .unwrap();
}

#[test]
fn a_handler_of_a_client_that_is_gone_may_finish_but_not_run_for_ever() {
    let sim = Sim::new();
    let server = sim.server();
    let (alive, gate) = (forever(&server), waits(&server));
    let mut client = sim.connect(&server);
    client.send_all(&[("forever", json!(1)), ("waits", json!(1))]);
    sim.run();
    client.vanish();
    sim.advance(9 * SECOND);
    gate.open();
    sim.run();
    assert_eq!(
        Arc::strong_count(&alive),
        3,
        "here, in the registry, and in the handler"
    );
    sim.advance(SECOND);
    assert_eq!(Arc::strong_count(&alive), 2);
}

#[test]
fn a_client_that_is_gone_gives_its_place_back_although_handlers_run_on() {
    let sim = Sim::new();
    let gone = Arc::new(Mutex::new(0));
    let noted = Arc::clone(&gone);
    let builder = MeshServer::builder().on_disconnection(move |_| {
        *noted.lock().unwrap() += 1;
        async {}
    });
    let server = sim.build(builder.limits(|limits| limits.connections_max = Some(1)));
    let alive = forever(&server);
    let mut client = sim.connect(&server);
    client.send("forever", json!(1));
    sim.run();
    assert!(server.admit(None).is_err(), "the server is full");
    client.vanish();
    sim.run();
    assert_eq!((*gone.lock().unwrap(), server.health().connections), (1, 0));
    assert_eq!(sim.connect(&server).call("mesh/noop", json!({})), true);
    assert_eq!(Arc::strong_count(&alive), 3, "the handler runs on");
}

#[test]
fn a_shutdown_delivers_what_is_in_flight_and_tells_everybody() {
    let sim = Sim::new();
    let (server, _, witness) = moody(&sim, MeshServer::builder());
    server.expose_room("r");
    let (alive, gate) = (forever(&server), waits(&server));
    let mut clients: Vec<Client> = (0..4).map(|_| sim.connect(&server)).collect();
    for client in &mut clients {
        client.call("mesh/join-room", json!({"roomName": "r"}));
    }
    clients[0].send("waits", json!({}));
    clients[1].send("forever", json!({}));
    clients[2].ignore_close();
    sim.run();
    let began = sim.now();
    let ended = shut_down(&sim, &server);
    for (client, code) in clients.iter().zip([None, None, Some(1001), Some(1001)]) {
        assert_eq!(client.close_code(), code);
    }
    assert!(server.admit(None).is_err());
    sim.advance(SECOND);
    gate.open();
    sim.run();
    assert_eq!(clients[0].frames()[0]["payload"], "done");
    assert_eq!(clients[0].close_code(), Some(1001));
    assert_eq!(
        clients[1].close_code(),
        None,
        "it has until the drain time is over"
    );
    assert!(!ended.is_done());
    sim.advance(520 * MS);
    assert_eq!(clients[1].close_code(), Some(1001));
    assert!(clients[1].is_dropped());
    sim.advance(SECOND);
    assert_eq!(ended.take(), Some(Ok(())));
    assert!(sim.now() - began < 3 * SECOND);
    assert!(clients.iter().all(Client::is_dropped));
    assert_eq!(Arc::strong_count(&alive), 2, "the handler is dropped");
    assert_eq!(all_ids(&sim, &witness), []);
    assert_eq!(on!(sim, witness, |s| s.room_members("r")), Ok(vec![]));
    assert_eq!(server.health().connections, 0);
}

#[test]
fn a_second_shutdown_waits_for_the_first_and_takes_up_one_that_was_given_up() {
    use futures_util::FutureExt;
    let sim = Sim::new();
    let (server, mood, witness) = moody(&sim, MeshServer::builder());
    let client = sim.connect(&server);
    mood.slow.lock().unwrap().push("CloseInstance");
    let given_up = {
        let server = server.clone();
        sim.wait(async move { server.shutdown().now_or_never() })
    };
    assert_eq!(given_up, None);
    let (first, second) = (shut_down(&sim, &server), shut_down(&sim, &server));
    assert_eq!(client.close_code(), Some(1001));
    sim.advance(SECOND / 2);
    assert!(!first.is_done() && !second.is_done());
    mood.gate.open();
    sim.run();
    assert_eq!(first.take(), Some(Ok(())));
    assert_eq!(second.take(), Some(Ok(())));
    assert_eq!(all_ids(&sim, &witness), []);
}

#[test]
fn a_shutdown_waits_for_no_handler_whose_client_is_gone() {
    let sim = Sim::new();
    let server = sim.server();
    let alive = forever(&server);
    let mut client = sim.connect(&server);
    client.send("forever", json!({}));
    sim.run();
    client.vanish();
    sim.advance(SECOND);
    let ended = shut_down(&sim, &server);
    sim.advance(100 * MS);
    assert_eq!(ended.take(), Some(Ok(())));
    assert_eq!(Arc::strong_count(&alive), 2);
}

#[test]
fn a_shutdown_reaches_those_who_are_just_coming_in() {
    let sim = Sim::new();
    let (server, mood, witness) = moody(&sim, MeshServer::builder());
    sim.connect(&server).close();
    sim.run();
    mood.slow.lock().unwrap().push("OpenConnection");
    let client = sim.dial(&server);
    sim.run();
    let ended = shut_down(&sim, &server);
    sim.advance(100 * MS);
    mood.gate.open();
    sim.advance(100 * MS);
    assert_eq!(client.close_code(), Some(1001));
    assert_eq!(ended.take(), Some(Ok(())));
    assert_eq!(all_ids(&sim, &witness), []);
}

#[test]
fn a_shutdown_ends_although_the_backend_fails() {
    let sim = Sim::new();
    let (server, mood, _) = moody(&sim, MeshServer::builder());
    let client = sim.connect(&server);
    mood.failing.lock().unwrap().push("CloseInstance");
    // Each of those who ask, whoever came first, and who asks later.
    let ended = [shut_down(&sim, &server), shut_down(&sim, &server)];
    sim.advance(100 * MS);
    let later = shut_down(&sim, &server);
    sim.run();
    for ended in ended.into_iter().chain([later]) {
        assert!(matches!(ended.take(), Some(Err(ServerError::Backend(_)))));
    }
    assert!(client.is_dropped());
}

#[test]
fn sequential_commands_that_wait_are_answered_at_a_shutdown() {
    let sim = Sim::new();
    let server = sim.build(MeshServer::builder().sequential());
    let gate = waits(&server);
    let mut client = sim.connect(&server);
    client.send_all(&[
        ("waits", json!(1)),
        ("waits", json!(2)),
        ("mesh/noop", json!(3)),
    ]);
    sim.run();
    let ended = shut_down(&sim, &server);
    gate.open();
    sim.advance(50 * MS);
    assert_eq!(client.replies(), [1, 2, 3]);
    assert_eq!(client.close_code(), Some(1001));
    assert_eq!(ended.take(), Some(Ok(())));
}

#[test]
fn a_server_that_runs_for_years_keeps_its_timers() {
    let sim = Sim::new();
    let server = sim.server();
    sim.connect(&server).close();
    sim.run();
    sim.advance(1_000 * 86_400 * SECOND);
    let client = sim.connect(&server);
    sim.advance(5 * SECOND + 20 * MS);
    let frames = client.frames();
    assert_eq!(frames.len(), 1);
    assert_eq!(frames[0]["command"], "latency:request");
}

#[test]
fn intervals_without_end_are_no_panic() {
    let sim = Sim::new();
    let server = sim.build(
        MeshServer::builder()
            .ping_interval(Duration::MAX)
            .latency_interval(Duration::MAX)
            .drain_time(Duration::MAX)
            .limits(|limits| limits.close_time_max = Duration::MAX),
    );
    let mut client = sim.connect(&server);
    sim.advance(3_600 * SECOND);
    assert_eq!(client.frames().len(), 0);
    assert_eq!(client.call("mesh/noop", json!({})), true);
    let ended = shut_down(&sim, &server);
    sim.advance(50 * MS);
    assert_eq!(ended.take(), Some(Ok(())));
}

#[test]
fn latency_is_measured_and_told_with_the_next_request() {
    let sim = Sim::new();
    let server = sim.server();
    let client = sim.connect(&server);
    sim.advance(5 * SECOND);
    assert_eq!(client.frames().len(), 1);
    sim.advance(25 * MS);
    client.send_text(r#"{"id":1,"command":"latency:response","payload":{}}"#);
    sim.run();
    let local = server.connections().local(client.id.as_str()).unwrap();
    assert_eq!(local.latency(), Some(25 * MS));
    sim.advance(5 * SECOND);
    let frames = client.frames();
    assert_eq!(frames[0]["command"], "latency");
    assert_eq!(frames[0]["payload"].as_f64(), Some(25.0));
    assert_eq!(frames[1]["command"], "latency:request");
    assert_eq!(frames.len(), 2);
}

#[test]
fn whatever_the_application_is_called_for_runs_inside() {
    let sim = Sim::new();
    let seen = Arc::new(Mutex::new(BTreeMap::new()));
    let note = {
        let seen = Arc::clone(&seen);
        move |what| {
            let inside = inside::is_inside();
            seen.lock().unwrap().insert(what, inside);
        }
    };
    /// Notes where it runs, when called and after waiting.
    macro_rules! noting {
        ($before:literal, $after:literal, $result:expr) => {{
            let (note, sim) = (note.clone(), sim.clone());
            move || {
                note($before);
                let note = note.clone();
                let timer = sim.runtime().sleep_until(sim.now() + SECOND);
                async move {
                    timer.await;
                    note($after);
                    $result
                }
            }
        }};
    }
    let connected = noting!("on_connection", "on_connection, later", ());
    let disconnected = noting!("on_disconnection", "on_disconnection, later", ());
    let authenticate = noting!("authenticate", "authenticate, later", Ok(Accept::new()));
    let page = noting!("page", "page, later", None);
    let handler = noting!("handler", "handler, later", Ok(()));
    let middleware = noting!("middleware", "middleware, later", Ok(()));
    let guard = noting!("guard", "guard, later", true);
    let server = sim.build(
        MeshServer::builder()
            .on_connection(move |_| connected())
            .on_disconnection(move |_| disconnected())
            .authenticate(move |_| authenticate())
            .http(move |_| page()),
    );
    server.register_command("handler", move |_: Context| handler());
    server
        .register_command("guided", async |_: Context| Ok(()))
        .middleware(move |_| middleware());
    server.expose_channel("c").guard(move |_, _| guard());
    let ask = |head| {
        let server = server.clone();
        let asked = sim.start(async move { server.handle_request(head, None).await });
        sim.advance(2 * SECOND);
        asked.take().unwrap()
    };
    let plain = http::Request::new(()).into_parts().0;
    assert!(matches!(ask(plain), FrontDoor::Respond(_)));
    let FrontDoor::Upgrade { admission, .. } = ask(upgrade(&[])) else {
        panic!("refused");
    };
    let mut client = sim.attach(&server, admission);
    sim.advance(2 * SECOND);
    client.send_all(&[
        ("handler", json!({})),
        ("guided", json!({})),
        ("mesh/subscribe-channel", json!({"channel": "c"})),
    ]);
    sim.advance(2 * SECOND);
    let at_subscribe = std::mem::take(&mut *seen.lock().unwrap());
    // From a task of the application's own.
    let (s, local) = (server.clone(), server.inner.all_local().remove(0));
    let asked = sim.start(async move { s.recheck_guards(&local).await });
    sim.advance(2 * SECOND);
    assert_eq!(asked.take(), Some(Ok(())));
    client.vanish();
    sim.advance(2 * SECOND);
    let mut seen = seen.lock().unwrap();
    assert_eq!(
        at_subscribe.len() + seen.len(),
        16,
        "{at_subscribe:?} {seen:?}"
    );
    seen.extend(at_subscribe.iter().filter(|(_, inside)| !**inside));
    seen.retain(|_, inside| !*inside);
    assert!(seen.is_empty(), "not marked: {seen:?}");
    assert!(!inside::is_inside());
}

#[test]
fn pings_that_are_missed_are_forgiven_as_often_as_was_said() {
    for (forgiven, intervals) in [(0, 2), (1, 3), (4, 6)] {
        let sim = Sim::new();
        let server = sim.build(MeshServer::builder().max_missed_pongs(forgiven));
        let client = sim.connect(&server);
        sim.advance(intervals * 30 * SECOND - 50 * MS);
        assert_eq!(client.close_code(), None, "{forgiven} forgiven");
        sim.advance(100 * MS);
        assert_eq!(client.close_code(), Some(1001), "{forgiven} forgiven");
    }
}

#[test]
fn a_shutdown_reaches_every_one_of_a_crowd() {
    // One batch, exactly, and more than two.
    for crowd in [500, 1_001] {
        let sim = Sim::new();
        let server = sim.server();
        let clients: Vec<Client> = (0..crowd).map(|_| sim.connect(&server)).collect();
        let ended = shut_down(&sim, &server);
        sim.advance(SECOND);
        assert_eq!(ended.take(), Some(Ok(())));
        let told = clients.iter().filter(|it| it.close_code() == Some(1001));
        assert_eq!(told.count(), crowd);
    }
}

#[test]
fn a_shutdown_waits_for_who_hangs_as_long_as_it_says_and_no_longer() {
    let sim = Sim::new();
    let server = sim.build(
        MeshServer::builder()
            .drain_time(2 * SECOND)
            .limits(|limits| limits.close_time_max = 3 * SECOND)
            .on_disconnection(async |_| std::future::pending().await),
    );
    let client = sim.connect(&server);
    client.close();
    let ended = shut_down(&sim, &server);
    sim.advance(5_490 * MS);
    assert!(!ended.is_done(), "a hook is given time");
    sim.advance(20 * MS);
    assert_eq!(ended.take(), Some(Ok(())));
}

#[test]
fn a_backend_has_a_second_to_hear_of_the_end() {
    let sim = Sim::new();
    let builder = MeshServer::builder()
        .drain_time(Duration::ZERO)
        .limits(|limits| limits.close_time_max = Duration::ZERO);
    let (server, mood, _) = moody(&sim, builder);
    mood.slow.lock().unwrap().push("CloseInstance");
    let ended = shut_down(&sim, &server);
    sim.advance(1_490 * MS);
    assert!(!ended.is_done());
    sim.advance(20 * MS);
    assert!(matches!(ended.take(), Some(Err(ServerError::Backend(_)))));
}

#[test]
fn a_server_that_is_dropped_leaves_no_task_behind() {
    let sim = Sim::new();
    let server = sim.server();
    let client = sim.connect(&server);
    client.close();
    sim.advance(5 * SECOND);
    assert!(sim.tasks() > 0, "its timers and what the backend tells");
    drop(server);
    sim.advance(60 * SECOND);
    assert_eq!(sim.tasks(), 0);
}

#[test]
fn a_connection_that_is_gone_leaves_no_deadline_behind() {
    let sim = Sim::new();
    let server = sim.server();
    let before = server.inner.timers.len();
    let client = sim.connect(&server);
    assert_eq!(server.inner.timers.len(), before + 1);
    client.vanish();
    sim.run();
    assert_eq!(server.inner.timers.len(), before);
}

#[test]
fn everybody_who_waits_for_the_end_is_told() {
    let sim = Sim::new();
    let server = sim.server();
    let waits = [(); 3].map(|()| {
        let server = server.clone();
        sim.start(async move { server.wait_stopping().await })
    });
    sim.run();
    assert!(waits.iter().all(|wait| !wait.is_done()));
    shut_down(&sim, &server);
    assert!(waits.iter().all(Started::is_done));
}

#[test]
fn who_breaks_the_protocol_is_told_how_and_others_are_not_disturbed() {
    let sim = Sim::new();
    let server = sim.server();
    let (bad, mut good) = (sim.connect(&server), sim.connect(&server));
    bad.break_the_protocol();
    sim.run();
    assert_eq!(bad.close_code(), Some(1007));
    assert_eq!(good.call("mesh/noop", json!({})), true);
}

#[test]
fn who_cannot_be_registered_is_told_whether_there_is_no_room_or_no_backend() {
    let sim = Sim::new();
    let (server, mood, _) = moody(&sim, MeshServer::builder());
    for (why, what, reason) in [
        (
            &mood.failing,
            "OpenInstance",
            "the backend cannot be reached",
        ),
        (&mood.full, "OpenConnection", "the backend is full"),
    ] {
        why.lock().unwrap().push(what);
        let client = sim.dial(&server);
        sim.run();
        assert_eq!(client.close_code(), Some(1013));
        assert_eq!(client.close_reason().as_deref(), Some(reason));
        why.lock().unwrap().clear();
    }
}

#[test]
fn commands_beyond_ones_share_of_a_turn_run_in_the_next() {
    let sim = Sim::new();
    let server = sim.server();
    let mut client = sim.connect(&server);
    let ids = client.send_all(&vec![("mesh/noop", json!({})); 1_000]);
    sim.run();
    let ids: Vec<_> = ids.into_iter().map(u64::from).collect();
    assert_eq!(client.replies(), ids);
}
