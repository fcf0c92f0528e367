//! The demo server: everything that mesh does, for browsers, test suites and the curious.
//!
//! ```text
//! cargo run --release -p mesh-tokio --example demo -- --port 8080
//! ```
//!
//! What is tokio's is here; the other files are the same on every runtime.

mod commands;
mod exposed;
mod metrics;
mod options;
mod pages;
mod server;

use std::{
    io::{Write, stderr, stdout},
    process::ExitCode,
};

use mesh_tokio::prelude::*;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};
pub(crate) use {mesh_tokio as mesh, tokio::time::sleep};

use crate::options::Options;

#[tokio::main]
async fn main() -> ExitCode {
    // On a worker of the runtime: what runs right here has a thread of its own, and every connection would be handed across.
    match tokio::spawn(run()).await {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(message)) => {
            let _ = writeln!(stderr(), "{message}");
            ExitCode::from(2)
        }
        Err(_panicked) => ExitCode::FAILURE, // The log has told why.
    }
}

/// Serves until a signal ends it. An error is one line for whoever started it.
async fn run() -> Result<(), String> {
    let options = Options::read()?;
    server::log();

    let (host, port) = (options.host.as_str(), options.port);
    let listener = TcpListener::bind((host, port)).await;
    let cannot_listen = |error| format!("error: cannot listen on {host}:{port}: {error}");
    let listener = listener.map_err(cannot_listen)?;
    let address = listener.local_addr().map_err(cannot_listen)?;

    let signals = |kind| signal(kind).map_err(|error| format!("error: no signals: {error}"));
    let mut interrupt = signals(SignalKind::interrupt())?;
    let mut terminate = signals(SignalKind::terminate())?;

    let server = server::start(&options, |builder| builder.build()).await?;
    let serving = tokio::spawn({
        let server = server.clone();
        async move { server.serve_listener(listener).await }
    });
    // Whoever started this may not read on, which is no reason to stop.
    let _ = writeln!(stdout(), "listening on ws://{address}");

    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    if let Err(error) = server.shutdown().await {
        tracing::warn!(%error, "the backend was not told of the end");
    }
    drop(serving);
    Ok(())
}
