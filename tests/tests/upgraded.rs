//! What an adapter adds to a server: streams that another server upgraded.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on fails"
)]

use std::future::pending;
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use http::request::Parts;
use mesh_core::driver::{ConnectInfo, MeshServerBuilder};
use mesh_tests::prelude::*;
use mesh_tests::runtime::{self, Background, Task};
use mesh_tests::{PATIENCE, RawClient, until, wire};
use serde_json::json;

const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

/// The head of a request to upgrade.
fn head(key: &str) -> Parts {
    let request = http::Request::builder()
        .uri("/mesh")
        .header("host", "mesh")
        .header("connection", "upgrade")
        .header("upgrade", "websocket")
        .header("sec-websocket-version", "13")
        .header("sec-websocket-key", key);
    request.body(()).unwrap().into_parts().0
}

fn info(head: Option<Parts>) -> ConnectInfo {
    let mut info = ConnectInfo::default();
    info.head = head;
    info.remote = "192.0.2.1:1234".parse().ok();
    info
}

struct Served {
    background: Background,
    server: MeshServer,
    serving: Task<()>,
    client: RawClient,
}

/// Both ends of a stream that speaks WebSocket already, one of them a server's.
fn serve(builder: MeshServerBuilder, info: ConnectInfo) -> Served {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (far, _) = listener.accept().unwrap();
    let background = Background::start();
    let (server, serving) = background.block_on(async {
        let server = runtime::build(builder);
        let serving = runtime::serve_upgraded(&server, far, info);
        (server, serving)
    });
    Served {
        background,
        server,
        serving,
        client: RawClient::over(near),
    }
}

#[test]
fn a_stream_that_speaks_websocket_already_is_served() {
    let mut served = serve(MeshServer::builder(), info(Some(head(KEY))));
    assert_eq!(served.client.command("mesh/noop", json!({})), true);
    served.client.leave();
    served.background.block_on(served.serving);
}

#[test]
fn what_was_read_behind_the_request_comes_first() {
    let mut info = info(Some(head(KEY)));
    info.leftover = wire::text(r#"{"id":7,"command":"mesh/noop"}"#).into();
    let mut served = serve(MeshServer::builder(), info);
    let next = served.client.send_command("mesh/noop", json!({}));
    assert_eq!(served.client.reply(7), true);
    assert_eq!(served.client.reply(next), true);
}

#[test]
fn who_upgraded_may_have_judged() {
    let builder = MeshServer::builder().authenticate(async |_: UpgradeRequest| {
        Err::<Accept, _>(Refusal::new(http::StatusCode::UNAUTHORIZED, "nobody"))
    });
    let mut served = serve(builder, info(None));
    assert_eq!(served.client.command("mesh/noop", json!({})), true);
}

#[test]
fn who_is_not_let_in_is_closed_with_1008() {
    let mut served = serve(MeshServer::builder(), info(Some(head("no key"))));
    served.client.assert_closed(1008);
    drop(served.client);
    served.background.block_on(served.serving);
}

#[test]
fn a_decision_that_never_comes_ends_with_the_time_of_a_handshake() {
    let builder = MeshServer::builder()
        .limits(|limits| limits.handshake_time_max = Duration::from_millis(200))
        .authenticate(async |_: UpgradeRequest| pending().await);
    let mut served = serve(builder, info(Some(head(KEY))));
    served.client.assert_closed(1013);
    until("the place is given back", || {
        served.server.health().connections == 0
    });
    drop(served.client);
    let over = runtime::timeout(PATIENCE, served.serving);
    served.background.block_on(over).unwrap();
}
