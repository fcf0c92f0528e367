//! What tokio adds to the types that are the same on every runtime.

use std::{
    future::{Future, ready},
    net::SocketAddr,
    sync::{Arc, mpsc},
};

use bytes::Bytes;
use http::{Request, Response};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use mesh_client_core::driver::{ClientBuilder, ConnectError, MeshClient, Result};
#[cfg(feature = "tls")]
use mesh_core::driver::tls::ServerTls;
use mesh_core::driver::{ConnectInfo, MeshServer, MeshServerBuilder, Runtime, Socket, inside};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream, ToSocketAddrs},
    runtime::Handle,
};

use crate::{client::TokioConnector, runtime::TokioRuntime, stream::Io, thread::ThreadRuntime};

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
/// or wait; after an upgrade nothing of HTTP is left in it. Where [`handshakes_max`](mesh_core::protocol::Limits::handshakes_max) connections of
/// a listener are not upgraded, the one that has been quiet for longest makes room for the next, as does one where the process is short of
/// file descriptors. Who waits for `authenticate` or a page keeps its place; where all do, the next one waits.
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
    /// A request that is no upgrade, or is not let in, gets the answer that a listener of mesh's own would give; one that is not decided
    /// about within [`handshake_time_max`](mesh_core::protocol::Limits::handshake_time_max) gets 503.
    fn upgrade<B: Send>(
        &self,
        request: Request<B>,
        remote: SocketAddr,
    ) -> impl Future<Output = Response<Bytes>> + Send;

    /// Serves a stream that any other server upgraded: the answer with status 101 is sent, and `io` speaks WebSocket from here on.
    ///
    /// `authenticate` and the limits decide as ever; a refusal is a close frame with 1008, or 1013 where the server is full
    /// or does not decide within [`handshake_time_max`](mesh_core::protocol::Limits::handshake_time_max).
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
        let open = |stream| ready(Ok(Io(prompt(stream))));
        self.serve_http1(|| listener.accept(), open).await;
        drop(listener);
        // Another call began it, and is told of what went wrong; this one waits for its end.
        let _ = self.shutdown().await;
    }

    #[cfg(feature = "tls")]
    async fn listen_tls(&self, address: impl ToSocketAddrs + Send, tls: ServerTls) -> Result<()> {
        let listener = TcpListener::bind(address).await?;
        self.serve_listener_tls(listener, tls).await;
        Ok(())
    }

    #[cfg(feature = "tls")]
    async fn serve_listener_tls(&self, listener: TcpListener, tls: ServerTls) {
        let open = move |stream| {
            let accepting = crate::tls::accept(tls.clone(), prompt(stream));
            async { accepting.await.map(Io) }
        };
        self.serve_http1(|| listener.accept(), open).await;
        drop(listener);
        let _ = self.shutdown().await;
    }

    async fn upgrade<B: Send>(&self, request: Request<B>, remote: SocketAddr) -> Response<Bytes> {
        self.upgrade_http1(request, remote, take_back).await
    }

    async fn serve_upgraded<S>(&self, io: S, info: ConnectInfo)
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        self.serve_upgraded_stream(Io(io), info).await;
    }
}

/// Small frames leave at once: without it the kernel holds them back for an acknowledgement. A stream that refuses is only slower.
fn prompt(stream: TcpStream) -> TcpStream {
    let _ = stream.set_nodelay(true);
    stream
}

/// The TCP stream below a hyper server on tokio, where it can be had, so that nothing of hyper stays in the connection.
fn take_back(server: &MeshServer, upgraded: Upgraded) -> Result<Box<dyn Socket>, Upgraded> {
    let parts = upgraded.downcast::<TokioIo<TcpStream>>()?;
    let stream = prompt(parts.io.into_inner());
    Ok(server.socket(Io(stream), &parts.read_buf))
}

/// Connects a client on tokio.
pub trait MeshClientExt {
    /// A client of the server at `url`, with every option at its default: [`MeshClient::builder`] and
    /// [`connect`](ClientBuilderExt::connect).
    ///
    /// ```no_run
    /// use mesh_tokio::prelude::*;
    ///
    /// # #[tokio::main]
    /// # async fn main() -> mesh_tokio::Result<()> {
    /// let client = MeshClient::connect("ws://127.0.0.1:8080").await?;
    /// let reply: String = client.command("echo", "Hello").await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`ClientBuilderExt::connect`].
    ///
    /// # Panics
    /// As [`ClientBuilderExt::connect`].
    fn connect(url: &str) -> impl Future<Output = Result<MeshClient, ConnectError>> + Send;
}

