//! What `tracing` is told of a command.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on fails"
)]

use std::io::{self, Write};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mesh_tests::prelude::*;
use mesh_tests::runtime::{self, Background};
use mesh_tests::{RawClient, until};
use serde_json::json;
use tracing_subscriber::fmt::MakeWriter;

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
#[test]
fn what_a_handler_logs_tells_the_connection_and_the_command() {
    let log = Log::default();
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::DEBUG)
        .with_ansi(false)
        .with_writer(log.clone())
        .init();
    let background = Background::start();
    let (server, addr) = background.block_on(async {
        let server = runtime::build(MeshServer::builder());
        let addr = runtime::serve(&server);
        (server, addr)
    });
    server.register_command("speaks", async |_: Context| {
        tracing::info!("at once");
        runtime::sleep(Duration::from_millis(1)).await;
        tracing::info!("later");
        Ok(true)
    });
    let mut client = RawClient::open(addr);
    let id = client.send_command("speaks", json!({}));
    assert_eq!(client.reply(id), true);
    let logged = || String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    until("both are logged", || logged().contains("later"));
    for what in ["at once", "later"] {
        let logged = logged();
        let line = logged.lines().find(|line| line.ends_with(what)).unwrap();
        let span = format!("connection{{id={}.", server.instance_id());
        assert!(line.contains(&span), "{line}");
        let span = format!(r#"command{{name="speaks" id={id}}}"#);
        assert!(line.contains(&span), "{line}");
    }
}
