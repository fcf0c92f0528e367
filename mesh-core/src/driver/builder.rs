//! What a server is told before it exists.

use std::{fmt, future::Future, sync::Arc, time::Duration};

use bytes::Bytes;
use http::Response;

use super::{
    Accept, Connection, MeshServer, Refusal, Runtime, UpgradeRequest,
    authenticate::Front,
    hooks::{Fault, Hooks},
    runtime::Marked,
    server::{Inner, Parts},
};
use crate::{
    backend::{Backend, MemoryCluster},
    connection::Config,
    protocol::{Dialect, Limits},
};

/// Builds a [`MeshServer`]. Every option has a default that is safe.
pub struct MeshServerBuilder {
    backend: Option<Arc<dyn Backend>>,
    config: Config,
    hooks: Hooks,
    front: Front,
    drain_time: Duration,
    record_check_interval: Duration,
    assign_id: bool,
    client_metadata: bool,
}

impl Default for MeshServerBuilder {
    fn default() -> Self {
        Self {
            backend: None,
            config: Config::default(),
            hooks: Hooks::default(),
            front: Front::default(),
            drain_time: Duration::from_millis(1_500),
            record_check_interval: Duration::from_secs(10),
            assign_id: true,
            client_metadata: false,
        }
    }
}

impl MeshServerBuilder {
    /// Where this instance shares state with others. Default: the embedded memory backend, alone.
    #[must_use]
    pub fn backend(mut self, backend: impl Backend) -> Self {
        self.backend = Some(Arc::new(backend));
        self
    }

    /// The prefix of built-in commands and events. Default `mesh/`.
    #[must_use]
    pub fn dialect(mut self, dialect: Dialect) -> Self {
        self.config.dialect = dialect;
        self
    }

    /// How often the server pings. Default 30 s.
    #[must_use]
    pub fn ping_interval(mut self, interval: Duration) -> Self {
        self.config.ping_interval = bounded(interval);
        self
    }

    /// How often the server measures the round trip. Default 5 s.
    #[must_use]
    pub fn latency_interval(mut self, interval: Duration) -> Self {
        self.config.latency_interval = bounded(interval);
        self
    }

    /// Ping intervals without a pong that are forgiven. Default 1.
    #[must_use]
    pub fn max_missed_pongs(mut self, max: u32) -> Self {
        self.config.missed_pongs_max = max;
        self
    }

    /// Changes the limits (`protocol.md`, section 7).
    ///
    /// ```
    /// use mesh_core::driver::MeshServer;
    ///
    /// let builder = MeshServer::builder().limits(|limits| limits.connections_max = Some(10_000));
    /// ```
    #[must_use]
    pub fn limits(mut self, change: impl FnOnce(&mut Limits)) -> Self {
        change(&mut self.config.limits);
        let limits = &mut self.config.limits;
        limits.close_time_max = limits.close_time_max.min(YEAR);
        limits.handshakes_max = limits.handshakes_max.max(1);
        limits.handshake_time_max = limits.handshake_time_max.min(YEAR);
        self
    }

    /// Commands of one connection run one by one, in the order they came. Default: side by side.
    #[must_use]
    pub fn sequential(mut self) -> Self {
        self.config.sequential = true;
        self
    }

    /// Whether a connection's first frame tells its id. Default true.
    #[must_use]
    pub fn assign_id(mut self, assign_id: bool) -> Self {
        self.assign_id = assign_id;
        self
    }

    /// Whether clients may change their own metadata (`mesh/set-my-connection-metadata`). Default false. What `authenticate` set stays
    /// the server's in any case.
    #[must_use]
    pub fn client_metadata(mut self, allowed: bool) -> Self {
        self.client_metadata = allowed;
        self
    }

    /// How long commands in flight may run on at shutdown. Default 1.5 s.
    #[must_use]
    pub fn drain_time(mut self, time: Duration) -> Self {
        self.drain_time = time.min(YEAR);
        self
    }

    /// How often records with subscribers are held against the store, so that even the last update before a silence is never missed for
    /// good. Default 10 s, which is the longest allowed.
    #[must_use]
    pub fn record_check_interval(mut self, interval: Duration) -> Self {
        self.record_check_interval =
            interval.clamp(Duration::from_millis(100), Duration::from_secs(10));
        self
    }

    /// The origins whose pages may connect, such as `https://example.org`; a browser on any other gets 403. Default: all. Clients
    /// that are no browser send no `Origin` and are not concerned.
    #[must_use]
    pub fn allowed_origins<O: Into<String>>(
        mut self,
        origins: impl IntoIterator<Item = O>,
    ) -> Self {
        self.front.set_origins(origins.into_iter().map(Into::into));
        self
    }

