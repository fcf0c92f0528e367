//! The handle of a server, usable from anywhere.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    future::Future,
    sync::{Arc, atomic::Ordering},
};

use super::{
    ConnectionRef, Connections, Context, Expose, Handler, Interceptor, IntoPayload,
    MeshServerBuilder, Pattern, Registration, Rooms, ServerError,
    confirm::IfAway,
    connection::Shared,
    handler::Middleware,
    registry::Kind,
    server::{Inner, Shard},
};
use crate::{
    backend::{ConnectionId, InstanceId, Name, Op, Reply, Topic},
    instance::Outcome,
    protocol::{CommandError, Limits, names},
    relay::{Membership, Relay},
    websocket::{CloseCode, CloseFrame, REASON_BYTES_MAX, TextFrame},
};

/// A server: commands, rooms, channels and connections of one instance, and through its backend of all.
///
/// Cheap to clone, and the same type on every runtime. Methods that reach other instances are async and fail
/// with [`ServerError::Backend`] while the backend cannot be reached.
///
/// [`shutdown`](Self::shutdown) ends it. Without that it lives as long as a handle, and each listener and each connection has one; once the last
/// is gone its tasks end and its backend is dropped, which tells nobody: other instances know of it when its lease is over.
#[derive(Clone)]
pub struct MeshServer {
    pub(super) inner: Arc<Inner>,
}

impl MeshServer {
    /// Begins a server; an adapter finishes it.
    pub fn builder() -> MeshServerBuilder {
        MeshServerBuilder::default()
    }

    pub(super) fn from_inner(inner: Arc<Inner>) -> Self {
        Self { inner }
    }

    /// Registers with the backend. Serving does so by itself; calling it first tells at once if the backend cannot be reached.
    ///
    /// # Errors
    /// The backend could not be reached, or refused this instance.
    pub async fn start(&self) -> Result<(), ServerError> {
        Ok(self.inner.start().await?)
    }

    /// This instance's id, new with every start.
    pub fn instance_id(&self) -> &InstanceId {
        &self.inner.instance_id
    }

    /// The limits that hold.
    pub fn limits(&self) -> &Limits {
        &self.inner.config.limits
    }

