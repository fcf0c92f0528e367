//! The handle of one connection.

use std::{
    collections::BTreeMap,
    fmt,
    net::SocketAddr,
    sync::{Arc, PoisonError, Weak},
    task::Waker,
    time::Instant,
};

use futures_util::future::AbortHandle;
use serde::{Serialize, de::DeserializeOwned};

use super::{
    IntoPayload, ServerError,
    dispatch::Incoming,
    server::Inner,
    timers::{Due, Tick, Timers},
};
use crate::{
    backend::{ConnectionId, Json, Name},
    connection::{CommandToken, Connection as Machine, Delivery},
    instance::InstanceError,
    sync::{Mutex, MutexGuard},
    websocket::{CloseCode, CloseFrame, TextFrame},
};

/// One client, connected to this server. Cheap to clone; it keeps nothing open.
#[derive(Clone)]
pub struct Connection {
    pub(super) shared: Arc<Shared>,
}

impl Connection {
    /// The connection's id, unique in the cluster.
    pub fn id(&self) -> &ConnectionId {
        &self.shared.id
    }

    /// The client's address as the socket has it; `None` for a stream that has none.
    pub fn remote_addr(&self) -> Option<SocketAddr> {
        self.shared.remote
    }

    /// Can it still be sent to?
    pub fn is_open(&self) -> bool {
        self.shared.lock().machine.is_open()
    }

    /// The last measured round trip.
    pub fn latency(&self) -> Option<std::time::Duration> {
        self.shared.lock().machine.latency()
    }

    /// Sends an event to this client. To a connection that is closing it goes nowhere.
    ///
    /// # Errors
    /// [`ServerError::Name`] or [`ServerError::ReservedName`] for a name that no event of an application can have,
    /// [`ServerError::Encode`] if the payload has no JSON form.
    pub fn send<T: IntoPayload + ?Sized>(
        &self,
        event: &str,
        payload: &T,
    ) -> Result<(), ServerError> {
        if let Some(server) = self.shared.server.upgrade() {
            let frame = server.event(event, payload)?;
            self.shared.deliver(frame, server.runtime.now());
        }
        Ok(())
    }

    /// Closes the connection: what is queued is sent, then the close frame.
    pub fn close(&self, code: CloseCode, reason: impl Into<String>) {
        if let Some(server) = self.shared.server.upgrade() {
            let reason = reason.into();
            self.shared
                .close(CloseFrame { code, reason }, server.runtime.now());
        }
    }

    /// The connection's metadata, or `None` where it has none.
    ///
    /// # Errors
    /// [`ServerError::Shape`] if it is not a `T`, [`ServerError::Gone`] once the connection is closed.
    #[allow(clippy::unused_async, reason = "as it is for any other connection")]
    pub async fn metadata<T: DeserializeOwned>(&self) -> Result<Option<T>, ServerError> {
        let server = self.shared.server.upgrade().ok_or(ServerError::Gone)?;
        let metadata = server.local_metadata(self.id()).ok_or(ServerError::Gone)?;
        super::metadata::typed(metadata.as_ref())
    }

    /// Replaces the connection's metadata.
    ///
    /// # Errors
    /// [`ServerError`]: no JSON, too large, the connection is closed, or the backend failed.
    pub async fn set_metadata<T: Serialize + ?Sized>(&self, value: &T) -> Result<(), ServerError> {
        let server = self.shared.server.upgrade().ok_or(ServerError::Gone)?;
        super::MeshServer::from_inner(server)
            .connections()
            .set_metadata(self, value)
            .await
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("id", &self.shared.id.as_str())
            .field("remote", &self.shared.remote)
            .finish_non_exhaustive()
    }
}

impl PartialEq for Connection {
    fn eq(&self, other: &Self) -> bool {
        self.shared.id == other.shared.id
    }
}

impl Eq for Connection {}

/// What names a connection: its handle, or its id in any form.
pub trait ConnectionRef {
    /// The id.
    fn connection_id(&self) -> ConnectionId;
}

impl ConnectionRef for Connection {
    fn connection_id(&self) -> ConnectionId {
        self.id().clone()
    }
}

impl ConnectionRef for ConnectionId {
    fn connection_id(&self) -> ConnectionId {
        self.clone()
    }
}

impl ConnectionRef for str {
    fn connection_id(&self) -> ConnectionId {
        ConnectionId::new(self)
    }
}

impl ConnectionRef for String {
    fn connection_id(&self) -> ConnectionId {
        ConnectionId::new(self.as_str())
    }
}

impl<T: ConnectionRef + ?Sized> ConnectionRef for &T {
    fn connection_id(&self) -> ConnectionId {
        (**self).connection_id()
    }
}

/// What the task of a connection and everybody else share.
pub(super) struct Shared {
    pub(super) id: ConnectionId,
    pub(super) number: u64,
    pub(super) remote: Option<SocketAddr>,
    pub(super) server: Weak<Inner>,
    /// What `authenticate` set, which no client command may overwrite.
    pub(super) authenticated: Option<Json>,
    timers: Arc<Timers>,
    state: Mutex<State>,
}

