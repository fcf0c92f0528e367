//! RFC 6455 from the peer's side: a list of cases in the manner of the Autobahn test suite, each with its number, the
//! section that it is about, what is sent, bit for bit where it matters, and what must come back.
//!
//! The list is [`frames`] and [`openings`]; all of it in words, with its numbers:
//!
//! ```text
//! cargo test -p mesh-tests --test rfc6455 -- --nocapture the_list
//! ```
//!
//! A case that lives on ends with a ping, a command and a close, so that nothing can have come unasked, and one that does not with
//! the end of the stream. After each of them a connection that has been there all along has to work, and has to have heard nothing.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on fails"
)]

mod case;
mod frames;
mod openings;

use std::any::Any;
use std::collections::BTreeSet;
use std::panic::{self, AssertUnwindSafe};
use std::time::{Duration, Instant};

use mesh_tests::wire::{self, FIN, PING};
use mesh_tests::{Demo, Incoming, RawClient};
use serde_json::json;

use case::{Group, Listed};

/// How many cases there are, so that none is lost unnoticed.
const FRAMES: usize = 384;
const OPENINGS: usize = 68;

/// Cases that fail before the others are given up: each may have waited for what never came.
const FAILURES_MAX: usize = 30;

/// Each case of these groups with its line of the list.
fn lines<C: Listed>(groups: &[Group<C>]) -> impl Iterator<Item = (String, &C)> {
    groups.iter().flat_map(|group| {
        let Group {
            number,
            section,
            subject,
            cases,
        } = group;
        cases.iter().zip(1..).map(move |(case, n)| {
            let what = case.what();
            (
                format!("{number}.{n} (section {section}) {subject}: {what}"),
                case,
            )
        })
    })
}

/// A server that says nothing unasked, and takes messages short enough to be exceeded cheaply.
fn start() -> Demo {
    Demo::start(&[
        "--max-message-bytes",
        &frames::MESSAGE_BYTES_MAX.to_string(),
        "--ping-interval",
        "3600000",
        "--latency-interval",
        "3600000",
    ])
}

/// Runs all cases, and then tells all that failed.
fn run<C: Listed>(groups: &[Group<C>]) {
    let demo = start();
    let mut witness = RawClient::connect(&demo);
    let mut failed = Vec::new();
    for (line, case) in lines(groups) {
        let outcome = panic::catch_unwind(AssertUnwindSafe(|| {
            case.run(&demo);
            witness.assert_quiet();
        }));
        if let Err(cause) = outcome {
            failed.push(format!("{line}: {}", message(&*cause)));
        }
        if failed.len() == FAILURES_MAX {
            failed.push("and maybe more".to_owned());
            break;
        }
    }
    assert!(failed.is_empty(), "failed:\n{}", failed.join("\n"));
}

/// What a panic said.
fn message(cause: &dyn Any) -> &str {
    let text = cause.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| cause.downcast_ref::<&str>().copied())
        .unwrap_or("a panic without a message")
}

#[test]
fn frames_are_answered_as_the_list_says() {
    run(&frames::list());
}

#[test]
fn opening_handshakes_are_answered_as_the_list_says() {
    run(&openings::list());
}

#[test]
#[expect(clippy::print_stdout, reason = "the list is there to be read")]
fn the_list_has_each_case_once() {
    let (frames, openings) = (frames::list(), openings::list());
    let of_frames: Vec<String> = lines(&frames).map(|(line, _)| line).collect();
    let of_openings: Vec<String> = lines(&openings).map(|(line, _)| line).collect();
    let mut seen = BTreeSet::new();
    for line in of_frames.iter().chain(&of_openings) {
        println!("{line}");
        let (number, what) = line.split_once(' ').unwrap();
        assert!(seen.insert(number), "twice: {number}");
        assert!(seen.insert(what), "twice: {what}");
    }
    println!(
        "{} cases of frames, {} of opening handshakes",
        of_frames.len(),
        of_openings.len()
    );
    assert_eq!(of_frames.len(), FRAMES);
    assert_eq!(of_openings.len(), OPENINGS);
}

#[test]
fn nothing_after_a_close_is_read_or_answered() {
    let demo = Demo::shared();
    let (mut client, mut witness) = (RawClient::connect(&demo), RawClient::connect(&demo));
    let join = r#"{"id":1,"command":"join-room","payload":{"roomName":"after-close"}}"#;
    let bytes = [
        wire::close(1000, ""),
        wire::text(join),
        wire::frame(FIN | PING, b""),
        wire::text("x"),
    ]
    .concat();
    client.send_raw(&bytes);
    assert_eq!(client.receive(), Incoming::Close(Some(1000), String::new()));
    client.assert_ended();
    assert_eq!(
        witness.command("room-members", json!({ "roomName": "after-close" })),
        json!([])
    );
}

#[test]
fn a_close_is_not_held_up_by_commands_in_flight() {
    let demo = Demo::shared();
    let mut client = RawClient::connect(&demo);
    client.send_command("never-responds", json!({}));
    client.send_command("sleep", json!({ "ms": 60_000 }));
    let begun = Instant::now();
    client.leave();
    assert!(
        begun.elapsed() < Duration::from_secs(2),
        "{:?}",
        begun.elapsed()
    );
}

#[test]
fn many_frames_may_come_in_one_packet() {
    let demo = Demo::shared();
    let mut client = RawClient::connect(&demo);
    let frames: Vec<u8> = (0..500)
        .flat_map(|n| {
            wire::text(&format!(
                r#"{{"id":{n},"command":"reflect","payload":{n}}}"#
            ))
        })
        .collect();
    client.send_raw(&frames);
    for n in 0..500 {
        assert_eq!(client.reply(n), n);
    }
    client.assert_quiet();
}