    /// Registers the handler of a command, in place of an earlier one of the same name.
    ///
    /// ```
    /// use mesh_core::driver::{Context, MeshServer};
    ///
    /// fn register(server: &MeshServer) {
    ///     server.register_command("double", async |ctx: Context<i64>| Ok(ctx.payload * 2));
    /// }
    /// ```
    ///
    /// Calls run side by side, so that none may borrow from the handler, as those of an async closure that captures do. A handler that
    /// needs a database or a counter clones its handle for each call:
    ///
    /// ```
    /// use std::sync::{Arc, atomic::{AtomicU64, Ordering}};
    ///
    /// use mesh_core::driver::{Context, MeshServer};
    ///
    /// fn register(server: &MeshServer, calls: Arc<AtomicU64>) {
    ///     server.register_command("count", move |ctx: Context<u64>| {
    ///         let calls = Arc::clone(&calls);
    ///         async move { Ok(calls.fetch_add(ctx.payload, Ordering::Relaxed)) }
    ///     });
    /// }
    /// ```
    ///
    /// What is no handler is refused with what is wrong about it:
    ///
    /// ```compile_fail
    /// # use mesh_core::driver::{Context, MeshServer};
    /// # fn register(server: &MeshServer) {
    /// server.register_command("length", async |text: String| Ok(text.len()));
    /// # }
    /// ```
    ///
    /// # Panics
    /// For a name that no command can have: empty, longer than
    /// [`name_bytes_max`](Limits::name_bytes_max), with the prefix of the built-ins (`mesh/`), or one of the answers `pong` and
    /// `latency:response`, which never reach a handler.
    #[track_caller]
    pub fn register_command<S>(
        &self,
        name: impl Into<String>,
        handler: impl Handler<S>,
    ) -> Registration<'_> {
        let name = name.into();
        let config = &self.inner.config;
        assert!(
            (1..=config.limits.name_bytes_max).contains(&name.len()),
            "{name:?} is no name for a command: it has 1 to {} bytes",
            config.limits.name_bytes_max
        );
        assert!(
            config.dialect.strip(&name).is_none(),
            "{name:?} is no name for a command: the prefix {:?} belongs to the built-ins",
            config.dialect.prefix()
        );
        assert!(
            ![names::PONG, names::LATENCY_RESPONSE].contains(&&*name),
            "{name:?} is no name for a command: it is the answer to a probe of the server"
        );
        Registration::new(&self.inner.registrations, name, handler.erase())
    }

    /// Adds a middleware that runs before every command, built-ins and unknown ones included, in the order of adding. One that fails
    /// stops the chain, and its error is the reply.
    pub fn add_middleware<F, Fut>(&self, middleware: F)
    where
        F: Fn(Context) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), CommandError>> + Send + 'static,
    {
        self.inner
            .registrations
            .add_middleware(Middleware::new(middleware));
    }

    /// Adds a middleware that needs no `await` and sees how commands end. It takes its place among those of
    /// [`add_middleware`](Self::add_middleware).
    pub fn add_interceptor(&self, interceptor: impl Interceptor) {
        self.inner
            .registrations
            .add_middleware(Middleware::Interceptor(Arc::new(interceptor)));
    }

    /// Lets clients subscribe to channels and read their history. Nothing is exposed by default.
    pub fn expose_channel(&self, pattern: impl Into<Pattern>) -> Expose<'_> {
        self.expose(Kind::Channel, Some(pattern.into()))
    }

    /// Lets clients join and leave rooms by themselves (`mesh/join-room`).
    pub fn expose_room(&self, pattern: impl Into<Pattern>) -> Expose<'_> {
        self.expose(Kind::Room, Some(pattern.into()))
    }

    /// Lets clients read rooms' metadata.
    pub fn expose_room_metadata(&self, pattern: impl Into<Pattern>) -> Expose<'_> {
        self.expose(Kind::RoomMetadata, Some(pattern.into()))
    }

    /// Lets clients read the metadata of other connections; the guard is given the id that is asked about.
    pub fn expose_connection_metadata(&self) -> Expose<'_> {
        self.expose(Kind::ConnectionMetadata, None)
    }

    pub(super) fn expose(&self, kind: Kind, pattern: Option<Pattern>) -> Expose<'_> {
        Expose::new(&self.inner.registrations, kind, pattern)
    }

    /// Sends an event to every connection, on all instances.
    ///
    /// # Errors
    /// [`ServerError::Name`] or [`ServerError::ReservedName`] for a name that no event of an application can have, [`ServerError::Encode`]
    /// if the payload has no JSON form, [`ServerError::MessageTooLong`]: nobody was sent anything. [`ServerError::LocalOnly`]: the backend
    /// failed, and connections of this instance were served all the same.
    pub async fn broadcast<T: IntoPayload>(
        &self,
        event: &str,
        payload: T,
    ) -> Result<(), ServerError> {
        let frame = self.inner.event(event, &payload)?;
        self.broadcast_frame(frame, Arc::clone(&self.inner.nobody))
            .await
    }

    /// Sends an event to every connection but these. Their ids travel with the event and count towards its length.
    ///
    /// # Errors
    /// As [`broadcast`](Self::broadcast).
    pub async fn broadcast_exclude<T: IntoPayload, R: ConnectionRef>(
        &self,
        event: &str,
        payload: T,
        except: impl IntoIterator<Item = R>,
    ) -> Result<(), ServerError> {
        let frame = self.inner.event(event, &payload)?;
        self.broadcast_frame(frame, ids(except)).await
    }

    async fn broadcast_frame(
        &self,
        frame: TextFrame,
        except: Arc<[ConnectionId]>,
    ) -> Result<(), ServerError> {
        self.inner
            .fits(Relay::event_len(&except, frame.payload().len()))?;
        self.inner.deliver_all(&except, &frame);
        self.publish(Topic::All, relay_event(&frame, &except)).await
    }

    /// Sends an event to these connections, wherever they live: one message to each other instance that holds one of them, or a few where
    /// the list is too long for one. A connection that does not exist is passed over.
    ///
    /// # Errors
    /// As [`broadcast`](Self::broadcast). What is too long is so wherever the connections live, this instance included.
    pub async fn broadcast_to<T: IntoPayload, R: ConnectionRef>(
        &self,
        event: &str,
        payload: T,
        to: impl IntoIterator<Item = R>,
    ) -> Result<(), ServerError> {
        let frame = self.inner.event(event, &payload)?;
        let len = frame.payload().len();
        let mut local = Vec::new();
        let mut remote: BTreeMap<InstanceId, Vec<ConnectionId>> = BTreeMap::new();
        // Named twice is sent once.
        let to: BTreeSet<_> = to.into_iter().map(|to| to.connection_id()).collect();
        for id in to {
            self.inner
                .fits(Relay::event_len(std::slice::from_ref(&id), len))?;
            if let Some(connection) = self.inner.local(&id) {
                local.push(connection);
            } else if let Some(instance) = self.inner.elsewhere(&id) {
                remote.entry(instance).or_default().push(id);
            }
        }
        let now = self.inner.runtime.now();
        for connection in local {
            self.inner.deliver(&connection.shared, &frame, now);
        }
        let mut result = Ok(());
        for (instance, ids) in remote {
            for connections in parts_that_fit(ids, len, self.limits().backend_message_bytes_max) {
                let text = frame.text().to_owned();
                let topic = Topic::Instance(instance.clone());
                let sent = self
                    .publish(topic, Relay::SendTo { connections, text })
                    .await;
                // One instance that cannot be reached does not keep the event from the others.
                result = result.and(sent);
            }
        }
        result
    }

    /// Sends an event to one connection, wherever it lives. To one that does not exist it goes nowhere.
    ///
    /// # Errors
    /// As [`broadcast_to`](Self::broadcast_to).
    pub async fn send_to<T: IntoPayload>(
        &self,
        to: impl ConnectionRef,
        event: &str,
        payload: T,
    ) -> Result<(), ServerError> {
        self.broadcast_to(event, payload, [to.connection_id()])
            .await
    }

    /// Sends an event to the members of a room, on all instances.
    ///
    /// # Errors
    /// As [`broadcast`](Self::broadcast); [`ServerError::Name`] also for a name that no room can have.
    pub async fn broadcast_room<T: IntoPayload>(
        &self,
        room: &str,
        event: &str,
        payload: T,
    ) -> Result<(), ServerError> {
        let frame = self.inner.event(event, &payload)?;
        self.broadcast_room_frame(room, frame, Arc::clone(&self.inner.nobody))
            .await
    }

    /// Sends an event to the members of a room but these.
    ///
    /// # Errors
    /// As [`broadcast_room`](Self::broadcast_room).
    pub async fn broadcast_room_exclude<T: IntoPayload, R: ConnectionRef>(
        &self,
        room: &str,
        event: &str,
        payload: T,
        except: impl IntoIterator<Item = R>,
    ) -> Result<(), ServerError> {
        let frame = self.inner.event(event, &payload)?;
        self.broadcast_room_frame(room, frame, ids(except)).await
    }

    async fn broadcast_room_frame(
        &self,
        room: &str,
        frame: TextFrame,
        except: Arc<[ConnectionId]>,
    ) -> Result<(), ServerError> {
        let room = self.inner.name("room", room)?;
        self.inner
            .fits(Relay::event_len(&except, frame.payload().len()))?;
        self.inner
            .with_shard(&room, |shard| shard.deliver_room(&room, &except, &frame));
        self.publish(Topic::Room(room), relay_event(&frame, &except))
            .await
    }

    /// Makes a connection of this server a member of a room. True if it was none before. In force, on all instances, when this returns.
    ///
    /// # Errors
    /// [`ServerError`]: the connection is gone or holds too much, the name is none, the backend failed.
    pub async fn add_to_room(
        &self,
        room: &str,
        connection: impl ConnectionRef,
    ) -> Result<bool, ServerError> {
        let room = self.inner.name("room", room)?;
        let id = connection.connection_id();
        let shared = self.inner.local(&id).ok_or(ServerError::Gone)?.shared;
        self.inner
            .reserve_membership(&shared, &room, |shard| shard.is_member(&room, &id))?;
        let outcome = self
            .inner
            .request(&room, |shard, done| {
                self.inner.join(shard, &room, shared, false, done);
            })
            .await?;
        Ok(matches!(outcome, Outcome::Joined { new: true, .. }))
    }

    /// Ends a membership. True if there was one. No event of the room reaches a connection of this server after this; the instance of
    /// any other is told to deliver none.
    ///
    /// # Errors
    /// [`ServerError`]: the name is none, or the backend failed.
    pub async fn remove_from_room(
        &self,
        room: &str,
        connection: impl ConnectionRef,
    ) -> Result<bool, ServerError> {
        let room = self.inner.name("room", room)?;
        let connection = connection.connection_id();
        self.start().await?;
        let outcome = self
            .inner
            .request(&room, |shard, done| {
                shard.leave(&room, connection.clone(), done);
            })
            .await?;
        if self.inner.local(&connection).is_none() {
            // The store has told the instance that delivers to it; this waits until it is done there.
            let what = Membership::Room(room);
            let id = connection.clone();
            self.inner
                .tell_owner(&id, Relay::Revoke { connection, what }, IfAway::TrustStore)
                .await?;
        }
        Ok(outcome == Outcome::Left(true))
    }

    /// Ends all of a connection's room memberships, wherever it lives; for one of another instance that instance is told to.
    ///
    /// # Errors
    /// The first failure; the other rooms were left all the same.
    pub async fn remove_from_all_rooms(
        &self,
        connection: impl ConnectionRef,
    ) -> Result<(), ServerError> {
        let connection = connection.connection_id();
        if self.inner.local(&connection).is_some() {
            return self.inner.leave_all_rooms(&connection).await;
        }
        self.inner
            .tell_owner(
                &connection.clone(),
                Relay::LeaveAllRooms { connection },
                IfAway::LeaveNote,
            )
            .await
    }

    /// Is a connection a member of a room?
    ///
    /// # Errors
    /// [`ServerError`]: the name is none, or the backend failed.
    pub async fn is_in_room(
        &self,
        room: &str,
        connection: impl ConnectionRef,
    ) -> Result<bool, ServerError> {
        let room = self.inner.name("room", room)?;
        let connection = connection.connection_id();
        let shard = self.inner.shard_of(&room);
        if self.inner.lock_shard(shard).is_member(&room, &connection) {
            return Ok(true);
        }
        let reply = self.inner.ask(Op::IsInRoom { room, connection }).await?;
        Ok(reply == Reply::Flag(true))
    }

    /// The members of a room, all instances, in any order.
    ///
    /// # Errors
    /// [`ServerError`]: the name is none, or the backend failed.
    pub async fn room_members(&self, room: &str) -> Result<Vec<ConnectionId>, ServerError> {
        let room = self.inner.name("room", room)?;
        match self.inner.ask(Op::RoomMembers { room }).await? {
            Reply::Connections(members) => Ok(members),
            _ => Ok(Vec::new()),
        }
    }

    /// Removes all members of a room, on all instances, and its metadata.
    ///
    /// # Errors
    /// [`ServerError`]: the name is none, or the backend failed.
    pub async fn clear_room(&self, room: &str) -> Result<(), ServerError> {
        let room = self.inner.name("room", room)?;
        self.start().await?;
        self.inner
            .request(&room, |shard, done| shard.clear(&room, done))
            .await?;
        Ok(())
    }

    /// Publishes a message to a channel: to every subscriber, on all instances, at most once each. With `history`
    /// the channel keeps its newest `history` messages, this one included; 0 leaves the history alone.
    ///
    /// The subscribers of this instance have been handed the message when this returns, so that what is sent to them next, through a room or
    /// directly, comes behind it.
    ///
    /// # Errors
    /// [`ServerError`]: the name is none, the history too long, or the backend failed; [`ServerError::MessageTooLong`], and nobody was sent
    /// anything.
    pub async fn publish_to_channel(
        &self,
        channel: &str,
        message: &str,
        history: usize,
    ) -> Result<(), ServerError> {
        let channel = self.inner.name("channel", channel)?;
        let max = self.limits().history_max;
        if history > max {
            return Err(ServerError::HistoryTooLong { len: history, max });
        }
        if self.inner.backend.reserves(&channel) {
            return Err(ServerError::ReservedName {
                name: channel.to_string(),
            });
        }
        self.inner.fits(message.len())?;
        let message = message.to_owned().into();
        let op = Op::PublishChannel {
            channel: channel.clone(),
            message,
            history,
        };
        self.inner.ask(op).await?;
        let shard = self.inner.shard_of(&channel);
        let listens = self.inner.lock_shard(shard).listens(&channel);
        if listens {
            self.inner.heard.wait().await;
        }
        Ok(())
    }

    /// Closes a connection, wherever it lives: what is queued is sent, then the close frame.
    ///
    /// # Errors
    /// The backend failed; only for a connection of another instance.
    pub async fn disconnect(
        &self,
        connection: impl ConnectionRef,
        code: CloseCode,
        reason: impl Into<String>,
    ) -> Result<(), ServerError> {
        let connection = connection.connection_id();
        let mut reason = reason.into();
        // No more than this reaches the client, so no more needs to reach its instance.
        reason.truncate(reason.floor_char_boundary(REASON_BYTES_MAX));
        let frame = CloseFrame { code, reason };
        if let Some(local) = self.inner.local(&connection) {
            local.shared.close(frame, self.inner.runtime.now());
            return Ok(());
        }
        self.inner
            .tell_owner(
                &connection.clone(),
                Relay::Disconnect { connection, frame },
                IfAway::LeaveNote,
            )
            .await
    }

    /// Takes a room, channel or record away from a connection, wherever it lives. The client is not told.
    ///
    /// # Errors
    /// The backend failed; only for a connection of another instance.
    pub async fn revoke(
        &self,
        connection: impl ConnectionRef,
        what: Membership,
    ) -> Result<(), ServerError> {
        let connection = connection.connection_id();
        if self.inner.revoke_local(&connection, &what).await {
            return Ok(());
        }
        self.inner
            .tell_owner(
                &connection.clone(),
                Relay::Revoke { connection, what },
                IfAway::LeaveNote,
            )
            .await
    }

    /// Asks the guards again about everything that a connection holds, and takes away what they deny now. Rooms that are not exposed are the
    /// application's own doing and stay.
    ///
    /// # Errors
    /// The backend failed; only for a connection of another instance.
    pub async fn recheck_guards(&self, connection: impl ConnectionRef) -> Result<(), ServerError> {
        let connection = connection.connection_id();
        if let Some(local) = self.inner.local(&connection) {
            self.inner.recheck_local(&local).await;
            return Ok(());
        }
        self.inner
            .tell_owner(
                &connection.clone(),
                Relay::RecheckGuards { connection },
                IfAway::LeaveNote,
            )
            .await
    }

    /// The connections and their metadata.
    pub fn connections(&self) -> Connections<'_> {
        Connections { server: self }
    }

    /// The rooms' metadata.
    pub fn rooms(&self) -> Rooms<'_> {
        Rooms { server: self }
    }

    /// How the server is.
    pub fn health(&self) -> Health {
        Health {
            instance_id: self.inner.instance_id.clone(),
            connections: self.inner.admitted.load(Ordering::Relaxed),
            backend: self.inner.backend.name(),
            is_degraded: self.inner.reach.is_lost(),
            is_stopping: self.inner.stopping.is_set(),
        }
    }

    /// Holds the tables of each shard against each other, and what is kept for each connection to its limits; panics where either fails.
    /// How many connections there are.
    #[cfg(feature = "__fuzzing")]
    #[doc(hidden)]
    pub fn check(&self) -> usize {
        for connection in self.inner.all_local() {
            connection.shared.lock().machine.check();
        }
        let shards = (0..super::server::SHARDS).map(|index| self.inner.lock_shard(index));
        let checked = shards.inspect(|shard| {
            shard.check();
        });
        checked.map(|shard| shard.connection_count()).sum()
    }

    /// Numbers for a monitoring system.
    pub fn metrics(&self) -> Metrics {
        let counters = &self.inner.counters;
        Metrics {
            connections: self.inner.admitted.load(Ordering::Relaxed),
            connections_total: counters.connections_total.load(Ordering::Relaxed),
            accept_errors_total: counters.accept_errors.load(Ordering::Relaxed),
            handshakes_evicted_total: counters.handshakes_evicted.load(Ordering::Relaxed),
            record_updates_left_out_total: counters.record_updates_left_out.load(Ordering::Relaxed),
            record_resyncs_total: self.inner.record_resyncs(),
            slow_consumers_total: counters.slow_consumers.load(Ordering::Relaxed),
            handler_panics_total: counters.handler_panics.load(Ordering::Relaxed),
            backend_errors_total: counters.backend_errors.load(Ordering::Relaxed),
            backend_messages_dropped_total: counters
                .backend_messages_dropped
                .load(Ordering::Relaxed),
        }
    }

    /// Publishes what connections of this instance have been served already.
    async fn publish(&self, topic: Topic, relay: Relay) -> Result<(), ServerError> {
        Inner::served_locally(self.inner.publish(topic, &relay).await)
    }
}

