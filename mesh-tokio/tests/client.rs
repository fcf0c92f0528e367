//! A client over real sockets.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::{net::SocketAddr, time::Duration};

use mesh_tokio::prelude::*;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    runtime::Handle,
};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use crate::common::{PATIENCE, patiently, server_with, until};

async fn serve(server: &MeshServer) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = server.clone();
    tokio::spawn(async move { server.serve_listener(listener).await });
    address
}

fn echo_server() -> MeshServer {
    let server = server_with(PATIENCE);
    server.register_command("echo", async |ctx: Context| Ok(ctx.payload));
    server
}

#[tokio::test]
async fn a_command_makes_the_round_trip() {
    let address = serve(&echo_server()).await;
    let url = format!("ws://localhost:{}", address.port());
    let client = patiently("a connection", MeshClient::connect(&url))
        .await
        .unwrap();
    let reply: String = client.command("echo", "Hello").await.unwrap();
    assert_eq!(reply, "Hello");
    patiently("the end", client.close()).await;
    patiently("a new connection", client.open()).await.unwrap();
    let reply: String = client.command("echo", "Hello again").await.unwrap();
    assert_eq!(reply, "Hello again");
}

#[tokio::test]
async fn a_refusal_has_status_and_body() {
    let server = MeshServer::builder()
        .authenticate(
            async |request: UpgradeRequest| match request.bearer_token() {
                Some("right") => Ok(Accept::new()),
                _ => Err(Refusal::unauthorized("no, thank you")),
            },
        )
        .build();
    let url = format!("ws://{}/", serve(&server).await);
    let refused = patiently("an answer", MeshClient::builder(&url).connect()).await;
    assert_eq!(
        refused.unwrap_err(),
        ConnectError::Refused {
            status: 401,
            body: "no, thank you".to_owned()
        }
    );
    let let_in = MeshClient::builder(&url)
        .header("authorization", "Bearer right")
        .connect();
    patiently("a connection", let_in).await.unwrap();
}

/// Takes one connection, reads the request, sends what `answer` makes of its key, and holds the stream.
async fn scripted(answer: impl FnOnce(&str) -> Vec<u8> + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            stream.read_buf(&mut head).await.unwrap();
        }
        let head = String::from_utf8(head).unwrap();
        let key = head.lines().find_map(|line| {
            let (name, value) = line.split_once(": ")?;
            name.eq_ignore_ascii_case("sec-websocket-key")
                .then_some(value)
        });
        stream.write_all(&answer(key.unwrap())).await.unwrap();
        let _ = stream.read_to_end(&mut Vec::new()).await;
    });
    address
}

fn switching_protocols(accept: &str) -> Vec<u8> {
    let head = [
        "HTTP/1.1 101 Switching Protocols",
        "connection: upgrade",
        "upgrade: websocket",
        &format!("sec-websocket-accept: {accept}"),
        "\r\n",
    ];
    head.join("\r\n").into_bytes()
}

async fn connect_once(address: SocketAddr) -> Result<MeshClient, ConnectError> {
    let connecting = MeshClient::builder(&format!("ws://{address}"))
        .fail_fast(true)
        .connect();
    patiently("an outcome", connecting).await
}

#[tokio::test]
async fn an_answer_that_is_no_handshake_is_an_error() {
    let address = scripted(|_| switching_protocols("wrong")).await;
    let error = connect_once(address).await.unwrap_err();
    assert!(matches!(error, ConnectError::Handshake(_)), "{error:?}");

    let address = scripted(|_| b"220 smtp.example.org\r\n".to_vec()).await;
    let error = connect_once(address).await.unwrap_err();
    assert!(matches!(error, ConnectError::Handshake(_)), "{error:?}");
}

#[tokio::test]
async fn what_the_server_sends_with_the_handshake_is_not_lost() {
    let address = scripted(|key| {
        let event = r#"{"command":"mesh/assign-id","payload":"early"}"#;
        let mut answer = switching_protocols(&derive_accept_key(key.as_bytes()));
        answer.extend([0x81, u8::try_from(event.len()).unwrap()]);
        answer.extend(event.as_bytes());
        answer
    })
    .await;
    let client = connect_once(address).await.unwrap();
    until("the event is seen", || {
        client.connection_id().as_deref() == Some("early")
    })
    .await;
}

#[tokio::test]
async fn an_attempt_that_times_out_leaves_nothing_behind() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = silent.local_addr().unwrap();
    let before = Handle::current().metrics().num_alive_tasks();
    let connecting = MeshClient::builder(&format!("ws://{address}"))
        .connect_timeout(Duration::from_millis(50))
        .fail_fast(true)
        .connect();
    let error = patiently("an outcome", connecting).await.unwrap_err();
    assert_eq!(error, ConnectError::Timeout(Duration::from_millis(50)));
    let (mut stream, _) = silent.accept().await.unwrap();
    let mut request = Vec::new();
    patiently("the end", stream.read_to_end(&mut request))
        .await
        .unwrap();
    assert!(request.starts_with(b"GET / HTTP/1.1\r\n"));
    until("no task is left", || {
        Handle::current().metrics().num_alive_tasks() <= before
    })
    .await;
}

#[tokio::test]
async fn a_dropped_client_leaves_nothing_behind() {
    let server = echo_server();
    let url = format!("ws://{}", serve(&server).await);
    let use_one = async || {
        let client = MeshClient::builder(&url).connect().await.unwrap();
        let _: u32 = client.command("echo", 1).await.unwrap();
        client
    };
    // The server starts tasks of its own with its first connection.
    let held = use_one().await;
    let before = Handle::current().metrics().num_alive_tasks();
    for _ in 0..5 {
        drop(use_one().await);
    }
    until("no task is left", || {
        Handle::current().metrics().num_alive_tasks() <= before && server.health().connections == 1
    })
    .await;
    assert!(held.is_online());
}

