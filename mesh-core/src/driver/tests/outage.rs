//! The backend goes and comes back, and what other instances are asked to do.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use serde_json::json;

use crate::{
    backend::{Backend as _, ConnectionId, MemoryCluster, MetadataChange, Notice, Op, Topic},
    driver::{
        CloseCode, CloseFrame, Membership, MeshServer, RoomLeave, ServerError,
        testkit::{Client, Mood, Moody, Sim},
    },
    relay::Relay,
};

macro_rules! on {
    ($world:expr, $server:ident, |$name:ident| $body:expr) => {{
        let $name = $world.$server.clone();
        $world.sim.wait(async move { $body.await })
    }};
}

/// A server whose backend can be lost, with one client, and another on the same cluster.
struct World {
    sim: Sim,
    cluster: MemoryCluster,
    one: MeshServer,
    two: MeshServer,
    mood: Mood,
    /// Of `one`.
    ann: Client,
    /// What ended, on `one`.
    left: Arc<Mutex<Vec<String>>>,
}

impl World {
    fn new() -> Self {
        let (sim, cluster) = (Sim::new(), MemoryCluster::new());
        let (backend, mood) = Moody::new(&cluster);
        let left = Arc::new(Mutex::new(Vec::new()));
        let leaves = Arc::clone(&left);
        let told = move |leave: RoomLeave| {
            let leaves = Arc::clone(&leaves);
            async move {
                let told = format!("{} {:?}", leave.room, leave.reason);
                leaves.lock().unwrap().push(told);
            }
        };
        let builder = MeshServer::builder().backend(backend);
        let one = sim.build(builder.on_room_leave(told));
        let two = sim.build(MeshServer::builder().backend(cluster.backend()));
        for server in [&one, &two] {
            server.expose_channel("c");
            server.expose_room("r");
        }
        let ann = sim.connect(&one);
        Self {
            sim,
            cluster,
            one,
            two,
            mood,
            ann,
            left,
        }
    }

    /// Loses the backend of `one`; what is asked of it when it is back.
    fn asked_on_return(&self) -> Vec<String> {
        self.mood.lose();
        self.sim.run();
        self.mood.take_asked();
        self.mood.restore();
        self.sim.run();
        self.mood.take_asked()
    }

    fn members(&self, room: &'static str) -> Vec<ConnectionId> {
        on!(self, two, |s| s.room_members(room)).unwrap()
    }

    fn take_left(&self) -> Vec<String> {
        self.sim.run();
        std::mem::take(&mut *self.left.lock().unwrap())
    }
}

#[test]
fn what_needs_no_backend_goes_on_and_the_rest_says_so() {
    let mut world = World::new();
    world.ann.call("mesh/join-room", json!({"roomName": "r"}));
    world.mood.lose();
    world.sim.run();
    assert!(world.one.health().is_degraded);
    assert_eq!(world.ann.call("mesh/noop", json!({})), true);
    let join = json!({"roomName": "r"});
    assert_eq!(world.ann.code("mesh/join-room", join), "EUNAVAILABLE");
    for sent in [
        on!(world, one, |s| s.broadcast("all", 1)),
        on!(world, one, |s| s.broadcast_room("r", "room", 2)),
    ] {
        assert!(matches!(sent, Err(ServerError::LocalOnly(_))), "{sent:?}");
    }
    world.sim.run();
    assert_eq!(world.ann.events(), ["all 1", "room 2"]);
    world.mood.restore();
    world.sim.run();
    assert!(!world.one.health().is_degraded);
    assert_eq!(on!(world, one, |s| s.broadcast("all", 3)), Ok(()));
}

#[test]
fn whoever_connects_meanwhile_is_registered_on_return() {
    let world = World::new();
    world.mood.lose();
    let mut bob = world.sim.connect(&world.one);
    assert_eq!(bob.call("mesh/noop", json!({})), true);
    let all = |world: &World| on!(world, two, |s| s.connections().ids()).unwrap().len();
    assert_eq!(all(&world), 1);
    world.mood.restore();
    world.sim.run();
    assert_eq!(all(&world), 2);
    let joined = bob.call("mesh/join-room", json!({"roomName": "r"}));
    assert_eq!(joined["success"], true);
}

#[test]
fn subscribers_are_told_of_the_gap_and_everything_is_stated_before_it_is_settled() {
    let mut world = World::new();
    world.ann.call("mesh/join-room", json!({"roomName": "r"}));
    world
        .ann
        .call("mesh/subscribe-channel", json!({"channel": "c"}));
    assert_eq!(world.asked_on_return(), ["Restore", "Restore", "Settle"]);
    let gap = r#"mesh/gap {"channel":"c"}"#;
    assert_eq!(world.ann.events(), [gap]);
    assert_eq!(world.members("r").len(), 1);
    assert!(world.take_left().is_empty());
}

