//! Rooms, channels, events and the guards before them.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::FutureExt;
use serde_json::{Value, json};

use crate::{
    backend::{MemoryCluster, Op},
    driver::{
        Membership, MeshServer, Pattern, ServerError,
        testkit::{Client, Gate, Moody, Sim},
    },
};

/// Runs one of the server's handles.
macro_rules! on {
    ($sim:expr, $server:expr, |$name:ident| $body:expr) => {{
        let $name = $server.clone();
        $sim.wait(async move { $body.await })
    }};
}

fn subscribe(client: &mut Client, channel: &str) -> Value {
    client.call("mesh/subscribe-channel", json!({"channel": channel}))
}

fn join(client: &mut Client, room: &str) -> Value {
    client.call("mesh/join-room", json!({"roomName": room}))
}

/// A client that is told `ping` in another's name would answer it; one that is told `mesh/assign-id` would believe it.
#[test]
fn an_event_has_1_to_512_bytes_and_none_of_the_protocols_own_names() {
    let sim = Sim::new();
    let server = sim.server();
    let mut client = sim.connect(&server);
    server.expose_room("r");
    join(&mut client, "r");
    let connection = server.connections().local(&client.id).unwrap();
    let all_ways = |event: &str| {
        let event = event.to_owned();
        let (s, id, connection) = (server.clone(), client.id.clone(), connection.clone());
        let outcomes = sim.wait(async move {
            [
                s.broadcast(&event, 1).await,
                s.broadcast_exclude(&event, 1, ["nobody"]).await,
                s.broadcast_to(&event, 1, [&id]).await,
                s.broadcast_room("r", &event, 1).await,
                s.broadcast_room_exclude("r", &event, 1, ["nobody"]).await,
                s.send_to(&id, &event, 1).await,
                connection.send(&event, &1),
            ]
        });
        sim.run();
        let received = client.frames();
        let of_it = |frame: &&Value| frame["payload"] == 1;
        (outcomes, received.iter().filter(of_it).count())
    };
    let longest = "x".repeat(512);
    for event in [
        "e", "é", &longest, "mesh", "mesh:e", "rt/e", "pong", "pings",
    ] {
        let (outcomes, received) = all_ways(event);
        assert_eq!((outcomes, received), ([const { Ok(()) }; 7], 7), "{event}");
    }
    for event in ["", &"x".repeat(513)] {
        let (what, len, max) = ("event", event.len(), 512);
        let (outcomes, received) = all_ways(event);
        let refused = outcomes.map(|outcome| outcome.unwrap_err());
        assert!(
            refused
                .iter()
                .all(|error| *error == ServerError::Name { what, len, max }),
            "{refused:?}"
        );
        assert_eq!(received, 0, "{len}");
    }
    for event in [
        "mesh/",
        "mesh/assign-id",
        "mesh/of-the-application",
        "ping",
        "latency",
        "latency:request",
    ] {
        let name = event.to_owned();
        let error = ServerError::ReservedName { name };
        let (outcomes, received) = all_ways(event);
        assert!(
            outcomes
                .iter()
                .all(|outcome| *outcome == Err(error.clone())),
            "{outcomes:?}"
        );
        assert_eq!(received, 0, "{event}");
    }
}

#[test]
fn nothing_is_exposed_by_default() {
    let sim = Sim::new();
    let server = sim.server();
    let mut client = sim.connect(&server);
    on!(sim, server, |s| s.publish_to_channel("c", "secret", 10)).unwrap();
    on!(sim, server, |s| s.rooms().set_metadata("r", &1)).unwrap();
    let denied = json!({"success": false, "history": []});
    for (command, payload, answer) in [
        (
            "subscribe-channel",
            json!({"channel": "c", "historyLimit": 5}),
            denied.clone(),
        ),
        ("get-channel-history", json!({"channel": "c"}), denied),
        ("unsubscribe-channel", json!({"channel": "c"}), json!(false)),
        (
            "join-room",
            json!({"roomName": "r"}),
            json!({"success": false, "present": []}),
        ),
        (
            "get-room-metadata",
            json!({"roomName": "r"}),
            json!({"metadata": null}),
        ),
    ] {
        assert_eq!(
            client.call(&format!("mesh/{command}"), payload),
            answer,
            "{command}"
        );
    }
    on!(sim, server, |s| s.publish_to_channel("c", "more", 0)).unwrap();
    sim.run();
    assert_eq!(client.events(), Vec::<String>::new());
    assert_eq!(on!(sim, server, |s| s.room_members("r")).unwrap(), []);
}

