//! What async-io adds to the types that are the same on every runtime.

use std::{
    future::{Future, ready},
    io,
    net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs},
    sync::{Arc, mpsc},
};

use async_io::Async;
use bytes::Bytes;
use futures_io::{AsyncRead, AsyncWrite};
use http::{Request, Response};
use hyper::upgrade::Upgraded;
use mesh_client_core::driver::{ClientBuilder, ConnectError, MeshClient, Result};
#[cfg(feature = "tls")]
use mesh_core::driver::tls::ServerTls;
use mesh_core::driver::{
    ConnectInfo, MeshServer, MeshServerBuilder, Runtime, Socket, http1::ToHyper,
};

use crate::{
    client::AsyncIoConnector,
    runtime::AsyncIoRuntime,
    stream::{Io, Tcp},
    thread::ThreadRuntime,
};

/// Builds a server on async-std or smol.
pub trait MeshServerBuilderExt {
    /// The server, on [`AsyncIoRuntime::current`]; for another, such as an executor of one's own, there is
    /// [`build_on`](MeshServerBuilder::build_on).
    fn build(self) -> MeshServer;
}

impl MeshServerBuilderExt for MeshServerBuilder {
    fn build(self) -> MeshServer {
        self.build_on(Arc::new(AsyncIoRuntime::current()))
    }
}

