//! What an adapter adds to a server: its listener, from outside.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on fails"
)]

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use futures_util::future::lazy;
use mesh_client_core::driver::Error;
use mesh_core::driver::MeshServerBuilder;
use mesh_tests::prelude::*;
use mesh_tests::runtime::{self, Background, Counting, Task};
use mesh_tests::{PATIENCE, RawClient, Response, Upgrade, until, until_some, wire};
use serde_json::json;

/// A server with this much time for a handshake, on threads of its own.
struct Served {
    background: Background,
    server: MeshServer,
    addr: SocketAddr,
    listening: Task<()>,
}

impl Served {
    fn start(builder: MeshServerBuilder) -> Self {
        Self::start_by(|| runtime::build(builder))
    }

    fn start_by(build: impl FnOnce() -> MeshServer) -> Self {
        let background = Background::start();
        let (server, (addr, listening)) = background.block_on(async {
            let server = build();
            let serving = runtime::listen(&server);
            (server, serving)
        });
        Self {
            background,
            server,
            addr,
            listening,
        }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.addr).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }
}

fn with_handshake_time(time: Duration) -> MeshServerBuilder {
    MeshServer::builder().limits(|limits| limits.handshake_time_max = time)
}

/// A server whose listener is soon full.
fn small(handshakes_max: usize) -> MeshServerBuilder {
    MeshServer::builder().limits(|limits| {
        limits.handshakes_max = handshakes_max;
        limits.handshake_time_max = PATIENCE * 6;
    })
}

/// Calls the one command that every server knows.
#[track_caller]
fn assert_served(peer: &mut RawClient) {
    assert_eq!(peer.command("mesh/noop", json!({})), true);
}

/// Asserts that nothing comes but the end, which may be a reset: the server need not have read everything.
#[track_caller]
fn assert_ended(stream: &mut TcpStream) {
    match stream.read(&mut [0; 64]) {
        Ok(read) => assert_eq!(read, 0),
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}"),
    }
}

/// The answer to a plain request, which allows for another one, in small letters.
fn get(stream: &mut TcpStream) -> String {
    let request = b"GET /nothing HTTP/1.1\r\nhost: mesh\r\n\r\n";
    stream.write_all(request).unwrap();
    let (mut answer, mut piece) = (Vec::new(), [0; 4096]);
    while !answer.ends_with(b"not found") {
        match stream.read(&mut piece).unwrap() {
            0 => break,
            read => answer.extend(&piece[..read]),
        }
    }
    String::from_utf8(answer).unwrap().to_ascii_lowercase()
}

#[test]
fn one_port_serves_upgrades_and_requests() {
    let served = Served::start(with_handshake_time(PATIENCE));
    let mut peer = RawClient::open(served.addr);
    assert_served(&mut peer);
    assert_eq!(Response::get(served.addr, "/nothing").status, 404);
    assert_served(&mut peer);
}

