//! What the application wants to be told.

use std::{fmt, future::Future, panic::AssertUnwindSafe, sync::Arc};

use futures_util::FutureExt;

use super::Connection;
use crate::{
    backend::{BoxFuture, ConnectionId, Name},
    instance::LeaveReason,
};

type ConnectionHook = Arc<dyn Fn(Connection) -> BoxFuture<'static, ()> + Send + Sync>;
type ErrorHook = Arc<dyn Fn(&Fault) + Send + Sync>;
type RoomLeaveHook = Arc<dyn Fn(RoomLeave) -> BoxFuture<'static, ()> + Send + Sync>;

/// A connection is no member of a room any more.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct RoomLeave {
    /// The room.
    pub room: Name,
    /// The connection.
    pub connection: ConnectionId,
    /// Why.
    pub reason: LeaveReason,
}

/// Something went wrong that no reply tells the application of.
#[derive(Debug)]
#[non_exhaustive]
pub enum Fault {
    /// A handler, middleware or hook panicked. Its command was answered with `EINTERNAL`.
    Panic {
        /// The command, or the name of the hook.
        what: String,
        /// Who sent the command.
        connection: Connection,
    },
    /// A connection ended by a failure of its socket, or because the peer broke the WebSocket protocol.
    Socket {
        /// Whose.
        connection: Connection,
        /// What happened.
        error: super::SocketError,
    },
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Panic { what, connection } => {
                write!(f, "{what:?} panicked for connection {}", connection.id())
            }
            Self::Socket { connection, error } => {
                write!(f, "connection {} failed: {error}", connection.id())
            }
        }
    }
}

#[derive(Default)]
pub(super) struct Hooks {
    connection: Vec<ConnectionHook>,
    disconnection: Vec<ConnectionHook>,
    error: Vec<ErrorHook>,
    room_leave: Vec<RoomLeaveHook>,
}

impl Hooks {
    pub(super) fn on_connection<F, Fut>(&mut self, hook: F)
    where
        F: Fn(Connection) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        self.connection
            .push(Arc::new(move |connection| Box::pin(hook(connection))));
    }

    pub(super) fn on_disconnection<F, Fut>(&mut self, hook: F)
    where
        F: Fn(Connection) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        self.disconnection
            .push(Arc::new(move |connection| Box::pin(hook(connection))));
    }

    pub(super) fn on_error(&mut self, hook: impl Fn(&Fault) + Send + Sync + 'static) {
        self.error.push(Arc::new(hook));
    }

    pub(super) fn on_room_leave<F, Fut>(&mut self, hook: F)
    where
        F: Fn(RoomLeave) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        self.room_leave
            .push(Arc::new(move |leave| Box::pin(hook(leave))));
    }

    pub(super) fn wants_room_leaves(&self) -> bool {
        !self.room_leave.is_empty()
    }

    /// One after the other; a panic of one skips none of the others.
    pub(super) async fn room_left(&self, leave: RoomLeave) {
        for hook in &self.room_leave {
            let run = async { hook(leave.clone()).await };
            if AssertUnwindSafe(run).catch_unwind().await.is_err() {
                tracing::error!(?leave, "on_room_leave panicked");
            }
        }
    }

    pub(super) async fn connected(&self, connection: &Connection) {
        self.run("on_connection", &self.connection, connection)
            .await;
    }

    pub(super) async fn disconnected(&self, connection: &Connection) {
        self.run("on_disconnection", &self.disconnection, connection)
            .await;
    }

    pub(super) fn report(&self, fault: &Fault) {
        match fault {
            Fault::Panic { .. } => tracing::error!(%fault),
            Fault::Socket { .. } => tracing::debug!(%fault),
        }
        for hook in &self.error {
            if std::panic::catch_unwind(AssertUnwindSafe(|| hook(fault))).is_err() {
                tracing::error!("on_error panicked");
            }
        }
    }

    /// One after the other; a panic of one skips none of the others.
    async fn run(&self, what: &str, hooks: &[ConnectionHook], connection: &Connection) {
        for hook in hooks {
            let run = async { hook(connection.clone()).await };
            if AssertUnwindSafe(run).catch_unwind().await.is_err() {
                self.report(&Fault::Panic {
                    what: what.to_owned(),
                    connection: connection.clone(),
                });
            }
        }
    }
}
