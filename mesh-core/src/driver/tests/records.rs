//! Records, on two servers of one cluster.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::{
    backend::MemoryCluster,
    driver::{
        Connection, Membership, MeshServer, Pattern, Record, ServerError,
        testkit::{Client, Mood, Moody, Sim},
    },
    protocol::CommandError,
};

struct Pair {
    sim: Sim,
    one: MeshServer,
    two: MeshServer,
    mood: Mood,
    /// Of `one`.
    ann: Client,
    /// Of `two`.
    bob: Client,
}

fn pair() -> Pair {
    pair_of(|limits| limits.record_bytes_max = 200)
}

fn pair_of(limits: impl Fn(&mut crate::protocol::Limits)) -> Pair {
    let (sim, cluster) = (Sim::new(), MemoryCluster::new());
    let (backend, mood) = Moody::new(&cluster);
    let one = sim.build(MeshServer::builder().backend(backend).limits(&limits));
    let two = MeshServer::builder().backend(cluster.backend());
    let two = sim.build(two.limits(&limits));
    for server in [&one, &two] {
        server.expose_record("r");
        server.expose_writable_record("w");
    }
    let (ann, bob) = (sim.connect(&one), sim.connect(&two));
    Pair {
        sim,
        one,
        two,
        mood,
        ann,
        bob,
    }
}

impl Pair {
    fn events(&self) -> (Vec<String>, Vec<String>) {
        self.sim.run();
        (self.ann.events(), self.bob.events())
    }

    /// Ann whole, Bob by patches.
    fn subscribe_both(&mut self) {
        let none = json!({"success": true, "record": null, "version": 0});
        let whole = self
            .ann
            .call("mesh/subscribe-record", json!({"recordId": "r"}));
        assert_eq!(whole, none);
        let patches = json!({"recordId": "r", "mode": "patch"});
        assert_eq!(self.bob.call("mesh/subscribe-record", patches), none);
    }

    fn publish(&self, value: &Value) -> u64 {
        let value = value.clone();
        on!(self, one, |s| s.publish_record_update("r", &value)).unwrap()
    }
}

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

const LONG: &str = "long enough for a patch to be shorter than the value";

#[test]
fn updates_reach_both_modes_on_both_servers_and_equal_values_nobody() {
    let mut pair = pair();
    pair.subscribe_both();
    assert_eq!(pair.publish(&json!({"a": 1, "b": LONG})), 1);
    assert_eq!(pair.publish(&json!({"b": LONG, "a": 1.0})), 1);
    assert_eq!(pair.publish(&json!({"a": 2, "b": LONG})), 2);
    let (ann, bob) = pair.events();
    let full = |a: u32, version: u32| {
        let value = json!({"recordId": "r", "full": {"a": a, "b": LONG}, "version": version});
        format!("mesh/record-update {value}")
    };
    assert_eq!(ann, [full(1, 1), full(2, 2)]);
    let patch = json!([{"op": "replace", "path": "/a", "value": 2}]);
    let patch = json!({"recordId": "r", "patch": patch, "version": 2});
    assert_eq!(bob, [full(1, 1), format!("mesh/record-update {patch}")]);

    let ended = pair
        .ann
        .call("mesh/unsubscribe-record", json!({"recordId": "r"}));
    assert_eq!(ended, true);
    let ended = pair
        .ann
        .call("mesh/unsubscribe-record", json!({"recordId": "r"}));
    assert_eq!(ended, false);
    assert_eq!(on!(pair, two, |s| s.delete_record("r")).unwrap(), Some(3));
    assert_eq!(on!(pair, two, |s| s.delete_record("r")).unwrap(), None);
    let deleted = r#"mesh/record-deleted {"recordId":"r","version":3}"#.to_owned();
    assert_eq!(pair.events(), (vec![], vec![deleted]));
    let stored = on!(pair, one, |s| s.get_record::<Value>("r")).unwrap();
    assert_eq!(
        stored,
        Record {
            value: None,
            version: 3
        }
    );
    assert_eq!(pair.publish(&Value::Null), 4);
    let forget = Duration::ZERO;
    assert_eq!(on!(pair, one, |s| s.purge_deleted(forget)).unwrap(), 0);
}