impl fmt::Debug for MeshServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

/// How a server is.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Health {
    /// This instance.
    pub instance_id: InstanceId,
    /// Connections of this instance.
    pub connections: usize,
    /// `"memory"` or `"redis"`.
    pub backend: &'static str,
    /// Is the backend out of reach? What needs it fails meanwhile; everything else goes on.
    pub is_degraded: bool,
    /// Has the shutdown begun?
    pub is_stopping: bool,
}

/// Numbers of this instance since it was built.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct Metrics {
    /// Connections now.
    pub connections: usize,
    /// Connections that were let in.
    pub connections_total: u64,
    /// Failures to accept a connection, without those where the peer was gone. Those for want of file descriptors or memory make others go.
    pub accept_errors_total: u64,
    /// Connections that were sent away before their upgrade to make room for others.
    pub handshakes_evicted_total: u64,
    /// Records with subscribers that were read again, since versions of them may have been missed. There are none without faults.
    pub record_resyncs_total: u64,
    /// Versions of records that were not sent to a slow client, which got a later one in their place.
    pub record_updates_left_out_total: u64,
    /// Connections closed because they did not read as fast as they were sent to.
    pub slow_consumers_total: u64,
    /// Handlers, middleware and outcome hooks that panicked.
    pub handler_panics_total: u64,
    /// Backend operations that failed.
    pub backend_errors_total: u64,
    /// Messages of the backend that were too long, or of an unknown kind.
    pub backend_messages_dropped_total: u64,
}

