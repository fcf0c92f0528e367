//! What only tokio tells of a server's listener: its tasks, counted by the runtime. The rest is in the conformance suite
//! (`tests/tests/adapter_server.rs`), for all runtimes.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::net::SocketAddr;

use mesh_tokio::prelude::*;
use tokio::{
    io::AsyncReadExt,
    net::{TcpListener, TcpStream},
    runtime::Handle,
    task::JoinHandle,
};

use crate::common::{PATIENCE, Peer, patiently, server_with, until};

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
