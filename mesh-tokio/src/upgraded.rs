//! Streams that another HTTP server upgraded.

use std::{future::Future, net::SocketAddr};

use ::http::{Request, Response, request};
use bytes::Bytes;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use mesh_core::driver::{Admission, FrontDoor, MeshServer, Socket};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};

use crate::listen::socket;

/// What is known of a connection that another server accepted and upgraded.
///
/// ```
/// use mesh_tokio::ConnectInfo;
///
/// let mut info = ConnectInfo::default();
/// info.remote = "192.0.2.1:1234".parse().ok();
/// ```
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct ConnectInfo {
    /// The head of the request that was upgraded, for mesh to check and `authenticate` to judge. `None`: whoever upgraded it has
    /// judged it, and only the limit of connections is looked at.
    pub head: Option<request::Parts>,
    /// What was already read behind the request.
    pub leftover: Bytes,
    /// The peer's address, if there is one.
    pub remote: Option<SocketAddr>,
}

/// Answers a request to upgrade, and serves the stream once the other server hands it over.
pub(crate) async fn upgrade<B>(
    server: MeshServer,
    mut request: Request<B>,
    remote: SocketAddr,
) -> Response<Bytes> {
    let on_upgrade = hyper::upgrade::on(&mut request);
    // The body goes now, for it may not be fit to be held across threads.
    let head = request.into_parts().0;
    match server.handle_request(head, Some(remote)).await {
        FrontDoor::Respond(response) => response,
        FrontDoor::Upgrade {
            response,
            admission,
        } => {
            tokio::spawn(serve_when_upgraded(server, on_upgrade, admission));
            response.map(|()| Bytes::new())
        }
    }
}

async fn serve_when_upgraded(server: MeshServer, on_upgrade: OnUpgrade, admission: Admission) {
    let time_max = server.limits().handshake_time_max;
    match Box::pin(timeout(time_max, on_upgrade)).await {
        Ok(Ok(upgraded)) => server.serve(admission, take_back(&server, upgraded)).await,
        Ok(Err(error)) => tracing::debug!(%error, "the stream was not upgraded"),
        Err(_elapsed) => tracing::debug!("the stream was not upgraded in time"),
    }
}

/// The plain TCP stream below hyper where it can be had, so that nothing of hyper stays in the connection; else hyper's stream, which adds no buffer.
fn take_back(server: &MeshServer, upgraded: Upgraded) -> Box<dyn Socket> {
    match upgraded.downcast::<TokioIo<TcpStream>>() {
        Ok(parts) => {
            let stream = parts.io.into_inner();
            // As for a listener's own streams: without it small frames wait for an acknowledgement.
            let _ = stream.set_nodelay(true);
            socket(server, stream, &parts.read_buf)
        }
        Err(upgraded) => socket(server, TokioIo::new(upgraded), &[]),
    }
}

/// Serves a stream that already speaks WebSocket.
pub(crate) fn serve<S>(
    server: &MeshServer,
    io: S,
    info: ConnectInfo,
) -> impl Future<Output = ()> + Send + use<S>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let socket = socket(server, io, &info.leftover);
    server.serve_upgraded_socket(info.head, info.remote, socket)
}
