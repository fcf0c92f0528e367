//! Two servers on one cluster.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::FutureExt;
use serde_json::{Value, json};

use crate::{
    backend::{Backend, MemoryCluster, Op, Reply, Topic},
    driver::{
        CloseCode, Membership, MeshServer, ServerError,
        testkit::{Client, Moody, Sim},
    },
};

struct Pair {
    sim: Sim,
    one: MeshServer,
    two: MeshServer,
    /// Of `one`.
    ann: Client,
    /// Of `two`.
    bob: Client,
}

fn pair() -> Pair {
    let (sim, cluster) = (Sim::new(), MemoryCluster::new());
    let build = || {
        let server = sim.build(MeshServer::builder().backend(cluster.backend()));
        server.expose_channel("c");
        server.expose_room("r");
        server
    };
    let (one, two) = (build(), build());
    let (ann, bob) = (sim.connect(&one), sim.connect(&two));
    Pair {
        sim,
        one,
        two,
        ann,
        bob,
    }
}

impl Pair {
    fn events(&self) -> (Vec<String>, Vec<String>) {
        self.sim.run();
        (self.ann.events(), self.bob.events())
    }

    fn join_both(&mut self) {
        for client in [&mut self.ann, &mut self.bob] {
            let joined = client.call("mesh/join-room", json!({"roomName": "r"}));
            assert_eq!(joined["success"], true);
        }
    }
}

fn both(ann: &[&str], bob: &[&str]) -> (Vec<String>, Vec<String>) {
    let own = |events: &[&str]| events.iter().map(|event| (*event).to_owned()).collect();
    (own(ann), own(bob))
}

#[test]
fn broadcasts_cross() {
    let pair = pair();
    on!(pair, one, |s| s.broadcast("all", 1)).unwrap();
    let (ann, bob) = (pair.ann.id.clone(), pair.bob.id.clone());
    on!(pair, one, |s| s.broadcast_exclude("all", 2, [bob])).unwrap();
    on!(pair, two, |s| s.broadcast_exclude("all", 3, [ann])).unwrap();
    assert_eq!(
        pair.events(),
        both(&["all 1", "all 2"], &["all 1", "all 3"])
    );
}

#[test]
fn all_rooms_of_a_connection_elsewhere_are_left() {
    let mut pair = pair();
    pair.join_both();
    let ann = pair.ann.id.clone();
    on!(pair, one, |s| s.add_to_room("q", ann)).unwrap();
    let ann = pair.ann.id.clone();
    on!(pair, two, |s| s.remove_from_all_rooms(ann)).unwrap();
    pair.sim.run();
    for (room, left) in [("r", 1), ("q", 0)] {
        let members = on!(pair, two, |s| s.room_members(room)).unwrap();
        assert_eq!(members.len(), left, "{room}");
    }
    on!(pair, two, |s| s.broadcast_room("r", "hi", 1)).unwrap();
    assert_eq!(pair.events(), both(&[], &["hi 1"]));
}

#[test]
fn room_events_cross_and_a_cleared_room_is_empty_everywhere() {
    let mut pair = pair();
    pair.join_both();
    on!(pair, one, |s| s.broadcast_room("r", "hi", 1)).unwrap();
    let (ann, bob) = (pair.ann.id.clone(), pair.bob.id.clone());
    on!(pair, one, |s| s.broadcast_room_exclude("r", "hi", 2, [bob])).unwrap();
    on!(pair, two, |s| s.broadcast_room_exclude("r", "hi", 3, [ann])).unwrap();
    assert_eq!(pair.events(), both(&["hi 1", "hi 2"], &["hi 1", "hi 3"]));

    let mut members = on!(pair, one, |s| s.room_members("r")).unwrap();
    members.sort();
    assert_eq!(
        members,
        on!(pair, two, |s| async {
            let mut members = s.room_members("r").await.unwrap();
            members.sort();
            members
        })
    );
    assert_eq!(members.len(), 2);
    let ann = pair.ann.id.clone();
    assert_eq!(on!(pair, two, |s| s.is_in_room("r", ann)), Ok(true));

    on!(pair, one, |s| s.clear_room("r")).unwrap();
    pair.sim.run();
    for (event, server) in [(4, &pair.one), (5, &pair.two)] {
        let s = server.clone();
        pair.sim
            .wait(async move { s.broadcast_room("r", "hi", event).await })
            .unwrap();
        let s = server.clone();
        let members = pair.sim.wait(async move { s.room_members("r").await });
        assert_eq!(members, Ok(vec![]));
    }
    assert_eq!(pair.events(), both(&[], &[]));
    // And can be joined again.
    pair.join_both();
    on!(pair, two, |s| s.broadcast_room("r", "hi", 6)).unwrap();
    assert_eq!(pair.events(), both(&["hi 6"], &["hi 6"]));
}

