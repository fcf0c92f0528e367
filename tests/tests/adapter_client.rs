//! What an adapter adds to a client: sockets, TLS, the opening handshake, and a thread for programs without a runtime.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on fails"
)]

mod common;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use mesh_tests::prelude::*;
use mesh_tests::runtime::{self, Background, Counting, block_on, build_client, connector, serve};
use mesh_tests::wire::{self, FIN, TEXT};
use mesh_tests::{PATIENCE, Scripted};

use crate::common::{connect, patiently, status, until};

fn echo_server() -> MeshServer {
    echo_server_with(PATIENCE)
}

fn echo_server_with(handshake_time_max: Duration) -> MeshServer {
    let builder =
        MeshServer::builder().limits(|limits| limits.handshake_time_max = handshake_time_max);
    let server = runtime::build(builder);
    server.register_command("echo", async |ctx: Context| Ok(ctx.payload));
    server
}

#[test]
fn a_command_makes_the_round_trip() {
    block_on(async {
        let port = serve(&echo_server()).port();
        let client = connect(MeshClient::builder(&format!("ws://localhost:{port}"))).await;
        let reply: String = client.command("echo", "Hello").await.unwrap();
        assert_eq!(reply, "Hello");
        patiently("the end", client.close()).await;
        patiently("a new connection", client.open()).await.unwrap();
        let reply: String = client.command("echo", "Hello again").await.unwrap();
        assert_eq!(reply, "Hello again");
    });
}

#[test]
fn a_refusal_has_status_and_body() {
    block_on(async {
        let builder = MeshServer::builder().authenticate(async |request: UpgradeRequest| {
            match request.bearer_token() {
                Some("right") => Ok(Accept::new()),
                _ => Err(Refusal::unauthorized("no, thank you")),
            }
        });
        let url = format!("ws://{}/", serve(&runtime::build(builder)));
        let connecting = runtime::connect(MeshClient::builder(&url));
        let refused = patiently("an answer", connecting).await;
        let (status, body) = (401, "no, thank you".to_owned());
        assert_eq!(refused.unwrap_err(), ConnectError::Refused { status, body });
        connect(MeshClient::builder(&url).header("authorization", "Bearer right")).await;
    });
}

async fn connect_once(server: &Scripted) -> Result<MeshClient, ConnectError> {
    let builder = MeshClient::builder(&server.url()).fail_fast(true);
    patiently("an outcome", runtime::connect(builder)).await
}

#[test]
fn an_answer_that_is_no_handshake_is_an_error() {
    block_on(async {
        let wrong_key: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\n\
            upgrade: websocket\r\nsec-websocket-accept: wrong\r\n\r\n";
        for answer in [wrong_key, b"220 smtp.example.org\r\n"] {
            let server = Scripted::start(|_, attempt| attempt.answer(answer));
            let error = connect_once(&server).await.unwrap_err();
            assert!(matches!(error, ConnectError::Handshake(_)), "{error:?}");
        }
    });
}

#[test]
fn what_the_server_sends_with_the_handshake_is_not_lost() {
    block_on(async {
        let server = Scripted::start(|_, attempt| {
            let event = br#"{"command":"mesh/assign-id","payload":"early"}"#;
            let mut frame = wire::header(FIN | TEXT, event.len() as u64, None);
            frame.extend(event);
            attempt.accept_with(&frame).serve();
        });
        let client = connect_once(&server).await.unwrap();
        until("the event is seen", || {
            client.connection_id().as_deref() == Some("early")
        })
        .await;
    });
}

#[test]
fn an_attempt_that_times_out_leaves_nothing_behind() {
    block_on(async {
        let (send, ended) = mpsc::channel();
        let server = Scripted::start(move |_, attempt| {
            attempt.ignore();
            send.send(()).unwrap();
        });
        let counting = Counting::current();
        let allowed = Duration::from_millis(50);
        let connecting = MeshClient::builder(&server.url())
            .connect_timeout(allowed)
            .fail_fast(true)
            .connect_on(counting.clone(), connector());
        let error = patiently("an outcome", connecting).await.unwrap_err();
        assert_eq!(error, ConnectError::Timeout(allowed));
        ended.recv_timeout(PATIENCE).unwrap();
        until("no task is left", || counting.tasks() == 0).await;
        assert_eq!(counting.timers(), 0);
    });
}

#[test]
fn a_dropped_client_leaves_nothing_behind() {
    block_on(async {
        let server = echo_server();
        let url = format!("ws://{}", serve(&server));
        let counting = Counting::current();
        let use_one = async || {
            let connecting = MeshClient::builder(&url).connect_on(counting.clone(), connector());
            let client = patiently("a connection", connecting).await.unwrap();
            let _: u32 = client.command("echo", 1).await.unwrap();
            client
        };
        let held = use_one().await;
        let before = (counting.tasks(), counting.timers());
        for _ in 0..5 {
            drop(use_one().await);
        }
        until("no task is left", || {
            (counting.tasks(), counting.timers()) == before && server.health().connections == 1
        })
        .await;
        assert!(held.is_online());
    });
}

