//! What is left when a client, a server or a whole runtime goes: no task, no timer, no socket, no connection to Redis.
//!
//! Sockets are those of this process, both ends of a connection alike, so one test at a time.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on fails"
)]

mod common;

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, mpsc};

use futures_util::future::{Either, join_all, select};
use mesh_tests::prelude::*;
use mesh_tests::runtime::{self, Background, Counting, Kind, Task, block_on, connector};
use mesh_tests::{PATIENCE, RawClient, Redis, RedisClient, Scripted, until};
use serde_json::json;

use crate::common::{SOON, connect, disconnected, patiently, status, until as until_async};

/// Keeps the other tests out, whose sockets would be counted here, and waits for the last ones of the test before.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    static AT_FIRST: OnceLock<usize> = OnceLock::new();
    let alone = match ALONE.lock() {
        Ok(alone) => alone,
        // A test that failed may have left what never goes.
        Err(poisoned) => return poisoned.into_inner(),
    };
    let at_first = *AT_FIRST.get_or_init(|| {
        // What a runtime keeps for all that are to come is not this test's.
        drop(Background::start());
        sockets()
    });
    until("the test before is over", || sockets() == at_first);
    alone
}

/// How many sockets this process has.
fn sockets() -> usize {
    let open = fs::read_dir("/proc/self/fd").unwrap();
    let kinds = open.filter_map(|fd| fs::read_link(fd.ok()?.path()).ok());
    kinds
        .filter(|kind| kind.to_string_lossy().starts_with("socket:"))
        .count()
}

/// How many of this process's threads are a client's own.
fn threads() -> usize {
    let threads = fs::read_dir("/proc/self/task").unwrap();
    let names = threads.filter_map(|thread| {
        let name = thread.ok()?.path().join("comm");
        fs::read_to_string(name).ok()
    });
    names.filter(|name| name.trim() == "mesh").count()
}

/// How many connections a Redis has beside this one.
fn connections(client: &mut RedisClient) -> usize {
    let list = client.command(&["CLIENT", "LIST"]).text();
    list.lines().count() - 1
}

// Clients.

/// A server that reads to the end of each connection, and tells when it has come.
fn reading() -> (Scripted, mpsc::Receiver<Option<u16>>) {
    let (send, ended) = mpsc::channel();
    let server = Scripted::start(move |_, attempt| {
        send.send(attempt.accept().end()).unwrap();
    });
    (server, ended)
}

async fn nothing_is_left(counting: &Counting, sockets_before: usize) {
    until_async("no task is left", || counting.tasks() == 0).await;
    assert_eq!(counting.timers(), 0);
    until_async("no socket is left", || sockets() == sockets_before).await;
}

#[test]
fn with_its_last_handle_a_connected_client_ends() {
    let _alone = alone();
    block_on(async {
        let (server, ended) = reading();
        let counting = Counting::current();
        let before = sockets();
        let connecting =
            MeshClient::builder(&server.url()).connect_on(counting.clone(), connector());
        let client = patiently("a connection", connecting).await.unwrap();
        let mut news = client.on::<u32>("news");
        let another = client.clone();
        let (send, handled) = mpsc::channel();
        let call = client.command::<_, u32>("never answered", ()).into_future();
        let call = runtime::spawn(async move { send.send(call.await).unwrap() });
        drop(client);
        assert!(another.is_online());
        assert!(counting.tasks() > 0 && sockets() > before);

        drop(another);
        nothing_is_left(&counting, before).await;
        assert_eq!(ended.recv_timeout(PATIENCE).unwrap(), Some(1000));
        assert_eq!(patiently("the end", news.next()).await, None);
        patiently("the call's end", call).await;
        assert_eq!(
            handled.recv_timeout(PATIENCE).unwrap(),
            Err(ClientError::Disconnected)
        );
    });
}