#[test]
fn what_is_in_one_partition_of_the_backend_is_stated_together() {
    let world = World::new();
    for room in 0..40 {
        // Fewer shards than partitions: 5 and 21 share one.
        let room = format!("partition:{}:{room}", [5, 21][room % 2]);
        let ann = ConnectionId::new(world.ann.id.as_str());
        on!(world, one, |s| s.add_to_room(&room, ann)).unwrap();
    }
    // The connection itself is wherever its id is.
    assert_eq!(world.asked_on_return(), ["Restore", "Restore", "Settle"]);
}

#[test]
fn a_restoration_that_fails_settles_nothing_and_the_next_return_begins_anew() {
    let world = World::new();
    world.mood.failing.lock().unwrap().push("Restore");
    world.mood.restore();
    world.sim.run();
    assert_eq!(world.mood.take_asked().last().unwrap(), "Restore");
    world.mood.failing.lock().unwrap().clear();
    world.mood.restore();
    world.sim.run();
    assert_eq!(world.mood.take_asked(), ["Restore", "Settle"]);
}

#[test]
fn a_return_that_another_one_overtook_leaves_the_end_to_it() {
    let world = World::new();
    world.mood.restore();
    world.mood.restore();
    world.sim.run();
    let mut asked = world.mood.take_asked();
    asked.retain(|asked| asked == "Settle");
    assert_eq!(asked.len(), 1);
}

#[test]
fn what_was_ended_elsewhere_meanwhile_is_ended_here_on_return() {
    let mut world = World::new();
    world.ann.call("mesh/join-room", json!({"roomName": "r"}));
    let ann = ConnectionId::new(world.ann.id.as_str());
    on!(world, one, |s| s.add_to_room("q", ann)).unwrap();
    world.mood.lose();
    // Nobody tells: what is published does not arrive either.
    world.mood.deaf(true);
    on!(world, two, |s| s.clear_room("r")).unwrap();
    let ann = ConnectionId::new(world.ann.id.as_str());
    let removed = world.sim.start({
        let (s, ann) = (world.two.clone(), ann.clone());
        async move { s.remove_from_room("q", ann).await }
    });
    let changed = world.sim.start({
        let s = world.two.clone();
        async move { s.connections().set_metadata(ann, &7).await }
    });
    world.sim.advance(Duration::from_secs(5));
    for silent in [removed.take().unwrap().map(drop), changed.take().unwrap()] {
        let told = silent.unwrap_err().to_string();
        assert!(told.contains("does not answer"), "{told}");
    }
    world.mood.deaf(false);
    world.mood.restore();
    world.sim.run();
    let mut left = world.take_left();
    left.sort();
    assert_eq!(left, ["q Left", "r Left"]);
    assert_eq!(world.members("r"), []);
    on!(world, two, |s| s.broadcast_room("r", "hi", 1)).unwrap();
    world.sim.run();
    assert_eq!(world.ann.events(), [""; 0]);
    let ann = ConnectionId::new(world.ann.id.as_str());
    let metadata = on!(world, one, |s| s.connections().metadata::<u8>(ann));
    assert_eq!(metadata, Ok(Some(7)));
}

#[test]
fn what_another_instance_did_is_told_though_it_died_over_it() {
    let world = World::new();
    let ann = || ConnectionId::new(world.ann.id.as_str());
    for room in ["r", "s", "t"] {
        let id = ann();
        on!(world, one, |s| s.add_to_room(room, id)).unwrap();
    }
    // It gets as far as the store, and no further.
    let other = world.cluster.backend();
    let instance = "other".into();
    let (id, of) = (ann(), ann());
    world.sim.wait(async move {
        for op in [
            Op::OpenInstance { instance },
            Op::ClearRoom { room: "r".into() },
            Op::LeaveRoom {
                room: "s".into(),
                connection: id,
            },
            Op::SetConnectionMetadata {
                connection: of,
                change: MetadataChange::Replace("7".into()),
            },
        ] {
            other.execute(op).await.unwrap();
        }
    });
    let mut left = world.take_left();
    left.sort();
    assert_eq!(left, ["r Cleared", "s Left"]);
    let id = ann();
    let metadata = on!(world, one, |s| s.connections().metadata::<u8>(id));
    assert_eq!(metadata, Ok(Some(7)));
    for room in ["r", "s", "t"] {
        on!(world, two, |s| s.broadcast_room(room, room, 1)).unwrap();
    }
    world.sim.run();
    assert_eq!(world.ann.events(), ["t 1"]);
}