impl Inner {
    /// The frame of an application's event. Its name may come from a client, who must not speak to others in the protocol's own.
    pub(super) fn event<T: IntoPayload + ?Sized>(
        &self,
        event: &str,
        payload: &T,
    ) -> Result<TextFrame, ServerError> {
        const OWN: [&str; 3] = [names::LATENCY, names::LATENCY_REQUEST, names::PING];
        self.check_name("event", event)?;
        if self.config.dialect.strip(event).is_some() || OWN.contains(&event) {
            let name = event.to_owned();
            return Err(ServerError::ReservedName { name });
        }
        Ok(payload.event(event)?)
    }

    /// A room's, channel's or record's name, if it can be one.
    pub(super) fn name(&self, what: &'static str, name: &str) -> Result<Name, ServerError> {
        self.check_name(what, name)?;
        Ok(name.into())
    }

    fn check_name(&self, what: &'static str, name: &str) -> Result<(), ServerError> {
        let (len, max) = (name.len(), self.config.limits.name_bytes_max);
        if !(1..=max).contains(&len) {
            return Err(ServerError::Name { what, len, max });
        }
        Ok(())
    }

    /// Lets a message pass that is short enough for the instances that receive it.
    pub(super) fn fits(&self, len: usize) -> Result<(), ServerError> {
        // Whatever the limit, a field's length is a number of 32 bits.
        let max = self.config.limits.backend_message_bytes_max;
        let max = max.min(u32::MAX as usize);
        if len > max {
            return Err(ServerError::MessageTooLong { len, max });
        }
        Ok(())
    }

