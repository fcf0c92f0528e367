//! `protocol.md`, section 3: liveness and latency, with short intervals.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on fails"
)]

use std::thread;
use std::time::{Duration, Instant};

use mesh_tests::wire::{FIN, PING};
use mesh_tests::{Demo, Incoming, PATIENCE, RawClient, until};
use serde_json::{Value, json};

/// An interval that nobody lives to see.
const NEVER: &str = "3600000";

fn pinging(interval_ms: u64, missed_max: u32) -> Demo {
    let (interval, missed) = (interval_ms.to_string(), missed_max.to_string());
    Demo::start(&[
        "--ping-interval",
        &interval,
        "--latency-interval",
        NEVER,
        "--max-missed-pongs",
        &missed,
    ])
}

fn probing(interval_ms: u64) -> Demo {
    Demo::start(&[
        "--ping-interval",
        NEVER,
        "--latency-interval",
        &interval_ms.to_string(),
    ])
}

fn watch(demo: &Demo) -> RawClient {
    let mut client = RawClient::connect(demo);
    client.see_liveness = true;
    client
}

/// Reads to the end, giving each frame to `see`; returns how long that took.
fn until_gone(client: &mut RawClient, mut see: impl FnMut(&mut RawClient, &Value)) -> Duration {
    let started = Instant::now();
    while started.elapsed() < PATIENCE {
        match client.receive() {
            Incoming::Text(text) => see(client, &serde_json::from_str(&text).unwrap()),
            Incoming::Close(..) | Incoming::End => return started.elapsed(),
            _ => {}
        }
    }
    panic!("still there after {PATIENCE:?}");
}

#[test]
fn a_ping_is_an_event_with_an_empty_object() {
    let demo = pinging(100, 1);
    assert_eq!(
        watch(&demo).next_frame(),
        json!({ "command": "ping", "payload": {} })
    );
}

#[test]
fn a_silent_client_is_gone_after_its_chances() {
    for (missed_max, pings_wanted) in [(0, 1), (1, 2), (3, 4)] {
        let demo = pinging(200, missed_max);
        let mut client = watch(&demo);
        let mut pings = 0;
        let took = until_gone(&mut client, |_, frame| {
            pings += u32::from(frame["command"] == "ping");
        });
        assert_eq!(
            pings, pings_wanted,
            "with {missed_max} missed pongs allowed"
        );
        // One interval up to the first ping, then one for each ping to be answered in.
        let wanted = Duration::from_millis(200) * (pings_wanted + 1);
        assert!(
            took >= wanted - Duration::from_millis(100),
            "gone after {took:?}, not {wanted:?}"
        );
        assert!(
            took <= wanted + Duration::from_secs(3),
            "gone after {took:?}, not {wanted:?}"
        );
    }
}

#[test]
fn a_silent_client_is_cleaned_up() {
    let demo = pinging(300, 1);
    let mut witness = RawClient::connect(&demo);
    witness.auto_pong = true;
    let mut silent = RawClient::connect(&demo);
    silent.succeed("join-room", json!({ "roomName": "silent" }));
    silent.succeed("set-metadata", json!("silent"));
    let members =
        |witness: &mut RawClient| witness.command("room-members", json!({ "roomName": "silent" }));
    assert_eq!(members(&mut witness), json!([silent.id()]));
    until("the silent client leaves its room", || {
        members(&mut witness) == json!([])
    });
    until("its metadata goes", || {
        witness
            .command("get-metadata", json!({ "connectionId": silent.id() }))
            .is_null()
    });
    until("its connection goes", || demo.connections() == 1);
}

#[test]
fn a_client_that_answers_lives_on() {
    let demo = pinging(100, 1);
    let mut client = watch(&demo);
    for _ in 0..10 {
        assert_eq!(client.event("ping"), json!({}));
        client.send_event("pong", &json!({}));
    }
    client.see_liveness = false;
    assert_eq!(client.command("echo", "x"), "echo: x");
}

#[test]
fn a_pong_with_an_id_counts_and_gets_no_reply() {
    let demo = pinging(100, 1);
    let mut client = watch(&demo);
    for _ in 0..10 {
        // Nothing but pings, so no reply to a pong.
        assert_eq!(
            client.next_frame(),
            json!({ "command": "ping", "payload": {} })
        );
        client.send_command("pong", json!({}));
    }
}

