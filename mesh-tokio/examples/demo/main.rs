//! The demo server: everything that mesh does, for browsers, test suites and the curious.
//!
//! ```text
//! cargo run --release -p mesh-tokio --example demo -- --port 8080
//! ```

mod commands;
mod exposed;
mod metrics;
mod options;
mod pages;

use std::{
    future::ready,
    io::{Write, stderr, stdout},
    panic,
    process::ExitCode,
    sync::Arc,
};

use mesh_redis::RedisBackend;
use mesh_tokio::{PatternError, prelude::*};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};
use tracing_subscriber::{EnvFilter, filter::LevelFilter};

use crate::{
    metrics::{Metrics, Watch},
    options::Options,
};

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
    let verbosity = EnvFilter::builder()
        .with_default_directive(LevelFilter::INFO.into())
        .from_env_lossy();
    tracing_subscriber::fmt()
        .with_env_filter(verbosity)
        .with_writer(stderr)
        .init();
    // A client may make a handler panic as often as it likes: a line is enough, a backtrace would slow down everybody.
    panic::set_hook(Box::new(|panic| tracing::error!(%panic)));

    let (host, port) = (options.host.as_str(), options.port);
    let listener = TcpListener::bind((host, port)).await;
    let cannot_listen = |error| format!("error: cannot listen on {host}:{port}: {error}");
    let listener = listener.map_err(cannot_listen)?;
    let address = listener.local_addr().map_err(cannot_listen)?;

    let signals = |kind| signal(kind).map_err(|error| format!("error: no signals: {error}"));
    let mut interrupt = signals(SignalKind::interrupt())?;
    let mut terminate = signals(SignalKind::terminate())?;

    let redis = match &options.redis {
        Some(url) => {
            // Several addresses are the seeds of a Redis Cluster.
            let mut nodes = url.split(',');
            let mut redis = mesh_redis::builder(nodes.next().unwrap_or_default());
            if url.contains(',') {
                redis = redis.cluster(nodes);
            }
            let connected = redis.connect().await;
            Some(Arc::new(
                connected.map_err(|error| format!("error: {error}"))?,
            ))
        }
        None => None,
    };
    let server = build(&options, redis).map_err(|error| format!("error: {error}"))?;
    let started = server.start().await;
    started.map_err(|error| format!("error: {error}"))?;
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

fn build(options: &Options, redis: Option<Arc<RedisBackend>>) -> Result<MeshServer, PatternError> {
    let metrics = Arc::new(Metrics::new(redis.clone()));
    let mut builder = MeshServer::builder();
    if let Some(redis) = redis {
        builder = builder.backend(redis);
    }
    let server = builder
        .ping_interval(options.ping_interval())
        .latency_interval(options.latency_interval())
        .max_missed_pongs(options.max_missed_pongs)
        .assign_id(!options.no_assign_id)
        .limits(|limits| options.apply(limits))
        .http({
            let metrics = Arc::clone(&metrics);
            move |request| ready(pages::answer(&request, &metrics))
        })
        .build();
    server.add_interceptor(Watch(metrics));
    commands::register(&server);
    exposed::expose(&server)?;
    Ok(server)
}
