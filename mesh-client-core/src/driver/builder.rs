//! How a client is set up.

use std::{fmt, future::Future, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use http::{HeaderMap, HeaderName, HeaderValue};
use mesh_core::{driver::Runtime, protocol::Dialect};

use super::{
    client::MeshClient,
    connector::Connector,
    shared::{Handle, Shared},
    target::{Target, is_vain},
    task::Driver,
};
use crate::{Client, ClientConfig, ConnectError, Reconnect, failure::public_part};

/// The longest message from the server by default: its largest reply, 16 MiB, and the frame around it.
const MESSAGE_BYTES_MAX: usize = (16 << 20) + (64 << 10);

type TokenProvider = Box<dyn Fn() -> BoxFuture<'static, Result<String, String>> + Send + Sync>;

/// What each attempt to connect needs.
pub(crate) struct Options {
    pub(crate) config: ClientConfig,
    pub(crate) url: String,
    pub(crate) headers: HeaderMap,
    pub(crate) token_provider: Option<TokenProvider>,
    pub(crate) tls_roots: Arc<[Vec<u8>]>,
    pub(crate) message_bytes_max: usize,
}

/// Sets up a [`MeshClient`]. Adapters add the methods that name no runtime.
pub struct ClientBuilder {
    options: Options,
    tls_roots: Vec<Vec<u8>>,
    invalid_header: Option<String>,
    dedicated_thread: bool,
}

impl ClientBuilder {
    pub(crate) fn new(url: &str) -> Self {
        Self {
            options: Options {
                config: ClientConfig::default(),
                url: url.to_owned(),
                headers: HeaderMap::new(),
                token_provider: None,
                tls_roots: Arc::from([]),
                message_bytes_max: MESSAGE_BYTES_MAX,
            },
            tls_roots: Vec::new(),
            invalid_header: None,
            dedicated_thread: false,
        }
    }

    /// Sends a header with each upgrade. One that cannot be sent fails at the end, as [`ConnectError::InvalidHeader`].
    ///
    /// So does one that asks for a subprotocol or an extension (`Sec-WebSocket-Protocol`, `Sec-WebSocket-Extensions`), for the
    /// client has none. An `Authorization` is sent in place of the URL's user and password. What else belongs to the
    /// handshake, such as `Upgrade`, is replaced by the handshake's own.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        match (HeaderName::try_from(name), HeaderValue::try_from(value)) {
            (Ok(name), Ok(value)) if !is_vain(&name) => {
                self.options.headers.append(name, value);
            }
            _ => self.invalid_header = Some(name.to_owned()),
        }
        self
    }

    /// Asks for a token at every attempt, so that one that ran out is renewed, and sends it as `Authorization: Bearer …`, in
    /// place of any other.
    ///
    /// An error is a failed attempt and retried like any other. The connect timeout includes the asking.
    pub fn token_provider<F, Fut, E>(mut self, provider: F) -> Self
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<String, E>> + Send + 'static,
        E: fmt::Display,
    {
        self.options.token_provider = Some(Box::new(move || {
            let token = provider();
            Box::pin(async move { token.await.map_err(|error| error.to_string()) })
        }));
        self
    }

    /// Trusts a certificate (DER) as a root for `wss://`, in place of the adapter's own roots. May be called several times. What is
    /// no certificate fails at the end, as [`ConnectError::InvalidRoot`].
    pub fn tls_root(mut self, der: impl Into<Vec<u8>>) -> Self {
        self.tls_roots.push(der.into());
        self
    }

    /// Trusts several certificates (DER) as roots for `wss://`, as [`tls_root`](Self::tls_root) does.
    pub fn tls_roots<D: Into<Vec<u8>>>(mut self, roots: impl IntoIterator<Item = D>) -> Self {
        self.tls_roots.extend(roots.into_iter().map(Into::into));
        self
    }

    /// The time that one attempt to connect may take. Default 10 s.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.options.config.connect_timeout = timeout;
        self
    }

    /// The longest message to take from the server, in bytes. Default 16 MiB and 64 KiB: the server's largest reply, and its frame.
    pub fn message_bytes_max(mut self, max: usize) -> Self {
        self.options.message_bytes_max = max;
        self
    }

    /// The longest frame to send, in bytes. Default 1 MiB, the server's limit, over which it closes the connection.
    pub fn command_bytes_max(mut self, max: usize) -> Self {
        self.options.config.command_bytes_max = max;
        self
    }

    /// Whether a failure of the very first attempt is final. Default no: it is retried like any other.
    pub fn fail_fast(mut self, fail_fast: bool) -> Self {
        self.options.config.fail_fast = fail_fast;
        self
    }

    /// The time from a command's call to its outcome. Default 30 s.
    pub fn command_timeout(mut self, timeout: Duration) -> Self {
        self.options.config.command_timeout = timeout;
        self
    }

    /// The time without a server's ping that counts as one missed ping. Default 30 s.
    pub fn ping_timeout(mut self, timeout: Duration) -> Self {
        self.options.config.ping_timeout = timeout;
        self
    }

    /// Missed pings that are forgiven before the socket is dropped. Default 1.
    pub fn max_missed_pings(mut self, max: u32) -> Self {
        self.options.config.max_missed_pings = max;
        self
    }

    /// Whether a lost connection is made again. Default yes.
    pub fn should_reconnect(mut self, should_reconnect: bool) -> Self {
        self.options.config.should_reconnect = should_reconnect;
        self
    }

    /// Waits the same time before each attempt, in place of the exponential backoff. The original library waits 2 s.
    pub fn reconnect_interval(mut self, interval: Duration) -> Self {
        self.options.config.reconnect = Reconnect::Fixed(interval);
        self
    }

    /// The exponential backoff with full jitter: the longest first wait, and the longest of all. Default 500 ms and 30 s.
    pub fn backoff(mut self, base: Duration, cap: Duration) -> Self {
        self.options.config.reconnect = Reconnect::Exponential { base, cap };
        self
    }

    /// Attempts in a row to connect again before the client gives up. Default without end.
    pub fn max_reconnect_attempts(mut self, max: u32) -> Self {
        self.options.config.max_reconnect_attempts = Some(max);
        self
    }

    /// What may wait without a connection: commands, their bytes, and for how long. Default 1 000, 4 MiB, 30 s.
    pub fn offline_queue(mut self, commands: usize, bytes: usize, expiry: Duration) -> Self {
        let config = &mut self.options.config;
        (
            config.queue_commands_max,
            config.queue_bytes_max,
            config.queue_expiry,
        ) = (commands, bytes, expiry);
        self
    }

    /// The prefix of built-in names. Default `mesh/`.
    pub fn dialect(mut self, dialect: Dialect) -> Self {
        self.options.config.dialect = dialect;
        self
    }

    /// Changes any of the client's options and limits, such as those that have no method of their own here.
    /// [`ClientConfig`] tells each with its default, and what happens over it.
    ///
    /// No value breaks the client: a wait of zero becomes 1 ms, one without end a hundred years, and what has bounds is
    /// brought within them.
    ///
    /// ```
    /// use mesh_client_core::driver::MeshClient;
    ///
    /// let builder = MeshClient::builder("ws://localhost:8080").config(|config| {
    ///     config.in_flight_max = 200;
    ///     config.subscriptions_max = 20_000;
    /// });
    /// ```
    pub fn config(mut self, change: impl FnOnce(&mut ClientConfig)) -> Self {
        change(&mut self.options.config);
        self
    }

    /// Runs the client on a thread of its own, so that it goes on while every thread of the runtime is blocked. Callbacks then run
    /// on that thread.
    pub fn dedicated_thread(mut self) -> Self {
        self.dedicated_thread = true;
        self
    }

    /// Makes the client without connecting it: what is asked for waits in the queue until [`MeshClient::open`].
    ///
    /// # Errors
    /// A broken URL or header, or no thread for [`dedicated_thread`](Self::dedicated_thread).
    pub fn build_on(
        mut self,
        runtime: Arc<dyn Runtime>,
        connector: Arc<dyn Connector>,
    ) -> Result<MeshClient, ConnectError> {
        Target::of(&self.options.url)?;
        if let Some(name) = self.invalid_header {
            return Err(ConnectError::InvalidHeader(name));
        }
        let runtime = if self.dedicated_thread {
            runtime
                .dedicated()
                .map_err(|error| ConnectError::Thread(error.to_string()))?
        } else {
            runtime
        };
        self.options.tls_roots = self.tls_roots.into();
        let client = Client::new(self.options.config.clone(), runtime.seed());
        let shared = Arc::new(Shared::new(Arc::clone(&runtime), client));
        let driver = Driver::new(Arc::clone(&shared), connector, Arc::new(self.options));
        runtime.spawn(Box::pin(driver));
        Ok(MeshClient::new(Handle(shared)))
    }

    /// Makes the client and connects it. A failed attempt is retried like any other, unless [`fail_fast`](Self::fail_fast).
    ///
    /// # Errors
    /// As [`build_on`](Self::build_on) and [`MeshClient::open`].
    pub async fn connect_on(
        self,
        runtime: Arc<dyn Runtime>,
        connector: Arc<dyn Connector>,
    ) -> Result<MeshClient, ConnectError> {
        let client = self.build_on(runtime, connector)?;
        client.open().await?;
        Ok(client)
    }
}

impl fmt::Debug for ClientBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Headers may hold secrets, and so may parts of the URL.
        f.debug_struct("ClientBuilder")
            .field("url", &public_part(&self.options.url))
            .field("config", &self.options.config)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use mesh_core::protocol::Limits;

    use super::MESSAGE_BYTES_MAX;

    #[test]
    fn there_is_room_for_the_largest_reply_of_a_server_and_more() {
        let limits = Limits::default();
        // The name may be repeated with an escape for each of its bytes.
        let around = 6 * limits.name_bytes_max + 100;
        assert!(MESSAGE_BYTES_MAX >= limits.reply_bytes_max + around);
    }
}
