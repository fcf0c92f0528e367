//! Routes of a server of hyper's. Streams that speak WebSocket already are in the conformance suite (`tests/tests/upgraded.rs`), for all runtimes.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::{convert::Infallible, future::pending, net::SocketAddr, time::Duration};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use mesh_tokio::prelude::*;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use crate::common::{PATIENCE, Peer, patiently, server_with};

const NOOP: &str = r#"{"id":1,"command":"mesh/noop","payload":{}}"#;

/// A server of hyper's that hands requests for `/mesh` on.
async fn hyper_server(server: MeshServer) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, remote) = listener.accept().await.unwrap();
            let server = server.clone();
            let service = service_fn(move |request: Request<Incoming>| {
                let server = server.clone();
                async move {
                    let response = match request.uri().path() {
                        "/mesh" => server.upgrade(request, remote).await,
                        _ => Response::new(Bytes::from("hyper's own")),
                    };
                    Ok::<_, Infallible>(response.map(Full::new))
                }
            });
            tokio::spawn(
                http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service)
                    .with_upgrades(),
            );
        }
    });
    address
}

#[tokio::test]
async fn a_route_of_hypers_serves_mesh() {
    let address = hyper_server(server_with(PATIENCE)).await;
    let stream = TcpStream::connect(address).await.unwrap();
    let opened = tokio_tungstenite::client_async("ws://localhost/mesh", stream);
    let (socket, _) = patiently("the handshake", opened).await.unwrap();
    assert!(Peer(socket).noop(3).await.contains("mesh/noop"));
}

#[tokio::test]
async fn what_hyper_read_behind_the_request_is_not_lost() {
    let address = hyper_server(server_with(PATIENCE)).await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = "GET /mesh HTTP/1.1\r\nhost: mesh\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
                   sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    let mut packet = request.as_bytes().to_vec();
    // Masked with zeros.
    packet.extend([0x81, 0x80 | u8::try_from(NOOP.len()).unwrap(), 0, 0, 0, 0]);
    packet.extend(NOOP.as_bytes());
    stream.write_all(&packet).await.unwrap();
    let mut seen = Vec::new();
    patiently("the reply", async {
        while !String::from_utf8_lossy(&seen).contains(r#"{"id":1,"#) {
            assert_ne!(stream.read_buf(&mut seen).await.unwrap(), 0);
        }
    })
    .await;
}

#[tokio::test]
async fn a_plain_request_to_that_route_is_answered() {
    let address = hyper_server(server_with(PATIENCE)).await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream
        .write_all(b"GET /mesh HTTP/1.1\r\nhost: mesh\r\nconnection: close\r\n\r\n")
        .await
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
}

#[tokio::test]
async fn a_decision_that_never_comes_ends_with_the_time_of_a_handshake() {
    let server = MeshServer::builder()
        .limits(|limits| limits.handshake_time_max = Duration::from_millis(200))
        .authenticate(async |_: UpgradeRequest| pending().await)
        .build();
    let address = hyper_server(server.clone()).await;
    let stream = TcpStream::connect(address).await.unwrap();
    let opened = tokio_tungstenite::client_async("ws://localhost/mesh", stream);
    let refused = patiently("the answer", opened).await;
    assert!(refused.unwrap_err().to_string().contains("503"));
}