#[test]
fn a_frame_in_the_packet_of_the_handshake_is_not_lost() {
    let served = Served::start(with_handshake_time(PATIENCE));
    let frame = wire::text(r#"{"id":60000,"command":"mesh/noop","payload":{}}"#);
    let upgrade = Upgrade::new(served.addr).trailing(&frame);
    let mut peer = upgrade.send(served.addr).unwrap();
    assert_eq!(peer.reply(60_000), true);
}

#[test]
fn rubbish_in_the_packet_of_the_handshake_harms_nobody() {
    let served = Served::start(with_handshake_time(PATIENCE));
    let mut healthy = RawClient::open(served.addr);
    let upgrade = Upgrade::new(served.addr).trailing(&[0xff; 64]);
    let mut peer = upgrade.send(served.addr).unwrap();
    assert_eq!(peer.close_code_or_end(), Some(1002));
    assert_served(&mut healthy);
}

#[test]
fn who_says_nothing_is_dropped() {
    let allowed = Duration::from_millis(200);
    let served = Served::start(with_handshake_time(allowed));
    let start = Instant::now();
    let (mut silent, mut slow) = (served.connect(), served.connect());
    slow.write_all(b"GET / HTTP/1.1\r\nhost: mesh\r\nconne")
        .unwrap();
    assert_ended(&mut silent);
    assert_ended(&mut slow);
    assert!(start.elapsed() >= allowed);

    // Who did open a connection has all the time there is.
    let mut peer = RawClient::open(served.addr);
    thread::sleep(allowed + allowed / 2);
    assert_served(&mut peer);
}

#[test]
fn connections_that_say_nothing_keep_nobody_out() {
    let served = Served::start(small(8));
    let mut silent: Vec<_> = (0..8).map(|_| served.connect()).collect();
    // Upgraded ones need no place, so that one silent connection is enough to make room for both.
    for _ in 0..2 {
        assert_served(&mut RawClient::open(served.addr));
    }
    assert_ended(&mut silent[0]);
    for other in &mut silent[1..] {
        assert!(get(other).starts_with("http/1.1 404 "));
    }
}

#[test]
fn upgraded_connections_take_no_place() {
    let served = Served::start(small(2));
    let mut peers: Vec<_> = (0..5).map(|_| RawClient::open(served.addr)).collect();
    for peer in &mut peers {
        assert_served(peer);
    }
    let answer = get(&mut served.connect());
    assert!(!answer.contains("connection: close"), "{answer}");
}

#[test]
fn plain_connections_end_with_their_answer_where_places_are_few() {
    let served = Served::start(small(2));
    let mut plain = served.connect();
    assert!(!get(&mut plain).contains("connection: close"));
    let _silent = served.connect();
    // It may be asked before the other one is inside.
    until("a last answer", || {
        get(&mut plain).contains("connection: close")
    });
    assert_ended(&mut plain);
}

#[test]
fn a_tls_handshake_gives_way_too() {
    let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let background = Background::start();
    let (addr, _listening) = background.block_on(async {
        let (certificate, key) = (certified.cert.pem(), certified.signing_key.serialize_pem());
        runtime::listen_tls(&runtime::build(small(1)), &certificate, &key)
    });
    let mut silent = TcpStream::connect(addr).unwrap();
    silent.set_read_timeout(Some(PATIENCE)).unwrap();
    let _newcomer = TcpStream::connect(addr).unwrap();
    assert_ended(&mut silent);
}

#[test]
fn shutdown_ends_the_listener_the_connections_and_every_task() {
    let mut counting = None;
    let served = Served::start_by(|| {
        let counted = counting.insert(Counting::current());
        with_handshake_time(PATIENCE).build_on(counted.clone())
    });
    let counting = counting.unwrap();
    let handles = Arc::new(());
    served.server.register_command("handles", {
        let handles = Arc::clone(&handles);
        move |_: Context| {
            let handles = Arc::clone(&handles);
            async move { Ok(Arc::strong_count(&handles)) }
        }
    });
    let mut peer = RawClient::open(served.addr);
    assert_served(&mut peer);
    let mut idle = served.connect();

    let Served {
        background,
        server,
        addr,
        listening,
    } = served;
    let theirs = server.clone();
    let shutting_down = background.spawn(async move { theirs.shutdown().await });
    peer.assert_closed(1001);
    background.block_on(shutting_down).unwrap();
    background.block_on(listening);
    assert_ended(&mut idle);
    assert!(TcpStream::connect(addr).is_err());
    until("no task is left", || counting.tasks() == 0);
    // The tasks of its connections and its listener have a handle each, and the handler lives as long as one does.
    drop(server);
    until("no handle is left", || Arc::strong_count(&handles) == 1);
}

#[test]
fn a_listener_returns_once_the_shutdown_is_done() {
    // Whoever awaits it at the end of `main` must not cut the drain short.
    let served = Served::start(with_handshake_time(PATIENCE));
    let mut peer = RawClient::open(served.addr);
    assert_served(&mut peer);
    let server = served.server.clone();
    let shutdown = async move { server.shutdown().await };
    let _shutting_down = served.background.spawn(shutdown);
    let ended = thread::spawn(move || peer.assert_closed(1001));
    served.background.block_on(served.listening);
    assert_eq!(served.server.health().connections, 0);
    ended.join().unwrap();
}

#[test]
fn a_dropped_listener_stops_listening_and_nothing_else() {
    let served = Served::start(with_handshake_time(PATIENCE));
    let mut peer = RawClient::open(served.addr);
    assert_served(&mut peer);
    served.listening.abort();
    until("nobody listens", || {
        TcpStream::connect(served.addr).is_err()
    });
    assert_served(&mut peer);
}

#[test]
fn an_address_is_listened_on_by_its_name_and_one_that_is_taken_is_an_error() {
    let background = Background::start();
    let server = background.block_on(async { runtime::build(MeshServer::builder()) });
    // Held so that it stays taken.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let refused = background.block_on(async { runtime::listen_on(&server, address).await });
    match refused {
        Err(Error::Io(error)) => assert_eq!(error.kind(), ErrorKind::AddrInUse, "{error}"),
        other => panic!("{other:?}"),
    }
    let name = format!("localhost:{}", taken.local_addr().unwrap().port());
    drop(taken);
    let listening = background.block_on(lazy(|_| runtime::listen_on(&server, name.clone())));
    let addr = || {
        let mut addrs = name.to_socket_addrs().unwrap();
        addrs.find(|addr| TcpStream::connect(addr).is_ok())
    };
    let addr = until_some("it listens", addr);
    assert_eq!(RawClient::open(addr).command("mesh/noop", json!({})), true);
    background.block_on(server.shutdown()).unwrap();
    background.block_on(listening).unwrap();
}
