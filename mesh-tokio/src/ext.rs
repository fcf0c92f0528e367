//! What tokio adds to the types that are the same on every runtime.

use std::{future::Future, net::SocketAddr, sync::Arc};

use ::http::{Request, Response};
use bytes::Bytes;
use mesh_core::driver::{MeshServer, MeshServerBuilder};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, ToSocketAddrs},
};

#[cfg(feature = "tls")]
use crate::tls::ServerTls;
use crate::{
    error::Result,
    listen::{self, Security},
    runtime::TokioRuntime,
    upgraded::{self, ConnectInfo},
};

/// Builds a server on tokio.
pub trait MeshServerBuilderExt {
    /// The server, on the runtime that the caller runs in.
    ///
    /// # Panics
    /// Outside of a tokio runtime; see [`TokioRuntime`] for another way in.
    #[track_caller]
    fn build(self) -> MeshServer;
}

impl MeshServerBuilderExt for MeshServerBuilder {
    fn build(self) -> MeshServer {
        self.build_on(Arc::new(TokioRuntime::current()))
    }
}

/// The network of a server on tokio.
///
/// Each listener serves WebSocket upgrades and plain HTTP requests on one port. A connection has
/// [`handshake_time_max`](mesh_core::protocol::Limits::handshake_time_max) for TLS and its first request, and as long for each further exchange
/// or wait; after an upgrade nothing of HTTP is left in it.
pub trait MeshServerExt {
    /// Listens on `address`, serves until [`shutdown`](MeshServer::shutdown), and returns once that is done.
    ///
    /// ```no_run
    /// use mesh_tokio::prelude::*;
    ///
    /// #[tokio::main]
    /// async fn main() -> mesh_tokio::Result<()> {
    ///     let server = MeshServer::builder().build();
    ///     server.listen("127.0.0.1:8080").await?;
    ///     Ok(())
    /// }
    /// ```
    ///
    /// Dropping the future stops listening; connections go on.
    ///
    /// # Errors
    /// The address cannot be listened on. Once it is, no error ends it: what goes wrong with a connection ends that connection, and where
    /// none can be accepted for want of file descriptors it waits until some can.
    fn listen(&self, address: impl ToSocketAddrs + Send)
    -> impl Future<Output = Result<()>> + Send;

    /// The same for a listener that is there already, so that its address can be asked for first.
    ///
    /// ```no_run
    /// use mesh_tokio::prelude::*;
    /// use tokio::net::TcpListener;
    ///
    /// # #[tokio::main]
    /// # async fn main() -> mesh_tokio::Result<()> {
    /// let server = MeshServer::builder().build();
    /// let listener = TcpListener::bind("127.0.0.1:0").await?;
    /// println!("listening on ws://{}", listener.local_addr()?);
    /// server.serve_listener(listener).await;
    /// # Ok(())
    /// # }
    /// ```
    fn serve_listener(&self, listener: TcpListener) -> impl Future<Output = ()> + Send;

    /// [`listen`](Self::listen) for `wss://` and `https://`.
    ///
    /// # Errors
    /// The address cannot be listened on.
    #[cfg(feature = "tls")]
    fn listen_tls(
        &self,
        address: impl ToSocketAddrs + Send,
        tls: ServerTls,
    ) -> impl Future<Output = Result<()>> + Send;

    /// [`serve_listener`](Self::serve_listener) for `wss://` and `https://`.
    #[cfg(feature = "tls")]
    fn serve_listener_tls(
        &self,
        listener: TcpListener,
        tls: ServerTls,
    ) -> impl Future<Output = ()> + Send;

    /// Answers a request to upgrade that came to another HTTP server built on hyper, such as axum, and serves the stream once that server
    /// hands it over. `examples/axum.rs` shows it.
    ///
    /// A request that is no upgrade, or is not let in, gets the answer that a listener of mesh's own would give.
    fn upgrade<B: Send>(
        &self,
        request: Request<B>,
        remote: SocketAddr,
    ) -> impl Future<Output = Response<Bytes>> + Send;

    /// Serves a stream that any other server upgraded: the answer with status 101 is sent, and `io` speaks WebSocket from here on.
    ///
    /// `authenticate` and the limits decide as ever; a refusal is a close frame with 1008, or 1013 where the server is full.
    fn serve_upgraded<S>(&self, io: S, info: ConnectInfo) -> impl Future<Output = ()> + Send
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static;
}

impl MeshServerExt for MeshServer {
    async fn listen(&self, address: impl ToSocketAddrs + Send) -> Result<()> {
        let listener = TcpListener::bind(address).await?;
        self.serve_listener(listener).await;
        Ok(())
    }

    async fn serve_listener(&self, listener: TcpListener) {
        listen::serve_listener(self, listener, Security::Plain).await;
    }

    #[cfg(feature = "tls")]
    async fn listen_tls(&self, address: impl ToSocketAddrs + Send, tls: ServerTls) -> Result<()> {
        let listener = TcpListener::bind(address).await?;
        self.serve_listener_tls(listener, tls).await;
        Ok(())
    }

    #[cfg(feature = "tls")]
    async fn serve_listener_tls(&self, listener: TcpListener, tls: ServerTls) {
        listen::serve_listener(self, listener, Security::Tls(tls)).await;
    }

    async fn upgrade<B: Send>(&self, request: Request<B>, remote: SocketAddr) -> Response<Bytes> {
        upgraded::upgrade(self.clone(), request, remote).await
    }

    async fn serve_upgraded<S>(&self, io: S, info: ConnectInfo)
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        upgraded::serve(self.clone(), io, info).await;
    }
}