#[test]
fn a_guard_decides_and_one_that_panics_says_no() {
    let sim = Sim::new();
    let server = sim.server();
    server
        .expose_channel(Pattern::regex("^guarded:").unwrap())
        .guard(async |connection, name| {
            assert!(!name.ends_with("panic"), "on purpose");
            assert!(connection.is_open());
            name.ends_with("yes")
        });
    server
        .expose_room("early")
        .guard(|_, _| -> std::future::Ready<bool> { panic!("on purpose") });
    server.expose_channel("guarded:open");
    let mut client = sim.connect(&server);
    for (name, granted) in [
        ("guarded:yes", true),
        ("guarded:no", false),
        ("guarded:panic", false),
        ("guarded:open", true),
        ("other", false),
    ] {
        assert_eq!(subscribe(&mut client, name)["success"], granted, "{name}");
    }
    assert_eq!(join(&mut client, "early")["success"], false);
    assert_eq!(client.call("mesh/noop", json!({})), true);
}

#[test]
fn names_and_limits_of_the_built_ins_are_checked() {
    let sim = Sim::new();
    let server = sim.server();
    server.expose_channel(Pattern::regex(".*").unwrap());
    server.expose_room(Pattern::regex(".*").unwrap());
    let mut client = sim.connect(&server);
    for name in [String::new(), "n".repeat(513)] {
        assert_eq!(
            client.code("mesh/subscribe-channel", json!({"channel": name})),
            "EINVALID"
        );
        assert_eq!(
            client.code("mesh/join-room", json!({"roomName": name})),
            "EINVALID"
        );
    }
    for payload in [
        json!({}),
        json!(null),
        json!({"channel": 1}),
        json!({"channel": "c", "historyLimit": -1}),
    ] {
        assert_eq!(client.code("mesh/subscribe-channel", payload), "EINVALID");
    }
}

#[test]
fn room_events_reach_members_and_nobody_else() {
    let sim = Sim::new();
    let server = sim.server();
    let clients = [
        sim.connect(&server),
        sim.connect(&server),
        sim.connect(&server),
    ];
    let [a, b, c] = clients.each_ref().map(|client| client.id.clone());
    assert_eq!(
        on!(sim, server, |s| s.add_to_room("r", a.clone())),
        Ok(true)
    );
    let a = clients[0].id.clone();
    assert_eq!(on!(sim, server, |s| s.add_to_room("r", a)), Ok(false));
    let id = b.clone();
    assert_eq!(on!(sim, server, |s| s.add_to_room("r", id)), Ok(true));
    assert_eq!(
        on!(sim, server, |s| s.add_to_room("r", "nobody")),
        Err(ServerError::Gone)
    );

    on!(sim, server, |s| s.broadcast_room("r", "hi", 1)).unwrap();
    let id = b.clone();
    on!(sim, server, |s| s.broadcast_room_exclude(
        "r",
        "hi",
        2,
        [id]
    ))
    .unwrap();
    on!(sim, server, |s| s.broadcast("all", 3)).unwrap();
    let id = c.clone();
    on!(sim, server, |s| s.broadcast_exclude("all", 4, [id])).unwrap();
    let id = c.clone();
    on!(sim, server, |s| s.send_to(id, "one", 5)).unwrap();
    let ids = [b.clone(), c.clone(), "nobody".to_owned()];
    on!(sim, server, |s| s.broadcast_to("some", 6, ids)).unwrap();
    sim.run();
    assert_eq!(clients[0].events(), ["hi 1", "hi 2", "all 3", "all 4"]);
    assert_eq!(clients[1].events(), ["hi 1", "all 3", "all 4", "some 6"]);
    assert_eq!(clients[2].events(), ["all 3", "one 5", "some 6"]);

    let id = b.clone();
    assert_eq!(on!(sim, server, |s| s.is_in_room("r", id)), Ok(true));
    let id = b.clone();
    assert_eq!(on!(sim, server, |s| s.remove_from_room("r", id)), Ok(true));
    let id = b.clone();
    assert_eq!(on!(sim, server, |s| s.remove_from_room("r", id)), Ok(false));
    assert_eq!(on!(sim, server, |s| s.is_in_room("r", b)), Ok(false));
    on!(sim, server, |s| s.broadcast_room("r", "hi", 7)).unwrap();
    on!(sim, server, |s| s.clear_room("r")).unwrap();
    on!(sim, server, |s| s.broadcast_room("r", "hi", 8)).unwrap();
    sim.run();
    assert_eq!(clients[0].events(), ["hi 7"]);
    assert_eq!(clients[1].events(), Vec::<String>::new());
    assert_eq!(on!(sim, server, |s| s.room_members("r")), Ok(vec![]));
}

