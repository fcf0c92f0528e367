//! A server's listener, from outside.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::{net::SocketAddr, time::Duration};

use mesh_tokio::prelude::*;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    runtime::Handle,
    task::JoinHandle,
    time::Instant,
};

use crate::common::{PATIENCE, Peer, patiently, server_with, until};

const UPGRADE: &str = "GET / HTTP/1.1\r\nhost: mesh\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
                       sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

async fn start(server: &MeshServer) -> (SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = server.clone();
    let serving = tokio::spawn(async move { server.serve_listener(listener).await });
    (address, serving)
}

async fn connect(address: SocketAddr) -> TcpStream {
    TcpStream::connect(address).await.unwrap()
}

/// A frame as a client sends it, masked with zeros.
fn client_frame(text: &str) -> Vec<u8> {
    let mut frame = vec![0x81, 0x80 | u8::try_from(text.len()).unwrap(), 0, 0, 0, 0];
    frame.extend_from_slice(text.as_bytes());
    frame
}

#[tokio::test]
async fn one_port_serves_upgrades_and_requests() {
    let server = server_with(PATIENCE);
    let (address, _serving) = start(&server).await;

    let mut peer = Peer::open(connect(address).await).await.unwrap();
    assert!(peer.noop(7).await.contains("mesh/noop"));

    let mut plain = connect(address).await;
    plain
        .write_all(b"GET /nothing HTTP/1.1\r\nhost: mesh\r\nconnection: close\r\n\r\n")
        .await
        .unwrap();
    let mut answer = String::new();
    patiently("an answer", plain.read_to_string(&mut answer))
        .await
        .unwrap();
    assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");

    assert!(peer.noop(8).await.contains("mesh/noop"));
}

