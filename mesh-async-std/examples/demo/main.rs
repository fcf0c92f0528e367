//! The demo server: everything that mesh does, for browsers, test suites and the curious.
//!
//! ```text
//! cargo run --release -p mesh-async-std --example demo -- --port 8080
//! cargo run --release -p mesh-async-std --no-default-features --features smol --example demo -- --port 8080
//! ```
//!
//! What is async-std's and smol's is here; the other files are those of mesh-tokio's demo.

#[path = "../../../mesh-tokio/examples/demo/commands.rs"]
mod commands;
#[path = "../../../mesh-tokio/examples/demo/exposed.rs"]
mod exposed;
#[path = "../../../mesh-tokio/examples/demo/metrics.rs"]
mod metrics;
#[path = "../../../mesh-tokio/examples/demo/options.rs"]
mod options;
#[path = "../../../mesh-tokio/examples/demo/pages.rs"]
mod pages;
mod runtime;
#[path = "../../../mesh-tokio/examples/demo/server.rs"]
mod server;

use std::{
    io::{Write, stderr, stdout},
    net::TcpListener,
    process::ExitCode,
    time::Duration,
};

use async_signal::{Signal, Signals};
use futures_util::StreamExt;
pub(crate) use mesh_async_std as mesh;
use mesh_async_std::{Async, prelude::*};

use crate::options::Options;

fn main() -> ExitCode {
    match runtime::block_on(run()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            let _ = writeln!(stderr(), "{message}");
            ExitCode::from(2)
        }
    }
}

/// Serves until a signal ends it. An error is one line for whoever started it.
async fn run() -> Result<(), String> {
    let options = Options::read()?;
    server::log();

    let (host, port) = (options.host.as_str(), options.port);
    let cannot_listen = |error| format!("error: cannot listen on {host}:{port}: {error}");
    let listener = TcpListener::bind((host, port)).map_err(cannot_listen)?;
    let address = listener.local_addr().map_err(cannot_listen)?;
    let listener = Async::new(listener).map_err(cannot_listen)?;

    let signals = Signals::new([Signal::Int, Signal::Term]);
    let mut signals = signals.map_err(|error| format!("error: no signals: {error}"))?;

    let server = server::start(&options, runtime::build).await?;
    runtime::spawn({
        let server = server.clone();
        async move { server.serve_listener(listener).await }
    });
    // Whoever started this may not read on, which is no reason to stop.
    let _ = writeln!(stdout(), "listening on ws://{address}");

    signals.next().await;
    if let Err(error) = server.shutdown().await {
        tracing::warn!(%error, "the backend was not told of the end");
    }
    Ok(())
}

pub(crate) async fn sleep(duration: Duration) {
    async_io::Timer::after(duration).await;
}