/// The network of a server on async-io.
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
    /// use mesh_async_std::prelude::*;
    ///
    /// # fn main() -> mesh_async_std::Result<()> { async_io::block_on(async {
    /// let server = MeshServer::builder().build();
    /// server.listen("127.0.0.1:8080").await?;
    /// # Ok(()) }) }
    /// ```
    ///
    /// Dropping the future stops listening; connections go on.
    ///
    /// # Errors
    /// The address cannot be listened on. Once it is, no error ends it: what goes wrong with a connection ends that connection, and where
    /// none can be accepted for want of file descriptors it waits until some can.
    fn listen(
        &self,
        address: impl ToSocketAddrs + Send + 'static,
    ) -> impl Future<Output = Result<()>> + Send;

    /// The same for a listener that is there already, so that its address can be asked for first: async-io's, or smol's `net::TcpListener`. One of
    /// the standard library becomes async-io's by `Async::new`; async-std's gives none away.
    ///
    /// ```no_run
    /// use std::net::TcpListener;
    ///
    /// use mesh_async_std::{Async, prelude::*};
    ///
    /// # fn main() -> mesh_async_std::Result<()> { async_io::block_on(async {
    /// let server = MeshServer::builder().build();
    /// let listener = Async::<TcpListener>::bind(([127, 0, 0, 1], 0))?;
    /// println!("listening on ws://{}", listener.get_ref().local_addr()?);
    /// server.serve_listener(listener).await;
    /// # Ok(()) }) }
    /// ```
    fn serve_listener(
        &self,
        listener: impl Into<Arc<Async<TcpListener>>> + Send,
    ) -> impl Future<Output = ()> + Send;

    /// [`listen`](Self::listen) for `wss://` and `https://`.
    ///
    /// # Errors
    /// The address cannot be listened on.
    #[cfg(feature = "tls")]
    fn listen_tls(
        &self,
        address: impl ToSocketAddrs + Send + 'static,
        tls: ServerTls,
    ) -> impl Future<Output = Result<()>> + Send;

    /// [`serve_listener`](Self::serve_listener) for `wss://` and `https://`.
    #[cfg(feature = "tls")]
    fn serve_listener_tls(
        &self,
        listener: impl Into<Arc<Async<TcpListener>>> + Send,
        tls: ServerTls,
    ) -> impl Future<Output = ()> + Send;

    /// Answers a request to upgrade that came to another HTTP server built on hyper, and serves the stream once that server hands it over.
    ///
    /// [`ToHyper`] lends streams of futures-io to hyper. Nothing of hyper stays in the connection where the stream is an
    /// [`Async<TcpStream>`](Async), as here:
    ///
    /// ```no_run
    /// use std::{convert::Infallible, io, net::TcpListener};
    ///
    /// use http_body_util::Full;
    /// use hyper::{server::conn::http1, service::service_fn};
    /// use mesh_async_std::{Async, Io, ToHyper, prelude::*};
    ///
    /// # #[cfg(feature = "async-std")]
    /// async fn serve(mesh: MeshServer, listener: Async<TcpListener>) -> io::Result<()> {
    ///     loop {
    ///         let (stream, remote) = listener.accept().await?;
    ///         let mesh = mesh.clone();
    ///         let route = service_fn(move |request| {
    ///             let mesh = mesh.clone();
    ///             async move { Ok::<_, Infallible>(mesh.upgrade(request, remote).await.map(Full::new)) }
    ///         });
    ///         let connection = http1::Builder::new().serve_connection(ToHyper(Io(stream)), route);
    ///         async_std::task::spawn(connection.with_upgrades());
    ///     }
    /// }
    /// ```
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
    async fn listen(&self, address: impl ToSocketAddrs + Send + 'static) -> Result<()> {
        let listener = bind(address).await?;
        self.serve_listener(listener).await;
        Ok(())
    }

    async fn serve_listener(&self, listener: impl Into<Arc<Async<TcpListener>>> + Send) {
        let listener = listener.into();
        let open = |stream| ready(Ok(Io(Tcp::new(stream))));
        self.serve_http1(|| listener.accept(), open).await;
        drop(listener);
        // Another call began it, and is told of what went wrong; this one waits for its end.
        let _ = self.shutdown().await;
    }

    #[cfg(feature = "tls")]
    async fn listen_tls(
        &self,
        address: impl ToSocketAddrs + Send + 'static,
        tls: ServerTls,
    ) -> Result<()> {
        let listener = bind(address).await?;
        self.serve_listener_tls(listener, tls).await;
        Ok(())
    }

    #[cfg(feature = "tls")]
    async fn serve_listener_tls(
        &self,
        listener: impl Into<Arc<Async<TcpListener>>> + Send,
        tls: ServerTls,
    ) {
        let listener = listener.into();
        let open = move |stream| {
            let accepting = crate::tls::accept(tls.clone(), Tcp::new(stream));
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

/// Names are looked up where blocking is no harm.
async fn bind(address: impl ToSocketAddrs + Send + 'static) -> io::Result<Async<TcpListener>> {
    let listener = blocking::unblock(move || TcpListener::bind(address)).await?;
    Async::new(listener)
}

/// The TCP stream below a hyper server that reads it through [`ToHyper`], so that nothing of hyper stays in the connection.
fn take_back(server: &MeshServer, upgraded: Upgraded) -> Result<Box<dyn Socket>, Upgraded> {
    let parts = upgraded.downcast::<ToHyper<Io<Async<TcpStream>>>>()?;
    let ToHyper(Io(stream)) = parts.io;
    Ok(server.socket(Io(Tcp::new(stream)), &parts.read_buf))
}

/// Connects a client on async-std or smol.
pub trait MeshClientExt {
    /// A client of the server at `url`, with every option at its default: [`MeshClient::builder`] and
    /// [`connect`](ClientBuilderExt::connect).
    ///
    /// ```no_run
    /// use mesh_async_std::prelude::*;
    ///
    /// # fn main() -> mesh_async_std::Result<()> { async_io::block_on(async {
    /// let client = MeshClient::connect("ws://127.0.0.1:8080").await?;
    /// let reply: String = client.command("echo", "Hello").await?;
    /// # Ok(()) }) }
    /// ```
    ///
    /// # Errors
    /// As [`ClientBuilderExt::connect`].
    fn connect(url: &str) -> impl Future<Output = Result<MeshClient, ConnectError>> + Send;
}

impl MeshClientExt for MeshClient {
    async fn connect(url: &str) -> Result<Self, ConnectError> {
        Self::builder(url).connect().await
    }
}

/// Builds a client on async-std or smol.
pub trait ClientBuilderExt {
    /// The client, on [`AsyncIoRuntime::current`] and not connected yet.
    ///
    /// # Errors
    /// A broken URL or header, or no thread where one of its own was asked for.
    fn build(self) -> Result<MeshClient, ConnectError>;

    /// The client, connected. A failed attempt is retried like any other, unless `fail_fast`.
    ///
    /// ```no_run
    /// use mesh_async_std::prelude::*;
    ///
    /// # fn main() -> mesh_async_std::Result<()> { async_io::block_on(async {
    /// let client = MeshClient::builder("ws://127.0.0.1:8080")
    ///     .header("cookie", "session=1")
    ///     .connect()
    ///     .await?;
    /// let reply: String = client.command("echo", "Hello").await?;
    /// # Ok(()) }) }
    /// ```
    ///
    /// # Errors
    /// As [`build`](Self::build) and [`MeshClient::open`].
    fn connect(self) -> impl Future<Output = Result<MeshClient, ConnectError>> + Send;

    /// The same with a connector that was set up by the caller.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    fn connect_with(
        self,
        connector: AsyncIoConnector,
    ) -> impl Future<Output = Result<MeshClient, ConnectError>> + Send;

    /// The client, connected, for a program without a runtime: it runs on a thread of its own, which ends with its last handle.
    ///
    /// ```no_run
    /// use std::time::Duration;
    ///
    /// use mesh_async_std::prelude::*;
    ///
    /// fn main() -> mesh_async_std::Result<()> {
    ///     let client = MeshClient::builder("ws://127.0.0.1:8080").connect_blocking()?;
    ///     let reply: String = client.command_blocking("echo", "Hello", Duration::from_secs(5))?;
    ///     Ok(())
    /// }
    /// ```
    ///
    /// # Errors
    /// As [`connect`](Self::connect); [`ConnectError::Usage`] at once in a task of async-std's or of `smol::spawn`'s, or in any handler or
    /// callback of mesh, which it would block.
    fn connect_blocking(self) -> Result<MeshClient, ConnectError>;
}

impl ClientBuilderExt for ClientBuilder {
    fn build(self) -> Result<MeshClient, ConnectError> {
        let runtime = Arc::new(AsyncIoRuntime::current());
        self.build_on(runtime, Arc::new(AsyncIoConnector::new()))
    }

    async fn connect(self) -> Result<MeshClient, ConnectError> {
        self.connect_with(AsyncIoConnector::new()).await
    }

    async fn connect_with(self, connector: AsyncIoConnector) -> Result<MeshClient, ConnectError> {
        let runtime = Arc::new(AsyncIoRuntime::current());
        self.connect_on(runtime, Arc::new(connector)).await
    }

    fn connect_blocking(self) -> Result<MeshClient, ConnectError> {
        if AsyncIoRuntime::current().inside() {
            return Err(ConnectError::Usage(
                "connect_blocking would block an async task, a handler or a callback; await connect() instead",
            ));
        }
        let thread = |error: std::io::Error| ConnectError::Thread(error.to_string());
        let runtime = ThreadRuntime::start().map_err(thread)?;
        let (done, is_done) = mpsc::sync_channel(1);
        let connecting = self.connect_on(runtime.clone(), Arc::new(AsyncIoConnector::new()));
        runtime.spawn(Box::pin(async move {
            // Nobody waits any more only if the caller's thread is gone.
            let _ = done.send(connecting.await);
        }));
        is_done
            .recv()
            .unwrap_or_else(|_| Err(ConnectError::Thread("it ended".to_owned())))
    }
}