#[test]
fn a_program_without_a_runtime_can_use_a_client() {
    let background = Background::start();
    let addr = background.block_on(async { serve(&echo_server()) });
    let builder = || MeshClient::builder(&format!("ws://{addr}"));
    let client = runtime::connect_blocking(builder()).unwrap();
    let reply: u32 = client.command_blocking("echo", 7, PATIENCE).unwrap();
    assert_eq!(reply, 7);

    let inside = builder();
    let inside = background.spawn(async { runtime::connect_blocking(inside) });
    let inside = background.block_on(inside);
    assert!(matches!(inside, Err(ConnectError::Usage(_))));
    let inside = async move { client.command_blocking::<_, u32>("echo", 7, PATIENCE) };
    let inside = background.block_on(background.spawn(inside));
    assert!(matches!(inside, Err(ClientError::Usage(_))));
}

#[test]
fn a_client_on_its_own_thread_goes_on_without_the_runtime_it_was_made_in() {
    let background = Background::start();
    let addr = background.block_on(async { serve(&echo_server()) });
    let builder = MeshClient::builder(&format!("ws://{addr}")).dedicated_thread();
    let client = block_on(connect(builder));
    // Where a runtime can end, that one has.
    let reply: u32 = client.command_blocking("echo", 7, PATIENCE).unwrap();
    assert_eq!(reply, 7);
}

/// Serves with a certificate of its own: where, and the certificate.
fn serve_tls(handshake_time_max: Duration) -> (SocketAddr, Vec<u8>) {
    let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let server = echo_server_with(handshake_time_max);
    let (certificate, key) = (certified.cert.pem(), certified.signing_key.serialize_pem());
    let (addr, _serving) = runtime::listen_tls(&server, &certificate, &key);
    (addr, certified.cert.der().to_vec())
}

#[test]
fn a_command_makes_the_round_trip_over_tls() {
    block_on(async {
        let (addr, root) = serve_tls(PATIENCE);
        let url = format!("wss://localhost:{}", addr.port());
        let client = connect(MeshClient::builder(&url).tls_root(root)).await;
        for size in [5, 100_000] {
            let text = "x".repeat(size);
            let reply: String = client.command("echo", &text).await.unwrap();
            assert_eq!(reply, text);
        }
        patiently("the end", client.close()).await;
    });
}

#[test]
fn a_server_that_is_not_trusted_is_not_talked_to() {
    block_on(async {
        let (addr, _root) = serve_tls(PATIENCE);
        let url = format!("wss://localhost:{}", addr.port());
        let connecting = runtime::connect(MeshClient::builder(&url).fail_fast(true));
        let error = patiently("an outcome", connecting).await.unwrap_err();
        assert!(matches!(error, ConnectError::Tls(_)), "{error:?}");
    });
}

#[test]
fn a_server_without_tls_is_told_as_such() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let answer = b"HTTP/1.1 400 Bad Request\r\n\r\n";
        stream.write_all(answer).unwrap();
        let _ = stream.read_to_end(&mut Vec::new());
    });
    block_on(async {
        let url = format!("wss://localhost:{port}");
        let builder = MeshClient::builder(&url).reconnect_interval(PATIENCE);
        let client = build_client(builder).unwrap();
        let mut statuses = client.on_status();
        let theirs = client.clone();
        runtime::spawn(async move { theirs.open().await });
        let error = status(&mut statuses, |status| match status {
            Status::Waiting { error, .. } => Some(error),
            _ => None,
        })
        .await;
        assert!(matches!(error, ConnectError::Tls(_)), "{error:?}");
        assert_eq!(client.last_error(), Some(error));
    });
}

#[test]
fn a_root_that_is_no_certificate_is_an_error_and_not_tried_again() {
    block_on(async {
        let (addr, _root) = serve_tls(PATIENCE);
        let url = format!("wss://localhost:{}", addr.port());
        let connecting = runtime::connect(MeshClient::builder(&url).tls_root(*b"rubbish"));
        let error = patiently("an outcome", connecting).await.unwrap_err();
        assert!(matches!(error, ConnectError::InvalidRoot(_)), "{error:?}");
    });
}

#[test]
fn a_tls_handshake_has_its_time_too() {
    let background = Background::start();
    let (addr, _root) = background.block_on(async { serve_tls(Duration::from_millis(100)) });
    let mut silent = TcpStream::connect(addr).unwrap();
    silent.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(silent.read(&mut [0; 64]).unwrap(), 0);
}
