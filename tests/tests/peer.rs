//! The client of this suite against a peer that plays a script: a test of the tests.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on fails"
)]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::thread;

use mesh_tests::wire::{self, CLOSE, CONTINUATION, FIN, PING, TEXT};
use mesh_tests::{Incoming, RawClient, Response, Upgrade};
use serde_json::json;

/// Answers one handshake, then writes `bytes`, then reads to the end.
fn script(answer: &'static str, bytes: Vec<u8>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = [0; 4096];
        let len = stream.read(&mut request).unwrap();
        assert!(request[..len].ends_with(b"\r\n\r\n"));
        stream
            .write_all(&[answer.as_bytes(), &bytes].concat())
            .unwrap();
        while stream.read(&mut request).is_ok_and(|len| len > 0) {}
    });
    addr
}

const ACCEPTED: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                        Sec-WebSocket-Accept: pMp3kUp36JVbOlPI3VAtY3OkzZA=\r\n\r\n";

fn server(first: u8, payload: &str) -> Vec<u8> {
    [
        wire::header(first, payload.len() as u64, None),
        payload.into(),
    ]
    .concat()
}

#[test]
fn frames_are_sorted_into_replies_events_and_liveness() {
    let addr = script(
        ACCEPTED,
        [
            server(
                FIN | TEXT,
                r#"{"command":"mesh/assign-id","payload":"a-1"}"#,
            ),
            server(FIN | TEXT, r#"{"command":"ping","payload":{}}"#),
            server(TEXT, r#"{"command":"news","#),
            server(FIN | PING, "are you there"),
            server(FIN | CONTINUATION, r#""payload":[1]}"#),
            server(FIN | TEXT, r#"{"id":2,"command":"b","payload":"second"}"#),
            server(FIN | TEXT, r#"{"id":1,"command":"a","payload":"first"}"#),
            server(FIN | CLOSE, "\u{3}\u{0}bye"),
        ]
        .concat(),
    );
    let mut client = RawClient::open(addr);
    assert_eq!(client.assigned(), "a-1");
    assert_eq!(client.command("a", json!({})), "first");
    assert_eq!(client.reply(2), "second");
    assert_eq!(client.event("news"), json!([1]));
    assert_eq!(client.receive(), Incoming::Close(Some(768), "bye".into()));
}

#[test]
#[should_panic(expected = "something came unasked")]
fn what_comes_unasked_is_noticed() {
    let addr = script(
        ACCEPTED,
        [
            server(FIN | TEXT, r#"{"command":"news","payload":1}"#),
            server(
                FIN | TEXT,
                r#"{"id":1,"command":"mesh/noop","payload":true}"#,
            ),
        ]
        .concat(),
    );
    RawClient::open(addr).assert_quiet();
}

#[test]
#[should_panic(expected = "the keys of a reply")]
fn a_reply_without_payload_is_noticed() {
    let addr = script(ACCEPTED, server(FIN | TEXT, r#"{"id":1,"command":"a"}"#));
    RawClient::open(addr).command("a", json!({}));
}

#[test]
fn a_refusal_is_read_to_its_end() {
    let addr = script(
        "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\n\r\n",
        b"full".to_vec(),
    );
    let refused = Upgrade::new(addr).send(addr).unwrap_err();
    assert_eq!((refused.status, refused.body.as_str()), (503, "full"));
    let addr = script(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"2\r\nok\r\n1\r\n!\r\n0\r\n\r\n".to_vec(),
    );
    assert_eq!(Response::get(addr, "/").body, "ok!");
}
