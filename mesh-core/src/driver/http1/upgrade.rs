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

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, time::Duration};

    use http_body_util::Full;
    use hyper::{body::Incoming, server::conn::http1, service::service_fn};

    use super::*;
    use crate::driver::{
        http1::ToHyper,
        testkit::{Pipe, Sim, pipe},
    };

    const UPGRADE: &[u8] =
        b"GET / HTTP/1.1\r\nhost: mesh\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
        sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

    fn through_hyper(_: &MeshServer, upgraded: Upgraded) -> Result<Box<dyn Socket>, Upgraded> {
        Err(upgraded)
    }

    /// Another server, which has this request before it, and its client, who takes up to 16 bytes of the answer at a time.
    fn ask(sim: &Sim, server: &MeshServer, request: &'static [u8]) -> Pipe {
        let (mut near, far) = pipe(16);
        let server = server.clone();
        drop(sim.start(async move {
            let service = service_fn(|request: hyper::Request<Incoming>| {
                let server = server.clone();
                Box::pin(async move {
                    let remote = ([10, 0, 0, 7], 1).into();
                    let answer = server.upgrade_http1(request, remote, through_hyper).await;
                    Ok::<_, Infallible>(answer.map(Full::new))
                })
            });
            let connection = http1::Builder::new()
                .serve_connection(ToHyper(far), service)
                .with_upgrades();
            let _ = connection.await;
        }));
        sim.wait(async move {
            near.write_all(request).await.unwrap();
            near
        })
    }

    /// What the client reads once it does, until it has read `end`, or the stream is over.
    fn read(sim: &Sim, near: Pipe, end: Option<&'static str>) -> (String, Pipe) {
        let mut near = near;
        sim.wait(async move { (near.read_until(end).await, near) })
    }

    #[test]
    fn a_stream_that_another_server_upgrades_in_time_is_served() {
        let sim = Sim::new();
        let server = sim.server();
        let near = ask(&sim, &server, UPGRADE);
        sim.advance(server.limits().handshake_time_max - Duration::from_millis(1));
        let (head, near) = read(&sim, near, Some("\r\n\r\n"));
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        assert!(head.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "{head}");
        sim.run();
        let connection = server.inner.all_local().remove(0);
        assert_eq!(connection.remote_addr(), Some(([10, 0, 0, 7], 1).into()));
        drop(near);
        sim.run();
        assert_eq!(server.health().connections, 0);
    }

    #[test]
    fn a_stream_that_another_server_upgrades_too_late_is_dropped() {
        let sim = Sim::new();
        let server = sim.server();
        let near = ask(&sim, &server, UPGRADE);
        assert_eq!(server.health().connections, 1, "its place is taken");
        sim.advance(server.limits().handshake_time_max);
        assert_eq!(server.health().connections, 0);
        let (answer, _) = read(&sim, near, None);
        assert!(answer.ends_with("\r\n\r\n"), "nothing follows: {answer}");
    }

    #[test]
    fn a_request_that_is_no_upgrade_gets_an_answer_of_meshs_own() {
        let sim = Sim::new();
        let near = ask(
            &sim,
            &sim.server(),
            b"GET /nothing HTTP/1.1\r\nhost: mesh\r\n\r\n",
        );
        let (answer, _) = read(&sim, near, Some("\r\n\r\n"));
        assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
    }
}
