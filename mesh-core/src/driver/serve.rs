//! The task of one connection.

use std::{
    collections::{BTreeMap, VecDeque},
    future::{Future, poll_fn},
    net::SocketAddr,
    pin::{Pin, pin},
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use tracing::Instrument;

use super::{
    Call, Connection, ServerError, Session, Socket, SocketError,
    authenticate::Admission,
    connection::Shared,
    dispatch::{self, Incoming},
    handler::Wanted,
    hooks::Fault,
    inside::{self, Inside},
    registry::Registry,
    server::{Completion, Inner},
};
use crate::{
    backend::BackendError,
    connection::{Action, Connection as Machine, FRAMES_KEPT, Received},
    protocol::{encode, names},
    websocket::{CloseCode, CloseFrame, TextFrame},
};

/// Reads of one connection before it is another one's turn.
const READS_PER_TURN: usize = 2;

/// Commands of one connection before it is another one's turn: one read may hold thousands, and a handler may take its time.
const COMMANDS_PER_TURN: usize = 64;

/// How long the handlers of a connection that is gone may run on. Then they are dropped where they wait.
const HANDLER_GRACE: Duration = Duration::from_secs(10);

/// Serves one connection, from its first frame to the end of its cleanup.
pub(super) async fn serve(server: Arc<Inner>, admission: Admission, socket: Box<dyn Socket>) {
    // The parts that run once are boxed, so that the future that stays is small.
    let connection = Inside(Box::pin(open(&server, &admission))).await;
    let span = tracing::debug_span!("connection", id = %connection.id());
    let session = Session {
        connection: connection.clone(),
        server: super::MeshServer::from_inner(Arc::clone(&server)),
    };
    let (end, socket, outgoing) = Loop {
        registry: server.registrations.snapshot(),
        session: Arc::new(session),
        socket: Some(socket),
        spare: None,
        outgoing: VecDeque::new(),
        backlog: VecDeque::new(),
    }
    .instrument(span.clone())
    .await;
    Inside(Box::pin(
        close(server, connection, admission, end, socket, outgoing).instrument(span),
    ))
    .await;
}

async fn open(server: &Arc<Inner>, admission: &Admission) -> Connection {
    let started = server.start().await;
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
    let registered = match started {
        Ok(()) => {
            let metadata = admission.metadata.clone();
            server
                .request(id.as_str(), |shard, done| {
                    shard.handle_open(&id, Arc::clone(&shared), metadata, done);
                })
                .await
        }
        Err(error) => Err(error.into()),
    };
    let connection = Connection { shared };
    if let Err(error) = registered {
        tracing::warn!(%id, %error, "a connection could not be registered");
        let reason = match error {
            ServerError::Backend(BackendError::Full(_)) => "the backend is full",
            _ => "the backend cannot be reached",
        };
        let reason = reason.to_owned();
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
    connection
}

/// Every step happens, whatever becomes of the others, and those that concern others come first: the client is in no room
/// any more while it still has its time to take the close frame.
async fn close(
    server: Arc<Inner>,
    connection: Connection,
    admission: Admission,
    end: End,
    socket: Box<dyn Socket>,
    outgoing: VecDeque<TextFrame>,
) {
    let shared = &connection.shared;
    let now = server.runtime.now();
    server.with_all_shards(|shard| shard.handle_gone(&shared.id, now));
    server.with_shard(shared.id.as_str(), |shard| {
        shard.handle_close(&shared.id, Completion::Nobody("close a connection"));
    });
    let farewell = async {
        let fault = farewell(shared, end, socket, outgoing).await;
        shared.lock().machine.handle_gone();
        shared.disarm();
        if let Some(error) = fault {
            let connection = connection.clone();
            server.hooks.report(&Fault::Socket { connection, error });
        }
    };
    futures_util::join!(farewell, server.hooks.disconnected(&connection));
    shared.lock().waiting = BTreeMap::new();
    // Handlers that run on take nobody's place.
    drop(admission);
    handlers_end(&server, shared).await;
}

/// Sends what is left, then the close frame, and waits for the peer's, as long as the machine allows. Tells what ended the
/// connection, where that was a fault.
async fn farewell(
    shared: &Arc<Shared>,
    end: End,
    mut socket: Box<dyn Socket>,
    mut outgoing: VecDeque<TextFrame>,
) -> Option<SocketError> {
    let (frame, fault) = match end {
        End::Closing(frame) => (frame, None),
        End::Expired => return None,
        End::Lost(error @ (SocketError::Gone | SocketError::Io(_))) => return Some(error),
        End::Lost(error) => {
            let code = match &error {
                SocketError::Protocol(error) => error.close_code(),
                _ => CloseCode::NORMAL,
            };
            let reason = String::new();
            let fault = matches!(error, SocketError::Protocol(_)).then_some(error);
            (CloseFrame { code, reason }, fault)
        }
    };
    poll_fn(|cx| {
        {
            let mut state = shared.lock();
            state.waker = Some(cx.waker().clone());
            state.machine.take_outgoing(&mut outgoing);
            while let Some(action) = state.machine.poll_action() {
                if action == Action::Drop {
                    return Poll::Ready(());
                }
            }
        }
        if !outgoing.is_empty() {
            match socket.poll_send(cx, &mut outgoing) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => return Poll::Ready(()),
                Poll::Pending => return Poll::Pending,
            }
        }
        socket.poll_close(cx, &frame).map(drop)
    })
    .await;
    fault
}

/// Waits for the handlers that still run, then drops them: a handler that never ends must not outlive its client for ever, nor keep a
/// server that ends.
async fn handlers_end(server: &Arc<Inner>, shared: &Arc<Shared>) {
    if shared.lock().running.is_empty() {
        return;
    }
    let mut timer = server
        .runtime
        .sleep_until(server.runtime.now() + HANDLER_GRACE);
    let mut stopping = pin!(server.stopping.wait());
    poll_fn(|cx| {
        let mut state = shared.lock();
        if state.running.is_empty() {
            return Poll::Ready(());
        }
        state.waker = Some(cx.waker().clone());
        drop(state);
        if stopping.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        timer.as_mut().poll(cx)
    })
    .await;
    let running = std::mem::take(&mut shared.lock().running);
    for handle in running.into_values() {
        handle.abort();
    }
}

/// Why the loop ended.
enum End {
    /// This side closes, with this frame.
    Closing(CloseFrame),
    /// It was to close, and its time for that was over before anybody could.
    Expired,
    /// The peer closed, broke the protocol, or is gone; where there is an answer to that, the socket knows it.
    Lost(SocketError),
}

/// The loop: take what is queued, write it, read what is there, and sleep until one of them has more.
struct Loop {
    session: Arc<Session>,
    /// `None` once the loop has ended.
    socket: Option<Box<dyn Socket>>,
    registry: Arc<Registry>,
    /// The call of the last command, for the next.
    spare: Option<Arc<Call>>,
    /// What the machine handed out and the socket has not taken.
    outgoing: VecDeque<TextFrame>,
    /// Commands that were read and are more than one turn's share.
    backlog: VecDeque<Incoming<'static>>,
}

impl Future for Loop {
    /// Why it ended, the socket, and what was not written.
    type Output = (End, Box<dyn Socket>, VecDeque<TextFrame>);

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let _inside = inside::enter();
        let this = &mut *self;
        let Some(mut socket) = this.socket.take() else {
            return Poll::Pending;
        };
        match this.turn(&mut *socket, cx) {
            Poll::Ready(end) => Poll::Ready((end, socket, std::mem::take(&mut this.outgoing))),
            Poll::Pending => {
                this.socket = Some(socket);
                Poll::Pending
            }
        }
    }
}

