//! `protocol.md`, sections 4 to 6: records, as clients of the demo see them.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on fails"
)]

mod common;

use mesh_tests::prelude::*;
use mesh_tests::runtime::block_on;
use mesh_tests::{Demo, Proxy, RawClient, assert_error, assert_invalid, error};
use serde_json::{Value, json};

use crate::common::{SOON, connect, patiently};

/// Publishes through the server, and returns the version.
#[track_caller]
fn publish(client: &mut RawClient, record: &str, value: &Value) -> u64 {
    let payload = json!({ "recordId": record, "value": value });
    let reply = client.command("publish-record", payload);
    assert_eq!(reply["success"], true, "{reply}");
    reply["version"].as_u64().expect("a version")
}

#[track_caller]
fn subscribe(client: &mut RawClient, record: &str, mode: &str) -> (Value, u64) {
    let payload = json!({ "recordId": record, "mode": mode });
    let reply = client.command("mesh/subscribe-record", payload);
    assert_eq!(reply["success"], true, "{reply}");
    (
        reply["record"].clone(),
        reply["version"].as_u64().expect("a version"),
    )
}

#[track_caller]
fn stored(client: &mut RawClient, record: &str) -> Value {
    client.command("get-record", json!({ "recordId": record }))
}

#[test]
fn a_record_is_served_whole_or_in_patches() {
    let demo = Demo::shared();
    let (mut writer, mut whole) = (RawClient::connect(&demo), RawClient::connect(&demo));
    let mut patches = RawClient::connect(&demo);
    assert_eq!(
        stored(&mut writer, "doc:modes"),
        json!({ "record": null, "version": 0 })
    );
    assert_eq!(
        subscribe(&mut patches, "doc:modes", "patch"),
        (Value::Null, 0)
    );
    let first = json!({ "name": "Ada", "tags": ["x", "y"], "about": "a text of some length" });
    assert_eq!(publish(&mut writer, "doc:modes", &first), 1);
    // The default mode is whole.
    let payload = json!({ "recordId": "doc:modes" });
    let reply = whole.command("mesh/subscribe-record", payload);
    assert_eq!(
        reply,
        json!({ "success": true, "record": first, "version": 1 })
    );

    let mut second = first.clone();
    second["tags"] = json!(["y"]);
    assert_eq!(publish(&mut writer, "doc:modes", &second), 2);
    let told = |value: &Value, version: u32| json!({ "recordId": "doc:modes", "full": value, "version": version });
    assert_eq!(whole.event("mesh/record-update"), told(&second, 2));
    assert_eq!(patches.event("mesh/record-update"), told(&first, 1));
    let patch = json!([{ "op": "remove", "path": "/tags/0" }]);
    assert_eq!(
        patches.event("mesh/record-update"),
        json!({ "recordId": "doc:modes", "patch": patch, "version": 2 })
    );
    assert_eq!(
        stored(&mut writer, "doc:modes"),
        json!({ "record": second, "version": 2 })
    );

    let unsubscribe = json!({ "recordId": "doc:modes" });
    assert_eq!(
        whole.command("mesh/unsubscribe-record", unsubscribe.clone()),
        true
    );
    assert_eq!(whole.command("mesh/unsubscribe-record", unsubscribe), false);
    publish(&mut writer, "doc:modes", &json!(3));
    // A change of the root is one operation.
    let root = json!([{ "op": "replace", "path": "", "value": 3 }]);
    assert_eq!(patches.event("mesh/record-update")["patch"], root);
    whole.assert_quiet();
}

