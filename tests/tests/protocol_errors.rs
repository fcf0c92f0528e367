//! `protocol.md`, section 2: how a command fails.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on fails"
)]

use mesh_tests::{Demo, RawClient, assert_error, assert_invalid, error};
use serde_json::{Value, json};

#[test]
fn an_unknown_command_is_not_found() {
    let demo = Demo::shared();
    let mut client = RawClient::connect(&demo);
    client.send_text(r#"{"id":7,"command":"x","payload":{}}"#);
    let payload = error(r#"Command "x" not found"#, "ENOTFOUND", "CommandError");
    assert_eq!(
        client.next_frame(),
        json!({ "id": 7, "command": "x", "payload": payload })
    );
}

#[test]
fn a_failing_handler_answers_with_its_message_and_the_defaults() {
    let demo = Demo::shared();
    let mut client = RawClient::connect(&demo);
    assert_eq!(
        client.command("this-command-throws", json!({})),
        error("Something went wrong", "ESERVER", "Error")
    );
}

#[test]
fn a_failing_handler_may_set_code_and_name() {
    let demo = Demo::shared();
    let mut client = RawClient::connect(&demo);
    for (message, code, name) in [
        ("no credit left", "ECREDIT", "PaymentError"),
        ("Grüße \"\\\n🎈", "E1", "Ü"),
        ("", "", ""),
    ] {
        let wanted = json!({ "message": message, "code": code, "name": name });
        assert_eq!(
            client.command("fails-with", wanted),
            error(message, code, name)
        );
    }
}

#[test]
fn a_failing_middleware_answers_like_a_handler() {
    let demo = Demo::shared();
    let mut client = RawClient::connect(&demo);
    assert_eq!(
        client.command("admin-only", json!({})),
        error("Unauthorized", "ESERVER", "Error")
    );
}

#[test]
fn a_panic_is_an_internal_error_and_harms_nobody() {
    let demo = Demo::shared();
    let (mut client, mut other) = (RawClient::connect(&demo), RawClient::connect(&demo));
    for _ in 0..5 {
        assert_eq!(
            client.command("panics", json!({})),
            error("Internal error", "EINTERNAL", "Error")
        );
        assert_eq!(client.command("echo", "x"), "echo: x");
        assert_eq!(other.command("echo", "x"), "echo: x");
    }
    assert_eq!(RawClient::connect(&demo).command("echo", "x"), "echo: x");
}

#[test]
fn a_payload_of_the_wrong_shape_names_the_field() {
    let demo = Demo::shared();
    let mut client = RawClient::connect(&demo);
    for (command, payload, field) in [
        ("mesh/join-room", json!({}), "roomName"),
        ("mesh/join-room", json!({ "roomName": 5 }), "roomName"),
        (
            "mesh/subscribe-channel",
            json!({ "channel": ["x"] }),
            "channel",
        ),
        (
            "mesh/subscribe-channel",
            json!({ "channel": "chat:x", "historyLimit": "5" }),
            "historyLimit",
        ),
        ("sleep", json!({ "ms": "soon" }), "ms"),
        (
            "fails-with",
            json!({ "message": "m", "code": 1, "name": "n" }),
            "code",
        ),
        (
            "send-to",
            json!({ "connectionId": null, "command": "c", "payload": 1 }),
            "connectionId",
        ),
    ] {
        let message = assert_invalid(&client.command(command, payload.clone()));
        assert!(
            message.contains(field),
            "{command} {payload}: {message:?} does not name {field:?}"
        );
    }
}

#[test]
fn too_many_commands_in_flight_are_an_overload() {
    let demo = Demo::start(&["--max-in-flight", "4"]);
    let mut client = RawClient::connect(&demo);
    for _ in 0..4 {
        client.send_command("never-responds", json!({}));
    }
    let message = assert_error(&client.command("echo", "x"), "EOVERLOAD", "OverloadError");
    assert!(message.contains('4'), "{message:?} does not tell the limit");
}

#[test]
fn an_error_is_an_ordinary_reply() {
    let demo = Demo::shared();
    let mut client = RawClient::connect(&demo);
    let failing = [
        ("x", json!({})),
        ("this-command-throws", json!({})),
        ("panics", json!({})),
        ("sleep", json!({})),
    ];
    let ids: Vec<u32> = failing
        .iter()
        .map(|(name, payload)| client.send_command(name, payload.clone()))
        .collect();
    for (id, (name, _)) in ids.into_iter().zip(&failing) {
        let payload = client.reply(id);
        let keys: Vec<&String> = payload.as_object().unwrap().keys().collect();
        assert_eq!(keys.len(), 3, "{name}: {payload}");
        assert!(
            ["error", "code", "name"]
                .iter()
                .all(|key| payload[*key].is_string()),
            "{name}: {payload}"
        );
    }
    assert_eq!(client.command("reflect", Value::Null), Value::Null);
}
