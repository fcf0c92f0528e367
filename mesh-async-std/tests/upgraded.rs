//! Routes of a server of hyper's. Streams that speak WebSocket already are in the conformance suite (`tests/tests/upgraded.rs`), for all runtimes.
#![allow(clippy::unwrap_used, missing_docs)]

use std::{
    convert::Infallible,
    future::pending,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::{
    body::Incoming,
    rt::{Read as HyperRead, ReadBufCursor, Write as HyperWrite},
    server::conn::http1,
    service::service_fn,
};
use mesh_async_std::{Async, AsyncIoRuntime, Io, ToHyper, prelude::*};
use mesh_core::driver::Runtime;

/// How long anything may take before a test gives up on it.
const PATIENCE: Duration = Duration::from_secs(10);

const NOOP: &str = r#"{"id":1,"command":"mesh/noop","payload":{}}"#;

/// Every way to spawn that is built.
fn runtimes() -> Vec<Arc<dyn Runtime>> {
    vec![
        #[cfg(feature = "async-std")]
        Arc::new(AsyncIoRuntime::async_std()),
        #[cfg(feature = "smol")]
        Arc::new(AsyncIoRuntime::smol()),
    ]
}

fn server_on(runtime: &Arc<dyn Runtime>) -> MeshServer {
    MeshServer::builder()
        .limits(|limits| limits.handshake_time_max = PATIENCE)
        .build_on(Arc::clone(runtime))
}

/// How a server of hyper's reads its streams.
#[derive(Clone, Copy, Debug)]
enum Way {
    /// As mesh can take them back.
    Known,
    /// In a type of its own.
    Foreign,
}

const WAYS: [Way; 2] = [Way::Known, Way::Foreign];

/// What mesh has never seen.
struct Foreign(ToHyper<Io<Async<TcpStream>>>);

impl HyperRead for Foreign {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl HyperWrite for Foreign {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buffer)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// A server of hyper's that hands requests for `/mesh` on.
fn hyper_server(runtime: &Arc<dyn Runtime>, server: MeshServer, way: Way) -> SocketAddr {
    let listener = Async::<TcpListener>::bind(([127, 0, 0, 1], 0)).unwrap();
    let address = listener.get_ref().local_addr().unwrap();
    let connections = Arc::clone(runtime);
    runtime.spawn(Box::pin(async move {
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
            let (stream, http) = (ToHyper(Io(stream)), http1::Builder::new());
            match way {
                Way::Known => {
                    let serving = http.serve_connection(stream, service).with_upgrades();
                    connections.spawn(Box::pin(async { drop(serving.await) }));
                }
                Way::Foreign => {
                    let serving = http
                        .serve_connection(Foreign(stream), service)
                        .with_upgrades();
                    connections.spawn(Box::pin(async { drop(serving.await) }));
                }
            }
        }
    }));
    address
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

const UPGRADE: &str = "GET /mesh HTTP/1.1\r\nhost: mesh\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
                       sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

/// A frame as a client sends it, masked with zeros.
fn client_frame(text: &str) -> Vec<u8> {
    let mut frame = vec![0x81, 0x80 | u8::try_from(text.len()).unwrap(), 0, 0, 0, 0];
    frame.extend_from_slice(text.as_bytes());
    frame
}

/// Everything up to this text.
#[track_caller]
fn read_until(stream: &mut TcpStream, end: &str) -> String {
    let mut seen = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&seen);
        if text.contains(end) {
            return text.into_owned();
        }
        let mut some = [0; 1 << 10];
        let len = stream.read(&mut some).unwrap();
        assert_ne!(len, 0, "ended after {text:?}");
        seen.extend_from_slice(&some[..len]);
    }
}

#[test]
fn a_route_of_hypers_serves_mesh() {
    for runtime in runtimes() {
        for way in WAYS {
            let mut stream = connect(hyper_server(&runtime, server_on(&runtime), way));
            stream.write_all(UPGRADE.as_bytes()).unwrap();
            let head = read_until(&mut stream, "mesh/assign-id");
            assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
            for _ in 0..3 {
                stream.write_all(&client_frame(NOOP)).unwrap();
                read_until(&mut stream, r#"{"id":1,"#);
            }
        }
    }
}

#[test]
fn what_hyper_read_behind_the_request_is_not_lost() {
    for runtime in runtimes() {
        for way in WAYS {
            let mut stream = connect(hyper_server(&runtime, server_on(&runtime), way));
            let packet = [UPGRADE.as_bytes(), &client_frame(NOOP)].concat();
            stream.write_all(&packet).unwrap();
            read_until(&mut stream, r#"{"id":1,"#);
        }
    }
}

#[test]
fn a_plain_request_to_that_route_is_answered() {
    for runtime in runtimes() {
        let mut stream = connect(hyper_server(&runtime, server_on(&runtime), Way::Known));
        stream
            .write_all(b"GET /mesh HTTP/1.1\r\nhost: mesh\r\nconnection: close\r\n\r\n")
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
    }
}

#[test]
fn a_decision_that_never_comes_ends_with_the_time_of_a_handshake() {
    for runtime in runtimes() {
        let server = MeshServer::builder()
            .limits(|limits| limits.handshake_time_max = Duration::from_millis(200))
            .authenticate(async |_: UpgradeRequest| pending().await)
            .build_on(Arc::clone(&runtime));
        let mut stream = connect(hyper_server(&runtime, server, Way::Known));
        stream.write_all(UPGRADE.as_bytes()).unwrap();
        let answer = read_until(&mut stream, "\r\n\r\n");
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    }
}
