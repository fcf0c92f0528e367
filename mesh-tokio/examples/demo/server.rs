//! The server of the demo, and what it needs before it can be made. The same on every runtime.

use std::{future::ready, io::stderr, panic, sync::Arc};

use mesh_redis::RedisBackend;
use tracing_subscriber::{EnvFilter, filter::LevelFilter};

use crate::{
    commands, exposed,
    mesh::{MeshServerBuilder, prelude::*},
    metrics::{Metrics, Watch},
    options::Options,
    pages,
};

/// Logs to stderr; `RUST_LOG` says how much.
pub(crate) fn log() {
    let verbosity = EnvFilter::builder()
        .with_default_directive(LevelFilter::INFO.into())
        .from_env_lossy();
    tracing_subscriber::fmt()
        .with_env_filter(verbosity)
        .with_writer(stderr)
        .init();
    // A client may make a handler panic as often as it likes: a line is enough, a backtrace would slow down everybody.
    panic::set_hook(Box::new(|panic| tracing::error!(%panic)));
}

/// Makes the server, by the adapter's `build`, and starts it on its backend. An error is one line for whoever started the demo.
pub(crate) async fn start(
    options: &Options,
    build: impl FnOnce(MeshServerBuilder) -> MeshServer,
) -> Result<MeshServer, String> {
    let redis = match &options.redis {
        Some(url) => Some(Arc::new(connect(url).await?)),
        None => None,
    };
    let metrics = Arc::new(Metrics::new(redis.clone()));
    let mut builder = MeshServer::builder();
    if let Some(redis) = redis {
        builder = builder.backend(redis);
    }
    let builder = builder
        .ping_interval(options.ping_interval())
        .latency_interval(options.latency_interval())
        .max_missed_pongs(options.max_missed_pongs)
        .assign_id(!options.no_assign_id)
        .limits(|limits| options.apply(limits))
        .http({
            let metrics = Arc::clone(&metrics);
            move |request| ready(pages::answer(&request, &metrics))
        });
    let server = build(builder);
    server.add_interceptor(Watch(metrics));
    commands::register(&server);
    exposed::expose(&server).map_err(|error| format!("error: {error}"))?;
    let started = server.start().await;
    started.map_err(|error| format!("error: {error}"))?;
    Ok(server)
}

/// Several addresses are the seeds of a Redis Cluster.
async fn connect(url: &str) -> Result<RedisBackend, String> {
    let mut nodes = url.split(',');
    let mut redis = mesh_redis::builder(nodes.next().unwrap_or_default());
    if url.contains(',') {
        redis = redis.cluster(nodes);
    }
    let connected = redis.connect().await;
    connected.map_err(|error| format!("error: {error}"))
}
