//! What `tracing` is told of a command.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::{
    io::{self, Write},
    sync::{Arc, Mutex},
};

use mesh_tokio::prelude::*;
use tokio::net::{TcpListener, TcpStream};
use tracing_subscriber::fmt::MakeWriter;

use crate::common::{Peer, until};

/// A log in memory.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Log {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

/// Alone in its file, because the subscriber is the whole process's.
#[tokio::test]
async fn what_a_handler_logs_tells_the_connection_and_the_command() {
    let log = Log::default();
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::DEBUG)
        .with_ansi(false)
        .with_writer(log.clone())
        .init();
    let server = MeshServer::builder().build();
    server.register_command("speaks", async |_: Context| {
        tracing::info!("at once");
        tokio::task::yield_now().await;
        tracing::info!("later");
        Ok(())
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn({
        let server = server.clone();
        async move { server.serve_listener(listener).await }
    });
    let mut peer = Peer::open(TcpStream::connect(address).await.unwrap())
        .await
        .unwrap();
    peer.send(r#"{"id":7,"command":"speaks"}"#).await;
    peer.reply(7).await;
    let logged = || String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    until("both are logged", || logged().contains("later")).await;
    for what in ["at once", "later"] {
        let logged = logged();
        let line = logged.lines().find(|line| line.ends_with(what)).unwrap();
        let instance = server.instance_id();
        let span = format!("connection{{id={instance}.");
        assert!(line.contains(&span), "{line}");
        assert!(line.contains(r#"command{name="speaks" id=7}"#), "{line}");
    }
}
