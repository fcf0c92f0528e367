//! RFC 6455 from the peer's side: fragments, control frames, text that is none, and the end of a connection.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on fails"
)]

use std::thread;
use std::time::{Duration, Instant};

use mesh_tests::wire::{self, BINARY, CLOSE, CONTINUATION, FIN, MASK, PING, PONG, TEXT};
use mesh_tests::{Demo, Incoming, RawClient, Upgrade};
use serde_json::json;

const ECHO: &str = r#"{"id":1,"command":"echo","payload":"Grüße 世界 🎈"}"#;

#[track_caller]
fn assert_echoed(client: &mut RawClient) {
    assert_eq!(
        client.next_frame(),
        json!({ "id": 1, "command": "echo", "payload": "echo: Grüße 世界 🎈" })
    );
}

/// Asserts that these bytes, after the handshake, are answered with a close of this code.
#[track_caller]
fn assert_closes(bytes: &[u8], code: u16) {
    let demo = Demo::shared();
    let mut client = RawClient::connect(&demo);
    drop(client.try_send_raw(bytes));
    assert_eq!(
        client.close_code(),
        Some(code),
        "to {:?}",
        &bytes[..bytes.len().min(24)]
    );
    drop(client.try_send_raw(&wire::close(code, "")));
    client.assert_ended();
}

// Section 5.4: fragments

#[test]
fn a_message_may_come_in_fragments_cut_anywhere() {
    let demo = Demo::shared();
    let mut client = RawClient::connect(&demo);
    let bytes = ECHO.as_bytes();
    // Every cut, within a character too.
    for cut in 0..=bytes.len() {
        client.send_frame(TEXT, &bytes[..cut]);
        client.send_frame(FIN | CONTINUATION, &bytes[cut..]);
        assert_echoed(&mut client);
    }
    for (n, byte) in bytes.iter().enumerate() {
        client.send_frame(if n == 0 { TEXT } else { CONTINUATION }, &[*byte]);
        client.send_frame(CONTINUATION, b"");
    }
    client.send_frame(FIN | CONTINUATION, b"");
    assert_echoed(&mut client);
}

#[test]
fn control_frames_may_come_between_fragments() {
    let demo = Demo::shared();
    let mut client = RawClient::connect(&demo);
    client.send_frame(TEXT, &ECHO.as_bytes()[..20]);
    client.send_frame(FIN | PING, b"between");
    assert_eq!(
        client.receive(),
        Incoming::Pong(b"between".to_vec()),
        "answered before the message is whole"
    );
    client.send_frame(FIN | PONG, b"unasked");
    client.send_frame(CONTINUATION, &ECHO.as_bytes()[20..30]);
    client.send_frame(FIN | CONTINUATION, &ECHO.as_bytes()[30..]);
    assert_echoed(&mut client);
}

#[test]
fn a_close_may_come_between_fragments() {
    let mut bytes = wire::frame(TEXT, b"begun");
    bytes.extend(wire::close(1000, ""));
    assert_closes(&bytes, 1000);
}

#[test]
fn a_continuation_of_nothing_is_an_error() {
    for first in [CONTINUATION, FIN | CONTINUATION] {
        assert_closes(&wire::frame(first, b"x"), 1002);
    }
    let mut bytes = wire::text(ECHO);
    bytes.extend(wire::frame(FIN | CONTINUATION, b"x"));
    assert_closes(&bytes, 1002);
}

#[test]
fn a_new_message_within_another_is_an_error() {
    for first in [TEXT, FIN | TEXT, FIN | BINARY] {
        let mut bytes = wire::frame(TEXT, b"begun");
        bytes.extend(wire::frame(first, b"x"));
        assert_closes(&bytes, 1002);
    }
}

// Section 5.1, 5.2 and 5.5: the header

#[test]
fn a_frame_without_mask_is_an_error() {
    let bare = |first: u8, payload: &[u8]| {
        [
            wire::header(first, payload.len() as u64, None),
            payload.to_vec(),
        ]
        .concat()
    };
    for bytes in [
        bare(FIN | TEXT, ECHO.as_bytes()),
        bare(FIN | PING, b""),
        bare(FIN | BINARY, b"x"),
        bare(TEXT, b""),
    ] {
        assert_closes(&bytes, 1002);
    }
}

#[test]
fn a_mask_of_zeros_is_a_mask() {
    let demo = Demo::shared();
    let mut client = RawClient::connect(&demo);
    client.send_raw(
        &[
            wire::header(FIN | TEXT, ECHO.len() as u64, Some([0; 4])),
            ECHO.into(),
        ]
        .concat(),
    );
    assert_echoed(&mut client);
}

#[test]
fn a_reserved_bit_is_an_error() {
    for bit in [0x40, 0x20, 0x10, 0x70] {
        assert_closes(&wire::frame(FIN | bit | TEXT, ECHO.as_bytes()), 1002);
        assert_closes(&wire::frame(FIN | bit | PING, b""), 1002);
    }
}

#[test]
fn a_reserved_opcode_is_an_error() {
    for opcode in [0x3, 0x4, 0x5, 0x6, 0x7, 0xB, 0xC, 0xD, 0xE, 0xF] {
        assert_closes(&wire::frame(FIN | opcode, b""), 1002);
    }
}

