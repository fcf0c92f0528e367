//! What a backend is told before it connects.

use std::{fmt, time::Duration};

use redis::{ConnectionInfo, IntoConnectionInfo as _, ProtocolVersion};

use crate::{ConnectError, RedisBackend};

/// Settings of a [`RedisBackend`], made by [`builder`](crate::builder).
///
/// ```no_run
/// # async fn example() -> Result<(), mesh_redis::ConnectError> {
/// let backend = mesh_redis::builder("redis://localhost:6379/0")
///     .prefix("my-app:")
///     .wait(true)
///     .connect()
///     .await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Builder {
    urls: Vec<String>,
    cluster: bool,
    prefix: String,
    database: Option<i64>,
    username: Option<String>,
    password: Option<String>,
    connect_timeout: Duration,
    response_timeout: Duration,
    wait: bool,
    metadata_bytes_max: usize,
    sharded: bool,
    lease: Duration,
}

impl Builder {
    pub(crate) fn new(url: impl Into<String>) -> Self {
        Self {
            urls: vec![url.into()],
            cluster: false,
            prefix: "mesh:".to_owned(),
            database: None,
            username: None,
            password: None,
            connect_timeout: Duration::from_secs(3),
            response_timeout: Duration::from_secs(4),
            wait: false,
            metadata_bytes_max: 64 << 10,
            sharded: false,
            lease: Duration::from_secs(15),
        }
    }

    /// What all keys and topics begin with, but for channels and their histories; `mesh:` by default. Instances with
    /// one prefix on one Redis are one cluster.
    ///
    /// It is not empty and holds no braces, which would move the keys' hash tags. It reserves every channel whose name
    /// begins with it: with `chat:` no server could use the channel `chat:1`.
    #[must_use]
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// The database; that of the URL by default, else 0. Redis' pub/sub knows no databases: what shares a Redis needs
    /// a [`prefix`](Self::prefix) of its own all the same.
    #[must_use]
    pub fn database(mut self, database: i64) -> Self {
        self.database = Some(database);
        self
    }

    /// The user; that of the URL by default.
    #[must_use]
    pub fn username(mut self, username: impl Into<String>) -> Self {
        self.username = Some(username.into());
        self
    }

    /// The password; that of the URL by default.
    #[must_use]
    pub fn password(mut self, password: impl Into<String>) -> Self {
        self.password = Some(password.into());
        self
    }

    /// How long one attempt to connect may take; 3 s by default.
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// Within what time a Redis that does not answer is known; 4 s by default, at least 100 ms. It is asked each
    /// quarter of this time, and may take five eighths of it to answer. Operations under way fail then, all at once.
    #[must_use]
    pub fn response_timeout(mut self, timeout: Duration) -> Self {
        self.response_timeout = timeout;
        self
    }

    /// Talks to a Redis Cluster, found by the URL and any of these seeds. Its database is always 0.
    #[cfg(feature = "cluster")]
    #[must_use]
    pub fn cluster(mut self, seeds: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.cluster = true;
        self.urls.extend(seeds.into_iter().map(Into::into));
        self
    }

    /// Keeps trying where Redis cannot be reached at the start, instead of failing; off by default. A wrong password,
    /// version or format fails at once all the same.
    #[must_use]
    pub fn wait(mut self, wait: bool) -> Self {
        self.wait = wait;
        self
    }

    /// The longest document that a change key by key may make, in bytes; 64 KiB by default, as that of the servers.
    #[must_use]
    pub fn metadata_bytes_max(mut self, bytes: usize) -> Self {
        self.metadata_bytes_max = bytes;
        self
    }

    /// Rooms' events and what instances tell each other travel by sharded pub/sub, `SPUBLISH` and `SSUBSCRIBE`; off by
    /// default.
    ///
    /// On a Redis Cluster classic pub/sub takes every message to every node; a sharded one stays with the node that
    /// has its slot, so that more nodes carry more messages. It costs each instance one more connection to each node,
    /// and a slot that moves is a short outage of the instances that listen there: `Lost`, then `Restored`. On a
    /// single Redis it works and gains nothing.
    ///
    /// Channels stay classic, as any program may publish to them and hear them; so does what goes to all instances.
    ///
    /// All instances have the same setting, or some would not hear the others: while instances run with the other,
    /// [`connect`](Self::connect) fails with [`ConnectError::Sharding`]. To change it, stop them all first.
    #[must_use]
    pub fn sharded(mut self, sharded: bool) -> Self {
        self.sharded = sharded;
        self
    }