#[test]
fn a_connection_is_reached_from_the_other_server() {
    let pair = pair();
    let (ann, bob) = (pair.ann.id.clone(), pair.bob.id.clone());
    let id = bob.clone();
    on!(pair, one, |s| s.send_to(id, "one", 1)).unwrap();
    let ids = [ann, bob, format!("{}.gone", pair.two.instance_id())];
    on!(pair, one, |s| s.broadcast_to("some", 2, ids)).unwrap();
    assert_eq!(pair.events(), both(&["some 2"], &["one 1", "some 2"]));
}

/// What asks who is there before it sends costs more with everyone who is (`pitfalls.md`, 4).
#[test]
fn whatever_is_sent_is_one_publish_however_many_receive_it() {
    let (sim, cluster) = (Sim::new(), MemoryCluster::new());
    let (backend, mood) = Moody::new(&cluster);
    let one = sim.build(MeshServer::builder().backend(backend));
    let two = sim.build(MeshServer::builder().backend(cluster.backend()));
    let clients = [&one, &one, &one, &two, &two, &two].map(|server| sim.connect(server));
    // Leaked, so that they are `Copy`.
    let ids = clients.each_ref().map(|client| &*client.id.clone().leak());
    let [local, .., remote] = ids;
    for (n, id) in ids.into_iter().enumerate() {
        let server = if n < 3 { one.clone() } else { two.clone() };
        let joined = sim.wait(async move { server.add_to_room("r", id).await });
        assert_eq!(joined, Ok(true));
    }
    macro_rules! costs {
        ($ops:expr, |$s:ident| $body:expr) => {{
            mood.asked.lock().unwrap().clear();
            let $s = one.clone();
            assert_eq!(sim.wait(async move { $body.await }), Ok(()));
            let ops: &[&str] = &$ops;
            assert_eq!(*mood.asked.lock().unwrap(), ops, stringify!($body));
        }};
    }
    costs!(["Publish"], |s| s.broadcast("e", 1));
    costs!(["Publish"], |s| s.broadcast_exclude("e", 1, [local]));
    costs!(["Publish"], |s| s.broadcast_room("r", "e", 1));
    costs!(["Publish"], |s| s.broadcast_room_exclude(
        "r",
        "e",
        1,
        [remote]
    ));
    costs!(["Publish"], |s| s.broadcast_to("e", 1, ids));
    costs!(["Publish"], |s| s.send_to(remote, "e", 1));
    costs!([], |s| s.send_to(local, "e", 1));
    costs!(["PublishChannel"], |s| s.publish_to_channel("c", "m", 1));
    sim.run();
    // And everybody got what was for them.
    assert_eq!(clients.map(|client| client.events().len()), [5; 6]);
}

