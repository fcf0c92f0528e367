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