    /// How long an instance that is silent counts as alive, 15 s; for tests, which have no time.
    #[doc(hidden)]
    #[must_use]
    pub fn lease(mut self, lease: Duration) -> Self {
        self.lease = lease;
        self
    }

    /// Connects.
    ///
    /// Call it inside the runtime: it starts the task that looks after the connections, which ends when the backend
    /// is dropped.
    ///
    /// # Errors
    /// [`ConnectError`]; each says what to do.
    pub async fn connect(self) -> Result<RedisBackend, ConnectError> {
        RedisBackend::start(self.check()?).await
    }

    pub(crate) fn check(self) -> Result<Config, ConnectError> {
        let config = |what: &str| Err(ConnectError::Config(what.to_owned()));
        if self.prefix.is_empty() || self.prefix.contains(['{', '}']) {
            return config("the prefix is not empty and holds no braces");
        }
        if self.response_timeout < Duration::from_millis(100) {
            return config("the response timeout is at least 100 ms");
        }
        if self.lease < Duration::from_millis(100) {
            return config("a lease is at least 100 ms long");
        }
        let mut nodes = Vec::new();
        for url in &self.urls {
            nodes.push(self.node(url)?);
        }
        if self.cluster && nodes.iter().any(|node| node.redis_settings().db() != 0) {
            return config("a cluster has the database 0 only");
        }
        Ok(Config {
            nodes,
            cluster: self.cluster,
            prefix: self.prefix,
            connect_timeout: self.connect_timeout,
            response_timeout: self.response_timeout,
            wait: self.wait,
            metadata_bytes_max: self.metadata_bytes_max,
            sharded: self.sharded,
            lease: self.lease,
        })
    }

    fn node(&self, url: &str) -> Result<ConnectionInfo, ConnectError> {
        let info = url.into_connection_info().map_err(|error| {
            ConnectError::Config(format!(
                "not the address of a Redis: {error}; write redis://user:password@host:port/database"
            ))
        })?;
        if !info.addr().is_supported() {
            return Err(ConnectError::Config(
                "this kind of address is not supported; `rediss://` needs the feature `tls` or `smol-tls`"
                    .to_owned(),
            ));
        }
        let mut settings = info
            .redis_settings()
            .clone()
            .set_protocol(ProtocolVersion::RESP3)
            .set_lib_name("mesh-redis", env!("CARGO_PKG_VERSION"));
        if let Some(database) = self.database {
            settings = settings.set_db(database);
        }
        if let Some(username) = &self.username {
            settings = settings.set_username(username);
        }
        if let Some(password) = &self.password {
            settings = settings.set_password(password);
        }
        // Commands are small and wanted at once.
        let tcp = info.tcp_settings().clone().set_nodelay(true);
        Ok(info.set_redis_settings(settings).set_tcp_settings(tcp))
    }
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the URLs: they may hold a password.
        f.debug_struct("Builder")
            .field("prefix", &self.prefix)
            .field("cluster", &self.cluster)
            .field("sharded", &self.sharded)
            .finish_non_exhaustive()
    }
}

/// Checked settings.
pub(crate) struct Config {
    /// One node, or the seeds of a cluster.
    pub(crate) nodes: Vec<ConnectionInfo>,
    pub(crate) cluster: bool,
    pub(crate) prefix: String,
    pub(crate) connect_timeout: Duration,
    pub(crate) response_timeout: Duration,
    pub(crate) wait: bool,
    pub(crate) metadata_bytes_max: usize,
    pub(crate) sharded: bool,
    pub(crate) lease: Duration,
}

impl Config {
    /// Where the seeds are, without credentials.
    pub(crate) fn address(&self) -> String {
        let addresses: Vec<_> = self
            .nodes
            .iter()
            .map(|node| node.addr().to_string())
            .collect();
        addresses.join(", ")
    }
}