    /// Decides at the upgrade who is let in, and with which metadata. One that panics refuses.
    ///
    /// ```
    /// use mesh_core::driver::{Accept, MeshServer, Refusal, UpgradeRequest};
    ///
    /// let builder = MeshServer::builder().authenticate(async |request: UpgradeRequest| {
    ///     match request.bearer_token() {
    ///         Some(token) => Ok(Accept::with_metadata(&serde_json::json!({ "token": token }))?),
    ///         None => Err(Refusal::unauthorized("no token")),
    ///     }
    /// });
    /// ```
    #[must_use]
    pub fn authenticate<F, Fut>(mut self, authenticate: F) -> Self
    where
        F: Fn(UpgradeRequest) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Accept, Refusal>> + Send + 'static,
    {
        self.front.set_authenticate(authenticate);
        self
    }

    /// Answers plain HTTP requests on the same port; `None` is 404.
    ///
    /// ```
    /// use bytes::Bytes;
    /// use http::Response;
    /// use mesh_core::driver::{MeshServer, UpgradeRequest};
    ///
    /// let builder = MeshServer::builder().http(async |request: UpgradeRequest| {
    ///     (request.head.uri.path() == "/health").then(|| {
    ///         let health = request.server.health();
    ///         Response::new(Bytes::from(format!("{} connections", health.connections)))
    ///     })
    /// });
    /// ```
    #[must_use]
    pub fn http<F, Fut>(mut self, pages: F) -> Self
    where
        F: Fn(UpgradeRequest) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Option<Response<Bytes>>> + Send + 'static,
    {
        self.front.set_pages(pages);
        self
    }

    /// Runs for each connection that was let in, before its first command is read.
    #[must_use]
    pub fn on_connection<F, Fut>(mut self, hook: F) -> Self
    where
        F: Fn(Connection) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        self.hooks.on_connection(hook);
        self
    }

    /// Runs for each connection that is over, after it left every room and channel.
    #[must_use]
    pub fn on_disconnection<F, Fut>(mut self, hook: F) -> Self
    where
        F: Fn(Connection) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        self.hooks.on_disconnection(hook);
        self
    }

    /// Runs once in the cluster for each membership of a room that is over, whatever ended it: on the connection's own instance, or, if that
    /// died, on the one that cleaned up behind it. Hooks of different memberships run side by side.
    ///
    /// An instance that was wrongly held for dead puts its memberships back when it can; that is a membership anew.
    ///
    /// ```
    /// use mesh_core::driver::{MeshServer, RoomLeave};
    ///
    /// let builder = MeshServer::builder().on_room_leave(async |leave: RoomLeave| {
    ///     println!("{} left {} ({:?})", leave.connection, leave.room, leave.reason);
    /// });
    /// ```
    #[must_use]
    pub fn on_room_leave<F, Fut>(mut self, hook: F) -> Self
    where
        F: Fn(super::RoomLeave) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        self.hooks.on_room_leave(hook);
        self
    }

    /// Is told what no reply tells the application of: panics, and sockets that failed.
    #[must_use]
    pub fn on_error(mut self, hook: impl Fn(&Fault) + Send + Sync + 'static) -> Self {
        self.hooks.on_error(hook);
        self
    }

    /// Builds the server on a runtime. Adapters have a `build` that knows theirs.
    pub fn build_on(mut self, runtime: Arc<dyn Runtime>) -> MeshServer {
        let limits = &mut self.config.limits;
        // Another instance that changes a document tells it to the connection's own in one message.
        let told_max = limits
            .backend_message_bytes_max
            .saturating_sub(MESSAGE_AROUND_BYTES_MAX);
        limits.metadata_bytes_max = limits.metadata_bytes_max.min(told_max);
        // A value is told in a reply, too.
        limits.record_bytes_max = limits.record_bytes_max.min(
            limits
                .reply_bytes_max
                .saturating_sub(MESSAGE_AROUND_BYTES_MAX),
        );
        let metadata_bytes_max = limits.metadata_bytes_max;
        let backend = self.backend.unwrap_or_else(|| {
            let alone = MemoryCluster::with_metadata_bytes_max(metadata_bytes_max);
            Arc::new(alone.backend())
        });
        MeshServer::from_inner(Arc::new(Inner::new(Parts {
            runtime: Arc::new(Marked(runtime)),
            backend,
            config: self.config,
            hooks: self.hooks,
            front: self.front,
            drain_time: self.drain_time,
            record_check_interval: self.record_check_interval,
            assign_id: self.assign_id,
            client_metadata: self.client_metadata,
        })))
    }
}

/// More than a message between instances has around a document.
const MESSAGE_AROUND_BYTES_MAX: usize = 1_024;

/// As good as never. Adding the longest duration there is to an instant would overflow.
const YEAR: Duration = Duration::from_secs(31_536_000);

/// An interval of nothing would be a connection that is always due.
fn bounded(interval: Duration) -> Duration {
    interval.clamp(Duration::from_millis(10), YEAR)
}

impl fmt::Debug for MeshServerBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MeshServerBuilder")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}
