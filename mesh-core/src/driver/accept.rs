//! The accept loop of a listener: who comes in, who has to go for it, and what happens where accepting fails.

use std::{
    future::{Future, poll_fn},
    io,
    net::SocketAddr,
    pin::{Pin, pin},
    sync::{Arc, PoisonError},
    task::{Context, Poll, Waker},
    time::Duration,
};

use futures_channel::oneshot;
use futures_util::future::select;
use http::{HeaderValue, header, request};

use super::{
    FrontDoor, MeshServer,
    episode::Episode,
    lobby::{Arrival, Lobby, Ticket},
};
use crate::sync::{Mutex, MutexGuard, atomic::Ordering};

/// The first pause after accepting failed; it doubles up to [`PAUSE_MAX`] while nobody can be told to go.
const PAUSE_MIN: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// A connection's place at its listener until it is upgraded or over. Dropping it makes room for another.
#[derive(Debug)]
pub struct Place {
    server: MeshServer,
    entrance: Entrance,
    ticket: Ticket,
}

impl Place {
    /// [`MeshServer::handle_request`], for a connection that may ask again: it gives way to nobody until the answer, with which its time
    /// begins anew, and where places are few the answer says that the connection ends with it (`Connection: close`).
    pub async fn handle_request(
        &self,
        head: request::Parts,
        remote: Option<SocketAddr>,
    ) -> FrontDoor {
        let deciding = Deciding::begin(self);
        let mut answer = self.server.handle_request(head, remote).await;
        drop(deciding);
        if let FrontDoor::Respond(response) = &mut answer
            && self.is_crowded()
        {
            // Beside what it says already: 426 names the upgrade there.
            let close = HeaderValue::from_static("close");
            response.headers_mut().append(header::CONNECTION, close);
        }
        answer
    }

    fn is_crowded(&self) -> bool {
        let now = self.server.inner.runtime.now();
        self.entrance.state().lobby.is_crowded(now)
    }
}

/// A request that is being decided about. It ends with its answer, and where nobody waits for that any more.
struct Deciding<'a>(&'a Place);

impl<'a> Deciding<'a> {
    fn begin(place: &'a Place) -> Self {
        place.entrance.state().lobby.handle_request(place.ticket);
        Self(place)
    }
}

impl Drop for Deciding<'_> {
    fn drop(&mut self) {
        let Place {
            server,
            entrance,
            ticket,
        } = self.0;
        let now = server.inner.runtime.now();
        entrance.state().lobby.handle_answer(*ticket, now);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let (told, waiting) = {
            let mut state = self.entrance.state();
            let told = state.lobby.handle_departure(self.ticket);
            (told, state.waiting.take())
        };
        // Both run foreign code, a waker's, and so not under the lock.
        drop(told);
        if let Some(waker) = waiting {
            waker.wake();
        }
    }
}

/// How a connection that is not upgraded has to leave.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Leaving {
    /// With the answer to its request, or at once if there is none: the listener is no more.
    AfterExchange,
    /// At once: a newcomer has its place.
    AtOnce,
}

/// Resolves when a connection has to leave, unless it was upgraded before.
#[derive(Debug)]
#[must_use = "a connection that does not hear of it stays"]
pub struct Leave(oneshot::Receiver<()>);

impl Future for Leave {
    type Output = Leaving;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Leaving> {
        Pin::new(&mut self.0).poll(cx).map(|told| match told {
            Ok(()) => Leaving::AtOnce,
            Err(oneshot::Canceled) => Leaving::AfterExchange,
        })
    }
}