#[test]
fn with_its_last_handle_a_client_that_connects_ends() {
    let _alone = alone();
    block_on(async {
        // Accepts and says nothing, so that the attempt never ends by itself.
        let server = Scripted::start(|_, attempt| attempt.ignore());
        let counting = Counting::current();
        let before = sockets();
        {
            let builder = MeshClient::builder(&server.url()).connect_timeout(PATIENCE * 4);
            let connecting = pin!(builder.connect_on(counting.clone(), connector()));
            let attempt = pin!(until_async("an attempt", || !server.attempts().is_empty()));
            match select(connecting, attempt).await {
                Either::Left((outcome, _)) => panic!("{outcome:?}"),
                Either::Right(_) => assert!(counting.tasks() > 0 && sockets() > before),
            }
        }
        nothing_is_left(&counting, before).await;
    });
}

#[test]
fn with_its_last_handle_a_client_that_waits_to_reconnect_ends() {
    let _alone = alone();
    block_on(async {
        let server = Scripted::start(|_, attempt| attempt.accept().cut());
        let counting = Counting::current();
        let before = sockets();
        let client = MeshClient::builder(&server.url())
            .reconnect_interval(PATIENCE * 4)
            .build_on(counting.clone(), connector())
            .unwrap();
        let mut statuses = client.on_status();
        let _ = patiently("an outcome", client.open()).await;
        disconnected(&mut statuses).await;
        status(&mut statuses, |status| {
            matches!(status, Status::Waiting { .. }).then_some(())
        })
        .await;
        assert!(counting.tasks() > 0);
        drop(client);
        nothing_is_left(&counting, before).await;
        assert_eq!(server.attempts().len(), 1);
    });
}

#[test]
fn with_its_last_handle_a_client_on_a_thread_of_its_own_ends() {
    let _alone = alone();
    let (server, ended) = reading();
    let before = (sockets(), threads());
    let client = runtime::connect_blocking(MeshClient::builder(&server.url())).unwrap();
    assert!(sockets() > before.0);
    drop(client);
    assert_eq!(ended.recv_timeout(PATIENCE).unwrap(), Some(1000));
    until("neither socket nor thread is left", || {
        (sockets(), threads()) == before
    });
}

#[test]
fn a_closed_client_keeps_no_socket() {
    let _alone = alone();
    block_on(async {
        let (server, ended) = reading();
        let before = sockets();
        let client = connect(MeshClient::builder(&server.url())).await;
        patiently("the end", client.close()).await;
        assert_eq!(ended.recv_timeout(PATIENCE).unwrap(), Some(1000));
        until_async("no socket is left", || sockets() == before).await;
    });
}

// Servers.

/// A server on Redis that counts what it has.
struct Served {
    background: Background,
    server: MeshServer,
    addr: SocketAddr,
    listening: Task<()>,
    counting: Arc<Counting>,
    /// A clone of it is in a handler, which lives as long as the server does.
    lives: Arc<()>,
}

impl Served {
    fn start(background: Background, redis: &Redis) -> Self {
        // A shutdown waits no longer than that for handlers that never end.
        let builder = MeshServer::builder().drain_time(SOON);
        let lives = Arc::new(());
        let theirs = Arc::clone(&lives);
        let (server, (addr, listening), counting) = background.block_on(async {
            let backend = mesh_redis::connect(redis.url()).await.unwrap();
            let counting = Counting::current();
            let server = builder.backend(backend).build_on(counting.clone());
            server.register_command("never-responds", move |_: Context| {
                let theirs = Arc::clone(&theirs);
                async move {
                    let _theirs = theirs;
                    std::future::pending::<Result<(), CommandError>>().await
                }
            });
            server.register_command("join", async |ctx: Context<String>| {
                ctx.server
                    .add_to_room(&ctx.payload, &ctx.connection)
                    .await?;
                Ok(true)
            });
            server.expose_channel(Pattern::regex("^chat:").unwrap());
            server.start().await.unwrap();
            let listening = runtime::listen(&server);
            (server, listening, counting)
        });
        Self {
            background,
            server,
            addr,
            listening,
            counting,
            lives,
        }
    }