/// `backend_message_bytes_max`, section 7.
#[test]
fn what_other_instances_would_drop_is_refused_and_sent_to_nobody() {
    const MAX: usize = 400;
    let (sim, cluster) = (Sim::new(), MemoryCluster::new());
    let (backend, mood) = Moody::new(&cluster);
    let limited = || MeshServer::builder().limits(|limits| limits.backend_message_bytes_max = MAX);
    let one = sim.build(limited().backend(backend));
    let two = sim.build(limited().backend(cluster.backend()));
    let servers = [&one, &one, &two, &two];
    for server in servers {
        server.expose_channel("c");
        server.expose_room("r");
    }
    let mut clients = servers.map(|server| sim.connect(server));
    for client in &mut clients {
        client.call("mesh/join-room", json!({"roomName": "r"}));
        client.call("mesh/subscribe-channel", json!({"channel": "c"}));
    }
    // Leaked, so that they are `Copy`.
    let ids = clients.each_ref().map(|client| &*client.id.clone().leak());
    let [near, _, far, _] = ids;
    let [event, id] = [r#"{"command":"e","payload":""}"#.len(), near.len()];
    assert_eq!(far.len(), id);
    // Version, kind, the number of ids, each with its length, and the text with its own.
    let room_for = |ids: usize| MAX - 2 - 4 - ids * (4 + id) - 4 - event;
    macro_rules! passes_up_to {
        ($len:expr, $receive:expr, |$s:ident, $text:ident| $body:expr) => {{
            let (len, receive): (usize, [usize; 4]) = ($len, $receive);
            let call = stringify!($body);
            for (over, receive) in [(0, receive), (1, [0; 4])] {
                mood.asked.lock().unwrap().clear();
                let ($s, text) = (one.clone(), "x".repeat(len + over));
                let sent = sim.wait(async move {
                    let $text = text.as_str();
                    $body.await
                });
                sim.run();
                let received = clients.each_ref().map(|client| client.events().len());
                assert_eq!(received, receive, "{call} with {over} over: {sent:?}");
                if over == 0 {
                    assert_eq!(sent, Ok(()), "{call}");
                } else {
                    let len = MAX + 1;
                    assert_eq!(sent, Err(ServerError::MessageTooLong { len, max: MAX }));
                    assert_eq!(*mood.asked.lock().unwrap(), [""; 0], "{call}");
                }
            }
        }};
    }
    passes_up_to!(room_for(0), [1; 4], |s, x| s.broadcast("e", x));
    passes_up_to!(room_for(1), [0, 1, 1, 1], |s, x| s.broadcast_exclude(
        "e",
        x,
        [near]
    ));
    passes_up_to!(room_for(0), [1; 4], |s, x| s.broadcast_room("r", "e", x));
    passes_up_to!(room_for(2), [0, 1, 0, 1], |s, x| s.broadcast_room_exclude(
        "r",
        "e",
        x,
        [near, far]
    ));
    // Each of the ids fits by itself, so a list is as good as several calls.
    passes_up_to!(room_for(1), [1; 4], |s, x| s.broadcast_to("e", x, ids));
    passes_up_to!(room_for(1), [0, 0, 1, 0], |s, x| s.send_to(far, "e", x));
    passes_up_to!(room_for(1), [1, 0, 0, 0], |s, x| s.send_to(near, "e", x));
    passes_up_to!(MAX, [1; 4], |s, x| s.publish_to_channel("c", x, 1));
    assert_eq!(
        clients[0].call("mesh/get-channel-history", json!({"channel": "c"}))["history"],
        json!(["x".repeat(MAX)]),
        "what is refused is in no history"
    );
    for server in [&one, &two] {
        assert_eq!(server.metrics().backend_messages_dropped_total, 0);
    }

    // A reason is cut, not refused.
    let (s, reason) = (one.clone(), "é".repeat(MAX));
    let sent =
        sim.wait(async move { s.disconnect(far, CloseCode::POLICY_VIOLATION, reason).await });
    sim.run();
    assert_eq!((sent, clients[2].close_code()), (Ok(()), Some(1008)));
}

/// A message from the backend, section 7: what an instance with a greater limit, or another program, publishes.
#[test]
fn a_message_that_is_too_long_or_none_is_dropped_and_counted() {
    let (sim, cluster) = (Sim::new(), MemoryCluster::new());
    let limited = |max| {
        let builder = MeshServer::builder().backend(cluster.backend());
        sim.build(builder.limits(|limits| limits.backend_message_bytes_max = max))
    };
    let (one, two) = (limited(1 << 20), limited(100));
    let bob = sim.connect(&two);
    let dropped = || two.metrics().backend_messages_dropped_total;
    let send = |text: String| {
        let one = one.clone();
        let sent = sim.wait(async move { one.broadcast("e", text).await });
        assert_eq!(sent, Ok(()));
        sim.run();
        (bob.events().len(), dropped())
    };
    assert_eq!(send("x".repeat(100)), (0, 1));
    assert_eq!(send("x".into()), (1, 1));
    let rubbish = cluster.backend();
    let run = |op| {
        let done = rubbish.execute(op).now_or_never();
        assert_eq!(done, Some(Ok(Reply::Done)));
    };
    let instance = "rubbish".into();
    run(Op::OpenInstance { instance });
    let (topic, message) = (Topic::All, "rubbish".into());
    run(Op::Publish { topic, message });
    sim.run();
    assert_eq!(dropped(), 2);
    let (channel, message) = ("c".into(), vec![0xff].into());
    two.expose_channel("c");
    let mut bob = sim.connect(&two);
    bob.call("mesh/subscribe-channel", json!({"channel": "c"}));
    let history = 0;
    run(Op::PublishChannel {
        channel,
        message,
        history,
    });
    sim.run();
    assert_eq!((bob.events().len(), dropped()), (0, 3));
}

#[test]
fn channels_cross_in_order() {
    let mut pair = pair();
    for client in [&mut pair.ann, &mut pair.bob] {
        client.call("mesh/subscribe-channel", json!({"channel": "c"}));
    }
    for message in ["1", "2", "3"] {
        on!(pair, one, |s| s.publish_to_channel("c", message, 2)).unwrap();
    }
    let event =
        |message| format!(r#"mesh/subscription-message {{"channel":"c","message":"{message}"}}"#);
    let all: Vec<String> = ["1", "2", "3"].map(event).into();
    assert_eq!(pair.events(), (all.clone(), all));
    assert_eq!(
        pair.bob
            .call("mesh/get-channel-history", json!({"channel": "c"}))["history"],
        json!(["3", "2"])
    );
}

#[test]
fn metadata_crosses() {
    let mut pair = pair();
    let id = pair.bob.id.clone();
    on!(pair, one, |s| s
        .connections()
        .set_metadata(id, &json!({"a": 1})))
    .unwrap();
    let id = pair.bob.id.clone();
    on!(pair, one, |s| s
        .connections()
        .merge_metadata(id, &json!({"b": 2})))
    .unwrap();
    pair.sim.run();
    let whole = json!({"a": 1, "b": 2});
    assert_eq!(
        pair.bob.call("mesh/get-my-connection-metadata", json!({}))["metadata"],
        whole,
        "its own server has noticed"
    );
    let id = pair.bob.id.clone();
    assert_eq!(
        on!(pair, one, |s| s.connections().metadata::<Value>(id)),
        Ok(Some(whole))
    );
    let nobody = format!("{}.gone", pair.two.instance_id());
    assert_eq!(
        on!(pair, one, |s| s.connections().set_metadata(nobody, &1)),
        Err(ServerError::Gone)
    );
    on!(pair, one, |s| s.rooms().set_metadata("r", &json!({"t": 1}))).unwrap();
    assert_eq!(
        on!(pair, two, |s| s.rooms().metadata::<Value>("r")),
        Ok(Some(json!({"t": 1})))
    );
}

#[test]
fn rights_end_across() {
    let mut pair = pair();
    let allowed = Arc::new(AtomicBool::new(true));
    let asked = Arc::clone(&allowed);
    pair.two.expose_channel("guarded").guard(move |_, _| {
        let verdict = asked.load(Ordering::Relaxed);
        async move { verdict }
    });
    pair.join_both();
    for channel in ["c", "guarded"] {
        let granted = pair
            .bob
            .call("mesh/subscribe-channel", json!({"channel": channel}));
        assert_eq!(granted["success"], true);
    }
    let bob = pair.bob.id.clone();
    for what in [
        Membership::Channel("c".into()),
        Membership::Room("r".into()),
    ] {
        let id = bob.clone();
        on!(pair, one, |s| s.revoke(id, what)).unwrap();
    }
    allowed.store(false, Ordering::Relaxed);
    let id = bob.clone();
    on!(pair, one, |s| s.recheck_guards(id)).unwrap();
    pair.sim.run();
    for channel in ["c", "guarded"] {
        on!(pair, one, |s| s.publish_to_channel(channel, "m", 0)).unwrap();
    }
    on!(pair, one, |s| s.broadcast_room("r", "hi", 1)).unwrap();
    assert_eq!(pair.events(), both(&["hi 1"], &[]));

    on!(pair, one, |s| s.disconnect(
        bob,
        CloseCode::POLICY_VIOLATION,
        "bye"
    ))
    .unwrap();
    pair.sim.run();
    assert_eq!(
        (pair.bob.close_code(), pair.bob.is_dropped()),
        (Some(1008), true)
    );
    assert_eq!(on!(pair, one, |s| s.connections().ids()).unwrap().len(), 1);
}

#[test]
fn a_server_that_ends_takes_only_its_own_with_it() {
    let mut pair = pair();
    pair.join_both();
    let two = pair.two.clone();
    let ended = pair.sim.start(async move { two.shutdown().await });
    pair.sim.advance(Duration::from_millis(100));
    assert_eq!(ended.take(), Some(Ok(())));
    assert_eq!(pair.bob.close_code(), Some(1001));
    let ann = crate::backend::ConnectionId::new(pair.ann.id.clone());
    assert_eq!(
        on!(pair, one, |s| s.room_members("r")),
        Ok(vec![ann.clone()])
    );
    assert_eq!(on!(pair, one, |s| s.connections().ids()), Ok(vec![ann]));
    on!(pair, one, |s| s.broadcast_room("r", "hi", 1)).unwrap();
    assert_eq!(pair.events().0, ["hi 1"]);
}

#[test]
fn metadata_of_a_room_and_its_members_is_merged_and_listed() {
    let mut pair = pair();
    pair.join_both();
    let id = pair.bob.id.clone();
    let named = json!({"name": "Bob"});
    let set = (id.clone(), named.clone());
    on!(pair, one, |s| s.connections().set_metadata(set.0, &set.1)).unwrap();
    let stranger = pair.sim.connect(&pair.two);
    let mut listed = on!(pair, one, |s| s
        .connections()
        .room_members_metadata::<Value>("r"))
    .unwrap();
    listed.sort_by_key(|(_, metadata)| metadata.is_none());
    let ann = pair.ann.id.clone();
    assert_eq!(
        listed,
        [
            (id.as_str().into(), Some(named)),
            (ann.as_str().into(), None)
        ]
    );
    drop(stranger);

    on!(pair, one, |s| s.rooms().set_metadata("r", &json!({"a": 1}))).unwrap();
    on!(pair, two, |s| s
        .rooms()
        .merge_metadata("r", &json!({"b": 2})))
    .unwrap();
    let merged = Some(json!({"a": 1, "b": 2}));
    assert_eq!(
        on!(pair, one, |s| s.rooms().metadata::<Value>("r")),
        Ok(merged)
    );
}

#[test]
fn the_metadata_of_all_rooms_is_listed_by_name() {
    let pair = pair();
    on!(pair, one, |s| s.rooms().set_metadata("a", &1)).unwrap();
    on!(pair, two, |s| s.rooms().set_metadata("b", &2)).unwrap();
    let listed = on!(pair, one, |s| s.rooms().all_metadata::<u8>()).unwrap();
    let listed: Vec<_> = listed
        .iter()
        .map(|(name, it)| (name.as_str(), *it))
        .collect();
    assert_eq!(listed, [("a", 1), ("b", 2)]);
}
