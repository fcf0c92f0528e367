//! How a socket is made: the one thing that an adapter does for a client.

use std::{
    fmt::{self, Debug},
    sync::Arc,
};

use futures_util::future::BoxFuture;
use http::HeaderMap;
use mesh_core::driver::{Runtime, Socket};

use crate::{ConnectError, failure::public_part};

/// Makes sockets. Each adapter implements it once.
pub trait Connector: Debug + Send + Sync + 'static {
    /// Resolves the host, connects, does TLS for `wss`, and the WebSocket handshake.
    ///
    /// The driver drops the future at the client's connect timeout.
    ///
    /// # Errors
    /// As [`ConnectError`] tells. An answer other than 101 is [`ConnectError::Refused`], with its body.
    fn connect(
        &self,
        request: ConnectRequest,
    ) -> BoxFuture<'_, Result<Box<dyn Socket>, ConnectError>>;
}

/// What an attempt to connect needs to know.
///
/// Its `Debug` leaves out what may be secret: the seed, the values of the headers, and of the URL user, password and query.
#[derive(Clone)]
#[non_exhaustive]
pub struct ConnectRequest {
    /// Where to: `ws://` or `wss://`, checked to be a URL with a host. [`open`](Self::open) sends its user and password.
    pub url: String,
    /// Headers to send with the upgrade, `Authorization` included.
    pub headers: HeaderMap,
    /// Certificates (DER) to trust in place of the adapter's own; empty: the adapter's default.
    pub tls_roots: Arc<[Vec<u8>]>,
    /// The longest message to take from the server, in bytes; over it the connection is closed with 1009.
    pub message_bytes_max: usize,
    /// Fresh entropy, for the handshake's key and the masks.
    pub seed: [u8; 32],
    /// What the client runs on.
    pub runtime: Arc<dyn Runtime>,
}

impl Debug for ConnectRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectRequest")
            .field("url", &public_part(&self.url))
            .field("headers", &self.headers.keys().collect::<Vec<_>>())
            .field("tls_roots", &self.tls_roots.len())
            .field("message_bytes_max", &self.message_bytes_max)
            .finish_non_exhaustive()
    }
}
