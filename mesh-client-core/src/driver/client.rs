//! The client that applications hold.

use std::{
    sync::{Arc, mpsc},
    time::Duration,
};

use futures_channel::oneshot;
use mesh_core::{driver::inside, protocol::EncodeError};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::value::RawValue;

use super::{
    builder::ClientBuilder,
    call::{CommandCall, read, typed},
    error::ClientError,
    hub::{self, CallbackGuard, Topic},
    publish::PublishRecordCall,
    record::SubscribeRecordCall,
    shared::{CLOSE_WAITERS_MAX, Handle, Shared, Token, expect},
    streams::{Events, Notices},
    subscription::SubscribeCall,
};
use crate::{ConnectError, Outcome, Stats, Status};

/// A client of a mesh server. Clones are handles to the same client.
///
/// It reconnects by itself, and puts subscriptions, rooms and metadata back before it reports
/// [`Status::Reconnected`]. Commands wait for a connection within the queue's limits, and each ends in
/// exactly one result. With the last handle go the connection and every stream.
#[derive(Clone, Debug)]
pub struct MeshClient {
    handle: Arc<Handle>,
}

impl MeshClient {
    /// Sets up a client for `ws://` or `wss://`.
    ///
    /// User and password of the URL (`ws://user:password@host`, percent-encoded) are sent as `Authorization: Basic …`
    /// (RFC 7617), unless a header or a token provider says otherwise. Without `wss` the whole network can read them.
    pub fn builder(url: &str) -> ClientBuilder {
        ClientBuilder::new(url)
    }

    pub(crate) fn new(handle: Handle) -> Self {
        Self {
            handle: Arc::new(handle),
        }
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.handle.0
    }

    /// Connects, again after a [`close`](Self::close) too, and waits until the connection is up. Done at once if it is.
    ///
    /// # Errors
    /// What ended the client:
    /// - [`ConnectError::Refused`] with 401 or 403, and what can never succeed, as [`ConnectError`] lists it;
    /// - any failure of the first attempt with [`fail_fast`](ClientBuilder::fail_fast);
    /// - the last failure once [`max_reconnect_attempts`](ClientBuilder::max_reconnect_attempts) were in vain;
    /// - [`ConnectError::Lost`] where the connection is lost while things are put back, with
    ///   [`should_reconnect`](ClientBuilder::should_reconnect) off;
    /// - [`ConnectError::Closed`] after a [`close`](Self::close), or once the client's runtime is gone.
    ///
    /// [`ConnectError::TooMany`] where 1 000 calls wait already; the client goes on. Other failures are retried.
    pub async fn open(&self) -> Result<(), ConnectError> {
        match self
            .shared()
            .ask(|state, token, now| state.client.handle_connect(token, now))
            .await
        {
            Outcome::Connected => Ok(()),
            Outcome::ConnectFailed(error) => Err(error),
            Outcome::QueueFull => Err(ConnectError::TooMany),
            _ => Err(ConnectError::Closed),
        }
    }

    /// Closes the connection with 1000 and waits until it is closed, at most 2 s. Commands that were sent end as
    /// [`ClientError::Disconnected`], those that wait as [`ClientError::Closed`], and subscriptions end. Event streams
    /// stay: the client may be connected again.
    pub async fn close(&self) {
        let (sender, receiver) = oneshot::channel();
        self.shared().with(|state, now| {
            state.client.handle_close(now);
            if !self.shared().is_dead() && state.closing.len() < CLOSE_WAITERS_MAX {
                state.closing.push(sender);
            }
        });
        // An error means that the task is gone, and the socket with it.
        receiver.await.unwrap_or(());
    }

    /// Whether the connection is up and everything is put back.
    pub fn is_online(&self) -> bool {
        self.shared().state.lock().client.is_online()
    }

    /// Why there is no connection: what the last attempt failed for, or what the connection was lost to. Where it leads
    /// is told by [`on_status`](Self::on_status), each error with what follows.
    ///
    /// `None` as long as nothing failed: before the first attempt has ended, once the connection is up (again), and from
    /// an [`open`](Self::open) of a client that had ended until its first failure. What ended the client stays to be
    /// read, and a [`close`](Self::close) is no failure.
    ///
    /// ```
    /// use mesh_client_core::driver::MeshClient;
    ///
    /// fn banner(client: &MeshClient) -> String {
    ///     match client.last_error() {
    ///         _ if client.is_online() => "online".to_owned(),
    ///         None => "connecting".to_owned(),
    ///         Some(error) => format!("offline: {error}"),
    ///     }
    /// }
    /// ```
    pub fn last_error(&self) -> Option<ConnectError> {
        self.shared().state.lock().client.last_error().cloned()
    }