impl MeshClientExt for MeshClient {
    async fn connect(url: &str) -> Result<Self, ConnectError> {
        Self::builder(url).connect().await
    }
}

/// Builds a client on tokio.
pub trait ClientBuilderExt {
    /// The client, on the runtime that the caller runs in and not connected yet.
    ///
    /// # Errors
    /// A broken URL or header, or no thread where one of its own was asked for.
    ///
    /// # Panics
    /// Outside of a tokio runtime; [`connect_blocking`](Self::connect_blocking) does without.
    #[track_caller]
    fn build(self) -> Result<MeshClient, ConnectError>;

    /// The client, connected. A failed attempt is retried like any other, unless `fail_fast`.
    ///
    /// ```no_run
    /// use mesh_tokio::prelude::*;
    ///
    /// # #[tokio::main]
    /// # async fn main() -> mesh_tokio::Result<()> {
    /// let client = MeshClient::builder("ws://127.0.0.1:8080")
    ///     .header("cookie", "session=1")
    ///     .connect()
    ///     .await?;
    /// let reply: String = client.command("echo", "Hello").await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`build`](Self::build) and [`MeshClient::open`].
    ///
    /// # Panics
    /// As [`build`](Self::build), when it is first polled.
    fn connect(self) -> impl Future<Output = Result<MeshClient, ConnectError>> + Send;

    /// The same with a connector that was set up by the caller.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    ///
    /// # Panics
    /// As [`connect`](Self::connect).
    fn connect_with(
        self,
        connector: TokioConnector,
    ) -> impl Future<Output = Result<MeshClient, ConnectError>> + Send;

    /// The client, connected, for a program without a runtime: it runs on a thread of its own, which ends with its last handle.
    ///
    /// ```no_run
    /// use std::time::Duration;
    ///
    /// use mesh_tokio::prelude::*;
    ///
    /// fn main() -> mesh_tokio::Result<()> {
    ///     let client = MeshClient::builder("ws://127.0.0.1:8080").connect_blocking()?;
    ///     let reply: String = client.command_blocking("echo", "Hello", Duration::from_secs(5))?;
    ///     Ok(())
    /// }
    /// ```
    ///
    /// # Errors
    /// As [`connect`](Self::connect); [`ConnectError::Usage`] at once on a thread of a tokio runtime, or in any handler or callback of
    /// mesh, which it would block.
    fn connect_blocking(self) -> Result<MeshClient, ConnectError>;
}

impl ClientBuilderExt for ClientBuilder {
    fn build(self) -> Result<MeshClient, ConnectError> {
        let runtime = Arc::new(TokioRuntime::current());
        self.build_on(runtime, Arc::new(TokioConnector::new()))
    }

    async fn connect(self) -> Result<MeshClient, ConnectError> {
        self.connect_with(TokioConnector::new()).await
    }

    async fn connect_with(self, connector: TokioConnector) -> Result<MeshClient, ConnectError> {
        let runtime = Arc::new(TokioRuntime::current());
        self.connect_on(runtime, Arc::new(connector)).await
    }

    fn connect_blocking(self) -> Result<MeshClient, ConnectError> {
        if inside::is_inside() || Handle::try_current().is_ok() {
            return Err(ConnectError::Usage(
                "connect_blocking would block an async task, a handler or a callback; await connect() instead",
            ));
        }
        let thread = |error: std::io::Error| ConnectError::Thread(error.to_string());
        let runtime = ThreadRuntime::start().map_err(thread)?;
        let (done, is_done) = mpsc::sync_channel(1);
        let connecting = self.connect_on(runtime.clone(), Arc::new(TokioConnector::new()));
        runtime.spawn(Box::pin(async move {
            // Nobody waits any more only if the caller's thread is gone.
            let _ = done.send(connecting.await);
        }));
        is_done
            .recv()
            .unwrap_or_else(|_| Err(ConnectError::Thread("it ended".to_owned())))
    }
}