#[test]
fn a_client_joins_and_leaves_what_is_exposed() {
    let sim = Sim::new();
    let server = sim.server();
    server.expose_room("r");
    let (mut one, mut two) = (sim.connect(&server), sim.connect(&server));
    assert_eq!(
        join(&mut one, "r"),
        json!({"success": true, "present": [one.id]})
    );
    let present = join(&mut two, "r")["present"].clone();
    let mut present: Vec<String> = serde_json::from_value(present).unwrap();
    present.sort();
    let mut expected = [one.id.clone(), two.id.clone()];
    expected.sort();
    assert_eq!(present, expected);
    on!(sim, server, |s| s
        .rooms()
        .set_metadata("r", &json!({"topic": "x"})))
    .unwrap();
    assert_eq!(
        one.call("mesh/get-room-metadata", json!({"roomName": "r"})),
        json!({"metadata": null})
    );
    server.expose_room_metadata("r");
    assert_eq!(
        one.call("mesh/get-room-metadata", json!({"roomName": "r"})),
        json!({"metadata": {"topic": "x"}})
    );
    for _ in 0..2 {
        assert_eq!(
            one.call("mesh/leave-room", json!({"roomName": "r"})),
            json!({"success": true})
        );
    }
    on!(sim, server, |s| s.broadcast_room("r", "hi", 1)).unwrap();
    sim.run();
    assert_eq!((one.events().len(), two.events().len()), (0, 1));
    // A room that the application alone fills is not left by a client.
    let id = one.id.clone();
    on!(sim, server, |s| s.add_to_room("private", id)).unwrap();
    one.call("mesh/leave-room", json!({"roomName": "private"}));
    let id = one.id.clone();
    assert_eq!(on!(sim, server, |s| s.is_in_room("private", id)), Ok(true));
    on!(sim, server, |s| s.remove_from_all_rooms(two.id.clone())).unwrap();
    assert_eq!(on!(sim, server, |s| s.room_members("r")), Ok(vec![]));
}