#[test]
fn a_program_without_a_runtime_can_use_a_client() {
    let tokio = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let address = tokio.block_on(async { serve(&echo_server()).await });
    let builder = || MeshClient::builder(&format!("ws://{address}"));
    let client = builder().connect_blocking().unwrap();
    let reply: u32 = client.command_blocking("echo", 7, PATIENCE).unwrap();
    assert_eq!(reply, 7);

    let inside = tokio.block_on(async { builder().connect_blocking() });
    assert!(matches!(inside, Err(ConnectError::Usage(_))));
    let inside = tokio.block_on(async { client.command_blocking::<_, u32>("echo", 7, PATIENCE) });
    assert!(matches!(inside, Err(ClientError::Usage(_))));
}

#[test]
fn a_client_on_its_own_thread_goes_on_while_the_runtime_is_blocked() {
    let tokio = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let address = tokio.block_on(async { serve(&echo_server()).await });
    let blocked = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let client = blocked.block_on(async {
        MeshClient::builder(&format!("ws://{address}"))
            .dedicated_thread()
            .connect()
            .await
            .unwrap()
    });
    // Nothing drives `blocked` from here on.
    let reply: u32 = client.command_blocking("echo", 7, PATIENCE).unwrap();
    assert_eq!(reply, 7);
}

#[cfg(not(feature = "tls"))]
#[tokio::test]
async fn without_tls_wss_fails_at_once() {
    let url = "wss://user:secret@localhost:1/?token=secret";
    let connecting = MeshClient::builder(url).connect();
    let error = patiently("an outcome", connecting).await.unwrap_err();
    assert!(matches!(error, ConnectError::Unsupported(_)), "{error:?}");
    assert_eq!(
        error.to_string(),
        "wss:// needs the feature `tls` of mesh-tokio"
    );
}

#[cfg(feature = "tls")]
mod tls {
    use mesh_tokio::ServerTls;
    use tokio::net::TcpStream;
    use tokio_rustls::rustls::pki_types::{CertificateDer, pem::PemObject};

    use super::*;

    async fn serve_tls(time_max: Duration) -> (SocketAddr, Vec<u8>) {
        let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let (chain, key) = (certified.cert.pem(), certified.signing_key.serialize_pem());
        let tls = ServerTls::from_pem(chain.as_bytes(), key.as_bytes()).unwrap();
        let server = server_with(time_max);
        server.register_command("echo", async |ctx: Context| Ok(ctx.payload));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { server.serve_listener_tls(listener, tls).await });
        let root = CertificateDer::from_pem_slice(chain.as_bytes()).unwrap();
        (address, root.to_vec())
    }

    #[tokio::test]
    async fn a_command_makes_the_round_trip_over_tls() {
        let (address, root) = serve_tls(PATIENCE).await;
        let url = format!("wss://localhost:{}", address.port());
        let connecting = MeshClient::builder(&url).tls_root(root).connect();
        let client = patiently("a connection", connecting).await.unwrap();
        for size in [5, 100_000] {
            let text = "x".repeat(size);
            let reply: String = client.command("echo", &text).await.unwrap();
            assert_eq!(reply, text);
        }
        patiently("the end", client.close()).await;
    }

    #[tokio::test]
    async fn a_server_that_is_not_trusted_is_not_talked_to() {
        let (address, _root) = serve_tls(PATIENCE).await;
        let url = format!("wss://localhost:{}", address.port());
        let connecting = MeshClient::builder(&url).fail_fast(true).connect();
        let error = patiently("an outcome", connecting).await.unwrap_err();
        assert!(matches!(error, ConnectError::Tls(_)), "{error:?}");
    }

    #[tokio::test]
    async fn a_server_without_tls_is_told_as_such() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let answer = b"HTTP/1.1 400 Bad Request\r\n\r\n";
            stream.write_all(answer).await.unwrap();
            let _ = stream.read_to_end(&mut Vec::new()).await;
        });
        let url = format!("wss://localhost:{port}");
        let client = MeshClient::builder(&url)
            .reconnect_interval(PATIENCE)
            .build()
            .unwrap();
        let mut statuses = client.on_status();
        let theirs = client.clone();
        tokio::spawn(async move { theirs.open().await });
        let error = loop {
            match patiently("a status", statuses.next()).await {
                Some(Status::Waiting { error, .. }) => break error,
                other => assert!(other.is_some(), "the client is gone"),
            }
        };
        assert!(matches!(error, ConnectError::Tls(_)), "{error:?}");
        assert_eq!(client.last_error(), Some(error));
    }

    #[tokio::test]
    async fn a_root_that_is_no_certificate_is_an_error_and_not_tried_again() {
        let (address, _root) = serve_tls(PATIENCE).await;
        let url = format!("wss://localhost:{}", address.port());
        let connecting = MeshClient::builder(&url).tls_root(*b"rubbish").connect();
        let error = patiently("an outcome", connecting).await.unwrap_err();
        assert!(matches!(error, ConnectError::InvalidRoot(_)), "{error:?}");
    }

    #[tokio::test]
    async fn a_tls_handshake_has_its_time_too() {
        let (address, _root) = serve_tls(Duration::from_millis(100)).await;
        let mut silent = TcpStream::connect(address).await.unwrap();
        let read = patiently("the end", silent.read(&mut [0; 64])).await;
        assert_eq!(read.unwrap_or(0), 0);
    }
}