    /// Takes room in a connection's limit for a request to the shard of `key`, which gives it back. What the connection
    /// `holds` already needs no more room, but the request gives back one all the same.
    pub(super) fn reserve_membership(
        &self,
        connection: &Arc<Shared>,
        key: &str,
        holds: impl FnOnce(&Shard) -> bool,
    ) -> Result<(), ServerError> {
        let reserved = connection.lock().machine.reserve_membership();
        match reserved {
            Err(_) if holds(&self.lock_shard(self.shard_of(key))) => {
                connection.lock().machine.reserve_membership_again();
                Ok(())
            }
            reserved => Ok(reserved?),
        }
    }
}

fn ids<R: ConnectionRef>(connections: impl IntoIterator<Item = R>) -> Arc<[ConnectionId]> {
    connections
        .into_iter()
        .map(|connection| connection.connection_id())
        .collect()
}

/// Cuts a list of recipients, each of whom fits by itself, so that each part fits into a message beside a text of this length.
fn parts_that_fit(ids: Vec<ConnectionId>, len: usize, max: usize) -> Vec<Vec<ConnectionId>> {
    let empty = Relay::event_len(&[], len);
    let (mut parts, mut part, mut size) = (Vec::new(), Vec::new(), empty);
    for id in ids {
        let more = Relay::event_len(std::slice::from_ref(&id), len) - empty;
        if size + more > max && !part.is_empty() {
            parts.push(std::mem::take(&mut part));
            size = empty;
        }
        size += more;
        part.push(id);
    }
    parts.extend((!part.is_empty()).then_some(part));
    parts
}

fn relay_event(frame: &TextFrame, except: &[ConnectionId]) -> Relay {
    Relay::Event {
        except: except.to_vec(),
        text: frame.text().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recipients_are_cut_where_the_next_would_not_fit() {
        const LEN: usize = 10;
        let ids: Vec<ConnectionId> = (0..40)
            .map(|number| ConnectionId::from("i".repeat(1 + number * 7 % 20).as_str()))
            .collect();
        let longest = ConnectionId::from("i".repeat(20).as_str());
        for max in Relay::event_len(&[longest], LEN)..400 {
            let parts = parts_that_fit(ids.clone(), LEN, max);
            assert_eq!(parts.concat(), ids);
            for pair in parts.windows(2) {
                let [part, next] = pair else {
                    panic!("they are two")
                };
                assert!(Relay::event_len(part, LEN) <= max, "{max}: {part:?}");
                let one_more = [part.as_slice(), &next[..1]].concat();
                assert!(Relay::event_len(&one_more, LEN) > max, "{max}: {part:?}");
            }
            let last = parts.last().map_or(0, |part| Relay::event_len(part, LEN));
            assert!(last <= max);
        }
    }
}