#[test]
fn history_is_newest_first_and_unsubscribing_tells_the_truth() {
    let sim = Sim::new();
    let server = sim.server();
    server.expose_channel("c");
    for message in ["1", "2", "3", "4"] {
        on!(sim, server, |s| s.publish_to_channel("c", message, 3)).unwrap();
    }
    let mut client = sim.connect(&server);
    assert_eq!(
        client.call("mesh/get-channel-history", json!({"channel": "c"})),
        json!({"success": true, "history": ["4", "3", "2"]})
    );
    assert_eq!(
        client.call(
            "mesh/get-channel-history",
            json!({"channel": "c", "limit": 1})
        )["history"],
        json!(["4"])
    );
    assert_eq!(
        client.call(
            "mesh/subscribe-channel",
            json!({"channel": "c", "historyLimit": 2})
        ),
        json!({"success": true, "history": ["4", "3"]})
    );
    assert_eq!(
        subscribe(&mut client, "c"),
        json!({"success": true, "history": []})
    );
    on!(sim, server, |s| s.publish_to_channel("c", "{\"a\" :1}", 0)).unwrap();
    sim.run();
    assert_eq!(
        client.events(),
        [r#"mesh/subscription-message {"channel":"c","message":"{\"a\" :1}"}"#],
        "once, byte for byte"
    );
    let channel = json!({"channel": "c"});
    assert_eq!(
        client.call("mesh/unsubscribe-channel", channel.clone()),
        true
    );
    assert_eq!(client.call("mesh/unsubscribe-channel", channel), false);
    on!(sim, server, |s| s.publish_to_channel("c", "5", 0)).unwrap();
    sim.run();
    assert_eq!(client.events(), Vec::<String>::new());
    assert_eq!(
        on!(sim, server, |s| s.publish_to_channel("c", "x", 10_001)),
        Err(ServerError::HistoryTooLong {
            len: 10_001,
            max: 10_000
        })
    );
}

#[test]
fn no_event_comes_before_the_reply_that_granted_it() {
    let sim = Sim::new();
    let (backend, mood) = Moody::new(&MemoryCluster::new());
    let server = sim.build(MeshServer::builder().backend(backend));
    server.expose_channel("c");
    server.expose_room("r");
    let mut client = sim.connect(&server);
    mood.slow
        .lock()
        .unwrap()
        .extend(["Subscribe", "JoinRoom", "RoomMembers", "History"]);
    let ids = client.send_all(&[
        (
            "mesh/subscribe-channel",
            json!({"channel": "c", "historyLimit": 9}),
        ),
        ("mesh/join-room", json!({"roomName": "r"})),
    ]);
    // At every stage of the way something is published; each opening lets the operations take one more step.
    for stage in 0..8 {
        on!(sim, server, |s| s.publish_to_channel(
            "c",
            &format!("m{stage}"),
            0
        ))
        .unwrap();
        on!(sim, server, |s| s.broadcast_room("r", "hi", stage)).unwrap();
        mood.gate.open();
        mood.gate.shut();
        sim.run();
    }
    mood.gate.open();
    sim.run();
    on!(sim, server, |s| s.publish_to_channel("c", "last", 0)).unwrap();
    on!(sim, server, |s| s.broadcast_room("r", "hi", 99)).unwrap();
    sim.run();
    let frames = client.frames();
    let at = |wanted: &dyn Fn(&Value) -> bool| frames.iter().position(wanted);
    for (id, event) in [(ids[0], "mesh/subscription-message"), (ids[1], "hi")] {
        let reply = at(&|frame| frame["id"] == id).unwrap();
        let first = at(&|frame| frame["command"] == event).unwrap();
        assert!(reply < first, "{event} before its reply");
        assert_eq!(frames[reply]["payload"]["success"], true);
    }
}

#[test]
fn a_grant_too_long_to_be_told_is_none() {
    let sim = Sim::new();
    let server = sim.build(MeshServer::builder().limits(|limits| limits.reply_bytes_max = 200));
    server.expose_channel("c");
    server.expose_room("r");
    on!(sim, server, |s| s.publish_to_channel(
        "c",
        &"x".repeat(99),
        9
    ))
    .unwrap();
    let mut clients = [sim.connect(&server), sim.connect(&server)];
    assert_eq!(join(&mut clients[0], "r")["success"], true);
    let client = &mut clients[1];
    let room = json!({"roomName": "r"});
    assert_eq!(client.code("mesh/join-room", room), "EOVERLOAD");
    let history = json!({"channel": "c", "historyLimit": 9});
    assert_eq!(client.code("mesh/subscribe-channel", history), "EOVERLOAD");
    let history = json!({"channel": "c"});
    assert_eq!(
        client.code("mesh/get-channel-history", history),
        "EOVERLOAD"
    );
    on!(sim, server, |s| s.publish_to_channel("c", "live", 0)).unwrap();
    on!(sim, server, |s| s.broadcast_room("r", "hi", 1)).unwrap();
    sim.run();
    assert_eq!(clients[1].events(), Vec::<String>::new());
    assert_eq!(clients[0].events(), ["hi 1"]);
}

#[test]
fn memberships_count_and_are_given_back() {
    let sim = Sim::new();
    let server = sim.build(MeshServer::builder().limits(|limits| limits.memberships_max = 3));
    server.expose_channel(Pattern::regex("^c").unwrap());
    server.expose_room(Pattern::regex("^r").unwrap());
    let mut client = sim.connect(&server);
    // Again and again the same counts once.
    for _ in 0..5 {
        assert_eq!(subscribe(&mut client, "c1")["success"], true);
        assert_eq!(join(&mut client, "r1")["success"], true);
        assert_eq!(subscribe(&mut client, "denied")["success"], false);
    }
    assert_eq!(subscribe(&mut client, "c2")["success"], true);
    assert_eq!(
        client.code("mesh/join-room", json!({"roomName": "r2"})),
        "EOVERLOAD"
    );
    assert_eq!(
        client.code("mesh/subscribe-channel", json!({"channel": "c3"})),
        "EOVERLOAD"
    );
    let id = client.id.clone();
    let full = on!(sim, server, |s| s.add_to_room("r3", id));
    assert!(
        matches!(full, Err(ServerError::MembershipsFull(_))),
        "{full:?}"
    );
    on!(sim, server, |s| s.clear_room("r1")).unwrap();
    client.call("mesh/unsubscribe-channel", json!({"channel": "c2"}));
    assert_eq!(join(&mut client, "r2")["success"], true);
    assert_eq!(join(&mut client, "r3")["success"], true);
    assert_eq!(
        client.code("mesh/join-room", json!({"roomName": "r4"})),
        "EOVERLOAD"
    );
}

#[test]
fn what_authenticate_set_no_client_resets() {
    use crate::driver::{Accept, FrontDoor};
    let sim = Sim::new();
    let server = sim.build(
        MeshServer::builder()
            .client_metadata(true)
            .authenticate(async |_| {
                Ok(Accept::with_metadata(
                    &json!({"role": "admin", "name": "ann"}),
                )?)
            }),
    );
    let door = {
        let server = server.clone();
        sim.wait(async move {
            server
                .handle_request(super::front_door::upgrade(&[]), None)
                .await
        })
    };
    let FrontDoor::Upgrade { admission, .. } = door else {
        panic!("{door:?}");
    };
    let mut client = sim.serve(&server, admission);
    let set = |client: &mut Client, metadata: Value, strategy: &str| {
        let payload = json!({"metadata": metadata, "options": {"strategy": strategy}});
        assert_eq!(
            client.call("mesh/set-my-connection-metadata", payload),
            json!({"success": true})
        );
        client.call("mesh/get-my-connection-metadata", json!({}))["metadata"].clone()
    };
    assert_eq!(
        set(&mut client, json!({"role": "root", "mood": 1}), "merge"),
        json!({"role": "admin", "name": "ann", "mood": 1})
    );
    // The server changes its mind; a client's command does not bring back the old value.
    let id = client.id.clone();
    on!(sim, server, |s| s
        .connections()
        .merge_metadata(id, &json!({"role": "user"})))
    .unwrap();
    for strategy in ["merge", "replace"] {
        assert_eq!(
            set(&mut client, json!({"role": "admin", "mood": 2}), strategy),
            json!({"role": "user", "name": "ann", "mood": 2}),
            "{strategy}"
        );
    }
    let id = client.id.clone();
    on!(sim, server, |s| s
        .connections()
        .set_metadata(id, &json!({"name": "bob"})))
    .unwrap();
    for strategy in ["merge", "replace"] {
        assert_eq!(
            set(&mut client, json!({"role": "admin", "mood": 3}), strategy),
            json!({"name": "bob", "mood": 3}),
            "{strategy}"
        );
    }
}

#[test]
fn a_clients_metadata_does_not_undo_a_change_of_the_server_that_is_under_way() {
    use crate::driver::{Accept, FrontDoor};
    let sim = Sim::new();
    let (backend, mood) = Moody::new(&MemoryCluster::new());
    let builder = MeshServer::builder().backend(backend).client_metadata(true);
    let server = sim.build(
        builder.authenticate(async |_| Ok(Accept::with_metadata(&json!({"role": "admin"}))?)),
    );
    let upgrade = super::front_door::upgrade(&[]);
    let door = on!(sim, server, |s| s.handle_request(upgrade, None));
    let FrontDoor::Upgrade { admission, .. } = door else {
        panic!("{door:?}");
    };
    let mut client = sim.serve(&server, admission);
    mood.slow.lock().unwrap().push("SetConnectionMetadata");
    let (id, s) = (client.id.clone(), server.clone());
    let user = json!({"role": "user"});
    let changed = sim.start(async move { s.connections().merge_metadata(id, &user).await });
    let payload = json!({"metadata": {"mood": 1}, "options": {"strategy": "replace"}});
    client.send("mesh/set-my-connection-metadata", payload);
    sim.run();
    mood.gate.open();
    sim.run();
    assert_eq!(changed.take(), Some(Ok(())));
    assert_eq!(
        client.call("mesh/get-my-connection-metadata", json!({})),
        json!({"metadata": {"role": "user", "mood": 1}})
    );
}

#[test]
fn rights_are_revoked_and_guards_asked_again() {
    let sim = Sim::new();
    let server = sim.server();
    let allowed = Arc::new(AtomicBool::new(true));
    let guard = |allowed: &Arc<AtomicBool>| {
        let allowed = Arc::clone(allowed);
        move |_, _| {
            let verdict = allowed.load(Ordering::Relaxed);
            async move { verdict }
        }
    };
    server.expose_channel("c").guard(guard(&allowed));
    server.expose_room("r").guard(guard(&allowed));
    server.expose_channel("open");
    let mut client = sim.connect(&server);
    let id = client.id.clone();
    for channel in ["c", "open"] {
        assert_eq!(subscribe(&mut client, channel)["success"], true);
    }
    join(&mut client, "r");
    let own = id.clone();
    on!(sim, server, |s| s.add_to_room("servers", own)).unwrap();

    let own = id.clone();
    on!(sim, server, |s| s.recheck_guards(own)).unwrap();
    let own = id.clone();
    assert_eq!(on!(sim, server, |s| s.is_in_room("r", own)), Ok(true));
    allowed.store(false, Ordering::Relaxed);
    let own = id.clone();
    on!(sim, server, |s| s.recheck_guards(own)).unwrap();
    for (room, kept) in [("r", false), ("servers", true)] {
        let own = id.clone();
        assert_eq!(
            on!(sim, server, |s| s.is_in_room(room, own)),
            Ok(kept),
            "{room}"
        );
    }
    for channel in ["c", "open"] {
        on!(sim, server, |s| s.publish_to_channel(channel, "m", 0)).unwrap();
    }
    sim.run();
    assert_eq!(client.events().len(), 1);

    let own = id.clone();
    on!(sim, server, |s| s
        .revoke(own, Membership::Channel("open".into())))
    .unwrap();
    let own = id.clone();
    on!(sim, server, |s| s
        .revoke(own, Membership::Room("servers".into())))
    .unwrap();
    on!(sim, server, |s| s.publish_to_channel("open", "m", 0)).unwrap();
    on!(sim, server, |s| s.broadcast_room("servers", "m", 0)).unwrap();
    sim.run();
    assert_eq!(client.events(), Vec::<String>::new());
}

#[test]
fn a_grant_that_comes_after_the_end_leaves_no_ghost() {
    let sim = Sim::new();
    let cluster = MemoryCluster::new();
    let (backend, _) = Moody::new(&cluster);
    let server = sim.build(MeshServer::builder().backend(backend));
    let gate = Gate::default();
    let guard = |gate: &Gate| {
        let gate = gate.clone();
        move |_, _| {
            let opened = gate.wait();
            async move {
                opened.await;
                true
            }
        }
    };
    server.expose_channel("c").guard(guard(&gate));
    server.expose_room("r").guard(guard(&gate));
    let mut client = sim.connect(&server);
    client.send_all(&[
        ("mesh/subscribe-channel", json!({"channel": "c"})),
        ("mesh/join-room", json!({"roomName": "r"})),
    ]);
    sim.run();
    let kept = Arc::new(Mutex::new(None));
    *kept.lock().unwrap() = server.connections().local(client.id.clone());
    client.vanish();
    sim.run();
    gate.open();
    sim.advance(Duration::from_secs(1));
    let id = crate::backend::ConnectionId::new(client.id.clone());
    assert_eq!(server.inner.memberships(&id), [], "a ghost");
    assert_eq!(on!(sim, server, |s| s.room_members("r")), Ok(vec![]));
    assert_eq!(server.health().connections, 0);
}

#[test]
fn a_grant_that_comes_during_the_farewell_leaves_no_ghost() {
    let sim = Sim::new();
    let server = sim.server();
    let gate = Gate::default();
    let waits = gate.clone();
    server.expose_channel("c").guard(move |_, _| {
        let opened = waits.wait();
        async move {
            opened.await;
            true
        }
    });
    let mut client = sim.connect(&server);
    client.ignore_close();
    client.send("mesh/subscribe-channel", json!({"channel": "c"}));
    sim.run();
    let id = crate::backend::ConnectionId::new(client.id.clone());
    server
        .connections()
        .local(&id)
        .unwrap()
        .close(crate::driver::CloseCode::NORMAL, "bye");
    sim.run();
    assert!(!client.is_dropped(), "it has two seconds to answer");
    gate.open();
    sim.run();
    assert_eq!(server.inner.memberships(&id), [], "a ghost");
    sim.advance(Duration::from_secs(3));
    assert_eq!(server.inner.memberships(&id), [], "a ghost");
    assert_eq!(server.health().connections, 0);
}

/// Subscribes to the channels `c` and `d` and joins the room `r`.
fn everywhere(sim: &Sim, server: &MeshServer) -> Client {
    server.expose_channel("c");
    server.expose_channel("d");
    server.expose_room("r");
    let mut client = sim.connect(server);
    assert_eq!(subscribe(&mut client, "c")["success"], true);
    assert_eq!(subscribe(&mut client, "d")["success"], true);
    assert_eq!(join(&mut client, "r")["success"], true);
    client
}

#[test]
fn events_of_one_publisher_keep_its_order_over_channels_rooms_and_connections() {
    let sim = Sim::new();
    let server = sim.server();
    let client = everywhere(&sim, &server);
    let (s, id) = (server.clone(), client.id.clone());
    sim.wait(async move {
        for n in 0..3 {
            s.publish_to_channel("c", "m", 0).await?;
            s.broadcast_room("r", "room", n).await?;
            s.publish_to_channel("d", "m", 0).await?;
            s.send_to(&id, "one", n).await?;
            s.publish_to_channel("c", "m", 0).await?;
            s.broadcast("all", n).await?;
        }
        Ok::<_, ServerError>(())
    })
    .unwrap();
    sim.run();
    let message =
        |channel| format!(r#"mesh/subscription-message {{"channel":"{channel}","message":"m"}}"#);
    let round = |n| {
        [
            message("c"),
            format!("room {n}"),
            message("d"),
            format!("one {n}"),
            message("c"),
            format!("all {n}"),
        ]
    };
    assert_eq!(client.events(), [round(0), round(1), round(2)].concat());
}

#[test]
fn a_publisher_waits_for_no_one_who_does_not_listen() {
    let sim = Sim::new();
    let server = sim.server();
    sim.connect(&server);
    // Ready at its first poll: no task had a turn.
    let publish = server.publish_to_channel("c", "m", 1).now_or_never();
    assert_eq!(publish, Some(Ok(())));
}

#[test]
fn a_publisher_waits_for_no_notices_that_have_ended() {
    let sim = Sim::new();
    let server = sim.server();
    let _client = everywhere(&sim, &server);
    let wait = |server: &MeshServer| {
        let heard = Arc::clone(&server.inner.heard);
        sim.start(async move { heard.wait().await })
    };
    let idle = wait(&server);
    sim.run();
    assert!(idle.is_done(), "nothing is there to be heard");
    let waiting = wait(&server);
    let s = server.clone();
    let ended = sim.start(async move { s.inner.ask(Op::CloseInstance).await });
    sim.run();
    assert!(ended.is_done() && waiting.is_done());
    let after = wait(&server);
    sim.run();
    assert!(after.is_done());
}

#[test]
fn what_is_held_already_needs_no_more_room() {
    let sim = Sim::new();
    let server = sim.build(MeshServer::builder().limits(|limits| limits.memberships_max = 3));
    for name in ["held", "more"] {
        server.expose_channel(name);
        server.expose_record(name);
        server.expose_room(name);
    }
    let mut client = sim.connect(&server);
    let record = |name: &str| json!({"recordId": name});
    // Full after the first round, and asked for all of it again.
    for _ in 0..3 {
        assert_eq!(subscribe(&mut client, "held")["success"], true);
        assert_eq!(join(&mut client, "held")["success"], true);
        let subscribed = client.call("mesh/subscribe-record", record("held"));
        assert_eq!(subscribed["success"], true);
    }
    for (command, payload) in [
        ("mesh/subscribe-channel", json!({"channel": "more"})),
        ("mesh/join-room", json!({"roomName": "more"})),
        ("mesh/subscribe-record", record("more")),
    ] {
        assert_eq!(client.code(command, payload), "EOVERLOAD", "{command}");
    }
    // What was asked for again holds no room of its own.
    client.call("mesh/unsubscribe-channel", json!({"channel": "held"}));
    assert_eq!(join(&mut client, "more")["success"], true);
    assert_eq!(
        client.code("mesh/subscribe-record", record("more")),
        "EOVERLOAD"
    );
}

#[test]
fn a_history_of_exactly_the_limit_is_kept() {
    let sim = Sim::new();
    let server = sim.build(MeshServer::builder().limits(|limits| limits.history_max = 3));
    on!(sim, server, |s| s.publish_to_channel("c", "m", 3)).unwrap();
    assert_eq!(
        on!(sim, server, |s| s.publish_to_channel("c", "m", 4)),
        Err(ServerError::HistoryTooLong { len: 4, max: 3 })
    );
}

#[test]
fn metadata_of_exactly_the_limit_is_kept() {
    let sim = Sim::new();
    let server = sim.build(MeshServer::builder().limits(|limits| limits.metadata_bytes_max = 9));
    on!(sim, server, |s| s.rooms().set_metadata("r", "1234567")).unwrap();
    let long = on!(sim, server, |s| s.rooms().set_metadata("r", "12345678"));
    assert!(long.is_err(), "{long:?}");
    assert_eq!(
        on!(sim, server, |s| s.rooms().metadata::<String>("r")),
        Ok(Some("1234567".to_owned()))
    );
}

#[test]
fn a_channel_of_the_backends_own_is_exposed_by_no_pattern() {
    let sim = Sim::new();
    let (backend, _mood) = Moody::new(&MemoryCluster::new());
    let server = sim.build(MeshServer::builder().backend(backend));
    server.expose_channel(Pattern::regex("").unwrap());
    server.expose_room(Pattern::regex("").unwrap());
    let mut client = sim.connect(&server);
    assert_eq!(subscribe(&mut client, "moody:own")["success"], false);
    assert_eq!(subscribe(&mut client, "another")["success"], true);
    // Rooms are not the backend's channels, whatever their names.
    assert_eq!(join(&mut client, "moody:own")["success"], true);
    let name = "moody:own".to_owned();
    assert_eq!(
        on!(sim, server, |s| s.publish_to_channel("moody:own", "m", 0)),
        Err(ServerError::ReservedName { name })
    );
}
