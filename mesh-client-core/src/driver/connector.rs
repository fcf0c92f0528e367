//! How a socket is made: the one thing that an adapter does for a client.

use std::{fmt::Debug, io, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use http::HeaderMap;
use mesh_core::driver::Socket;

use crate::action::Failure;

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
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ConnectRequest {
    /// Where to: `ws://` or `wss://`, checked to be a URL with a host.
    pub url: String,
    /// Headers to send with the upgrade, `Authorization` included.
    pub headers: HeaderMap,
    /// Certificates (DER) to trust in place of the adapter's own; empty: the adapter's default.
    pub tls_roots: Arc<[Vec<u8>]>,
    /// The longest message to take from the server, in bytes; over it the connection is closed with 1009.
    pub message_bytes_max: usize,
    /// Fresh entropy, for the handshake's key and the masks.
    pub seed: [u8; 32],
}

/// Why there is no connection.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The client was closed before it was connected.
    #[error("the client was closed")]
    Closed,
    /// The server's answer to the upgrade broke the WebSocket handshake.
    #[error("the handshake failed: {0}")]
    Handshake(String),
    /// A header's name or value cannot be sent.
    #[error("the header {0:?} cannot be sent")]
    InvalidHeader(String),
    /// A certificate that was given as a root is none.
    #[error("a root certificate cannot be read: {0}")]
    InvalidRoot(String),
    /// No URL of a WebSocket.
    #[error("{0:?} is no URL of a WebSocket")]
    InvalidUrl(String),
    /// The network failed.
    #[error("the network failed: {message}")]
    Io {
        /// What kind of failure.
        kind: io::ErrorKind,
        /// The system's words.
        message: String,
    },
    /// The connection was made, and lost before it was up.
    #[error("the connection was lost before it was up")]
    Lost,
    /// The server refused the upgrade.
    #[error("the server refused with {status}: {body}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// The answer's body, cut at a length that the adapter names.
        body: String,
    },
    /// No thread for the client.
    #[error("no thread for the client: {0}")]
    Thread(String),
    /// It took longer than the connect timeout.
    #[error("no connection within {0:?}")]
    Timeout(Duration),
    /// TLS failed.
    #[error("TLS failed: {0}")]
    Tls(String),
    /// The token provider failed.
    #[error("no token: {0}")]
    Token(String),
    /// The call is wrong where it stands; the text says what to do instead.
    #[error("{0}")]
    Usage(&'static str),
}

impl ConnectError {
    /// What the machine has to know of it.
    pub(crate) fn failure(&self) -> Failure {
        match self {
            Self::Refused { status, body } => Failure::Refused {
                status: *status,
                body: body.clone(),
            },
            Self::InvalidHeader(_)
            | Self::InvalidRoot(_)
            | Self::InvalidUrl(_)
            | Self::Usage(_) => Failure::Permanent,
            Self::Closed
            | Self::Handshake(_)
            | Self::Io { .. }
            | Self::Lost
            | Self::Thread(_)
            | Self::Timeout(_)
            | Self::Tls(_)
            | Self::Token(_) => Failure::Transient,
        }
    }
}

impl From<io::Error> for ConnectError {
    fn from(error: io::Error) -> Self {
        Self::Io {
            kind: error.kind(),
            message: error.to_string(),
        }
    }
}