    /// The id that the server gave this connection. Each connection has another.
    ///
    /// `None` without a connection, and where the server gives none. A server tells it in its first frame, which may come a moment after
    /// [`open`](Self::open) is done.
    pub fn connection_id(&self) -> Option<String> {
        self.shared()
            .state
            .lock()
            .client
            .connection_id()
            .map(str::to_owned)
    }

    /// What was ignored so far, such as late replies.
    pub fn stats(&self) -> Stats {
        self.shared().state.lock().client.stats()
    }

    /// Holds what is kept to the limits, and panics where it is more.
    #[cfg(feature = "__fuzzing")]
    #[doc(hidden)]
    pub fn check(&self) {
        self.shared().state.lock().client.check();
    }

    /// Calls a command: `client.command("echo", "Hello").timeout(…).await?`.
    ///
    /// # Errors
    /// When awaited: [`ClientError::Command`] for the server's error reply, and as [`ClientError`] tells.
    pub fn command<P: Serialize, R: DeserializeOwned>(
        &self,
        name: &str,
        payload: P,
    ) -> CommandCall<R> {
        CommandCall::new(self.shared(), name, &payload, typed)
    }

    /// Calls a command and takes the reply's payload as JSON, untouched, an error object too.
    pub fn command_raw<P: Serialize>(&self, name: &str, payload: P) -> CommandCall<String> {
        CommandCall::new(self.shared(), name, &payload, Ok)
    }

    /// Calls a command from code that is not async, and blocks the thread until its result, at most `timeout`.
    ///
    /// # Errors
    /// [`ClientError::Timeout`] at the latest after `timeout`. [`ClientError::Usage`] at once inside an async runtime (its threads for
    /// blocking work included, for they look no different) or any handler or callback of mesh: there it would wait for what
    /// it holds up itself.
    pub fn command_blocking<P: Serialize, R: DeserializeOwned>(
        &self,
        name: &str,
        payload: P,
        timeout: Duration,
    ) -> Result<R, ClientError> {
        if inside::is_inside() || self.shared().runtime.inside() {
            return Err(ClientError::Usage(
                "command_blocking would block an async task, a handler or a callback; await command(..) instead",
            ));
        }
        let (sender, receiver) = mpsc::sync_channel(1);
        let call: CommandCall<R> = self.command(name, payload).timeout(timeout);
        call.submit(Token::Blocking(sender))?;
        let outcome = match receiver.recv_timeout(timeout) {
            Ok(outcome) => outcome,
            // The client's own task may itself be held up; the caller's time is over in any case.
            Err(mpsc::RecvTimeoutError::Timeout) => Outcome::Timeout {
                after: timeout,
                sent: true,
            },
            Err(mpsc::RecvTimeoutError::Disconnected) => Outcome::Closed,
        };
        read(outcome, name, typed)
    }

    /// The events called `name`, as a stream. What comes before this call is not in it.
    pub fn on<T: DeserializeOwned>(&self, name: &str) -> Events<T> {
        Events::new(hub::listen(self.shared(), Topic::Event(name.to_owned())))
    }

    /// Calls `callback` with each event called `name`, until the guard is dropped.
    ///
    /// Callbacks run one after another on the client's task and must not block. One that panics is logged; an event whose
    /// payload does not fit `T` is logged and skipped. One that holds a handle of this client keeps it alive.
    pub fn on_with<T: DeserializeOwned>(
        &self,
        name: &str,
        callback: impl Fn(T) + Send + Sync + 'static,
    ) -> CallbackGuard {
        let event = name.to_owned();
        let callback = move |payload: &Arc<str>| match serde_json::from_str(payload) {
            Ok(payload) => callback(payload),
            Err(error) => tracing::warn!(event, %error, "an event's payload does not fit"),
        };
        hub::call(self.shared(), Topic::Event(name.to_owned()), callback)
    }

    /// The round trips that the server measures, as a stream.
    pub fn on_latency(&self) -> Notices<Duration> {
        Notices::new(hub::listen(self.shared(), Topic::Latency))
    }

    /// Calls `callback` with each round trip that the server measured.
    pub fn on_latency_with(
        &self,
        callback: impl Fn(Duration) + Send + Sync + 'static,
    ) -> CallbackGuard {
        hub::call(self.shared(), Topic::Latency, move |latency: &Duration| {
            callback(*latency);
        })
    }