#[test]
fn any_pong_resets_the_count() {
    let demo = pinging(100, 1);
    let mut client = watch(&demo);
    for n in 0..10 {
        client.event("ping");
        if n % 2 == 1 {
            client.send_event("pong", &json!({}));
        }
    }
}

#[test]
fn nothing_but_a_pong_counts() {
    let demo = pinging(200, 1);
    let mut client = watch(&demo);
    let took = until_gone(&mut client, |client, frame| {
        if frame["command"] == "ping" {
            drop(client.try_send_raw(&mesh_tests::wire::frame(FIN | PING, b"alive")));
            drop(client.try_send_raw(&mesh_tests::wire::text(
                r#"{"id":1,"command":"echo","payload":"alive"}"#,
            )));
            drop(client.try_send_raw(&mesh_tests::wire::text(
                r#"{"command":"latency:response","payload":{}}"#,
            )));
        }
    });
    assert!(took < Duration::from_secs(4), "{took:?}");
}

#[test]
fn pings_come_at_their_interval() {
    let demo = pinging(200, 1);
    let mut client = watch(&demo);
    client.event("ping");
    let first = Instant::now();
    for _ in 0..5 {
        client.send_event("pong", &json!({}));
        client.event("ping");
    }
    let took = first.elapsed();
    assert!(
        (900..4_000).contains(&took.as_millis()),
        "five intervals of 200 ms took {took:?}"
    );
}

#[test]
fn latency_is_asked_for_and_first_told_after_a_first_measurement() {
    let demo = probing(100);
    let mut client = watch(&demo);
    // Unanswered probes measure nothing.
    for _ in 0..4 {
        assert_eq!(
            client.next_frame(),
            json!({ "command": "latency:request", "payload": {} })
        );
    }
    client.send_event("latency:response", &json!({}));
    // The report comes with the next request, before or after it.
    let with_it = [client.next_frame(), client.next_frame()];
    assert!(
        with_it
            .iter()
            .any(|frame| frame["command"] == "latency:request"),
        "{with_it:?}"
    );
    let report = with_it
        .iter()
        .find(|frame| frame["command"] == "latency")
        .expect("a report");
    let ms = report["payload"].as_f64().expect("a number");
    assert!(ms > 0.0 && ms < 5_000.0, "{report}");
}

#[test]
fn latency_is_the_time_between_probe_and_answer() {
    let demo = probing(300);
    let mut client = watch(&demo);
    client.event("latency:request");
    thread::sleep(Duration::from_millis(120));
    client.send_event("latency:response", &json!({}));
    let ms = client.event("latency").as_f64().unwrap();
    assert!(
        (115.0..280.0).contains(&ms),
        "{ms} ms for an answer after 120 ms"
    );
}

#[test]
fn an_answer_with_an_id_closes_the_round_trip_and_gets_no_reply() {
    let demo = probing(100);
    let mut client = watch(&demo);
    client.event("latency:request");
    client.send_command("latency:response", json!({}));
    let with_it = [client.next_frame(), client.next_frame()];
    assert!(
        with_it.iter().all(|frame| frame.get("id").is_none()),
        "{with_it:?}"
    );
    assert!(
        with_it.iter().any(|frame| frame["command"] == "latency"),
        "{with_it:?}"
    );
}

#[test]
fn an_answer_that_nobody_asked_for_measures_nothing() {
    let demo = probing(200);
    let mut client = watch(&demo);
    client.send_event("latency:response", &json!({}));
    client.send_event("latency:response", &json!({}));
    for _ in 0..4 {
        assert_eq!(client.next_frame()["command"], "latency:request");
    }
}

#[test]
fn the_intervals_are_those_of_the_protocol_by_default() {
    let demo = Demo::start(&[]);
    let mut client = RawClient::connect(&demo);
    client.see_liveness = true;
    let connected = Instant::now();
    assert_eq!(
        client.next_frame()["command"],
        "latency:request",
        "the ping comes only after 30 s"
    );
    let took = connected.elapsed();
    assert!(
        (4_500..8_000).contains(&took.as_millis()),
        "the first probe after {took:?}, not 5 s"
    );
}