#[test]
fn what_another_instance_does_for_its_connection_is_done_when_the_call_returns() {
    let mut world = World::new();
    world.ann.call("mesh/join-room", json!({"roomName": "r"}));
    world
        .ann
        .call("mesh/subscribe-channel", json!({"channel": "c"}));
    let ann = || ConnectionId::new(world.ann.id.as_str());
    let id = ann();
    on!(world, two, |s| s.connections().set_metadata(id, &7)).unwrap();
    // Not a step of the simulation more: it is done.
    let local = world.one.connections().local(ann()).unwrap();
    let metadata = world.sim.wait(async move { local.metadata::<u8>().await });
    assert_eq!(metadata, Ok(Some(7)));
    let (id, channel) = (ann(), Membership::Channel("c".into()));
    on!(world, two, |s| s.revoke(id, channel)).unwrap();
    on!(world, two, |s| s.publish_to_channel("c", "hi", 0)).unwrap();
    let id = ann();
    on!(world, two, |s| s.remove_from_all_rooms(id)).unwrap();
    assert_eq!(*world.left.lock().unwrap(), ["r Left"]);
    let id = ann();
    let closing = CloseCode::POLICY_VIOLATION;
    on!(world, two, |s| s.disconnect(id, closing, "bye")).unwrap();
    assert!(
        world
            .one
            .connections()
            .local(ann())
            .is_none_or(|ann| !ann.is_open())
    );
    world.sim.run();
    assert_eq!(world.ann.events(), [""; 0]);
    assert_eq!(world.ann.close_code(), Some(1008));
}

#[test]
fn nobody_waits_for_a_connection_that_does_not_exist() {
    let world = World::new();
    let nobody = format!("{}.gone", world.one.instance_id());
    let id = nobody.clone();
    let closed = on!(world, two, |s| s.disconnect(id, CloseCode::NORMAL, ""));
    assert_eq!(closed, Ok(()));
    let nowhere = on!(world, two, |s| s.recheck_guards(nobody));
    assert_eq!(nowhere, Ok(()));
}

#[test]
fn what_the_store_refuses_is_stated_again() {
    let mut world = World::new();
    world
        .ann
        .call("mesh/subscribe-channel", json!({"channel": "c"}));
    let refuse = |names: &[&'static str]| {
        *world.mood.refusing.lock().unwrap() = names.to_vec();
    };
    refuse(&["Restore"]);
    world.mood.restore();
    world.sim.run();
    world.mood.take_asked();
    refuse(&["Settle"]);
    world.sim.advance(Duration::from_secs(1));
    assert_eq!(world.mood.take_asked(), ["Restore", "Settle"]);
    world
        .sim
        .advance(Duration::from_secs(2) - Duration::from_millis(1));
    assert_eq!(world.mood.take_asked(), [""; 0]);
    refuse(&[]);
    world.sim.advance(Duration::from_millis(1));
    assert_eq!(world.mood.take_asked(), ["Restore", "Settle"]);
    world.sim.advance(Duration::from_secs(10));
    assert_eq!(world.mood.take_asked(), [""; 0]);
    let gap = r#"mesh/gap {"channel":"c"}"#;
    assert_eq!(world.ann.events(), [gap], "once for each return");
    // Another return takes its place.
    refuse(&["Settle"]);
    world.mood.restore();
    world.sim.run();
    world.mood.lose();
    world.sim.run();
    world.mood.take_asked();
    world.sim.advance(Duration::from_secs(10));
    assert_eq!(world.mood.take_asked(), [""; 0]);
}

#[test]
fn a_connection_that_the_store_does_not_know_yet_is_reached() {
    let world = World::new();
    world.mood.failing.lock().unwrap().push("OpenConnection");
    let bob = world.sim.connect(&world.one);
    assert_eq!(on!(world, two, |s| s.connections().ids()).unwrap().len(), 1);
    let id = bob.id.clone();
    let closed = on!(world, two, |s| s.disconnect(
        id,
        CloseCode::POLICY_VIOLATION,
        ""
    ));
    assert_eq!(closed, Ok(()));
    world.sim.run();
    assert_eq!(bob.close_code(), Some(1008));
}