#[test]
fn values_are_merged_and_updated_atomically() {
    let pair = pair();
    let merge =
        |pair: &Pair, value: Value| on!(pair, one, |s| s.merge_record("r", &value)).unwrap();
    assert_eq!(merge(&pair, json!({"a": {"x": 1}})), 1);
    assert_eq!(merge(&pair, json!({"a": {"y": 2}, "b": 0})), 2);
    let deep = json!({"a": {"z": [3]}});
    assert_eq!(
        on!(pair, two, |s| s.deep_merge_record("r", &deep)).unwrap(),
        3
    );
    let stored = on!(pair, one, |s| s.get_record::<Value>("r")).unwrap();
    let value = Some(json!({"a": {"y": 2, "z": [3]}, "b": 0}));
    assert_eq!(stored, Record { value, version: 3 });

    // Twenty on each server at once, and none is lost.
    let count = |server: MeshServer| async move {
        let one = || server.update_record("n", |n: Option<u64>| n.unwrap_or(0) + 1);
        join_all((0..20).map(|_| one())).await
    };
    let (one, two) = (pair.one.clone(), pair.two.clone());
    let counts = pair
        .sim
        .wait(async move { join_all([count(one), count(two)]).await });
    let mut versions: Vec<u64> = counts.into_iter().flatten().map(Result::unwrap).collect();
    versions.sort_unstable();
    assert_eq!(versions, (1..=40).collect::<Vec<_>>());
    let stored = on!(pair, one, |s| s.get_record::<u64>("n")).unwrap();
    assert_eq!(
        stored,
        Record {
            value: Some(40),
            version: 40
        }
    );
}

