//! How a client gets its socket: DNS, TCP, TLS and the opening handshake.

use std::{error::Error as _, io};

use futures_util::future::BoxFuture;
use mesh_client_core::driver::{ConnectError, ConnectRequest, Connector, Target};
use mesh_core::driver::Socket;
use tokio::io::{AsyncRead, AsyncWrite};

#[cfg(feature = "tls")]
use crate::tls::ClientTls;
use crate::{
    connect,
    request::{self, Outcome},
    stream::Io,
};

/// Connects clients over tokio's TCP, and by rustls where the URL says `wss` and the feature `tls` is on.
///
/// A name with several addresses is tried at all of them, each a little after the one before (RFC 8305). Dropping an attempt ends it.
#[derive(Debug, Default)]
pub struct TokioConnector {
    /// Made at the first use and kept, for with it goes the memory of TLS sessions that can be resumed.
    #[cfg(feature = "tls")]
    tls: std::sync::OnceLock<ClientTls>,
}

impl TokioConnector {
    /// A connector that trusts the roots that the client's builder was given, or those that Mozilla trusts.
    pub fn new() -> Self {
        Self::default()
    }

    /// A connector with a TLS configuration of its own; the roots of the client's builder are not looked at.
    #[cfg(feature = "tls")]
    pub fn with_tls(tls: ClientTls) -> Self {
        Self { tls: tls.into() }
    }

    #[cfg(feature = "tls")]
    fn tls(&self, roots: &[Vec<u8>]) -> Result<&ClientTls, ConnectError> {
        if let Some(tls) = self.tls.get() {
            return Ok(tls);
        }
        let tls = if roots.is_empty() {
            ClientTls::webpki_roots()
        } else {
            ClientTls::from_der_roots(roots)
        };
        let tls = tls.map_err(|error| ConnectError::InvalidRoot(error.to_string()))?;
        Ok(self.tls.get_or_init(|| tls))
    }

    async fn attempt(&self, request: ConnectRequest) -> Result<Box<dyn Socket>, ConnectError> {
        let target = Target::of(&request.url)?;
        if target.is_secure {
            #[cfg(feature = "tls")]
            return self.attempt_tls(&target, &request).await;
            // Not `ConnectError::Tls`, which would be tried again and again.
            #[cfg(not(feature = "tls"))]
            return Err(ConnectError::Unsupported(
                "wss:// needs the feature `tls` of mesh-tokio",
            ));
        }
        let stream = connect::connect(&target.host, target.port).await?;
        open(stream, &target, &request).await
    }

    #[cfg(feature = "tls")]
    async fn attempt_tls(
        &self,
        target: &Target,
        request: &ConnectRequest,
    ) -> Result<Box<dyn Socket>, ConnectError> {
        let tls = self.tls(&request.tls_roots)?;
        let stream = connect::connect(&target.host, target.port).await?;
        let stream = tls.connect(&target.host, stream).await;
        let stream = stream.map_err(|error| match error.get_ref() {
            Some(cause) if cause.is::<tokio_rustls::rustls::Error>() => {
                ConnectError::Tls(cause.to_string())
            }
            _ => error.into(),
        })?;
        open(stream, target, request).await
    }
}

impl Connector for TokioConnector {
    fn connect(
        &self,
        request: ConnectRequest,
    ) -> BoxFuture<'_, Result<Box<dyn Socket>, ConnectError>> {
        Box::pin(self.attempt(request))
    }
}

/// The opening handshake.
async fn open<S>(
    stream: S,
    target: &Target,
    request: &ConnectRequest,
) -> Result<Box<dyn Socket>, ConnectError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (head, opening) = request.open(target)?;
    match request::upgrade(stream, head)
        .await
        .map_err(upgrade_error)?
    {
        Outcome::Upgraded(upgraded) => {
            opening.finish(&upgraded.value, Io(upgraded.io), &upgraded.leftover)
        }
        Outcome::Refused(status, body) => Err(ConnectError::Refused {
            status: status.as_u16(),
            body: String::from_utf8_lossy(&body).into_owned(),
        }),
    }
}

/// Tells an answer that is no HTTP from a network that failed.
fn upgrade_error(error: io::Error) -> ConnectError {
    let cause = error
        .get_ref()
        .and_then(|cause| cause.downcast_ref::<hyper::Error>());
    let Some(cause) = cause else {
        return error.into();
    };
    match cause
        .source()
        .and_then(|source| source.downcast_ref::<io::Error>())
    {
        Some(io) => ConnectError::Io {
            kind: io.kind(),
            message: io.to_string(),
        },
        _ => ConnectError::Handshake(cause.to_string()),
    }
}