pub(super) struct State {
    pub(super) machine: Machine,
    /// The task, while it sleeps.
    pub(super) waker: Option<Waker>,
    /// Commands that wait for their turn.
    pub(super) waiting: BTreeMap<CommandToken, Incoming<'static>>,
    /// Handlers that run as tasks of their own.
    pub(super) running: BTreeMap<CommandToken, AbortHandle>,
    /// Where the timers have this connection.
    tick: Option<Tick>,
}

impl Shared {
    pub(super) fn new(
        id: ConnectionId,
        number: u64,
        remote: Option<SocketAddr>,
        server: &Arc<Inner>,
        authenticated: Option<Json>,
        machine: Machine,
    ) -> Self {
        Self {
            id,
            number,
            remote,
            server: Arc::downgrade(server),
            authenticated,
            timers: Arc::clone(&server.timers),
            state: Mutex::new(State {
                machine,
                waker: None,
                waiting: BTreeMap::new(),
                running: BTreeMap::new(),
                tick: None,
            }),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues an event and wakes the task if it does not know of any yet.
    pub(super) fn deliver(&self, frame: TextFrame, now: Instant) -> Delivery {
        let mut state = self.lock();
        let delivery = state.machine.handle_event(frame, now);
        state.wake_for(delivery);
        delivery
    }

    /// Queues a version of a record, or takes a note that the client is too slow for it; and wakes the task if it does not know of any yet.
    pub(super) fn deliver_record(&self, record: &Name, frame: TextFrame, now: Instant) -> Delivery {
        let mut state = self.lock();
        let delivery = state.machine.handle_record(record, frame, now);
        state.wake_for(delivery);
        delivery
    }

    /// Queues how a record is, for a client that was too slow for its versions.
    pub(super) fn refresh_record(
        &self,
        record: &Name,
        frame: Option<TextFrame>,
        now: Instant,
    ) -> Delivery {
        let mut state = self.lock();
        let delivery = state.machine.handle_record_refreshed(record, frame, now);
        state.wake_for(delivery);
        delivery
    }

    /// Queues the one reply to a command and wakes the task. False if there was nobody to reply to.
    pub(super) fn reply(
        &self,
        token: CommandToken,
        name: &str,
        frame: TextFrame,
        now: Instant,
    ) -> bool {
        let mut state = self.lock();
        state.running.remove(&token);
        let replied = state.machine.handle_reply(token, name, frame, now);
        state.wake();
        replied
    }

    /// As [`reply`](Self::reply), for a reply that grants something: it is no reply where the client is owed so much that it would be told
    /// an error in its place.
    pub(super) fn grant(
        &self,
        token: CommandToken,
        name: &str,
        frame: TextFrame,
        now: Instant,
    ) -> Result<(), InstanceError> {
        let mut state = self.lock();
        if let Err(max) = state.machine.admits_reply(&frame) {
            return Err(InstanceError::TooLong { max });
        }
        state.running.remove(&token);
        state.machine.handle_reply(token, name, frame, now);
        state.wake();
        Ok(())
    }

    pub(super) fn close(&self, frame: CloseFrame, now: Instant) {
        let mut state = self.lock();
        state.machine.handle_close(frame, now);
        state.wake();
    }

    pub(super) fn drain(self: &Arc<Self>, frame: CloseFrame, deadline: Instant, now: Instant) {
        let mut state = self.lock();
        state.machine.handle_drain(frame, deadline, now);
        state.wake();
        self.arm(state);
    }

    /// Has its close begun?
    pub(super) fn is_over(&self) -> bool {
        self.lock().machine.is_over()
    }

    /// A deadline of this connection passed, unless `tick` is an old one.
    pub(super) fn handle_timeout(self: &Arc<Self>, tick: Tick, now: Instant) {
        let mut state = self.lock();
        if state.tick != Some(tick) {
            return;
        }
        state.tick = None;
        state.machine.handle_timeout(now);
        if state.machine.has_work() {
            state.wake();
        }
        self.arm(state);
    }

    /// Tells the timers about the machine's next deadline.
    pub(super) fn arm(self: &Arc<Self>, mut state: MutexGuard<'_, State>) {
        let next = state.machine.poll_timeout().map(|at| self.timers.tick(at));
        // A deadline that moved away is served when the old one fires.
        if state
            .tick
            .is_none_or(|armed| next.is_some_and(|next| next < armed))
        {
            let from = std::mem::replace(&mut state.tick, next);
            drop(state);
            if from != next {
                self.timers.rearm(self.number, self.due(), from, next);
            }
        }
    }

    /// Takes the connection out of the timers.
    pub(super) fn disarm(self: &Arc<Self>) {
        let from = self.lock().tick.take();
        self.timers.rearm(self.number, self.due(), from, None);
    }

    fn due(self: &Arc<Self>) -> Due {
        Due::Connection(Arc::downgrade(self))
    }
}

impl State {
    fn wake_for(&mut self, delivery: Delivery) {
        if matches!(delivery, Delivery::Wake | Delivery::Overflow) {
            self.wake();
        }
    }

    pub(super) fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}
