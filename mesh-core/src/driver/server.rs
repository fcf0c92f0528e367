//! The inside of a server: the machines' shards, and what carries their actions out.

use std::{
    collections::VecDeque,
    fmt,
    future::Future,
    pin::pin,
    sync::{Arc, PoisonError},
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use futures_channel::oneshot;
use futures_util::future::join_all;
use rand_chacha::{
    ChaCha12Rng,
    rand_core::{RngCore, SeedableRng},
};

use super::{
    Connection, Runtime, ServerError,
    authenticate::Front,
    builtins::{ReplyTicket, Untold},
    confirm::Confirmations,
    connection::Shared,
    hooks::{Hooks, RoomLeave},
    inside::Inside,
    notices::{self, Heard},
    outage::Reach,
    registry::Registrations,
    timers::{Due, Tick, Ticker, Timers},
};
use crate::{
    backend::{
        Backend, BackendError, ConnectionId, InstanceId, Json, Name, Notice, Op, Reply, Topic,
    },
    connection::{Config, Delivery},
    instance::{Action, Instance, InstanceError, LeaveReason, OpToken, Options, Outcome, Seeded},
    protocol::{Limits, builtin::SubscriptionMessage, encode, names},
    relay::{Membership, Relay},
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    websocket::TextFrame,
};

/// Shards of the instance. More than cores, so that two cores seldom want the same one.
pub(super) const SHARDS: usize = 16;

/// No deadline.
const NEVER: Tick = Tick::MAX;

/// More than a built-in's reply has around its list.
const ENVELOPE_BYTES_MAX: usize = 128;

/// What a request to a shard is answered to.
pub(super) enum Completion {
    /// Whoever waits.
    Caller(oneshot::Sender<Result<Outcome, InstanceError>>),
    /// Nobody: a cleanup whose failure is logged.
    Nobody(&'static str),
    /// The client itself, right here, so that nothing comes between.
    Reply(ReplyTicket),
}

pub(super) type Shard = Instance<Arc<Shared>, Completion>;

/// How many of what; for metrics.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) accept_errors: AtomicU64,
    pub(super) backend_errors: AtomicU64,
    pub(super) backend_messages_dropped: AtomicU64,
    pub(super) connections_total: AtomicU64,
    pub(super) handler_panics: AtomicU64,
    pub(super) handshakes_evicted: AtomicU64,
    pub(super) record_updates_left_out: AtomicU64,
    pub(super) slow_consumers: AtomicU64,
}

pub(super) struct Inner {
    pub(super) runtime: Arc<dyn Runtime>,
    pub(super) backend: Arc<dyn Backend>,
    pub(super) instance_id: InstanceId,
    pub(super) config: Arc<Config>,
    pub(super) registrations: Registrations,
    pub(super) hooks: Hooks,
    pub(super) front: Front,
    pub(super) timers: Arc<Timers>,
    pub(super) heard: Arc<Heard>,
    pub(super) reach: Reach,
    pub(super) confirmations: Confirmations,
    pub(super) counters: Counters,
    /// Connections that hold a place, from the handshake to the end of their cleanup; handlers may run on a while.
    pub(super) admitted: AtomicUsize,
    pub(super) stopping: super::shutdown::Stopping,
    /// Held while a shutdown is under way; what came of the backend's part, once one has come to its end.
    pub(super) ending: futures_util::lock::Mutex<Option<Result<(), ServerError>>>,
    pub(super) drain_time: Duration,
    pub(super) assign_id: bool,
    pub(super) client_metadata: bool,
    pub(super) nobody: Arc<[ConnectionId]>,
    hasher: Seeded,
    shards: Box<[Mutex<Shard>]>,
    /// Where the timers have each shard; changed under its lock.
    ticks: [AtomicU64; SHARDS],
    random: Mutex<ChaCha12Rng>,
    next_number: AtomicU64,
    started: AtomicBool,
    starting: futures_util::lock::Mutex<Begun>,
}

/// How far the start has come, so that one that failed goes on where it was.
#[derive(Debug, Default)]
struct Begun {
    ticking: bool,
    opened: bool,
}

/// The parts that a builder decides on.
pub(super) struct Parts {
    pub(super) runtime: Arc<dyn Runtime>,
    pub(super) backend: Arc<dyn Backend>,
    pub(super) config: Config,
    pub(super) hooks: Hooks,
    pub(super) front: Front,
    pub(super) drain_time: Duration,
    pub(super) record_check_interval: Duration,
    pub(super) assign_id: bool,
    pub(super) client_metadata: bool,
}

impl Inner {
    pub(super) fn new(parts: Parts) -> Self {
        let mut random = ChaCha12Rng::from_seed(parts.runtime.seed());
        let hasher = Seeded::new(&parts.runtime.seed());
        let shards: Vec<_> = (0..SHARDS)
            .map(|_| {
                let mut seed = [0; 32];
                random.fill_bytes(&mut seed);
                Mutex::new(Instance::new(&Options {
                    hasher,
                    seed,
                    dialect: parts.config.dialect,
                    kept_bytes_max: parts.config.limits.queue_bytes_max,
                    listed_bytes_max: listed_bytes_max(&parts.config.limits),
                    record_bytes_max: parts.config.limits.record_bytes_max,
                    record_check_interval: parts.record_check_interval,
                }))
            })
            .collect();
        Self {
            timers: Arc::new(Timers::new(parts.runtime.now())),
            instance_id: InstanceId::new(format!("{:016x}", random.next_u64())),
            runtime: parts.runtime,
            backend: parts.backend,
            registrations: Registrations::new(parts.config.dialect),
            config: Arc::new(parts.config),
            hooks: parts.hooks,
            front: parts.front,
            heard: Arc::default(),
            reach: Reach::default(),
            confirmations: Confirmations::default(),
            counters: Counters::default(),
            admitted: AtomicUsize::new(0),
            stopping: super::shutdown::Stopping::default(),
            ending: futures_util::lock::Mutex::default(),
            drain_time: parts.drain_time,
            assign_id: parts.assign_id,
            client_metadata: parts.client_metadata,
            nobody: Arc::new([]),
            hasher,
            shards: shards.into(),
            ticks: std::array::from_fn(|_| AtomicU64::new(NEVER)),
            random: Mutex::new(random),
            next_number: AtomicU64::new(0),
            started: AtomicBool::new(false),
            starting: futures_util::lock::Mutex::default(),
        }
    }

    /// Registers with the backend and starts the tasks of the server, once.
    pub(super) async fn start(self: &Arc<Self>) -> Result<(), BackendError> {
        if self.started.load(Ordering::Acquire) {
            return Ok(());
        }
        let mut begun = self.starting.lock().await;
        if self.started.load(Ordering::Acquire) {
            return Ok(());
        }
        if !begun.ticking {
            // Deadlines hold with or without a backend.
            begun.ticking = true;
            self.runtime.spawn(Box::pin(Ticker::new(
                Arc::clone(&self.timers),
                Arc::clone(&self.runtime),
            )));
        }
        if !begun.opened {
            let instance = self.instance_id.clone();
            self.backend.execute(Op::OpenInstance { instance }).await?;
            begun.opened = true;
        }
        let topics = vec![Topic::All, Topic::Instance(self.instance_id.clone())];
        self.backend.execute(Op::Subscribe { topics }).await?;
        self.started.store(true, Ordering::Release);
        self.runtime.spawn(Box::pin(notices::read(
            Arc::downgrade(self),
            Arc::clone(&self.heard),
            self.backend.notices(),
        )));
        Ok(())
    }

    /// Asks the backend for something that no machine keeps track of.
    pub(super) async fn ask(self: &Arc<Self>, op: Op) -> Result<Reply, ServerError> {
        self.start().await?;
        let result = self.backend.execute(op).await;
        if result.is_err() {
            self.counters.backend_errors.fetch_add(1, Ordering::Relaxed);
        }
        Ok(result?)
    }

    /// A new id: this instance, and 96 random bits that nobody guesses.
    pub(super) fn new_connection_id(&self) -> ConnectionId {
        let mut random = self.random.lock().unwrap_or_else(PoisonError::into_inner);
        let (high, low) = (random.next_u64(), random.next_u32());
        ConnectionId::new(format!("{}.{high:016x}{low:08x}", self.instance_id))
    }

    pub(super) fn next_number(&self) -> u64 {
        self.next_number.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn shard_of(&self, key: &str) -> usize {
        // A partition of the backend is in one shard, so that what the shard asks for in batches takes few requests there. Whoever chooses
        // names by that can crowd a shard, as he can crowd a room or the partition itself; the tables in it are keyed. Where there are no
        // partitions: the low bits of the hash choose the bucket in those tables, so the high ones choose the shard.
        let partition = self.backend.partition(key);
        let of = partition.unwrap_or_else(|| self.hasher.hash(key) >> 32);
        (of % SHARDS as u64) as usize
    }

    pub(super) fn lock_shard(&self, index: usize) -> MutexGuard<'_, Shard> {
        self.shards[index]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets `act` change the shard of a key, and carries out what comes of it.
    pub(super) fn with_shard<R>(
        self: &Arc<Self>,
        key: &str,
        act: impl FnOnce(&mut Shard) -> R,
    ) -> R {
        self.act(self.shard_of(key), act)
    }

    /// Lets `act` change every shard, one after the other.
    pub(super) fn with_all_shards(self: &Arc<Self>, mut act: impl FnMut(&mut Shard)) {
        for index in 0..SHARDS {
            self.act(index, &mut act);
        }
    }

    /// A request to the shard of a key, and its answer.
    pub(super) async fn request(
        self: &Arc<Self>,
        key: &str,
        request: impl FnOnce(&mut Shard, Completion),
    ) -> Result<Outcome, ServerError> {
        let (sender, answer) = oneshot::channel();
        self.with_shard(key, |shard| request(shard, Completion::Caller(sender)));
        // The machines answer every request; only a server that is torn down does not.
        Ok(answer.await.unwrap_or(Err(InstanceError::Gone))?)
    }

    /// Makes a connection a member, unless its close has begun.
    ///
    /// Asked under the shard's lock: its close begins before it is taken out of the shards, so it either has begun here
    /// or is still to be taken out. A handler that outlives its client leaves no ghost.
    pub(super) fn join(
        &self,
        shard: &mut Shard,
        room: &Name,
        connection: Arc<Shared>,
        present: bool,
        done: Completion,
    ) {
        if connection.is_over() {
            self.refuse(done, InstanceError::Gone);
        } else {
            shard.join(room, connection.id.clone(), connection, present, done);
        }
    }

    /// Subscribes a connection, unless its close has begun; as for [`join`](Self::join).
    pub(super) fn subscribe(
        &self,
        shard: &mut Shard,
        channel: &Name,
        connection: Arc<Shared>,
        history: usize,
        done: Completion,
    ) {
        if connection.is_over() {
            self.refuse(done, InstanceError::Gone);
        } else {
            shard.subscribe(channel, connection.id.clone(), connection, history, done);
        }
    }

    pub(super) fn act<R>(self: &Arc<Self>, index: usize, act: impl FnOnce(&mut Shard) -> R) -> R {
        let mut asks = VecDeque::new();
        let mut shard = self.lock_shard(index);
        let result = act(&mut shard);
        self.carry_out(&mut shard, &mut asks);
        // Asked under the lock: the end of a connection must not overtake a restoration that states it, say.
        while let Some((token, op)) = asks.pop_front() {
            if let Some(answer) = self.execute(index, token, op) {
                shard.handle_backend(token, answer, self.runtime.now());
                self.carry_out(&mut shard, &mut asks);
            }
        }
        self.arm(index, &shard);
        result
    }

    /// Tells the timers about a shard's next deadline, whose lock is held.
    fn arm(self: &Arc<Self>, index: usize, shard: &Shard) {
        let next = shard.poll_timeout().map(|at| self.timers.tick(at));
        let armed = self.ticks[index].load(Ordering::Relaxed);
        // A deadline that moved away is served when the old one fires.
        if let Some(next) = next.filter(|next| *next < armed) {
            self.ticks[index].store(next, Ordering::Relaxed);
            let due = Due::Shard(Arc::downgrade(self), index);
            let from = (armed != NEVER).then_some(armed);
            // Connections are numbered from the other end.
            self.timers
                .rearm(u64::MAX - index as u64, due, from, Some(next));
        }
    }

    /// A deadline of a shard passed, unless `tick` is an old one.
    pub(super) fn handle_shard_timeout(self: &Arc<Self>, index: usize, tick: Tick, now: Instant) {
        self.act(index, |shard| {
            if self.ticks[index].load(Ordering::Relaxed) == tick {
                self.ticks[index].store(NEVER, Ordering::Relaxed);
                shard.handle_timeout(now);
            }
        });
    }

    /// Starts an operation. What is ready at once is returned; what is not finishes in the background.
    fn execute(
        self: &Arc<Self>,
        index: usize,
        token: OpToken,
        op: Op,
    ) -> Option<Result<Reply, BackendError>> {
        let server = Arc::clone(self);
        let mut answer = Box::pin(async move { server.backend.execute(op).await });
        match answer
            .as_mut()
            .poll(&mut Context::from_waker(Waker::noop()))
        {
            Poll::Ready(answer) => Some(answer),
            Poll::Pending => {
                let server = Arc::clone(self);
                self.runtime.spawn(Box::pin(async move {
                    let answer = answer.await;
                    let now = server.runtime.now();
                    server.act(index, |shard| shard.handle_backend(token, answer, now));
                }));
                None
            }
        }
    }

    /// Carries out a shard's actions in order, under its lock: so no event overtakes the answer that granted it.
    fn carry_out(self: &Arc<Self>, shard: &mut Shard, asks: &mut VecDeque<(OpToken, Op)>) {
        let mut now = None;
        while let Some(action) = shard.poll_action() {
            match action {
                Action::Backend { token, op } => asks.push_back((token, op)),
                Action::Complete { token, result } => {
                    if let Some(untold) = self.complete(token, result) {
                        self.take_back(shard, &untold);
                    }
                }
                Action::Deliver { to, except, frame } => {
                    let now = *now.get_or_insert_with(|| self.runtime.now());
                    if except.is_empty() {
                        for connection in to.handles() {
                            self.deliver(connection, &frame, now);
                        }
                    } else {
                        for connection in to.handles_except(&except) {
                            self.deliver(connection, &frame, now);
                        }
                    }
                }
                Action::DeliverRecord { record, to, frame } => {
                    let now = *now.get_or_insert_with(|| self.runtime.now());
                    for connection in to.handles() {
                        let delivery = connection.deliver_record(&record, frame.clone(), now);
                        self.count_slow(connection, delivery);
                    }
                }
                Action::RecordRefreshed { to, record, frame } => {
                    let now = *now.get_or_insert_with(|| self.runtime.now());
                    let delivery = to.refresh_record(&record, frame, now);
                    self.count_slow(&to, delivery);
                }
                Action::DeliverOne { to, frames } => {
                    let now = *now.get_or_insert_with(|| self.runtime.now());
                    for frame in frames {
                        self.deliver(&to, &frame, now);
                    }
                }
                Action::Left {
                    room,
                    connection,
                    reason,
                } => self.room_left(room, connection, reason),
                Action::Release(connection) => connection.lock().machine.release_membership(),
            }
        }
    }

    pub(super) fn deliver(&self, to: &Arc<Shared>, frame: &TextFrame, now: Instant) {
        self.count_slow(to, to.deliver(frame.clone(), now));
    }

    fn count_slow(&self, to: &Arc<Shared>, delivery: Delivery) {
        if delivery == Delivery::LeftOut {
            let left_out = &self.counters.record_updates_left_out;
            left_out.fetch_add(1, Ordering::Relaxed);
        } else if delivery == Delivery::Overflow {
            self.counters.slow_consumers.fetch_add(1, Ordering::Relaxed);
            tracing::debug!(connection = %to.id, "closed a client too slow for its queue");
        }
    }

    /// Whoever is told of an error holds nothing.
    fn take_back(&self, shard: &mut Shard, Untold { connection, asked }: &Untold) {
        let done = Completion::Nobody("take back what was granted");
        match asked {
            Membership::Channel(channel) => shard.unsubscribe(channel, connection, done),
            Membership::Record(record) => {
                shard.unsubscribe_record(record, connection, done, self.runtime.now());
            }
            Membership::Room(room) => shard.leave(room, connection.clone(), done),
        }
    }

    fn complete(
        &self,
        completion: Completion,
        result: Result<Outcome, InstanceError>,
    ) -> Option<Untold> {
        match completion {
            Completion::Caller(caller) => {
                // Whoever asked may have gone meanwhile.
                let _ = caller.send(result);
            }
            Completion::Nobody(what) => {
                if let Err(error @ InstanceError::Backend(_)) = result {
                    self.counters.backend_errors.fetch_add(1, Ordering::Relaxed);
                    // The backend cleans up by itself once it is back, and it told that it went.
                    tracing::debug!(what, %error, "a cleanup failed");
                }
            }
            Completion::Reply(ticket) => return ticket.answer(result, self.runtime.now()),
        }
        None
    }

    /// Answers a request that no shard was asked for.
    pub(super) fn refuse(&self, completion: Completion, error: InstanceError) {
        self.complete(completion, Err(error));
    }

    /// The local connection of this id.
    pub(super) fn local(&self, id: &ConnectionId) -> Option<Connection> {
        let shard = self.lock_shard(self.shard_of(id.as_str()));
        let shared = Arc::clone(shard.connection(id)?);
        Some(Connection { shared })
    }

    /// All registered local connections.
    pub(super) fn all_local(&self) -> Vec<Connection> {
        let mut all = Vec::new();
        for index in 0..SHARDS {
            let shard = self.lock_shard(index);
            all.extend(shard.connections().handles().map(|shared| Connection {
                shared: Arc::clone(shared),
            }));
        }
        all
    }

    /// The metadata of a local connection; `None` if there is no such connection here.
    pub(super) fn local_metadata(&self, id: &ConnectionId) -> Option<Option<Json>> {
        self.lock_shard(self.shard_of(id.as_str())).metadata(id)
    }

    /// How often records were read again.
    pub(super) fn record_resyncs(&self) -> u64 {
        (0..SHARDS)
            .map(|index| self.lock_shard(index).record_resyncs())
            .sum()
    }

    /// What a connection holds here.
    pub(super) fn memberships(&self, id: &ConnectionId) -> Vec<Membership> {
        let mut memberships = Vec::new();
        for index in 0..SHARDS {
            let shard = self.lock_shard(index);
            memberships.extend(shard.rooms_of(id).into_iter().map(Membership::Room));
            memberships.extend(shard.channels_of(id).into_iter().map(Membership::Channel));
            memberships.extend(shard.records_of(id).into_iter().map(Membership::Record));
        }
        memberships
    }

    pub(super) async fn handle_notice(self: &Arc<Self>, notice: Notice) {
        let (topic, message) = match notice {
            Notice::Lost => return self.handle_lost(),
            Notice::Message { topic, message } => (topic, message),
            Notice::Restored {
                data_kept,
                number,
                kept,
            } => return self.handle_restored(data_kept, number, kept),
            Notice::MemberRemoved { room, connection } => {
                return self.with_shard(&room, |shard| {
                    shard.handle_member_removed(&room, &connection);
                });
            }
            Notice::MetadataChanged {
                connection,
                document,
            } => {
                return self.with_shard(connection.as_str(), |shard| {
                    shard.handle_metadata_changed(&connection, document);
                });
            }
            Notice::RecordChanged {
                record,
                base,
                changes,
            } => {
                let now = self.runtime.now();
                return self.with_shard(&record, |shard| {
                    shard.handle_record_changed(&record, base, changes, now);
                });
            }
            Notice::RoomCleared { room, generation } => {
                return self
                    .with_shard(&room, |shard| shard.handle_room_cleared(&room, generation));
            }
            Notice::RoomsLeft(members) => {
                for (room, connection) in members {
                    self.room_left(room, connection, LeaveReason::InstanceLost);
                }
                return;
            }
        };
        if message.len() > self.config.limits.backend_message_bytes_max {
            tracing::warn!(
                ?topic,
                len = message.len(),
                "dropped a message over the limit"
            );
            self.count_dropped();
            return;
        }
        if let Topic::Channel(channel) = topic {
            match std::str::from_utf8(&message) {
                Ok(message) => self.handle_channel_message(&channel, message),
                Err(_) => self.count_dropped(),
            }
            return;
        }
        match Relay::decode(&message) {
            Some(relay) => self.handle_relay(topic, relay).await,
            None => self.count_dropped(),
        }
    }

    /// A message of the backend was no use.
    pub(super) fn count_dropped(&self) {
        let dropped = &self.counters.backend_messages_dropped;
        dropped.fetch_add(1, Ordering::Relaxed);
    }

    fn handle_channel_message(self: &Arc<Self>, channel: &Name, message: &str) {
        let event = self.config.dialect.name(names::SUBSCRIPTION_MESSAGE);
        self.with_shard(channel, |shard| {
            shard.handle_channel_message(channel, || {
                let payload = SubscriptionMessage {
                    channel: (**channel).into(),
                    message: message.into(),
                };
                // Two strings always have a JSON form.
                encode::event(&event, &payload)
                    .unwrap_or_else(|_| encode::event_raw(&event, "null"))
            });
        });
    }

    /// Tells the application, if it wants to know.
    fn room_left(self: &Arc<Self>, room: Name, connection: ConnectionId, reason: LeaveReason) {
        if self.hooks.wants_room_leaves() {
            let leave = RoomLeave {
                room,
                connection,
                reason,
            };
            let server = Arc::clone(self);
            self.runtime.spawn(Box::pin(async move {
                server.hooks.room_left(leave).await;
            }));
        }
    }

    pub(super) async fn handle_relay(self: &Arc<Self>, topic: Topic, relay: Relay) {
        match (topic, relay) {
            (Topic::All, Relay::Event { except, text }) => {
                self.deliver_all(&except.into(), &TextFrame::new(&text));
            }
            (Topic::Room(room), Relay::Event { except, text }) => {
                let (except, frame) = (except.into(), TextFrame::new(&text));
                self.with_shard(&room, |shard| shard.deliver_room(&room, &except, &frame));
            }
            (
                Topic::Instance(_),
                Relay::Request {
                    number,
                    from,
                    relay,
                },
            ) => self.handle_request(number, from, *relay),
            (Topic::Instance(_), Relay::Done { number }) => self.confirmations.confirm(number),
            (Topic::Instance(_), Relay::SendTo { connections, text }) => {
                let (frame, now) = (TextFrame::new(&text), self.runtime.now());
                for connection in connections.iter().filter_map(|id| self.local(id)) {
                    self.deliver(&connection.shared, &frame, now);
                }
            }
            (Topic::Instance(_), Relay::Disconnect { connection, frame }) => {
                if let Some(connection) = self.local(&connection) {
                    connection.shared.close(frame, self.runtime.now());
                }
            }
            (Topic::Instance(_), Relay::LeaveAllRooms { connection }) => {
                if let Err(error) = self.leave_all_rooms(&connection).await {
                    tracing::warn!(%connection, %error, "rooms were left here, but not in the backend");
                }
            }
            (
                Topic::Instance(_),
                Relay::MetadataChanged {
                    connection,
                    document,
                },
            ) => {
                self.with_shard(connection.as_str(), |shard| {
                    shard.handle_metadata_changed(&connection, document);
                });
            }
            (Topic::Instance(_), Relay::Revoke { connection, what }) => {
                self.revoke_local(&connection, &what).await;
            }
            (Topic::Instance(_), Relay::RecheckGuards { connection }) => {
                if let Some(connection) = self.local(&connection) {
                    self.recheck_local(&connection).await;
                }
            }
            (topic, relay) => {
                tracing::warn!(?topic, ?relay, "a message that does not fit its topic");
                self.count_dropped();
            }
        }
    }

    /// Hands an event to every local connection.
    pub(super) fn deliver_all(self: &Arc<Self>, except: &Arc<[ConnectionId]>, frame: &TextFrame) {
        self.with_all_shards(|shard| shard.deliver_all(except, frame));
    }

    /// Ends one membership of a local connection; false if it is not here.
    pub(super) async fn revoke_local(
        self: &Arc<Self>,
        connection: &ConnectionId,
        what: &Membership,
    ) -> bool {
        if self.local(connection).is_none() {
            return false;
        }
        let outcome = match what {
            Membership::Channel(channel) => {
                self.request(channel, |shard, done| {
                    shard.unsubscribe(channel, connection, done);
                })
                .await
            }
            Membership::Record(record) => {
                let now = self.runtime.now();
                self.request(record, |shard, done| {
                    shard.unsubscribe_record(record, connection, done, now);
                })
                .await
            }
            Membership::Room(room) => {
                self.request(room, |shard, done| {
                    shard.leave(room, connection.clone(), done);
                })
                .await
            }
        };
        if let Err(error) = outcome {
            tracing::warn!(%connection, ?what, %error, "a membership ended here, but not in the backend");
        }
        true
    }

    /// Ends all room memberships of a local connection. The first failure keeps none of the others.
    pub(super) async fn leave_all_rooms(
        self: &Arc<Self>,
        connection: &ConnectionId,
    ) -> Result<(), ServerError> {
        let rooms = self.memberships(connection).into_iter();
        let rooms = rooms.filter_map(|membership| match membership {
            Membership::Room(room) => Some(room),
            Membership::Channel(_) | Membership::Record(_) => None,
        });
        // Side by side: each of them waits for the backend.
        let left = join_all(rooms.map(|room| async move {
            let leave = |shard: &mut Shard, done| shard.leave(&room, connection.clone(), done);
            self.request(&room, leave).await
        }));
        left.await.into_iter().try_for_each(|left| left.map(drop))
    }

    /// Asks the guards again about everything that a local connection holds, and ends what they deny.
    pub(super) async fn recheck_local(self: &Arc<Self>, connection: &Connection) {
        use super::registry::{Kind, Registry};
        let registry = self.registrations.snapshot();
        for membership in self.memberships(connection.id()) {
            let (kind, name) = match &membership {
                Membership::Channel(name) => (Kind::Channel, name),
                Membership::Record(record) => {
                    if !Inside(pin!(self.may_read(connection, record))).await {
                        self.revoke_local(connection.id(), &membership).await;
                    }
                    continue;
                }
                // The application's own doing is not for the guards of clients to judge.
                Membership::Room(name) if !registry.covers(Kind::Room, name) => continue,
                Membership::Room(name) => (Kind::Room, name),
            };
            let asked = Registry::allows(
                Arc::clone(&registry),
                kind,
                connection.clone(),
                name.to_string(),
            );
            if !Inside(pin!(asked)).await {
                self.revoke_local(connection.id(), &membership).await;
            }
        }
    }
}

/// What a list may take of one reply, in bytes: all but the reply's other parts.
pub(super) fn listed_bytes_max(limits: &Limits) -> usize {
    limits.reply_bytes_max.saturating_sub(ENVELOPE_BYTES_MAX)
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.timers.close();
    }
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MeshServer")
            .field("instance_id", &self.instance_id)
            .finish_non_exhaustive()
    }
}
