//! How a client gets its socket: DNS, TCP and TLS.

use futures_util::future::BoxFuture;
#[cfg(feature = "tls")]
use mesh_client_core::driver::tls::{ClientTls, Trust};
use mesh_client_core::driver::{ConnectError, ConnectRequest, Connector, Target};
use mesh_core::driver::Socket;
use tokio::net::{TcpStream, lookup_host};

use crate::stream::Io;

/// Connects clients over tokio's TCP, and by rustls where the URL says `wss` and the feature `tls` is on.
///
/// A name with several addresses is tried at all of them, each a little after the one before (RFC 8305). Dropping an attempt ends it.
#[derive(Debug, Default)]
pub struct TokioConnector {
    #[cfg(feature = "tls")]
    trust: Trust,
}

impl TokioConnector {
    /// A connector that trusts the roots that the client's builder was given, or those that Mozilla trusts.
    pub fn new() -> Self {
        Self::default()
    }

    /// A connector with a TLS configuration of its own; the roots of the client's builder are not looked at.
    #[cfg(feature = "tls")]
    pub fn with_tls(tls: ClientTls) -> Self {
        Self { trust: tls.into() }
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
        let stream = connect(&target, &request).await?;
        request.handshake(&target, Io(stream)).await
    }

    #[cfg(feature = "tls")]
    async fn attempt_tls(
        &self,
        target: &Target,
        request: &ConnectRequest,
    ) -> Result<Box<dyn Socket>, ConnectError> {
        let tls = self.trust.get(&request.tls_roots)?;
        let stream = connect(target, request).await?;
        let stream = crate::tls::connect(tls, &target.host, stream).await?;
        request.handshake(target, Io(stream)).await
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

async fn connect(target: &Target, request: &ConnectRequest) -> Result<TcpStream, ConnectError> {
    let addresses = lookup_host((target.host.as_str(), target.port)).await?;
    let stream = request.dial(addresses, TcpStream::connect).await?;
    // Without it the kernel holds small frames back for an acknowledgement; a stream that refuses is only slower.
    let _ = stream.set_nodelay(true);
    Ok(stream)
}
