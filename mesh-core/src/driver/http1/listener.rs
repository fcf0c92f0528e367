//! A server's listener behind `accept`: TLS, the front door, and the upgraded connection.

use std::{future::Future, io, net::SocketAddr, pin::pin};

use futures_util::future::{Either, select};
use http::request;

use super::exchange::{self, Answer};
use crate::driver::{Admission, ByteStream, FrontDoor, Leave, MeshServer, Place, Socket};

impl MeshServer {
    /// Serves a listener until the server stops: WebSocket upgrades and plain HTTP/1.1 requests.
    ///
    /// `accept` yields a connection with the address of its peer, as for [`accept_all`](Self::accept_all); `open` makes of it the byte
    /// stream that HTTP is spoken on, which for TLS takes a handshake. Each connection is a task of the runtime. It has
    /// [`handshake_time_max`](super::super::Limits::handshake_time_max) for `open` and its first request, and as long for each further exchange.
    ///
    /// Dropping the future stops listening; connections go on.
    pub async fn serve_http1<C, A, S, O>(
        &self,
        accept: impl FnMut() -> A,
        open: impl Fn(C) -> O + Clone + Send + 'static,
    ) where
        C: Send + 'static,
        A: Future<Output = io::Result<(C, SocketAddr)>>,
        S: ByteStream + Unpin,
        O: Future<Output = io::Result<S>> + Send + 'static,
    {
        self.accept_all(accept, |(connection, remote), place, leave| {
            let accepted = Accepted {
                remote,
                place,
                leave,
            };
            let task = serve_connection(self.clone(), accepted, open.clone(), connection);
            self.inner.runtime.spawn(Box::pin(task));
        })
        .await;
    }
}

/// One connection, from its first byte to its end.
///
/// What only the handshake needs is in a box of its own, for this future lives as long as the connection.
fn serve_connection<C, S, O>(
    server: MeshServer,
    accepted: Accepted,
    open: impl Fn(C) -> O + Send + 'static,
    connection: C,
) -> impl Future<Output = ()> + Send + 'static
where
    C: Send + 'static,
    S: ByteStream + Unpin,
    O: Future<Output = io::Result<S>> + Send + 'static,
{
    let opening = Box::pin(accepted.open(server.clone(), open, connection));
    async move {
        if let Some((admission, socket)) = opening.await {
            server.serve(admission, socket).await;
        }
    }
}

/// A connection before its handshake.
struct Accepted {
    remote: SocketAddr,
    /// Given back once the handshake is over, however it ends.
    place: Place,
    leave: Leave,
}

impl Accepted {
    async fn open<C, S, O>(
        mut self,
        server: MeshServer,
        open: impl Fn(C) -> O,
        connection: C,
    ) -> Option<(Admission, Box<dyn Socket>)>
    where
        S: ByteStream + Unpin,
        O: Future<Output = io::Result<S>>,
    {
        let runtime = &*server.inner.runtime;
        let time_max = server.limits().handshake_time_max;
        let mut timer = runtime.sleep_until(runtime.now() + time_max);
        let io = {
            let opening = pin!(open(connection));
            // There is no exchange yet that could come to its end.
            let ends = select(&mut self.leave, &mut timer);
            match select(opening, ends).await {
                Either::Left((Ok(io), _)) => io,
                Either::Left((Err(error), _)) => {
                    tracing::debug!(remote = %self.remote, %error, "a connection could not be opened");
                    return None;
                }
                Either::Right(_) => return None,
            }
        };
        let decide = |head| decide(&self.place, head, self.remote);
        let upgraded = exchange::serve(io, runtime, timer, time_max, self.leave, decide).await?;
        let socket = server.socket(upgraded.io, &upgraded.leftover);
        Some((upgraded.value, socket))
    }
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

#[cfg(test)]
mod tests {
    use std::{
        future::{pending, ready},
        time::Duration,
    };

    use super::*;
    use crate::driver::testkit::{Pipe, Sim, pipe};

    /// What a connection costs is this, its socket, and what the kernel keeps.
    const FUTURE_BYTES_MAX: usize = 3 << 10;

    fn remote() -> SocketAddr {
        "192.0.2.1:1".parse().unwrap()
    }

    /// Yields one connection, and then none for ever.
    fn once(
        connection: Pipe,
    ) -> impl FnMut() -> futures_util::future::BoxFuture<'static, io::Result<(Pipe, SocketAddr)>>
    {
        let mut connection = Some(connection);
        move || match connection.take() {
            Some(connection) => Box::pin(ready(Ok((connection, remote())))),
            None => Box::pin(pending()),
        }
    }

    #[test]
    fn a_connections_future_is_small() {
        let sim = Sim::new();
        let server = sim.server();
        let (_near, far) = pipe(64);
        let (tell, sized) = std::sync::mpsc::channel();
        let _accepting = sim.start(async move {
            let serve = |(connection, remote), place, leave| {
                let accepted = Accepted {
                    remote,
                    place,
                    leave,
                };
                let open = |connection: Pipe| ready(Ok(connection));
                let future = serve_connection(server.clone(), accepted, open, connection);
                tell.send(size_of_val(&future)).unwrap();
            };
            server.accept_all(once(far), serve).await;
        });
        sim.run();
        let size = sized.try_recv().expect("it was accepted");
        assert!(size <= FUTURE_BYTES_MAX, "{size} bytes");
    }

    /// Serves one connection whose TLS, so to speak, never gets on.
    fn hanging(sim: &Sim, server: &MeshServer) -> Pipe {
        let (near, far) = pipe(64);
        let server = server.clone();
        sim.start(async move {
            let open = |connection: Pipe| async move {
                let () = pending().await;
                Ok(connection)
            };
            server.serve_http1(once(far), open).await;
        });
        sim.run();
        near
    }

    #[test]
    fn an_opening_that_hangs_has_the_time_of_a_handshake() {
        let sim = Sim::new();
        let server = sim.server();
        let time_max = server.limits().handshake_time_max;
        let mut near = hanging(&sim, &server);
        sim.advance(time_max - Duration::from_secs(1));
        let ended = sim.start(async move { near.read().await });
        sim.run();
        assert!(!ended.is_done());
        sim.advance(Duration::from_secs(1));
        assert_eq!(ended.take().unwrap(), b"");
    }

    #[test]
    fn an_opening_that_hangs_ends_when_the_server_stops() {
        let sim = Sim::new();
        let server = sim.server();
        let mut near = hanging(&sim, &server);
        let ended = sim.start(async move { near.read().await });
        sim.run();
        assert!(!ended.is_done());
        sim.wait(async move { server.shutdown().await }).unwrap();
        assert_eq!(ended.take().unwrap(), b"");
    }

    #[test]
    fn a_connection_that_cannot_be_opened_is_dropped() {
        let sim = Sim::new();
        let server = sim.server();
        let (mut near, far) = pipe(64);
        sim.start(async move {
            let open = |_: Pipe| ready(Err::<Pipe, _>(io::ErrorKind::InvalidData.into()));
            server.serve_http1(once(far), open).await;
        });
        assert_eq!(sim.wait(async move { near.read().await }), b"");
    }
}