impl MeshServer {
    /// The accept loop of a listener: hands every connection that `accept` yields to `serve`, until the server stops.
    ///
    /// At most [`handshakes_max`](super::Limits::handshakes_max) of them hold a [`Place`] at once. Where all are taken, the one that has been
    /// quiet for longest, and for a second at least, is told to leave ([`Leaving::AtOnce`]); quiet is who waits for no answer of the
    /// server's. While there is none the newcomer waits, and nobody else is accepted. When this future ends or is dropped, all are told to leave ([`Leaving::AfterExchange`]).
    ///
    /// A connection that failed before it was accepted is passed over. After any other failure `accept` is called again after a pause of
    /// 10 ms, which grows to 1 s while it fails again. Where it failed for want of file descriptors or memory, the quietest is told to leave
    /// likewise. A call that waits when the server stops is dropped.
    pub async fn accept_all<C, A>(
        &self,
        accept: impl FnMut() -> A,
        serve: impl FnMut(C, Place, Leave),
    ) where
        A: Future<Output = io::Result<C>>,
    {
        let listener = Listener(Entrance::new(self.limits().handshakes_max));
        let accepting = pin!(self.accept_for_ever(&listener.0, accept, serve));
        select(accepting, pin!(self.wait_stopping())).await;
    }

    async fn accept_for_ever<C, A>(
        &self,
        entrance: &Entrance,
        mut accept: impl FnMut() -> A,
        mut serve: impl FnMut(C, Place, Leave),
    ) where
        A: Future<Output = io::Result<C>>,
    {
        let mut pause = PAUSE_MIN;
        let mut failures = Episode::default();
        loop {
            match accept().await {
                Ok(connection) => {
                    pause = PAUSE_MIN;
                    let (place, leave) = entrance.enter(self).await;
                    serve(connection, place, leave);
                }
                Err(error) if is_of_the_peer(error.kind()) => {
                    tracing::debug!(%error, "a connection was gone before it was accepted");
                }
                Err(error) => {
                    let runtime = &self.inner.runtime;
                    let counters = &self.inner.counters;
                    counters.accept_errors.fetch_add(1, Ordering::Relaxed);
                    if is_exhaustion(&error) {
                        let gives_way = entrance.state().lobby.handle_exhaustion(runtime.now());
                        if let Some(told) = gives_way {
                            pause = PAUSE_MIN;
                            self.evict(told);
                        }
                    }
                    if failures.begins(runtime.now()) {
                        tracing::warn!(%error, "cannot accept connections; trying again after a pause, and from now on quietly");
                    } else {
                        tracing::debug!(%error, ?pause, "cannot accept connections");
                    }
                    runtime.sleep_until(runtime.now() + pause).await;
                    pause = PAUSE_MAX.min(pause * 2);
                }
            }
        }
    }
}