#[test]
fn who_may_have_yet_to_come_back_is_not_taken_for_nobody() {
    let world = World::new();
    let ask = |id: &'static str| {
        let s = world.one.clone();
        let asked = world.sim.start(async move {
            let closed = s.disconnect(id, CloseCode::NORMAL, "").await;
            (closed, s.connections().set_metadata(id, &1).await)
        });
        world.sim.run();
        asked
    };
    let nobody = || (Ok(()), Err(ServerError::Gone));
    assert_eq!(ask("other.1").take(), Some(nobody()));
    assert!(world.mood.take_asked().contains(&"KeepFor".to_owned()));
    world.mood.lose();
    world.mood.restore();
    world.sim.run();
    let (closed, changed) = ask("other.1").take().unwrap();
    assert_eq!(closed, Ok(()));
    let changed = changed.unwrap_err();
    assert!(matches!(changed, ServerError::Backend(_)), "{changed}");
    world.sim.advance(Duration::from_secs(15));
    assert_eq!(ask("other.1").take(), Some(nobody()));
}

#[test]
fn what_others_ask_of_an_instance_that_is_away_is_done_on_its_return() {
    let mut world = World::new();
    let bob = world.sim.connect(&world.one);
    world.ann.call("mesh/join-room", json!({"roomName": "r"}));
    world.mood.lose();
    world.sim.run();
    let reason = "banned".to_owned();
    let asked = [
        Relay::Revoke {
            connection: ConnectionId::new(world.ann.id.as_str()),
            what: Membership::Room("r".into()),
        },
        Relay::Disconnect {
            connection: ConnectionId::new(bob.id.as_str()),
            frame: CloseFrame {
                code: CloseCode::POLICY_VIOLATION,
                reason,
            },
        },
    ];
    let kept = asked.iter().map(Relay::encode);
    *world.mood.kept.lock().unwrap() = kept.chain(["of another version".into()]).collect();
    world.mood.take_asked();
    world.mood.restore();
    assert_eq!(world.take_left(), ["r Left"]);
    assert_eq!(bob.close_code(), Some(1008));
    assert_eq!(world.one.metrics().backend_messages_dropped_total, 1);
    let asked = world.mood.take_asked();
    let at = |op: &str| asked.iter().position(|asked| asked == op).unwrap();
    assert!(at("LeaveRoom") < at("Restore"), "{asked:?}");
}

#[test]
fn a_note_is_left_for_an_instance_that_is_away_unless_the_store_tells_it_the_same() {
    let world = World::new();
    let banned = CloseCode::POLICY_VIOLATION;
    let closed = on!(world, one, |s| s.disconnect("other.1", banned, "bye"));
    assert_eq!(closed, Ok(()));
    let removed = on!(world, one, |s| s.remove_from_room("r", "other.1"));
    assert_eq!(removed, Ok(false));
    let notes = std::mem::take(&mut *world.mood.notes.lock().unwrap());
    let relay = Relay::Disconnect {
        connection: "other.1".into(),
        frame: CloseFrame {
            code: banned,
            reason: "bye".into(),
        },
    };
    assert_eq!(notes, [Some(relay.encode()), None]);
}

#[test]
fn instances_of_two_versions_work_side_by_side() {
    let world = World::new();
    let mut newer = Relay::Done { number: 1 }.encode().to_vec();
    newer[0] += 1;
    let topic = Topic::All;
    let message = newer.into();
    world.mood.tell(Notice::Message { topic, message });
    on!(world, two, |s| s.broadcast("hi", 1)).unwrap();
    world.sim.run();
    assert_eq!(world.one.metrics().backend_messages_dropped_total, 1);
    assert_eq!(world.ann.events(), ["hi 1"]);
}

#[test]
fn a_backend_that_does_not_answer_keeps_no_server_from_shutting_down() {
    let world = World::new();
    world.mood.slow.lock().unwrap().push("CloseInstance");
    let ending = world.sim.start({
        let one = world.one.clone();
        async move { one.shutdown().await }
    });
    world.sim.advance(Duration::from_secs(5));
    let ended = ending.take().expect("it is over");
    assert!(matches!(ended, Err(ServerError::Backend(_))), "{ended:?}");
}

#[test]
fn each_membership_that_is_over_is_told_once_with_its_reason() {
    let mut world = World::new();
    let room = json!({"roomName": "r"});
    world.ann.call("mesh/join-room", room.clone());
    world.ann.call("mesh/leave-room", room.clone());
    assert_eq!(world.take_left(), ["r Left"]);
    world.ann.call("mesh/join-room", room.clone());
    on!(world, two, |s| s.clear_room("r")).unwrap();
    assert_eq!(world.take_left(), ["r Cleared"]);
    world.ann.call("mesh/join-room", room);
    world.ann.close();
    assert_eq!(world.take_left(), ["r Disconnected"]);
    let dead = vec![("q".into(), ConnectionId::new("dead.1"))];
    world.mood.tell(Notice::RoomsLeft(dead));
    assert_eq!(world.take_left(), ["q InstanceLost"]);
}