#[test]
fn what_no_record_can_be_is_refused_and_changes_nothing() {
    let pair = pair();
    let publish =
        |pair: &Pair, value: Value| on!(pair, one, |s| s.publish_record_update("r", &value));
    let long = publish(&pair, json!("x".repeat(199)));
    assert_eq!(long, Err(ServerError::ValueTooLong { len: 201, max: 200 }));
    publish(&pair, json!({"a": "x".repeat(150)})).unwrap();
    let more = json!({"b": "x".repeat(150)});
    let merged = on!(pair, one, |s| s.merge_record("r", &more));
    assert!(
        matches!(merged, Err(ServerError::ValueTooLong { max: 200, .. })),
        "{merged:?}"
    );
    let name = on!(pair, one, |s| s.publish_record_update("", &1));
    assert!(matches!(
        name,
        Err(ServerError::Name { what: "record", .. })
    ));

    let panics = on!(pair, one, |s| s
        .update_record("r", |_: Option<Value>| -> u8 { panic!("planted") }));
    assert_eq!(panics, Err(ServerError::UpdatePanicked));
    let no = on!(pair, one, |s| s
        .try_update_record("r", |_: Option<Value>| {
            Err::<u8, _>(CommandError::new("no"))
        }));
    assert_eq!(no, Err(ServerError::Refused(CommandError::new("no"))));
    let shape = on!(pair, one, |s| s.update_record("r", |_: Option<u8>| 1));
    assert!(matches!(shape, Err(ServerError::Shape(_))), "{shape:?}");
    let shape = on!(pair, one, |s| s.get_record::<u8>("r"));
    assert!(matches!(shape, Err(ServerError::Shape(_))), "{shape:?}");
    assert_eq!(
        on!(pair, one, |s| s.get_record::<Value>("r"))
            .unwrap()
            .version,
        1
    );

    // Clients are told the same, with a code.
    let write = |value: &str| {
        format!(
            r#"{{"id":7,"command":"mesh/publish-record-update","payload":{{"recordId":"w","newValue":{value}}}}}"#
        )
    };
    for (value, why) in [
        (
            "1e400",
            "no value for a record: number out of range, at byte 0",
        ),
        (
            r#""\ud800""#,
            "no value for a record: lone surrogate, in the string at byte 0",
        ),
    ] {
        pair.ann.send_text(&write(value));
        pair.sim.run();
        let payload = pair.ann.frames().pop().unwrap()["payload"].clone();
        assert_eq!(
            (&payload["code"], &payload["error"]),
            (&json!("EINVALID"), &json!(why))
        );
    }
    // The last of two equal keys counts.
    pair.ann.send_text(&write(r#"{"a":1,"\u0061":2}"#));
    pair.sim.run();
    let stored = on!(pair, two, |s| s.get_record::<Value>("w")).unwrap();
    assert_eq!(
        stored,
        Record {
            value: Some(json!({"a": 2})),
            version: 1
        }
    );
}

#[test]
fn clients_read_and_write_what_is_exposed() {
    let mut pair = pair();
    let hidden = json!({"recordId": "x"});
    let refused = pair.ann.call("mesh/subscribe-record", hidden.clone());
    assert_eq!(refused, json!({"success": false}));
    assert_eq!(pair.ann.call("mesh/unsubscribe-record", hidden), false);
    for record in ["r", "x"] {
        let payload = json!({"recordId": record, "newValue": 1});
        let refused = pair.ann.call("mesh/publish-record-update", payload);
        let message = format!("Record \"{record}\" is not writable by this connection.");
        let error = CommandError::new(message);
        assert_eq!(refused, serde_json::to_value(&error).unwrap());
    }
    // Whoever writes may read.
    let subscribed = pair
        .bob
        .call("mesh/subscribe-record", json!({"recordId": "w"}));
    assert_eq!(subscribed["success"], true);
    for (payload, value) in [
        (
            json!({"recordId": "w", "newValue": {"a": {"b": 1}}}),
            json!({"a": {"b": 1}}),
        ),
        (
            json!({"recordId": "w", "newValue": {"a": {"c": 2}}, "options": {"strategy": "deepMerge"}}),
            json!({"a": {"b": 1, "c": 2}}),
        ),
        (
            json!({"recordId": "w", "newValue": {"a": 3}, "options": {"strategy": "merge"}}),
            json!({"a": 3}),
        ),
    ] {
        let reply = pair.ann.call("mesh/publish-record-update", payload);
        assert_eq!(reply, json!({"success": true}));
        let told = pair.events().1.pop().unwrap();
        assert!(told.contains(&format!(r#""full":{value}"#)), "{told}");
    }
}

#[test]
fn reading_is_for_the_exposure_about_reading_and_may_be_taken_away() {
    let mut pair = pair();
    let open = Arc::new(AtomicBool::new(false));
    let guard = {
        let open = Arc::clone(&open);
        move |_: Connection, _: String| std::future::ready(open.load(Ordering::Relaxed))
    };
    pair.one
        .expose_record(Pattern::regex("^w$").unwrap())
        .guard(guard);
    let subscribe = json!({"recordId": "w"});
    let refused = pair.ann.call("mesh/subscribe-record", subscribe.clone());
    assert_eq!(
        refused,
        json!({"success": false}),
        "a writer whom the guard does not let read"
    );

    open.store(true, Ordering::Relaxed);
    for way in 0..2 {
        let subscribed = pair.ann.call("mesh/subscribe-record", subscribe.clone());
        assert_eq!(subscribed["success"], true);
        let id = pair.ann.id.clone();
        if way == 0 {
            on!(pair, two, |s| s.revoke(id, Membership::Record("w".into()))).unwrap();
        } else {
            open.store(false, Ordering::Relaxed);
            on!(pair, one, |s| s.recheck_guards(id)).unwrap();
        }
        on!(pair, one, |s| s.publish_record_update("w", &way)).unwrap();
        assert_eq!(pair.events().0, Vec::<String>::new());
    }
}

#[test]
fn a_lost_notice_is_noticed_though_nothing_follows() {
    let mut pair = pair();
    pair.subscribe_both();
    pair.publish(&json!(1));
    pair.events();
    pair.mood.deaf(true);
    on!(pair, two, |s| s.publish_record_update("r", &2)).unwrap();
    pair.events();
    pair.mood.deaf(false);
    assert_eq!(pair.one.metrics().record_resyncs_total, 0);
    pair.sim.advance(Duration::from_millis(10_300));
    let ann = pair.events().0;
    assert_eq!(
        ann,
        [r#"mesh/record-update {"full":2,"recordId":"r","version":2}"#]
    );
    assert_eq!(pair.one.metrics().record_resyncs_total, 1);
    assert_eq!(pair.two.metrics().record_resyncs_total, 0);
}

#[test]
fn records_are_in_step_again_when_the_backend_is_back() {
    let mut pair = pair();
    pair.subscribe_both();
    pair.publish(&json!(1));
    pair.mood.deaf(true);
    pair.mood.lose();
    pair.sim.run();
    let failed = on!(pair, one, |s| s.publish_record_update("r", &9));
    assert!(matches!(failed, Err(ServerError::Backend(_))), "{failed:?}");
    on!(pair, two, |s| s.publish_record_update("r", &2)).unwrap();
    pair.events();
    pair.mood.deaf(false);
    pair.mood.restore();
    pair.sim.run();
    pair.sim.advance(Duration::from_millis(300));
    let told = pair.events().0;
    assert_eq!(
        told,
        [r#"mesh/record-update {"full":2,"recordId":"r","version":2}"#]
    );
    assert_eq!(pair.publish(&json!(3)), 3);
}

#[test]
fn a_publish_whose_reply_is_lost_is_one_version() {
    let pair = pair();
    pair.publish(&json!(1));
    pair.mood.slow.lock().unwrap().push("PublishRecord");
    let one = pair.one.clone();
    let publish = pair
        .sim
        .start(async move { one.publish_record_update("r", &2).await });
    pair.sim.run();
    // It is done, and the answer never comes.
    pair.mood.slow.lock().unwrap().clear();
    pair.mood.fail_waiting();
    pair.mood.lose();
    pair.sim.run();
    assert!(!publish.is_done());
    pair.mood.restore();
    pair.sim.run();
    assert_eq!(publish.take(), Some(Ok(2)));
    let stored = on!(pair, two, |s| s.get_record::<u8>("r")).unwrap();
    assert_eq!(
        stored,
        Record {
            value: Some(2),
            version: 2
        }
    );
}

#[test]
fn a_slow_client_gets_the_latest_in_place_of_a_backlog() {
    let mut pair = pair_of(|limits| limits.queue_bytes_max = 40_000);
    pair.subscribe_both();
    pair.ann.block(true);
    let value = |n: u32| json!({"n": n, "pad": "x".repeat(3_000)});
    for n in 1..=100 {
        assert_eq!(pair.publish(&value(n)), u64::from(n));
        pair.sim.run();
    }
    let left_out = pair.one.metrics().record_updates_left_out_total;
    assert!(left_out > 80, "{left_out}");
    assert_eq!(pair.one.metrics().slow_consumers_total, 0);
    assert_eq!(pair.bob.events().len(), 100, "harms nobody else");
    pair.ann.block(false);
    pair.sim.run();
    let versions = |events: Vec<String>| -> Vec<u64> {
        let version = |event: &String| {
            let payload: Value = serde_json::from_str(event.split_once(' ').unwrap().1).unwrap();
            payload["version"].as_u64().unwrap()
        };
        events.iter().map(version).collect()
    };
    let told = versions(pair.ann.events());
    assert_eq!(told.last(), Some(&100));
    assert!(told.len() < 20 && told.is_sorted(), "{told:?}");
    pair.publish(&value(101));
    assert_eq!(versions(pair.events().0), [101]);
}

#[test]
fn a_late_subscriber_costs_no_read_and_a_stranger_no_work() {
    let mut pair = pair();
    pair.subscribe_both();
    pair.publish(&json!({"a": 1}));
    pair.sim.run();
    pair.mood.take_asked();
    let mut late = pair.sim.connect(&pair.one);
    let reply = late.call("mesh/subscribe-record", json!({"recordId": "r"}));
    assert_eq!(
        reply,
        json!({"success": true, "record": {"a": 1}, "version": 1})
    );
    let asked = pair.mood.take_asked();
    assert!(!asked.iter().any(|op| op.contains("Record")), "{asked:?}");
    // Nobody here has to do with it.
    on!(pair, two, |s| s.publish_record_update("other", &1)).unwrap();
    pair.sim.run();
    assert_eq!(pair.mood.take_asked(), Vec::<String>::new());
}

#[test]
fn an_update_sees_what_is_stored_and_is_called_again_after_a_conflict() {
    let pair = pair();
    pair.publish(&json!(5));
    let calls = Arc::new(AtomicU64::new(0));
    let (two, counted) = (pair.two.clone(), Arc::clone(&calls));
    let update = async move {
        // What `two` knows is older than what `one` makes meanwhile.
        two.publish_record_update("r", &6).await?;
        two.update_record("r", move |n: Option<u64>| {
            counted.fetch_add(1, Ordering::Relaxed);
            n.unwrap_or(0) * 10
        })
        .await
    };
    pair.sim.wait(update).unwrap();
    pair.publish(&json!(7));
    let two = pair.two.clone();
    let counted = Arc::clone(&calls);
    let version = pair.sim.wait(async move {
        two.update_record("r", move |n: Option<u64>| {
            counted.fetch_add(1, Ordering::Relaxed);
            n.unwrap_or(0) + 1
        })
        .await
    });
    assert_eq!(version, Ok(5));
    let stored = on!(pair, one, |s| s.get_record::<u64>("r")).unwrap();
    assert_eq!(
        stored,
        Record {
            value: Some(8),
            version: 5
        }
    );
    assert_eq!(
        calls.load(Ordering::Relaxed),
        3,
        "once, and again on the newer value"
    );
}

#[test]
fn nobody_waits_for_a_record_while_the_backend_is_gone() {
    let mut pair = pair();
    let read = json!({"recordId": "r"});
    assert_eq!(
        pair.bob.call("mesh/subscribe-record", read.clone())["success"],
        true
    );
    pair.mood.slow.lock().unwrap().push("Record");
    let waits = pair.ann.send("mesh/subscribe-record", read.clone());
    pair.sim.run();
    pair.mood.lose();
    pair.sim.run();
    let replies = pair.ann.frames();
    let reply = replies.iter().find(|frame| frame["id"] == waits).unwrap();
    assert_eq!(reply["payload"]["code"], "EUNAVAILABLE", "who waited");
    for command in ["mesh/subscribe-record", "mesh/unsubscribe-record"] {
        let reply = pair.ann.call(command, read.clone());
        let told = reply == false || reply["code"] == "EUNAVAILABLE";
        assert!(told, "{command}: {reply}");
    }
    let failed = on!(pair, one, |s| s.publish_record_update("r", &1));
    assert!(matches!(failed, Err(ServerError::Backend(_))), "{failed:?}");
    pair.mood.slow.lock().unwrap().clear();
    pair.mood.restore();
    pair.sim.run();
    let subscribed = pair.ann.call("mesh/subscribe-record", read);
    assert_eq!(subscribed["success"], true);
}

#[test]
fn who_is_told_of_an_error_holds_nothing() {
    let mut pair = pair_of(|limits| limits.queue_bytes_max = 20_000);
    pair.one.expose_record(Pattern::regex("^x.$").unwrap());
    let pad = "x".repeat(9_000);
    for n in 0..8 {
        let record = format!("x{n}");
        let pad = pad.clone();
        on!(pair, one, |s| s.publish_record_update(&record, &pad)).unwrap();
    }
    // All of them wait for the store, so that none is held back before.
    pair.mood.slow.lock().unwrap().push("Record");
    pair.ann.block(true);
    let asked: Vec<_> = (0..8)
        .map(|n| json!({"recordId": format!("x{n}")}))
        .collect();
    let asked: Vec<_> = asked
        .into_iter()
        .map(|it| ("mesh/subscribe-record", it))
        .collect();
    pair.ann.send_all(&asked);
    pair.sim.run();
    pair.mood.slow.lock().unwrap().clear();
    pair.mood.gate.open();
    pair.sim.run();
    pair.ann.block(false);
    pair.sim.run();
    let replies = pair.ann.frames();
    let granted = replies
        .iter()
        .filter(|it| it["payload"]["success"] == true)
        .count();
    let refused = replies
        .iter()
        .filter(|it| it["payload"]["code"] == "EOVERLOAD")
        .count();
    assert_eq!(granted + refused, 8);
    assert!(granted > 0 && refused > 0, "{granted} and {refused}");
    let id = pair.ann.id.clone().as_str().into();
    assert_eq!(pair.one.inner.memberships(&id).len(), granted);
}

#[test]
fn an_update_that_fails_is_judged_on_what_is_stored() {
    let mut pair = pair();
    pair.subscribe_both();
    let double = |pair: &Pair| {
        on!(pair, one, |s| s
            .update_record("r", |n: Option<u64>| n.unwrap_or(1) * 2))
    };
    pair.publish(&json!("text"));
    assert!(matches!(double(&pair), Err(ServerError::Shape(_))));
    on!(pair, two, |s| s.publish_record_update("r", &5)).unwrap();
    pair.sim.run();
    assert_eq!(double(&pair), Ok(3));
    // What others have made of it counts, though nothing is known of that here.
    on!(pair, one, |s| s.publish_record_update("n", &"text")).unwrap();
    on!(pair, two, |s| s.publish_record_update("n", &5)).unwrap();
    let doubled = on!(pair, one, |s| s
        .update_record("n", |n: Option<u64>| n.unwrap_or(1) * 2));
    assert_eq!(doubled, Ok(3));
}

#[test]
fn a_value_of_exactly_the_limit_is_stored() {
    let pair = pair();
    assert_eq!(pair.publish(&json!("x".repeat(198))), 1);
}

#[test]
fn deleted_records_are_forgotten_after_a_while_and_counted() {
    let pair = pair();
    for record in ["a", "b", "c"] {
        on!(pair, one, |s| s.publish_record_update(record, &1)).unwrap();
    }
    for record in ["a", "b"] {
        assert_eq!(on!(pair, one, |s| s.delete_record(record)), Ok(Some(2)));
    }
    pair.sim.advance(10 * SECOND);
    let purge = |seconds| on!(pair, one, |s| s.purge_deleted(seconds * SECOND));
    assert_eq!(purge(60), Ok(0));
    assert_eq!(purge(5), Ok(2));
    assert_eq!(purge(0), Ok(0));
}

#[test]
fn records_are_compared_with_the_store_at_the_interval_asked_for() {
    for (asked, interval) in [
        (500 * MS, 500 * MS),
        (MS, 100 * MS),
        (99 * SECOND, 10 * SECOND),
    ] {
        let (sim, cluster) = (Sim::new(), MemoryCluster::new());
        let (backend, mood) = Moody::new(&cluster);
        let builder = MeshServer::builder().backend(backend);
        let server = sim.build(builder.record_check_interval(asked));
        server.expose_record("r");
        let mut client = sim.connect(&server);
        client.call("mesh/subscribe-record", json!({"recordId": "r"}));
        mood.take_asked();
        // A client that answers no ping is gone after 90 s.
        sim.advance(8 * interval);
        let asked_about = mood.take_asked();
        let checks = asked_about.iter().filter(|op| *op == "RecordVersions");
        let checks = checks.count();
        assert!(
            (7..=9).contains(&checks),
            "{asked:?}: {checks} of {asked_about:?}"
        );
    }
}
