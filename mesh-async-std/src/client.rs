//! How a client gets its socket: DNS, TCP and TLS.

use std::net::{TcpStream, ToSocketAddrs};

use async_io::Async;
use futures_util::future::BoxFuture;
#[cfg(feature = "tls")]
use mesh_client_core::driver::tls::{ClientTls, Trust};
use mesh_client_core::driver::{ConnectError, ConnectRequest, Connector, Target};
use mesh_core::driver::Socket;

use crate::stream::{Io, Tcp};

/// Connects clients over TCP of async-io, and by rustls where the URL says `wss` and the feature `tls` is on.
///
/// A name with several addresses is tried at all of them, each a little after the one before (RFC 8305). Dropping an attempt ends it.
#[derive(Debug, Default)]
pub struct AsyncIoConnector {
    #[cfg(feature = "tls")]
    trust: Trust,
}

impl AsyncIoConnector {
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
                "wss:// needs the feature `tls` of mesh-async-std",
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

impl Connector for AsyncIoConnector {
    fn connect(
        &self,
        request: ConnectRequest,
    ) -> BoxFuture<'_, Result<Box<dyn Socket>, ConnectError>> {
        Box::pin(self.attempt(request))
    }
}

async fn connect(target: &Target, request: &ConnectRequest) -> Result<Tcp, ConnectError> {
    let place = (target.host.clone(), target.port);
    let addresses = blocking::unblock(move || place.to_socket_addrs()).await?;
    let stream = request.dial(addresses, Async::<TcpStream>::connect).await?;
    Ok(Tcp::new(stream))
}