    /// The changes of the connection's state, as a stream. Those that say that there is no connection say why.
    pub fn on_status(&self) -> Notices<Status> {
        Notices::new(hub::listen(self.shared(), Topic::Status))
    }

    /// Calls `callback` with each change of the connection's state.
    pub fn on_status_with(
        &self,
        callback: impl Fn(&Status) + Send + Sync + 'static,
    ) -> CallbackGuard {
        hub::call(self.shared(), Topic::Status, callback)
    }

    /// Subscribes to a channel: `client.subscribe("chat:room1").history(3).await?`. Several subscriptions of one
    /// channel share one on the wire.
    ///
    /// # Errors
    /// When awaited: [`ClientError::NotExposed`] where the server does not let it, and as [`ClientError`] tells.
    pub fn subscribe(&self, channel: &str) -> SubscribeCall {
        SubscribeCall::new(self.shared(), channel)
    }

    /// Subscribes to a record: `client.subscribe_record::<User>("user:123").patch().await?`. Several subscriptions of one
    /// record share one on the wire.
    ///
    /// # Errors
    /// When awaited: [`ClientError::NotExposed`] where the server does not let it, [`ClientError::Decode`] where the value that the record has
    /// does not fit `T`, and as [`ClientError`] tells.
    pub fn subscribe_record<T: DeserializeOwned>(&self, record: &str) -> SubscribeRecordCall<T> {
        SubscribeRecordCall::new(self.shared(), record)
    }

    /// Publishes a new value of a record that the server lets this connection write: `client.publish_record_update("user:123",
    /// &user).await?`. Who is subscribed to it hears of it like all others.
    ///
    /// # Errors
    /// When awaited: [`ClientError::Command`] where the record is not writable, and as [`ClientError`] tells.
    pub fn publish_record_update<V: Serialize + ?Sized>(
        &self,
        record: &str,
        value: &V,
    ) -> PublishRecordCall {
        PublishRecordCall::new(self.shared(), record, value)
    }

    /// Changes some keys of a record that the server lets this connection write: [`publish_record_update`](Self::publish_record_update)
    /// with [`merge`](PublishRecordCall::merge), to which `.deep_merge()` can be added.
    ///
    /// ```
    /// # async fn merge(client: mesh_client_core::driver::MeshClient) -> Result<(), mesh_client_core::driver::ClientError> {
    /// #[derive(serde::Serialize)]
    /// struct Status<'a> {
    ///     status: &'a str,
    /// }
    ///
    /// client.merge_record("user:123", &Status { status: "away" }).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As there.
    pub fn merge_record<V: Serialize + ?Sized>(
        &self,
        record: &str,
        value: &V,
    ) -> PublishRecordCall {
        self.publish_record_update(record, value).merge()
    }

    /// Joins a room that the server exposes, and joins it again after each reconnect. Returns who is there, as the server's
    /// dialect puts it: connection ids, for `mesh/`.
    ///
    /// # Errors
    /// [`ClientError::NotExposed`] where the server does not let it, and as [`ClientError`] tells.
    pub async fn join_room<R: DeserializeOwned>(&self, room: &str) -> Result<R, ClientError> {
        let outcome = self
            .shared()
            .ask(|state, token, now| state.client.handle_join(token, room, now))
            .await;
        let present = expect(outcome, room, |outcome| match outcome {
            Outcome::Joined { present } => Ok(present),
            other => Err(other),
        })?;
        serde_json::from_str(&present).map_err(|error| ClientError::Decode(error.to_string()))
    }

    /// Leaves a room.
    ///
    /// # Errors
    /// As [`ClientError`] tells.
    pub async fn leave_room(&self, room: &str) -> Result<(), ClientError> {
        let outcome = self
            .shared()
            .ask(|state, token, now| state.client.handle_leave(token, room, now))
            .await;
        expect(outcome, room, |outcome| match outcome {
            Outcome::Left => Ok(()),
            other => Err(other),
        })
    }

    /// Replaces this connection's metadata, where the server allows it, and sets it again after each reconnect.
    ///
    /// # Errors
    /// [`ClientError::NotExposed`] where the server does not allow it, and as [`ClientError`] tells.
    pub async fn set_metadata<M: Serialize>(&self, metadata: &M) -> Result<(), ClientError> {
        let json = serde_json::value::to_raw_value(metadata).map_err(EncodeError::from)?;
        let json = RawValue::get(&json);
        let outcome = self
            .shared()
            .ask(|state, token, now| state.client.handle_set_metadata(token, json, now))
            .await;
        expect(outcome, "metadata", |outcome| match outcome {
            Outcome::MetadataSet => Ok(()),
            other => Err(other),
        })
    }
}
