//! The backend itself.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_channel::{mpsc, oneshot};
use mesh_core::backend::{Backend, BackendError, BoxFuture, BoxStream, Notice, Op, Reply};
use tracing::Instrument as _;

use crate::{
    Builder, ConnectError, Stats,
    config::Config,
    driver::Driver,
    keys::Partition,
    link::{Link, LinkConfig},
    ops, random, runtime,
    shared::Shared,
};

/// One instance's part in a cluster that shares a Redis; made by [`connect`](crate::connect) or
/// [`builder`](crate::builder).
///
/// Dropping it without [`Op::CloseInstance`] is the death of the instance: others clean up behind it once its lease
/// has ended. The connections go at once, and the task behind them.
pub struct RedisBackend {
    shared: Arc<Shared>,
    /// Ends the driver when it drops.
    _alive: oneshot::Sender<()>,
}

impl RedisBackend {
    /// Settings to start from; the same as [`mesh_redis::builder`](crate::builder).
    pub fn builder(url: impl Into<String>) -> Builder {
        Builder::new(url)
    }

    pub(crate) async fn start(config: Config) -> Result<Self, ConnectError> {
        #[cfg(any(feature = "tls", feature = "smol-tls"))]
        if rustls::crypto::CryptoProvider::get_default().is_none() {
            // Lost only to another who set one at the same time.
            let _ = rustls::crypto::ring::default_provider().install_default();
        }
        let link = link_config(&config);
        let (events, incoming) = mpsc::unbounded();
        let (orders, ordered) = mpsc::unbounded();
        let (first, begun) = oneshot::channel();
        let (alive, dropped) = oneshot::channel();
        let shared = Shared::new(config, random::bits().to_be_bytes(), events, orders);
        let shared = Arc::new(shared);
        let link = Link::new(link, random::bits(), Instant::now());
        let driver = Driver::new(Arc::clone(&shared), link, first);
        runtime::spawn(driver.run(incoming, ordered, dropped));
        let backend = Self {
            shared,
            _alive: alive,
        };
        match begun.await {
            Ok(result) => result.map(|()| backend),
            Err(oneshot::Canceled) => Err(ConnectError::Config(
                "the runtime is shutting down".to_owned(),
            )),
        }
    }

    /// Counts for a metrics page.
    pub fn stats(&self) -> Stats {
        let shared = &self.shared;
        shared.counters.read(shared.inbox.dropped(), shared.is_up())
    }
}

pub(crate) fn link_config(config: &Config) -> LinkConfig {
    let response = config.response_timeout;
    LinkConfig {
        // The connections, and then the questions to the server.
        connect: config.connect_timeout + response,
        register: response,
        // There may be a hundred thousand topics.
        resubscribe: response.max(Duration::from_secs(30)),
        ping_interval: response / 4,
        ping_timeout: response * 5 / 8,
        heartbeat: config.lease / 3,
        lease: config.lease,
        backoff_min: Duration::from_millis(50),
        backoff_max: Duration::from_secs(2),
    }
}

impl Backend for RedisBackend {
    fn execute(&self, op: Op) -> BoxFuture<'_, Result<Reply, BackendError>> {
        let (name, partition) = ops::describe(&op);
        let span = tracing::debug_span!("redis", op = name, partition);
        Box::pin(runtime::in_order(ops::execute(&self.shared, op)).instrument(span))
    }

    fn notices(&self) -> BoxStream<'static, Vec<Notice>> {
        self.shared.inbox.notices()
    }

    fn name(&self) -> &'static str {
        "redis"
    }

    fn reserves(&self, channel: &str) -> bool {
        self.shared.keys.is_reserved(channel)
    }

    fn partition(&self, name: &str) -> Option<u64> {
        Some(Partition::of(name).number().into())
    }
}

impl fmt::Debug for RedisBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisBackend")
            .field("prefix", &self.shared.keys.prefix())
            .field("instance", &crate::lock(&self.shared.identity).instance)
            .field("up", &self.shared.is_up())
            .finish_non_exhaustive()
    }
}