impl Loop {
    fn shared(&self) -> &Arc<Shared> {
        &self.session.connection.shared
    }

    fn turn(&mut self, socket: &mut dyn Socket, cx: &mut Context<'_>) -> Poll<End> {
        let now = self.session.server.inner.runtime.now();
        self.shared().lock().waker = None;
        let mut share = COMMANDS_PER_TURN;
        for _ in 0..READS_PER_TURN {
            self.run_backlog(&mut share, cx, now);
            let wants_input = match self.collect(&mut share, cx, now) {
                Ok(wants_input) => wants_input && self.backlog.is_empty(),
                Err(end) => return Poll::Ready(end),
            };
            if let Err(error) = self.write(socket, cx) {
                return Poll::Ready(self.lost(error, now));
            }
            let read = if wants_input {
                self.read(socket, &mut share, cx, now)
            } else {
                Poll::Pending
            };
            match read {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(self.lost(error, now)),
                Poll::Pending if self.sleep(cx, wants_input) => return Poll::Pending,
                Poll::Pending => {}
            }
        }
        // More may be waiting, but so may other connections. What is queued goes out first.
        if let Err(end) = self.collect(&mut share, cx, now) {
            return Poll::Ready(end);
        }
        if let Err(error) = self.write(socket, cx) {
            return Poll::Ready(self.lost(error, now));
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Runs commands that were left over, by earlier turns or because the peer is owed too much already.
    fn run_backlog(&mut self, share: &mut usize, cx: &mut Context<'_>, now: Instant) {
        while *share > 0
            && !self.backlog.is_empty()
            && !self.shared().lock().machine.is_congested()
            && let Some(incoming) = self.backlog.pop_front()
        {
            *share -= 1;
            dispatch::dispatch(
                &self.session,
                &self.registry,
                &mut self.spare,
                incoming,
                cx,
                now,
            );
        }
        if self.backlog.is_empty() && self.backlog.capacity() > 0 {
            self.backlog = VecDeque::new();
        }
    }

    /// Takes frames and actions from the machine, and tells whether it wants input.
    fn collect(
        &mut self,
        share: &mut usize,
        cx: &mut Context<'_>,
        now: Instant,
    ) -> Result<bool, End> {
        loop {
            let shared = &self.session.connection.shared;
            let mut state = shared.lock();
            state.machine.take_outgoing(&mut self.outgoing);
            let token = match state.machine.poll_action() {
                None => return Ok(state.machine.wants_input()),
                Some(Action::Close { frame, discard }) => {
                    if discard {
                        self.outgoing.clear();
                    }
                    // The close frame has a deadline of its own.
                    shared.arm(state);
                    return Err(End::Closing(frame));
                }
                Some(Action::RefreshRecord(record)) => {
                    drop(state);
                    let (server, shared) = (&self.session.server.inner, Arc::clone(shared));
                    server.with_shard(&record, |shard| {
                        let id = shared.id.clone();
                        shard.refresh_record(&record, &id, shared, now);
                    });
                    continue;
                }
                // In place of a close that came while the connection was still being registered.
                Some(Action::Drop) => return Err(End::Expired),
                Some(Action::Start(token)) => token,
            };
            if let Some(waiting) = state.waiting.remove(&token) {
                drop(state);
                self.backlog.push_back(waiting);
                self.run_backlog(share, cx, now);
            }
        }
    }

    fn write(&mut self, socket: &mut dyn Socket, cx: &mut Context<'_>) -> Result<(), SocketError> {
        let had = !self.outgoing.is_empty();
        if let Poll::Ready(Err(error)) = socket.poll_send(cx, &mut self.outgoing) {
            return Err(error);
        }
        if had {
            let unsent = self.outgoing.iter().map(TextFrame::len).sum();
            self.shared().lock().machine.handle_unsent(unsent);
        }
        if self.outgoing.is_empty() && self.outgoing.capacity() > FRAMES_KEPT {
            self.outgoing = VecDeque::new();
        }
        Ok(())
    }

    fn read(
        &mut self,
        socket: &mut dyn Socket,
        share: &mut usize,
        cx: &mut Context<'_>,
        now: Instant,
    ) -> Poll<Result<(), SocketError>> {
        let Self {
            session,
            registry,
            spare,
            backlog,
            ..
        } = self;
        let server = &session.server.inner;
        if !server.registrations.is_current(registry) {
            *registry = server.registrations.snapshot();
        }
        let waker = cx.waker();
        let mut cx = Context::from_waker(waker);
        let shared = &session.connection.shared;
        socket.poll_receive(&mut cx, &mut |message| {
            // Parsed outside of the lock: whoever publishes to this connection does not wait for it.
            let frame = server.config.read(message);
            let (received, congested) = {
                let machine = &mut shared.lock().machine;
                (machine.handle_frame(frame, now), machine.is_congested())
            };
            let Received::Command(command) = received else {
                return;
            };
            let wanted = Wanted {
                token: command.token,
                id: command.id,
            };
            let payload = super::Payload::from_parsed(command.payload);
            if command.start && *share > 0 && !congested && backlog.is_empty() {
                *share -= 1;
                let incoming = Incoming {
                    wanted,
                    name: command.name,
                    payload,
                };
                let mut cx = Context::from_waker(waker);
                dispatch::dispatch(session, registry, spare, incoming, &mut cx, now);
                return;
            }
            let incoming = Incoming {
                wanted,
                name: command.name.into_owned().into(),
                payload,
            };
            if command.start {
                backlog.push_back(incoming);
            } else {
                shared.lock().waiting.insert(command.token, incoming);
            }
        })
    }

    /// Nothing more comes in, and nothing but a close frame goes out.
    fn lost(&mut self, error: SocketError, now: Instant) -> End {
        let mut state = self.shared().lock();
        state.machine.handle_peer_closed(now);
        self.shared().arm(state);
        self.outgoing.clear();
        End::Lost(error)
    }

    /// Goes to sleep, unless something came up meanwhile: then there is another round. `read`: all that is at hand was
    /// read; otherwise the resumption of reading is something, too.
    fn sleep(&self, cx: &mut Context<'_>, read: bool) -> bool {
        let mut state = self.shared().lock();
        let machine = &state.machine;
        let resumed = if self.backlog.is_empty() {
            !read && machine.wants_input()
        } else {
            !machine.is_congested()
        };
        if machine.has_work() || resumed {
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