    /// Connections that have something of everything: a room, a channel, a command that never ends.
    fn peers(&self) -> Vec<RawClient> {
        let mut peers: Vec<_> = (0..5).map(|_| RawClient::open(self.addr)).collect();
        for peer in &mut peers {
            assert_eq!(peer.command("join", "lobby"), true);
            let channel = json!({ "channel": "chat:room1" });
            let reply = peer.command("mesh/subscribe-channel", channel);
            assert_eq!(reply["success"], true, "{reply}");
            peer.send_command("never-responds", json!({}));
        }
        peers
    }
}

#[test]
fn a_server_that_was_shut_down_and_dropped_leaves_nothing_behind() {
    let _alone = alone();
    let redis = Redis::start();
    let mut client = redis.client();
    let background = Background::start();
    let before = sockets();
    let served = Served::start(background, &redis);
    let peers = served.peers();
    // One that is not upgraded.
    let idle = TcpStream::connect(served.addr).unwrap();
    assert!(connections(&mut client) > 0);
    let Served {
        background,
        server,
        counting,
        lives,
        listening,
        ..
    } = served;
    let theirs = server.clone();
    let shutting_down = background.spawn(async move { theirs.shutdown().await });
    for mut peer in peers {
        peer.assert_closed(1001);
    }
    background.block_on(shutting_down).unwrap();
    background.block_on(listening);
    drop((server, idle));
    until("no task is left", || counting.tasks() == 0);
    until("no timer is left", || counting.timers() == 0);
    until("no handle is left", || Arc::strong_count(&lives) == 1);
    until("no connection to Redis is left", || {
        connections(&mut client) == 0
    });
    until("no socket is left", || sockets() == before);
    drop(background);
}

#[test]
fn a_server_whose_redis_does_not_answer_leaves_nothing_behind_either() {
    let _alone = alone();
    let redis = Redis::start();
    let mut client = redis.client();
    let background = Background::start();
    let before = sockets();
    let served = Served::start(background, &redis);
    let mut peer = RawClient::open(served.addr);
    assert_eq!(peer.command("mesh/noop", json!({})), true);
    redis.freeze();
    let Served {
        background,
        server,
        counting,
        lives,
        listening,
        ..
    } = served;
    let shutting_down = background.spawn(async move { server.shutdown().await });
    peer.assert_closed(1001);
    drop(peer);
    assert!(background.block_on(shutting_down).is_err());
    background.block_on(listening);
    until("no task is left", || counting.tasks() == 0);
    until("no timer is left", || counting.timers() == 0);
    until("no handle is left", || Arc::strong_count(&lives) == 1);
    until("no socket is left", || sockets() == before);
    redis.thaw();
    until("no connection to Redis is left", || {
        connections(&mut client) == 0
    });
    drop(background);
}

#[test]
fn a_server_without_a_handle_ends_with_its_last_connection() {
    let _alone = alone();
    let redis = Redis::start();
    let mut client = redis.client();
    let background = Background::start();
    let before = sockets();
    let Served {
        background,
        server,
        addr,
        listening,
        counting,
        lives,
    } = Served::start(background, &redis);
    let mut peer = RawClient::open(addr);
    assert_eq!(peer.command("join", "lobby"), true);
    // The listener has a handle, and so has each connection.
    drop(server);
    assert_eq!(RawClient::open(addr).command("mesh/noop", json!({})), true);
    listening.abort();
    until("nobody listens", || TcpStream::connect(addr).is_err());
    assert_eq!(peer.command("mesh/noop", json!({})), true);
    peer.leave();
    until("no task is left", || counting.tasks() == 0);
    until("no timer is left", || counting.timers() == 0);
    until("no handle is left", || Arc::strong_count(&lives) == 1);
    until("no connection to Redis is left", || {
        connections(&mut client) == 0
    });
    until("no socket is left", || sockets() == before);
    drop(background);
}