impl MeshServer {
    fn evict(&self, told: Told) {
        // It may be upgraded or over by now, and its place is on its way back.
        if told.send(()).is_ok() {
            let evicted = &self.inner.counters.handshakes_evicted;
            evicted.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Whether the process or the system has no room for another connection, so that it helps if one goes.
fn is_exhaustion(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::OutOfMemory
        || error
            .raw_os_error()
            .is_some_and(|code| EXHAUSTED.contains(&code))
}

/// `ENOMEM`, `ENFILE`, `EMFILE`, `ENOBUFS`: the first three are the same on every Unix.
#[cfg(any(target_os = "linux", target_os = "android"))]
const EXHAUSTED: [i32; 4] = [12, 23, 24, 105];
#[cfg(all(unix, not(any(target_os = "linux", target_os = "android"))))]
const EXHAUSTED: [i32; 4] = [12, 23, 24, 55];
/// `ERROR_NOT_ENOUGH_MEMORY`, `WSAEMFILE`, `WSAENOBUFS`.
#[cfg(windows)]
const EXHAUSTED: [i32; 3] = [8, 10_024, 10_055];
#[cfg(not(any(unix, windows)))]
const EXHAUSTED: [i32; 0] = [];

fn is_of_the_peer(kind: io::ErrorKind) -> bool {
    matches!(
        kind,
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::Interrupted
            | io::ErrorKind::TimedOut
    )
}

/// Sent: leave at once. Dropped: leave after the exchange.
type Told = oneshot::Sender<()>;

/// Where newcomers come in, for the accept loop and every place.
#[derive(Clone, Debug)]
struct Entrance(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    lobby: Lobby<Told>,
    /// Who had to go because the listener is full.
    evictions: Episode,
    /// The accept loop, where it waits for somebody to leave.
    waiting: Option<Waker>,
}

impl Entrance {
    fn new(places_max: usize) -> Self {
        Self(Arc::new(Mutex::new(State {
            lobby: Lobby::new(places_max),
            evictions: Episode::default(),
            waiting: None,
        })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a newcomer, as soon as there is one.
    async fn enter(&self, server: &MeshServer) -> (Place, Leave) {
        let runtime = &server.inner.runtime;
        let (mut told, leave) = oneshot::channel();
        loop {
            let arrival = self.state().lobby.handle_arrival(told, runtime.now());
            match arrival {
                Arrival::Admitted { ticket, gives_way } => {
                    if let Some(told) = gives_way {
                        server.evict(told);
                        if self.state().evictions.begins(runtime.now()) {
                            tracing::warn!(
                                handshakes_max = server.limits().handshakes_max,
                                "a listener is full; who is quiet before the upgrade makes room for others"
                            );
                        }
                    }
                    let place = Place {
                        server: server.clone(),
                        entrance: self.clone(),
                        ticket,
                    };
                    return (place, Leave(leave));
                }
                Arrival::Full { token, until } => {
                    told = token;
                    let somebody_left = pin!(poll_fn(|cx| self.poll_room(cx)));
                    select(somebody_left, runtime.sleep_until(until)).await;
                }
            }
        }
    }

    fn poll_room(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.state();
        if !state.lobby.is_full() {
            return Poll::Ready(());
        }
        state.waiting = Some(cx.waker().clone());
        Poll::Pending
    }
}

/// Ends with its listener, and then everybody has to go.
struct Listener(Entrance);

impl Drop for Listener {
    fn drop(&mut self) {
        let inside = self.0.state().lobby.handle_end();
        drop(inside); // Not under the lock: it wakes them.
    }
}

#[cfg(test)]
mod models {
    use mesh_model::{Thread, block_on, check, thread};

    use super::*;
    use crate::driver::models::World;

    #[test]
    fn a_place_that_is_given_back_lets_the_next_in() {
        check(200, || {
            let server = World::default().server();
            let entrance = Entrance::new(2);
            let mut inside = Vec::new();
            // Time stands still, and nobody gives way: all that lets a newcomer in is another's end.
            for _ in 0..5 {
                let (place, leave) = block_on(entrance.enter(&server));
                inside.push(thread(move || drop((place, leave))));
            }
            inside.into_iter().for_each(Thread::join);
            let state = entrance.state();
            assert!(state.lobby.is_empty() && state.waiting.is_none());
        });
    }

    #[test]
    fn who_gives_way_gives_up_one_place_and_no_more() {
        check(200, || {
            let world = World::default();
            let server = world.server();
            let entrance = Entrance::new(1);
            let told = thread({
                let (place, leave) = block_on(entrance.enter(&server));
                move || {
                    let leaving = block_on(leave);
                    drop(place);
                    leaving
                }
            });
            let time = thread(move || world.0.advance(Duration::from_secs(1)));
            let (place, _leave) = block_on(entrance.enter(&server));
            time.join();
            assert_eq!(told.join(), Leaving::AtOnce);
            assert!(entrance.state().lobby.is_full());
            drop(place);
            assert!(entrance.state().lobby.is_empty());
        });
    }

    #[test]
    fn the_end_of_a_listener_tells_all_who_are_inside() {
        check(200, || {
            let server = World::default().server();
            let listener = Listener(Entrance::new(2));
            let inside = [(); 2].map(|()| {
                let (place, leave) = block_on(listener.0.enter(&server));
                thread(move || {
                    let leaving = block_on(leave);
                    drop(place);
                    leaving
                })
            });
            drop(listener);
            let told = inside.map(Thread::join);
            assert_eq!(told, [Leaving::AfterExchange; 2]);
        });
    }
}
