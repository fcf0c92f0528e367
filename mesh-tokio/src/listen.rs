//! A server's listener: TCP, TLS and the front door, up to the upgraded connection.

use std::{future::Future, net::SocketAddr};

use ::http::request;
use mesh_core::driver::{Admission, FrontDoor, Leave, MeshServer, Place, Socket, WebSocketStream};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    time::Instant,
};

use crate::{
    http::{self, Answer},
    stream::Io,
};

/// How a listener's connections are secured.
#[derive(Clone, Debug)]
pub(crate) enum Security {
    Plain,
    #[cfg(feature = "tls")]
    Tls(crate::tls::ServerTls),
}

/// Accepts connections until the server stops, then waits until it is shut down.
pub(crate) async fn serve_listener(server: &MeshServer, listener: TcpListener, security: Security) {
    let accept = || listener.accept();
    let accepting = server.accept_all(accept, |(stream, remote), place, leave| {
        let accepted = Accepted {
            stream,
            remote,
            security: security.clone(),
            place,
            leave,
        };
        tokio::spawn(serve_connection(server.clone(), accepted));
    });
    accepting.await;
    drop(listener);
    // Another call began it; this one waits for its end, and that one is told of what went wrong.
    let _ = server.shutdown().await;
}

/// A connection before its handshake.
struct Accepted {
    stream: TcpStream,
    remote: SocketAddr,
    security: Security,
    /// Given back once the handshake is over, however it ends.
    place: Place,
    leave: Leave,
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
            place,
            leave,
        } = self;
        // Without it the kernel holds small frames back for an acknowledgement; a stream that refuses is only slower.
        let _ = stream.set_nodelay(true);
        match security {
            Security::Plain => open_http(server, stream, remote, deadline, &place, leave).await,
            #[cfg(feature = "tls")]
            Security::Tls(tls) => {
                let mut leave = leave;
                let stream = tokio::select! {
                    stream = tokio::time::timeout_at(deadline, tls.accept(stream)) => stream,
                    // There is no exchange yet that could come to its end.
                    _ = &mut leave => return None,
                };
                match stream.ok()? {
                    Ok(stream) => open_http(server, stream, remote, deadline, &place, leave).await,
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
    place: &Place,
    leave: Leave,
) -> Option<(Admission, Box<dyn Socket>)>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let time_max = server.limits().handshake_time_max;
    let decide = |head| decide(place, head, remote);
    let upgraded = http::serve(io, deadline, time_max, leave, decide).await?;
    let socket = socket(server, upgraded.io, &upgraded.leftover);
    Some((upgraded.value, socket))
}

async fn decide(place: &Place, head: request::Parts, remote: SocketAddr) -> Answer<Admission> {
    match place.handle_request(head, Some(remote)).await {
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
    use tokio::sync::oneshot;

    use super::*;
    use crate::MeshServerBuilderExt as _;

    /// What a connection costs is this, its socket, and what the kernel keeps.
    const FUTURE_BYTES_MAX: usize = 3 << 10;

    #[tokio::test]
    async fn a_connections_future_is_small() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let _stream = TcpStream::connect(listener.local_addr().unwrap()).await;
        let server = MeshServer::builder().build();
        let (size, mut is_known) = oneshot::channel();
        let mut size = Some(size);
        let accepting = server.accept_all(
            || listener.accept(),
            |(stream, remote), place, leave| {
                let accepted = Accepted {
                    stream,
                    remote,
                    security: Security::Plain,
                    place,
                    leave,
                };
                let future = serve_connection(server.clone(), accepted);
                size.take().unwrap().send(size_of_val(&future)).unwrap();
            },
        );
        let size = tokio::select! {
            () = accepting => panic!("it stopped"),
            size = &mut is_known => size.unwrap(),
        };
        assert!(size <= FUTURE_BYTES_MAX, "{size} bytes");
    }
}