#[test]
fn a_control_frame_is_whole_and_short() {
    for opcode in [PING, PONG, CLOSE] {
        assert_closes(&wire::frame(opcode, b""), 1002);
        assert_closes(&wire::frame(FIN | opcode, &[b'x'; 126]), 1002);
    }
}

#[test]
fn a_length_with_its_highest_bit_is_refused() {
    let demo = Demo::shared();
    let mut client = RawClient::connect(&demo);
    client.send_raw(&wire::header(FIN | TEXT, 1 << 63, Some(MASK)));
    let code = client.close_code();
    assert!([Some(1002), Some(1009)].contains(&code), "{code:?}");
}

#[test]
fn lengths_of_all_three_sizes_are_read() {
    let demo = Demo::shared();
    let mut client = RawClient::connect(&demo);
    for len in [
        0, 1, 70, 80, 90, 125, 126, 127, 255, 256, 65_535, 65_536, 100_000,
    ] {
        let text = "x".repeat(len);
        assert_eq!(client.command("reflect", text.as_str()), text);
    }
}

// Section 5.5.2 and 5.5.3: ping and pong

#[test]
fn a_ping_is_answered_with_its_payload() {
    let demo = Demo::shared();
    let mut client = RawClient::connect(&demo);
    for payload in [&b""[..], b"x", b"\x00\xff\xfe", &[b'p'; 125]] {
        client.send_frame(FIN | PING, payload);
        assert_eq!(client.receive(), Incoming::Pong(payload.to_vec()));
    }
}

#[test]
fn a_pong_that_nobody_asked_for_is_ignored() {
    let demo = Demo::shared();
    let mut client = RawClient::connect(&demo);
    for _ in 0..20 {
        client.send_frame(FIN | PONG, b"unasked");
    }
    client.assert_quiet();
}

// Section 8.1: text

#[test]
fn text_that_is_not_utf_8_is_an_error() {
    for payload in [
        &b"\xff"[..],
        b"\xc3\x28",               // no continuation
        b"\x80",                   // only a continuation
        b"\xc0\xaf",               // overlong
        b"\xed\xa0\x80",           // half of a surrogate pair
        b"\xf4\x90\x80\x80",       // beyond the last code point
        b"{\"command\":\"\xe4\"}", // another encoding
        b"cut \xf0\x9f\x8e",       // ends within a character
    ] {
        assert_closes(&wire::frame(FIN | TEXT, payload), 1007);
    }
}

#[test]
fn fragments_that_are_no_utf_8_together_are_an_error() {
    let cut = [
        wire::frame(TEXT, b"\xf0\x9f"),
        wire::frame(FIN | CONTINUATION, b"x\x88"),
    ]
    .concat();
    assert_closes(&cut, 1007);
    let ends = [
        wire::frame(TEXT, b"x"),
        wire::frame(FIN | CONTINUATION, b"\xf0\x9f\x8e"),
    ]
    .concat();
    assert_closes(&ends, 1007);
}

// Section 7: the end

#[test]
fn a_close_is_answered_with_its_code_and_ends_the_stream() {
    for code in [
        1000, 1001, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 4000, 4999,
    ] {
        assert_closes(&wire::close(code, "bye, Grüße"), code);
    }
}

#[test]
fn a_close_without_a_code_is_answered() {
    let demo = Demo::shared();
    let mut client = RawClient::connect(&demo);
    client.send_frame(FIN | CLOSE, b"");
    let code = client.close_code();
    assert!([None, Some(1000)].contains(&code), "{code:?}");
    client.assert_ended();
}

#[test]
fn a_close_that_breaks_the_rules_is_an_error() {
    assert_closes(&wire::frame(FIN | CLOSE, b"x"), 1002);
    for code in [0, 1, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65_535] {
        assert_closes(&wire::close(code, ""), 1002);
    }
    let demo = Demo::shared();
    let mut client = RawClient::connect(&demo);
    client.send_frame(FIN | CLOSE, b"\x03\xe8\xff\xff");
    let code = client.close_code();
    assert!(
        [Some(1002), Some(1007)].contains(&code),
        "a reason that is not UTF-8: {code:?}"
    );
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

// How bytes are cut into packets

#[test]
fn bytes_may_come_one_by_one() {
    let demo = Demo::shared();
    let mut client = RawClient::connect(&demo);
    for byte in [wire::frame(FIN | PING, b"slow"), wire::text(ECHO)].concat() {
        client.send_raw(&[byte]);
        thread::sleep(Duration::from_micros(200));
    }
    assert_eq!(client.receive(), Incoming::Pong(b"slow".to_vec()));
    assert_echoed(&mut client);
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

#[test]
fn frames_may_come_in_the_packet_of_the_handshake() {
    let demo = Demo::shared();
    let whole = wire::text(ECHO);
    for cut in [whole.len(), 1, 2, 10] {
        let mut client = Upgrade::new(demo.addr())
            .trailing(&whole[..cut])
            .send(demo.addr())
            .unwrap();
        client.send_raw(&whole[cut..]);
        client.assigned();
        assert_echoed(&mut client);
    }
}