#[tokio::test]
async fn a_frame_in_the_packet_of_the_handshake_is_not_lost() {
    let server = server_with(PATIENCE);
    let (address, _serving) = start(&server).await;
    let mut stream = connect(address).await;
    let frame = client_frame(r#"{"id":1,"command":"mesh/noop","payload":{}}"#);
    stream
        .write_all(&[UPGRADE.as_bytes(), &frame].concat())
        .await
        .unwrap();
    let mut seen = Vec::new();
    patiently("the reply", async {
        while !String::from_utf8_lossy(&seen).contains(r#"{"id":1,"#) {
            assert_ne!(stream.read_buf(&mut seen).await.unwrap(), 0);
        }
    })
    .await;
}

#[tokio::test]
async fn rubbish_in_the_packet_of_the_handshake_harms_nobody() {
    let server = server_with(PATIENCE);
    let (address, _serving) = start(&server).await;
    let mut healthy = Peer::open(connect(address).await).await.unwrap();
    let mut stream = connect(address).await;
    stream
        .write_all(&[UPGRADE.as_bytes(), &[0xff; 64]].concat())
        .await
        .unwrap();
    let mut seen = Vec::new();
    // The end may be a reset, for the server did not read everything.
    let _ = patiently("the end", stream.read_to_end(&mut seen)).await;
    assert!(seen.starts_with(b"HTTP/1.1 101 "));
    assert!(healthy.noop(1).await.contains("mesh/noop"));
}

#[tokio::test]
async fn who_says_nothing_is_dropped() {
    let server = server_with(Duration::from_millis(200));
    let (address, _serving) = start(&server).await;
    let start = Instant::now();
    let mut silent = connect(address).await;
    let mut slow = connect(address).await;
    slow.write_all(&UPGRADE.as_bytes()[..40]).await.unwrap();
    for stream in [&mut silent, &mut slow] {
        let read = patiently("the end", stream.read(&mut [0; 64])).await;
        assert_eq!(read.unwrap_or(0), 0);
    }
    assert!(start.elapsed() >= Duration::from_millis(200));

    // Who did open a connection has all the time there is.
    let mut peer = Peer::open(connect(address).await).await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(peer.noop(1).await.contains("mesh/noop"));
}

/// A server whose listener is soon full.
fn small_server(handshakes_max: usize) -> MeshServer {
    MeshServer::builder()
        .limits(|limits| {
            limits.handshakes_max = handshakes_max;
            limits.handshake_time_max = PATIENCE * 6;
        })
        .build()
}

/// The answer to a plain request, which allows for another one.
async fn get(stream: &mut TcpStream) -> String {
    let request = b"GET /nothing HTTP/1.1\r\nhost: mesh\r\n\r\n";
    stream.write_all(request).await.unwrap();
    let mut answer = Vec::new();
    patiently("an answer", async {
        while !answer.ends_with(b"not found") && stream.read_buf(&mut answer).await.unwrap() > 0 {}
    })
    .await;
    String::from_utf8(answer).unwrap().to_ascii_lowercase()
}

async fn ended(stream: &mut TcpStream) {
    let read = patiently("the end", stream.read(&mut [0; 64])).await;
    assert_eq!(read.unwrap_or(0), 0);
}

#[tokio::test]
async fn connections_that_say_nothing_keep_nobody_out() {
    let server = small_server(8);
    let (address, _serving) = start(&server).await;
    let mut silent = Vec::new();
    for _ in 0..8 {
        silent.push(connect(address).await);
    }
    // Upgraded ones need no place, so that one silent connection is enough to make room for both.
    for _ in 0..2 {
        let mut peer = Peer::open(connect(address).await).await.unwrap();
        assert!(peer.noop(1).await.contains("mesh/noop"));
    }
    ended(&mut silent[0]).await;
    for other in &mut silent[1..] {
        assert!(get(other).await.starts_with("http/1.1 404 "));
    }
}

#[tokio::test]
async fn upgraded_connections_take_no_place() {
    let server = small_server(2);
    let (address, _serving) = start(&server).await;
    let mut peers = Vec::new();
    for _ in 0..5 {
        peers.push(Peer::open(connect(address).await).await.unwrap());
    }
    for peer in &mut peers {
        assert!(peer.noop(1).await.contains("mesh/noop"));
    }
    let mut plain = connect(address).await;
    let answer = get(&mut plain).await;
    assert!(!answer.contains("connection: close"), "{answer}");
}

#[tokio::test]
async fn plain_connections_end_with_their_answer_where_places_are_few() {
    let server = small_server(2);
    let (address, _serving) = start(&server).await;
    let mut plain = connect(address).await;
    assert!(!get(&mut plain).await.contains("connection: close"));
    let _silent = connect(address).await;
    patiently("a last answer", async {
        // It may be asked before the other one is inside.
        while !get(&mut plain).await.contains("connection: close") {}
    })
    .await;
    ended(&mut plain).await;
}

#[cfg(feature = "tls")]
#[tokio::test]
async fn a_tls_handshake_gives_way_too() {
    let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let (chain, key) = (certified.cert.pem(), certified.signing_key.serialize_pem());
    let tls = mesh_tokio::ServerTls::from_pem(chain.as_bytes(), key.as_bytes()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = small_server(1);
    tokio::spawn(async move { server.serve_listener_tls(listener, tls).await });
    let mut silent = connect(address).await;
    let _newcomer = connect(address).await;
    ended(&mut silent).await;
}

#[tokio::test]
async fn shutdown_ends_the_listener_the_connections_and_every_task() {
    let server = server_with(PATIENCE);
    let before = Handle::current().metrics().num_alive_tasks();
    let (address, serving) = start(&server).await;
    let mut peer = Peer::open(connect(address).await).await.unwrap();
    peer.noop(1).await;
    let mut idle = connect(address).await;

    let (code, shut_down) = tokio::join!(peer.close_code(), server.shutdown());
    shut_down.unwrap();
    assert_eq!(code, Some(1001));
    patiently("the listener", serving).await.unwrap();
    let read = patiently("the end", idle.read(&mut [0; 64])).await;
    assert_eq!(read.unwrap_or(0), 0);
    assert!(TcpStream::connect(address).await.is_err());
    until("no task is left", || {
        Handle::current().metrics().num_alive_tasks() <= before
    })
    .await;
}

#[tokio::test]
async fn a_listener_returns_once_the_shutdown_is_done() {
    // Whoever awaits it at the end of `main` must not cut the drain short.
    let server = server_with(PATIENCE);
    let (address, serving) = start(&server).await;
    let mut peer = Peer::open(connect(address).await).await.unwrap();
    peer.noop(1).await;
    tokio::spawn({
        let server = server.clone();
        async move { server.shutdown().await }
    });
    patiently("the listener", serving).await.unwrap();
    assert_eq!(server.health().connections, 0);
}

#[tokio::test]
async fn a_connection_that_is_gone_leaves_no_task() {
    let server = server_with(PATIENCE);
    let (address, _serving) = start(&server).await;
    Peer::open(connect(address).await)
        .await
        .unwrap()
        .noop(1)
        .await;
    let settled = || Handle::current().metrics().num_alive_tasks();
    let before = settled();
    for _ in 0..20 {
        let mut peer = Peer::open(connect(address).await).await.unwrap();
        peer.noop(1).await;
        drop(connect(address).await);
    }
    until("the tasks are gone", || settled() <= before).await;
}

#[tokio::test]
async fn a_dropped_listener_stops_listening_and_nothing_else() {
    let server = server_with(PATIENCE);
    let (address, serving) = start(&server).await;
    let mut peer = Peer::open(connect(address).await).await.unwrap();
    serving.abort();
    assert!(serving.await.unwrap_err().is_cancelled());
    assert!(TcpStream::connect(address).await.is_err());
    assert!(peer.noop(1).await.contains("mesh/noop"));
}
