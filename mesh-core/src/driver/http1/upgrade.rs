//! Streams that another HTTP server, built on hyper, upgrades.

use std::net::SocketAddr;

use bytes::Bytes;
use futures_util::future::{Either, select};
use http::{Request, Response};
use hyper::upgrade::{OnUpgrade, Upgraded};

use super::FromHyper;
use crate::driver::{Admission, FrontDoor, MeshServer, Socket};

/// Takes the stream below hyper back, or gives hyper's where it is none of its own.
type TakeBack = fn(&MeshServer, Upgraded) -> Result<Box<dyn Socket>, Upgraded>;

impl MeshServer {
    /// Answers a request to upgrade that came to another HTTP server built on hyper, and serves the stream once that server hands it over.
    ///
    /// `take_back` may know the type of the stream below hyper and make a [`socket`](Self::socket) of it, so that nothing of hyper stays
    /// in the connection; what it gives back is served through hyper. A request that is no upgrade, or is not let in, gets the answer
    /// that a listener of mesh's own would give.
    pub async fn upgrade_http1<B>(
        &self,
        mut request: Request<B>,
        remote: SocketAddr,
        take_back: TakeBack,
    ) -> Response<Bytes> {
        let on_upgrade = hyper::upgrade::on(&mut request);
        // The body goes now, for it may not be fit to be held across threads.
        let head = request.into_parts().0;
        match self.handle_request(head, Some(remote)).await {
            FrontDoor::Respond(response) => response,
            FrontDoor::Upgrade {
                response,
                admission,
            } => {
                let serving = serve_when_upgraded(self.clone(), on_upgrade, admission, take_back);
                self.inner.runtime.spawn(Box::pin(serving));
                response.map(|()| Bytes::new())
            }
        }
    }
}

async fn serve_when_upgraded(
    server: MeshServer,
    on_upgrade: OnUpgrade,
    admission: Admission,
    take_back: TakeBack,
) {
    let runtime = &server.inner.runtime;
    let in_time = runtime.sleep_until(runtime.now() + server.limits().handshake_time_max);
    let upgraded = match select(on_upgrade, in_time).await {
        Either::Left((Ok(upgraded), _)) => upgraded,
        Either::Left((Err(error), _)) => {
            tracing::debug!(%error, "the stream was not upgraded");
            return;
        }
        Either::Right(_) => {
            tracing::debug!("the stream was not upgraded in time");
            return;
        }
    };
    // The timer is gone: a connection has none of its own.
    let socket = take_back(&server, upgraded)
        .unwrap_or_else(|upgraded| server.socket(FromHyper(upgraded), &[]));
    server.serve(admission, socket).await;
}
