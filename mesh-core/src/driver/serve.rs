//! The task of one connection.

use std::{
    collections::VecDeque,
    future::{Future, poll_fn},
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use super::{
    Connection, Socket, SocketError,
    authenticate::Admission,
    connection::Shared,
    dispatch::{self, Incoming},
    handler::Wanted,
    hooks::Fault,
    registry::Registry,
    server::{Completion, Inner},
};
use crate::{
    connection::{Action, Connection as Machine, FRAMES_KEPT, Received},
    protocol::{encode, names},
    websocket::{CloseCode, CloseFrame, TextFrame},
};

/// Reads of one connection before it is another one's turn.
const TURN: usize = 2;

/// How long the handlers of a connection that is gone may run on. Then they are dropped where they wait.
const HANDLER_GRACE: Duration = Duration::from_secs(10);

/// Serves one connection, from its first frame to the end of its cleanup.
pub(super) async fn serve(server: Arc<Inner>, admission: Admission, socket: Box<dyn Socket>) {
    // The parts that run once are boxed, so that the future that stays is small.
    let Some((connection, admission)) = Box::pin(open(&server, admission)).await else {
        return;
    };
    let fault = Loop {
        registry: server.registrations.snapshot(),
        registry_version: server.registrations.version(),
        server: Arc::clone(&server),
        connection: connection.clone(),
        socket,
        outgoing: VecDeque::new(),
        phase: Phase::Running,
    }
    .await;
    Box::pin(close(server, connection, fault)).await;
    drop(admission);
}

async fn open(server: &Arc<Inner>, admission: Admission) -> Option<(Connection, Admission)> {
    if let Err(error) = server.start().await {
        tracing::warn!(%error, "a connection came while the backend could not be reached");
    }
    let id = server.new_connection_id();
    let now = server.runtime.now();
    let mut machine = Machine::new(Arc::clone(&server.config), now);
    if server.assign_id {
        let event = server.config.dialect.name(names::ASSIGN_ID);
        if let Ok(frame) = encode::event(&event, id.as_str()) {
            machine.handle_event(frame, now);
        }
    }
    let shared = Arc::new(Shared::new(
        id.clone(),
        server.next_number(),
        admission.remote,
        server,
        admission.metadata.clone(),
        machine,
    ));
    server
        .counters
        .connections_total
        .fetch_add(1, Ordering::Relaxed);
    shared.arm(shared.lock());
    let registered = server
        .request(id.as_str(), |shard, done| {
            shard.handle_open(&id, Arc::clone(&shared), admission.metadata.clone(), done);
        })
        .await;
    let connection = Connection { shared };
    if let Err(error) = registered {
        tracing::warn!(%id, %error, "a connection could not be registered");
        let reason = "the backend cannot be reached".to_owned();
        connection.shared.close(
            CloseFrame {
                code: CloseCode::TRY_AGAIN_LATER,
                reason,
            },
            server.runtime.now(),
        );
    }
    server.hooks.connected(&connection).await;
    if server.stopping.is_set() {
        connection.close(CloseCode::GOING_AWAY, "the server shuts down");
    }
    Some((connection, admission))
}

/// Every step happens, whatever becomes of the others.
async fn close(server: Arc<Inner>, connection: Connection, fault: Option<SocketError>) {
    let shared = &connection.shared;
    shared.lock().machine.handle_gone();
    shared.disarm();
    server.with_all_shards(|shard| shard.handle_gone(&shared.id));
    server.with_shard(shared.id.as_str(), |shard| {
        shard.handle_close(&shared.id, Completion::Nobody("close a connection"));
    });
    if let Some(error) = fault {
        server.hooks.report(&Fault::Socket {
            connection: connection.clone(),
            error,
        });
    }
    server.hooks.disconnected(&connection).await;
    let waiting = std::mem::take(&mut shared.lock().waiting);
    drop(waiting);
    let grace = if server.stopping.is_set() {
        Duration::ZERO
    } else {
        HANDLER_GRACE
    };
    handlers_end(&server, shared, grace).await;
}

/// Waits for the handlers that still run, then drops them: a handler that never ends must not outlive its client for ever.
async fn handlers_end(server: &Arc<Inner>, shared: &Arc<Shared>, grace: Duration) {
    if shared.lock().running.is_empty() {
        return;
    }
    let mut timer = server.runtime.sleep_until(server.runtime.now() + grace);
    poll_fn(|cx| {
        let mut state = shared.lock();
        if state.running.is_empty() {
            return Poll::Ready(());
        }
        state.waker = Some(cx.waker().clone());
        drop(state);
        timer.as_mut().poll(cx)
    })
    .await;
    let running = std::mem::take(&mut shared.lock().running);
    for handle in running.into_values() {
        handle.abort();
    }
}

enum Phase {
    Running,
    /// The close handshake, with the frame that began it.
    Closing(CloseFrame),
    /// The peer closed, or broke the protocol, with this; the socket sends the answer.
    PeerClosed(SocketError),
}

/// The loop: take what is queued, write it, read what is there, and sleep until one of them has more.
struct Loop {
    server: Arc<Inner>,
    connection: Connection,
    socket: Box<dyn Socket>,
    registry: Arc<Registry>,
    registry_version: u64,
    /// What the machine handed out and the socket has not taken.
    outgoing: VecDeque<TextFrame>,
    phase: Phase,
}

impl Future for Loop {
    /// What ended the connection, where it was a fault.
    type Output = Option<SocketError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let now = this.server.runtime.now();
        this.connection.shared.lock().waker = None;
        for _ in 0..TURN {
            let wants_input = match this.collect(cx, now) {
                Collected::Dropped => return Poll::Ready(None),
                Collected::Go { wants_input } => wants_input,
            };
            if !matches!(this.phase, Phase::Running) {
                match this.poll_close(cx) {
                    Poll::Ready(fault) => return Poll::Ready(fault),
                    Poll::Pending if this.sleep(cx, false) => return Poll::Pending,
                    Poll::Pending => continue,
                }
            }
            if let Err(error) = this.write(cx) {
                return Poll::Ready(Some(error));
            }
            let read = if wants_input {
                this.read(cx, now)
            } else {
                Poll::Pending
            };
            match read {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => {
                    this.end_of_input(error, now);
                    if matches!(this.phase, Phase::Running) {
                        return Poll::Ready(None);
                    }
                }
                // A pause of reading that just ended is noticed by `sleep`.
                Poll::Pending if this.sleep(cx, !wants_input) => return Poll::Pending,
                Poll::Pending => {}
            }
        }
        // More may be waiting, but so may other connections. What is queued goes out first.
        if let Collected::Dropped = this.collect(cx, now) {
            return Poll::Ready(None);
        }
        if matches!(this.phase, Phase::Running)
            && let Err(error) = this.write(cx)
        {
            return Poll::Ready(Some(error));
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

enum Collected {
    /// The peer had its time to answer the close frame.
    Dropped,
    Go {
        wants_input: bool,
    },
}

impl Loop {
    /// Takes frames and actions from the machine.
    fn collect(&mut self, cx: &mut Context<'_>, now: Instant) -> Collected {
        loop {
            let mut state = self.connection.shared.lock();
            state.machine.take_outgoing(&mut self.outgoing);
            let action = state.machine.poll_action();
            let waiting = match action {
                None => {
                    let wants_input = state.machine.wants_input();
                    return Collected::Go { wants_input };
                }
                Some(Action::Drop) => return Collected::Dropped,
                Some(Action::Close { frame, discard }) => {
                    if discard {
                        self.outgoing.clear();
                    }
                    self.phase = Phase::Closing(frame);
                    // The close frame has a deadline of its own.
                    self.connection.shared.arm(state);
                    continue;
                }
                Some(Action::Start(token)) => state.waiting.remove(&token).map(|w| (token, w)),
            };
            drop(state);
            if let Some((token, waiting)) = waiting {
                let incoming = Incoming {
                    wanted: Wanted {
                        token,
                        id: waiting.id,
                    },
                    name: waiting.name.into(),
                    payload: waiting.payload,
                };
                self.dispatch(cx, now, incoming);
            }
        }
    }

    fn write(&mut self, cx: &mut Context<'_>) -> Result<(), SocketError> {
        let had = !self.outgoing.is_empty();
        let sent = self.socket.poll_send(cx, &mut self.outgoing);
        if let Poll::Ready(Err(error)) = sent {
            return Err(error);
        }
        if had {
            let unsent = self.outgoing.iter().map(TextFrame::len).sum();
            self.connection.shared.lock().machine.handle_unsent(unsent);
        }
        if self.outgoing.is_empty() && self.outgoing.capacity() > FRAMES_KEPT {
            self.outgoing = VecDeque::new();
        }
        Ok(())
    }

    fn read(&mut self, cx: &mut Context<'_>, now: Instant) -> Poll<Result<(), SocketError>> {
        let version = self.server.registrations.version();
        if version != self.registry_version {
            self.registry = self.server.registrations.snapshot();
            self.registry_version = version;
        }
        let waker = cx.waker();
        let mut cx = Context::from_waker(waker);
        let Self {
            server,
            connection,
            socket,
            registry,
            ..
        } = self;
        socket.poll_receive(&mut cx, &mut |message| {
            // Parsed outside of the lock: whoever publishes to this connection does not wait for it.
            let frame = server.config.read(message);
            let received = connection.shared.lock().machine.handle_frame(frame, now);
            let Received::Command(command) = received else {
                return;
            };
            let (token, id) = (command.token, command.id);
            let payload = super::Payload::from_parsed(command.payload);
            if command.start {
                let incoming = Incoming {
                    wanted: Wanted { token, id },
                    name: command.name,
                    payload,
                };
                let mut cx = Context::from_waker(waker);
                dispatch::dispatch(server, registry, connection, incoming, &mut cx, now);
            } else {
                let waiting = super::connection::Waiting {
                    id,
                    name: command.name.into_owned(),
                    payload,
                };
                connection.shared.lock().waiting.insert(token, waiting);
            }
        })
    }

    fn dispatch(&self, cx: &mut Context<'_>, now: Instant, incoming: Incoming<'_>) {
        dispatch::dispatch(
            &self.server,
            &self.registry,
            &self.connection,
            incoming,
            cx,
            now,
        );
    }

    /// Nothing more comes in.
    fn end_of_input(&mut self, error: SocketError, now: Instant) {
        match error {
            SocketError::Gone | SocketError::Io(_) => {}
            SocketError::Closed(_) | SocketError::Protocol(_) => {
                let mut state = self.connection.shared.lock();
                state.machine.handle_peer_closed(now);
                self.connection.shared.arm(state);
                self.outgoing.clear();
                self.phase = Phase::PeerClosed(error);
            }
        }
    }

    /// Sends what is left, then the close frame, and waits for the peer's.
    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<Option<SocketError>> {
        if !self.outgoing.is_empty() {
            match self.socket.poll_send(cx, &mut self.outgoing) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Some(error)),
                Poll::Pending => return Poll::Pending,
            }
        }
        let answer;
        let frame = match &self.phase {
            Phase::Closing(frame) => frame,
            Phase::PeerClosed(error) => {
                answer = CloseFrame {
                    code: match error {
                        SocketError::Protocol(error) => error.close_code(),
                        _ => CloseCode::NORMAL,
                    },
                    reason: String::new(),
                };
                &answer
            }
            Phase::Running => return Poll::Pending,
        };
        let closed = self.socket.poll_close(cx, frame);
        closed.map(
            |_| match std::mem::replace(&mut self.phase, Phase::Running) {
                Phase::PeerClosed(error @ SocketError::Protocol(_)) => Some(error),
                _ => None,
            },
        )
    }

    /// Goes to sleep, unless something came up meanwhile: then there is another round. `paused`: reading is, so its
    /// resumption is something, too.
    fn sleep(&self, cx: &mut Context<'_>, paused: bool) -> bool {
        let mut state = self.connection.shared.lock();
        if state.machine.has_work() || (paused && state.machine.wants_input()) {
            return false;
        }
        state.waker = Some(cx.waker().clone());
        true
    }
}

impl super::MeshServer {
    /// Serves one upgraded connection until it is over; the future is small, for it to be spawned.
    ///
    /// `admission` comes from [`handle_request`](Self::handle_request), or from [`admit`](Self::admit) for a stream that another server
    /// upgraded.
    pub fn serve(
        &self,
        admission: Admission,
        socket: Box<dyn Socket>,
    ) -> impl Future<Output = ()> + Send + 'static + use<> {
        serve(Arc::clone(&self.inner), admission, socket)
    }

    /// Lets in a connection that something else has judged: no origin check, no `authenticate`.
    ///
    /// # Errors
    /// [`Refusal`](super::Refusal) with status 503 where the server is full or ends.
    pub fn admit(&self, remote: Option<SocketAddr>) -> Result<Admission, super::Refusal> {
        Admission::take(&self.inner, remote)
    }
}
