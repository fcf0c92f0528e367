//! A server's listener: TCP, TLS and the front door, up to the upgraded connection.

use std::{future::Future, io, net::SocketAddr, sync::Arc};

use ::http::request;
use mesh_core::driver::{Admission, FrontDoor, MeshServer, Socket, WebSocketStream};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::Instant,
};

use crate::{
    accept::accept_all,
    http::{self, Answer},
    stream::Io,
};

/// Connections that are not upgraded, at once, for each listener; over it the rest waits in the kernel's backlog until one of
/// them is, or its time is up.
const HANDSHAKES_MAX: usize = 4_096;

/// How a listener's connections are secured.
#[derive(Clone, Debug)]
pub(crate) enum Security {
    Plain,
    #[cfg(feature = "tls")]
    Tls(crate::tls::ServerTls),
}

/// What ends with a listener: exchanges of plain HTTP, and handshakes under way.
#[derive(Clone, Debug)]
struct Open(watch::Receiver<()>);

impl Open {
    /// Resolves when the listener is no more.
    async fn closed(&mut self) {
        // Nothing is ever sent: the only change there is is the end of the sender.
        let _ = self.0.changed().await;
    }
}

/// Accepts connections until the server stops, then waits until it is shut down.
pub(crate) async fn serve_listener(server: &MeshServer, listener: TcpListener, security: Security) {
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    let (close, open) = watch::channel(());
    let open = Open(open);
    let accept = || async {
        let permit = Arc::clone(&handshakes).acquire_owned().await;
        let permit = permit.map_err(io::Error::other)?;
        let (stream, remote) = listener.accept().await?;
        Ok((stream, remote, permit))
    };
    let accepting = accept_all(accept, |(stream, remote, permit)| {
        let accepted = Accepted {
            stream,
            remote,
            security: security.clone(),
            open: open.clone(),
            _permit: permit,
        };
        tokio::spawn(serve_connection(server.clone(), accepted));
    });
    tokio::select! {
        () = accepting => {}
        () = server.wait_stopping() => {}
    }
    drop((listener, close));
    // Another call began it; this one waits for its end, and that one is told of what went wrong.
    let _ = server.shutdown().await;
}

/// A connection before its handshake.
struct Accepted {
    stream: TcpStream,
    remote: SocketAddr,
    security: Security,
    open: Open,
    /// Given back once the handshake is over, however it ends.
    _permit: OwnedSemaphorePermit,
}

/// One connection, from its first byte to its end.
///
/// What only the handshake needs is in a box of its own, for this future lives as long as the connection.
fn serve_connection(
    server: MeshServer,
    accepted: Accepted,
) -> impl Future<Output = ()> + Send + 'static {
    let opening = Box::pin({
        let server = server.clone();
        async move { accepted.open(&server).await }
    });
    async move {
        if let Some((admission, socket)) = opening.await {
            server.serve(admission, socket).await;
        }
    }
}

impl Accepted {
    async fn open(self, server: &MeshServer) -> Option<(Admission, Box<dyn Socket>)> {
        let deadline = Instant::now() + server.limits().handshake_time_max;
        let Self {
            stream,
            remote,
            security,
            open,
            _permit,
        } = self;
        // Without it the kernel holds small frames back for an acknowledgement; a stream that refuses is only slower.
        let _ = stream.set_nodelay(true);
        match security {
            Security::Plain => open_http(server, stream, remote, deadline, open).await,
            #[cfg(feature = "tls")]
            Security::Tls(tls) => {
                let stream = tokio::time::timeout_at(deadline, tls.accept(stream)).await;
                match stream.ok()? {
                    Ok(stream) => open_http(server, stream, remote, deadline, open).await,
                    Err(error) => {
                        tracing::debug!(%remote, %error, "the TLS handshake failed");
                        None
                    }
                }
            }
        }
    }
}

async fn open_http<S>(
    server: &MeshServer,
    io: S,
    remote: SocketAddr,
    deadline: Instant,
    mut open: Open,
) -> Option<(Admission, Box<dyn Socket>)>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let time_max = server.limits().handshake_time_max;
    let decide = |head| decide(server, head, remote);
    let upgraded = http::serve(io, deadline, time_max, open.closed(), decide).await?;
    let socket = socket(server, upgraded.io, &upgraded.leftover);
    Some((upgraded.value, socket))
}

async fn decide(
    server: &MeshServer,
    head: request::Parts,
    remote: SocketAddr,
) -> Answer<Admission> {
    match server.handle_request(head, Some(remote)).await {
        FrontDoor::Respond(response) => Answer::Respond(response),
        FrontDoor::Upgrade {
            response,
            admission,
        } => Answer::Upgrade(response, admission),
    }
}

/// The server's end of a WebSocket over `io`.
pub(crate) fn socket<S>(server: &MeshServer, io: S, leftover: &[u8]) -> Box<dyn Socket>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let message_bytes_max = server.limits().message_bytes_max;
    Box::new(WebSocketStream::server(Io(io), leftover, message_bytes_max))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MeshServerBuilderExt as _;

    /// What a connection costs is this, its socket, and what the kernel keeps.
    const FUTURE_BYTES_MAX: usize = 3 << 10;

    #[tokio::test]
    async fn a_connections_future_is_small() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stream, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
        let (_close, open) = watch::channel(());
        let accepted = Accepted {
            stream: stream.unwrap(),
            remote: accepted.unwrap().1,
            security: Security::Plain,
            open: Open(open),
            _permit: Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap(),
        };
        let server = MeshServer::builder().build();
        let size = size_of_val(&serve_connection(server, accepted));
        assert!(size <= FUTURE_BYTES_MAX, "{size} bytes");
    }
}