#[test]
fn a_server_that_serves_nobody_ends_with_its_last_handle() {
    let _alone = alone();
    let redis = Redis::start();
    let mut client = redis.client();
    let background = Background::start();
    let before = sockets();
    let counting = background.block_on(async {
        let backend = mesh_redis::connect(redis.url()).await.unwrap();
        let counting = Counting::current();
        let server = MeshServer::builder()
            .backend(backend)
            .build_on(counting.clone());
        server.start().await.unwrap();
        assert!(counting.tasks() > 0 && connections(&mut client) > 0);
        counting
    });
    until("no task is left", || counting.tasks() == 0);
    until("no timer is left", || counting.timers() == 0);
    until("no connection to Redis is left", || {
        connections(&mut client) == 0
    });
    until("no socket is left", || sockets() == before);
    drop(background);
}

// Runtimes.

#[test]
fn with_its_runtime_everything_ends_in_full_swing() {
    if !Background::ends() {
        return; // There is none that could be dropped.
    }
    let _alone = alone();
    let redis = Redis::start();
    let mut client = redis.client();
    let before = sockets();
    let served = Served::start(Background::start(), &redis);
    let mut peers = served.peers();
    let Served {
        background,
        server,
        addr,
        counting,
        lives,
        listening,
    } = served;
    let mut clients_counting = None;
    let calls = Arc::new(AtomicUsize::new(0));
    let clients = background.block_on(async {
        let counting = clients_counting.insert(Counting::current()).clone();
        let url = format!("ws://{addr}");
        let connecting = (0..10).map(|_| {
            let builder = MeshClient::builder(&url).reconnect_interval(SOON);
            builder.connect_on(counting.clone(), connector())
        });
        let clients = patiently("connections", join_all(connecting)).await;
        let clients: Vec<_> = clients.into_iter().map(Result::unwrap).collect();
        for client in &clients {
            let (client, calls) = (client.clone(), Arc::clone(&calls));
            runtime::spawn(async move {
                let joins = client.command::<_, bool>("join", "lobby").into_future();
                joins.await.unwrap();
                loop {
                    let _: bool = client.command("mesh/noop", json!({})).await.unwrap();
                    calls.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        // One that never connects.
        let nowhere = MeshClient::builder("ws://127.0.0.1:1").reconnect_interval(SOON);
        let nowhere = nowhere.build_on(counting, connector()).unwrap();
        runtime::spawn(async move { nowhere.open().await });
        let publisher = server.clone();
        runtime::spawn(async move {
            loop {
                let published = publisher.publish_to_channel("chat:room1", "x", 10).await;
                published.unwrap();
                publisher.broadcast_room("lobby", "news", 1).await.unwrap();
            }
        });
        clients
    });
    until("they are at it", || calls.load(Ordering::Relaxed) > 1_000);
    peers[0].event("news");
    assert!(connections(&mut client) > 0);

    drop(background);
    for peer in &mut peers {
        assert_eq!(peer.close_code_or_end(), None);
    }
    drop(peers);
    // The server and the clients are still held, and of no use any more.
    let clients_counting = clients_counting.unwrap();
    for counting in [&counting, &clients_counting] {
        assert_eq!((counting.tasks(), counting.timers()), (0, 0));
    }
    if Kind::of_the_suite() == Kind::Tokio {
        until("no connection to Redis is left", || {
            connections(&mut client) == 0
        });
    }
    let late = clients[0].command_blocking::<_, bool>("mesh/noop", json!({}), PATIENCE);
    assert_eq!(late, Err(ClientError::Closed));
    // A handle of tokio's own keeps what the runtime hears signals by.
    drop((server, clients, counting, clients_counting, listening));
    assert_eq!(Arc::strong_count(&lives), 1);
    // On smol, mesh-redis is on the executor of `smol::spawn`, which is not the one that ended, and goes with its last handle.
    until("no connection to Redis is left", || {
        connections(&mut client) == 0
    });
    until("no socket is left", || sockets() == before);
}