#[test]
fn what_equals_the_stored_value_is_no_update() {
    let demo = Demo::shared();
    let (mut writer, mut reader) = (RawClient::connect(&demo), RawClient::connect(&demo));
    for (record, value, equal) in [
        (
            "doc:equal-object",
            json!({ "a": 1, "b": [2.0] }),
            r#"{"b":[2],"a":1e0}"#,
        ),
        ("doc:equal-null", Value::Null, " null"),
        ("doc:equal-empty", json!({}), "{ }"),
        ("doc:equal-text", json!("é/"), r#""\u00e9\/""#),
    ] {
        assert_eq!(
            publish(&mut writer, record, &value),
            1,
            "a first value is one"
        );
        subscribe(&mut reader, record, "full");
        let text = format!(
            r#"{{"id":60000,"command":"publish-record","payload":{{"recordId":"{record}","value":{equal}}}}}"#
        );
        writer.send_text(&text);
        assert_eq!(
            writer.reply(60_000),
            json!({ "success": true, "version": 1 })
        );
    }
    reader.assert_quiet();
    // A number counts as what it is, down to its last digit.
    for (number, version) in [
        ("18446744073709551615", 1),
        ("18446744073709551614", 2),
        ("9007199254740993", 3),
        ("9007199254740992", 4),
        ("9007199254740992.0", 4),
    ] {
        let text = format!(
            r#"{{"id":60001,"command":"publish-record","payload":{{"recordId":"doc:numbers","value":{number}}}}}"#
        );
        writer.send_text(&text);
        assert_eq!(writer.reply(60_001)["version"], version, "{number}");
    }
}

#[test]
fn a_deletion_is_the_next_version_and_versions_go_on_behind_it() {
    let demo = Demo::shared();
    let (mut writer, mut reader) = (RawClient::connect(&demo), RawClient::connect(&demo));
    let named = json!({ "recordId": "doc:deleted" });
    writer.succeed("delete-record", named.clone());
    assert_eq!(
        stored(&mut writer, "doc:deleted"),
        json!({ "record": null, "version": 0 })
    );
    publish(&mut writer, "doc:deleted", &json!([1]));
    subscribe(&mut reader, "doc:deleted", "patch");
    writer.succeed("delete-record", named.clone());
    writer.succeed("delete-record", named);
    let deleted = json!({ "recordId": "doc:deleted", "version": 2 });
    assert_eq!(reader.event("mesh/record-deleted"), deleted);
    assert_eq!(
        stored(&mut writer, "doc:deleted"),
        json!({ "record": null, "version": 2 })
    );
    let late = subscribe(&mut RawClient::connect(&demo), "doc:deleted", "full");
    assert_eq!(late, (Value::Null, 2));
    // Where nothing is stored the difference starts from {}.
    let value = json!({ "a": "long enough for a patch, surely" });
    assert_eq!(publish(&mut writer, "doc:deleted", &value), 3);
    assert_eq!(
        reader.event("mesh/record-update"),
        json!({ "recordId": "doc:deleted", "full": value, "version": 3 })
    );
    reader.assert_quiet();
}

#[test]
fn records_are_readable_and_writable_where_they_are_exposed() {
    let demo = Demo::shared();
    let (mut client, mut member) = (RawClient::connect(&demo), RawClient::connect(&demo));
    publish(&mut member, "secret:plans", &json!(1));
    let read = |client: &mut RawClient, record: &str| {
        client.command("mesh/subscribe-record", json!({ "recordId": record }))["success"] == true
    };
    for record in ["user:123", "product:7", "doc:exposed", "cursor:1"] {
        assert!(read(&mut client, record), "{record}");
    }
    for record in [
        "secret:plans",
        "no-such",
        "user:1234",
        "product:x",
        "doc:",
        "profile:7",
        "private:1",
    ] {
        let payload = json!({ "recordId": record });
        let refused = client.command("mesh/subscribe-record", payload.clone());
        assert_eq!(refused, json!({ "success": false }), "{record}");
        assert_eq!(client.command("mesh/unsubscribe-record", payload), false);
    }
    for record in [
        "secret:plans",
        "no-such",
        "user:123",
        "doc:exposed",
        "profile:7",
        "cursor:",
    ] {
        let payload = json!({ "recordId": record, "newValue": 1 });
        let refused = client.command("mesh/publish-record-update", payload);
        let message = format!("Record \"{record}\" is not writable by this connection.");
        assert_eq!(refused, error(&message, "ESERVER", "Error"));
    }
    member.succeed("authenticate", json!({ "userId": "7" }));
    assert!(read(&mut member, "private:1") && read(&mut member, "profile:7"));
    assert!(!read(&mut member, "profile:8"));
    member.succeed(
        "mesh/publish-record-update",
        json!({ "recordId": "profile:7", "newValue": 1 }),
    );
    let other = json!({ "recordId": "profile:8", "newValue": 1 });
    assert_error(
        &member.command("mesh/publish-record-update", other),
        "ESERVER",
        "Error",
    );
}

#[test]
fn clients_replace_and_merge() {
    let demo = Demo::shared();
    let (mut writer, mut reader) = (RawClient::connect(&demo), RawClient::connect(&demo));
    subscribe(&mut reader, "cursor:merge", "full");
    for (value, options, merged) in [
        (
            json!({ "a": { "x": 1 }, "b": 1 }),
            json!({}),
            json!({ "a": { "x": 1 }, "b": 1 }),
        ),
        (
            json!({ "a": { "y": null } }),
            json!({ "strategy": "deepMerge" }),
            json!({ "a": { "x": 1, "y": null }, "b": 1 }),
        ),
        (
            json!({ "a": { "z": [1] } }),
            json!({ "strategy": "merge" }),
            json!({ "a": { "z": [1] }, "b": 1 }),
        ),
        (json!([1]), json!({ "strategy": "merge" }), json!([1])),
        (json!({}), json!({ "strategy": "replace" }), json!({})),
    ] {
        let payload = json!({ "recordId": "cursor:merge", "newValue": value, "options": options });
        writer.succeed("mesh/publish-record-update", payload);
        assert_eq!(reader.event("mesh/record-update")["full"], merged);
    }
}

#[test]
fn bad_input_is_answered_and_stores_nothing() {
    let demo = Demo::shared();
    let mut client = RawClient::connect(&demo);
    let long = "x".repeat(513);
    for (command, payload) in [
        ("mesh/subscribe-record", json!({})),
        ("mesh/subscribe-record", json!({ "recordId": 1 })),
        ("mesh/subscribe-record", json!({ "recordId": "" })),
        ("mesh/subscribe-record", json!({ "recordId": long })),
        (
            "mesh/subscribe-record",
            json!({ "recordId": "doc:bad", "mode": "both" }),
        ),
        ("mesh/unsubscribe-record", json!({})),
        (
            "mesh/publish-record-update",
            json!({ "recordId": "cursor:bad" }),
        ),
        (
            "mesh/publish-record-update",
            json!({ "recordId": "", "newValue": 1 }),
        ),
        (
            "mesh/publish-record-update",
            json!({ "recordId": "cursor:bad", "newValue": 1, "options": { "strategy": "none" } }),
        ),
        ("publish-record", json!({ "recordId": "cursor:bad" })),
        ("get-record", json!({})),
        ("delete-record", json!([])),
    ] {
        assert_invalid(&client.command(command, payload));
    }
    let nested = format!("{}1{}", "[".repeat(125), "]".repeat(125));
    for value in ["1e400", "-1e400", r#""\ud800""#, r#"{"\udc00":1}"#, &nested] {
        let text = format!(
            r#"{{"id":60002,"command":"mesh/publish-record-update","payload":{{"recordId":"cursor:bad","newValue":{value}}}}}"#
        );
        client.send_text(&text);
        assert_invalid(&client.reply(60_002));
    }
    assert_eq!(
        stored(&mut client, "cursor:bad"),
        json!({ "record": null, "version": 0 })
    );
}

#[derive(Debug, serde::Deserialize, PartialEq)]
struct Page {
    title: String,
    #[serde(default)]
    views: u64,
}

#[test]
fn the_client_follows_a_record_and_resumes() {
    block_on(async {
        let demo = Demo::start(&[]);
        let proxy = Proxy::to(demo.addr());
        let url = proxy.url().replace("redis:", "ws:");
        let reader = connect(MeshClient::builder(&url).reconnect_interval(SOON)).await;
        let writer = connect(MeshClient::builder(&format!("ws://{}", demo.addr()))).await;
        let publish = async |value: Value| {
            let payload = json!({ "recordId": "doc:page", "value": value });
            let call = writer.command::<_, Value>("publish-record", payload);
            patiently("publish", call.into_future()).await.unwrap()["version"]
                .as_u64()
                .unwrap()
        };
        let title = "a title that is long enough for patches";
        publish(json!({ "title": title })).await;
        let mut whole = reader.subscribe_record::<Page>("doc:page").await.unwrap();
        let mut patches = reader
            .subscribe_record::<Page>("doc:page")
            .patch()
            .await
            .unwrap();
        let page = |views| {
            Some(Page {
                title: title.to_owned(),
                views,
            })
        };
        assert_eq!((whole.version(), whole.value()), (1, page(0).as_ref()));
        assert_eq!((patches.version(), patches.value()), (1, page(0).as_ref()));
        for views in 1..=20 {
            assert_eq!(
                publish(json!({ "title": title, "views": views })).await,
                views + 1
            );
            for subscription in [&mut whole, &mut patches] {
                let update = patiently("update", subscription.next())
                    .await
                    .unwrap()
                    .unwrap();
                assert_eq!((update.version, update.value), (views + 1, page(views)));
            }
        }
        // The connection goes, and comes back behind two more updates: nobody is told a version twice.
        proxy.partition();
        publish(json!({ "title": title, "views": 98 })).await;
        publish(json!({ "title": title, "views": 99 })).await;
        proxy.cut();
        proxy.heal();
        for subscription in [&mut whole, &mut patches] {
            let update = patiently("resume", subscription.next()).await;
            let update = update.unwrap().unwrap();
            assert_eq!((update.version, update.value), (23, page(99)));
            assert_eq!(update.change, RecordChange::Updated);
        }
        publish(json!({ "title": title, "views": 100 })).await;
        for subscription in [&mut whole, &mut patches] {
            let update = patiently("go on", subscription.next()).await;
            assert_eq!(update.unwrap().unwrap().version, 24);
        }
    });
}

#[test]
fn the_client_is_told_of_a_store_that_lost_the_record() {
    block_on(async {
        let demo = Demo::start(&[]);
        if demo.redis().is_some() {
            return; // There nothing is lost with the server.
        }
        let port = demo.addr().port();
        let builder =
            MeshClient::builder(&format!("ws://{}", demo.addr())).reconnect_interval(SOON);
        let client = connect(builder).await;
        let publish = async |value: u32| {
            let payload = json!({ "recordId": "doc:reset", "value": value });
            let call = client.command::<_, Value>("publish-record", payload);
            patiently("publish", call.into_future()).await.unwrap();
        };
        publish(1).await;
        publish(2).await;
        let mut record = client.subscribe_record::<u32>("doc:reset").await.unwrap();
        assert_eq!((record.version(), record.value()), (2, Some(&2)));
        drop(demo);
        let _demo = Demo::start_at(port, &[]);
        let reset = patiently("reset", record.next()).await.unwrap().unwrap();
        assert_eq!(
            (reset.change, reset.version, reset.value),
            (RecordChange::Reset, 0, None)
        );
        publish(3).await;
        let update = patiently("update", record.next()).await.unwrap().unwrap();
        assert_eq!(
            (update.change, update.version, update.value),
            (RecordChange::Updated, 1, Some(3))
        );
    });
}

#[test]
fn the_client_writes_and_is_told_of_deletions() {
    block_on(async {
        let demo = Demo::shared();
        let builder = || MeshClient::builder(&format!("ws://{}", demo.addr()));
        let (reader, writer) = (connect(builder()).await, connect(builder()).await);
        let mut cursor = reader
            .subscribe_record::<Value>("cursor:client")
            .patch()
            .await
            .unwrap();
        assert_eq!((cursor.version(), cursor.value()), (0, None));
        writer
            .publish_record_update("cursor:client", &json!({ "x": 1, "y": 1 }))
            .await
            .unwrap();
        writer
            .merge_record("cursor:client", &json!({ "y": 2 }))
            .await
            .unwrap();
        for (version, value) in [
            (1, json!({ "x": 1, "y": 1 })),
            (2, json!({ "x": 1, "y": 2 })),
        ] {
            let update = patiently("update", cursor.next()).await.unwrap().unwrap();
            assert_eq!((update.version, update.value), (version, Some(value)));
            assert_eq!(update.change, RecordChange::Updated);
        }
        let deleted = json!({ "recordId": "cursor:client" });
        writer
            .command::<_, Value>("delete-record", deleted)
            .await
            .unwrap();
        let update = patiently("deletion", cursor.next()).await.unwrap().unwrap();
        assert_eq!(
            (update.version, update.value, update.change),
            (3, None, RecordChange::Deleted)
        );
        let refused = writer.publish_record_update("doc:not-writable", &1).await;
        assert!(
            matches!(refused, Err(ClientError::Command(_))),
            "{refused:?}"
        );
        let refused = reader.subscribe_record::<Value>("secret:x").await;
        assert!(
            matches!(refused, Err(ClientError::NotExposed(_))),
            "{refused:?}"
        );
    });
}
